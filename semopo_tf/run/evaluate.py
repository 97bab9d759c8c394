"""Evaluation: the one way in which a policy is played on a list of episode seeds, by training, by evaluate.py and in
notebooks.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.envs import tasks
from semopo_tf.envs.rollout import Discarded, play, retry_seed
from semopo_tf.types import Environment, Episode, Policy


class Played(NamedTuple):
    """One evaluation episode."""

    seed: int  # of the list that was asked for; `rollout.retry_seed` has the one that was played
    episode: Episode
    discarded: int  # attempts before it that its environment spoiled
    clips: list[str]  # background clips that the environment shows, in order
    clip: str | None  # the one on show at the first record

    @property
    def score(self) -> float:
        """Undiscounted sum of rewards, accumulated in float64."""
        return float(self.episode.reward.sum(dtype=np.float64))


def make_environment(task: str, settings: Mapping[str, Any]) -> Environment:
    """`tasks.make`, which here gives a moving task without its background as the plain task: the same physics in front
    of the simulator's own sky.
    """
    plain = task.startswith(tasks.MOVING) and settings.get("background") == "none"
    return tasks.make(tasks.PLAIN + task.removeprefix(tasks.MOVING) if plain else task, **settings)


def evaluate(
    policy: Policy, task: str, settings: Mapping[str, Any], seeds: Sequence[int], environments: int = 1
) -> Iterator[Played]:
    """Play one episode per seed and yield them in the order of `seeds`.

    Args:
      settings: keywords of `tasks.make`.
      environments: played side by side, with one call of the policy for all of them; changes no episode.

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
            again = sum(entry.seed == seed for entry in discarded)
            clip = background.clip(background.first_frame(retry_seed(seed, again))) if background else None
            yield Played(seed, episode, again, clips, clip)
