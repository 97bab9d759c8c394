"""A scan whose gradient runs in sequence only what is sequential.

    forward    s_t = step(s_{t-1}, x_t)                              a loop over t
    adjoint    a_t = dL/ds_t (direct) + (ds_{t+1}/ds_t)^T a_{t+1}     a loop backwards, with respect to the state alone
    the rest   dL/dx, dL/dweights from all a_t at once               one call of `step` on the T*B rows of all steps

The gradient of `tf.scan` computes the rest inside its loop, keeps every intermediate of every step, and cannot be
compiled separately from its surroundings.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Nest = Any


def scan(step: Callable[[Nest, Nest], Nest], start: Nest, inputs: Nest) -> Nest:
    """All states of a recurrence: start [B, ...], inputs [T, B, ...] -> [T, B, ...].

    Differentiable in start, inputs and the variables that `step` reads.

    Args:
      step: (state [N, ...], input [N, ...]) -> state [N, ...] for any number of rows N, each row by itself.
    """
    states = tf.nest.map_structure(tf.stop_gradient, tf.scan(step, inputs, initializer=start))
    previous = tf.nest.map_structure(
        lambda first, all_: tf.stop_gradient(tf.concat([first[None], all_[:-1]], 0)), start, states
    )
    # The states again, each from the state before it: equal to `states` up to rounding, and the path of the gradients.
    again = step(*tf.nest.map_structure(lambda x: tf.reshape(x, [-1, *x.shape[2:]]), (previous, inputs)))
    again = tf.nest.map_structure(lambda rows, all_: tf.reshape(rows, all_.shape), again, states)

    @tf.custom_gradient
    def chain(*_: tf.Tensor) -> Nest:
        def gradient(*direct: tf.Tensor) -> list[tf.Tensor]:
            stopped = tf.nest.map_structure(tf.stop_gradient, inputs)

            def back(later: Nest, now: Nest) -> Nest:
                before, given, upstream = now
                adjoint = tf.nest.map_structure(tf.add, upstream, later[0])
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(tf.nest.flatten(before))
                    after = step(before, given)
                return tape.gradient(after, before, output_gradients=adjoint, unconnected_gradients="zero"), adjoint

            zero = tf.nest.map_structure(tf.zeros_like, start)
            upstream = tf.nest.pack_sequence_as(states, direct)
            to_previous, adjoint = tf.scan(back, (previous, stopped, upstream), initializer=(zero, zero), reverse=True)
            return [*(gradient[0] for gradient in tf.nest.flatten(to_previous)), *tf.nest.flatten(adjoint)]

        return tuple(tf.nest.flatten(states)), gradient

    return tf.nest.pack_sequence_as(states, chain(*tf.nest.flatten(start), *tf.nest.flatten(again)))
