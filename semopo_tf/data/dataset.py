"""A directory of episodes as one memory-mapped dataset.

The first opening copies all frames into one contiguous array beside the dataset (the cache); later openings map it, so
that several runs share its pages. Every file is validated on the way in, and a bad one stops the run with its name.
"""

import contextlib
import glob
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from semopo_tf.data.episodes import SHOWN_KEYS, StoredEpisode, episode_files, read_stored
from semopo_tf.errors import DataError, StorageError, user_path
from semopo_tf.storage.files import FILES, locked, sha256, temporary_sibling, write_whole
from semopo_tf.storage.npz import read_header, read_npy
from semopo_tf.storage.schema import unfit
from semopo_tf.storage.untrusted import parse_json, read_whole
from semopo_tf.types import Episode

CACHE_VERSION = 1
CACHE_NAME = ".semopo_cache"
MAX_MANIFEST_BYTES = 1 << 26
MAX_COLUMN_BYTES = 1 << 32
COLUMNS = {
    "action": ("f4", 2),
    "reward": ("f4", 1),
    "is_terminal": ("?", 1),
    "length": ("i8", 1),
    "returns": ("f8", 1),
    "native_returns": ("f8", 1),
}  # name -> type, number of axes
MANIFEST = {
    "version": {CACHE_VERSION},
    "files": [{"name": str, "size": int, "mtime_ns": int, "sha256": str}],
    "arrays": dict,
}
RECORDS = ("action", "reward", "is_terminal")  # the columns with a row a record; the others have one an episode


class Dataset(NamedTuple):
    """All episodes of a directory, one after another in file order. `N` records, `n` episodes."""

    directory: Path
    names: list[str]  # n file names
    frames: np.ndarray  # [N, H, W, 3] uint8, memory-mapped and read-only
    action: np.ndarray  # [N, A] float32
    reward: np.ndarray  # [N] float32
    is_terminal: np.ndarray  # [N] bool
    offset: np.ndarray  # [n] int64, first record of each episode
    length: np.ndarray  # [n] int64, records of each episode
    returns: np.ndarray  # [n] float64, sum of rewards accumulated in float64
    native_returns: np.ndarray  # [n] float64, sum in the stored type: what the original sorts and merges by
    manifest: dict[str, Any]  # of the source files: name, size, SHA-256

    def long_enough(self, min_length: int) -> np.ndarray:
        """Which episodes have at least `min_length` records, [n] bool.

        Raises:
          DataError: when none has.
        """
        long = self.length >= min_length
        if not long.any():
            raise DataError(
                f"{self.directory}: expected episodes of at least --min_length {min_length} records, received at most "
                f"{int(self.length.max())}; lower --min_length"
            )
        return long

    def require_length(self, records: int, setting: str, min_length: int = 0) -> None:
        """Raises DataError when an episode has fewer than the `records` that a batch takes at once.

        Args:
          setting: the setting that says so.
          min_length: shorter episodes are left out, and may have any length.
        """
        short = np.flatnonzero(self.long_enough(min_length) & (self.length < records))
        if len(short):
            name = self.names[int(short[0])]
            raise DataError(
                f"{self.directory / name}: expected at least {setting} = {records} records, received "
                f"{int(self.length[short[0]])} ({len(short)} such files); lower --{setting.split()[0]}, or leave them "
                f"out with --min_length {records}"
            )

    def require_files(self, files: list[dict[str, Any]]) -> None:
        """Raises DataError, naming the first file that differs in name or content from `files`, those that a run began
        with.
        """
        then, now = ({file["name"]: file["sha256"] for file in listed} for listed in (files, self.manifest["files"]))
        for name in sorted(then.keys() | now.keys()):
            if then.get(name) != now.get(name):
                what = "added" if name not in then else "removed" if name not in now else "changed"
                raise DataError(
                    f"{self.directory / name}: {what} since this run began; restore the dataset as it was, or start "
                    "another run"
                )


