"""Targets, losses and updates of actor and critic on given rollouts, against the equations in float64."""

import numpy as np
import pytest
import reference
import tensorflow as tf
import tiny

from semopo_tf.methods.actor_critic import ActorCritic
from semopo_tf.methods.imagination import imagine
from semopo_tf.methods.losses import Penalty
from semopo_tf.nets.compute import Compute
from semopo_tf.types import Imagined, Recorded

N, H, F, A = 6, 5, 9, 2
GAMMA, LAMBDA, ENTROPY, TEMPERATURE = 0.99, 0.95, 0.1, 0.7
modes = pytest.mark.parametrize("mode", tiny.MODES)


def networks(variables):
    """Without the optimisers' state."""
    return {
        name: variable
        for name, variable in variables.items()
        if name.split("/")[1] not in ("updates", "first", "second")
    }


class Case:
    """An actor-critic with random weights (the slow critic's differ from the critic's) and one random rollout."""

    def __init__(self, slow_every=100, decay=0.0, data_share=0.0, average=0):
        rng = np.random.default_rng(8)
        net = {"layers": 2, "units": 7, "act": "elu"}
        opt = {"lr": 0.01, "eps": 1e-5, "clip": 0.5, "weight_decay": decay}
        self.actor_critic = ActorCritic(
            feat_size=F,
            action_size=A,
            seed=1,
            actor=net | {"min_std": 0.1},
            critic=net,
            actor_opt=opt,
            critic_opt=opt | {"lr": 0.02},
            lambda_=LAMBDA,
            entropy_scale=ENTROPY,
            data_share=data_share,
            temperature=TEMPERATURE,
            slow_every=slow_every,
            average=average,
            compute=Compute(),
        )
        self.variables = self.actor_critic.variables()
        self.nets = networks(self.variables)
        tiny.randomise(self.nets, rng)
        self.weights = tiny.Weights(self.nets)
        discount = tiny.float32(np.full((N, H + 1), GAMMA))
        feat, reward = tiny.float32(rng.normal(size=(N, H + 1, F))), tiny.float32(rng.normal(size=(N, H + 1)))
        weight = tiny.float32(reference.discount_weights(discount))
        entropy = self.policy(feat[:, :-1]).entropy()
        self.rollout = Imagined(feat, np.zeros((N, H + 1, A)), reward, np.zeros((N, H + 1)), discount, weight, entropy)
        action, ends = tiny.float32(rng.uniform(-1, 1, (N, H + 1, A))), np.zeros((N, H + 1))
        ends[0, 2] = 1  # a termination after the third record of one window
        self.recorded = Recorded(feat, action, reward, tiny.float32(discount * (1 - ends)))

    @property
    def imagined(self):
        """The rollout as tensors, with the entropy of the policy as it is now, differentiable in it."""
        tensors = Imagined(*(tf.constant(x, tf.float32) for x in self.rollout))
        return tensors._replace(entropy=self.actor_critic.policy(tensors.feat[:, :-1]).entropy())

    def value(self, net):
        """[N, H+1]."""
        return reference.mlp(self.rollout.feat, *self.weights.mlp(net, "value"))[..., 0]

    def policy(self, feat):
        return reference.TruncatedNormal.from_raw(
            *(reference.mlp(feat, *self.weights.mlp("actor", head)) for head in ("loc", "std"))
        )

    def returns(self):
        return reference.returns_of_rollout(self.rollout.reward, self.value("slow_critic"), GAMMA, LAMBDA)


@pytest.fixture(scope="module")
def case():
    return Case()


# --- losses -----------------------------------------------------------------------------------------------------------


@modes
def test_policy_is_a_truncated_normal_of_two_outputs(mode, case):
    uniform = np.random.default_rng(0).uniform(0.01, 0.99, (N, A))

    def everything(feat, uniform):
        dist = case.actor_critic.policy(feat)
        return dist.mode(), *case.actor_critic.act(feat, uniform)

    feat = case.rollout.feat[:, 0]
    mode_, sample, entropy = tiny.run(mode, everything, feat, uniform)
    expected = case.policy(feat)
    tiny.close(mode_, expected.loc)
    tiny.close(entropy, expected.entropy())
    tiny.close(sample, expected.sample(tiny.float32(uniform)))


