"""SeMOPO and Offline DV2: a world model learned from data, then a policy learned in its imagination, and the policy
that acts.

One class serves both; which world model it holds is configuration. Two strictly sequential stages (Algorithm 1).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from semopo_tf.engine.compiling import Jit, compiled
from semopo_tf.methods.actor_critic import ActorCritic
from semopo_tf.methods.adversary import Adversary
from semopo_tf.methods.imagination import imagine
from semopo_tf.methods.world_model import JointWorldModel, Losses, SeparatedWorldModel, WorldModel
from semopo_tf.nets.layers import compute_type
from semopo_tf.nets.optim import LossScale, Optimizer, gradients_of, step_if_finite
from semopo_tf.random import Key
from semopo_tf.types import Batch, Imagined, Latent, Stage

EVIDENCE_ROWS = 512  # frames encoded in one call
WORLD_MODELS = {"separated": SeparatedWorldModel, "joint": JointWorldModel}


class Agent:
    """World model, actor-critic and their optimisers.

    Args:
      model_opt: arguments of `Optimizer` for the world model, and for the adversary if it has one.
      split_optimizers: one optimiser a branch instead of one for all.
      adversary_updates: steps of the adversary before each model update.
      penalty_weight: lambda of Eq. 2.
      steps: updates of the stages `model` and `policy`.
      precision: `mixed_float16` brings a loss scale; the half type itself is the networks' business.
    """

    def __init__(
        self,
        world_model: WorldModel,
        actor_critic: ActorCritic,
        *,
        model_opt: Mapping[str, float],
        split_optimizers: bool,
        adversary_updates: int,
        horizon: int,
        discount: float,
        penalty_weight: float,
        steps: Mapping[str, int],
        precision: str = "float32",
    ):
        self.world_model, self.actor_critic = world_model, actor_critic
        self._horizon, self._discount, self._penalty_weight = horizon, discount, penalty_weight
        self._model_opts = [
            Optimizer(name, group, **model_opt) for name, group in world_model.groups(split_optimizers).items()
        ]
        self._adversary = None
        if world_model.adversary:
            head = world_model.adversary
            self._adversary = Adversary(
                head, world_model.adversary_loss, Optimizer("exo_reward", head, **model_opt), adversary_updates
            )
        self._table_type = compute_type(precision)
        self._loss_scale = LossScale("model_scale") if precision == "mixed_float16" else None
        self.stages = (
            Stage("model", steps["model"], "model", self.update_model, pixels=True),
            Stage("policy", steps["policy"], "policy", self.update_policy, pixels=False),
        )

    def update_model(self, batch: Batch, key: Key) -> dict[str, tf.Tensor]:
        """One world-model update: one forward, one backward for all optimisers, one step of each (who learns from what:
        `world_model`).
        """
        before = self._adversary.read() if self._adversary else []
        losses, gradients = self._model_gradients(batch, key)
        metrics = losses.metrics | step_if_finite(self._model_opts, gradients, [losses.total], self._loss_scale)
        if self._adversary:
            self._adversary.restore(before, metrics["finite"] < 1)
        return metrics

    def gradients(self, phase: str, batch: Batch, key: Key) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Losses and other metrics of a phase's update, and its gradients by variable, scaled where there is a loss
        scale. Changes nothing.
        """
        if phase == "model":
            before = self._adversary.read() if self._adversary else []
            losses, gradients = self._model_gradients(batch, key)
            if self._adversary:
                self._adversary.restore(before, tf.constant(True))
            return losses.metrics, {f"model/{name}": gradient for name, gradient in gradients.items()}
        metrics, gradients = self.actor_critic.gradients(self._rollouts(batch, key))
        return metrics, {f"policy/{name}": gradient for name, gradient in gradients.items()}

    def _model_gradients(self, batch: Batch, key: Key) -> tuple[Losses, dict[str, tf.Tensor]]:
        trained = self.world_model.trained
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(trained.values()))
            losses = self.world_model.losses(batch, key, self._adversary.fit if self._adversary else None)
            scaled = losses.total * self._loss_scale.scale if self._loss_scale else losses.total
        return losses, gradients_of(scaled, trained, tape)

    def update_policy(self, batch: Batch, key: Key) -> dict[str, tf.Tensor]:
        """One actor-critic update from the posterior states of all B*T records; the world model is frozen.

        Args:
          batch: of images, or with what `evidence` made of them in place of the images.
        """
        return self.actor_critic.learn(self._rollouts(batch, key), key.step)

    def _rollouts(self, batch: Batch, key: Key) -> Callable[[], Imagined]:
        """Imagines from the posterior states of the batch when it is called."""
        start = tf.nest.map_structure(
            lambda x: tf.stop_gradient(_flatten_batch_and_time(x)), self.world_model.posterior(batch, key)
        )

        def rollouts() -> Imagined:
            return imagine(
                self.world_model,
                self.actor_critic,
                start,
                key,
                horizon=self._horizon,
                discount=self._discount,
                penalty_weight=self._penalty_weight,
            )

        return rollouts

    def evidence(self, frames: np.ndarray, *, jit: bool) -> tf.Tensor:
        """What the policy phase needs of every frame, [N, H, W, 3] uint8 -> [N, hidden]: the frozen encoder run once
        over the dataset.

        Kept in the compute type; a function of the weights and the frames alone, so a resumed run makes the same again.
        """
        branch, rows, blocks = self.world_model.main, min(EVIDENCE_ROWS, len(frames)), []
        encode = compiled(lambda image: tf.cast(branch.evidence(image), self._table_type), jit=jit)
        for first in range(0, len(frames), rows):
            start = min(first, len(frames) - rows)  # the last block overlaps the one before, so that all have one shape
            blocks.append(encode(tf.constant(frames[start : start + rows]))[first - start :])
        return tf.concat(blocks, 0)

    def validate(self, batch: Batch, key: Key) -> dict[str, tf.Tensor]:
        """World-model metrics of a batch; changes nothing."""
        return self.world_model.losses(batch, key).metrics

    def variables(self) -> dict[str, tf.Variable]:
        """Everything a checkpoint must hold, by stable name: `model/...`, `model_opt/...`, `policy/...`."""
        found = {
            f"model/{name}": variable
            for name, variable in (self.world_model.trained | self.world_model.adversary).items()
        }
        if self._adversary:
            found |= {f"model_opt/{name}": variable for name, variable in self._adversary.state().items()}
        for optimizer in self._model_opts:
            found |= {f"model_opt/{name}": variable for name, variable in optimizer.state().items()}
        if self._loss_scale:
            found |= {f"model_opt/{name}": variable for name, variable in self._loss_scale.state().items()}
        return found | {f"policy/{name}": variable for name, variable in self.actor_critic.variables().items()}


