"""A scan whose gradient runs in sequence only what is sequential.

    forward    s_t = step(s_{t-1}, x_t)                              a loop over t
    adjoint    a_t = dL/ds_t (direct) + (ds_{t+1}/ds_t)^T a_{t+1}     a loop backwards, with respect to the state alone
    the rest   dL/dx, dL/dweights from all a_t at once               one call of `step` on the T*B rows of all steps

The gradient of `tf.scan` computes the rest inside its loop, keeps every intermediate of every step, and cannot be
compiled separately from its surroundings.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf

Nest = Any


def scan(step: Callable[[Nest, Nest], Nest], start: Nest, inputs: Nest, rows: int = 0) -> Nest:
    """All states of a recurrence: start [B, ...], inputs [T, B, ...] -> [T, B, ...].

    Differentiable in start, inputs and the variables that `step` reads.

    Args:
      step: (state [N, ...], input [N, ...]) -> state [N, ...] for any number of rows N, each row by itself.
      rows: the axis of the rows in a state, 0 or 1; with 1 the shapes are [G, B, ...], [T, G, B, ...] and [G, N, ...].
    """
    states = tf.nest.map_structure(tf.stop_gradient, tf.scan(step, inputs, initializer=start))
    previous = tf.nest.map_structure(
        lambda first, all_: tf.stop_gradient(tf.concat([first[None], all_[:-1]], 0)), start, states
    )
    # The states again, each from the state before it: equal to `states` up to rounding, and the path of the gradients.
    again = step(*tf.nest.map_structure(partial(_as_rows, rows), (previous, inputs)))
    again = tf.nest.map_structure(partial(_by_time, rows), again, states)

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
            # Reversed by hand: a scan with `reverse` has a loop whose length XLA does not know, and on a GPU the host
            # would wait for each of its steps.
            backwards = tf.nest.map_structure(_reverse, (previous, stopped, upstream))
            to_previous, adjoint = tf.nest.map_structure(_reverse, tf.scan(back, backwards, initializer=(zero, zero)))
            return [*(gradient[0] for gradient in tf.nest.flatten(to_previous)), *tf.nest.flatten(adjoint)]

        return tuple(tf.nest.flatten(states)), gradient

    return tf.nest.pack_sequence_as(states, chain(*tf.nest.flatten(start), *tf.nest.flatten(again)))


def _as_rows(axis: int, x: tf.Tensor) -> tf.Tensor:
    """[T, B, ...] -> [T*B, ...], or with axis 1 [T, G, B, ...] -> [G, T*B, ...]."""
    x = tf.transpose(x, [1, 0, *range(2, len(x.shape))]) if axis else x
    return tf.reshape(x, [*x.shape[:axis], -1, *x.shape[axis + 2 :]])


def _by_time(axis: int, x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """The inverse of `_as_rows`, to the shape of `like`."""
    if not axis:
        return tf.reshape(x, like.shape)
    time, models = like.shape[:2]
    return tf.transpose(tf.reshape(x, [models, time, *like.shape[2:]]), [1, 0, *range(2, len(like.shape))])


def _reverse(x: tf.Tensor) -> tf.Tensor:
    return tf.reverse(x, [0])
