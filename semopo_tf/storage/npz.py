"""Named arrays as the bytes of an uncompressed npz, and back from bytes that nobody vouches for. Never a pickle."""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

DATE = (1980, 1, 1, 0, 0, 0)  # of every member: equal arrays give equal bytes
# Everything that reading hostile bytes with json, zipfile and numpy.lib.format may raise.
MALFORMED: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    EOFError,
)
MALFORMED += (RuntimeError, MemoryError, struct.error, zipfile.BadZipFile, zlib.error)


def not_finite(arrays: Mapping[str, Any]) -> list[str]:
    """Names of the arrays, or variables, that hold a number that is not finite."""
    values = {name: np.asarray(array) for name, array in arrays.items()}
    return [name for name, value in values.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]


def pack(tensors: Mapping[str, np.ndarray]) -> memoryview:
    """The bytes of an uncompressed npz of name -> array, the same for equal arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, tensor in tensors.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", DATE), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(tensor, order="C"), allow_pickle=False)
    return buffer.getbuffer()


def unpack(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of an uncompressed npz, by name; read-only.

    Raises:
      ValueError or another of `MALFORMED`: when it is not exactly that. Memory is taken only for bytes that are there.
    """
    tensors: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(info.file_size for info in archive.infolist()) > len(data):
            raise ValueError("its members are larger than the archive")
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if (
                info.compress_type != zipfile.ZIP_STORED
                or info.flag_bits & 1
                or name in tensors
                or name == info.filename
            ):
                raise ValueError(f"compressed, encrypted, twice there, or no array: {name}")
            tensors[name] = _array(archive.read(info))
    return tensors


def _array(member: bytes) -> np.ndarray:
    """One npy member. Its header may ask for exactly the bytes that follow it."""
    stream = io.BytesIO(member)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
        np.lib.format.read_magic(stream)
    ]
    shape, fortran, dtype = read_header(stream)
    if dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize != len(member) - stream.tell():
        raise ValueError(f"{dtype} {list(shape)} does not fit {len(member)} bytes")
    return np.ndarray(shape, dtype, member, stream.tell(), order="F" if fortran else "C")
