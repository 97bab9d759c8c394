"""Real signals at real runs: whatever ends a run, the same command goes on and ends with the bytes of a run that
nothing disturbed.
"""

import dataclasses
import hashlib
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import synthetic
import victims

from semopo_tf.run import checkpoints
from semopo_tf.storage.records import read_records

PHASES = ("model", "policy")
STEPS = 60  # of each phase of the toy
TOY = {
    "task": "slow",
    "env.size": 16,
    "steps.model": STEPS,
    "steps.policy": STEPS,
    "updates_per_call": 1,
    "save_every": 4,
    "log_every": 3,
}
TOY |= {"valid_fraction": 0.25, "eval.every": 40, "eval.episodes": 1, "eval.final_episodes": 2, "video.every": STEPS}
REAL = {"steps.model": 24, "steps.policy": 24, "save_every": 6, "video.every": 0, "updates_per_call": 1}
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
SAVED = re.compile(
    r"semopo_tf: stopped by (\w+) at (\w+) update (\d+), which is saved; the same command goes on$", re.MULTILINE
)
ENDED = re.compile(r"semopo_tf: ended by (\w+); the same command goes on from what is saved$", re.MULTILINE)


@pytest.fixture(scope="module")
def server():
    return victims.Server()


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    return synthetic.dataset(tmp_path_factory.mktemp("data") / "small", size=16)


@dataclasses.dataclass
class Run:
    """One run and all its starts."""

    server: victims.Server
    data: Path
    logdir: Path
    flags: dict
    how: dict
    starts: int = 0

    def start(self, logdir: str = "", **how):
        """logdir: as it is written in the command line."""
        self.starts += 1
        words = [word for key, value in self.flags.items() for word in (f"--{key}", str(value))]
        return self.server.start(
            synthetic.train_flags(self.data, logdir or self.logdir, *words), self.log, **self.how | how
        )

    def finish(self, **how) -> None:
        assert victims.ended(self.start(**how)) == 0, self.said()
        assert (self.logdir / "DONE").exists()

    @property
    def log(self) -> Path:
        return self.logdir.parent / f"{self.logdir.name}-{self.starts}.txt"

    def said(self) -> str:
        """What the newest start printed."""
        return self.log.read_text() if self.log.exists() else ""

    @property
    def metrics_size(self) -> int:
        path = self.logdir / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def fingerprint(self) -> tuple[str, ...]:
        """Digests of the final weights, of the metrics, and of the final scores."""
        last = checkpoints.listed(self.logdir, PHASES)[-1]
        scores = [(row["episode_seed"], row["return"]) for row in read_records(self.logdir / "scores.jsonl")]
        files = [last / "tensors.npz", self.logdir / "metrics.jsonl"]
        return last.name, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in files), str(scores)


def toy_run(server, data, logdir, **flags) -> Run:
    return Run(server, data, logdir, TOY | {key.replace("__", "."): value for key, value in flags.items()}, {})


def real_run(server, data, logdir) -> Run:
    return Run(server, data, logdir, REAL, {"toy": False})


@pytest.fixture(scope="module")
def toy(server, small_data, tmp_path_factory):
    """An undisturbed run of the toy."""
    run = toy_run(server, small_data, tmp_path_factory.mktemp("toy") / "run")
    run.finish()
    return run


@pytest.fixture(scope="module")
def real(server, tmp_path_factory):
    """An undisturbed run of the real agent."""
    data = synthetic.dataset(tmp_path_factory.mktemp("data") / "real")
    run = real_run(server, data, tmp_path_factory.mktemp("real") / "run")
    run.finish()
    return run


# --- killed -----------------------------------------------------------------------------------------------------------


def writing(logdir: Path) -> list[Path]:
    """Checkpoints that are being written, or were when their writer was killed."""
    return list(logdir.glob(".tmp-*-ckpt-*"))


def kill_at(run: Run, size: float, delay: float, *, in_a_write: bool) -> bool:
    """Start the run and kill it `delay` seconds after its metrics reach a size, or after the next checkpoint begins.
    False: it ended before.
    """
    known = set(writing(run.logdir))
    victim = run.start()
    reached = victims.wait_for(lambda: run.metrics_size >= size, victim)
    if reached and in_a_write:
        reached = victims.wait_for(lambda: set(writing(run.logdir)) - known, victim)
    if reached:
        time.sleep(delay)
        victims.kill(victim)
    return victims.ended(victim) == -signal.SIGKILL


