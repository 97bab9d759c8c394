"""The file layer: whole files and directories appear at once or not at all, and a file that grows loses no row.

Everything that a run must not lose is written in the small steps of a `Files` object, so that a test can record them,
make any of them fail, or stop between two of them.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from semopo_tf.errors import LockedError, StorageError

FILE_MODE, DIRECTORY_MODE = 0o664, 0o775  # less the umask: never writable for everybody
OWNER_BYTES = 200  # of a lock file that are read
OWNER_SECONDS, OWNER_POLL_SECONDS = 1.0, 0.05  # how long the name of a lock's owner is waited for
CURES = {
    (errno.ENOSPC, errno.EDQUOT): "free some space",
    (errno.EACCES, errno.EPERM): "make it writable for you",
    (errno.EIO,): "check the disk",
    (errno.EFBIG,): "raise the limit on the size of files (ulimit -f)",
}
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP)  # what a file system says that has no such notion


class Files:
    """The steps of durable writing: first those that are one call of the operating system, then those made of them."""

    def create(self, path: Path) -> int:
        """Open an empty file for writing; a link is refused. Returns the descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, FILE_MODE)

    def open_end(self, path: Path) -> int:
        """Open a file for appending. Returns the descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, FILE_MODE)

    def put(self, descriptor: int, data: memoryview) -> int:
        """Write some of `data`. Returns how many bytes; Python repeats a call that a signal interrupts."""
        return os.write(descriptor, data)

    truncate = staticmethod(os.ftruncate)
    sync = staticmethod(os.fsync)
    close = staticmethod(os.close)
    rename = staticmethod(os.rename)
    unlink = staticmethod(os.unlink)
    remove_directory = staticmethod(os.rmdir)

    def make_one_directory(self, path: Path) -> None:
        path.mkdir(DIRECTORY_MODE)

    def sync_directory(self, path: Path) -> None:
        """Force a directory's entries to the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in NO_DIRECTORY_SYNC:
                raise
        finally:
            os.close(descriptor)

    def free_bytes(self, path: Path) -> int:
        """What a user may still write on the device of `path`."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    @contextlib.contextmanager
    def closing(self, descriptor: int) -> Iterator[int]:
        """Close a descriptor at the end of the block."""
        try:
            yield descriptor
        finally:
            self.close(descriptor)

    def write(self, path: Path, data: bytes | memoryview) -> None:
        """Write a whole file and force it to the disk."""
        with self.closing(self.create(path)) as descriptor:
            self.put_all(descriptor, data)
            self.sync(descriptor)

    def put_all(self, descriptor: int, data: bytes | memoryview) -> None:
        """Write all of `data`, however little of it each call takes."""
        rest = memoryview(data)
        while rest:
            rest = rest[self.put(descriptor, rest) :]

    def make_directory(self, path: Path) -> None:
        """Make a directory and its parents, if missing."""
        if path.is_dir():
            return
        self.make_directory(path.parent)
        try:
            self.make_one_directory(path)
        except FileExistsError:
            if not path.is_dir():
                raise

    def sync_tree(self, path: Path) -> None:
        """Force a directory and everything in it to the disk, whoever wrote it."""
        for entry in sorted(path.iterdir()):
            if entry.is_dir():
                self.sync_tree(entry)
                continue
            with self.closing(os.open(entry, os.O_RDONLY | os.O_NOFOLLOW)) as descriptor:
                self.sync(descriptor)
        self.sync_directory(path)

    def remove_tree(self, path: Path) -> None:
        """Remove a file, a link or a directory with its content, as far as possible; no link is followed."""
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                for entry in sorted(path.iterdir()):
                    self.remove_tree(entry)
                self.remove_directory(path)
            else:
                self.unlink(path)


FILES = Files()


def temporary_sibling(path: Path) -> Path:
    """A hidden name beside `path`, unique to this process: renaming from it never crosses a device."""
    return path.with_name(f".tmp-{os.getpid()}-{path.name}")


def cure(error: OSError) -> str:
    """What removes the reason for which the system refuses a write, in words; empty where that is not known."""
    return next((words for errors, words in CURES.items() if error.errno in errors), "")


def remedy(error: OSError, other: str) -> str:
    """The end of a message about a refused write: its cure, and what helps in any case.

    Args:
      other: such as "choose another directory".
    """
    return f"{known} or {other}" if (known := cure(error)) else other


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
        files.remove_tree(temporary)
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); {remedy(error, 'choose another directory')}"
        ) from error


def write_aside(target: Path, content: Mapping[str, bytes | memoryview], files: Files = FILES) -> Path:
    """Write a directory's files in order under a hidden name beside `target` and force them to the disk; the caller
    renames it.

    Raises:
      OSError: when the disk refuses.
    """
    temporary = temporary_sibling(target)
    files.remove_tree(temporary)
    files.make_directory(temporary)
    for name, data in content.items():
        files.write(temporary / name, data)
    files.sync_directory(temporary)
    return temporary


class Growing:
    """A file that only grows. Bytes that the disk refuses wait in memory and are written before the next ones."""

    def __init__(self, path: Path, files: Files = FILES):
        self.path, self._files = path, files
        self._waiting = b""
        self._whole: int | None = None  # bytes of the file before a write that failed: what lies beyond is torn

    def append(self, data: bytes) -> None:
        """Add `data`, on the disk before this returns.

        Raises:
          StorageError: when the disk refuses; the bytes wait.
        """
        self._waiting += data
        self.settle()

    def settle(self) -> None:
        """Write the waiting bytes. Raises StorageError when the disk still refuses."""
        if not self._waiting:
            return
        try:
            with self._files.closing(self._files.open_end(self.path)) as descriptor:
                size = os.fstat(descriptor).st_size
                if self._whole is not None and self._whole < size:
                    self._files.truncate(descriptor, self._whole)
                self._whole = size if self._whole is None else min(self._whole, size)
                self._files.put_all(descriptor, self._waiting)
                self._files.sync(descriptor)
        except OSError as error:
            first = cure(error) or "restore its directory"
            raise StorageError(f"{self.path}: cannot be written ({error.strerror}); {first} and run again") from error
        self._waiting, self._whole = b"", None


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path, *, wait: bool, what: str) -> Iterator[str]:
    """Hold the kernel's lock on `path`, created if missing. A killed owner leaves its name behind, but no lock.

    Args:
      wait: block until the lock is free instead of failing.
      what: what the lock protects, for the message.

    Yields:
      The last owner (process, host, since when) if it ended without giving the lock back, else an empty text.

    Raises:
      LockedError: when `wait` is false and another process holds it.
      StorageError: when the file cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be opened for the lock of {what} ({error.strerror}); "
            f"{remedy(error, 'choose another directory')}"
        ) from error
    with FILES.closing(descriptor):
        previous = _take(descriptor, path, wait, what)
        try:
            yield previous
        finally:
            os.ftruncate(descriptor, 0)


