"""A U-Net (Ronneberger et al. 2015) with group normalisation and nearest-neighbour resampling, as in Genesis
(Engelcke et al. 2020) and InfoGating.
"""

import math
from typing import cast

import keras
import tensorflow as tf

from semopo_tf.nets.accounting import Cost, product
from semopo_tf.nets.conv_stack import NORM_EPSILON
from semopo_tf.nets.layers import Dense, Shape

SMALLEST = 16  # pixels: three blocks
GROUPS = 8
WIDE = 3  # blocks on the way down, the last ones, that have twice the filters
HIDDEN = 128  # units at the bottom
WINDOW = 9  # of a 3 x 3 convolution


class Block(keras.layers.Layer):
    """[N, H, W, C] -> [N, H, W, filters] float32: 3 x 3 convolution without bias, group normalisation, rectifier."""

    def __init__(self, filters: int, *, name: str, precision: str):
        super().__init__(name=name)
        self.filters = filters
        self._conv = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, dtype=precision, name="conv")
        self._norm = keras.layers.GroupNormalization(GROUPS, epsilon=NORM_EPSILON, name="norm")

    def build(self, input_shape: Shape) -> None:
        self._conv.build(input_shape)
        self._norm.build((*input_shape[:-1], self.filters))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(self._norm(tf.cast(self._conv(x), tf.float32)))

    def cost(self, positions: int) -> Cost:
        """Of `positions` pixels."""
        return product(positions, WINDOW * self._conv.kernel.shape[2], self.filters)


class UNet(keras.layers.Layer):
    """Square images [N, H, H, C] -> [N, H, H, outputs] float32, linear at the end.

    B = floor(log2(H) - 1) blocks down, each on half the edge of the one before, rounded down; three dense layers at the
    bottom; B blocks up, each on the output of the one before and that of its counterpart.

                       84 pixels                      64 pixels
        down           9 -> 32 -> 32 -> 64 -> 64 -> 64 channels
        edges          84, 42, 21, 10, 5              64, 32, 16, 8, 4
        bottom         1600 -> 128 -> 128 -> 1600     1024 -> 128 -> 128 -> 1024
        up             128 -> 64, 128 -> 64, 128 -> 32, 64 -> 32, 64 -> 32

    Args:
      edge: H, pixels.
      filters: of the narrow blocks; a multiple of the 8 groups.

    Raises:
      ValueError: for images of fewer than 16 pixels, or filters that the groups do not divide.
    """

    def __init__(self, edge: int, outputs: int, *, filters: int, name: str, precision: str = "float32"):
        super().__init__(name=name)
        if edge < SMALLEST:
            raise ValueError(f"images of {edge} pixels: expected {SMALLEST} or more for the {name} network")
        if filters % GROUPS:
            raise ValueError(f"{name} network: expected a multiple of {GROUPS} filters, received {filters}")
        blocks = int(math.log2(edge) - 1)
        narrow, wide = filters, 2 * filters
        down, up = [narrow] * (blocks - WIDE) + [wide] * WIDE, [wide] * 2 + [narrow] * (blocks - 2)
        self._edges = [edge >> level for level in range(blocks)]
        self._down = [Block(width, name=f"down{i}", precision=precision) for i, width in enumerate(down)]
        self._up = [Block(width, name=f"up{i}", precision=precision) for i, width in enumerate(up)]
        flat = wide * self._edges[-1] ** 2
        self._bottom = [
            Dense(units, "relu", dtype=precision, name=f"bottom{i}") for i, units in enumerate((HIDDEN, HIDDEN, flat))
        ]
        self._last = keras.layers.Conv2D(outputs, 1, dtype=precision, name="last")

    def build(self, input_shape: Shape) -> None:
        width, widths = cast(int, input_shape[-1]), list[int]()
        for block, edge in zip(self._down, self._edges, strict=True):
            block.build((None, edge, edge, width))
            widths.append(width := block.filters)
        units = width * self._edges[-1] ** 2
        for dense in self._bottom:
            dense.build((None, units))
            units = dense.units
        for block, edge in zip(self._up, reversed(self._edges), strict=True):
            block.build((None, edge, edge, width + widths.pop()))
            width = block.filters
        self._last.build((None, self._edges[0], self._edges[0], width))

    def call(self, image: tf.Tensor) -> tf.Tensor:
        skips: list[tf.Tensor] = []
        for block in self._down:
            image = block(halved(skips[-1]) if skips else image)
            skips.append(image)
        x = tf.reshape(image, [-1, self._bottom[-1].units])
        for dense in self._bottom:
            x = dense(x)
        x = tf.cast(tf.reshape(x, [-1, *skips[-1].shape[1:]]), tf.float32)
        for block in self._up:
            skip = skips.pop()
            x = block(tf.concat([enlarged(x, skip.shape[1]), skip], -1))
        return tf.cast(self._last(x), tf.float32)

    def cost(self, rows: int) -> Cost:
        """Of `rows` images."""
        pixels = [rows * edge**2 for edge in self._edges]
        first, *rest = (block.cost(count) for block, count in zip(self._down, pixels, strict=True))
        rest += [dense.cost(rows) for dense in self._bottom]
        rest += [block.cost(count) for block, count in zip(self._up, reversed(pixels), strict=True)]
        return first.then(*rest, product(pixels[0], *self._last.kernel.shape[2:]))


def halved(x: tf.Tensor) -> tf.Tensor:
    """[N, H, H, C] -> [N, floor(H / 2), floor(H / 2), C]: every second row and column, the nearest neighbours."""
    end = x.shape[1] // 2 * 2
    return x[:, :end:2, :end:2]


def enlarged(x: tf.Tensor, edge: int) -> tf.Tensor:
    """[N, H, H, C] -> [N, edge, edge, C] with edge = H, 2 H or 2 H + 1: row i is that of floor(i H / edge).

    Of 2 H + 1 rows, the first stands three times and every other twice. By repetition rather than a gather, whose
    gradient would be a scatter.
    """
    before = x.shape[1]
    if edge == before:
        return x
    for axis in (1, 2):
        first, x = x[:, :1] if axis == 1 else x[:, :, :1], tf.repeat(x, 2, axis)
        x = tf.concat([first, x], axis) if edge % 2 else x
    return x
