"""The project's file layer: whole files and directories appear at once or not at all.

Everything that a run must not lose is written through a `Files` object, so that a test can make any operation fail.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from semopo_tf.errors import LockedError, StorageError


class Files:
    """The file operations that durable writing is made of, each a thin call of the operating system."""

    def write(self, path: Path, data: bytes) -> None:
        """Write a whole file and force it to the disk."""
        with open(path, "wb", opener=_no_follow) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def sync_directory(self, path: Path) -> None:
        """Force a directory's entries to the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def make_directory(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def remove_tree(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)


FILES = Files()


def _no_follow(path: str, flags: int) -> int:
    """Opens a file of ours: a link left in its place would lead the writing elsewhere."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def temporary_sibling(path: Path) -> Path:
    """A hidden name beside `path`, unique to this process: renaming from it never crosses a device."""
    return path.with_name(f".tmp-{os.getpid()}-{path.name}")


def write_whole(path: Path, data: bytes, files: Files = FILES) -> None:
    """Replace `path` by `data`: a reader sees the old bytes or the new ones, never a part.

    Raises:
      StorageError: when the directory cannot be written or is full.
    """
    temporary = temporary_sibling(path)
    try:
        files.write(temporary, data)
        files.rename(temporary, path)
        files.sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StorageError(f"{path}: cannot be written ({error.strerror}); free some space or choose another directory") from error


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(path: Path, *, wait: bool, what: str) -> Iterator[None]:
    """Hold the kernel's lock on `path` (created if missing). A killed owner leaves nothing behind.

    Args:
      wait: block until the lock is free instead of failing.
      what: what the lock protects, for the message.

    Raises:
      LockedError: when `wait` is false and another process holds it.
    """
    with open(path, "a+", opener=_no_follow) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise LockedError(f"{what} is in use by process {file.read().strip() or 'unknown'}; wait for it or choose another directory") from error
        file.truncate(0)
        file.write(f"{os.getpid()}")
        file.flush()
        yield


def free_memory() -> int:
    """Bytes of main memory that new work may use, caches that the system would give up included; 0 where the system does not say."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 0)
