"""Runs as processes of this machine."""

import subprocess
from collections.abc import Sequence

from semopo_tf.run.jobs import Job, exit_code, launch


class Local:
    """Workers of this machine. They end with this process.

    Args:
      processes: at the same time.
    """

    def __init__(self, processes: int):
        self.slots = processes
        self._workers: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, jobs: Sequence[Job]) -> None:
        self._workers |= {job.name: launch(job) for job in jobs}

    def poll(self) -> dict[str, int]:
        ended = {name: exit_code(code) for name, worker in self._workers.items() if (code := worker.poll()) is not None}
        for name in ended:
            del self._workers[name]
        return ended

    def close(self) -> None:
        for worker in self._workers.values():
            worker.terminate()
        for worker in self._workers.values():
            worker.wait()
