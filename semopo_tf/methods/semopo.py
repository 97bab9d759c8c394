"""SeMOPO, its ablations and Offline DV2 as one learner: first a world model, then a policy in its imagination.

The configuration selects the world model and what its losses train. The exogenous states never leave the world model.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from semopo_tf.methods import costs
from semopo_tf.methods.actor_critic import ActorCritic
from semopo_tf.methods.adversary import Adversary
from semopo_tf.methods.filter_policy import FilterPolicy, evidence_table
from semopo_tf.methods.imagination import imagine
from semopo_tf.methods.losses import Penalty, penalised_reward
from semopo_tf.methods.world_model import JointWorldModel, Losses, SeparatedWorldModel, WorldModel
from semopo_tf.nets.accounting import Cost
from semopo_tf.nets.compute import Compute
from semopo_tf.nets.layers import fitted
from semopo_tf.nets.optim import LossScale, Optimizer, gradients_of, step_if_finite
from semopo_tf.random import Key
from semopo_tf.types import Batch, Imagined, Latent, Learner, Recorded, Stage

SECTIONS = (
    *("steps", "model", "encoder", "decoder", "rssm", "reward_head", "kl", "model_opt", "penalty", "imagination"),
    *("actor", "critic", "actor_critic", "actor_opt", "critic_opt"),
)
WORLD_MODELS = {"separated": SeparatedWorldModel, "joint": JointWorldModel}


class SeMOPO(Learner):
    """Algorithm 1 of the paper: the stage `model` is its first loop, the stage `policy` its second.

        batches of the pool (`data.sampler`)  -->  update_model   one step of the world model
        posterior states  --imagine-->  penalised reward  -->  update_policy   one step of actor and critic

    Args:
      model_opt: arguments of `Optimizer` for the world model, and for the adversary if it has one.
      split_optimizers: one optimiser per branch instead of one for all.
      adversary_updates: steps of the adversary before each model update.
      horizon, discount: of imagination.
      penalty: measure and weight of the disagreement in the imagined reward, and which predicted reward that is.
      steps: updates of the stages `model` and `policy`.
      image_size, action_size: of the frames that the policy sees and of its actions.
    """

    def __init__(
        self,
        world_model: WorldModel,
        actor_critic: ActorCritic,
        *,
        model_opt: Mapping[str, Any],
        split_optimizers: bool,
        adversary_updates: int,
        horizon: int,
        discount: float,
        penalty: Penalty,
        steps: Mapping[str, int],
        image_size: int,
        action_size: int,
        compute: Compute,
    ):
        self.world_model, self.actor_critic = world_model, actor_critic
        self._horizon, self._discount, self._penalty = horizon, discount, penalty
        self._model_opts = [
            Optimizer(name, group, target=compute.target, **model_opt)
            for name, group in world_model.groups(split_optimizers).items()
        ]
        self._adversary, self._adversary_updates = None, adversary_updates
        if world_model.adversary:
            head = world_model.adversary
            optimizer = Optimizer("exo_reward", head, target=compute.target, **model_opt)
            self._adversary = Adversary(head, world_model.adversary_loss, optimizer, adversary_updates)
        self._sizes, self._compute = {"image_size": image_size, "action_size": action_size}, compute
        self._loss_scale = LossScale("model_scale") if compute.precision == "mixed_float16" else None
        self.stages = (
            Stage(
                "model",
                steps["model"],
                "model",
                self.update_model,
                gradients=self.model_gradients,
                validated=True,
                pictured=True,
            ),
            Stage(
                "policy",
                steps["policy"],
                "policy",
                self.update_policy,
                prepare=self.evidence,
                gradients=self.policy_gradients,
                evaluated=True,
            ),
        )

    def update_model(self, batch: Batch, key: Key) -> dict[str, tf.Tensor]:
        """One world-model update: one forward and one backward pass, then a step of every optimiser.

        The table in `world_model` says which part learns from which loss. An update that is not finite changes nothing,
        the adversary included.
        """
        before = self._adversary.undo() if self._adversary else None
        losses, gradients = self._model_gradients(batch, key)
        metrics = losses.metrics | step_if_finite(self._model_opts, gradients, [losses.total], self._loss_scale)
        if before:
            before.where(metrics["finite"] < 1)
        return metrics

    def _model_gradients(self, batch: Batch, key: Key) -> tuple[Losses, dict[str, tf.Tensor]]:
        """The model losses and their gradients. The adversary, if any, first takes its steps on the same batch."""
        trained = self.world_model.trained
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(trained.values()))
            inferred = self.world_model.infer(batch, key)
            if self._adversary:
                self._adversary.fit(inferred.feats[1], batch.reward)
            losses = self.world_model.losses(batch, key, inferred)
            scaled = losses.total * self._loss_scale.scale if self._loss_scale else losses.total
        return losses, gradients_of(scaled, trained, tape)

    def model_gradients(self, batch: Batch, key: Key) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Metrics and gradients of `update_model` by name, multiplied by the loss scale if any. Changes nothing."""
        before = self._adversary.undo() if self._adversary else None
        losses, gradients = self._model_gradients(batch, key)
        if before:
            before.where(tf.constant(True))
        return losses.metrics, {f"model/{name}": gradient for name, gradient in gradients.items()}

    def update_policy(self, batch: Batch, key: Key) -> dict[str, tf.Tensor]:
        """One actor-critic update from the posterior states of all B*T records; the world model is frozen.

        Args:
          batch: with images, or with the output of `evidence` in their place.
        """
        rollouts, recorded = self._rollouts(batch, key)
        return self.actor_critic.learn(rollouts, key.step, recorded)

    def policy_gradients(self, batch: Batch, key: Key) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Metrics and gradients of `update_policy` by name, multiplied by the loss scale if any. Changes nothing."""
        metrics, gradients = self.actor_critic.gradients(*self._rollouts(batch, key))
        return metrics, {f"policy/{name}": gradient for name, gradient in gradients.items()}

    def _rollouts(self, batch: Batch, key: Key) -> tuple[Callable[[], Imagined], Recorded | None]:
        """A function that imagines from the posterior states of the batch, and the batch as these states show it."""
        posterior = tf.nest.map_structure(tf.stop_gradient, self.world_model.posterior(batch, key))
        recorded = self._recorded(batch, posterior) if self.actor_critic.data_share else None
        start, is_terminal = tf.nest.map_structure(
            lambda x: tf.reshape(x, [x.shape[0] * x.shape[1], *x.shape[2:]]), (posterior, batch.is_terminal)
        )

        def rollouts() -> Imagined:
            return imagine(
                self.world_model,
                self.actor_critic,
                start,
                key,
                horizon=self._horizon,
                discount=self._discount,
                penalty=self._penalty,
                is_terminal=is_terminal,
            )

        return rollouts, recorded

    def _recorded(self, batch: Batch, posterior: Latent) -> Recorded:
        """The batch as the policy learns from it, its rewards penalised as the imagined ones are (Equation 2)."""
        disagreement = self.world_model.disagreement(posterior, self._penalty.measure)
        return Recorded(
            feat=tf.stop_gradient(self.world_model.features(posterior)),
            action=batch.action,
            reward=tf.stop_gradient(penalised_reward(batch.reward, disagreement, self._penalty.weight)),
            discount=self._discount * (1 - tf.cast(batch.is_terminal, tf.float32)),
        )

    def evidence(self, frames: np.ndarray) -> tf.Tensor:
        """Run the frozen encoder once over all frames, [N, H, W, 3] uint8 -> [N, hidden], for the policy stage."""
        return evidence_table(self.world_model.main, frames, self._compute)

    def policy(self) -> FilterPolicy:
        """The acting policy: filters the endogenous state and takes the actor's mode."""

        def mode(feat: tf.Tensor) -> tf.Tensor:
            return self.actor_critic.acting_policy(feat).mode()

        return FilterPolicy(self.world_model.main, mode, **self._sizes, compute=self._compute)

    def cost(self, stage: str, batch: int, length: int) -> Cost:
        """FLOPs of one update on `batch` windows of `length` records, and bytes of its activations and gradients."""
        records = batch * length
        if stage == "policy":
            sizes = {"starts": records, "horizon": self._horizon}
            return costs.policy_update(self.world_model, self.actor_critic, **sizes, reward=self._penalty.reward)
        return costs.world_model_update(
            self.world_model, frames=records, remat=self._compute.remat, adversary_updates=self._adversary_updates
        )

    def validate(self, batch: Batch, key: Key) -> dict[str, tf.Tensor]:
        """World-model metrics of a batch; changes nothing."""
        return self.world_model.losses(batch, key).metrics

    def pictures(self, batch: Batch, key: Key, context: int) -> dict[str, tf.Tensor]:
        """Rows of the video report, as `WorldModel.reconstruct`."""
        return self.world_model.reconstruct(batch, key, context)

    def variables(self) -> dict[str, tf.Variable]:
        """Everything a checkpoint must hold, by stable name: `model/...`, `model_opt/...`, `policy/...`."""
        stateful = [self._adversary, *self._model_opts, self._loss_scale]
        groups = [("model", self.world_model.trained | self.world_model.adversary)]
        groups += [("model_opt", part.state()) for part in stateful if part]
        groups += [("policy", self.actor_critic.variables())]
        return {f"{group}/{name}": variable for group, variables in groups for name, variable in variables.items()}


