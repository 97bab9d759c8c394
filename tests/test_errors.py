"""How a command ends: the documented exit code and one line, or the whole traceback with --debug."""

import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest

import semopo_tf
from semopo_tf import errors
from semopo_tf.errors import CommandParser, ConfigError, DataError, SemopoError, one_line, run_command

ROOT = Path(semopo_tf.__file__).parents[1]
CODES = {
    "SemopoError": (1, "internal"),
    "ConfigError": (2, "configuration"),
    "DataError": (3, "data"),
    "CheckpointError": (4, "checkpoint"),
    "NumericalError": (5, "numerical"),
    "SimulatorError": (6, "simulator"),
    "StorageError": (7, "storage"),
    "LockedError": (8, "locked"),
    "DeviceError": (9, "device"),
    "SweepError": (10, "sweep"),
}


def ending(main, *argv) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as caught:
        run_command(main, list(argv))
    return caught.value.code


def failing(error):
    def main(argv):
        raise error

    return main


def test_every_error_class_has_its_code():
    found = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, SemopoError)
    }
    assert {name: (kind.exit_code, kind.kind) for name, kind in found.items()} == CODES


@pytest.mark.parametrize("name", CODES)
def test_an_error_ends_the_command_with_its_code_and_one_line(name, capsys):
    code, kind = CODES[name]
    assert ending(failing(getattr(errors, name)("walker/bad.npz: expected\n  8 records,\treceived 7"))) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"semopo_tf: {kind} error (exit {code}): walker/bad.npz: expected 8 records, received 7\n"


def test_the_line_of_an_error():
    assert (
        one_line(DataError("\x1b[2J\x00\udcff é")) == r"semopo_tf: data error (exit 3): \x1b[2J\x00\udcff é"
    )  # nothing that steers a terminal
    assert one_line(DataError("a: b")) == "semopo_tf: data error (exit 3): a: b"


def test_debug_shows_the_traceback_and_is_not_passed_on(capsys):
    received = []

    def main(argv):
        received.append(argv)
        raise ConfigError("wrong")

    with pytest.raises(ConfigError, match="wrong"):
        run_command(main, ["--seed", "1", "--debug", "--logdir", "x"])
    assert received == [["--seed", "1", "--logdir", "x"]]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_a_command_ends_with_what_it_returns(returned, code):
    assert ending(lambda argv: returned) == code


def test_an_interruption_ends_with_130_and_says_how_to_go_on(capsys):
    assert ending(failing(KeyboardInterrupt())) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("semopo_tf: interrupted; the same command ")


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(failing(ZeroDivisionError()), [])


def test_the_arguments_default_to_those_of_the_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "3"])
    received = []
    assert ending_of_process(received.extend) == 0
    assert received == ["--seed", "3"]


def ending_of_process(main) -> int:
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    return caught.value.code


def test_the_argument_parser_complains_with_our_error_and_takes_no_abbreviation():
    parser = CommandParser(prog="collect")
    parser.add_argument("--episodes", type=int)
    assert parser.parse_args(["--episodes", "3"]).episodes == 3
    for argv, message in (
        (["--episodes", "x"], "argument --episodes: invalid int value: 'x'"),
        (["--epis", "3"], r"--epis: unknown flag, did you mean --episodes\?"),
    ):
        with pytest.raises(ConfigError, match=f"^collect: {message}; see --help$"):
            parser.parse_args(argv)


def run(*argv, **settings):
    return subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=60, **settings)


def test_the_training_command_refuses_a_wrong_flag_in_one_line():
    done = run("train.py", "--sed", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "semopo_tf: configuration error (exit 2): --sed: unknown key, did you mean seed or eval.seed?\n"
    )


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_I24_help_of_the_training_command_lists_overlays_and_flags(flag):
    done = run("train.py", "--configs", "semopo", flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python train.py --configs METHOD")
    sizes = "sizes    small32, small, testbed, debug"
    for words in (sizes, "steps: {model: 25000, policy: 100000}", "continue_head: False"):
        assert words in done.stdout


@pytest.mark.parametrize("module", ["training", "evaluation"])
def test_I24_the_modules_are_the_commands_outside_of_the_repository(module):
    done = run("-m", f"semopo_tf.{module}", "--help")
    assert (done.returncode, done.stdout[:6]) == (0, "usage:")


def test_I24_pygame_does_not_take_sigterm_from_a_command(monkeypatch):
    """SDL's own handler would make an event of it that nobody reads."""
    monkeypatch.delenv("SDL_NO_SIGNAL_HANDLERS", raising=False)
    seen = []
    assert ending(lambda argv: seen.append(os.environ["SDL_NO_SIGNAL_HANDLERS"])) == 0
    assert seen == ["1"]


def test_the_training_command_shows_its_traceback_on_request():
    done = run("train.py", "--sed", "1", "--debug")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "ConfigError: --sed: unknown key" in done.stderr


def test_a_reader_that_has_gone_is_no_error():
    """As in `... | head`: the rest of the output has no reader."""
    script = (
        "from semopo_tf.errors import run_command\nrun_command(lambda argv: [print('x' * 1000, flush=True) for _ in "
        "range(1000)] and None)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("path", ["~/runs", "~nobody-of-this-name/runs"])
def test_I21_a_tilde_without_a_home_is_one_line(path, monkeypatch):
    def unknown(*_):
        raise KeyError("no such account")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    problem = "`~` stands for a home, received one that this machine does not know; write the path out or set HOME"
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {problem}")):
        errors.user_path(path)
    parser = CommandParser()
    parser.add_argument("--out", type=Path)
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {problem}")):
        parser.parse_args(["--out", path])
