"""Named arrays as an npz archive: equal arrays give equal bytes, and bytes from anywhere are read with limits.

The reader is stricter than NumPy's: plain arrays as NumPy writes them, with nothing before or behind them. Names,
headers and sizes are checked before memory is taken, and no Python object is ever made.
"""

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import numpy as np

DATE = (1980, 1, 1, 0, 0, 0)  # of every member: equal arrays give equal bytes
MAX_MEMBERS = 64
MAX_TENSORS = 1 << 14  # members of an archive of our own
DIRECTORY_BYTES = 1 << 10  # in the archive's list, for each member that is allowed
MAX_HEADER = 4096
PIECE = 1 << 20
END_RECORD = struct.Struct("<4s4H2LH")
END_RECORD_64 = struct.Struct("<4sQ2H2L4Q4sLQL")  # with the locator that follows it
ENCRYPTED = 0x1 | 0x20 | 0x40
MAGIC = b"\x93NUMPY\x01\x00"
OBJECTS = "holds Python objects, which are refused; store plain numbers"
HEADER = re.compile(
    rb"\{\s*'descr'\s*:\s*(?P<descr>'[^']{1,16}'|\[.*\])\s*,\s*'fortran_order'\s*:\s*(?P<fortran>True|False)\s*,"
    rb"\s*'shape'\s*:\s*\((?P<shape>[\d, ]{0,200})\)\s*,?\s*\}\s*"
)
PLAIN = re.compile(r"[<>|=]?[biufcSU]\d{1,9}")
NUMBERS = "biuf"
# Everything that reading hostile bytes with json, zipfile and numpy may raise.
MALFORMED: tuple[type[Exception], ...] = (OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError)
MALFORMED += (EOFError, RuntimeError, MemoryError, struct.error, zipfile.BadZipFile, zlib.error)


class NpzError(ValueError):
    """What is wrong with a file of arrays, in plain words and without its name."""


class Header(NamedTuple):
    """What an npy file says of its array."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    start: int  # bytes before the data

    @property
    def size(self) -> int:
        """Bytes of header and data."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


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
    """The arrays of an archive that `pack` wrote, by name.

    Raises:
      NpzError: for anything else than an uncompressed archive of numbers.
    """
    arrays, _ = read_npz(data, lambda name: True, len(data), max_members=MAX_TENSORS, stored=True)
    if other := [name for name, array in arrays.items() if array.dtype.kind not in NUMBERS]:
        raise NpzError(f"{other[0][:60]}: expected numbers, received {arrays[other[0]].dtype}")
    return arrays


