"""Dissociated reward prediction: the exogenous reward head against the equations, and what an update leaves of it."""

import numpy as np
import pytest
import reference
import tensorflow as tf
import tiny

from semopo_tf.errors import ConfigError
from semopo_tf.methods.adversary import Adversary
from semopo_tf.nets.optim import BETA_1, BETA_2, Optimizer

B, T = 2, 4
KEY = tiny.key(5)
STATE = ("updates", "first", "second")


class Case:
    """An agent with an adversary, random weights and a batch."""

    def __init__(self, *names, **flags):
        rng = np.random.default_rng(11)
        self.learner = tiny.learner(*(names or tiny.SE_RS_DRP), **flags)
        self.model = self.learner.world_model
        tiny.randomise(self.model.trained | self.model.adversary, rng, gain=2.0)
        self.batch = tiny.batch(rng, B, T)
        action = self.batch.action
        self.feat = self.model.exo.features(
            self.model.exo.observe(self.model.exo.evidence(self.batch.image), action, self.batch.is_first, KEY)
        )

    def apart(self):
        """The adversary's variables and its optimiser's."""
        return {name: value for name, value in self.learner.variables().items() if "exo_reward" in name}

    def loss_by_hand(self, weights=None):
        weights = tiny.Weights(weights or self.model.adversary)
        predicted = reference.mlp(self.feat.numpy().astype(np.float64), *weights.mlp("exo_reward", "reward"))[..., 0]
        return -reference.unit_normal_log_prob(self.batch.reward.numpy(), predicted).mean()


@pytest.fixture(scope="module")
def case():
    return Case()


def test_the_term_is_the_likelihood_of_the_reward_under_a_head_on_exogenous_features(case):
    losses = case.model.losses(case.batch, KEY)
    metrics = tiny.arrays(losses.metrics)
    tiny.close(metrics["exo_reward_loss"], case.loss_by_hand())
    others = (
        metrics["endo_kl_loss"]
        + metrics["exo_kl_loss"]
        + metrics["image_loss"]
        + 1.5 * metrics["exo_image_loss"]
        + metrics["reward_loss"]
    )
    tiny.close(metrics["model_loss"], others - 20_000 * metrics["exo_reward_loss"], 1e-4)


def test_hopper_has_its_own_weight_and_a_joint_model_none():
    assert tiny.config(*tiny.SE_RS_DRP, **{"model.drp_scale": 30_000}).model.drp_scale == 30_000
    with pytest.raises(ConfigError, match=r"--model\.drp True: expected model\.kind separated, received joint"):
        tiny.learner(*tiny.OFFLINE_DV2, **{"model.drp": True})


def test_without_the_switch_there_is_no_head():
    learner = tiny.learner(*tiny.SE_RS_DRP, **{"model.drp": False})
    assert not learner.world_model.adversary
    assert not [name for name in learner.variables() if "exo_reward" in name]


def test_a_linear_head_takes_its_steps_by_hand():
    """Three Adam steps in NumPy. A head's steps are those of `optim.Optimizer`, one after the other, on features that
    stay.
    """
    rng = np.random.default_rng(3)
    x, target = rng.normal(size=(B, T, 3)), rng.normal(size=(B, T))
    variable = {"w": tf.Variable([0.5, -1.0, 2.0])}
    adversary = Adversary(
        variable,
        lambda feat, reward: (tf.linalg.matvec(feat, variable["w"]) - reward) ** 2 / 2,
        Optimizer("head", variable, lr=0.01, eps=1e-5, clip=100.0, weight_decay=0.0),
        updates=3,
    )
    adversary.fit(tf.constant(x, tf.float32), tf.constant(target, tf.float32))
    rows, weight, first, second = x.reshape(B * T, 3), np.array([0.5, -1.0, 2.0]), 0.0, 0.0
    for step in range(1, 4):
        gradient = rows.T @ (rows @ weight - target.reshape(-1)) / (B * T)
        first, second = BETA_1 * first + (1 - BETA_1) * gradient, BETA_2 * second + (1 - BETA_2) * gradient**2
        weight = weight - 0.01 * np.sqrt(1 - BETA_2**step) / (1 - BETA_1**step) * first / (np.sqrt(second) + 1e-5)
    tiny.close(variable["w"], weight)


def test_the_exogenous_model_is_judged_by_the_head_after_its_steps():
    case = Case(**{"model.drp_updates": 3, "model_opt.lr": 0.01})
    before = case.loss_by_hand()
    metrics = case.learner.update_model(case.batch, KEY)
    assert abs(before - case.loss_by_hand()) > 1e-3
    tiny.close(metrics["exo_reward_loss"], case.loss_by_hand())  # of features from before the model's own step


