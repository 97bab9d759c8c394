"""Collect a dataset: play a behaviour policy and write one file per episode, with a card that says how they were made.

    python -m semopo_tf.collect --task dmcdrv_walker_walk --policy random --episodes 20 --background builtin:driving
    --out DIR

Episode i depends on (recipe, seed, i) alone, and appears by rename. After a kill at any point, the same command
collects what is missing and ends with the same files. An episode that its environment spoils is played with the next
seed (`rollout.retry_seed`); so is one whose return is outside of `--returns`. Every episode is checked as its readers
will check it before the next one is played.
"""

import argparse
import contextlib
import functools
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from semopo_tf.config import DISTRACTORS, RENDERS, SHOWN, task_name
from semopo_tf.data.cards import CARD_NAME, read_card, write_card
from semopo_tf.data.episodes import MAX_EPISODE_BYTES, read_episode, require_readable, write_episode
from semopo_tf.data.validation import never_changes, validate_episode
from semopo_tf.envs import exbmdp, tasks
from semopo_tf.envs.contract import Contract, ContractError, require_members, say
from semopo_tf.envs.rollout import (
    ATTEMPTS,
    MOST_DECISIONS,
    Discarded,
    EndlessEpisode,
    derived_seed,
    play,
    require_few,
    retry_seed,
)
from semopo_tf.envs.states import make_states
from semopo_tf.envs.videos import absolute_source
from semopo_tf.errors import (
    CommandParser,
    ConfigError,
    DataError,
    SimulatorError,
    StorageError,
    run_command,
    user_path,
)
from semopo_tf.report import paper
from semopo_tf.run import snapshots
from semopo_tf.storage.files import locked, sha256
from semopo_tf.types import Episode, Policy

LOCK_NAME = ".collect.lock"
LEVELS = ("random", "medrep", "medium")
CANDIDATES = 100  # episodes that are played for one whose return lies in the band
BAND_STREAM = 0xBA2D
RESTARTS = 3  # of the worker processes in one collection
SETTINGS = (  # the flags that are keywords of tasks.make
    *("size", "action_repeat", "camera", "mask_rule", "render", "distractor", "options"),
    *("background", "background_color", "background_split", "background_seed"),
)
# Parts of a card's recipe that some recipes lack, such as how it is drawn, by the beginnings of their names.
OPTIONAL = ("environment.", "background.", "kept_returns")
FILE_NAME = re.compile(r"(\d{6})-([0-9a-f]{8})-\d+\.npz")


