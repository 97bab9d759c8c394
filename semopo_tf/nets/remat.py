"""Gradient checkpointing by slices of rows: what a function keeps for its gradient is kept for one slice at a time.

    forward     rows 0..n-1 | n..2n-1 | ...    each slice computed, its intermediates dropped
    backward    rows 0..n-1 | n..2n-1 | ...    each slice computed again, then differentiated; weight gradients added up

One slice after the other: TensorFlow's loops would start up to ten at a time, and hold the intermediates of all of
  them.

One more forward pass for a peak memory that does not grow with the number of rows (Chen et al. 2016, with slices in
place of layers).
"""

from collections.abc import Callable, Sequence

import tensorflow as tf


def by_slices(
    function: Callable[..., tuple[tf.Tensor, ...]], most: int, *args: tf.Tensor, outputs: Sequence[Sequence[int]]
) -> tuple[tf.Tensor, ...]:
    """function(*args), in equal slices of at most `most` rows; differentiable in floating arguments and in the
    variables that it reads.

    Args:
      function: ([n, ...], ...) -> ([n, ...], ...), each row by itself, all outputs floating.
      args: [N, ...] tensors of one static N.
      outputs: the shape of one row of each output; float32.
    """
    size = args[0].shape[0]
    slices = next(count for count in range(1, size + 1) if size % count == 0 and size // count <= most)
    split = [tf.reshape(x, [slices, size // slices, *x.shape[1:]]) for x in args]
    signature = tuple(tf.TensorSpec([size // slices, *row]) for row in outputs)
    floating = [index for index, x in enumerate(args) if x.dtype.is_floating]

    @tf.custom_gradient
    def run(*split: tf.Tensor) -> tuple:
        outputs = tf.map_fn(lambda now: function(*now), split, fn_output_signature=signature, parallel_iterations=1)

        def gradient(*upstream: tf.Tensor, variables: list[tf.Variable] | None = None) -> tuple[list, list]:
            trained = variables or []

            def body(index: tf.Tensor, totals: list, arrays: list) -> tuple:
                now = [tf.gather(x, index) for x in split]
                watched = [now[place] for place in floating]
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch([*watched, *trained])
                    out = function(*now)
                found = tape.gradient(
                    out, [*watched, *trained], [tf.gather(x, index) for x in upstream], unconnected_gradients="zero"
                )
                totals = [
                    total + tf.convert_to_tensor(part)
                    for total, part in zip(totals, found[len(watched) :], strict=True)
                ]
                return (
                    index + 1,
                    totals,
                    [array.write(index, part) for array, part in zip(arrays, found[: len(watched)], strict=True)],
                )

            arrays = [
                tf.TensorArray(split[place].dtype, slices, element_shape=split[place].shape[1:]) for place in floating
            ]
            start = (tf.constant(0), [tf.zeros(variable.shape) for variable in trained], arrays)
            loop = {"maximum_iterations": slices, "parallel_iterations": 1}
            _, totals, arrays = tf.while_loop(lambda index, *_: index < slices, body, start, **loop)
            by_place = dict(zip(floating, (array.stack() for array in arrays), strict=True))
            return [by_place.get(place) for place in range(len(split))], totals

        return outputs, gradient

    return tuple(tf.reshape(x, [size, *x.shape[2:]]) for x in run(*split))
