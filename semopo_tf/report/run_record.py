"""The directory of a run, or of an imported run, as one value. Every entry is type-checked before use.

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
from semopo_tf.errors import ConfigError, DataError
from semopo_tf.report.importers import ONLINE
from semopo_tf.storage.records import read_records
from semopo_tf.storage.schema import read_object, unfit

MAX_ANALYSIS_BYTES = 1 << 24
LEVELS = ("random", "medrep", "medium")
STREAMS = ("endo", "exo", "joint")
MEASURES = ("mean_norm", "log_prob_variance")
TRUST_MEASURES = configuration.CHOICES["penalty.measure"]
# Setting of an environment -> entry of a card's background.
BACKGROUND = {
    **{f"background_{key}": key for key in ("color", "split")},
    "background": "source",
    **{key: key for key in ("mask_rule", "distractor")},
}
UNSAID = {"distractor": "none"}  # what an environment shows whose card or score row does not say
# Patterns of the files (`schema.unfit`): these keys at least; one that ends with `?` may be absent.
ORIGIN = {"format": str, "method": str, "task": str, "level": str, "seed": int, "file": str, "sha256": str}
ORIGIN |= {"unfinished?": str, "end?": object}
SETTINGS = {"method": str, "task": str, "seed": int, "offline_dir": str, "world_model": str, "model.kind": str}
SETTINGS |= dict.fromkeys(("steps.model", "steps.policy", "video.episodes", "video.context"), int)
METRIC = {"phase": str, "step": int}
TIMING = {"phase": str, "time": float, "start?": bool}
SCORE = {"phase": str, "step": int, "episode_seed": int, "return": float, "source": str, "environment?": dict}
ENTROPY = {"entropy": [float], "pool": [int]}


def _streams(pattern: Any) -> dict[str, Any]:
    """The pattern of an object that may have an entry for every stream."""
    return {f"{stream}?": pattern for stream in STREAMS}


UNCERTAINTY = _streams({"mean": float, "std": float})
TRUST_STEPS = "5"  # of the rollouts in analysis/trust.json that the page shows: the paper's horizon
ESTIMATE = {"estimate": float, "low?": float, "high?": float}
AFTER = {f"{TRUST_STEPS}?": ESTIMATE}
AGAINST = {error: {"sum": AFTER} for error in ("reward?", "position?")}
TRUST = {"means": {"excess": AFTER}, "correlations": {f"{name}?": AGAINST for name in TRUST_MEASURES}}
ANALYSES: dict[str, dict[str, Any]] = {
    "probe": {"r2": _streams(dict), "open_loop": _streams(dict), "reward_r2": float},
    "uncertainty": {
        "states": int,
        "measures": dict.fromkeys(MEASURES, UNCERTAINTY),
        "frames": {"groups": [[list]], "values": _streams([[float]])},
    },
    "reconstruction": {"rows": [str], "frames": int, "size": int, "places": [list], "mse": dict},
    "trust": {"penalty": {"measure": str}, "sources": {"policy": TRUST, "dataset": TRUST}},
    "bound": {
        "penalty": {"measure": str, "weight": float},
        **dict.fromkeys(("simulator", "model", "penalised"), ESTIMATE),
        "smallest": {f"{name}?": ESTIMATE for name in TRUST_MEASURES},
    },
    "entropy": {
        **dict.fromkeys(("epochs", "updates_per_epoch", "bins", "dimensions"), int),
        "rules": {"conservative": ENTROPY, "uniform": ENTROPY},
    },
}


class RunRecord(NamedTuple):
    """What the directory of a run says."""

    logdir: Path
    method: str
    task: str
    level: str  # of the dataset: random, medrep, medium, or a word of its card
    seed: int
    origin: str  # format of the original program it was imported from; empty for a run of this package
    unfinished: str  # why it enters no table, in words that follow "the run"; empty for one that does
    settings: dict[str, Any]  # by dotted key; empty for an imported run
    manifest: dict[str, Any]  # dataset_manifest.json; empty for an imported run
    metrics: list[dict[str, Any]]  # in chronological order
    minutes: dict[str, float]  # training time of each stage
    scores: list[dict[str, Any]]  # at the last evaluated step of the last stage, one row per episode and environment
    analyses: dict[str, dict[str, Any]]  # analysis/<name>.json by name
    end: int | None = None  # last step of a complete imported run, where it is known

    @property
    def finished(self) -> bool:
        return not self.unfinished

    @property
    def stages(self) -> list[str]:
        """Stages of learning in the order of the run."""
        return list(dict.fromkeys(row["phase"] for row in self.metrics))

    @property
    def last_step(self) -> int:
        """Updates so far in the last stage."""
        return reached(self, self.stages[-1]) if self.stages else 0

    def stage_of(self, metric: str) -> str:
        """The last stage that recorded a metric; empty where none has."""
        return next((row["phase"] for row in reversed(self.metrics) if metric in row), "")

    @property
    def card(self) -> dict[str, Any]:
        """The card of the dataset; empty where there is none."""
        return self.manifest.get("card") or {}

    @property
    def data(self) -> str:
        """Name of the dataset's directory."""
        return Path(self.settings.get("offline_dir", "")).name

    @property
    def dataset_hash(self) -> str:
        """Hash of the names and contents of the episodes; empty where the run does not record them."""
        files = [[file["name"], file["sha256"]] for file in self.manifest.get("files", [])]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest() if files else ""

    def condition(self, row: Mapping[str, Any]) -> str:
        """How the environment of a score row differs from that of the dataset, in words; empty if it does not."""
        usual, environment = (UNSAID | each for each in (self._usual(), row.get("environment", {})))
        changed = (key for key in sorted(environment) if key in usual and environment[key] != usual[key])
        return ", ".join(f"{key} {environment[key]}" for key in changed)

    def returns(self, condition: str = "") -> list[float]:
        """Returns of the episodes at the last evaluated step, in environments of this condition."""
        return [row["return"] for row in self.scores if self.condition(row) == condition]

    def probed(self, *path: str) -> Any:
        """The entry of analysis/probe.json at a path of keys; None where there is none."""
        entry: Any = self.analyses.get("probe")
        for key in path:
            entry = entry.get(key) if isinstance(entry, dict) else None
        return entry

    def _usual(self) -> dict[str, Any]:
        """The environment of the dataset's card; without one, that of the final evaluation."""
        environment, background = self.card.get("environment", {}), self.card.get("background", {})
        if background.get("source", "none") != "none":
            return environment | {key: background[name] for key, name in BACKGROUND.items() if name in background}
        evaluated = (row for row in reversed(self.scores) if row["source"] == "train" and "environment" in row)
        return next((row["environment"] for row in evaluated), environment)


