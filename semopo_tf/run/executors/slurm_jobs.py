"""Runs as an array job of SLURM through submitit, or through submitit's local executor.

The jobs outlive the command that submits them. `<out>/slurm/jobs.json` holds their ids, so that the command attaches to
them when it is repeated.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from semopo_tf.errors import ConfigError, shown
from semopo_tf.run.jobs import LOST, Job, exit_code, launch, running, starts
from semopo_tf.storage.files import write_whole
from semopo_tf.storage.schema import read_object, unfit

FOLDER = "slurm"  # below `out`: scripts, submitit's own logs, and the ids
REQUEUES = 100  # at the time limit, by submitit: a run resumes from its checkpoint
KILL_SECONDS = 600.0  # within which SLURM kills or requeues a job that it has sent SIGTERM
POLL_SECONDS = 0.2
LOCAL_MINUTES = 60 * 24 * 30  # the time limit of submitit's local executor, which else is two minutes
CLUSTERS = ("slurm", "local")
ENTRY = {"id": str, "cluster": CLUSTERS, "starts": int}
LINES = ("setup", "teardown")  # parameters that are lines of the script
NUMBERS = ("time", "signal_delay_s", "array_parallelism")


class SlurmJobs:
    """Jobs of SLURM.

    Args:
      out: the directory of the sweep, which the nodes see.
      parameters: see `read_parameters`.
      processes: jobs at the same time, of submitit's local executor alone; SLURM has `array_parallelism`.
      cpus, gpus: of one run.

    Raises:
      ConfigError: without submitit or SLURM.
    """

    def __init__(self, out: Path, parameters: Mapping[str, Any], *, processes: int, cpus: int, gpus: int):
        submitit = import_submitit()
        self._folder = out.absolute() / FOLDER
        self._cluster = parameters.get("cluster", "slurm")
        self.slots = float("inf") if self._cluster == "slurm" else processes
        if self._cluster == "slurm" and not shutil.which("srun"):
            raise ConfigError(
                "--executor slurm: expected the programs of SLURM (sbatch, srun), received none; start the sweep on a "
                "machine of the cluster, or try it with --slurm cluster=local"
            )
        if self._cluster == "slurm":
            self._job_class = submitit.SlurmJob
            self._executor = submitit.SlurmExecutor(self._folder, max_num_timeout=REQUEUES)
            self._executor.update_parameters(**sbatch_parameters(out, parameters, cpus, gpus))
        else:
            self._job_class = submitit.LocalJob
            self._executor = submitit.LocalExecutor(self._folder, max_num_timeout=REQUEUES)
            minutes = parameters.get("time", LOCAL_MINUTES)
            delay = {name: parameters[name] for name in ("signal_delay_s",) if name in parameters}
            self._executor.update_parameters(timeout_min=minutes, **delay)
        self._refused = submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError
        self._jobs: dict[str, Submitted] = {}

    def start(self, jobs: Sequence[Job]) -> None:
        listed = read_jobs(self._folder)
        for job in jobs:
            entry = listed.get(job.name)
            if entry and entry["cluster"] == self._cluster:
                found = Submitted(job, self._job_class(self._folder, entry["id"]), entry["starts"])
                if not found.ended:
                    self._jobs[job.name] = found
                    print(f"{job.name}: attached to job {entry['id']}", flush=True)
        new = [job for job in jobs if job.name not in self._jobs]
        if not new:
            return
        with refusals(self._refused), without_interrupts():
            submitted = self._executor.submit_array([Task(job) for job in new])
            for job, handle in zip(new, submitted, strict=True):
                found = self._jobs[job.name] = Submitted(job, handle, len(starts(job.logdir)))
                listed[job.name] = {"id": handle.job_id, "cluster": self._cluster, "starts": found.starts}
            write_jobs(self._folder, listed)
        print(f"submitted {len(new)} jobs, {submitted[0].job_id} first", flush=True)

    def poll(self) -> dict[str, int]:
        ended = {name: each.code for name, each in self._jobs.items() if each.ended}
        for name in ended:
            del self._jobs[name]
        if ended:
            listed = read_jobs(self._folder)
            write_jobs(self._folder, {name: entry for name, entry in listed.items() if name not in ended})
        return ended

    def close(self) -> None:
        if self._jobs:
            print(
                f"{len(self._jobs)} jobs go on without this command; it attaches to them when it is repeated, and "
                "`sweep cancel` ends them",
                flush=True,
            )


class Submitted:
    """A job with submitit's handle.

    Args:
      before: how many starts the run had before this job.
    """

    def __init__(self, job: Job, handle: Any, before: int):
        self._job, self._handle, self.starts = job, handle, before

    @property
    def ended(self) -> bool:
        if not self._handle.done():
            return False
        # submitit's local job knows its process only where that was started; its id is the process's.
        local = isinstance(self._handle, import_submitit().LocalJob)
        return not (local and is_controller(int(self._handle.job_id)))

    @property
    def code(self) -> int:
        """The exit code of the run's last start, if that was in this job."""
        now = starts(self._job.logdir)
        code = now[-1]["code"] if len(now) > self.starts else None
        return LOST if code is None else code


