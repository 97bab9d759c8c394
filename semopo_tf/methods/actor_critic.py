"""Actor, critic and slow critic (DreamerV2). Learns from `Imagined`, and with `data_share` from `Recorded` too."""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from semopo_tf import random
from semopo_tf.methods import losses
from semopo_tf.nets.compute import Compute
from semopo_tf.nets.distributions import TruncatedNormal, unit_normal_log_prob
from semopo_tf.nets.layers import MLP, initialise, named_variables
from semopo_tf.nets.optim import LossScale, Optimizer, copy_weights, follow, gradients_of, step_if_finite
from semopo_tf.random import Key
from semopo_tf.types import Imagined, Recorded


class ActorCritic:
    """Truncated-normal actor and unit-variance critic on features [..., F], with a hard-copied slow critic for the
    targets.

    Args:
      actor: layers, units, act of the actor, and `min_std` of its distribution.
      critic: layers, units, act.
      actor_opt, critic_opt: arguments of `Optimizer`.
      lambda_: of the lambda-return.
      entropy_scale: weight of the policy's entropy in its objective.
      data_share: of both losses, that comes from the data's own actions and rewards; 0 in the paper.
      temperature: of `losses.advantage_weights`.
      slow_every: updates between two copies of the critic into the slow critic.
      average: the actor's weights averaged over about so many updates act (`_average_rate`); 0: the last weights.
      compute: its precision is that of the networks' matrix products; `mixed_float16` adds a loss scale.
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
        lambda_: float,
        entropy_scale: float,
        data_share: float,
        temperature: float,
        slow_every: int,
        average: int,
        compute: Compute,
    ):
        self.action_size = action_size
        self._min_std = actor["min_std"]
        self._lambda, self._entropy_scale, self._slow_every = lambda_, entropy_scale, slow_every
        self.data_share, self._temperature = data_share, temperature
        sizes = {key: value for key, value in actor.items() if key != "min_std"} | {"precision": compute.precision}
        critic = {**critic, "precision": compute.precision}
        outputs = {"loc": action_size, "std": action_size}
        self._actor = MLP(outputs=outputs, name="actor", **sizes)
        self._critic = MLP(outputs={"value": 1}, name="critic", **critic)
        self._slow_critic = MLP(outputs={"value": 1}, name="slow_critic", **critic)
        self.layers = {"actor": self._actor, "critic": self._critic, "slow_critic": self._slow_critic}
        self._acting, self._average_over = self._actor, average
        if average:
            self._acting = self.layers["mean_actor"] = MLP(outputs=outputs, name="mean_actor", **sizes)
        for net in self.layers.values():
            net.build((None, feat_size))
        self.actor_variables = named_variables({"actor": self._actor})
        self.critic_variables = named_variables({"critic": self._critic})
        self._slow_variables = named_variables({"slow_critic": self._slow_critic})
        initialise(self.actor_variables | self.critic_variables, seed)
        self._copy_critic()
        self._mean_variables = named_variables({"mean_actor": self._acting}) if average else {}
        self.acting_variables = self._mean_variables or self.actor_variables
        if average:
            copy_weights(self._mean_variables, self.actor_variables)
        self._actor_opt = Optimizer("actor", self.actor_variables, target=compute.target, **actor_opt)
        self._critic_opt = Optimizer("critic", self.critic_variables, target=compute.target, **critic_opt)
        self._loss_scale = LossScale("policy_scale") if compute.precision == "mixed_float16" else None

    def variables(self) -> dict[str, tf.Variable]:
        """Networks, slow critic and optimiser state by stable name."""
        state = self._actor_opt.state() | self._critic_opt.state()
        if self._loss_scale:
            state |= self._loss_scale.state()
        return self.actor_variables | self.critic_variables | self._slow_variables | self._mean_variables | state

    def policy(self, feat: tf.Tensor) -> TruncatedNormal:
        """Action distribution of the actor: loc = tanh(raw), std = 2 sigmoid(raw / 2) + min_std."""
        return self._distribution(self._actor(feat))

    def acting_policy(self, feat: tf.Tensor) -> TruncatedNormal:
        """Action distribution of the policy that plays: the actor's, or that of its mean weights with `average`."""
        return self._distribution(self._acting(feat))

    def _distribution(self, raw: dict[str, tf.Tensor]) -> TruncatedNormal:
        return TruncatedNormal(tf.tanh(raw["loc"]), 2 * tf.sigmoid(raw["std"] / 2) + self._min_std)

    def draw_actions(self, key: Key, horizon: int, size: int) -> tf.Tensor:
        """Noise for imagined actions, [H, N, A]."""
        return random.uniform(key, "imagined_action", [horizon, size, self.action_size])

    def act(self, feat: tf.Tensor, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """An action [N, A] and the policy's entropy [N] for each feature vector, both differentiable in the actor."""
        policy = self.policy(feat)
        return policy.sample(noise), policy.entropy()

    def value(self, feat: tf.Tensor) -> tf.Tensor:
        return self._critic(feat)["value"][..., 0]

    def slow_value(self, feat: tf.Tensor) -> tf.Tensor:
        return self._slow_critic(feat)["value"][..., 0]

    def target(self, imagined: Imagined) -> tf.Tensor:
        """Lambda-returns G_0 .. G_{H-1} under the slow critic, [N, H]; differentiable in the imagined states."""
        next_value = self.slow_value(imagined.feat[:, 1:])
        return losses.lambda_return(
            imagined.reward[:, :-1], next_value, imagined.discount[:, :-1], lambda_=self._lambda
        )

    def actor_loss(self, imagined: Imagined, target: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Scalar loss and metrics; see `losses.actor_loss` for the alignment."""
        entropy = imagined.entropy[:, :-1]
        loss = losses.actor_loss(target, entropy, tf.stop_gradient(imagined.weight), entropy_scale=self._entropy_scale)
        return tf.reduce_mean(loss), {"actor_ent": tf.reduce_mean(entropy)}

    def critic_loss(self, imagined: Imagined, target: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Scalar loss and metrics; see `losses.critic_loss` for the alignment."""
        value = self.value(tf.stop_gradient(imagined.feat[:, :-1]))
        log_prob = unit_normal_log_prob(value, tf.stop_gradient(target), 0)
        return tf.reduce_mean(losses.critic_loss(log_prob, tf.stop_gradient(imagined.weight))), {
            "critic": tf.reduce_mean(value)
        }

    def recorded_losses(self, recorded: Recorded) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        """Scalar losses of actor and critic on the data's windows, and metrics; see `losses.cloning_loss` for the
        alignment. The returns are lambda-returns of the recorded rewards under the slow critic.
        """
        value = self.slow_value(recorded.feat)
        target = losses.lambda_return(
            recorded.reward[:, :-1], value[:, 1:], recorded.discount[:, :-1], lambda_=self._lambda
        )
        advantage = tf.stop_gradient(target - value[:, :-1])
        weight = losses.advantage_weights(advantage, temperature=self._temperature)
        log_prob = self.policy(recorded.feat[:, :-1]).log_prob(recorded.action[:, 1:])
        cloning = tf.reduce_mean(losses.cloning_loss(log_prob, weight))
        fit = unit_normal_log_prob(self.value(recorded.feat[:, :-1]), tf.stop_gradient(target), 0)
        return cloning, -tf.reduce_mean(fit), {"cloning_loss": cloning, "advantage": tf.reduce_mean(advantage)}

    def learn(
        self, rollouts: Callable[[], Imagined], step: tf.Tensor, recorded: Recorded | None = None
    ) -> dict[str, tf.Tensor]:
        """One step of actor and critic.

        Args:
          rollouts: imagines with the current actor; called once, inside the gradient tape.
          step: number of updates before this one, scalar integer tensor.
          recorded: the windows that the rollouts start from, for the `data_share` of the losses; none without it.
        """
        metrics, gradients = self.gradients(rollouts, recorded)
        losses = [metrics["actor_loss"], metrics["critic_loss"]]
        metrics |= step_if_finite([self._actor_opt, self._critic_opt], gradients, losses, self._loss_scale)
        copy = tf.logical_and(step % self._slow_every == 0, metrics["finite"] > 0)
        tf.cond(copy, self._copy_critic, lambda: tf.constant(0))
        if self._mean_variables:
            follow(self._mean_variables, self.actor_variables, metrics["finite"] * self._average_rate(step))
        return metrics

    def gradients(
        self, rollouts: Callable[[], Imagined], recorded: Recorded | None = None
    ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Metrics and the gradient of every variable, multiplied by the loss scale if there is one. Changes nothing."""
        trained = self.actor_variables | self.critic_variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(trained.values()))
            imagined = rollouts()
            target = self.target(imagined)
            actor_loss, actor_metrics = self.actor_loss(imagined, target)
            critic_loss, critic_metrics = self.critic_loss(imagined, target)
            if recorded is not None:
                cloning, fit, data_metrics = self.recorded_losses(recorded)
                actor_loss = (1 - self.data_share) * actor_loss + self.data_share * cloning
                critic_loss = (1 - self.data_share) * critic_loss + self.data_share * fit
                actor_metrics |= data_metrics
            # The actor loss reaches no critic weight and vice versa, so one backward pass of the sum gives both
            # gradients.
            loss = actor_loss + critic_loss
            scaled = loss * self._loss_scale.scale if self._loss_scale else loss
        metrics = {"actor_loss": actor_loss, "critic_loss": critic_loss, "target": tf.reduce_mean(target)}
        metrics |= {"imagined_reward": tf.reduce_mean(imagined.reward), "penalty": tf.reduce_mean(imagined.penalty)}
        return metrics | actor_metrics | critic_metrics, gradients_of(scaled, trained, tape)

    def _average_rate(self, step: tf.Tensor) -> tf.Tensor:
        """The new weights' part in the mean: 1, 1/2, 1/3 .. 1/average, and 1/average from there on.

        So the first `average` updates count alike, and later ones with an exponential decay.
        """
        return 1 / tf.cast(tf.minimum(step + 1, self._average_over), tf.float32)

    def _copy_critic(self) -> tf.Tensor:
        copy_weights(self._slow_variables, self.critic_variables)
        return tf.constant(0)
