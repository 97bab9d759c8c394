"""Evaluation of a policy on a list of episode seeds. Training, evaluate.py and notebooks all go through `evaluate`."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.envs import tasks
from semopo_tf.envs.rollout import Discarded, play, retry_seed
from semopo_tf.types import Environment, Episode, Policy


class Played(NamedTuple):
    """One evaluation episode."""

    seed: int  # from the evaluation list; after failed attempts `rollout.retry_seed` gives the one that was played
    episode: Episode
    discarded: int  # earlier attempts that the environment failed
    clips: list[str]  # background clips of the environment, in order
    clip: str | None  # the clip at the first record

    @property
    def score(self) -> float:
        """Undiscounted sum of rewards, accumulated in float64."""
        return float(self.episode.reward.sum(dtype=np.float64))


def make_environment(task: str, settings: Mapping[str, Any]) -> Environment:
    """`tasks.make`, but a moving task without its background becomes the plain task: the same physics, the simulator's
    own sky.
    """
    plain = task.startswith(tasks.MOVING) and settings.get("background") == "none"
    return tasks.make(tasks.PLAIN + task.removeprefix(tasks.MOVING) if plain else task, **settings)


def evaluate(
    policy: Policy, task: str, settings: Mapping[str, Any], seeds: Sequence[int], environments: int = 1
) -> Iterator[Played]:
    """Play one episode per seed and yield them in the order of `seeds`.

    Args:
      settings: keyword arguments of `tasks.make`.
      environments: number played side by side, in one call of the policy; changes no episode.

    Raises:
      ConfigError, DataError, NumericalError, SimulatorError: as `tasks.make` and `rollout.play`.
    """
    if not seeds:
        return
    discarded: list[Discarded] = []
    with contextlib.ExitStack() as opened:
        made = [
            opened.enter_context(contextlib.closing(make_environment(task, settings)))
            for _ in range(min(environments, len(seeds)))
        ]
        background = tasks.background_of(made[0])
        clips = background.clips if background else []
        for seed, episode in zip(seeds, play(made, policy, seeds, discarded), strict=True):
            attempts = sum(entry.seed == seed for entry in discarded)
            clip = background.clip(background.first_frame(retry_seed(seed, attempts))) if background else None
            yield Played(seed, episode, attempts, clips, clip)
