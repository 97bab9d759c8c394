"""The file layer: files appear whole or not at all, and a dead process holds no lock."""

import contextlib
import errno
import fcntl
import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import semopo_tf
from semopo_tf.errors import LockedError, StorageError
from semopo_tf.storage import files
from semopo_tf.storage.files import Files, Growing, locked, sha256, temporary_sibling, write_whole
from semopo_tf.storage.untrusted import read_whole

ROOT = Path(semopo_tf.__file__).parents[1]
HOLD = (
    "import sys; from pathlib import Path; from semopo_tf.storage.files import locked\n"
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
                Path(arguments[0]).write_bytes(arguments[1][: len(arguments[1]) // 2])
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
def test_F04_a_failed_write_leaves_the_old_or_the_new_bytes_and_nothing_else(tmp_path, operation, error):
    path = tmp_path / "a.json"
    write_whole(path, b"old")
    remedy = f"{'check the disk' if error == errno.EIO else 'free some space'} or choose another directory"
    with pytest.raises(
        StorageError,
        match=rf"a\.json: cannot be written \({os.strerror(error)}\); {remedy}$",
    ):
        write_whole(path, b"the new bytes", Failing(operation, error))
    assert path.read_bytes() == (b"the new bytes" if operation == "sync_directory" else b"old")
    assert names(tmp_path) == ["a.json"]


def test_F05_a_missing_directory_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"nowhere/a: cannot be written \(No such file or directory\)"):
        write_whole(tmp_path / "nowhere" / "a", b"")


def test_F14_a_temporary_name_is_hidden_beside_its_target_and_of_this_process(tmp_path):
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
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


# --- the lock ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock `tmp_path / "lock"` until it is told to end or killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_F07_a_second_process_is_refused_and_told_who_the_first_is(tmp_path, holder):
    since = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    message = (
        f"the place is in use by process {holder.pid} on {socket.gethostname()} since {since}; wait for it or choose "
        "another directory"
    )
    with pytest.raises(LockedError, match=message) as caught, locked(tmp_path / "lock", wait=False, what="the place"):
        pytest.fail("two owners")
    assert caught.value.exit_code == 8
    assert (
        (tmp_path / "lock").read_text().startswith(f"process {holder.pid} on ")
    )  # the refused one has not written its own


def test_F07_R18_a_killed_owner_leaves_no_lock_but_its_name(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "lock", wait=False, what="the place") as killed:
        assert killed.startswith(f"process {holder.pid} on {socket.gethostname()} since ")
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
    with locked(tmp_path / "lock", wait=False, what="the place") as killed:
        assert killed == ""


def test_a_waiting_process_gets_the_lock_when_it_is_free(tmp_path, holder):
    holder.stdin.write("\n")  # ends the holder, now or in a moment
    holder.stdin.flush()
    with locked(tmp_path / "lock", wait=True, what="the place") as killed:
        assert holder.wait(timeout=60) == 0
        assert killed == ""


def test_a_lock_is_free_again_after_an_error_inside(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path / "lock", wait=False, what="the place"):
            raise KeyError


def test_F07_G12_one_hundred_double_starts_have_one_winner_each_and_its_kill_leaves_no_stale_lock(tmp_path):
    """Two processes start at once, a hundred times; the winner is killed, and then the lock must be free."""
    done = subprocess.run(
        [sys.executable, "-c", DOUBLE_STARTS, str(tmp_path / "lock")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["100", "won,", "100", "refused", "with", "the", "winner's", "number"]


DOUBLE_STARTS = """
import os, signal, sys
from pathlib import Path
from semopo_tf.errors import LockedError
from semopo_tf.storage.files import locked

def start(gate, answer):
    if pid := os.fork():
        return pid
    os.read(gate, 1)
    try:
        with locked(Path(sys.argv[1]), wait=False, what="it"):
            os.write(answer, b"won\\n")
            signal.pause()
    except LockedError as error:
        os.write(answer, str(error).encode() + b"\\n")
        os._exit(0)

won = refused = 0
for _ in range(100):
    gate, open_gate = os.pipe()
    answers, answer = os.pipe()
    pids = [start(gate, answer) for _ in range(2)]
    os.write(open_gate, b"go")
    os.close(answer)
    text = ""
    while text.count("\\n") < 2:
        text += os.read(answers, 4096).decode()
    winner = next(pid for pid in pids if f"process {pid} " in text)
    won += text.count("won\\n")
    refused += text.count(f"it is in use by process {winner} on ")
    for pid in pids:
        os.kill(pid, signal.SIGKILL) if pid == winner else None
        os.waitpid(pid, 0)
    with locked(Path(sys.argv[1]), wait=False, what="it") as killed:
        won -= not killed.startswith(f"process {winner} on ")
    for descriptor in (gate, open_gate, answers):
        os.close(descriptor)
print(won, "won,", refused, "refused with the winner's number")
"""


def test_a_lock_that_is_a_link_or_in_no_directory_is_refused(tmp_path):
    (tmp_path / "precious").write_text("content")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    for path in (tmp_path / "lock", tmp_path / "nowhere" / "lock"):
        with (
            pytest.raises(StorageError, match="cannot be opened for the lock of it"),
            locked(path, wait=False, what="it"),
        ):
            pytest.fail("locked")
    assert (tmp_path / "precious").read_text() == "content"


# --- writing that a signal, a full disk or a hostile name disturbs ----------------------------------------------------


def test_F04_short_writes_and_interrupted_calls_lose_no_byte(tmp_path):
    """A pipe takes what fits; an alarm every millisecond interrupts the rest. The reader is slow."""
    data = os.urandom(3 << 20)
    source, sink = os.pipe()
    received = tmp_path / "received"
    script = (
        "import sys, time\nwith open(sys.argv[1], 'wb') as file:\n"
        " while piece := sys.stdin.buffer.read1(50_000): time.sleep(0.002); file.write(piece)"
    )
    reader = subprocess.Popen([sys.executable, "-c", script, str(received)], stdin=source)
    os.close(source)
    alarms, calls = [], []

    class Counting(Files):
        def put(self, descriptor, rest):
            calls.append(super().put(descriptor, rest))
            return calls[-1]

    old = signal.signal(signal.SIGALRM, lambda *_: alarms.append(None))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        Counting().put_all(sink, data)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        os.close(sink)
    assert reader.wait(timeout=60) == 0
    assert received.read_bytes() == data
    assert len(calls) > 1
    assert len(alarms) > 1


class Stingy(Files):
    """Takes at most seven bytes a call, and after `room` bytes in all the disk is full."""

    def __init__(self, room: float = float("inf")):
        self.room = room

    def put(self, descriptor, data):
        if self.room < 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = super().put(descriptor, data[: int(min(7, self.room))])
        self.room -= written
        return written


def test_F04_a_file_is_whole_however_little_each_call_writes(tmp_path):
    data = os.urandom(1000)
    write_whole(tmp_path / "a", data, Stingy())
    assert (tmp_path / "a").read_bytes() == data


@pytest.mark.parametrize("step", ["open_end", "put", "sync", "close", "truncate"])
def test_F02_F04_what_a_growing_file_could_not_take_waits_and_comes_in_its_order(tmp_path, step):
    """Two lines fail, the first of them half written; they are there exactly once after the third."""
    disk = Files()
    growing = Growing(tmp_path / "rows", disk)
    growing.append(b"one\n")
    original = getattr(disk, step)

    def full(*arguments):
        if step == "close":
            original(*arguments)
        if step in ("put", "truncate"):
            os.write(arguments[0], b"tw")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "truncate":  # reached only after another step has failed
        disk.sync = full
    setattr(disk, step, full)
    for line in (b"two\n", b"three\n"):
        with pytest.raises(StorageError, match=r"rows: cannot be written \(No space left on device\); free some space"):
            growing.append(line)
    with pytest.raises(StorageError):
        growing.settle()
    disk.__dict__.clear()
    growing.append(b"four\n")
    growing.settle()
    assert growing.path.read_bytes() == b"one\ntwo\nthree\nfour\n"


@pytest.mark.parametrize("room", range(0, 40, 3))
def test_F02_rows_are_exact_wherever_the_disk_became_full(tmp_path, room):
    disk = Stingy(room)
    growing, lines = Growing(tmp_path / "rows", disk), [b"row %d\n" % number for number in range(6)]
    for line in lines[:-1]:
        with contextlib.suppress(StorageError):
            growing.append(line)
    disk.room = float("inf")
    growing.append(lines[-1])
    assert growing.path.read_bytes() == b"".join(lines)


def test_C14_only_regular_files_are_opened_and_nothing_is_waited_for(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert read_whole(tmp_path / "file", 7)[0] == b"content"
    with pytest.raises(OSError, match="more than the 6 bytes"):
        read_whole(tmp_path / "file", 6)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (
        tmp_path / "pipe",
        tmp_path / "link",
        tmp_path / "loop",
        tmp_path,
        Path("/dev/zero"),
        tmp_path / "nowhere",
    ):
        with pytest.raises(OSError):
            read_whole(path, 100)


def test_no_link_is_followed_in_writing_and_removing(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("content")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "directory").symlink_to(precious)
    (tmp_path / "work" / "file").symlink_to(precious / "file")
    for step in (files.FILES.create, files.FILES.open_end):
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            step(tmp_path / "work" / "file")
    files.FILES.remove_tree(tmp_path / "work")
    (tmp_path / "link").symlink_to(precious)
    files.FILES.remove_tree(tmp_path / "link")
    assert names(tmp_path) == ["precious"]
    assert (precious / "file").read_text() == "content"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_F13_nothing_is_writable_for_everybody_and_all_is_readable_by_its_owner(tmp_path, umask):
    before = os.umask(umask)
    try:
        files.FILES.make_directory(tmp_path / "a" / "b")
        write_whole(tmp_path / "a" / "b" / "whole", b"1")
        Growing(tmp_path / "a" / "growing").append(b"1")
        with locked(tmp_path / "a" / "lock", wait=False, what="it"):
            pass
    finally:
        os.umask(before)
    made = list(tmp_path.rglob("*"))
    assert len(made) == 5
    for path in made:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o002 == 0
        assert mode & umask == 0
        assert mode & 0o600 == 0o600


def test_a_file_system_that_cannot_force_a_directory_is_no_error(tmp_path, monkeypatch):
    def refuse(code):
        def sync(descriptor):
            raise OSError(code, os.strerror(code))

        return sync

    monkeypatch.setattr(files.os, "fsync", refuse(errno.EINVAL))
    files.FILES.sync_directory(tmp_path)
    monkeypatch.setattr(files.os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        files.FILES.sync_directory(tmp_path)


# --- remedies that help -----------------------------------------------------------------------------------------------

REMEDIES = {
    errno.ENOSPC: "free some space or choose another directory",
    errno.EACCES: "make it writable for you or choose another directory",
    errno.EPERM: "make it writable for you or choose another directory",
    errno.EROFS: "choose another directory",
    errno.EFBIG: r"raise the limit on the size of files \(ulimit -f\) or choose another directory",
}


@pytest.mark.parametrize("error", REMEDIES)
def test_I21_the_remedy_of_a_write_that_fails_fits_its_reason(tmp_path, error):
    with pytest.raises(StorageError, match=rf"\({os.strerror(error)}\); {REMEDIES[error]}$"):
        write_whole(tmp_path / "a", b"new", Failing("write", error))


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_I21_a_file_system_without_locks_is_named_as_such(tmp_path, monkeypatch, error):
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    message = "it cannot be locked .*; its file system has no locks, choose a directory on a local disk$"
    with pytest.raises(StorageError, match=message), locked(tmp_path / "lock", wait=False, what="it"):
        pytest.fail("locked")


def test_I21_a_lock_in_a_directory_that_may_not_be_written_names_that(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    message = "make it writable for you or choose another directory$"
    with pytest.raises(StorageError, match=message), locked(tmp_path / "lock", wait=False, what="it"):
        pytest.fail("locked")
