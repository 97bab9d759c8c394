"""Roll a policy through a model. Both are passed in and known only by the protocols below."""

from typing import Any, Protocol

import tensorflow as tf

from semopo_tf.methods.losses import Penalty, least_reward, penalised_reward
from semopo_tf.random import Key
from semopo_tf.types import Imagined, Latent


class ImaginationModel(Protocol):
    """What imagination needs from a model; in SeMOPO the endogenous part implements it."""

    def draw_steps(self, key: Key, horizon: int, size: int) -> Any: ...

    def step(self, latent: Latent, action: tf.Tensor, noise: Any) -> Latent: ...

    def features(self, latent: Latent) -> tf.Tensor: ...

    def reward(self, feat: tf.Tensor) -> tf.Tensor: ...

    def continues(self, feat: tf.Tensor) -> tf.Tensor | None: ...

    def disagreement(self, latent: Latent, measure: str) -> tf.Tensor: ...

    def member_rewards(self, latent: Latent, noise: Any) -> tf.Tensor: ...


class ImaginationPolicy(Protocol):
    """What imagination needs from a policy."""

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
    penalty: Penalty,
    is_terminal: tf.Tensor | None = None,
) -> Imagined:
    """Imagine `horizon` steps from every start state: the inner loop of the paper's policy learning.

        state   s_0 --a_1--> s_1 --a_2--> ... --a_H--> s_H        a_{t+1} ~ policy(sg feat_t)
        reward  r_0          r_1                       r_H        r_t = penalised_reward(s_t)
        weight  1            g                         g^H     without a continue head; with one, the product of
                                                               g c_t before it: c_0 is true, c_t predicted from s_t

    The gradient of the policy's features is stopped: it learns through the states, rewards and penalties that its
    actions cause.

    Args:
      start: [N, ...] posterior states, already stopped.
      is_terminal: [N] bool, whether the episode ended at the start state; nowhere by default.
    """
    size = start.deter.shape[0]
    noise = (model.draw_steps(key, horizon, size), policy.draw_actions(key, horizon, size))  # leading axis H

    def step(
        previous: tuple[Latent, tf.Tensor, tf.Tensor], now: tuple[Any, tf.Tensor]
    ) -> tuple[Latent, tf.Tensor, tf.Tensor]:
        latent, _, _ = previous
        step_noise, action_noise = now
        action, entropy = policy.act(tf.stop_gradient(model.features(latent)), action_noise)
        return model.step(latent, action, step_noise), action, entropy

    no_action = tf.zeros([size, policy.action_size])
    *steps, entropy = tf.scan(step, noise, initializer=(start, no_action, tf.zeros([size])))
    latent, action = tf.nest.map_structure(_with_start, (start, no_action), tuple(steps))
    feat = model.features(latent)  # [N, H+1, F]
    disagreement = model.disagreement(latent, penalty.measure)
    predicted = model.reward(feat)
    if penalty.reward == "minimum":
        imagined = tf.nest.map_structure(lambda x: x[:, 1:], latent)
        predicted = least_reward(predicted, model.member_rewards(imagined, noise[0]))
    reward = penalised_reward(predicted, disagreement, penalty.weight)
    discounts = tf.fill(reward.shape, discount)
    continues = model.continues(feat)
    if continues is not None:
        goes_on = tf.ones([size]) if is_terminal is None else 1 - tf.cast(is_terminal, tf.float32)
        discounts *= tf.concat([goes_on[:, None], continues[:, 1:]], 1)
    weight = tf.math.cumprod(discounts, axis=1, exclusive=True)
    return Imagined(feat, action, reward, penalty.weight * disagreement, discounts, weight, tf.transpose(entropy))


def _with_start(start: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
    """start [N, ...] and steps [H, N, ...] -> [N, H+1, ...]."""
    return tf.concat([start[:, None], tf.transpose(steps, [1, 0, *range(2, len(steps.shape))])], 1)
