"""Plays and writes the episodes of a collection, in this process or in several.

Episode i depends on (recipe, seed, i) alone, and appears by rename. An episode that its environment spoils is played
with the next seed (`rollout.retry_seed`); so is one whose return is outside of the recipe's band (`candidate_seed`).
Every episode is checked as its readers will check it before the next one is played.
"""

import contextlib
import functools
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.data.episodes import MAX_EPISODE_BYTES, read_episode, require_readable, write_episode
from semopo_tf.data.validation import never_changes, validate_episode
from semopo_tf.envs import tasks
from semopo_tf.envs.contract import Contract, ContractError, require_members, say
from semopo_tf.envs.rollout import (
    ATTEMPTS,
    MOST_DECISIONS,
    Discarded,
    EndlessEpisode,
    derived_seed,
    play,
    retry_seed,
)
from semopo_tf.envs.states import make_states
from semopo_tf.errors import ConfigError, DataError, SimulatorError
from semopo_tf.run import snapshots
from semopo_tf.types import Episode, Policy

CANDIDATES = 100  # episodes that are played for one whose return lies in the band
BAND_STREAM = 0xBA2D
RESTARTS = 3  # of the worker processes in one collection
FILE_NAME = re.compile(r"(\d{6})-([0-9a-f]{8})-\d+\.npz")


class Recipe(NamedTuple):
    """What decides the bytes of an episode, apart from its seed. Sent to workers, so plain values only."""

    task: str
    policy: str  # a name of `run.snapshots`
    settings: tuple[tuple[str, Any], ...]  # the keywords of tasks.make; `options` as pairs too
    returns: tuple[float, float] | None = None  # which episodes are kept
    greedy: bool = False  # a trained behaviour without its noise


class Job(NamedTuple):
    """One episode to play."""

    recipe: Recipe
    number: int
    seed: int
    out: str
    most: int = MOST_DECISIONS  # decisions of the episode


class Written(NamedTuple):
    """One episode on disk."""

    number: int
    file: str
    seed: int  # that was played
    score: float  # sum of the stored rewards in float64
    records: int
    discarded: int = 0  # attempts before it that its environment spoiled
    rejected: int = 0  # episodes before it whose return was outside of the band


def play_jobs(jobs: list[Job], processes: int, first_alone: bool = False) -> Generator[Written, None, None]:
    """Play the jobs, in this process or in several spawned ones, and yield each as it is finished.

    A worker process that dies costs the episodes in work, which new workers play again with the same seeds.

    Args:
      first_alone: play, check and write one episode before any other is begun.

    Raises:
      SimulatorError: when workers die more than `RESTARTS` times. Errors inside a worker come through as they are.
    """
    if processes == 1 or len(jobs) <= 1:
        yield from map(collect_episode, jobs)
        return
    missing = {job.number: job for job in jobs}
    for restarts in range(RESTARTS + 1):
        try:
            with contextlib.closing(_in_workers(list(missing.values()), processes, first_alone)) as results:
                for written in results:
                    first_alone = False
                    del missing[written.number]
                    yield written
            return
        except BrokenProcessPool as error:
            if restarts == RESTARTS:
                raise SimulatorError(
                    f"collecting processes died {RESTARTS + 1} times (out of memory, a crash of the renderer, or a "
                    "script without `if __name__ == '__main__'`); try --processes 1, or run the same command again to "
                    "continue"
                ) from error
            print(
                f"semopo_tf: warning: a collecting process died, starting again with {len(missing)} episodes left",
                file=sys.stderr,
                flush=True,
            )
            _remove_leftovers(Path(jobs[0].out))


def _in_workers(jobs: list[Job], processes: int, first_alone: bool) -> Generator[Written, None, None]:
    """Raises BrokenProcessPool when one of the processes dies."""
    # Spawned, not forked: a forked OpenGL context or thread pool does not work in the child.
    context = multiprocessing.get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        min(processes, len(jobs)), mp_context=context, initializer=_start_worker, initargs=(watched,)
    )
    try:
        waves = [jobs[:1], jobs[1:]] if first_alone else [jobs]
        for wave in waves:
            for future in as_completed([pool.submit(collect_episode, job) for job in wave]):
                yield future.result()
    finally:
        held.close()
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(watched: Connection) -> None:
    """Leave interrupts to the parent, and end at once when it closes its end of the pipe or is killed.

    Without this, Ctrl-C would wait for whole episodes, and a worker whose parent was killed would wait for jobs
    forever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(watched,), daemon=True).start()


def _end_with_parent(watched: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        watched.recv()
    os._exit(1)


class Player:
    """This process's environment and behaviour, and a world without pictures where the behaviour needs none."""

    def __init__(self, recipe: Recipe):
        """Raises as `tasks.make` and `snapshots.make`."""
        environment = tasks.make(recipe.task, **dict(recipe.settings))
        require_members(environment, "close")
        self.contract, self._recipe = Contract(environment), recipe
        self.policy = snapshots.make(recipe.policy, recipe.task, environment, greedy=recipe.greedy)
        self._blind: tuple[Contract, Callable[[int], Policy]] | None = None
        if recipe.returns and tasks.is_of_suite(recipe.task) and not snapshots.sees_images(recipe.policy, recipe.task):
            blind = make_states(recipe.task, dict(recipe.settings)["action_repeat"])
            policy = snapshots.make(recipe.policy, recipe.task, blind.inner, greedy=recipe.greedy)
            self._blind = Contract(blind), policy

    def candidate(self, job: Job, most: int) -> int:
        """How many episodes of the job's list come before the first whose return lies in the band.

        Played without pictures, which takes a twentieth of the time; the physics are the same.

        Raises:
          ConfigError: when none of `CANDIDATES` does.
        """
        if job.recipe.returns is None:
            return 0
        (low, high), seen = job.recipe.returns, list[float]()
        contract, policy = self._blind or (self.contract, self.policy)
        for place in range(CANDIDATES):
            (episode,) = play([contract], policy(job.number), [candidate_seed(job.seed, place)], most=most)
            seen.append(_score(episode.reward))
            if low <= seen[-1] <= high:
                return place
        raise ConfigError(
            f"--returns {low:g}:{high:g}: expected a return in it within {CANDIDATES} episodes, received "
            f"{min(seen):.1f} to {max(seen):.1f}; choose another band or behaviour"
        )

    def close(self) -> None:
        """Close both worlds."""
        self.contract.close()
        if self._blind:
            self._blind[0].close()


