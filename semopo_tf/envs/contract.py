"""What an environment must do, checked where it hands its values over.

Environments are code of users. Everything that one returns is copied at once, as it may be a view that the next step
overwrites, and it is handed copies of what is kept. What is harmless is made right and said in one line; the rest is
refused in one line that names the member to correct.
"""

import inspect
import operator
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from semopo_tf.errors import SimulatorError, cut
from semopo_tf.types import Environment, Observation

MEMBERS = ("action_size", "image_shape", "reset")  # besides `step` or its two halves
HALVES = ("send", "receive")
FIELDS = tuple(name for name in Observation._fields if name != "log")
FLAGS = ("is_first", "is_last", "is_terminal")
CHANNELS = 3
NUMBERS = "bfiu"

_said: set[str] = set()  # the warnings that this process has printed


class ContractError(SimulatorError):
    """An environment breaks its contract by what it is, not by chance: no other seed would help."""


def say(line: str, about: str = "") -> None:
    """Print a warning, once in this process.

    Args:
      about: names the matter where the lines about it differ.
    """
    if (about or line) not in _said:
        _said.add(about or line)
        print(f"semopo_tf: warning: {line}", file=sys.stderr, flush=True)


class Contract:
    """An environment as it is played: its members are there, its sizes stay, and its observations are checked copies.

    Attributes:
      environment: the environment itself.
      name: of its class, for messages.
      image_shape: (size, size, 3).
      action_size: at least 1.
      split: whether its `step` comes in two halves, `send` and `receive`.
    """

    def __init__(self, environment: Environment) -> None:
        """Raises ContractError when a member is missing or has another form."""
        self.environment, self.name = environment, type(environment).__name__
        require_members(environment)
        self.split = hasattr(environment, "send")
        self._require_call("reset", "reset(seed)", 0)
        self._require_call("send" if self.split else "step", "step(action)", np.zeros(1, np.float32))
        self.image_shape, self.action_size = self._spaces()
        self._log_shapes: dict[str, tuple[int, ...]] | None = None
        self._shown = False  # whether an observation was right
        self._action = np.zeros(self.action_size, np.float32)

    def reset(self, seed: int) -> Observation:
        """Begin the episode of `seed`; the observation is a copy.

        Raises:
          ContractError: when what comes back is no observation, or its image is of another type or shape.
          SimulatorError: when the episode has ended already.
        """
        seen = self._observation("reset", self.environment.reset(seed))
        if seen.is_last or seen.is_terminal:
            raise SimulatorError(
                f"{self.name}.reset: expected is_last and is_terminal False, as an episode has at least one decision, "
                "received True; correct reset"
            )
        if seen.reward != 0:
            self._correct("reset", f"the reward {seen.reward:g} follows no decision and is left out")
        if not seen.is_first:
            self._correct("reset", "is_first is False and is taken as True")
        return seen._replace(reward=0.0, is_first=True)

    def send(self, action: np.ndarray) -> None:
        """Hand over a copy of `action` [A] float32; `receive` has the answer."""
        self._action = np.array(action, np.float32)
        if self.split:
            self.environment.send(self._action)  # type: ignore[attr-defined]

    def receive(self) -> Observation:
        """What the last `send` led to; a copy.

        Raises:
          ContractError: when what comes back is no observation, or one that ends for good and goes on.
          SimulatorError: for a wrong image, a reward that is not finite or spaces that have changed.
        """
        source = self.environment
        seen = source.receive() if self.split else source.step(self._action)  # type: ignore[attr-defined]
        observation = self._observation("receive" if self.split else "step", seen)
        with np.errstate(over="ignore"):
            finite = np.isfinite(np.float32(observation.reward))  # the type in which it is kept
        if not finite:
            raise SimulatorError(
                f"{self.name}.step: expected a finite reward, received {observation.reward}; correct the environment"
            )
        if observation.is_terminal and not observation.is_last:
            self._refuse(
                "step", "is_last wherever is_terminal", "is_terminal alone", "is_last is (terminated or truncated)"
            )
        if observation.is_first:
            self._correct("step", "is_first is True and is taken as False")
        return observation._replace(is_first=False)

    def close(self) -> None:
        """Close the environment."""
        self.environment.close()

    def _refuse(self, member: str, expected: str, received: str, remedy: str) -> NoReturn:
        raise ContractError(f"{self.name}.{member}: expected {expected}, received {received}; {remedy}")

    def _correct(self, member: str, line: str) -> None:
        say(f"{self.name}.{member}: {line}; correct the environment to silence this")

    def _require_call(self, member: str, expected: str, argument: Any) -> None:
        """Refuse a method that cannot be called with one argument by position."""
        method = getattr(self.environment, member)
        if (wrong := uncallable(method, argument)) is not None:
            self._refuse(member, expected, cut(f"{member}{wrong}"), "correct its arguments")

    def _spaces(self) -> tuple[tuple[int, int, int], int]:
        """The declared `image_shape`, with three channels, and `action_size`."""
        shape, actions = self.environment.image_shape, self.environment.action_size
        try:
            height, width, *channels = (operator.index(length) for length in shape)
        except (TypeError, ValueError):
            height, width, channels = 0, 0, []
        if height < 1 or height != width or channels not in ([], [1], [CHANNELS]):
            self._refuse("image_shape", "(size, size, 3)", _describe(shape), "make the images square, colour last")
        try:
            size = operator.index(actions)
        except TypeError:
            size = 0
        if size < 1 or isinstance(actions, bool):
            self._refuse(
                "action_size", "a whole number of at least 1", _describe(actions), "name the size of an action"
            )
        return (height, width, CHANNELS), size

    def _observation(self, member: str, seen: Any) -> Observation:
        """A copy of what came back, its numbers plain."""
        if missing := [name for name in FIELDS if not hasattr(seen, name)]:
            without = f" without {', '.join(missing)}" if len(missing) < len(FIELDS) else ""
            remedy = "return one; docs/environments.md has a wrapper for gymnasium"
            self._refuse(member, f"an Observation ({', '.join(FIELDS)})", _describe(seen) + without, remedy)
        if (spaces := self._spaces()) != (self.image_shape, self.action_size):
            raise SimulatorError(
                f"environment: expected images and actions of {(self.image_shape, self.action_size)} throughout, "
                f"received {spaces}"
            )
        nothing = member == "reset" and seen.reward is None  # as in dm_env
        reward = 0.0 if nothing else self._number(member, "reward", seen.reward)
        first, last, terminal = (self._flag(member, name, getattr(seen, name)) for name in FLAGS)
        log = self._log(member, getattr(seen, "log", {}))
        return Observation(self._image(member, seen.image), reward, first, last, terminal, log)

    def _image(self, member: str, value: Any) -> np.ndarray:
        """A copy of an image, uint8 of the declared shape."""
        image = _as_array(value)
        whole = image.dtype != np.uint8 and image.dtype.kind in "iu" and image.shape[:2] == self.image_shape[:2]
        if whole and image.size and image.min() >= 0 and image.max() <= np.iinfo(np.uint8).max:
            self._correct(member, f"image is {image.dtype} and is taken as uint8")
            image = image.astype(np.uint8)
        if image.dtype == np.uint8 and image.shape in (self.image_shape[:2], (*self.image_shape[:2], 1)):
            self._correct(member, f"image {list(image.shape)} has one colour channel, which becomes all three")
            image = np.repeat(image.reshape(*self.image_shape[:2], 1), CHANNELS, axis=-1)
        if image.shape != self.image_shape or image.dtype != np.uint8:
            self._refuse_image(member, value, image)
        self._shown = True
        return np.array(image, np.uint8, order="C")

    def _refuse_image(self, member: str, value: Any, image: np.ndarray) -> NoReturn:
        """An environment that has shown a right image may show others with another seed; else it is a mistake."""
        expected = f"image uint8 {list(self.image_shape)}"
        if image.dtype.kind not in NUMBERS:
            received, remedy = _describe(value), "return an array (gymnasium's render needs render_mode='rgb_array')"
        else:
            received, remedy = f"{image.dtype} {list(image.shape)}", "resize it, or correct image_shape"
            if image.dtype != np.uint8:
                remedy = "scale it to 0..255 and round it to uint8"
        kind = SimulatorError if self._shown else ContractError
        raise kind(f"{self.name}.{member}: expected {expected}, received {received}; {remedy}")

    def _number(self, member: str, field: str, value: Any, expected: str = "one number") -> float:
        """A number, also the only one of an array."""
        array = _as_array(value)
        if array.size != 1 or array.dtype.kind not in NUMBERS:
            self._refuse(member, f"{field} as {expected}", _describe(value), f"correct {field}")
        if array.ndim:
            self._correct(member, f"{field} has the shape {list(array.shape)}, and its only value is taken")
        return float(array.item())

    def _flag(self, member: str, field: str, value: Any) -> bool:
        number = self._number(member, field, value, "True or False")
        if number not in (0, 1):
            self._refuse(member, f"{field} as True or False", _describe(value), f"correct {field}")
        return bool(number)

    def _log(self, member: str, log: Any) -> dict[str, np.ndarray]:
        """Copies of the true states: numbers, of the same names and shapes in every observation."""
        if not isinstance(log, Mapping) or not all(isinstance(name, str) for name in log):
            self._refuse(member, "log as a mapping of names to arrays", _describe(log), "correct log")
        owned = {name: np.array(_as_array(value)) for name, value in log.items()}
        for name, array in owned.items():
            if array.dtype.kind not in NUMBERS:
                self._refuse(member, f"log[{cut(name)!r}] as numbers", _describe(log[name]), "correct log")
        shapes = {name: array.shape for name, array in owned.items()}
        if self._log_shapes is None:
            self._log_shapes = shapes
        for name in sorted(self._log_shapes.keys() | shapes.keys()):
            here, before = (_shape_words(where.get(name)) for where in (shapes, self._log_shapes))
            if here != before:
                self._refuse(member, f"log[{cut(name)!r}] {before} as before", here, "log the same names and shapes")
        return owned


