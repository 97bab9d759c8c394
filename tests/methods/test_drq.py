"""bc, drq_bc and drq_cql against NumPy written from the equations; who learns from what; images and actions."""

import numpy as np
import pytest
import synthetic
import tensorflow as tf
import tiny

from semopo_tf import config as configuration
from semopo_tf.data.dataset import open_dataset
from semopo_tf.errors import ConfigError
from semopo_tf.methods import drq, stacked
from semopo_tf.random import integers, normal, uniform
from semopo_tf.run import build
from semopo_tf.types import Transitions

LOSSES = ("bc", "drq_bc", "drq_cql")
SIZE, ACTION, BATCH, CLIP = 16, 2, 5, 0.3
COUNT = 2  # actions of each kind in CQL, at the debug size


def learner(loss, **flags):
    return build.make_learner(tiny.config(loss, sizes={}, **flags), image_size=SIZE, action_size=ACTION)


@pytest.fixture(params=LOSSES)
def loss(request):
    return request.param


def transitions(rng):
    image, next_image = (tf.constant(rng.integers(0, 256, (BATCH, SIZE, SIZE, 9), np.uint8)) for _ in range(2))
    action = tf.constant(rng.uniform(-1, 1, (BATCH, ACTION)), tf.float32)
    reward, discount = (tf.constant(rng.uniform(0, 1, BATCH), tf.float32) for _ in range(2))
    return Transitions(image, action, reward, discount, next_image, tf.zeros([BATCH, 0], tf.uint8))


# --- the equations in NumPy, float64 ----------------------------------------------------------------------------------


def shift_in_numpy(image, offset, pad):
    padded = np.pad(image, [(0, 0), (pad, pad), (pad, pad), (0, 0)], mode="edge")
    rows = [x[dy : dy + SIZE, dx : dx + SIZE] for x, (dy, dx) in zip(padded, offset, strict=True)]
    return np.stack(rows)


def convolve_in_numpy(x, kernel, bias, stride):
    k, size = kernel.shape[0], (x.shape[1] - kernel.shape[0]) // stride + 1
    out = np.empty((len(x), size, size, kernel.shape[3]))
    for i in range(size):
        for j in range(size):
            window = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            out[:, i, j] = np.tensordot(window, kernel, 3) + bias
    return np.maximum(out, 0)


class Twin:
    """The networks of a learner, its losses and its noise at a key."""

    def __init__(self, made, key, std):
        self.weights, self.key, self.std = tiny.Weights(tiny.snapshot(made.variables())), key, std

    def dense(self, name, x):
        kernel, bias = self.weights.dense(name)
        return x @ kernel + bias

    def encode(self, image, stream):
        offset = integers(self.key, stream, [BATCH, 2], 3).numpy()
        x = shift_in_numpy(image.numpy().astype(np.float64), offset, 1) / 255 - 0.5
        for place, stride in enumerate((2, 1, 1, 1)):
            x = convolve_in_numpy(x, *self.weights.dense(f"encoder/conv{place}"), stride)
        return x.reshape(len(x), -1)

    def trunk(self, name, x):
        x = self.dense(f"{name}/trunk/dense", x)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        norm = self.weights.values[f"{name}/trunk/norm/gamma"], self.weights.values[f"{name}/trunk/norm/beta"]
        return np.tanh(x * norm[0] + norm[1])

    def head(self, name, output, x):
        return self.dense(f"{name}/{output}", np.maximum(self.dense(f"{name}/hidden0", x), 0))

    def mean(self, feature):
        return np.tanh(self.head("actor/head", "mean", self.trunk("actor", feature)))

    def act(self, mean, stream):
        noise = normal(self.key, stream, mean.shape).numpy()
        return np.clip(mean + np.clip(self.std * noise, -CLIP, CLIP), -1 + 1e-6, 1 - 1e-6)

    def values(self, name, feature, action):
        rows = np.concatenate([self.trunk(name, feature), action], -1)
        return [self.head(f"{name}/q{i}", "value", rows)[:, 0] for i in (0, 1)]


def std_at(step, updates):
    return 1 + (0.1 - 1) * min(step / updates, 1)