class Recipe(NamedTuple):
    """What decides the bytes of an episode, apart from its seed. Sent to workers, so plain values only."""

    task: str
    policy: str  # a name of `run.snapshots`
    settings: tuple[tuple[str, Any], ...]  # the keywords of tasks.make; `options` as pairs too
    returns: tuple[float, float] | None = None  # which episodes are kept


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


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line.

    Raises:
      ConfigError: for an unknown flag or a wrong value.
    """
    parser = CommandParser(prog="python -m semopo_tf.collect", description="Collect a dataset of episodes.")
    parser.add_argument("--task", required=True, help="e.g. dmcdrv_walker_walk, dmc_cheetah_run or a registered name")
    about_out = "dataset directory, made if missing; the same command continues in it"
    parser.add_argument("--out", required=True, type=Path, help=about_out)
    _add_behaviour_flags(parser)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--processes", type=int, default=1, help="episodes played at the same time; does not change the result"
    )
    parser.add_argument(
        "--max_decisions",
        type=int,
        default=MOST_DECISIONS,
        help="an episode that has not ended after so many ends the command; does not change the result",
    )
    parser.add_argument("--size", type=int, help="height and width of the images in pixels (default: 64, exbmdp_* 32)")
    parser.add_argument("--action_repeat", type=int, help="simulator steps per decision (default: 2, exbmdp_* 1)")
    parser.add_argument("--camera", type=int, default=-1, help="index, or -1 for the task's usual camera")
    parser.add_argument("--background", default="none", help="folder of videos, builtin:driving or none")
    about = {"mask_rule": "which pixels the background replaces"}
    for name, choices in SHOWN.items():
        parser.add_argument(f"--{name}", default=choices[0], choices=choices, help=about.get(name))
    about_render = "fast: coarser shadows, two thirds of the time; of a thousand pixels two differ"
    parser.add_argument("--render", default=RENDERS[0], choices=RENDERS, help=about_render)
    about_distractor = "agent: a second body of the task, which plays actions of its own (walker and cheetah)"
    parser.add_argument("--distractor", default=DISTRACTORS[0], choices=DISTRACTORS, help=about_distractor)
    parser.add_argument("--background_seed", type=int, default=0, help="orders the clips")
    parser.add_argument(
        "--options",
        nargs="*",
        default=[],
        metavar="NAME=NUMBER",
        help="settings of the task itself, e.g. exo_dims=20 contrast=0.3",
    )
    args = parser.parse(argv, episodes=1, processes=1, max_decisions=1, seed=0, background_seed=0)
    args.options = parse_options(args.options)
    for name, value in tasks.usual_settings(args.task).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.returns = parse_returns(args)
    args.policy = choose_policy(args)
    return args


def _add_behaviour_flags(parser: CommandParser) -> None:
    """Who plays, and which of the episodes are kept."""
    about_policy = (
        "random (an untrained network, another one for every episode), uniform (independent actions), "
        "snapshot:RUN@DECISIONS, export:DIR; exbmdp_* has random (held pushes), iid, medium, mixed, expert, networks; "
        "gym_CarRacing-* has driver"
    )
    parser.add_argument("--policy", help=f"{about_policy} (default: random)")
    about_level = "of the paper's data, in place of --policy; medrep and medium need --behaviour"
    parser.add_argument("--level", choices=LEVELS, help=about_level)
    parser.add_argument("--behaviour", metavar="RUN", type=Path, help="logdir of python -m semopo_tf.behave train")
    about_returns = "keep episodes of these returns only (default with --level: those of the paper's Table 3), or all"
    parser.add_argument("--returns", metavar="LOW:HIGH", help=about_returns)


def parse_returns(args: argparse.Namespace) -> tuple[float, float] | None:
    """The band of `--returns`, or of the level in the paper's Table 3. Raises ConfigError for words that are none."""
    if args.returns is None:
        return paper_band(args.task, args.level) if args.level else None
    if args.returns == "all":
        return None
    low, _, high = args.returns.partition(":")
    try:
        band = float(low), float(high)
    except ValueError:
        band = math.nan, math.nan
    if not band[0] <= band[1]:
        raise ConfigError(f"--returns: expected LOW:HIGH, such as 401.5:598, or all, received {args.returns!r}")
    return band


def paper_band(task: str, level: str) -> tuple[float, float] | None:
    """The least and the largest return of a level in the paper's Table 3; None for a task that it does not have."""
    printed = paper.table(3).get(f"{task_name(task)} {level}")
    return (printed["min"], printed["max"]) if printed else None


def choose_policy(args: argparse.Namespace) -> str:
    """The name of the behaviour that the flags ask for.

    Raises:
      ConfigError: for flags that do not fit together, or a behaviour that does not fit the task.
    """
    if args.policy or args.level in (None, "random"):
        if args.behaviour:
            raise ConfigError(
                "--behaviour: expected --level medrep or medium beside it, and no --policy, received others; name one "
                "of them"
            )
        name = args.policy or ("networks" if args.level and args.task.startswith(exbmdp.PREFIX) else "random")
        snapshots.read_name(name, args.task)
        return name
    if not args.behaviour:
        raise ConfigError(
            f"--level {args.level}: expected --behaviour with the logdir of python -m semopo_tf.behave train, or "
            "--policy, received none"
        )
    run = snapshots.Behaviours(user_path(args.behaviour))
    run.require_task(args.task)
    if args.level == "medium" and args.returns is None:
        raise ConfigError(
            f"--level medium: expected --returns LOW:HIGH, as the paper has no {args.task}, received none; add it"
        )
    if args.level == "medium":
        return f"snapshot:{run.logdir}@{run.within(*args.returns)}"
    return f"replay:{run.logdir}@{until_medium(run, args.task)}/{args.episodes}"


def until_medium(run: snapshots.Behaviours, task: str) -> int:
    """The snapshot at which a behaviour's training has reached the paper's medium level; the last one where it has not,
    or the paper has no such task.
    """
    band = paper_band(task, "medium")
    if not band:
        return run.decisions[-1]
    try:
        return run.within(*band)
    except ConfigError as error:
        print(f"{error}; the replay ends with the last snapshot")
        return run.decisions[-1]


