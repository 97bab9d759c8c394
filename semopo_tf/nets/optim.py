"""The released code's optimiser: clipping by global norm, decoupled weight decay, Adam. Several may share one tape."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from semopo_tf.nets.compute import Target

BETA_1, BETA_2 = 0.9, 0.999


class Optimizer:
    """Adam over one list of variables, with moments of its own.

        g <- g * min(1, clip / norm)        norm over the whole list
        w <- w * (1 - weight_decay)         every variable; not multiplied by the learning rate
        w <- w - lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)         eps as in Keras: beside an uncorrected v

    Two optimisers may hold the same variable: each then takes its own step, with its own moments and clipping norm.
    """

    def __init__(
        self,
        name: str,
        variables: Mapping[str, tf.Variable],
        *,
        lr: float,
        eps: float,
        clip: float,
        weight_decay: float,
        target: Target = "library",
        corrected: bool = False,
    ):
        """variables: by stable name; the optimiser's state is named after them.

        `corrected` puts eps beside the corrected sqrt(v / (1 - b2^t)), as PyTorch does.
        `whole` says whether XLA compiles the update: then all weights are one vector in it, and a step that is not
        taken is a choice of values in place of a branch.
        """
        self.name = name
        self._variables, self.whole = dict(variables), target != "library"
        self._lr, self._eps, self._clip, self._weight_decay = lr, eps, clip, weight_decay
        self._corrected = corrected
        self._updates = tf.Variable(0, trainable=False, dtype=tf.int64, name=f"{name}_updates")
        self._sizes = [variable.shape.num_elements() for variable in self._variables.values()]
        # Both moments, and the step of every weight, in one vector each: one operation for all weights.
        zeros = tf.zeros([sum(self._sizes)])
        self._first, self._second, self._step = (tf.Variable(zeros, trainable=False) for _ in range(3))

    def state(self) -> dict[str, "tf.Variable | Slice"]:
        """The step counter and both moments by stable name, for the checkpoint."""
        state: dict[str, tf.Variable | Slice] = {f"{self.name}/updates": self._updates}
        start = 0
        for (key, variable), size in zip(self._variables.items(), self._sizes, strict=True):
            state[f"{self.name}/first/{key}"] = Slice(self._first, start, variable.shape)
            state[f"{self.name}/second/{key}"] = Slice(self._second, start, variable.shape)
            start += size
        return state

    def owned(self) -> list[tf.Variable]:
        """The variables that `state` tells by name."""
        return [self._updates, self._first, self._second]

    def norm(self, gradients: Mapping[str, tf.Tensor], half_squares: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Global norm of this optimiser's gradients, before clipping; half_squares: sum(g^2) / 2 of each."""
        if self.whole:
            return tf.sqrt(2 * tf.nn.l2_loss(self._joined(gradients)))
        return tf.sqrt(2 * tf.add_n([half_squares[key] for key in self._variables]))

    def _joined(self, gradients: Mapping[str, tf.Tensor]) -> tf.Tensor:
        return tf.concat([tf.reshape(gradients[key], [-1]) for key in self._variables], 0)

    def apply(self, gradients: Mapping[str, tf.Tensor], norm: tf.Tensor, taken: tf.Tensor | None = None) -> None:
        """Take one step on all variables.

        Args:
          gradients: of these variables by name; others are ignored.
          norm: from `norm`.
          taken: scalar bool, without which nothing changes; true by default.
        """
        before = [] if taken is None else [tf.identity(variable) for variable in self.owned()]
        scale = self._clip / tf.maximum(norm, self._clip)
        step = tf.cast(self._updates.assign_add(1), tf.float32)
        # One pass over the memory for moments and step; as separate operations it would take twenty.
        self._step.assign(tf.zeros_like(self._step))
        tf.raw_ops.ResourceApplyAdam(
            var=self._step.handle,
            m=self._first.handle,
            v=self._second.handle,
            beta1_power=tf.pow(BETA_1, step),
            beta2_power=tf.pow(BETA_2, step),
            lr=self._lr,
            beta1=BETA_1,
            beta2=BETA_2,
            epsilon=self._eps * (tf.sqrt(1 - tf.pow(BETA_2, step)) if self._corrected else 1),
            grad=self._joined(gradients) * scale,
        )
        change, kept = tf.identity(self._step), 1 - self._weight_decay
        if taken is not None:
            change, kept = tf.where(taken, change, tf.zeros_like(change)), tf.where(taken, kept, 1.0)
            for variable, value in zip(self.owned(), before, strict=True):
                variable.assign(tf.where(taken, variable, value))
        for variable, part in zip(self._variables.values(), tf.split(change, self._sizes), strict=True):
            decayed = kept * variable if self._weight_decay else variable
            variable.assign(decayed + tf.reshape(part, variable.shape))


class Undo:
    """The values of variables at one point of an update, to go back to.

    Args:
      whole: as of `Optimizer`: whether a choice of values is better than a branch.
    """

    def __init__(self, variables: Sequence[tf.Variable], *, whole: bool):
        self._variables, self._whole = list(variables), whole
        self._values = [tf.identity(variable) for variable in self._variables]

    def where(self, wrong: tf.Tensor) -> None:
        """Reset all if the scalar bool `wrong` is true."""

        def reset(choose: bool) -> tf.Tensor:
            for variable, value in zip(self._variables, self._values, strict=True):
                variable.assign(tf.where(wrong, value, variable) if choose else value)
            return tf.constant(True)

        if self._whole:
            reset(choose=True)
        else:
            tf.cond(wrong, lambda: reset(choose=False), lambda: tf.constant(False))


