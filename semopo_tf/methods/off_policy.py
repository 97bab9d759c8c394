"""An off-policy actor-critic on features: a deterministic actor and two critics (Fujimoto et al. 2018, as in LOMPO).

    y     = r + g (1 - d) min_i Q'_i(z', a(z'))         no noise on a(z')
    J_Q   = sum_i mean (Q_i(z, a) - y)^2                trains the critics
    J_pi  = - mean min_i Q_i(z, a(z))                   trains the actor
    Q'   <- Q' + tau (Q - Q')                           after every update

All gradients are those of the weights before the update. A target learns from nothing; features are given.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from semopo_tf.methods.costs import gradient_bytes
from semopo_tf.methods.ring import Rows
from semopo_tf.nets.accounting import Cost
from semopo_tf.nets.compute import Compute
from semopo_tf.nets.layers import MLP, initialise, named_variables
from semopo_tf.nets.optim import Optimizer, copy_weights, follow, gradients_of, step_if_finite

CRITICS = ("critic_0", "critic_1")


def bootstrapped(reward: tf.Tensor, terminal: tf.Tensor, next_value: tf.Tensor, *, discount: float) -> tf.Tensor:
    """y = r + g (1 - d) v', all [N]; next_value: the smaller of the target critics' values at (z', a(z'))."""
    return reward + discount * (1 - terminal) * next_value


def critic_loss(values: Sequence[tf.Tensor], target: tf.Tensor) -> tf.Tensor:
    """J_Q = sum_i mean (Q_i - y)^2, each [N]; no factor of a half. Differentiable in the values and the target."""
    return tf.add_n([tf.reduce_mean((value - target) ** 2) for value in values])


def actor_loss(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """J_pi = - mean min_i Q_i(z, a(z)), each [N]."""
    return -tf.reduce_mean(tf.reduce_min(tf.stack(values), 0))


class TwinCritics:
    """The actor, its two critics and their slow copies, which start as copies.

    Args:
      actor, critic: layers, units and act of the networks.
      discount, tau: g, and the share of the critics that enters their slow copies at every update.
    """

    def __init__(
        self,
        *,
        feat_size: int,
        action_size: int,
        seed: int,
        actor: Mapping[str, Any],
        critic: Mapping[str, Any],
        actor_opt: Mapping[str, Any],
        critic_opt: Mapping[str, Any],
        discount: float,
        tau: float,
        compute: Compute,
    ):
        self._discount, self._tau = discount, tau
        precision: dict[str, Any] = {"precision": compute.precision}
        self._actor = MLP(**actor, outputs={"mean": action_size}, name="actor", **precision)
        self._actor.build((None, feat_size))
        self._critics, self._slow = (
            [MLP(**critic, outputs={"value": 1}, name=f"{prefix}{name}", **precision) for name in CRITICS]
            for prefix in ("", "slow_")
        )
        for layer in (*self._critics, *self._slow):
            layer.build((None, feat_size + action_size))
        self.actor_variables = named_variables({"actor": self._actor})
        self.critic_variables = named_variables({layer.name: layer for layer in self._critics})
        self.slow_variables = named_variables({layer.name: layer for layer in self._slow})
        initialise(self.actor_variables | self.critic_variables, seed)
        copy_weights(self.slow_variables, self.critic_variables)
        self._optimizers = [
            Optimizer("critic", self.critic_variables, target=compute.target, **critic_opt),
            Optimizer("actor", self.actor_variables, target=compute.target, **actor_opt),
        ]

    def variables(self) -> dict[str, Any]:
        """Everything a checkpoint must hold, by stable name."""
        state: dict[str, Any] = self.actor_variables | self.critic_variables | self.slow_variables
        for optimizer in self._optimizers:
            state |= {f"opt/{name}": variable for name, variable in optimizer.state().items()}
        return state

    def action(self, feat: tf.Tensor) -> tf.Tensor:
        """a(z): [..., F] -> [..., A] in [-1, 1]."""
        return tf.tanh(self._actor(feat)["mean"])

    def learn(self, rows: Rows, others: Sequence[tf.Tensor] = ()) -> dict[str, tf.Tensor]:
        """One step of critics and actor, then of the slow critics; none where a loss, a gradient or one of the scalars
        `others` is not finite.
        """
        metrics, gradients = self.gradients(rows)
        losses = [metrics["critic_loss"], metrics["actor_loss"], *others]
        metrics |= step_if_finite(self._optimizers, gradients, losses)
        follow(self.slow_variables, self.critic_variables, self._tau * metrics["finite"])
        return metrics

    def gradients(self, rows: Rows) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Metrics, and the gradient of every variable by its own loss alone. Changes nothing."""
        next_values = _values(self._slow, rows.next_feat, self.action(rows.next_feat))
        next_value = tf.reduce_min(tf.stack(next_values), 0)
        target = tf.stop_gradient(bootstrapped(rows.reward, rows.terminal, next_value, discount=self._discount))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(self.critic_variables.values()))
            values = _values(self._critics, rows.feat, rows.action)
            q_loss = critic_loss(values, target)
        gradients = gradients_of(q_loss, self.critic_variables, tape)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(self.actor_variables.values()))
            pi_loss = actor_loss(_values(self._critics, rows.feat, self.action(rows.feat)))
        gradients |= gradients_of(pi_loss, self.actor_variables, tape)
        metrics = {"critic_loss": q_loss, "actor_loss": pi_loss}
        return metrics | {"value": tf.reduce_mean(values[0]), "target": tf.reduce_mean(target)}, gradients

    def cost(self, rows: int) -> Cost:
        """Of one update on `rows` transitions."""
        critics = sum((layer.cost(rows) for layer in self._critics), Cost())
        actor = self._actor.cost(rows)
        trained = critics.trained(input_gradient=False) + critics.frozen() + actor.trained(input_gradient=False)
        kept = gradient_bytes(self.actor_variables | self.critic_variables)
        return trained + critics.forward() + actor.forward() + Cost(bytes=kept)

    def action_cost(self, rows: int) -> Cost:
        """Of `action` on `rows` features."""
        return self._actor.cost(rows).forward()


def _values(critics: Sequence[MLP], feat: tf.Tensor, action: tf.Tensor) -> list[tf.Tensor]:
    inputs = tf.concat([feat, action], -1)
    return [critic(inputs)["value"][..., 0] for critic in critics]
