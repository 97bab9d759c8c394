"""What the learners from stacks of frames share (bc, drq_bc, drq_cql, infogating): the noise rule, losses of an actor
and a twin critic, the random shift, and images of another size.

    a(s)      = mean(s) + clip(sigma * noise, -c, c), clamped into [-1, 1] with the gradient of the identity
    y         = R + d * min_i Q'_i(s', a(s'))
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from semopo_tf import random
from semopo_tf.nets.layers import MLP
from semopo_tf.nets.optim import Optimizer, Undo
from semopo_tf.random import Key

HEADS = ("q0", "q1")
EDGE = 1e-6  # actions stay that far inside [-1, 1]
BLOCK = 512  # frames resized in one call


# --- the losses, pure functions ---------------------------------------------------------------------------------------


def clamped(action: tf.Tensor) -> tf.Tensor:
    """Into [-1 + 1e-6, 1 - 1e-6], with the gradient of the identity, so that a saturated mean still learns."""
    return action + tf.stop_gradient(tf.clip_by_value(action, -1 + EDGE, 1 - EDGE) - action)


def noisy(mean: tf.Tensor, noise: tf.Tensor, *, std: tf.Tensor, clip: float) -> tf.Tensor:
    """The action of the losses; mean and standard normal noise [..., A]."""
    return clamped(mean + tf.clip_by_value(std * noise, -clip, clip))


def annealed(step: tf.Tensor, *, first: float, last: float, updates: int) -> tf.Tensor:
    """The noise's std at an update: from `first` to `last` on a straight line of `updates`, then `last`."""
    passed = tf.minimum(tf.cast(step, tf.float32) / max(updates, 1), 1.0)
    return first + (last - first) * passed


def cloning_loss(action: tf.Tensor, data: tf.Tensor) -> tf.Tensor:
    """Mean over batch and components of (a(s) - a)^2; both [B, A]."""
    return tf.reduce_mean((action - data) ** 2)


def temporal_difference(values: Sequence[tf.Tensor], target: tf.Tensor) -> tf.Tensor:
    """sum_i mean (Q_i - y)^2 over the critic's heads, each [B]; no factor of a half."""
    return tf.add_n([tf.reduce_mean((value - tf.stop_gradient(target)) ** 2) for value in values])


def weighted_cloning(value: tf.Tensor, action: tf.Tensor, data: tf.Tensor, *, alpha: float) -> tf.Tensor:
    """DrQ+BC's loss of the actor; value [B] is min_i Q_i(s, a(s)) (Fujimoto and Gu 2021, TD3+BC)."""
    scale = alpha / tf.stop_gradient(tf.reduce_mean(tf.abs(value)))
    return cloning_loss(action, data) - scale * tf.reduce_mean(value)


def shifted(image: tf.Tensor, offset: tf.Tensor, pad: int) -> tf.Tensor:
    """Random shift (DrQ): pad by the edge's pixels and crop again, as a gather of rows and columns.

    Args:
      image: [B, H, W, C].
      offset: [B, 2], integers of 0 .. 2 pad; `pad` leaves the image where it is.
    """
    for axis in (0, 1):
        edge = image.shape[1 + axis]
        place = tf.range(edge, dtype=tf.int64) + offset[:, axis, None] - pad
        image = tf.gather(image, tf.clip_by_value(place, 0, edge - 1), axis=1 + axis, batch_dims=1)
    return image


def randomly_shifted(image: tf.Tensor, key: Key, stream: str, pad: int) -> tf.Tensor:
    """`shifted` by an offset drawn for each image [B, H, W, C]; pad 0: not at all."""
    if not pad:
        return image
    return shifted(image, random.integers(key, stream, [image.shape[0], 2], 2 * pad + 1), pad)


# --- images of another size -------------------------------------------------------------------------------------------


def bicubic(size: int, frames: tf.Tensor) -> tf.Tensor:
    """[N, H, W, 3] uint8 -> [N, size, size, 3] uint8: the same for data and evaluation."""
    resized = tf.image.resize(tf.cast(frames, tf.float32), [size, size], "bicubic")
    return tf.cast(tf.round(tf.clip_by_value(resized, 0, 255)), tf.uint8)


def all_resized(size: int, frames: np.ndarray) -> tf.Tensor:
    """`bicubic` of a whole dataset, in blocks."""
    return tf.concat([bicubic(size, tf.constant(frames[i : i + BLOCK])) for i in range(0, len(frames), BLOCK)], 0)


# --- networks and updates ---------------------------------------------------------------------------------------------


def actor_head(inputs: int, action_size: int, shape: Mapping[str, Any], *, precision: str) -> MLP:
    """[..., inputs] -> {"mean": [..., A]} before its tanh; shape: layers, units and act."""
    head = MLP(**shape, outputs={"mean": action_size}, name="actor_head", precision=precision)
    head.build((None, inputs))
    return head


def critic_heads(name: str, inputs: int, action_size: int, shape: Mapping[str, Any], *, precision: str) -> list[MLP]:
    """The two heads of a critic, on features [..., inputs] and actions, for `values_of`."""
    heads = [MLP(**shape, outputs={"value": 1}, name=f"{name}_{q}", precision=precision) for q in HEADS]
    for head in heads:
        head.build((None, inputs + action_size))
    return heads


def values_of(heads: Sequence[MLP], hidden: tf.Tensor, action: tf.Tensor) -> list[tf.Tensor]:
    """Q_i of features [B, F] and actions [B, A], each [B]."""
    inputs = tf.concat([hidden, action], -1)
    return [head(inputs)["value"][:, 0] for head in heads]


def undo_of(variables: Mapping[str, tf.Variable], optimizers: Sequence[Optimizer]) -> Undo:
    """What goes back to the present values of variables and of their optimisers."""
    owned = [variable for optimizer in optimizers for variable in optimizer.owned()]
    return Undo([*variables.values(), *owned], whole=optimizers[0].whole)