@pytest.mark.parametrize("mode", tiny.MODES)
def test_an_update_moves_the_head_and_the_exogenous_stream(mode):
    case = Case(**{"model.drp_updates": 2})
    before = tiny.snapshot(case.learner.variables())
    metrics = tiny.run(mode, lambda batch: case.learner.update_model(batch, KEY), case.batch)
    changed = {
        name.split("/")[1]
        for name, value in before.items()
        if name.startswith("model/") and (value != case.learner.variables()[name].numpy()).any()
    }
    assert metrics["finite"] == 1 and {"exo_reward", "exo_rssm", "exo_encoder", "reward", "endo_rssm"} <= changed
    assert case.learner.variables()["model_opt/exo_reward/updates"].numpy() == 2


def test_the_head_learns_what_the_features_tell_and_the_loss_falls():
    case = Case(**{"model.drp_updates": 200, "model_opt.lr": 0.01})
    before = case.loss_by_hand()
    case.learner.update_model(case.batch, KEY)
    assert case.loss_by_hand() < 0.5 * (before + np.log(2 * np.pi) / 2)


def test_an_update_that_is_not_finite_leaves_the_head_as_it_was(case):
    before = tiny.snapshot(case.apart())
    broken = case.batch._replace(reward=case.batch.reward * np.inf)
    assert case.learner.update_model(broken, KEY)["finite"].numpy() == 0
    for name, value in before.items():
        np.testing.assert_array_equal(case.apart()[name], value)


def test_gradients_and_validation_change_nothing(case):
    before = tiny.snapshot(case.learner.variables())
    case.learner.validate(case.batch, KEY)
    metrics, gradients = case.learner.model_gradients(case.batch, KEY)
    for name, value in before.items():
        np.testing.assert_array_equal(case.learner.variables()[name], value)
    assert not [name for name in gradients if "exo_reward" in name]
    taken = case.learner.update_model(case.batch, KEY)
    tiny.assign(case.learner.variables(), before)
    tiny.close(metrics["exo_reward_loss"], taken["exo_reward_loss"])  # both after the head's steps


@pytest.mark.parametrize("names", [tiny.SE_RS_DRP, ("released", "se_rs_drp")], ids=["paper", "released"])
def test_a_checkpoint_holds_the_head_and_its_moments(names):
    case = Case(*names)
    weights = set(case.model.adversary)
    found = set(case.apart())
    assert {f"model/{name}" for name in weights} <= found
    assert {f"model_opt/exo_reward/{part}/{name}" for part in STATE[1:] for name in weights} <= found
    assert "model_opt/exo_reward/updates" in found
    assert weights.isdisjoint(set().union(*case.model.groups(split=True).values()))


def test_the_endogenous_gradients_do_not_know_of_the_adversary(case):
    """Gradient routing: the term reaches the exogenous encoder and RSSM alone, also through the one backward pass."""
    _, with_it = case.learner.model_gradients(case.batch, KEY)
    plain = tiny.learner(*tiny.SE_RS_DRP, **{"model.drp": False})
    tiny.assign(plain.world_model.trained, tiny.snapshot(case.model.trained))
    _, without = plain.model_gradients(case.batch, KEY)
    assert with_it.keys() == without.keys()
    for name, gradient in without.items():
        if name.split("/")[1] in ("exo_encoder", "exo_rssm") and "/prior/" not in name:
            assert np.abs(with_it[name] - gradient).max() > 0, name
        else:
            np.testing.assert_array_equal(with_it[name], gradient)


def test_the_gradient_of_the_exogenous_stream_is_minus_the_scale_times_that_of_the_head(case):
    values = list(case.model.variables_of("exo_rssm").values())
    with tf.GradientTape(persistent=True) as tape:
        losses = case.model.losses(case.batch, KEY)
        metrics = losses.metrics
        rest = metrics["exo_kl_loss"] + metrics["image_loss"] + 1.5 * metrics["exo_image_loss"]
    pairs = zip(
        tape.gradient(rest, values),
        tape.gradient(metrics["exo_reward_loss"], values),
        tape.gradient(losses.total, values),
        strict=True,
    )
    for one, other, total in pairs:
        if other is not None:
            tiny.close(total / 20_000, (one - 20_000 * other) / 20_000, 1e-4)