def kill_on(run: Run, total: int, kills: int, rng: np.random.Generator, *, delay: float = 0.02) -> dict[str, int]:
    """Kill a run at `kills` points of its length, every other one in a write if one can be caught; let it finish."""
    counts = {"kills": 0, "of them while a checkpoint was written": 0, "in the policy phase": 0}
    for number in range(kills):
        size = min(run.metrics_size + 2 * rng.random() * 0.9 * total / kills, 0.9 * total)
        in_a_write = number % 2 == 1 and not (run.logdir / f"ckpt-policy-{run.flags['steps.policy']:09d}").exists()
        if not kill_at(run, size, rng.random() * (0.003 if in_a_write else delay), in_a_write=in_a_write):
            break
        counts["kills"] += 1
        counts["of them while a checkpoint was written"] += bool(writing(run.logdir))
        counts["in the policy phase"] += (run.logdir / f"ckpt-model-{run.flags['steps.model']:09d}").exists()
    run.finish()
    return counts


def killed(runs: list[tuple[Run, Run, int]], rng: np.random.Generator) -> dict[str, int]:
    """Kill runs and compare each with its undisturbed twin; the sums of the counts."""
    started, counts = time.monotonic(), {}
    for run, undisturbed, kills in runs:
        for name, count in kill_on(run, undisturbed.metrics_size, kills, rng).items():
            counts[name] = counts.get(name, 0) + count
        assert run.fingerprint() == undisturbed.fingerprint()
    print(counts, f"{time.monotonic() - started:.0f} s")
    return counts


def stop_in_start_up(run: Run, data: Path) -> None:
    """SIGTERM before anything is read, while the data are read, when all is checked and the directory is claimed, and
    in the tracing of the real agent.
    """
    moments = [
        lambda: run.log.exists(),
        lambda: list(data.glob(".tmp-*")),
        lambda: (run.logdir / "config.yaml").exists(),
    ]
    moments += [lambda: (run.logdir / "timing.jsonl").exists()]
    for moment, delay in zip(moments, (0.0, 0.0, 0.0, 0.5), strict=True):
        victim = run.start()
        assert victims.wait_for(moment, victim), run.said()
        time.sleep(delay)
        started = time.monotonic()
        victims.kill(victim, signal.SIGTERM)
        assert victims.ended(victim) in (143, -signal.SIGTERM), (
            run.said()
        )  # before there is a handler, the system's own end
        assert time.monotonic() - started < 5
    assert ENDED.search(run.said())


def test_R01_R02_R09_twenty_kills_in_both_phases_and_in_writes_and_four_stops_in_start_up_change_no_byte(
    server, toy, real, tmp_path, rng
):
    data = tmp_path / "data"
    shutil.copytree(real.data, data, ignore=shutil.ignore_patterns(".*"))
    started = real_run(server, data, tmp_path / "real")
    stop_in_start_up(started, data)
    toys = [(toy_run(server, toy.data, tmp_path / f"toy-{number}"), toy, 9) for number in range(2)]
    counts = killed([*toys, (started, real, 2)], rng)
    assert counts["kills"] >= 20
    assert counts["of them while a checkpoint was written"] >= 3


@pytest.mark.full
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_R01_R02_R04_two_hundred_kills_over_three_seeds_and_chains_of_twenty_change_no_byte(
    server, small_data, real, tmp_path, seed
):
    """The toy's sixty are three chains of twenty kills in one run."""
    undisturbed = toy_run(server, small_data, tmp_path / "undisturbed", seed=seed)
    undisturbed.finish()
    toys = [
        (toy_run(server, small_data, tmp_path / f"toy-{number}", seed=seed), undisturbed, 20) for number in range(3)
    ]
    counts = killed([*toys, (real_run(server, real.data, tmp_path / "real"), real, 7)], np.random.default_rng(seed))
    assert counts["kills"] >= 67


def kill_when(run: Run, condition, delay: float = 0.0) -> None:
    victim = run.start()
    assert victims.wait_for(condition, victim), run.said()
    time.sleep(delay)
    victims.kill(victim)
    assert victims.ended(victim) == -signal.SIGKILL, run.said()


def rows(run: Run, name: str = "metrics") -> list[dict]:
    return read_records(run.logdir / f"{name}.jsonl")


def reached(run: Run, phase: str, step: int, name: str = "metrics") -> bool:
    return any((row["phase"], row["step"]) == (phase, step) for row in rows(run, name))


def test_R05_kills_at_the_start_at_the_border_of_the_phases_and_before_done(server, small_data, toy, tmp_path):
    run = toy_run(server, small_data, tmp_path / "run")
    kill_when(run, (run.logdir / "timing.jsonl").exists)
    assert not checkpoints.listed(run.logdir, PHASES)
    kill_when(run, (run.logdir / f"ckpt-model-{STEPS:09d}").exists)
    assert not (run.logdir / "DONE").exists()
    kill_when(run, (run.logdir / f"ckpt-policy-{STEPS:09d}").exists)
    assert f"continuing from ckpt-model-{STEPS:09d}" in run.said()
    run.finish()
    assert f"continuing from ckpt-policy-{STEPS:09d}" in run.said()
    assert run.fingerprint() == toy.fingerprint()
    before = {path: path.read_bytes() for path in run.logdir.rglob("*") if path.is_file()}
    run.finish()
    assert "this run is complete" in run.said()
    assert {path: path.read_bytes() for path in run.logdir.rglob("*") if path.is_file()} | {
        run.logdir / ".lock": b""
    } == before | {run.logdir / ".lock": b""}


