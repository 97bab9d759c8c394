"""Runs through submitit: its local executor with real runs, and the batch script for SLURM."""

import os
import re
import signal
import subprocess
import sys

import pytest
from workers import ROOT, WAITS, job_of, leaves, log, page, results, trainings, until

from semopo_tf import sweep
from semopo_tf.errors import ConfigError
from semopo_tf.run import executors
from semopo_tf.run.executors import run_jobs, slurm_jobs
from semopo_tf.run.executors.slurm_jobs import SlurmJobs
from semopo_tf.run.jobs import outcome, running, starts, state

LOCAL = ["--executor", "slurm", "--slurm", "cluster=local"]


@pytest.fixture
def quick(monkeypatch):
    """No waiting before retries."""
    monkeypatch.setattr(executors, "REFRESH_SECONDS", 0.05)
    monkeypatch.setattr(executors, "outcome", lambda code: outcome(code)._replace(wait=0.0))


def submitted(out, **parameters) -> SlurmJobs:
    return SlurmJobs(out, {"cluster": "local"} | parameters, processes=2, cpus=1, gpus=0)


def test_killed_jobs_are_retried_and_a_refused_one_is_not(tmp_path, quick):
    kill = "import os, signal; os.kill({}, signal.SIGKILL)"
    again = f"import os\nif not os.path.exists({str(tmp_path / 'mark')!r}): open({str(tmp_path / 'mark')!r}, 'w'); "
    jobs = [
        job_of(tmp_path / "out/killed", again + kill.format("os.getppid()").replace("import os, ", "import ")),
        job_of(tmp_path / "out/refused", "raise SystemExit(2)"),
    ]
    assert run_jobs(jobs, submitted(tmp_path / "out"), 1, lambda *_: None) == {"refused": "refused, exit code 2"}
    assert [each["code"] for each in starts(jobs[0].logdir)] == [None, 0]
    assert slurm_jobs.read_jobs(tmp_path / "out/slurm") == {}


def test_a_time_limit_saves_and_requeues(tmp_path, quick):
    """submitit sends SIGUSR2 some seconds before the limit; the worker must not hear it itself."""
    logdir = tmp_path / "out/run"
    first = f"import os, time\nif os.path.exists({str(logdir / 'saved')!r}): {leaves(logdir)}; raise SystemExit(0)\n"
    waits = f"""
import signal, sys
def save(*_):
    open({str(logdir / "saved")!r}, "w")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
time.sleep(600)
"""
    executor = submitted(tmp_path / "out", time=1, signal_delay_s=56)
    assert run_jobs([job_of(logdir, first + waits)], executor, 0, lambda *_: None) == {}
    assert [each["code"] for each in starts(logdir)] == [143, 0]


def test_jobs_outlive_the_command_and_it_attaches_to_them(tmp_path, quick, capsys):
    job = job_of(tmp_path / "out/run", WAITS.replace("600", "6"))

    def leave(given, failed):
        until(lambda: "begun" in log(job.logdir))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([job], submitted(tmp_path / "out"), 0, leave)
    assert "1 jobs go on without this command" in capsys.readouterr().out
    assert running(job.logdir) and list(slurm_jobs.read_jobs(tmp_path / "out/slurm")) == ["run"]
    assert run_jobs([job], submitted(tmp_path / "out"), 0, lambda *_: None) == {}
    assert re.match(r"run: attached to job \d+\n", capsys.readouterr().out)
    assert [each["code"] for each in starts(job.logdir)] == [0]


PROGRAMS = {  # what submitit calls of SLURM, for one array at a time
    "sbatch": """
echo "$1" >> {calls}/sbatch
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
for task in $(seq 0 "$last"); do
  SLURM_JOB_ID=$((70010 + task)) SLURM_ARRAY_JOB_ID=7001 SLURM_ARRAY_TASK_ID=$task setsid bash "$1" > /dev/null 2>&1 &
done
echo "Submitted batch job 7001"
""",
    "srun": """
while [ "${{1#--}}" != "$1" ]; do
  case "$1" in --output|--error) shift 2;; *) shift;; esac
done
exec "$@"
""",
    "sacct": "echo 'JobID|State|NodeList'; for task in 0 1 2; do echo \"7001_$task|RUNNING|node\"; done",
    "scancel": 'echo "$@" >> {calls}/scancel',
}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Stand-ins for SLURM's programs. Returns where they note their calls."""
    folder, calls = tmp_path / "programs", tmp_path / "calls"
    folder.mkdir()
    calls.mkdir()
    for name, script in PROGRAMS.items():
        (folder / name).write_text("#!/bin/bash\n" + script.format(calls=calls))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return calls


