"""Aggregates, comparisons and their intervals, against values computed by hand and by slow reference versions."""

import itertools

import numpy as np
import pytest
import reference_statistics as slow

from semopo_tf.report import bootstrap
from semopo_tf.report import bootstrap as statistics

AGGREGATES = {name: getattr(statistics, name) for name in ("mean", "median", "interquartile_mean", "optimality_gap")}


def scores(shape: tuple[int, ...] = (4, 3), seed: int = 0) -> np.ndarray:
    """Scores, some of them equal."""
    return np.random.default_rng(seed).integers(0, 8, shape) / 5


def test_probability_of_improvement_by_hand():
    """Task 0: .2 against .3 and .1 wins once, .4 wins twice: 3/4. Task 1: .5 ties with .5 and loses to .9, both times:
    1/4.
    """
    x, y = np.array([[0.2, 0.5], [0.4, 0.5]]), np.array([[0.3, 0.5], [0.1, 0.9]])
    per_task = [bootstrap.probability_of_improvement(x[:, [task]], y[:, [task]]) for task in range(2)]
    assert per_task == [0.75, 0.25]
    assert bootstrap.probability_of_improvement(x, y) == 0.5


def test_interquartile_mean_and_optimality_gap_by_hand():
    """Of 0 1 2 3 4 5 6 10, two are dropped at each end: (2 + 3 + 4 + 5) / 4. Half a point is missing from 0.5, none
    from 2.
    """
    for order in itertools.islice(itertools.permutations([0, 1, 2, 3, 4, 5, 6, 10]), 0, 40_320, 1000):
        assert bootstrap.interquartile_mean(np.array(order, float).reshape(4, 2)) == 3.5
    assert bootstrap.optimality_gap(np.array([[0.5, 2.0]])) == 0.25
    assert bootstrap.optimality_gap(np.array([[0.5, 2.0]]), threshold=2.0) == 0.75


def test_mean_and_median_are_over_tasks():
    x = np.array([[0.0, 1, 8], [2, 1, 10]])  # means over runs 1, 1 and 9
    assert bootstrap.mean(x) == pytest.approx(11 / 3)
    assert bootstrap.median(x) == 1


def test_a_profile_does_not_count_scores_at_the_threshold():
    x = np.array([[0.0, 0.5], [0.5, 1.0]])
    np.testing.assert_array_equal(
        bootstrap.performance_profile(x, [-0.1, 0, 0.4, 0.5, 0.9, 1]), [1, 0.75, 0.75, 0.25, 0.25, 0]
    )


@pytest.mark.parametrize("runs", [(4, 4), (1, 7), (5, 3)])
def test_everything_agrees_with_the_definitions_spelled_out(runs):
    for seed in range(20):
        x, y = scores((runs[0], 3), seed), scores((runs[1], 3), seed + 100)
        for name, statistic in AGGREGATES.items():
            assert statistic(x) == pytest.approx(getattr(slow, name)(x), abs=1e-12), name
        assert bootstrap.probability_of_improvement(x, y) == pytest.approx(
            slow.probability_of_improvement(x, y), abs=1e-12
        )
        thresholds = np.linspace(-0.2, 1.6, 10)
        np.testing.assert_allclose(
            bootstrap.performance_profile(x, thresholds), slow.performance_profile(x, thresholds), atol=1e-12
        )


def test_a_block_of_matrices_gives_what_each_gives():
    x, y = scores((2, 5, 4, 3)), scores((2, 5, 6, 3), 1)
    found = {name: statistic(x) for name, statistic in AGGREGATES.items()} | {
        "pair": bootstrap.probability_of_improvement(x, y)
    }
    found["profile"] = bootstrap.performance_profile(x, [0.2, 0.7])
    assert found["profile"].shape == (2, 5, 2)
    for place in np.ndindex(2, 5):
        each = {name: statistic(x[place]) for name, statistic in AGGREGATES.items()}
        each["pair"] = bootstrap.probability_of_improvement(x[place], y[place])
        each["profile"] = bootstrap.performance_profile(x[place], [0.2, 0.7])
        for name, value in each.items():
            np.testing.assert_allclose(found[name][place], value, atol=1e-12, err_msg=name)


def test_an_improvement_of_one_is_a_decline_of_the_other():
    for seed in range(20):
        x, y = scores(seed=seed), scores((7, 3), seed + 50)
        assert bootstrap.probability_of_improvement(x, y) + bootstrap.probability_of_improvement(y, x) == pytest.approx(
            1, abs=1e-12
        )
    assert bootstrap.probability_of_improvement(x, x) == 0.5
    assert bootstrap.probability_of_improvement(x + 2, x) == 1


def test_four_seeds_give_multiples_of_one_32nd():
    found = {
        32 * bootstrap.probability_of_improvement(scores((4, 1), seed), scores((4, 1), seed + 99))
        for seed in range(200)
    }
    assert all(value == int(value) for value in found)
    assert any(value % 2 for value in found)  # ties count half


