"""Whole runs on a disk that is full for a while: they go on, or they stop and are continued, and end with the bytes of
an undisturbed run.
"""

import errno
import os
from pathlib import Path

import pytest
import synthetic

from semopo_tf import training
from semopo_tf.errors import StorageError
from semopo_tf.storage.files import Files
from semopo_tf.storage.records import read_records

STEPS = ("--steps.model", "12", "--steps.policy", "12", "--log_every", "2", "--save_every", "6", "--video.every", "6")
LAST = "ckpt-policy-000000012"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return synthetic.dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> Path:
    return train(data, tmp_path_factory.mktemp("runs") / "undisturbed")


def train(data: Path, logdir: Path) -> Path:
    assert training.main(synthetic.train_flags(data, logdir, *STEPS)) == 0
    return logdir


def results(logdir: Path) -> tuple[bytes, bytes]:
    return (logdir / LAST / "tensors.npz").read_bytes(), (logdir / "metrics.jsonl").read_bytes()


def fill_disk(monkeypatch, full) -> None:
    """Half of what is written fits while `full(path)` says so; `path` is what is being written."""
    put = Files.put

    def sometimes(files, descriptor, data):
        if not full(Path(f"/proc/self/fd/{descriptor}").readlink()):
            return put(files, descriptor, data)
        put(files, descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Files, "put", sometimes)


def test_F02_a_run_goes_on_while_its_records_and_views_find_no_room(data, undisturbed, tmp_path, monkeypatch, capsys):
    """From the second row after each checkpoint on, until the last before the next."""
    written: dict[str, int] = {}

    def full(path):
        name = "video" if path.suffix == ".mp4" else path.name.split(".tfevents")[0]
        written[name] = written.get(name, 0) + 1
        return name in ("metrics.jsonl", "timing.jsonl", "events.out", "video") and written[name] % 3 == 2

    fill_disk(monkeypatch, full)
    logdir = train(data, tmp_path / "run")
    assert results(logdir) == results(undisturbed)
    starts = [(row["phase"], row["step"]) for row in read_records(logdir / "timing.jsonl")]
    assert starts == [(row["phase"], row["step"]) for row in read_records(undisturbed / "timing.jsonl")]
    warnings = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("warning") and "No space left on device" in line
    ]
    assert len(warnings) == 1 and "free some space" in warnings[0]
    assert len(list((logdir / "videos").iterdir())) == 1  # of two


@pytest.mark.parametrize("member", ["tensors.npz", "metrics.jsonl"])
def test_F01_F02_a_run_whose_checkpoint_finds_no_room_stops_and_is_continued(
    data, undisturbed, tmp_path, monkeypatch, member
):
    """The checkpoint itself, or the rows that must be there before it counts them."""
    logdir = tmp_path / "run"
    with monkeypatch.context() as patched:
        fill_disk(patched, lambda path: path.name == member and (logdir / "ckpt-model-000000012").exists())
        with pytest.raises(StorageError, match=r"No space left on device.*free some space and run again") as caught:
            train(data, logdir)
    assert caught.value.exit_code == 7
    assert sorted(path.name for path in logdir.glob("*ckpt*")) == ["ckpt-model-000000006", "ckpt-model-000000012"]
    train(data, logdir)
    assert results(logdir) == results(undisturbed)
