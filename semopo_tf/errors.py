"""Errors that a user can act on. Each class has an exit code; a message is one line: what, where, expected, received,
remedy.
"""

import argparse
import contextvars
import difflib
import errno
import io
import itertools
import os
import resource
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn


class SemopoError(Exception):
    """Base of all errors that end a command with one line on stderr instead of a traceback."""

    exit_code, kind = 1, "internal"


class ConfigError(SemopoError, ValueError):
    """A flag, overlay or configuration value is wrong."""

    exit_code, kind = 2, "configuration"


class DataError(SemopoError, ValueError):
    """A dataset, episode file or video folder is missing or wrong."""

    exit_code, kind = 3, "data"


class CheckpointError(SemopoError, ValueError):
    """A checkpoint is missing, damaged or belongs to another model."""

    exit_code, kind = 4, "checkpoint"


class NumericalError(SemopoError, ArithmeticError):
    """A loss, gradient or action is not finite."""

    exit_code, kind = 5, "numerical"


class SimulatorError(SemopoError, RuntimeError):
    """An environment or its rendering backend does not work."""

    exit_code, kind = 6, "simulator"


class StorageError(SemopoError, OSError):
    """A file cannot be written or read: permission, space, device."""

    exit_code, kind = 7, "storage"


class LockedError(SemopoError, RuntimeError):
    """Another process works in this directory."""

    exit_code, kind = 8, "locked"


class DeviceError(SemopoError, RuntimeError):
    """The requested device is not there or has too little memory."""

    exit_code, kind = 9, "device"


class SweepError(SemopoError, RuntimeError):
    """Some runs of a sweep failed; all others are done."""

    exit_code, kind = 10, "sweep"


# errno -> what is limited, the shell's command, `resource.RLIMIT_*`, the error to show.
ULIMITS: dict[int, tuple[str, str, int, type[SemopoError]]] = {
    errno.EMFILE: ("open files", "ulimit -n", resource.RLIMIT_NOFILE, StorageError),
    errno.EFBIG: ("the size of files, in bytes", "ulimit -f", resource.RLIMIT_FSIZE, StorageError),
    errno.EAGAIN: ("processes and threads", "ulimit -u", resource.RLIMIT_NPROC, DeviceError),
    errno.ENOMEM: ("address space, in bytes", "ulimit -v", resource.RLIMIT_AS, DeviceError),
}
UNMAPPED = ("failed to map segment", "cannot allocate memory", "Cannot allocate memory")  # what the loader says


class Stopped(Exception):
    """A signal ended a run after it was saved. No error: `run_command` prints the line and exits with `exit_code`, 128
    plus the signal.
    """

    def __init__(self, line: str, exit_code: int):
        super().__init__(line)
        self.exit_code = exit_code


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose complaints are `ConfigError`s, and which takes no abbreviated flag. In a flag of
    `type=Path`, `~` is the user's home.
    """

    def __init__(self, **settings: Any):
        super().__init__(**{"allow_abbrev": False} | settings)
        self.register("type", Path, _path_flag)

    def parse(self, argv: Sequence[str], **least: int) -> argparse.Namespace:
        """Parse a command line whose numbers have these least values. A flag that was not given may be None."""
        arguments = self.parse_args(argv)
        for flag, low in least.items():
            value = getattr(arguments, flag)
            if value is not None and value < low:
                raise ConfigError(f"--{flag}: expected at least {low}, received {value}")
        return arguments

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, but an unknown flag is told before one that is missing: it is the same one, misspelt."""
        words = sys.argv[1:] if args is None else list(args)
        flags = itertools.takewhile(lambda word: word != "--", words)
        for name in (word.partition("=")[0] for word in flags if word.startswith("--")):
            if not self._subparsers and name not in self._option_string_actions:
                near = difflib.get_close_matches(name, self._option_string_actions, n=1)
                self.error(f"{cut(name)}: unknown flag{f', did you mean {near[0]}?' if near else ''}")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; see --help")


