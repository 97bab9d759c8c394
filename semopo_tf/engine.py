"""Turns one stage of learning into compiled chunks of updates. The only file that says `jit_compile`.

A chunk is one TensorFlow program: a loop that draws a batch, updates, and adds the metrics up, with no return to Python in between.
The loop stops at the first update whose losses or gradients are not finite; that update has changed nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from semopo_tf.errors import DeviceError
from semopo_tf.random import Key
from semopo_tf.types import Batch, Stage

SECONDS_PER_CALL = 5.0


class Chunk(NamedTuple):
    """What one call of the compiled loop did."""

    done: int  # updates taken
    last: dict[str, float]  # metrics of the last update tried
    finite: bool  # False: the update after `done` was not finite and was not taken


class StageLoop:
    """Runs the updates of one stage and keeps the running sums of its metrics.

    The sums are added up in the order of the updates, whatever the chunk size, so that a metrics row does not depend on it.

    Args:
      sample: (view, key) -> batch.
      jit: compile the whole chunk with XLA.
    """

    def __init__(self, stage: Stage, sample: Callable[[str, Key], Batch], *, seed: int, jit: bool):
        self.stage = stage

        def update(step: tf.Tensor) -> Mapping[str, tf.Tensor]:
            key = Key(seed, stage.name, step)
            return dict(stage.update(sample(stage.view, key), key))

        self._update = update
        # The loop must know the number of metrics before it is built. This trace is thrown away; calling the traced function inside
        # the loop instead would save it, but XLA cannot differentiate the scans of a function nested in a loop.
        outputs = tf.function(update, autograph=False).get_concrete_function(tf.TensorSpec([], tf.int64)).structured_outputs
        self.names = sorted(name for name in outputs if name != "finite")
        self.sums = np.zeros(len(self.names), np.float32)
        self.count = 0
        self._chunk = tf.function(self._loop, autograph=False, jit_compile=jit)

    def _loop(self, step: tf.Tensor, updates: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
        def body(done: tf.Tensor, sums: tf.Tensor, _: tf.Tensor, __: tf.Tensor) -> tuple[tf.Tensor, ...]:
            outputs = self._update(step + done)
            last = tf.stack([outputs[name] for name in self.names])
            finite = outputs["finite"] > 0
            return tf.where(finite, done + 1, done), tf.where(finite, sums + last, sums), last, finite

        start = (tf.constant(0, tf.int64), sums, tf.zeros_like(sums), tf.constant(True))
        return tf.while_loop(lambda done, _, __, finite: tf.logical_and(done < updates, finite), body, start)

    def run(self, step: int, updates: int) -> Chunk:
        """Take `updates` updates from `step` on, or stop before the first that is not finite."""
        done, sums, last, finite = self._chunk(tf.constant(step, tf.int64), tf.constant(updates, tf.int64), tf.constant(self.sums))
        self.sums = sums.numpy()
        self.count += int(done)
        return Chunk(int(done), dict(zip(self.names, last.numpy().tolist(), strict=True)), bool(finite))

    def take_means(self) -> dict[str, float]:
        """Mean of every metric over the updates since the last call, and start afresh."""
        means = dict(zip(self.names, (self.sums.astype(np.float64) / max(self.count, 1)).tolist(), strict=True))
        self.sums, self.count = np.zeros_like(self.sums), 0
        return means

    @property
    def traces(self) -> int:
        """How often the chunk was traced: 1 in a healthy run."""
        return self._chunk.experimental_get_tracing_count()


class Pace:
    """Chooses how many updates one call does: a given number, or about `SECONDS_PER_CALL` worth."""

    def __init__(self, updates_per_call: int, epoch: int):
        """updates_per_call: 0 for automatic, then at most `epoch`."""
        self._fixed, self._epoch = updates_per_call, epoch
        self._size = updates_per_call or 1

    def next(self, left: int) -> int:
        """Updates of the next call; `left` until the host has something to do."""
        return max(1, min(self._size, left))

    def took(self, updates: int, seconds: float) -> None:
        """Learn from a call. The first one holds the compilation and counts for nothing (it had one update)."""
        if not self._fixed and updates:
            self._size = max(1, min(self._epoch, round(SECONDS_PER_CALL * updates / max(seconds, 1e-6)), 4 * self._size))


def compiled(function: Callable, *, jit: bool, signature: Sequence | None = None) -> tf.types.experimental.PolymorphicFunction:
    """A graph function, XLA-compiled on request; for acting, reports and other single calls.

    Args:
      signature: of the arguments, where a size may change from call to call without another trace.
    """
    return tf.function(function, autograph=False, jit_compile=jit, input_signature=signature)


def choose_device(wanted: str) -> tuple[str, str]:
    """The TensorFlow device name for `--device` and a line that says what it is. GPU memory grows on demand.

    Raises:
      DeviceError: when a GPU is asked for that is not there.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if wanted == "cpu" or (wanted == "auto" and not gpus):
        return "/CPU:0", "CPU (no GPU is used)"
    index = int(wanted.partition(":")[2] or 0) if wanted != "auto" and wanted.partition(":")[2].isdigit() else 0
    if wanted not in ("auto", "gpu", f"gpu:{index}"):
        raise DeviceError(f"--device {wanted}: expected auto, cpu, gpu or gpu:N")
    if index >= len(gpus):
        raise DeviceError(f"--device {wanted}: TensorFlow sees {len(gpus)} GPUs; run python -m semopo_tf.doctor, or use --device cpu")
    return f"/GPU:{index}", tf.config.experimental.get_device_details(gpus[index]).get("device_name", "GPU")
