"""LOMPO (Rafailov et al. 2021, arXiv 2012.11547): a latent model with an ensemble, and a policy that learns off-policy
from real and imagined transitions between its states.

    stage     one update                                                               changes
    model     a step of the world model on windows                                     world model
    encode    the posterior states of one whole episode become real transitions        real buffer
    imagine   rollouts from the posterior states of windows become latent transitions  latent buffer
    policy    a step of actor and critics on rows of both buffers; every               actor, critics, and every
              `refresh_every`-th also does what `encode` and `imagine` do              `refresh_every`-th both buffers

The world model is `world_model.JointWorldModel` with LOMPO's own cell, std and KL: plain, of weight one; its heads are
K priors of which one, drawn anew for every step, counts. Time alignment of the rows, of an episode and of a rollout:

    state     z_0     z_1     z_2   ...        z_t = [stoch_t, deter_t]
    action            a_1     a_2   ...        a_t led from z_{t-1} to z_t
    reward            r_1     r_2   ...        real: received on arriving at z_t
                                               latent: r(z_t) - lambda std_k log p_k(stoch_t | deter_t)
    rows             [z_0 a_1 z_1 r_1] [z_1 a_2 z_2 r_2] ...
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import tensorflow as tf

from semopo_tf import random
from semopo_tf.methods import costs
from semopo_tf.methods.filter_policy import FilterPolicy, evidence_table
from semopo_tf.methods.imagination import imagine
from semopo_tf.methods.losses import Penalty
from semopo_tf.methods.off_policy import TwinCritics
from semopo_tf.methods.ring import Ring, Rows
from semopo_tf.methods.world_model import JointWorldModel
from semopo_tf.nets.accounting import Cost
from semopo_tf.nets.compute import Compute, require_no_loss_scale
from semopo_tf.nets.layers import fitted
from semopo_tf.nets.optim import Optimizer, gradients_of, step_if_finite
from semopo_tf.random import Key
from semopo_tf.types import Batch, Learner, Stage, WithEpisode

SECTIONS = (
    *("steps", "batch", "model", "encoder", "decoder", "rssm", "reward_head", "model_opt", "penalty", "imagination"),
    *("actor", "critic", "actor_opt", "critic_opt", "lompo"),
)
# Settings of those sections that only another world model or actor reads.
UNREAD = (
    *("model.kind", "model.exo_action", "model.exo_stoch", "model.exo_only", "model.exo_only_power", "model.drp"),
    *("model.drp_scale", "model.drp_updates", "model.split_optimizers", "rssm.latent", "rssm.classes"),
    "actor.min_std",
)
PLAIN_KL = {"balance": 0.5, "free": 0.0, "strict_elbo": True}
ENDED = 0.5  # a state ends its rollout where the probability of going on, if it is predicted, is below


def neighbours(feat: tf.Tensor, action: tf.Tensor, reward: tf.Tensor, terminal: tf.Tensor) -> Rows:
    """The rows of B sequences of T states, [B (T - 1), ...], one sequence after the other.

        feat       [z_0   z_1  ...  z_{T-2}]  .
        action      .    [a_1  ...           a_{T-1}]
        next_feat   .    [z_1  ...           z_{T-1}]       reward and terminal as next_feat

    Args:
      feat, action, reward, terminal: [B, T, ...], terminal float; column 0 of the latter three is left out.
    """
    parts = (feat[:, :-1], action[:, 1:], feat[:, 1:], reward[:, 1:], terminal[:, 1:])
    return Rows(*(tf.reshape(x, [x.shape[0] * x.shape[1], *x.shape[2:]]) for x in parts))


class Explorer:
    """The actor with Gaussian noise, as `imagination.ImaginationPolicy`."""

    def __init__(self, agent: TwinCritics, action_size: int, std: float):
        self._agent, self.action_size, self._std = agent, action_size, std

    def draw_actions(self, key: Key, horizon: int, size: int) -> tf.Tensor:
        return random.normal(key, "exploration", [horizon, size, self.action_size])

    def act(self, feat: tf.Tensor, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """clip(a(z) + std * noise, -1, 1) [N, A]; the entropy is not used, [N] zeros."""
        action = tf.clip_by_value(self._agent.action(feat) + self._std * noise, -1.0, 1.0)
        return action, tf.zeros([feat.shape[0]])


class Lompo(Learner):
    """The four stages of the table above.

    Args:
      model_opt: arguments of `Optimizer` for the world model.
      penalty: measure and weight of the ensemble's disagreement in the imagined reward; `log_prob_std` is the paper's.
      horizon: steps of a rollout.
      noise: std of the noise on the actions of a rollout.
      real_batch, latent_batch: rows of each buffer in an update of the policy.
      refresh_every: policy updates between two additions to the buffers.
      latent_rows: rows that the latent buffer has before the policy learns, if its capacity allows.
      episodes, transitions: of training; both buffers have room for as many transitions.
      windows: records of a batch of windows, B * T.
      steps: updates of the stages `model` and `policy`.
    """

    def __init__(
        self,
        world_model: JointWorldModel,
        agent: TwinCritics,
        *,
        model_opt: Mapping[str, Any],
        penalty: Penalty,
        horizon: int,
        noise: float,
        real_batch: int,
        latent_batch: int,
        refresh_every: int,
        latent_rows: int,
        episodes: int,
        transitions: int,
        windows: int,
        steps: Mapping[str, int],
        image_size: int,
        action_size: int,
        compute: Compute,
    ):
        self.world_model, self.agent = world_model, agent
        self._penalty, self._horizon = penalty, horizon
        self._explorer = Explorer(agent, action_size, noise)
        self._batches, self._refresh_every = (real_batch, latent_batch), refresh_every
        self._records = 1 + transitions // episodes  # of an episode, on average
        self._sizes, self._compute = {"image_size": image_size, "action_size": action_size}, compute
        self._model_opt = Optimizer("model", world_model.trained, target=compute.target, **model_opt)
        width = {"feat_size": world_model.main.rssm.feat_size, "action_size": action_size}
        self._real, self._latent = (Ring(name, capacity=transitions, **width) for name in ("real", "latent"))
        rollouts = -(-min(latent_rows, transitions) // (windows * horizon))
        evidence = partial(evidence_table, world_model.main, compute=compute)
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
            Stage("encode", episodes, "all", self.update_real, prepare=evidence, episode=lambda step: step),
            Stage("imagine", rollouts, "policy", self.update_latent),
            Stage(
                "policy",
                steps["policy"],
                "policy",
                self.update_policy,
                prepare=evidence,
                gradients=self.policy_gradients,
                evaluated=True,
                episode=lambda step: step // refresh_every,
            ),
        )

    def update_model(self, batch: Batch, key: Key) -> dict[str, tf.Tensor]:
        """One step of the world model, whose loss is the weighted sum of KL(posterior || prior of the drawn head),
        -log p(image) and -log p(reward).
        """
        metrics, gradients = self._model_gradients(batch, key)
        return metrics | step_if_finite([self._model_opt], gradients, [metrics["model_loss"]])

    def _model_gradients(self, batch: Batch, key: Key) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        trained = self.world_model.trained
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(trained.values()))
            losses = self.world_model.losses(batch, key)
        return losses.metrics, gradients_of(losses.total, trained, tape)

    def model_gradients(self, batch: Batch, key: Key) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Metrics and gradients of `update_model` by name. Changes nothing."""
        metrics, gradients = self._model_gradients(batch, key)
        return metrics, {f"model/{name}": gradient for name, gradient in gradients.items()}

    def real_rows(self, episode: Batch, key: Key) -> tuple[Rows, tf.Tensor]:
        """The transitions of one whole episode [1, L, ...] between its posterior states, and which of them exist."""
        feat = self._features(episode, Key(key.seed, f"{key.domain}_episode", key.step))
        rows = neighbours(feat, episode.action, episode.reward, tf.cast(episode.is_terminal, tf.float32))
        return rows, tf.reshape(~episode.is_first[:, 1:], [-1])

    def _features(self, batch: Batch, key: Key) -> tf.Tensor:
        """Features of posterior states, [B, T, F]; `batch.image` may already be the evidence."""
        return self.world_model.features(self.world_model.posterior(batch, key))

    def latent_rows(self, windows: Batch, key: Key) -> tuple[Rows, tf.Tensor, dict[str, tf.Tensor]]:
        """The transitions of one rollout from each posterior state of the windows, which of them exist, and metrics.

        Without a continue head a rollout never ends, and all of them exist.
        """
        start = tf.nest.map_structure(
            lambda x: tf.reshape(x, [x.shape[0] * x.shape[1], *x.shape[2:]]), self.world_model.posterior(windows, key)
        )
        imagined = imagine(
            self.world_model,
            self._explorer,
            start,
            key,
            horizon=self._horizon,
            discount=1.0,
            penalty=self._penalty,
        )
        continues = self.world_model.continues(imagined.feat)
        if continues is None:
            ended = tf.zeros(imagined.reward.shape)
        else:
            first = tf.reshape(tf.cast(windows.is_terminal, tf.float32), [-1, 1])
            ended = tf.concat([first, tf.cast(continues[:, 1:] < ENDED, tf.float32)], 1)
        exists = tf.math.cumsum(ended, axis=1)[:, :-1] < 1  # no end at the row's first state, or before
        rows = neighbours(imagined.feat, imagined.action, imagined.reward, ended)
        penalty, reward = (tf.reduce_mean(x[:, 1:]) for x in (imagined.penalty, imagined.reward))
        return rows, tf.reshape(exists, [-1]), {"imagined_reward": reward, "penalty": penalty}

    def update_real(self, batch: WithEpisode, key: Key) -> dict[str, tf.Tensor]:
        """Add the transitions of the batch's episode to the real buffer."""
        rows, exists = self.real_rows(batch.episode, key)
        finite = _all_finite(rows)
        self._real.add(rows, exists & finite)
        return {"real_rows": tf.cast(self._real.size(), tf.float32), "finite": tf.cast(finite, tf.float32)}

    def update_latent(self, batch: Batch, key: Key) -> dict[str, tf.Tensor]:
        """Add the transitions of rollouts from the windows' states to the latent buffer."""
        rows, exists, metrics = self.latent_rows(batch, key)
        finite = _all_finite(rows)
        self._latent.add(rows, exists & finite)
        return metrics | {
            "latent_rows": tf.cast(self._latent.size(), tf.float32),
            "finite": tf.cast(finite, tf.float32),
        }

    def update_policy(self, batch: WithEpisode, key: Key) -> dict[str, tf.Tensor]:
        """One step of the actor-critic on rows of both buffers; every `refresh_every`-th update then adds to both."""
        due = tf.equal((key.step + 1) % self._refresh_every, 0)
        return tf.cond(due, lambda: self._learn_and_refresh(batch, key), lambda: self.agent.learn(self._drawn(key)))

    def _learn_and_refresh(self, batch: WithEpisode, key: Key) -> dict[str, tf.Tensor]:
        """The step and the additions, which are those of the actor before the step; or none of them where one is not
        finite.
        """
        real, real_exists = self.real_rows(batch.episode, key)
        latent, latent_exists, _ = self.latent_rows(batch.windows, key)
        both = _all_finite((real, latent))
        metrics = self.agent.learn(self._drawn(key), [tf.where(both, 0.0, float("nan"))])
        taken = metrics["finite"] > 0
        self._real.add(real, real_exists & taken)
        self._latent.add(latent, latent_exists & taken)
        return metrics

    def _drawn(self, key: Key) -> Rows:
        """Rows of both buffers, the real ones first."""
        parts = (ring.draw(key, count) for ring, count in zip((self._real, self._latent), self._batches, strict=True))
        return Rows(*(tf.concat(columns, 0) for columns in zip(*parts, strict=True)))

    def policy_gradients(self, batch: WithEpisode, key: Key) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Metrics and gradients of the step of `update_policy` by name. Changes nothing."""
        metrics, gradients = self.agent.gradients(self._drawn(key))
        return metrics, {f"policy/{name}": gradient for name, gradient in gradients.items()}

    def policy(self) -> FilterPolicy:
        """The acting policy: filters the state, its samples drawn, and takes the actor's action without noise."""
        return FilterPolicy(self.world_model.main, self.agent.action, **self._sizes, compute=self._compute)

    def validate(self, batch: Batch, key: Key) -> dict[str, tf.Tensor]:
        """World-model metrics of a batch; changes nothing."""
        return self.world_model.losses(batch, key).metrics

    def pictures(self, batch: Batch, key: Key, context: int) -> dict[str, tf.Tensor]:
        """Rows of the video report, as `WorldModel.reconstruct`."""
        return self.world_model.reconstruct(batch, key, context)

    def cost(self, stage: str, batch: int, length: int) -> Cost:
        """FLOPs of one update on `batch` windows of `length` records, and bytes of its activations and gradients; of a
        policy update with a refresh, the bytes with it and the FLOPs with its share.
        """
        rssm, starts = self.world_model.main.rssm, batch * length
        encode = rssm.observe_cost(self._records)
        if stage == "model":
            return costs.world_model_update(self.world_model, frames=starts, remat=self._compute.remat)
        if stage == "encode":
            return encode.forward()
        steps, states = starts * self._horizon, starts * (self._horizon + 1)
        parts = [rssm.observe_cost(starts), rssm.step_cost(steps), self.world_model.reward_head.cost(states)]
        rollouts = sum((part.forward() for part in parts), self.agent.action_cost(steps))
        rollouts += rssm.prior_all_cost(states)  # its outputs for all members are in memory together
        if self._penalty.reward == "minimum":
            rollouts += costs.member_rewards(self.world_model, steps)
        if stage == "imagine":
            return self.world_model.main.encoder.cost(starts).forward() + rollouts
        share = Cost((rollouts.flops + encode.flops) // self._refresh_every, rollouts.bytes)
        return self.agent.cost(sum(self._batches)) + share

    def variables(self) -> dict[str, Any]:
        """Everything a checkpoint must hold, by stable name: `model/...`, `model_opt/...`, `real/...`, `latent/...`,
        `policy/...`.
        """
        groups = {"model": self.world_model.trained, "model_opt": self._model_opt.state()}
        groups |= {"policy": self.agent.variables()}
        state = {f"{group}/{name}": variable for group, own in groups.items() for name, variable in own.items()}
        return state | self._real.variables() | self._latent.variables()


def _all_finite(nested: Any) -> tf.Tensor:
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(x)) for x in tf.nest.flatten(nested)])


