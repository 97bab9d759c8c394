"""An energy of pairs with batch normalisation, as contrastive models use it."""

from typing import NamedTuple

import keras
import tensorflow as tf

from semopo_tf.nets.accounting import Cost, product
from semopo_tf.nets.conv_stack import NORM_EPSILON
from semopo_tf.nets.layers import Dense, Shape, compute_type, matmul_last

MOMENTUM = 0.9  # of the moving statistics


class Moments(NamedTuple):
    """What normalises a batch."""

    mean: tf.Tensor  # [F]
    variance: tf.Tensor  # [F]


class BatchNorm(keras.layers.Layer):
    """Batch normalisation over all axes but the last, with PyTorch's constants.

        y = gamma (x - mean) / sqrt(variance + 1e-5) + beta
        moving <- 0.9 moving + 0.1 of the batch, the variance with n - 1 in its denominator

    Unlike Keras' layer, the call changes nothing: `absorb` moves the statistics, so an update can be undone.
    """

    def __init__(self, units: int, *, name: str):
        super().__init__(name=name)
        self._units = units

    def build(self, input_shape: Shape | None = None) -> None:
        shape = (self._units,)
        self.gamma = self.add_weight(shape, "ones", name="gamma")
        self.beta = self.add_weight(shape, "zeros", name="beta")
        self.moving_mean = self.add_weight(shape, "zeros", name="moving_mean", trainable=False)
        self.moving_variance = self.add_weight(shape, "ones", name="moving_variance", trainable=False)

    def moments(self, x: tf.Tensor) -> Moments:
        """Of a batch [..., F]."""
        return Moments(*tf.nn.moments(x, list(range(len(x.shape) - 1))))

    def moving(self) -> Moments:
        """The moving ones."""
        return Moments(self.moving_mean.value, self.moving_variance.value)

    def call(self, x: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
        return (x - mean) * tf.math.rsqrt(variance + NORM_EPSILON) * self.gamma.value + self.beta.value

    def absorb(self, moments: Moments, rows: int) -> None:
        """Move the statistics by those of a batch of `rows`."""
        unbiased = moments.variance * (rows / max(rows - 1, 1))
        for moving, new in ((self.moving_mean.value, moments.mean), (self.moving_variance.value, unbiased)):
            moving.assign(MOMENTUM * moving + (1 - MOMENTUM) * new)


class Energy(keras.layers.Layer):
    """E(x, y) for rows x [B, X] and J candidates y [B, J, Y] of each -> [B, J] float32.

    A dense layer without bias on the concatenation of both, batch normalisation over all B J pairs, a rectifier, and a
    dense layer. The half of x is computed once for all its candidates: the sum is that of the plain layer.

    Args:
      x_size, y_size: X and Y.
    """

    def __init__(self, units: int, *, x_size: int, y_size: int, name: str, precision: str = "float32"):
        super().__init__(name=name)
        self._units, self._sizes, self._compute = units, (x_size, y_size), compute_type(precision)
        self.norm = BatchNorm(units, name="norm")
        self._out = Dense(1, dtype=precision, name="out")

    def build(self, input_shape: Shape | None = None) -> None:
        self.kernel = self.add_weight((sum(self._sizes), self._units), "zeros", name="kernel")
        self.norm.build()
        self._out.build((None, self._units))

    def call(self, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, Moments]:
        """Normalised by the moments of this batch, which are returned for `norm.absorb`."""
        hidden = self._hidden(x, y)
        moments = self.norm.moments(hidden)
        return self._energy(hidden, moments), moments

    def settled(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """The energy [B, J], normalised by the moving statistics: of each pair alone."""
        return self._energy(self._hidden(x, y), self.norm.moving())

    def _hidden(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        split = self._sizes[0]
        kernel = self.kernel.value
        return matmul_last(x, kernel[:split], self._compute)[:, None] + matmul_last(y, kernel[split:], self._compute)

    def _energy(self, hidden: tf.Tensor, moments: Moments) -> tf.Tensor:
        active = tf.nn.relu(self.norm(hidden, *moments))
        flat = self._out(tf.reshape(active, [-1, self._units]))
        return tf.cast(tf.reshape(flat, hidden.shape[:2]), tf.float32)

    def cost(self, rows: int, candidates: int) -> Cost:
        """Of `rows` rows with `candidates` each."""
        pairs, (x_size, y_size) = rows * candidates, self._sizes
        first = product(rows, x_size, self._units) + product(pairs, y_size, self._units)
        return first.then(self._out.cost(pairs))
