"""The losses and returns of the method as pure functions of tensors. The callers stop gradients."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf


def balanced_kl(post_side: tf.Tensor, prior_side: tf.Tensor, *, balance: float, free: float) -> tf.Tensor:
    """KL balancing with free nats on the mean (DreamerV2; released code).

        (1 - balance) * max(mean post_side, free) + balance * max(mean prior_side, free)

    The floor applies to the mean over batch and time, so the result is a scalar; every other loss is [B, T].

    Args:
      post_side: [B, T] KL(post || sg prior), which trains the posterior.
      prior_side: [B, T] KL(sg post || prior), which trains the prior.
      balance: weight of the prior's side; 0.8.
      free: nats; a side whose mean is below gives no gradient.
    """
    post_mean, prior_mean = tf.reduce_mean(post_side), tf.reduce_mean(prior_side)
    return (1 - balance) * tf.maximum(post_mean, free) + balance * tf.maximum(prior_mean, free)


def lambda_return(reward: tf.Tensor, next_value: tf.Tensor, discount: tf.Tensor, *, lambda_: float) -> tf.Tensor:
    """Lambda-returns (Sutton & Barto 12.2, in Dreamer's indexing: r_t belongs to state t).

        G_t = r_t + discount_t * [(1 - lambda) v_{t+1} + lambda G_{t+1}],   G_H = v_H

    Args:
      reward: [N, H], r_0 .. r_{H-1}.
      next_value: [N, H], v_1 .. v_H.
      discount: [N, H], for the step from t to t+1.

    Returns:
      [N, H], G_0 .. G_{H-1}; differentiable in all three.
    """
    one_step = reward + (1 - lambda_) * discount * next_value
    later, returns = next_value[:, -1], []
    for now, weight in zip(*(tf.unstack(x, axis=1)[::-1] for x in (one_step, lambda_ * discount)), strict=True):
        later = now + weight * later
        returns.append(later)
    return tf.stack(returns[::-1], 1)


def actor_loss(target: tf.Tensor, entropy: tf.Tensor, weight: tf.Tensor, *, entropy_scale: float) -> tf.Tensor:
    """Pathwise policy objective, [N, H-1]. The action taken at state t is scored by the return from state t+1.

        state     0    1    2   ...  H-1    H
        action       a_1  a_2   ...       a_H
        target  [ .   G_1  G_2  ... G_{H-1} ]  .      a_{t+1} is drawn at state t, moves G_{t+1}
        weight  [w_0  w_1  ... w_{H-2} ]  .    .
        entropy [h_0  h_1  ... h_{H-2} ]  .    .

    Args:
      target: [N, H] lambda-returns G_0 .. G_{H-1}, differentiable in the actions; no action moves G_0: it is left out.
      entropy: [N, H-1] of the policy at states 0 .. H-2, its features stopped.
      weight: [N, H+1] discount products, stopped.
    """
    return -weight[:, : entropy.shape[1]] * (target[:, 1:] + entropy_scale * entropy)


def critic_loss(log_prob: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Negative log-likelihood of the stopped returns under the critic, [N, H].

        state     0    1   ...  H-1    H
        target  [G_0  G_1  ... G_{H-1} ]  .
        weight  [w_0  w_1  ... w_{H-1} ]  .

    Args:
      log_prob: [N, H] of sg(G_t) under Normal(v(sg feat_t), 1).
      weight: [N, H+1] discount products, stopped.
    """
    return -weight[:, : log_prob.shape[1]] * log_prob


def advantage_weights(advantage: tf.Tensor, *, temperature: float) -> tf.Tensor:
    """How much each action of the data is worth imitating: advantage-weighted regression (Peng et al. 2019).

        w = min(exp(z / temperature) / mean exp(z / temperature), 20),   z = (A - mean A) / std A over the batch

    Args:
      advantage: [...] A of each action.
      temperature: in standard deviations of A; the smaller, the fewer actions count.

    Returns:
      [...], 1 everywhere where all actions are equally good.
    """
    mean, variance = tf.nn.moments(advantage, list(range(len(advantage.shape))))
    exponent = (advantage - mean) / (tf.sqrt(variance + 1e-6) * temperature)
    weight = tf.exp(exponent - tf.reduce_max(exponent))
    return tf.minimum(weight / tf.reduce_mean(weight), 20.0)


def cloning_loss(log_prob: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Weighted negative log-likelihood of the data's actions, [B, T-1]. The action taken at state t is weighted by how
    much better the return from state t was than the critic expected of it.

        state      0          1        ...  T-2              T-1
        action       a_1        a_2    ...       a_{T-1}            a_{t+1} was taken at state t
        weight    [w(G_0 - v_0)  w(G_1 - v_1)  ...  w(G_{T-2} - v_{T-2})]  .

    Args:
      log_prob: [B, T-1] of a_{t+1} under the policy at state t.
      weight: [B, T-1] `advantage_weights`, stopped.
    """
    return -weight * log_prob


class Penalty(NamedTuple):
    """The section `penalty` of the configuration: how the ensemble's disagreement enters the imagined reward."""

    measure: str  # a name of `MEASURES`
    weight: float  # lambda of Equation 2
    # r of Equation 2: `sampled`, that of the imagined state, or `minimum`, see `least_reward`.
    reward: str = "sampled"


def least_reward(reward: tf.Tensor, members: tf.Tensor) -> tf.Tensor:
    """The reward that `penalty.reward: minimum` puts into Equation 2: the least that any member predicts.

        state    s_0   s_1             ...  s_H               s_t of the member drawn for step t
        members   .    s^1_1 .. s^K_1  ...  s^1_H .. s^K_H    each member's state in its place, with the same noise
        reward   r(s_0)  min_k r(s^k_1)  ...  min_k r(s^k_H)

    The drawn member is among them, so no reward grows. The start state was filtered from an image, not predicted by a
    member, and keeps its own.

    Args:
      reward: [N, H+1] of the imagined states.
      members: [K, N, H] of the states that each member predicts.

    Returns:
      [N, H+1], differentiable in the member that is least (in all of them alike where they are equal).
    """
    return tf.concat([reward[:, :1], tf.reduce_min(members, 0)], 1)


def penalised_reward(reward: tf.Tensor, disagreement: tf.Tensor, weight: float) -> tf.Tensor:
    """Equation 2 of the paper (Eq. 2), the penalised reward (penalized reward) that the policy maximises.

        r~(s+, a) = r(s+, a) - lambda * u(s+, a),   in the paper u = sum_i |mu_i(s+, a) - mean_j mu_j(s+, a)|^2

    Reward and disagreement belong to the state at which the action arrives, so the penalty charges the transition.

    Args:
      reward: [...] predicted by the reward head; `least_reward` of it with `penalty.reward: minimum`.
      disagreement: [...] of the endogenous ensemble about the same state, one of `MEASURES`; the printed one is
        `sum_of_squares`.
      weight: lambda.

    Returns:
      [...], differentiable in reward and disagreement.
    """
    return reward - weight * disagreement


def sum_of_squares(centres: tf.Tensor) -> tf.Tensor:
    """The disagreement that the paper prints: sum over members of the squared distance to their mean.

    Args:
      centres: [K, ..., P] predictions of the members.

    Returns:
      [...], zero with zero gradient for identical members.
    """
    return tf.reduce_sum(_squared_distances(centres), 0)


def mean_norm(centres: tf.Tensor) -> tf.Tensor:
    """The disagreement of Offline DV2 and the released code (`meandis`): mean distance of the members to their mean.

    For categorical latents P runs over all S*C probabilities, so the distance is the Frobenius norm.

    Args:
      centres: [K, ..., P] predictions of the members.

    Returns:
      [...], zero with zero gradient for identical members.
    """
    return tf.reduce_mean(_safe_sqrt(_squared_distances(centres)), 0)


def log_prob_variance(log_probs: tf.Tensor) -> tf.Tensor:
    """Population variance over members of one state's log-probability (the paper's text). [K, ...] -> [...]."""
    return tf.reduce_mean(tf.square(_from_their_mean(log_probs)), 0)


def log_prob_std(log_probs: tf.Tensor) -> tf.Tensor:
    """Population standard deviation of the same (LOMPO; released code). [K, ...] -> [...]."""
    return _safe_sqrt(log_prob_variance(log_probs))


def _squared_distances(centres: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.square(_from_their_mean(centres)), -1)


def _from_their_mean(x: tf.Tensor) -> tf.Tensor:
    """[K, ...] minus the mean over K. The first member is subtracted before: the rounded mean of equal numbers may
    differ from them, and identical members must give exactly zero.
    """
    x = x - x[0]
    return x - tf.reduce_mean(x, 0)


def _safe_sqrt(square: tf.Tensor) -> tf.Tensor:
    """Square root with zero gradient at exactly zero; without it identical members make the actor's gradient NaN."""
    positive = square > 0
    return tf.where(positive, tf.sqrt(tf.where(positive, square, 1.0)), 0.0)


# Name -> (what the members disagree about, the measure).
MEASURES: dict[str, tuple[str, Callable[[tf.Tensor], tf.Tensor]]] = {
    "sum_squares": ("centre", sum_of_squares),
    "mean_norm": ("centre", mean_norm),
    "log_prob_variance": ("log_prob", log_prob_variance),
    "log_prob_std": ("log_prob", log_prob_std),
}
