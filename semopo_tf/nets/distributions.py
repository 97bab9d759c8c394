"""Distributions of latent states, images, rewards and actions.

Parameters are float32. Samples are functions of noise that was drawn before (see `random`). Densities, entropies and
divergences come from TensorFlow Probability, except those of the truncated normal: the library's version compiles for
minutes under XLA, and its sampler draws its own noise.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

Stats = Mapping[str, tf.Tensor]


class LatentDistribution(Protocol):
    """The distribution of a model's stochastic state, as a function of the `raw_size` outputs of a dense layer."""

    raw_size: int  # inputs of `stats`
    flat_size: int  # features of one flattened sample
    noise_kind: str  # "normal" or "uniform": which draw `sample` wants
    sample_shape: tuple[int, ...]  # of one sample
    size: int  # numbers of noise per sample

    def stats(self, raw: tf.Tensor) -> Stats: ...

    def sample(self, stats: Stats, noise: tf.Tensor) -> tf.Tensor: ...

    def log_prob(self, stats: Stats, sample: tf.Tensor) -> tf.Tensor: ...

    def kl(self, first: Stats, second: Stats) -> tf.Tensor: ...

    def entropy(self, stats: Stats) -> tf.Tensor: ...

    def centre(self, stats: Stats) -> tf.Tensor: ...


class GaussianLatent:
    """S independent normals; std = 2 sigmoid(raw / 2) + min_std (released code: `sigmoid2`, 0.1), or with `softplus`
    std = softplus(raw) + min_std (LOMPO).
    """

    noise_kind = "normal"

    def __init__(self, size: int, *, min_std: float, std: str = "sigmoid"):
        self.size = size
        self.raw_size = 2 * size
        self.flat_size = size
        self.sample_shape: tuple[int, ...] = (size,)
        self._min_std, self._softplus = min_std, std == "softplus"

    def stats(self, raw: tf.Tensor) -> Stats:
        """raw [..., 2S] -> {mean, std}, each [..., S]."""
        mean, std = tf.split(tf.cast(raw, tf.float32), 2, axis=-1)
        positive = tf.nn.softplus(std) if self._softplus else 2 * tf.sigmoid(std / 2)
        return {"mean": mean, "std": positive + self._min_std}

    def sample(self, stats: Stats, noise: tf.Tensor) -> tf.Tensor:
        """noise [..., S] standard normal -> [..., S], differentiable in the stats."""
        return stats["mean"] + stats["std"] * noise

    def _dist(self, stats: Stats) -> tfd.Distribution:
        return tfd.Independent(tfd.Normal(stats["mean"], stats["std"]), 1)

    def log_prob(self, stats: Stats, sample: tf.Tensor) -> tf.Tensor:
        return self._dist(stats).log_prob(sample)

    def kl(self, first: Stats, second: Stats) -> tf.Tensor:
        """KL(first || second) in nats, summed over S: [...]."""
        return tfd.kl_divergence(self._dist(first), self._dist(second))

    def entropy(self, stats: Stats) -> tf.Tensor:
        return self._dist(stats).entropy()

    def centre(self, stats: Stats) -> tf.Tensor:
        """The predicted mean, [..., S], about which the members of an ensemble disagree."""
        return stats["mean"]


