"""Stride-2 convolutions without padding, each computed in the exact form that runs fastest.

A convolution is a matrix product whose rows overlap, and the library is slow at some shapes of it. All forms below
compute the same sums in another order; `docs/performance.md` has their rates, layer by layer.

    convolve    few output positions   cut the windows out, one matrix product
                otherwise              the library's convolution
    transpose   one input position     nothing overlaps: one matrix product
                few output channels    a stride-1 convolution onto the 2 x 2 phases of the output, which are then
                                       interleaved; its gradients are the library's
                otherwise              the library's transposed convolution

For `xla_cpu` the library's convolutions become matrix products too: inside XLA's loops on a CPU a convolution runs on
one core, thirty times slower than outside. For `xla_gpu` a gradient to a kernel that is at least as large as the map of
its positions gets rows of zeros: XLA would take it for a dilated forward convolution and run it many times slower.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from semopo_tf.nets.compute import Target

STRIDE = 2
PHASES = STRIDE * STRIDE
FEW_POSITIONS = 2  # largest output edge for which cutting the windows out is faster than the library
FEW_CHANNELS = 6  # an image or two: fills a vector register only once the phases make them four times as many


def convolve(x: tf.Tensor, kernel: tf.Tensor, *, target: Target = "library") -> tf.Tensor:
    """x [N, H, H, C], kernel [k, k, C, O] -> [N, (H - k) // 2 + 1, .., O]."""
    k, channels, width = kernel.shape[0], kernel.shape[2], kernel.shape[3]
    size = (x.shape[1] - k) // STRIDE + 1
    if k % STRIDE or (size > FEW_POSITIONS and target != "xla_cpu"):
        return (
            _misreadable(x, kernel) if target == "xla_gpu" and size <= k else tf.nn.conv2d(x, kernel, STRIDE, "VALID")
        )
    half = k // STRIDE
    blocks = size + half - 1  # of 2 x 2 pixels along an edge; a row or column left over reaches no output
    x = tf.nn.space_to_depth(_crop(x, STRIDE * blocks), STRIDE)
    windows = tf.concat(
        [tf.slice(x, [0, row, column, 0], [-1, size, size, -1]) for row in range(half) for column in range(half)], 3
    )
    # Rows of the kernel in the order of a window: block, then pixel in the block, then channel.
    product = tf.reshape(windows, [-1, k * k * channels]) @ tf.reshape(_phases(kernel), [-1, width])
    return tf.reshape(product, [-1, size, size, width])


def transpose(x: tf.Tensor, kernel: tf.Tensor, *, target: Target = "library") -> tf.Tensor:
    """x [N, H, H, C], kernel [k, k, O, C] -> [N, 2 (H - 1) + k, .., O]."""
    size, k, width, channels = x.shape[1], kernel.shape[0], kernel.shape[2], kernel.shape[3]
    out = (size - 1) * STRIDE + k
    if size == 1:
        product = tf.matmul(tf.reshape(x, [-1, channels]), tf.reshape(kernel, [-1, channels]), transpose_b=True)
        return tf.reshape(product, [-1, k, k, width])
    if target == "xla_cpu":
        return _by_phases(x, kernel, products=True)
    few = width <= FEW_CHANNELS and not k % STRIDE
    if not few and (size > k or target == "library"):
        return tf.nn.conv2d_transpose(x, kernel, [_rows(x), out, out, width], STRIDE, "VALID")

    @tf.custom_gradient
    def forward(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return tf.nn.conv2d(upstream, kernel, STRIDE, "VALID"), _to_kernel(upstream, x, kernel, target)

        if few:
            return _by_phases(x, kernel, products=False), gradient
        return tf.nn.conv2d_transpose(x, kernel, [_rows(x), out, out, width], STRIDE, "VALID"), gradient

    return forward(x, kernel)


def _misreadable(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """The library's convolution with a gradient to the kernel that XLA reads rightly."""

    @tf.custom_gradient
    def forward(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            shape = [_rows(x), *x.shape[1:]]
            to_image = tf.nn.conv2d_transpose(upstream, kernel, shape, STRIDE, "VALID")
            return to_image, _to_kernel(x, upstream, kernel, "xla_gpu")

        return tf.nn.conv2d(x, kernel, STRIDE, "VALID"), gradient

    return forward(x, kernel)


def _to_kernel(image: tf.Tensor, positions: tf.Tensor, kernel: tf.Tensor, target: Target) -> tf.Tensor:
    """Gradient to the kernel of a convolution from `image` to `positions`, or of its transpose."""
    size, k = positions.shape[1], kernel.shape[0]
    if target == "xla_gpu" and size <= k:  # make the map of positions larger than the kernel
        more = k - size + 1
        image, positions = _widen(image, STRIDE * more), _widen(positions, more)
    return tf.raw_ops.Conv2DBackpropFilter(
        input=image,
        filter_sizes=kernel.shape.as_list(),
        out_backprop=positions,
        strides=[1, STRIDE, STRIDE, 1],
        padding="VALID",
    )


def _widen(x: tf.Tensor, rows: int) -> tf.Tensor:
    """x [N, H, H, C] with zeros below and to the right."""
    return tf.pad(x, [[0, 0], [0, rows], [0, rows], [0, 0]])


def _by_phases(x: tf.Tensor, kernel: tf.Tensor, *, products: bool) -> tf.Tensor:
    """`transpose` as four stride-1 convolutions, one for each phase (p, q) of the output.

    Output pixel (2 i + p, 2 j + q) takes kernel entries (2 a + p, 2 b + q) only.
    """
    size, k, width, channels = x.shape[1], kernel.shape[0], kernel.shape[2], kernel.shape[3]
    odd = k % STRIDE
    if odd:  # one more row and column of zeros, whose output is cropped
        kernel = tf.pad(kernel, [[0, 1], [0, 1], [0, 0], [0, 0]])
    half = (k + odd) // STRIDE
    phases = tf.reshape(_phases(kernel), [half, half, PHASES * width, channels])
    blocks = size + half - 1
    if products:
        columns = tf.matmul(tf.reshape(x, [-1, channels]), tf.reshape(phases, [-1, channels]), transpose_b=True)
        fine = _overlap(columns, size, half, PHASES * width)
    else:
        fine = tf.nn.conv2d_transpose(x, phases, [_rows(x), blocks, blocks, PHASES * width], 1, "VALID")
    return _crop(tf.nn.depth_to_space(fine, STRIDE), (size - 1) * STRIDE + k)


def _rows(x: tf.Tensor) -> int | tf.Tensor:
    return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]


def _crop(x: tf.Tensor, size: int) -> tf.Tensor:
    """The first `size` rows and columns of x [N, H, H, C]."""
    return x if x.shape[1] == size else tf.slice(x, [0, 0, 0, 0], [-1, size, size, -1])


def _phases(kernel: tf.Tensor) -> tf.Tensor:
    """[k, k, X, Y] -> [k/2, k/2, 2, 2, X, Y]: entry (2 a + p, 2 b + q) at (a, b, p, q)."""
    half, (x, y) = kernel.shape[0] // STRIDE, kernel.shape[2:]
    return tf.transpose(tf.reshape(kernel, [half, STRIDE, half, STRIDE, x, y]), [0, 2, 1, 3, 4, 5])


def _overlap(columns: tf.Tensor, size: int, half: int, width: int) -> tf.Tensor:
    """Add up the contributions of every input position to the half x half outputs that it reaches.

    [N*size*size, half*half*width] -> [N, size + half - 1, .., width].
    """
    columns = tf.reshape(columns, [-1, size, size, half * half * width])
    padded = []
    for row in range(half):
        for column in range(half):
            part = tf.slice(columns, [0, 0, 0, (row * half + column) * width], [-1, -1, -1, width])
            padded.append(tf.pad(part, [[0, 0], [row, half - 1 - row], [column, half - 1 - column], [0, 0]]))
    return tf.add_n(padded)
