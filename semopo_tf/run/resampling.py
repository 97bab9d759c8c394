"""Bootstrap over the episodes of one run: intervals of what its analyses measure in their states."""

from collections.abc import Mapping

import numpy as np

REPLICATES = 1000


def draws(episodes: int) -> np.ndarray:
    """Episodes of each replicate of the bootstrap, [1 + REPLICATES, E]; the first row is the sample itself. States of
    one episode are alike, so whole episodes are drawn.
    """
    replicates = np.random.default_rng(0).integers(episodes, size=(REPLICATES, episodes))
    return np.concatenate([np.arange(episodes)[None], replicates])


def interval(values: np.ndarray) -> Mapping[str, float]:
    """The estimate, the first of values [1 + R], and the ends of its 95 % percentile interval, from the others; without
    ends where there is a single episode, which says nothing about others.
    """
    replicates = values[1:][np.isfinite(values[1:])]
    if not len(replicates) or (replicates == values[0]).all():
        return {"estimate": float(values[0])}
    low, high = np.quantile(replicates, (0.025, 0.975))
    return {"estimate": float(values[0]), "low": float(low), "high": float(high)}
