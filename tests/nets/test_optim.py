"""The optimiser against NumPy and Keras' Adam, shared variables, and the refusal of steps that are not finite."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
import tiny

from semopo_tf.nets.optim import LossScale, Optimizer, gradients_of, step_if_finite

SHAPES = {"a": (3, 2), "b": (4,), "c": ()}
modes = pytest.mark.parametrize("mode", tiny.MODES)


targets = pytest.mark.parametrize("target", ["library", "xla_gpu"])


def variables(rng, names="abc"):
    return {name: tf.Variable(rng.normal(size=SHAPES[name]), dtype=tf.float32) for name in names}


def random_gradients(rng, scale=1.0, names="abc"):
    return {name: tiny.float32(scale * rng.normal(size=SHAPES[name])) for name in names}


def stepper(mode, optimizers):
    """A function (gradients, loss) that runs `step_if_finite` in one mode."""

    def step(gradients, loss):
        return step_if_finite(optimizers, gradients, [tf.constant(0.0), loss])

    compiled = step if mode == "eager" else tf.function(step, autograph=False, jit_compile=mode == "xla")
    return lambda gradients, loss=0.0: tiny.arrays(
        compiled(*tf.nest.map_structure(lambda x: tf.constant(x, tf.float32), (gradients, loss)))
    )


@modes
@targets
@pytest.mark.parametrize(
    ("scale", "decay"), [(0.01, 0.0), (1000.0, 0.01)]
)  # norms of about 0.03 and 3000: not clipped and clipped at 100
def test_five_steps_match_the_loop(mode, scale, decay, target, rng):
    trained = variables(rng)
    start = [trained[name].numpy() for name in "abc"]
    settings = {"lr": 0.1, "eps": 1e-5, "clip": 100.0, "weight_decay": decay, "target": target}
    step = stepper(mode, [Optimizer("model", trained, **settings)])
    adam = reference.Adam(lr=0.1, eps=1e-5, clip=100.0, decay=decay)
    for _ in range(5):
        gradients = random_gradients(rng, scale)
        metrics = step(gradients)
        start, norm = adam.step(start, [gradients[name] for name in "abc"])
        tiny.close(metrics["model_grad_norm"], norm)
        assert metrics["finite"] == 1.0
    for name, expected in zip("abc", start, strict=True):
        tiny.close(trained[name], expected)


def test_it_is_the_adam_of_keras_that_the_released_code_uses(rng):
    """Keras sets the epsilon beside the root of the *uncorrected* second moment. With gradients near epsilon the other
    convention (beside the corrected root) takes first steps up to thirty times as large: the factor is sqrt(1 -
    0.999)."""
    ours, theirs = variables(rng), {}
    theirs = {name: tf.Variable(variable) for name, variable in ours.items()}
    optimizer = Optimizer("model", ours, lr=0.1, eps=1e-5, clip=100.0, weight_decay=0.0)
    oracle = keras.optimizers.Adam(0.1, epsilon=1e-5)
    for _ in range(4):
        gradients = {name: tf.constant(g, tf.float32) for name, g in random_gradients(rng, 1e-5).items()}
        optimizer.apply(gradients, tf.linalg.global_norm(list(gradients.values())))
        oracle.apply_gradients([(gradients[name], theirs[name]) for name in "abc"])
    for name in "abc":
        tiny.close(ours[name], theirs[name].numpy())


def test_first_step_by_hand():
    # m = .1 g, v = .001 g^2, rate = lr sqrt(.001) / .1: the step is lr g sqrt(.001) / (sqrt(.001) |g| + eps), nearly
    # lr. With g = 3 and 4 the norm is 5; a clip of 2.5 halves both, which Adam cancels up to eps.
    trained = {"x": tf.Variable([1.0, 1.0])}
    optimizer = Optimizer("o", trained, lr=0.5, eps=0.01, clip=2.5, weight_decay=0.1)
    metrics = step_if_finite([optimizer], {"x": tf.constant([3.0, -4.0])}, [tf.constant(0.0)])
    assert metrics["o_grad_norm"].numpy() == 5.0
    root = np.sqrt(0.001)
    expected = [0.9 - 0.5 * root * 1.5 / (root * 1.5 + 0.01), 0.9 + 0.5 * root * 2.0 / (root * 2.0 + 0.01)]
    tiny.close(trained["x"], expected)


def test_decay_is_not_multiplied_by_the_learning_rate_and_reaches_every_variable():
    trained = {"kernel": tf.Variable([2.0]), "bias": tf.Variable(3.0)}
    optimizer = Optimizer("o", trained, lr=1e-3, eps=1e-5, clip=100.0, weight_decay=0.25)
    step_if_finite([optimizer], {"kernel": tf.zeros([1]), "bias": tf.constant(0.0)}, [tf.constant(0.0)])
    assert trained["kernel"].numpy() == [1.5]
    assert trained["bias"].numpy() == 2.25


@modes
def test_two_optimisers_that_share_a_variable_each_take_their_own_step(mode, rng):
    """'b' is on both lists: two moment sets, two decays, and it counts in both norms. Gradients are those of before
    both steps.
    """
    trained = variables(rng)
    groups = {"first": "ab", "second": "bc"}
    settings = {"lr": 0.05, "eps": 1e-5, "clip": 3.0, "weight_decay": 0.02}
    optimizers = [Optimizer(name, {key: trained[key] for key in keys}, **settings) for name, keys in groups.items()]
    step = stepper(mode, optimizers)
    by_hand = [(reference.Adam(lr=0.05, eps=1e-5, clip=3.0, decay=0.02), list(keys)) for keys in groups.values()]
    expected = tiny.snapshot(trained)
    for _ in range(4):
        gradients = random_gradients(rng, 2.0)
        metrics = step(gradients)
        expected, norms = reference.shared_step(expected, gradients, by_hand)
        tiny.close([metrics["first_grad_norm"], metrics["second_grad_norm"]], norms)
    for name in "abc":
        tiny.close(trained[name], expected[name])


@modes
@targets
def test_a_step_that_is_not_finite_changes_nothing_and_says_so(mode, target, rng):
    trained = variables(rng)
    settings = {"lr": 0.1, "eps": 1e-5, "clip": 100.0, "weight_decay": 0.1, "target": target}
    optimizers = [Optimizer(name, trained, **settings) for name in ("one", "two")]
    step = stepper(mode, optimizers)
    step(random_gradients(rng))
    state = {**trained, **optimizers[0].state(), **optimizers[1].state()}
    before = tiny.snapshot(state)
    good, with_nan, too_large = random_gradients(rng), random_gradients(rng), random_gradients(rng)
    with_nan["b"][1] = np.nan
    too_large["b"][1] = 1e30  # finite, but its square is not
    for gradients, loss in ((good, np.nan), (good, np.inf), (with_nan, 0.0), (too_large, 0.0)):
        assert step(gradients, loss)["finite"] == 0.0
        for name, value in before.items():
            np.testing.assert_array_equal(state[name].numpy(), value)
    assert step(good)["finite"] == 1.0
    assert (trained["b"].numpy() != before["b"]).all()


def test_gradients_of_zero_are_a_finite_step(rng):
    trained = variables(rng)
    optimizer = Optimizer("o", trained, lr=0.1, eps=1e-5, clip=100.0, weight_decay=0.0)
    before = tiny.snapshot(trained)
    metrics = step_if_finite([optimizer], {name: tf.zeros(SHAPES[name]) for name in "abc"}, [tf.constant(0.0)])
    assert metrics["finite"].numpy() == 1.0
    for name in "abc":
        np.testing.assert_array_equal(trained[name], before[name])


def test_state_names_every_moment_and_the_counter(rng):
    trained = variables(rng, "ab")
    optimizer = Optimizer("o", trained, lr=0.1, eps=1e-5, clip=100.0, weight_decay=0.0)
    for _ in range(3):
        optimizer.apply({"a": tf.ones([3, 2]), "b": tf.zeros([4])}, tf.constant(1.0))
    state = optimizer.state()
    assert set(state) == {"o/updates", "o/first/a", "o/first/b", "o/second/a", "o/second/b"}
    assert state["o/updates"].numpy() == 3
    tiny.close(state["o/first/a"].numpy(), np.full((3, 2), 1 - 0.9**3))  # a constant gradient of 1
    tiny.close(state["o/second/a"].numpy(), np.full((3, 2), 1 - 0.999**3))


def test_gradients_of_returns_dense_gradients_by_name():
    trained = {"table": tf.Variable(tf.ones([3, 2])), "scale": tf.Variable(2.0)}
    with tf.GradientTape() as tape:
        loss = trained["scale"] * tf.reduce_sum(tf.gather(trained["table"], [1, 1]))  # a sparse gradient
    gradients = gradients_of(loss, trained, tape)
    tiny.close(gradients["table"], [[0, 0], [4, 4], [0, 0]])
    tiny.close(gradients["scale"], 4.0)


def test_a_variable_that_the_loss_does_not_reach_is_an_error_with_its_name():
    trained = {"used": tf.Variable(1.0), "forgotten": tf.Variable(1.0)}
    with tf.GradientTape() as tape:
        loss = trained["used"] ** 2
    with pytest.raises(ValueError, match="forgotten: expected a gradient"):
        gradients_of(loss, trained, tape)


def test_a_missing_gradient_is_an_error(rng):
    optimizer = Optimizer("o", variables(rng), lr=0.1, eps=1e-5, clip=100.0, weight_decay=0.0)
    with pytest.raises(KeyError, match="c"):
        step_if_finite([optimizer], {"a": tf.zeros([3, 2]), "b": tf.zeros([4])}, [tf.constant(0.0)])


# -------------------------------------------------------------------------------------------------------- loss scaling


class Scaled:
    """One variable trained under a loss scale, compiled or not."""

    def __init__(self, mode="graph"):
        self.trained = {"x": tf.Variable([1.0, 1.0])}
        self.scale = LossScale("scale")
        optimizer = Optimizer("o", self.trained, lr=0.5, eps=0.01, clip=2.5, weight_decay=0.0)

        def step(gradient, loss):
            return step_if_finite([optimizer], {"x": gradient}, [loss], self.scale)

        self._step = step if mode == "eager" else tf.function(step, autograph=False, jit_compile=mode == "xla")

    def step(self, gradient, loss=0.0):
        return tiny.arrays(self._step(tf.constant(gradient, tf.float32), tf.constant(loss)))


@modes
def test_scaled_gradients_take_the_step_of_the_plain_ones(mode):
    scaled = Scaled(mode)
    plain = {"x": tf.Variable([1.0, 1.0])}
    optimizer = Optimizer("o", plain, lr=0.5, eps=0.01, clip=2.5, weight_decay=0.0)
    metrics = scaled.step([3.0 * LossScale.START, -4.0 * LossScale.START])
    step_if_finite([optimizer], {"x": tf.constant([3.0, -4.0])}, [tf.constant(0.0)])
    np.testing.assert_array_equal(scaled.trained["x"], plain["x"])
    assert (metrics["o_grad_norm"], metrics["skipped"], metrics["finite"], metrics["loss_scale"]) == (
        5.0,
        0.0,
        1.0,
        LossScale.START,
    )


@modes
def test_N02_an_overflow_is_skipped_and_halves_the_scale(mode):
    scaled = Scaled(mode)
    metrics = scaled.step([np.inf, 1.0])
    np.testing.assert_array_equal(scaled.trained["x"], [1.0, 1.0])
    assert (metrics["o_grad_norm"], metrics["skipped"], metrics["finite"]) == (0.0, 1.0, 1.0)
    assert scaled.scale.scale.numpy() == LossScale.START / 2
    assert scaled.step([1.0, 1.0])["skipped"] == 0.0


def test_the_scale_doubles_after_many_good_steps_in_a_row(monkeypatch):
    monkeypatch.setattr(LossScale, "PATIENCE", 3)
    scaled, seen = Scaled("eager"), []
    for gradient in (1, 1, np.nan, 1, 1, 1, 1):
        scaled.step([gradient, 1.0])
        seen.append(scaled.scale.scale.numpy() / LossScale.START)
    assert seen == [1, 1, 0.5, 0.5, 0.5, 1, 1]


def test_N02_a_loss_that_is_not_finite_is_a_fault_whatever_the_scale_and_so_is_an_overflow_at_scale_one():
    scaled = Scaled()
    assert scaled.step([1.0, 1.0], np.nan)["finite"] == 0.0
    scaled.scale.scale.assign(1.0)
    assert scaled.step([np.inf, 1.0])["finite"] == 0.0
    assert scaled.scale.scale.numpy() == 1.0


def test_N02_the_sixteenth_skip_in_a_row_is_a_fault():
    scaled = Scaled()
    steps = [scaled.step([np.inf, 1.0]) for _ in range(16)]
    assert [step["skipped"] for step in steps] == [1.0] * 16
    assert [step["finite"] for step in steps] == [1.0] * 15 + [0.0]


def test_the_state_of_a_loss_scale_is_kept():
    assert set(LossScale("model_scale").state()) == {"model_scale/scale", "model_scale/good"}
