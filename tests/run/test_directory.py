"""The run directory: records that survive a kill, the lock, the claim of a configuration, and views that others can
read.
"""

import copy
import errno
import functools
import io
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

import semopo_tf
from semopo_tf import training
from semopo_tf.config import OPERATIONAL, Config, load, load_saved
from semopo_tf.errors import CheckpointError, ConfigError, DataError, LockedError, StorageError
from semopo_tf.run import checkpoints
from semopo_tf.run.directory import Patience, open_run, steady_output
from semopo_tf.run.views import Progress, TensorBoard, last_progress
from semopo_tf.storage.files import Files
from semopo_tf.storage.records import Records, read_records
from semopo_tf.storage.video import encode_gif, encode_mp4, video_grid, write_video
from semopo_tf.training import claim

PHASES = ("model", "policy")

ROOT = Path(semopo_tf.__file__).parents[1]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# --- records ----------------------------------------------------------------------------------------------------------


def test_appended_rows_read_back_in_order(tmp_path):
    records = Records(tmp_path / "metrics.jsonl")
    assert (records.size, read_records(records.path)) == (0, [])
    rows = [{"phase": "model", "step": step, "loss": 1 / 3 * step, "text": "a\nb \u2028 é"} for step in range(3)]
    for row in rows:
        records.append(row)
    assert read_records(records.path) == rows
    assert records.size == records.path.stat().st_size
    assert len(records.path.read_bytes().splitlines()) == 3


def test_F10_rows_beyond_a_checkpoint_are_cut(tmp_path):
    records = Records(tmp_path / "metrics.jsonl")
    records.append({"step": 1})
    size = records.size
    records.append({"step": 2})
    records.append({"step": 3})
    records.cut(size)
    assert read_records(records.path) == [{"step": 1}]
    records.append({"step": 2})
    assert read_records(records.path) == [{"step": 1}, {"step": 2}]
    records.cut(0)
    assert records.size == 0


HALF = [
    b'{"step": 2',
    b'{"step": 2}',
    b"\0\0\0\0",
    b"{",
    b"\0\0\0\n",
    b"\0\0\0 2}\n",
    b"\xff\xfe\n",
    b"[1]\n",
    b"[" * 100_000 + b"\n",
]


@pytest.mark.parametrize("half", HALF, ids=range(len(HALF)))
def test_F09_a_bad_last_line_is_left_out_by_readers_and_cut_by_the_next_writer(tmp_path, half, capsys):
    records = Records(tmp_path / "scores.jsonl")
    records.append({"step": 1})
    with open(records.path, "ab") as file:
        file.write(half)
    assert read_records(records.path) == [{"step": 1}]
    assert capsys.readouterr().err == f"warning: {records.path}: the last line is not whole and is left out\n"
    records.drop_half_line()
    records.append({"step": 3})
    assert read_records(records.path) == [{"step": 1}, {"step": 3}]


def test_a_file_of_half_a_line_becomes_empty(tmp_path):
    records = Records(tmp_path / "scores.jsonl")
    records.path.write_bytes(b'{"ste')
    records.drop_half_line()
    assert records.size == 0


def test_whole_lines_are_left_alone(tmp_path):
    records = Records(tmp_path / "scores.jsonl")
    records.append({"step": 1})
    before = records.path.read_bytes()
    records.drop_half_line()
    assert records.path.read_bytes() == before


