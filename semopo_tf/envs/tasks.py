"""Environments seen through pixels: tasks of DeepMind Control and gym, the built-in testbed, and environments of users.

dmc_<domain>_<task>        a task of the suite
dmcdrv_<domain>_<task>     the same in front of a moving background
gym_<id>                   an environment of gym or gymnasium, for example Car Racing (`gym_adapter.py`)
exbmdp_scroll, _point, _hard    the testbed (`exbmdp.py`)
<module>:<name>            a class or function in a module that can be imported, also from the working directory
"""

import difflib
import functools
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from semopo_tf.envs import exbmdp, gym_adapter
from semopo_tf.envs.behaviours import Constant, RandomNetworks
from semopo_tf.envs.companion import Companion
from semopo_tf.envs.contract import uncallable
from semopo_tf.envs.driver import Driver
from semopo_tf.envs.rollout import RandomPolicy
from semopo_tf.envs.suite import RENDERS, Simulator, control_of
from semopo_tf.envs.videos import DRIVING, Background, blue_mask, composite, load_background, require
from semopo_tf.errors import ConfigError, DataError, SimulatorError, cut
from semopo_tf.types import Environment, Observation, Policy

PLAIN, MOVING = "dmc_", "dmcdrv_"
MASK_RULES, DISTRACTORS = ("sky", "blue"), ("none", "agent")
WITH_COMPANION = tuple(f"{MOVING}{domain}_" for domain in ("walker", "cheetah"))
PAPER_TASKS = ("walker_walk", "cheetah_run", "hopper_hop", "humanoid_walk")
BACKGROUND_FRAMES = 1000
FINER = 2  # `--render plain` draws so many times as many pixels in each direction
BESIDES = {"numpy", "backend"}  # of the versions of an environment: without an influence on its physics

_registry: dict[str, Callable[..., Environment]] = {}


class Settings(NamedTuple):
    """The settings of an environment, the keywords of `make`."""

    size: int = 64  # height and width of the images in pixels
    action_repeat: int = 2  # simulator steps per decision; their rewards are summed
    camera: int = -1  # index of a camera of the model, or -1 for the task's usual one
    background: str = "none"  # or a folder of videos, or `builtin:driving`
    background_color: str = "grey"  # or `rgb`
    background_split: str = "train"  # or `test`; the two share no clip
    background_seed: int = 0  # chooses and orders the clips
    # Which pixels the background replaces. `sky`: where the camera sees nothing; the floor stays visible, except in the
    # domains whose camera looks down on it (`suite.FLOOR_IS_SKY`). `blue`: where blue exceeds red and green, which
    # includes the floor.
    mask_rule: str = "sky"
    # How the simulator draws: `fast` with a coarser shadow, in two thirds of the time; of a thousand pixels two differ.
    # `plain` without shadows and reflections, each pixel the mean of 2 x 2 of a picture twice as large.
    render: str = "full"
    # `agent`: a second body of the task stands beside the first and plays actions of its own (`companion.py`).
    distractor: str = "none"
    # Settings of the task itself, as a mapping or as pairs. The testbed has some, an environment of a user may.
    options: Mapping[str, float] | Sequence[tuple[str, float]] = ()


def register(name: str, make: Callable[..., Environment]) -> None:
    """Make `name` a task for every command. A second registration replaces the first, so a cell of a notebook
    can run again.

    Args:
      make: called with all fields of `Settings` as keywords; it may ignore those that mean nothing to it.
    """
    _registry[name] = make


def is_registered(task: str) -> bool:
    """Whether `register` has given this name to an environment of a user."""
    return task in _registry


def is_of_suite(task: str) -> bool:
    """Whether a task is one of DeepMind Control, with or without a moving background."""
    return task.startswith((PLAIN, MOVING)) and not is_registered(task)


def make(task: str, **settings: Any) -> Environment:
    """Build an environment.

    Args:
      settings: fields of `Settings`; those that are not given have their defaults.

    Raises:
      ConfigError: for an unknown task or a wrong setting.
      SimulatorError: when the simulator or its rendering does not work.
      DataError: when the background has no frames to give.
    """
    chosen = Settings(**settings)
    chosen = chosen._replace(options=dict(chosen.options))
    require(chosen.size >= 1, "size", "at least 1", chosen.size)
    require(chosen.action_repeat >= 1, "action_repeat", "at least 1", chosen.action_repeat)
    _require_companion(task, chosen.distractor)
    if make_own := _registry.get(task) or (_import(task) if ":" in task else None):
        return _make_own(task, make_own, chosen)
    if _is_gym(task):
        return _make_gym(task, chosen)
    return _make_testbed(task, chosen) if task.startswith(exbmdp.PREFIX) else _make_suite(task, chosen)


