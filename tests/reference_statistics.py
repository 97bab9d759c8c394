"""Slow reference versions of the statistics in `report.bootstrap`: loops over single matrices [N, M]."""

from collections.abc import Sequence

import numpy as np


def mean(x: np.ndarray) -> float:
    return float(np.mean([np.mean(column) for column in x.T]))


def median(x: np.ndarray) -> float:
    return float(np.median([np.mean(column) for column in x.T]))


def interquartile_mean(x: np.ndarray) -> float:
    values = sorted(float(value) for value in x.ravel())
    dropped = len(values) // 4
    return float(np.mean(values[dropped : len(values) - dropped]))


def optimality_gap(x: np.ndarray) -> float:
    return float(np.mean([1 - min(value, 1) for value in x.ravel()]))


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> float:
    tasks = []
    for ours, theirs in zip(x.T, y.T, strict=True):
        tasks.append(
            np.mean([1.0 if one > other else 0.5 if one == other else 0.0 for one in ours for other in theirs])
        )
    return float(np.mean(tasks))


def performance_profile(x: np.ndarray, thresholds: Sequence[float]) -> list[float]:
    return [float(np.mean([value > threshold for value in x.ravel()])) for threshold in thresholds]
