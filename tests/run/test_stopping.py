"""What a signal does to this process and to a child process, without a run."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import semopo_tf
from semopo_tf.errors import Stopped, run_command
from semopo_tf.run.stopping import ENDING, SAVING, Interrupted, Interruptible, Stop, listening

ROOT = Path(semopo_tf.__file__).parents[1]


@pytest.fixture(autouse=True)
def nothing_ignored():
    """Independent of what started the tests: nohup ignores SIGHUP, and a shell ignores SIGINT for background jobs."""
    defaults = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int, condition) -> None:
    os.kill(os.getpid(), number)
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert condition()


def test_R07_a_signal_is_noted_where_something_is_unsaved_and_told_once_it_is_saved():
    with listening() as stop:
        stop.unsaved()
        send(signal.SIGTERM, lambda: stop.signal)
        os.kill(os.getpid(), signal.SIGINT)  # within a second: the same request
        time.sleep(0.05)
        with pytest.raises(
            Stopped, match=r"^stopped by SIGTERM at policy update 7, which is saved; the same command goes on$"
        ) as caught:
            stop.settled("policy update 7")
    assert caught.value.exit_code == 143


def test_R08_a_save_is_asked_for_once_and_stops_nothing():
    with listening() as stop:
        send(SAVING, lambda: stop._save)
        assert (stop.take_save(), stop.take_save(), stop.signal) == (True, False, None)
        stop.settled("anywhere")


def test_handlers_and_the_wakeup_descriptor_are_given_back():
    numbers = (*ENDING, SAVING)
    before = [signal.getsignal(number) for number in numbers]
    with listening():
        assert all(callable(signal.getsignal(number)) for number in ENDING)
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert "signals" not in [thread.name for thread in threading.enumerate()]


def test_what_the_caller_ignores_stays_ignored():
    """As nohup does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening() as stop:
            stop.unsaved()
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
            assert stop.signal is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_than_the_main_one_hears_nothing_and_sets_no_handler():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with listening() as stop:
            seen.append((stop.signal, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


CHILD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would have it ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup
from semopo_tf.run.stopping import listening
with listening() as stop:
    if sys.argv[1] == "unsaved":
        stop.unsaved()
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("signals", [1, 2])
def test_R08_R09_the_process_ends_at_once_where_nothing_is_unsaved_or_at_the_second_signal(number, signals):
    how = "saved" if signals == 1 else "unsaved"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, how], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    for left in reversed(range(signals)):
        child.send_signal(number)
        time.sleep(1.1 if left else 0)
    _, said = child.communicate(timeout=5)
    assert child.returncode == 128 + number
    assert said == f"semopo_tf: ended by {number.name}; the same command goes on from what is saved\n"


def test_a_stopped_command_leaves_with_its_line_and_its_code(capsys):
    def main(argv):
        raise Stopped("stopped by SIGHUP at model update 3, which is saved; the same command goes on", 129)

    with pytest.raises(SystemExit) as caught:
        run_command(main, [])
    assert caught.value.code == 129
    assert (
        capsys.readouterr().err
        == "semopo_tf: stopped by SIGHUP at model update 3, which is saved; the same command goes on\n"
    )


def test_an_evaluation_is_given_up_before_its_next_action():
    class Constant:
        def initial(self, episodes):
            return episodes

        def __call__(self, image, state, seeds, step):
            return np.full((1, 2), step), state + 1

    stop = Stop()
    policy = Interruptible(Constant(), stop)
    assert policy.initial(3) == 3
    action, state = policy(np.zeros((1, 8, 8, 3), np.uint8), 3, np.array([1]), 5)
    assert (action.tolist(), state) == ([[5, 5]], 4)
    stop.unsaved()
    stop.hear(signal.SIGTERM)
    with pytest.raises(Interrupted):
        policy(np.zeros((1, 8, 8, 3), np.uint8), 3, np.array([1]), 6)