def _require_companion(task: str, distractor: str) -> None:
    """Raises ConfigError for a distractor that there is not, or that the task cannot show."""
    require(distractor in DISTRACTORS, "distractor", " or ".join(DISTRACTORS), distractor)
    if distractor != "none" and not (is_of_suite(task) and task.startswith(WITH_COMPANION)):
        raise ConfigError(
            f"--distractor: expected none, as {task} cannot show a second body, received {distractor!r}; remove the "
            f"flag or choose a task that begins with {' or '.join(WITH_COMPANION)}"
        )


def _is_gym(task: str) -> bool:
    """Whether a task is one of gym; a user's may have the same prefix, e.g. `gym_tasks:pendulum`."""
    return task.startswith(gym_adapter.PREFIX) and ":" not in task and task not in _registry


def _make_own(task: str, make_own: Callable[..., Environment], settings: Settings) -> Environment:
    """A user's environment.

    Raises:
      ConfigError: when it does not take the keywords.
      Exception: whatever its own code raises.
    """
    keywords = settings._asdict()
    del keywords["distractor"]  # always none here
    if settings.render == "full":
        del keywords["render"]  # which an environment of a user need not know
    if (wrong := uncallable(make_own, **keywords)) is not None:
        name = getattr(make_own, "__name__", type(make_own).__name__)
        raise ConfigError(
            f"--task {task}: expected a class or function that takes the keywords {', '.join(keywords)}, "
            f"received {cut(name + wrong)}; add **settings to its arguments"
        )
    return make_own(**keywords)


def _make_testbed(task: str, settings: Settings) -> Environment:
    require(settings.background == "none", "background", f"none, as {task} draws its own", settings.background)
    require(settings.action_repeat == 1, "action_repeat", f"1, as {task} has no other", settings.action_repeat)
    require(settings.render == "full", "render", f"full, as {task} has no other", settings.render)
    return exbmdp.ExBMDP(task, size=settings.size, options=dict(settings.options))


def _make_gym(task: str, settings: Settings) -> Environment:
    require(settings.background == "none", "background", f"none, as {task} draws its own", settings.background)
    require(settings.camera == -1, "camera", f"-1, as {task} has no other", settings.camera)
    require(settings.render == "full", "render", f"full, as {task} has no other", settings.render)
    return gym_adapter.GymEnvironment(
        task.removeprefix(gym_adapter.PREFIX),
        size=settings.size,
        action_repeat=settings.action_repeat,
        options=dict(settings.options),
    )


def _make_suite(task: str, settings: Settings) -> Environment:
    name = suite_name(task)
    require(not settings.options, "options", f"none, as {task} has none", settings.options)
    require(settings.mask_rule in MASK_RULES, "mask_rule", " or ".join(MASK_RULES), settings.mask_rule)
    require(settings.render in RENDERS, "render", " or ".join(RENDERS), settings.render)
    if task.startswith(PLAIN) and settings.background != "none":
        raise ConfigError(
            f"task {task!r} shows no background, received --background {settings.background}; use {MOVING}{name}"
        )
    if task.startswith(MOVING) and settings.background == "none":
        raise ConfigError(
            f"task {task!r} needs a moving background; add --background {DRIVING} or --background with a folder of "
            "videos"
        )
    return SuiteEnvironment(name, settings)


