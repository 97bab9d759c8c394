"""A job: one run of a sweep with the commands that it has left, its state on the disk, and what follows from an exit
code. The same for every executor (`run/executors`); `run/worker.py` does the work.

Beside a run's own files there are
    job.json             every start of the run: where, when, how it ended
    minutes.json         the wall-clock minutes of all starts together
    log.txt              what the commands have printed
    .job.lock            held while a worker lives
    ../.cancel-<name>    asks the worker to have its command save and end, and everybody not to start the run
"""

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from semopo_tf.storage.files import FILES
from semopo_tf.storage.schema import read_object, unfit

THREAD_SETTINGS = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS")
LOST = 128 + signal.SIGKILL  # also the code of a run whose worker or node is gone
STOPPED = tuple(128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
SIGNALS_FROM = 128  # exit codes above are 128 plus a signal's number


class Outcome(NamedTuple):
    """What an exit code means for a sweep."""

    word: str
    retried: bool = False
    wait: float = 0.0  # seconds until the retry


# The rule of retries, for every executor. What would end in the same way again is not retried, and a full disk needs
# somebody who frees space.
OUTCOMES = {
    0: Outcome("done"),
    1: Outcome("failed"),
    2: Outcome("refused"),
    3: Outcome("refused"),
    4: Outcome("refused"),
    5: Outcome("failed"),
    6: Outcome("failed"),
    7: Outcome("no storage"),
    8: Outcome("locked", retried=True, wait=15.0),
    9: Outcome("no device", retried=True, wait=30.0),
    **dict.fromkeys(STOPPED, Outcome("stopped", retried=True, wait=1.0)),
}
KILLED = Outcome("killed", retried=True, wait=1.0)  # by any other signal


def outcome(code: int) -> Outcome:
    """What follows from an exit code."""
    return OUTCOMES.get(code, KILLED if code > SIGNALS_FROM else OUTCOMES[1])


class Command(NamedTuple):
    """A command of Python with its arguments, and the files that it writes into the run directory."""

    words: tuple[str, ...]
    leaves: tuple[str, ...]


def left(logdir: Path, commands: Iterable[Command]) -> list[Command]:
    """The commands still to run, from the first whose files are not all there."""

    def finished(command: Command) -> bool:
        return all((logdir / name).exists() for name in command.leaves)

    return list(itertools.dropwhile(finished, commands))


class Job(NamedTuple):
    """A run as a worker gets it, on whichever machine."""

    name: str
    logdir: Path
    directory: Path  # absolute, where the worker starts; other paths may be relative to it
    executor: str
    threads: int  # of one run: the last digits depend on them, so they are the same on every machine
    commands: tuple[Command, ...]  # one after the other

    def to_json(self) -> str:
        return json.dumps(self._asdict(), default=str)

    @staticmethod
    def from_json(text: str) -> "Job":
        values = json.loads(text)
        commands = tuple(Command(tuple(words), tuple(leaves)) for words, leaves in values["commands"])
        paths = {key: Path(values[key]) for key in ("logdir", "directory")}
        return Job(**values | paths | {"commands": commands})


def launch(job: Job) -> subprocess.Popen[bytes]:
    """Start a worker for a job. It is killed with this process and hears no signal of this process's terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "semopo_tf.run.worker", job.to_json(), str(os.getpid())],
        cwd=job.directory,
        env=os.environ | dict.fromkeys(THREAD_SETTINGS, str(job.threads)),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def exit_code(returned: int) -> int:
    """The exit code from what `subprocess` returns: 128 plus the signal's number where one has ended the process."""
    return returned if returned >= 0 else SIGNALS_FROM - returned


# --- the state on the disk --------------------------------------------------------------------------------------------

START = {"executor": str, "host": str, "pid": int, "started": str, "ended": object, "code": object}


def starts(logdir: Path) -> list[dict[str, Any]]:
    """Every start of a run, oldest first: {executor, host, pid, started, ended, code}; the last two None before its end
    and after a kill.

    Raises:
      DataError: when `job.json` is damaged.
    """
    path = logdir / "job.json"
    if not path.exists():
        return []
    remedy = "remove it: it holds no results"
    return read_object(path, lambda value: unfit(value, {"starts": [START]}), remedy)["starts"]


def read_minutes(logdir: Path) -> float:
    """Measured wall-clock minutes of all starts of a run so far."""
    path = logdir / "minutes.json"
    return json.loads(path.read_text()) if path.exists() else 0.0


def running(logdir: Path) -> bool:
    """Whether a worker lives in a run directory, on any machine that shares it."""
    try:
        descriptor = os.open(logdir / ".job.lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    with FILES.closing(descriptor):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def cancel_mark(logdir: Path) -> Path:
    """The file that asks to end a run, or not to begin it. Beside the directory, which may not be there yet."""
    return logdir.with_name(f".cancel-{logdir.name}")


def state(logdir: Path) -> str:
    """A run's state in a word or two: running, stopping, cancelled, lost, or what the last exit code means; empty where
    no worker has been here.
    """
    cancelled = cancel_mark(logdir).exists()
    if running(logdir):
        return "stopping" if cancelled else "running"
    if cancelled:
        return "cancelled"
    before = starts(logdir)
    if not before:
        return ""
    return "lost" if before[-1]["code"] is None else outcome(before[-1]["code"]).word
