"""Episodes on disk: one npz file each, written whole, and validated when it is read."""

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.data.validation import EPISODE_KEYS, REQUIRED_KEYS, Amend, validate_episode
from semopo_tf.errors import DataError
from semopo_tf.storage.files import write_whole
from semopo_tf.storage.npz import NpzError, read_npz
from semopo_tf.storage.untrusted import read_whole
from semopo_tf.types import Episode

LOG_PREFIX = "log_"
HDF5_SUFFIXES = (".hdf5", ".h5")
MAX_EPISODE_BYTES = 1 << 29  # of one file, packed and unpacked; 43 000 records of 64 x 64 pixels
SHOWN_KEYS = 8
EPISODE_SUFFIX = ".npz"  # in any case
PARTIAL = (".npz.part", ".npz.crdownload", ".npz.download", ".npz.tmp")
REFETCH = "fetch the file again"
RELINK = "the target of a link must be a regular file; copy datasets with cp -rL, which follows links"


def write_episode(path: Path, episode: Episode) -> None:
    """Write one episode as a compressed npz that appears by rename; what is in `log` as `log_<name>`."""
    arrays: dict[str, Any] = episode.arrays() | {f"{LOG_PREFIX}{name}": array for name, array in episode.log.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def read_episode(path: Path, amend: Amend | None = None) -> Episode:
    """Read and validate one npz episode.

    Missing `discount`, `is_terminal`, `is_first` and `is_last` are derived (`is_terminal` is `discount == 0`); `log_*`
    and other keys are ignored, see `read_log`. Lengths come from the arrays, never from the file's name. Rewards keep
    their own float type.

    Args:
      amend: changes the arrays, given with the file's name, before they are validated.

    Raises:
      DataError: naming the file, what was expected and what it holds.
    """
    return read_stored(path, amend).episode


def require_readable(path: Path) -> None:
    """Read a file that was just written as every reader will; one that would be refused is removed.

    Raises:
      DataError: as `read_episode`.
    """
    try:
        read_episode(path)
        read_log(path)
    except DataError:
        path.unlink()
        raise


def read_log(path: Path) -> dict[str, np.ndarray]:
    """The `log_*` arrays of an episode by their name without the prefix; [L, ...] each.

    Raises:
      DataError: as `read_episode`.
    """
    arrays, _, _ = read_arrays(path, lambda key: key.startswith(LOG_PREFIX))
    return {key.removeprefix(LOG_PREFIX): array for key, array in arrays.items()}


class StoredEpisode(NamedTuple):
    """One episode with what its dataset keeps of the file, all from one opening."""

    episode: Episode
    entry: dict[str, Any]  # name, size, mtime_ns, sha256, length
    unknown: list[str]  # keys that are neither ours nor `log_*`


def read_stored(path: Path, amend: Amend | None = None) -> StoredEpisode:
    """`read_episode` with the facts of the file."""
    arrays, others, (data, status) = read_arrays(path, EPISODE_KEYS.__contains__)
    if missing := [key for key in REQUIRED_KEYS if key not in arrays]:
        received = ", ".join([*arrays, *others][:SHOWN_KEYS])[:100] or "none"
        raise DataError(
            f"{path}: expected the keys {', '.join(REQUIRED_KEYS)}, missing {', '.join(missing)}, received "
            f"{received}; convert the file"
        )
    known = {key: arrays[key] for key in EPISODE_KEYS if key in arrays}
    episode = validate_episode(amend(known, str(path)) if amend else known, where=str(path))
    entry = {"name": path.name, "size": len(data), "mtime_ns": status.st_mtime_ns}
    entry |= {"sha256": hashlib.sha256(data).hexdigest(), "length": len(episode.image)}
    return StoredEpisode(episode, entry, [key for key in others if not key.startswith(LOG_PREFIX)])


def read_arrays(
    path: Path, wanted: Callable[[str], bool]
) -> tuple[dict[str, np.ndarray], list[str], tuple[bytes, os.stat_result]]:
    """The wanted arrays of a file, the other keys in it, and its bytes and status.

    A link to a regular file is followed, as downloads of a hub are folders of links; nothing else than an episode comes
    of what it leads to.
    """
    try:
        content = read_whole(path, MAX_EPISODE_BYTES, follow=True)
    except OSError as error:
        reason, remedy = error.strerror or str(error), RELINK if path.is_symlink() else REFETCH
        raise DataError(
            f"{path}: expected an npz episode, but it cannot be read: {reason[:1].lower()}{reason[1:]}; {remedy}"
        ) from error
    if what := _impostor(path.name, content[0]):
        raise DataError(f"{path}: {what}; {REFETCH}")
    try:
        arrays, others = read_npz(content[0], wanted, MAX_EPISODE_BYTES)
    except NpzError as error:
        raise DataError(f"{path}: {error}") from error
    return arrays, others, content


def _impostor(name: str, data: bytes) -> str:
    """In plain words what a file is that should have been an npz archive; empty where it may be one."""
    head = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "this is a web page, not data; the download failed"
    if head.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not data; run git lfs pull"
    if name.startswith("._") or data.startswith(b"\x00\x05\x16\x07"):
        return "this is what macOS keeps beside a file, not data; remove it"
    if data.startswith(b"\x93NUMPY"):
        return "expected an npz archive, received a single npy array; store the arrays with numpy.savez_compressed"
    if data.startswith(b"\x89HDF"):
        return "expected an npz archive, received HDF5; convert it with python -m semopo_tf.data convert"
    if data[:1] == b"\x80" and data.endswith(b"."):
        return "expected an npz archive, received Python objects, which are refused"
    return ""


def is_episode(name: str) -> bool:
    """Whether a file of a dataset is an episode, by its name."""
    return name.lower().endswith(EPISODE_SUFFIX) and not name.startswith(".")


def holds_episodes(directory: Path) -> bool:
    """Whether there is an episode in a directory."""
    return any(is_episode(path.name) for path in directory.iterdir())


def episode_files(directory: Path) -> list[Path]:
    """The npz files of a dataset in name order, which is the order of collection.

    Raises:
      DataError: when the directory is missing or holds no npz file, with what is there instead.
    """
    if not directory.is_dir():
        raise DataError(
            f"{directory}: no such dataset directory; collect one with python -m semopo_tf.collect or correct "
            "--offline_dir"
        )
    names = sorted(entry.name for entry in os.scandir(directory))
    if unfinished := [name for name in names if name.lower().endswith(PARTIAL) and not name.startswith(".")]:
        raise DataError(
            f"{directory / unfinished[0]}: an unfinished download ({len(unfinished)} such files); finish it or remove "
            "the file"
        )
    files = [directory / name for name in names if is_episode(name)]
    if not files:
        received = (
            f"received {len(names)} other entries, e.g. {', '.join(names[:3])}"
            if names
            else "received an empty directory"
        )
        if any(name.lower().endswith(HDF5_SUFFIXES) for name in names):
            remedy = f"python -m semopo_tf.data convert {directory} DST"
            received += f"; HDF5 is not trained on, make episodes of it with {remedy}"
        raise DataError(f"{directory}: expected episode files *.npz, {received}")
    return files
