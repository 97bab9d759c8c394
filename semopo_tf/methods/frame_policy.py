"""Acting from the last frames: the policy of learners without a recurrent state."""

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from semopo_tf.nets.compute import Compute


class FramePolicy:
    """Acts on the stack of an episode's last F frames; before the first frame stands the first.

    Each episode is acted in separately inside one compiled call, so its actions do not depend on the episodes beside
    it. Neither seed nor step is used for noise: the action is the policy's mean.

    Args:
      mean: image stack [1, H, W, 3F] uint8 -> action [1, A] in [-1, 1].
      resized: frame [1, H, W, 3] uint8 -> [1, H', W', 3] uint8, what the learner learned from.
    """

    def __init__(
        self,
        mean: Callable[[tf.Tensor], tf.Tensor],
        *,
        frames: int,
        image_size: int,
        action_size: int,
        compute: Compute,
        resized: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
    ):
        self._mean, self._resized = mean, resized
        self._first = tf.zeros([1, image_size, image_size, 3], tf.uint8)
        edge = resized(self._first).shape[1]
        self._stack = tf.TensorSpec([edge, edge, 3 * frames], tf.uint8)
        self._frames, self.image_size, self.action_size = frames, image_size, action_size
        row = (tf.TensorSpec(self._first.shape[1:], tf.uint8), self._stack, tf.TensorSpec([], tf.int64))
        self._act = compute.compile(self.act, signature=tuple(tf.TensorSpec([None, *x.shape], x.dtype) for x in row))

    def initial(self, episodes: int) -> tf.Tensor:
        """State before the first frame of `episodes` episodes."""
        return tf.zeros([episodes, *self._stack.shape], tf.uint8)

    def __call__(
        self, image: np.ndarray, state: tf.Tensor, seeds: np.ndarray, step: int
    ) -> tuple[np.ndarray, tf.Tensor]:
        """See `types.Policy`; actions are in [-1, 1]."""
        action, state = self._act(tf.constant(image), state, tf.fill([len(image)], tf.constant(step, tf.int64)))
        return action.numpy(), state

    def act(self, images: tf.Tensor, stacks: tf.Tensor, steps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One decision of each of E episodes.

        Args:
          images: [E, H, W, 3] uint8.
          stacks: [E, H', W', 3F] uint8, of the previous decision; ignored where the step is 0.
          steps: [E] int64.

        Returns:
          action [E, A], the stacks with the new frame.
        """

        def one_episode(row: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            image, stack, step = row
            frame = self._resized(image[None])[0]
            stack = tf.where(step == 0, tf.tile(frame, [1, 1, self._frames]), tf.concat([stack[..., 3:], frame], -1))
            return self._mean(stack[None])[0], stack

        decision = (tf.TensorSpec([self.action_size], tf.float32), self._stack)
        decided: tuple[tf.Tensor, tf.Tensor] = tf.map_fn(
            one_episode, (images, stacks, steps), fn_output_signature=decision
        )
        return decided

    def start(self) -> dict[str, tf.Tensor]:
        """The state before the first frame of one episode by name, each [1, ...], as an export carries it."""
        return {"frames": self.initial(1), "action": tf.zeros([1, self.action_size])}

    def decide(
        self, images: tf.Tensor, seeds: tf.Tensor, steps: tf.Tensor, state: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """One decision of E episodes from a state as of `start`, each [E, ...]; the next state."""
        action, stacks = self.act(images, state["frames"], steps)
        return {"frames": stacks, "action": action}
