"""The world models: one branch (Offline DV2) or two (SeMOPO). The exogenous latent exists only in this file.

    image --endo_encoder--> endo RSSM --> endo feat --> mask decoder --> endo mean, mask features --.
      |                        ^ action       |                                                     |-> mask m,
      |                                       '--> reward head (gradient stopped)                   |   joint mean
      '----exo_encoder----> exo RSSM  --> exo feat  --> mask decoder --> exo mean,  mask features --'
                                              '--> exogenous-only decoder (w times the image likelihood)

    joint mean = m * endo mean + (1 - m) * exo mean

Who learns from what (`reward_gradient: False`):

    endo encoder, endo RSSM         endo KL, joint image
    exo encoder, exo RSSM           exo KL, joint image, exogenous-only image
    both mask decoders, mask        joint image
    exogenous-only decoder          exogenous-only image
    reward head                     reward
    continue head (if any)          whether the episode goes on

With dissociated reward prediction a second reward head reads the exogenous features. It is not part of `trained` and
learns separately (`adversary.py`); the exogenous encoder and RSSM learn to make its prediction bad.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import keras
import tensorflow as tf

from semopo_tf.methods.losses import MEASURES, balanced_kl
from semopo_tf.nets.compute import Compute
from semopo_tf.nets.distributions import unit_normal_log_prob
from semopo_tf.nets.layers import (
    MLP,
    Decoder,
    Encoder,
    MaskBlend,
    deconv_sizes,
    fitting_kernels,
    initialise,
    named_variables,
    written,
)
from semopo_tf.nets.remat import by_slices
from semopo_tf.nets.rssm import RSSM, alike, observe_together
from semopo_tf.random import Key
from semopo_tf.types import Batch, Latent

COLORS = 3


class Kl(NamedTuple):
    """How the KL terms enter the loss: balanced with free nats, or plain (`strict_elbo`, the objective as printed)."""

    balance: float
    free: float
    strict_elbo: bool


class Draws(NamedTuple):
    """The random numbers of one branch for windows [B, T]."""

    noise: tf.Tensor  # [B, T, S] for the posterior states
    member: tf.Tensor  # [T] int64, the ensemble member of each step


class Inferred(NamedTuple):
    """Posterior states of one batch, and the losses that need no decoder."""

    posts: list[Latent]  # of every branch, [B, T, ...]
    feats: list[tf.Tensor]  # of every branch, [B, T, F]
    losses: dict[str, tf.Tensor]  # `<branch>_kl` scalars, `reward` [B, T]
    metrics: dict[str, tf.Tensor]  # scalars


class Losses(NamedTuple):
    """The model losses of one batch."""

    total: tf.Tensor  # weighted sum, scalar
    metrics: dict[str, tf.Tensor]  # scalars
    posterior: Latent  # [B, T, ...] of the branch that the policy sees


def preprocess(image: tf.Tensor) -> tf.Tensor:
    """uint8 0..255 -> float32 -0.5..0.5."""
    return tf.cast(image, tf.float32) / 255 - 0.5


def weigh(
    losses: Mapping[str, tf.Tensor], scales: Mapping[str, float | tf.Tensor], shape: tuple[int, int]
) -> tf.Tensor:
    """The weighted sum of mean losses; losses are weighted nowhere else.

    Raises:
      ValueError: when the names differ or a loss is neither [B, T] nor one of the scalar `*_kl`.
    """
    if set(losses) != set(scales):
        raise ValueError(f"losses and scales: expected the same names, received {sorted(losses)} and {sorted(scales)}")
    for name, loss in losses.items():
        loss.shape.assert_is_compatible_with([] if name.endswith("_kl") else list(shape))
    return tf.add_n([scales[name] * tf.reduce_mean(loss) for name, loss in losses.items()])


class Branch:
    """Encoder and recurrent model of one stream."""

    def __init__(
        self, name: str, *, image_size: int, action_size: int, encoder: Mapping[str, Any], rssm: Mapping[str, Any]
    ):
        """encoder, rssm: keyword arguments of the layers."""
        self.name = name
        self.encoder = Encoder(name=f"{name}_encoder", **encoder)
        self.rssm = RSSM(
            name=f"{name}_rssm", action_size=action_size, embed_size=self.encoder.embed_size(image_size), **rssm
        )
        self.encoder.build((None, image_size, image_size, COLORS))
        self.rssm.build()
        self.layers = {f"{name}_encoder": self.encoder, f"{name}_rssm": self.rssm}

    def evidence(self, image: tf.Tensor) -> tf.Tensor:
        """The posterior's input [..., hidden] from uint8 images [..., H, W, 3]. Only this part sees pixels."""
        return self.rssm.evidence(self.encoder(preprocess(image)))

    def observe(self, evidence: tf.Tensor, action: tf.Tensor, is_first: tf.Tensor, key: Key) -> Latent:
        """Posterior states [B, T, ...] from evidence [B, T, hidden]."""
        return self.rssm.observe(evidence, action, is_first, self.draw(key, evidence.shape[:2]).noise)

    def features(self, latent: Latent) -> tf.Tensor:
        return self.rssm.features(latent)

    def draw(self, key: Key, shape: Sequence[int]) -> Draws:
        """The random numbers of `observe` and `kl` for windows [B, T]."""
        return Draws(
            self.rssm.draw(key, f"{self.name}_posterior", tuple(shape)),
            self.rssm.draw_members(key, f"{self.name}_member", shape[1]),
        )

    def kl(self, post: Latent, member: tf.Tensor, settings: Kl) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The KL loss (a scalar) and its metrics, under the ensemble member drawn for each time step, [T].

        post    q_0  q_1  ...  q_{T-1}      given deter_t and image_t
        prior   p_0  p_1  ...  p_{T-1}      given deter_t alone (`RSSM.prior_input`), by member k_t
        """
        dist = self.rssm.dist
        prior = self.rssm.prior(self.rssm.prior_input(post), member)
        stopped_post, stopped_prior = tf.nest.map_structure(tf.stop_gradient, (post.stats, prior))
        value = dist.kl(post.stats, prior)
        if settings.strict_elbo:
            loss = tf.reduce_mean(value)
        else:
            post_side, prior_side = dist.kl(post.stats, stopped_prior), dist.kl(stopped_post, prior)
            loss = balanced_kl(post_side, prior_side, balance=settings.balance, free=settings.free)
        return loss, {
            f"{self.name}_kl": tf.reduce_mean(value),
            f"{self.name}_post_ent": tf.reduce_mean(dist.entropy(post.stats)),
            f"{self.name}_prior_ent": tf.reduce_mean(dist.entropy(prior)),
        }

    def open_loop(self, start: Latent, action: tf.Tensor, key: Key) -> Latent:
        """Prior rollout from `start` [B, ...] under actions [B, T, A]: Latent [B, T, ...]."""
        batch, steps = action.shape[:2]
        member = self.rssm.draw_members(key, f"{self.name}_open_member", steps)
        return self.rssm.open_loop(start, action, member, self.rssm.draw(key, f"{self.name}_open", (batch, steps)))

    def disagreement(self, latent: Latent, measure: str) -> tf.Tensor:
        """Disagreement of all members about the state that they predict in place of `latent`: [...]."""
        subject, function = MEASURES[measure]
        stats = self.rssm.prior_all(self.rssm.prior_input(latent))
        dist = self.rssm.dist
        return function(dist.centre(stats) if subject == "centre" else dist.log_prob(stats, latent.stoch))

    def uncertainties(self, inputs: tf.Tensor, key: Key) -> dict[str, tf.Tensor]:
        """Every measure of `MEASURES` for the states predicted from `RSSM.prior_input` [N, P], [N] each.

        The log-probabilities are those of a sample from the prior of one member, drawn for each row separately. The
        members are evaluated one after the other, so that identical members give exactly zero; in one stacked product
        they may differ in the last bit.
        """
        rows, rssm = inputs.shape[0], self.rssm
        each = [
            tf.nest.map_structure(lambda x: x[:, 0], rssm.prior(inputs[:, None], tf.constant([member])))
            for member in range(rssm.members)
        ]
        member = rssm.draw_members(key, f"{self.name}_predicted_member", rows)
        drawn = tf.nest.map_structure(lambda *stats: tf.gather(tf.stack(stats, 1), member, batch_dims=1), *each)
        sample = rssm.dist.sample(drawn, rssm.draw(key, f"{self.name}_predicted", (rows,)))
        subjects = {
            "centre": [rssm.dist.centre(stats) for stats in each],
            "log_prob": [rssm.dist.log_prob(stats, sample) for stats in each],
        }
        return {measure: function(tf.stack(subjects[subject])) for measure, (subject, function) in MEASURES.items()}


class WorldModel:
    """The part that both world models share: the branch that the policy sees, the reward head, and imagination."""

    def __init__(
        self,
        name: str,
        *,
        image_size: int,
        action_size: int,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
        rssm: Mapping[str, Any],
        seed: int,
        reward_head: Mapping[str, Any],
        kl: Mapping[str, Any],
        reward_gradient: bool,
        reward_scale: float,
        image_scale: float,
        kl_scale: float,
        kl_warmup: int,
        continue_head: bool,
        compute: Compute,
    ):
        """name: of the branch that the policy sees. encoder, decoder, rssm, reward_head: arguments of the layers."""
        if deconv_sizes(decoder["kernels"])[-1] != image_size:
            raise ValueError(
                f"decoder.kernels = {list(decoder['kernels'])}: expected an image of {image_size} pixels, "
                f"received {deconv_sizes(decoder['kernels'])[-1]}; try --decoder.kernels "
                f"{written(fitting_kernels(image_size)[1])}"
            )
        self.image_size, self._decoder_settings, self._reward_settings = image_size, decoder, reward_head
        self.main = Branch(name, image_size=image_size, action_size=action_size, encoder=encoder, rssm=rssm)
        self.branches = [self.main]
        self.reward_head = self._make_head("reward", self.main)
        self.layers: dict[str, keras.layers.Layer] = {**self.main.layers, "reward": self.reward_head}
        self.continue_head: MLP | None = None
        if continue_head:
            self.continue_head = self.layers["continue"] = self._make_head("continue", self.main)
        self._seed = seed
        self._kl, self._kl_scale, self._kl_warmup = Kl(**kl), kl_scale, kl_warmup
        self.reward_gradient, self._reward_scale, self._image_scale = reward_gradient, reward_scale, image_scale
        self._compute, self._recurrence = compute, compute.compile_part(self.recur)
        self._image_terms = {"image": image_scale}  # weight of each loss that `image_losses` returns, in its order
        self.adversary_head: MLP | None = None
        self.adversary: dict[str, tf.Variable] = {}  # variables of the adversary's head, which `trained` excludes

    def _make_head(self, name: str, branch: Branch) -> MLP:
        """A head of one number, of the reward head's size."""
        head = MLP(outputs={name.removeprefix("exo_"): 1}, name=name, **self._reward_settings)
        head.build((None, branch.rssm.feat_size))
        return head

    def _add_decoder(self, name: str, branch: Branch, channels: int) -> Decoder:
        decoder = Decoder(channels=channels, name=name, **self._decoder_settings)
        decoder.build((None, branch.rssm.feat_size))
        self.layers[name] = decoder
        return decoder

    def _name_variables(self) -> None:
        """Name and initialise all variables once the subclass has made its layers."""
        self.trained = named_variables(self.layers)
        initialise(self.trained, self._seed)

    def variables_of(self, *layers: str) -> dict[str, tf.Variable]:
        """Trained variables of the named layers."""
        return named_variables({name: self.layers[name] for name in layers})

    def groups(self, split: bool) -> dict[str, dict[str, tf.Variable]]:
        """Optimiser name -> the variables that it trains."""
        return {"model": self.trained}

    def losses(self, batch: Batch, key: Key, inferred: Inferred | None = None) -> Losses:
        """The model objective on a batch: weighted total, metrics and posterior states; pure (paper, Section 3.2).

            images --encoders--> evidence --recurrence and heads--> states, KL, reward loss --decoders--> image losses

        Args:
          inferred: result of `infer` for the same batch and key; computed here by default.
        """
        shape = tuple(batch.reward.shape)
        posts, feats, losses, metrics = inferred or self.infer(batch, key)
        image_losses, image_metrics = self._by_frame(batch.image, feats)
        losses = losses | image_losses
        scales = {f"{branch.name}_kl": 1.0 for branch in self.branches} | self._image_terms
        scales |= {f"{self.main.name}_kl": self._kl_weight(key.step), "reward": self._reward_scale}
        if self.continue_head:
            losses["continue"], scales["continue"] = self._continue_loss(feats[0], batch.is_terminal), 1.0
        if self.adversary:
            losses["exo_reward"] = self.adversary_loss(feats[1], batch.reward)
            scales["exo_reward"] = -self._adversary_scale
        total = weigh(losses, scales, shape)
        metrics = metrics | {f"{name}_loss": tf.reduce_mean(loss) for name, loss in losses.items()}
        return Losses(total, metrics | {"model_loss": total} | image_metrics, posts[0])

    def _kl_weight(self, step: tf.Tensor) -> tf.Tensor | float:
        """Of the KL of the state that the policy sees: grows linearly from 1 to `kl_scale` over `kl_warmup` updates.

        So it is still small while the streams share the image out.
        """
        if not self._kl_warmup:
            return self._kl_scale
        part = tf.minimum(tf.cast(step, tf.float32) / self._kl_warmup, 1.0)
        return 1.0 + (self._kl_scale - 1.0) * part

    def infer(self, batch: Batch, key: Key) -> Inferred:
        """Posterior states of every branch, the losses that need no decoder, and metrics; pure."""
        evidence = [branch.evidence(batch.image) for branch in self.branches]
        # Drawn outside of `recur`: stream names are part of a compiled function, and training and validation use
        # different ones.
        draws = [branch.draw(key, batch.reward.shape) for branch in self.branches]
        posts, losses, metrics = self._recurrence(evidence, batch.action, batch.is_first, batch.reward, draws)
        feats = [branch.features(post) for branch, post in zip(self.branches, posts, strict=True)]
        return Inferred(posts, feats, losses, metrics)

    def recur(
        self, evidence: list[tf.Tensor], action: tf.Tensor, is_first: tf.Tensor, reward: tf.Tensor, draws: list[Draws]
    ) -> tuple[list[Latent], dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """The part of `infer` without convolutions: posterior states of every branch, losses and metrics."""
        losses: dict[str, tf.Tensor] = {}
        metrics: dict[str, tf.Tensor] = {}
        models = [branch.rssm for branch in self.branches]
        inputs = [
            (embedding, self._action_for(branch, action), is_first, drawn.noise)
            for branch, embedding, drawn in zip(self.branches, evidence, draws, strict=True)
        ]
        if self._compute.target == "xla_gpu" and alike(models):
            posts = observe_together(models, inputs)
        else:
            posts = [model.observe(*each) for model, each in zip(models, inputs, strict=True)]
        for branch, post, drawn in zip(self.branches, posts, draws, strict=True):
            losses[f"{branch.name}_kl"], kl_metrics = branch.kl(post, drawn.member, self._kl)
            metrics |= kl_metrics
        metrics["reward_var"] = tf.math.reduce_variance(reward)  # squared error of a head that predicts the mean
        return posts, losses | {"reward": self._reward_loss(self.main.features(posts[0]), reward)}, metrics

    def _by_frame(
        self, image: tf.Tensor, feats: Sequence[tf.Tensor]
    ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """`image_losses` of all frames, `remat` at a time: losses [B, T] and mean metrics by name."""
        shape = image.shape[:2]
        rows = [tf.reshape(x, [shape[0] * shape[1], *x.shape[2:]]) for x in (image, *feats)]
        names = (*self._image_terms, *self.image_metrics)
        if self._compute.remat:
            values = by_slices(self.image_losses, self._compute.remat, *rows, outputs=[()] * len(names))
        else:
            values = self.image_losses(*rows)
        by_name = dict(zip(names, values, strict=True))
        losses = {name: tf.reshape(by_name[name], shape) for name in self._image_terms}
        return losses, {name: tf.reduce_mean(by_name[name]) for name in self.image_metrics}

    def image_losses(self, image: tf.Tensor, *feats: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Losses, then metrics, [n] each, of frames [n, H, W, 3] uint8 and every branch's features [n, F].

        Each frame counts by itself, so the frames may be passed in slices.
        """
        raise NotImplementedError

    image_metrics: tuple[str, ...] = ()
    _adversary_scale = 0.0

    def adversary_loss(self, feat: tf.Tensor, reward: tf.Tensor) -> tf.Tensor:
        """[B, T] negative log-likelihood of the reward under the head that reads the exogenous features [B, T, F]."""
        raise NotImplementedError

    def _action_for(self, branch: Branch, action: tf.Tensor) -> tf.Tensor:
        return action

    def reconstruct(self, batch: Batch, key: Key, context: int) -> dict[str, tf.Tensor]:
        """Truth, reconstructions, error and, if there is one, the mask: each [B, T, H, W, 1 or 3] in 0..1.

        `context` frames are filtered; the rest is predicted open loop under the true actions.
        """
        raise NotImplementedError

    def analyse(self, batch: Batch, key: Key, context: int) -> dict[str, tf.Tensor]:
        """For analysis only; the only function that passes exogenous features out of this file.

        Returns:
          For every branch its filtered features `<name>` [B, T, F], and `<name>_open` [B, T - context, F], the prior's
          rollout under the true actions after `context` filtered frames; the predicted `reward` [B, T]; and the `mask`
          [B, T, H, W, 1] if there is one.
        """
        result = {}
        for branch in self.branches:
            action = self._action_for(branch, batch.action)
            post = branch.observe(branch.evidence(batch.image), action, batch.is_first, key)
            result[branch.name] = branch.features(post)
            ahead = _context_then_open_loop(branch, batch, action, key, context)
            result[f"{branch.name}_open"] = branch.features(ahead)[:, context:]
        return result | {"reward": self.reward(result[self.main.name])}

    def uncertainties(self, batch: Batch, key: Key, records: Sequence[int]) -> dict[str, dict[str, tf.Tensor]]:
        """For analysis only: every measure of every stream at `R` chosen records of windows, filtered from their start.

        Like in imagination, the measures are about the state that the ensemble predicts for a record, from the filtered
        states before it and the action that led to it. The log-probability measures therefore use a sample from one
        random member's prior, not from the posterior, which has seen the record's image and may lie where no member
        expects it.

        Returns:
          {stream: {measure: [B, R]}}; each stream by its own ensemble.
        """
        result, shape = {}, [batch.reward.shape[0], len(records)]
        for branch in self.branches:
            post = branch.observe(
                branch.evidence(batch.image), self._action_for(branch, batch.action), batch.is_first, key
            )
            inputs = tf.gather(branch.rssm.prior_input(post), records, axis=1)
            measures = branch.uncertainties(tf.reshape(inputs, [shape[0] * shape[1], inputs.shape[-1]]), key)
            result[branch.name] = {name: tf.reshape(value, shape) for name, value in measures.items()}
        return result

    def _reward_loss(self, feat: tf.Tensor, reward: tf.Tensor) -> tf.Tensor:
        """[B, T] negative log-likelihood; r_t is predicted from the state at t, where it is received."""
        return -unit_normal_log_prob(self.reward(feat if self.reward_gradient else tf.stop_gradient(feat)), reward, 0)

    def _continue_loss(self, feat: tf.Tensor, is_terminal: tf.Tensor) -> tf.Tensor:
        """[B, T] negative log-likelihood of whether record t is no termination, from the state at t."""
        logit = self._continue_logit(feat if self.reward_gradient else tf.stop_gradient(feat))
        return tf.nn.sigmoid_cross_entropy_with_logits(1 - tf.cast(is_terminal, tf.float32), logit)

    def _continue_logit(self, feat: tf.Tensor) -> tf.Tensor:
        return cast(MLP, self.continue_head)(feat)["continue"][..., 0]

    def continues(self, feat: tf.Tensor) -> tf.Tensor | None:
        """Probability [...] that the episode goes on after the state of `feat` [..., F]; None without such a head."""
        return tf.sigmoid(self._continue_logit(feat)) if self.continue_head else None

    def posterior(self, batch: Batch, key: Key) -> Latent:
        """Filtered states [B, T, ...] of the branch that the policy sees; `batch.image` may already be its evidence."""
        evidence = (
            self.main.evidence(batch.image) if batch.image.dtype == tf.uint8 else tf.cast(batch.image, tf.float32)
        )
        return self.main.observe(evidence, batch.action, batch.is_first, key)

    def draw_steps(self, key: Key, horizon: int, size: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Ensemble member of each imagined step [H], shared by the batch, and noise for the states [H, N, S]."""
        rssm = self.main.rssm
        return rssm.draw_members(key, "imagined_member", horizon), rssm.draw(key, "imagined_state", (horizon, size))

    def step(self, latent: Latent, action: tf.Tensor, noise: tuple[tf.Tensor, tf.Tensor]) -> Latent:
        return self.main.rssm.step(latent, action, *noise)

    def member_rewards(self, latent: Latent, noise: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Predicted rewards [K, N, H] on arriving at the states that each member predicts in place of the imagined ones
        [N, H, ...], with the noise of `draw_steps` for these steps.
        """
        each = self.main.rssm.step_all(latent, tf.transpose(noise[1], [1, 0, 2]))
        return self.reward(self.features(each))

    def features(self, latent: Latent) -> tf.Tensor:
        return self.main.features(latent)

    def reward(self, feat: tf.Tensor) -> tf.Tensor:
        """Predicted reward [...] on arriving at the state of `feat` [..., F]."""
        return self.reward_head(feat)["reward"][..., 0]

    def disagreement(self, latent: Latent, measure: str) -> tf.Tensor:
        """Disagreement, by a measure, in the branch that the policy sees: [...]."""
        return self.main.disagreement(latent, measure)


class JointWorldModel(WorldModel):
    """The world model of Offline DV2: one branch explains the whole image."""

    def __init__(self, **shared: Any):
        """shared: arguments of `WorldModel`."""
        super().__init__("joint", **shared)
        self._decoder = self._add_decoder("decoder", self.main, COLORS)
        self._name_variables()

    def image_losses(self, image: tf.Tensor, *feats: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return (-unit_normal_log_prob(self._decoder(feats[0]), preprocess(image), 3),)

    def reconstruct(self, batch: Batch, key: Key, context: int) -> dict[str, tf.Tensor]:
        image = preprocess(batch.image)
        mean = self._decoder(self.main.features(_context_then_open_loop(self.main, batch, batch.action, key, context)))
        return {"truth": image + 0.5, "joint": mean + 0.5, "error": (mean - image + 1) / 2}


class SeparatedWorldModel(WorldModel):
    """SeMOPO's world model: an endogenous branch driven by actions and an exogenous one that never sees them.

    Args:
      exo_action: the exogenous model's action input: `absent` (none: the paper), `zero` (always zero: the released
        commands) or `taken` (the true action: TIA).
      exo_weight: weight w of the exogenous-only reconstruction; 0 builds no such decoder.
      exo_stoch: size of the exogenous stochastic state; 0 means the endogenous one's.
      drp_scale: weight of dissociated reward prediction, J_Radv = -drp_scale * max_q ln q(r | exo feat) (paper App.
        D.3); 0 builds no such head.
    """

    def __init__(
        self,
        *,
        action_size: int,
        encoder: Mapping[str, Any],
        rssm: Mapping[str, Any],
        exo_action: str,
        exo_weight: float,
        exo_stoch: int,
        drp_scale: float = 0.0,
        **shared: Any,
    ):
        super().__init__("endo", action_size=action_size, encoder=encoder, rssm=rssm, **shared)
        self.exo = Branch(
            "exo",
            image_size=self.image_size,
            action_size=0 if exo_action == "absent" else action_size,
            encoder=encoder,
            rssm={**rssm, "stoch": exo_stoch or rssm["stoch"]},
        )
        self.branches.append(self.exo)
        self.layers |= self.exo.layers
        self._exo_action = exo_action
        self._exo_weight = 0.0 if self._kl.strict_elbo else exo_weight
        self._endo_decoder = self._add_decoder("endo_decoder", self.main, 2 * COLORS)
        self._exo_decoder = self._add_decoder("exo_decoder", self.exo, 2 * COLORS)
        self._mask = self.layers["mask"] = MaskBlend(name="mask", target=self._compute.target)
        self._mask.build((None, self.image_size, self.image_size, 2 * COLORS))
        if self._exo_weight:
            self._exo_only_decoder = self._add_decoder("exo_only_decoder", self.exo, COLORS)
            self._image_terms["exo_image"] = self._image_scale * self._exo_weight
        self._name_variables()
        self._adversary_scale = drp_scale
        if drp_scale:
            self.adversary_head = self._make_head("exo_reward", self.exo)
            self.adversary = named_variables({"exo_reward": self.adversary_head})
            initialise(self.adversary, self._seed)

    def adversary_loss(self, feat: tf.Tensor, reward: tf.Tensor) -> tf.Tensor:
        if self.adversary_head is None:
            raise ValueError(
                "adversary_loss: expected a model with dissociated reward prediction, received one without"
            )
        return -unit_normal_log_prob(self.adversary_head(feat)["reward"][..., 0], reward, 0)

    def groups(self, split: bool) -> dict[str, dict[str, tf.Variable]]:
        """One optimiser for all, or two that both train the joint decoder, as in the released code."""
        if not split:
            return super().groups(split)
        joint = ("endo_decoder", "exo_decoder", "mask")
        exo_only = ("exo_only_decoder",) if self._exo_weight else ()
        heads = ("reward", "continue") if self.continue_head else ("reward",)
        return {
            "endo": self.variables_of("endo_encoder", "endo_rssm", *heads, *joint),
            "exo": self.variables_of("exo_encoder", "exo_rssm", *joint, *exo_only),
        }

    image_metrics = ("mask_mean",)

    def image_losses(self, image: tf.Tensor, *feats: tf.Tensor) -> tuple[tf.Tensor, ...]:
        target, decoded = preprocess(image), self._decode(*feats)
        losses = [-unit_normal_log_prob(decoded["joint"], target, 3)]
        if self._exo_weight:
            losses.append(-unit_normal_log_prob(self._exo_only_decoder(feats[1]), target, 3))
        return (*losses, tf.reduce_mean(decoded["mask"], [1, 2, 3]))

    def _action_for(self, branch: Branch, action: tf.Tensor) -> tf.Tensor:
        return tf.zeros_like(action) if branch is self.exo and self._exo_action == "zero" else action

    def analyse(self, batch: Batch, key: Key, context: int) -> dict[str, tf.Tensor]:
        result = super().analyse(batch, key, context)
        return result | {"mask": self._decode(result["endo"], result["exo"])["mask"]}

    def _decode(self, endo_feat: tf.Tensor, exo_feat: tf.Tensor) -> dict[str, tf.Tensor]:
        """Unmasked means of both streams, the mask, and the blend m * endo + (1 - m) * exo; all [..., H, W, .]."""
        endo_mean, endo_mask = tf.split(self._endo_decoder(endo_feat), 2, -1)
        exo_mean, exo_mask = tf.split(self._exo_decoder(exo_feat), 2, -1)
        mask = self._mask(tf.concat([endo_mask, exo_mask], -1))
        return {"joint": blend(mask, endo_mean, exo_mean), "endo": endo_mean, "exo": exo_mean, "mask": mask}

    def reconstruct(self, batch: Batch, key: Key, context: int) -> dict[str, tf.Tensor]:
        image = preprocess(batch.image)
        endo = _context_then_open_loop(self.main, batch, batch.action, key, context)
        exo = _context_then_open_loop(self.exo, batch, self._action_for(self.exo, batch.action), key, context)
        rows = self._decode(self.main.features(endo), self.exo.features(exo))
        means = {name: rows[name] + 0.5 for name in ("joint", "endo", "exo")}
        return {"truth": image + 0.5, **means, "mask": rows["mask"], "error": (rows["joint"] - image + 1) / 2}


def blend(mask: tf.Tensor, endo_mean: tf.Tensor, exo_mean: tf.Tensor) -> tf.Tensor:
    """mask * endo + (1 - mask) * exo; mask [..., H, W, 1], means [..., H, W, C]."""
    return mask * endo_mean + (1 - mask) * exo_mean


def _context_then_open_loop(branch: Branch, batch: Batch, action: tf.Tensor, key: Key, context: int) -> Latent:
    """Latent [B, T, ...]: posterior for the first `context` frames, then a prior rollout from the last of them."""
    post = branch.observe(
        branch.evidence(batch.image[:, :context]), action[:, :context], batch.is_first[:, :context], key
    )
    if context == action.shape[1]:
        return post
    last = tf.nest.map_structure(lambda x: x[:, -1], post)
    ahead = branch.open_loop(last, action[:, context:], key)
    joined: Latent = tf.nest.map_structure(lambda x, y: tf.concat([x, y], 1), post, ahead)
    return joined
