"""A function in slices is the function: values and gradients, in every mode."""

import numpy as np
import pytest
import tensorflow as tf
import tiny

from semopo_tf.nets.remat import by_slices

N, F = 12, 5


class Case:
    def __init__(self, rng):
        self.kernel = tf.Variable(tiny.as_tensor(tiny.float32(rng.normal(size=(F, 4)))))
        self.unused = tf.Variable(1.0)
        self.x = tiny.as_tensor(tiny.float32(rng.normal(size=(N, F))))
        self.whole = tf.constant(rng.integers(0, 255, (N, 4)), tf.uint8)
        self.weight = tiny.as_tensor(tiny.float32(rng.normal(size=N)))

    def function(self, whole, x):
        y = tf.nn.elu(x @ self.kernel) - tf.cast(whole, tf.float32) / 255
        return tf.reduce_sum(y**2, -1), tf.reduce_mean(y, -1)

    def run(self, most, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            sliced = (
                by_slices(self.function, most, self.whole, x, outputs=[(), ()])
                if most
                else self.function(self.whole, x)
            )
            loss = tf.reduce_sum(sliced[0] * self.weight)
        return *sliced, *tape.gradient(loss, [x, self.kernel])


@pytest.mark.parametrize("mode", tiny.MODES)
@pytest.mark.parametrize("most", [1, 4, 5, 100])  # 5 does not divide 12: slices of 4
def test_values_and_gradients_do_not_depend_on_the_slices(rng, mode, most):
    case = Case(rng)
    expected = [np.asarray(x) for x in case.run(0, case.x)]
    for one, other in zip(tiny.run(mode, lambda x: case.run(most, x), case.x), expected, strict=True):
        tiny.close(one, other)


def test_the_function_never_sees_more_rows_than_allowed(rng):
    case, seen = Case(rng), []

    def function(whole, x):
        seen.append(x.shape[0])
        return case.function(whole, x)

    by_slices(function, 5, case.whole, case.x, outputs=[(), ()])
    assert set(seen) == {4}


def test_slices_come_one_after_the_other(rng):
    """Otherwise the loops hold the intermediates of ten slices at a time. Forward and backward are a loop each."""
    case = Case(rng)
    graph = tf.function(lambda x: case.run(4, x), autograph=False).get_concrete_function(case.x).graph.as_graph_def()
    nodes = [
        node for nodes in (graph.node, *(function.node_def for function in graph.library.function)) for node in nodes
    ]
    loops = [node.attr["parallel_iterations"].i for node in nodes if node.op in ("While", "StatelessWhile")]
    assert loops == [1, 1]
