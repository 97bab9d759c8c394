"""Soft actor-critic against NumPy written from the equations, gradients against differences, who learns from what."""

import numpy as np
import pytest
import tensorflow as tf

from semopo_tf import config
from semopo_tf.envs.behaviours import Layer, forward, relu
from semopo_tf.methods import sac
from semopo_tf.nets.compute import Compute
from semopo_tf.random import Key, normal
from semopo_tf.types import Batch

STATE, ACTION, BATCH = 5, 2, 16
DISCOUNT, TAU = 0.9, 0.1


def learner(**changes):
    sections = {key: dict(config.load(["--configs", "sac"])[key]) for key in sac.SECTIONS}
    for name in ("actor", "critic"):
        sections[name] |= {"units": 8}
    sections["sac"] |= {"discount": DISCOUNT, "tau": TAU} | changes
    return sac.build(sections, state_size=STATE, action_size=ACTION, seed=3, steps=10, compute=Compute())


def batch(rng):
    values = rng.normal(size=(BATCH, 2, STATE)).astype(np.float32)
    action = np.tanh(rng.normal(size=(BATCH, 2, ACTION))).astype(np.float32)
    reward = rng.uniform(size=(BATCH, 2)).astype(np.float32)
    terminal = np.zeros((BATCH, 2), bool)
    terminal[::3, 1] = True
    first = np.zeros((BATCH, 2), bool)
    return Batch(*map(tf.constant, (values, action, reward, first, terminal)))


def layers_of(agent, prefix):
    """The layers of a critic as NumPy arrays."""
    own = {name: value.numpy() for name, value in agent.variables().items() if name.startswith(f"{prefix}/")}
    names = ["hidden0", "hidden1", "value"]
    return [Layer(own[f"{prefix}/{name}/kernel"], own[f"{prefix}/{name}/bias"]) for name in names]


def actor_in_numpy(agent, state, noise):
    """Actions and their log probability by change of variables, float64."""
    layers = [Layer(*arrays) for arrays in agent.actor_layers()]
    mean, log_std = np.split(np.stack([forward(layers, row, relu) for row in state]).astype(np.float64), 2, -1)
    u = mean + np.exp(log_std) * noise
    density = np.exp(-0.5 * noise.astype(np.float64) ** 2) / (np.sqrt(2 * np.pi) * np.exp(log_std))
    return np.tanh(u), np.log(density / (1 - np.tanh(u) ** 2)).sum(-1)


def value_in_numpy(agent, prefix, state, action):
    layers = layers_of(agent, prefix)
    rows = np.concatenate([state, action], -1)
    return np.array([forward(layers, row, relu)[0] for row in rows])


@pytest.mark.parametrize("compiled", [False, True])
def test_losses_are_those_of_the_equations(rng, compiled):
    agent, given, key = learner(), batch(rng), Key(7, "sac", tf.constant(4, tf.int64))
    agent.variables()["log_alpha"].assign(-0.7)
    alpha = np.exp(-0.7)
    found = tf.function(lambda: agent.gradients(given, key)[0], jit_compile=compiled)()
    state, following = given.image.numpy()[:, 0], given.image.numpy()[:, 1]
    noise = {name: normal(key, name, [BATCH, ACTION]).numpy() for name in ("action", "next_action")}
    next_action, next_log_prob = actor_in_numpy(agent, following, noise["next_action"])
    slow = [value_in_numpy(agent, f"slow_critic_{place}", following, next_action) for place in (0, 1)]
    alive = 1 - given.is_terminal.numpy()[:, 1]
    target = given.reward.numpy()[:, 1] + DISCOUNT * alive * (np.minimum(*slow) - alpha * next_log_prob)
    values = [value_in_numpy(agent, f"critic_{place}", state, given.action.numpy()[:, 1]) for place in (0, 1)]
    action, log_prob = actor_in_numpy(agent, state, noise["action"])
    played = [value_in_numpy(agent, f"critic_{place}", state, action) for place in (0, 1)]
    expected = {
        "critic_loss": sum(((value - target) ** 2).mean() for value in values),
        "actor_loss": (alpha * log_prob - np.minimum(*played)).mean(),
        "alpha_loss": 0.7 * (log_prob.mean() - ACTION),
        "target": target.mean(),
        "entropy": -log_prob.mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_log_probability_stays_finite_where_the_action_is_saturated():
    action, log_prob = sac.squashed(tf.constant([[30.0, -30.0]]), tf.zeros([1, 2]), tf.zeros([1, 2]))
    assert np.abs(action.numpy()).tolist() == [[1, 1]] and np.isfinite(log_prob.numpy()).all()


def test_every_variable_learns_from_its_own_loss_alone(rng):
    """Actor: actor loss. Critics: critic loss. Temperature: its own. Slow critics: none."""
    agent, given, key = learner(), batch(rng), Key(1, "sac", tf.constant(0, tf.int64))
    _, gradients = agent.gradients(given, key)
    owned = {name for name in agent.variables() if name.startswith(("actor/", "critic_", "log_alpha"))}
    moments = {name for name in owned if name.count("/") > 2 or name.startswith(("actor/first", "actor/second"))}
    assert set(gradients) == owned - moments - {"actor/updates"}
    step = 1e-3
    for name, part in (("actor/hidden0/bias", "actor_loss"), ("critic_0/value/bias", "critic_loss")):
        variable = agent.variables()[name]
        before, losses = variable.numpy(), []
        for sign in (1, -1):
            moved = before.copy()
            moved.flat[0] += sign * step
            variable.assign(moved)
            losses.append(float(agent.gradients(given, key)[0][part]))
        variable.assign(before)
        slope = (losses[0] - losses[1]) / (2 * step)
        np.testing.assert_allclose(gradients[name].numpy().flat[0], slope, rtol=2e-2, atol=2e-4)


def test_slow_critics_follow_by_their_share_and_an_update_that_is_not_finite_changes_nothing(rng):
    agent, given, key = learner(), batch(rng), Key(1, "sac", tf.constant(0, tf.int64))
    slow = agent.variables()["slow_critic_0/hidden0/kernel"]
    fast = agent.variables()["critic_0/hidden0/kernel"]
    before = slow.numpy()
    assert float(agent.update(given, key)["finite"]) == 1
    np.testing.assert_allclose(slow.numpy(), before + TAU * (fast.numpy() - before), rtol=1e-5)
    state = {name: variable.numpy() for name, variable in agent.variables().items()}
    bad = given._replace(reward=given.reward + np.float32(np.inf))
    assert float(agent.update(bad, key)["finite"]) == 0
    for name, variable in agent.variables().items():
        np.testing.assert_array_equal(variable.numpy(), state[name], err_msg=name)


def test_the_actor_outside_of_tensorflow_is_the_same_function(rng):
    agent = learner()
    state = rng.normal(size=(4, STATE)).astype(np.float32)
    noise = rng.normal(size=(4, ACTION)).astype(np.float32)
    action, _ = actor_in_numpy(agent, state, noise)
    np.testing.assert_allclose(agent._sample(tf.constant(state), tf.constant(noise))[0].numpy(), action, atol=1e-5)
