"""Densities, divergences, entropies and samples against closed forms in float64 and SciPy."""

import numpy as np
import pytest
import reference
import scipy.integrate
import scipy.stats
import tensorflow as tf
import tiny

from semopo_tf.nets.distributions import CategoricalLatent, GaussianLatent, TruncatedNormal, unit_normal_log_prob

GAUSSIAN = GaussianLatent(3, min_std=0.1)
CATEGORICAL = CategoricalLatent(3, 4)
modes = pytest.mark.parametrize("mode", tiny.MODES)


# ---------------------------------------------------------------------------------------------------------------- Gauss


def gaussian(rng, shape=(2, 5)):
    return {
        "mean": tiny.float32(rng.normal(0, 2, (*shape, 3))),
        "std": tiny.float32(rng.uniform(0.1, 2.1, (*shape, 3))),
    }


@modes
def test_gaussian_statistics_are_the_mean_and_twice_the_sigmoid_of_half_plus_a_tenth(mode, rng):
    raw = tiny.float32(rng.normal(0, 3, (2, 5, 6)))
    stats = tiny.run(mode, GAUSSIAN.stats, raw)
    expected = reference.gaussian_stats(raw)
    tiny.close(stats["mean"], expected["mean"])
    tiny.close(stats["std"], expected["std"])


@modes
def test_the_other_gaussian_std_is_the_softplus_plus_a_tenth(mode, rng):
    raw = tiny.float32(rng.normal(0, 3, (2, 5, 6)))
    stats = tiny.run(mode, GaussianLatent(3, min_std=0.1, std="softplus").stats, raw)
    tiny.close(stats["mean"], raw[..., :3])
    tiny.close(stats["std"], np.logaddexp(0, raw[..., 3:]) + 0.1)


def test_gaussian_std_lies_between_0_1_and_2_1_and_is_1_1_at_zero():
    std = GAUSSIAN.stats(tf.constant([[0, 0, 0, -60, 0, 60]], tf.float32))["std"]
    tiny.close(std, [[0.1, 1.1, 2.1]])


@modes
def test_gaussian_sample_is_mean_plus_std_times_noise(mode, rng):
    stats, noise = gaussian(rng), tiny.float32(rng.normal(size=(2, 5, 3)))
    tiny.close(tiny.run(mode, GAUSSIAN.sample, stats, noise), stats["mean"] + stats["std"] * noise)


@modes
def test_gaussian_log_prob_kl_and_entropy(mode, rng):
    p, q, x = gaussian(rng), gaussian(rng), tiny.float32(rng.normal(0, 2, (2, 5, 3)))
    # A tail of 1e2 standard deviations is in here (std 0.1): the tolerance is relative.
    tiny.close(tiny.run(mode, GAUSSIAN.log_prob, p, x), reference.gaussian_log_prob(x, p["mean"], p["std"]))
    tiny.close(tiny.run(mode, GAUSSIAN.kl, p, q), reference.gaussian_kl(p["mean"], p["std"], q["mean"], q["std"]))
    tiny.close(tiny.run(mode, GAUSSIAN.entropy, p), reference.gaussian_entropy(p["std"]))


def test_gaussian_kl_is_not_symmetric_and_zero_only_to_itself():
    narrow = {"mean": tf.zeros([1, 3]), "std": tf.fill([1, 3], 0.5)}
    wide = {"mean": tf.zeros([1, 3]), "std": tf.fill([1, 3], 1.0)}
    # 3 (ln(s_q / s_p) + s_p^2 / (2 s_q^2) - 1/2): 3 (ln 2 + 1/8 - 1/2) and 3 (-ln 2 + 2 - 1/2).
    tiny.close(GAUSSIAN.kl(narrow, wide), [3 * (np.log(2) - 0.375)])
    tiny.close(GAUSSIAN.kl(wide, narrow), [3 * (1.5 - np.log(2))])
    assert GAUSSIAN.kl(wide, wide).numpy() == [0.0]


def test_gaussian_centre_is_the_mean_and_ignores_the_std(rng):
    stats = gaussian(rng)
    np.testing.assert_array_equal(GAUSSIAN.centre(stats), stats["mean"])


# ------------------------------------------------------------------------------------------------------------- categori


