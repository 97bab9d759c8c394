"""`evaluate.py`: play a run's policy in the simulator, append a row per episode to scores.jsonl, and show what its
model sees.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semopo_tf import config as configuration
from semopo_tf.data.cards import read_run_data
from semopo_tf.errors import CheckpointError, CommandParser, ConfigError, cut
from semopo_tf.report import paper
from semopo_tf.run.evaluate import evaluate
from semopo_tf.storage.records import Records
from semopo_tf.storage.video import video_grid, write_video
from semopo_tf.types import Episode, Learner, Policy

if TYPE_CHECKING:
    from semopo_tf.config import Config
    from semopo_tf.run.checkpoints import Checkpoint

VIDEO_EPISODES, VIDEO_LENGTH, VIDEO_CONTEXT = 3, 100, 5


def main(argv: list[str]) -> int:
    """Evaluate a run.

    Raises:
      SemopoError: any of `errors`, each with its exit code.
    """
    arguments = parse(argv)
    logdir = Path(arguments.logdir).expanduser()
    run = load_run(logdir, arguments.checkpoint)
    from semopo_tf.run import build  # after the arguments are known to be right: imports TensorFlow

    require_named(run.config.task, arguments.task)
    if not arguments.checkpoint and not (logdir / "DONE").exists():
        print(f"warning: {logdir}: the run is not complete; playing {run.checkpoint}")
    overrides = {key: value for key in build.CARD_KEYS if (value := getattr(arguments, key)) is not None}
    scores, rows, shown = Records(logdir / "scores.jsonl"), [], list[Episode]()
    for row, episode in scored(run, arguments.episodes, arguments.environments, overrides):
        scores.append(row)
        rows.append(row)
        shown += [episode] if arguments.video and len(shown) < VIDEO_EPISODES else []
        print(f"episode {row['episode_seed']}: return {row['return']:.1f}, {row['length']} decisions", flush=True)
    print(f"{run.checkpoint}: {summary(rows)}")
    for path in write_videos(logdir / "videos", run, shown) if shown else ():
        print(f"video: {path}")
    return 0


def scored(
    run: "Run", episodes: int | None = None, environments: int = 1, overrides: Mapping[str, str] | None = None
) -> Iterator[tuple[dict[str, Any], Episode]]:
    """Play a run's policy: a row as in scores.jsonl and the episode itself, for each of the fixed list of episode
    seeds.

    Args:
      episodes: how many of the list; `eval.final_episodes` by default.
      environments: played side by side; changes no result.
      overrides: background, background_color, background_split and mask_rule, where they shall differ from the run's.

    Raises:
      SemopoError: as `build.environment_settings` and `scoring.evaluate`.
    """
    from semopo_tf.run import build

    config = run.config
    count = episodes or config.eval.final_episodes
    if not count:
        raise ConfigError(
            "--episodes: expected at least 1, received none, and the run's eval.final_episodes is 0; add --episodes 10"
        )
    settings = build.environment_settings(config, run.card, overrides)
    for played in evaluate(
        run.policy, config.task, settings, build.episode_seeds(config.eval.seed, count), environments
    ):
        yield (
            build.score_row(
                config, settings, played, phase=run.phase, step=run.step, checkpoint=run.checkpoint, source="evaluate"
            ),
            played.episode,
        )


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean return of score rows of one task: raw, and normalised where the paper has constants for the task."""
    from semopo_tf.run import build

    returns = [row["return"] for row in rows]
    raw = (
        f"return {np.mean(returns):.1f} +- {np.std(returns):.1f} over {len(rows)} episodes (standard deviation of "
        "episodes)"
    )
    values = {rule: paper.normalised(rows[0]["task"], float(np.mean(returns)), rule) for rule in paper.RULES}
    told = [f"{value:.3f} ({rule})" for rule, value in values.items() if value is not None]
    normalised = f"; normalised {', '.join(told)}" if told else ""
    return raw + build.replayed(sum(row["discarded"] for row in rows)) + normalised


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags of evaluate.py."""
    parser = CommandParser(prog="evaluate.py", description=__doc__)
    parser.add_argument("--logdir", required=True, help="the run to evaluate")
    parser.add_argument(
        "--episodes", type=int, help="how many of the fixed list of episode seeds (default: eval.final_episodes)"
    )
    parser.add_argument("--environments", type=int, default=1, help="played side by side; changes no result")
    parser.add_argument("--checkpoint", help="name of a checkpoint directory of the run (default: the newest)")
    parser.add_argument("--task", help="the run's task, needed where it is <module>:<class>, whose module is imported")
    parser.add_argument("--video", action="store_true", help="write what was seen and how the model explains it")
    parser.add_argument(
        "--background", help="folder of videos, builtin:driving, or none (default: as in the dataset card)"
    )
    parser.add_argument("--background_color", choices=("grey", "rgb"))
    parser.add_argument("--background_split", choices=("train", "test"))
    parser.add_argument("--mask_rule", choices=("sky", "blue"))
    arguments = parser.parse_args(argv)
    for key in ("episodes", "environments"):
        value = getattr(arguments, key)
        if value is not None and value < 1:
            raise ConfigError(f"--{key}: expected at least 1, received {value}")
    return arguments


def require_named(task: str, given: str | None) -> None:
    """A task that imports a module is taken from the command line alone: a run directory from elsewhere could name any
    module in reach.

    Raises:
      ConfigError: when it is not given, or another is.
    """
    if given not in ((task,) if ":" in task else (None, task)):
        raise ConfigError(
            f"--task: expected {cut(task)}, the run's task, received {given or 'none'}; add --task {cut(task)} if you "
            "trust its module"
        )


class Run:
    """A trained learner with what is needed to use it."""

    def __init__(
        self,
        config: "Config",
        card: dict[str, Any] | None,
        sizes: dict[str, int],
        learner: Learner,
        found: "Checkpoint",
    ):
        self.config, self.card, self.sizes, self.learner = config, card, sizes, learner
        self.policy = learner.policy()
        self.checkpoint, self.phase, self.step = found.path.name, found.phase, found.step

    @property
    def world_model(self) -> Any:
        """The learner's world model.

        Raises:
          ConfigError: when its method has none.
        """
        if found := getattr(self.learner, "world_model", None):
            return found
        raise ConfigError(f"--logdir: expected a run with a world model, received one without")


def load_run(logdir: str | Path, checkpoint: str | None = None) -> Run:
    """The learner of a run directory; needs neither its dataset nor a simulator.

    Args:
      checkpoint: directory name inside `logdir`; the newest good one by default.

    Raises:
      CheckpointError: when the directory holds no usable checkpoint.
      ConfigError, DataError: when a file of it is not what a run writes.
    """
    logdir = Path(logdir).expanduser()
    if not (logdir / "config.yaml").is_file() or not (logdir / "dataset_manifest.json").is_file():
        raise CheckpointError(
            f"{logdir}: expected the logdir of a run (config.yaml, dataset_manifest.json), found none"
        )
    config = configuration.load_saved(logdir / "config.yaml")
    manifest = read_run_data(logdir)
    from semopo_tf.engine import compiling, devices
    from semopo_tf.run import build, checkpoints

    sizes = {key: manifest[key] for key in ("image_size", "action_size")}
    device, _ = devices.choose_device("auto")
    jit = compiling.choose_jit(config.jit, device)  # as in training: what XLA compiles differs in the last bits
    learner = build.make_learner(config, **sizes, jit=jit)
    if checkpoint:
        found = checkpoints.load(logdir / checkpoint)
    else:
        newest, faults = checkpoints.load_newest(logdir, [stage.name for stage in learner.stages])
        for fault in faults:
            print(f"warning: {fault}")
        if newest is None:
            raise CheckpointError(
                f"{logdir}: no checkpoint yet; train until the first save_every = {config.save_every} updates"
            )
        found = newest
    build.restore(learner.variables(), found.tensors, found.path)
    return Run(config, manifest["card"], sizes, learner, found)


def load_policy(logdir: str | Path) -> Policy:
    """The acting policy of a run, for notebooks: `action, state = policy(image, state, seeds, step)`, see
    `types.Policy`.

    Raises:
      CheckpointError: when the directory holds no usable checkpoint.
    """
    return load_run(logdir).policy


def write_videos(directory: Path, run: Run, episodes: list[Episode]) -> list[Path]:
    """What the camera saw, and how the model explains it: rows as in training's videos, on the policy's own episodes.

    Returns:
      The files written.
    """
    import tensorflow as tf

    from semopo_tf.random import Key
    from semopo_tf.types import Batch

    name = f"evaluation-{run.phase}-{run.step:09d}"
    seen = np.concatenate([episode.image for episode in episodes])
    write_video(directory / f"{name}-episodes.mp4", seen.repeat(4, 1).repeat(4, 2))
    length = min(VIDEO_LENGTH, *(len(episode.image) for episode in episodes))
    columns = {
        key: tf.constant(np.stack([getattr(episode, key)[:length] for episode in episodes])) for key in Batch._fields
    }
    key = Key(run.config.eval.seed, "report", tf.constant(0, tf.int64))
    rows = run.learner.pictures(Batch(**columns), key, min(VIDEO_CONTEXT, length - 1))
    write_video(directory / f"{name}-model.mp4", video_grid({key: row.numpy() for key, row in rows.items()}))
    return [directory / f"{name}-{kind}.mp4" for kind in ("episodes", "model")]
