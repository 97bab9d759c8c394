"""Runs as tasks of a Ray cluster, whose nodes see the same directory."""

import os
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any

from semopo_tf.errors import ConfigError
from semopo_tf.run.jobs import LOST, Job, exit_code, launch

POLL_SECONDS, ANSWER_SECONDS, CANCEL_SECONDS = 0.5, 10.0, 15.0
RESOURCE_SHARE = 1e-3  # of a node's custom resource that a run takes: it is a label, not a limit


class RayTasks:
    """Tasks of a cluster, each of which starts a worker on its node and waits for it. They end with this process.

    Ray's own retries are off: it hears of a lost worker or node, but not of exit codes, and would retry without count.

    Args:
      address: as of `ray.init`; None for the cluster of RAY_ADDRESS, one that runs on this machine, or a new one.
      gpus: of one run, also a part of one.
      resource: a custom resource that a node must have to be given runs; empty for any node.

    Raises:
      ConfigError: without Ray, or without a cluster at the address.
    """

    slots = float("inf")  # Ray queues, and an autoscaler sees what waits

    def __init__(self, address: str | None, gpus: float, resource: str = ""):
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                f"--executor ray: expected the package ray, received none ({error}); pip install semopo_tf[ray]"
            ) from error
        os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster that begins here; Ray's own value is 15
        try:
            require_answer(address)
            ray.init(address=address)
        except (OSError, ValueError, RuntimeError) as error:
            what = " ".join(str(error).split())[:120]
            raise ConfigError(
                f"--address {address}: expected a Ray cluster, received none ({what}); ray start --head begins one"
            ) from error
        self._ray = ray
        self._gpus, self._resources = gpus, {resource: RESOURCE_SHARE} if resource else {}
        self._tasks: dict[Any, str] = {}  # reference -> name
        # The driver's host is no condition: runs go wherever there is room.
        self._run = ray.remote(max_retries=0, scheduling_strategy="SPREAD")(run)

    def start(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            chosen = self._run.options(
                name=job.name, num_cpus=job.threads, num_gpus=self._gpus, resources=self._resources
            )
            self._tasks[chosen.remote(job)] = job.name

    def poll(self) -> dict[str, int]:
        ended, _ = self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        return {self._tasks.pop(task): self._code(task) for task in ended}

    def _code(self, task: Any) -> int:
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:  # an error of ours on the node, such as a missing package
            print(" ".join(str(error).split())[-300:], flush=True)
            return 1
        except self._ray.exceptions.RayError:
            return LOST

    def close(self) -> None:
        left = list(self._tasks)
        while left:
            for task in left:  # again and again: Ray may miss one
                self._ray.cancel(task)
            _, left = self._ray.wait(left, num_returns=len(left), timeout=CANCEL_SECONDS)
        self._ray.shutdown()


def require_answer(address: str | None) -> None:
    """Raises OSError when nothing listens at HOST:PORT: Ray would wait for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()


def run(job: Job) -> int:
    """On a node: start a worker and wait. Returns its exit code."""
    print(f"{job.name}: {job.directory / job.logdir}/log.txt", flush=True)
    worker = launch(job)
    # `ray.cancel` interrupts the main thread, which runs the tasks. An exception could come at any line; this cannot.
    before = signal.signal(signal.SIGINT, lambda *_: worker.terminate())
    try:
        while worker.poll() is None:  # no long system call, as those are not interrupted
            time.sleep(POLL_SECONDS)
    finally:
        signal.signal(signal.SIGINT, before)
    return exit_code(worker.returncode)