def parse_options(words: list[str]) -> tuple[tuple[str, float], ...]:
    """`name=number` words as sorted pairs. Raises ConfigError naming a word that is none."""
    pairs = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            pairs[name] = float(value)
        except ValueError:
            raise ConfigError(f"--options: expected name=number, received {word!r}") from None
    return tuple(sorted(pairs.items()))


def main(argv: list[str]) -> int:
    """Collect what is missing of a dataset, then write its card.

    Raises:
      SemopoError: any of `errors`, each with its exit code.
    """
    args = parse(argv)
    settings = {name: getattr(args, name) for name in SETTINGS} | {"background": absolute_source(args.background)}
    policy = as_in_card(args.policy, args.task, read_card(args.out) if args.out.is_dir() else None)
    recipe = Recipe(args.task, policy, tuple(settings.items()), args.returns)
    seeds = [episode_seed(args.seed, index) for index in range(args.episodes)]
    card = make_card(
        recipe, args.seed, args.level
    )  # before anything is written: a wrong setting leaves no directory behind
    out = _make_directory(args.out)
    with locked(out / LOCK_NAME, wait=False, what=f"the dataset {out}"):
        require_same_recipe(out, card)
        kept = existing_episodes(out, seeds, _player(recipe).contract, banded=recipe.returns is not None)
        write_card(out, {"status": "incomplete", **card})
        most = args.max_decisions
        jobs = [Job(recipe, index, seed, str(out), most) for index, seed in enumerate(seeds) if index not in kept]
        if kept:
            print(f"{out}: {len(kept)} of {len(seeds)} episodes are there, collecting {len(jobs)}")
        with contextlib.closing(collect(jobs, args.processes, first_alone=not kept)) as results:
            for written in _progress(results, len(jobs)):
                kept[written.number] = written
                require_few(
                    sum(episode.discarded > 0 for episode in kept.values()), len(seeds), "see the warnings above"
                )
        statistics = describe(out, [kept[index] for index in range(len(seeds))])
        write_card(out, {"status": "complete", **card, **statistics})
    _player(recipe).close()
    _player.cache_clear()
    returns, discarded = statistics["returns"], statistics["discarded"]
    again = f", {discarded} attempts discarded and played again with another seed" if discarded else ""
    if recipe.returns:
        low, high = recipe.returns
        again += f", {statistics.get('rejected', 0)} episodes with returns outside of {low:g} to {high:g} left out"
    print(
        f"{out}: {args.episodes} episodes, {statistics['records']} records, return {returns['mean']:.2f} +- "
        f"{returns['std']:.2f}{again}"
    )
    return 0


def _make_directory(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / LOCK_NAME).touch()
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    return out


def episode_seed(seed: int, index: int) -> int:
    """32 bits that decide episode `index` of the collection `seed`."""
    return derived_seed(seed, index)


def as_in_card(policy: str, task: str, present: dict[str, Any] | None) -> str:
    """The behaviour's name; `random` of a card without a behaviour's facts meant uniform actions, and goes on so."""
    earlier = present is not None and present.get("policy") == "random" and "behaviour" not in present
    return "uniform" if policy == "random" and earlier and not task.startswith(exbmdp.PREFIX) else policy


def make_card(recipe: Recipe, seed: int, level: str | None = None) -> dict[str, Any]:
    """The part of `dataset.json` that decides the episodes. Builds the environment, which refuses wrong settings."""
    contract = _player(recipe).contract
    background = tasks.background_of(contract.environment)
    for name, reason in background.skipped if background else ():
        print(f"semopo_tf: warning: background {name} is skipped: {reason}", file=sys.stderr)
    identity: dict[str, Any] = {"task": recipe.task, "policy": recipe.policy.partition(":")[0], "seed": seed}
    if known := snapshots.facts(recipe.policy, recipe.task):
        identity["behaviour"] = known
    identity |= {"level": level} if level else {}
    identity |= {"kept_returns": list(recipe.returns)} if recipe.returns else {}
    seen = dict(recipe.settings) | {"size": contract.image_shape[0]}  # an environment may have a size of its own
    facts = tasks.card_of(seen, background.clips if background else [])
    return identity | facts | {"versions": tasks.environment_versions(recipe.task)}


