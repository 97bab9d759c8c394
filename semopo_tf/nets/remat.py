"""Gradient checkpointing by slices of rows: the intermediates of one slice at a time are in memory.

    forward     rows 0..n-1 | n..2n-1 | ...    each slice computed, its intermediates dropped
    backward    rows 0..n-1 | n..2n-1 | ...    each slice computed again, then differentiated; weight gradients added up

Costs one more forward pass, and the peak memory does not grow with the number of rows (Chen et al. 2016, with slices in
place of layers). Slices run one after the other: by default TensorFlow's loops run ten at a time and hold the
intermediates of all of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def by_slices(
    function: Callable[..., tuple[tf.Tensor, ...]], most: int, *args: tf.Tensor, outputs: Sequence[Sequence[int]]
) -> tuple[tf.Tensor, ...]:
    """function(*args) in equal slices of at most `most` rows.

    Differentiable in floating arguments and in the variables that the function reads.

    Args:
      function: ([n, ...], ...) -> ([n, ...], ...), each row independent of the others, all outputs floating.
      args: [N, ...] tensors of one static N.
      outputs: the shape of one row of each output; float32.
    """
    size = args[0].shape[0]
    slices = next(count for count in range(1, size + 1) if size % count == 0 and size // count <= most)
    split = [tf.reshape(x, [slices, size // slices, *x.shape[1:]]) for x in args]
    signature = tuple(tf.TensorSpec([size // slices, *row]) for row in outputs)
    floating = [index for index, x in enumerate(args) if x.dtype.is_floating]
    one_by_one = {"parallel_iterations": 1}

    @tf.custom_gradient
    def run(*split: tf.Tensor) -> Any:
        outputs = tf.map_fn(lambda now: function(*now), split, fn_output_signature=signature, **one_by_one)

        def gradient(*upstream: tf.Tensor, variables: Sequence[tf.Variable] = ()) -> tuple[Any, list[tf.Tensor]]:
            def body(index: tf.Tensor, totals: Any, arrays: Any) -> Any:
                now = [tf.gather(x, index) for x in split]
                sources = [*(now[position] for position in floating), *variables]
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(sources)
                    out = function(*now)
                above = [tf.gather(x, index) for x in upstream]
                parts = tape.gradient(out, sources, above, unconnected_gradients="zero")
                arrays = [array.write(index, part) for array, part in zip(arrays, parts, strict=False)]
                to_weights = parts[len(floating) :]
                totals = [total + tf.convert_to_tensor(part) for total, part in zip(totals, to_weights, strict=True)]
                return index + 1, totals, arrays

            inputs = [split[position] for position in floating]
            arrays = [tf.TensorArray(x.dtype, slices, element_shape=x.shape[1:]) for x in inputs]
            start = (tf.constant(0), [tf.zeros(variable.shape) for variable in variables], arrays)
            loop = one_by_one | {"maximum_iterations": slices}
            _, totals, arrays = tf.while_loop(lambda index, *_: index < slices, body, start, **loop)
            by_position = dict(zip(floating, (array.stack() for array in arrays), strict=True))
            return [by_position.get(position) for position in range(len(split))], totals

        return outputs, gradient

    return tuple(tf.reshape(x, [size, *x.shape[2:]]) for x in run(*split))
