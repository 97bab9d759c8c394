"""V-D4RL's HDF5 layout, read with distrust: one file holds many episodes, one after another.

    action (N, A), discount (N,), observation (N, 3, H, W) uint8, reward (N,), step_type (N,): 0 first, 1 middle, 2 last

Record t means the same as in an npz episode, nothing is shifted. The shards of a dataset are cut anywhere, so episodes
may continue in the next file. HDF5 is parsed by a large C library, so `serve` runs in a child process under limits
(`hdf5_process.py`) and checks the structure of every file before it reads data. This is the only module that uses h5py,
and only inside functions.
"""

import contextlib
import itertools
import json
import math
import resource
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from semopo_tf.errors import DataError
from semopo_tf.storage.child import send
from semopo_tf.storage.limits import at_most
from semopo_tf.types import Episode

FIRST, MIDDLE, LAST = 0, 1, 2
FLOATS = ("float16", "float32", "float64")
STEP_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
# name: number of axes, types, both in words
LAYOUT: dict[str, tuple[int, tuple[str, ...], str]] = {
    "action": (2, FLOATS, "float (N, A)"),
    "discount": (1, FLOATS, "float (N,)"),
    "observation": (4, ("uint8",), "uint8 (N, 3, H, W)"),
    "reward": (1, FLOATS, "float (N,)"),
    "step_type": (1, STEP_TYPES, "integer or float (N,)"),
}
FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
RATIO = 1100  # declared bytes a stored byte; deflate cannot exceed 1032
EPISODE_BYTES = 1 << 28  # of one episode's arrays, and of one chunk
MAX_RECORDS = 20_000_000
CHUNK_FRAMES = 32  # frames in a chunk that we write


def serve(descriptor: int) -> None:
    """The child's whole life: take a request, set the limits, send the episodes.

    A request has `files` (paths in order), `memory` (bytes), `seconds` (of processor time) and `skip` (episodes not to
    send). The answers are `{"contents": ...}`, then `{"arrays": {name: array}}` for each episode, then `{"end": true}`,
    or at any point `{"error": line}`.
    """
    pipe = Connection(descriptor)
    request = json.loads(pipe.recv_bytes())
    limit(request["memory"], request["seconds"])
    with contextlib.suppress(ConnectionError):
        try:
            for answer in answers([Path(name) for name in request["files"]], request["skip"]):
                send(pipe, answer)
        except DataError as error:
            send(pipe, {"error": str(error)})
        except MemoryError:
            megabytes = request["memory"] >> 20
            line = f"reading it takes more than {megabytes} MB of memory; do not trust this file"
            send(pipe, {"error": f"{request['files'][0]}: {line}", "memory": True})


def limit(memory: int, seconds: int) -> None:
    """Limit this process: bytes of address space, seconds of processor time, no core dump, no file above 1 MB."""
    soft, hard = at_most(resource.RLIMIT_CPU, seconds + 1)
    resource.setrlimit(resource.RLIMIT_CPU, (min(soft, seconds), hard))  # the first ends with a signal of its own
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 1 << 20)):
        resource.setrlimit(kind, at_most(kind, most))


def answers(paths: list[Path], skip: int) -> Iterator[dict[str, Any]]:
    """What `serve` sends, with the arrays themselves. Every file is checked before the first record of any is read.

    Raises:
      DataError: naming the file.
    """
    with contextlib.ExitStack() as stack:
        shards = [(path, stack.enter_context(checked(path))) for path in paths]
        require_agreement(shards)
        with damage(paths[0]):
            step_type = np.concatenate([read_step_types(path, shard["step_type"]) for path, shard in shards])
        bounds = cut(step_type)
        inside = sum(stop - start for start, stop in bounds)
        yield {"contents": {"episodes": len(bounds), "records": len(step_type), "outside": len(step_type) - inside}}
        for start, stop in bounds[skip:]:
            yield {"arrays": read_episode(shards, start, stop)}
        yield {"end": True}


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turn what h5py raises on a bad file into a DataError with the cause."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, ArithmeticError, AttributeError) as error:
        message = " ".join(str(error).split())
        if "unable to lock file" in message:
            raise DataError(
                f"{path}: another process holds the lock of this HDF5 file; wait until it has finished writing"
            ) from error
        if "truncated file" in message:
            raise DataError(
                f"{path}: truncated HDF5 file ({path.stat().st_size} bytes); fetch the file again"
            ) from error
        raise DataError(f"{path}: damaged HDF5 file ({message[:120]}); fetch the file again") from error


