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
from semopo_tf.methods.imagination import imagine
from semopo_tf.methods.losses import Penalty
from semopo_tf.methods.world_model import JointWorldModel, Losses, SeparatedWorldModel, WorldModel
from semopo_tf.nets.accounting import Cost
from semopo_tf.nets.compute import Compute
from semopo_tf.nets.layers import compute_type, fitting_kernels
from semopo_tf.nets.optim import LossScale, Optimizer, gradients_of, step_if_finite
from semopo_tf.random import Key
from semopo_tf.types import Batch, Imagined, Latent, Learner, Stage

KERNELS_OF_64 = ((4, 4, 4, 4), (5, 5, 6, 6))  # the configuration's default
EVIDENCE_ROWS = 512  # frames encoded in one call
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
      penalty: measure and weight of the disagreement in the imagined reward.
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
        return self.actor_critic.learn(self._rollouts(batch, key), key.step)

    def policy_gradients(self, batch: Batch, key: Key) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Metrics and gradients of `update_policy` by name, multiplied by the loss scale if any. Changes nothing."""
        metrics, gradients = self.actor_critic.gradients(self._rollouts(batch, key))
        return metrics, {f"policy/{name}": gradient for name, gradient in gradients.items()}

    def _rollouts(self, batch: Batch, key: Key) -> Callable[[], Imagined]:
        """A function that imagines from the posterior states of the batch."""
        start, is_terminal = tf.nest.map_structure(
            lambda x: tf.stop_gradient(tf.reshape(x, [x.shape[0] * x.shape[1], *x.shape[2:]])),
            (self.world_model.posterior(batch, key), batch.is_terminal),
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

        return rollouts

    def evidence(self, frames: np.ndarray) -> tf.Tensor:
        """Run the frozen encoder once over all frames, [N, H, W, 3] uint8 -> [N, hidden], for the policy stage.

        Stored in the compute type. A function of weights and frames alone, so a resumed run computes the same values.
        """
        branch, rows, blocks = self.world_model.main, min(EVIDENCE_ROWS, len(frames)), []
        stored = compute_type(self._compute.precision)
        encode = self._compute.compile(lambda image: tf.cast(branch.evidence(image), stored))
        for first in range(0, len(frames), rows):
            start = min(first, len(frames) - rows)  # the last block overlaps the previous one: all have the same shape
            blocks.append(encode(tf.constant(frames[start : start + rows]))[first - start :])
        return tf.concat(blocks, 0)

    def policy(self) -> "FilterPolicy":
        """The acting policy: filters the endogenous state and takes the actor's mode."""
        return FilterPolicy(self.world_model, self.actor_critic, **self._sizes, compute=self._compute)

    def cost(self, stage: str, batch: int, length: int) -> Cost:
        """FLOPs of one update on `batch` windows of `length` records, and bytes of its activations and gradients."""
        records = batch * length
        if stage == "policy":
            return costs.policy_update(self.world_model, self.actor_critic, starts=records, horizon=self._horizon)
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
    encoder, decoder = ({**sections[name], **convolutional} for name in ("encoder", "decoder"))
    if image_size != 64 and (encoder["kernels"], decoder["kernels"]) == KERNELS_OF_64:  # none named for this size
        encoder["kernels"], decoder["kernels"] = fitting_kernels(image_size)
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
        encoder=encoder,
        decoder=decoder,
        rssm={**sections["rssm"], **precision},
        reward_head={**sections["reward_head"], **precision},
        kl=sections["kl"],
        reward_gradient=model["reward_gradient"],
        image_scale=model["image_scale"],
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


class FilterPolicy:
    """The acting policy: filters the endogenous state from frames and takes the actor's mode. Has no exogenous state.

    Each episode is filtered separately inside one compiled call, with latent noise keyed by (episode seed, decision).
    So its actions do not depend, bit for bit, on the episodes beside it; in a batched product the last bit may depend
    on a row's position in the batch.
    """

    def __init__(
        self, world_model: WorldModel, actor: ActorCritic, *, image_size: int, action_size: int, compute: Compute
    ):
        self._branch, self._actor = world_model.main, actor
        self.image_size, self.action_size = image_size, action_size
        latent, action = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape[1:], x.dtype), self.initial(1))
        self._decision = (action, latent)
        row = (tf.TensorSpec([image_size, image_size, 3], tf.uint8), latent, action, *[tf.TensorSpec([], tf.int64)] * 2)
        rows = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape], x.dtype), row)
        self._act = compute.compile(self.act, signature=rows)

    def initial(self, episodes: int) -> tuple[Latent, tf.Tensor]:
        """State before the first frame of `episodes` episodes."""
        return self._branch.rssm.initial(episodes), tf.zeros([episodes, self.action_size])

    def __call__(
        self, image: np.ndarray, state: tuple[Latent, tf.Tensor], seeds: np.ndarray, step: int
    ) -> tuple[np.ndarray, tuple[Latent, tf.Tensor]]:
        """See `types.Policy`; actions are in [-1, 1]."""
        seeds = tf.constant(seeds, tf.int64)
        action, latent = self._act(tf.constant(image), *state, seeds, tf.fill(seeds.shape, tf.constant(step, tf.int64)))
        return action.numpy(), (latent, action)

    def start(self) -> dict[str, tf.Tensor]:
        """The state before the first frame of one episode by name, each [1, ...], as an export carries it."""
        latent, action = self.initial(1)
        return {"deter": latent.deter, "stoch": latent.stoch, "action": action}

    def decide(
        self, images: tf.Tensor, seeds: tf.Tensor, steps: tf.Tensor, state: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """One decision of E episodes from a state as of `start`, each [E, ...]; the next state."""
        unused = tf.nest.map_structure(lambda x: tf.repeat(x, tf.shape(seeds)[0], 0), self.initial(1)[0].stats)
        latent = Latent(state["deter"], state["stoch"], unused)
        action, latent = self.act(images, latent, state["action"], seeds, steps)
        return {"deter": latent.deter, "stoch": latent.stoch, "action": action}

    def act(
        self, images: tf.Tensor, latents: Latent, actions: tf.Tensor, seeds: tf.Tensor, steps: tf.Tensor
    ) -> tuple[tf.Tensor, Latent]:
        """One decision of each of E episodes.

            latent_{t-1}, action_{t-1}, image_t --filter--> latent_t --actor's mode--> action_t

        Args:
          images: [E, H, W, 3] uint8.
          latents, actions: [E, ...] of each episode's previous decision, ignored where its step is 0; `stats` of the
            latent are always ignored.
          seeds, steps: [E] int64, each episode's seed and its decisions since reset.

        Returns:
          action [E, A] in [-1, 1], latent [E, ...].
        """
        branch = self._branch

        def one_episode(row: tuple[tf.Tensor, Latent, tf.Tensor, tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, Latent]:
            image, latent, action, seed, step = row
            latent = tf.nest.map_structure(lambda x: x[None], latent)
            noise = branch.rssm.draw(Key(seed, "evaluation", step), "state", (1, 1))
            evidence, is_first = branch.evidence(image[None])[:, None], tf.reshape(tf.equal(step, 0), [1, 1])
            post = branch.rssm.observe(evidence, action[None, None], is_first, noise, latent)
            latent = tf.nest.map_structure(lambda x: x[:, 0], post)
            return self._actor.policy(branch.features(latent)).mode()[0], tf.nest.map_structure(lambda x: x[0], latent)

        decided: tuple[tf.Tensor, Latent] = tf.map_fn(
            one_episode, (images, latents, actions, seeds, steps), fn_output_signature=self._decision
        )
        return decided
