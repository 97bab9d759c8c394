"""The policy's return in its model and in the simulator: what is summed with what, the smallest admissible weight, and
every learner that has an ensemble.
"""

import types

import numpy as np
import pytest
import reference
import tensorflow as tf
import tiny

from semopo_tf import collect
from semopo_tf.data.dataset import open_dataset
from semopo_tf.errors import ConfigError, DataError
from semopo_tf.methods.losses import MEASURES
from semopo_tf.run import bound
from semopo_tf.types import Batch, Episode, Latent

DISCOUNT = 0.9
CONTINUES = 0.5


class Counter:
    """A model whose state counts its steps: the reward of step k is k, the disagreement of measure m is m + 1."""

    def __init__(self, continues=None):
        self._continues = continues

    def posterior(self, batch, key):
        zero = tf.zeros([batch.reward.shape[0], 1, 1])
        return Latent(zero, zero[..., :0], {})

    def draw_steps(self, key, horizon, size):
        return tf.zeros([horizon, size, 1])

    def step(self, latent, action, noise):
        return latent._replace(deter=latent.deter + action)

    def features(self, latent):
        return latent.deter

    def reward(self, feat):
        return feat[..., 0]

    def continues(self, feat):
        return None if self._continues is None else tf.fill(tf.shape(feat)[:-1], self._continues)

    def member_rewards(self, latent, noise):
        return latent.deter[None, ..., 0] - tf.constant([0.0, 0.5, 0.25])[:, None, None]

    def disagreement(self, latent, measure):
        return tf.ones_like(latent.deter[..., 0]) * (1 + list(MEASURES).index(measure))


def played(rewards, terminal=False):
    """An episode with these rewards after record 0, which may end in a terminal state."""
    reward = np.array([99, *rewards], np.float32)  # what record 0 says is no reward
    records, zeros = len(reward), np.zeros(len(reward), np.float32)
    image, action = np.zeros((records, 2, 2, 3), np.uint8), np.zeros((records, 1), np.float32)
    steps = np.arange(records)
    ends = steps == records - 1
    return Episode(image, action, reward, zeros + 1, steps == 0, ends, ends & terminal, {})


def imaginer(model, reward="sampled"):
    penalty = types.SimpleNamespace(reward=reward)
    config = types.SimpleNamespace(eval=types.SimpleNamespace(seed=0), penalty=penalty)
    policy = types.SimpleNamespace(action_of=tf.ones_like)
    return bound.Imaginer(types.SimpleNamespace(world_model=model, config=config, policy=policy), DISCOUNT)


def test_sums_by_hand():
    """Reward k after k steps, weight g^{k-1}, as many steps as the episode has."""
    found = imaginer(Counter()).compare([played([1, 2, 3]), played([5])])
    tiny.close(found["simulator"], [1 + 2 * 0.9 + 3 * 0.81, 5])
    tiny.close(found["model"], [1 + 2 * 0.9 + 3 * 0.81, 1])
    for number, name in enumerate(MEASURES, 1):
        tiny.close(found[name], [number * (1 + 0.9 + 0.81), number])


def test_after_a_terminal_state_the_simulator_pays_nothing_and_the_model_may_go_on():
    found = imaginer(Counter()).compare([played([1, 1, 1, 1]), played([5, 5], terminal=True)])
    tiny.close(found["simulator"][1], 5 + 5 * 0.9)
    tiny.close(found["model"][1], sum(k * 0.9 ** (k - 1) for k in range(1, 5)))


def test_with_a_continue_head_the_model_ends_as_imagination_does():
    """The first step counts whole: whether the episode goes on is said of the state that it reaches."""
    found = imaginer(Counter(CONTINUES)).compare([played([1, 2, 3])])
    tiny.close(found["model"], [1 + 2 * 0.9 * 0.5 + 3 * 0.81 * 0.25])
    tiny.close(found["sum_squares"], [1 + 0.9 * 0.5 + 0.81 * 0.25])


def test_the_least_reward_of_the_members_is_the_models_where_the_run_learned_from_it():
    found = imaginer(Counter(), "minimum").compare([played([0, 0])])
    tiny.close(found["model"], [0.5 + 1.5 * 0.9])