def build(
    *,
    image_size: int,
    action_size: int,
    seed: int,
    steps: Mapping[str, int],
    model: Mapping[str, Any],
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    rssm: Mapping[str, Any],
    reward_head: Mapping[str, Any],
    kl: Mapping[str, Any],
    model_opt: Mapping[str, float],
    penalty: Mapping[str, Any],
    imagination: Mapping[str, Any],
    actor: Mapping[str, Any],
    critic: Mapping[str, Any],
    actor_critic: Mapping[str, Any],
    actor_opt: Mapping[str, float],
    critic_opt: Mapping[str, float],
    precision: str,
    remat: int,
    jit: Jit,
) -> Agent:
    """An agent from the sections of the configuration, with all variables made and drawn from `seed`.

    Args:
      jit: what will be compiled; the numbers do not depend on it beyond rounding.

    Raises:
      ValueError: when the kernels do not fit the image, or a joint model is asked for what needs two streams.
    """
    convolutional = {"precision": precision, "products": jit.products}
    shared = {
        "seed": seed,
        "reward_head": {**reward_head, "precision": precision},
        "kl": kl,
        "measure": penalty["measure"],
        "remat": remat,
    }
    shared["compile_part"] = partial(compiled, jit=True) if jit.parts else lambda function: function
    shared |= {key: model[key] for key in ("reward_gradient", "image_scale")}
    if model["kind"] == "separated":
        shared |= {
            "exo_action": model["exo_action"],
            "exo_weight": model["exo_only"] ** model["exo_only_power"],
            "exo_stoch": model["exo_stoch"],
        }
        shared["drp_scale"] = model["drp_scale"] if model["drp"] else 0.0
    elif model["drp"]:
        raise ValueError(
            "--model.drp True: expected model.kind separated, received joint; a joint model has no exogenous stream"
        )
    world_model = WORLD_MODELS[model["kind"]](
        image_size=image_size,
        action_size=action_size,
        encoder={**encoder, **convolutional},
        decoder={**decoder, **convolutional},
        rssm={**rssm, "precision": precision},
        **shared,
    )
    behaviour = ActorCritic(
        feat_size=world_model.main.rssm.feat_size,
        action_size=action_size,
        seed=seed,
        actor=actor,
        critic=critic,
        actor_opt=actor_opt,
        critic_opt=critic_opt,
        precision=precision,
        **actor_critic,
    )
    return Agent(
        world_model,
        behaviour,
        model_opt=model_opt,
        split_optimizers=model["split_optimizers"],
        adversary_updates=model["drp_updates"],
        penalty_weight=penalty["weight"],
        steps=steps,
        precision=precision,
        **imagination,
    )


