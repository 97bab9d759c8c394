"""Dissociated reward prediction (TIA; paper App. D.3): a reward head on the exogenous features.

Before every model update the head takes some steps of its own on the features of that batch. The exogenous encoder and
RSSM are then trained to make its prediction bad (`SeparatedWorldModel`). The head learns from nothing else, and nothing
else learns from it.
"""

from collections.abc import Callable

import tensorflow as tf

from semopo_tf.nets.optim import Optimizer, Undo, gradients_of


class Adversary:
    """The head's variables and their optimiser.

    Args:
      loss: (features [B, T, F], reward [B, T]) -> [B, T], the head's negative log-likelihood.
      updates: steps of the head before each model update.
    """

    def __init__(
        self,
        variables: dict[str, tf.Variable],
        loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        optimizer: Optimizer,
        updates: int,
    ):
        self.variables, self._loss, self._optimizer, self._updates = variables, loss, optimizer, updates

    def fit(self, feat: tf.Tensor, reward: tf.Tensor) -> None:
        """Take the head's steps on features [B, T, F] (their gradient is stopped) and reward [B, T]."""
        feat = tf.stop_gradient(feat)

        def step(done: tf.Tensor) -> tuple[tf.Tensor]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(list(self.variables.values()))
                loss = tf.reduce_mean(self._loss(feat, reward))
            gradients = gradients_of(loss, self.variables, tape)
            half_squares = {key: tf.nn.l2_loss(gradient) for key, gradient in gradients.items()}
            self._optimizer.apply(gradients, self._optimizer.norm(gradients, half_squares))
            return (done + 1,)

        tf.while_loop(lambda done: done < self._updates, step, (tf.constant(0),))

    def state(self) -> dict[str, tf.Variable]:
        """The optimiser's variables, which a checkpoint must hold besides the head's."""
        return self._optimizer.state()

    def undo(self) -> Undo:
        """The present values of all variables: a skipped update changes nothing."""
        return Undo(self._all(), whole=self._optimizer.whole)

    def _all(self) -> list[tf.Variable]:
        return [*self.variables.values(), *self._optimizer.owned()]
