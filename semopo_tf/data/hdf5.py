"""HDF5 files from anywhere, read with distrust.

HDF5 is parsed by a large C library, so this runs in a child process under limits (`hdf5_child.py`), and the structure
of a file is looked at before its data are read. What a file holds is said in `vd4rl.py` and `minari.py`. This is the
only module that uses h5py, and only inside functions.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from semopo_tf.errors import DataError

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
RATIO = 1100  # declared bytes a stored byte; deflate cannot exceed 1032
EPISODE_BYTES = 1 << 28  # of one episode's arrays, and of one chunk
MAX_NAMES = 100_000  # in a group
LISTS = "lists of bytes"


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
def opened(path: Path) -> Iterator[Any]:
    """One file for reading. Raises DataError for one that h5py cannot open."""
    import h5py

    with contextlib.ExitStack() as stack:
        with damage(path):
            file = stack.enter_context(h5py.File(path, "r"))
        yield file


def create(path: Path) -> Any:
    """A new file, to be used as a context."""
    import h5py

    return h5py.File(path, "w")


def names_in(path: Path, group: Any) -> list[str]:
    """What a group holds, all of it in this file: a soft or external link is refused."""
    import h5py

    if len(group) > MAX_NAMES:
        raise DataError(f"{path}: expected at most {MAX_NAMES} names in a group, received {len(group)}; split the file")
    names = list(itertools.islice(group, MAX_NAMES))
    for name in names:
        if group.id.links.get_info(name.encode(errors="surrogateescape")).type != h5py.h5l.TYPE_HARD:
            raise DataError(
                f"{path}: {label(group, name)} is a link to another place, refused; fetch a file that holds its own "
                "data"
            )
    return names


def label(group: Any, name: str) -> str:
    """What messages call a member of a group."""
    return f"{group.name}/{name}".lstrip("/")


def is_group(member: Any) -> bool:
    import h5py

    return isinstance(member, h5py.Group)


def require_dataset(
    path: Path, group: Any, name: str, shape: tuple[int | None, ...], kinds: tuple[str, ...], words: str
) -> Any:
    """One dataset whose kind, type, shape and storage are as expected.

    Args:
      shape: None for an axis of any size.
      kinds: the types, little-endian; `LISTS` for variable lengths of bytes.
      words: both for the message.
    """
    import h5py

    dataset, where = group[name], label(group, name)
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{path}: expected {where} as a dataset {words}, received a {type(dataset).__name__.lower()}")
    sizes = dataset.shape or ()
    fits = len(sizes) == len(shape) and all(size in (None, here) for size, here in zip(shape, sizes, strict=True))
    if not fits or not any(_has_type(dataset, kind) for kind in kinds):
        raise DataError(
            f"{path}: expected {where} as {words}, little-endian, received {dataset.dtype.str} {dataset.shape}"
        )
    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count():
        raise DataError(
            f"{path}: {where} takes its data from other files, refused; fetch a file that holds its own data"
        )
    filters, item = _filters(dataset), _item(dataset)
    if not set(filters) <= set(FILTERS) or filters.get(2, (item,)) != (item,):
        raise DataError(
            f"{path}: {where} uses the filters {filters}; expected only {', '.join(FILTERS.values())}; write the file "
            "again without others"
        )
    return dataset


def _has_type(dataset: Any, kind: str) -> bool:
    import h5py

    if kind == LISTS:
        return h5py.check_vlen_dtype(dataset.dtype) == np.dtype(np.uint8)
    return h5py.h5t.py_create(np.dtype(kind).newbyteorder("<")).equal(dataset.id.get_type())


def _item(dataset: Any) -> int:
    """Stored bytes of one number, or of the place of a list."""
    return dataset.id.get_type().get_size()


def require_whole(path: Path, datasets: dict[str, Any]) -> None:
    """Raises DataError unless the datasets, by their names for messages, store all that they declare, in places of
    their own inside the file, and the library finds it there. Decodes nothing.
    """
    ranges = sorted(piece for name, dataset in datasets.items() for piece in _stored(path, name, dataset))
    overlap = any(left[1] > right[0] for left, right in itertools.pairwise(ranges))
    if overlap or (ranges and ranges[-1][1] > path.stat().st_size):
        raise DataError(f"{path}: damaged HDF5 file (stored pieces overlap or lie outside it); fetch the file again")
    for name, dataset in datasets.items():
        _require_reachable(path, name, dataset)


def _stored(path: Path, name: str, dataset: Any) -> list[tuple[int, int]]:
    """The byte ranges [start, stop) of a dataset in the file, after comparing what is stored with what is declared.

    An honest chunked dataset has every chunk of its grid once, and no filter turns a byte into more than `RATIO`.
    """
    import h5py

    layout, stored = dataset.id.get_create_plist().get_layout(), dataset.id.get_storage_size()
    chunks = dataset.chunks or ()
    declared, piece = math.prod(dataset.shape) * _item(dataset), math.prod(chunks) * _item(dataset)
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


def _require_reachable(path: Path, name: str, dataset: Any) -> None:
    """Raises DataError unless the index leads to every piece by its offset, which is how the library reads.

    Where that lookup fails, as after one flipped bit in the index, the library silently returns the fill value.
    """
    chunks: list[Any] = []
    if dataset.chunks:
        dataset.id.chunk_iter(chunks.append)
    if any(len(dataset.id.read_direct_chunk(chunk.chunk_offset)[1]) != chunk.size for chunk in chunks):
        raise DataError(f"{path}: the index of {name} is damaged; fetch the file again")