@pytest.mark.parametrize(
    ("loss", "mode"),
    [
        *((loss, "eager") for loss in LOSSES),
        ("drq_cql", "xla"),
        *(pytest.param(loss, "xla", marks=pytest.mark.full) for loss in ("bc", "drq_bc")),
    ],
)
def test_the_losses_are_those_of_the_equations(rng, loss, mode):
    made, step, batch = learner(loss, drq__std_updates=10), 4, transitions(rng)
    names = [name for name in made.variables() if not name.startswith("optimizer/")]
    tiny.randomise({name: made.variables()[name] for name in names}, rng)
    key = tiny.key(step, "policy")
    twin = Twin(made, key, std_at(step, 10))
    found = tiny.run(mode, lambda: made.gradients(batch, key)[0])
    feature, data = twin.encode(batch.image, "shift"), batch.action.numpy()
    assert found["std"] == pytest.approx(0.64)
    cloned = ((twin.act(twin.mean(feature), "action") - data) ** 2).mean()
    if loss == "bc":
        tiny.close(found["actor_loss"], cloned)
        return
    following = twin.encode(batch.next_image, "next_shift")
    slow = twin.values("slow_critic", following, twin.act(twin.mean(following), "next_action"))
    target = batch.reward.numpy() + batch.discount.numpy() * np.minimum(*slow)
    values = twin.values("critic", feature, data)
    tiny.close(found["target"], target.mean())
    tiny.close(found["critic_loss"], sum(((value - target) ** 2).mean() for value in values))
    tiny.close(found["cloning_loss"], cloned)
    if loss == "drq_bc":
        return
    drawn = [2.0 * uniform(key, "cql_uniform", [BATCH, COUNT, ACTION]).numpy() - 1]
    for name, each in (("cql_now", feature), ("cql_next", following)):
        drawn.append(twin.act(np.repeat(twin.mean(each)[:, None], COUNT, 1), name))
    actions = np.concatenate([*drawn, data[:, None]], 1)
    tables = [twin.values("critic", feature, actions[:, j]) for j in range(actions.shape[1])]
    expected = 0
    for i in (0, 1):
        table = np.stack([row[i] for row in tables], 1)
        expected += (np.log(np.exp(table).sum(1)) - table[:, -1]).mean()
    tiny.close(found["cql_loss"], expected)


@pytest.mark.parametrize("loss", ["drq_bc", "drq_cql"])
def test_the_actor_meets_the_critic_after_its_step(rng, loss):
    """The order of V-D4RL: its loss is that of an actor that stands still while the critic has moved."""
    made, batch, key = learner(loss, critic_opt__lr=0.1), transitions(rng), tiny.key(1, "policy")
    before = Twin(made, key, std_at(1, 125000))
    features = before.encode(batch.image, "shift")
    action = before.act(before.mean(features), "action")
    said = made.update(batch, key)
    after = Twin(made, key, std_at(1, 125000))
    value = np.minimum(*after.values("critic", features, action))
    cloned = ((action - batch.action.numpy()) ** 2).mean()
    expected = -value.mean() if loss == "drq_cql" else cloned - 2.5 * value.mean() / np.abs(value).mean()
    tiny.close(said["actor_loss"], expected, 1e-4)
    old = np.minimum(*before.values("critic", features, action))
    assert abs(old.mean() - value.mean()) > 0.01


# --- who learns from what ---------------------------------------------------------------------------------------------


def test_gradients_reach_who_the_table_names_and_no_other(rng, loss, monkeypatch):
    """With one loss made constant, those that it alone trains get none."""
    batch, key = transitions(rng), tiny.key(0, "policy")
    trained = {"bc": {"encoder", "actor"}}.get(loss, {"encoder", "critic", "actor"})
    made = learner(loss)
    assert moved(made.gradients(batch, key)[1]) == trained
    made = learner(loss)
    monkeypatch.setattr(drq, "cloning_loss", lambda action, data: 0.0 * tf.reduce_sum(action))
    if loss == "bc":
        assert moved(made.gradients(batch, key)[1]) == set()
    else:  # cloning never reaches the encoder
        assert moved(made.gradients(batch, key)[1]) == trained
    monkeypatch.setattr(drq, "temporal_difference", lambda values, target: 0.0 * tf.add_n(values)[0])
    if loss == "drq_bc":  # neither does the actor's loss
        assert moved(made.gradients(batch, key)[1]) == {"actor"}
    if loss == "drq_cql":
        monkeypatch.setattr(drq, "conservative", lambda values: 0.0 * tf.reduce_sum(values))
        assert moved(made.gradients(batch, key)[1]) == {"actor"}


def moved(gradients):
    return {name.partition("/")[0] for name, value in gradients.items() if np.abs(value.numpy()).max() > 0}


def test_gradients_change_nothing(rng, loss):
    made = learner(loss)
    before = tiny.snapshot(made.variables())
    made.gradients(transitions(rng), tiny.key(0, "policy"))
    for name, value in tiny.snapshot(made.variables()).items():
        assert value.tobytes() == before[name].tobytes(), name


