"""The scan with its own gradient against TensorFlow's."""

import numpy as np
import pytest
import tensorflow as tf
import tiny

from semopo_tf.nets.recurrence import scan

T, B, S, X = 6, 3, 4, 2


class Case:
    """A gated recurrence whose state has two parts, one of them only passed out."""

    def __init__(self, rng):
        self.kernel = tf.Variable(tiny.as_tensor(tiny.float32(rng.normal(size=(S + X, S)) / 2)))
        self.gain = tf.Variable(tiny.as_tensor(tiny.float32(rng.normal(size=S))))
        self.start = (tiny.as_tensor(tiny.float32(rng.normal(size=(B, S)))), tf.zeros([B, 1]))
        self.inputs = (
            tiny.as_tensor(tiny.float32(rng.normal(size=(T, B, X)))),
            tiny.as_tensor(tiny.float32(rng.normal(size=(T, B, 1)))),
        )
        self.weight = tiny.as_tensor(tiny.float32(rng.normal(size=(T, B, S))))

    def step(self, state, now):
        hidden, _ = state
        x, gate = now
        hidden = tf.tanh(tf.concat([hidden, x], -1) @ self.kernel) * tf.sigmoid(gate) + self.gain * hidden
        return hidden, tf.reduce_sum(hidden**2, -1, keepdims=True)

    def run(self, scanned, start, x, gate):
        """States, then the gradients of a loss that sees both outputs with respect to start, inputs and variables."""
        with tf.GradientTape() as tape:
            tape.watch([start, x, gate])
            hidden, squares = scanned(self.step, (start, self.start[1]), (x, gate))
            loss = tf.reduce_sum(hidden * self.weight) + tf.reduce_sum(tf.sin(squares))
        return hidden, squares, *tape.gradient(loss, [start, x, gate, self.kernel, self.gain])


def by_tensorflow(step, start, inputs):
    return tf.scan(step, inputs, initializer=start)


@pytest.mark.parametrize("mode", tiny.MODES)
def test_states_and_gradients_are_those_of_the_plain_scan(rng, mode):
    case = Case(rng)
    arguments = (case.start[0], *case.inputs)
    expected = [np.asarray(x) for x in case.run(by_tensorflow, *arguments)]
    received = tiny.run(mode, lambda *given: case.run(scan, *given), *arguments)
    for one, other in zip(received, expected, strict=True):
        tiny.close(one, other)


def test_it_may_stand_in_a_function_of_its_own_inside_a_compiled_loop(rng):
    """Where TensorFlow's own gradient of a scan cannot be compiled."""
    case = Case(rng)
    inner = tf.function(lambda *given: case.run(scan, *given)[5], autograph=False, jit_compile=True)
    arguments = (case.start[0], *case.inputs)

    def outer():
        return tf.while_loop(
            lambda step, _: step < 3,
            lambda step, total: (step + 1, total + inner(*arguments)),
            (0, tf.zeros_like(case.kernel)),
        )[1]

    tiny.close(tf.function(outer, autograph=False)(), 3 * case.run(by_tensorflow, *arguments)[5], 1e-4)
