"""Reads HDF5 in a child process (`hdf5_child.serve`). Whatever the child does ends in one line."""

import contextlib
import resource
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

from semopo_tf.data.hdf5 import EPISODE_BYTES
from semopo_tf.errors import DataError, DeviceError
from semopo_tf.storage.child import Child
from semopo_tf.storage.limits import tighter

MEMORY = 2 << 30  # bytes of address space for the child that reads HDF5
SECONDS = 60  # of its processor time, and one more for each megabyte of the files
SILENCE = 120.0  # seconds without an answer after which it is ended
READER = [sys.executable, "-c", "import sys; from semopo_tf.data.hdf5_child import serve; serve(int(sys.argv[1]))"]
# No plugins for filters; one thread, because the stacks of others would count as memory.
ENVIRONMENT = {"HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def read_in_child(
    paths: list[Path], skip: int, layout: str = "vd4rl", **options: Any
) -> Generator[dict[str, Any], None, None]:
    """The answers of `hdf5_child.serve` from a child process: what the files hold, then the arrays of each episode.

    The child has limits on memory and processor time, and is ended when it stays silent.

    Args:
      skip: episodes not to send.
      layout: of the files, with its options; see `hdf5_child`.

    Raises:
      DataError: what the child says of a file, or how it ended.
    """
    seconds = SECONDS + sum(path.stat().st_size for path in paths) // (1 << 20)
    with contextlib.closing(Child(READER, environment=ENVIRONMENT)) as child:
        try:
            limits = {"memory": MEMORY, "seconds": seconds}
            files = {"layout": layout, "files": [str(path) for path in paths], "skip": skip, "options": options}
            child.send(limits | files)
            while not {"end", "error"} & set(answer := child.receive(SILENCE, EPISODE_BYTES)):
                yield answer
        except TimeoutError as error:
            raise DataError(
                f"{paths[0]}: the process that reads it gave no answer for {SILENCE:.0f} s and was ended; do not trust "
                "this file"
            ) from error
        except (EOFError, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            how = _ending(child, seconds)
            _require_room(paths[0], how, seconds, error)
            raise DataError(
                f"{paths[0]}: the process that reads it {how}; do not trust this file, fetch it again"
            ) from error
    if "error" in answer:
        if answer.get("memory"):
            _require_room(paths[0], "needs more memory", seconds)
        raise DataError(answer["error"])


def _require_room(path: Path, how: str, seconds: int, error: Exception | None = None) -> None:
    """Raises DeviceError where the shell gave the child less than it may need: its end says nothing of the file."""
    if lower := tighter({resource.RLIMIT_AS: MEMORY, resource.RLIMIT_CPU: seconds}):
        raise DeviceError(
            f"{path}: the process that reads it {how}, with less than it may need: {lower}; raise the limit"
        ) from error


def _ending(child: Child, seconds: int) -> str:
    """How a child that gives no answer more has ended, in words."""
    code, last = child.ended(1)
    if not code:
        return "gave an answer that is none"
    if code == -signal.SIGXCPU:
        return f"took more than {seconds} s of processor time"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code} ({last[:100]})"
