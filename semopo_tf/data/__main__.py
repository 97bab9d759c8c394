"""`python -m semopo_tf.data check|stats|convert|join`: validate a dataset, describe it, convert from and to other
tools, join several.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from semopo_tf.data import convert, join
from semopo_tf.data.cards import read_card
from semopo_tf.data.changes import Changes
from semopo_tf.data.checksums import Listed, listed_files, verify, verify_size
from semopo_tf.data.dataset import open_dataset
from semopo_tf.data.episodes import episode_files, read_episode
from semopo_tf.data.validation import never_changes
from semopo_tf.errors import CommandParser, ConfigError, DataError, run_command, user_path

BINS = 10
LEAST_PIXELS, MOST_PIXELS = 8, 1024
SUBJECTS = ("files", "sizes", "hashes", "schema")


def main(argv: list[str]) -> int:
    """Run `check`, `stats`, `convert` or `join`.

    Raises:
      DataError: when the directory holds no dataset, `check` finds bad files, or the source of `convert` is bad.
      ConfigError: for a target of `convert` that does not fit, or datasets that `join` cannot put together.
    """
    parser = CommandParser(prog="python -m semopo_tf.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="read and validate every file, list all that are bad")
    checking.add_argument("directory", type=user_path)
    checking.add_argument(
        "--manifest", type=Path, help="list of files (SHA256SUMS or a card; default: those in the directory)"
    )
    text = "list the episodes of fewer records, such as those shorter than batch.length"
    checking.add_argument("--length", metavar="RECORDS", type=int, default=0, help=text)
    describing = commands.add_parser("stats", help="lengths, actions and returns")
    describing.add_argument("directory", type=user_path)
    converting = commands.add_parser(
        "convert", help="other tools' data to npz episodes and back", description=convert.__doc__
    )
    text = "V-D4RL's HDF5 file or directory of shards, Minari dataset, or directory of npz rows or episodes"
    converting.add_argument("source", metavar="SRC", type=user_path, help=text)
    text = "directory, or for npz episodes to HDF5 a file that ends in .hdf5"
    converting.add_argument("target", metavar="DST", type=user_path, help=text)
    text = "make a Minari dataset of npz episodes; DST ends in its name, such as walker-v0"
    converting.add_argument("--to", choices=["minari"], help=text)
    converting.add_argument(
        "--repair_flags", action="store_true", help="set is_first, is_last, is_terminal from the ends of the episodes"
    )
    text = "leave out the episodes of fewer records, and count them"
    converting.add_argument("--min_length", metavar="RECORDS", type=int, default=0, help=text)
    text = f"images of this height and width, {LEAST_PIXELS} to {MOST_PIXELS}; without it they keep theirs"
    converting.add_argument("--size", metavar="PIXELS", type=int, default=0, help=text)
    joining = commands.add_parser("join", help="one dataset of several", description=join.__doc__)
    text = "datasets of one environment, two or more"
    joining.add_argument("first", metavar="SRC", type=user_path, help=text)
    joining.add_argument("others", metavar="SRC", type=user_path, nargs="+", help=text)
    joining.add_argument("target", metavar="DST", type=user_path, help="a new directory")
    arguments = parser.parse_args(argv)
    if arguments.command == "join":
        join.join([arguments.first, *arguments.others], arguments.target)
    elif arguments.command == "convert":
        require_not_negative("min_length", arguments.min_length)
        if arguments.size and not LEAST_PIXELS <= arguments.size <= MOST_PIXELS:
            raise ConfigError(f"--size: expected {LEAST_PIXELS} to {MOST_PIXELS}, received {arguments.size}")
        changes = Changes(arguments.repair_flags, arguments.min_length, arguments.size)
        convert.convert(arguments.source, arguments.target, changes, to_minari=arguments.to == "minari")
    elif arguments.command == "check":
        require_not_negative("length", arguments.length)
        check(arguments.directory, arguments.manifest, arguments.length)
    else:
        stats(arguments.directory)
    return 0


def require_not_negative(flag: str, value: int) -> None:
    """Raises ConfigError about a flag."""
    if value < 0:
        raise ConfigError(f"--{flag}: expected at least 0, received {value}")


class Remarks:
    """What is worth a line about good episodes: those that are short, and those whose images never change."""

    def __init__(self, length: int = 0):
        """Args: length: records of an episode that is not short."""
        self._length, self._short, self._still = length, list[str](), list[str]()

    def note(self, name: str, image: np.ndarray) -> None:
        """Look at the images [L, H, W, 3] of an episode."""
        if len(image) < self._length:
            self._short.append(name)
            print(f"short: {name}: {len(image)} of {self._length} records")
        if never_changes(image):
            self._still.append(name)

    def report(self, directory: Path, files: int) -> None:
        """Print how many of `files` episodes there are of either kind."""
        if self._length:
            remedy = f"; --min_length {self._length} of train.py leaves them out" if self._short else ""
            print(f"{directory}: {len(self._short)} of {files} episodes have fewer than {self._length} records{remedy}")
        if self._still:
            print(
                f"semopo_tf: warning: {directory}: the images of {len(self._still)} of {files} episodes never change, "
                f"first in {self._still[0]}; an environment that draws into one buffer makes such files: collect them "
                "again",
                file=sys.stderr,
            )


def check(directory: Path, manifest: Path | None = None, length: int = 0) -> None:
    """Validate every episode and compare all files with the lists of them; print a line for each problem, and one
    table. Episodes whose images never change are a warning.

    Args:
      manifest: a list to use instead of the card and the SHA256SUMS of the directory.
      length: list the episodes of fewer records; they are no problem.

    Raises:
      DataError: with the number of problems.
    """
    files, listed, remarks = episode_files(directory), listed_files(directory, manifest), Remarks(length)
    bad = dict.fromkeys(SUBJECTS, 0)
    for subject, line in problems(directory, files, listed, remarks):
        bad[subject] += 1
        print(f"bad: {line}")
    known = [listed[path.name] for path in files if path.name in listed]
    checked = (len(listed) or len(files), sum(row.size is not None for row in known), len(known), len(files))
    print(f"{'':8}{'checked':>9}{'of':>9}{'problems':>10}")
    for subject, count in zip(SUBJECTS, checked, strict=True):
        print(f"{subject:8}{count:9d}{len(files):9d}{bad[subject]:10d}")
    remarks.report(directory, len(files))
    if sum(bad.values()):
        raise DataError(
            f"{directory}: {sum(bad.values())} problems in {len(files)} files, listed above; remove or replace them"
        )
    print(f"{directory}: {len(files)} episodes, all good; card: {(read_card(directory) or {}).get('status', 'none')}")


def problems(
    directory: Path, files: list[Path], listed: dict[str, Listed], remarks: Remarks
) -> Iterator[tuple[str, str]]:
    """The subject and a line for everything that is wrong with a dataset's files; good ones are noted in `remarks`."""
    for name in sorted(listed):
        path = directory / name
        if not path.is_file():
            yield "files", f"{path}: listed in {listed[name].source}, but not there; fetch or collect it again"
    shapes: dict[tuple, str] = {}
    for path in tqdm(files, desc="check", disable=None):
        if listed and path.name not in listed:
            yield "files", f"{path}: in no list of the dataset's files; remove it or list it"
        for subject, test in (("sizes", verify_size), ("hashes", verify)) if path.is_file() else ():
            try:
                test(path, listed)
            except DataError as error:
                yield subject, str(error)
                break
        try:
            episode = read_episode(path)
            shapes.setdefault((episode.image.shape[1:], episode.action.shape[1:]), path.name)
            remarks.note(path.name, episode.image)
        except DataError as error:
            yield "schema", str(error)
    if len(shapes) > 1:
        differing = (f"{name} has {list(image)} and {list(action)}" for (image, action), name in shapes.items())
        yield "schema", f"image and action shapes differ: {'; '.join(differing)}"


