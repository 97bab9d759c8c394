"""InfoGating (Tomar et al. 2023, arXiv 2303.06121): a mask, computed from the image, hides every pixel that a
multi-step inverse model can do without. Numbers and schedule are those of its first author's offline code.

    m, m_k    = relu(tanh(mask network(o))) of both stacks, one mask for each frame, the same for its three colours
    g         = m o + (1 - m) fill                             pixels, 0..255
    x, x_k    = g, and the whole o in a random half of the batch, drawn for each of the two
    z, z_k    = encoder(x), encoder(x_k)
    N, V      = mean m, mean m^2, over both stacks
    L_inv     = mean (E(z, z_k, a) + log sum_j exp -E(z, z_k, a_j))      a_j: the action a and uniform ones
    a(s)      = mean(s) + clip(sigma * noise, -c, c)           as everywhere for stacks of frames

               trained by                                                     weights
    warm-up    L_inv on stopped x, x_k                                        encoder, inverse model E
               - 0.1 N                                                        mask network
    after it   L_inv + mask_weight N + square_weight V                        encoder, inverse model E, mask network
    bc         (a(sg z) - a)^2, z encoded again after the step                actor
    td3bc      sum_i (Q_i(sg z, a) - y)^2                                     critic
               (a(sg z) - a)^2 - alpha min_i Q_i(sg z, a(sg z)) / mean |min_i Q_i|   actor

The head `bc` is one stage, in which every update trains the representation and then the actor. The head `td3bc` trains
the representation in a stage of its own; then encoder and mask stay as they are, and s and s' are seen as at test.

Time alignment (`types.Transitions`): o ends at o_{t-1}, a = a_t leads on from there, and o_k ends at o_{t-1+k} in the
same episode; k is uniform over 1 .. max_k, or as far as the episode goes, and the inverse model is not told it. At test
the actor sees whole images unless `gate_at_test`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import tensorflow as tf

from semopo_tf import random
from semopo_tf.methods.frame_policy import FramePolicy
from semopo_tf.methods.gating import Representation, contrastive
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
from semopo_tf.nets.layers import initialise_orthogonal, named_variables
from semopo_tf.nets.optim import Optimizer, Undo, copy_weights, follow, gradients_of, step_if_finite
from semopo_tf.random import Key
from semopo_tf.types import Learner, Stacks, Stage, Transitions

SECTIONS = ("steps", "actor", "critic", "model_opt", "actor_opt", "critic_opt", "transitions", "drq", "infogating")
UNREAD = ("drq.filters", "drq.feature", "drq.cql_weight", "drq.cql_actions")


class InfoGating(Learner):
    """The representation, and one of two heads on it: `bc`, a cloned actor, or `td3bc`, an actor and a twin critic.

    Args:
      actor, critic: layers, units and act of the networks on z.
      model_opt: of encoder, inverse model and mask network.
      stack, n_step, shift, resize: frames of a stack, steps of the return of `td3bc`, pixels of the random shift
        (0: none), and the size that images are resized to (0: none).
      std_first, std_last: of the noise at the first update of the stage `policy`, and from update `std_updates` on.
      gate_at_test: whether the policy sees gated images.
      representation: further settings of `Representation`.
      model_steps, policy_steps: updates; the former of `td3bc` alone.
    """

    def __init__(
        self,
        *,
        head: str,
        image_size: int,
        action_size: int,
        seed: int,
        actor: Mapping[str, Any],
        critic: Mapping[str, Any],
        model_opt: Mapping[str, Any],
        actor_opt: Mapping[str, Any],
        critic_opt: Mapping[str, Any],
        stack: int,
        n_step: int,
        shift: int,
        resize: int,
        discount: float,
        tau: float,
        std_first: float,
        std_last: float,
        std_updates: int,
        noise_clip: float,
        bc_weight: float,
        max_k: int,
        gate_at_test: bool,
        representation: Mapping[str, Any],
        model_steps: int,
        policy_steps: int,
        compute: Compute,
    ):
        self._head, self._compute = head, compute
        self._sizes = {"image_size": image_size, "action_size": action_size}
        self._stack, self._shift, self._resize, self._gate_at_test = stack, shift, resize, gate_at_test
        self._std = partial(annealed, first=std_first, last=std_last, updates=std_updates)
        self._noise_clip, self._tau, self._bc_weight = noise_clip, tau, bc_weight
        self._representation = Representation(
            edge=resize or image_size,
            frames=stack,
            action_size=action_size,
            seed=seed,
            opt=model_opt,
            shift=shift,
            compute=compute,
            **representation,
        )
        sizes, precision = (self._representation.feature, action_size), compute.precision
        optimizer = partial(Optimizer, target=compute.target, corrected=True)
        self._actor = actor_head(*sizes, actor, precision=precision)
        self._actor_variables = named_variables({"actor": self._actor})
        self._actor_opt = optimizer("actor", self._actor_variables, **actor_opt)
        self._critic_variables: dict[str, tf.Variable] = {}
        self._slow_variables: dict[str, tf.Variable] = {}
        self._optimizers = [*self._representation.optimizers, self._actor_opt]
        if head == "td3bc":
            self._critic, self._slow = (
                critic_heads(name, *sizes, critic, precision=precision) for name in ("critic", "slow_critic")
            )
            self._critic_variables, self._slow_variables = (
                named_variables({f"{name}/{q}": layer for q, layer in zip(HEADS, heads, strict=True)})
                for name, heads in (("critic", self._critic), ("slow_critic", self._slow))
            )
            self._critic_opt = optimizer("critic", self._critic_variables, **critic_opt)
            self._optimizers.append(self._critic_opt)
        initialise_orthogonal(self._actor_variables | self._critic_variables, seed)
        copy_weights(self._slow_variables, self._critic_variables)
        pairs = Stacks(stack, 1, discount, following=False, later=max_k)
        steps = Stacks(stack, n_step, discount, following=True)
        learned = {"bc": [("policy", policy_steps, self._learn_both, pairs)]}
        learned["td3bc"] = [
            ("model", model_steps, self._learn_model, pairs),
            ("policy", policy_steps, self._learn_policy, steps),
        ]
        self.stages = tuple(
            Stage(
                name,
                updates,
                "all",
                partial(self._update, learn),
                stacks=stacks,
                prepare=partial(all_resized, resize) if resize else None,
                gradients=partial(self._gradients, learn),
                validated=name == "policy",
                evaluated=name == "policy",
            )
            for name, updates, learn, stacks in learned[head]
        )

    def variables(self) -> dict[str, Any]:
        """Everything a checkpoint must hold, by stable name."""
        state: dict[str, Any] = self._state()
        for optimizer in self._optimizers:
            state |= {f"optimizer/{name}": variable for name, variable in optimizer.state().items()}
        return state

    def _state(self) -> dict[str, tf.Variable]:
        model = self._representation.trained | self._representation.moving
        return model | self._actor_variables | self._critic_variables | self._slow_variables

    def _update(self, learn: Any, batch: Transitions, key: Key) -> dict[str, tf.Tensor]:
        """One update of a stage, as the table of the module says who learns from what."""
        metrics, _, undo = learn(batch, key)
        undo.where(metrics["finite"] < 1)
        return metrics

    def _gradients(self, learn: Any, batch: Transitions, key: Key) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Metrics and gradients of `_update` by name. Changes nothing."""
        before = undo_of(self._state(), self._optimizers)
        metrics, gradients, _ = learn(batch, key)
        before.where(tf.constant(True))
        return metrics, gradients

    def _learn_model(self, batch: Transitions, key: Key) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor], Undo]:
        """The representation alone: metrics, gradients, and what undoes the step."""
        learned = self._representation.learn(batch, key)
        return learned.metrics, learned.gradients, learned.undo

    def _learn_both(self, batch: Transitions, key: Key) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor], Undo]:
        """The representation, then the cloned actor on what the encoder makes of the same images after its step."""
        std = self._std(key.step)
        learned = self._representation.learn(batch, key)
        feature = tf.stop_gradient(self._representation.encode(learned.image))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(self._actor_variables.values()))
            loss = cloning_loss(self._act(feature, key, "action", std), batch.action)
        gradients = gradients_of(loss, self._actor_variables, tape)
        # The actor takes no step if the representation could take none.
        said = step_if_finite([self._actor_opt], gradients, [loss, *learned.losses])
        metrics = learned.metrics | said | {"actor_loss": loss, "std": std}
        return metrics, learned.gradients | gradients, learned.undo

    def _learn_policy(self, batch: Transitions, key: Key) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor], Undo]:
        """Critic, then actor against the new critic, then the slow critic; the encoder is frozen."""
        std = self._std(key.step)
        undo = undo_of(self._critic_variables | self._slow_variables, [self._critic_opt])
        feature = tf.stop_gradient(self._encode(batch.image, key, "shift"))
        following = tf.stop_gradient(self._encode(batch.next_image, key, "next_shift"))
        least = tf.minimum(*values_of(self._slow, following, self._act(following, key, "next_action", std)))
        target = batch.reward + batch.discount * least
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(self._critic_variables.values()))
            values = values_of(self._critic, feature, batch.action)
            critic_loss = temporal_difference(values, target)
        gradients = gradients_of(critic_loss, self._critic_variables, tape)
        metrics = step_if_finite([self._critic_opt], gradients, [critic_loss])
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(self._actor_variables.values()))
            action = self._act(feature, key, "action", std)
            value = tf.minimum(*values_of(self._critic, feature, action))
            actor_loss = weighted_cloning(value, action, batch.action, alpha=self._bc_weight)
        gradients |= gradients_of(actor_loss, self._actor_variables, tape)
        losses = [actor_loss, critic_loss, metrics["critic_grad_norm"]]
        metrics |= step_if_finite([self._actor_opt], gradients, losses)
        follow(self._slow_variables, self._critic_variables, tf.constant(self._tau))
        metrics |= {"critic_loss": critic_loss, "actor_loss": actor_loss, "std": std, "target": tf.reduce_mean(target)}
        metrics |= {"value": tf.reduce_mean(values[0]), "cloning_loss": cloning_loss(action, batch.action)}
        return metrics, gradients, undo

    def _seen(self, image: tf.Tensor) -> tf.Tensor:
        """Images [N, H, W, 3F] uint8 as the policy sees them at test, float32."""
        image = tf.cast(image, tf.float32)
        return self._representation.at_rest(image) if self._gate_at_test else image

    def _encode(self, image: tf.Tensor, key: Key, stream: str) -> tf.Tensor:
        """Shift and encode a stack as at test, [B, F]."""
        return self._representation.encode(self._seen(randomly_shifted(image, key, stream, self._shift)))

    def _mean(self, feature: tf.Tensor) -> tf.Tensor:
        """[B, F] -> mean action [B, A]."""
        return tf.tanh(self._actor(feature)["mean"])

    def _act(self, feature: tf.Tensor, key: Key, stream: str, std: tf.Tensor) -> tf.Tensor:
        """a(s), [B, A]."""
        mean = self._mean(feature)
        return noisy(mean, random.normal(key, stream, mean.shape), std=std, clip=self._noise_clip)

    def validate(self, batch: Transitions, key: Key) -> dict[str, tf.Tensor]:
        """The cloning loss of the mean action, without noise and shift; of `bc` also the loss of the inverse model on
        gated images, with its moving statistics.
        """
        model = self._representation
        metrics = {"cloning_loss": cloning_loss(self._mean(model.encode(self._seen(batch.image))), batch.action)}
        if self._head == "td3bc":
            return metrics
        both = model.at_rest(tf.cast(tf.concat([batch.image, batch.later_image], 0), tf.float32))
        return metrics | {"inverse_loss": contrastive(model.settled_energies(both, batch.action, key))}

    def policy(self) -> FramePolicy:
        """Takes the mean action of the last frames."""
        return FramePolicy(
            lambda stack: self._mean(self._representation.encode(self._seen(stack))),
            frames=self._stack,
            **self._sizes,
            compute=self._compute,
            resized=partial(bicubic, self._resize) if self._resize else tf.identity,
        )

    def cost(self, stage: str, batch: int, length: int) -> Cost:
        """FLOPs of one update on `batch` transitions, and bytes of its activations; `length` is not used."""
        model, actor = self._representation, self._actor.cost(batch)
        if stage == "model":
            return model.cost(batch)
        if self._head == "bc":
            return model.cost(batch) + model.encoder_cost(batch).forward() + actor.trained(input_gradient=False)
        critic = sum((head.cost(batch) for head in self._critic), Cost())
        seen = model.encoder_cost(2 * batch) + (model.mask_cost(2 * batch) if self._gate_at_test else Cost())
        total = seen.forward() + actor.forward() + critic.forward() + critic.trained(input_gradient=False)
        return total + actor.trained(input_gradient=False) + critic.frozen()


def build(sections: Mapping[str, Any], *, image_size: int, action_size: int, seed: int, compute: Compute) -> InfoGating:
    """Build the learner from the sections of the configuration and initialise its variables from `seed`.

    Raises:
      ValueError: for images too small for the networks, or float16, which needs a loss scale.
    """
    require_no_loss_scale(compute, "infogating")
    own = dict(sections["infogating"])
    own_keys = {key: own.pop(key) for key in ("head", "max_k", "gate_at_test")}
    drq = {key: value for key, value in sections["drq"].items() if f"drq.{key}" not in UNREAD}
    optimizers: dict[str, Any] = {name: sections[name] for name in ("model_opt", "actor_opt", "critic_opt")}
    return InfoGating(
        **own_keys,
        **optimizers,
        **sections["transitions"],
        **drq,
        actor={key: value for key, value in sections["actor"].items() if key != "min_std"},
        critic=sections["critic"],
        representation=own,
        model_steps=sections["steps"].model,
        policy_steps=sections["steps"].policy,
        image_size=image_size,
        action_size=action_size,
        seed=seed,
        compute=compute,
    )