def test_a_fresh_actor_has_standard_deviation_1_1():
    fresh = tiny.learner(*tiny.PAPER).actor_critic
    for variable in fresh.actor_variables.values():
        variable.assign(tf.zeros_like(variable))
    sample, _ = fresh.act(tf.zeros([1, 8]), tf.constant([[0.3, 0.9]]))  # 2 sigmoid(0) + 0.1
    tiny.close(sample, reference.TruncatedNormal(np.zeros((1, 2)), np.full((1, 2), 1.1)).sample(np.array([[0.3, 0.9]])))


@modes
def test_targets_and_losses_match_the_loops(mode, case):
    def everything(imagined):
        target = case.actor_critic.target(imagined)
        return target, case.actor_critic.actor_loss(imagined, target), case.actor_critic.critic_loss(imagined, target)

    target, (actor, actor_metrics), (critic, critic_metrics) = tiny.run(mode, everything, case.rollout)
    returns = case.returns()
    assert target.shape == (N, H)
    tiny.close(target, returns)
    entropy = case.policy(case.rollout.feat[:, : H - 1]).entropy()
    tiny.close(actor, reference.actor_loss(returns, entropy, case.rollout.weight, ENTROPY))
    tiny.close(actor_metrics["actor_ent"], entropy.mean())
    value = case.value("critic")[:, :H]
    tiny.close(critic, reference.critic_loss(returns, value, case.rollout.weight))
    tiny.close(critic_metrics["critic"], value.mean())


def test_targets_come_from_the_slow_critic_and_not_from_the_critic(case):
    """A slow critic of constant value 7 and no reward: G_0 is 7 discounted once a step, whatever lambda. The critic
    says anything.
    """
    before = tiny.snapshot(case.nets)
    for name, variable in case.nets.items():
        if name.startswith("slow_critic/value"):
            variable.assign(tf.zeros_like(variable) if name.endswith("kernel") else [7.0])
    silent = case.imagined._replace(reward=tf.zeros([N, H + 1]))
    target = case.actor_critic.target(silent).numpy()
    tiny.assign(case.nets, before)
    # With v = 7 everywhere, G_t = gamma (.05 * 7 + .95 G_{t+1}): G_4 = 6.93, G_3 = .99 (.35 + 6.5835) = 6.864165.
    tiny.close(target[:, 4], np.full(N, 6.93))
    tiny.close(target[:, 3], np.full(N, 6.864165))


def test_the_reward_of_the_last_state_and_the_value_of_the_first_do_not_enter_the_targets(case):
    """Reward t belongs to state t; H states give H rewards, and the state H is worth its value."""
    before = case.actor_critic.target(case.imagined).numpy()
    last = case.rollout.reward.copy()
    last[:, -1] += 100
    np.testing.assert_array_equal(
        case.actor_critic.target(case.imagined._replace(reward=tf.constant(last, tf.float32))), before
    )
    feat = case.rollout.feat.copy()
    feat[:, 0] += 100
    np.testing.assert_array_equal(
        case.actor_critic.target(case.imagined._replace(feat=tf.constant(feat, tf.float32))), before
    )


@modes
def test_losses_on_the_data_match_the_loops(mode, case):
    """The action that arrives with record t + 1 is weighted by the advantage of state t."""
    cloning, fit, metrics = tiny.run(mode, case.actor_critic.recorded_losses, case.recorded)
    value, recorded = case.value("slow_critic"), case.recorded
    returns = reference.lambda_return(
        recorded.reward[:, :-1], value[:, :-1], value[:, -1], recorded.discount[:, :-1], LAMBDA
    )
    advantage = returns - value[:, :-1]
    weight = np.exp((advantage - advantage.mean()) / np.sqrt(advantage.var() + 1e-6) / TEMPERATURE)
    weight = np.minimum(weight / weight.mean(), 20)
    total = 0.0
    for n in range(N):
        for t in range(H):
            policy = case.policy(recorded.feat[n : n + 1, t])
            total -= weight[n, t] * policy.log_prob(recorded.action[n : n + 1, t + 1])[0] / (N * H)
    tiny.close(cloning, total)
    tiny.close(fit, -reference.unit_normal_log_prob(returns, case.value("critic")[:, :-1]).mean())
    tiny.close(metrics["advantage"], advantage.mean())


