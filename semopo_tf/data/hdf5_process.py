"""Runs `hdf5.serve` in a child process that may crash, hang or grow without harm: each of these becomes one line."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from semopo_tf.data.hdf5 import EPISODE_BYTES
from semopo_tf.errors import DataError

MEMORY = 2 << 30  # bytes of address space for the child that reads HDF5
SECONDS = 60  # of its processor time, and one more for each megabyte of the files
SILENCE = 120.0  # seconds without an answer after which it is given up
READER = [sys.executable, "-c", "import sys; from semopo_tf.hdf5 import serve; serve(int(sys.argv[1]))"]
MESSAGE_BYTES = 1 << 16


def read_in_child(paths: list[Path], skip: int) -> Generator[dict[str, Any], None, None]:
    """The answers of `hdf5.serve` from a child process: what was found, then the arrays of one episode after another.

    The child has limits on memory and processor time and is given up when it stays silent. Whatever it does ends in a
    line.

    Raises:
      DataError: what the child says of a file, or how it ended.
    """
    seconds = SECONDS + sum(path.stat().st_size for path in paths) // (1 << 20)
    ours, theirs = socket.socketpair()
    # No plugins for filters; one thread, whose stacks would count as memory; apart from Ctrl-C, for it ends with our
    # end of the pipe.
    alone = {"HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment = os.environ | alone | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    with tempfile.TemporaryFile() as stderr, contextlib.closing(Connection(ours.detach())) as pipe:
        process = subprocess.Popen(
            [*READER, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            start_new_session=True,
        )
        theirs.close()
        try:
            pipe.send_bytes(
                json.dumps(
                    {"files": [str(path) for path in paths], "memory": MEMORY, "seconds": seconds, "skip": skip}
                ).encode()
            )
            while "end" not in (answer := _answer(pipe, paths[0])):
                yield answer
        except DataError:
            raise
        except (
            EOFError,
            OSError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
        ) as error:  # it ended, or talks nonsense
            stderr.seek(0)
            raise DataError(_obituary(process, paths[0], stderr.read(), seconds)) from error
        finally:
            process.kill()
            process.wait()


def _answer(pipe: Connection, path: Path) -> dict[str, Any]:
    """One message with its arrays, whose sizes are checked before they are received."""
    answer = json.loads(_receive(pipe, MESSAGE_BYTES, path))
    if "error" in answer:
        raise DataError(answer["error"])
    for name, (kind, shape) in answer.get("arrays", {}).items():
        answer["arrays"][name] = np.frombuffer(_receive(pipe, EPISODE_BYTES, path), kind).reshape(shape)
    return answer


def _receive(pipe: Connection, most: int, path: Path) -> bytes:
    if not pipe.poll(SILENCE):
        raise DataError(
            f"{path}: the process that reads it gave no answer for {SILENCE:.0f} s and was ended; do not trust this "
            "file"
        )
    return pipe.recv_bytes(most)


def _obituary(process: subprocess.Popen, path: Path, said: bytes, seconds: int) -> str:
    """How the child ended, in one line."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    code = process.returncode
    last = next(
        (line.strip() for line in reversed(said.decode(errors="replace").split("\n")) if line.strip()), "no message"
    )
    how = "gave an answer that is none" if code in (None, 0) else f"ended with status {code} ({last[:100]})"
    if code is not None and code < 0:
        how = (
            f"took more than {seconds} s of processor time"
            if code == -signal.SIGXCPU
            else f"was ended by {signal.Signals(-code).name}"
        )
    return f"{path}: the process that reads it {how}; do not trust this file, fetch it again"
