"""All randomness of learning: a pure function of (seed, domain, stream, step).

There is no generator and no state. Counter-based bits (Philox 4x32-10, Salmon et al. 2011, through TensorFlow's integer
op) are the same eagerly, in a graph and under XLA. This file maps them to floats with its own arithmetic, because the
float draws of `tf.random.*` and of TensorFlow Probability differ between the three. Nothing else in the package may
draw.

    key word (64 bit)      counter (128 bit)
    seed | crc32(stream)   step (high 64) | block (low 64, counts up within one draw)

The step stands in the high half: neighbouring steps never share a block.
"""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

_PHILOX = 1


class Key(NamedTuple):
    """Names one step's randomness; `draw` functions add the name of the stream."""

    seed: Any  # int or scalar integer tensor, 0 <= seed < 2**32: the run's seed, or an episode's in evaluation
    domain: str  # "model", "policy", "evaluation", "report": keeps equal steps of different phases apart
    step: Any  # scalar integer tensor


def stream_id(domain: str, stream: str) -> int:
    """The 32-bit number of a stream. Hashed from its name, so adding a stream changes no other."""
    return zlib.crc32(f"{domain}/{stream}".encode())


def bits(key: Key, stream: str, shape: Sequence[int]) -> tf.Tensor:
    """uint32 of `shape`, independent across seeds, domains, streams and steps."""
    seed = tf.bitwise.left_shift(tf.cast(key.seed, tf.uint64), tf.constant(32, tf.uint64))
    word = tf.bitwise.bitwise_or(seed, tf.constant(stream_id(key.domain, stream), tf.uint64))
    counter = tf.stack([tf.constant(0, tf.uint64), tf.cast(key.step, tf.uint64)])
    return tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=shape, key=tf.reshape(word, [1]), counter=counter, alg=_PHILOX, dtype=tf.uint32
    )


def integers(key: Key, stream: str, shape: Sequence[int], limit: Any) -> tf.Tensor:
    """int64 of `shape`, uniform over 0..limit-1. `limit` is an int or a tensor that broadcasts to `shape`.

    Multiply-and-shift in 64-bit integers: exact on every device, with a bias below limit / 2**32.
    """
    wide = tf.cast(bits(key, stream, shape), tf.uint64) * tf.cast(limit, tf.uint64)
    return tf.cast(tf.bitwise.right_shift(wide, tf.constant(32, tf.uint64)), tf.int64)


def uniform(key: Key, stream: str, shape: Sequence[int]) -> tf.Tensor:
    """float32 of `shape`, uniform over the 2**23 midpoints of (0, 1); never 0 or 1."""
    return _open_unit(bits(key, stream, shape))


def normal(key: Key, stream: str, shape: Sequence[int]) -> tf.Tensor:
    """float32 of `shape`, standard normal by the inverse distribution function; at most 5.3 from zero."""
    # In float64: XLA's float32 erfinv is off by up to 2e-5 in the tails, so compiled and eager draws would differ.
    centred = 2 * tf.cast(_open_unit(bits(key, stream, shape)), tf.float64) - 1
    return tf.cast(np.sqrt(2) * tf.math.erfinv(centred), tf.float32)


def _open_unit(draw: tf.Tensor) -> tf.Tensor:
    """Map uint32 to (0, 1): the upper 23 bits, plus half a step."""
    upper = tf.cast(tf.bitwise.right_shift(draw, tf.constant(9, tf.uint32)), tf.float32)
    return (upper + 0.5) * np.float32(2**-23)