class CategoricalLatent:
    """S independent one-hot categoricals of C classes, straight-through gradients, no uniform mixing (DreamerV2)."""

    noise_kind = "uniform"

    def __init__(self, size: int, classes: int):
        self.size = size
        self.raw_size = self.flat_size = size * classes
        self.sample_shape: tuple[int, ...] = (size, classes)
        self._classes = classes

    def stats(self, raw: tf.Tensor) -> Stats:
        """raw [..., S*C] -> {logit} [..., S, C]."""
        return {"logit": tf.reshape(tf.cast(raw, tf.float32), [*raw.shape[:-1], self.size, self._classes])}

    def sample(self, stats: Stats, noise: tf.Tensor) -> tf.Tensor:
        """noise [..., S] uniform -> one-hot [..., S, C]; the gradient is that of the probabilities.

        By the inverse distribution function: one noise number per categorical, where Gumbel noise would need C.
        """
        prob = tf.nn.softmax(stats["logit"])
        below = tf.reduce_sum(tf.cast(noise[..., None] > tf.cumsum(prob, axis=-1), tf.int32), -1)
        # Rounding can leave the last cumulative sum just under 1, hence the minimum.
        one_hot = tf.one_hot(tf.minimum(below, self._classes - 1), self._classes)
        return tf.stop_gradient(one_hot - prob) + prob

    def _dist(self, stats: Stats) -> tfd.Distribution:
        return tfd.Independent(tfd.OneHotCategorical(logits=stats["logit"]), 1)

    def log_prob(self, stats: Stats, sample: tf.Tensor) -> tf.Tensor:
        """Log-probability of a one-hot sample, summed over S: [...]; differentiable in the sample too."""
        return tf.reduce_sum(sample * tf.nn.log_softmax(stats["logit"]), [-2, -1])

    def kl(self, first: Stats, second: Stats) -> tf.Tensor:
        """KL(first || second) in nats, summed over S: [...]."""
        return tfd.kl_divergence(self._dist(first), self._dist(second))

    def entropy(self, stats: Stats) -> tf.Tensor:
        return self._dist(stats).entropy()

    def centre(self, stats: Stats) -> tf.Tensor:
        """The class probabilities, [..., S*C], about which the members of an ensemble disagree."""
        prob = tf.nn.softmax(stats["logit"])
        return tf.reshape(prob, [*prob.shape[:-2], self.flat_size])


def unit_normal_log_prob(mean: tf.Tensor, value: tf.Tensor, event_dims: int) -> tf.Tensor:
    """Log-density in nats of independent unit-variance normals over the last `event_dims` axes, float32.

    Includes the constant: -64 * 64 * 3 / 2 * ln(2 pi) = -11291.92 nats for a 64 x 64 x 3 image.
    """
    mean, value = tf.cast(mean, tf.float32), tf.cast(value, tf.float32)
    return tfd.Independent(tfd.Normal(mean, 1.0), event_dims).log_prob(value)


class TruncatedNormal:
    """Normal(loc, std) truncated to [-1, 1] in each of A dimensions: the actor's distribution (DreamerV2).

    loc must be in [-1, 1], so that it is the mode.
    """

    EDGE = 1 - 1e-6  # samples stay this far inside the interval

    def __init__(self, loc: tf.Tensor, std: tf.Tensor):
        self._loc, self._std = tf.cast(loc, tf.float32), tf.cast(std, tf.float32)
        self._low, self._high = (-1 - self._loc) / self._std, (1 - self._loc) / self._std
        self._cdf_low = _normal_cdf(self._low)
        self._mass = _normal_cdf(self._high) - self._cdf_low

    def mode(self) -> tf.Tensor:
        """[..., A]."""
        return self._loc

    def sample(self, noise: tf.Tensor) -> tf.Tensor:
        """noise [..., A] uniform -> [..., A] by the inverse distribution function, differentiable in loc and std.

        Clipped to +-EDGE with a straight-through gradient, as in the released code.
        """
        cdf = tf.clip_by_value(self._cdf_low + noise * self._mass, 1e-30, 1 - 2.0**-24)
        sample = self._loc + self._std * tf.math.ndtri(cdf)
        return sample + tf.stop_gradient(tf.clip_by_value(sample, -self.EDGE, self.EDGE) - sample)

    def log_prob(self, value: tf.Tensor) -> tf.Tensor:
        """[..., A] -> [...], summed over the action dimensions."""
        z = (value - self._loc) / self._std
        return tf.reduce_sum(_normal_log_density(z) - tf.math.log(self._std * self._mass), -1)

    def entropy(self) -> tf.Tensor:
        """[...] in nats, summed over the action dimensions: ln(sqrt(2 pi e) std Z) + (a phi(a) - b phi(b)) / (2 Z)."""
        low, high = (edge * tf.exp(_normal_log_density(edge)) for edge in (self._low, self._high))
        constant = np.float32(0.5 * np.log(2 * np.pi * np.e))
        return tf.reduce_sum(constant + tf.math.log(self._std * self._mass) + (low - high) / (2 * self._mass), -1)


def _normal_cdf(x: tf.Tensor) -> tf.Tensor:
    return 0.5 * tf.math.erfc(-x * np.float32(np.sqrt(0.5)))


def _normal_log_density(x: tf.Tensor) -> tf.Tensor:
    return -0.5 * tf.square(x) - np.float32(0.5 * np.log(2 * np.pi))
