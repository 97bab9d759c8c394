"""A trained run, read from its directory: its learner and policy, and episodes of its policy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semopo_tf import config as configuration
from semopo_tf.data.cards import read_run_data
from semopo_tf.engine import xla
from semopo_tf.errors import CheckpointError, CommandParser, ConfigError, cut, user_path
from semopo_tf.run.directory import tuning
from semopo_tf.run.evaluate import evaluate
from semopo_tf.types import Batch, Episode, Learner, Policy

if TYPE_CHECKING:
    from semopo_tf.random import Key

TASK_HELP = "the run's task; required if it is <module>:<class>, as the module is imported"


@dataclass(frozen=True)
class Run:
    """A trained learner with its configuration, dataset card, sizes and checkpoint."""

    config: configuration.Config
    card: dict[str, Any] | None
    sizes: dict[str, int]  # arguments of `build.make_learner`
    learner: Learner
    policy: Policy
    checkpoint: str  # name of its directory
    phase: str
    step: int

    def key(self, domain: str, step: Any = 0) -> "Key":
        """The key of a domain of evaluation: its draws depend on `eval.seed`, not on the run's seed."""
        import tensorflow as tf

        from semopo_tf.random import Key

        return Key(self.config.eval.seed, domain, tf.constant(step, tf.int64))

    @property
    def world_model(self) -> Any:
        """The learner's world model.

        Raises:
          ConfigError: when its method has none.
        """
        if world_model := getattr(self.learner, "world_model", None):
            return world_model
        raise ConfigError("--logdir: expected a run with a world model, received one without; choose another run")

    def play_for(self, analysis: str, episodes: int) -> tuple[list[Episode], dict[str, Any]]:
        """Episodes of the policy, by the protocol and seeds of evaluate.py, for an analysis of the ensemble; and what
        its record says of them and of the run.

        Raises:
          ConfigError: for a learner without a world model, or an ensemble of a single member.
          SemopoError: as `scored`.
        """
        members: int = self.world_model.main.rssm.members
        if members < 2:
            raise ConfigError(
                f"{analysis}: expected an ensemble of at least 2 members, received rssm.ensemble = {members}, which "
                "cannot disagree; choose another run"
            )
        played = [episode for _, episode in scored(self, episodes)]
        facts = {"phase": self.phase, "step": self.step, "seed": self.config.eval.seed, "members": members}
        facts |= {"penalty": dict(self.config.penalty)}
        facts |= {"return": float(np.mean([episode.reward.sum(dtype=np.float64) for episode in played]))}
        return played, facts


def load_run(logdir: str | Path, checkpoint: str | None = None) -> Run:
    """The learner of a run directory; needs neither its dataset nor a simulator.

    Args:
      checkpoint: directory name inside `logdir`; the newest good one by default.

    Raises:
      CheckpointError: when the directory holds no usable checkpoint.
      ConfigError, DataError: when one of its files is malformed.
    """
    logdir = user_path(logdir)
    if not (logdir / "config.yaml").is_file() or not (logdir / "dataset_manifest.json").is_file():
        raise CheckpointError(
            f"{logdir}: expected the logdir of a run (config.yaml, dataset_manifest.json), received none; name the "
            "--logdir that train.py was given"
        )
    config = configuration.load_saved(logdir / "config.yaml")
    manifest = read_run_data(logdir)
    for line in xla.prepare("auto", config.jit, config.xla_cache, tuning(logdir, config.gpu_tune)):
        print(line)
    from semopo_tf.engine import compiling, devices
    from semopo_tf.run import build, checkpoints

    sizes = {key: manifest[key] for key in build.SIZES if key in manifest}
    device, _ = devices.choose_device("auto")
    jit = compiling.choose_jit(config.jit, device)  # as in training: XLA changes the last bits
    learner = build.make_learner(config, **sizes, jit=jit)
    if checkpoint:
        loaded = checkpoints.load(logdir / checkpoint)
    else:
        newest, faults = checkpoints.load_newest(logdir, [stage.name for stage in learner.stages])
        for fault in faults:
            print(f"warning: {fault}")
        if newest is None:
            raise CheckpointError(
                f"{logdir}: no checkpoint yet; train until the first save_every = {config.save_every} updates"
            )
        loaded = newest
    build.restore(learner.variables(), loaded.tensors, loaded.path)
    about = (loaded.path.name, loaded.phase, loaded.step)
    return Run(config, manifest["card"], sizes, learner, learner.policy(), *about)


def load_policy(logdir: str | Path) -> Policy:
    """The acting policy of a run, for notebooks: `action, state = policy(image, state, seeds, step)` (`types.Policy`).

    Raises:
      CheckpointError: when the directory holds no usable checkpoint.
    """
    return load_run(logdir).policy


def scored(
    run: Run, episodes: int | None = None, environments: int = 1, overrides: Mapping[str, str] | None = None
) -> Iterator[tuple[dict[str, Any], Episode]]:
    """Play a run's policy on the fixed list of episode seeds; yields the row of scores.jsonl and the episode of each.

    Args:
      episodes: number of seeds; `eval.final_episodes` by default.
      environments: number played side by side; changes no result.
      overrides: background, background_color, background_split, mask_rule, render and distractor, where they differ
        from the run's.

    Raises:
      SemopoError: as `build.environment_settings` and `run.evaluate.evaluate`.
    """
    from semopo_tf.run import build

    config = run.config
    count = episodes or config.eval.final_episodes
    if not count:
        raise ConfigError(
            "--episodes: expected at least 1, received none, and the run's eval.final_episodes is 0; add --episodes 10"
        )
    settings = build.environment_settings(config, run.card, overrides, image_size=run.sizes["image_size"])
    build.warn_of_other_versions(config, run.card)
    facts: dict[str, Any] = {"phase": run.phase, "step": run.step, "checkpoint": run.checkpoint, "source": "evaluate"}
    seeds = build.episode_seeds(config.eval.seed, count)
    for played in evaluate(run.policy, config.task, settings, seeds, environments):
        yield build.score_row(config, settings, played, **facts), played.episode


def as_batch(episodes: Sequence[Episode], length: int | None = None) -> Batch:
    """The first `length` records of the episodes, or all of them, as one batch of tensors."""
    import tensorflow as tf

    return Batch(*(tf.constant(np.stack([getattr(e, name)[:length] for e in episodes])) for name in Batch._fields))


def require_named(task: str, given: str | None) -> None:
    """Require a task that imports a module on the command line: an untrusted run directory could name any module.

    Raises:
      ConfigError: when such a task is not given, or when another task is given.
    """
    if given not in ((task,) if ":" in task else (None, task)):
        raise ConfigError(
            f"--task: expected {cut(task)}, the run's task, received {given or 'none'}; add --task {cut(task)} if you "
            "trust its module"
        )


def run_parser(prog: str, about: str, run: str) -> CommandParser:
    """A parser of a command about a checkpoint of a run, with the flags of `load_run`."""
    parser = CommandParser(prog=prog, description=about)
    parser.add_argument("--logdir", required=True, type=Path, help=run)
    parser.add_argument("--checkpoint", help="name of a checkpoint directory of the run (default: the newest)")
    return parser
