"""`data convert SRC DST`: V-D4RL's HDF5 to npz episodes, npz episodes to HDF5, or a copy of npz episodes with corrected
flags, with images of another size or without short episodes.

What SRC holds decides the direction. Sources are compared with the SHA256SUMS (or card) beside them before they are
read. After an interruption the same command continues and ends with the same bytes. Archives (zip, tar) are never
extracted.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.data import hdf5
from semopo_tf.data.cards import read_card, write_card
from semopo_tf.data.checksums import SUMS_NAME, listed_files, regular_status, verify, write_sum
from semopo_tf.data.episodes import (
    HDF5_SUFFIXES,
    RELINK,
    episode_files,
    holds_episodes,
    read_episode,
    read_log,
    write_episode,
)
from semopo_tf.data.hdf5_process import read_in_child
from semopo_tf.data.validation import repair_flags, validate_episode
from semopo_tf.errors import ConfigError, DataError, StorageError
from semopo_tf.storage.files import FILES, locked, remedy, sha256, temporary_sibling
from semopo_tf.storage.resize import resize
from semopo_tf.types import Episode

SIGNATURE = b"\x89HDF\r\n\x1a\n"
LOCK_NAME = ".convert.lock"


class Source(NamedTuple):
    """One file to convert, as it was when its digest was taken."""

    path: Path
    size: int
    mtime_ns: int
    sha256: str


def convert(source: Path, target: Path, repair: bool, min_length: int = 0, size: int = 0) -> None:
    """Convert `source` to `target` and print what was done.

    Args:
      source: an HDF5 file, a directory of HDF5 files (shards, in the order of the numbers in their names) or one of npz
        episodes.
      target: a directory, or a file that ends in `.hdf5` or `.h5` for npz to HDF5.
      repair: set wrong flags from the ends of the episodes instead of refusing them.
      min_length: leave out the episodes of fewer records, and print how many.
      size: height and width of the images in pixels; 0 keeps theirs.

    Raises:
      DataError: for a bad source.
      ConfigError: for a target that does not fit or holds something else.
    """
    shards, changes = hdf5_files(source), Changes(repair, min_length, size)
    to_file = target.name.lower().endswith(HDF5_SUFFIXES)
    if shards and to_file:
        raise ConfigError(
            f"{target}: expected a directory for the episodes of {source}, received the name of an HDF5 file"
        )
    if shards:
        to_episodes(sources(shards), target, changes)
    elif to_file:
        to_hdf5(sources(episode_files(source)), target, changes)
    elif repair or min_length or size:
        to_copies(sources(episode_files(source)), target, changes)
    else:
        raise ConfigError(
            f"{target}: npz episodes become an HDF5 file (end DST in .hdf5) or, with --repair_flags, a corrected copy "
            "(with --min_length, one without short episodes; with --size, one of smaller or larger images)"
        )


def hdf5_files(source: Path) -> list[Path]:
    """The HDF5 files that `source` is or holds, numbers in names counted as numbers; none for a directory of npz
    episodes.

    Raises:
      DataError: for a file that is no HDF5, or a directory with both kinds.
    """
    if not source.is_dir():
        _require_hdf5(source)
        return [source]
    paths = [path for path in source.glob("[!.]*") if path.name.lower().endswith(HDF5_SUFFIXES)]
    if paths and holds_episodes(source):
        raise DataError(f"{source}: expected HDF5 files or npz episodes, received both; move one kind elsewhere")
    for path in paths:
        _require_hdf5(path)

    def natural(path: Path) -> tuple:
        return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", path.name)], path.name

    return sorted(paths, key=natural)


def _require_hdf5(path: Path) -> None:
    """Raises DataError unless it is a regular file, or a link to one, with the signature of HDF5."""
    if not path.is_file() and path.is_symlink():
        raise DataError(f"{path}: is a link to no regular file; {RELINK}")
    if not path.is_file():
        raise DataError(
            f"{path}: expected an HDF5 file or a directory of HDF5 or npz files, but it is missing or not a regular "
            "file; correct SRC"
        )
    with open(path, "rb") as file:
        head = file.read(64)
    if head.startswith(SIGNATURE):
        return
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise DataError(f"{path}: this is a web page, not data; the download failed, fetch the file again")
    raise DataError(
        f"{path}: expected an HDF5 file, received {path.stat().st_size} bytes of something else; fetch it again, "
        "extract archives yourself"
    )


def sources(paths: list[Path]) -> list[Source]:
    """Compare the digest of every file with the lists beside the files, and say how many are not listed.

    Raises:
      DataError: for a file that differs from its list.
    """
    folder = paths[0].parent
    listed = listed_files(folder)
    statuses = [regular_status(path) for path in paths]
    files = [
        Source(path, status.st_size, status.st_mtime_ns, verify(path, listed))
        for path, status in zip(paths, statuses, strict=True)
    ]
    if unknown := sum(path.name not in listed for path in paths):
        remedy = f"put the publisher's {SUMS_NAME} beside them to verify them"
        print(f"{folder}: no checksum is known for {unknown} of {len(paths)} files; {remedy}")
    else:
        print(f"{folder}: {len(paths)} files have the SHA-256 that is listed for them")
    return files


def _require_unchanged(files: list[Source]) -> None:
    for source in files:
        status = source.path.stat() if source.path.is_file() else None
        if status is None or (status.st_size, status.st_mtime_ns) != (source.size, source.mtime_ns):
            raise DataError(
                f"{source.path}: changed while it was read; run the command again when the file is complete"
            )


def to_episodes(files: list[Source], target: Path, changes: "Changes") -> None:
    """Write one npz file for each episode of HDF5 files, then the card."""
    tag = hashlib.sha256("".join(source.sha256 for source in files).encode()).hexdigest()[:8]
    folder = files[0].path.parent
    with _directory(target, files, changes) as card:
        # Which episodes of the source the files are of is not known where some were left out: begin anew.
        done = [] if changes.min_length else _whole_prefix(target, tag)
        with contextlib.closing(read_in_child([source.path for source in files], len(done))) as answers:
            facts = next(answers)["contents"]
            for number, answer in enumerate(answers, len(done)):
                where = f"{folder}: episode {number}"
                read = validate_episode(changes.amend(answer["arrays"], where), where)
                if episode := changes.applied(read):
                    done.append(target / f"{len(done):06d}-{tag}-{len(episode.reward) - 1}.npz")
                    write_episode(done[-1], episode)
        _require_unchanged(files)
        if facts["outside"]:
            left = f"{facts['outside']} of {facts['records']} records"
            print(f"{folder}: {left} lie between no FIRST and LAST and are left out")
        if not facts["episodes"]:
            expected = "expected step_type to mark episodes (0 first, 2 last)"
            raise DataError(f"{folder}: {expected}, received none in {facts['records']} records")
        changes.report(folder)
        _finish(target, card | {"records_left_out": facts["outside"]}, done)


def to_copies(files: list[Source], target: Path, changes: "Changes") -> None:
    """Write a copy of every episode that is kept, flags corrected where that is wanted, then the card of the source
    with the new digests.
    """
    folder = files[0].path.parent
    with _directory(target, files, changes) as card:
        done = []
        for source in files:
            if episode := changes.applied(read_episode(source.path, changes.amend)):
                done.append(target / source.path.name)
                write_episode(done[-1], episode._replace(log=read_log(source.path)))
        _require_unchanged(files)
        changes.report(folder)
        kept = read_card(folder) or {}
        if len(done) < len(files):
            kept.pop("returns", None)  # of all episodes
        if changes.size and "environment" in kept:
            kept["environment"] = {**kept["environment"], "size": changes.size}
        _finish(target, {**kept, **card}, done)


def to_hdf5(files: list[Source], target: Path, changes: "Changes") -> None:
    """Write one HDF5 file with checksums, and its SHA-256 beside it."""
    if target.exists():
        raise ConfigError(f"{target}: exists already; choose another DST or remove it")
    temporary = temporary_sibling(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        count = hdf5.write_hdf5(temporary, _alike(files, changes))
        _require_unchanged(files)
        changes.report(files[0].path.parent)
        write_sum(target, sha256(temporary))
        FILES.rename(temporary, target)
        FILES.sync_directory(target.parent)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{target}: cannot be written ({error.strerror or error}); {remedy(error, 'choose another DST')}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    print(
        f"{target}: {count} episodes, {target.stat().st_size} bytes; its SHA-256 is in {SUMS_NAME}; names and card of "
        "the source are not in it"
    )


def _alike(files: list[Source], changes: "Changes") -> Iterator[Episode]:
    """The kept episodes in order. Raises DataError for one that a common file of columns could not give back."""
    expected: Any = None
    for source in files:
        episode = changes.applied(read_episode(source.path, changes.amend))
        if episode is None:
            continue
        facts = [(array.dtype.str, array.shape[1:]) for array in episode[:4]]
        expected = expected or facts
        if facts != expected:
            like = f"as in {files[0].path.name}, {expected}"
            raise DataError(f"{source.path}: expected types and shapes {like}, received {facts}; convert them apart")
        if not np.array_equal(episode.is_terminal, episode.discount == 0):
            raise DataError(
                f"{source.path}: expected discount 0 where is_terminal and only there, as HDF5 keeps no other mark; "
                "correct the discounts"
            )
        yield episode


class Changes:
    """Repairs flags, resizes images and leaves out short episodes where that is wanted, and counts."""

    def __init__(self, repair: bool, min_length: int, size: int):
        self.repair, self.min_length, self.size = repair, min_length, size
        self._sizes: set[tuple[int, ...]] = set()  # [H, W] of the images that were resized
        self._files = self._values = self._kept = self._short = 0

    def amend(self, arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        """The arrays with repaired flags; for `read_episode`."""
        if not self.repair:
            return arrays
        repaired = repair_flags(arrays, where)
        changed = sum(int((repaired[key] != arrays[key]).sum()) for key in arrays if repaired[key] is not arrays[key])
        self._files, self._values = self._files + bool(changed), self._values + changed
        return repaired

    def identity(self) -> dict[str, Any]:
        """What a card says of the changes."""
        wanted = {"min_length": self.min_length, "size": self.size}
        return {"repair_flags": self.repair, **{key: value for key, value in wanted.items() if value}}

    def applied(self, episode: Episode) -> Episode | None:
        """The episode with images of the wanted size; None for one that is too short."""
        long = len(episode.reward) >= self.min_length
        self._kept, self._short = self._kept + long, self._short + (not long)
        if not long or not self.size:
            return episode if long else None
        self._sizes.add(episode.image.shape[1:3])
        return episode._replace(image=resize(episode.image, self.size))

    def report(self, folder: Path) -> None:
        """Print the counts.

        Raises:
          DataError: when no episode is kept.
        """
        if self.repair:
            print(f"repaired {self._values} flags in {self._files} episodes")
        if self._sizes:
            received = ", ".join(f"{height} x {width}" for height, width in sorted(self._sizes))
            print(f"{folder}: images of {received} pixels are now {self.size} x {self.size}")
        if self.min_length:
            episodes = f"{self._short} of {self._short + self._kept} episodes"
            print(f"{folder}: {episodes} have fewer than {self.min_length} records and are left out")
            if not self._kept:
                raise DataError(
                    f"{folder}: expected episodes of at least {self.min_length} records, received none; lower "
                    "--min_length"
                )


@contextlib.contextmanager
def _directory(target: Path, files: list[Source], changes: Changes) -> Iterator[dict[str, Any]]:
    """Lock the target directory and yield the part of the card that decides its content.

    Raises:
      ConfigError: when it holds episodes of another conversion, or of none.
      StorageError: when it cannot be made.
    """
    made = [{"file": source.path.name, "size": source.size, "sha256": source.sha256} for source in files]
    card = {"converted": {"sources": made, **changes.identity()}}
    try:
        target.mkdir(parents=True, exist_ok=True)
        (target / LOCK_NAME).touch()
    except OSError as error:
        raise StorageError(f"{target}: cannot be written ({error.strerror}); choose another DST") from error
    with locked(target / LOCK_NAME, wait=False, what=f"the dataset {target}"):
        there = read_card(target) or {}
        same, empty = there.get("converted") == card["converted"], not holds_episodes(target)
        if not (same or (empty and (not there or "converted" in there))):
            raise ConfigError(
                f"{target}: holds a dataset that was not made from these files in this way; choose another DST or "
                "remove it"
            )
        for leftover in target.glob(".tmp-*"):
            leftover.unlink()
        if not same:
            write_card(target, {"status": "incomplete", **card})
        yield card


def _whole_prefix(target: Path, tag: str) -> list[Path]:
    """The files 0, 1, ... of an earlier start up to the first that is missing or damaged; later ones are removed."""
    done: list[Path] = []
    for path in sorted(target.glob("*.npz")):
        if re.fullmatch(rf"{len(done):06d}-{tag}-\d+\.npz", path.name):
            with contextlib.suppress(DataError):
                read_episode(path)
                done.append(path)
                continue
        path.unlink()
    if done:
        print(f"{target}: {len(done)} episodes are there, going on")
    return done


def _finish(target: Path, card: dict[str, Any], written: list[Path]) -> None:
    """Check every written file with the loader, and write the card."""
    old = {row["file"]: row for row in card.get("files", [])}
    rows, records = [], 0
    for path in written:
        reward = read_episode(path).reward
        records += len(reward)
        row = {"file": path.name, "return": float(reward.sum(dtype=np.float64))}
        row |= {"size": path.stat().st_size, "sha256": sha256(path)}
        rows.append(old.get(path.name, {}) | row)
    write_card(target, {**card, "status": "complete", "episodes": len(rows), "records": records, "files": rows})
    print(f"{target}: {len(rows)} episodes, {records} records")