class Task:
    """What submitit runs on a node: a worker. At the time limit and before a preemption it sends SIGUSR2: the run saves
    and ends, and submitit requeues the job.
    """

    def __init__(self, job: Job):
        self._job = job
        self._worker: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        worker = self._worker = launch(self._job)
        terminated = []

        def hear(number: int, _: Any) -> None:
            terminated.append(number)
            worker.terminate()

        signal.signal(signal.SIGTERM, hear)  # in place of submitit's handler, which ignores it
        code = exit_code(worker.wait())
        if terminated and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            # Saved. A job that ends by itself before SLURM has requeued it would not come back.
            time.sleep(KILL_SECONDS)
        return code

    def checkpoint(self) -> Any:
        """Called by submitit in its signal handler."""
        if self._worker:
            self._worker.terminate()
            # `wait` would never end: this interrupts one, which holds the lock.
            while running(self._job.directory / self._job.logdir):
                time.sleep(POLL_SECONDS)
        return import_submitit().helpers.DelayedSubmission(Task(self._job))


def import_submitit() -> Any:
    """Raises ConfigError where the package is missing."""
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(
            f"--executor slurm: expected the package submitit, received none ({error}); pip install semopo_tf[slurm]"
        ) from error
    return submitit


def read_parameters(words: Sequence[str]) -> dict[str, Any]:
    """The flag `--slurm key=value ...`: parameters of submitit, options of sbatch without their dashes, and `cluster`.

    Raises:
      ConfigError: naming a wrong one.
    """
    given = dict(word.partition("=")[::2] for word in words)
    parameters: dict[str, Any] = {}
    for key, text in given.items():
        if key in NUMBERS and not text.isdecimal():
            unit = {"time": "minutes", "signal_delay_s": "seconds"}.get(key, "jobs")
            raise ConfigError(f"--slurm {key}: expected a whole number of {unit}, received {shown(text)}")
        if key == "cluster" and text not in CLUSTERS:
            raise ConfigError(f"--slurm cluster: expected one of {', '.join(CLUSTERS)}, received {shown(text)}")
        value = int(text) if text.isdecimal() else {"true": True, "false": False}.get(text, text)
        parameters[key] = [text] if key in LINES else shlex.split(text) if key == "srun_args" else value
    if "cpus_per_task" in parameters:
        raise ConfigError("--slurm cpus_per_task: expected --cpus_per_run, by which the run's threads go too")
    if parameters.get("cluster", "slurm") == "slurm" and "time" not in parameters:
        raise ConfigError("--slurm: expected time=MINUTES, the time limit of a job, received none; e.g. time=1440")
    return parameters


def sbatch_parameters(out: Path, parameters: Mapping[str, Any], cpus: int, gpus: int) -> dict[str, Any]:
    """What `submitit.SlurmExecutor` takes. An option that it does not know reaches sbatch as it is."""
    known = import_submitit().SlurmExecutor._valid_parameters()
    merged: dict[str, Any] = {"job_name": out.name, "cpus_per_task": cpus} | ({"gpus_per_node": gpus} if gpus else {})
    merged |= {key: value for key, value in parameters.items() if key != "cluster"}
    # From SLURM 22.05 on, srun does not take this from sbatch, and would give the run one core.
    merged["srun_args"] = [f"--cpus-per-task={cpus}", *merged.get("srun_args", [])]
    others = {key: merged.pop(key) for key in list(merged) if key not in known}
    # After the failure of a node SLURM starts the job again; also needed by submitit to requeue it.
    return merged | {"additional_parameters": {"requeue": True} | others}


def batch_script(out: Path, parameters: Mapping[str, Any], *, jobs: int, cpus: int, gpus: int) -> str:
    """The script that would be submitted for so many jobs; needs no SLURM."""
    submitit = import_submitit()
    unsent = type("Unsent", (submitit.SlurmExecutor,), {"affinity": classmethod(lambda cls: 1)})  # looks for no srun
    executor: Any = unsent(out.absolute() / FOLDER, max_num_timeout=REQUEUES)
    executor.update_parameters(**sbatch_parameters(out, parameters, cpus, gpus))
    if jobs > 1:  # submitit makes an array only then
        executor.parameters["map_count"] = jobs
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def cancel_queued(out: Path, names: Set[str]) -> None:
    """Take the jobs of runs that SLURM has not begun out of its queue, and forget all their ids: those that run end by
    themselves.
    """
    listed = read_jobs(out / FOLDER)
    ids = [entry["id"] for name, entry in listed.items() if name in names and entry["cluster"] == "slurm"]
    if ids and shutil.which("scancel"):
        subprocess.run(["scancel", "--quiet", "--state=PENDING", *ids], check=False)
    if listed:
        write_jobs(out / FOLDER, {name: entry for name, entry in listed.items() if name not in names})


def read_jobs(folder: Path) -> dict[str, Any]:
    """Name of a run -> {id, cluster, starts}: the job that was submitted for it, after so many starts.

    Raises:
      DataError: when the file is damaged.
    """
    path = folder / "jobs.json"
    if not path.exists():
        return {}

    def wrong_with(value: Any) -> str:
        return next((wrong for name, entry in value.items() if (wrong := unfit(entry, ENTRY, name))), "")

    remedy = "remove it, after `squeue` or `ps` show that no job of this sweep is left"
    return read_object(path, lambda value: unfit(value, dict) or wrong_with(value), remedy)


def write_jobs(folder: Path, listed: Mapping[str, Any]) -> None:
    """Raises StorageError."""
    write_whole(folder / "jobs.json", json.dumps(listed, indent=1).encode())


def is_controller(process: int) -> bool:
    """Whether a process of this machine is one of submitit's local executor."""
    try:
        return b"submitit" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Ctrl-C of this terminal does not reach the processes that are started inside this block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def refusals(errors: Any) -> Iterator[None]:
    """What sbatch refuses, in one line."""
    try:
        yield
    except errors as error:
        what = " ".join(str(error).split())[-200:]
        raise ConfigError(f"--slurm: expected parameters that sbatch accepts, received its refusal: {what}") from error
