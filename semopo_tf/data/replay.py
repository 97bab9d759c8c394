"""A replay that grows while it is sampled: the episodes that a learner has played so far.

    records   | episode 0 | episode 1 | episode 2 |  free ...   |
    episodes  = 3: every view draws uniformly from these

What is drawn is a function of (seed, stream, step, episodes so far), by the sampler of recorded datasets. Arrays and
counts are variables, so a compiled loop is not traced again when an episode is added.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from semopo_tf.data.dataset import Dataset
from semopo_tf.data.sampler import Pool, Sampler

FILE_ORDER = Pool("file", 1, 1, 1, True, False)


class Replay(Sampler):
    """Room for `episodes` episodes of at most `records` records in all.

    Args:
      shape: of what the learner sees: [H, W, 3] for frames, which stay on the host, or [S] for states.
    """

    def __init__(self, *, episodes: int, records: int, shape: Sequence[int], action_size: int):
        self._rows = np.zeros((records, *shape), np.uint8 if len(shape) == 3 else np.float32)
        empty = Dataset(
            directory=Path("replay"),
            names=[""] * episodes,
            frames=self._rows,
            action=np.zeros((records, action_size), np.float32),
            reward=np.zeros(records, np.float32),
            is_terminal=np.zeros(records, bool),
            offset=np.zeros(episodes, np.int64),
            length=np.zeros(episodes, np.int64),
            returns=np.zeros(episodes),
            native_returns=np.zeros(episodes),
            manifest={},
        )
        super().__init__(
            empty,
            np.ones(episodes, bool),
            sampling="uniform",
            pool=FILE_ORDER,
            policy_starts="dataset",
            total_steps=1,
            images_on_device=False,
        )
        self._data = tuple(tf.Variable(array, trainable=False) for array in self._data)
        self._offset, self._lengths = (tf.Variable(array, trainable=False) for array in (self._offset, self._lengths))
        self._count = tf.Variable(0, trainable=False, dtype=tf.int64)
        self._used, self._most = 0, episodes
        # States go to the device as a whole; frames are gathered on the host.
        self.table = tf.Variable(self._rows, trainable=False) if len(shape) == 1 else None

    @property
    def episodes(self) -> int:
        """How many there are."""
        return int(self._count.numpy())

    def has_room(self, records: int) -> bool:
        """Whether another episode of so many records fits."""
        return self.episodes < self._most and self._used + records <= len(self._rows)

    def add(self, rows: np.ndarray, action: np.ndarray, reward: np.ndarray, is_terminal: np.ndarray) -> None:
        """Append an episode of L records: rows [L, ...], action [L, A], reward [L], is_terminal [L]."""
        number, start, stop = self.episodes, self._used, self._used + len(rows)
        self._rows[start:stop] = rows
        for variable, array in zip(self._data, (action, reward, is_terminal), strict=True):
            variable[start:stop].assign(array.astype(variable.dtype.as_numpy_dtype))
        if self.table is not None:
            self.table[start:stop].assign(self._rows[start:stop])
        self._offset[number].assign(start)
        self._lengths[number].assign(len(rows))
        self._count.assign(number + 1)
        self._used = stop

    def reach(self, view: str, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """All views draw from the episodes that are there."""
        return self._orders["all"], self._count.value()
