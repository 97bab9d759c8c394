"""The rank correlation of disagreement with the model's error: what is compared with what, the statistics, and every
learner that has an ensemble.
"""

import types

import numpy as np
import pytest
import reference
import tensorflow as tf
import tiny
from scipy import stats

from semopo_tf import collect
from semopo_tf.data.dataset import open_dataset
from semopo_tf.errors import ConfigError, DataError
from semopo_tf.methods.losses import MEASURES
from semopo_tf.run import resampling, trust
from semopo_tf.run.linear_probe import Probe
from semopo_tf.types import Batch, Episode, Latent

# --- what is compared with what ---------------------------------------------------------------------------------------

BIAS = 0.25
MULTIPLES = {name: number + 1 for number, name in enumerate(MEASURES)}


class Known:
    """A world model of a point that the actions push. It filters the truth, and adds an error of its own at every
    predicted step. Reward: the first coordinate; disagreement: a multiple of the second.
    """

    def posterior(self, batch, key):
        position = tf.cumsum(batch.action, axis=1)
        return Latent(position, position[..., :0], {})

    def draw_steps(self, key, horizon, size):
        return tf.zeros([horizon, size])

    def step(self, latent, action, noise):
        return latent._replace(deter=latent.deter + action + BIAS)

    def features(self, latent):
        return latent.deter

    def reward(self, feat):
        return feat[..., 0]

    def disagreement(self, latent, measure):
        return MULTIPLES[measure] * latent.deter[..., 1]


def pushed(number, records=40):
    """An episode of the point under random pushes, the truth in its log."""
    rng = np.random.default_rng(number)
    action = rng.uniform(-1, 1, (records, 2)).astype(np.float32)
    action[0] = 0
    position, steps, zeros = np.cumsum(action, 0), np.arange(records), np.zeros(records, np.float32)
    image = np.zeros((records, 2, 2, 3), np.uint8)
    log = {"position": position.astype(np.float64)}
    flags = (zeros + 1, steps == 0, steps == records - 1, zeros > 0)
    return Episode(image, action, position[:, 0].astype(np.float32), *flags, log)


def roller(model, steps):
    config = types.SimpleNamespace(eval=types.SimpleNamespace(seed=0))
    return trust.Roller(types.SimpleNamespace(world_model=model, config=config), steps)


def test_a_model_whose_error_is_known_has_exactly_that_error():
    """After k steps it is off by k times its bias, whatever the actions were; an action, reward or position of a
    neighbouring record would add a random number.
    """
    episodes, identity = [pushed(number) for number in range(3)], Probe(np.zeros(2), np.ones(2), np.eye(3, 2))
    compared = roller(Known(), 15).compare(episodes, identity)
    off = BIAS * np.arange(1, 16)
    assert compared.predicted.shape == (3, trust.STARTS, 15)
    tiny.close(compared.predicted - compared.reward, np.broadcast_to(off, (3, trust.STARTS, 15)))
    tiny.close(compared.errors["reward"], np.broadcast_to(off, (3, trust.STARTS, 15)))
    tiny.close(compared.errors["position"], np.broadcast_to(off * np.sqrt(2), (3, trust.STARTS, 15)))
    starts = np.linspace(0, 39 - 15, trust.STARTS).round().astype(int)
    assert starts[0] == 0 and starts[-1] + 15 == 39
    for number, episode in enumerate(episodes):
        for k in (1, 5, 15):
            arrived = episode.log["position"][starts + k, 1] + k * BIAS
            for name, multiple in MULTIPLES.items():
                tiny.close(compared.measures[name][number, :, k - 1], multiple * arrived)


def test_episodes_that_are_too_short_are_left_out_and_counted():
    short, rolls = pushed(0, records=trust.STARTS + 14), roller(Known(), 15)
    assert rolls.too_short([short, pushed(1)]) == 1
    assert len(rolls.compare([short, pushed(1)], None).predicted) == 1
    assert "position" not in rolls.compare([pushed(1)], None).errors
    with pytest.raises(DataError, match="trust: expected episodes of at least 25 records, received at most 24"):
        rolls.compare([short], None)


