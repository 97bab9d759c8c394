"""Episodes on disk: write, read and validate one npz file; open a directory of them as one memory-mapped dataset.

The first opening copies all frames into one contiguous array beside the dataset (the cache); later openings map it, so that
several runs share its pages. Every file is validated on the way in, and a bad one stops the run with its name.
"""

import hashlib
import io
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from semopo_tf.errors import DataError, StorageError
from semopo_tf.files import FILES, locked, sha256, temporary_sibling, write_whole
from semopo_tf.types import Episode
from semopo_tf.untrusted import NpzError, parse_json, read_header, read_npy, read_npz, read_whole

CACHE_VERSION = 1
CACHE_NAME = ".semopo_cache"
REQUIRED_KEYS = ("image", "action", "reward")
EPISODE_KEYS = Episode._fields[:-1]  # all but `log`
ACTION_TOLERANCE = 1e-6
LOG_PREFIX = "log_"
HDF5_SUFFIXES = (".hdf5", ".h5")
Amend = Callable[[dict[str, np.ndarray], str], dict[str, np.ndarray]]  # the arrays of an episode and where they come from -> the arrays to use
REPAIR = "python -m semopo_tf.data convert SRC DST --repair_flags writes a corrected copy"
MAX_EPISODE_BYTES = 1 << 29  # of one file, packed and unpacked; 43 000 records of 64 x 64 pixels
MAX_MANIFEST_BYTES = 1 << 26
MAX_REWARD = 1e6
SHOWN_KEYS = 8
MAX_COLUMN_BYTES = 1 << 32
COLUMNS = {"action": ("f4", 2), "reward": ("f4", 1), "is_terminal": ("?", 1), "length": ("i8", 1), "returns": ("f8", 1), "native_returns": ("f8", 1)}
PARTIAL = (".npz.part", ".npz.crdownload", ".npz.download", ".npz.tmp")
REFETCH = "fetch the file again"


def write_episode(path: Path, episode: Episode) -> None:
    """Write one episode as a compressed npz that appears by rename; what is in `log` as `log_<name>`."""
    arrays: dict[str, Any] = episode.arrays() | {f"{LOG_PREFIX}{name}": array for name, array in episode.log.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def read_episode(path: Path, amend: Amend | None = None) -> Episode:
    """Read and validate one npz episode.

    Missing `discount`, `is_terminal`, `is_first` and `is_last` are derived (`is_terminal` is `discount == 0`); `log_*` and other
    keys are ignored, see `read_log`. Lengths come from the arrays, never from the file's name. Rewards keep their own float type.

    Args:
      amend: changes the arrays, given with the file's name, before they are validated.

    Raises:
      DataError: naming the file, what was expected and what it holds.
    """
    return _read(path, amend).episode


def read_log(path: Path) -> dict[str, np.ndarray]:
    """The `log_*` arrays of an episode by their name without the prefix; [L, ...] each.

    Raises:
      DataError: as `read_episode`.
    """
    arrays, _, _ = _unpack(path, lambda key: key.startswith(LOG_PREFIX))
    return {key.removeprefix(LOG_PREFIX): array for key, array in arrays.items()}


class Source(NamedTuple):
    """One episode with what its dataset keeps of the file, all from one opening."""

    episode: Episode
    entry: dict[str, Any]  # name, size, mtime_ns, sha256, length
    unknown: list[str]  # keys that are neither ours nor `log_*`


def _read(path: Path, amend: Amend | None = None) -> Source:
    arrays, others, content = _unpack(path, EPISODE_KEYS.__contains__)
    data, status = content
    missing = [key for key in REQUIRED_KEYS if key not in arrays]
    if missing:
        found = ", ".join([*arrays, *others][:SHOWN_KEYS])[:100] or "none"
        raise DataError(f"{path}: expected the keys {', '.join(REQUIRED_KEYS)}, missing {', '.join(missing)}, received {found}; convert the file")
    known = {key: arrays[key] for key in EPISODE_KEYS if key in arrays}
    episode = validate_episode(amend(known, str(path)) if amend else known, where=str(path))
    digest = hashlib.sha256(data).hexdigest()
    entry = {"name": path.name, "size": len(data), "mtime_ns": status.st_mtime_ns, "sha256": digest, "length": len(episode.image)}
    return Source(episode, entry, [key for key in others if not key.startswith(LOG_PREFIX)])


def _unpack(path: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, np.ndarray], list[str], tuple[bytes, os.stat_result]]:
    """The wanted arrays of a file, the other keys in it, and its bytes and status."""
    try:
        content = read_whole(path, MAX_EPISODE_BYTES)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path}: expected an npz episode, but it cannot be read: {reason[:1].lower()}{reason[1:]}; {REFETCH}") from error
    what = _impostor(path.name, content[0])
    if what:
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


