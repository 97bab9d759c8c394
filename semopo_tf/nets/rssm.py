"""One recurrent state-space model with an ensemble prior (DreamerV2's RSSM, K prior heads as in Offline DV2).

    stoch_{t-1}, a_t ---> dense ---> GRU ---> deter_t ---> one of K heads ---> prior stats of stoch_t
                             deter_{t-1} --^     |
                                      embed_t ---+-> dense --------------> posterior stats, stoch_t

a_t is the action stored at record t, the one that led to image t. Where is_first, the previous state and the action
are zero.
"""

import keras
import tensorflow as tf

from semopo_tf import random
from semopo_tf.nets.accounting import Cost
from semopo_tf.nets.distributions import CategoricalLatent, GaussianLatent, LatentDistribution, Stats
from semopo_tf.nets.layers import Dense, EnsembleHead, GRUCell, Shape, TwoInputDense, leading
from semopo_tf.nets.recurrence import Nest, scan
from semopo_tf.random import Key
from semopo_tf.types import Latent


class RSSM(keras.layers.Layer):
    """A deterministic state, a stochastic state, and K prior heads on the deterministic one (paper, App. D.1).

    Args:
      latent: `gaussian` (S numbers) or `categorical` (S one-hot vectors of C classes).
      deter, stoch, classes: D, S and C.
      min_std: least standard deviation of a Gaussian state.
      hidden, ensemble_hidden: units of the dense layers and of the prior heads.
      ensemble: K.
      action_size: 0 for a model without action input.
      embed_size: width of the image embedding.
      precision: of the matrix products; states, statistics and their noise are float32.
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
        act: str,
        action_size: int,
        embed_size: int,
        precision: str = "float32",
    ):
        super().__init__(name=name)
        self.dist: LatentDistribution = (
            GaussianLatent(stoch, min_std=min_std) if latent == "gaussian" else CategoricalLatent(stoch, classes)
        )
        self.deter_size, self.action_size, self.members = deter, action_size, ensemble
        self.feat_size = self.dist.flat_size + deter
        self._act = keras.activations.get(act)
        flat, raw = self.dist.flat_size, self.dist.raw_size
        self._input = TwoInputDense(hidden, first=flat, second=action_size, name="input", precision=precision)
        self._gru = GRUCell(deter, inputs=hidden, name="gru", precision=precision)
        self._post_hidden = TwoInputDense(
            hidden, first=deter, second=embed_size, name="post_hidden", precision=precision
        )
        self._post_out = Dense(raw, dtype=precision, name="post_out")
        widths = {"inputs": deter, "hidden": ensemble_hidden, "outputs": raw}
        self._prior = EnsembleHead(members=ensemble, act=act, name="prior", precision=precision, **widths)
        self._hidden = hidden

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
        batch = evidence.shape[0]
        keep = 1.0 - tf.cast(is_first, tf.float32)[..., None]  # [B, T, 1]
        inputs = (self._input.project(action * keep), evidence, keep, noise)
        by_time = tf.nest.map_structure(_swap_batch_and_time, inputs)
        start = self.initial(batch) if start is None else start

        def step(previous: Nest, now: Nest) -> Nest:  # of one t, or of all at once for the gradient
            deter, flat, _ = previous
            action_half, evidence, keep, noise = now
            deter = self._recur(deter * keep, flat * keep, action_half)
            raw = self._posterior(deter, evidence)
            return deter, self._flat(self.dist.sample(self.dist.stats(raw), noise)), raw

        zero = (start.deter, self._flat(start.stoch), tf.zeros([batch, self.dist.raw_size]))
        deter, flat, raw = tf.nest.map_structure(_swap_batch_and_time, scan(step, zero, by_time))
        return Latent(deter, tf.reshape(flat, [*flat.shape[:2], *self.dist.sample_shape]), self.dist.stats(raw))

    def _recur(self, deter: tf.Tensor, flat: tf.Tensor, action_half: tf.Tensor) -> tf.Tensor:
        return self._gru(self._act(self._input(flat, action_half)), deter)

    def _posterior(self, deter: tf.Tensor, evidence: tf.Tensor) -> tf.Tensor:
        return tf.cast(self._post_out(self._act(self._post_hidden(deter, evidence))), tf.float32)

    def prior(self, deter: tf.Tensor, member: tf.Tensor) -> Stats:
        """Prior stats under the member drawn for each step: deter [B, T, D], member [T] -> fields [B, T, ...]."""
        raw = self._prior.drawn(_swap_batch_and_time(deter), member)
        return self.dist.stats(_swap_batch_and_time(raw))

    def prior_all(self, deter: tf.Tensor) -> Stats:
        """Prior stats under all members: deter [..., D] -> fields [K, ..., ...]."""
        raw = self._prior(tf.reshape(deter, [-1, self.deter_size]))
        return self.dist.stats(tf.reshape(raw, [self.members, *deter.shape[:-1], self.dist.raw_size]))

    def step(self, latent: Latent, action: tf.Tensor, member: tf.Tensor, noise: tf.Tensor) -> Latent:
        """One imagined step, differentiable: latent [N, ...], action [N, A], member scalar, noise [N, S] -> latent."""
        deter = self._recur(latent.deter, self._flat(latent.stoch), self._input.project(action))
        stats = self.dist.stats(self._prior.drawn(deter[None], member[None])[0])
        return Latent(deter, self.dist.sample(stats, noise), stats)

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


def _swap_batch_and_time(x: tf.Tensor) -> tf.Tensor:
    return tf.transpose(x, [1, 0, *range(2, len(x.shape))])
