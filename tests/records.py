"""Makes run directories like those of runs, `semopo_tf.analysis` and `semopo_tf.originals` in milliseconds: only the
files that the report reads.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np

from semopo_tf import config as configuration

TASKS = {
    "dmcdrv_walker_walk": "walker_walk",
    "dmcdrv_cheetah_run": "cheetah_run",
    "exbmdp_point": "exbmdp_point",
    "dmc_walker_walk": "walker_walk",
}


def card(
    task: str, policy: str = "random", episodes: int = 3, low: float = 2.0, high: float = 20.0, **more: Any
) -> dict[str, Any]:
    """A dataset card whose episodes have evenly spaced returns between two numbers."""
    source = "VIDEOS" if task.startswith("dmcdrv_") else "none"
    returns = np.linspace(low, high, episodes)
    quartiles = {"p25": np.quantile(returns, 0.25), "median": np.median(returns), "p75": np.quantile(returns, 0.75)}
    statistics = {"mean": returns.mean(), "std": returns.std(), "min": low, **quartiles, "max": high}
    return {
        "task": task,
        "policy": policy,
        "status": "complete",
        "episodes": episodes,
        "environment": {"size": 64, "action_repeat": 2, "camera": -1},
        "background": {"source": source, "color": "grey", "split": "train", "seed": 0, "mask_rule": "sky", "clips": []},
        "returns": {key: float(value) for key, value in statistics.items()},
    } | more


def environment(task: str, **changed: Any) -> dict[str, Any]:
    """The settings of a score row."""
    moving = {
        "background": "VIDEOS",
        "background_color": "grey",
        "background_split": "train",
        "mask_rule": "sky",
        "background_seed": 0,
    }
    return {"size": 64, "action_repeat": 2, "camera": -1} | (moving if task.startswith("dmcdrv_") else {}) | changed


def write_run(
    logdir: Path,
    method: str = "semopo",
    task: str = "dmcdrv_walker_walk",
    seed: int = 1,
    *,
    returns: Sequence[float] = (10.0, 20.0),
    data: str = "random",
    about: Mapping[str, Any] | None = None,
    flags: Sequence[str] = (),
    done: bool = True,
) -> Path:
    """A run of the `debug` size, trained on a dataset with the card `about` and evaluated once after training."""
    logdir.mkdir(parents=True)
    text = _configuration(method, task, tuple(flags))
    for key, value in {"seed": seed, "offline_dir": f"data/{data}", "logdir": logdir}.items():
        text = re.sub(rf"^{key}: .*$", f"{key}: {value}", text, flags=re.MULTILINE)
    (logdir / "config.yaml").write_text(text)
    described = dict(about or card(task))
    files = [
        {"name": f"{number}.npz", "size": 1, "sha256": f"{described['returns']}{number}"}
        for number in range(described["episodes"])
    ]
    (logdir / "dataset_manifest.json").write_text(
        json.dumps({"image_size": 64, "action_size": 2, "card": described, "files": files})
    )
    rng = np.random.default_rng([seed, len(method)])
    kl = "joint_kl" if method == "offline_dv2" else "endo_kl"
    model = {"image_loss": 900.0, "reward_loss": 1.0, kl: 3.0, "model_grad_norm": 50.0}
    policy = {"imagined_reward": 0.4, "penalty": 0.1, "eval_return": float(np.mean(returns)) if len(returns) else 0.0}
    rows = [
        {"phase": "model", "step": step}
        | {key: value * np.exp(-step / 9) + rng.uniform() for key, value in model.items()}
        for step in (4, 8, 12)
    ]
    rows += [
        {"phase": "policy", "step": step} | {key: value * step / 12 for key, value in policy.items()}
        for step in (4, 8, 12)
    ]
    write_rows(logdir / "metrics.jsonl", rows)
    times = [("model", 0, True), ("model", 60, False), ("policy", 60, True), ("policy", 90, False)]
    write_rows(
        logdir / "timing.jsonl",
        [
            {"phase": phase, "step": 0, "time": time} | ({"start": True} if start else {})
            for phase, time, start in times
        ],
    )
    write_rows(logdir / "scores.jsonl", [score(task, number, value) for number, value in enumerate(returns)])
    if done:
        (logdir / "DONE").write_text("")
    return logdir


@functools.cache
def _configuration(method: str, task: str, flags: tuple[str, ...]) -> str:
    return configuration.load(["--configs", method, TASKS[task], "debug", "--task", task, *flags]).to_yaml()


def score(
    task: str, episode: int, value: float, *, source: str = "train", step: int = 12, **changed: Any
) -> dict[str, Any]:
    return {
        "phase": "policy",
        "step": step,
        "episode_seed": episode,
        "return": value,
        "source": source,
        "environment": environment(task, **changed),
    }


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], *, add: bool = False) -> None:
    with open(path, "a" if add else "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_analyses(
    logdir: Path, streams: Sequence[str] = ("endo", "exo"), *, scale: float = 1.0, size: int = 16
) -> None:
    """Writes the analyses uncertainty, reconstruction and entropy."""
    folder, rng = logdir / "analysis", np.random.default_rng(len(streams))
    folder.mkdir(exist_ok=True)
    heights = {"endo": 0.1, "exo": 0.3, "joint": 0.2}
    measures = {
        name: {stream: {"mean": scale * heights[stream], "std": 0.05} for stream in streams}
        for name in ("mean_norm", "log_prob_variance")
    }
    groups = [[["a.npz", 3], ["a.npz", 5], ["a.npz", 7]], [["b.npz", 3], ["b.npz", 5], ["b.npz", 7]]]
    frames = {"groups": groups, "values": {stream: [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]] for stream in streams}}
    _write(
        folder,
        "uncertainty",
        {"phase": "policy", "step": 12, "states": 1000, "seed": 0, "measures": measures, "frames": frames},
    )
    imageio.imwrite(folder / "uncertainty.png", rng.integers(0, 256, (size, 6 * size, 3), dtype=np.uint8))
    rows = ["observation", "endo", "exo", "mask", "both"] if "endo" in streams else ["observation", "joint"]
    places = [[f"{number}.npz", 7] for number in range(8)]
    _write(
        folder,
        "reconstruction",
        {
            "phase": "policy",
            "step": 12,
            "rows": rows,
            "frames": 8,
            "size": size,
            "places": places,
            "mse": {"both": 0.1},
        },
    )
    imageio.imwrite(
        folder / "reconstruction.png", rng.integers(0, 256, (len(rows) * size, 8 * size, 3), dtype=np.uint8)
    )
    rules = {
        "conservative": {"entropy": [scale * (1 - 1 / epoch) for epoch in range(1, 31)], "pool": list(range(1, 31))},
        "uniform": {"entropy": [1.1 * scale] * 30, "pool": [30] * 30},
    }
    _write(folder, "entropy", {"epochs": 30, "updates_per_epoch": 50, "bins": 32, "dimensions": 2, "rules": rules})


def write_trust(logdir: Path, *, measure: str = "mean_norm", excess: float = 0.1) -> None:
    """Writes the analysis trust: correlations with the reward's error alone; those of one measure are not defined."""
    (logdir / "analysis").mkdir(exist_ok=True)
    sources = {}
    for number, source in enumerate(("policy", "dataset")):
        after = {"5": {"estimate": 0.4 - 0.2 * number, "low": 0.1, "high": 0.5}}
        of = {name: {"reward": {"first": after, "sum": after}} for name in ("sum_squares", "mean_norm")}
        of |= {"log_prob_std": {"reward": {"first": {}, "sum": {}}}}
        means = {"excess": {"5": {"estimate": excess * (1 - number)}}}
        sources[source] = {"episodes": 1, "states": 10, "means": means, "correlations": of}
    _write(logdir / "analysis", "trust", {"penalty": {"measure": measure}, "sources": sources})


