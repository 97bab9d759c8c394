"""`python -m semopo_tf.data check|stats DIR`: is this dataset sound, and what is in it? Needs no TensorFlow."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from semopo_tf.cards import CARD_NAME, read_card
from semopo_tf.episodes import episode_files, open_dataset, read_episode
from semopo_tf.errors import CommandParser, DataError, run_command
from semopo_tf.files import sha256

BINS = 10


def main(argv: list[str]) -> int:
    """Run `check` or `stats`.

    Raises:
      DataError: when the directory holds no dataset, or `check` found bad files.
    """
    parser = CommandParser(prog="python -m semopo_tf.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("check", "read and validate every file, list all that are bad"), ("stats", "lengths, actions and returns")):
        commands.add_parser(name, help=text).add_argument("directory", type=Path)
    arguments = parser.parse_args(argv)
    directory = arguments.directory.expanduser()
    (check if arguments.command == "check" else stats)(directory)
    return 0


def check(directory: Path) -> None:
    """Validate every episode and, where the card lists the files, compare their digests; print one line for each bad file.

    Raises:
      DataError: with the number of bad files.
    """
    files = episode_files(directory)
    card = read_card(directory) or {}
    digests = {row.get("file", ""): row.get("sha256") for row in card.get("files", [])}
    bad = 0
    shapes: dict[tuple, str] = {}
    for name in sorted(digests.keys() - {path.name for path in files}):
        bad += 1
        print(f"bad: {directory / name}: listed in {CARD_NAME}, but not there; fetch or collect it again")
    for path in tqdm(files, desc="check", disable=None):
        try:
            episode = read_episode(path)
            if digests.get(path.name) and sha256(path) != digests[path.name]:
                raise DataError(f"{path}: expected the SHA-256 in {CARD_NAME}, received another; fetch or collect the file again")
        except DataError as error:
            bad += 1
            print(f"bad: {error}")
            continue
        shapes.setdefault((episode.image.shape[1:], episode.action.shape[1:]), path.name)
    if len(shapes) > 1:
        bad += len(shapes) - 1
        listed = "; ".join(f"{name} has {list(image)} and {list(action)}" for (image, action), name in shapes.items())
        print(f"bad: image and action shapes differ: {listed}")
    if bad:
        raise DataError(f"{directory}: {bad} problems in {len(files)} files, listed above; remove or replace them")
    print(f"{directory}: {len(files)} episodes, all good; card: {card.get('status', 'none')}")


def stats(directory: Path) -> None:
    """Print sizes, action range and the distribution of returns (raw rewards, float64 sums)."""
    data = open_dataset(directory)
    returns = data.returns
    print(f"{directory}: {len(data.names)} episodes, {len(data.frames)} records, {data.frames.nbytes / 2**20:.0f} MB of frames")
    print(f"image {list(data.frames.shape[1:])}, action size {data.action.shape[1]}, in [{data.action.min():.3f}, {data.action.max():.3f}]")
    print(f"records an episode: {data.length.min()} to {data.length.max()}; terminal episodes: {int(data.is_terminal.sum())}")
    quartiles = dict(zip(("min", "P25", "median", "P75", "max"), np.percentile(returns, [0, 25, 50, 75, 100]), strict=True))
    print(f"return: mean {returns.mean():.2f}, std {returns.std():.2f}, " + ", ".join(f"{name} {value:.2f}" for name, value in quartiles.items()))
    print(f"equal returns: {len(returns) - len(np.unique(returns))} episodes share theirs with another")
    counts, edges = np.histogram(returns, BINS)
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        print(f"{low:10.2f} .. {high:10.2f}  {count:5d}  {'#' * round(40 * count / counts.max())}")


if __name__ == "__main__":
    run_command(main)
