"""Environments as the behaviours see them: by the simulator's own state, without pictures."""

from typing import Any

import numpy as np

from semopo_tf.envs import exbmdp, tasks
from semopo_tf.errors import ConfigError
from semopo_tf.types import Observation

PIXEL = np.zeros((1, 1, 3), np.uint8)


class States:
    """An environment whose observations are its true state, `log["state"]` [S]; their image is one black pixel.

    Attributes:
      inner: the environment itself, whose `state` a behaviour reads.
    """

    image_shape = PIXEL.shape

    def __init__(self, inner: Any):
        """Raises ConfigError for an environment that does not tell its state."""
        if not hasattr(inner, "state_size"):
            raise ConfigError(
                f"{type(inner).__name__}: expected an environment with state and state_size, which a behaviour learns "
                "from, received one without; give it both, or use a behaviour that sees images"
            )
        self.inner, self.action_size, self.state_size = inner, inner.action_size, inner.state_size

    def reset(self, seed: int) -> Observation:
        """Begin the episode of `seed`."""
        return self._seen(self.inner.reset(seed))

    def step(self, action: np.ndarray) -> Observation:
        """Apply `action` [A]."""
        return self._seen(self.inner.step(action))

    def _seen(self, seen: Observation) -> Observation:
        return seen._replace(image=PIXEL, log={"state": np.asarray(self.inner.state, np.float32)})

    def close(self) -> None:
        """Close the environment."""
        self.inner.close()


def make_states(task: str, action_repeat: int) -> States:
    """The physics of a task. One of the suite draws nothing and needs no OpenGL.

    Raises:
      ConfigError: for an unknown task, or one that does not tell its state.
      SimulatorError: when the simulator does not work.
    """
    if tasks.is_of_suite(task):
        return States(tasks.SuiteEnvironment(tasks.suite_name(task), tasks.Settings(0, action_repeat)))
    size = {"size": tasks.usual_settings(task)["size"]} if task.startswith(exbmdp.PREFIX) else {}
    return States(tasks.make(task, action_repeat=action_repeat, **size))
