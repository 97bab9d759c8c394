"""Who learns from what: the table of the method as data, checked both ways."""

import numpy as np
import pytest
import tensorflow as tf
import tiny

from semopo_tf.methods.imagination import imagine
from semopo_tf.methods.losses import Penalty
from semopo_tf.types import Imagined

ENDO, EXO, JOINT = {"endo_encoder", "endo_rssm"}, {"exo_encoder", "exo_rssm"}, {"joint_encoder", "joint_rssm"}
DECODERS = {"endo_decoder", "exo_decoder", "mask"}

SEPARATED = {
    "endo_kl": ENDO,
    "exo_kl": EXO,
    "image": ENDO | EXO | DECODERS,
    "exo_image": EXO | {"exo_only_decoder"},
    "reward": {"reward"},  # gradient stopped at the states
}
# Configuration -> loss term -> the layers that it trains.
TABLE = {
    "released": SEPARATED,
    "paper": SEPARATED,
    "paper, strict ELBO": {name: layers for name, layers in SEPARATED.items() if name != "exo_image"},
    "paper, reward gradient": SEPARATED | {"reward": {"reward"} | ENDO},
    "se_rs_drp": SEPARATED | {"reward": {"reward"} | ENDO, "exo_reward": EXO},
    "offline_dv2": {"joint_kl": JOINT, "image": JOINT | {"decoder"}, "reward": JOINT | {"reward"}},
    "offline_dv2, no reward gradient": {"joint_kl": JOINT, "image": JOINT | {"decoder"}, "reward": {"reward"}},
    "paper, own bodies": SEPARATED,
    "released, own bodies": SEPARATED,
}
FLAGS = {
    "released": (tiny.RELEASED, {}),
    "paper": (tiny.PAPER, {}),
    "paper, strict ELBO": (tiny.PAPER, {"kl.strict_elbo": True}),
    "paper, reward gradient": (tiny.PAPER, {"model.reward_gradient": True}),
    "se_rs_drp": (tiny.SE_RS_DRP, {}),
    "offline_dv2": (tiny.OFFLINE_DV2, {}),
    "offline_dv2, no reward gradient": (tiny.OFFLINE_DV2, {"model.reward_gradient": False}),
    "paper, own bodies": (tiny.PAPER, {"rssm.ensemble_bodies": "own"}),
    "released, own bodies": (tiny.RELEASED, {"rssm.ensemble_bodies": "own"}),
}


class Row:
    """Gradients of every loss term of one configuration: term -> variable -> array, or None where nothing flows."""

    def __init__(self, name):
        overlays, flags = FLAGS[name]
        rng = np.random.default_rng(2)
        self.terms = TABLE[name]
        model = tiny.learner(*overlays, **flags).world_model
        tiny.randomise(model.trained | model.adversary, rng, gain=2.0)
        self.layers = set(model.layers)
        with tf.GradientTape(persistent=True) as tape:
            losses = model.losses(tiny.batch(rng), tiny.key())
        self.metrics = losses.metrics
        self.gradients = {
            term: dict(
                zip(
                    model.trained,
                    tape.gradient(losses.metrics[f"{term}_loss"], list(model.trained.values())),
                    strict=True,
                )
            )
            for term in self.terms
        }
        self.total = dict(zip(model.trained, tape.gradient(losses.total, list(model.trained.values())), strict=True))


@pytest.fixture(scope="module", params=TABLE)
def row(request):
    return Row(request.param)


def test_the_table_names_every_loss_term_and_every_layer(row):
    assert {f"{term}_loss" for term in row.terms} | {"model_loss"} == {
        name for name in row.metrics if name.endswith("_loss")
    }
    assert set().union(*row.terms.values()) == row.layers


def test_every_loss_term_reaches_exactly_its_layers(row):
    for term, layers in row.terms.items():
        for name, gradient in row.gradients[term].items():
            if name.split("/")[0] not in layers:
                assert gradient is None, f"{term} reaches {name}"
        reached = {
            name.split("/")[0]
            for name, gradient in row.gradients[term].items()
            if gradient is not None and np.any(gradient)
        }
        assert reached == layers, term


def test_prior_heads_learn_from_the_kl_alone_and_everything_else_in_a_branch_from_every_term_that_reaches_it(row):
    for term, layers in row.terms.items():
        for name, gradient in row.gradients[term].items():
            if name.split("/")[0] not in layers:
                continue
            if "/prior/" in name and not term.endswith("kl"):
                assert gradient is None, f"{term} reaches {name}"
            else:
                assert gradient is not None and np.any(gradient), f"{term} does not reach {name}"


def test_every_variable_learns_from_the_total(row):
    for name, gradient in row.total.items():
        assert gradient is not None and np.isfinite(gradient).all() and np.any(gradient), name


# --- actor and critic -------------------------------------------------------------------------------------------------