def build(
    sections: Mapping[str, Any],
    *,
    image_size: int,
    action_size: int,
    episodes: int,
    transitions: int,
    seed: int,
    compute: Compute,
) -> Lompo:
    """Build a learner from the sections of the configuration and initialise its variables from `seed`.

    Args:
      episodes, transitions: of training, which decide the size of the buffers.

    Raises:
      ValueError: when the kernels do not fit the image, for float16, which needs a loss scale, or when the dataset's
        size is not given.
    """
    require_no_loss_scale(compute, "lompo")
    if not episodes or not transitions:
        raise ValueError("lompo: expected the numbers of training episodes and transitions, received none")
    model, own, precision = sections["model"], dict(sections["lompo"]), {"precision": compute.precision}
    convolutional: dict[str, Any] = {**precision, "target": compute.target}
    encoder, decoder = fitted(image_size, sections["encoder"], sections["decoder"])
    rssm = {**sections["rssm"], "latent": "gaussian", "gru": "standard", "std": "softplus", "first_action": True}
    world_model = JointWorldModel(
        image_size=image_size,
        action_size=action_size,
        seed=seed,
        encoder=encoder | convolutional,
        decoder=decoder | convolutional,
        rssm=rssm | precision,
        reward_head={**sections["reward_head"], **precision},
        kl=PLAIN_KL,
        reward_gradient=model["reward_gradient"],
        reward_scale=model["reward_scale"],
        image_scale=model["image_scale"],
        kl_scale=model["kl_scale"],
        kl_warmup=model["kl_warmup"],
        continue_head=model["continue_head"],
        compute=compute,
    )
    imagination = sections["imagination"]
    agent = TwinCritics(
        feat_size=world_model.main.rssm.feat_size,
        action_size=action_size,
        seed=seed,
        actor={key: value for key, value in sections["actor"].items() if key != "min_std"},
        **{name: sections[name] for name in ("critic", "actor_opt", "critic_opt")},
        discount=imagination["discount"],
        tau=own.pop("tau"),
        compute=compute,
    )
    return Lompo(
        world_model,
        agent,
        model_opt=sections["model_opt"],
        penalty=Penalty(**sections["penalty"]),
        horizon=imagination["horizon"],
        **own,
        episodes=episodes,
        transitions=transitions,
        windows=sections["batch"]["size"] * sections["batch"]["length"],
        steps=sections["steps"],
        image_size=image_size,
        action_size=action_size,
        compute=compute,
    )
