"""Environments of gym and gymnasium seen through pixels: the tasks `gym_<id>`, Car Racing above all.

The id says which package plays: gym what it has (`gym_CarRacing-v2`), gymnasium, where it is installed, the rest
(`gym_CarRacing-v3`). Nothing else in this package imports either of them.
"""

import contextlib
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from semopo_tf.envs.contract import ContractError
from semopo_tf.envs.rollout import bounded_action
from semopo_tf.errors import ConfigError, SimulatorError, cut, shown
from semopo_tf.storage.resize import resize
from semopo_tf.types import Observation

PREFIX = "gym_"
PACKAGES = ("gym", "gymnasium")  # in the order in which they are asked for an id
RENDERERS = ("pygame-ce", "pygame")  # two distributions of one module
CAR_RACING = f"{PREFIX}CarRacing-"  # the version follows
INSTALL = {"gym": "'semopo_tf[carracing]'", "gymnasium": "'gymnasium[box2d]'"}


class GymEnvironment:
    """An environment of gym or gymnasium whose actions are a box of numbers or a choice. Its picture is its observation
    where that is one, else what it renders.

    An episode is a function of (seed, actions) alone: `reset` makes the environment anew, which takes a millisecond, so
    that nothing of an earlier episode is left in its physics.

    Attributes:
      env: the environment itself, with the wrappers of its package.
      action_repeat: its steps per decision.
    """

    def __init__(self, name: str, *, size: int, action_repeat: int, options: Mapping[str, float]) -> None:
        """Args: name: the id; options: keywords of the package's `make`, whole numbers as such.

        Raises:
          ConfigError: when no package has the environment, or it has no such option or cannot be played here.
          SimulatorError: when a package that it needs is missing.
        """
        self.name, self.action_repeat = name, action_repeat
        self.image_shape = (size, size, 3)
        self._package = load(package_of(name))
        self._options = {key: _number(key, value) for key, value in options.items()}
        self._running = False
        self.env = self._make()
        seen, control, spaces = self.env.observation_space, self.env.action_space, self._package.spaces
        pictures = isinstance(seen, spaces.Box) and seen.dtype == np.uint8 and len(seen.shape) == 3
        self._sees_pixels = pictures and seen.shape[2] == 3
        self._choices = isinstance(control, spaces.Discrete)
        bounded = isinstance(control, spaces.Box) and np.isfinite([control.low, control.high]).all()
        if not bounded and not self._choices:
            raise ConfigError(
                f"{PREFIX}{name}: expected actions in a Box with finite bounds or a Discrete, received "
                f"{cut(str(control))}; write a wrapper (docs/environments.md has one)"
            )
        self.action_size = int(control.n) if self._choices else int(np.prod(control.shape))

    def reset(self, seed: int) -> Observation:
        """Begin the episode of `seed` (a non-negative integer of any size)."""
        self.close()
        self.env = self._make()
        with self._errors():
            seen, _ = self.env.reset(seed=int(seed))
            return self._observe(seen, 0.0, first=True)

    def step(self, action: np.ndarray) -> Observation:
        """Apply `action` [A] in [-1, 1] for `action_repeat` steps, or until the episode ends.

        `terminated` is a real end, `truncated` is not: `is_last` alone.

        Raises:
          NumericalError: when the action is not finite, out of range or of another shape.
          SimulatorError: when the episode has ended.
        """
        if not self._running:
            raise SimulatorError(
                "step: expected a running episode, received a step before reset or after its end; call reset first"
            )
        control, total = self._control(bounded_action(action, self.action_size)), 0.0
        for _ in range(self.action_repeat):
            seen, reward, terminated, truncated, _ = self.env.step(control)
            total += float(reward)
            if terminated or truncated:
                break
        return self._observe(seen, total, last=bool(terminated or truncated), terminal=bool(terminated))

    def close(self) -> None:
        """End the environment. May be called twice."""
        self._running = False
        self.env.close()

    def _make(self) -> Any:
        try:
            with self._errors():
                # The checker reads np.bool8, which NumPy 2 does not have.
                return self._package.make(self.name, disable_env_checker=True, render_mode="rgb_array", **self._options)
        except (TypeError, ValueError, AssertionError) as error:  # an unknown keyword, or a value out of range
            if not self._options:
                raise
            raise ConfigError(
                f"--options {' '.join(self._options)}: expected keywords of {self._package.__name__}.make for "
                f"{self.name} ({cut(str(error), 100)})"
            ) from error

    def _control(self, action: np.ndarray) -> Any:
        """An action [A] in [-1, 1] at the scale of the environment: float64 between the bounds of every component, as
        Box2D takes no float32; of a choice, the number of the largest entry.
        """
        space = self.env.action_space
        if self._choices:
            return int(space.start) + int(np.argmax(action))
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        return low + (action.reshape(space.shape) + 1) / 2 * (high - low)

    def _observe(
        self, seen: Any, reward: float, *, first: bool = False, last: bool = False, terminal: bool = False
    ) -> Observation:
        picture = seen if self._sees_pixels else self.env.render()
        if np.ndim(picture) != 3:
            raise ContractError(
                f"{PREFIX}{self.name}: expected an image as its observation or from render, received a "
                f"{type(picture).__name__}; write a wrapper (docs/environments.md has one)"
            )
        image = resize(picture[None], self.image_shape[0])[0]
        self._running = not last
        return Observation(image, reward, first, last, terminal)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Raises SimulatorError when a package that the environment needs is missing. Warnings are left out: under
        `python -W error` the import of Box2D crashes at its first one.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except self._package.error.DependencyNotInstalled as error:
            said = cut(str(error).partition(",")[0], 100)  # what follows is `gym[box2d]`, which cannot be installed
            ours = any(name in said.lower() for name in ("box2d", "pygame"))
            remedy = f"run pip install {INSTALL[self._package.__name__]}" if ours else "install it"
            raise SimulatorError(f"{PREFIX}{self.name}: {said}; {remedy}") from error