# --- updates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_gradients_are_shared_between_imagination_and_the_data(share):
    case = Case(data_share=share)
    ac = case.actor_critic
    imagined = separate_gradients(case)
    for place, variables in enumerate((ac.actor_variables, ac.critic_variables)):
        with tf.GradientTape() as tape:
            loss = ac.recorded_losses(Recorded(*(tf.constant(x, tf.float32) for x in case.recorded)))[place]
        data = dict(zip(variables, tape.gradient(loss, list(variables.values())), strict=True))
        _, both = ac.gradients(lambda: case.imagined, Recorded(*(tf.constant(x, tf.float32) for x in case.recorded)))
        for name in variables:
            tiny.close(both[name], (1 - share) * imagined[name] + share * data[name].numpy(), 1e-4)


def separate_gradients(case):
    """Actor's gradient of the actor loss and critic's of the critic loss, each on a tape of its own."""
    ac, found = case.actor_critic, {}
    for loss, variables in ((ac.actor_loss, ac.actor_variables), (ac.critic_loss, ac.critic_variables)):
        with tf.GradientTape() as tape:
            value = loss(case.imagined, ac.target(case.imagined))[0]
        found |= dict(zip(variables, (g.numpy() for g in tape.gradient(value, list(variables.values()))), strict=True))
    return found


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_an_update_is_one_clipped_adam_step_of_each_loss_with_its_own_optimiser(mode):
    case = Case(decay=0.01)
    ac = case.actor_critic
    learn = learner(mode, case)
    expected = tiny.snapshot(case.nets)
    by_hand = [
        (reference.Adam(lr=lr, clip=0.5, decay=0.01), list(names))
        for lr, names in ((0.01, ac.actor_variables), (0.02, ac.critic_variables))
    ]
    norms = []
    for step in (1, 2):
        gradients = separate_gradients(case)
        metrics = learn(step)
        expected, norms = reference.shared_step(expected, gradients, by_hand)
        tiny.close([metrics["actor_grad_norm"], metrics["critic_grad_norm"]], norms)
        assert metrics["finite"] == 1.0
    assert max(norms) > 0.5  # one of them is clipped
    for name, value in expected.items():
        tiny.close(case.nets[name], value)


def learner(mode, case, **changes):
    """One call of `learn` on a fixed rollout, some of its fields changed, at a given step, in one mode."""

    def learn(step):
        return case.actor_critic.learn(lambda: case.imagined._replace(**changes), step)

    function = learn if mode == "eager" else tf.function(learn, autograph=False, jit_compile=mode == "xla")
    return lambda step: tiny.arrays(function(tf.constant(step, tf.int64)))


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_the_slow_critic_is_copied_after_every_hundredth_update_counted_from_the_first(mode):
    case = Case()
    learn = learner(mode, case)

    def agree():
        return [
            np.array_equal(case.nets[f"slow_{name}"], case.nets[name]) for name in case.actor_critic.critic_variables
        ]

    assert not any(agree())
    for step, copied in ((1, False), (99, False), (100, True), (101, False), (0, True)):
        learn(step)
        assert all(agree()) if copied else not any(agree())


@pytest.mark.parametrize("prefix", ["slow_", "mean_"])
def test_a_fresh_copy_equals_its_network(prefix):
    variables = tiny.learner(*tiny.PAPER, actor_critic__average=3).actor_critic.variables()
    copies = {name: variable for name, variable in variables.items() if name.startswith(prefix)}
    assert copies
    for name, variable in copies.items():
        np.testing.assert_array_equal(variable, variables[name.removeprefix(prefix)])


def test_an_update_that_is_not_finite_changes_nothing_even_where_a_copy_is_due():
    case = Case(slow_every=1, average=3)
    learn = learner("graph", case, reward=tf.fill([N, H + 1], np.nan))
    before = tiny.snapshot(case.variables)
    assert learn(0)["finite"] == 0.0
    for name, value in before.items():
        np.testing.assert_array_equal(case.variables[name], value)


