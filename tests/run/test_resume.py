"""Two runs of one seed write the same bytes, and a killed run that is started again does too."""

import functools
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import synthetic
import tensorflow as tf
from synthetic import Still

import semopo_tf
from semopo_tf import training
from semopo_tf.engine.loop import StageLoop
from semopo_tf.run import checkpoints
from semopo_tf.storage.records import Records, read_records

ROOT = Path(__file__).parents[2]
STEPS = ("--steps.model", "24", "--steps.policy", "24", "--save_every", "6", "--video.every", "0")
LAST = "ckpt-policy-000000024"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic.dataset(tmp_path_factory.mktemp("data"))


def train(data: Path, logdir: Path, *more: str) -> Path:
    assert training.main(synthetic.train_flags(data, logdir, *STEPS, *more)) == 0
    return logdir


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("runs") / "uninterrupted")


def fingerprint(logdir: Path) -> tuple[str, str]:
    """Digests of the final weights, optimiser state included, and of the metrics."""
    return tuple(
        hashlib.sha256((logdir / name).read_bytes()).hexdigest() for name in (f"{LAST}/tensors.npz", "metrics.jsonl")
    )


def start(flags: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "train.py", *flags], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def kill_when_there_is(path: Path, process: subprocess.Popen) -> None:
    """SIGKILL the process as soon as `path` exists; it must still be running then."""
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, "the run ended before the kill"
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def kill_twice_and_finish(data: Path, logdir: Path, *more: str) -> None:
    """A run of one update a call, killed once in each phase and started again."""
    flags = synthetic.train_flags(data, logdir, *STEPS, "--updates_per_call", "1", *more)
    kill_when_there_is(logdir / "ckpt-model-000000012", start(flags))
    assert not (logdir / "DONE").exists()
    kill_when_there_is(logdir / "ckpt-policy-000000006", start(flags))
    rows = read_records(logdir / "metrics.jsonl")
    assert rows[-1]["phase"] == "policy"
    assert start(flags).wait() == 0
    assert (logdir / "DONE").exists()


@pytest.mark.full
@pytest.mark.parametrize(
    "flags", [("--jit", "partial"), ("--jit", "full"), ("--precision", "mixed_float16"), ("--remat", "8")], ids=" ".join
)
def test_R01_a_killed_run_ends_with_the_same_bytes_however_it_computes(data, tmp_path, flags):
    one, again = (train(data, tmp_path / name, *flags) for name in ("one", "again"))
    kill_twice_and_finish(data, tmp_path / "killed", *flags)
    assert fingerprint(one) == fingerprint(again) == fingerprint(tmp_path / "killed")


def test_R12_R13_frames_on_the_host_and_disturbed_generators_give_the_same_bytes(
    data, uninterrupted, tmp_path, capsys, monkeypatch
):
    def disturbed(loop, step, updates):
        np.random.seed(step)  # noqa: NPY002
        random.seed(step)
        if step == 0:  # it empties the cache of kernels, which costs a second
            tf.random.set_seed(step)
        return run(loop, step, updates)

    run = StageLoop.run
    monkeypatch.setattr(StageLoop, "run", disturbed)
    logdir = train(data, tmp_path / "host", "--replay", "host")
    assert "frames on the host" in capsys.readouterr().out
    assert fingerprint(logdir) == fingerprint(uninterrupted)


class Stopped(Exception):
    """What ends a run in the middle, inside this process."""


class Traces:
    """Stands in for `tf.function` and counts how often each function of the package is traced."""

    def __init__(self, function):
        self._function, self.counts = function, []

    def __call__(self, traced=None, **options):
        if not getattr(traced, "__module__", "").startswith("semopo_tf"):
            return self._function(traced, **options)
        place = len(self.counts)
        self.counts.append([traced.__qualname__, 0])

        @functools.wraps(traced)
        def count(*args):
            self.counts[place][1] += 1
            return traced(*args)

        return self._function(count, **options)


