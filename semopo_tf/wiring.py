"""From a configuration to the parts: the agent with its variables, the environment's settings, the evaluation seeds."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from semopo_tf import agent as agents
from semopo_tf import checkpoints, envs
from semopo_tf.config import Config
from semopo_tf.engine import OFF, Jit
from semopo_tf.episodes import Dataset, held_out
from semopo_tf.errors import CheckpointError, ConfigError
from semopo_tf.sampler import Pool, Sampler
from semopo_tf.types import Episode

AGENT_SECTIONS = (
    "steps",
    "model",
    "encoder",
    "decoder",
    "rssm",
    "reward_head",
    "kl",
    "model_opt",
    "penalty",
    "imagination",
    "actor",
    "critic",
    "actor_critic",
    "actor_opt",
    "critic_opt",
    "precision",
    "remat",
)
PHASES = checkpoints.PHASES
CARD_KEYS = ("background", "background_color", "background_split", "mask_rule")


def make_agent(config: Config, *, image_size: int, action_size: int, jit: Jit = OFF) -> agents.Agent:
    """The agent of a configuration, freshly initialised from its seed.

    Raises:
      ConfigError: when the sizes do not fit the image.
    """
    try:
        sections = {key: config[key] for key in AGENT_SECTIONS}
        return agents.build(image_size=image_size, action_size=action_size, seed=config.seed, jit=jit, **sections)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def make_sampler(config: Config, dataset: Dataset, *, sampling: str = "", images_on_device: bool = True) -> Sampler:
    """The sampler of a run on its dataset.

    Args:
      sampling: `conservative` or `uniform` in place of the configured rule.

    Raises:
      DataError: when no episode is left to train on.
    """
    return Sampler(
        dataset,
        ~held_out(dataset.names, config.valid_fraction, config.seed),
        sampling=sampling or config.sampling,
        pool=Pool(**config.pool),
        policy_starts=config.policy_starts,
        total_steps=config.steps.model,
        images_on_device=images_on_device,
    )


def restore(variables: Mapping[str, Any], tensors: Mapping[str, np.ndarray], where: Path) -> None:
    """Put a checkpoint's tensors into variables: exactly these names, exactly these shapes, checked before anything is assigned.

    Raises:
      CheckpointError: naming the first variable that differs.
    """
    different = sorted(set(variables) ^ set(tensors))
    if different:
        have = "has" if different[0] in tensors else "lacks"
        raise CheckpointError(f"{where}: {have} {different[0]} ({len(different)} such differences); it belongs to another model configuration")
    for name, variable in variables.items():
        if tuple(variable.shape) != tensors[name].shape or variable.dtype.as_numpy_dtype != tensors[name].dtype:
            expected = f"{variable.dtype.name} {list(variable.shape)}"
            raise CheckpointError(f"{where}: {name}: expected {expected}, received {tensors[name].dtype} {list(tensors[name].shape)}")
    for name, variable in variables.items():
        variable.assign(tensors[name])


def restore_world_model(agent: agents.Agent, tensors: Mapping[str, np.ndarray], where: Path) -> None:
    """Put only the world model of another run's checkpoint into the agent, and leave its optimisers and policy fresh.

    Raises:
      CheckpointError: when that world model has other variables.
    """
    own = {name: variable for name, variable in agent.variables().items() if name.startswith("model/")}
    restore(own, {name: tensor for name, tensor in tensors.items() if name.startswith("model/")}, where)


def environment_settings(config: Config, card: Mapping[str, Any] | None, overrides: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Keywords of `envs.make` for the evaluation of a run.

    Each of background, colour, split and mask rule comes from the first that names it: `overrides` (flags), `config.env`, the dataset
    card, `config.without_card`. A task without distractors has no background.

    Args:
      card: the dataset card, or None.

    Raises:
      ConfigError: when the data were collected with another image size, action repeat or camera.
    """
    settings = {key: config.env[key] for key in ("size", "action_repeat", "camera")}
    described = envs.settings_of(card) if card and "environment" in card else {}  # a converted dataset does not say
    options = {key: described[key] for key in ("options",) if key in described}
    for key, value in settings.items():
        if key in described and described[key] != value:
            raise ConfigError(f"--env.{key}: expected {described[key]} as in the dataset card, received {value}; add --env.{key} {described[key]}")
    if not config.task.startswith(envs.MOVING):
        return settings | options
    if described.get("background") == "none":
        described = {}
    for key in CARD_KEYS:
        chosen = (overrides or {}).get(key) or config.env[key]
        settings[key] = chosen if chosen != "card" else described.get(key, config.without_card[key])
    # The clips of the data come in the data's order; another source has an order of its own.
    return settings | {"background_seed": described.get("background_seed", 0)}


def episode_seeds(seed: int, count: int) -> list[int]:
    """The fixed list of evaluation episodes, the same for every method, run and step. A longer list begins with the shorter one."""
    return [zlib.crc32(f"evaluation/{seed}/{index}".encode()) for index in range(count)]


def episode_return(episode: Episode) -> float:
    """Undiscounted sum of rewards, accumulated in float64."""
    return float(episode.reward.sum(dtype=np.float64))


def replayed(discarded: int) -> str:
    """What to add to a mean of returns, so that nobody takes it for one over the episodes that were asked for."""
    return f"; {discarded} attempts failed and were played again with another seed" if discarded else ""


def score_row(
    config: Config, settings: Mapping[str, Any], *, phase: str, step: int, seed: int, episode: Episode, discarded: int, source: str
) -> dict[str, Any]:
    """One line of scores.jsonl.

    Args:
      settings: of the environment that was played in.
      seed: of the fixed list; `rollout.retry_seed` has the one that was played after `discarded` attempts.
      source: `train` for the final evaluation of a run, `evaluate` for evaluate.py.
    """
    return {
        "method": config.method,
        "task": config.task,
        "run_seed": config.seed,
        "phase": phase,
        "step": step,
        "episode_seed": seed,
        "return": episode_return(episode),
        "length": len(episode.reward) - 1,
        "discarded": discarded,
        "source": source,
        "environment": dict(settings),
        "versions": envs.environment_versions(),
    }
