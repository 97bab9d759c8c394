"""What batch systems, shells and notebooks do to a run: signals to a whole job, a kernel that must live on, directories
that may only be read.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import synthetic
import victims
from synthetic import Still

import semopo_tf
from semopo_tf import evaluation, training
from semopo_tf.errors import ConfigError, DataError, DeviceError, Stopped, StorageError, is_command, run_command
from semopo_tf.run.directory import require_growing, require_writable
from semopo_tf.run.stopping import Stop, listening
from semopo_tf.storage import child, video
from semopo_tf.storage.records import read_records

ROOT = Path(__file__).parents[2]
TASK = ("--task", "dmc_cartpole_balance", "--env.size", "16", "--eval.every", "8", "--eval.episodes", "2")
STEPS = ("--steps.model", "8", "--steps.policy", "8", "--updates_per_call", "1", "--video.every", "0")
HELPER = "import time; print('ready', flush=True); time.sleep(60)"


@pytest.fixture(scope="module")
def server():
    return victims.Server()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic.dataset(tmp_path_factory.mktemp("data") / "cartpole", size=16, action_size=1)


def children(process: int) -> list[int]:
    """The simulators that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == process and b"envs.suite" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except (OSError, IndexError):  # it has ended
            continue
    return found


def during_an_evaluation(server, data: Path, logdir: Path):
    """A run that plays in two simulators, and their processes."""
    flags = synthetic.train_flags(data, logdir, *STEPS, *TASK, "--eval.environments", "2")
    victim = server.start(flags, logdir.with_suffix(".txt"))
    assert victims.wait_for(lambda: len(children(victim.pid)) == 2, victim)
    return flags, victim, children(victim.pid)


# --- 7: signals to all processes of a job -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "first"),
    [(signal.SIGTERM, "helpers"), (signal.SIGTERM, "run"), (signal.SIGKILL, "helpers"), (signal.SIGHUP, "helpers")],
)
def test_I07_a_stop_of_the_whole_job_saves_whichever_process_dies_first(server, data, tmp_path, number, first):
    """With SIGKILL only the simulators are killed, and the run is asked to stop a little later."""
    flags, victim, helpers = during_an_evaluation(server, data, tmp_path / "run")
    asked = signal.SIGTERM if number == signal.SIGKILL else number
    for process in [*helpers, victim.pid] if first == "helpers" else [victim.pid, *helpers]:
        os.kill(process, asked if process == victim.pid else number)
        time.sleep(0.3)
    said = tmp_path / "run.txt"
    assert victims.ended(victim) == 128 + asked, said.read_text()
    assert f"stopped by {asked.name} at policy update 8, which is saved" in said.read_text()
    assert (tmp_path / "run" / "ckpt-policy-000000008").is_dir()
    if number != signal.SIGKILL:
        assert "discarded" not in said.read_text()
    if (number, first) == (signal.SIGTERM, "helpers"):
        assert victims.ended(server.start(flags, said)) == 0
        rows = [row for row in read_records(tmp_path / "run" / "metrics.jsonl") if "eval_return" in row]
        assert [(row["step"], row["eval_episodes"], row["eval_discarded"]) for row in rows] == [(8, 2, 0)]


def test_I07_a_helper_hears_no_signal_that_is_meant_for_the_run():
    helper = child.Child([sys.executable, "-c", HELPER], output=True)
    assert helper.read(5, 30) == b"ready"
    for number in child.FOR_THE_PARENT:
        helper.process.send_signal(number)
    time.sleep(0.1)
    assert helper.process.poll() is None
    helper.close()
    assert helper.process.returncode == -signal.SIGKILL
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(child.FOR_THE_PARENT)