@functools.lru_cache(maxsize=1)
def player(recipe: Recipe) -> Player:
    """Built once for all episodes of this process."""
    return Player(recipe)


def warm_up(recipe: Recipe) -> None:
    """Build this process's environment and see a first image, which takes longer than those after it."""
    player(recipe).contract.reset(0)


def collect_episode(job: Job) -> Written:
    """Play one episode, check it, and write it as `<index>-<seed>-<decisions>.npz`.

    Raises:
      ContractError: when it does not end, or training would refuse it.
    """
    own = player(job.recipe)
    contract = own.contract
    discarded: list[Discarded] = []
    fits = decisions_that_fit(contract)
    try:
        rejected = own.candidate(job, min(job.most, fits))
        seed = candidate_seed(job.seed, rejected)
        (episode,) = play([contract], own.policy(job.number), [seed], discarded, most=min(job.most, fits))
    except EndlessEpisode as error:
        more = "raise --max_decisions" if job.most < fits else f"shrink the images: a file holds {fits} decisions"
        raise ContractError(f"{error}, or {more}") from error
    seed = retry_seed(seed, len(discarded))
    path = Path(job.out) / f"{job.number:06d}-{seed:08x}-{len(episode.image) - 1}.npz"
    _write_checked(path, episode, f"{contract.name}.step")
    return _written(job.number, seed, path, episode.reward, len(discarded), rejected)


def decisions_that_fit(contract: Contract) -> int:
    """Decisions of an episode that its file may hold (`episodes.MAX_EPISODE_BYTES`)."""
    flags_and_numbers = 11 + 4 * contract.action_size  # bytes of a record
    return MAX_EPISODE_BYTES // (math.prod(contract.image_shape) + flags_and_numbers) - 2


def _write_checked(path: Path, episode: Episode, member: str) -> None:
    """Write an episode that all its readers accept.

    Args:
      member: of the environment, to be corrected when they do not.
    """
    try:
        validate_episode(episode.arrays(), member)
        write_episode(path, episode)
        require_readable(path)
    except DataError as error:
        line = str(error)
        raise ContractError(line if line.startswith(member) else f"{member}: {line}") from error
    if never_changes(episode.image):
        say(
            f"{member}: all {len(episode.image)} images of {path.name} are equal; expected the world after each action "
            "(a renderer that was not updated shows this)",
            about=f"{member} never changes",
        )


def existing_episodes(out: Path, seeds: list[int], contract: Contract, *, banded: bool = False) -> dict[int, Written]:
    """The whole episodes in `out`, by index. Leftovers of a killed process and damaged files are removed.

    Args:
      banded: whether episodes were chosen by their return.

    Raises:
      ConfigError: when a file belongs to no episode of this collection, or its environment had other sizes.
    """
    _remove_leftovers(out)
    kept: dict[int, Written] = {}
    for path in sorted(out.glob("*.npz")):
        match = FILE_NAME.fullmatch(path.name)
        index, seed = (int(match[1]), int(match[2], 16)) if match else (-1, -1)
        if index >= len(seeds):
            raise ConfigError(
                f"{out}: holds episode {index}, but --episodes asks for {len(seeds)}; raise --episodes or choose "
                "another --out"
            )
        tried = [candidate_seed(seeds[index], place) for place in range(CANDIDATES if banded else 1)]
        possible = [retry_seed(each, attempt) for each in tried for attempt in range(ATTEMPTS)]
        if seed not in possible or index in kept:
            raise ConfigError(f"{path}: belongs to no episode of this collection; move it away or choose another --out")
        try:
            episode = read_episode(path)
        except DataError as error:
            print(f"semopo_tf: warning: {error}; collecting it again", file=sys.stderr)
            path.unlink()
            continue
        here, now = (episode.image.shape[1:], episode.action.shape[1]), (contract.image_shape, contract.action_size)
        if here != now:
            raise ConfigError(
                f"{path}: expected images and actions of {now} as {contract.name} has now, received {here}; choose "
                "another --out"
            )
        rejected, discarded = divmod(possible.index(seed), ATTEMPTS)
        kept[index] = _written(index, seed, path, episode.reward, discarded, rejected)
    return kept


def _remove_leftovers(out: Path) -> None:
    """Remove what a killed process was writing."""
    for leftover in out.glob(".tmp-*"):
        leftover.unlink()


def _written(index: int, seed: int, path: Path, reward: np.ndarray, discarded: int, rejected: int) -> Written:
    return Written(index, path.name, seed, _score(reward), len(reward), discarded, rejected)


def _score(reward: np.ndarray) -> float:
    return float(reward.sum(dtype=np.float64))


def episode_seed(seed: int, index: int) -> int:
    """32 bits that decide episode `index` of the collection `seed`."""
    return derived_seed(seed, index)


def candidate_seed(seed: int, place: int) -> int:
    """The seed of the episode that is tried after `place` others had returns outside of the band."""
    return derived_seed(seed, BAND_STREAM, place) if place else seed
