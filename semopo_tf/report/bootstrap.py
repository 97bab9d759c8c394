"""Statistics of score matrices: aggregates, comparisons and stratified bootstrap intervals, as in the paper's Figures 4
and 10.

A score matrix X is float64 [N, M]: N runs (or episodes) by M tasks. Every statistic works on the last two axes, so that
one call takes a whole block of resampled matrices [R, N, M]. NumPy alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.errors import DataError, cut

BLOCK = 1 << 17  # scores that are resampled at a time
UNITS = ("seed", "episode")
CUT = 0.25  # of all values, at each end of an interquartile mean

Statistic = Callable[..., Any]  # of as many score matrices as the bootstrap is given


class Interval(NamedTuple):
    """A statistic of the data and the ends of its confidence interval; each a number, or an array where the statistic
    is one.
    """

    estimate: Any
    low: Any
    high: Any


def mean(x: np.ndarray) -> Any:
    """Mean over tasks of the means over runs: x [..., N, M] -> [...]."""
    return x.mean((-2, -1))


def median(x: np.ndarray) -> Any:
    """Median over tasks of the means over runs: x [..., N, M] -> [...]."""
    return np.median(x.mean(-2), -1)


def interquartile_mean(x: np.ndarray) -> Any:
    """Mean of the middle half of all N * M values together, floor(N * M / 4) dropped at each end: x [..., N, M] ->
    [...].
    """
    values = _flat(x)
    size = values.shape[-1]
    dropped = int(CUT * size)
    if dropped:
        values = np.partition(values, (dropped, size - dropped - 1), -1)[..., dropped : size - dropped]
    return values.mean(-1)


def optimality_gap(x: np.ndarray, threshold: float = 1.0) -> Any:
    """How far the scores stay below the threshold on average, those above it counted as the threshold: x [..., N, M] ->
    [...].
    """
    return threshold - np.minimum(x, threshold).mean((-2, -1))


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> Any:
    """Mean over tasks of P(X > Y) + P(X = Y) / 2 for a run of each (Mann-Whitney's U / (N L)): x [..., N, M], y [...,
    L, M] -> [...].

    The paper's Figure 4. That of X over Y and that of Y over X sum to 1.
    """
    levels, ranks = np.unique(np.concatenate([x.ravel(), y.ravel()]), return_inverse=True)
    ours: np.ndarray = np.swapaxes(ranks[: x.size].reshape(x.shape), -1, -2)  # [..., M, N]
    theirs: np.ndarray = np.swapaxes(ranks[x.size :].reshape(y.shape), -1, -2)  # [..., M, L]
    count = theirs.shape[-1]
    # Each column gets a range of numbers of its own, so that one sorted list serves them all.
    column = np.arange(theirs.size // count).reshape(theirs.shape[:-1])[..., None]
    ordered = np.sort(theirs + column * len(levels), -1).ravel()
    sought = ours + column * len(levels)
    below, not_above = (np.searchsorted(ordered, sought, side) - column * count for side in ("left", "right"))
    return ((below + not_above) / (2 * count)).mean((-2, -1))


def performance_profile(x: np.ndarray, thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    """Fraction of all scores strictly above each threshold: x [..., N, M], thresholds [K] -> [..., K]. The paper's
    Figure 10.
    """
    values = _flat(x)
    return np.stack([(values > threshold).mean(-1) for threshold in np.asarray(thresholds, np.float64)], -1)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(*x.shape[:-2], -1)


def indices(shape: tuple[int, int], replicates: int, seed: int, place: int = 0) -> np.ndarray:
    """The runs that a bootstrap draws: int64 [replicates, N, M], for every task column by itself.

    Args:
      shape: (N, M) of the matrix.
      place: of the matrix among those of the statistic; each has draws of its own.
    """
    return _draw(_generator(seed, place), shape, replicates)


def _generator(seed: int, place: int) -> np.random.Generator:
    return np.random.default_rng((seed, place))


def _draw(generator: np.random.Generator, shape: tuple[int, ...], replicates: int) -> np.ndarray:
    return generator.integers(shape[0], size=(replicates, *shape))


def bootstrap(
    statistic: Statistic, *matrices: np.ndarray, replicates: int, seed: int, confidence: float = 0.95
) -> Interval:
    """Percentile interval of a statistic by the stratified bootstrap: runs are drawn with replacement within each task
    column.

    Every matrix is resampled by itself, and so is every column of it; tasks are not resampled. Customary are 50 000
    replicates for aggregates and 2000 for profiles and comparisons. An interval of a profile holds at each threshold by
    itself.

    Args:
      statistic: takes as many arrays [..., N, M] as there are matrices and returns [...] or [..., K].
      matrices: [N, M] each; the numbers of runs may differ, the tasks are the same.

    Raises:
      ValueError: when a matrix is not two-dimensional, is empty, has other columns than the first, or holds a number
        that is not finite.
    """
    given = [_checked(matrix, matrices[0]) for matrix in matrices]
    generators = [_generator(seed, place) for place in range(len(given))]
    block = max(1, BLOCK // max(matrix.size for matrix in given))
    found = []
    for start in range(0, replicates, block):
        drawn = [
            _draw(generator, matrix.shape, min(block, replicates - start))
            for generator, matrix in zip(generators, given, strict=True)
        ]
        found.append(
            statistic(*(np.take_along_axis(matrix[None], runs, 1) for matrix, runs in zip(given, drawn, strict=True)))
        )
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(found), (tail, 1 - tail), axis=0)
    return Interval(statistic(*given), low, high)


def _checked(matrix: np.ndarray, first: np.ndarray) -> np.ndarray:
    found = np.asarray(matrix, np.float64)
    if found.ndim != 2 or not found.size or found.shape[1] != np.shape(first)[-1]:
        raise ValueError(
            f"expected score matrices [runs, tasks] of the same tasks, received shapes {np.shape(first)} and "
            f"{found.shape}"
        )
    if not np.isfinite(found).all():
        raise ValueError(f"expected finite scores, received {int((~np.isfinite(found)).sum())} others")
    return found


def score_matrices(rows: Sequence[Mapping[str, Any]], unit: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """Score matrices of some methods on the same tasks, from one row an episode.

    Args:
      rows: {method, task, run_seed, score} each.
      unit: `episode`, where every episode is a run of its own, as in the paper's figures: intervals are too narrow for
        statements about seeds; `seed`, where a run is the mean over the episodes of one run seed.

    Returns:
      The tasks in alphabetical order, and for each method, in the order of the rows, its matrix [N, M].

    Raises:
      DataError: when a method has not as many runs on one task as on another, or none. Nothing is left out to make them
        equal: which runs to do without is for the caller to say.
    """
    if unit not in UNITS:
        raise ValueError(f"unit: expected one of {', '.join(UNITS)}, received {unit!r}")
    tasks = sorted({row["task"] for row in rows})
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        columns = [
            _column([row for row in rows if (row["method"], row["task"]) == (method, task)], unit) for task in tasks
        ]
        counts = {task: len(column) for task, column in zip(tasks, columns, strict=True)}
        if len(set(counts.values())) > 1:
            listed = cut(", ".join(f"{count} on {task}" for task, count in counts.items()), 200)
            raise DataError(
                f"{cut(method)}: expected as many {unit}s on every task, received {listed}; give the missing runs or "
                "leave tasks out"
            )
        found[method] = np.array(columns, np.float64).T
    return tasks, found


def _column(rows: Sequence[Mapping[str, Any]], unit: str) -> list[float]:
    """The scores of one method on one task."""
    if unit == "episode":
        return [row["score"] for row in rows]
    seeds = dict.fromkeys(row["run_seed"] for row in rows)
    return [float(np.mean([row["score"] for row in rows if row["run_seed"] == seed])) for seed in seeds]
