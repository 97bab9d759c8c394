"""Behaviour cloning, DrQ+BC and DrQ+CQL from pixels (Lu et al. 2023, V-D4RL, on DrQ-v2 of Yarats et al. 2022).

    s, s'     = encoder(random shift of the stack), each with a shift of its own
    a(s)      = mean(s) + clip(sigma * noise, -c, c), clamped into [-1, 1] with the gradient of the identity
    y         = R + d * min_i Q'_i(s', a(s'))

                 trained by                                                     weights
    bc           (a(s) - a)^2                                                   encoder, actor
    drq_bc       sum_i (Q_i(s, a) - y)^2                                        encoder, critic
                 (a(s) - a)^2 - alpha min_i Q_i(s, a(s)) / mean |min_i Q_i|     actor
    drq_cql      sum_i (Q_i(s, a) - y)^2 + w (logsumexp_j Q_i(s, a_j) - Q_i(s, a))   encoder, critic
                 - min_i Q_i(s, a(s))                                           actor

Time alignment: see `types.Transitions`; R, d and s' are those of n steps. The critic takes its step first, then the
actor its own against the new critic, on features of the encoder before the step. The slow critic Q' has no encoder.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from semopo_tf import random
from semopo_tf.methods.frame_policy import FramePolicy
from semopo_tf.methods.stacked import (
    HEADS,
    actor_head,
    all_resized,
    annealed,
    bicubic,
    cloning_loss,
    critic_heads,
    noisy,
    randomly_shifted,
    temporal_difference,
    undo_of,
    values_of,
    weighted_cloning,
)
from semopo_tf.nets.accounting import Cost
from semopo_tf.nets.compute import Compute, require_no_loss_scale
from semopo_tf.nets.conv_stack import ConvStack, Trunk
from semopo_tf.nets.layers import initialise_orthogonal, named_variables
from semopo_tf.nets.optim import Optimizer, Undo, copy_weights, follow, gradients_of, step_if_finite
from semopo_tf.random import Key
from semopo_tf.types import Learner, Stacks, Stage, Transitions

SECTIONS = ("steps", "actor", "critic", "actor_opt", "critic_opt", "transitions", "drq")
KERNELS = ((3, 2), (3, 1), (3, 1), (3, 1))  # edge and stride of the encoder's convolutions


# --- the loss of drq_cql alone ----------------------------------------------------------------------------------------


def conservative(values: tf.Tensor) -> tf.Tensor:
    """CQL's regulariser of one head, values [B, J] of J actions, the last of them the data's:
    mean (logsumexp_j Q(s, a_j) - Q(s, a)) (Kumar et al. 2020, CQL(H)).
    """
    return tf.reduce_mean(tf.reduce_logsumexp(values, 1) - values[:, -1])


# --- the learner ------------------------------------------------------------------------------------------------------


class DrQ(Learner):
    """One learner with three losses: `bc`, `drq_bc` and `drq_cql`, as the table above.

    Args:
      loss: one of the three names.
      actor, critic: layers, units and act of the networks behind the trunks.
      feature: units of the trunks.
      stack, n_step, shift, resize: frames of a stack, steps of the return, pixels of the random shift (0: none), and
        the size that images are resized to (0: none).
      std_first, std_last: of the noise at the first update, and from update `std_updates` on.
      steps: updates.
    """

    def __init__(
        self,
        *,
        loss: str,
        image_size: int,
        action_size: int,
        seed: int,
        actor: Mapping[str, Any],
        critic: Mapping[str, Any],
        actor_opt: Mapping[str, Any],
        critic_opt: Mapping[str, Any],
        stack: int,
        n_step: int,
        shift: int,
        resize: int,
        filters: int,
        feature: int,
        discount: float,
        tau: float,
        std_first: float,
        std_last: float,
        std_updates: int,
        noise_clip: float,
        bc_weight: float,
        cql_weight: float,
        cql_actions: int,
        steps: int,
        compute: Compute,
    ):
        self._loss, self._compute = loss, compute
        self._sizes = {"image_size": image_size, "action_size": action_size}
        self._stack, self._shift, self._resize = stack, shift, resize
        self._std = partial(annealed, first=std_first, last=std_last, updates=std_updates)
        self._noise_clip, self._tau = noise_clip, tau
        self._bc_weight, self._cql_weight, self._cql_actions = bc_weight, cql_weight, cql_actions
        edge = resize or image_size
        precision: dict[str, Any] = {"precision": compute.precision}
        layers = [(filters, kernel, stride) for kernel, stride in KERNELS]
        self._encoder = ConvStack(layers, name="encoder", target=compute.target, **precision)
        self._encoder.build((None, edge, edge, 3 * stack))
        networks = _Networks(self._encoder.width, feature, action_size, precision)
        self._actor = networks.actor(actor)
        self._encoder_variables = named_variables({"encoder": self._encoder})
        self._actor_variables = _named("actor", self._actor)
        optimizer = partial(Optimizer, target=compute.target, corrected=True)
        self._actor_opt = optimizer("actor", self._actor_variables, **actor_opt)
        # The encoder learns at the rate of whoever trains it.
        self._encoder_opt = optimizer("encoder", self._encoder_variables, **(actor_opt if loss == "bc" else critic_opt))
        self._optimizers = [self._encoder_opt, self._actor_opt]
        self._critic_variables: dict[str, tf.Variable] = {}
        self._slow_variables: dict[str, tf.Variable] = {}
        if loss != "bc":
            self._critic, self._slow = networks.critic("critic", critic), networks.critic("slow_critic", critic)
            self._critic_variables = _named("critic", self._critic)
            self._slow_variables = _named("slow_critic", self._slow)
            self._critic_opt = optimizer("critic", self._critic_variables, **critic_opt)
            self._optimizers.append(self._critic_opt)
        initialise_orthogonal(self._encoder_variables | self._actor_variables | self._critic_variables, seed)
        copy_weights(self._slow_variables, self._critic_variables)
        self.stages = (
            Stage(
                "policy",
                steps,
                "all",
                self.update,
                stacks=Stacks(stack, 1 if loss == "bc" else n_step, discount, following=loss != "bc"),
                prepare=partial(all_resized, resize) if resize else None,
                gradients=self.gradients,
                validated=True,
                evaluated=True,
            ),
        )

    def variables(self) -> dict[str, Any]:
        """Everything a checkpoint must hold, by stable name."""
        state: dict[str, Any] = self._trained() | self._slow_variables
        for optimizer in self._optimizers:
            state |= {f"optimizer/{name}": variable for name, variable in optimizer.state().items()}
        return state

    def _trained(self) -> dict[str, tf.Variable]:
        return self._encoder_variables | self._actor_variables | self._critic_variables

    def update(self, batch: Transitions, key: Key) -> dict[str, tf.Tensor]:
        """One update, as the table of the module says who learns from what."""
        metrics, _, undo = self._learn(batch, key)
        if undo:
            undo.where(metrics["finite"] < 1)
            follow(self._slow_variables, self._critic_variables, self._tau * metrics["finite"])
        return metrics

    def gradients(self, batch: Transitions, key: Key) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Metrics and gradients of `update` by name. Changes nothing."""
        before = undo_of(self._trained(), self._optimizers)
        metrics, gradients, _ = self._learn(batch, key)
        before.where(tf.constant(True))
        return metrics, gradients

    def _learn(self, batch: Transitions, key: Key) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor], Undo | None]:
        """The steps of an update, its metrics and gradients, and what undoes the critic's step."""
        std = self._std(key.step)
        if self._loss == "bc":
            encoder_and_actor = self._encoder_variables | self._actor_variables
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(list(encoder_and_actor.values()))
                action = self._act(self._encode(batch.image, key, "shift"), key, "action", std)
                loss = cloning_loss(action, batch.action)
            gradients = gradients_of(loss, encoder_and_actor, tape)
            metrics = step_if_finite([self._encoder_opt, self._actor_opt], gradients, [loss])
            return metrics | {"actor_loss": loss, "std": std}, gradients, None
        trained = self._encoder_variables | self._critic_variables
        undo = undo_of(trained, [self._encoder_opt, self._critic_opt])
        following = self._encode(batch.next_image, key, "next_shift")
        target = self._target(batch, following, key, std)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(trained.values()))
            feature = self._encode(batch.image, key, "shift")
            critic_loss, metrics = self._critic_loss(feature, following, batch.action, target, key, std)
        gradients = gradients_of(critic_loss, trained, tape)
        metrics |= step_if_finite([self._encoder_opt, self._critic_opt], gradients, [critic_loss])
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(self._actor_variables.values()))
            actor_loss, said = self._actor_loss(tf.stop_gradient(feature), batch.action, key, std)
        gradients |= gradients_of(actor_loss, self._actor_variables, tape)
        # The actor takes no step if the critic could take none.
        losses = [actor_loss, critic_loss, metrics["encoder_grad_norm"], metrics["critic_grad_norm"]]
        metrics |= said | step_if_finite([self._actor_opt], gradients, losses)
        return metrics | {"target": tf.reduce_mean(target), "std": std}, gradients, undo

    def _encode(self, image: tf.Tensor, key: Key, stream: str) -> tf.Tensor:
        """Shift and encode a stack [B, H, W, 3F] uint8 -> [B, E]."""
        return self._encoded(randomly_shifted(image, key, stream, self._shift))

    def _encoded(self, image: tf.Tensor) -> tf.Tensor:
        """[B, H, W, 3F] uint8 -> [B, E]."""
        return self._encoder(tf.cast(image, tf.float32) / 255 - 0.5)

    def _mean(self, feature: tf.Tensor) -> tf.Tensor:
        """[B, E] -> mean action [B, A]."""
        trunk, head = self._actor
        return tf.tanh(head(trunk(feature))["mean"])

    def _act(self, feature: tf.Tensor, key: Key, stream: str, std: tf.Tensor, count: int = 0) -> tf.Tensor:
        """a(s) of [B, E] -> [B, A]; with `count` as many draws of it, [B, count, A]."""
        mean = self._mean(feature)
        if count:
            mean = tf.repeat(mean[:, None], count, 1)
        return noisy(mean, random.normal(key, stream, mean.shape), std=std, clip=self._noise_clip)

    def _target(self, batch: Transitions, following: tf.Tensor, key: Key, std: tf.Tensor) -> tf.Tensor:
        """y, [B]."""
        trunk, *heads = self._slow
        values = values_of(heads, trunk(following), self._act(following, key, "next_action", std))
        return batch.reward + batch.discount * tf.minimum(*values)

    def _critic_loss(
        self,
        feature: tf.Tensor,
        following: tf.Tensor,
        action: tf.Tensor,
        target: tf.Tensor,
        key: Key,
        std: tf.Tensor,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        trunk, *heads = self._critic
        hidden = trunk(feature)
        if self._loss == "drq_bc":
            values = values_of(heads, hidden, action)
            loss = temporal_difference(values, target)
            return loss, {"critic_loss": loss, "value": tf.reduce_mean(values[0])}
        # The trunk is applied once, and its few numbers are repeated for every action: the sum of V-D4RL's, without
        # copies of the encoder's many.
        among = tf.stop_gradient(self._candidates(feature, following, key, std))
        actions = tf.concat([among, action[:, None]], 1)
        count = actions.shape[1]
        rows = tf.repeat(hidden, count, 0), tf.reshape(actions, [-1, actions.shape[2]])
        tables = [tf.reshape(value, [-1, count]) for value in values_of(heads, *rows)]
        regression = temporal_difference([table[:, -1] for table in tables], target)
        regulariser = tf.add_n([conservative(table) for table in tables])
        loss = regression + self._cql_weight * regulariser
        value = tf.reduce_mean(tables[0][:, -1])
        return loss, {"critic_loss": regression, "cql_loss": regulariser, "value": value}

    def _candidates(self, feature: tf.Tensor, following: tf.Tensor, key: Key, std: tf.Tensor) -> tf.Tensor:
        """Actions whose values CQL lowers at s, [B, 3 * cql_actions, A]: uniform ones, the policy's at s and at s'."""
        count = self._cql_actions
        shape = [feature.shape[0], count, self._sizes["action_size"]]
        uniform = 2 * random.uniform(key, "cql_uniform", shape) - 1
        drawn = [
            self._act(each, key, f"cql_{name}", std, count) for name, each in (("now", feature), ("next", following))
        ]
        return tf.concat([uniform, *drawn], 1)

    def _actor_loss(
        self, feature: tf.Tensor, data: tf.Tensor, key: Key, std: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        trunk, *heads = self._critic
        action = self._act(feature, key, "action", std)
        value = tf.minimum(*values_of(heads, trunk(feature), action))
        if self._loss == "drq_cql":
            loss = -tf.reduce_mean(value)
        else:
            loss = weighted_cloning(value, action, data, alpha=self._bc_weight)
        return loss, {"actor_loss": loss, "cloning_loss": cloning_loss(action, data)}

    def validate(self, batch: Transitions, key: Key) -> dict[str, tf.Tensor]:
        """The cloning loss of the mean action, without noise and shift."""
        return {"cloning_loss": cloning_loss(self._mean(self._encoded(batch.image)), batch.action)}

    def policy(self) -> FramePolicy:
        """Takes the mean action of the last frames."""
        resized = partial(bicubic, self._resize) if self._resize else tf.identity
        return FramePolicy(
            lambda stack: self._mean(self._encoded(stack)),
            frames=self._stack,
            **self._sizes,
            compute=self._compute,
            resized=resized,
        )

    def cost(self, stage: str, batch: int, length: int) -> Cost:
        """FLOPs of one update on `batch` transitions, and bytes of its activations; `length` is not used."""
        encoder = self._encoder.cost(batch)
        actor = self._actor[0].cost(batch).then(self._actor[1].cost(batch))
        if self._loss == "bc":
            return encoder.trained(input_gradient=False) + actor.trained()
        trunk, *heads = self._critic
        critic = trunk.cost(batch).then(*(head.cost(batch) for head in heads))
        total = encoder.trained(input_gradient=False) + encoder.forward() + actor.forward() + critic.forward()
        total = total + actor.trained(input_gradient=False) + critic.frozen()
        if self._loss == "drq_bc":
            return total + critic.trained()
        rows = batch * (3 * self._cql_actions + 1)
        wide = trunk.cost(batch).then(*(head.cost(rows) for head in heads))
        return total + actor.forward() + actor.forward() + wide.trained()


class _Networks:
    """Makes the networks behind the encoder, each with a trunk of its own.

    Args:
      width: features of the encoder.
      feature: units of the trunk.
    """

    def __init__(self, width: int, feature: int, action_size: int, precision: Mapping[str, Any]):
        self._width, self._feature, self._action_size, self._precision = width, feature, action_size, precision

    def actor(self, shape: Mapping[str, Any]) -> list[Any]:
        """[trunk, head]."""
        return [self._trunk("actor"), actor_head(self._feature, self._action_size, shape, **self._precision)]

    def critic(self, name: str, shape: Mapping[str, Any]) -> list[Any]:
        """[trunk, first head, second head]."""
        return [self._trunk(name), *critic_heads(name, self._feature, self._action_size, shape, **self._precision)]

    def _trunk(self, name: str) -> Trunk:
        trunk = Trunk(self._feature, name=f"{name}_trunk", **self._precision)
        trunk.build((None, self._width))
        return trunk


def _named(name: str, layers: Sequence[Any]) -> dict[str, tf.Variable]:
    parts = ("trunk", "head") if len(layers) == 2 else ("trunk", *HEADS)
    return named_variables({f"{name}/{part}": layer for part, layer in zip(parts, layers, strict=True)})


def build(
    sections: Mapping[str, Any], *, loss: str, image_size: int, action_size: int, seed: int, compute: Compute
) -> DrQ:
    """Build a learner from the sections of the configuration and initialise its variables from `seed`.

    Raises:
      ValueError: for images too small for the kernels, or float16, which needs a loss scale.
    """
    require_no_loss_scale(compute, loss)
    actor = {key: value for key, value in sections["actor"].items() if key != "min_std"}
    networks: dict[str, Any] = {name: sections[name] for name in ("critic", "actor_opt", "critic_opt")}
    sizes: dict[str, Any] = {"image_size": image_size, "action_size": action_size}
    settings = {**sections["transitions"], **sections["drq"]}
    return DrQ(
        loss=loss,
        **sizes,
        actor=actor,
        **networks,
        **settings,
        steps=sections["steps"].policy,
        seed=seed,
        compute=compute,
    )
