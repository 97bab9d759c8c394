"""A homogeneous distractor: a second body of the same task in the picture, which no action of the agent reaches.

Beyond the paper, after AD3 (Wang et al., ICML 2024), whose distractors look like the agent and move as it does.
"""

import contextlib

import numpy as np

from semopo_tf.envs.behaviours import draw_network, network_action
from semopo_tf.envs.rollout import derived_seed
from semopo_tf.envs.suite import Simulator, control_of
from semopo_tf.errors import SimulatorError

COMPANION_STREAM = 0xAD3  # keeps body and actions independent of other uses of the same seed
BESIDE = 1 / 4  # of the image's width, to the right: each camera follows its own body, so both would be in the middle


class Companion:
    """A second simulation of a task in a process of its own, played by a random network, a new one for every episode.

    Start, network and so every action are functions of the episode's seed alone. `receive` must be called after `reset`
    and after `step`; only `reset` may follow an error.
    """

    def __init__(self, name: str, *, size: int, action_repeat: int, camera: int, render: str) -> None:
        """Args: as `Simulator`. Raises as `Simulator`."""
        self._simulator = Simulator(
            name, size=size, action_repeat=action_repeat, camera=camera, sky=False, render=render, body=True
        )
        self._columns = int(size * BESIDE)
        self._waiting = False  # for an answer

    def reset(self, seed: int) -> None:
        """Begin the episode that accompanies the episode `seed` of the agent."""
        if self._waiting:  # the episode before was given up between the two halves of a step
            with contextlib.suppress(SimulatorError):
                self._simulator.receive()
        own, facts = derived_seed(seed, COMPANION_STREAM), self._simulator.facts
        self._network = draw_network(own, facts.state_size, len(facts.low))
        self._simulator.send("reset", own)
        self._waiting = True

    def step(self) -> None:
        """Play the next action. Raises SimulatorError when the child has died."""
        action = network_action(self._network, self._state)
        self._simulator.send("step", control_of(action, self._simulator.facts).tolist())
        self._waiting = True

    def receive(self) -> tuple[np.ndarray, np.ndarray]:
        """The picture [size, size, 3] uint8 and where in it the body is, [size, size] bool, both moved to the side.

        Raises:
          SimulatorError: when the physics diverge, or the child dies or does not answer.
        """
        self._waiting = False
        view = self._simulator.receive()
        self._state = view.state
        return moved_right(view.image, self._columns), moved_right(view.body, self._columns)

    def close(self) -> None:
        """End the simulation. May be called twice."""
        self._simulator.close()


def moved_right(image: np.ndarray, columns: int) -> np.ndarray:
    """An image [H, W, ...] moved to the right by `columns`; what comes in from the left is zero."""
    moved = np.zeros_like(image)
    moved[:, columns:] = image[:, : image.shape[1] - columns]
    return moved