@contextlib.contextmanager
def checked(path: Path) -> Iterator[dict[str, Any]]:
    """Open one file and yield its datasets by name after looking at their structure. Decodes no data, opens no link.

    Raises:
      DataError: for links, virtual or external data, filters, types, shapes or sizes that an honest file of this layout
        does not have.
    """
    import h5py

    with contextlib.ExitStack() as stack:
        with damage(path):
            file = stack.enter_context(h5py.File(path, "r"))
            datasets = {name: _dataset(path, file, name) for name in _require_names(path, file)}
            lengths = {name: dataset.shape[0] for name, dataset in datasets.items()}
            if len(set(lengths.values())) != 1 or not 0 < lengths["reward"] <= MAX_RECORDS:
                raise DataError(
                    f"{path}: expected equal lengths of 1 to {MAX_RECORDS}, received {lengths}; fetch the file again"
                )
            ranges = sorted(piece for name, dataset in datasets.items() for piece in _stored(path, name, dataset))
            overlap = any(left[1] > right[0] for left, right in itertools.pairwise(ranges))
            if overlap or ranges[-1][1] > path.stat().st_size:
                raise DataError(
                    f"{path}: damaged HDF5 file (stored pieces overlap or lie outside it); fetch the file again"
                )
            for name, dataset in datasets.items():
                require_reachable(path, name, dataset)
        yield datasets


def _require_names(path: Path, file: Any) -> list[str]:
    """All five names, each a hard link; any soft or external link in the root is refused."""
    import h5py

    names = list(itertools.islice(file, 1000))
    for name in names:
        if file.id.links.get_info(name.encode(errors="surrogateescape")).type != h5py.h5l.TYPE_HARD:
            raise DataError(f"{path}: {name} is a link to another place, refused; fetch a file that holds its own data")
    if missing := [name for name in LAYOUT if name not in names]:
        raise DataError(
            f"{path}: expected the datasets {', '.join(LAYOUT)}, missing {', '.join(missing)}, received "
            f"{', '.join(names[:8]) or 'none'}"
        )
    return list(LAYOUT)


def _dataset(path: Path, file: Any, name: str) -> Any:
    """One dataset whose kind, type, rank and storage are those of the layout."""
    import h5py

    dataset, (rank, kinds, words) = file[name], LAYOUT[name]
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{path}: expected {name} as a dataset {words}, received a {type(dataset).__name__.lower()}")
    known = any(h5py.h5t.py_create(np.dtype(kind).newbyteorder("<")).equal(dataset.id.get_type()) for kind in kinds)
    if not known or len(dataset.shape or ()) != rank or (name == "observation" and dataset.shape[1] != 3):
        raise DataError(
            f"{path}: expected {name} as {words}, little-endian, received {dataset.dtype.str} {dataset.shape}"
        )
    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count():
        raise DataError(
            f"{path}: {name} takes its data from other files, refused; fetch a file that holds its own data"
        )
    filters = _filters(dataset)
    if not set(filters) <= set(FILTERS) or filters.get(2, (dataset.dtype.itemsize,)) != (dataset.dtype.itemsize,):
        raise DataError(
            f"{path}: {name} uses the filters {filters}; expected only {', '.join(FILTERS.values())}; write the file "
            "again without others"
        )
    return dataset


def _stored(path: Path, name: str, dataset: Any) -> list[tuple[int, int]]:
    """The byte ranges [start, stop) of a dataset in the file, after comparing what is stored with what is declared.

    An honest chunked dataset has every chunk of its grid once, and no filter turns a byte into more than `RATIO`.
    """
    import h5py

    layout, stored = dataset.id.get_create_plist().get_layout(), dataset.id.get_storage_size()
    chunks = dataset.chunks or ()
    declared, piece = math.prod(dataset.shape) * dataset.dtype.itemsize, math.prod(chunks) * dataset.dtype.itemsize
    if piece > EPISODE_BYTES:
        raise DataError(
            f"{path}: {name} is stored in pieces of {chunks}, more than {EPISODE_BYTES >> 20} MB each; write it in "
            "smaller ones"
        )
    if declared > stored * RATIO or (layout != h5py.h5d.CHUNKED and declared != stored):
        raise DataError(
            f"{path}: {name} declares {declared} bytes and stores {stored}; it is not what it says, refused"
        )
    if layout == h5py.h5d.COMPACT:
        return []
    if layout == h5py.h5d.CONTIGUOUS:
        return [(dataset.id.get_offset(), dataset.id.get_offset() + stored)]
    pieces: list[Any] = []
    dataset.id.chunk_iter(pieces.append)
    grid = [range(0, size, step) for size, step in zip(dataset.shape, chunks, strict=True)]
    expected = math.prod(len(axis) for axis in grid)
    honest = len(pieces) == expected and {chunk.chunk_offset for chunk in pieces} == set(itertools.product(*grid))
    filters = _filters(dataset)
    plain = piece + 4 * (3 in filters)  # bytes of every stored piece where nothing compresses; 4 are its checksum
    packed = bool({1, 32000} & set(filters))
    if not honest or any(chunk.filter_mask or not (packed or chunk.size == plain) for chunk in pieces):
        raise DataError(
            f"{path}: {name} stores {len(pieces)} pieces where it says {expected}, or not as it says; fetch the file "
            "again"
        )
    return [(chunk.byte_offset, chunk.byte_offset + chunk.size) for chunk in pieces]


