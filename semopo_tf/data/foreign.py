"""What a source of `data convert` is, and the episodes of one of another layout than ours."""

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.data import minari, rows
from semopo_tf.data.changes import Changes
from semopo_tf.data.episodes import HDF5_SUFFIXES, RELINK, episode_files, holds_episodes
from semopo_tf.data.hdf5_process import read_in_child
from semopo_tf.data.recording import episode_arrays
from semopo_tf.errors import DataError

SIGNATURE = b"\x89HDF\r\n\x1a\n"


class Foreign(NamedTuple):
    """Files of another layout than ours while they are read."""

    facts: dict[str, Any]  # for the card
    episodes: Iterator[tuple[str, dict[str, np.ndarray]]]  # the words for the place of each, and its arrays


# (files, episodes to skip, changes) -> a context with what they hold.
Reader = Callable[[list[Path], int, Changes], contextlib.AbstractContextManager[Foreign]]


def foreign_files(source: Path) -> tuple[list[Path], Reader | None]:
    """The files that `source` is or holds, and what reads them; nothing does for npz episodes, which are ours.

    Raises:
      DataError: for a source that is none of them.
    """
    if folder := minari.minari_folder(source):
        _require_hdf5(folder / minari.MAIN_NAME)
        return [folder / minari.MAIN_NAME, folder / minari.METADATA_NAME], read_minari
    if shards := hdf5_files(source):
        return shards, read_vd4rl
    files = episode_files(source)
    return files, read_rows if rows.holds_rows(files[0]) else None


@contextlib.contextmanager
def read_vd4rl(files: list[Path], skip: int, changes: Changes) -> Iterator[Foreign]:
    """Raises DataError when no record begins and ends an episode."""
    folder = files[0].parent
    with contextlib.closing(read_in_child(files, skip, "vd4rl")) as answers:
        found = next(answers)["contents"]
        if found["outside"]:
            left = f"{found['outside']} of {found['records']} records"
            print(f"{folder}: {left} lie between no FIRST and LAST and are left out")
        if not found["episodes"]:
            expected = "expected step_type to mark episodes (0 first, 2 last)"
            raise DataError(f"{folder}: {expected}, received none in {found['records']} records")
        numbered = enumerate(answers, skip)
        episodes = ((f"{folder}: episode {number}", answer["arrays"]) for number, answer in numbered)
        yield Foreign({"records_left_out": found["outside"]}, episodes)


@contextlib.contextmanager
def read_minari(files: list[Path], skip: int, changes: Changes) -> Iterator[Foreign]:
    """Raises DataError for spaces that no episode can be made of."""
    main, metadata = files
    spaces = minari.read_spaces(metadata)
    shapes = {"image_key": spaces.image_key, "image_shape": spaces.image_shape, "action_shape": spaces.action_shape}
    with contextlib.closing(read_in_child(files, skip, "minari", size=changes.size, **shapes)) as answers:
        jpeg = next(answers)["contents"]["jpeg"]
        if jpeg:
            print(
                f"{main}: the images are JPEG, so not exactly what was seen; jpeg_encoding=False of minari keeps that"
            )
        if changes.size:
            changes.note_size(spaces.image_size)

        def episodes() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
            for number, answer in enumerate(answers, skip):
                where = f"{main}: episode_{number}"
                yield where, episode_arrays(minari.recording(answer["arrays"], spaces, where), where)

        yield Foreign({"jpeg": True} if jpeg else {}, episodes())


@contextlib.contextmanager
def read_rows(files: list[Path], skip: int, changes: Changes) -> Iterator[Foreign]:
    """One file after another."""
    recordings = (pair for path in files for pair in rows.read_rows(path))
    yield Foreign(
        {}, ((where, episode_arrays(found, where)) for where, found in itertools.islice(recordings, skip, None))
    )


def hdf5_files(source: Path) -> list[Path]:
    """The HDF5 files that `source` is or holds, numbers in names counted as numbers; none for a directory of npz files.

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
