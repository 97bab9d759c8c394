"""The file layer: whole files or none, and a lock that a dead owner cannot keep."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import semopo_tf
from semopo_tf import files
from semopo_tf.errors import LockedError, StorageError
from semopo_tf.files import Files, locked, sha256, temporary_sibling, write_whole

ROOT = Path(semopo_tf.__file__).parents[1]
HOLD = (
    "import sys; from pathlib import Path; from semopo_tf.files import locked\n"
    "with locked(Path(sys.argv[1]), wait=False, what='the place'):\n"
    "    print('held', flush=True); sys.stdin.readline()\n"
)


class Failing(Files):
    """Fails in the named operation; a failing write leaves half of its bytes behind."""

    def __init__(self, operation: str, error: int):
        self.operation, self.error = operation, error

    def _run(self, operation, *arguments):
        if operation == self.operation:
            if operation == "write":
                super().write(arguments[0], arguments[1][: len(arguments[1]) // 2])
            raise OSError(self.error, os.strerror(self.error))
        return getattr(super(), operation)(*arguments)

    def write(self, path, data):
        self._run("write", path, data)

    def rename(self, source, target):
        self._run("rename", source, target)

    def sync_directory(self, path):
        self._run("sync_directory", path)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_whole_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    for data in (b"old", b"", b"new and longer"):
        write_whole(path, data)
        assert path.read_bytes() == data
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("operation", ["write", "rename", "sync_directory"])
def test_a_failed_write_leaves_the_old_or_the_new_bytes_and_nothing_else(tmp_path, operation, error):
    path = tmp_path / "a.json"
    write_whole(path, b"old")
    with pytest.raises(StorageError, match=rf"a\.json: cannot be written \({os.strerror(error)}\); free some space or choose another directory"):
        write_whole(path, b"the new bytes", Failing(operation, error))
    assert path.read_bytes() == (b"the new bytes" if operation == "sync_directory" else b"old")
    assert names(tmp_path) == ["a.json"]


def test_a_missing_directory_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"nowhere/a: cannot be written \(No such file or directory\)"):
        write_whole(tmp_path / "nowhere" / "a", b"")


def test_a_temporary_name_is_hidden_beside_its_target_and_of_this_process(tmp_path):
    name = temporary_sibling(tmp_path / "ckpt")
    assert name.parent == tmp_path
    assert name.name == f".tmp-{os.getpid()}-ckpt"


def test_removing_what_is_not_there_is_no_error(tmp_path):
    files.FILES.remove_tree(tmp_path / "nowhere")
    files.FILES.make_directory(tmp_path / "a" / "b")
    files.FILES.make_directory(tmp_path / "a" / "b")
    files.FILES.remove_tree(tmp_path / "a")
    assert names(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_digest_is_that_of_the_whole_file(tmp_path, size):
    """The file is read in pieces of one mebibyte."""
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


# --- the lock -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock `tmp_path / "lock"` until it is told to end or killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_with_the_number_of_the_first(tmp_path, holder):
    message = f"the place is in use by process {holder.pid}; wait for it or choose another directory"
    with pytest.raises(LockedError, match=message) as caught, locked(tmp_path / "lock", wait=False, what="the place"):
        pytest.fail("two owners")
    assert caught.value.exit_code == 8
    assert (tmp_path / "lock").read_text() == str(holder.pid)  # the refused one has not written its own


def test_a_killed_owner_leaves_no_lock(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "lock", wait=False, what="the place"):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_waiting_process_gets_the_lock_when_it_is_free(tmp_path, holder):
    holder.stdin.write("\n")  # ends the holder, now or in a moment
    holder.stdin.flush()
    with locked(tmp_path / "lock", wait=True, what="the place"):
        assert holder.wait(timeout=60) == 0


def test_a_lock_is_free_again_after_an_error_inside(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path / "lock", wait=False, what="the place"):
            raise KeyError
