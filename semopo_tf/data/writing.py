"""A folder in which a dataset appears episode by episode, and `write`, which fills one from Python."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from semopo_tf.data.cards import CARD_NAME, read_card, write_card
from semopo_tf.data.changes import Changes
from semopo_tf.data.episodes import holds_episodes, read_episode, write_episode
from semopo_tf.data.recording import Recording, episode_arrays
from semopo_tf.data.validation import validate_episode
from semopo_tf.errors import ConfigError, DataError, StorageError, user_path
from semopo_tf.storage.files import locked, sha256
from semopo_tf.types import Episode

LOCK_NAME = ".convert.lock"
WRITTEN = re.compile(r"\d{6,}-\d+\.npz")  # what `write` calls its files


def write(episodes: Iterable[Recording], out: str | Path, *, size: int = 0) -> None:
    """Write episodes of any origin as a dataset with its card.

    Every episode is checked as training checks what it reads, and its file appears whole or not at all. One episode is
    in memory at a time. A folder that an interrupted call has left is begun anew.

    Args:
      episodes: see `Recording`; all have images and actions of one shape, and any length.
      out: a folder that is empty or not there yet.
      size: height and width of the images in pixels; 0 keeps theirs.

    Raises:
      DataError: naming the episode and what is wrong with it, or when there is none.
      ConfigError: when the folder holds something else.
      StorageError: when it cannot be written.
    """
    target, changes = user_path(out), Changes(size=size)
    with _begun(target, {"written": {"size": size} if size else {}}) as card:
        arrays = _arrays(episodes, target)
        done: list[Path] = []
        fill(target, "", done, arrays, changes)
        if not done:
            raise DataError(f"{target}: expected episodes to write, received none; give one at least")
        finish(target, card, done)


def _arrays(episodes: Iterable[Recording], target: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for number, recording in enumerate(episodes):
        where = f"{target}: episode {number}"
        yield where, episode_arrays(recording, where)


@contextlib.contextmanager
def _begun(target: Path, made: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Lock a new or empty folder and yield the first entries of its card.

    Raises:
      ConfigError: when it holds anything but what an interrupted `write` has left, which is removed.
    """
    with locked_folder(target):
        there = read_card(target) or {}
        interrupted = "written" in there and there.get("status") == "incomplete"
        names = sorted(path.name for path in target.glob("[!.]*"))
        ours = [name for name in names if interrupted and (name == CARD_NAME or WRITTEN.fullmatch(name))]
        if others := [name for name in names if name not in ours]:
            raise ConfigError(
                f"{target}: expected a folder that is empty or new, received one with {others[0]} ({len(others)} "
                "entries); choose another one"
            )
        for name in ours:
            (target / name).unlink()
        write_card(target, {"status": "incomplete", **made})
        yield made


@contextlib.contextmanager
def locked_folder(target: Path) -> Iterator[None]:
    """Make a folder and lock it. Half-written files of a killed process are removed.

    Raises:
      StorageError: when it cannot be made.
      LockedError: when another process writes there.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        (target / LOCK_NAME).touch()
    except OSError as error:
        raise StorageError(f"{target}: cannot be written ({error.strerror}); choose another folder") from error
    with locked(target / LOCK_NAME, wait=False, what=f"the dataset {target}"):
        for leftover in target.glob(".tmp-*"):
            leftover.unlink()
        yield


@contextlib.contextmanager
def continued(target: Path, made: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Lock the folder of a conversion and yield `made`, the part of the card that decides its content.

    Raises:
      ConfigError: when it holds episodes of another conversion, or of none.
    """
    with locked_folder(target):
        there = read_card(target) or {}
        same, empty = there.get("converted") == made["converted"], not holds_episodes(target)
        if not (same or (empty and (not there or "converted" in there))):
            raise ConfigError(
                f"{target}: holds a dataset that was not made from these files in this way; choose another DST or "
                "remove it"
            )
        if not same:
            write_card(target, {"status": "incomplete", **made})
        yield made


def fill(
    target: Path, tag: str, done: list[Path], episodes: Iterable[tuple[str, dict[str, np.ndarray]]], changes: Changes
) -> None:
    """Write one npz file for each episode, called `<number><tag>-<decisions>.npz`.

    Args:
      done: the files that are there; new ones are appended.
      episodes: the words for the place of each, and its arrays.

    Raises:
      DataError: for an episode that no reader would take, or of other shapes than the one before.
    """
    first = read_episode(done[0]) if done else None
    for where, arrays in episodes:
        episode = changes.applied(validate_episode(changes.amend(arrays, where), where))
        if episode is None:
            continue
        first = first or episode
        require_shapes(episode, first, where)
        done.append(target / f"{len(done):06d}{tag}-{len(episode.reward) - 1}.npz")
        write_episode(done[-1], episode)


def require_shapes(episode: Episode, first: Episode, where: str) -> None:
    """Check that images and actions have the shapes of the first episode's.

    Raises:
      DataError: naming `where`, if they have not.
    """
    expected, received = ((list(each.image.shape[1:]), list(each.action.shape[1:])) for each in (first, episode))
    if received != expected:
        raise DataError(
            f"{where}: expected images {expected[0]} and actions {expected[1]} as before, received {received[0]} and "
            f"{received[1]}; write them as datasets of their own, or images of one size"
        )


def whole_prefix(target: Path, tag: str) -> list[Path]:
    """The files 0, 1, ... of an earlier start up to the first that is missing or damaged; later ones are removed."""
    done: list[Path] = []
    for path in sorted(target.glob("*.npz")):
        if re.fullmatch(rf"{len(done):06d}{tag}-\d+\.npz", path.name):
            with contextlib.suppress(DataError):
                read_episode(path)
                done.append(path)
                continue
        path.unlink()
    if done:
        print(f"{target}: {len(done)} episodes are there, going on")
    return done


def finish(target: Path, card: dict[str, Any], written: list[Path]) -> dict[str, Any]:
    """Check every written file with the loader, and write the card, which is returned."""
    old = {row["file"]: row for row in card.get("files", [])}
    rows, records = [], 0
    for path in written:
        reward = read_episode(path).reward
        records += len(reward)
        row = {"file": path.name, "return": float(reward.sum(dtype=np.float64))}
        row |= {"size": path.stat().st_size, "sha256": sha256(path)}
        rows.append(old.get(path.name, {}) | row)
    card = {**card, "status": "complete", "episodes": len(rows), "records": records, "files": rows}
    write_card(target, card)
    return card
