"""Files that come from outside, read with limits: whole files, JSON, and NumPy's npz and npy.

Links, pipes and devices are refused; names, headers and sizes are checked before anything is allocated; no Python
object is ever made. Archives are read more strictly than NumPy does: plain arrays as NumPy writes them, nothing before,
between or behind
them.
"""

import errno
import io
import json
import math
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np

MAX_MEMBERS = 64
MAX_DIRECTORY = 1 << 16  # bytes of the archive's list of members
MAX_HEADER = 4096
PIECE = 1 << 20
END_RECORD = struct.Struct("<4s4H2LH")
ENCRYPTED = 0x1 | 0x20 | 0x40
MAGIC = b"\x93NUMPY\x01\x00"
OBJECTS = "holds Python objects, which are refused; store plain numbers"
HEADER = re.compile(
    rb"\{\s*'descr'\s*:\s*(?P<descr>'[^']{1,16}'|\[.*\])\s*,\s*'fortran_order'\s*:\s*(?P<fortran>True|False)\s*,"
    rb"\s*'shape'\s*:\s*\((?P<shape>[\d, ]{0,200})\)\s*,?\s*\}\s*"
)
PLAIN = re.compile(r"[<>|=]?[biufcSU]\d{1,9}")


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


def read_whole(path: Path, limit: int, *, follow: bool = False) -> tuple[bytes, os.stat_result]:
    """The bytes and the status of one regular file, both of the same opening.

    Pipes, devices and directories are never opened, links are followed only on request.

    Raises:
      OSError: `strerror` says in plain words what is there instead, or that there are more than `limit` bytes.
    """
    status = path.stat(follow_symlinks=follow)
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "a symbolic link, which is not followed")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    # Should it have been replaced since: a pipe does not block, and is found below.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        data = file.read(status.st_size + 1) if status.st_size <= limit else b""
    if len(data) > limit or status.st_size > limit:
        raise OSError(errno.EFBIG, f"more than the {limit} bytes that are read")
    return data, status


def no_constant(word: str) -> NoReturn:
    """Refuse NaN, Infinity and -Infinity, which some programs write into JSON."""
    raise ValueError(f"{word} is not JSON")


def parse_json(data: bytes, constant: Callable[[str], Any] = no_constant) -> Any:
    """One JSON value, strictly: UTF-8, no name twice in an object.

    Args:
      constant: gives the value of the words NaN, Infinity and -Infinity.

    Raises:
      ValueError: in one line.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def read_npz(data: bytes, wanted: Callable[[str], bool], limit: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of an archive whose names are wanted, and the names of all others, which are not unpacked.

    Args:
      limit: bytes that the wanted arrays may take together.

    Raises:
      NpzError: for anything but a whole archive of plain arrays within the limits.
    """
    try:
        _check_end(data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = _members(archive)
            total = sum(member.file_size for name, member in members.items() if wanted(name))
            if total > limit:
                raise NpzError(
                    f"expected at most {limit >> 20} MB of arrays, received {total >> 20} MB; split the file"
                )
            arrays = {name: _array(archive, name, member) for name, member in members.items() if wanted(name)}
    except NpzError:
        raise
    except (
        OSError,
        ValueError,
        TypeError,
        EOFError,
        RuntimeError,
        MemoryError,
        KeyError,
        IndexError,
        OverflowError,
    ) as error:
        raise NpzError(_damaged(data)) from error
    except (zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise NpzError(_damaged(data)) from error
    return arrays, sorted(set(members) - set(arrays))


def read_npy(data: bytes) -> np.ndarray:
    """The array of an npy file.

    Raises:
      NpzError: for anything but one plain array that fills the file.
    """
    header = read_header(io.BytesIO(data[: len(MAGIC) + 2 + MAX_HEADER]))
    if header.size != len(data):
        raise NpzError(f"expected the {header.size} bytes that its header promises, received {len(data)}")
    return _shaped(bytearray(data[header.start :]), header)


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
    shape = match["shape"].decode().replace(" ", "").removesuffix(",")
    if not PLAIN.fullmatch(descr):
        raise NpzError("expected an array of numbers, received another type")
    try:
        return Header(
            np.dtype(descr),
            tuple(map(int, shape.split(","))) if shape else (),
            match["fortran"] == b"True",
            len(start) + length,
        )
    except (TypeError, ValueError) as error:
        raise NpzError("expected the header of a plain array, received something else") from error


def _damaged(data: bytes) -> str:
    return f"truncated or damaged npz archive ({len(data)} bytes); fetch or convert the file again"


def _check_end(data: bytes) -> None:
    """The archive's last record: it must end the file, and the list of members must be small and reach up to it."""
    place = len(data) - END_RECORD.size
    if place < 0 or not data.startswith(b"PK\x03\x04"):
        raise NpzError(_damaged(data))
    signature, disk, first_disk, here, total, size, offset, comment = END_RECORD.unpack_from(data, place)
    whole = (
        signature == b"PK\x05\x06" and disk == first_disk == comment == 0 and here == total and offset + size == place
    )
    if not whole or data[max(place - 20, 0) : place].startswith(b"PK\x06\x07"):
        raise NpzError(_damaged(data))
    if total > MAX_MEMBERS or size > MAX_DIRECTORY:
        raise NpzError(f"expected at most {MAX_MEMBERS} arrays, received {total}; store what learning needs alone")


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Members by name without `.npy`; both places that store a name agree, and each name stands once."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name == member.filename or not name.isprintable() or {"..", ""} & set(name.split("/")) or "\\" in name:
            raise NpzError(f"expected members called <name>.npy, received {member.filename[:60]!r}")
        if name in members:
            raise NpzError(f"expected each array once, received {name[:60]} twice")
        if member.flag_bits & ENCRYPTED:
            raise NpzError("expected a plain archive, received an encrypted one")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise NpzError(
                f"expected members stored or deflated, received compression {member.compress_type}; use "
                "numpy.savez_compressed"
            )
        archive.open(member).close()  # compares the name with that at the data
        members[name] = member
    return members


def _array(archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> np.ndarray:
    """Unpack one member; the checksum is compared at its end."""
    with archive.open(member) as file:
        try:
            header = read_header(file)
        except NpzError as error:
            raise NpzError(f"{name[:60]}: {error}") from error
        if header.size != member.file_size:
            raise NpzError(
                f"{name[:60]}: expected the {header.size} bytes that its header promises, received {member.file_size}"
            )
        content = bytearray()
        while piece := file.read(PIECE):
            content += piece
    if len(content) != header.size - header.start:
        raise NpzError(f"{name[:60]}: ends early; fetch or convert the file again")
    return _shaped(content, header)


def _shaped(content: bytearray, header: Header) -> np.ndarray:
    """Row by row in this machine's byte order, however it was stored."""
    array: np.ndarray = np.ndarray(header.shape, header.dtype, content, order="F" if header.fortran else "C")
    return array.astype(header.dtype.newbyteorder("="), order="C", copy=False)
