"""Statistics of score matrices: aggregates, comparisons and stratified bootstrap intervals, as in the paper's Figures 4
and 10.

A score matrix X is float64 [N, M]: N runs (or episodes) by M tasks. Every statistic works on the last two axes, so that
one call takes a whole block of resampled matrices [R, N, M]. Uses NumPy only.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

BLOCK = 1 << 17  # scores resampled at a time
CUT = 0.25  # fraction of all values dropped at each end of an interquartile mean

Statistic = Callable[..., Any]  # of as many score matrices as the bootstrap is given


class Interval(NamedTuple):
    """A statistic of the data and the ends of its confidence interval: numbers, or arrays where the statistic is an
    array.
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
    """Mean of all N * M values without the lowest and the highest floor(N * M / 4): x [..., N, M] -> [...]."""
    values = _flat(x)
    size = values.shape[-1]
    dropped = int(CUT * size)
    if dropped:
        values = np.partition(values, (dropped, size - dropped - 1), -1)[..., dropped : size - dropped]
    return values.mean(-1)


def optimality_gap(x: np.ndarray, threshold: float = 1.0) -> Any:
    """Average distance of the scores below the threshold, 0 for those above it: x [..., N, M] -> [...]."""
    return threshold - np.minimum(x, threshold).mean((-2, -1))


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> Any:
    """Mean over tasks of P(X > Y) + P(X = Y) / 2 for a run of each, as in the paper's Figure 4.

    x [..., N, M], y [..., L, M] -> [...]. Per task it is Mann-Whitney's U / (N L); X over Y and Y over X sum to 1.
    """
    levels, ranks = np.unique(np.concatenate([x.ravel(), y.ravel()]), return_inverse=True)
    ours: np.ndarray = np.swapaxes(ranks[: x.size].reshape(x.shape), -1, -2)  # [..., M, N]
    theirs: np.ndarray = np.swapaxes(ranks[x.size :].reshape(y.shape), -1, -2)  # [..., M, L]
    count = theirs.shape[-1]
    # Each column gets its own range of numbers, so that one sorted list serves all of them.
    column = np.arange(theirs.size // count).reshape(theirs.shape[:-1])[..., None]
    ordered = np.sort(theirs + column * len(levels), -1).ravel()
    sought = ours + column * len(levels)
    below, not_above = (np.searchsorted(ordered, sought, side) - column * count for side in ("left", "right"))
    return ((below + not_above) / (2 * count)).mean((-2, -1))


def performance_profile(x: np.ndarray, thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    """Fraction of all scores strictly above each threshold, as in the paper's Figure 10.

    x [..., N, M], thresholds [K] -> [..., K].
    """
    values = _flat(x)
    return np.stack([(values > threshold).mean(-1) for threshold in np.asarray(thresholds, np.float64)], -1)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(*x.shape[:-2], -1)


def indices(shape: tuple[int, int], replicates: int, seed: int, place: int = 0) -> np.ndarray:
    """The runs that a bootstrap draws: int64 [replicates, N, M], independently for every task column.

    Args:
      shape: (N, M) of the matrix.
      place: index of the matrix among those of the statistic; each has its own draws.
    """
    return np.random.default_rng((seed, place)).integers(shape[0], size=(replicates, *shape))


def bootstrap(
    statistic: Statistic, *matrices: np.ndarray, replicates: int, seed: int, confidence: float = 0.95
) -> Interval:
    """Percentile interval of a statistic by the stratified bootstrap: runs are drawn with replacement within each task
    column.

    Matrices and their columns are resampled independently; tasks are not resampled. 50 000 replicates are customary for
    aggregates, 2000 for profiles and comparisons. The interval of a profile is pointwise.

    Args:
      statistic: takes as many arrays [..., N, M] as there are matrices and returns [...] or [..., K].
      matrices: [N, M] each; the numbers of runs may differ, the tasks may not.

    Raises:
      ValueError: when a matrix is not two-dimensional, is empty, has other columns than the first, or is not finite.
    """
    given = [_checked(matrix, matrices[0]) for matrix in matrices]
    generators = [np.random.default_rng((seed, place)) for place in range(len(given))]
    block = max(1, BLOCK // max(matrix.size for matrix in given))
    values = []
    for start in range(0, replicates, block):
        count, resampled = min(block, replicates - start), []
        for generator, matrix in zip(generators, given, strict=True):
            runs = generator.integers(len(matrix), size=(count, *matrix.shape))  # as in `indices`, block by block
            resampled.append(np.take_along_axis(matrix[None], runs, 1))
        values.append(statistic(*resampled))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(values), (tail, 1 - tail), axis=0)
    return Interval(statistic(*given), low, high)


def _checked(matrix: np.ndarray, first: np.ndarray) -> np.ndarray:
    x = np.asarray(matrix, np.float64)
    if x.ndim != 2 or not x.size or x.shape[1] != np.shape(first)[-1]:
        shapes = f"{np.shape(first)} and {x.shape}"
        raise ValueError(f"expected score matrices [runs, tasks] of the same tasks, received shapes {shapes}")
    if not np.isfinite(x).all():
        raise ValueError(f"expected finite scores, received {int((~np.isfinite(x)).sum())} others")
    return x
