"""Runs one stage of learning in compiled chunks of updates.

A chunk is one TensorFlow program: a loop that draws a batch, updates, and sums the metrics, without returning to
Python. It stops at the first update whose losses or gradients are not finite; that update has changed nothing.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from semopo_tf.engine.compiling import compiled
from semopo_tf.random import Key
from semopo_tf.types import Batch, Stage

SECONDS_PER_CALL = 5.0
HOST_STACK_BYTES = 1 << 28  # of images passed to one compiled call when the frames are in host memory


class Chunk(NamedTuple):
    """Result of one call of the compiled loop."""

    done: int  # updates taken
    last: dict[str, float]  # metrics of the last update, taken or not
    finite: bool  # False: the update after `done` was not finite and was not taken


class StageLoop:
    """Runs the updates of one stage and keeps the running sums of its metrics.

    Metrics are summed in the order of the updates, so that a metrics row does not depend on the chunk size.

    Args:
      sample: (view, key) -> batch, or with `host_images` (view, key, image [B, T, H, W, 3]) -> batch.
      jit: compile the whole chunk with XLA.
      host_images: source of the images if they are not on the device.
    """

    def __init__(
        self,
        stage: Stage,
        sample: Callable[..., Batch],
        *,
        seed: int,
        jit: bool,
        host_images: "HostImages | None" = None,
    ):
        self.stage, self._sample, self._seed, self._host_images = stage, sample, seed, host_images

        def update(step: tf.Tensor, *image: tf.Tensor) -> Mapping[str, tf.Tensor]:
            key = Key(seed, stage.name, step)
            return dict(stage.update(sample(stage.view, key, *image), key))

        specs = [tf.TensorSpec(host_images.shape, tf.uint8)] if host_images else []
        self._update = compiled(update, jit=jit).get_concrete_function(tf.TensorSpec([], tf.int64), *specs)
        self.names = sorted(name for name in self._update.structured_outputs if name != "finite")
        self.sums = np.zeros(len(self.names), np.float32)
        self.count = 0
        self._chunk = compiled(self._loop, jit=jit)

    def _loop(self, step: tf.Tensor, updates: tf.Tensor, sums: tf.Tensor, *stack: tf.Tensor) -> tuple[tf.Tensor, ...]:
        def body(done: tf.Tensor, sums: tf.Tensor, _: tf.Tensor, __: tf.Tensor) -> tuple[tf.Tensor, ...]:
            outputs = self._update(step + done, *(images[done] for images in stack))
            last = tf.stack([outputs[name] for name in self.names])
            finite = outputs["finite"] > 0
            return tf.where(finite, done + 1, done), tf.where(finite, sums + last, sums), last, finite

        start = (tf.constant(0, tf.int64), sums, tf.zeros_like(sums), tf.constant(True))
        return tf.while_loop(lambda done, _, __, finite: tf.logical_and(done < updates, finite), body, start)

    def batch(self, step: int) -> tuple[Batch, Key]:
        """The batch and the key of one update, bit for bit those of a chunk."""
        key = Key(self._seed, self.stage.name, tf.constant(step, tf.int64))
        images = (tf.constant(self._host_images.gather(step)),) if self._host_images else ()
        return self._sample(self.stage.view, key, *images), key

    def run(self, step: int, updates: int) -> Chunk:
        """Take `updates` updates from `step` on, or stop before the first that is not finite."""
        stack = (tf.constant(self._host_images.stack(step, updates)),) if self._host_images else ()
        done, sums, last, finite = self._chunk(
            tf.constant(step, tf.int64), tf.constant(updates, tf.int64), tf.constant(self.sums), *stack
        )
        self.sums = sums.numpy()
        self.count += int(done)
        return Chunk(int(done), dict(zip(self.names, last.numpy().tolist(), strict=True)), bool(finite))

    def take_means(self) -> dict[str, float]:
        """Mean of every metric over the updates since the last call; starts new sums."""
        means = dict(zip(self.names, (self.sums.astype(np.float64) / max(self.count, 1)).tolist(), strict=True))
        self.sums, self.count = np.zeros_like(self.sums), 0
        return means

    @property
    def capacity(self) -> int:
        """The most updates of one call."""
        return self._host_images.capacity if self._host_images else sys.maxsize

    def close(self) -> None:
        """Stop gathering images."""
        if self._host_images:
            self._host_images.close()

    @property
    def traces(self) -> int:
        """Number of traces of the chunk: 1 in a healthy run."""
        return self._chunk.experimental_get_tracing_count()


class HostImages:
    """Images of the next updates, gathered by a host thread while the device computes the current ones.

    Args:
      gather: step -> the images of that update, uint8 of `shape`.
      shape: [B, T, H, W, 3].
      capacity: length of every stack in updates, fixed so that the compiled chunk has one shape.
    """

    def __init__(self, gather: Callable[[int], np.ndarray], shape: Sequence[int], capacity: int):
        self.gather, self.shape, self.capacity = gather, tuple(shape), capacity
        self._thread = ThreadPoolExecutor(1, "replay")
        self._coming: dict[int, Future[np.ndarray]] = {}

    def stack(self, step: int, updates: int) -> np.ndarray:
        """[capacity, B, T, H, W, 3], of which the first `updates` are filled, from update `step` on.

        Starts gathering the same number of following updates.
        """
        images = [self._take(now) for now in range(step, step + updates)]
        following = range(step + updates, step + 2 * updates)
        self._coming = {coming: self._thread.submit(self.gather, coming) for coming in following}
        stack = np.zeros((self.capacity, *self.shape), np.uint8)
        np.stack(images, out=stack[:updates])
        return stack

    def _take(self, step: int) -> np.ndarray:
        return self._coming.pop(step).result() if step in self._coming else self.gather(step)

    def forget(self) -> None:
        """Drop what was gathered for the next updates, as the source of the images has changed."""
        self._coming = {}

    def close(self) -> None:
        """Cancel gathering."""
        self._thread.shutdown(cancel_futures=True)


class Pace:
    """Chooses how many updates one call takes: a given number, or about `SECONDS_PER_CALL` worth."""

    def __init__(self, updates_per_call: int, epoch: int):
        """updates_per_call: 0 for automatic, then at most `epoch`."""
        self._fixed, self._epoch = updates_per_call, epoch
        self._size = updates_per_call or 1

    def next(self, left: int) -> int:
        """Updates of the next call, at most `left`, at least 1."""
        return max(1, min(self._size, left))

    def took(self, updates: int, seconds: float) -> None:
        """Adapt to the duration of a call; a size grows at most fourfold, as the first call includes compilation."""
        if not self._fixed and updates:
            worth = round(SECONDS_PER_CALL * updates / max(seconds, 1e-6))
            self._size = max(1, min(self._epoch, worth, 4 * self._size))