HANDS = {
    "sum_squares": lambda stats, stoch: reference.disagreement_sum_of_squares(stats),
    "mean_norm": lambda stats, stoch: reference.disagreement_mean_of_norms(stats),
    "log_prob_variance": reference.log_prob_variance,
    "log_prob_std": reference.log_prob_std,
}


@pytest.mark.parametrize(
    ("overlays", "flags"),
    [(tiny.PAPER, {}), (tiny.RELEASED, {}), (tiny.OFFLINE_DV2, {"rssm.ensemble_bodies": "own"})],
    ids=["gaussian", "categorical", "own bodies"],
)
def test_the_open_loop_is_imagination_under_the_actions_that_were_taken(overlays, flags, rng):
    """Against the loop in NumPy, with the members and the noise of the same key."""
    learner = tiny.learner(*overlays, **flags)
    model, name, steps, starts = learner.world_model, learner.world_model.main.name, 3, np.array([0, 1, 4])
    tiny.randomise(model.trained, rng, gain=1.5)
    batch = Batch(*(x[:1] for x in tiny.batch(rng, 2, 8)))
    key = tiny.key(3, "trust")
    received = tiny.run("graph", lambda: trust.open_loop(model, batch, tf.constant(starts), steps, key))
    post = model.posterior(batch, key)
    start = tf.nest.map_structure(lambda x: x.numpy()[0, starts].astype(np.float64), post)
    members, noise = tiny.arrays(model.draw_steps(key, steps, len(starts)))
    weights, action = tiny.Weights(model.trained), batch.action.numpy()[0].astype(np.float64)
    p = weights.rssm(f"{name}_rssm", classes=4 if overlays == tiny.RELEASED else 0)
    for measure, disagreement in HANDS.items():
        feat, _, penalised, penalty = reference.imagine(
            start.deter,
            start.stoch,
            lambda feat, t: action[starts + t + 1],
            members,
            noise,
            p,
            lambda feat: reference.mlp(feat, *weights.mlp("reward", "reward"))[..., 0],
            disagreement,
            1.0,
            read=np.asarray(start.before),
        )
        tiny.close(received["features"], feat[:, 1:])
        tiny.close(received["reward"], (penalised + penalty)[:, 1:], 2e-5)
        tiny.close(received[measure], penalty[:, 1:], 1e-3)


# --- statistics -------------------------------------------------------------------------------------------------------


def test_correlations_are_scipys_for_the_sample_and_for_every_replicate(rng):
    x, y = rng.integers(0, 6, (2, 12, 7)).astype(float)  # with ties
    y += 0.5 * x
    drawn = resampling.draws(12)
    found = trust.correlation(trust.ranks(x, drawn), trust.ranks(y, drawn))
    assert len(found) == resampling.REPLICATES + 1
    np.testing.assert_array_equal(drawn[0], np.arange(12))
    for row in (0, 1, 2, resampling.REPLICATES):
        expected = stats.spearmanr(x[drawn[row]].ravel(), y[drawn[row]].ravel()).statistic
        assert found[row] == pytest.approx(expected, abs=1e-12)
    interval = resampling.interval(found)
    assert interval["estimate"] == found[0]
    assert (interval["low"], interval["high"]) == pytest.approx(tuple(np.quantile(found[1:], (0.025, 0.975))))


def test_the_interval_is_over_episodes_not_states(rng):
    """A hundred equal states an episode say no more than one: the interval stays as wide."""
    x, y = rng.normal(size=(2, 15, 1))
    drawn = resampling.draws(15)
    one, many = (
        resampling.interval(
            trust.correlation(trust.ranks(np.repeat(x, n, 1), drawn), trust.ranks(np.repeat(y, n, 1), drawn))
        )
        for n in (1, 100)
    )
    assert one == pytest.approx(many, abs=1e-9)
    assert one["high"] - one["low"] > 0.5


