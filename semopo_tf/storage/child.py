"""A program in a child process that may crash, hang or grow without harm to this one, and the pipe to it.

A message is JSON. The arrays in its entry `arrays` follow it as raw bytes, in their order; the JSON has their types and
shapes. Nothing is pickled, and a number survives unchanged.
"""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from semopo_tf.storage.limits import at_most

MESSAGE_BYTES = 1 << 16
ARRAY_BYTES = 1 << 28
LOG_BYTES = 1 << 20  # read of what a child printed
ENDING_SECONDS = 5.0  # for a child whose pipe is closed to end by itself
# A batch system signals all processes of a job at once. What these ask is this process's business: a child goes on
# until its pipe is closed.
FOR_THE_PARENT = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
REQUEST_SECONDS = 1.0  # within which this process gets the signal that has ended its child


# Variables of this process that a child could not follow, such as a backend for pictures that only a notebook has.
FOR_THIS_PROCESS = ("MPLBACKEND", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONWARNINGS", "PYTHONPROFILEIMPORTTIME")


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A program that is started inside this block does not see the signals `FOR_THE_PARENT`, whatever it sets up.

    They are blocked in this thread meanwhile, and the program inherits that. They reach this process afterwards, or
    through another thread.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Child:
    """A running program. It has no input, prints into a file, and hears no signal that asks a program to stop: it ends
    when this end of the pipe is closed, also because this process was killed.

    Args:
      command: gets the descriptor of its end of the pipe as last argument.
      output: the program writes its standard output into the pipe instead; nothing can be sent to it.
      limits: of the child, `resource.RLIMIT_*` -> most; less where the shell allows less.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        output: bool = False,
        environment: dict[str, str] | None = None,
        limits: Mapping[int, int] | None = None,
    ):
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._pipe = Connection(ours.detach())
        search = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        with theirs, undisturbed():
            self.process = subprocess.Popen(
                command if output else [*command, str(theirs.fileno())],
                pass_fds=() if output else [theirs.fileno()],
                env=_environment() | {"PYTHONPATH": search} | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=theirs.fileno() if output else self._log,
                stderr=self._log,
                start_new_session=True,
            )
        for kind, most in (limits or {}).items():
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                resource.prlimit(self.process.pid, kind, at_most(kind, most))

    def send(self, message: Any) -> None:
        """Raises OSError when the pipe is closed or the child has ended."""
        send(self._pipe, message)

    def receive(self, seconds: float, array_bytes: int = ARRAY_BYTES) -> Any:
        """The next message with its arrays.

        Args:
          seconds: most that the child may be silent.
          array_bytes: most that an array may have.

        Raises:
          TimeoutError: when the child is silent.
          EOFError, OSError: when it has ended, or sends more than allowed.
          ValueError, TypeError, LookupError, AttributeError: for what is no message.
        """
        message = json.loads(self._receive(seconds, MESSAGE_BYTES))
        for name, (kind, shape) in message.get("arrays", {}).items():
            message["arrays"][name] = np.frombuffer(self._receive(seconds, array_bytes), kind).reshape(shape)
        return message

    def _receive(self, seconds: float, most: int) -> bytes:
        if not self._pipe.poll(seconds):
            raise TimeoutError(f"no answer within {seconds:.0f} s")
        return self._pipe.recv_bytes(most)

    def read(self, most: int, seconds: float) -> bytes:
        """Up to `most` bytes of the program's output, none at its end. Raises TimeoutError when it is silent."""
        if not select.select([self._pipe], [], [], seconds)[0]:
            raise TimeoutError(f"no output within {seconds:.0f} s")
        return os.read(self._pipe.fileno(), most)

    @property
    def closed(self) -> bool:
        return self._pipe.closed

    def ended(self, seconds: float = ENDING_SECONDS) -> tuple[int | None, str]:
        """Exit code (None while it runs on after `seconds`) and last printed line of a child that answers no more.

        Where a signal has ended the child, this process may be about to get the same one, and that matters more than
        the child: wait for it before anybody blames the child.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self.process.wait(seconds) < 0:
                time.sleep(REQUEST_SECONDS)
        lines = [line.strip() for line in self.log().split("\n") if line.strip()]
        return self.process.returncode, lines[-1] if lines else "no message"

    def log(self) -> str:
        """What the child has printed."""
        self._log.seek(0)
        return self._log.read(LOG_BYTES).decode(errors="replace")

    def close(self, seconds: float = 0.0) -> None:
        """Close the pipe and kill the child if it does not end within `seconds`. May be called twice."""
        self._pipe.close()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


def _environment() -> dict[str, str]:
    """This process's, without what was set for a notebook or for a debugger and would end or change a child."""
    return {name: value for name, value in os.environ.items() if name not in FOR_THIS_PROCESS}


def send(pipe: Connection, message: Any) -> None:
    """Send a JSON value; an object may have `arrays`, name -> array."""
    arrays = message.get("arrays", {}) if isinstance(message, Mapping) else {}
    if arrays:
        message = {**message, "arrays": {name: [str(array.dtype), array.shape] for name, array in arrays.items()}}
    pipe.send_bytes(json.dumps(message).encode())
    for array in arrays.values():
        pipe.send_bytes(np.ascontiguousarray(array).data.cast("B"))