def stats(directory: Path) -> None:
    """Print sizes, action range and the distribution of returns (raw rewards, float64 sums)."""
    data = open_dataset(directory)
    returns = data.returns
    print(
        f"{directory}: {len(data.names)} episodes, {len(data.frames)} records, {data.frames.nbytes / 2**20:.0f} MB of "
        "frames"
    )
    print(
        f"image {list(data.frames.shape[1:])}, action size {data.action.shape[1]}, in [{data.action.min():.3f}, "
        f"{data.action.max():.3f}]"
    )
    print(
        f"records an episode: {data.length.min()} to {data.length.max()}; terminal episodes: "
        f"{int(data.is_terminal.sum())}"
    )
    low, *quartiles, high = np.percentile(returns, [0, 25, 50, 75, 100])
    print(
        f"return: mean {returns.mean():.2f}, std {returns.std():.2f}, min {low:.2f}, P25 {quartiles[0]:.2f}, median "
        f"{quartiles[1]:.2f}, P75 {quartiles[2]:.2f}, max {high:.2f}"
    )
    print(f"equal returns: {len(returns) - len(np.unique(returns))} episodes share theirs with another")
    counts, edges = np.histogram(returns, BINS)
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        print(f"{low:10.2f} .. {high:10.2f}  {count:5d}  {'#' * round(40 * count / counts.max())}")
    remarks = Remarks()
    for name, start, length in zip(data.names, data.offset, data.length, strict=True):
        remarks.note(name, data.frames[start : start + length])
    remarks.report(directory, len(data.names))


if __name__ == "__main__":
    run_command(main)