def test_an_array_job_is_submitted_once_and_attached_to(tmp_path, quick, programs, capsys):
    out = tmp_path / "out"
    jobs = [
        job_of(out / "fine", leaves(out / "fine")),
        job_of(out / "refused", "raise SystemExit(2)"),
        job_of(out / "long", WAITS.replace("600", "8")),
    ]

    def executor() -> SlurmJobs:
        return SlurmJobs(out, {"time": 60, "partition": "gpu"}, processes=1, cpus=1, gpus=0)

    def leave(given, failed):
        until(lambda: "begun" in log(out / "long"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, executor(), 0, leave)
    listed = slurm_jobs.read_jobs(out / "slurm")
    assert {name: entry["id"] for name, entry in listed.items()} == {
        "fine": "7001_0",
        "refused": "7001_1",
        "long": "7001_2",
    }
    slurm_jobs.cancel_queued(out, {"other"})
    assert not (programs / "scancel").exists()
    assert run_jobs(jobs[2:], executor(), 0, lambda *_: None) == {}
    assert "long: attached to job 7001_2" in capsys.readouterr().out
    assert len((programs / "sbatch").read_text().splitlines()) == 1
    assert [each["code"] for each in starts(out / "long")] == [0] and starts(out / "refused")[0]["code"] == 2
    slurm_jobs.cancel_queued(out, {"fine", "refused"})
    assert (programs / "scancel").read_text() == "--quiet --state=PENDING 7001_0 7001_1\n"
    assert slurm_jobs.read_jobs(out / "slurm") == {}


def test_a_refusal_of_sbatch_is_one_line(tmp_path, programs):
    (tmp_path / "programs/sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition: gpo' >&2; exit 1\n")
    executor = SlurmJobs(tmp_path, {"time": 60, "partition": "gpo"}, processes=1, cpus=1, gpus=0)
    with pytest.raises(ConfigError, match=r"received its refusal: sbatch: error: invalid partition: gpo"):
        executor.start([job_of(tmp_path / "run", WAITS)])


@pytest.mark.full
def test_a_killed_run_of_an_abandoned_command_ends_with_the_bytes_of_an_undisturbed_one(tmp_path, capsys):
    quiet, rough = page(tmp_path, "quiet"), page(tmp_path, "rough")
    assert sweep.main(["--file", str(quiet)]) == 0
    command = [sys.executable, "-m", "semopo_tf.sweep", "--file", str(rough), *LOCAL]
    with open(tmp_path / "said.txt", "w") as said:
        watcher = subprocess.Popen(command, cwd=ROOT, stdout=said)
    victim, other = (tmp_path / f"rough/semopo/seed={seed}" for seed in (1, 2))
    until(lambda: list(victim.glob("ckpt-model-*")), 300)
    watcher.send_signal(signal.SIGINT)
    assert watcher.wait(timeout=60) == 130
    assert "2 jobs go on without this command" in (tmp_path / "said.txt").read_text()
    (training,) = trainings(victim)
    os.kill(training, signal.SIGKILL)
    until(lambda: state(victim) == "killed")
    assert running(other)
    capsys.readouterr()
    assert sweep.main(["status", "--file", str(rough)]) == 0
    assert capsys.readouterr().out.endswith("2 runs: 1 killed, 1 running\n")
    assert sweep.main(["--file", str(rough), *LOCAL]) == 0
    printed = capsys.readouterr().out
    assert "semopo/seed=2: attached to job" in printed
    assert len(starts(victim)) == 2 and len(starts(other)) == 1
    for logdir in (victim, other):
        assert results(logdir) == results(tmp_path / "quiet/semopo" / logdir.name)


def test_the_batch_script(tmp_path, capsys):
    """Of SLURM: one array, resources of one run, a signal before the limit, appended logs."""
    flags = ["--gpus_per_run", "1", "--cpus_per_run", "4", "--slurm"]
    flags += [
        "time=1440",
        "partition=gpu",
        "gres=gpu:a100:1",
        "array_parallelism=8",
        "licenses=x:1",
        "setup=module load a",
    ]
    path = page(tmp_path, "out")
    assert sweep.main(["--file", str(path), "--executor", "slurm", "--print_script", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    folder = tmp_path / "out/slurm"
    assert lines[0] == "#!/bin/bash"
    assert options == {
        "array": "0-1%2",
        "cpus-per-task": "4",
        "error": f"{folder}/%A_%a_0_log.err",
        "gpus-per-node": "1",
        "gres": "gpu:a100:1",
        "job-name": "out",
        "licenses": "x:1",
        "nodes": "1",
        "open-mode": "append",
        "output": f"{folder}/%A_%a_0_log.out",
        "partition": "gpu",
        "requeue": "",
        "signal": "USR2@90",
        "time": "1440",
        "wckey": "submitit",
    }
    assert lines.index("module load a") < lines.index("# command")
    (started,) = (line for line in lines if line.startswith("srun"))
    assert " --cpus-per-task=4 " in started
    assert started.endswith(f"{sys.executable} -u -m submitit.core._submit {folder}")
    assert not folder.exists()  # nothing was written
