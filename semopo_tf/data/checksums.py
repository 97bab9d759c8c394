"""Checksums of a dataset's files: `SHA256SUMS` as the program sha256sum writes it, and the card's file list."""

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from semopo_tf.data.cards import CARD_NAME
from semopo_tf.errors import DataError
from semopo_tf.storage.files import sha256, write_whole
from semopo_tf.storage.schema import unfit
from semopo_tf.storage.untrusted import parse_json, read_whole

SUMS_NAME = "SHA256SUMS"
SUMS_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")
SUMS_BYTES = 1 << 26  # of the longest list that is read: half a million files


class Listed(NamedTuple):
    """What a list says of one file."""

    sha256: str  # hex digits
    size: int | None  # bytes, where the list says it
    source: str  # name of the list


def listed_files(directory: Path, manifest: Path | None = None) -> dict[str, Listed]:
    """The files that `manifest` lists, by name; by default those of the directory's card and of its SHA256SUMS.

    Args:
      manifest: a list in either form.

    Raises:
      DataError: for a list that cannot be read or names files outside its directory, or two lists that disagree.
    """
    if manifest:
        return _read_list(manifest)
    files: dict[str, Listed] = {}
    for path in (directory / CARD_NAME, directory / SUMS_NAME):
        for name, listed in (_read_list(path) if os.path.lexists(path) else {}).items():
            if name in files and files[name].sha256 != listed.sha256:
                raise DataError(
                    f"{path}: expected the SHA-256 of {name} as in {CARD_NAME}, received another; remove the list "
                    "that is out of date"
                )
            files[name] = listed._replace(size=listed.size or files[name].size) if name in files else listed
    return files


def _read_list(path: Path) -> dict[str, Listed]:
    try:
        text = read_whole(path, SUMS_BYTES, follow=True)[0].decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(
            f"{path}: expected a list of files (SHA256SUMS or {CARD_NAME}), but {error.strerror}; correct --manifest"
        ) from error
    rows = _card_rows(path, text) if text.lstrip().startswith("{") else _sums_rows(path, text)
    for name in rows:
        if name.startswith("/") or ".." in Path(name).parts:
            raise DataError(f"{path}: expected names inside the dataset, received {name!r}; correct the list")
    return rows


def _sums_rows(path: Path, text: str) -> dict[str, Listed]:
    rows = {}
    for number, line in enumerate(text.splitlines(), 1):
        if match := SUMS_LINE.fullmatch(line):
            rows[match[2]] = Listed(match[1].lower(), None, path.name)
        elif line.strip():
            raise DataError(
                f"{path}: line {number}: expected `<64 hex digits>  <name>`, received {line[:40]!r}; make the list "
                "with sha256sum"
            )
    return rows


def _card_rows(path: Path, text: str) -> dict[str, Listed]:
    try:
        card = parse_json(text.encode())
        wrong = unfit(card, {"files?": [{"file": str, "sha256?": str, "size?": int}]})
    except ValueError as error:
        wrong = str(error)[:100]
    if wrong:
        raise DataError(
            f"{path}: expected a card with `files`, rows of `file` and `sha256` ({wrong}); fetch or write it again"
        )
    rows = (row for row in card.get("files", []) if row.get("sha256"))
    return {row["file"]: Listed(row["sha256"].lower(), row.get("size"), path.name) for row in rows}


def regular_status(path: Path) -> os.stat_result:
    """The status of a regular file, or of the one that a link leads to.

    Raises:
      DataError: when there is none; a pipe would never end.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); fetch or make the file again") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: expected a regular file, received something else; remove it")
    return status


def verify_size(path: Path, listed: dict[str, Listed]) -> None:
    """Raises DataError when a list knows another size for the file, or it is no regular file."""
    expected, size = listed.get(path.name), regular_status(path).st_size
    if expected and expected.size not in (None, size):
        raise DataError(
            f"{path}: expected the {expected.size} bytes of {expected.source}, received {size}; fetch or make the "
            "file again"
        )


def verify(path: Path, listed: dict[str, Listed]) -> str:
    """The SHA-256 of a file, after comparing it with what is listed for its name.

    Raises:
      DataError: when it differs from the listed one, or the file is no regular file.
    """
    regular_status(path)
    expected, digest = listed.get(path.name), sha256(path)
    if expected and digest != expected.sha256:
        raise DataError(
            f"{path}: expected the SHA-256 in {expected.source}, received another; fetch or make the file again"
        )
    return digest


def write_sum(path: Path, digest: str) -> None:
    """Put the SHA-256 of a file into the SHA256SUMS beside it, replacing an older one."""
    sums = path.with_name(SUMS_NAME)
    listed = _read_list(sums) if os.path.lexists(sums) else {}
    rows = {name: row.sha256 for name, row in listed.items()} | {path.name: digest}
    write_whole(sums, "".join(f"{rows[name]}  {name}\n" for name in sorted(rows)).encode(errors="surrogateescape"))