@pytest.mark.parametrize(("weight", "scale"), [(2.5, np.inf), (3e38, 1.0)], ids=["critic", "actor"])
def test_an_update_of_which_one_loss_is_not_finite_changes_nothing(rng, weight, scale):
    """The critic's own, or the actor's after the critic has taken its step."""
    made, batch = learner("drq_bc", drq__bc_weight=weight), transitions(rng)
    before = tiny.snapshot(made.variables())
    said = made.update(batch._replace(reward=scale * batch.reward), tiny.key(0, "policy"))
    assert said["finite"] == 0
    assert np.isfinite(said["critic_loss"]) == (scale == 1.0)
    for name, value in tiny.snapshot(made.variables()).items():
        assert value.tobytes() == before[name].tobytes(), name


def test_a_saturated_mean_still_learns():
    mean = tf.Variable([[0.99999999, -0.5]])
    with tf.GradientTape() as tape:
        action = drq.noisy(mean, tf.ones([1, 2]), std=1.0, clip=CLIP)
        total = tf.reduce_sum(action)
    np.testing.assert_allclose(action, [[1 - 1e-6, -0.2]], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(total, mean), [[1, 1]])


# --- sizes, images, data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "actor", "critic"),
    [(64, 2_108_124, 3_218_136), pytest.param(84, 3_068_124, 4_178_136, marks=pytest.mark.full)],
)
def test_the_networks_have_the_published_sizes(size, actor, critic, monkeypatch):
    monkeypatch.setattr(drq, "initialise_orthogonal", lambda variables, seed: None)  # seconds of its own
    made = build.make_learner(
        configuration.load(["--configs", "drq_bc", "walker_walk"]), image_size=size, action_size=6
    )
    counts = {}
    for name, variable in made.variables().items():
        group = name.partition("/")[0]
        counts[group] = counts.get(group, 0) + int(np.prod(variable.shape))
    del counts["optimizer"]
    assert counts == {"encoder": 30_368, "actor": actor, "critic": critic, "slow_critic": critic}


def test_images_are_resized_alike_in_data_and_evaluation(rng, loss):
    """What the policy sees of a frame is the row that the learner was trained on."""
    made = learner(loss, transitions__resize=21)
    frames = rng.integers(0, 256, (stacked.BLOCK + 3, SIZE, SIZE, 3), np.uint8)
    (stage,) = made.stages
    table = stage.prepare(frames)
    assert table.shape == (len(frames), 21, 21, 3)
    policy = made.policy()
    _, stack = policy(frames[-1:], policy.initial(1), np.zeros(1, np.int64), 0)
    np.testing.assert_array_equal(stack[0], np.tile(table[-1], 3))


def test_the_policy_sees_the_stack_of_the_data(tmp_path, rng):
    """Frames played one by one give the mean action of the same record's stack."""
    made = learner("bc")
    tiny.randomise({n: v for n, v in made.variables().items() if n.startswith(("encoder", "actor"))}, rng)
    data = open_dataset(synthetic.dataset(tmp_path / "data", episodes=1, size=SIZE, records=6))
    policy, state = made.policy(), made.policy().initial(1)
    for t in range(5):
        action, state = policy(data.frames[t][None], state, np.zeros(1, np.int64), t)
        frames = [data.frames[max(t - back, 0)] for back in (2, 1, 0)]
        np.testing.assert_array_equal(state[0], np.concatenate(frames, -1))
        expected = made._mean(made._encoded(tf.constant(np.concatenate(frames, -1)[None])))
        np.testing.assert_allclose(action, expected, atol=1e-6)


def test_too_small_images_are_refused_with_what_helps():
    with pytest.raises(ConfigError, match=r"images of 10 pixels: expected larger ones.*add --transitions.resize 64"):
        build.make_learner(tiny.config("bc", sizes={}), image_size=10, action_size=2)


def test_float16_is_refused():
    with pytest.raises(ConfigError, match="--precision: expected float32 or mixed_bfloat16 for bc"):
        learner("bc", precision="mixed_float16")


@pytest.mark.parametrize(
    ("method", "flag", "value"),
    [
        ("bc", "penalty.weight", "1"),
        ("drq_bc", "imagination.horizon", "3"),
        ("drq_cql", "batch.length", "9"),
        ("bc", "sampling", "uniform"),
        ("semopo", "drq.filters", "4"),
        ("offline_dv2", "transitions.stack", "2"),
        ("semopo", "sac.tau", "0.1"),
    ],
)
def test_a_flag_of_another_method_is_refused(method, flag, value):
    config = configuration.load(["--configs", method, "walker_walk", "debug", f"--{flag}", value])
    with pytest.raises(ConfigError, match=f"--{flag}: expected a setting that {method} reads"):
        build.make_learner(config, image_size=64, action_size=2)