def build(sections: Mapping[str, Any], *, image_size: int, action_size: int, seed: int, compute: Compute) -> SeMOPO:
    """Build a learner from the sections of the configuration and initialise its variables from `seed`.

    Raises:
      ValueError: when the kernels do not fit the image, or a joint model is to use an option that needs two streams.
    """
    model, sizes = sections["model"], {"image_size": image_size, "action_size": action_size}
    precision: dict[str, Any] = {"precision": compute.precision}
    convolutional = precision | {"target": compute.target}
    encoder, decoder = fitted(image_size, sections["encoder"], sections["decoder"])
    streams = {}
    if model["kind"] == "separated":
        streams = {
            "exo_action": model["exo_action"],
            "exo_weight": model["exo_only"] ** model["exo_only_power"],
            "exo_stoch": model["exo_stoch"],
            "drp_scale": model["drp_scale"] if model["drp"] else 0.0,
        }
    elif model["drp"]:
        raise ValueError(
            "--model.drp True: expected model.kind separated, received joint; a joint model has no exogenous stream"
        )
    world_model = WORLD_MODELS[model["kind"]](
        **sizes,
        **streams,
        seed=seed,
        encoder=encoder | convolutional,
        decoder=decoder | convolutional,
        rssm={**sections["rssm"], **precision},
        reward_head={**sections["reward_head"], **precision},
        kl=sections["kl"],
        reward_gradient=model["reward_gradient"],
        reward_scale=model["reward_scale"],
        image_scale=model["image_scale"],
        kl_scale=model["kl_scale"],
        kl_warmup=model["kl_warmup"],
        continue_head=model["continue_head"],
        compute=compute,
    )
    actor_critic = ActorCritic(
        feat_size=world_model.main.rssm.feat_size,
        action_size=action_size,
        seed=seed,
        compute=compute,
        **{name: sections[name] for name in ("actor", "critic", "actor_opt", "critic_opt")},
        **sections["actor_critic"],
    )
    return SeMOPO(
        world_model,
        actor_critic,
        **sizes,
        model_opt=sections["model_opt"],
        split_optimizers=model["split_optimizers"],
        adversary_updates=model["drp_updates"],
        penalty=Penalty(**sections["penalty"]),
        steps=sections["steps"],
        compute=compute,
        **sections["imagination"],
    )