def require_members(environment: Any, *more: str) -> None:
    """Raises ContractError when an environment lacks a member that playing needs, or one of `more`."""
    expected = (*MEMBERS, *(HALVES if hasattr(environment, HALVES[0]) else ("step",)), *more)
    if missing := [name for name in expected if not hasattr(environment, name)]:
        raise ContractError(
            f"environment {type(environment).__name__}: expected the members {', '.join(expected)}, missing "
            f"{', '.join(missing)}; add them (docs/environments.md has a whole one, and a wrapper for gymnasium)"
        )


def uncallable(function: Callable, *arguments: Any, **keywords: Any) -> str | None:
    """The parameters of a function that cannot be called in this way; None if it can be, or cannot be asked."""
    try:
        signature = inspect.signature(function)
    except TypeError:
        return " that cannot be called"
    except ValueError:  # a function in C that does not say
        return None
    try:
        signature.bind(*arguments, **keywords)
    except TypeError:
        return str(signature)
    return None


def _as_array(value: Any) -> np.ndarray:
    """A value as an array; what is none, such as a ragged list, as an array of one object."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError):
        return np.array(None)


def _shape_words(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else f"of shape {list(shape)}"


def _describe(value: Any) -> str:
    """What a value is, in a few words."""
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype} {list(value.shape)}"
    if isinstance(value, tuple | list) and not all(isinstance(item, int) for item in value):
        return f"a {type(value).__name__} of {len(value)} items"
    if value is None or isinstance(value, bool | int | float | str | tuple | list):
        return cut(repr(value))
    return f"a {type(value).__name__}"
