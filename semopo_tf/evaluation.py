"""`evaluate.py`: play a run's policy in the simulator, append a row per episode to scores.jsonl, and show what its model sees."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semopo_tf import config as configuration
from semopo_tf.cards import read_run_data
from semopo_tf.errors import CheckpointError, CommandParser, ConfigError, cut
from semopo_tf.rollout import Discarded, play
from semopo_tf.run import Records, video_grid, write_video

if TYPE_CHECKING:
    from semopo_tf.agent import Agent, FilterPolicy
    from semopo_tf.config import Config
    from semopo_tf.types import Episode

VIDEO_EPISODES, VIDEO_LENGTH, VIDEO_CONTEXT = 3, 100, 5


def main(argv: list[str]) -> int:
    """Evaluate a run.

    Raises:
      SemopoError: any of `errors`, each with its exit code.
    """
    arguments = parse(argv)
    logdir = Path(arguments.logdir).expanduser()
    run = load_run(logdir, arguments.checkpoint)
    from semopo_tf import envs, wiring  # after the arguments are known to be right: imports TensorFlow

    config = run.config
    require_named(config.task, arguments.task)
    overrides = {key: value for key in wiring.CARD_KEYS if (value := getattr(arguments, key)) is not None}
    settings = wiring.environment_settings(config, run.card, overrides)
    count = arguments.episodes or config.eval.final_episodes
    seeds = wiring.episode_seeds(config.eval.seed, count)
    environments = [envs.make(config.task, **settings) for _ in range(min(arguments.environments, count))]
    scores, episodes, discarded = Records(logdir / "scores.jsonl"), [], list[Discarded]()
    try:
        for seed, episode in zip(seeds, play(environments, run.policy, seeds, discarded), strict=True):
            again = sum(entry.seed == seed for entry in discarded)
            row = wiring.score_row(config, settings, phase=run.phase, step=run.step, seed=seed, episode=episode, discarded=again, source="evaluate")
            scores.append(row)
            episodes.append(episode)
            print(f"episode {seed}: return {row['return']:.1f}, {row['length']} decisions", flush=True)
    finally:
        for environment in environments:
            environment.close()
    returns = [wiring.episode_return(episode) for episode in episodes]
    spread = f"return {np.mean(returns):.1f} +- {np.std(returns):.1f} over {count} episodes (standard deviation of episodes)"
    print(f"{run.phase} {run.step}: {spread}{wiring.replayed(len(discarded))}")
    if arguments.video:
        for path in write_videos(logdir / "videos", run, episodes):
            print(f"video: {path}")
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags of evaluate.py."""
    parser = CommandParser(prog="evaluate.py", description=__doc__)
    parser.add_argument("--logdir", required=True, help="the run to evaluate")
    parser.add_argument("--episodes", type=int, help="how many of the fixed list of episode seeds (default: eval.final_episodes)")
    parser.add_argument("--environments", type=int, default=1, help="played side by side; changes no result")
    parser.add_argument("--checkpoint", help="name of a checkpoint directory of the run (default: the newest)")
    parser.add_argument("--task", help="the run's task, needed where it is <module>:<class>, whose module is imported")
    parser.add_argument("--video", action="store_true", help="write what was seen and how the model explains it")
    parser.add_argument("--background", help="folder of videos, builtin:driving, or none (default: as in the dataset card)")
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
    """A task that imports a module is taken from the command line alone: a run directory from elsewhere could name any module in reach.

    Raises:
      ConfigError: when it is not given, or another is.
    """
    if given not in ((task,) if ":" in task else (None, task)):
        raise ConfigError(f"--task: expected {cut(task)}, the run's task, received {given or 'none'}; add --task {cut(task)} if you trust its module")


class Run:
    """A trained agent with what is needed to use it."""

    def __init__(self, config: "Config", card: dict[str, Any] | None, agent: "Agent", policy: "FilterPolicy", phase: str, step: int):
        self.config, self.card, self.agent, self.policy, self.phase, self.step = config, card, agent, policy, phase, step


def load_run(logdir: Path, checkpoint: str | None = None) -> Run:
    """The agent of a run directory; needs neither its dataset nor a simulator.

    Args:
      checkpoint: directory name inside `logdir`; the newest good one by default.

    Raises:
      CheckpointError: when the directory holds no usable checkpoint.
      ConfigError, DataError: when a file of it is not what a run writes.
    """
    if not (logdir / "config.yaml").is_file() or not (logdir / "dataset_manifest.json").is_file():
        raise CheckpointError(f"{logdir}: expected the logdir of a run (config.yaml, dataset_manifest.json), found none")
    config = configuration.load_saved(logdir / "config.yaml")
    manifest = read_run_data(logdir)
    from semopo_tf import checkpoints, engine, wiring
    from semopo_tf.agent import FilterPolicy

    if checkpoint:
        found = checkpoints.load(logdir / checkpoint)
    else:
        newest, faults = checkpoints.load_newest(logdir, wiring.PHASES)
        for fault in faults:
            print(f"warning: {fault}")
        if newest is None:
            raise CheckpointError(f"{logdir}: no checkpoint yet; train until the first save_every = {config.save_every} updates")
        found = newest
    engine.choose_device("auto")
    agent = wiring.make_agent(config, image_size=manifest["image_size"], action_size=manifest["action_size"])
    wiring.restore(agent.variables(), found.tensors, found.path)
    policy = FilterPolicy(agent, image_size=manifest["image_size"], action_size=manifest["action_size"], jit=False)
    return Run(config, manifest["card"], agent, policy, found.phase, found.step)


def load_policy(logdir: str | Path) -> "FilterPolicy":
    """The acting policy of a run, for notebooks: `action, state = policy(image, state, seeds, step)`, see `types.Policy`.

    Raises:
      CheckpointError: when the directory holds no usable checkpoint.
    """
    return load_run(Path(logdir).expanduser()).policy


def write_videos(directory: Path, run: Run, episodes: list["Episode"]) -> list[Path]:
    """What the camera saw, and how the model explains it: rows as in training's videos, on the policy's own episodes.

    Returns:
      The files written.
    """
    import tensorflow as tf

    from semopo_tf.random import Key
    from semopo_tf.types import Batch

    shown = episodes[:VIDEO_EPISODES]
    name = f"evaluation-{run.phase}-{run.step:09d}"
    seen = np.concatenate([episode.image for episode in shown])
    write_video(directory / f"{name}-episodes.mp4", seen.repeat(4, 1).repeat(4, 2))
    length = min(VIDEO_LENGTH, *(len(episode.image) for episode in shown))
    columns = {key: tf.constant(np.stack([getattr(episode, key)[:length] for episode in shown])) for key in Batch._fields}
    key = Key(run.config.eval.seed, "report", tf.constant(0, tf.int64))
    rows = run.agent.world_model.reconstruct(Batch(**columns), key, min(VIDEO_CONTEXT, length - 1))
    write_video(directory / f"{name}-model.mp4", video_grid({key: row.numpy() for key, row in rows.items()}))
    return [directory / f"{name}-{kind}.mp4" for kind in ("episodes", "model")]
