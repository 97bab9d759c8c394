"""A buffer of transitions between features, in variables on the device, written and read inside the graph."""

from typing import NamedTuple

import tensorflow as tf

from semopo_tf import random
from semopo_tf.random import Key


class Rows(NamedTuple):
    """`N` transitions.

    feat_t --action--> next_feat = feat_{t+1}, where the reward is received
    """

    feat: tf.Tensor  # [N, F]
    action: tf.Tensor  # [N, A] led from feat to next_feat
    next_feat: tf.Tensor  # [N, F]
    reward: tf.Tensor  # [N] on arriving at next_feat
    terminal: tf.Tensor  # [N] 1.0 where next_feat is an end, otherwise 0.0


class Ring:
    """The last `capacity` rows that were added. The oldest are overwritten first:

    slot     0        1       ...   capacity - 1
    row    [ n      | n - c+1 | ... | n - 1 ]         after n + 1 rows, c = capacity, n a multiple of c
    """

    def __init__(self, name: str, *, capacity: int, feat_size: int, action_size: int):
        self.capacity, self._name = capacity, name
        shapes = Rows([feat_size], [action_size], [feat_size], [], [])
        self._columns = Rows(
            *(
                tf.Variable(tf.zeros([capacity, *shape]), trainable=False, name=f"{name}_{column}")
                for column, shape in shapes._asdict().items()
            )
        )
        self._written = tf.Variable(0, trainable=False, dtype=tf.int64, name=f"{name}_written")  # rows, in all

    def variables(self) -> dict[str, tf.Variable]:
        """Everything a checkpoint must hold, by stable name."""
        columns = {f"{self._name}/{name}": column for name, column in self._columns._asdict().items()}
        return columns | {f"{self._name}/written": self._written}

    def size(self) -> tf.Tensor:
        """Rows that it holds, scalar int64."""
        return tf.minimum(self._written, self.capacity)

    def add(self, rows: Rows, taken: tf.Tensor) -> None:
        """Append the rows [N, ...] where `taken` [N] bool, in their order; of more than the capacity the last ones."""
        rows, taken = tf.nest.map_structure(lambda x: x[-self.capacity :], (rows, taken))
        one, other = tf.cast(taken, tf.int64), tf.cast(~taken, tf.int64)
        count = tf.reduce_sum(one)
        # Rows that are not taken write back what stands in the slots after: every slot is named once, as XLA and GPUs
        # leave the order of writes open.
        place = tf.where(taken, tf.cumsum(one) - 1, count + tf.cumsum(other) - 1)
        slot = (self._written + place) % self.capacity
        for column, values in zip(self._columns, rows, strict=True):
            chosen = tf.reshape(taken, [-1, *[1] * (len(values.shape) - 1)])
            column.scatter_update(tf.IndexedSlices(tf.where(chosen, values, column.sparse_read(slot)), slot))
        self._written.assign_add(count)

    def draw(self, key: Key, count: int) -> Rows:
        """`count` rows, uniformly with replacement."""
        slot = random.integers(key, f"{self._name}_row", [count], self.size())
        return Rows(*(column.sparse_read(slot) for column in self._columns))