def read_npz(
    data: bytes, wanted: Callable[[str], bool], limit: int, *, max_members: int = MAX_MEMBERS, stored: bool = False
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of an archive whose names are wanted, and the names of all others, which are not unpacked.

    Args:
      limit: bytes that the wanted arrays may take together.
      stored: refuse compressed members.

    Raises:
      NpzError: for anything but a whole archive of plain arrays within the limits.
    """
    try:
        _check_end(data, max_members)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = _members(archive, stored)
            total = sum(member.file_size for name, member in members.items() if wanted(name))
            if total > limit:
                raise NpzError(
                    f"expected at most {limit >> 20} MB of arrays, received {total >> 20} MB; split the file"
                )
            arrays = {name: _array(archive, name, member) for name, member in members.items() if wanted(name)}
    except NpzError:
        raise
    except MALFORMED as error:
        raise NpzError(
            f"truncated or damaged npz archive ({len(data)} bytes); fetch or convert the file again"
        ) from error
    return arrays, sorted(set(members) - set(arrays))


def _check_end(data: bytes, max_members: int) -> None:
    """The archive's last record: it must end the file, and the list of members must be small and reach up to it.

    Raises:
      NpzError: for too large a list.
      One of MALFORMED: for a damaged archive.
    """
    start = len(data) - END_RECORD.size
    signature, disk, first_disk, here, total, size, offset, comment = END_RECORD.unpack_from(data, start)
    whole = signature == b"PK\x05\x06" and disk == first_disk == comment == 0 and here == total
    if data[max(start - 20, 0) : start].startswith(b"PK\x06\x07"):
        start -= END_RECORD_64.size
        total, size, offset = _large_end(data, start)
    if not whole or offset + size != start or not data.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile("no whole archive")
    if total > max_members or size > max_members * DIRECTORY_BYTES:
        raise NpzError(f"expected at most {max_members} arrays, received {total}; store what learning needs alone")


def _large_end(data: bytes, start: int) -> tuple[int, int, int]:
    """Number of members, size and offset of their list, from the record of an archive too large for the short one."""
    signature, length, _, _, disk, first_disk, here, total, size, offset, locator, last_disk, record, disks = (
        END_RECORD_64.unpack_from(data, start)
    )
    whole = (signature, length, locator, record) == (b"PK\x06\x06", 44, b"PK\x06\x07", start) and here == total
    needed = offset > zipfile.ZIP64_LIMIT or total > zipfile.ZIP_FILECOUNT_LIMIT
    if not (whole and needed and disk == first_disk == last_disk == 0 and disks == 1):
        raise zipfile.BadZipFile("no whole archive")
    return total, size, offset


def _members(archive: zipfile.ZipFile, stored: bool) -> dict[str, zipfile.ZipInfo]:
    """Members by name without `.npy`; both records of a name agree, and no name is there twice."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name == member.filename or not name.isprintable() or {"..", ""} & set(name.split("/")) or "\\" in name:
            raise NpzError(f"expected members called <name>.npy, received {member.filename[:60]!r}")
        if name in members:
            raise NpzError(f"expected each array once, received {name[:60]} twice")
        if member.flag_bits & ENCRYPTED:
            raise NpzError("expected a plain archive, received an encrypted one")
        packed = f"received compression {member.compress_type}"
        if stored and member.compress_type != zipfile.ZIP_STORED:
            raise NpzError(f"{name[:60]}: expected it stored, {packed}")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise NpzError(f"expected members stored or deflated, {packed}; use numpy.savez_compressed")
        archive.open(member).close()  # compares the name with that at the data
        members[name] = member
    return members


def _array(archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> np.ndarray:
    """Unpack one member; the checksum is compared at its end."""
    with archive.open(member) as file:
        try:
            return _read_array(file, member.file_size)
        except NpzError as error:
            raise NpzError(f"{name[:60]}: {error}") from error


def read_npy(data: bytes) -> np.ndarray:
    """The array of an npy file.

    Raises:
      NpzError: for anything but one plain array that fills the file.
    """
    return _read_array(io.BytesIO(data), len(data))


def _read_array(file: IO[bytes], size: int) -> np.ndarray:
    """The array of an npy file of `size` bytes: row by row in this machine's byte order, however it was stored."""
    header = read_header(file)
    if header.size != size:
        raise NpzError(f"expected the {header.size} bytes that its header promises, received {size}")
    content = bytearray()
    while piece := file.read(PIECE):
        content += piece
    if len(content) != size - header.start:
        raise NpzError("ends early; fetch or convert the file again")
    array: np.ndarray = np.ndarray(header.shape, header.dtype, content, order="F" if header.fortran else "C")
    return array.astype(header.dtype.newbyteorder("="), order="C", copy=False)


def read_header(file: IO[bytes]) -> Header:
    """The header of an npy file at its beginning.

    Raises:
      NpzError: when it is none, or not that of a plain array.
    """
    start = file.read(len(MAGIC) + 2)
    length = int.from_bytes(start[len(MAGIC) :], "little")
    if not start.startswith(MAGIC) or len(start) != len(MAGIC) + 2 or length > MAX_HEADER:
        raise NpzError("expected a plain array in NumPy's format 1.0, received something else")
    match = HEADER.fullmatch(file.read(length))
    if not match:
        raise NpzError("expected the header of a plain array, received something else")
    descr = match["descr"].decode("latin-1").strip("'")
    if "|O" in descr:
        raise NpzError(OBJECTS)
    if not PLAIN.fullmatch(descr):
        raise NpzError("expected an array of numbers, received another type")
    shape = match["shape"].decode().replace(" ", "").removesuffix(",")
    try:
        axes = tuple(map(int, shape.split(","))) if shape else ()
        return Header(np.dtype(descr), axes, match["fortran"] == b"True", len(start) + length)
    except (TypeError, ValueError) as error:
        raise NpzError("expected the header of a plain array, received something else") from error