def write_bound(logdir: Path, *, model: float, measure: str = "mean_norm", weight: float = 0.3) -> None:
    """Writes the analysis bound: 10 in the simulator, and a disagreement of 5."""
    (logdir / "analysis").mkdir(exist_ok=True)
    returns = {"simulator": 10.0, "model": model, "penalised": model - weight * 5}
    record = {name: {"estimate": value, "low": value - 1, "high": value + 1} for name, value in returns.items()}
    smallest = {measure: {"estimate": (model - 10) / 5}}
    penalty = {"measure": measure, "weight": weight}
    _write(logdir / "analysis", "bound", {"penalty": penalty, "smallest": smallest, **record})


def write_probe(logdir: Path, streams: Sequence[str] = ("endo", "exo")) -> None:
    (logdir / "analysis").mkdir(exist_ok=True)
    known = {"position": 0.9, "phase": -0.1}
    ahead = {stream: {"position": {"5": 0.8, "15": 0.5}} for stream in streams}
    mask = {"on": 0.7, "off": 0.2} if "endo" in streams else None
    _write(
        logdir / "analysis",
        "probe",
        {"r2": dict.fromkeys(streams, known), "open_loop": ahead, "reward_r2": 0.95, "mask": mask},
    )


def write_import(
    logdir: Path,
    method: str = "semopo",
    task: str = "dmcdrv_walker_walk",
    seed: int = 1,
    returns: Sequence[float] = (15.0, 25.0),
) -> Path:
    """An imported run as `semopo_tf.originals` writes it."""
    logdir.mkdir(parents=True)
    origin = {
        "format": "semopo",
        "method": method,
        "task": task,
        "level": "random",
        "seed": seed,
        "file": "metrics.jsonl",
        "sha256": "0",
    }
    (logdir / "origin.json").write_text(json.dumps(origin))
    write_rows(
        logdir / "metrics.jsonl",
        [{"phase": "model", "step": step, "image_loss": 1000.0 - step} for step in (5, 10, 15)]
        + [{"phase": "policy", "step": 9, "eval_return": float(np.mean(returns))}],
    )
    rows = [
        {"phase": "policy", "step": 9, "episode_seed": n, "return": value, "source": "imported"}
        for n, value in enumerate(returns)
    ]
    write_rows(logdir / "scores.jsonl", rows)
    return logdir


def _write(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(record))