def _filters(dataset: Any) -> dict[int, tuple[int, ...]]:
    """The settings of a dataset's filters by their number, in the order of writing."""
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(index) for index in range(plist.get_nfilters())]
    return {number: settings for number, _, settings, _ in filters}


def require_reachable(path: Path, name: str, dataset: Any) -> None:
    """Raises DataError unless the index leads to every piece by its offset, which is how the library reads.

    Where that lookup fails, as after one flipped bit in the index, the library silently returns the fill value.
    """
    chunks: list[Any] = []
    if dataset.chunks:
        dataset.id.chunk_iter(chunks.append)
    if any(len(dataset.id.read_direct_chunk(chunk.chunk_offset)[1]) != chunk.size for chunk in chunks):
        raise DataError(f"{path}: the index of {name} is damaged; fetch the file again")


def require_agreement(shards: list[tuple[Path, dict[str, Any]]]) -> None:
    """Raises DataError unless all files have the types and record shapes of the first."""
    expected = {name: (dataset.dtype, dataset.shape[1:]) for name, dataset in shards[0][1].items()}
    for path, shard in shards:
        for name, dataset in shard.items():
            if name != "step_type" and (dataset.dtype, dataset.shape[1:]) != expected[name]:
                kind, shape = expected[name]
                raise DataError(
                    f"{path}: expected {name} as {kind} {shape} as in {shards[0][0].name}, received {dataset.dtype} "
                    f"{dataset.shape[1:]}"
                )


def read_step_types(path: Path, dataset: Any) -> np.ndarray:
    """[N] uint8.

    Raises:
      DataError: for a value that is none of the three.
    """
    values = dataset[:]
    wrong = values[~np.isin(values, (FIRST, MIDDLE, LAST))]
    if len(wrong):
        raise DataError(
            f"{path}: expected step_type 0 (first), 1 (middle) or 2 (last), received {wrong[0]} and {len(wrong) - 1} "
            "more"
        )
    return values.astype(np.uint8)


def cut(step_type: np.ndarray) -> list[tuple[int, int]]:
    """The records [start, stop) of every whole episode: a FIRST, any number of MIDDLE, a LAST."""
    marks = itertools.pairwise(np.flatnonzero(step_type != MIDDLE).tolist())
    return [(a, b + 1) for a, b in marks if step_type[a] == FIRST and step_type[b] == LAST]


def read_episode(shards: list[tuple[Path, dict[str, Any]]], start: int, stop: int) -> dict[str, np.ndarray]:
    """The arrays of an episode under their npz names, [start, stop) counted through all files; not yet validated."""
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in LAYOUT if name != "step_type"}
    record = sum(dataset.dtype.itemsize * math.prod(dataset.shape[1:]) for dataset in shards[0][1].values())
    if (stop - start) * record > EPISODE_BYTES:
        raise DataError(
            f"{shards[0][0]}: an episode of {stop - start} records takes more than {EPISODE_BYTES >> 20} MB; expected "
            "shorter ones"
        )
    offset = 0
    for path, shard in shards:
        length = shard["reward"].shape[0]
        low, high = max(start - offset, 0), min(stop - offset, length)
        if low < high:
            with damage(path):
                for name, parts in pieces.items():
                    parts.append(shard[name][low:high])
        offset += length
    arrays = {name: np.concatenate(parts) for name, parts in pieces.items()}
    return {"image": arrays.pop("observation").transpose(0, 2, 3, 1), **arrays}


def write_hdf5(path: Path, episodes: Iterator[Episode]) -> int:
    """Write episodes one after another with checksums (fletcher32) and gzip; the same episodes give the same bytes.
    Returns their number.
    """
    import h5py

    count = 0
    columns: dict[str, Any] = {}
    with h5py.File(path, "w") as file:
        for count, episode in enumerate(episodes, 1):  # noqa: B007
            step_type = np.where(episode.is_first, FIRST, np.where(episode.is_last, LAST, MIDDLE)).astype(np.int64)
            observation = episode.image.transpose(0, 3, 1, 2)
            arrays = {"observation": observation, "action": episode.action, "reward": episode.reward}
            for name, array in {**arrays, "discount": episode.discount, "step_type": step_type}.items():
                columns[name] = columns.get(name) or _create(file, name, array)
                columns[name].resize(columns[name].shape[0] + len(array), axis=0)
                columns[name][-len(array) :] = array
    return count


def _create(file: Any, name: str, array: np.ndarray) -> Any:
    shape, chunk = array.shape[1:], CHUNK_FRAMES if name == "observation" else 1024
    settings = {"compression": "gzip", "shuffle": name != "observation", "fletcher32": True}
    return file.create_dataset(
        name, (0, *shape), array.dtype, maxshape=(None, *shape), chunks=(chunk, *shape), **settings
    )
