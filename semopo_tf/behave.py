"""Train and look at behaviour policies: `python -m semopo_tf.behave train | evaluate`.

    python -m semopo_tf.behave train --task walker_walk --logdir runs/sac_walker
    python -m semopo_tf.behave evaluate --logdir runs/sac_walker

`train` takes the flags of train.py. A behaviour sees the simulator's own state, so no image is drawn, and one run
serves every background, camera and image size. The same command again continues it.
"""

import sys
from pathlib import Path

from semopo_tf import config as configuration
from semopo_tf.engine import xla
from semopo_tf.envs import exbmdp, tasks
from semopo_tf.errors import CommandParser, ConfigError, SemopoError, run_command, user_path
from semopo_tf.run import snapshots
from semopo_tf.run.directory import open_run
from semopo_tf.training import claim, is_complete, release

USAGE = "expected train or evaluate"


def main(argv: list[str]) -> int:
    """Run `train` or `evaluate`.

    Raises:
      SemopoError: any of `errors`, each with its exit code.
    """
    commands = {"train": train, "evaluate": evaluate}
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if argv[0] not in commands:
        raise ConfigError(f"{argv[0]}: {USAGE}")
    return commands[argv[0]](argv[1:])


def train(argv: list[str]) -> int:
    """Play and learn until `online.episodes` are played."""
    config = configuration.load(_with_suite(argv if "--configs" in argv else ["--configs", "sac", *argv]))
    for key in ("task", "logdir"):
        if not config[key]:
            raise ConfigError(f"--{key}: expected a value, received none; e.g. --task walker_walk --logdir runs/sac")
    logdir = user_path(config.logdir)
    with open_run(logdir):
        if is_complete(config, logdir, f"collect with --policy snapshot:{logdir}@DECISIONS"):
            return 0
        for line in xla.prepare(config.device, config.jit, config.xla_cache):
            print(line)
        from semopo_tf.run.online import Online  # imports TensorFlow, which takes seconds

        online = Online(config, logdir)
        claim(config, logdir)
        try:
            online.run()
        except SemopoError:
            release(logdir)
            raise
    return 0


def _with_suite(argv: list[str]) -> list[str]:
    """The words with `--task walker_walk` as `dmc_walker_walk`: a behaviour sees no background."""
    words = list(argv)
    for place, word in enumerate(words):
        key, equals, value = word.partition("=")
        if key != "--task" or not (equals or place + 1 < len(words)):
            continue
        at, value = (place, value) if equals else (place + 1, words[place + 1])
        known = value.startswith((tasks.PLAIN, tasks.MOVING, exbmdp.PREFIX)) or ":" in value
        if not known and not tasks.is_registered(value):
            words[at] = f"--task={tasks.PLAIN}{value}" if equals else f"{tasks.PLAIN}{value}"
    return words


def evaluate(argv: list[str]) -> int:
    """Play every snapshot of a run and print its returns."""
    parser = CommandParser(prog="python -m semopo_tf.behave evaluate", description="Play the snapshots of a run.")
    parser.add_argument("--logdir", required=True, type=Path, help="of `behave train`")
    parser.add_argument("--episodes", type=int, default=snapshots.EPISODES, help="of every snapshot")
    args = parser.parse(argv, episodes=1)
    run = snapshots.Behaviours(user_path(args.logdir))
    print(f"{'decisions':>10} {'mean':>8} {'std':>7} {'min':>8} {'max':>8}   of {args.episodes} episodes, as collected")
    for decisions in run.decisions:
        scores = run.returns(decisions, args.episodes)
        print(
            f"{decisions:10d} {scores.mean():8.1f} {scores.std():7.1f} {scores.min():8.1f} {scores.max():8.1f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
