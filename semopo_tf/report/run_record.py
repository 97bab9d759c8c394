"""What the report reads: the directory of a run, or of an imported one, as a value. Nothing in it is believed before
its type is checked.

ours        config.yaml, dataset_manifest.json, metrics.jsonl, timing.jsonl, scores.jsonl, analysis/, videos/, DONE
imported    origin.json, metrics.jsonl, scores.jsonl, as python -m semopo_tf.originals writes them
"""

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from semopo_tf import config as configuration
from semopo_tf.data.cards import read_run_data
from semopo_tf.errors import ConfigError, DataError, shown
from semopo_tf.run.checkpoints import PHASES
from semopo_tf.storage.records import read_records
from semopo_tf.storage.schema import read_object, unlike

MAX_ANALYSIS_BYTES = 1 << 24
LEVELS = ("random", "medrep", "medium")
STREAMS = ("endo", "exo", "joint")
MEASURES = ("mean_norm", "log_prob_variance")
# What the files hold at least; a key with a question mark may be absent.
ORIGIN = {"format": str, "method": str, "task": str, "level": str, "seed": int, "file": str, "sha256": str}
SETTINGS = {"method": str, "task": str, "seed": int, "offline_dir": str, "world_model": str, "model.kind": str}
SETTINGS |= dict.fromkeys(("steps.model", "steps.policy", "video.episodes", "video.context"), int)
METRIC = {"phase": str, "step": int}
TIMING = {"phase": str, "time": float, "start?": bool}
SCORE = {"phase": str, "step": int, "episode_seed": int, "return": float, "source": str, "environment?": dict}
ENTROPY = {"entropy": [float], "pool": [int]}
ANALYSES: dict[str, dict[str, Any]] = {
    "probe": {
        "r2": {f"{stream}?": dict for stream in STREAMS},
        "open_loop": {f"{stream}?": dict for stream in STREAMS},
        "reward_r2": float,
    },
    "uncertainty": {
        "states": int,
        "measures": {
            measure: {f"{stream}?": {"mean": float, "std": float} for stream in STREAMS} for measure in MEASURES
        },
        "frames": {"groups": [[list]], "values": {f"{stream}?": [[float]] for stream in STREAMS}},
    },
    "reconstruction": {"rows": [str], "frames": int, "size": int, "places": [list], "mse": dict},
    "entropy": {
        "epochs": int,
        "updates_per_epoch": int,
        "bins": int,
        "dimensions": int,
        "rules": {"conservative": ENTROPY, "uniform": ENTROPY},
    },
}


class RunRecord(NamedTuple):
    """What a run's directory says."""

    logdir: Path
    method: str
    task: str
    level: str  # of the dataset: random, medrep, medium, or a word of its card
    seed: int
    origin: str  # the format it was imported from; empty for a run of ours
    finished: bool
    settings: dict[str, Any]  # by dotted key, none of an imported run
    manifest: dict[str, Any]  # dataset_manifest.json, or nothing
    metrics: list[dict[str, Any]]
    minutes: dict[str, float]  # of each phase, training alone
    scores: list[dict[str, Any]]  # of the last evaluated step, one row an episode and environment
    analyses: dict[str, dict[str, Any]]  # analysis/<name>.json by name

    @property
    def card(self) -> dict[str, Any]:
        """The dataset's card; nothing where there is none."""
        return self.manifest.get("card") or {}

    @property
    def data(self) -> str:
        """Name of the dataset's directory."""
        return Path(self.settings.get("offline_dir", "")).name

    @property
    def dataset_hash(self) -> str:
        """Of the names and contents of the dataset's episodes; empty where the run does not say."""
        files = self.manifest.get("files", [])
        return (
            hashlib.sha256(json.dumps([[file["name"], file["sha256"]] for file in files]).encode()).hexdigest()
            if files
            else ""
        )

    def condition(self, row: Mapping[str, Any]) -> str:
        """In which settings the environment of a score row differs from that of the dataset, in words; empty if in
        none.
        """
        usual, environment = self._usual(), row.get("environment", {})
        changed = (
            f"{key} {environment[key]}"
            for key in sorted(environment)
            if key in usual and environment[key] != usual[key]
        )
        return ", ".join(changed)

    def returns(self, condition: str = "") -> list[float]:
        """Returns of the episodes at the last evaluated step in environments of this condition."""
        return [row["return"] for row in self.scores if self.condition(row) == condition]

    def _usual(self) -> dict[str, Any]:
        """The environment of the dataset's card; without one, that of the evaluation that ended training."""
        card, background = self.card, self.card.get("background", {})
        if background.get("source", "none") != "none":
            names = {
                "source": "background",
                "color": "background_color",
                "split": "background_split",
                "mask_rule": "mask_rule",
            }
            return card.get("environment", {}) | {
                new: background[old] for old, new in names.items() if old in background
            }
        trained = (
            row["environment"] for row in reversed(self.scores) if row["source"] == "train" and "environment" in row
        )
        return next(trained, card.get("environment", {}))


