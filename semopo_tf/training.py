"""`train.py`: reads the command line, claims the run directory, runs the `Trainer`. Refuses a wrong flag before
importing TensorFlow.
"""

from collections.abc import Callable
from pathlib import Path

from semopo_tf import config as configuration
from semopo_tf.config import OPERATIONAL, Config
from semopo_tf.engine import xla
from semopo_tf.errors import ConfigError, SemopoError, is_command, run_command, user_path
from semopo_tf.run.directory import MANIFEST, open_run, steady_output, tuning
from semopo_tf.run.stopping import Stop, listening
from semopo_tf.storage.files import FILES, write_whole

# Keys of folders of videos. The names of the clips are what a run depends on, not where they lie.
PLACES = ("env.background", "without_card.background")


def main(argv: list[str]) -> int:
    """Train or continue the run that the command line describes.

    Raises:
      SemopoError: any of `errors`, each with its exit code.
      Stopped: by a signal, after saving.
      KeyboardInterrupt: by SIGINT where there is nothing to save, and nobody has run this as a command.
    """
    if {"--help", "-h"} & set(argv):
        print(configuration.usage())
        return 0
    with steady_output(), listening(command=is_command()) as stop:
        return train(argv, stop)


def train(argv: list[str], stop: Stop, **parts: Callable) -> int:
    """`main` with a given `Stop`.

    Args:
      parts: keyword arguments of `Trainer`, such as another `make_learner`.
    """
    config = configuration.load(argv)
    for key in ("logdir", "offline_dir", "task"):
        if not config[key]:
            raise ConfigError(
                f"--{key}: expected a value, received none; e.g. --configs semopo walker_walk --offline_dir DATA "
                "--logdir RUN"
            )
    logdir = user_path(config.logdir)
    with open_run(logdir):
        if is_complete(config, logdir, f"evaluate.py --logdir {logdir} plays more episodes"):
            return 0
        for line in xla.prepare(config.device, config.jit, config.xla_cache, tuning(logdir, config.gpu_tune)):
            print(line)
        # Imports TensorFlow, which takes seconds: only after command line and directory are checked.
        from semopo_tf.run.trainer import Trainer

        trainer = Trainer(config, logdir, stop, **parts)
        claim(config, logdir)  # only now: what a refused start has written would refuse the corrected one
        try:
            trainer.run()
        except SemopoError:
            release(logdir)
            raise
    return 0


def is_complete(config: Config, logdir: Path, then: str) -> bool:
    """Check and print the configuration; whether the run is done, which is said with what comes `then`.

    Raises:
      ConfigError: when the directory holds a run with another configuration.
    """
    require_same(config, logdir)
    print_configuration(config)
    done = (logdir / "DONE").exists()
    if done:
        print(f"{logdir}: this run is complete; {then}")
    return done


def claim(config: Config, logdir: Path) -> None:
    """Save the configuration in a new run directory, or check that an existing one holds the same.

    Raises:
      ConfigError: naming the keys that differ.
    """
    moved = require_same(config, logdir)
    if moved or not (logdir / "config.yaml").exists():
        write_whole(logdir / "config.yaml", config.to_yaml().encode())


def release(logdir: Path) -> None:
    """Give up the claim of a run that failed before its first checkpoint, such as one that needs too much memory: the
    remedy may be another configuration.
    """
    if not any(logdir.glob("ckpt-*")):
        for name in ("config.yaml", MANIFEST):
            FILES.remove_tree(logdir / name)


def require_same(config: Config, logdir: Path) -> list[str]:
    """Check that an existing run directory holds the same configuration.

    Returns:
      The keys of folders that have another place now; the `Trainer` compares what is in them.

    Raises:
      ConfigError: when the configuration cannot be saved, or when the directory holds a run with another one.
    """
    saved = logdir / "config.yaml"
    for key, value in config.flat().items():
        if str(value).encode(errors="replace") != str(value).encode(errors="surrogatepass"):
            raise ConfigError(f"--{key}: expected UTF-8, received other bytes; rename the file or directory")
    if not saved.exists():
        return []
    values = configuration.differing(configuration.load_saved(saved), config)
    moved = [key for key in PLACES if key in values and is_place(values[key][0]) and is_folder(values[key][1])]
    free = OPERATIONAL.union(moved)
    different = [f"{key} (there {old!r}, now {new!r})" for key, (old, new) in values.items() if key not in free]
    if different:
        listed = ", ".join(different[:4])
        raise ConfigError(
            f"{logdir}: holds a run with another configuration: {listed}; choose another --logdir or the same flags"
        )
    return moved


def is_place(source: str) -> bool:
    """Whether a background's source stands for a folder of videos: by its path, or as the dataset card names it."""
    return source != "none" and not source.startswith("builtin:")


def is_folder(source: str) -> bool:
    return is_place(source) and source != "card" and Path(source).expanduser().is_dir()


def print_configuration(config: Config) -> None:
    """Print what differs from the defaults."""
    different = configuration.differing(configuration.defaults(), config)
    print("configuration, where it differs from the defaults:")
    for key, (_, value) in different.items():
        print(f"  {key}: {value}")


if __name__ == "__main__":
    run_command(main)
