"""Signals that stop a run or make it save. Needs no TensorFlow.

A Python signal handler runs between two steps of the interpreter, so never inside a compiled call that takes seconds.
The interpreter's own handler, in C, also writes the signal's number into a socket, and a thread that waits there reads
it at once.

    SIGINT, SIGTERM, SIGHUP    nothing unsaved: the process ends at once, like under SIGKILL, but with a message and
                               exit code 128 + number
                               otherwise: the trainer finishes its call, saves and exits; a second signal, more than a
                               second later, ends the process
    SIGUSR1                    the trainer saves and continues

That is for commands. Called from Python, a notebook say, a run must not end its caller's process: where a command ends
at once, an exception is raised in the main thread, `KeyboardInterrupt` for SIGINT and else `Stopped`.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import numpy as np

from semopo_tf.errors import Stopped
from semopo_tf.types import Policy

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAVING = signal.SIGUSR1
# One request may arrive as several signals: `timeout` and a terminal signal the whole group, then a parent its child.
ONE_REQUEST_SECONDS = 1.0


class Stop:
    """The requests that arrived as signals. `listening` fills it; one that nothing fills never stops a run.

    Args:
      end: what to do with a signal that no save must precede.
    """

    def __init__(self, end: Callable[[signal.Signals], None] | None = None) -> None:
        self._end = end or end_process
        self._lock = threading.Lock()
        self._unsaved = False
        self._save = False
        self._first_heard = 0.0
        self.signal: signal.Signals | None = None  # the one that asked the run to stop, if one did

    def unsaved(self) -> None:
        """From now on a signal must wait until the trainer has saved."""
        self._unsaved = True

    def settled(self, where: str) -> None:
        """Everything is saved: from now on a signal ends the process at once.

        Args:
          where: how far the run is, for the message.

        Raises:
          Stopped: when a signal has asked the run to stop.
        """
        with self._lock:
            self._unsaved = False
        if self.signal:
            raise Stopped(
                f"stopped by {self.signal.name} at {where}, which is saved; the same command goes on", 128 + self.signal
            )

    def take_save(self) -> bool:
        """Whether a save was asked for since the last call."""
        save, self._save = self._save, False
        return save

    def hear(self, number: int) -> None:
        """Act on a signal, in any thread; returns unless it ends the run at once."""
        if number == SAVING:
            self._save = True
        if number not in ENDING:
            return
        with self._lock:
            now = time.monotonic()
            if self._unsaved and self.signal is None:
                self.signal, self._first_heard = signal.Signals(number), now
            if self.signal and now - self._first_heard <= ONE_REQUEST_SECONDS:
                return
        self._end(signal.Signals(number))


def end_process(number: signal.Signals) -> NoReturn:
    """End the process without cleanup: files appear by rename, and the next start truncates the records."""
    with contextlib.suppress(OSError):
        os.write(2, f"semopo_tf: ended by {number.name}; the same command goes on from what is saved\n".encode())
    os._exit(128 + number)


def end_call(number: signal.Signals) -> NoReturn:
    """End the run, but not the process: raises in the main thread, out of a signal handler.

    Raises:
      KeyboardInterrupt: for SIGINT, as without a run.
      Stopped: for another signal.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(f"ended by {number.name}; the same command goes on from what is saved", 128 + number)


@contextlib.contextmanager
def listening(*, command: bool = True) -> Iterator[Stop]:
    """A `Stop` that receives this process's signals. Signals that the caller ignores (nohup) stay ignored.

    Only the main thread may set handlers; in any other thread it receives nothing.

    Args:
      command: whether a signal may end the process (`errors.is_command`).
    """
    stop = Stop(end_process if command else end_call)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    hear = (lambda *_: None) if command else (lambda number, _: stop.hear(number))
    with _wakeups(stop) if command else contextlib.nullcontext(), _handlers(hear):
        yield stop


@contextlib.contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Set a handler for all signals that are not ignored, and give back those of before."""
    before = {number: signal.getsignal(number) for number in (*ENDING, SAVING)}
    try:
        for number, old in before.items():
            if old is not signal.SIG_IGN:
                signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old or signal.SIG_DFL)


@contextlib.contextmanager
def _wakeups(stop: Stop) -> Iterator[None]:
    """A thread that hears a signal at once, also while the main thread is inside a compiled call."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    thread = threading.Thread(target=_listen, args=(ours, stop), name="signals", daemon=True)
    thread.start()
    descriptor = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        theirs.close()
        thread.join()
        ours.close()


def _listen(pipe: socket.socket, stop: Stop) -> None:
    while numbers := pipe.recv(64):
        for number in numbers:
            stop.hear(number)


class Interrupted(Exception):
    """An evaluation was abandoned; it will be played again from its beginning."""


class Interruptible:
    """A policy that raises `Interrupted` instead of acting once the run was asked to stop."""

    def __init__(self, policy: Policy, stop: Stop):
        self._policy, self._stop = policy, stop
        self.initial = policy.initial

    def __call__(self, image: np.ndarray, state: Any, seeds: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
        """See `types.Policy`. Raises Interrupted."""
        if self._stop.signal:
            raise Interrupted
        return self._policy(image, state, seeds, step)