def test_R06_kills_in_evaluations_in_a_video_and_in_a_row_change_no_byte(server, small_data, toy, tmp_path):
    run = toy_run(server, small_data, tmp_path / "run")
    kill_when(run, lambda: reached(run, "model", STEPS, "timing"))  # the last write before the video
    assert not list((run.logdir / "videos").glob("*.mp4"))
    with open(run.logdir / "metrics.jsonl", "ab") as file:
        file.write(b'{"phase": "mod')
    kill_when(run, lambda: "playing" in run.said(), 0.05)
    assert reached(run, "policy", 39) and not reached(run, "policy", 42)
    with open(run.logdir / "timing.jsonl", "ab") as file:
        file.write(b'{"pha')
    kill_when(run, lambda: len(rows(run, "scores")) == 1)
    run.finish()
    assert run.fingerprint() == toy.fingerprint()
    assert len(rows(run, "scores")) == 2
    places = [(row["phase"], row["step"], "eval_return" in row) for row in rows(run)]
    assert sorted(set(places)) == sorted(places)


# --- stopped ----------------------------------------------------------------------------------------------------------


def stop_at(run: Run, number: signal.Signals, size: float, delay: float, **how) -> bool:
    """Send a signal once the metrics have a size. Whether a step was saved for it, which is then the newest."""
    victim = run.start(**how)
    if not victims.wait_for(lambda: run.metrics_size >= size, victim):
        pytest.fail(f"the run ended before its signal: {run.said()}")
    time.sleep(delay)
    started = time.monotonic()
    victims.kill(victim, number)
    assert victims.ended(victim, 30) == CODES[number], run.said()
    assert time.monotonic() - started < 5
    said = run.said()
    if ENDED.search(said):
        return False
    (name, phase, step), newest = SAVED.search(said).groups(), checkpoints.listed(run.logdir, PHASES)[-1]
    assert (name, f"ckpt-{phase}-{int(step):09d}") == (number.name, newest.name)
    assert "Traceback" not in said
    return True


def stop_often(run: Run, undisturbed: Run, signals, rng: np.random.Generator) -> int:
    """Stop a run by each of the signals, let it finish, compare; how many steps were saved for a signal."""
    saved = 0
    for number in signals:
        size = min(
            run.metrics_size + 2 * rng.random() * 0.9 * undisturbed.metrics_size / len(signals),
            0.9 * undisturbed.metrics_size,
        )
        saved += stop_at(run, number, size, rng.random() * 0.1)
    run.finish()
    assert run.fingerprint() == undisturbed.fingerprint()
    return saved


def test_R07_R08_a_signal_saves_the_running_step_and_the_same_command_goes_on(server, small_data, toy, tmp_path, rng):
    signals = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGTERM]
    assert stop_often(toy_run(server, small_data, tmp_path / "run"), toy, signals, rng) >= 3


@pytest.mark.full
def test_R07_fifty_stops_in_five_runs(server, small_data, toy, tmp_path, rng):
    saved = [
        stop_often(toy_run(server, small_data, tmp_path / f"run-{number}"), toy, [signal.SIGTERM] * 10, rng)
        for number in range(5)
    ]
    print(f"{sum(saved)} of 50 stops saved a step; the others had nothing unsaved")
    assert sum(saved) >= 25


def test_R07_a_stop_in_an_evaluation_plays_it_again(server, small_data, toy, tmp_path):
    run = toy_run(server, small_data, tmp_path / "run")
    victim = run.start()
    assert victims.wait_for(lambda: "playing" in run.said(), victim)
    victims.kill(victim, signal.SIGTERM)
    assert victims.ended(victim) == 143
    assert checkpoints.load(run.logdir / "ckpt-policy-000000040").state["pending"] == ["evaluate"]
    assert not any("eval_return" in row for row in rows(run))
    run.finish()
    assert run.fingerprint() == toy.fingerprint()


def test_R08_usr1_saves_and_goes_on(server, small_data, toy, tmp_path):
    run = toy_run(server, small_data, tmp_path / "run", save_every=1000)
    victim = run.start()
    assert victims.wait_for(lambda: reached(run, "model", 6), victim)
    victims.kill(victim, signal.SIGUSR1)
    assert victims.wait_for(lambda: checkpoints.listed(run.logdir, PHASES), victim)
    assert 6 <= checkpoints.load(checkpoints.listed(run.logdir, PHASES)[0]).step < STEPS
    assert victims.ended(victim) == 0
    assert run.fingerprint() == toy.fingerprint()