def logits(rng, shape=(2, 5), spread=2.0):
    return {"logit": tiny.float32(rng.normal(0, spread, (*shape, 3, 4)))}


def test_categorical_statistics_are_raw_numbers_grouped_by_factor():
    raw = tf.range(12, dtype=tf.float32)[None]
    np.testing.assert_array_equal(CATEGORICAL.stats(raw)["logit"][0], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]])


@modes
def test_categorical_log_prob_kl_and_entropy(mode, rng):
    p, q = logits(rng), logits(rng)
    x = np.eye(4)[rng.integers(0, 4, (2, 5, 3))]
    tiny.close(tiny.run(mode, CATEGORICAL.log_prob, p, x), reference.categorical_log_prob(x, p["logit"]))
    tiny.close(tiny.run(mode, CATEGORICAL.kl, p, q), reference.categorical_kl(p["logit"], q["logit"]))
    tiny.close(tiny.run(mode, CATEGORICAL.entropy, p), reference.categorical_entropy(p["logit"]))


def test_categorical_kl_by_hand():
    # p = (1/2, 1/2, 0, 0) nearly, q uniform over four: 1/2 ln 2 + 1/2 ln 2 = ln 2 a factor; the other way round
    # infinite in the limit.
    half = {"logit": tf.constant([[[0.0, 0.0, -50.0, -50.0]] * 3])}
    uniform = {"logit": tf.zeros([1, 3, 4])}
    tiny.close(CATEGORICAL.kl(half, uniform), [3 * np.log(2)])
    # 3 * [ln(1/4) - (0 + 0 - 50 - 50) / 4 + ln 2]: the mean log-ratio under the uniform.
    tiny.close(CATEGORICAL.kl(uniform, half), [3 * (-np.log(4) + 25 + np.log(2))])


@modes
def test_categorical_sample_is_the_class_that_holds_the_noise(mode, rng):
    stats, noise = logits(rng), tiny.float32(rng.uniform(size=(2, 5, 3)))
    tiny.close(tiny.run(mode, CATEGORICAL.sample, stats, noise), reference.categorical_sample(stats["logit"], noise))


def test_categorical_sample_frequencies_are_the_probabilities():
    """1000 evenly spaced noise values: class c gets 1000 p_c of them, up to one at each border."""
    prob = np.array([0.1, 0.2, 0.3, 0.4])
    noise = np.broadcast_to(((np.arange(1000) + 0.5) / 1000)[:, None], (1000, 3))
    stats = {"logit": tf.broadcast_to(tf.constant(np.log(prob), tf.float32), [1000, 3, 4])}
    counts = CATEGORICAL.sample(stats, tf.constant(noise, tf.float32)).numpy().sum(0)
    np.testing.assert_allclose(counts, np.broadcast_to(1000 * prob, (3, 4)), atol=1)


@pytest.mark.parametrize("noise", [2.0**-24, 1 - 2.0**-24])
def test_categorical_sample_is_one_hot_at_the_ends_of_the_noise(noise):
    """32 equal probabilities add up to a little less or more than 1 in float32."""
    dist = CategoricalLatent(2, 32)
    stats = {"logit": tf.constant(np.random.default_rng(0).normal(0, 1e-3, (100, 2, 32)), tf.float32)}
    sample = dist.sample(stats, tf.fill([100, 2], noise)).numpy()
    tiny.close(sample.sum(-1), np.ones((100, 2)))
    tiny.close(sample.max(-1), np.ones((100, 2)))
    assert (sample.argmax(-1) == (0 if noise < 0.5 else 31)).all()


@modes
def test_categorical_sample_has_the_gradient_of_the_probabilities(mode, rng):
    """Straight through: d/dlogit_j sum_c w_c p_c = p_j (w_j - sum_c w_c p_c), whatever was drawn."""
    logit, noise, w = logits(rng)["logit"], rng.uniform(size=(2, 5, 3)), tiny.float32(rng.normal(size=(2, 5, 3, 4)))

    def gradient(logit, noise, w):
        with tf.GradientTape() as tape:
            tape.watch(logit)
            value = tf.reduce_sum(CATEGORICAL.sample({"logit": logit}, noise) * w)
        return tape.gradient(value, logit)

    p = reference.softmax(logit)
    tiny.close(tiny.run(mode, gradient, logit, noise, w), p * (w - (w * p).sum(-1, keepdims=True)))