class Behaviour:
    """One imagined batch under a tape that watches every variable of the agent."""

    def __init__(self, overlays, **flags):
        rng = np.random.default_rng(4)
        self.learner = tiny.learner(*overlays, **flags)
        self.model, self.actor_critic = self.learner.world_model, self.learner.actor_critic
        state = ("updates", "first", "second")  # of the optimisers
        self.variables = {
            name: variable
            for name, variable in self.learner.variables().items()
            if name.startswith(("model/", "policy/")) and name.split("/")[2] not in state
        }
        tiny.randomise(self.variables, rng)
        self.batch = tiny.batch(rng)
        post = self.model.posterior(self.batch, tiny.key())
        start = tf.nest.map_structure(lambda x: tf.reshape(tf.stop_gradient(x), [8, *x.shape[2:]]), post)
        with tf.GradientTape(persistent=True) as self.tape:
            self.tape.watch(list(self.variables.values()))
            self.imagined = imagine(
                self.model,
                self.actor_critic,
                start,
                tiny.key(),
                horizon=4,
                discount=0.99,
                penalty=Penalty("sum_squares", 2.0, flags.get("penalty.reward", "sampled")),
            )
            self.target = self.actor_critic.target(self.imagined)
            self.actor_loss = self.actor_critic.actor_loss(self.imagined, self.target)[0]
            self.critic_loss = self.actor_critic.critic_loss(self.imagined, self.target)[0]

    def gradients(self, value, prefix):
        """By name, of the variables whose name begins with the prefix."""
        names = [name for name in self.variables if name.startswith(prefix)]
        assert names
        return dict(zip(names, self.tape.gradient(value, [self.variables[name] for name in names]), strict=True))


BEHAVIOURS = {
    "released": (tiny.RELEASED, {}),
    "paper": (tiny.PAPER, {}),
    "paper, own bodies, least reward": (tiny.PAPER, {"rssm.ensemble_bodies": "own", "penalty.reward": "minimum"}),
}


@pytest.fixture(scope="module", params=BEHAVIOURS)
def behaviour(request):
    overlays, flags = BEHAVIOURS[request.param]
    return Behaviour(overlays, **flags)


def test_the_actor_loss_reaches_all_of_the_actor_and_nothing_of_the_critic(behaviour):
    for name, gradient in behaviour.gradients(behaviour.actor_loss, "policy/actor/").items():
        assert np.isfinite(gradient).all() and np.any(gradient), name
    assert set(behaviour.gradients(behaviour.actor_loss, "policy/critic/").values()) == {None}


def test_the_critic_loss_reaches_all_of_the_critic_and_nothing_else(behaviour):
    for name, gradient in behaviour.gradients(behaviour.critic_loss, "policy/critic/").items():
        assert np.isfinite(gradient).all() and np.any(gradient), name
    for prefix in ("policy/actor/", "policy/slow_critic/", "model/"):  # so the targets inside it teach nobody
        assert set(behaviour.gradients(behaviour.critic_loss, prefix).values()) == {None}, prefix


def test_imagination_never_touches_the_exogenous_stream_or_a_decoder(behaviour):
    for field in Imagined._fields:
        for prefix in ("model/exo_", "model/endo_decoder", "model/endo_encoder", "model/mask"):
            assert set(behaviour.gradients(getattr(behaviour.imagined, field), prefix).values()) == {None}, (
                field,
                prefix,
            )
    assert any(
        np.any(gradient)
        for gradient in behaviour.gradients(behaviour.imagined.penalty, "model/endo_rssm/prior").values()
    )


def test_a_policy_update_changes_the_actor_and_the_critic_alone(behaviour):
    """The world model and the slow critic stand in the path of the actor's gradient; they are not trained by it. Step
    1: no copy is due.
    """
    before = tiny.snapshot(behaviour.variables)
    metrics = behaviour.learner.update_policy(behaviour.batch, tiny.key(1))
    assert metrics["finite"].numpy() == 1.0
    changed = {
        name.rsplit("/", 2)[0] for name, value in before.items() if (value != behaviour.variables[name].numpy()).any()
    }
    tiny.assign(behaviour.variables, before)
    assert changed == {"policy/actor", "policy/critic"}


def test_a_model_update_does_not_change_the_policy(behaviour):
    before = tiny.snapshot(behaviour.variables)
    behaviour.learner.update_model(behaviour.batch, tiny.key(1))
    changed = {
        name.split("/")[0] for name, value in before.items() if (value != behaviour.variables[name].numpy()).any()
    }
    tiny.assign(behaviour.variables, before)
    assert changed == {"model"}


def test_a_policy_update_works_without_any_exogenous_number(behaviour):
    """Not a number anywhere in the exogenous stream, the decoders and the mask: the update is the same."""
    saved = tiny.snapshot(behaviour.learner.variables())

    def updated():
        tiny.assign(behaviour.learner.variables(), saved)
        for name in poisoned:
            behaviour.variables[name].assign(tf.fill(behaviour.variables[name].shape, np.nan))
        behaviour.learner.update_policy(behaviour.batch, tiny.key(1))
        return tiny.snapshot(
            {name: variable for name, variable in behaviour.learner.variables().items() if name.startswith("policy/")}
        )

    poisoned = []
    expected = updated()
    poisoned = [
        name for name in behaviour.variables if name.startswith(("model/exo_", "model/endo_decoder", "model/mask"))
    ]
    received = updated()
    tiny.assign(behaviour.learner.variables(), saved)
    assert len(poisoned) > 30
    for name, value in expected.items():
        np.testing.assert_array_equal(received[name], value)
