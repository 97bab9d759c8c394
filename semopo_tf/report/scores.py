"""The score table: every return, bound and dataset card that the page states, gathered once. The opening sentence, the
tables, the figures and the comparisons read it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.report import paper
from semopo_tf.report.groups import Dataset, Group, by_dataset, labels
from semopo_tf.report.run_record import RunRecord
from semopo_tf.report.tables import TIMES, span

STATISTICS = ("mean", "std", "min", "p25", "median", "p75", "max")  # of the episodes' returns, in a complete card


class Spread(NamedTuple):
    """Mean and population standard deviation over seeds, of one number per seed."""

    mean: float
    std: float  # nan for one seed
    seeds: int
    episodes: str  # of each seed

    def shown(self, form: str) -> str:
        return f"{self.mean:{form}}" if np.isnan(self.std) else f"{self.mean:{form}} ± {self.std:{form}}"

    @property
    def n(self) -> str:
        return f"{self.seeds} {TIMES} {self.episodes}"


class Bounds(NamedTuple):
    """The returns that count as 0 and 1."""

    low: float
    high: float
    published: bool  # in the paper; otherwise the extremes of the task's own datasets


class Score(NamedTuple):
    """Returns of the finished runs of one group in one environment."""

    group: Group
    condition: str  # how the environment differs from that of the data, in words; empty if it does not
    returns: dict[int, np.ndarray]  # seed -> [episodes]
    bounds: Bounds | None  # of the task; None where nothing gives them

    @property
    def raw(self) -> Spread:
        return spread(self.returns.values())

    @property
    def scaled(self) -> dict[int, np.ndarray]:
        """Normalised returns by seed; empty without bounds."""
        if not self.bounds:
            return {}
        low, high, _ = self.bounds
        return {seed: (values - low) / (high - low) for seed, values in self.returns.items()}

    @property
    def normalised(self) -> Spread | None:
        return spread(self.scaled.values()) if self.bounds else None


class ScoreTable(NamedTuple):
    """All scores of the given runs."""

    groups: Sequence[Group]
    rule: str  # of normalisation, one of `paper.RULES`
    bounds: dict[str, Bounds | None]  # of each task
    cards: dict[Dataset, dict[str, Any] | None]  # the complete card of each dataset, where a run has one
    scores: list[Score]  # in the order of the groups, the environment of the data first

    @property
    def methods(self) -> list[str]:
        """Labels of all evaluated methods, in the order of methods."""
        return labels(score.group for score in self.scores)

    def of(self, dataset: Dataset) -> list[Score]:
        """Scores of the methods that were evaluated in the environment of their data."""
        return [score for score in self.scores if score.group.dataset == dataset and not score.condition]


def score_table(groups: Sequence[Group], rule: str) -> ScoreTable:
    """Gather the scores of all finished runs.

    Args:
      rule: of normalisation, one of `paper.RULES`.
    """
    bounds = {task: _bounds(task, rule, groups) for task in dict.fromkeys(group.dataset.task for group in groups)}
    scores = []
    for group in groups:
        for condition in sorted({run.condition(row) for run in group.finished for row in run.scores}):
            returns = {run.seed: np.asarray(run.returns(condition), np.float64) for run in group.finished}
            evaluated = {seed: values for seed, values in returns.items() if len(values)}
            scores.append(Score(group, condition, evaluated, bounds[group.dataset.task]))
    runs = {dataset: [run for group in same for run in group.runs] for dataset, same in by_dataset(groups).items()}
    cards = {dataset: _card(same) for dataset, same in runs.items()}
    return ScoreTable(groups, rule, bounds, cards, scores)


def spread(values: Iterable[np.ndarray]) -> Spread:
    """Of the mean over each seed's episodes; `values` has one array per seed."""
    means, counts = zip(*((each.mean(), len(each)) for each in values), strict=True)
    std = float(np.std(means)) if len(means) > 1 else np.nan
    return Spread(float(np.mean(means)), std, len(means), span(counts))


def _bounds(task: str, rule: str, groups: Iterable[Group]) -> Bounds | None:
    """The paper's constants; where it has none, the smallest and largest episode return of the task's datasets."""
    if printed := paper.bounds(task, rule):
        return Bounds(*printed, True)
    runs = (run for group in groups if group.dataset.task == task for run in group.runs)
    returns = [value for run in runs for value in _episode_returns(run)]
    return Bounds(min(returns), max(returns), False) if returns and max(returns) > min(returns) else None


def _episode_returns(run: RunRecord) -> list[float]:
    """Of every episode of the run's dataset, or the extremes where only these are recorded."""
    each = [file["return"] for file in run.manifest.get("files", []) if isinstance(file.get("return"), int | float)]
    statistics = run.card.get("returns", {})
    return each or [statistics[key] for key in ("min", "max") if key in statistics]


def _card(runs: Iterable[RunRecord]) -> dict[str, Any] | None:
    """The first card with all statistics."""
    cards = (run.card for run in runs)
    return next((c for c in cards if "episodes" in c and set(STATISTICS) <= set(c.get("returns", {}))), None)