def require_same_recipe(out: Path, card: dict[str, Any]) -> None:
    """Refuse a directory whose episodes were made, or would have to be made, in another way.

    Raises:
      ConfigError: with the differing keys.
    """
    present = read_card(out)
    if present is not None and as_in_card("random", card["task"], present) == "uniform":
        present = present | {"policy": "uniform"}
    if present is None:
        strangers = sorted(path.name for path in out.glob("*.npz"))
        if strangers:
            raise ConfigError(
                f"{out}: expected an empty directory or one with {CARD_NAME}, received {len(strangers)} npz files; "
                "choose another --out"
            )
        return
    here, wanted = _flat(present), _flat(card)
    recipe = [*wanted, *(key for key in here if key.startswith(OPTIONAL) and key not in wanted)]
    differing = [
        f"{key}: {here.get(key)!r} there, {wanted.get(key)!r} asked"
        for key in recipe
        if here.get(key) != wanted.get(key)
    ]
    if differing:
        raise ConfigError(
            f"{out}: holds a dataset made in another way ({'; '.join(differing)}); choose another --out or the same "
            "settings"
        )


def _flat(card: dict[str, Any]) -> dict[str, Any]:
    """Nested keys joined by dots."""
    nested = {
        f"{key}.{name}": value for key, part in card.items() if isinstance(part, dict) for name, value in part.items()
    }
    return {key: value for key, value in card.items() if not isinstance(value, dict)} | nested


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


def collect(jobs: list[Job], processes: int, first_alone: bool = False) -> Generator[Written, None, None]:
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
        self.policy = snapshots.make(recipe.policy, recipe.task, environment)
        self._blind: tuple[Contract, Callable[[int], Policy]] | None = None
        if recipe.returns and tasks.is_of_suite(recipe.task) and not snapshots.sees_images(recipe.policy, recipe.task):
            blind = make_states(recipe.task, dict(recipe.settings)["action_repeat"])
            self._blind = Contract(blind), snapshots.make(recipe.policy, recipe.task, blind.inner)

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
def _player(recipe: Recipe) -> Player:
    """Built once for all episodes of this process."""
    return Player(recipe)


def warm_up(recipe: Recipe) -> None:
    """Build this process's environment and see a first image, which takes longer than those after it."""
    _player(recipe).contract.reset(0)


def candidate_seed(seed: int, place: int) -> int:
    """The seed of the episode that is tried after `place` others had returns outside of the band."""
    return derived_seed(seed, BAND_STREAM, place) if place else seed


def collect_episode(job: Job) -> Written:
    """Play one episode, check it, and write it as `<index>-<seed>-<decisions>.npz`.

    Raises:
      ContractError: when it does not end, or training would refuse it.
    """
    player = _player(job.recipe)
    contract = player.contract
    discarded: list[Discarded] = []
    fits = decisions_that_fit(contract)
    try:
        rejected = player.candidate(job, min(job.most, fits))
        seed = candidate_seed(job.seed, rejected)
        (episode,) = play([contract], player.policy(job.number), [seed], discarded, most=min(job.most, fits))
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


def _progress(results: Iterator[Written], total: int) -> Iterator[Written]:
    """Pass the results on while showing them: a bar on a terminal, lines elsewhere."""
    terminal = sys.stderr.isatty()
    for done, written in enumerate(tqdm(results, total=total, unit="episode", disable=not terminal), 1):
        if not terminal:
            print(f"{done}/{total} {written.file} return {written.score:.2f}", flush=True)
        yield written


def describe(out: Path, episodes: list[Written]) -> dict[str, Any]:
    """Statistics and file list of the card; sums in float64, the standard deviation of the population."""
    scores = np.array([episode.score for episode in episodes], np.float64)
    low, median, high = np.percentile(scores, [25, 50, 75])
    quartiles = {"p25": low, "median": median, "p75": high}
    rejected = sum(episode.rejected for episode in episodes)
    values = {"mean": scores.mean(), "std": scores.std(), "min": scores.min(), **quartiles, "max": scores.max()}
    return {
        "episodes": len(episodes),
        "records": sum(episode.records for episode in episodes),
        "discarded": sum(episode.discarded for episode in episodes),
        **({"rejected": rejected} if rejected else {}),
        "returns": {name: float(value) for name, value in values.items()},
        "files": [
            {"file": episode.file, "seed": episode.seed, "return": episode.score, "sha256": sha256(out / episode.file)}
            for episode in episodes
        ],
    }


if __name__ == "__main__":
    run_command(main)
