"""`report.bootstrap` against the package `rliable`, where it is installed (it needs pandas below 3, hence a separate
environment).

The same resampling indices must give the same intervals to 1e-9. Where rliable draws its own, the ends agree within
their own spread.
"""

import functools

import numpy as np
import pytest

from semopo_tf.report import bootstrap
from semopo_tf.report import bootstrap as statistics  # in `with_indices` the first name is that of an argument

library = pytest.importorskip("rliable.library")
metrics = pytest.importorskip("rliable.metrics")

REPLICATES, SEED = 300, 11
THRESHOLDS = np.linspace(0, 1.4, 29)
AGGREGATES = {
    "mean": metrics.aggregate_mean,
    "median": metrics.aggregate_median,
    "interquartile_mean": metrics.aggregate_iqm,
    "optimality_gap": metrics.aggregate_optimality_gap,
}


def scores(runs: int, seed: int) -> np.ndarray:
    """[runs, 9], in steps of a hundredth, so that many are equal."""
    return np.random.default_rng(seed).gamma(2.0, 0.3, (runs, 9)).round(2)


def with_indices(bootstrap: type, *matrices: np.ndarray):
    """One of rliable's bootstraps that resamples by the indices of ours."""
    given = [iter(bootstrap.indices(matrix.shape, REPLICATES, SEED, place)) for place, matrix in enumerate(matrices)]

    class Given(bootstrap):
        def update_indices(self):
            strata = [np.ogrid[0:0, 0 : matrix.shape[1]][1:] for matrix in matrices]
            drawn = [(next(source), *others) for source, others in zip(given, strata, strict=True)]
            return (drawn, {}) if bootstrap is library.StratifiedIndependentBootstrap else drawn[0]

    return Given(*matrices)


def theirs(bootstrap: type, function, *matrices: np.ndarray) -> np.ndarray:
    """rliable's interval over our indices: [2, K]."""
    return with_indices(bootstrap, *matrices).conf_int(function, reps=REPLICATES, size=0.95, method="percentile")


def ours(statistic, *matrices: np.ndarray, seed: int = SEED) -> bootstrap.Interval:
    return bootstrap.bootstrap(statistic, *matrices, replicates=REPLICATES, seed=seed)


def same(found: bootstrap.Interval, interval: np.ndarray, estimate) -> None:
    np.testing.assert_allclose([found.low, found.high], np.squeeze(interval), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.estimate, estimate, rtol=0, atol=1e-9)


@pytest.mark.parametrize("runs", [4, 50])
@pytest.mark.parametrize("name", AGGREGATES)
def test_aggregates_on_the_same_indices(name, runs):
    x, function = scores(runs, 1), AGGREGATES[name]
    interval = theirs(library.StratifiedBootstrap, lambda resampled: np.array([function(resampled)]), x)
    same(ours(getattr(statistics, name), x), interval, function(x))


@pytest.mark.parametrize("runs", [(4, 4), (4, 7), (30, 50)])
def test_probability_of_improvement_on_the_same_indices(runs):
    x, y = scores(runs[0], 1), scores(runs[1], 2)
    interval = theirs(
        library.StratifiedIndependentBootstrap, lambda a, b: np.array([metrics.probability_of_improvement(a, b)]), x, y
    )
    same(ours(bootstrap.probability_of_improvement, x, y), interval, metrics.probability_of_improvement(x, y))


def test_profiles_on_the_same_indices():
    x = scores(50, 1)
    interval = theirs(
        library.StratifiedBootstrap, lambda resampled: library.score_distributions(resampled, THRESHOLDS), x
    )
    found = ours(functools.partial(bootstrap.performance_profile, thresholds=THRESHOLDS), x)
    same(found, interval, library.score_distributions(x, THRESHOLDS))


def spread(intervals: list) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the ends of intervals from independent draws."""
    ends = np.array([np.ravel(interval) for interval in intervals], np.float64)
    return ends.mean(0), ends.std(0, ddof=1)


@pytest.mark.parametrize("name", [*AGGREGATES, "probability_of_improvement"])
def test_intervals_agree_where_rliable_draws_its_own(name):
    """Ten intervals of each; the means of their ends differ by no more than the ends themselves scatter."""
    x, y = scores(20, 1)[:, :3], scores(25, 2)[:, :3]
    pair = name == "probability_of_improvement"
    function = metrics.probability_of_improvement if pair else AGGREGATES[name]
    matrices = [x, y] if pair else [x]
    own, other = [], []
    np.random.seed(0)  # noqa: NPY002 - where rliable draws from, whatever random state it is given
    for seed in range(10):
        own.append(ours(getattr(statistics, name), *matrices, seed=seed)[1:])
        given = {"X": matrices if pair else x}
        other.append(
            library.get_interval_estimates(given, lambda *parts: np.array([function(*parts)]), reps=REPLICATES)[1]["X"]
        )
    (ours_mean, ours_std), (theirs_mean, theirs_std) = spread(own), spread(other)
    assert (np.abs(ours_mean - theirs_mean) < 4 * np.hypot(ours_std, theirs_std) / np.sqrt(10)).all()
    assert (ours_std < 3 * theirs_std).all() and (theirs_std < 3 * ours_std).all()