def test_F09_a_bad_line_before_the_last_is_named(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n{"step": 3}\n')
    with pytest.raises(
        DataError, match=r"scores\.jsonl: expected one JSON object a line, line 2 is none; remove the line"
    ):
        read_records(path)


@pytest.mark.parametrize("change", ["garbage after", "rows after", "NUL bytes after"])
def test_F09_F10_records_are_cut_back_to_the_bytes_of_the_checkpoint(tmp_path, change):
    records = Records(tmp_path / "metrics.jsonl")
    records.append({"step": 1})
    whole, size = records.path.read_bytes(), records.settle()
    with open(records.path, "ab") as file:
        file.write(
            {"garbage after": b'{"st', "rows after": b'{"step": 2}\n' * 3, "NUL bytes after": bytes(5000)}[change]
        )
    records.cut(size)
    assert records.path.read_bytes() == whole


@pytest.mark.parametrize("content", [None, b"", b'{"step": 1}\n', b'{"step": 1}\n{"step": 22}\n'])
def test_F09_records_that_lost_rows_of_their_checkpoint_are_refused_and_never_filled_up(tmp_path, content):
    """Missing, empty, too short, or no row ends there: cutting would make NUL bytes or half a row."""
    records = Records(tmp_path / "metrics.jsonl")
    if content is not None:
        records.path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"metrics\.jsonl: expected rows of 24 bytes as at the checkpoint, received .*restore"
    ):
        records.cut(24)
    assert (records.path.read_bytes() if content is not None else None) == content


def test_F08_a_reader_of_growing_records_sees_whole_rows_only(tmp_path):
    records, rows = Records(tmp_path / "metrics.jsonl"), [{"step": step, "text": "x" * 5000} for step in range(200)]
    script = (
        "import sys; from pathlib import Path; from semopo_tf.storage.records import read_records\nseen = 0\n"
        "while seen < 200:\n rows = read_records(Path(sys.argv[1]))\n"
        " if [row['step'] for row in rows] != list(range(len(rows))) or len(rows) < seen: raise SystemExit(1)\n seen "
        "= len(rows)\n"
    )
    reader = subprocess.Popen([sys.executable, "-c", script, str(records.path)], cwd=ROOT)
    for row in rows:
        records.append(row)
    assert reader.wait(timeout=60) == 0


def test_missing_records_are_neither_cut_nor_made(tmp_path):
    records = Records(tmp_path / "scores.jsonl")
    records.drop_half_line()
    records.cut(0)
    assert names(tmp_path) == []


