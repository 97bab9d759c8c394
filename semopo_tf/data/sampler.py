"""Training batches as a pure function of (seed, stream, step, data), drawn inside the graph.

Conservative sampling (paper 3.3) draws episodes from a pool that grows along an order of the dataset:

    rank      0   1   2   3  ...  n-1         order[rank] is an episode
    pool    [ 0   1   2 ] 3  ...  n-1         size(step) = min(start + growths * grow_by, cap)

An episode is drawn uniformly from the pool, then a window uniformly from the episode.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from semopo_tf import random
from semopo_tf.data.dataset import Dataset
from semopo_tf.data.transitions import TransitionSource
from semopo_tf.errors import DataError
from semopo_tf.random import Key
from semopo_tf.types import Batch, Stacks, WithEpisode


class Pool(NamedTuple):
    """How the pool of conservative sampling grows. Sizes are in episodes, steps in model updates."""

    order: str  # "file" or "return" (ascending)
    start: int
    grow_every: int
    grow_by: int  # 0: as many as let the pool reach the whole dataset by the end, at least one
    include_last: bool  # False: the last episode of the order is never drawn, as in the released code
    drop_ties: bool  # True: of equal returns only the last in file order survives, as in the released code

    def ranks(self, returns: np.ndarray, native_returns: np.ndarray) -> np.ndarray:
        """Episode indices in the order of the pool, [n]; equal returns keep their file order and none is lost.

        Args:
          returns: [n] float64.
          native_returns: [n] in the precision of the stored rewards, by which the released code identifies and sorts
            episodes; used with `drop_ties`.
        """
        episodes = np.arange(len(returns))
        if self.drop_ties:
            returns = native_returns
            last_of_return = {value: episode for episode, value in enumerate(native_returns.tolist())}
            episodes = np.array(sorted(last_of_return.values()))
        if self.order == "return":
            episodes = episodes[np.argsort(returns[episodes], kind="stable")]
        return episodes

    def growth(self, episodes: int, total_steps: int) -> int:
        """Episodes added at each growth."""
        if self.grow_by:
            return self.grow_by
        # The released rule, floor(n / (25001 / 100)): its 25 001 updates are rounded up to 25 100, so 25 001 is total -
        # every + 1.
        return max(1, episodes * self.grow_every // max(1, total_steps - self.grow_every + 1))

    def size(self, step: tf.Tensor | int, episodes: int, total_steps: int) -> tf.Tensor:
        """Pool size before update `step` (scalar int64); with `step = total_steps`, the final pool."""
        cap = episodes if self.include_last else max(1, episodes - 1)
        growths = tf.cast(step, tf.int64) // self.grow_every
        return tf.minimum(tf.constant(self.start, tf.int64) + growths * self.growth(episodes, total_steps), cap)


class Sampler:
    """Batches of windows from one dataset, which is kept on the device; its images optionally stay on the host.

    Views:
      model: conservative or uniform, for the model phase at `key.step` updates.
      policy: start states of imagination: the whole dataset, or the final pool of the model phase.
      all: uniform over all training episodes.
      valid: uniform over the held-out episodes.

    Args:
      train: [n] bool, the episodes to train on.
      total_steps: length of the model phase in updates.
      valid: [n] bool, the episodes that are held out; by default all others.
      images_on_device: False leaves the images in `dataset.frames`; `sample` then needs those of `host_images`.

    Raises:
      DataError: when every episode is held out.
    """

    def __init__(
        self,
        dataset: Dataset,
        train: np.ndarray,
        *,
        sampling: str,
        pool: Pool,
        policy_starts: str,
        total_steps: int,
        valid: np.ndarray | None = None,
        images_on_device: bool = True,
    ):
        if not train.any():
            raise DataError(
                f"{dataset.directory}: expected at least one training episode, received none; lower --valid_fraction"
            )
        self._dataset, self._frames = dataset, dataset.frames
        self._images = tf.constant(dataset.frames) if images_on_device else None
        self._data = tuple(tf.constant(array) for array in (dataset.action, dataset.reward, dataset.is_terminal))
        self._offset, self._lengths = tf.constant(dataset.offset), tf.constant(dataset.length)
        members = np.flatnonzero(train)
        self._longest = int(dataset.length[members].max())
        ranks = members[pool.ranks(dataset.returns[members], dataset.native_returns[members])]
        self._orders = {
            "pool": tf.constant(ranks),
            "all": tf.constant(members),
            "valid": tf.constant(np.flatnonzero(~train if valid is None else valid)),
        }
        self._pool, self._pool_episodes, self._total_steps = pool, len(ranks), total_steps
        self._view_orders = {
            "model": "pool" if sampling == "conservative" else "all",
            "policy": "pool" if sampling == "conservative" and policy_starts == "pool" else "all",
            "all": "all",
            "valid": "valid",
        }

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """[H, W, 3]."""
        return self._frames.shape[1:]

    def source(
        self,
        view: str,
        stacks: Stacks | None,
        *,
        batch: int,
        length: int,
        episode: Callable[[tf.Tensor], tf.Tensor] | None = None,
    ) -> "WindowSource | TransitionSource | EpisodeSource":
        """Batches of a view: windows of `length` records, with a whole episode beside them, or transitions, as a stage
        asks for.
        """
        if not stacks:
            windows = WindowSource(self, view, batch=batch, length=length)
            return EpisodeSource(self, windows, episode) if episode else windows
        episodes = self._orders[self._view_orders[view]].numpy()
        return TransitionSource(self._dataset, view, episodes, stacks, batch=batch, images=self._images)

    def sample(
        self,
        view: str,
        key: Key,
        *,
        batch: int,
        length: int,
        image: tf.Tensor | None = None,
        table: tf.Tensor | None = None,
    ) -> Batch:
        """`batch` windows of `length` records of the view at `key.step`; pure. No episode may be shorter than `length`.

        Args:
          image: [B, T, ...] from `host_images` of the same view and key, where the images are not on the device.
          table: [N, ...] one row a record, gathered instead of the images.
        """
        return self.gather(*self.draw(view, key, batch=batch, length=length), length=length, image=image, table=table)

    def host_images(self, view: str, key: Key, *, batch: int, length: int) -> np.ndarray:
        """The images of `sample` [B, T, H, W, 3] from the host's copy, by the same index function."""
        return self._frames[self._index(*self.draw(view, key, batch=batch, length=length), length).numpy()]

    def draw(self, view: str, key: Key, *, batch: int, length: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Episode [B] and first record inside the episode [B] of each window, int64."""
        order, size = self.reach(view, key.step)
        episode = tf.gather(order, random.integers(key, f"{view}_episode", [batch], size))
        start = random.integers(key, f"{view}_start", [batch], tf.gather(self._lengths, episode) - length + 1)
        return episode, start

    def reach(self, view: str, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The order that a view draws from, and from how many of its first episodes."""
        name = self._view_orders[view]
        order = self._orders[name]
        if name != "pool":
            return order, tf.size(order, tf.int64)
        return order, self._pool.size(
            step if view == "model" else self._total_steps, self._pool_episodes, self._total_steps
        )

    def gather(
        self,
        episode: tf.Tensor,
        start: tf.Tensor,
        *,
        length: int,
        image: tf.Tensor | None = None,
        table: tf.Tensor | None = None,
    ) -> Batch:
        """The windows at the given episodes and first records; is_first is true at column 0 of each window only."""
        index = self._index(episode, start, length)
        action, reward, is_terminal = (tf.gather(array, index) for array in self._data)
        if image is None:
            image = tf.gather(self._images if table is None else table, index)
        is_first = tf.broadcast_to(tf.range(length) == 0, index.shape)
        return Batch(image, action, reward, is_first, is_terminal)

    def whole(self, number: tf.Tensor, table: tf.Tensor | None = None) -> Batch:
        """One whole training episode [1, L, ...], as in `types.WithEpisode`; `table` as of `sample`.

        Args:
          number: its place among the training episodes, in file order; after the last follows the first.
        """
        order = self._orders["all"]
        episode = tf.gather(order, number % tf.size(order, tf.int64))
        last = tf.gather(self._lengths, episode) - 1
        column = tf.range(self._longest, dtype=tf.int64)
        index = tf.gather(self._offset, episode) + tf.minimum(column, last)[None]
        action, reward, is_terminal = (tf.gather(array, index) for array in self._data)
        image = tf.gather(self._images if table is None else table, index)
        return Batch(image, action, reward, (column == 0) | (column > last)[None], is_terminal)

    def _index(self, episode: tf.Tensor, start: tf.Tensor, length: int) -> tf.Tensor:
        """Records of the windows, [B, T]."""
        return (tf.gather(self._offset, episode) + start)[:, None] + tf.range(length, dtype=tf.int64)


class WindowSource:
    """`batch` windows of `length` records of one view of a sampler."""

    def __init__(self, sampler: Sampler, view: str, *, batch: int, length: int):
        self._sampler, self._view, self._sizes = sampler, view, {"batch": batch, "length": length}
        self.image_shape = (batch, length, *sampler.frame_shape)

    def sample(self, key: Key, image: tf.Tensor | None = None, table: tf.Tensor | None = None) -> Batch:
        """See `Sampler.sample`."""
        return self._sampler.sample(self._view, key, **self._sizes, image=image, table=table)

    def host_images(self, key: Key) -> np.ndarray:
        """The images of `sample`, of `image_shape`."""
        return self._sampler.host_images(self._view, key, **self._sizes)


class EpisodeSource:
    """Windows, and one whole training episode, as a stage with `episode` asks for."""

    def __init__(self, sampler: Sampler, windows: WindowSource, episode: Callable[[tf.Tensor], tf.Tensor]):
        self._sampler, self._windows, self._episode = sampler, windows, episode

    def sample(self, key: Key, image: tf.Tensor | None = None, table: tf.Tensor | None = None) -> WithEpisode:
        """At `key.step`; pure. Reads from `table`, [N, ...] one row a record, where there is one."""
        return WithEpisode(self._windows.sample(key, image, table), self._sampler.whole(self._episode(key.step), table))