def test_a_record_by_hand(rng):
    """Errors of k times the first measure; a second measure that does not vary; a third of the opposite order."""
    first = rng.uniform(1, 2, (6, 4, 1)) * np.ones(5)
    measures = {"good": first, "flat": np.ones((6, 4, 5)), "bad": -first}
    reward = rng.normal(size=(6, 4, 5))
    errors = {"reward": first * np.arange(1, 6)}
    found = trust.describe(trust.Compared(reward + 0.5, reward, errors, measures), [1, 5], left_out=2)
    assert (found["episodes"], found["states"], found["left_out"]) == (6, 24, 2)
    for form in ("first", "sum"):
        for steps in ("1", "5"):
            assert found["correlations"]["good"]["reward"][form][steps]["estimate"] == pytest.approx(1)
            assert found["correlations"]["bad"]["reward"][form][steps]["estimate"] == pytest.approx(-1)
    assert found["correlations"]["flat"]["reward"] == {"first": {}, "sum": {}}
    excess = found["means"]["excess"]["5"]
    assert all(value == pytest.approx(0.5) for value in excess.values())
    assert found["means"]["error"]["reward"]["5"]["estimate"] == pytest.approx(5 * first.mean())
    reward_mean = found["means"]["reward"]["1"]
    assert reward_mean["estimate"] == pytest.approx(reward[..., 0].mean())
    assert reward_mean["low"] < reward_mean["estimate"] < reward_mean["high"]


def test_one_episode_has_no_interval(rng):
    values = rng.normal(size=(1, 9, 2))
    found = trust.describe(trust.Compared(values, values, {"reward": values}, {"m": values}), [1])
    assert found["correlations"]["m"]["reward"]["sum"]["1"] == {"estimate": pytest.approx(1)}


def test_the_probe_is_fitted_on_other_episodes_than_are_compared():
    for episodes, wanted in ((100, 50), (100, 10), (3, 10), (1, 5), (500, 20)):
        compared, fitted = trust.chosen(episodes, wanted)
        assert len(set(compared)) == len(compared) == min(wanted, max(1, episodes // 2))
        assert len(set(fitted)) == len(fitted) == min(trust.FIT, episodes - len(compared))
        assert not set(compared) & set(fitted) and set(compared) | set(fitted) <= set(range(episodes))


# --- learners ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "point"
    assert (
        collect.main(["--task", "exbmdp_point", "--policy", "mixed", "--episodes", "5", "--out", str(directory)]) == 0
    )
    return open_dataset(directory)


@pytest.mark.parametrize(
    "method", ["semopo", "se_rs_drp", "offline_dv2", "lompo", pytest.param("se_rs", marks=pytest.mark.full)]
)
def test_every_learner_with_an_ensemble(data, method):
    run = tiny.untrained(data, method, "--imagination.horizon", "7")
    record = trust.trust(run, data, episodes=2)
    assert record["steps"] == [1, 5, 7, 15] and record["members"] == 2
    assert record["penalty"]["measure"] == ("log_prob_std" if method == "lompo" else "sum_squares")
    for source in record["sources"].values():
        assert (source["episodes"], source["states"], source["left_out"]) == (2, 2 * trust.STARTS, 0)
        assert list(source["correlations"]) == list(source["means"]["measure"]) == list(MEASURES)
        for by_error in source["correlations"].values():
            assert list(by_error) == ["reward", "position"]
            for forms in by_error.values():
                for at in forms.values():
                    assert list(at) == ["1", "5", "7", "15"]
                    assert all(-1 <= each["estimate"] <= 1 for each in at.values())
        predicted, reward, excess = (
            source["means"][name]["5"]["estimate"] for name in ("predicted", "reward", "excess")
        )
        assert excess == pytest.approx(predicted - reward, abs=1e-6)
        assert source["means"]["error"]["reward"]["5"]["estimate"] >= abs(excess) - 1e-6
    assert record["sources"]["policy"] != record["sources"]["dataset"]
    if method == "offline_dv2":
        assert trust.trust(run, data, episodes=2) == record


def test_a_learner_without_a_model_or_an_ensemble_is_refused_in_a_line(data):
    with pytest.raises(ConfigError, match="--logdir: expected a run with a world model, received one without"):
        trust.trust(tiny.untrained(data, "bc"), data)
    with pytest.raises(
        ConfigError, match=r"trust: expected an ensemble of at least 2 members, received rssm.ensemble = 1"
    ):
        trust.trust(tiny.untrained(data, "semopo", "--rssm.ensemble", "1"), data)