def test_rows_are_valid_json_always(tmp_path):
    """NaN is not JSON: a row that holds one is a mistake of the caller, and the file stays as it was."""
    records = Records(tmp_path / "metrics.jsonl")
    records.append({"step": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.append({"step": 2, "loss": float("nan")})
    assert read_records(records.path) == [{"step": 1}]


# --- a full disk ------------------------------------------------------------------------------------------------------


class Full(Files):
    """A disk that is full while `full` says so: half of what is written fits."""

    full = False

    def put(self, descriptor, data):
        if not self.full:
            return super().put(descriptor, data)
        super().put(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_F02_rows_wait_while_the_disk_is_full_and_are_exact_afterwards(tmp_path, capsys):
    """One warning a minute, whatever is written; the clock is the test's."""
    disk, now = Full(), [0.0]
    records, board, patience = (
        Records(tmp_path / "metrics.jsonl", disk),
        TensorBoard(tmp_path, 0, disk),
        Patience(lambda: now[0]),
    )
    for step in range(100):
        disk.full, now[0] = 20 <= step < 90, float(2 * step)
        with patience:
            records.append({"step": step})
        with patience:
            board.scalars(step, {"loss": float(step)})
    assert [row["step"] for row in read_records(records.path)] == list(range(100))
    read = EventAccumulator(str(tmp_path), size_guidance={SCALARS: 0}).Reload()
    assert [event.step for event in read.Scalars("loss")] == list(range(100))
    warnings = capsys.readouterr().out.splitlines()
    assert len(warnings) == 3  # 140 seconds without room
    assert all(
        "No space left on device); free some space" in line and "training goes on until a checkpoint cannot" in line
        for line in warnings
    )


def test_F02_records_that_still_wait_at_a_checkpoint_end_the_run(tmp_path):
    """Otherwise the checkpoint would count bytes that are not on the disk."""
    disk, patience = Full(), Patience()
    records = Records(tmp_path / "metrics.jsonl", disk)
    records.append({"step": 1})
    disk.full = True
    with patience:
        records.append({"step": 2})
    with pytest.raises(StorageError) as caught:
        records.settle()
    assert caught.value.exit_code == 7
    disk.full = False
    assert records.settle() == records.path.stat().st_size == len(b'{"step": 1}\n{"step": 2}\n')


def test_F02_patience_is_for_storage_alone():
    with pytest.raises(KeyError), Patience():
        raise KeyError


def test_F02_a_video_that_finds_no_room_is_one_warning_and_no_half_file(tmp_path, capsys):
    """A real limit of the system: no file may have more than 2 KiB, for a moment."""
    noise = np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        with Patience():
            write_video(tmp_path / "videos" / "model-000000001.mp4", noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert names(tmp_path / "videos") == []


def test_records_that_cannot_be_written_say_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        StorageError,
        match=r"metrics\.jsonl: cannot be written \(Not a directory\); restore its directory and run again",
    ):
        Records(tmp_path / "file" / "metrics.jsonl").append({"step": 1})


# --- the directory ----------------------------------------------------------------------------------------------------


def test_opening_makes_the_directory_and_leaves_only_the_lock(tmp_path):
    with open_run(tmp_path / "a" / "b"):
        assert names(tmp_path / "a" / "b") == [".lock"]


def test_F05_a_directory_that_cannot_be_made_is_refused_before_anything_else(tmp_path):
    (tmp_path / "file").touch()
    for logdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with (
            pytest.raises(StorageError, match=r"the run directory cannot be written \(.*\); choose another --logdir"),
            open_run(logdir),
        ):
            pytest.fail("opened")


class ReadOnly(Files):
    """A file system mounted read-only, which refuses root too."""

    def _refuse(self, *_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    create = make_one_directory = _refuse


@pytest.mark.parametrize("there", [True, False])
def test_F05_a_read_only_directory_is_refused_and_nothing_is_left(tmp_path, there):
    logdir = tmp_path / "run"
    if there:
        logdir.mkdir()
    with (
        pytest.raises(StorageError, match=r"run: the run directory cannot be written \(Read-only file system\)"),
        open_run(logdir, ReadOnly()),
    ):
        pytest.fail("opened")
    assert names(tmp_path) == (["run"] if there else [])


@pytest.mark.parametrize("place", ["file", "file/run", "\udcff" * 300])
def test_F05_training_refuses_it_at_once_with_exit_code_7(tmp_path, monkeypatch, place):
    """Before TensorFlow is loaded or data are read: there are no data, and the trainer cannot be imported."""
    (tmp_path / "file").touch()
    monkeypatch.setitem(sys.modules, "semopo_tf.run.trainer", None)
    with pytest.raises((StorageError, ConfigError)) as caught:
        training.main(
            ["--configs", "semopo", "walker_walk", "debug", "--offline_dir", "DATA", "--logdir", str(tmp_path / place)]
        )
    assert caught.value.exit_code in (7, 2)


class Counting(Files):
    """Counts what is removed, and how often the directory `watched` is listed by anyone."""

    removed, listed, watched = 0, 0, ""

    def __init__(self):
        sys.addaudithook(self._audit)  # for the life of the process

    def _audit(self, event, arguments):
        if self.watched and event in ("os.scandir", "os.listdir"):
            self.listed += str(arguments[0]) == self.watched

    def unlink(self, path):
        self.removed += 1
        super().unlink(path)

    def remove_directory(self, path):
        self.removed += 1
        super().remove_directory(path)


def test_C13_one_thousand_leftovers_of_killed_writers_are_gone_with_one_call_each(tmp_path):
    """Directories, files and links; what another command writes, and what the user keeps, stays."""
    for number in range(500):
        checkpoint = tmp_path / f".tmp-{number}-ckpt-model-000000001"
        checkpoint.mkdir()
        (checkpoint / "tensors.npz").write_bytes(b"half")
        (tmp_path / f".tmp-{number}-config.yaml").write_bytes(b"half")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / ".tmp-1-link").symlink_to(tmp_path / "kept")
    (tmp_path / "videos").mkdir()
    for name in (
        "model-000000001.mp4",
        ".tmp-12-model-000000001.mp4",
        ".tmp-12-evaluation-model-000000001-episodes.mp4",
        "mine.txt",
    ):
        (tmp_path / "videos" / name).touch()
    files = Counting()
    files.watched = str(tmp_path)
    with open_run(tmp_path, files):
        files.watched = ""
        assert names(tmp_path) == [".lock", "kept", "videos"]
    assert files.removed == 500 * 3 + 2 + 1  # a link, a video; and the file that shows that the directory is writable
    assert 1 <= files.listed <= 2  # however many leftovers there are
    assert names(tmp_path / "videos") == [
        ".tmp-12-evaluation-model-000000001-episodes.mp4",
        "mine.txt",
        "model-000000001.mp4",
    ]
    assert names(tmp_path / "kept") == ["file"]


def test_C13_leftovers_stay_while_another_run_holds_the_directory(tmp_path):
    with open_run(tmp_path):
        (tmp_path / ".tmp-1-ckpt-model-000000001").mkdir()
        with pytest.raises(LockedError), open_run(tmp_path):
            pytest.fail("two runs")
        assert names(tmp_path) == [".lock", ".tmp-1-ckpt-model-000000001"]


def test_F07_R18_a_second_run_in_one_directory_is_refused_until_the_first_is_killed(tmp_path, capsys):
    script = (
        "import sys; from pathlib import Path; from semopo_tf.run.directory import open_run\n"
        "with open_run(Path(sys.argv[1])):\n    print('open', flush=True); sys.stdin.readline()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stdout.readline() == "open\n"
        with (
            pytest.raises(LockedError, match=f"the run directory {tmp_path} is in use by process {first.pid}"),
            open_run(tmp_path),
        ):
            pytest.fail("two runs")
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
    for expected in (f"warning: the last run in {tmp_path} (process {first.pid} on ", ""):
        with open_run(tmp_path):
            line = capsys.readouterr().out
            assert line.startswith(expected)
            assert bool(line) == bool(expected)
            assert not line or line.endswith(") ended without a stop record: it was killed, or the machine stopped\n")


NAMES = ["naïve-ё-模型", "with two  spaces", "new\nline", "🦾", "x" * 200, "a\udcffb", "-rf $HOME;*", "[a-z]?'\""]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_F12_a_run_directory_may_have_any_name(tmp_path, name):
    """What is written there, the commands that read it in a plain C locale, and their messages."""
    logdir = tmp_path / name / "run"
    state = {"metrics_size": 0, "timing_size": 0, "sums": [], "count": 0}
    with open_run(logdir):
        for step in (1, 2, 3):
            checkpoints.save(logdir, "model", step, {"a": np.ones(3, np.float32)}, state)
        assert checkpoints.prune(logdir, PHASES, keep=1) == []
        records = Records(logdir / "metrics.jsonl")
        records.append({"step": 1})
        assert read_records(records.path) == [{"step": 1}]
        TensorBoard(logdir, 0).scalars(1, {"loss": 1.0})
        write_video(logdir / "videos" / "model-000000001.mp4", frames(3, 16, 16))
    assert [path.name for path in checkpoints.listed(logdir, PHASES)] == ["ckpt-model-000000003"]
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))} | {
        "LC_ALL": "C"
    }
    command = [sys.executable, "-m", "semopo_tf.checkpoint", "check", logdir]
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    (logdir / "ckpt-model-000000003" / "state.json").unlink()
    done = subprocess.run(command, cwd=ROOT, env=plain | {"PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=60)
    assert done.returncode == 4
    assert done.stderr.startswith(b"semopo_tf: checkpoint error (exit 4): ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("key", ["logdir", "offline_dir"])
def test_F12_a_name_that_no_configuration_can_hold_is_refused_in_one_line(tmp_path, key):
    names_of = {"logdir": str(tmp_path / "run"), "offline_dir": "DATA"} | {key: str(tmp_path / "a\udcffb")}
    with pytest.raises(
        ConfigError, match=rf"--{key}: expected UTF-8, received other bytes; rename the file or directory"
    ):
        training.main(
            [
                "--configs",
                "semopo",
                "walker_walk",
                "debug",
                *[word for name, value in names_of.items() for word in (f"--{name}", value)],
            ]
        )


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_F13_what_a_run_writes_is_never_writable_for_everybody(tmp_path, umask):
    before = os.umask(umask)
    try:
        with open_run(tmp_path / "run"):
            claim(configured(), tmp_path / "run")
            Records(tmp_path / "run" / "metrics.jsonl").append({})
            TensorBoard(tmp_path / "run", 0)
            write_video(tmp_path / "run" / "videos" / "a.mp4", frames(3, 16, 16))
            state = {"metrics_size": 0, "timing_size": 0, "sums": [], "count": 0}
            checkpoints.save(tmp_path / "run", "model", 1, {"a": np.ones(3)}, state)
    finally:
        os.umask(before)
    made = list((tmp_path / "run").rglob("*"))
    assert len(made) == 10
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made}
    assert {name: oct(mode) for name, mode in modes.items() if mode & (0o002 | umask) or not mode & 0o400} == {}


def test_F11_a_clock_that_jumps_disturbs_nothing(tmp_path, monkeypatch, capsys):
    """Back a day, forward a year, to zero: order by step, rates from the monotonic clock, TensorBoard's files in the
    order they were made.
    """
    state, days = {"metrics_size": 0, "timing_size": 0, "sums": [], "count": 0}, 86400
    real = time.time()
    progress = Progress("model", 0, 4)
    for step, now in enumerate([real, real - days, real + 365 * days, 0.0], start=1):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        with open_run(tmp_path):
            checkpoints.save(tmp_path, "model", step, {"a": np.float32([step])}, state)
            os.utime(tmp_path / f"ckpt-model-{step:09d}", (now, now))
            TensorBoard(tmp_path, step).scalars(step, {"loss": float(step)})
            progress.update(step, "")
    newest, faults = checkpoints.load_newest(tmp_path, PHASES)
    assert (newest.step, faults) == (4, [])
    assert checkpoints.prune(tmp_path, PHASES, keep=2) == []
    assert [path.name[-1] for path in checkpoints.listed(tmp_path, PHASES)] == ["3", "4"]
    read = EventAccumulator(str(tmp_path), size_guidance={SCALARS: 0}).Reload()
    assert [event.step for event in read.Scalars("loss")] == [1, 2, 3, 4]
    (line,) = capsys.readouterr().out.splitlines()
    rate, left = float(line.split()[2]), float(line.split()[4])
    assert rate > 0
    assert left == 0


# --- the claim --------------------------------------------------------------------------------------------------------


@functools.cache
def configured(*flags):
    return load(["--configs", "semopo", "walker_walk", "debug", "--offline_dir", "DATA", "--logdir", "RUN", *flags])


def test_a_new_directory_gets_the_configuration_and_an_old_one_accepts_the_same(tmp_path):
    claim(configured(), tmp_path)
    written = (tmp_path / "config.yaml").read_bytes()
    assert load_saved(tmp_path / "config.yaml").flat() == configured().flat()
    claim(configured(), tmp_path)
    assert (tmp_path / "config.yaml").read_bytes() == written


def test_another_configuration_is_refused_with_the_keys_that_differ(tmp_path):
    claim(configured(), tmp_path)
    with pytest.raises(ConfigError) as caught:
        claim(configured("--seed", "2", "--rssm.deter", "16"), tmp_path)
    message = str(caught.value)
    assert "holds a run with another configuration" in message
    assert "seed (there 1, now 2)" in message
    assert "rssm.deter (there 8, now 16)" in message
    assert "choose another --logdir or the same flags" in message
    assert load_saved(tmp_path / "config.yaml").seed == 1


def test_R14_keys_that_say_where_and_how_fast_may_differ(tmp_path):
    claim(configured(), tmp_path)
    other = {
        "logdir": "ELSEWHERE",
        "offline_dir": "MOVED",
        "cache_dir": "C",
        "device": "cpu",
        "updates_per_call": "3",
        "keep_checkpoints": "9",
        "replay": "host",
        "xla_cache": "off",
    }
    assert set(other) == OPERATIONAL
    claim(
        load(["--configs", "semopo", "walker_walk", "debug", *[f"--{key}={value}" for key, value in other.items()]]),
        tmp_path,
    )


def other_value(value):
    """A different value of the same type."""
    if isinstance(value, list | tuple):
        return [*value, 1]
    return not value if isinstance(value, bool) else f"{value}x" if isinstance(value, str) else value + 1


@pytest.mark.parametrize("key", sorted(set(configured().flat()) - OPERATIONAL))
def test_R14_every_other_key_may_not_differ_and_is_named_with_both_values(tmp_path, key):
    claim(configured(), tmp_path)
    tree, (*sections, leaf) = copy.deepcopy(configured()._tree), key.split(".")
    section = functools.reduce(lambda part, name: part[name], sections, tree)
    old = section[leaf]
    section[leaf] = other_value(old)
    with pytest.raises(
        ConfigError,
        match=re.escape(f"configuration: {key} (there {old!r}, now {section[leaf]!r}); choose another --logdir"),
    ) as caught:
        claim(Config(tree), tmp_path)
    assert caught.value.exit_code == 2
    assert load_saved(tmp_path / "config.yaml").flat() == configured().flat()


# --- views ------------------------------------------------------------------------------------------------------------


def frames(count=7, height=6, width=10) -> np.ndarray:
    """Flat frames of distinct colours."""
    levels = np.linspace(0, 250, count).astype(np.uint8)
    return np.stack([np.full((height, width, 3), (level, 250 - level, 100), np.uint8) for level in levels])


def test_tensorboard_reads_scalars_and_pictures_back(tmp_path):
    board = TensorBoard(tmp_path, first_step=0)
    for step in (1, 2, 3):
        board.scalars(step, {"model/loss": 10.0 * step, "policy/return": -step})
    board.gif(3, "reconstruction", frames())
    board.close()
    read = EventAccumulator(str(tmp_path), size_guidance={SCALARS: 0, IMAGES: 0}).Reload()
    assert sorted(read.Tags()[SCALARS]) == ["model/loss", "policy/return"]
    assert [(event.step, event.value) for event in read.Scalars("model/loss")] == [(1, 10.0), (2, 20.0), (3, 30.0)]
    (picture,) = read.Images("reconstruction")
    assert (picture.step, picture.width, picture.height) == (3, 10, 6)
    assert imageio.imread(io.BytesIO(picture.encoded_image_string), extension=".gif").shape == (7, 6, 10, 3)


def test_F10_a_resumed_run_hides_what_was_written_beyond_its_checkpoint(tmp_path):
    first = TensorBoard(tmp_path, first_step=0)
    for step in (1, 2, 3, 4):
        first.scalars(step, {"loss": float(step)})
    second = TensorBoard(tmp_path, first_step=3)
    second.scalars(3, {"loss": 33.0})
    read = EventAccumulator(str(tmp_path), size_guidance={SCALARS: 0}).Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 33.0)]


def test_a_gif_keeps_size_and_number_of_frames():
    shown = imageio.imread(encode_gif(frames()), extension=".gif")
    assert shown.shape == (7, 6, 10, 3)
    assert np.abs(shown.astype(int) - frames()).max() <= 8  # a palette of 256 colours


@pytest.mark.parametrize(("height", "width", "expected"), [(32, 48, (32, 48)), (33, 47, (34, 48))])
def test_a_video_keeps_its_frames_at_an_even_size(tmp_path, height, width, expected):
    path = tmp_path / "deep" / "videos" / "model.mp4"
    shown = frames(9, height, width)
    write_video(path, shown)
    received = imageio.imread(path, plugin="FFMPEG")
    assert received.shape == (9, *expected, 3)
    assert (
        np.abs(received[:, : height - 1, : width - 1].astype(int) - shown[:, :-1, :-1]).max() < 12
    )  # the codec is not lossless
    assert names(path.parent) == ["model.mp4"]


def test_a_video_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file: cannot be made \(File exists\); choose another directory"):
        write_video(tmp_path / "file" / "a.mp4", frames())
    with pytest.raises(StorageError, match=r"a video of 2 frames cannot be encoded \(.*\)"):
        encode_mp4(np.zeros((2, 3, 5, 3), np.uint8))  # odd sizes


def test_a_grid_stacks_rows_below_and_sequences_beside_each_other():
    batch, time, height, width = 2, 3, 4, 5
    # Row 0 is grey with level (sequence + 1) / 10 at time 0, plus 0.2 a step; row 1 is pure green in sequence 0 and
    # beyond the range in sequence 1.
    level = (np.arange(batch)[:, None] + 1) / 10 + 0.2 * np.arange(time)
    grey = np.broadcast_to(level[:, :, None, None, None], (batch, time, height, width, 1))
    color = np.zeros((batch, time, height, width, 3))
    color[0, ..., 1], color[1, ..., 0], color[1, ..., 2] = 1, 1.7, -0.4
    grid = video_grid({"grey": grey, "color": color}, scale=3)
    assert (grid.shape, grid.dtype) == ((time, 2 * height * 3, batch * width * 3, 3), np.uint8)
    rows = grid.reshape(time, 2, height * 3, batch, width * 3, 3)
    for sequence in range(batch):
        for step in range(time):
            expected = int(level[sequence, step] * 255 + 0.5)
            assert (rows[step, 0, :, sequence] == expected).all()
    assert (rows[:, 1, :, 0] == [0, 255, 0]).all()
    assert (rows[:, 1, :, 1] == [255, 0, 0]).all()  # clipped, not wrapped


def test_a_grid_enlarges_each_pixel_in_place():
    picture = np.arange(6).reshape(1, 1, 2, 3, 1) / 255
    grid = video_grid({"only": picture}, scale=2)[0, :, :, 0]
    np.testing.assert_array_equal(
        grid, [[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5], [3, 3, 4, 4, 5, 5]]
    )


def test_progress_into_a_file_prints_its_last_line(capsys, tmp_path):
    progress = Progress("model", 0, 20)
    progress.update(10, "loss 3")
    progress.update(20, "loss 2")
    progress.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("model 20/20, ")
    assert line.endswith(", loss 2")
    log = tmp_path / "log.txt"
    assert last_progress(log) == ""
    log.write_text(f"device\npolicy 1/2, 3.00 updates/s, 9.9 min left, loss 1\n{line}\ndone: model 1/2\n")
    assert last_progress(log) == line.removesuffix(", loss 2")


def test_records_hold_what_python_floats_hold(tmp_path):
    """All digits, because runs are compared by the bytes of these files."""
    records, value = Records(tmp_path / "metrics.jsonl"), 0.1 + 0.2
    records.append({"value": value})
    assert json.loads(records.path.read_text())["value"] == value


# --- the output -------------------------------------------------------------------------------------------------------

STEADY = """
import os, sys
from semopo_tf.run.views import Progress; from semopo_tf.run.directory import steady_output
with steady_output():
    opened = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    for number in range(3):
        print("x" * 10_000, flush=True)
        print("y", file=sys.stderr, flush=True)
    progress = Progress("model", 0, 1)
    progress.update(1, "")
    progress.close()
    os.write(opened, str(opened).encode())
"""


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>&1", "| true"])
def test_R20_what_nobody_takes_is_dropped_and_no_file_gets_the_number_of_a_standard_stream(tmp_path, redirection):
    command = f'set -o pipefail; "$0" -c "$1" "$2" {redirection}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, STEADY, str(tmp_path / "file")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert int((tmp_path / "file").read_text()) > 2


def test_the_streams_are_given_back():
    before = sys.stdout, sys.stderr
    with steady_output():
        assert sys.stdout is not before[0]
        assert sys.stdout.isatty() == before[0].isatty()
    assert (sys.stdout, sys.stderr) == before
