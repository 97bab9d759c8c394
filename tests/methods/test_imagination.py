"""Imagination with a model whose returns are known by hand, and with the real one against a loop."""

import numpy as np
import pytest
import reference
import tensorflow as tf
import tiny

from semopo_tf.methods.imagination import imagine
from semopo_tf.methods.losses import Penalty
from semopo_tf.types import Latent

modes = pytest.mark.parametrize("mode", tiny.MODES)


class Counter:
    """The state is one number, and the action is added to it. Reward 10 s, disagreement 3 s."""

    def draw_steps(self, key, horizon, size):
        return tf.zeros([horizon])

    def step(self, latent, action, noise):
        return latent._replace(deter=latent.deter + action)

    def features(self, latent):
        return latent.deter

    def reward(self, feat):
        return 10 * feat[..., 0]

    def disagreement(self, latent, measure):
        return 3 * latent.deter[..., 0]

    def member_rewards(self, latent, noise):
        """Of three members: the state itself, one that is more by the number of its step, and one that is less."""
        return 10 * (latent.deter[..., 0] + tf.constant([0.0, 1, -1])[:, None, None] * (1 + tf.range(3.0)))

    def continues(self, feat):
        return None


class Mortal(Counter):
    """Goes on with probability 1/2 from every predicted state."""

    def continues(self, feat):
        return tf.fill(feat.shape[:-1], 0.5)


class Multiple:
    """The action is a multiple of the state."""

    action_size = 1

    def __init__(self, factor):
        self.factor = factor

    def draw_actions(self, key, horizon, size):
        return tf.zeros([horizon, size, 1])

    def act(self, feat, noise):
        return self.factor * feat, 5 * feat[:, 0]


def start(*states):
    return Latent(tf.constant(states, tf.float32)[:, None], tf.zeros([len(states), 1]), {})


def rollout_of_three(model, **more):
    """Three steps of a model from the states 1 and -1, the action being twice the state, penalty weight 2."""
    settings = {"horizon": 3, "discount": 0.5, "penalty": Penalty("sum_squares", 2.0)}
    return imagine(model, Multiple(2.0), start(1, -1), tiny.key(), **settings | more)


@modes
def test_a_rollout_known_by_hand(mode):
    # s' = s + 2 s = 3 s: from 1 it is 1, 3, 9, 27. Reward 10 s - 2 * 3 s = 4 s.
    received = tiny.run(mode, lambda: rollout_of_three(Counter()))
    states = np.array([[1.0, 3, 9, 27], [-1, -3, -9, -27]])
    np.testing.assert_array_equal(received.feat, states[..., None])
    np.testing.assert_array_equal(
        received.action[..., 0], [[0, 2, 6, 18], [0, -2, -6, -18]]
    )  # column 0 is zero; action t led to state t
    np.testing.assert_array_equal(received.penalty, 6 * states)
    np.testing.assert_array_equal(received.reward, 4 * states)
    np.testing.assert_array_equal(received.discount, np.full((2, 4), 0.5))
    np.testing.assert_array_equal(received.weight, np.tile([1, 0.5, 0.25, 0.125], (2, 1)))
    np.testing.assert_array_equal(received.entropy, 5 * states[:, :3])  # of the policy at the state in which it acts


@modes
def test_the_least_reward_of_any_member_by_hand(mode):
    """Of states 1, 3, 9, 27 the members' rewards are less by 10, 20, 30 at best; the start state keeps its own."""
    usual = tiny.run(mode, lambda: rollout_of_three(Counter()))
    least = tiny.run(mode, lambda: rollout_of_three(Counter(), penalty=Penalty("sum_squares", 2.0, "minimum")))
    np.testing.assert_array_equal(usual.reward - least.reward, np.tile([0, 10, 20, 30], (2, 1)))
    for name in ("feat", "action", "penalty", "discount", "weight", "entropy"):
        np.testing.assert_array_equal(getattr(usual, name), getattr(least, name))


@modes
def test_I05_imagination_ends_where_the_episode_does(mode):
    """The end of a start state is known, that of an imagined one predicted; both multiply the discount."""

    ended = tf.constant([False, True])
    received = tiny.run(mode, lambda: rollout_of_three(Mortal(), is_terminal=ended))
    np.testing.assert_array_equal(received.discount, [[0.5, 0.25, 0.25, 0.25], [0, 0.25, 0.25, 0.25]])
    np.testing.assert_array_equal(received.weight, [[1, 0.5, 0.125, 0.03125], [1, 0, 0, 0]])


def test_the_lambda_return_of_that_rollout_by_hand():
    # Rewards 4, 12, 36; value 0; lambda 1, gamma 1/2: G_2 = 36, G_1 = 12 + 18 = 30, G_0 = 4 + 15 = 19.
    imagined = imagine(
        Counter(), Multiple(2.0), start(1), tiny.key(), horizon=3, discount=0.5, penalty=Penalty("sum_squares", 2.0)
    )
    returns = reference.returns_of_rollout(imagined.reward.numpy(), np.zeros((1, 4)), 0.5, 1.0)
    np.testing.assert_array_equal(returns, [[19.0, 30.0, 36.0]])


@modes
def test_the_policy_learns_through_its_actions_and_not_through_its_inputs(mode):
    """s_2 = s_1 + w sg(s_1), s_1 = s_0 + w sg(s_0): ds_2/dw = s_0 + s_1. With open inputs it would be s_0 + s_1 + w
    s_0.
    """

    def gradients(w):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(w)
            imagined = imagine(
                Counter(),
                Multiple(w),
                start(1),
                tiny.key(),
                horizon=2,
                discount=0.5,
                penalty=Penalty("sum_squares", 2.0),
            )
            last = [imagined.feat[0, 2, 0], imagined.reward[0, 2], imagined.penalty[0, 2], imagined.feat[0, 0, 0]]
        return [tape.gradient(value, w, unconnected_gradients=tf.UnconnectedGradients.ZERO) for value in last]

    # w = 3: s = 1, 4, 16; the reward is 4 s and the penalty 6 s of the same state; the start state does not move.
    assert tiny.run(mode, gradients, 3.0) == [5.0, 20.0, 30.0, 0.0]


