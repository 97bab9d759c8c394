"""Jobs and tiny sweeps for tests, the processes behind them, and what they leave."""

import time
from pathlib import Path

from semopo_tf.run.jobs import Command, Job

ROOT = Path(__file__).parents[1]
WAITS = "import time; print('begun', flush=True); time.sleep(600)"


def job_of(logdir: Path, *scripts: str, name: str = "") -> Job:
    """A job whose commands are scripts of Python; the nth leaves the file `n`, if the script writes it."""
    commands = tuple(Command(("-c", script), (f"{number}",)) for number, script in enumerate(scripts))
    return Job(name or logdir.name, logdir, ROOT, "local", 1, commands)


def leaves(logdir: Path, number: int = 0) -> str:
    return f"print('command {number}'); open({str(logdir / str(number))!r}, 'w')"


def until(condition, seconds: float = 30.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.02)
    return value


def lives(process: int) -> bool:
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def child_of(process: int) -> int:
    """The only child of a process, once there is one."""
    path = Path(f"/proc/{process}/task/{process}/children")
    return int(until(lambda: path.read_text().split())[0])


def log(logdir: Path) -> str:
    path = logdir / "log.txt"
    return path.read_text() if path.exists() else ""


PAGE = """
out: {out}
processes: 2
data:
  random: [--task, exbmdp_point, --policy, random, --episodes, 3]
flags: [--video.every, 0, --eval.final_episodes, 0]
runs:
  - name: semopo
    data: random
    flags: [--configs, semopo, exbmdp_point, debug, --steps.model, 30]
    grid: {{seed: [{seeds}]}}
"""


def page(tmp_path: Path, name: str, seeds: str = "1, 2") -> Path:
    path = tmp_path / f"{name}.yaml"
    path.write_text(PAGE.format(out=tmp_path / name, seeds=seeds))
    return path


def trainings(logdir: Path) -> list[int]:
    """The processes that train in a run directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"semopo_tf.training" in words and str(logdir).encode() in words:
            found.append(int(path.parent.name))
    return found


def results(logdir: Path) -> dict[str, bytes]:
    """What a run has learned: its records byte by byte, and every tensor of its last checkpoint."""
    last = sorted(logdir.glob("ckpt-policy-*"))[-1]
    return {path.name: path.read_bytes() for path in (logdir / "metrics.jsonl", last / "tensors.npz")}
