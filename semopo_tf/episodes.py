"""Episodes on disk: write, read and validate one npz file; open a directory of them as one memory-mapped dataset.

The first opening copies all frames into one contiguous array beside the dataset (the cache); later openings map it, so that
several runs share its pages. Every file is validated on the way in, and a bad one stops the run with its name.
"""

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.errors import DataError, StorageError
from semopo_tf.files import FILES, locked, sha256, temporary_sibling, write_whole
from semopo_tf.types import Episode

CACHE_VERSION = 1
CACHE_NAME = ".semopo_cache"
CARD_NAME = "dataset.json"
REQUIRED_KEYS = ("image", "action", "reward")
EPISODE_KEYS = Episode._fields[:-1]  # all but `log`
ACTION_TOLERANCE = 1e-6
LOG_PREFIX = "log_"
HDF5_SUFFIXES = (".hdf5", ".h5")
REPAIR = "python -m semopo_tf.data convert SRC DST --repair_flags writes a corrected copy"


def write_episode(path: Path, episode: Episode) -> None:
    """Write one episode as a compressed npz that appears by rename; what is in `log` as `log_<name>`."""
    arrays: dict[str, Any] = episode.arrays() | {f"{LOG_PREFIX}{name}": array for name, array in episode.log.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def read_episode(path: Path, amend: Callable[[dict[str, np.ndarray], str], dict[str, np.ndarray]] | None = None) -> Episode:
    """Read and validate one npz episode.

    Missing `discount`, `is_terminal`, `is_first` and `is_last` are derived (`is_terminal` is `discount == 0`); `log_*` and other
    keys are ignored, see `read_log`. Lengths come from the arrays, never from the file's name. Rewards keep their own float type.

    Args:
      amend: changes the arrays, given with the file's name, before they are validated.

    Raises:
      DataError: naming the file, what was expected and what it holds.
    """
    if not path.is_file():
        raise DataError(_unreadable(path))  # before opening: a pipe would wait for its writer
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: expected an npz archive, received a single npy array; store the arrays with numpy.savez_compressed")
        with loaded as file:
            missing = [key for key in REQUIRED_KEYS if key not in file]
            if missing:
                raise DataError(
                    f"{path}: expected the keys {', '.join(REQUIRED_KEYS)}, missing {', '.join(missing)}, received {', '.join(file.files)}"
                )
            known = [key for key in EPISODE_KEYS if key in file]
            arrays = {key: file[key] for key in known}
    except DataError:
        raise
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(_unreadable(path)) from error
    return validate_episode(amend(arrays, str(path)) if amend else arrays, where=str(path))


def read_log(path: Path) -> dict[str, np.ndarray]:
    """The `log_*` arrays of an episode that `read_episode` accepts, by their name without the prefix; [L, ...] each."""
    with np.load(path, allow_pickle=False) as file:
        return {key.removeprefix(LOG_PREFIX): file[key] for key in file.files if key.startswith(LOG_PREFIX)}


def _unreadable(path: Path) -> str:
    """Say in plain words what a file is that should have been an npz archive."""
    if not path.is_file():
        return f"{path}: expected an npz episode, but it is not a regular file"
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(64).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html")):
        return f"{path}: this is a web page, not data; the download failed, fetch the file again"
    return f"{path}: truncated or damaged npz archive ({size} bytes); fetch or convert the file again"


def validate_episode(arrays: dict[str, np.ndarray], where: str) -> Episode:
    """Check the arrays of one episode against the contract of `types.Episode` and fill in the derivable ones.

    Raises:
      DataError: beginning with `where`.
    """
    image, action, reward = (arrays[key] for key in REQUIRED_KEYS)
    length = len(image) if image.ndim else 0
    _require(image.dtype == np.uint8 and image.ndim == 4 and image.shape[-1] == 3, where, "image", "uint8 [L, H, W, 3]", image)
    _require(action.ndim == 2 and action.dtype.kind == "f", where, "action", "float [L, A]", action)
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
    files = sorted(path for path in directory.glob("*.npz") if not path.name.startswith("."))
    if not files:
        found = sorted(entry.name for entry in directory.iterdir())
        listing = f"found {len(found)} other entries, e.g. {', '.join(found[:3])}" if found else "the directory is empty"
        if any(name.lower().endswith(HDF5_SUFFIXES) for name in found):
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
            if manifest is None:
                manifest = _build_cache(cache, files)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{cache}: the dataset cache cannot be written ({error.strerror}); choose another place with --cache_dir") from error
    small = {
        key: np.load(cache / f"{key}.npy", allow_pickle=False) for key in ("action", "reward", "is_terminal", "length", "returns", "native_returns")
    }
    frames = np.load(cache / "frames.npy", mmap_mode="r", allow_pickle=False)
    offset = np.concatenate([[0], np.cumsum(small["length"])[:-1]]).astype(np.int64)
    public = {"files": [{key: entry[key] for key in ("name", "size", "sha256")} for entry in manifest["files"]]}
    return Dataset(directory, [path.name for path in files], frames, offset=offset, manifest=public, **small)


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
        manifest = json.loads((cache / "manifest.json").read_text())
        if manifest["version"] != CACHE_VERSION or [entry["name"] for entry in manifest["files"]] != [path.name for path in files]:
            return None
        if any((cache / name).stat().st_size != size for name, size in manifest["arrays"].items()):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    touched = False
    for entry, path in zip(manifest["files"], files, strict=True):
        status = path.stat()
        if status.st_size != entry["size"]:
            return None
        if status.st_mtime_ns != entry["mtime_ns"]:
            if sha256(path) != entry["sha256"]:
                return None
            entry["mtime_ns"], touched = status.st_mtime_ns, True
    if touched:
        write_whole(cache / "manifest.json", json.dumps(manifest, indent=1).encode())
    return manifest


def _build_cache(cache: Path, files: list[Path]) -> dict[str, Any]:
    """Validate every file, copy all arrays into one temporary directory and rename it into place."""
    temporary = temporary_sibling(cache)
    FILES.remove_tree(temporary)
    FILES.make_directory(temporary)
    try:
        entries: list[dict[str, Any]] = []
        columns: dict[str, list[np.ndarray]] = {"action": [], "reward": [], "is_terminal": []}
        returns, native_returns = [], []
        with open(temporary / "frames.raw", "wb") as raw:
            for path, episode in _consistent_episodes(files):
                status = path.stat()
                entries.append(
                    {"name": path.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256(path), "length": len(episode.image)}
                )
                raw.write(np.ascontiguousarray(episode.image).data)
                for key, column in columns.items():
                    column.append(getattr(episode, key).astype(np.float32) if key == "reward" else getattr(episode, key))
                returns.append(episode.reward.sum(dtype=np.float64))
                native_returns.append(float(episode.reward.sum(dtype=episode.reward.dtype)))
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
    finally:
        FILES.remove_tree(temporary)
    return manifest


def _consistent_episodes(files: list[Path]) -> Iterator[tuple[Path, Episode]]:
    """Read the files in order, requiring the image and action shapes of the first."""
    expected = None
    for path in files:
        episode = read_episode(path)
        shapes = (episode.image.shape[1:], episode.action.shape[1:])
        expected = expected or shapes
        if shapes != expected:
            raise DataError(
                f"{path}: expected image {list(expected[0])} and action {list(expected[1])} as in {files[0].name}, "
                f"received {list(shapes[0])} and {list(shapes[1])}"
            )
        yield path, episode


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


def read_card(directory: Path) -> dict[str, Any] | None:
    """The dataset card `dataset.json` if there is one.

    Raises:
      DataError: when it is not a JSON object.
    """
    path = directory / CARD_NAME
    if not path.is_file():
        return None
    try:
        card = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: expected a JSON object ({error}); remove the file or collect the dataset again") from error
    if not isinstance(card, dict):
        raise DataError(f"{path}: expected a JSON object, received {type(card).__name__}")
    return card
