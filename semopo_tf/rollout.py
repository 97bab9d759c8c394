"""Play episodes: one loop for every policy and every environment, several environments in lockstep."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from semopo_tf.errors import ConfigError, NumericalError, SimulatorError
from semopo_tf.types import Environment, Episode, Observation, Policy


class RandomPolicy:
    """Uniform actions in [-1, 1], each a function of (episode seed, step) alone."""

    def __init__(self, action_size: int, stream: int = 0) -> None:
        """Args: stream: policies with different streams draw independent actions."""
        self._size = action_size
        self._stream = stream

    def initial(self, episodes: int) -> None:
        return None

    def __call__(self, image: np.ndarray, state: Any, seeds: np.ndarray, step: int) -> tuple[np.ndarray, None]:
        return np.stack([self._draw(int(seed), step) for seed in seeds]), None

    def _draw(self, seed: int, step: int) -> np.ndarray:
        rng = np.random.default_rng(np.random.SeedSequence([seed, self._stream, step]))
        return rng.uniform(-1, 1, self._size).astype(np.float32)


def play(environments: Sequence[Environment], policy: Policy, seeds: Sequence[int]) -> Iterator[Episode]:
    """Play one episode per seed, `len(environments)` at a time, and yield them in the order of `seeds`.

    Raises:
      ConfigError: when there is no environment.
      NumericalError: when the policy returns actions of a wrong shape; environments check the values.
      SimulatorError: when an environment returns a wrong image or a reward that is not finite.
    """
    if not environments:
        raise ConfigError("play: expected at least 1 environment, received 0")
    for start in range(0, len(seeds), len(environments)):
        yield from _wave(environments, policy, list(seeds[start : start + len(environments)]))


def _wave(environments: Sequence[Environment], policy: Policy, seeds: list[int]) -> list[Episode]:
    """Play `len(seeds)` episodes side by side. Those that end early wait, showing their last image."""
    players = list(zip(environments, seeds))
    observed = [[_checked(environment, environment.reset(seed))] for environment, seed in players]
    actions = [[np.zeros(environment.action_size, np.float32)] for environment, _ in players]
    state, step = policy.initial(len(seeds)), 0
    while not all(records[-1].is_last for records in observed):
        action, state = policy(np.stack([records[-1].image for records in observed]), state, np.array(seeds), step)
        action = np.asarray(action, np.float32)
        expected = (len(seeds), environments[0].action_size)
        if action.shape != expected:
            raise NumericalError(f"policy: expected actions of shape {list(expected)}, received {list(action.shape)}")
        playing = [index for index, records in enumerate(observed) if not records[-1].is_last]
        for index, observation in zip(playing, _step([environments[index] for index in playing], action[playing])):
            observed[index].append(_checked(environments[index], observation))
            actions[index].append(action[index].copy())
        step += 1
    return [_episode(*columns) for columns in zip(observed, actions)]


def _step(environments: list[Environment], actions: np.ndarray) -> list[Observation]:
    """Step every environment; those with a `send` and a `receive` (envs.SuiteEnvironment) work at the same time."""
    split = [hasattr(environment, "send") for environment in environments]
    for environment, action, sends in zip(environments, actions, split):
        if sends:
            environment.send(action)  # type: ignore[attr-defined]
    pairs = zip(environments, actions, split)
    return [environment.receive() if sends else environment.step(action) for environment, action, sends in pairs]  # type: ignore[attr-defined]


def _checked(environment: Environment, observation: Observation) -> Observation:
    image, expected = observation.image, environment.image_shape
    if image.shape != expected or image.dtype != np.uint8:
        received = f"{image.dtype} {list(image.shape)}"
        raise SimulatorError(f"environment: expected images uint8 {list(expected)}, received {received}; correct the environment")
    if not np.isfinite(observation.reward):
        raise SimulatorError(f"environment: expected a finite reward, received {observation.reward}; correct the environment")
    return observation


def _episode(observed: list[Observation], actions: list[np.ndarray]) -> Episode:
    """Stack the records of one episode; record t holds the action and reward that led to its image."""
    column = {name: [getattr(record, name) for record in observed] for name in Observation._fields}
    flags = {name: np.array(column[name], bool) for name in ("is_first", "is_last", "is_terminal")}
    return Episode(
        image=np.stack(column["image"]),
        action=np.stack(actions),
        reward=np.array(column["reward"], np.float32),
        discount=1 - flags["is_terminal"].astype(np.float32),
        **flags,
        log={name: np.stack([record.log[name] for record in observed]) for name in observed[0].log},
    )