def test_an_episode_without_a_decision_is_refused():
    with pytest.raises(DataError, match="bound: expected episodes of at least 2 records, received 1 in episode 1"):
        imaginer(Counter()).compare([played([1]), played([])])


def test_with_the_smallest_weight_the_penalised_model_returns_what_the_simulator_does(rng):
    model, simulator, disagreement = 5 + rng.normal(size=8), rng.normal(size=8), 2 + rng.uniform(size=8)
    returns = {"simulator": simulator, "model": model, "mean_norm": disagreement}
    weight = bound.describe(returns, "mean_norm", 0.0)["smallest"]["mean_norm"]["estimate"]
    found = bound.describe(returns, "mean_norm", weight)
    assert found["penalised"]["estimate"] == pytest.approx(simulator.mean())
    assert found["model"]["low"] < found["model"]["estimate"] < found["model"]["high"]
    without = bound.describe(returns | {"mean_norm": np.zeros(8)}, "mean_norm", 1.0)
    assert without["smallest"] == {} and without["penalised"] == without["model"]


def test_the_rollout_is_imagination_under_the_greedy_policy(rng):
    """Against the loop in NumPy, with the members and the noise of the same key."""
    learner, steps = tiny.learner(*tiny.PAPER), 4
    model, policy = learner.world_model, learner.policy()
    tiny.randomise(model.trained | learner.actor_critic.actor_variables, rng, gain=1.5)
    first = Batch(*(x[:, :1] for x in tiny.batch(rng, 3, 2)))
    key = tiny.key(3, "bound")
    received = tiny.run("graph", lambda: bound.imagine(model, policy, first, steps, key))
    start = tf.nest.map_structure(lambda x: x.numpy()[:, 0].astype(np.float64), model.posterior(first, key))
    members, noise = tiny.arrays(model.draw_steps(key, steps, 3))
    weights = tiny.Weights(model.trained)
    _, _, penalised, penalty = reference.imagine(
        start.deter,
        start.stoch,
        lambda feat, t: policy.action_of(tf.constant(feat, tf.float32)).numpy().astype(np.float64),
        members,
        noise,
        weights.rssm(f"{model.main.name}_rssm", classes=0),
        lambda feat: reference.mlp(feat, *weights.mlp("reward", "reward"))[..., 0],
        lambda stats, stoch: reference.disagreement_mean_of_norms(stats),
        1.0,
        read=np.asarray(start.before),
    )
    tiny.close(received["reward"], (penalised + penalty)[:, 1:], 2e-5)
    tiny.close(received["mean_norm"], penalty[:, 1:], 1e-3)
    tiny.close(received["goes_on"], np.ones((3, steps)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "point"
    words = ["--task", "exbmdp_point", "--policy", "mixed", "--episodes", "3", "--out", str(directory)]
    assert collect.main(words) == 0
    return open_dataset(directory)


@pytest.mark.parametrize("method", ["semopo", "offline_dv2", "lompo"])
def test_every_learner_with_an_ensemble(data, method):
    run = tiny.untrained(data, method)
    record = bound.bound(run, episodes=2)
    assert (record["decisions"], record["episodes"], record["members"]) == (50, 2, 2)
    assert record["penalty"]["measure"] == ("log_prob_std" if method == "lompo" else "sum_squares")
    assert list(record["disagreement"]) == list(MEASURES)
    charged = record["penalty"]["weight"] * record["disagreement"][record["penalty"]["measure"]]["estimate"]
    assert record["penalised"]["estimate"] == pytest.approx(record["model"]["estimate"] - charged)
    assert 0 < record["simulator"]["estimate"] < record["return"]
    if method == "offline_dv2":
        assert bound.bound(run, episodes=2) == record


def test_a_model_without_an_ensemble_is_refused(data):
    with pytest.raises(ConfigError, match=r"bound: expected an ensemble of at least 2 members, received rssm\.ensem"):
        bound.bound(tiny.untrained(data, "semopo", "--rssm.ensemble", "1"), episodes=1)
