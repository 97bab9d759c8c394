"""A worker and its job: what it leaves on the disk, and that it never outlives its parent. And the rule of retries."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from workers import ROOT, WAITS, child_of, job_of, leaves, lives, log, until

from semopo_tf import errors
from semopo_tf.errors import DataError
from semopo_tf.run import executors
from semopo_tf.run.executors import run_jobs
from semopo_tf.run.executors.local import Local
from semopo_tf.run.jobs import (
    LOST,
    OUTCOMES,
    Job,
    cancel_mark,
    launch,
    outcome,
    read_minutes,
    running,
    starts,
    state,
)

LOCKED = 8


def test_a_job_survives_the_way_to_a_worker(tmp_path):
    job = job_of(tmp_path / "a b", "print('x')", 'y = "\'"')
    assert Job.from_json(job.to_json()) == job


def test_a_worker_runs_what_is_left_and_writes_how_it_ended(tmp_path):
    logdir = tmp_path / "run"
    job = job_of(logdir, leaves(logdir, 0), "raise SystemExit(3)", leaves(logdir, 2))
    assert launch(job).wait() == 3
    assert (logdir / "0").exists() and not (logdir / "2").exists()
    (first,) = starts(logdir)
    assert first["code"] == 3 and first["executor"] == "local" and first["ended"] >= first["started"]
    assert state(logdir) == "refused" and not running(logdir)
    job = job_of(logdir, leaves(logdir, 0), leaves(logdir, 1), "import os; print(os.environ['OMP_NUM_THREADS'])")
    assert launch(job).wait() == 0
    assert [each["code"] for each in starts(logdir)] == [3, 0]
    lines = [line for line in log(logdir).splitlines() if not line.startswith("sweep: ")]
    assert lines == ["command 0", "command 1", "1"]  # the first was not run twice
    assert re.findall(r"^sweep: start (\d) on \S+ \(local\), ", log(logdir), re.MULTILINE) == ["1", "2"]
    assert read_minutes(logdir) >= 0


def test_a_worker_dies_with_its_parent_and_its_command_with_it(tmp_path):
    logdir = tmp_path / "run"
    code = (
        f"from semopo_tf.run import jobs; jobs.launch(jobs.Job.from_json({job_of(logdir, WAITS).to_json()!r})).wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    until(lambda: "begun" in log(logdir))
    worker = child_of(parent.pid)
    command = child_of(worker)
    assert running(logdir) and state(logdir) == "running" and starts(logdir)[0]["pid"] == worker
    parent.kill()
    parent.wait()
    until(lambda: not lives(worker) and not lives(command))
    assert not running(logdir) and state(logdir) == "lost"


def test_a_killed_worker_takes_its_command_along_and_a_killed_command_is_told(tmp_path):
    logdir = tmp_path / "run"
    worker = launch(job_of(logdir, WAITS))
    until(lambda: "begun" in log(logdir))
    command = child_of(worker.pid)
    worker.kill()
    assert worker.wait() == -signal.SIGKILL
    until(lambda: not lives(command))
    worker = launch(job_of(logdir, WAITS))
    until(lambda: log(logdir).count("begun") == 2)
    os.kill(child_of(worker.pid), signal.SIGKILL)
    assert worker.wait() == LOST
    assert [each["code"] for each in starts(logdir)] == [None, LOST] and state(logdir) == "killed"


def test_a_second_worker_is_refused(tmp_path, capfd):
    logdir = tmp_path / "run"
    first = launch(job_of(logdir, WAITS))
    until(lambda: "begun" in log(logdir))
    assert launch(job_of(logdir, WAITS)).wait() == LOCKED
    assert f"locked error (exit 8): the run {logdir} is in use by process {first.pid}" in capfd.readouterr().err
    first.terminate()
    assert first.wait() == 128 + signal.SIGTERM and len(starts(logdir)) == 1


SAVES = """
import signal, sys, time
def save(*_):
    print('saved', flush=True)
    time.sleep(2)  # a second signal would come now
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print('begun', flush=True)
while True: time.sleep(0.1)
"""


@pytest.mark.parametrize("asked", ["signals", "mark"])
def test_a_command_is_asked_once_to_save_and_nothing_runs_after_it(tmp_path, asked):
    logdir = tmp_path / "run"
    worker = launch(job_of(logdir, SAVES, leaves(logdir, 1)))
    until(lambda: "begun" in log(logdir))
    if asked == "mark":
        cancel_mark(logdir).touch()
    else:
        for _ in range(2):
            worker.terminate()
            time.sleep(1.2)
    assert worker.wait() == 143
    assert log(logdir).count("saved") == 1 and not (logdir / "1").exists()
    assert state(logdir) == ("cancelled" if asked == "mark" else "stopped")
    if asked == "mark":
        assert launch(job_of(logdir, leaves(logdir))).wait() == 143  # it does not even begin
        assert not (logdir / "0").exists()


def test_a_damaged_state_is_one_line(tmp_path):
    (tmp_path / "job.json").write_text('{"starts": [{"code": 1}]}')
    with pytest.raises(DataError, match=r"job.json: missing starts.0.executor.*; remove it: it holds no results"):
        starts(tmp_path)


# --- the rule of retries ----------------------------------------------------------------------------------------------


def test_every_exit_code_has_a_line_in_the_rule():
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    codes = {code for each in classes if isinstance(code := getattr(each, "exit_code", None), int)}
    of_a_run = codes - {errors.SweepError.exit_code}
    assert of_a_run | {0, 129, 130, 143} == set(OUTCOMES)
    assert {code for code in OUTCOMES if outcome(code).retried} == {8, 9, 129, 130, 143}
    assert outcome(LOST).retried and outcome(128 + signal.SIGSEGV).retried and outcome(LOST).word == "killed"
    assert not outcome(77).retried  # of a strange command


def test_the_rule_is_the_one_of_the_documentation():
    table = (ROOT / "docs/sweeps.md").read_text().split("| exit code | state | retried |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    documented = {int(code): row[1:] for row in rows for code in re.findall(r"\d+", row[0])}
    assert documented.pop(LOST) == ["killed", "after 1 s"]
    shown = {code: [each.word, f"after {each.wait:.0f} s" if each.retried else "no"] for code, each in OUTCOMES.items()}
    assert documented == shown


class Once:
    """Scripts that end in another way the first time."""

    def __init__(self, tmp_path):
        self.folder = tmp_path

    def __call__(self, name: str, first: str, then: str = "") -> Job:
        logdir = self.folder / name
        script = (
            f"import os, signal, sys\nif os.path.exists({str(logdir / 'again')!r}):\n    {then or leaves(logdir)}\n"
        )
        script += f"else:\n    open({str(logdir / 'again')!r}, 'w')\n    {first}"
        return job_of(logdir, script)


@pytest.fixture
def once(tmp_path):
    return Once(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """No waiting before retries."""
    monkeypatch.setattr(executors, "REFRESH_SECONDS", 0.05)
    monkeypatch.setattr(executors, "outcome", lambda code: outcome(code)._replace(wait=0.0))


def test_runs_go_on_while_others_fail_and_each_is_retried_by_the_rule(once, quick, capsys):
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    jobs = [
        once("killed", kill),
        once("killed_twice", kill, kill),
        once("locked", "sys.exit(8)"),
        once("no_device", "sys.exit(9)"),
        once("refused", "sys.exit(2)"),
        once("full_disk", "sys.exit(7)"),
        once("worker", "os.kill(os.getppid(), signal.SIGKILL)"),
        once("fine", leaves(once.folder / "fine")),
    ]
    seen = []
    unfinished = run_jobs(jobs, Local(3), 1, lambda given, failed: seen.append((len(given), dict(failed))))
    assert unfinished == {
        "killed_twice": "killed, exit code 137",
        "refused": "refused, exit code 2",
        "full_disk": "no storage, exit code 7",
    }
    codes = {job.name: [each["code"] for each in starts(job.logdir)] for job in jobs}
    assert codes == {
        "killed": [137, 0],
        "killed_twice": [137, 137],
        "locked": [8, 0],
        "no_device": [9, 0],
        "refused": [2],
        "full_disk": [7],
        "worker": [None, 0],
        "fine": [0],
    }
    assert max(number for number, _ in seen) == 3 and seen[-1] == (0, unfinished)
    printed = capsys.readouterr().out
    assert re.search(r"^killed: killed, exit code 137 on \S+, start 1; retry 1 of 1$", printed, re.MULTILINE)
    # The same command later goes on with what is not done.
    later = [job for job in jobs if job.name in unfinished and job.name != "killed_twice"]
    assert run_jobs(later, Local(3), 0, lambda *_: None) == {}


def test_no_retry_where_none_is_allowed(once, quick):
    assert run_jobs([once("locked", "sys.exit(8)")], Local(1), 0, lambda *_: None) == {"locked": "locked, exit code 8"}


def test_a_cancelled_job_is_not_retried_and_the_next_does_not_begin(tmp_path, quick, monkeypatch):
    jobs = [job_of(tmp_path / name, WAITS) for name in ("one", "two")]

    def show(given, failed):
        if "begun" in log(tmp_path / "one"):
            for job in jobs:
                cancel_mark(job.logdir).touch()

    monkeypatch.setattr(executors, "SHOW_SECONDS", 0.0)
    assert run_jobs(jobs, Local(1), 2, show) == {"one": "cancelled", "two": "cancelled"}
    assert not (tmp_path / "two").exists()
    assert json.loads((tmp_path / "one/job.json").read_text())["starts"][0]["code"] == 143


def test_an_interrupted_sweep_ends_its_local_workers(tmp_path, quick):
    job = job_of(tmp_path / "run", WAITS)

    def show(given, failed):
        until(lambda: "begun" in log(job.logdir))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([job], Local(1), 0, show)
    assert state(job.logdir) == "stopped" and not running(job.logdir)