class FilterPolicy:
    """The acting policy: filters the endogenous state from frames and takes the actor's mode (facts 2.13). Sees no
    exogenous state.

    Each episode is filtered by itself inside one compiled call, and its latent noise is keyed by (episode seed,
    decision). So an episode's actions do not depend on which others are played beside it, to the bit: a batched product
    may differ in
    the last bit with a row's place in the batch.
    """

    def __init__(self, agent: Agent, *, image_size: int, action_size: int, jit: bool = False):
        self._model, self._actor = agent.world_model, agent.actor_critic
        self.image_size, self.action_size = image_size, action_size
        one = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape[1:], x.dtype), self.initial(1))
        many = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape], x.dtype), one)
        self._one = (one[1], one[0])
        image = tf.TensorSpec([None, image_size, image_size, 3], tf.uint8)
        signature = (image, *many, tf.TensorSpec([None], tf.int64), tf.TensorSpec([], tf.int64))
        self._act = compiled(self._filter_and_act, jit=jit, signature=signature)

    def initial(self, episodes: int) -> tuple[Latent, tf.Tensor]:
        """State before the first frame of `episodes` episodes."""
        return self._model.main.rssm.initial(episodes), tf.zeros([episodes, self.action_size])

    def __call__(
        self, image: np.ndarray, state: tuple[Latent, tf.Tensor], seeds: np.ndarray, step: int
    ) -> tuple[np.ndarray, tuple[Latent, tf.Tensor]]:
        """See `types.Policy`; actions are in [-1, 1]."""
        action, latent = self._act(
            tf.constant(image), *state, tf.constant(seeds, tf.int64), tf.constant(step, tf.int64)
        )
        return action.numpy(), (latent, action)

    def _filter_and_act(
        self, image: tf.Tensor, latent: Latent, action: tf.Tensor, seeds: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Latent]:
        return self.filter(image, latent, action, seeds, tf.fill(tf.shape(seeds), step))

    def filter(
        self, image: tf.Tensor, latent: Latent, action: tf.Tensor, seeds: tf.Tensor, steps: tf.Tensor
    ) -> tuple[tf.Tensor, Latent]:
        """One decision of each episode: image [E, H, W, 3], latent [E, ...], action [E, A], seeds [E], steps [E] ->
        action [E, A], latent [E, ...].

        latent and action are those of the episode's decision before; where its step is 0 they count for nothing, as
        `latent.stats` never does.
        """
        return tf.map_fn(self._filter_one, (image, latent, action, seeds, steps), fn_output_signature=self._one)

    def _filter_one(self, row: tuple[tf.Tensor, Latent, tf.Tensor, tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, Latent]:
        image, latent, action, seed, step = row
        branch = self._model.main
        latent = tf.nest.map_structure(lambda x: x[None], latent)
        noise = branch.rssm.draw(Key(seed, "evaluation", step), "state", (1, 1))
        post = branch.rssm.observe(
            branch.evidence(image[None])[:, None],
            action[None, None],
            tf.reshape(tf.equal(step, 0), [1, 1]),
            noise,
            latent,
        )
        latent = tf.nest.map_structure(lambda x: x[:, 0], post)
        return self._actor.policy(branch.features(latent)).mode()[0], tf.nest.map_structure(lambda x: x[0], latent)


def _flatten_batch_and_time(x: tf.Tensor) -> tf.Tensor:
    """[B, T, ...] -> [B*T, ...]."""
    return tf.reshape(x, [x.shape[0] * x.shape[1], *x.shape[2:]])