def read_run(logdir: Path) -> RunRecord:
    """Everything that the report needs of a run of ours or an imported one.

    Raises:
      ConfigError: when the directory is no run, or one without metrics.
      DataError: naming a file that is not what a run writes.
    """
    imported = (logdir / "origin.json").is_file()
    if not imported and not (logdir / "config.yaml").is_file():
        raise ConfigError(f"{logdir}: expected the logdir of a run with metrics, found none")
    metrics, scores = _records(logdir / "metrics.jsonl", METRIC), _newest(_records(logdir / "scores.jsonl", SCORE))
    if imported:
        origin = _object(logdir / "origin.json", ORIGIN, "import the run again with python -m semopo_tf.originals")
        about = (origin["method"], origin["task"], origin["level"], origin["seed"], origin["format"], True)
        return RunRecord(logdir, *about, {}, {}, metrics, {}, scores, {})
    if not metrics:
        raise ConfigError(f"{logdir}: expected the logdir of a run with metrics, found none")
    settings, manifest = _settings(logdir / "config.yaml"), read_run_data(logdir)
    level = _level(manifest["card"] or {}, Path(settings["offline_dir"]).name)
    about = (settings["method"], settings["task"], level, settings["seed"], "", (logdir / "DONE").exists())
    return RunRecord(
        logdir, *about, settings, manifest, metrics, phase_minutes(logdir), scores, _analyses(logdir / "analysis")
    )


def phase_minutes(logdir: Path) -> dict[str, float]:
    """Wall-clock minutes of each phase, compilation and evaluations included; the time between a stop and the next
    start is left out.
    """
    found: dict[str, float] = {}
    before = 0.0
    for row in _records(logdir / "timing.jsonl", TIMING):
        found[row["phase"]] = found.get(row["phase"], 0.0) + (0.0 if row.get("start") else (row["time"] - before) / 60)
        before = row["time"]
    return found


def points(run: RunRecord, phase: str, metric: str) -> dict[int, float]:
    """{step: value} of a metric, where it is a number."""
    rows = (row for row in run.metrics if row["phase"] == phase)
    return {row["step"]: float(row[metric]) for row in rows if _is_number(row.get(metric))}


def reached(run: RunRecord, phase: str) -> int:
    """Updates of a phase so far."""
    return max((row["step"] for row in run.metrics if row["phase"] == phase), default=0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _level(card: Mapping[str, Any], directory: str) -> str:
    named = card.get("level")
    return named if isinstance(named, str) else directory if directory in LEVELS else card.get("policy", directory)


@functools.cache
def usual_settings() -> Mapping[str, Any]:
    """The defaults by dotted key."""
    return MappingProxyType(configuration.defaults().flat())


def _settings(path: Path) -> dict[str, Any]:
    """By dotted key; a setting that the writer's version did not have is that of the defaults."""
    found = dict(usual_settings()) | configuration.flatten(configuration.read_yaml(path))
    for key, kind in SETTINGS.items():
        if wrong := unlike(found[key], kind, key):
            raise ConfigError(f"{path}: {wrong}; restore the file")
    return found


def _analyses(directory: Path) -> dict[str, dict[str, Any]]:
    remedy = "remove it and analyse the run again"
    return {
        name: _object(path, pattern, remedy)
        for name, pattern in ANALYSES.items()
        if (path := directory / f"{name}.json").exists()
    }


def _records(path: Path, pattern: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = read_records(path)
    for place, row in enumerate(rows, 1):
        wrong = _unfit(row, pattern)
        if not wrong and row["phase"] not in PHASES:
            wrong = f"expected phase as one of {', '.join(PHASES)}, received {shown(row['phase'])}"
        if wrong:
            raise DataError(f"{path}: record {place}: {wrong}; remove the line")
    return rows


def _newest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the last evaluated step, the newest row of every episode and environment, in the order of their first ones."""
    last = max(((PHASES.index(row["phase"]), row["step"]) for row in rows), default=None)
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if (PHASES.index(row["phase"]), row["step"]) == last:
            found[json.dumps([row["episode_seed"], row.get("environment", {})], sort_keys=True)] = row
    return list(found.values())


def _object(path: Path, pattern: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """A JSON object with all the entries of a pattern at least."""
    return read_object(path, lambda found: _unfit(found, pattern), remedy, MAX_ANALYSIS_BYTES)


def _unfit(value: Any, pattern: Any, where: str = "") -> str:
    """Where a JSON value is not as a pattern says or lacks an entry, in words; empty if it fits."""
    if not isinstance(pattern, Mapping):
        return unlike(value, pattern, where)
    if wrong := unlike(value, dict, where):
        return wrong
    for key, part in pattern.items():
        name = key.removesuffix("?")
        if name not in value and name == key:
            return f"missing {f'{where}.{name}'.removeprefix('.')}"
        if name in value and (wrong := _unfit(value[name], part, f"{where}.{name}")):
            return wrong
    return ""