def test_I07_a_dead_helper_is_blamed_only_if_no_signal_comes_for_this_process(monkeypatch):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        helper = child.Child([sys.executable, "-c", HELPER], output=True)
        helper.process.kill()
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        code, _ = helper.ended()
        assert (code, heard) == (-signal.SIGKILL, [signal.SIGTERM])
        helper.close()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_I07_the_encoder_of_videos_hears_none_either(monkeypatch):
    """It would end early and leave half a video."""
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **options):
            started.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
            super().__init__(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    video.encode_mp4(synthetic.episode(0, records=4, size=16).image)
    assert set(child.FOR_THE_PARENT) <= set(started[-1])


# --- 11: notebooks ----------------------------------------------------------------------------------------------------


def test_I11_only_a_command_is_a_command():
    seen = []
    with pytest.raises(SystemExit):
        run_command(lambda argv: seen.append(is_command()), [])
    assert (seen, is_command()) == ([True], False)


@pytest.mark.parametrize(
    ("number", "error", "said"),
    [
        (signal.SIGINT, KeyboardInterrupt, None),
        (signal.SIGTERM, Stopped, "ended by SIGTERM; the same command goes on from what is saved"),
        (signal.SIGHUP, Stopped, "ended by SIGHUP; the same command goes on from what is saved"),
    ],
)
def test_I11_in_a_notebook_a_signal_is_an_exception_and_a_save_comes_first(number, error, said):
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    wakeup = signal.set_wakeup_fd(-1)
    try:
        with pytest.raises(error, match=said), listening(command=False):
            os.kill(os.getpid(), number)
            time.sleep(5)
        with listening(command=False) as stop:
            stop.unsaved()
            os.kill(os.getpid(), number)
            assert stop.signal == number
            os.kill(os.getpid(), number)  # within a second: the same request
            with pytest.raises(Stopped, match=f"stopped by {signal.Signals(number).name} at step 3, which is saved"):
                stop.settled("step 3")
            stop._first_heard -= 2
            stop.unsaved()
            with pytest.raises(error):  # a second request
                os.kill(os.getpid(), number)
                time.sleep(5)
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(number, before)
        signal.set_wakeup_fd(wakeup)


def test_I11_training_in_a_notebook_saves_at_an_interrupt_and_goes_on(data, tmp_path, monkeypatch):
    """TensorFlow is awake, and Python is not a command: the interrupt comes in the middle of a call."""
    from semopo_tf.engine.loop import StageLoop

    run = StageLoop.run

    def interrupted(loop, step, updates):
        chunk = run(loop, step, updates)
        if (loop.stage.name, step) == ("model", 3):
            os.kill(os.getpid(), signal.SIGINT)
        return chunk

    flags = synthetic.train_flags(data, tmp_path / "run", *STEPS)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(StageLoop, "run", interrupted)
            with pytest.raises(Stopped, match="stopped by SIGINT at model update 4, which is saved") as caught:
                main_of_the_toy(flags)
        assert caught.value.exit_code == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert main_of_the_toy(flags) == 0
    assert (tmp_path / "run" / "DONE").exists()


def main_of_the_toy(flags):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("semopo_tf.run.trainer.Trainer.__init__.__kwdefaults__", {"make_learner": victims.Toy})
        return training.main(flags)


# --- 17: a refused start ----------------------------------------------------------------------------------------------


def files_of(logdir: Path) -> set[str]:
    return {path.name for path in logdir.iterdir()} - {".lock"} if logdir.is_dir() else set()


def test_I17_a_refused_start_leaves_nothing_that_refuses_its_own_remedy(data, tmp_path, monkeypatch):
    semopo_tf.register("still", Still)
    logdir = tmp_path / "run"
    refused = [
        (DataError, ("--batch.length", "50"), "lower --batch.length"),
        (ConfigError, ("--encoder.kernels", "4,4,4,4,4"), "kernels"),
        (DeviceError, ("--device", "gpu:7"), "use --device cpu"),
        (DataError, ("--task", "still", "--eval.final_episodes", "1"), "correct --env.size"),
        (semopo_tf.CheckpointError, ("--world_model", str(tmp_path / "none")), "expected the logdir of a run"),
    ]
    kernels = ("--encoder.kernels", "4,4", "--decoder.kernels", "6,6")
    for error, flags, remedy in refused:
        others = () if flags[0].startswith("--encoder") else kernels
        with pytest.raises(error, match=remedy):
            training.main(synthetic.train_flags(data, logdir, *STEPS, *others, *flags))
        assert files_of(logdir) == set(), flags
    short = ("--steps.model", "1", "--steps.policy", "0", "--video.every", "0")
    assert training.main(synthetic.train_flags(data, logdir, *short, *kernels)) == 0


def test_I17_a_run_that_fails_before_its_first_checkpoint_may_be_started_otherwise(data, tmp_path, monkeypatch):
    """Too little memory shows at the first update; the remedy is another configuration."""
    from semopo_tf.engine.loop import StageLoop

    def exhausted(loop, step, updates):
        raise MemoryError("4 GB")

    logdir = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(DeviceError, match=r"lower --batch\.size"):
        patched.setattr(StageLoop, "run", exhausted)
        main_of_the_toy(synthetic.train_flags(data, logdir, *STEPS, "--batch.size", "4"))
    assert not {"config.yaml", "dataset_manifest.json"} & files_of(logdir)
    assert main_of_the_toy(synthetic.train_flags(data, logdir, *STEPS, "--batch.size", "2")) == 0


# --- 14: runs that may only be read -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    semopo_tf.register("still", Still)
    directory = tmp_path_factory.mktemp("trained")
    flags = ("--steps.model", "1", "--steps.policy", "1", "--video.every", "0", "--task", "still")
    assert training.main(synthetic.train_flags(synthetic.dataset(directory / "data"), directory / "run", *flags)) == 0
    return directory / "run"


@pytest.fixture
def read_only(trained, tmp_path):
    """The run, mounted such that nobody may write there, root included."""
    view = tmp_path / "view"
    view.mkdir()
    mounted = [["mount", "--bind", trained, view], ["mount", "-o", "remount,ro,bind", view]]
    if any(subprocess.run(command, capture_output=True).returncode for command in mounted):
        subprocess.run(["umount", view], capture_output=True)
        pytest.skip("this process may not mount")
    yield view
    subprocess.run(["umount", view], check=True)


def test_I14_evaluate_looks_before_it_plays_and_writes_elsewhere_when_told(read_only, tmp_path, monkeypatch, capsys):
    played = []
    monkeypatch.setattr(Still, "reset", lambda self, seed, reset=Still.reset: played.append(seed) or reset(self, seed))
    words = ["--logdir", str(read_only), "--episodes", "2", "--video"]
    with pytest.raises(
        StorageError,
        match=rf"^{re.escape(str(read_only))}: the directory of the results cannot be written \(Read-only file "
        r"system\); name a directory for the results with --out$",
    ):
        evaluation.main(words)
    assert played == []
    out = tmp_path / "new" / "results"
    assert evaluation.main([*words, "--out", str(out)]) == 0
    assert [row["return"] for row in read_records(out / "scores.jsonl")] == [
        5.0,
        5.0,
    ]  # the reward at reset does not count
    assert len(list((out / "videos").glob("*.mp4"))) == 2
    assert len(played) == 2


@pytest.mark.parametrize("taken", ["scores.jsonl", "videos"])
def test_I14_what_cannot_be_written_is_found_before_playing(trained, tmp_path, taken):
    """A directory in place of the scores, a file in place of the directory of videos."""
    (tmp_path / "scores.jsonl").mkdir() if taken == "scores.jsonl" else (tmp_path / "videos").touch()
    with pytest.raises(StorageError, match=rf"{taken}: .*cannot be written \(.*; name a directory .* with --out"):
        evaluation.main(["--logdir", str(trained), "--episodes", "1", "--video", "--out", str(tmp_path)])


def test_I14_a_look_leaves_nothing_behind(tmp_path):
    require_writable(tmp_path / "a" / "b", "x", "y")
    require_growing(tmp_path / "a" / "scores.jsonl", "y")
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["b"]
    assert Stop().signal is None