def _import(task: str) -> Callable[..., Environment]:
    """The class or function that `<module>:<name>` names; called with the keywords of `make`, as a registered one.

    Raises:
      ConfigError: when there is no such module or name.
    """
    module, _, name = task.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` has it; `python train.py` has the script's folder instead
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"--task {task}: expected <module>:<class or function> that can be imported from here ({error})"
        ) from error


def usual_settings(task: str) -> dict[str, int]:
    """Default image size and action repeat of a task."""
    return {"size": 32, "action_repeat": 1} if task.startswith(exbmdp.PREFIX) else {"size": 64, "action_repeat": 2}


def behaviours(task: str) -> dict[str, Callable[[Environment], Policy]]:
    """The behaviour policies of a task that need no training, name -> builder; see `envs.behaviours`."""
    usual: dict[str, Callable[[Environment], Policy]] = {
        "uniform": lambda environment: RandomPolicy(environment.action_size),
        "constant": Constant,
    }
    if not task.startswith(exbmdp.PREFIX):
        drives = _is_gym(task) and task.startswith(gym_adapter.CAR_RACING)
        return {"random": RandomNetworks, **usual, **({"driver": Driver} if drives else {})}
    own = {kind: functools.partial(exbmdp.Behaviour, kind) for kind in exbmdp.Behaviour.KINDS}
    return {**own, "networks": RandomNetworks, **usual}


@functools.lru_cache(maxsize=4)
def shared_background(source: str, size: int, color: str, split: str, seed: int) -> Background:
    """`load_background`, once per process: environments with the same settings share their frames."""
    return load_background(source, size=size, color=color, split=split, seed=seed, frames=BACKGROUND_FRAMES)


def shows_no_background(task: str) -> bool:
    """Whether a task belongs to the package and has no moving background."""
    return _is_gym(task) or (task.startswith((PLAIN, exbmdp.PREFIX)) and task not in _registry)


def background_of(environment: Environment) -> Background | None:
    """The moving background that an environment of the suite shows; None for all others."""
    return environment.background if isinstance(environment, SuiteEnvironment) else None


def suite_name(task: str) -> str:
    """The name of a suite task without its prefix. Only the simulator knows whether the task exists.

    Raises:
      ConfigError: when the name has neither prefix; it lists the nearest names.
    """
    for prefix in (PLAIN, MOVING):
        if task.startswith(prefix):
            return task.removeprefix(prefix)
    suites = (prefix + name for prefix in (PLAIN, MOVING) for name in PAPER_TASKS)
    names = [*_registry, *exbmdp.TASKS, f"{gym_adapter.CAR_RACING}v2", *suites]
    near = difflib.get_close_matches(task, names, cutoff=0.4) or names
    raise ConfigError(
        f"unknown task {task!r}; expected {PLAIN}<domain>_<task>, {MOVING}<domain>_<task>, {gym_adapter.PREFIX}<id> or "
        f"a registered name, e.g. {', '.join(near)}, or <module>:<class> for your own (docs/environments.md)"
    )


def card_of(settings: dict[str, Any], clips: list[str]) -> dict[str, dict[str, Any]]:
    """The entries of a dataset card for the keywords of `make` and the clips of the background. `settings_of` reads
    them back.
    """
    background = {name: settings[f"background_{name}"] for name in ("color", "split", "seed")}
    special = {"options": dict(settings["options"])} if settings.get("options") else {}
    special |= {"render": settings["render"]} if settings.get("render", "full") != "full" else {}
    distractor = settings.get("distractor", "none")
    return {
        "environment": {name: settings[name] for name in ("size", "action_repeat", "camera")} | special,
        "background": {
            "source": settings["background"],
            **background,
            "mask_rule": settings["mask_rule"],
            "clips": clips,
            **({"distractor": distractor} if distractor != "none" else {}),
        },
    }


def settings_of(card: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `make` with which a dataset was collected, from its card.

    Raises:
      DataError: when the card lacks one.
    """
    wanted = {
        "environment": ("size", "action_repeat", "camera"),
        "background": ("source", "color", "split", "seed", "mask_rule"),
    }
    lacking = [f"{part}.{name}" for part, names in wanted.items() for name in names if name not in card.get(part, {})]
    if lacking:
        raise DataError(
            f"dataset.json: expected what collect writes, missing {', '.join(lacking)}; remove the file or collect "
            "the dataset again"
        )
    background = card["background"]
    return {
        **card["environment"],
        "background": background["source"],
        **{f"background_{name}": background[name] for name in ("color", "split", "seed")},
        "mask_rule": background["mask_rule"],
        **{name: background[name] for name in ("distractor",) if name in background},
    }


def environment_versions(task: str) -> dict[str, str]:
    """Versions of the packages that decide pixels and physics of a task; for a task of the suite also those of the
    simulator and its rendering backend, `none` for an absent one.

    Raises:
      ConfigError: when no package has the task.
    """
    if _is_gym(task):
        packages = gym_adapter.distributions(task.removeprefix(gym_adapter.PREFIX))
        return {name: _version(name) for name in (*packages, "numpy")}
    if not is_of_suite(task):
        return {"numpy": _version("numpy")}
    versions = {name: _version(name) for name in ("dm_control", "mujoco", "numpy")}
    return versions | {"backend": os.environ.get("MUJOCO_GL") or "none"}


def other_versions(task: str, card: Mapping[str, Any]) -> str:
    """With which simulator a dataset was collected and which one plays the task here, if their names or versions
    differ; else empty. A task without a simulator has none.

    Raises:
      ConfigError: when no package has the task.
    """
    versions = card.get("versions")
    there, here = (
        {name: value for name, value in found.items() if name not in BESIDES} if isinstance(found, Mapping) else {}
        for found in (versions, environment_versions(task))
    )
    if not (there and here) or there == here:
        return ""
    data, play = (cut(", ".join(f"{name} {value}" for name, value in each.items()), 100) for each in (there, here))
    return f"the data were collected with {data}, and the evaluation plays {play}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


class SuiteEnvironment:
    """A suite task seen through one camera, with an optional moving background and a second body before it.

    An episode is a function of (seed, actions) alone: physics and background draw from generators that `reset` seeds
    anew. `step` may be split into `send` and `receive`, so that several environments simulate at the same time.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        """Args: name: `<domain>_<task>`. Raises as `make`."""
        # The look of the background: colour, split and seed.
        size, action_repeat, camera, source, *look, mask_rule, render, distractor, _ = settings
        self.background = None if source == "none" else shared_background(source, size, *look)
        sky, accompanied = self.background is not None and mask_rule == "sky", distractor == "agent"
        self._finer = FINER if render == "plain" else 1
        drawn: dict[str, Any] = {"size": size * self._finer, "action_repeat": action_repeat, "camera": camera}
        drawn["render"] = render
        self._simulator = Simulator(name, **drawn, sky=sky, body=accompanied)
        self._companion = Companion(name, **drawn) if accompanied else None
        self._facts = self._simulator.facts
        self.camera, self.state_size = self._facts.camera, self._facts.state_size
        self.action_size = len(self._facts.low)
        self.state = np.zeros(self.state_size)  # of the simulator, for behaviours that may see it
        self.image_shape = (size, size, 3)
        self._frame = 0  # of the background, for the next observation
        self._running = False

    def reset(self, seed: int) -> Observation:
        """Begin the episode of `seed` (a non-negative integer of any size)."""
        if self.background is not None:
            self._frame = self.background.first_frame(seed)
        if self._companion:
            self._companion.reset(seed)
        self._simulator.send("reset", int(seed))
        return self.receive()

    def step(self, action: np.ndarray) -> Observation:
        """Apply `action` [A] in [-1, 1] for `action_repeat` simulator steps, or until the episode ends.

        Raises:
          NumericalError: when the action is not finite, out of range or of another shape.
          SimulatorError: when the physics diverge, the simulator dies or the episode has ended.
        """
        self.send(action)
        return self.receive()

    def send(self, action: np.ndarray) -> None:
        """The first half of `step`: returns while the simulator works."""
        if not self._running:
            raise SimulatorError(
                "step: expected a running episode, received a step before reset or after its end; call reset first"
            )
        control = control_of(action, self._facts)
        if self._companion:
            self._companion.step()
        self._simulator.send("step", control.tolist())

    def receive(self) -> Observation:
        """The second half of `step`."""
        view = self._simulator.receive()
        self._running = not view.is_last
        self.state = view.state
        image = view.image
        if self.background is not None:
            mask = blue_mask(image) if view.sky is None else view.sky
            image = composite(image, enlarged(self.background.frames[self._frame], self._finer), mask)
            self._frame = (self._frame + 1) % len(self.background.frames)
        if self._companion:
            other, body = self._companion.receive()
            image = composite(image, other, body & ~view.body)
        if self._finer > 1:
            image = np.array(Image.fromarray(image).reduce(self._finer))  # means of blocks, half levels upwards
        return Observation(image, view.reward, view.is_first, view.is_last, view.is_terminal)

    def close(self) -> None:
        """End the simulation. May be called twice."""
        if self._companion:
            self._companion.close()
        self._simulator.close()


def enlarged(image: np.ndarray, factor: int) -> np.ndarray:
    """[H factor, W factor, C]: every pixel of an image [H, W, C] as a block."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else image
