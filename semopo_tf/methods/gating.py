"""The representation of InfoGating: an encoder, a multi-step inverse model, and a network that masks their images.

`methods.infogating` has the equations and says who learns from what.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf

from semopo_tf import random
from semopo_tf.methods.stacked import noisy, randomly_shifted, undo_of
from semopo_tf.nets.accounting import Cost
from semopo_tf.nets.compute import Compute
from semopo_tf.nets.conv_stack import ConvStack, Trunk
from semopo_tf.nets.energy import Energy, Moments
from semopo_tf.nets.layers import initialise_orthogonal, initialise_uniform, named_variables
from semopo_tf.nets.optim import Optimizer, Undo, gradients_of, step_if_finite
from semopo_tf.nets.unet import UNet
from semopo_tf.random import Key
from semopo_tf.types import Transitions

OPENING = 0.1  # weight of N in the warm-up; of no effect through Adam, which trains the mask network by it alone
MASK_STD, MASK_CLIP = 0.5, 0.3  # of the noise on the mask's logits in the first updates
RGB = 3

ACTIVATIONS = {"relu_tanh": lambda logits: tf.nn.relu(tf.tanh(logits)), "sigmoid": tf.sigmoid}


# --- the losses, pure functions ---------------------------------------------------------------------------------------


def over_colours(mask: tf.Tensor) -> tf.Tensor:
    """Masks of F frames [..., F] -> [..., 3F] for their colours: f0 f0 f0 f1 f1 f1 ..."""
    return tf.repeat(mask, RGB, -1)


def gated(image: tf.Tensor, mask: tf.Tensor, fill: tf.Tensor | float) -> tf.Tensor:
    """m o + (1 - m) fill; image [N, H, W, 3F] and fill in 0..255, mask [N, H, W, F] in 0..1."""
    weight = over_colours(mask)
    return weight * image + (1 - weight) * fill


def mixed(image: tf.Tensor, whole: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
    """Gated images [N, H, W, C], and the whole ones in their place where chosen [N]."""
    return tf.where(chosen[:, None, None, None], whole, image)


def half(key: Key, stream: str, rows: int) -> tf.Tensor:
    """Bool [rows], true in a random half of them, rounded down."""
    _, drawn = tf.math.top_k(random.uniform(key, stream, [rows]), rows // 2)
    return tf.reduce_any(drawn[:, None] == tf.range(rows), 0)


def contrastive(energies: tf.Tensor) -> tf.Tensor:
    """InfoNCE: cross-entropy of the logits -E, energies [B, J], the first of them that of the data's action:
    mean (E_0 + log sum_j exp -E_j).
    """
    return tf.reduce_mean(energies[:, 0] + tf.reduce_logsumexp(-energies, 1))


def mask_loss(mask: tf.Tensor, warm: tf.Tensor, *, weight: float, square_weight: float) -> tf.Tensor:
    """- 0.1 N while `warm`, which opens the mask; weight N + square_weight V after it, which closes it.

    N and V are means of m and m^2 over batch, pixels and frames of both stacks.
    """
    mean, square = tf.reduce_mean(mask), tf.reduce_mean(mask**2)
    return tf.where(warm, -OPENING * mean, weight * mean + square_weight * square)


# --- the representation -----------------------------------------------------------------------------------------------


class Gated(NamedTuple):
    """Both stacks of B transitions, those that end at o_{t-1} first; N = 2B."""

    image: tf.Tensor  # [N, H, W, 3F] float32, 0..255: gated, and whole in half of the rows of each
    mask: tf.Tensor  # [N, H, W, F]


class Learned(NamedTuple):
    """What one update of the representation did."""

    metrics: dict[str, tf.Tensor]
    gradients: dict[str, tf.Tensor]
    losses: list[tf.Tensor]  # all finite if the step was taken
    image: tf.Tensor  # [B, H, W, 3F], what the encoder saw at o_{t-1}
    undo: Undo


class Representation:
    """Encoder, inverse model and mask network, with their optimisers.

    Args:
      edge, frames: pixels of the images, frames of a stack.
      filters, patch, feature: of the encoder: filters of its first three convolutions, edge of the windows that the
        first one cuts the image into, and units of z.
      mask_filters, energy_units: of the mask network's first blocks, and of the inverse model's hidden layer.
      mask, fill: `relu_tanh` or `sigmoid`; `zero`, `gaussian` (standard normal for the encoder) or `uniform`.
      negatives: actions beside that of the data.
      warm_updates, noisy_updates: of the warm-up, and the first ones whose masks have noise on their logits.
    """

    def __init__(
        self,
        *,
        edge: int,
        frames: int,
        action_size: int,
        seed: int,
        opt: Mapping[str, Any],
        shift: int,
        filters: int,
        patch: int,
        feature: int,
        mask_filters: int,
        energy_units: int,
        mask: str,
        fill: str,
        mask_weight: float,
        square_weight: float,
        negatives: int,
        warm_updates: int,
        noisy_updates: int,
        compute: Compute,
    ):
        self.feature, self._shift, self._action_size, self._negatives = feature, shift, action_size, negatives
        self._activation, self._fill = ACTIVATIONS[mask], fill
        self._mask_loss = partial(mask_loss, weight=mask_weight, square_weight=square_weight)
        self._warm_updates, self._noisy_updates = warm_updates, noisy_updates
        precision: dict[str, Any] = {"precision": compute.precision}
        layers = [(filters, patch, patch), (filters, 1, 1), (filters, 3, 1), (2 * filters, 4, 2)]
        self._convs = ConvStack(layers, name="encoder", target=compute.target, **precision)
        self._convs.build((None, edge, edge, RGB * frames))
        self._trunk = Trunk(feature, name="encoder_trunk", **precision)
        self._trunk.build((None, self._convs.width))
        self._energy = Energy(energy_units, x_size=2 * feature, y_size=action_size, name="inverse", **precision)
        self._energy.build()
        self._mask_network = UNet(edge, frames, filters=mask_filters, name="mask", **precision)
        self._mask_network.build((None, edge, edge, RGB * frames))
        inverse = named_variables({"encoder": self._convs, "encoder/trunk": self._trunk, "inverse": self._energy})
        mask_variables = named_variables({"mask": self._mask_network})
        initialise_orthogonal(inverse, seed)
        initialise_uniform(mask_variables, seed)
        self.trained = inverse | mask_variables
        norm = self._energy.norm
        self.moving = {
            "inverse/norm/moving_mean": norm.moving_mean.value,
            "inverse/norm/moving_variance": norm.moving_variance.value,
        }
        optimizer = partial(Optimizer, target=compute.target, corrected=True)
        self.optimizers = [optimizer("encoder", inverse, **opt), optimizer("mask", mask_variables, **opt)]

    def encode(self, image: tf.Tensor) -> tf.Tensor:
        """Images [N, H, W, 3F] float32, 0..255, -> z [N, F]."""
        return self._trunk(self._convs(image / 255 - 0.5))

    def at_rest(self, image: tf.Tensor) -> tf.Tensor:
        """Images gated without noise, the mean of the fill in what is hidden; [N, H, W, 3F] float32."""
        mask = self._activation(self._mask_network(image / 255 - 0.5))
        return gated(image, mask, 0.0 if self._fill == "zero" else 127.5)

    def gate(self, batch: Transitions, key: Key) -> Gated:
        """Shift both stacks, gate them, and mix the gated with the whole."""
        stacks = {"shift": batch.image, "later_shift": batch.later_image}
        images = [tf.cast(randomly_shifted(x, key, name, self._shift), tf.float32) for name, x in stacks.items()]
        image, rows = tf.concat(images, 0), batch.action.shape[0]
        mask = self._mask(image, key)
        chosen = tf.concat([half(key, name, rows) for name in ("whole", "later_whole")], 0)
        return Gated(mixed(gated(image, mask, self._filling(key, image.shape)), image, chosen), mask)

    def _mask(self, image: tf.Tensor, key: Key) -> tf.Tensor:
        """Masks [N, H, W, F] of images; in the first updates with noise on their logits, clamped like an action."""
        logits = self._mask_network(image / 255 - 0.5)

        def perturbed() -> tf.Tensor:
            noise = random.normal(key, "mask", logits.shape)
            return noisy(logits, noise, std=tf.constant(MASK_STD), clip=MASK_CLIP)

        return self._activation(tf.cond(key.step < self._noisy_updates, perturbed, lambda: tf.identity(logits)))

    def _filling(self, key: Key, shape: Sequence[int]) -> tf.Tensor | float:
        """What stands in hidden pixels, in 0..255 or, for `gaussian`, around it."""
        if self._fill == "gaussian":
            return 255 * (random.normal(key, "normal_fill", shape) + 0.5)
        return 255 * random.uniform(key, "uniform_fill", shape) if self._fill == "uniform" else 0.0

    def energies(self, image: tf.Tensor, action: tf.Tensor, key: Key) -> tuple[tf.Tensor, Moments]:
        """E of both stacks [2B, H, W, 3F] with the data's action and with the negatives, [B, 1 + negatives]."""
        energies, moments = self._energy(*self._pairs(image, action, key))
        return energies, moments

    def settled_energies(self, image: tf.Tensor, action: tf.Tensor, key: Key) -> tf.Tensor:
        """`energies` with the moving statistics of the inverse model."""
        return self._energy.settled(*self._pairs(image, action, key))

    def _pairs(self, image: tf.Tensor, action: tf.Tensor, key: Key) -> tuple[tf.Tensor, tf.Tensor]:
        pair = tf.concat(tf.split(self.encode(image), 2), 1)  # [B, 2F]
        drawn = 2 * random.uniform(key, "negatives", [action.shape[0], self._negatives, self._action_size]) - 1
        return pair, tf.concat([action[:, None], drawn], 1)

    def learn(self, batch: Transitions, key: Key) -> Learned:
        """One step of encoder, inverse model and mask network, and the moving statistics."""
        undo = undo_of(self.trained | self.moving, self.optimizers)
        warm = key.step < self._warm_updates
        rows = batch.action.shape[0]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(self.trained.values()))
            image, mask = self.gate(batch, key)
            seen = tf.where(warm, tf.stop_gradient(image), image)
            energies, moments = self.energies(seen, batch.action, key)
            inverse_loss = contrastive(energies)
            loss = inverse_loss + self._mask_loss(mask, warm)
        gradients = gradients_of(loss, self.trained, tape)
        losses = [loss, tf.reduce_sum(moments.variance)]
        metrics = step_if_finite(self.optimizers, gradients, losses)
        self._energy.norm.absorb(moments, rows * (1 + self._negatives))
        right = tf.cast(tf.reduce_all(energies[:, :1] <= energies, 1), tf.float32)
        metrics |= {"inverse_loss": inverse_loss, "inverse_accuracy": tf.reduce_mean(right)}
        metrics |= {"mask_mean": tf.reduce_mean(mask), "mask_square": tf.reduce_mean(mask**2)}
        losses += [metrics["encoder_grad_norm"], metrics["mask_grad_norm"]]
        return Learned(metrics, gradients, losses, image[:rows], undo)

    def encoder_cost(self, rows: int) -> Cost:
        """Of `encode`."""
        return self._convs.cost(rows).then(self._trunk.cost(rows))

    def mask_cost(self, rows: int) -> Cost:
        """Of masks for `rows` stacks."""
        return self._mask_network.cost(rows)

    def cost(self, batch: int) -> Cost:
        """Of `learn`."""
        own = self._energy.cost(batch, 1 + self._negatives).trained() + self.encoder_cost(2 * batch).trained()
        return own + self.mask_cost(2 * batch).trained(input_gradient=False)
