"""What a learner that plays sees of its task, and how it explores: the simulator's state, or the images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from semopo_tf.config import Config
from semopo_tf.engine import devices
from semopo_tf.engine.compiling import Jit, choose_jit
from semopo_tf.envs.behaviours import GaussianNetwork, Layer, pack_layers
from semopo_tf.envs.contract import Contract, require_members
from semopo_tf.envs.states import make_states
from semopo_tf.errors import ConfigError, DataError
from semopo_tf.methods import STATE_LEARNERS
from semopo_tf.run import build
from semopo_tf.run.evaluate import make_environment
from semopo_tf.storage import npz
from semopo_tf.storage.untrusted import read_whole
from semopo_tf.types import Episode, Policy, Stage

EXPLORING_STREAM = 0xE72
MAX_SNAPSHOT_BYTES = 1 << 30


class StatePlayer:
    """Sees `environment.state`; plays in a world without pictures.

    Attributes:
      world: what is played in.
      learner: with `stages` and `variables`, as `types.Learner`.
      stages: the learner's, as they are run after each episode.
      shape: of what is seen at one record.
    """

    def __init__(self, config: Config, jit: Jit, steps: int):
        self.world = Contract(make_states(config.task, config.env.action_repeat))
        self._inner = self.world.environment.inner  # type: ignore[attr-defined]
        make, sections, *_ = STATE_LEARNERS[config.method]
        sizes = {"state_size": self._inner.state_size, "action_size": self._inner.action_size}
        with build.usual_keras():
            compute = build.make_compute(config, jit)
            settings = {key: config[key] for key in sections}
            self.learner = make(settings, **sizes, seed=config.seed, steps=steps, compute=compute)
        self.stages: Sequence[Stage] = self.learner.stages
        self.shape = [self._inner.state_size]

    def seen(self, episode: Episode) -> np.ndarray:
        """What the learner sees of an episode, [L, S] float32."""
        return episode.log["state"]

    def explorer(self) -> Policy:
        """The policy that plays for the replay, with the weights of now."""
        return GaussianNetwork(self._inner, self._layers())

    def snapshot(self) -> dict[str, np.ndarray]:
        """What a behaviour needs of the weights."""
        return pack_layers(self._layers())

    def _layers(self) -> list[Layer]:
        return [Layer(*arrays) for arrays in self.learner.actor_layers()]


class ImagePlayer:
    """Sees images, in front of the background that evaluation would show. Attributes: as of `StatePlayer`."""

    def __init__(self, config: Config, jit: Jit, steps: int):
        made = make_environment(config.task, build.environment_settings(config, None))
        require_members(made, "close")
        self.world = Contract(made)
        sizes = {"image_size": self.world.image_shape[0], "action_size": self.world.action_size}
        self.learner = build.make_learner(config, **sizes, jit=jit)
        # The encoder goes on learning, so its output cannot be computed once for the stage.
        self.stages = [stage._replace(steps=steps, prepare=None, images=True) for stage in self.learner.stages]
        self.shape = list(self.world.image_shape)
        self._explorer = Noisy(self.learner.policy(), config.online.noise)

    def seen(self, episode: Episode) -> np.ndarray:
        """What the learner sees of an episode, [L, H, W, 3] uint8."""
        return episode.image

    def explorer(self) -> Policy:
        """The policy that plays for the replay, with the weights of now."""
        return self._explorer

    def snapshot(self) -> dict[str, np.ndarray]:
        """What acting needs of the weights."""
        return {name: variable.numpy() for name, variable in acting_variables(self.learner).items()}


def acting_variables(learner: Any) -> dict[str, Any]:
    """The weights that an image learner acts with, by their names in a checkpoint."""
    groups = {"model": learner.world_model.trained, "policy": learner.actor_critic.acting_variables}
    return {f"{group}/{name}": variable for group, own in groups.items() for name, variable in own.items()}


def saved_player(config: Config, environment: Any, path: Path, *, noise: float) -> Policy:
    """The policy of an image learner with the weights of a snapshot, and noise of a standard deviation on its actions.

    Raises:
      ConfigError, CheckpointError: when the snapshot does not fit the environment.
    """
    device, _ = devices.choose_device("auto")
    jit = choose_jit(config.jit, device)
    sizes = {"image_size": environment.image_shape[0], "action_size": environment.action_size}
    learner = build.make_learner(config, **sizes, jit=jit)
    build.restore(acting_variables(learner), read_snapshot(path), path)
    return Noisy(learner.policy(), noise)


def read_snapshot(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a snapshot. Raises DataError when it is damaged."""
    try:
        return npz.unpack(read_whole(path, MAX_SNAPSHOT_BYTES)[0])
    except npz.MALFORMED as error:
        raise DataError(f"{path}: expected the weights of a behaviour, received other content ({error})") from error


class Exported:
    """An exported policy, acting in any number of environments."""

    def __init__(self, directory: Path):
        """Raises ConfigError when there is no exported policy."""
        if not (directory / "export.json").is_file():
            raise ConfigError(f"{directory}: expected what python -m semopo_tf.export wrote, received none")
        loaded = tf.saved_model.load(str(directory))
        self._initial, self._act = loaded.signatures["initial"], loaded.signatures["act"]

    def initial(self, episodes: int) -> dict[str, Any]:
        """State before the first frame."""
        return dict(self._initial(episodes=tf.constant(episodes)))

    def __call__(self, image: np.ndarray, state: Any, seeds: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
        """See `types.Policy`."""
        state = self._act(image=tf.constant(image), seed=tf.constant(seeds, tf.int64), **state)
        return state["action"].numpy(), dict(state)


def make_player(config: Config, jit: Jit, steps: int) -> StatePlayer | ImagePlayer:
    """The player that `method` asks for.

    Args:
      steps: updates of every stage in the whole run.

    Raises:
      ConfigError: for an unknown method.
    """
    return (StatePlayer if config.method in STATE_LEARNERS else ImagePlayer)(config, jit, steps)


class Noisy:
    """A filtering policy with Gaussian noise on its actions, clipped to [-1, 1]. The noise is a function of (episode's
    seed, decision), and the filter is told the action that was taken.
    """

    def __init__(self, policy: Policy, std: float):
        self._policy, self._std = policy, std
        self.initial = policy.initial

    def __call__(self, image: np.ndarray, state: Any, seeds: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
        """See `types.Policy`."""
        action, (latent, _) = self._policy(image, state, seeds, step)
        draws = (np.random.default_rng(np.random.SeedSequence([int(seed), EXPLORING_STREAM, step])) for seed in seeds)
        noise = np.stack([draw.standard_normal(action.shape[-1]) for draw in draws])
        taken = np.clip(action + self._std * noise, -1, 1).astype(np.float32)
        return taken, (latent, taken)
