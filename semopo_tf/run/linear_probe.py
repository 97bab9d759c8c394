"""Linear probes: what features say linearly about a quantity. Ridge regression in NumPy."""

from typing import NamedTuple

import numpy as np

RIDGE = 1e-3  # for standardised features, times the number of rows


class Probe(NamedTuple):
    """A linear map from features to one true quantity."""

    mean: np.ndarray  # [F] of the features it was fitted on
    scale: np.ndarray  # [F]
    weight: np.ndarray  # [F + 1, D], the last row is the offset

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """features [..., F] -> [..., D]."""
        return _with_one((features - self.mean) / self.scale) @ self.weight


def fit_probe(features: np.ndarray, target: np.ndarray) -> Probe:
    """Ridge regression in float64: features [N, F], target [N, D]. The offset is not regularised."""
    mean, scale = features.mean(0), features.std(0) + 1e-8
    x = _with_one((features - mean) / scale)
    shrink = RIDGE * len(x) * np.eye(x.shape[1])
    shrink[-1, -1] = 0
    return Probe(mean, scale, np.linalg.solve(x.T @ x + shrink, x.T @ target))


def _with_one(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.ones((*x.shape[:-1], 1))], -1)


def r_squared(predicted: np.ndarray, target: np.ndarray) -> float:
    """R^2 of predictions [N, D], mean over the columns: at most 1; 0 is no better than predicting the mean."""
    error, spread = ((predicted - target) ** 2).sum(0), ((target - target.mean(0)) ** 2).sum(0)
    return float(np.mean(1 - error / np.maximum(spread, 1e-12)))
