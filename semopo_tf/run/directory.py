"""The run directory: locking it, replacing directories in it, and surviving a full disk or a closed output.

`metrics.jsonl` is deterministic: one JSON object per line with `phase` and `step`, no wall-clock time. Times go to
`timing.jsonl`.
"""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from semopo_tf.errors import DataError, StorageError
from semopo_tf.storage.files import FILES, Files, locked, temporary_sibling, write_aside
from semopo_tf.storage.records import read_records

WARNING_SECONDS = 60.0
MANIFEST = "dataset_manifest.json"  # what the run was trained on: `data.cards.read_run_data`
LEFTOVERS = (".tmp-*", "videos/.tmp-*")


@contextlib.contextmanager
def open_run(logdir: Path, files: Files = FILES) -> Iterator[None]:
    """Create a run directory, lock it for the duration of the run, and remove what killed writers left in it.

    Raises:
      StorageError: when it cannot be written; checked first.
      LockedError: when another process trains in it.
    """
    require_writable(logdir, "the run directory", "choose another --logdir", files)
    with locked(logdir / ".lock", wait=False, what=f"the run directory {logdir}") as killed:
        for pattern in LEFTOVERS:
            for leftover in logdir.glob(pattern):
                if "-evaluation-" not in leftover.name:  # evaluate.py may be writing videos right now
                    files.remove_tree(leftover)
        if killed:
            print(
                f"warning: the last run in {logdir} ({killed}) ended without a stop record: it was killed, or the "
                "machine stopped"
            )
        yield


def require_writable(directory: Path, what: str, remedy: str, files: Files = FILES) -> None:
    """Make a directory if it is missing, and write a file there to see whether that works.

    Raises:
      StorageError: when it does not.
    """
    probe = temporary_sibling(directory / "writable")
    try:
        files.make_directory(directory)
        files.write(probe, b"")
        files.unlink(probe)
    except OSError as error:
        raise StorageError(f"{directory}: {what} cannot be written ({error.strerror}); {remedy}") from error


def require_growing(path: Path, remedy: str, files: Files = FILES) -> None:
    """Raises StorageError when a file cannot be appended to, or not be made."""
    if os.path.lexists(path):
        try:
            files.close(files.open_end(path))
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror}); {remedy}") from error


def replace_directory(target: Path, content: Mapping[str, bytes | memoryview], files: Files = FILES) -> None:
    """Write a directory, its files in order. It gets its name, and replaces what has it, once all is on the disk.

    Raises:
      OSError: when the disk refuses; the attempt is cleaned up.
    """
    try:
        temporary = write_aside(target, content, files)
        old = set_aside(target, files) if os.path.lexists(target) else None
        files.rename(temporary, target)
        files.sync_directory(target.parent)
    except OSError:
        for left in (temporary_sibling(target), _aside(target)):
            files.remove_tree(left)
        raise
    if old:
        files.remove_tree(old)


def set_aside(path: Path, files: Files = FILES) -> Path:
    """Rename a directory that will be removed to a hidden name, and return that."""
    files.remove_tree(_aside(path))
    files.rename(path, _aside(path))
    return _aside(path)


def _aside(path: Path) -> Path:
    return temporary_sibling(path.with_name(f"{path.name}-old"))


def tuning(logdir: Path, wanted: bool) -> Path | None:
    """Where a run remembers what `gpu_tune` has measured, to continue with the same choices; None if not wanted."""
    return logdir / "gpu_tuning" if wanted else None


@contextlib.contextmanager
def steady_output() -> Iterator[None]:
    """Let a run survive a closed output: what can no longer be printed is dropped."""
    # Files opened later must not take the numbers of closed standard streams: TensorFlow writes its warnings to 2.
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(spare)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and SteadyStream(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class SteadyStream:
    """A text stream that redirects itself to /dev/null at its first error."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._try(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        self._try(self._stream.flush, None)

    def _try(self, act: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return act()
        except OSError:
            with contextlib.suppress(OSError):  # a notebook's stream has no descriptor
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            return otherwise


def phases_of(logdir: Path) -> list[str]:
    """Names of a run's stages in the order of training, without building its learner.

    First the order of its records, then the stages of checkpoints without a record.
    """
    recorded = []
    with contextlib.suppress(DataError):  # the checkpoints are listed all the same
        recorded = [str(row.get("phase")) for row in read_records(logdir / "metrics.jsonl")]
    return list(dict.fromkeys([*recorded, *sorted(path.name.split("-")[1] for path in logdir.glob("ckpt-*-*"))]))


class Patience:
    """Inside `with`, downgrades `StorageError` to one warning per minute: for writes that can wait for the next
    checkpoint.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._quiet_until = clock, -math.inf

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, StorageError):
            return False
        if self._clock() >= self._quiet_until:
            self._quiet_until = self._clock() + WARNING_SECONDS
            print(f"warning: {error}; training goes on until a checkpoint cannot be written either", flush=True)
        return True
