"""Builds the parts of a run from its configuration: learner, sampler, environment settings, evaluation seeds."""

import contextlib
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from semopo_tf.config import Config
from semopo_tf.data.dataset import Dataset, split
from semopo_tf.data.sampler import Pool, Sampler
from semopo_tf.engine.compiling import OFF, Jit, compiled
from semopo_tf.envs import tasks
from semopo_tf.envs.videos import absolute_source
from semopo_tf.errors import CheckpointError, ConfigError, cut
from semopo_tf.methods import LEARNERS, STATE_LEARNERS
from semopo_tf.nets.compute import Compute, as_it_is
from semopo_tf.run.evaluate import Played
from semopo_tf.types import Learner

DEFAULT_SIZE = 64  # pixels, of `env.size`
SIZES = ("image_size", "action_size", "episodes", "transitions")  # arguments of `make_learner`; the latter two may lack
CARD_KEYS = ("background", "background_color", "background_split", "mask_rule")
USUAL = {"render": "full", "distractor": "none"}  # settings that cards and score rows name only where they differ


def make_compute(config: Config, jit: Jit) -> Compute:
    """Turn the engine's choices into a `Compute`; nothing else makes one."""
    part = partial(compiled, jit=True) if jit.parts else as_it_is
    return Compute(config.precision, jit.target, config.remat, partial(compiled, jit=jit.pixels), part)


def data_sizes(config: Config, dataset: Dataset) -> dict[str, int]:
    """The further arguments of `make_learner` that the dataset decides, for a learner that counts its episodes."""
    if config.method not in LEARNERS or not LEARNERS[config.method].counts:
        return {}
    train, _ = split(dataset, config.valid_fraction, config.seed, config.min_length)
    return {"episodes": int(train.sum()), "transitions": int((dataset.length[train] - 1).sum())}


def make_learner(
    config: Config, *, image_size: int, action_size: int, episodes: int = 0, transitions: int = 0, jit: Jit = OFF
) -> Learner:
    """The learner that `method` names, freshly initialised from its seed.

    Args:
      episodes, transitions: of training, from `data_sizes`; only some learners need them.

    Raises:
      ConfigError: when there is no such method, when its layers do not fit the image, or when a flag has no effect on
        it.
    """
    if config.method not in LEARNERS:
        raise ConfigError(
            f"--method: expected one of {', '.join(LEARNERS)}, received {cut(config.method)}; name it in --configs"
        )
    _require_read(config)
    registered = LEARNERS[config.method]
    settings = {key: config[key] for key in registered.sections}
    sizes = {"image_size": image_size, "action_size": action_size}
    if registered.counts:
        sizes |= {"episodes": episodes, "transitions": transitions}
    try:
        with usual_keras():
            return registered.build(settings, **sizes, seed=config.seed, compute=make_compute(config, jit))
    except ValueError as error:
        raise ConfigError(str(error)) from error


@contextlib.contextmanager
def usual_keras() -> Iterator[None]:
    """Keras' own global settings while layers are made: a notebook may have set others for its own networks."""
    own, chosen = keras.config, keras.config.dtype_policy()
    before = own.floatx(), own.image_data_format(), own.epsilon()
    own.set_floatx("float32")
    own.set_image_data_format("channels_last")
    own.set_epsilon(1e-7)
    own.set_dtype_policy("float32")
    try:
        yield
    finally:
        for put, value in zip((own.set_floatx, own.set_image_data_format, own.set_epsilon), before, strict=True):
            put(value)
        own.set_dtype_policy(chosen)


def make_sampler(config: Config, dataset: Dataset, *, sampling: str = "", images_on_device: bool = True) -> Sampler:
    """The sampler of a run on its dataset.

    Args:
      sampling: `conservative` or `uniform`; the configured rule by default.

    Raises:
      DataError: when no episode is left to train on.
    """
    train, valid = split(dataset, config.valid_fraction, config.seed, config.min_length)
    return Sampler(
        dataset,
        train,
        valid=valid,
        sampling=sampling or config.sampling,
        pool=Pool(**config.pool),
        policy_starts=config.policy_starts,
        total_steps=config.steps.model,
        images_on_device=images_on_device,
    )


def _require_read(config: Config) -> None:
    """Raises ConfigError for a flag of the command line that is another method's."""
    own = LEARNERS[config.method]
    sections = {section for learner in (*LEARNERS.values(), *STATE_LEARNERS.values()) for section in learner.sections}
    sections -= {"batch"}  # which the sampler reads for all of them
    for flag in config.flags:
        section = flag.partition(".")[0]
        if (section in sections and section not in own.sections) or {section, flag} & set(own.unread):
            readers = [name for name, learner in LEARNERS.items() if section in learner.sections]
            of = f", such as {readers[0]}" if readers and section not in own.sections else ""
            raise ConfigError(
                f"--{flag}: expected a setting that {config.method} reads, received one of other methods{of}; remove it"
            )


def reads(config: Config, section: str) -> bool:
    """Whether the configured method has use for a section of the configuration."""
    return section in LEARNERS[config.method].sections