def open_dataset(directory: Path, cache: Path | None = None) -> Dataset:
    """Open a directory of episodes, building its cache on first use.

    Args:
      cache: where the cache is kept; by default `.semopo_cache` inside `directory`.

    Raises:
      DataError: for a missing or empty directory, a bad file, or files that disagree in image or action shape.
      StorageError: when the cache cannot be written.
    """
    directory = Path(directory)
    files = episode_files(directory)
    cache = cache or directory / CACHE_NAME
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with locked(cache.with_name(f"{cache.name}.lock"), wait=True, what=f"the cache {cache}"):
            manifest = _current_manifest(cache, files)
            columns = _open_cache(cache, len(files)) if manifest else None
            if manifest is None or columns is None:
                manifest = _build_cache(cache, files)
                columns = _open_cache(cache, len(files))
    except StorageError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(
            f"{cache}: the dataset cache cannot be written ({reason}); choose another place with --cache_dir"
        ) from error
    if columns is None:
        raise StorageError(f"{cache}: the dataset cache cannot be read back; choose another place with --cache_dir")
    offset = np.concatenate([[0], np.cumsum(columns["length"])[:-1]]).astype(np.int64)
    public = {"files": [{key: entry[key] for key in ("name", "size", "sha256")} for entry in manifest["files"]]}
    return Dataset(directory, [path.name for path in files], offset=offset, manifest=public, **columns)


def cache_place(directory: Path, cache_dir: str, logdir: Path) -> Path | None:
    """Where the cache of `directory` is kept: in `cache_dir` if given, in the run directory if the dataset is
    read-only, else beside the data (None).
    """
    tag = f"{directory.name}-{hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:12]}"
    if cache_dir:
        return user_path(cache_dir) / tag
    if directory.is_dir() and not os.access(directory, os.W_OK):
        return logdir / "cache" / tag
    return None


def _current_manifest(cache: Path, files: list[Path]) -> dict[str, Any] | None:
    """The cache's manifest if the cache is whole and still describes `files`, else None.

    Source files are hashed only where size or time differ; of the cache's own arrays the sizes are compared.
    """
    try:
        manifest = parse_json(read_whole(cache / "manifest.json", MAX_MANIFEST_BYTES)[0])
        if unfit(manifest, MANIFEST) or [entry["name"] for entry in manifest["files"]] != [path.name for path in files]:
            return None
        if any((cache / name).stat().st_size != size for name, size in manifest["arrays"].items()):
            return None
    except (OSError, ValueError):
        return None
    touched = False
    for entry, path in zip(manifest["files"], files, strict=True):
        status = path.stat() if path.is_file() else None  # of the target where it is a link
        if status is None or status.st_size != entry["size"]:
            return None
        if status.st_mtime_ns != entry["mtime_ns"]:
            if sha256(path) != entry["sha256"]:
                return None
            entry["mtime_ns"], touched = status.st_mtime_ns, True
    if touched:
        with contextlib.suppress(StorageError):  # a full disk: the next opening compares these files again
            write_whole(cache / "manifest.json", json.dumps(manifest, indent=1).encode())
    return manifest


def _open_cache(cache: Path, episodes: int) -> dict[str, np.ndarray] | None:
    """The cache's arrays, or None where they are not those of so many episodes: it may have come with a foreign
    dataset.
    """
    try:
        columns = {key: read_npy(read_whole(cache / f"{key}.npy", MAX_COLUMN_BYTES)[0]) for key in COLUMNS}
        with open(cache / "frames.npy", "rb") as file:
            status, header = os.fstat(file.fileno()), read_header(file)
            if header.size != status.st_size or header.dtype != np.uint8 or len(header.shape) != 4 or header.fortran:
                return None
            columns["frames"] = np.memmap(file, np.uint8, "r", header.start, header.shape)
    except (OSError, ValueError):
        return None
    if any((columns[key].dtype, columns[key].ndim) != (np.dtype(kind), rank) for key, (kind, rank) in COLUMNS.items()):
        return None
    records = {len(columns[key]) for key in ("frames", *RECORDS)}
    whole = len(records) == 1 and {len(columns[key]) for key in COLUMNS if key not in RECORDS} == {episodes}
    return columns if whole and columns["length"].min() >= 2 and {int(columns["length"].sum())} == records else None