class Slice:
    """A part of a vector variable, as a variable of its own for checkpoints: read and assigned outside of graphs."""

    def __init__(self, vector: tf.Variable, start: int, shape: tf.TensorShape):
        self.shape, self.dtype = shape, vector.dtype
        self._vector, self._start, self._stop = vector, start, start + shape.num_elements()

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """Read by NumPy like a variable."""
        return np.asarray(self.numpy(), dtype)

    def numpy(self) -> np.ndarray:
        return tf.reshape(self._vector[self._start : self._stop], self.shape).numpy()

    def assign(self, value: npt.ArrayLike) -> None:
        self._vector[self._start : self._stop].assign(tf.reshape(value, [-1]))


def follow(slow: Mapping[str, tf.Variable], fast: Mapping[str, tf.Variable], share: tf.Tensor) -> None:
    """Move every slow variable a share of the way to its fast one."""
    for one, other in zip(slow.values(), fast.values(), strict=True):
        one.assign(one + share * (other - one))


def copy_weights(target: Mapping[str, tf.Variable], source: Mapping[str, tf.Variable]) -> None:
    """Assign variables of the same shapes in the same order."""
    for one, other in zip(target.values(), source.values(), strict=True):
        one.assign(other)


class LossScale:
    """Dynamic loss scaling for float16 (Micikevicius et al. 2018): keeps small gradients from vanishing.

    Gradients are those of scale * loss. Where they overflow, the step is skipped and the scale halved; after `PATIENCE`
    good steps in a row the scale doubles.
    """

    START, PATIENCE = 2.0**15, 2000

    def __init__(self, name: str):
        self.name = name
        self.scale = tf.Variable(self.START, trainable=False, name=f"{name}_scale")
        self._good = tf.Variable(0, trainable=False, dtype=tf.int64, name=f"{name}_good")

    def state(self) -> dict[str, tf.Variable]:
        """Scale and count of good steps by stable name, for the checkpoint."""
        return {f"{self.name}/scale": self.scale, f"{self.name}/good": self._good}

    def unscale(self, gradients: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {key: gradient / self.scale for key, gradient in gradients.items()}

    def update(self, finite: tf.Tensor) -> None:
        """Adapt the scale after a step, taken (`finite`) or skipped."""
        good = tf.where(finite, self._good + 1, 0)
        grow = good >= self.PATIENCE
        self.scale.assign(tf.where(finite, tf.where(grow, 2 * self.scale, self.scale), tf.maximum(self.scale / 2, 1.0)))
        self._good.assign(tf.where(grow, tf.zeros_like(good), good))


def gradients_of(loss: tf.Tensor, variables: Mapping[str, tf.Variable], tape: tf.GradientTape) -> dict[str, tf.Tensor]:
    """Dense gradients by name.

    Raises:
      ValueError: naming the first variable that the loss does not reach.
    """
    gradients = dict(zip(variables, tape.gradient(loss, list(variables.values())), strict=True))
    for key, gradient in gradients.items():
        if gradient is None:
            raise ValueError(
                f"{key}: expected a gradient from the loss, received none; remove it from the optimiser's variables"
            )
    return {key: tf.convert_to_tensor(gradient) for key, gradient in gradients.items()}


def step_if_finite(
    optimizers: Sequence[Optimizer],
    gradients: Mapping[str, tf.Tensor],
    losses: Sequence[tf.Tensor],
    loss_scale: LossScale | None = None,
) -> dict[str, tf.Tensor]:
    """Let every optimiser step, or none of them where a loss or a gradient norm is not finite.

    Args:
      loss_scale: the scale of the gradients, if they are scaled. A step that overflows is then skipped, and counts as
        finite as long as the losses are finite and the scale can still fall.

    Returns:
      For each optimiser `<name>_grad_norm` before clipping, and `finite`, 1.0 or 0.0; with a loss scale also `skipped`
      and `loss_scale`.
    """
    if loss_scale:
        gradients = loss_scale.unscale(gradients)
    half_squares = {key: tf.nn.l2_loss(gradient) for key, gradient in gradients.items()}
    norms = {optimizer.name: optimizer.norm(gradients, half_squares) for optimizer in optimizers}
    finite = tf.reduce_all(tf.math.is_finite(tf.stack([*losses, *norms.values()])))

    def step(where: tf.Tensor | None = None) -> tf.Tensor:
        for optimizer in optimizers:
            optimizer.apply(gradients, norms[optimizer.name], where)
        return tf.constant(1.0)

    if all(optimizer.whole for optimizer in optimizers):  # XLA fuses a choice of values better than a branch
        step(finite)
        taken = tf.cast(finite, tf.float32)
    else:
        taken = tf.cond(finite, step, lambda: tf.constant(0.0))
    metrics = {f"{name}_grad_norm": norm for name, norm in norms.items()}
    if not loss_scale:
        return metrics | {"finite": taken}
    curable = tf.reduce_all(tf.math.is_finite(tf.stack(losses))) & (loss_scale.scale > 1)
    metrics |= {"skipped": 1 - taken, "loss_scale": tf.identity(loss_scale.scale)}
    # The norm of a skipped step is not finite and would spoil the mean of its metrics row: it is recorded as 0.
    metrics |= {f"{name}_grad_norm": tf.where(finite, norm, tf.zeros_like(norm)) for name, norm in norms.items()}
    with tf.control_dependencies(list(metrics.values())):
        loss_scale.update(finite)
    return metrics | {"finite": tf.cast(finite | curable, tf.float32)}