def _number(name: str, value: float) -> float:
    """An option as the package takes it, whole numbers as such. A card from elsewhere might hold a text, even the name
    of a module.
    """
    if not isinstance(value, int | float):
        raise ConfigError(
            f"--options {cut(name)}: expected a number, received {shown(value)}; correct the dataset card"
        )
    return int(value) if float(value).is_integer() else value


def load(package: str) -> Any:
    """gym or gymnasium, without its notices and without a window.

    Raises:
      ImportError: when it is not installed.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if package == "gymnasium":
        import gymnasium

        return gymnasium
    if "gym" not in sys.modules:
        with contextlib.suppress(ImportError):
            import gym_notices.notices

            gym_notices.notices.notices.clear()  # gym is unmaintained: nothing that a user of this package could act on
    import gym

    return gym


def package_of(name: str) -> str:
    """The package that plays an id.

    Raises:
      ConfigError: when none has it.
    """
    reasons = []
    for package in PACKAGES:
        try:
            module = load(package)
        except ImportError:
            reasons.append(f"{package} is not installed, run pip install {INSTALL[package]}")
            continue
        try:
            module.spec(name)
        except module.error.Error as error:
            reasons.append(f"{package}: {cut(' '.join(str(error).split()), 120)}")
        else:
            return package
    raise ConfigError(
        f"unknown task {cut(PREFIX + name)!r}; expected {PREFIX}<id> of gym or gymnasium ({'; '.join(reasons)})"
    )


def distributions(name: str) -> tuple[str, ...]:
    """The distributions that decide the pixels and physics of an id."""
    renderer = next((each for each in RENDERERS if _is_installed(each)), RENDERERS[0])
    return (package_of(name), "box2d", renderer)


def _is_installed(distribution: str) -> bool:
    try:
        return bool(importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        return False