def validate_episode(arrays: dict[str, np.ndarray], where: str) -> Episode:
    """Check the arrays of one episode against the contract of `types.Episode` and fill in the derivable ones.

    Raises:
      DataError: beginning with `where`.
    """
    image, action, reward = (arrays[key] for key in REQUIRED_KEYS)
    length = len(image) if image.ndim else 0
    _require(
        image.dtype == np.uint8 and image.ndim == 4 and image.shape[-1] == 3 and 0 not in image.shape[1:], where, "image", "uint8 [L, H, W, 3]", image
    )
    _require(action.ndim == 2 and action.dtype.kind == "f" and action.shape[1] > 0, where, "action", "float [L, A]", action)
    _require(reward.ndim == 1 and reward.dtype.kind == "f", where, "reward", "float [L]", reward)
    for key in [key for key in arrays if key not in REQUIRED_KEYS]:
        _require(arrays[key].ndim == 1 and arrays[key].dtype.kind in "bfiu", where, key, "bool or number [L]", arrays[key])
    for key, array in arrays.items():
        if array.ndim == 0 or len(array) != length:
            raise DataError(f"{where}: expected all arrays to have the {length} records of image, received {key} of shape {list(array.shape)}")
    if length < 2:
        raise DataError(f"{where}: expected at least 2 records, received {length}")
    for key, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{where}: {key} is not finite at record {int(np.argwhere(~np.isfinite(array))[0][0])}")
    largest = float(np.abs(action).max())
    if largest > 1 + ACTION_TOLERANCE:
        raise DataError(f"{where}: expected actions in [-1, 1], received {largest:.4g}; rescale the actions to the policy's range")
    largest = float(np.abs(reward).max())
    if largest > MAX_REWARD:
        raise DataError(f"{where}: expected rewards within {MAX_REWARD:g} of zero, received {largest:.4g}; rescale or repair them")
    if "discount" in arrays and not (arrays["discount"].min() >= 0 and arrays["discount"].max() <= 1):
        found = f"{float(arrays['discount'].min()):.4g} to {float(arrays['discount'].max()):.4g}"
        raise DataError(f"{where}: expected discounts in [0, 1], received {found}; repair them")
    if np.any(action[0]) or reward[0] != 0:
        raise DataError(
            f"{where}: expected zero action and reward at record 0, which follows no decision; shift the arrays so that action[t] led to image[t]"
        )
    flags: dict[str, np.ndarray] = {key: arrays[key].astype(bool) for key in ("is_first", "is_last", "is_terminal") if key in arrays}
    if "is_terminal" not in flags:
        flags["is_terminal"] = arrays["discount"] == 0 if "discount" in arrays else np.zeros(length, bool)
    flags.setdefault("is_first", np.arange(length) == 0)
    flags.setdefault("is_last", np.arange(length) == length - 1)
    for key, only, remedy in (("is_first", 0, f"one file holds one episode; {REPAIR}"), ("is_last", length - 1, REPAIR)):
        if np.flatnonzero(flags[key]).tolist() != [only]:
            raise DataError(
                f"{where}: expected {key} at record {only} alone, received it at records {np.flatnonzero(flags[key]).tolist()[:5]}; {remedy}"
            )
    if flags["is_terminal"][:-1].any():
        ended = int(np.argmax(flags["is_terminal"]))
        raise DataError(
            f"{where}: expected is_terminal (or discount 0) at the last record {length - 1} only, received it at record {ended}; {REPAIR}"
        )
    discount = arrays.get("discount", 1.0 - flags["is_terminal"]).astype(np.float32)
    return Episode(image, action.astype(np.float32), reward, discount, flags["is_first"], flags["is_last"], flags["is_terminal"])