@modes
def test_the_acting_policy_has_the_mean_of_the_actors_weights(mode):
    """Of all updates up to three; from there each new actor has a third. The losses see the actor alone."""
    case, plain = Case(average=3), Case()
    plain.rollout = case.rollout
    tiny.assign(plain.nets, {name: case.nets[name].numpy() for name in plain.nets})
    learn, learn_plain, seen, mean = learner(mode, case), learner(mode, plain), [], {}
    actor = case.actor_critic.actor_variables
    for step in range(5):
        learn(step)
        learn_plain(step)
        seen.append({name: variable.numpy().astype(np.float64) for name, variable in actor.items()})
        for name in actor:
            if step < 3:
                mean[name] = np.mean([weights[name] for weights in seen], 0)
            else:
                mean[name] = 2 / 3 * mean[name] + seen[-1][name] / 3
            tiny.close(case.variables[f"mean_{name}"], mean[name])
    for name in plain.nets:
        np.testing.assert_array_equal(case.nets[name], plain.nets[name])
    feat = tf.constant(case.rollout.feat[:, 0], tf.float32)
    by_hand = reference.mlp(case.rollout.feat[:, 0], *tiny.Weights(case.nets).mlp("mean_actor", "loc"))
    tiny.close(case.actor_critic.acting_policy(feat).mode(), np.tanh(by_hand))
    np.testing.assert_array_equal(plain.actor_critic.acting_policy(feat).mode(), plain.actor_critic.policy(feat).mode())
    assert not any(name.startswith("mean_") for name in plain.variables)


def test_the_actor_gradient_through_imagination_is_that_of_central_differences():
    """Everything in one slope: actor, recurrent model, reward, penalty, slow critic, lambda-return, entropy. The
    policy's inputs are stopped, so by hand it acts on the features of the unmoved rollout while the states follow its
    moved actions."""
    rng, key, horizon = np.random.default_rng(12), tiny.key(3, "policy"), 4
    learner = tiny.learner(*tiny.PAPER)
    model, actor = learner.world_model, learner.actor_critic
    nets = networks(actor.variables())
    tiny.randomise(model.trained, rng, gain=1.5)
    tiny.randomise(nets, rng)
    start = tf.nest.map_structure(lambda x: tf.reshape(x, [8, *x.shape[2:]]), model.posterior(tiny.batch(rng), key))
    sizes = {"horizon": horizon, "discount": 0.99, "penalty": Penalty("sum_squares", 2.0)}

    def gradients(start):
        with tf.GradientTape() as tape:
            imagined = imagine(model, actor, start, key, **sizes)
            loss = actor.actor_loss(imagined, actor.target(imagined))[0]
        return loss, tape.gradient(loss, list(actor.actor_variables.values()))

    loss, received = tiny.run("eager", gradients, start)

    (members, noise), uniform = (
        tiny.arrays(model.draw_steps(key, horizon, 8)),
        actor.draw_actions(key, horizon, 8).numpy(),
    )
    frozen = tiny.Weights(model.trained)
    here = tiny.Weights(nets)

    def value_of(weights, seen):
        """The loss for these actor weights. `seen`: features that the policy is shown, [N, H+1, F], or None for its
        own.
        """

        def policy(feat, t):
            shown = feat if seen is None else seen[:, t]
            return reference.TruncatedNormal.from_raw(
                *(reference.mlp(shown, *weights.mlp("actor", head)) for head in ("loc", "std"))
            )

        feat, _, reward, _ = reference.imagine(
            start.deter.numpy().astype(np.float64),
            start.stoch.numpy().astype(np.float64),
            lambda feat, t: policy(feat, t).sample(uniform[t]),
            members,
            noise,
            frozen.rssm("endo_rssm"),
            lambda feat: reference.mlp(feat, *frozen.mlp("reward", "reward"))[..., 0],
            lambda stats, stoch: reference.disagreement_sum_of_squares(stats),
            2.0,
        )
        value = reference.mlp(feat, *here.mlp("slow_critic", "value"))[..., 0]
        returns = reference.returns_of_rollout(reward, value, 0.99, 0.95)
        entropy = np.stack([policy(feat[:, t], t).entropy() for t in range(horizon - 1)], 1)
        weight = reference.discount_weights(np.full((8, horizon + 1), 0.99))
        return reference.actor_loss(returns, entropy, weight, 1e-4), feat

    expected, seen = value_of(here, None)
    tiny.close(loss, expected)
    h = 1e-6
    direction = {name: rng.normal(size=variable.shape) for name, variable in actor.actor_variables.items()}
    slope = sum(
        (gradient * direction[name]).sum() for name, gradient in zip(actor.actor_variables, received, strict=True)
    )
    up, down = (value_of(here.moved(direction, sign * h), seen)[0] for sign in (1, -1))
    assert slope == pytest.approx((up - down) / (2 * h), rel=1e-4)