@pytest.mark.parametrize("name", AGGREGATES)
def test_a_constant_matrix_has_an_interval_of_no_width(name):
    found = bootstrap.bootstrap(AGGREGATES[name], np.full((4, 3), 0.75), replicates=200, seed=1)
    assert found == (found.estimate,) * 3
    assert found.estimate == (0.25 if name == "optimality_gap" else 0.75)


def test_two_constant_matrices_have_an_interval_of_no_width():
    pair = bootstrap.bootstrap(
        bootstrap.probability_of_improvement, np.full((4, 3), 0.75), np.full((5, 3), 0.5), replicates=200, seed=1
    )
    assert pair == (1, 1, 1)


def test_the_interval_is_made_of_the_quantiles_of_the_resampled_matrices():
    x, y = scores((4, 3)), scores((6, 3), 1)
    first, second = (bootstrap.indices(matrix.shape, 500, 7, place) for place, matrix in enumerate((x, y)))
    values = [
        slow.probability_of_improvement(np.take_along_axis(x, ours, 0), np.take_along_axis(y, theirs, 0))
        for ours, theirs in zip(first, second, strict=True)
    ]
    found = bootstrap.bootstrap(bootstrap.probability_of_improvement, x, y, replicates=500, seed=7, confidence=0.9)
    np.testing.assert_allclose(found[1:], np.quantile(values, [0.05, 0.95]), atol=1e-12)
    assert found.estimate == bootstrap.probability_of_improvement(x, y)


def test_the_interval_of_a_profile_is_one_for_each_threshold():
    x, thresholds = scores((6, 3)), [0.1, 0.5, 1.7]
    found = bootstrap.bootstrap(
        lambda block: bootstrap.performance_profile(block, thresholds), x, replicates=300, seed=2
    )
    assert [part.shape for part in found] == [(3,)] * 3
    assert (found.low <= found.estimate).all() and (found.estimate <= found.high).all()
    assert found.low[2] == found.high[2] == 0


def test_the_seed_decides_every_draw_and_the_size_of_a_block_none(monkeypatch):
    x, y = scores((5, 3)), scores((4, 3), 1)

    def interval(seed):
        return bootstrap.bootstrap(bootstrap.probability_of_improvement, x, y, replicates=101, seed=seed)

    first = interval(3)
    np.random.seed(0)  # noqa: NPY002 - a global generator that must have no say
    assert interval(3) == first
    assert interval(4) != first
    monkeypatch.setattr(bootstrap, "BLOCK", 45)  # three replicates at a time
    assert interval(3) == first


def test_matrices_columns_and_replicates_have_draws_of_their_own():
    draws = bootstrap.indices((50, 4), 300, 1)
    assert draws.shape == (300, 50, 4) and draws.min() == 0 and draws.max() == 49
    np.testing.assert_array_equal(draws, bootstrap.indices((50, 4), 300, 1))
    other = bootstrap.indices((50, 4), 300, 1, 1)
    flat = np.stack(
        [*draws.transpose(2, 0, 1).reshape(4, -1), other[..., 0].ravel(), np.roll(draws[..., 0], 1, 0).ravel()]
    )
    between = np.corrcoef(flat) - np.eye(6)
    assert np.abs(between).max() < 5 / np.sqrt(flat.shape[1])
    counts = np.bincount(draws.ravel(), minlength=50)
    assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())


def test_stratified_columns_are_narrower_than_whole_runs_drawn_together():
    """With N runs of M tasks, the mean of independently drawn columns has the variance of the data divided by N M.
    Drawn together, it would have that of the means of the rows divided by N. With rows of equal scores the two differ
    by the factor M.
    """
    rows = np.repeat(np.linspace(0, 1, 20)[:, None], 9, 1)
    values = np.take_along_axis(rows[None], bootstrap.indices(rows.shape, 4000, 5), 1).mean((-2, -1))
    assert values.std() == pytest.approx(rows.std() / np.sqrt(rows.size), rel=0.05)


def test_matrices_that_do_not_fit_are_refused():
    for wrong, message in (
        ((np.zeros(3),), r"score matrices \[runs, tasks\] of the same tasks, received shapes \(3,\) and \(3,\)"),
        ((np.zeros((0, 3)),), "received shapes"),
        ((np.zeros((4, 3)), np.zeros((4, 2))), r"received shapes \(4, 3\) and \(4, 2\)"),
        ((np.array([[0.0, np.nan], [np.inf, 1]]),), "expected finite scores, received 2 others"),
    ):
        with pytest.raises(ValueError, match=message):
            bootstrap.bootstrap(
                bootstrap.probability_of_improvement if len(wrong) == 2 else bootstrap.mean,
                *wrong,
                replicates=10,
                seed=1,
            )
