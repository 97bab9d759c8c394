"""The networks of the DrQ family (Yarats et al. 2022): plain convolutions, and a trunk before every head."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from semopo_tf.nets.accounting import Cost, product
from semopo_tf.nets.compute import Target
from semopo_tf.nets.convolutions import STRIDE
from semopo_tf.nets.layers import Convolution, Dense, Shape

NORM_EPSILON = 1e-5


class ConvStack(keras.layers.Layer):
    """Images [N, H, W, C] -> [N, E] float32, E of them for each image: convolutions without padding, each followed by
    a rectifier, flattened.

    Args:
      layers: filters, kernel edge and stride of each.
    """

    def __init__(
        self,
        layers: Sequence[tuple[int, int, int]],
        *,
        name: str,
        precision: str = "float32",
        target: Target = "library",
    ):
        super().__init__(name=name)
        self._convs: list[keras.layers.Layer] = []
        for place, (filters, kernel, stride) in enumerate(layers):
            given = {"dtype": precision, "name": f"conv{place}"}
            if stride == STRIDE:
                self._convs.append(Convolution(filters, kernel, target=target, act="relu", **given))
            else:
                self._convs.append(keras.layers.Conv2D(filters, kernel, stride, activation="relu", **given))

    def build(self, input_shape: Shape) -> None:
        """Raises ValueError when the images are too small for the kernels."""
        shape: Any = tuple(input_shape)
        self._products: list[tuple[int, int, int]] = []  # rows for each image, inputs, outputs
        for conv in self._convs:
            if conv.kernel_size[0] > shape[1]:
                raise ValueError(
                    f"images of {input_shape[1]} pixels: expected larger ones, as the convolutions of the {self.name} "
                    "have no padding; add --transitions.resize 64"
                )
            conv.build(shape)
            shape = conv.compute_output_shape(shape)
            edge, _, channels, width = conv.kernel.shape
            self._products.append((shape[1] * shape[2], edge * edge * channels, width))
        self.width = shape[1] * shape[2] * shape[3]

    def call(self, image: tf.Tensor) -> tf.Tensor:
        for conv in self._convs:
            image = conv(image)
        return tf.cast(tf.reshape(image, [-1, self.width]), tf.float32)

    def cost(self, rows: int) -> Cost:
        """Of `rows` images."""
        first, *rest = (product(rows * positions, *sizes) for positions, *sizes in self._products)
        return first.then(*rest)


class Trunk(keras.layers.Layer):
    """[N, E] -> [N, F] in -1..1: a dense layer, layer normalisation, tanh."""

    def __init__(self, units: int, *, name: str, precision: str = "float32"):
        super().__init__(name=name)
        self._dense = Dense(units, dtype=precision, name="dense")
        self._norm = keras.layers.LayerNormalization(epsilon=NORM_EPSILON, name="norm")

    def build(self, input_shape: Shape) -> None:
        self._dense.build((None, input_shape[-1]))
        self._norm.build((None, self._dense.units))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return tf.tanh(self._norm(tf.cast(self._dense(x), tf.float32)))

    def cost(self, rows: int) -> Cost:
        return self._dense.cost(rows)
