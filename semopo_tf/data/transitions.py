"""Batches of transitions between stacks of frames, drawn inside the graph as index arithmetic over the records.

Of an episode of L = T + 1 records, the transitions t = 1 .. T - n + 1 can be drawn, each as often as any other of the
dataset (V-D4RL's rule). No stack and no reward reaches into another episode:

    record of the frame j before frame t    max(t - j, first record of its episode)
"""

import numpy as np
import tensorflow as tf

from semopo_tf import random
from semopo_tf.data.dataset import Dataset
from semopo_tf.random import Key
from semopo_tf.types import Stacks, Transitions


class TransitionSource:
    """Draws the transitions of one view.

    Args:
      view: names the random streams.
      episodes: [n], those to draw from.
      images: [N, H, W, 3] on the device, or None: `sample` then needs those of `host_images`.
    """

    def __init__(
        self, dataset: Dataset, view: str, episodes: np.ndarray, stacks: Stacks, *, batch: int, images: tf.Tensor | None
    ):
        self._view, self._stacks, self._batch = view, stacks, batch
        self._frames, self._images = dataset.frames, images
        first = np.repeat(dataset.offset, dataset.length)
        last = first + np.repeat(dataset.length, dataset.length) - 1
        drawn = [
            np.arange(start + 1, start + length - stacks.steps + 1)
            for start, length in zip(dataset.offset[episodes], dataset.length[episodes], strict=True)
        ]
        self._first, self._last = tf.constant(first), tf.constant(last)
        self._drawn = tf.constant(np.concatenate([*drawn, np.zeros(0, np.int64)]))
        self._data = tuple(tf.constant(array) for array in (dataset.action, dataset.reward, dataset.is_terminal))
        count = 1 + stacks.following + bool(stacks.later)
        self.image_shape = (batch, count * stacks.frames, *dataset.frames.shape[1:])

    def sample(self, key: Key, image: tf.Tensor | None = None, table: tf.Tensor | None = None) -> Transitions:
        """`B` transitions at `key.step`; pure.

        Args:
          image: of `image_shape`, from `host_images` of the same key.
          table: [N, H, W, 3], gathered from in place of the images.
        """
        record, later = self._draw(key)
        stacks = self._stacks
        if image is None:
            image = tf.gather(self._images if table is None else table, self._index(record, later))
        image, *others = tf.split(image, len(self._ends(record, later)), 1)
        none = tf.zeros([self._batch, 0], tf.uint8)
        following = stacked(others.pop(0)) if stacks.following else none
        action, reward, is_terminal = self._data
        window = record[:, None] + tf.range(stacks.steps, dtype=tf.int64)
        discounts = np.power(stacks.discount, np.arange(stacks.steps), dtype=np.float32)
        goes_on = 1 - tf.cast(tf.gather(is_terminal, window[:, -1]), tf.float32)
        return Transitions(
            stacked(image),
            tf.gather(action, record),
            tf.reduce_sum(tf.gather(reward, window) * discounts, 1),
            np.float32(stacks.discount**stacks.steps) * goes_on,
            following,
            stacked(others.pop(0)) if stacks.later else none,
        )

    def host_images(self, key: Key) -> np.ndarray:
        """The images of `sample` from the host's copy, by the same index function; of `image_shape`."""
        return self._frames[self._index(*self._draw(key)).numpy()]

    def _draw(self, key: Key) -> tuple[tf.Tensor, tf.Tensor]:
        """Records t of the transitions [B], and how far the later frame is ahead, k [B]."""
        place = random.integers(key, f"{self._view}_transition", [self._batch], tf.size(self._drawn, tf.int64))
        record = tf.gather(self._drawn, place)
        if not self._stacks.later:
            return record, tf.zeros_like(record)
        left = tf.clip_by_value(tf.gather(self._last, record) - record, 1, self._stacks.later)
        return record, 1 + random.integers(key, f"{self._view}_later", [self._batch], left)

    def _ends(self, record: tf.Tensor, later: tf.Tensor) -> list[tf.Tensor]:
        """Record of the newest frame of every stack, each [B]."""
        ends = [record - 1]
        if self._stacks.following:
            ends.append(record + self._stacks.steps - 1)
        return [*ends, record - 1 + later] if self._stacks.later else ends

    def _index(self, record: tf.Tensor, later: tf.Tensor) -> tf.Tensor:
        """Records of all frames, [B, stacks * F]."""
        back = tf.range(self._stacks.frames - 1, -1, -1, dtype=tf.int64)
        newest = tf.stack(self._ends(record, later), 1)
        index = tf.maximum(newest[..., None] - back, tf.gather(self._first, record)[:, None, None])
        return tf.reshape(index, [self._batch, -1])


def stacked(frames: tf.Tensor) -> tf.Tensor:
    """[B, F, H, W, 3] -> [B, H, W, 3F], frame by frame along the channels."""
    return tf.concat(tf.unstack(frames, axis=1), -1)
