"""Acting from a filtered state, as learners with a world model do; and the filter's input for a whole dataset."""

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from semopo_tf.methods.world_model import Branch
from semopo_tf.nets.compute import Compute
from semopo_tf.nets.layers import compute_type
from semopo_tf.random import Key
from semopo_tf.types import Latent

EVIDENCE_ROWS = 512  # frames encoded in one call


def evidence_table(branch: Branch, frames: np.ndarray, compute: Compute) -> tf.Tensor:
    """Run the frozen encoder of a branch once over all frames, [N, H, W, 3] uint8 -> [N, hidden].

    Stored in the compute type. A function of weights and frames alone, so a resumed run computes the same values.
    """
    rows, blocks, stored = min(EVIDENCE_ROWS, len(frames)), [], compute_type(compute.precision)
    encode = compute.compile(lambda image: tf.cast(branch.evidence(image), stored))
    for first in range(0, len(frames), rows):
        start = min(first, len(frames) - rows)  # the last block overlaps the previous one: all have the same shape
        blocks.append(encode(tf.constant(frames[start : start + rows]))[first - start :])
    return tf.concat(blocks, 0)


class FilterPolicy:
    """The acting policy: filters the state of one branch from frames and takes the actor's action. Has no other state.

    Each episode is filtered separately inside one compiled call, with latent noise keyed by (episode seed, decision).
    So its actions do not depend, bit for bit, on the episodes beside it; in a batched product the last bit may depend
    on a row's position in the batch.

    Args:
      branch: the stream of the world model that the policy sees.
      action_of: features [N, F] -> action [N, A] in [-1, 1].
    """

    def __init__(
        self,
        branch: Branch,
        action_of: Callable[[tf.Tensor], tf.Tensor],
        *,
        image_size: int,
        action_size: int,
        compute: Compute,
    ):
        self._branch, self.action_of = branch, action_of
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

            latent_{t-1}, action_{t-1}, image_t --filter--> latent_t --actor--> action_t

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
            action = tf.where(step == 0, tf.zeros_like(action), action)
            noise = branch.rssm.draw(Key(seed, "evaluation", step), "state", (1, 1))
            evidence, is_first = branch.evidence(image[None])[:, None], tf.reshape(tf.equal(step, 0), [1, 1])
            post = branch.rssm.observe(evidence, action[None, None], is_first, noise, latent)
            latent = tf.nest.map_structure(lambda x: x[:, 0], post)
            return self.action_of(branch.features(latent))[0], tf.nest.map_structure(lambda x: x[0], latent)

        decided: tuple[tf.Tensor, Latent] = tf.map_fn(
            one_episode, (images, latents, actions, seeds, steps), fn_output_signature=self._decision
        )
        return decided
