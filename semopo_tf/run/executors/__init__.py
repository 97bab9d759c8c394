"""Where the runs of a sweep run: `local` processes, `ray_tasks`, `slurm_jobs`. All start the same worker
(`run/worker.py`), and `run_jobs` retries for all of them by the same rule (`run/jobs.py`).
"""

import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Protocol

from semopo_tf.run.jobs import STOPPED, Job, cancel_mark, outcome, starts

REFRESH_SECONDS, SHOW_SECONDS = 1.0, 20.0
CANCELLED = "cancelled"


class Executor(Protocol):
    """Starts workers and hears of their ends. The rest is on the disk (`jobs.state`)."""

    @property
    def slots(self) -> float:
        """Jobs that it takes at the same time."""

    def start(self, jobs: Sequence[Job]) -> None:
        """Start jobs, or queue them.

        Raises:
          SemopoError: when the cluster refuses them.
        """

    def poll(self) -> Mapping[str, int]:
        """Name -> exit code of the jobs that have ended since the last call, `jobs.LOST` where nobody knows it."""

    def close(self) -> None:
        """Have all jobs save and end, and wait for that; where jobs outlive this process, say so and leave them."""


def run_jobs(
    jobs: Sequence[Job], executor: Executor, retries: int, show: Callable[[Set[str], Mapping[str, str]], None]
) -> dict[str, str]:
    """Run jobs in their order, and retry by the rule of `jobs.OUTCOMES`.

    Args:
      retries: of one job.
      show: called every now and then with the names of the jobs that the executor has, and the result so far.

    Returns:
      Name -> what became of it in words, of the jobs that are not done, in their order.
    """
    waiting: list[tuple[float, Job]] = [(0.0, job) for job in jobs]  # not before a time
    given: dict[str, Job] = {}
    failures, unfinished = dict.fromkeys((job.name for job in jobs), 0), dict[str, str]()
    shown = float("-inf")
    try:
        while waiting or given:
            for entry in [entry for entry in waiting if cancel_mark(entry[1].logdir).exists()]:
                waiting.remove(entry)
                unfinished[entry[1].name] = CANCELLED
            ready = [entry for entry in waiting if entry[0] <= time.monotonic()]
            ready = [entry for number, entry in enumerate(ready) if len(given) + number < executor.slots]
            if ready:
                executor.start([job for _, job in ready])
                given |= {job.name: job for _, job in ready}
                waiting = [entry for entry in waiting if entry not in ready]
                shown = min(shown, time.monotonic() - SHOW_SECONDS + REFRESH_SECONDS)
            time.sleep(REFRESH_SECONDS)
            for name, code in executor.poll().items():
                job, after = given.pop(name), outcome(code)
                shown = float("-inf")
                if code == 0:
                    continue
                failures[name] += 1
                if code in STOPPED and cancel_mark(job.logdir).exists():
                    unfinished[name] = CANCELLED
                elif after.retried and failures[name] <= retries:
                    print(f"{name}: {told(job, code)}; retry {failures[name]} of {retries}", flush=True)
                    waiting.append((time.monotonic() + after.wait, job))
                else:
                    print(f"{name}: {told(job, code)}", flush=True)
                    unfinished[name] = f"{after.word}, exit code {code}"
            if time.monotonic() - shown > SHOW_SECONDS:
                shown = time.monotonic()
                show(given.keys(), unfinished)
    finally:
        executor.close()
    return {job.name: unfinished[job.name] for job in jobs if job.name in unfinished}


def told(job: Job, code: int) -> str:
    """How a job's last start ended, for a line of output."""
    before = starts(job.logdir)
    where = f" on {before[-1]['host']}, start {len(before)}" if before else ""
    return f"{outcome(code).word}, exit code {code}{where}"