def restore(variables: Mapping[str, Any], tensors: Mapping[str, np.ndarray], where: Path) -> None:
    """Assign a checkpoint's tensors to variables.

    Names, shapes and types must be exactly equal; all are checked before anything is assigned.

    Raises:
      CheckpointError: naming the first variable that differs.
    """
    different = sorted(set(variables) ^ set(tensors))
    if different:
        have = "has" if different[0] in tensors else "lacks"
        raise CheckpointError(
            f"{where}: {have} {different[0]} ({len(different)} such differences); it belongs to another model "
            "configuration"
        )
    for name, variable in variables.items():
        if tuple(variable.shape) != tensors[name].shape or variable.dtype.as_numpy_dtype != tensors[name].dtype:
            expected = f"{variable.dtype.name} {list(variable.shape)}"
            raise CheckpointError(
                f"{where}: {name}: expected {expected}, received {tensors[name].dtype} {list(tensors[name].shape)}"
            )
    for name, variable in variables.items():
        variable.assign(tensors[name])


def restore_world_model(learner: Learner, tensors: Mapping[str, np.ndarray], where: Path) -> None:
    """Assign only the world model, `model/...`, of another run's checkpoint. Optimisers and policy stay fresh.

    Raises:
      CheckpointError: when that world model has other variables.
    """
    own = {name: variable for name, variable in learner.variables().items() if name.startswith("model/")}
    restore(own, {name: tensor for name, tensor in tensors.items() if name.startswith("model/")}, where)


def environment_settings(
    config: Config,
    card: Mapping[str, Any] | None,
    overrides: Mapping[str, str] | None = None,
    *,
    image_size: int | None = None,
) -> dict[str, Any]:
    """Keyword arguments of `tasks.make` for the evaluation of a run.

    Background, colour, split and mask rule each come from the first source that names them: `overrides` (flags),
    `config.env`, the dataset card, `config.without_card`; likewise how the simulator draws, and the distractor. A
    user's task has a background only if a flag or the card names one.

    Args:
      card: the dataset card, or None.
      image_size: pixels of the data's images, which count unless `env.size` names another than the default.

    Returns:
      The settings. The four background keys are left out where no background is shown; a moving task whose background
      is switched off has `background` alone. The card's distractor goes with the background.

    Raises:
      ConfigError: when the data were collected with another image size, action repeat or camera, or when a flag asks
        for a background that the task cannot show.
    """
    settings = {key: config.env[key] for key in ("size", "action_repeat", "camera")}
    if image_size and settings["size"] == DEFAULT_SIZE:
        settings["size"] = image_size
    described = tasks.settings_of(card) if card and "environment" in card else {}  # converted data may not say
    options = {"options": described["options"]} if "options" in described else {}
    for key, value in settings.items():
        if key in described and described[key] != value:
            raise ConfigError(
                f"--env.{key}: expected {described[key]} as in the dataset card, received {value}; add --env.{key} "
                f"{described[key]}"
            )
    overrides = dict(overrides or {})
    seldom = {key: (overrides.pop(key, "card"), config.env[key]) for key in USUAL}
    shown = _background(config, described, overrides)
    if shown.get("background") == "none":
        described = {key: value for key, value in described.items() if key != "distractor"}
    for key, usual in USUAL.items():
        value = next((each for each in seldom[key] if each != "card"), described.get(key, usual))
        options |= {key: value} if value != usual else {}
    return settings | options | shown


def _background(config: Config, described: Mapping[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    """The part of `environment_settings` about the background."""
    moving = config.task.startswith(tasks.MOVING)
    if tasks.shows_no_background(config.task):
        for key, value in overrides.items():
            raise ConfigError(
                f"--{key}: expected no such flag, as {config.task} shows no background, received {value!r}; remove it"
            )
        return {}
    explicit = {key: value for key in CARD_KEYS if (value := overrides.get(key) or config.env[key]) != "card"}
    if "background" in explicit:
        explicit["background"] = absolute_source(explicit["background"])
    fallback = {**config.without_card, "background": config.without_card.background if moving else "none"}
    carded = {key: described[key] for key in CARD_KEYS if described.get("background", "none") != "none"}
    shown = fallback | carded | explicit
    if shown["background"] == "none":
        return {"background": "none"} if moving else {}
    # Show the data's clips in the data's order; another source has an order of its own.
    return shown | {"background_seed": described["background_seed"] if carded else 0}


def warn_of_other_versions(config: Config, card: Mapping[str, Any] | None) -> None:
    """Print a line when a run's task is played by another simulator, or version of it, than its dataset."""
    if line := tasks.other_versions(config.task, card or {}):
        print(f"warning: {line}: pixels, physics and terminations may differ, and with them the scores")


def episode_seeds(seed: int, count: int) -> list[int]:
    """Seeds of the evaluation episodes, equal for every method, run and step. A longer list extends a shorter one."""
    return [zlib.crc32(f"evaluation/{seed}/{index}".encode()) for index in range(count)]


def replayed(discarded: int) -> str:
    """Suffix for a mean of returns that says how many of its episodes replace failed ones; empty if none."""
    return f"; {discarded} attempts failed and were played again with another seed" if discarded else ""


def score_row(
    config: Config,
    settings: Mapping[str, Any],
    played: Played,
    *,
    phase: str,
    step: int,
    checkpoint: str | None,
    source: str,
) -> dict[str, Any]:
    """One line of scores.jsonl.

    Args:
      settings: the environment's.
      checkpoint: name of the directory that holds the policy; None where none was saved.
      source: `train` for a run's final evaluation, `evaluate` for evaluate.py.
    """
    return {
        "method": config.method,
        "task": config.task,
        "run_seed": config.seed,
        "phase": phase,
        "step": step,
        "checkpoint": checkpoint,
        "episode_seed": played.seed,
        "return": played.score,
        "length": len(played.episode.reward) - 1,
        "discarded": played.discarded,
        "clips": played.clips,
        "clip": played.clip,
        "source": source,
        "environment": dict(settings),
        "versions": tasks.environment_versions(config.task),
    }