def _take(descriptor: int, path: Path, wait: bool, what: str) -> str:
    """Lock, and write our name. Returns the name that a killed owner has left."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        previous = _owner(descriptor)
        os.ftruncate(descriptor, 0)
        started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {started}".encode(), 0)
    except BlockingIOError as error:
        raise LockedError(
            f"{what} is in use by {_named_owner(descriptor)}; wait for it or choose another directory"
        ) from error
    except OSError as error:
        missing = "its file system has no locks, choose a directory on a local disk"
        what_helps = missing if error.errno in NO_LOCKS else remedy(error, "choose another directory")
        raise StorageError(f"{path}: {what} cannot be locked ({error.strerror}); {what_helps}") from error
    return previous


def _owner(descriptor: int) -> str:
    """The printable content of a lock file."""
    return "".join(filter(str.isprintable, os.pread(descriptor, OWNER_BYTES, 0).decode(errors="replace")))


def _named_owner(descriptor: int) -> str:
    """Who holds the lock: an owner writes its name a moment after it got the lock, over that of a killed one."""
    deadline, owner = time.monotonic() + OWNER_SECONDS, ""
    while not owner and time.monotonic() < deadline:
        time.sleep(OWNER_POLL_SECONDS)
        owner = _owner(descriptor)
    return owner or "an unknown process"
