"""`python -m semopo_tf.run.worker JOB PARENT`: run the commands that a job has left, one after the other. Started by
every executor, and by nobody else.

The worker dies with its parent, and the running command with the worker, also by SIGKILL: a retry meets no living twin.
Should it do so, as a killed node may die a little later than is heard of it, the lock refuses it (exit code 8).
SIGTERM, SIGINT and SIGHUP are passed on once, as SIGTERM; a training saves and ends then.
"""

import contextlib
import ctypes
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from semopo_tf.errors import StorageError, run_command
from semopo_tf.run.directory import require_writable
from semopo_tf.run.jobs import Command, Job, cancel_mark, exit_code, left, read_minutes, starts
from semopo_tf.storage.files import locked, write_whole

POLL_SECONDS, MINUTES_SECONDS = 0.5, 60.0
PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    """Work on a job.

    Args:
      argv: the job as JSON, and the process with which this one ends.

    Returns:
      The exit code of the last command; 128 plus the signal's number where one has ended it.

    Raises:
      StorageError: when the run directory cannot be written.
      LockedError: when a worker lives in it.
    """
    text, parent = argv
    die_with(int(parent))
    return Worker(Job.from_json(text)).run()


def die_with(parent: int) -> None:
    """Have this process killed when its parent ends, however that ends. Linux alone can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before we asked
        os.kill(os.getpid(), signal.SIGKILL)


class Worker:
    """Runs a job in its run directory."""

    def __init__(self, job: Job):
        self._job = job
        self._asked = 0  # the signal that asks to end

    def run(self) -> int:
        logdir = self._job.logdir
        require_writable(logdir, "the run directory", "free some space or choose another `out`")
        with locked(logdir / ".job.lock", wait=False, what=f"the run {logdir}"), self._listening():
            before = starts(logdir)
            begun = {"executor": self._job.executor, "host": socket.gethostname(), "pid": os.getpid()}
            begun |= {"started": _now(), "ended": None, "code": None}
            self._write("job.json", {"starts": [*before, begun]})
            code = self._commands(len(before) + 1)
            self._write("job.json", {"starts": [*before, begun | {"ended": _now(), "code": code}]})
        return code

    def _commands(self, start: int) -> int:
        logdir = self._job.logdir
        minutes, began = read_minutes(logdir), time.monotonic()
        with open(logdir / "log.txt", "ab", buffering=0) as log:
            with contextlib.suppress(OSError):  # on a full disk the command will say so
                log.write(f"sweep: start {start} on {socket.gethostname()} ({self._job.executor}), {_now()}\n".encode())
            for command in left(logdir, self._job.commands):
                code = self._one(command, log, lambda: minutes + (time.monotonic() - began) / 60)
                if code:
                    return code
        return 0

    def _one(self, command: Command, log: BinaryIO, minutes: Callable[[], float]) -> int:
        """Run a command to its end. Returns its exit code."""
        if self._ending():
            return 128 + self._asked
        child = subprocess.Popen(
            [sys.executable, *command.words],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            preexec_fn=functools.partial(die_with, os.getpid()),  # this process has one thread
        )
        told, noted = False, time.monotonic()
        while child.poll() is None:
            if self._ending() and not told:  # a second signal would end a training without saving
                child.terminate()
                told = True
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(POLL_SECONDS)
            if time.monotonic() - noted > MINUTES_SECONDS:
                noted = time.monotonic()
                self._write("minutes.json", round(minutes(), 2))
        self._write("minutes.json", round(minutes(), 2))
        return exit_code(child.returncode)

    def _ending(self) -> bool:
        """Whether a signal or `sweep cancel` asks to end."""
        if not self._asked and cancel_mark(self._job.logdir).exists():
            self._asked = signal.SIGTERM
        return self._asked != 0

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        def hear(number: int, _: Any) -> None:
            self._asked = self._asked or number

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, hear) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _write(self, name: str, value: Any) -> None:
        """Write a file of the job's state, if the disk takes it: the run itself says what a full disk means for it."""
        with contextlib.suppress(StorageError):
            write_whole(self._job.logdir / name, json.dumps(value).encode())


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


if __name__ == "__main__":
    run_command(main)