def read_run(logdir: Path) -> RunRecord:
    """Read everything that the report needs from the directory of a run or an imported run.

    Raises:
      ConfigError: when the directory is not that of a run, or of one without metrics.
      DataError: naming a file that differs from what a run writes.
    """
    imported, ours = ((logdir / name).is_file() for name in ("origin.json", "config.yaml"))
    metrics = _records(logdir / "metrics.jsonl", METRIC) if imported or ours else []
    if not imported and not metrics:
        raise ConfigError(f"{logdir}: expected the logdir of a run with metrics, received none")
    stages = list(dict.fromkeys(row["phase"] for row in metrics))
    scores = _newest(_records(logdir / "scores.jsonl", SCORE), stages)
    if imported:
        origin = _object(logdir / "origin.json", ORIGIN, "import the run again with python -m semopo_tf.originals")
        unfinished, end = origin.get("unfinished"), origin.get("end")
        if unfinished is None:  # of an earlier version, which did not look
            untrained = bool(stages) and origin["format"] not in ONLINE and "policy" not in stages
            unfinished = "ends in the model phase: its policy is untrained" if untrained else ""
        about = (origin["method"], origin["task"], origin["level"], origin["seed"], origin["format"], unfinished)
        return RunRecord(logdir, *about, {}, {}, metrics, {}, scores, {}, end if type(end) is int else None)
    settings, manifest = _settings(logdir / "config.yaml"), read_run_data(logdir)
    level = _level(manifest["card"] or {}, Path(settings["offline_dir"]).name)
    unfinished = "" if (logdir / "DONE").exists() else "is not finished"
    about = (settings["method"], settings["task"], level, settings["seed"], "", unfinished)
    minutes, analyses = phase_minutes(logdir), _analyses(logdir / "analysis")
    return RunRecord(logdir, *about, settings, manifest, metrics, minutes, scores, analyses)