def test_categorical_log_prob_is_differentiable_in_the_sample():
    """d/dx sum x ln p = ln p: the imagined sample carries the penalty's gradient to the actor."""
    logit = tf.constant([[[0.0, 1.0, 2.0, 3.0]] * 3])
    sample = tf.one_hot([[0, 1, 2]], 4)
    with tf.GradientTape() as tape:
        tape.watch(sample)
        value = CATEGORICAL.log_prob({"logit": logit}, sample)
    tiny.close(tape.gradient(value, sample), np.log(reference.softmax(logit.numpy())))


def test_categorical_centre_is_the_flat_vector_of_probabilities(rng):
    stats = logits(rng)
    tiny.close(CATEGORICAL.centre(stats), reference.softmax(stats["logit"]).reshape(2, 5, 12))


# ------------------------------------------------------------------------------------------------------------- unit nor


@modes
def test_unit_normal_log_prob_of_images_and_of_scalars(mode, rng):
    image, mean = tiny.float32(rng.uniform(-0.5, 0.5, (2, 3, 4, 5, 3))), tiny.float32(rng.normal(size=(2, 3, 4, 5, 3)))
    tiny.close(
        tiny.run(mode, lambda m, x: unit_normal_log_prob(m, x, 3), mean, image), reference.image_log_prob(image, mean)
    )
    value, centre = tiny.float32(rng.normal(size=(2, 3))), tiny.float32(rng.normal(size=(2, 3)))
    tiny.close(
        tiny.run(mode, lambda m, x: unit_normal_log_prob(m, x, 0), centre, value),
        reference.unit_normal_log_prob(value, centre),
    )


def test_a_perfect_64_x_64_image_has_log_density_minus_11291_92():
    # 64 * 64 * 3 = 12288 dimensions, each -ln(2 pi) / 2 = -0.918939.
    image = tf.random.Generator.from_seed(0).uniform([1, 1, 64, 64, 3])
    assert unit_normal_log_prob(image, image, 3).numpy().item() == pytest.approx(-11291.92, abs=0.02)


# -------------------------------------------------------------------------------------------------------- truncated nor


def actor_parameters(rng, shape=(6, 2)):
    """loc = tanh(raw) and std = 2 sigmoid(raw / 2) + 0.1, as the actor makes them."""
    dist = reference.TruncatedNormal.from_raw(rng.normal(0, 1.5, shape), rng.normal(0, 3, shape))
    return tiny.float32(dist.loc), tiny.float32(dist.scale)


@modes
def test_truncated_normal_log_prob_and_entropy(mode, rng):
    loc, std = actor_parameters(rng)
    x = tiny.float32(rng.uniform(-1, 1, loc.shape))
    oracle = scipy.stats.truncnorm((-1 - loc) / std, (1 - loc) / std, loc, std)
    by_hand = reference.TruncatedNormal(loc, std)
    tiny.close(by_hand.log_prob(x), oracle.logpdf(x).sum(-1), 1e-9)
    tiny.close(by_hand.entropy(), oracle.entropy().sum(-1), 1e-9)
    tiny.close(
        tiny.run(mode, lambda loc, std, x: TruncatedNormal(loc, std).log_prob(x), loc, std, x), by_hand.log_prob(x)
    )
    tiny.close(tiny.run(mode, lambda loc, std: TruncatedNormal(loc, std).entropy(), loc, std), by_hand.entropy())


@modes
def test_truncated_normal_sample_inverts_the_distribution_function(mode, rng):
    loc, std = actor_parameters(rng)
    uniform = tiny.float32(rng.uniform(0.01, 0.99, loc.shape))
    sample = tiny.run(mode, lambda loc, std, u: TruncatedNormal(loc, std).sample(u), loc, std, uniform)
    tiny.close(sample, scipy.stats.truncnorm((-1 - loc) / std, (1 - loc) / std, loc, std).ppf(uniform))
    tiny.close(sample, reference.TruncatedNormal(loc, std).sample(uniform))