class Case:
    """Real world model and actor with random weights, and start states."""

    def __init__(self, overlays, **flags):
        rng = np.random.default_rng(6)
        self.learner = tiny.learner(*overlays, **flags)
        self.model, self.actor = self.learner.world_model, self.learner.actor_critic
        settings = tiny.config(*overlays, **flags).penalty
        self.penalty = Penalty(settings.measure, 2.0, settings.reward)
        self.classes = 4 if self.model.main.rssm.dist.noise_kind == "uniform" else 0
        tiny.randomise(self.model.trained, rng, gain=1.5)
        tiny.randomise(self.actor.actor_variables, rng)
        self.name = self.model.main.name
        self.weights = tiny.Weights(self.model.trained | self.actor.actor_variables)
        self.start = tf.nest.map_structure(
            lambda x: tf.reshape(x, [8, *x.shape[2:]]), self.model.posterior(tiny.batch(rng), tiny.key())
        )

    def imagine(self, start, key, horizon=4):
        return imagine(self.model, self.actor, start, key, horizon=horizon, discount=0.99, penalty=self.penalty)

    def policy(self, feat):
        return reference.TruncatedNormal.from_raw(
            *(reference.mlp(feat, *self.weights.mlp("actor", head)) for head in ("loc", "std"))
        )

    def by_hand(self, key, disagreement, horizon=4):
        members, noise = tiny.arrays(self.model.draw_steps(key, horizon, 8))
        uniform = self.actor.draw_actions(key, horizon, 8).numpy()

        def act(feat, t):
            return self.policy(feat).sample(uniform[t])

        return reference.imagine(
            self.start.deter.numpy().astype(np.float64),
            self.start.stoch.numpy().astype(np.float64),
            act,
            members,
            noise,
            self.weights.rssm(f"{self.name}_rssm", classes=self.classes),
            lambda feat: reference.mlp(feat, *self.weights.mlp("reward", "reward"))[..., 0],
            disagreement,
            2.0,
            read=np.asarray(self.start.before, np.float64),
            least=self.penalty.reward == "minimum",
        )


CASES = {
    "released": (tiny.RELEASED, {}, lambda stats, stoch: reference.disagreement_mean_of_norms(stats)),
    "paper": (tiny.PAPER, {}, lambda stats, stoch: reference.disagreement_sum_of_squares(stats)),
    "offline_dv2, log-probabilities": (tiny.OFFLINE_DV2, {"penalty.measure": "log_prob_std"}, reference.log_prob_std),
    "released, least reward": (
        tiny.RELEASED,
        {"penalty.reward": "minimum"},
        lambda stats, stoch: reference.disagreement_mean_of_norms(stats),
    ),
    "paper, own bodies": (
        tiny.PAPER,
        {"rssm.ensemble_bodies": "own"},
        lambda stats, stoch: reference.disagreement_sum_of_squares(stats),
    ),
    "offline_dv2, both": (
        tiny.OFFLINE_DV2,
        {"rssm.ensemble_bodies": "own", "penalty.reward": "minimum", "penalty.measure": "log_prob_std"},
        reference.log_prob_std,
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    overlays, flags, disagreement = CASES[request.param]
    made = Case(overlays, **flags)
    made.disagreement = disagreement
    return made


@modes
def test_rollouts_of_the_real_model_match_the_loop(mode, case):
    received = tiny.run(mode, lambda start: case.imagine(start, tiny.key(3, "policy")), case.start)
    feat, action, reward, penalty = case.by_hand(tiny.key(3, "policy"), case.disagreement)
    assert received.feat.shape == (8, 5, case.model.main.rssm.feat_size)
    tiny.close(received.feat, feat)
    tiny.close(received.action, action)
    tiny.close(received.penalty, penalty, 2e-5)
    tiny.close(received.reward, reward, 2e-5)
    tiny.close(received.entropy, case.policy(feat[:, :-1]).entropy())


def test_the_least_reward_is_at_most_that_of_the_imagined_state(case):
    """The drawn member's own prediction is among those of which the least is taken."""
    reward = case.imagine(case.start, tiny.key()).reward
    case_penalty, case.penalty = case.penalty, case.penalty._replace(reward="sampled")
    usual = case.imagine(case.start, tiny.key()).reward
    case.penalty = case_penalty
    lower = (usual - reward).numpy()
    assert lower.min() >= -1e-5 and not lower[:, 0].any()
    assert (lower[:, 1:] > 1e-3).any() == (case.penalty.reward == "minimum")


def test_the_first_column_is_the_start_state(case):
    imagined = case.imagine(case.start, tiny.key())
    np.testing.assert_array_equal(imagined.feat[:, 0], case.model.features(case.start))
    assert not imagined.action[:, 0].numpy().any()
    assert (np.abs(imagined.action) <= 1).all()


def test_rollouts_depend_on_the_step_of_the_key_and_on_nothing_else(case):
    one, again, other = (case.imagine(case.start, tiny.key(step)) for step in (7, 7, 8))
    np.testing.assert_array_equal(one.feat, again.feat)
    assert (one.action[:, 1:].numpy() != other.action[:, 1:].numpy()).mean() > 0.99
