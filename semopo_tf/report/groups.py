"""Runs sorted for tables and figures: by dataset and by method, the seeds of one setting together, and the scores of a
group on one scale.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.report import paper
from semopo_tf.report.run_record import RunRecord
from semopo_tf.report.tables import TIMES

ABLATIONS = ("semopo", "se_rs_drp", "se_rs", "offline_dv2")  # come first, in this order
# Settings that change no result, or say where things are.
ELSEWHERE = {
    "method",
    "seed",
    "logdir",
    "offline_dir",
    "cache_dir",
    "device",
    "remat",
    "replay",
    "jit",
    "updates_per_call",
    "log_every",
}
ELSEWHERE |= {
    "save_every",
    "keep_checkpoints",
    "eval.every",
    "eval.episodes",
    "eval.final_episodes",
    "eval.environments",
    "eval.seed",
}
ELSEWHERE |= {"video.every", "video.episodes", "video.length", "video.context"}
SHOWN_SETTINGS = 3  # in the name of a variant
PREFIXES = ("dmcdrv_", "dmc_", "gym_")


class Dataset(NamedTuple):
    """Episodes that runs were trained on."""

    label: str
    paper: str  # the name it would have in the paper's tables, such as `walker_walk random`
    task: str


class Group(NamedTuple):
    """The runs of one method with one setting on one dataset, which differ in the seed."""

    dataset: Dataset
    label: str  # the method, and what tells its variants apart
    runs: list[RunRecord]  # by seed

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def finished(self) -> list[RunRecord]:
        return [run for run in self.runs if run.finished]

    def returns(self, condition: str = "") -> list[np.ndarray]:
        """Returns of every finished run that was evaluated so, [episodes] each."""
        found = (np.asarray(run.returns(condition), np.float64) for run in self.finished)
        return [each for each in found if len(each)]

    def conditions(self) -> list[str]:
        """All in which a finished run was evaluated, the dataset's own first."""
        return sorted({run.condition(row) for run in self.finished for row in run.scores})


class Spread(NamedTuple):
    """Mean and population standard deviation over seeds, of one figure a seed."""

    mean: float
    std: float  # nan for one seed
    seeds: int
    episodes: str  # a seed

    def shown(self, form: str) -> str:
        return f"{self.mean:{form}}" if np.isnan(self.std) else f"{self.mean:{form}} ± {self.std:{form}}"

    @property
    def n(self) -> str:
        return f"{self.seeds} {TIMES} {self.episodes}"


class Bounds(NamedTuple):
    """What counts as 0 and as 1."""

    low: float
    high: float
    published: bool

    def scale(self, returns: np.ndarray) -> np.ndarray:
        return (returns - self.low) / (self.high - self.low)


def grouped(runs: Sequence[RunRecord]) -> tuple[list[Group], list[str]]:
    """(groups, by dataset and method; what was left out, in words)."""
    kept: dict[tuple, RunRecord] = {}
    left_out = []
    datasets, variants = _datasets(runs), _variants(runs)
    for run in runs:
        key = (datasets[run.logdir], variants[run.logdir], run.seed)
        if key in kept:
            left_out.append(
                f"{run.logdir}: the same method, settings, dataset and seed as {kept[key].logdir}; it counts no "
                "second time"
            )
        else:
            kept[key] = run
    found: dict[tuple[Dataset, str], list[RunRecord]] = defaultdict(list)
    for (dataset, label, _), run in kept.items():
        found[dataset, label].append(run)
    groups = [Group(dataset, label, sorted(same, key=lambda run: run.seed)) for (dataset, label), same in found.items()]
    return sorted(groups, key=lambda group: (_dataset_order(group.dataset), _method_order(group))), left_out


def labels(groups: Iterable[Group]) -> list[str]:
    """Of the methods of these groups, each once, in their order."""
    return list(dict.fromkeys(group.label for group in sorted(groups, key=_method_order)))


def by_dataset(groups: Iterable[Group]) -> dict[Dataset, list[Group]]:
    found: dict[Dataset, list[Group]] = defaultdict(list)
    for group in groups:
        found[group.dataset].append(group)
    return found


def spread(values: Sequence[np.ndarray]) -> Spread:
    """Of the means of each seed's episodes."""
    means, counts = [each.mean() for each in values], sorted({len(each) for each in values})
    episodes = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    return Spread(float(np.mean(means)), float(np.std(means)) if len(means) > 1 else np.nan, len(means), episodes)


