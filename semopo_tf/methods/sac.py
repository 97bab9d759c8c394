"""Soft actor-critic on the simulator's own state (Haarnoja et al. 2018, arXiv 1812.05905): the behaviour that data are
collected with. It never sees an image.

    critics   y = r + g (1 - d) (min_i Q'_i(s', a') - alpha log pi(a'|s')),  a' ~ pi(.|s')
              J_Q = sum_i (Q_i(s, a) - y)^2
    actor     J_pi = alpha log pi(a|s) - min_i Q_i(s, a),  a = tanh(mean + std * noise)
    alpha     J_alpha = -log(alpha) (log pi(a|s) + H),  H = entropy wanted, minus one for each action

Time alignment of a batch of windows of two records, as everywhere (`types`):

    record    0      1
    state     s      s'        `batch.image`
    action           a         led from s to s'
    reward           r         received on arriving at s'
    terminal         d         s' is an end
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from semopo_tf import random
from semopo_tf.nets.accounting import Cost
from semopo_tf.nets.compute import Compute
from semopo_tf.nets.layers import MLP, initialise, named_variables
from semopo_tf.nets.optim import Optimizer, copy_weights, follow, step_if_finite
from semopo_tf.random import Key
from semopo_tf.types import Batch, Stage

SECTIONS = ("actor", "critic", "actor_opt", "critic_opt", "sac")
MIN_LOG_STD, MAX_LOG_STD = -10.0, 2.0
HALF_LOG_TWO_PI = 0.5 * np.log(2 * np.pi)
CRITICS = ("critic_0", "critic_1")


def squashed(mean: tf.Tensor, log_std: tf.Tensor, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """a = tanh(u) with u = mean + std * noise, and log pi(a); all [N, A] -> [N, A] and [N].

    log pi(a) = log N(u; mean, std) - sum log(1 - tanh(u)^2), the latter as 2 (log 2 - u - softplus(-2 u)), which stays
    finite where tanh(u) rounds to one.
    """
    u = mean + tf.exp(log_std) * noise
    gaussian = -0.5 * noise**2 - log_std - HALF_LOG_TWO_PI
    squeezed = 2 * (np.log(2.0) - u - tf.nn.softplus(-2 * u))
    return tf.tanh(u), tf.reduce_sum(gaussian - squeezed, -1)


def soft_target(
    reward: tf.Tensor,
    terminal: tf.Tensor,
    next_value: tf.Tensor,
    next_log_prob: tf.Tensor,
    alpha: tf.Tensor,
    *,
    discount: float,
) -> tf.Tensor:
    """y of the critics' loss, [N]; next_value: the smaller of the target critics' values at (s', a')."""
    return reward + discount * (1 - tf.cast(terminal, tf.float32)) * (next_value - alpha * next_log_prob)


class SAC:
    """Actor, two critics, their slow copies, and the temperature alpha: the part of a `types.Learner` that learns. It
    acts outside of TensorFlow, by `actor_layers`.

    Args:
      actor, critic: layers, units and act of the networks.
      discount, tau: tau is the share of the critics that enters their slow copies at every update.
      entropy: wanted for each action, in nats; -1 as in the paper.
      steps: updates of the only stage.
    """

    def __init__(
        self,
        *,
        state_size: int,
        action_size: int,
        seed: int,
        actor: Mapping[str, Any],
        critic: Mapping[str, Any],
        actor_opt: Mapping[str, Any],
        critic_opt: Mapping[str, Any],
        discount: float,
        tau: float,
        entropy: float,
        steps: int,
        compute: Compute,
    ):
        self._sizes = state_size, action_size
        self._discount, self._tau, self._entropy = discount, tau, entropy * action_size
        shape = {key: value for key, value in actor.items() if key != "min_std"}
        self._actor = MLP(**shape, outputs={"mean": action_size, "log_std": action_size}, name="actor")
        self._actor.build((None, state_size))
        self._critics, self._slow = (
            {name: MLP(**critic, outputs={"value": 1}, name=f"{prefix}{name}") for name in CRITICS}
            for prefix in ("", "slow_")
        )
        for layer in (*self._critics.values(), *self._slow.values()):
            layer.build((None, state_size + action_size))
        self._log_alpha = tf.Variable(0.0, name="log_alpha")
        self._actor_variables = named_variables({"actor": self._actor})
        self._critic_variables = named_variables(self._critics)
        self._slow_variables = named_variables({f"slow_{name}": layer for name, layer in self._slow.items()})
        initialise(self._actor_variables | self._critic_variables, seed)
        copy_weights(self._slow_variables, self._critic_variables)
        self._temperature = {"log_alpha": self._log_alpha}
        parts = {"actor": (self._actor_variables, actor_opt), "critic": (self._critic_variables, critic_opt)}
        parts["alpha"] = (self._temperature, actor_opt)
        self._optimizers = [
            Optimizer(name, variables, target=compute.target, **settings)
            for name, (variables, settings) in parts.items()
        ]
        self.stages = (Stage("sac", steps, "replay", self.update, images=False, gradients=self.gradients),)

    def variables(self) -> dict[str, Any]:
        """Everything a checkpoint must hold, by stable name."""
        state: dict[str, Any] = self._actor_variables | self._critic_variables | self._slow_variables
        state |= self._temperature
        for optimizer in self._optimizers:
            state |= optimizer.state()
        return state

    def update(self, batch: Batch, key: Key) -> dict[str, tf.Tensor]:
        """One step of critics, actor and temperature from the same weights, then one of the slow critics."""
        metrics, gradients = self.gradients(batch, key)
        losses = [metrics["critic_loss"], metrics["actor_loss"], metrics["alpha_loss"]]
        metrics |= step_if_finite(self._optimizers, gradients, losses)
        follow(self._slow_variables, self._critic_variables, self._tau * metrics["finite"])
        return metrics

    def gradients(self, batch: Batch, key: Key) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Metrics, and the gradient of every variable by its own loss alone. Changes nothing."""
        state, following = batch.image[:, 0], batch.image[:, 1]
        action, reward, terminal = batch.action[:, 1], batch.reward[:, 1], batch.is_terminal[:, 1]
        alpha = tf.exp(self._log_alpha)
        shape = [state.shape[0], self._sizes[1]]
        next_action, next_log_prob = self._sample(following, random.normal(key, "next_action", shape))
        next_value = self._least(self._slow, following, next_action)
        target = soft_target(reward, terminal, next_value, next_log_prob, alpha, discount=self._discount)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(self._critic_variables.values()))
            values = self._values(self._critics, state, action)
            critic_loss = tf.add_n([tf.reduce_mean((value - tf.stop_gradient(target)) ** 2) for value in values])
        gradients = _by_name(tape, critic_loss, self._critic_variables)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(self._actor_variables.values()))
            played, log_prob = self._sample(state, random.normal(key, "action", shape))
            actor_loss = tf.reduce_mean(tf.stop_gradient(alpha) * log_prob - self._least(self._critics, state, played))
        gradients |= _by_name(tape, actor_loss, self._actor_variables)
        missing = tf.stop_gradient(tf.reduce_mean(log_prob) + self._entropy)
        alpha_loss = -self._log_alpha * missing
        gradients |= {"log_alpha": -missing}
        metrics = {"critic_loss": critic_loss, "actor_loss": actor_loss, "alpha_loss": alpha_loss, "alpha": alpha}
        metrics |= {"entropy": -tf.reduce_mean(log_prob), "value": tf.reduce_mean(values[0])}
        return metrics | {"target": tf.reduce_mean(target)}, gradients

    def _sample(self, state: tf.Tensor, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        raw = self._actor(state)
        return squashed(raw["mean"], tf.clip_by_value(raw["log_std"], MIN_LOG_STD, MAX_LOG_STD), noise)

    def _values(self, critics: Mapping[str, MLP], state: tf.Tensor, action: tf.Tensor) -> list[tf.Tensor]:
        inputs = tf.concat([state, action], -1)
        return [critic(inputs)["value"][..., 0] for critic in critics.values()]

    def _least(self, critics: Mapping[str, MLP], state: tf.Tensor, action: tf.Tensor) -> tf.Tensor:
        return tf.reduce_min(tf.stack(self._values(critics, state, action)), 0)

    def cost(self, stage: str, batch: int, length: int) -> Cost:
        """FLOPs of one update on `batch` transitions, and bytes of its activations."""
        critics = sum((layer.cost(batch) for layer in self._critics.values()), Cost())
        actor = self._actor.cost(batch)
        return (
            critics.trained(input_gradient=False)
            + critics.frozen()
            + critics.forward()
            + actor.trained()
            + actor.forward()
        )

    def actor_layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Kernel and bias of the actor's layers; the last one has mean and logarithm of std side by side."""
        own = {name: variable.numpy() for name, variable in self._actor_variables.items()}
        hidden = sum(name.endswith("kernel") for name in own) - 2
        layers = [(own[f"actor/hidden{place}/kernel"], own[f"actor/hidden{place}/bias"]) for place in range(hidden)]
        last = [
            np.concatenate([own[f"actor/{head}/{part}"] for head in ("mean", "log_std")], -1)
            for part in ("kernel", "bias")
        ]
        return [*layers, (last[0], last[1])]


def _by_name(tape: tf.GradientTape, loss: tf.Tensor, variables: Mapping[str, tf.Variable]) -> dict[str, tf.Tensor]:
    return dict(zip(variables, tape.gradient(loss, list(variables.values())), strict=True))


def build(
    sections: Mapping[str, Any], *, state_size: int, action_size: int, seed: int, steps: int, compute: Compute
) -> SAC:
    """Build a learner from the sections of the configuration and initialise its variables from `seed`."""
    networks: dict[str, Any] = {name: sections[name] for name in ("actor", "critic", "actor_opt", "critic_opt")}
    sizes: dict[str, Any] = {"state_size": state_size, "action_size": action_size}
    return SAC(**sizes, **networks, **sections["sac"], seed=seed, steps=steps, compute=compute)
