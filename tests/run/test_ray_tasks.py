"""Runs through Ray: a cluster of this machine with small jobs, and two nodes of which one dies."""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from workers import ROOT, WAITS, job_of, leaves, log, page, results, trainings, until

from semopo_tf import sweep
from semopo_tf.errors import ConfigError
from semopo_tf.run import executors
from semopo_tf.run.executors import run_jobs
from semopo_tf.run.executors.ray_tasks import RayTasks, require_answer
from semopo_tf.run.jobs import LOST, outcome, starts, state


@pytest.fixture
def quick(monkeypatch):
    """No waiting before retries."""
    monkeypatch.setattr(executors, "REFRESH_SECONDS", 0.05)
    monkeypatch.setattr(executors, "outcome", lambda code: outcome(code)._replace(wait=0.0))


@pytest.fixture
def token(monkeypatch):
    """A token of this test's own: Ray's clusters ask for one, and else it makes one in the user's home."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))


def test_jobs_of_a_local_cluster_are_retried_by_the_rule_and_saved_at_the_end(tmp_path, quick, token, capfd):
    mark = tmp_path / "mark"
    again = f"import os, signal\nif not os.path.exists({str(mark)!r}):\n    open({str(mark)!r}, 'w'); "
    jobs = [
        # Its worker's parent is Ray's: the whole task dies.
        job_of(tmp_path / "lost", again + "os.kill(int(open(f'/proc/{os.getppid()}/stat').read().split()[3]), 9)"),
        job_of(tmp_path / "refused", "raise SystemExit(2)"),
        job_of(tmp_path / "fine", leaves(tmp_path / "fine")),
        job_of(tmp_path / "long", WAITS),
    ]

    def show(given, failed):
        if given == {"long"}:
            until(lambda: "begun" in log(tmp_path / "long"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, RayTasks("local", gpus=0), 1, show)
    codes = {job.name: [each["code"] for each in starts(job.logdir)] for job in jobs}
    assert codes == {"lost": [None, 0], "refused": [2], "fine": [0], "long": [143]}
    printed = capfd.readouterr().out
    assert f"lost: lost, exit code {LOST}" in printed or f"lost: killed, exit code {LOST}" in printed
    assert state(tmp_path / "long") == "stopped"


def test_a_missing_cluster_is_one_line():
    with pytest.raises(ConfigError, match=r"--address 127.0.0.1:1: expected a Ray cluster, received none .*refused"):
        RayTasks("127.0.0.1:1", gpus=0)


# --- two nodes --------------------------------------------------------------------------------------------------------

SEEDS = 12


class Nodes:
    """A cluster of nodes on this machine, each a process tree of its own with one core."""

    def __init__(self, folder: Path):
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.address = f"127.0.0.1:{server.getsockname()[1]}"
        self._temporary = Path(tempfile.mkdtemp(prefix="ray"))  # paths of sockets must be short
        self._folder, self._nodes = folder, list[subprocess.Popen]()
        port = self.address.split(":")[1]
        self.start("--head", "--port", port, "--temp-dir", str(self._temporary), "--include-dashboard", "false")
        until(self.answers, 60)
        self.start("--address", self.address)

    def start(self, *flags: str) -> None:
        number = len(self._nodes)
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus", "1", *flags]
        environment = os.environ | {"RAY_worker_niceness": "0"}
        with open(self._folder / f"node{number}.txt", "w") as output:
            options = {"stdout": output, "stderr": output, "env": environment, "cwd": self._folder}
            self._nodes.append(subprocess.Popen(command, start_new_session=True, **options))

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            require_answer(self.address)
            return True
        return False

    def raylet(self, number: int) -> int:
        """The process of a node's raylet."""
        found = [each for each in descendants(self._nodes[number].pid) if b"raylet/raylet" in command_of(each)]
        return found[0] if found else 0

    def close(self) -> None:
        for node in self._nodes:
            for each in [*descendants(node.pid), node.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            node.wait()
        shutil.rmtree(self._temporary, ignore_errors=True)


def command_of(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def descendants(process: int) -> list[int]:
    try:
        children = [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []
    return children + [each for child in children for each in descendants(child)]


@pytest.mark.full
def test_a_killed_worker_and_a_dead_node_change_no_byte_of_twelve_runs(tmp_path, token):
    """Two nodes of one core. After the first runs a worker is killed with SIGKILL, then the second node's raylet."""
    seeds = ", ".join(map(str, range(1, SEEDS + 1)))
    files = [page(tmp_path, name, seeds) for name in ("quiet", "rough")]
    began = time.monotonic()
    assert sweep.main(["--file", str(files[0]), "--cpus_per_run", "1"]) == 0
    quiet_minutes = (time.monotonic() - began) / 60
    runs = [tmp_path / f"rough/semopo/seed={seed}" for seed in range(1, SEEDS + 1)]

    def training_on(node: int) -> Path | None:
        """A run of a node that has a checkpoint and is not done."""
        tree = set(descendants(nodes.raylet(node)))
        begun = [run for run in runs if any(run.glob("ckpt-model-*")) and not (run / "DONE").exists()]
        return next((run for run in begun if tree & set(trainings(run))), None)

    nodes = Nodes(tmp_path)
    try:
        until(lambda: nodes.raylet(0) and nodes.raylet(1), 60)
        command = [sys.executable, "-m", "semopo_tf.sweep", "--file", str(files[1]), "--executor", "ray"]
        began = time.monotonic()
        with open(tmp_path / "said.txt", "w") as said:
            watcher = subprocess.Popen(
                [*command, "--address", nodes.address, "--cpus_per_run", "1"], cwd=ROOT, stdout=said, stderr=said
            )
        killed = until(lambda: training_on(0), 600)
        os.kill(starts(killed)[-1]["pid"], signal.SIGKILL)  # the worker; the training dies with it
        until(lambda: sum((run / "DONE").exists() for run in runs) >= SEEDS // 3, 1200)
        lost = until(lambda: training_on(1), 600)
        os.kill(nodes.raylet(1), signal.SIGKILL)
        assert watcher.wait(timeout=3000) == 0, (tmp_path / "said.txt").read_text()
        rough_minutes = (time.monotonic() - began) / 60
    finally:
        nodes.close()
    retries = re.findall(r"^semopo/.*; retry \d of 2$", (tmp_path / "said.txt").read_text(), re.MULTILINE)
    codes = {run.name: [each["code"] for each in starts(run)] for run in runs}
    print(f"\nlocal: {quiet_minutes:.1f} min; two nodes with faults: {rough_minutes:.1f} min", *retries, sep="\n")
    print(json.dumps(codes), log(lost), sep="\n")
    assert len(retries) >= 2
    assert codes[killed.name][0] is None and codes[lost.name][0] is None
    assert all(each[-1] == 0 for each in codes.values())
    for run in runs:
        assert results(run) == results(tmp_path / "quiet/semopo" / run.name)