def bounds(task: str, rule: str, groups: Iterable[Group]) -> Bounds | None:
    """The paper's constants; where it has none, the smallest and largest episode return of the task's datasets; None
    where nothing says.
    """
    printed = paper.bounds(task, rule)
    if printed:
        return Bounds(printed[0], printed[1], True)
    own = [
        value for group in groups if group.dataset.task == task for run in group.runs for value in episode_returns(run)
    ]
    return Bounds(min(own), max(own), False) if own and max(own) > min(own) else None


def episode_returns(run: RunRecord) -> list[float]:
    """Of the run's dataset: of every episode, or the extremes where only these are recorded."""
    each = [file["return"] for file in run.manifest.get("files", []) if isinstance(file.get("return"), int | float)]
    statistics = run.card.get("returns", {})
    return each or [statistics[key] for key in ("min", "max") if key in statistics]


def analyse_command(groups: Iterable[Group]) -> str:
    """That makes the analyses of the first run which can have them."""
    own = (run.logdir for group in groups for run in group.finished if not run.origin)
    return f"python -m semopo_tf.analysis --logdir {next(own, 'LOGDIR')}"


def _datasets(runs: Sequence[RunRecord]) -> dict[Any, Dataset]:
    """By logdir. Two datasets of one task and level are told apart by the names of their directories; imported runs do
    not say theirs.
    """
    known: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for run in runs:
        if run.dataset_hash:
            known[run.task, run.level].setdefault(run.dataset_hash, run.data)
    found = {}
    for run in runs:
        short = next((run.task.removeprefix(prefix) for prefix in PREFIXES if run.task.startswith(prefix)), run.task)
        paper, same = f"{short} {run.level}", known[run.task, run.level]
        label = f"{paper}, no distractors" if run.task.startswith("dmc_") else paper
        if len(same) > 1:
            name = same.get(run.dataset_hash, "imported")
            twice = list(same.values()).count(name) > 1
            label += f" ({name} {run.dataset_hash[:6]})" if twice else f" ({name})"
        found[run.logdir] = Dataset(label, paper, run.task)
    return found


def _variants(runs: Sequence[RunRecord]) -> dict[Any, str]:
    """By logdir: the method, and where runs of it on one dataset differ in a setting, what of it is not the most
    frequent value.
    """
    values: dict[tuple[str, str], dict[tuple[str, str], Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for run in runs:
        for key, value in _own_settings(run).items():
            values[run.method, key][run.task, run.dataset_hash][value] += 1
    usual = {
        of: sum(places.values(), Counter()).most_common(1)[0][0]
        for of, places in values.items()
        if any(len(each) > 1 for each in places.values())
    }
    found, taken = {}, dict[str, tuple]()
    for run in runs:
        own = _own_settings(run)
        told = tuple(
            f"{key} {own[key]}"
            for method, key in usual
            if method == run.method and own.get(key, usual[method, key]) != usual[method, key]
        )
        told += ("imported",) if run.origin else ()
        label = (
            run.method
            if not told
            else f"{run.method} ({', '.join(told[:SHOWN_SETTINGS])}{', …' if len(told) > SHOWN_SETTINGS else ''})"
        )
        while taken.setdefault(label, (run.method, told)) != (run.method, told):
            label += "'"
        found[run.logdir] = label
    return found


def _own_settings(run: RunRecord) -> dict[str, str]:
    own = {key: str(value) for key, value in run.settings.items() if key not in ELSEWHERE}
    return own | ({"world_model": "of another run" if own["world_model"] else "own"} if own else {})


def _dataset_order(dataset: Dataset) -> tuple:
    tasks = list(dict.fromkeys(name.split()[0] for name in paper.table(5)))
    names = list(paper.table(5))
    short = dataset.paper.split()[0]
    return (
        tasks.index(short) if short in tasks else len(tasks),
        names.index(dataset.paper) if dataset.paper in names else len(names),
        dataset.label,
    )


def _method_order(group: Group) -> tuple:
    order = [*ABLATIONS, *(method for method in paper.METHODS if method not in ABLATIONS)]
    return (order.index(group.method) if group.method in order else len(order), bool(group.runs[0].origin), group.label)
