"""Every form of a convolution gives the library's numbers and gradients, inside a loop under XLA too."""

import numpy as np
import pytest
import tensorflow as tf
import tiny

from semopo_tf.nets import convolutions

IN, MANY, FEW = 5, 7, 3  # channels; an output of few channels has a form and a gradient of its own
# (edge, kernel): all layers of the 64 x 64 networks and of the 10 x 10 ones, blocks that do not fill, odd kernels.
CONVOLUTIONS = [(64, 4), (31, 4), (14, 4), (6, 4), (10, 4), (4, 4), (13, 6), (8, 2), (7, 5), (9, 3)]
TRANSPOSED = [(1, 5), (5, 5), (13, 6), (30, 6), (1, 4), (4, 4), (3, 3), (2, 1)]


def library(x, kernel, transposed):
    if not transposed:
        return tf.nn.conv2d(x, kernel, 2, "VALID")
    size = 2 * (x.shape[1] - 1) + kernel.shape[0]
    return tf.nn.conv2d_transpose(x, kernel, [x.shape[0], size, size, kernel.shape[2]], 2, "VALID")


def with_gradients(function, x, kernel, weight):
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        y = function(x, kernel)
        total = tf.reduce_sum(y * weight)
    return y, *tape.gradient(total, [x, kernel])


@pytest.mark.parametrize("target", ["library", "xla_cpu", "xla_gpu"])
@pytest.mark.parametrize("out", [MANY, FEW])
@pytest.mark.parametrize(
    ("size", "k", "transposed"), [(*case, False) for case in CONVOLUTIONS] + [(*case, True) for case in TRANSPOSED]
)
def test_values_and_gradients_are_the_librarys(rng, size, k, transposed, out, target):
    x = tf.constant(rng.normal(size=(3, size, size, IN)), tf.float32)
    kernel = tf.constant(rng.normal(size=(k, k, out, IN) if transposed else (k, k, IN, out)) / k, tf.float32)
    weight = tf.constant(rng.normal(size=library(x, kernel, transposed).shape), tf.float32)
    ours = convolutions.transpose if transposed else convolutions.convolve
    expected = with_gradients(lambda x, kernel: library(x, kernel, transposed), x, kernel, weight)
    received = with_gradients(lambda x, kernel: ours(x, kernel, target=target), x, kernel, weight)
    for one, other in zip(received, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_products_agree_inside_a_compiled_loop(rng, transposed):
    x = tf.constant(rng.normal(size=(2, 5, 5, IN) if transposed else (2, 14, 14, IN)), tf.float32)
    kernel = tf.constant(rng.normal(size=(6, 6, MANY, IN) if transposed else (4, 4, IN, MANY)), tf.float32)
    ours = convolutions.transpose if transposed else convolutions.convolve

    def body(step, _):
        return step + 1, ours(x, kernel, target="xla_cpu")

    looped = tf.function(
        lambda: tf.while_loop(lambda step, _: step < 2, body, (0, body(0, 0)[1])), jit_compile=True, autograph=False
    )
    tiny.close(looped()[1], library(x, kernel, transposed), 1e-4)


def test_an_unknown_number_of_images_is_allowed():
    kernel = tf.ones([6, 6, 2, 3])
    function = tf.function(
        lambda x: convolutions.transpose(x, kernel), input_signature=[tf.TensorSpec([None, 3, 3, 3])]
    )
    assert function(tf.ones([4, 3, 3, 3])).shape == [4, 10, 10, 2]
