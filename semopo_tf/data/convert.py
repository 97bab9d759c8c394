"""`data convert SRC DST`: other people's data to npz episodes, npz episodes to V-D4RL's HDF5 or to Minari, or a copy of
npz episodes with corrected flags, with images of another size or without short episodes.

What SRC holds decides what is read: V-D4RL's HDF5 (a file or shards), a Minari dataset, npz files of rows (s, a, r, s')
or npz episodes. Sources are compared with the SHA256SUMS (or card) beside them before they are read. After an
interruption the same command continues and ends with the same bytes. Archives (zip, tar) are never extracted.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from semopo_tf.data import minari
from semopo_tf.data.cards import read_card
from semopo_tf.data.changes import Changes
from semopo_tf.data.checksums import SUMS_NAME, listed_files, regular_status, verify, write_sum
from semopo_tf.data.episodes import HDF5_SUFFIXES, read_episode, read_log, write_episode
from semopo_tf.data.foreign import Reader, foreign_files
from semopo_tf.data.vd4rl import write_vd4rl
from semopo_tf.data.writing import continued, fill, finish, whole_prefix
from semopo_tf.errors import ConfigError, DataError, StorageError
from semopo_tf.storage.files import FILES, remedy, sha256, temporary_sibling
from semopo_tf.types import Episode


class Source(NamedTuple):
    """One file to convert, as it was when its digest was taken."""

    path: Path
    size: int
    mtime_ns: int
    sha256: str


def convert(source: Path, target: Path, changes: Changes, to_minari: bool = False) -> None:
    """Convert `source` to `target` and print what was done.

    Args:
      source: an HDF5 file, a directory of HDF5 files (shards, in the order of the numbers in their names), of a Minari
        dataset, of npz files of rows, or of npz episodes.
      target: a directory, or a file that ends in `.hdf5` or `.h5` for npz to HDF5.
      to_minari: make a Minari dataset of npz episodes.

    Raises:
      DataError: for a bad source.
      ConfigError: for a target that does not fit or holds something else.
    """
    files, read = foreign_files(source)
    to_file = target.name.lower().endswith(HDF5_SUFFIXES)
    if read and (to_file or to_minari):
        raise ConfigError(
            f"{target}: expected a directory for the episodes of {source}, received the name of an HDF5 file or --to "
            "minari; make episodes first, then convert those"
        )
    if read:
        to_episodes(sources(files), target, changes, read)
    elif to_minari:
        to_minari_dataset(sources(files), target, changes)
    elif to_file:
        to_hdf5(sources(files), target, changes)
    elif changes.wanted:
        to_copies(sources(files), target, changes)
    else:
        raise ConfigError(
            f"{target}: npz episodes become an HDF5 file (end DST in .hdf5), a Minari dataset (--to minari) or, with "
            "--repair_flags, a corrected copy (with --min_length, one without short episodes; with --size, one of "
            "smaller or larger images)"
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


def require_unchanged(files: list[Source]) -> None:
    """Check that no file has changed since its digest was taken.

    Raises:
      DataError: naming the first that has.
    """
    for source in files:
        status = source.path.stat() if source.path.is_file() else None
        if status is None or (status.st_size, status.st_mtime_ns) != (source.size, source.mtime_ns):
            raise DataError(
                f"{source.path}: changed while it was read; run the command again when the file is complete"
            )


def made_from(files: list[Source], changes: Changes) -> dict[str, Any]:
    """The part of a card that decides what is in the dataset."""
    listed = [{"file": source.path.name, "size": source.size, "sha256": source.sha256} for source in files]
    return {"converted": {"sources": listed, **changes.identity()}}


def to_episodes(files: list[Source], target: Path, changes: Changes, read: Reader) -> None:
    """Write one npz file for each episode of files of another layout, then the card."""
    tag = "-" + hashlib.sha256("".join(source.sha256 for source in files).encode()).hexdigest()[:8]
    with continued(target, made_from(files, changes)) as card:
        # Which episodes of the source the files are of is not known where some were left out: begin anew.
        done = [] if changes.min_length else whole_prefix(target, tag)
        with read([source.path for source in files], len(done), changes) as found:
            fill(target, tag, done, found.episodes, changes)
        require_unchanged(files)
        changes.report(files[0].path.parent)
        _finish(target, card | found.facts, done)


def to_copies(files: list[Source], target: Path, changes: Changes) -> None:
    """Write a copy of every episode that is kept, flags corrected where that is wanted, then the card of the source
    with the new digests.
    """
    folder = files[0].path.parent
    with continued(target, made_from(files, changes)) as card:
        done = []
        for source in files:
            if episode := changes.applied(read_episode(source.path, changes.amend)):
                done.append(target / source.path.name)
                write_episode(done[-1], episode._replace(log=read_log(source.path)))
        require_unchanged(files)
        changes.report(folder)
        kept = read_card(folder) or {}
        if len(done) < len(files):
            kept.pop("returns", None)  # of all episodes
        if changes.size and "environment" in kept:
            kept["environment"] = {**kept["environment"], "size": changes.size}
        _finish(target, {**kept, **card}, done)


def _finish(target: Path, card: dict[str, Any], done: list[Path]) -> None:
    written = finish(target, card, done)
    print(f"{target}: {written['episodes']} episodes, {written['records']} records")


def to_hdf5(files: list[Source], target: Path, changes: Changes) -> None:
    """Write one HDF5 file with checksums, and its SHA-256 beside it."""
    with _appearing(target) as temporary:
        count = write_vd4rl(temporary, _alike(files, changes, "HDF5"))
        require_unchanged(files)
        changes.report(files[0].path.parent)
        write_sum(target, sha256(temporary))
    print(
        f"{target}: {count} episodes, {target.stat().st_size} bytes; its SHA-256 is in {SUMS_NAME}; names and card of "
        "the source are not in it"
    )


def to_minari_dataset(files: list[Source], target: Path, changes: Changes) -> None:
    """Write a directory that Minari loads by its name, with the SHA-256 of its files.

    Raises:
      ConfigError: for a name that Minari does not take.
    """
    if not minari.NAME.fullmatch(target.name):
        raise ConfigError(
            f"{target}: expected a name for minari.load_dataset, such as walker-v0, received {target.name!r}; rename it"
        )
    with _appearing(target) as temporary:
        count = minari.write_minari(temporary, target.name, _alike(files, changes, "Minari"))
        require_unchanged(files)
        changes.report(files[0].path.parent)
        for name in (minari.MAIN_NAME, minari.METADATA_NAME):
            path = temporary / minari.FOLDER_NAME / name
            write_sum(path, sha256(path))
        FILES.sync_tree(temporary)
    print(
        f"{target}: {count} episodes for minari.load_dataset({target.name!r}), which looks in MINARI_DATASETS_PATH; "
        "names and card of the source are not in it"
    )


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A hidden path beside `target` to write to; it becomes `target` at the end of the block, or nothing is left.

    Raises:
      ConfigError: when the target is there already.
      StorageError: when it cannot be written.
    """
    if target.exists():
        raise ConfigError(f"{target}: exists already; choose another DST or remove it")
    temporary = temporary_sibling(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        FILES.remove_tree(temporary)
        yield temporary
        FILES.rename(temporary, target)
        FILES.sync_directory(target.parent)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{target}: cannot be written ({error.strerror or error}); {remedy(error, 'choose another DST')}"
        ) from error
    finally:
        FILES.remove_tree(temporary)


def _alike(files: list[Source], changes: Changes, kind: str) -> Iterator[Episode]:
    """The kept episodes in order. Raises DataError for one that a common file of this kind could not give back."""
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
        only, sound = "only there", episode.is_terminal == (episode.discount == 0)
        if kind == "Minari":
            only, sound = "1 elsewhere", episode.discount == 1 - episode.is_terminal
        if not sound.all():
            raise DataError(
                f"{source.path}: expected discount 0 where is_terminal and {only}, as {kind} keeps no other mark; "
                "correct the discounts"
            )
        yield episode