def repair_flags(arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """The arrays with `is_first` and `is_last` at the ends of the file and no termination before its last record; the rest as it was.

    Where a termination is taken away, a discount of 0 becomes 1. Arrays of a wrong shape are left for `validate_episode` to refuse.

    Raises:
      DataError: beginning with `where`, when the file holds several episodes: a later record that `is_first`, without action and reward.
    """
    length = len(arrays["reward"]) if arrays["reward"].ndim else 0
    flags = [key for key in ("is_first", "is_last", "is_terminal", "discount") if key in arrays]
    if any(arrays[key].shape != (length,) or arrays[key].dtype.kind not in "bfiu" for key in flags) or arrays["action"].shape[:-1] != (length,):
        return arrays
    record = np.arange(length)
    if "is_first" in arrays:
        resets = record[arrays["is_first"].astype(bool) & (record > 0) & (arrays["reward"] == 0) & ~arrays["action"].any(-1)]
        if len(resets):
            raise DataError(f"{where}: a second episode begins at record {resets[0]}; one file holds one episode, cut it there")
    inside = record < length - 1
    sound = {"is_first": record == 0, "is_last": ~inside}
    if "is_terminal" in arrays:
        sound["is_terminal"] = arrays["is_terminal"].astype(bool) & ~inside
    if "discount" in arrays:
        sound["discount"] = np.where(inside & (arrays["discount"] == 0), arrays["discount"].dtype.type(1), arrays["discount"])
    return arrays | sound


def _require(condition: bool, where: str, key: str, expected: str, array: np.ndarray) -> None:
    if not condition:
        raise DataError(f"{where}: expected {key} as {expected}, received {array.dtype} {list(array.shape)}")


def episode_files(directory: Path) -> list[Path]:
    """The npz files of a dataset in name order, which is the order of collection.

    Raises:
      DataError: when the directory is missing or holds no npz file, with what was found there.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: no such dataset directory; collect one with python -m semopo_tf.collect or correct --offline_dir")
    names = sorted(entry.name for entry in os.scandir(directory))
    unfinished = [name for name in names if name.endswith(PARTIAL) and not name.startswith(".")]
    if unfinished:
        raise DataError(f"{directory / unfinished[0]}: an unfinished download ({len(unfinished)} such files); finish it or remove the file")
    files = [directory / name for name in names if name.endswith(".npz") and not name.startswith(".")]
    if not files:
        listing = f"found {len(names)} other entries, e.g. {', '.join(names[:3])}" if names else "the directory is empty"
        if any(name.lower().endswith(HDF5_SUFFIXES) for name in names):
            listing += f"; HDF5 is not trained on, make episodes of it with python -m semopo_tf.data convert {directory} DST"
        raise DataError(f"{directory}: expected episode files *.npz; {listing}")
    return files


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

    def require_length(self, records: int) -> None:
        """Raises DataError when an episode is shorter than a training window of `records`."""
        short = np.flatnonzero(self.length < records)
        if len(short):
            name = self.names[int(short[0])]
            raise DataError(
                f"{self.directory / name}: expected at least batch.length = {records} records, received {int(self.length[short[0]])}"
                f" ({len(short)} such files); lower --batch.length or remove the files"
            )

    def require_files(self, files: list[dict[str, Any]]) -> None:
        """Raises DataError, naming the first file that differs in name or content from `files`, those that a run began with."""
        then, now = ({file["name"]: file["sha256"] for file in listed} for listed in (files, self.manifest["files"]))
        for name in sorted(then.keys() | now.keys()):
            if then.get(name) != now.get(name):
                what = "added" if name not in then else "removed" if name not in now else "changed"
                raise DataError(f"{self.directory / name}: {what} since this run began; restore the dataset as it was, or start another run")


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
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        reason = error.strerror or error
        raise StorageError(f"{cache}: the dataset cache cannot be written ({reason}); choose another place with --cache_dir") from error
    if columns is None:
        raise StorageError(f"{cache}: the dataset cache cannot be read back; choose another place with --cache_dir")
    offset = np.concatenate([[0], np.cumsum(columns["length"])[:-1]]).astype(np.int64)
    public = {"files": [{key: entry[key] for key in ("name", "size", "sha256")} for entry in manifest["files"]]}
    return Dataset(directory, [path.name for path in files], offset=offset, manifest=public, **columns)


def cache_place(directory: Path, cache_dir: str, logdir: Path) -> Path | None:
    """Where the cache of `directory` goes: in `cache_dir` if given, in the run directory if the dataset is read-only, else beside the data (None)."""
    tag = f"{directory.name}-{hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:12]}"
    if cache_dir:
        return Path(cache_dir).expanduser() / tag
    if directory.is_dir() and not os.access(directory, os.W_OK):
        return logdir / "cache" / tag
    return None


def _current_manifest(cache: Path, files: list[Path]) -> dict[str, Any] | None:
    """The cache's manifest if the cache is whole and still describes `files`, else None.

    Source files are hashed only where size or time differ; of the cache's own arrays the sizes are compared.
    """
    try:
        manifest = parse_json(read_whole(cache / "manifest.json", MAX_MANIFEST_BYTES)[0])
        if manifest["version"] != CACHE_VERSION or [entry["name"] for entry in manifest["files"]] != [path.name for path in files]:
            return None
        if any((cache / name).stat().st_size != size for name, size in manifest["arrays"].items()):
            return None
        known = [{key: entry[key] for key in ("name", "size", "mtime_ns", "sha256")} for entry in manifest["files"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    touched = False
    for entry, old, path in zip(manifest["files"], known, files, strict=True):
        status = path.lstat()
        if status.st_size != old["size"] or not stat.S_ISREG(status.st_mode):
            return None
        if status.st_mtime_ns != old["mtime_ns"]:
            if sha256(path) != old["sha256"]:
                return None
            entry["mtime_ns"], touched = status.st_mtime_ns, True
    if touched:
        write_whole(cache / "manifest.json", json.dumps(manifest, indent=1).encode())
    return manifest


def _open_cache(cache: Path, episodes: int) -> dict[str, np.ndarray] | None:
    """The cache's arrays, or None where they are not what a cache of so many episodes holds: it may have come with a foreign dataset."""
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
    records = {len(columns[key]) for key in ("frames", "action", "reward", "is_terminal")}
    whole = len(records) == 1 and {len(columns[key]) for key in ("length", "returns", "native_returns")} == {episodes}
    return columns if whole and columns["length"].min() >= 2 and {int(columns["length"].sum())} == records else None


def _build_cache(cache: Path, files: list[Path]) -> dict[str, Any]:
    """Validate every file, copy all arrays into one temporary directory and rename it into place."""
    temporary = temporary_sibling(cache)
    FILES.remove_tree(temporary)
    FILES.make_directory(temporary)
    try:
        entries: list[dict[str, Any]] = []
        columns: dict[str, list[np.ndarray]] = {"action": [], "reward": [], "is_terminal": []}
        returns: list[float] = []
        native_returns: list[float] = []
        unknown: set[str] = set()
        with open(temporary / "frames.raw", "wb") as raw:
            for episode, entry, keys in _consistent_episodes(files):
                entries.append(entry)
                unknown |= set(keys)
                raw.write(np.ascontiguousarray(episode.image).data)
                for key, column in columns.items():
                    column.append(getattr(episode, key).astype(np.float32) if key == "reward" else getattr(episode, key))
                returns.append(episode.reward.sum(dtype=np.float64))
                with np.errstate(over="ignore", invalid="ignore"):
                    native = float(episode.reward.sum(dtype=episode.reward.dtype))
                native_returns.append(native if np.isfinite(native) else returns[-1])  # a half-precision sum may overflow
        length = np.array([entry["length"] for entry in entries], np.int64)
        _raw_to_npy(temporary / "frames.raw", temporary / "frames.npy", (int(length.sum()), *episode.image.shape[1:]))
        for key, column in columns.items():
            np.save(temporary / f"{key}.npy", np.concatenate(column))
        for key, values in (("length", length), ("returns", np.array(returns)), ("native_returns", np.array(native_returns))):
            np.save(temporary / f"{key}.npy", values)
        arrays = {path.name: path.stat().st_size for path in sorted(temporary.glob("*.npy"))}
        manifest = {"version": CACHE_VERSION, "files": entries, "arrays": arrays}
        FILES.write(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())
        FILES.remove_tree(cache)
        FILES.rename(temporary, cache)
        _notice(files[0].parent, entries, unknown)
    finally:
        FILES.remove_tree(temporary)
    return manifest


def _notice(directory: Path, entries: list[dict[str, Any]], unknown: set[str]) -> None:
    """Say once what is kept or left out without being an error."""
    if unknown:
        listed = ", ".join(sorted(unknown)[:SHOWN_KEYS])[:100]
        print(f"semopo_tf: warning: {directory}: nothing reads the keys {listed}; they are left out", file=sys.stderr)
    first: dict[str, str] = {}
    copies = [(entry["name"], first[entry["sha256"]]) for entry in entries if first.setdefault(entry["sha256"], entry["name"]) != entry["name"]]
    if copies:
        copy, original = copies[0]
        print(f"semopo_tf: warning: {directory}: {copy} is a copy of {original} ({len(copies)} such files); all are kept", file=sys.stderr)


def _consistent_episodes(files: list[Path]) -> Iterator[Source]:
    """Read the files in order, requiring the image and action shapes of the first."""
    expected = None
    for path in tqdm(files, desc="reading episodes", unit="file", disable=None):
        source = _read(path)
        episode = source.episode
        shapes = (episode.image.shape[1:], episode.action.shape[1:])
        expected = expected or shapes
        if shapes != expected:
            raise DataError(
                f"{path}: expected image {list(expected[0])} and action {list(expected[1])} as in {files[0].name}, "
                f"received {list(shapes[0])} and {list(shapes[1])}"
            )
        yield source


def _raw_to_npy(raw: Path, target: Path, shape: tuple[int, ...]) -> None:
    """Put an npy header before raw uint8 bytes, so that the number of records need not be known in advance."""
    with open(target, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        with open(raw, "rb") as source:
            while piece := source.read(1 << 24):
                file.write(piece)
    raw.unlink()


def held_out(names: list[str], fraction: float, seed: int) -> np.ndarray:
    """Which episodes are kept from training, [n] bool: the `fraction` with the smallest hash of (seed, name). Never shuffles.

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
