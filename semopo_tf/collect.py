"""Collect a dataset: play a behaviour policy and write one file per episode, with a card that says how they were made.

    python -m semopo_tf.collect --task dmcdrv_walker_walk --policy random --episodes 20 --background builtin:driving
    --out DIR

After a kill at any point, the same command collects what is missing and ends with the same files
(`run.collecting`).
"""

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from semopo_tf.config import DISTRACTORS, RENDERS, SHOWN, task_name
from semopo_tf.data.cards import CARD_NAME, read_card, return_statistics, write_card
from semopo_tf.envs import exbmdp, tasks
from semopo_tf.envs.rollout import (
    MOST_DECISIONS,
    require_few,
)
from semopo_tf.envs.videos import absolute_source
from semopo_tf.errors import (
    CommandParser,
    ConfigError,
    StorageError,
    run_command,
    user_path,
)
from semopo_tf.report import paper
from semopo_tf.run import snapshots
from semopo_tf.run.collecting import Job, Recipe, Written, episode_seed, existing_episodes, play_jobs, player
from semopo_tf.storage.files import locked, sha256

LOCK_NAME = ".collect.lock"
LEVELS = ("random", "medrep", "medium")
SETTINGS = (  # the flags that are keywords of tasks.make
    *("size", "action_repeat", "camera", "mask_rule", "render", "distractor", "options"),
    *("background", "background_color", "background_split", "background_seed"),
)
# Parts of a card's recipe that some recipes lack, such as how it is drawn, by the beginnings of their names.
OPTIONAL = ("environment.", "background.", "behaviour.greedy", "kept_returns")


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
    about_render = "fast: coarser shadows; plain: no shadows, no reflections, smooth edges; both take less time"
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
    if args.greedy and snapshots.read_name(args.policy, args.task).kind not in snapshots.TRAINED:
        raise ConfigError(
            f"--greedy: expected a behaviour of python -m semopo_tf.behave train, received {args.policy}, which does "
            "not explore; leave it out"
        )
    return args


def _add_behaviour_flags(parser: CommandParser) -> None:
    """Who plays, and which of the episodes are kept."""
    about_policy = (
        "random (an untrained network, another one for every episode), uniform (independent actions), "
        "constant (an extreme action held for an episode), "
        "snapshot:RUN@DECISIONS, export:DIR; exbmdp_* has random (held pushes), iid, medium, mixed, expert, networks; "
        "gym_CarRacing-* has driver"
    )
    parser.add_argument("--policy", help=f"{about_policy} (default: random)")
    about_greedy = "a trained behaviour plays without the noise with which it explored"
    parser.add_argument("--greedy", action="store_true", help=about_greedy)
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
    return f"replay:{run.logdir}@{end_of_replay(run, args.task, args.returns)}/{args.episodes}"


def end_of_replay(run: snapshots.Behaviours, task: str, returns: tuple[float, float] | None) -> int:
    """The last snapshot of a replay: that at which training has reached the paper's medium level, or the last of all
    where it has not or the paper has no such task; of these the last one that returns less in training than is kept.
    """
    end, band = run.decisions[-1], paper_band(task, "medium")
    if band:
        try:
            end = run.within(*band)
        except ConfigError as error:
            print(f"{error}; the replay ends with the last snapshot")
    trained = run.training_returns()
    kept = [each for each in run.until(end) if not returns or trained[each] <= returns[1]]
    return kept[-1] if kept else end


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
    recipe = Recipe(args.task, policy, tuple(settings.items()), args.returns, args.greedy)
    seeds = [episode_seed(args.seed, index) for index in range(args.episodes)]
    card = make_card(
        recipe, args.seed, args.level
    )  # before anything is written: a wrong setting leaves no directory behind
    out = _make_directory(args.out)
    with locked(out / LOCK_NAME, wait=False, what=f"the dataset {out}"):
        require_same_recipe(out, card)
        kept = existing_episodes(out, seeds, player(recipe).contract, banded=recipe.returns is not None)
        write_card(out, {"status": "incomplete", **card})
        most = args.max_decisions
        jobs = [Job(recipe, index, seed, str(out), most) for index, seed in enumerate(seeds) if index not in kept]
        if kept:
            print(f"{out}: {len(kept)} of {len(seeds)} episodes are there, collecting {len(jobs)}")
        with contextlib.closing(play_jobs(jobs, args.processes, first_alone=not kept)) as results:
            for written in _progress(results, len(jobs)):
                kept[written.number] = written
                require_few(
                    sum(episode.discarded > 0 for episode in kept.values()), len(seeds), "see the warnings above"
                )
        statistics = describe(out, [kept[index] for index in range(len(seeds))])
        write_card(out, {"status": "complete", **card, **statistics})
    player(recipe).close()
    player.cache_clear()
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


def as_in_card(policy: str, task: str, present: dict[str, Any] | None) -> str:
    """The behaviour's name; `random` of a card without a behaviour's facts meant uniform actions, and goes on so."""
    earlier = present is not None and present.get("policy") == "random" and "behaviour" not in present
    return "uniform" if policy == "random" and earlier and not task.startswith(exbmdp.PREFIX) else policy


def make_card(recipe: Recipe, seed: int, level: str | None = None) -> dict[str, Any]:
    """The part of `dataset.json` that decides the episodes. Builds the environment, which refuses wrong settings."""
    contract = player(recipe).contract
    background = tasks.background_of(contract.environment)
    for name, reason in background.skipped if background else ():
        print(f"semopo_tf: warning: background {name} is skipped: {reason}", file=sys.stderr)
    identity: dict[str, Any] = {"task": recipe.task, "policy": recipe.policy.partition(":")[0], "seed": seed}
    if known := snapshots.facts(recipe.policy, recipe.task, greedy=recipe.greedy):
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


def _progress(results: Iterator[Written], total: int) -> Iterator[Written]:
    """Pass the results on while showing them: a bar on a terminal, lines elsewhere."""
    terminal = sys.stderr.isatty()
    for done, written in enumerate(tqdm(results, total=total, unit="episode", disable=not terminal), 1):
        if not terminal:
            print(f"{done}/{total} {written.file} return {written.score:.2f}", flush=True)
        yield written


def describe(out: Path, episodes: list[Written]) -> dict[str, Any]:
    """Statistics and file list of the card."""
    rejected = sum(episode.rejected for episode in episodes)
    return {
        "episodes": len(episodes),
        "records": sum(episode.records for episode in episodes),
        "discarded": sum(episode.discarded for episode in episodes),
        **({"rejected": rejected} if rejected else {}),
        "returns": return_statistics([episode.score for episode in episodes]),
        "files": [
            {"file": episode.file, "seed": episode.seed, "return": episode.score, "sha256": sha256(out / episode.file)}
            for episode in episodes
        ],
    }


if __name__ == "__main__":
    run_command(main)
