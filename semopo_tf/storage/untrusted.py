"""Files that come from outside, read with limits: links, pipes and devices are refused, and JSON is read strictly."""

import codecs
import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


def read_whole(path: Path, limit: int, *, follow: bool = False) -> tuple[bytes, os.stat_result]:
    """The bytes and the status of one regular file, both of the same opening.

    Pipes, devices and directories are never opened; links are followed only with `follow`.

    Raises:
      OSError: `strerror` says in plain words what is there instead, or that there are more than `limit` bytes.
    """
    status = path.stat(follow_symlinks=follow)
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "a symbolic link, which is not followed")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    # If something has replaced it since: a pipe does not block, and is refused below.
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


def decoded(data: bytes) -> str:
    """A text in UTF-8, without the byte order mark that some editors put before it.

    Raises:
      ValueError: in one line, for any other encoding.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("text in UTF-16; save it as UTF-8")
    return data.decode("utf-8-sig")


def parse_json(data: bytes, constant: Callable[[str], Any] = no_constant) -> Any:
    """One JSON value, strictly: UTF-8, a byte order mark allowed before it; no name twice in an object.

    Args:
      constant: gives the value of the words NaN, Infinity and -Infinity.

    Raises:
      ValueError: in one line.
    """
    try:
        return json.loads(decoded(data), object_pairs_hook=_object, parse_constant=constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return value