def phase_minutes(logdir: Path) -> dict[str, float]:
    """Wall-clock minutes of each stage, compilation and evaluations included; the time between a stop and the next
    start does not count.
    """
    minutes: dict[str, float] = {}
    before = 0.0
    for row in _records(logdir / "timing.jsonl", TIMING):
        passed = 0.0 if row.get("start") else (row["time"] - before) / 60
        minutes[row["phase"]], before = minutes.get(row["phase"], 0.0) + passed, row["time"]
    return minutes


def points(run: RunRecord, metric: str) -> dict[int, float]:
    """{step: value} of a metric in the last stage that recorded it, where it is a finite number."""
    stage = run.stage_of(metric)
    rows = (row for row in run.metrics if row["phase"] == stage and type(row.get(metric)) in (int, float))
    return {row["step"]: float(row[metric]) for row in rows if math.isfinite(row[metric])}


def reached(run: RunRecord, phase: str) -> int:
    """Updates of a stage so far."""
    return max((row["step"] for row in run.metrics if row["phase"] == phase), default=0)


def _level(card: Mapping[str, Any], directory: str) -> str:
    """Of a dataset: what its card says; of a joined one, the name of its directory."""
    named = card.get("level")
    if isinstance(named, str):
        return named
    return directory if directory in LEVELS or "joined" in card else card.get("policy", directory)


@functools.cache
def usual_settings() -> Mapping[str, Any]:
    """The defaults by dotted key."""
    return MappingProxyType(configuration.defaults().flat())


def _settings(path: Path) -> dict[str, Any]:
    """By dotted key; a setting that the writer's version did not have gets its default."""
    settings = dict(usual_settings()) | configuration.flatten(configuration.read_yaml(path))
    if wrong := next((wrong for key, kind in SETTINGS.items() if (wrong := unfit(settings[key], kind, key))), ""):
        raise ConfigError(f"{path}: {wrong}; restore the file")
    return settings


def _analyses(directory: Path) -> dict[str, dict[str, Any]]:
    remedy, paths = "remove it and analyse the run again", {name: directory / f"{name}.json" for name in ANALYSES}
    return {name: _object(path, ANALYSES[name], remedy) for name, path in paths.items() if path.exists()}


def _records(path: Path, pattern: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file."""
    rows = read_records(path)
    for number, row in enumerate(rows, 1):
        if wrong := unfit(row, pattern):
            raise DataError(f"{path}: record {number}: {wrong}; remove the line")
    return rows


def _newest(rows: Sequence[dict[str, Any]], stages: Sequence[str]) -> list[dict[str, Any]]:
    """At the last evaluated step of the last stage, the newest row of every episode and environment, in the order of
    their first rows; none where only earlier stages, whose policy is untrained, were evaluated.

    Stages without metrics come after the others: a checkpoint may be evaluated before its stage has a row.
    """
    order = list(dict.fromkeys([*stages, *(row["phase"] for row in rows)]))
    steps = [row["step"] for row in rows if row["phase"] == order[-1]]
    newest: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["phase"] == order[-1] and row["step"] == max(steps):
            newest[json.dumps([row["episode_seed"], row.get("environment", {})], sort_keys=True)] = row
    return list(newest.values())


def _object(path: Path, pattern: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """A JSON object that fits a pattern."""
    return read_object(path, lambda value: unfit(value, pattern), remedy, MAX_ANALYSIS_BYTES)