def _build_cache(cache: Path, files: list[Path]) -> dict[str, Any]:
    """Validate every file, copy all arrays into one temporary directory and rename it into place.

    What is there under its name describes other files by now, and leftovers are of killed builders, as the lock is
    ours. They go first, so that the disk need hold the frames only once; a run that has mapped them keeps them.
    """
    temporary = temporary_sibling(cache)
    for old in (cache, *cache.parent.glob(f".tmp-*-{glob.escape(cache.name)}")):
        FILES.remove_tree(old)
    FILES.make_directory(temporary)
    try:
        entries: list[dict[str, Any]] = []
        unknown: set[str] = set()
        rows: dict[str, list[Any]] = {key: [] for key in COLUMNS}
        with open(temporary / "frames.npy", "wb") as frames:
            for episode, entry, keys in _consistent_episodes(files):
                if not entries:
                    _write_header(frames, 0, episode)
                entries.append(entry)
                unknown |= set(keys)
                frames.write(np.ascontiguousarray(episode.image).data)
                for key, value in _rows(episode).items():
                    rows[key].append(value)
            frames.seek(0)
            _write_header(frames, sum(rows["length"]), episode)
        for key, (kind, _) in COLUMNS.items():
            column = np.concatenate(rows[key]) if key in RECORDS else np.array(rows[key], kind)
            np.save(temporary / f"{key}.npy", column)
        arrays = {path.name: path.stat().st_size for path in sorted(temporary.glob("*.npy"))}
        manifest = {"version": CACHE_VERSION, "files": entries, "arrays": arrays}
        FILES.write(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())
        FILES.rename(temporary, cache)
        _warn(files[0].parent, entries, unknown)
    finally:
        FILES.remove_tree(temporary)
    return manifest


def _consistent_episodes(files: list[Path]) -> Iterator[StoredEpisode]:
    """Read the files in order, requiring the image and action shapes of the first."""
    expected = None
    for path in tqdm(files, desc="reading episodes", unit="file", disable=None):
        stored = read_stored(path)
        shapes = (stored.episode.image.shape[1:], stored.episode.action.shape[1:])
        expected = expected or shapes
        if shapes != expected:
            raise DataError(
                f"{path}: expected image {list(expected[0])} and action {list(expected[1])} as in {files[0].name}, "
                f"received {list(shapes[0])} and {list(shapes[1])}"
            )
        yield stored


def _rows(episode: Episode) -> dict[str, Any]:
    """What one episode adds to each column."""
    returns = episode.reward.sum(dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # a half-precision sum may overflow
        native = float(episode.reward.sum(dtype=episode.reward.dtype))
    return {
        "action": episode.action,
        "reward": episode.reward.astype(np.float32),
        "is_terminal": episode.is_terminal,
        "length": len(episode.reward),
        "returns": returns,
        "native_returns": native if np.isfinite(native) else returns,
    }


def _write_header(file: IO[bytes], records: int, episode: Episode) -> None:
    """Write the npy header of `records` frames. NumPy makes it equally long for every number of them."""
    shape = (records, *episode.image.shape[1:])
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _warn(directory: Path, entries: list[dict[str, Any]], unknown: set[str]) -> None:
    """Say once what is kept or left out without being an error."""
    if unknown:
        listed = ", ".join(sorted(unknown)[:SHOWN_KEYS])[:100]
        print(f"semopo_tf: warning: {directory}: nothing reads the keys {listed}; they are left out", file=sys.stderr)
    first: dict[str, str] = {}
    copies = []
    for entry in entries:
        original = first.setdefault(entry["sha256"], entry["name"])
        if original != entry["name"]:
            copies.append(f"{entry['name']} is a copy of {original}")
    if copies:
        print(f"semopo_tf: warning: {directory}: {copies[0]} ({len(copies)} such files); all are kept", file=sys.stderr)


def held_out(names: list[str], fraction: float, seed: int) -> np.ndarray:
    """Which episodes are kept from training, [n] bool: the `fraction` with the smallest hash of (seed, name). Never
    shuffles.

    Raises:
      DataError: when a non-zero fraction leaves nothing to train on or nothing held out.
    """
    count = round(fraction * len(names))
    if fraction > 0 and not 0 < count < len(names):
        raise DataError(
            f"valid_fraction = {fraction}: expected at least one of {len(names)} episodes on either side, "
            f"received {count} held out; change --valid_fraction"
        )
    ranks = sorted(range(len(names)), key=lambda index: hashlib.sha256(f"{seed}/{names[index]}".encode()).digest())
    mask = np.zeros(len(names), bool)
    mask[ranks[:count]] = True
    return mask


def split(dataset: Dataset, fraction: float, seed: int, min_length: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which episodes are trained on and which are held out, [n] bool each. Those shorter than `min_length` records are
    neither, and the others are split as if those were not there.

    Raises:
      DataError: as `held_out`, or when no episode is long enough.
    """
    kept = np.flatnonzero(dataset.long_enough(min_length))
    aside = held_out([dataset.names[index] for index in kept], fraction, seed)
    train, valid = np.zeros((2, len(dataset.names)), bool)
    train[kept[~aside]], valid[kept[aside]] = True, True
    return train, valid
