"""Records: append-only JSON-lines files, the truth of a run."""

import json
import sys
from codecs import BOM_UTF8
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semopo_tf.errors import CheckpointError, DataError
from semopo_tf.storage.files import FILES, Files, Growing


class Records:
    """An append-only JSON-lines file whose length is known, so that a resumed run can cut it back to its checkpoint."""

    def __init__(self, path: Path, files: Files = FILES):
        self.path, self._file = path, Growing(path, files)

    def drop_half_line(self) -> None:
        """Cut a last line that a killed writer or a power loss left incomplete."""
        if self.path.exists():
            data = self.path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            last = whole[whole.rfind(b"\n", 0, -1) + 1 :]
            self.cut(len(whole) - (len(last) if last and _row(last) is None else 0))

    def cut(self, size: int) -> None:
        """Drop everything after the first `size` bytes: rows of work that will be done again.

        Raises:
          CheckpointError: when there are fewer, or they do not end with a row.
        """
        expected = f"{self.path}: expected rows of {size} bytes as at the checkpoint, received"
        if not self.path.exists():
            if size:
                raise CheckpointError(f"{expected} no file; restore it")
            return
        with open(self.path, "r+b") as file:
            file.seek(max(0, size - 1))
            if size and file.read(1) != b"\n":
                raise CheckpointError(f"{expected} {self.size}; restore the file")
            file.truncate(size)

    def append(self, row: Mapping[str, Any]) -> None:
        """One row, on the disk before this returns.

        Raises:
          StorageError: when the disk refuses. The row is kept and written before the next one.
        """
        self._file.append((json.dumps(row, allow_nan=False) + "\n").encode())

    def settle(self) -> int:
        """Write the rows that were kept. Returns the bytes on the disk.

        Raises:
          StorageError: when the disk still refuses.
        """
        self._file.settle()
        return self.size

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.exists() else 0


def read_records(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, none without a file. A bad last line (of a running writer, or after a power loss)
    is left out.

    Raises:
      DataError: naming a bad line before the last.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = [_row(line) for line in lines[:-1]]
    if lines[-1] or None in rows[-1:]:
        print(f"warning: {path}: the last line is not whole and is left out", file=sys.stderr)
    if None in rows[:-1]:
        raise DataError(
            f"{path}: expected one JSON object a line, line {rows.index(None) + 1} is none; remove the line"
        )
    return [row for row in rows if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.removeprefix(BOM_UTF8))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
