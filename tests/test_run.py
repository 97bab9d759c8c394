"""The run directory: records that survive a kill, the lock, the claim of a configuration, and views that others can read."""

import copy
import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

import semopo_tf
from semopo_tf.config import OPERATIONAL, Config, load, load_saved
from semopo_tf.errors import ConfigError, LockedError, StorageError
from semopo_tf.run import (
    Progress,
    Records,
    TensorBoard,
    encode_gif,
    last_progress,
    open_run,
    read_records,
    steady_output,
    video_grid,
    write_video,
)
from semopo_tf.training import claim

ROOT = Path(semopo_tf.__file__).parents[1]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# --- records --------------------------------------------------------------------------------------------------------------------------------


def test_appended_rows_read_back_in_order(tmp_path):
    records = Records(tmp_path / "metrics.jsonl")
    assert (records.size, read_records(records.path)) == (0, [])
    rows = [{"phase": "model", "step": step, "loss": 1 / 3 * step, "text": "a\nb \u2028 é"} for step in range(3)]
    for row in rows:
        records.append(row)
    assert read_records(records.path) == rows
    assert records.size == records.path.stat().st_size
    assert len(records.path.read_bytes().splitlines()) == 3


def test_rows_beyond_a_checkpoint_are_cut(tmp_path):
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


@pytest.mark.parametrize("half", [b'{"step": 2', b'{"step": 2}', b"\0\0\0\0", b"{"])
def test_a_half_line_is_left_out_by_readers_and_cut_by_the_next_writer(tmp_path, half):
    records = Records(tmp_path / "scores.jsonl")
    records.append({"step": 1})
    with open(records.path, "ab") as file:
        file.write(half)
    assert read_records(records.path) == [{"step": 1}]
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


def test_records_that_cannot_be_written_say_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"metrics\.jsonl: cannot be written \(Not a directory\); free some space and run again"):
        Records(tmp_path / "file" / "metrics.jsonl").append({"step": 1})


# --- the directory --------------------------------------------------------------------------------------------------------------------------


def test_opening_makes_the_directory_and_leaves_only_the_lock(tmp_path):
    with open_run(tmp_path / "a" / "b"):
        assert names(tmp_path / "a" / "b") == [".lock"]


def test_a_directory_that_cannot_be_made_is_refused_before_anything_else(tmp_path):
    (tmp_path / "file").touch()
    for logdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(StorageError, match=r"the run directory cannot be written \(.*\); choose another --logdir"), open_run(logdir):
            pytest.fail("opened")


def test_a_second_run_in_one_directory_is_refused_until_the_first_is_killed(tmp_path):
    script = (
        "import sys; from pathlib import Path; from semopo_tf.run import open_run\n"
        "with open_run(Path(sys.argv[1])):\n    print('open', flush=True); sys.stdin.readline()"
    )
    first = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "open\n"
        with pytest.raises(LockedError, match=f"the run directory {tmp_path} is in use by process {first.pid}"), open_run(tmp_path):
            pytest.fail("two runs")
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
    with open_run(tmp_path):
        pass


# --- the claim ------------------------------------------------------------------------------------------------------------------------------


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
    }
    assert set(other) == OPERATIONAL
    claim(load(["--configs", "semopo", "walker_walk", "debug", *[f"--{key}={value}" for key, value in other.items()]]), tmp_path)


def other_value(value):
    """Another value of the same type."""
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
        ConfigError, match=re.escape(f"configuration: {key} (there {old!r}, now {section[leaf]!r}); choose another --logdir")
    ) as caught:
        claim(Config(tree), tmp_path)
    assert caught.value.exit_code == 2
    assert load_saved(tmp_path / "config.yaml").flat() == configured().flat()


# --- views ----------------------------------------------------------------------------------------------------------------------------------


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


def test_a_resumed_run_hides_what_was_written_beyond_its_checkpoint(tmp_path):
    first = TensorBoard(tmp_path, first_step=0)
    for step in (1, 2, 3, 4):
        first.scalars(step, {"loss": float(step)})
    first.close()
    os.rename(next(tmp_path.glob("events*")), tmp_path / "events.out.tfevents.0000000001.first")  # file names are ordered by time in seconds
    second = TensorBoard(tmp_path, first_step=3)
    second.scalars(3, {"loss": 33.0})
    second.close()
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
    assert np.abs(received[:, : height - 1, : width - 1].astype(int) - shown[:, :-1, :-1]).max() < 12  # the codec is not lossless
    assert names(path.parent) == ["model.mp4"]


def test_a_video_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("semopo_tf.run.imageio.imwrite", full)
    with pytest.raises(StorageError, match=r"a\.mp4: the video cannot be written \(No space left on device\)"):
        write_video(tmp_path / "a.mp4", frames())
    assert names(tmp_path) == []


def test_a_grid_stacks_rows_below_and_sequences_beside_each_other():
    batch, time, height, width = 2, 3, 4, 5
    # Row 0 is grey with level (sequence + 1) / 10 at time 0, plus 0.2 a step; row 1 is pure green in sequence 0 and beyond the range in sequence 1.
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
    np.testing.assert_array_equal(grid, [[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5], [3, 3, 4, 4, 5, 5]])


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
    """Every digit: two runs are compared by the bytes of these files."""
    records, value = Records(tmp_path / "metrics.jsonl"), 0.1 + 0.2
    records.append({"value": value})
    assert json.loads(records.path.read_text())["value"] == value


# --- the output -----------------------------------------------------------------------------------------------------------------------------

STEADY = """
import os, sys
from semopo_tf.run import Progress, steady_output
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
    done = subprocess.run(["bash", "-c", command, sys.executable, STEADY, str(tmp_path / "file")], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert int((tmp_path / "file").read_text()) > 2


def test_the_streams_are_given_back():
    before = sys.stdout, sys.stderr
    with steady_output():
        assert sys.stdout is not before[0]
        assert sys.stdout.isatty() == before[0].isatty()
    assert (sys.stdout, sys.stderr) == before