@pytest.mark.parametrize(
    "jit", ["off", pytest.param("partial", marks=pytest.mark.full), pytest.param("full", marks=pytest.mark.full)]
)
def test_N09_every_function_is_traced_once_in_a_run_and_once_more_after_a_restart(data, tmp_path, monkeypatch, jit):
    """With evaluations, held-out metrics, reports and chunks of changing size; each start counts for itself."""
    semopo_tf.register("still", Still)
    still = ("--task", "still", "--eval.every", "6", "--eval.final_episodes", "2")
    flags = synthetic.train_flags(
        data, tmp_path / "run", *STEPS[:-2], "--video.every", "12", "--jit", jit, "--valid_fraction", "0.3", *still
    )
    saved = []

    def stop_at_the_second_policy_checkpoint(logdir, phases, keep):
        saved.append(None)
        if len(saved) == 6:
            raise Stopped
        return []

    function = tf.function
    with monkeypatch.context() as patched:
        patched.setattr(tf, "function", traces := Traces(function))
        patched.setattr(checkpoints, "prune", stop_at_the_second_policy_checkpoint)
        with pytest.raises(Stopped):
            training.main(flags)
    assert len(traces.counts) >= 7  # two stages of two functions each, validation, evidence, acting
    with monkeypatch.context() as patched:
        patched.setattr(tf, "function", again := Traces(function))
        assert training.main(flags) == 0
    for counts in (traces.counts, again.counts):
        assert [name for name, count in counts if count > 1] == []
    assert len(read_records(tmp_path / "run" / "scores.jsonl")) == 2


@pytest.mark.full
def test_N09_memory_files_and_threads_stay_flat_over_twenty_thousand_updates(data, tmp_path, monkeypatch):
    """Resident memory, descriptors and threads at every metrics row of a run with validation, checkpoints and
    TensorBoard.
    """
    resident, held = [], []

    def note(records, row):
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
        held.append(tuple(len(list(Path("/proc/self", name).iterdir())) for name in ("fd", "task")))
        append(records, row)

    append = Records.append
    monkeypatch.setattr(Records, "append", note)
    steps = ("--steps.model", "10000", "--steps.policy", "10000", "--batch.size", "2", "--batch.length", "2")
    often = ("--log_every", "50", "--save_every", "1000", "--valid_fraction", "0.3", "--video.every", "0")
    assert training.main(synthetic.train_flags(data, tmp_path / "run", *steps, *often)) == 0
    for phase in np.split(np.array(resident), 2):  # from a fifth of each phase to its end
        assert phase[-10:].mean() - phase[len(phase) // 5 :][:10].mean() < 10
    for phase in np.split(np.array(held), 2):  # descriptors, threads; one row more or less may be open at that moment
        settled = phase[len(phase) // 5 :]
        assert (settled.max(0) - settled.min(0) <= 2).all()


def test_metrics_rows_stand_in_the_order_of_phase_and_step(uninterrupted):
    rows = read_records(uninterrupted / "metrics.jsonl")
    assert [(row["phase"], row["step"]) for row in rows] == [
        (phase, step) for phase in ("model", "policy") for step in range(4, 25, 4)
    ]


def test_another_seed_gives_other_weights_and_metrics(data, uninterrupted, tmp_path):
    """In the model phase; the streams of the policy phase come from the same seed."""
    logdir = tmp_path / "other"
    steps = (*STEPS[:2], "--steps.policy", "0", *STEPS[4:])
    assert training.main(synthetic.train_flags(data, logdir, *steps, "--seed", "2")) == 0
    ours, theirs = (checkpoints.load(run / "ckpt-model-000000024").tensors for run in (logdir, uninterrupted))
    same = [name for name in theirs if ours[name].size > 1 and np.array_equal(ours[name], theirs[name])]
    assert all(theirs[name].std() == 0 for name in same)  # zeros and ones of layers that have not learned yet
    assert any(name.startswith("model/") for name in theirs.keys() - set(same))
    rows, others = (read_records(run / "metrics.jsonl")[0] for run in (logdir, uninterrupted))
    assert rows != others


def test_R05_a_finished_run_is_not_done_again(data, uninterrupted, capsys):
    before = fingerprint(uninterrupted)
    assert training.main(synthetic.train_flags(data, uninterrupted, *STEPS)) == 0
    assert "complete" in capsys.readouterr().out
    assert fingerprint(uninterrupted) == before
