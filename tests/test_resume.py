"""Two runs of one seed write the same bytes, and a killed run that is started again does too."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import synthetic

from semopo_tf import training
from semopo_tf.run import read_records

ROOT = Path(__file__).parents[1]
STEPS = ("--steps.model", "24", "--steps.policy", "24", "--save_every", "6", "--video.every", "0")
LAST = "ckpt-policy-000000024"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic.dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    training.main(synthetic.train_flags(data, logdir, *STEPS))
    return logdir


def fingerprint(logdir: Path) -> tuple[str, str]:
    """Digests of the final weights, optimiser state included, and of the metrics."""
    return tuple(hashlib.sha256((logdir / name).read_bytes()).hexdigest() for name in (f"{LAST}/tensors.npz", "metrics.jsonl"))


def start(flags: list[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "train.py", *flags], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_when_there_is(path: Path, process: subprocess.Popen) -> None:
    """SIGKILL the process as soon as `path` exists; it must still be running then."""
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, "the run ended before the kill"
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_run_killed_in_both_phases_ends_with_the_same_bytes(data, uninterrupted, tmp_path):
    logdir = tmp_path / "killed"
    # Another chunk size than the uninterrupted run's: it changes no result either.
    flags = synthetic.train_flags(data, logdir, *STEPS, "--updates_per_call", "1")
    kill_when_there_is(logdir / "ckpt-model-000000012", start(flags))
    assert not (logdir / "DONE").exists()
    kill_when_there_is(logdir / "ckpt-policy-000000006", start(flags))
    rows = read_records(logdir / "metrics.jsonl")
    assert rows[-1]["phase"] == "policy"
    assert start(flags).wait() == 0
    assert (logdir / "DONE").exists()
    assert fingerprint(logdir) == fingerprint(uninterrupted)


def test_metrics_rows_stand_in_the_order_of_phase_and_step(uninterrupted):
    rows = read_records(uninterrupted / "metrics.jsonl")
    assert [(row["phase"], row["step"]) for row in rows] == [(phase, step) for phase in ("model", "policy") for step in range(4, 25, 4)]


def test_another_seed_gives_other_weights_and_metrics(data, uninterrupted, tmp_path):
    logdir = tmp_path / "other"
    training.main(synthetic.train_flags(data, logdir, *STEPS, "--seed", "2"))
    ours, theirs = fingerprint(logdir), fingerprint(uninterrupted)
    assert ours[0] != theirs[0]
    assert ours[1] != theirs[1]


def test_a_finished_run_is_not_done_again(data, uninterrupted, capsys):
    before = fingerprint(uninterrupted)
    assert training.main(synthetic.train_flags(data, uninterrupted, *STEPS)) == 0
    assert "complete" in capsys.readouterr().out
    assert fingerprint(uninterrupted) == before