def test_R08_a_second_signal_ends_the_run_inside_a_call_and_damages_nothing(server, small_data, tmp_path):
    """A call of this run takes many seconds; what comes within a second of the first signal is the same request."""
    run = toy_run(server, small_data, tmp_path / "run", kl__free=500, steps__model=4, log_every=1, save_every=1)
    victim = run.start()
    assert victims.wait_for(lambda: checkpoints.listed(run.logdir, PHASES), victim)
    time.sleep(0.2)  # it is in its second call by then
    for number in (signal.SIGINT, signal.SIGTERM):
        victims.kill(victim, number)
    time.sleep(1.1)
    assert victim.exitcode is None
    started = time.monotonic()
    victims.kill(victim, signal.SIGINT)
    assert victims.ended(victim) == 130
    assert time.monotonic() - started < 1
    assert ENDED.search(run.said())
    assert checkpoints.load_newest(run.logdir, PHASES)[0].step == 1


# --- other disturbances -----------------------------------------------------------------------------------------------


def test_R10_a_pause_changes_nothing(server, small_data, toy, tmp_path):
    run = toy_run(server, small_data, tmp_path / "run")
    victim = run.start()
    assert victims.wait_for(lambda: reached(run, "model", 30), victim)
    victims.kill(victim, signal.SIGSTOP)
    time.sleep(3)
    victims.kill(victim, signal.SIGCONT)
    assert victims.ended(victim) == 0
    assert run.fingerprint() == toy.fingerprint()
    (rate,) = re.findall(rf"model {STEPS}/{STEPS}, (\S+) updates/s", run.said())
    assert 0.1 < float(rate) < 10_000


@pytest.mark.parametrize("every", [1, 1000])
def test_R11_how_often_a_run_saves_changes_nothing(server, small_data, toy, tmp_path, every):
    run = toy_run(server, small_data, tmp_path / "run", save_every=every)
    run.finish()
    assert run.fingerprint() == toy.fingerprint()


def test_R12_disturbed_global_generators_change_nothing(server, small_data, toy, tmp_path):
    run = toy_run(server, small_data, tmp_path / "run")
    run.finish(disturbed=True)
    assert run.fingerprint() == toy.fingerprint()


def test_R16_R17_a_run_goes_on_wherever_it_is_and_however_it_is_reached_and_says_when_the_versions_changed(
    server, small_data, toy, tmp_path
):
    total = toy.metrics_size
    first, second = tmp_path / "first" / "run", tmp_path / "second" / "moved"
    first.parent.mkdir()
    run = toy_run(server, small_data, first)
    stop_at(run, signal.SIGTERM, 0.15 * total, 0)
    second.parent.mkdir()
    first.rename(second)
    run.logdir = second
    ways = [str(second), os.path.relpath(second, tmp_path), "~/second/moved", "link"]
    (tmp_path / "link").symlink_to(second)
    for number, way in enumerate(ways, start=2):
        if number == 3:
            forge_versions(second)
        if number < 5:
            stop_at(run, signal.SIGTERM, number * 0.15 * total, 0, logdir=way, home=tmp_path)
        else:
            run.finish(logdir=way, home=tmp_path)
        assert "continuing from ckpt-" in run.said()
        warned = re.findall(
            r"warning: .* was computed with tensorflow 1\.0 \(now \S+\): the run goes on, but no longer to the same",
            run.said(),
        )
        assert len(warned) == (number == 3)
    assert run.fingerprint() == toy.fingerprint()
    newest = checkpoints.listed(second, PHASES)[-1]
    assert [entry["versions"]["tensorflow"] == "1.0" for entry in checkpoints.load(newest).state["versions"]] == [
        True,
        False,
    ]
    assert not [path for path in newest.iterdir() if str(tmp_path).encode() in path.read_bytes()]


def forge_versions(logdir: Path) -> None:
    """Change the newest checkpoint as if another TensorFlow had computed it."""
    phase, step, tensors, state = checkpoints.load_newest(logdir, PHASES)[0][1:]
    state["versions"][-1]["versions"]["tensorflow"] = "1.0"
    shutil.rmtree(logdir / f"ckpt-{phase}-{step:09d}")
    checkpoints.save(logdir, phase, step, tensors, state)


def test_R20_a_run_goes_on_when_nobody_takes_its_output(server, small_data, toy, tmp_path):
    run = toy_run(server, small_data, tmp_path / "run")
    run.finish(closed=True)
    assert run.fingerprint() == toy.fingerprint()
    assert run.said() == ""
