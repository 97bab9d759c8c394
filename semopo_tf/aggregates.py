"""What several tasks say together: mean, median, interquartile mean, optimality gap, probability of improvement, performance profiles.

Two units: `seed`, one score a seed (the mean of its episodes), for claims about methods; `episode`, one score an episode as in the paper's Figures
4 and 10, whose intervals are too narrow for that, since episodes of one seed are not independent (baselines.md 12).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from semopo_tf import statistics
from semopo_tf.groups import Dataset, Group, bounds, labels
from semopo_tf.tables import Table

UNITS = ("seed", "episode")
REPLICATES, SEED = 2000, 0
MEASURES = {
    "mean": statistics.mean,
    "median": statistics.median,
    "interquartile mean": statistics.interquartile_mean,
    "optimality gap": statistics.optimality_gap,
}
THRESHOLDS = 141  # of a profile
LEAST_REACH = 1.4  # of a profile, which goes up to the highest score


class Compared(NamedTuple):
    """Normalised scores of methods on the same tasks."""

    datasets: list[Dataset]
    scores: dict[str, dict[str, np.ndarray]]  # unit -> method -> [runs, tasks]
    left_out: list[str]  # in words


def compared(groups: Sequence[Group], rule: str) -> Compared | None:
    """The largest set of methods and datasets in which every method was evaluated on every dataset, with the seeds that it has on all.

    None where no run has scores that can be normalised.
    """
    found: dict[str, dict[Dataset, dict[int, np.ndarray]]] = {}
    for group in groups:
        limits = bounds(group.dataset.task, rule, groups)
        each = {run.seed: limits.scale(np.asarray(run.returns())) for run in group.finished if run.returns()} if limits else {}
        if each:
            found.setdefault(group.label, {})[group.dataset] = each
    if not found:
        return None
    sets = [set(datasets) for datasets in found.values()]
    chosen = max(sets, key=lambda wanted: len(wanted) * sum(wanted <= other for other in sets))
    datasets = [dataset for dataset in dict.fromkeys(group.dataset for group in groups) if dataset in chosen]
    whole = [label for label in labels(groups) if label in found and chosen <= set(found[label])]
    left_out = [f"{label}: not evaluated on all of these datasets" for label in found if label not in whole]
    matrices: dict[str, dict[str, np.ndarray]] = {unit: {} for unit in UNITS}
    for label in whole:
        seeds = sorted(set.intersection(*(set(found[label][dataset]) for dataset in datasets)))
        if seeds:
            scores = [[found[label][dataset][seed] for dataset in datasets] for seed in seeds]
            matrices["seed"][label] = np.array([[each.mean() for each in row] for row in scores])
            episodes = min(len(each) for row in scores for each in row)
            matrices["episode"][label] = np.concatenate([np.stack([each[:episodes] for each in row], 1) for row in scores])
        else:
            left_out.append(f"{label}: no seed that it was trained with on all of these datasets")
    return Compared(datasets, matrices, left_out) if matrices["seed"] else None


def aggregate_table(found: Compared, units: Sequence[str]) -> Table:
    """A row for every method and unit; 95 % intervals where there is more than one run."""
    rows = []
    for unit in units:
        for label, scores in found.scores[unit].items():
            figures = [shown_interval(interval(measure, scores)) for measure in MEASURES.values()]
            rows.append([label, unit, f"{scores.shape[0]} × {scores.shape[1]}", *figures])
    return Table("aggregates", ["method", "unit", "runs × tasks", *MEASURES], rows)


def improvements(scores: Mapping[str, np.ndarray]) -> list[tuple[str, str, statistics.Interval]]:
    """(X, Y, probability that X is better) of all pairs, both in the methods' order."""
    pairs = combinations(scores, 2)
    return [(x, y, interval(statistics.probability_of_improvement, scores[x], scores[y])) for x, y in pairs]


def improvement_table(found: Compared, units: Sequence[str]) -> Table:
    rows = [[f"{x}, {y}", unit, shown_interval(between)] for unit in units for x, y, between in improvements(found.scores[unit])]
    return Table("figure4", ["X, Y", "unit", "P(X > Y)"], rows)


def profiles(scores: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, statistics.Interval]]:
    """(thresholds, fraction of scores above each with its band) of every method."""
    lowest, highest = (extreme([extreme(each) for each in scores.values()]) for extreme in (np.min, np.max))
    thresholds = np.linspace(min(0.0, float(lowest)), max(LEAST_REACH, float(highest)), THRESHOLDS)
    found = {label: interval(lambda x: statistics.performance_profile(x, thresholds), each) for label, each in scores.items()}
    return thresholds, found


def interval(statistic, *matrices: np.ndarray) -> statistics.Interval:
    """With limits at the estimate itself where resampling cannot differ: one run a task."""
    return statistics.bootstrap(statistic, *matrices, replicates=REPLICATES, seed=SEED)


def shown_interval(found: statistics.Interval) -> str:
    low, high = float(found.low), float(found.high)
    return f"{float(found.estimate):.2f}" if low == high else f"{float(found.estimate):.2f}\n[{low:.2f}, {high:.2f}]"
