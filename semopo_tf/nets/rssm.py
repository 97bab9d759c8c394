"""One recurrent state-space model with an ensemble prior (DreamerV2's RSSM, K prior heads as in Offline DV2).

    stoch_{t-1}, a_t ---> dense ---> GRU ---> deter_t ---> one of K heads ---> prior stats of stoch_t
                             deter_{t-1} --^     |
                                      embed_t ---+-> dense --------------> posterior stats, stoch_t

a_t is the action stored at record t, the one that led to image t. Where is_first, the previous state is zero, and so is
the action, unless `first_action`.

So the K heads share everything but their own hidden layer, and a mistake of the GRU is one that all of them make. With
`ensemble_bodies: own` each member has a body of its own in its place, and shares nothing with the others but what it
starts from:

    stoch_{t-1}, deter_{t-1}, a_t ---> one of K bodies ---> its head ---> prior stats of stoch_t

The GRU then serves the posterior and the features alone.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from semopo_tf import random
from semopo_tf.nets.accounting import Cost
from semopo_tf.nets.distributions import CategoricalLatent, GaussianLatent, LatentDistribution, Stats
from semopo_tf.nets.layers import (
    Dense,
    EnsembleHead,
    GRUCell,
    GRUWeights,
    Shape,
    StandardGRUCell,
    StandardGRUWeights,
    TwoInputDense,
    affine,
    compute_type,
    leading,
    matmul_last,
)
from semopo_tf.nets.recurrence import Nest, scan
from semopo_tf.random import Key
from semopo_tf.types import Latent


class Recurrent(NamedTuple):
    """The weights that a scan of `RSSM.observe` reads at every step; with a first axis G those of G models."""

    input: tf.Tensor  # [flat, hidden], the state's half of the input layer
    gru: GRUWeights | StandardGRUWeights
    post_hidden: tf.Tensor  # [D, hidden], the state's half
    post_out: tf.Tensor  # [hidden, raw]
    post_bias: tf.Tensor  # [raw]


class RSSM(keras.layers.Layer):
    """A deterministic state, a stochastic state, and K prior heads on the deterministic one (paper, App. D.1).

    Args:
      latent: `gaussian` (S numbers) or `categorical` (S one-hot vectors of C classes).
      deter, stoch, classes: D, S and C.
      min_std: least standard deviation of a Gaussian state.
      hidden, ensemble_hidden: units of the dense layers and of the prior heads.
      ensemble: K.
      ensemble_bodies: `shared` (the heads read the deterministic state) or `own` (each member has a dense layer of
        `hidden` units on the previous state and the action, see above).
      action_size: 0 for a model without action input.
      embed_size: width of the image embedding.
      precision: of the matrix products; states, statistics and their noise are float32.
      gru: `normalised` (DreamerV2's) or `standard` (Keras').
      std: how a Gaussian's std is made, see `GaussianLatent`.
      first_action: whether the action of a window's first record enters, beside a state of zero.
    """

    def __init__(
        self,
        *,
        name: str,
        latent: str,
        deter: int,
        stoch: int,
        classes: int,
        min_std: float,
        hidden: int,
        ensemble: int,
        ensemble_hidden: int,
        ensemble_bodies: str = "shared",
        act: str,
        action_size: int,
        embed_size: int,
        precision: str = "float32",
        gru: str = "normalised",
        std: str = "sigmoid",
        first_action: bool = False,
    ):
        super().__init__(name=name)
        self.dist: LatentDistribution = (
            GaussianLatent(stoch, min_std=min_std, std=std)
            if latent == "gaussian"
            else CategoricalLatent(stoch, classes)
        )
        self.deter_size, self.action_size, self.members = deter, action_size, ensemble
        self.feat_size = self.dist.flat_size + deter
        self._act = keras.activations.get(act)
        flat, raw = self.dist.flat_size, self.dist.raw_size
        self._input = TwoInputDense(hidden, first=flat, second=action_size, name="input", precision=precision)
        cell = StandardGRUCell if gru == "standard" else GRUCell
        self._gru: Any = cell(deter, inputs=hidden, name="gru", precision=precision)
        self._post_hidden = TwoInputDense(
            hidden, first=deter, second=embed_size, name="post_hidden", precision=precision
        )
        self._post_out = Dense(raw, dtype=precision, name="post_out")
        self._own_bodies = ensemble_bodies == "own"
        body = {"inputs": self.feat_size + action_size, "body": hidden} if self._own_bodies else {"inputs": deter}
        widths = {**body, "hidden": ensemble_hidden, "outputs": raw}
        self._prior = EnsembleHead(members=ensemble, act=act, name="prior", precision=precision, **widths)
        self._hidden, self._compute, self._first_action = hidden, compute_type(precision), first_action

    def build(self, input_shape: Shape | None = None) -> None:
        for part in (self._input, self._gru, self._post_hidden, self._prior):
            part.build(None)
        self._post_out.build((None, self._hidden))

    def initial(self, size: int) -> Latent:
        """The all-zero state of a batch of `size`."""
        stats = self.dist.stats(tf.zeros([size, self.dist.raw_size]))
        return Latent(
            tf.zeros([size, self.deter_size]),
            tf.zeros([size, *self.dist.sample_shape]),
            tf.nest.map_structure(tf.zeros_like, stats),
            tf.zeros([size, self.feat_size + self.action_size]) if self._own_bodies else (),
        )

    def features(self, latent: Latent) -> tf.Tensor:
        """[..., F]: the flattened stochastic state, then the deterministic one."""
        return tf.concat([self._flat(latent.stoch), latent.deter], -1)

    def _flat(self, stoch: tf.Tensor) -> tf.Tensor:
        return tf.reshape(stoch, [*leading(stoch, len(self.dist.sample_shape)), self.dist.flat_size])

    def draw(self, key: Key, stream: str, shape: tuple[int, ...]) -> tf.Tensor:
        """Noise of stochastic states, [*shape, S]."""
        kind = random.normal if self.dist.noise_kind == "normal" else random.uniform
        return kind(key, stream, [*shape, self.dist.size])

    def draw_members(self, key: Key, stream: str, steps: int) -> tf.Tensor:
        """One ensemble member for each step, [steps] int64, uniform over K."""
        return random.integers(key, stream, [steps], self.members)

    def evidence(self, embed: tf.Tensor) -> tf.Tensor:
        """The embedding's half of the posterior's hidden layer, [..., E] -> [..., hidden] float32.

        The posterior takes nothing else from an image.
        """
        return self._post_hidden.project(embed)

    def observe(
        self, evidence: tf.Tensor, action: tf.Tensor, is_first: tf.Tensor, noise: tf.Tensor, start: Latent | None = None
    ) -> Latent:
        """Filter sequences: the posterior states of every step.

        The scan computes only what depends on the previous step. The action's half of the input layer is computed for
        all steps before it, and so is `evidence`.

        Args:
          evidence: [B, T, hidden].
          action: [B, T, A], record convention; ignored by a model without action input.
          is_first: [B, T] bool.
          noise: [B, T, S] from `draw`.
          start: state before the first step, [B, ...]; zero by default.

        Returns:
          Latent with fields [B, T, ...]; differentiable.
        """
        start = self.initial(evidence.shape[0]) if start is None else start
        states = scan(
            partial(self._filter, self.recurrent()),
            self._carried(start),
            self._scanned(evidence, action, is_first, noise),
        )
        return self._with_before(self._observed(*states), start, action, is_first)

    def recurrent(self) -> Recurrent:
        """The weights of `_filter`."""
        out, first = self._post_out, self._post_hidden.first_kernel()
        return Recurrent(self._input.first_kernel(), self._gru.weights_now(), first, out.kernel.value, out.bias.value)

    def _scanned(self, evidence: tf.Tensor, action: tf.Tensor, is_first: tf.Tensor, noise: tf.Tensor) -> Nest:
        """Inputs of `_filter` for all steps, [T, B, ...]."""
        keep = 1.0 - tf.cast(is_first, tf.float32)[..., None]  # [B, T, 1]
        inputs = (self._input.project(action if self._first_action else action * keep), evidence, keep, noise)
        return tf.nest.map_structure(_swap_batch_and_time, inputs)

    def _carried(self, start: Latent) -> Nest:
        """State of `_filter` [B, ...]: deter, flattened stoch, raw outputs of the posterior, which no step reads."""
        return start.deter, self._flat(start.stoch), tf.zeros([start.deter.shape[0], self.dist.raw_size])

    def _filter(self, weights: Recurrent, previous: Nest, now: Nest) -> Nest:
        """One step of `observe`, of one t or of all at once for the gradient; of G models with a first axis G."""
        deter, flat, _ = previous
        action_half, evidence, keep, noise = now
        deter = self._recur(weights, deter * keep, flat * keep, action_half)
        hidden = self._act(matmul_last(deter, weights.post_hidden, self._compute) + evidence)
        raw = tf.cast(affine(hidden, weights.post_out, weights.post_bias, self._compute), tf.float32)
        return deter, self._flat(self.dist.sample(self.dist.stats(raw), noise)), raw

    def _observed(self, deter: tf.Tensor, flat: tf.Tensor, raw: tf.Tensor) -> Latent:
        """States of a scan [T, B, ...] as Latent [B, T, ...]."""
        deter, flat, raw = (_swap_batch_and_time(x) for x in (deter, flat, raw))
        return Latent(deter, tf.reshape(flat, [*flat.shape[:2], *self.dist.sample_shape]), self.dist.stats(raw))

    def _with_before(self, post: Latent, start: Latent, action: tf.Tensor, is_first: tf.Tensor) -> Latent:
        """Filtered states [B, T, ...] with what the bodies of the members read, if they have their own."""
        if not self._own_bodies:
            return post
        keep = 1.0 - tf.cast(is_first, tf.float32)[..., None]  # [B, T, 1]
        previous = tf.concat([self.features(start)[:, None], self.features(post)[:, :-1]], 1) * keep
        taken = action[..., : self.action_size]
        return post._replace(before=tf.concat([previous, taken if self._first_action else taken * keep], -1))

    def prior_input(self, latent: Latent) -> tf.Tensor:
        """What the members read to predict the states of `latent`: its deter [..., D], or with bodies of their own what
        was before it [..., F + A].
        """
        return latent.before if self._own_bodies else latent.deter

    def _recur(self, weights: Recurrent, deter: tf.Tensor, flat: tf.Tensor, action_half: tf.Tensor) -> tf.Tensor:
        hidden = self._act(matmul_last(flat, weights.input, self._compute) + action_half)
        return self._gru.next(weights.gru, hidden, deter)

    def prior(self, inputs: tf.Tensor, member: tf.Tensor) -> Stats:
        """Prior stats under the member drawn for each step: `prior_input` [B, T, P], member [T] -> [B, T, ...] each."""
        raw = self._prior.drawn(_swap_batch_and_time(inputs), member)
        return self.dist.stats(_swap_batch_and_time(raw))

    def prior_all(self, inputs: tf.Tensor) -> Stats:
        """Prior stats under all members: `prior_input` [..., P] -> fields [K, ..., ...]."""
        raw = self._prior(tf.reshape(inputs, [-1, inputs.shape[-1]]))
        return self.dist.stats(tf.reshape(raw, [self.members, *inputs.shape[:-1], self.dist.raw_size]))

    def step(self, latent: Latent, action: tf.Tensor, member: tf.Tensor, noise: tf.Tensor) -> Latent:
        """One imagined step, differentiable: latent [N, ...], action [N, A], member scalar, noise [N, S] -> latent."""
        deter = self._recur(self.recurrent(), latent.deter, self._flat(latent.stoch), self._input.project(action))
        before: Any = ()
        if self._own_bodies:
            before = tf.concat([self.features(latent), action[:, : self.action_size]], -1)
        inputs = before if self._own_bodies else deter
        stats = self.dist.stats(self._prior.drawn(inputs[None], member[None])[0])
        return Latent(deter, self.dist.sample(stats, noise), stats, before)

    def step_all(self, latent: Latent, noise: tf.Tensor) -> Latent:
        """The states that each member predicts in place of imagined ones, all with the noise of the step: latent
        [N, H, ...], noise [N, H, S] -> [K, N, H, ...]. That of the member drawn for a step is the imagined state.
        """
        stats = self.prior_all(self.prior_input(latent))
        deter = tf.repeat(latent.deter[None], self.members, 0)
        return Latent(deter, self.dist.sample(stats, tf.repeat(noise[None], self.members, 0)), stats)

    def open_loop(self, start: Latent, action: tf.Tensor, member: tf.Tensor, noise: tf.Tensor) -> Latent:
        """Prior rollout under given actions.

        start [B, ...], action [B, T, A], member [T], noise [B, T, S] -> Latent [B, T, ...].
        """
        by_time = (_swap_batch_and_time(action), member, _swap_batch_and_time(noise))
        steps = tf.scan(lambda latent, now: self.step(latent, *now), by_time, initializer=start)
        latent: Latent = tf.nest.map_structure(_swap_batch_and_time, steps)
        return latent

    def cost(self, rows: int) -> Cost:
        """Of training on `rows` records: `evidence`, `observe`, and `prior` of one drawn member."""
        evidence = self._post_hidden.projection_cost(rows)
        return evidence + self.observe_cost(rows) + self._prior.drawn_cost(rows)

    def observe_cost(self, rows: int) -> Cost:
        """Of `observe` on `rows` records."""
        return self._recur_cost(rows) + self._post_hidden.cost(rows) + self._post_out.cost(rows)

    def step_cost(self, rows: int) -> Cost:
        """Of `rows` imagined steps."""
        return self._recur_cost(rows) + self._prior.drawn_cost(rows)

    def prior_all_cost(self, rows: int) -> Cost:
        """Of `prior_all` on `rows` states."""
        return self._prior.cost(rows)

    def _recur_cost(self, rows: int) -> Cost:
        return self._input.cost(rows) + self._input.projection_cost(rows) + self._gru.cost(rows)


def alike(models: Sequence[RSSM]) -> bool:
    """Whether there are several models, whose weights in a scan have the same shapes."""
    shapes = {str([weight.shape for weight in tf.nest.flatten(model.recurrent())]) for model in models}
    return len(models) > 1 and len(shapes) == 1


def observe_together(
    models: Sequence[RSSM], inputs: Sequence[tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]]
) -> list[Latent]:
    """`RSSM.observe(*inputs)` of each of models that are `alike`, in one scan over stacked weights: half the kernels on
    a GPU.
    """

    def stacked(*each: tf.Tensor, axis: int = 0) -> tf.Tensor:
        return tf.stack([x if len(x.shape) > 1 else x[None] for x in each], axis)

    scanned = [model._scanned(*each) for model, each in zip(models, inputs, strict=True)]
    weights = tf.nest.map_structure(stacked, *[model.recurrent() for model in models])
    starts = [model.initial(inputs[0][0].shape[0]) for model in models]
    start = tf.nest.map_structure(stacked, *[model._carried(each) for model, each in zip(models, starts, strict=True)])
    by_time = tf.nest.map_structure(partial(stacked, axis=1), *scanned)  # [T, G, B, ...]
    states = scan(partial(models[0]._filter, weights), start, by_time, rows=1)
    posts = [model._observed(*(x[:, index] for x in states)) for index, model in enumerate(models)]
    each = zip(models, posts, starts, inputs, strict=True)
    return [model._with_before(post, start, action, is_first) for model, post, start, (_, action, is_first, _) in each]


def _swap_batch_and_time(x: tf.Tensor) -> tf.Tensor:
    return tf.transpose(x, [1, 0, *range(2, len(x.shape))])