@modes
def test_truncated_normal_sample_moves_with_its_parameters_as_the_quantile_does(mode, rng):
    """Pathwise derivative: central differences of the float64 quantile function at the same noise."""
    loc, std = actor_parameters(rng)
    uniform, h = tiny.float32(rng.uniform(0.02, 0.98, loc.shape)), 1e-6

    def gradients(loc, std, u):
        with tf.GradientTape() as tape:
            tape.watch([loc, std])
            value = tf.reduce_sum(TruncatedNormal(loc, std).sample(u))
        return tape.gradient(value, [loc, std])

    def quantile(loc, std):
        return reference.TruncatedNormal(loc, std).sample(uniform)

    by_loc, by_std = tiny.run(mode, gradients, loc, std, uniform)
    tiny.close(by_loc, (quantile(loc + h, std) - quantile(loc - h, std)) / (2 * h), 1e-4)
    tiny.close(by_std, (quantile(loc, std + h) - quantile(loc, std - h)) / (2 * h), 1e-4)


@modes
def test_truncated_normal_entropy_has_the_derivative_of_the_closed_form(mode, rng):
    loc, std = actor_parameters(rng)

    def gradients(loc, std):
        with tf.GradientTape() as tape:
            tape.watch([loc, std])
            value = tf.reduce_sum(TruncatedNormal(loc, std).entropy())
        return tape.gradient(value, [loc, std])

    def entropy(loc, std):
        return reference.TruncatedNormal(loc, std).entropy()

    received, h = tiny.run(mode, gradients, loc, std), 1e-6
    for i in range(loc.shape[1]):
        move = h * np.eye(loc.shape[1])[i]
        tiny.close(received[0][:, i], (entropy(loc + move, std) - entropy(loc - move, std)) / (2 * h), 1e-4)
        tiny.close(received[1][:, i], (entropy(loc, std + move) - entropy(loc, std - move)) / (2 * h), 1e-4)


def test_truncated_normal_density_integrates_to_one_inside_and_matches_its_entropy():
    """Quadrature knows nothing of error functions."""
    loc, std = 0.9, 0.4
    dist = TruncatedNormal(tf.constant([loc]), tf.constant([std]))
    x = np.linspace(-1, 1, 20001)
    log_prob = dist.log_prob(tf.constant(x[:, None], tf.float32)).numpy().astype(np.float64)
    assert scipy.integrate.trapezoid(np.exp(log_prob), x) == pytest.approx(1.0, abs=1e-5)
    assert scipy.integrate.trapezoid(-np.exp(log_prob) * log_prob, x) == pytest.approx(
        dist.entropy().numpy().item(), abs=1e-5
    )


def test_truncated_normal_becomes_uniform_where_it_is_wide():
    """std >> 2: density 1/2, entropy ln 2, quantile 2u - 1."""
    dist = TruncatedNormal(tf.zeros([1]), tf.constant([200.0]))
    tiny.close(dist.entropy(), np.log(2), 1e-3)
    tiny.close(dist.sample(tf.constant([0.25])), [-0.5], 1e-3)


@modes
def test_truncated_normal_is_finite_and_inside_at_the_extremes_of_the_actor(mode):
    def everything(loc, std, noise):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([loc, std])
            dist = TruncatedNormal(loc, std)
            sample = dist.sample(noise)
            entropy, log_prob = dist.entropy(), dist.log_prob(sample)
        return sample, entropy, log_prob, [tape.gradient(value, [loc, std]) for value in (sample, entropy, log_prob)]

    grid = np.meshgrid([-1.0, 0.0, 1.0], [0.1, 1.1, 2.1], [2.0**-24, 0.5, 1 - 2.0**-24], indexing="ij")
    received = tiny.run(mode, everything, *(axis[..., None] for axis in grid))  # [loc, std, noise, 1]
    assert all(np.isfinite(value).all() for value in tf.nest.flatten(received))
    assert (np.abs(received[0]) <= TruncatedNormal.EDGE + 1e-7).all()
    assert (np.diff(received[0], axis=2) > 0).all()


def test_truncated_normal_mode_is_the_location():
    assert TruncatedNormal(tf.constant([0.3]), tf.constant([2.0])).mode().numpy() == np.float32(0.3)
