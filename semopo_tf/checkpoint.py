"""`python -m semopo_tf.checkpoint check|list DIR`: verify or list the checkpoints of a run. Needs no TensorFlow."""

import os
from pathlib import Path

from semopo_tf.errors import CheckpointError, CommandParser, run_command
from semopo_tf.run.checkpoints import PATTERN, listed, load, stored_bytes
from semopo_tf.run.directory import phases_of


def main(argv: list[str]) -> int:
    """Run `check` or `list` on a run directory, or on one checkpoint in it.

    Raises:
      CheckpointError: when there is no checkpoint, or `check` meets a damaged one.
    """
    parser = CommandParser(prog="python -m semopo_tf.checkpoint", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("check", "verify every byte, exit 4 on any damage"),
        ("list", "print a line for each: phase, step, size, good or what is wrong"),
    ):
        commands.add_parser(name, help=text).add_argument("directory", type=Path)
    arguments = parser.parse_args(argv)
    directory = arguments.directory
    if directory.is_file():
        load(directory)  # refuses a file, naming what it is
    paths = [directory] if PATTERN.fullmatch(directory.name) else listed(directory, phases_of(directory))
    if not paths:
        raise CheckpointError(f"{directory}: no checkpoint there; expected the logdir of a run")
    (check if arguments.command == "check" else show)(directory, paths)
    return 0


def check(directory: Path, paths: list[Path]) -> None:
    """Read every byte of every checkpoint and print a line for each damaged one.

    Raises:
      CheckpointError: with their number.
    """
    # A running trainer may have removed an old one since.
    bad = [reason for path in paths if (reason := fault(path)) and os.path.lexists(path)]
    for reason in bad:
        print(f"bad: {reason}")
    if bad:
        raise CheckpointError(
            f"{directory}: {len(bad)} of {len(paths)} checkpoints are damaged, listed above; a run goes on from the "
            "newest good one"
        )
    print(f"{directory}: {len(paths)} checkpoints, all good; newest {paths[-1].name}")


def show(directory: Path, paths: list[Path]) -> None:
    """Print a line for each checkpoint, oldest first."""
    for path in paths:
        _, phase, step = path.name.split("-")
        print(f"{phase:7}{int(step):>10}{stored_bytes(path) / 2**20:10.1f} MB  {fault(path) or 'good'}")


def fault(path: Path) -> str:
    """What is wrong with a checkpoint; empty if it is good."""
    try:
        load(path)
    except CheckpointError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    run_command(main)
