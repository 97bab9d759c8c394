"""Roll a policy through a model. Knows neither: a model of five methods and a policy of two are handed in."""

from typing import Any, Protocol

import tensorflow as tf

from semopo_tf.random import Key
from semopo_tf.types import Imagined, Latent


class ImaginationModel(Protocol):
    """What imagination asks of a model; in SeMOPO it is the endogenous part alone."""

    def draw_steps(self, key: Key, horizon: int, size: int) -> Any: ...

    def step(self, latent: Latent, action: tf.Tensor, noise: Any) -> Latent: ...

    def features(self, latent: Latent) -> tf.Tensor: ...

    def reward(self, feat: tf.Tensor) -> tf.Tensor: ...

    def uncertainty(self, latent: Latent) -> tf.Tensor: ...


class ImaginationPolicy(Protocol):
    """What imagination asks of a policy."""

    action_size: int

    def draw_actions(self, key: Key, horizon: int, size: int) -> tf.Tensor: ...

    def act(self, feat: tf.Tensor, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]: ...


def imagine(
    model: ImaginationModel,
    policy: ImaginationPolicy,
    start: Latent,
    key: Key,
    *,
    horizon: int,
    discount: float,
    penalty_weight: float,
) -> Imagined:
    """Imagine `horizon` steps from every start state (Algorithm 1, second loop; Eq. 2 for the reward).

        state   s_0 --a_1--> s_1 --a_2--> ... --a_H--> s_H        a_{t+1} ~ policy(sg feat_t)
        reward  r_0          r_1                       r_H        r_t = reward(s_t) - penalty_weight * uncertainty(s_t)
        weight  1            g                         g^H

    Reward and penalty are functions of the arrival state, so the penalty charges the transition into it. The policy
    sees stopped
    features: its gradient comes through the states, rewards and penalties that its actions cause.

    Args:
      start: [N, ...] posterior states, already stopped.
      penalty_weight: lambda of Eq. 2.
    """
    size = start.deter.shape[0]
    noise = (model.draw_steps(key, horizon, size), policy.draw_actions(key, horizon, size))  # leading axis H

    def step(previous: tuple[Latent, tf.Tensor, tf.Tensor], now: tuple) -> tuple[Latent, tf.Tensor, tf.Tensor]:
        latent, _, _ = previous
        step_noise, action_noise = now
        action, entropy = policy.act(tf.stop_gradient(model.features(latent)), action_noise)
        return model.step(latent, action, step_noise), action, entropy

    no_action = tf.zeros([size, policy.action_size])
    *steps, entropy = tf.scan(step, noise, initializer=(start, no_action, tf.zeros([size])))
    latent, action = tf.nest.map_structure(_with_start, (start, no_action), tuple(steps))
    feat = model.features(latent)  # [N, H+1, F]
    penalty = penalty_weight * model.uncertainty(latent)
    discounts = tf.fill(penalty.shape, discount)
    weight = tf.math.cumprod(discounts, axis=1, exclusive=True)
    return Imagined(feat, action, model.reward(feat) - penalty, penalty, discounts, weight, tf.transpose(entropy))


def _with_start(start: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
    """start [N, ...] and steps [H, N, ...] -> [N, H+1, ...]."""
    return tf.concat([start[:, None], tf.transpose(steps, [1, 0, *range(2, len(steps.shape))])], 1)