def user_path(text: str | Path) -> Path:
    """A path of the command line or of a setting; `~` is the user's home.

    Raises:
      ConfigError: when there is no such home, as for a user of a container that has no account.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        problem = "`~` stands for a home, received one that this machine does not know"
        raise ConfigError(f"{cut(str(text))}: {problem}; write the path out or set HOME") from error


def _path_flag(text: str) -> Path:
    """`user_path` for argparse, which shows the message of no other error."""
    try:
        return user_path(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def cut(text: str, most: int = 60) -> str:
    """Truncate untrusted text to `most` characters for an error message."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def shown(value: Any) -> str:
    """The repr of an untrusted value, truncated for an error message."""
    try:
        return cut(repr(value))
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too large to print"


def one_line(error: SemopoError) -> str:
    """The line a user sees, e.g. `semopo_tf: data error (exit 3): walker/bad.npz: ...`."""
    message = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(str(error).split()))
    return f"semopo_tf: {error.kind} error (exit {error.exit_code}): {message}"


def of_the_shell(error: BaseException | None) -> SemopoError | None:
    """The error to show where a limit of the shell (`ulimit`) is what stands behind another one; None where none does.

    A file that cannot be opened because too many are open is a good file.
    """
    while error and not isinstance(error, LockedError):  # a lock that is taken says EAGAIN too
        if isinstance(error, OSError) and error.errno in ULIMITS and error.strerror == os.strerror(error.errno):
            what, command, kind, raised = ULIMITS[error.errno]
            soft, _ = resource.getrlimit(kind)
            if soft != resource.RLIM_INFINITY:
                where = f"{error.filename}: " if error.filename else ""
                return raised(
                    f"{where}expected a higher limit on {what}, received {command} {soft}; raise it and run again"
                )
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        unmapped = isinstance(error, ImportError) and any(words in str(error) for words in UNMAPPED)
        if limit != resource.RLIM_INFINITY and (unmapped or isinstance(error, MemoryError)):
            return DeviceError(
                f"expected a higher limit on address space, received ulimit -v {limit >> 10}; raise it and run again "
                f"({cut(' '.join(str(error).split()), 100)})"
            )
        error = error.__cause__
    return None


# Whether this process was started as a command. Only then may anything here end it.
_command = contextvars.ContextVar("_command", default=False)


def is_command() -> bool:
    """Whether this process was started as a command, which `run_command` runs; else somebody's Python calls."""
    return _command.get()


def run_command(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> None:
    """Run a command-line front and leave the process with its documented exit code.

    Args:
      main: takes the arguments without the program name; returns an exit code or None for 0.
      argv: defaults to `sys.argv[1:]`. `--debug` anywhere is taken out and shows the full traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold what the locale cannot print
    token = _command.set(True)
    os.environ.pop("MPLBACKEND", None)  # a command shows no picture; TensorFlow's import ends at an unknown backend
    os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")  # pygame, in a user's environment, would swallow SIGTERM
    if any(option.startswith("error") for option in sys.warnoptions):  # it would end the import of TensorFlow
        warnings.simplefilter("ignore")
    try:
        sys.exit(main(argv) or 0)
    except SemopoError as error:
        if debug:
            raise
        error = of_the_shell(error) or error
        line, code = one_line(error), error.exit_code
    except Stopped as stopped:
        line, code = f"semopo_tf: {stopped}", stopped.exit_code
    except KeyboardInterrupt:
        line, code = "semopo_tf: interrupted; the same command goes on from what is saved", 130
    except MemoryError as error:
        wanted, code = " ".join(str(error).split()) or "no size given", DeviceError.exit_code
        remedy = "end other programs, or lower what is held at once (--help)"
        line = f"semopo_tf: main memory is exhausted ({wanted}); {remedy}"
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): redirect stdout, so that the interpreter's last flush is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (OSError, ImportError) as error:
        limited = of_the_shell(error)
        if debug or not limited:
            raise
        line, code = one_line(limited), limited.exit_code
    finally:
        _command.reset(token)
    print(line, file=sys.stderr)
    sys.exit(code)
