"""Runs whose surroundings change between two starts: folders with another place, another number of cores."""

import shutil

import pytest
import synthetic
import victims
from clips import write_grey

from semopo_tf import collect, training
from semopo_tf.config import load_saved
from semopo_tf.engine import devices
from semopo_tf.envs import tasks
from semopo_tf.errors import ConfigError, DataError
from semopo_tf.run.stopping import Stop
from semopo_tf.storage.records import read_records

TASK = "dmcdrv_cartpole_balance"
SIZES = ("--env.size", "16", "--env.action_repeat", "100")
LENGTHS = (
    "--steps.model",
    "2",
    "--steps.policy",
    "2",
    "--save_every",
    "1",
    "--batch.length",
    "4",
    "--video.every",
    "0",
)


@pytest.fixture
def folder(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for index, name in enumerate("abc"):
        write_grey(videos / f"{name}.mkv", range(40 * index, 40 * index + 9))
    return videos


def train(tmp_path, *flags, data="data"):
    words = ["--configs", "semopo", "debug", "--task", TASK, "--offline_dir", str(tmp_path / data)]
    words += ["--logdir", str(tmp_path / "run"), *SIZES, *LENGTHS, "--eval.final_episodes", "1", *flags]
    return training.train(words, Stop(), make_learner=victims.Toy)


def begin(tmp_path, folder, monkeypatch, *flags):
    """A run on a dataset in front of videos, stopped before its final evaluation."""
    words = ["--task", TASK, "--episodes", "1", "--background", str(folder), "--out", str(tmp_path / "data")]
    assert collect.main([*words, "--size", "16", "--action_repeat", "100"]) == 0
    with monkeypatch.context() as patched, pytest.raises(InterruptedError):
        patched.setattr("semopo_tf.run.trainer.Trainer._finish", stop)
        train(tmp_path, *flags)


def stop(trainer):
    raise InterruptedError


def test_I18_a_run_whose_videos_were_moved_goes_on_when_told_the_new_place(tmp_path, folder, monkeypatch):
    """The names of the clips are compared: with the run's own record, or with the dataset's card."""
    begin(tmp_path, folder, monkeypatch)
    moved = tmp_path / "elsewhere" / "clips"
    moved.parent.mkdir()
    shutil.move(folder, moved)
    with pytest.raises(DataError, match=rf"^{folder}: expected the folder of .*, received none; add --env\.background"):
        train(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for name in "xyz":
        write_grey(other / f"{name}.mkv", range(9))
    with pytest.raises(
        DataError, match=r"other: expected the clips that this run began with, .* \(first: [abc]\.mkv\)"
    ):
        train(tmp_path, "--env.background", str(other))
    assert load_saved(tmp_path / "run" / "config.yaml").env.background == "card"
    with pytest.raises(ConfigError, match=r"another configuration: env\.background \(there 'card', now 'builtin:dr"):
        train(tmp_path, "--env.background", "builtin:driving")
    assert train(tmp_path, "--env.background", str(moved)) == 0
    (row,) = read_records(tmp_path / "run" / "scores.jsonl")
    assert sorted(row["clips"]) == ["a.mkv", "b.mkv"] and row["environment"]["background"] == str(moved)
    assert load_saved(tmp_path / "run" / "config.yaml").env.background == str(moved)  # evaluate.py finds them


def test_I18_a_place_that_the_run_named_itself_may_change_too(tmp_path, folder, monkeypatch, capsys):
    begin(tmp_path, folder, monkeypatch, "--env.background", str(folder))
    moved = folder.rename(tmp_path / "moved")
    assert train(tmp_path, "--env.background", str(moved)) == 0
    assert "not comparable" not in capsys.readouterr().out


def test_I18_clips_that_changed_in_their_place_are_a_warning(tmp_path, folder, monkeypatch, capsys):
    begin(tmp_path, folder, monkeypatch)
    (folder / "a.mkv").unlink()
    tasks.shared_background.cache_clear()  # as in a new process
    assert train(tmp_path) == 0
    assert "warning: " in (said := capsys.readouterr().out)
    assert "later evaluations are not comparable with earlier ones" in said


def test_I18_a_run_whose_dataset_was_moved_goes_on_and_its_files_are_compared(tmp_path, folder, monkeypatch):
    begin(tmp_path, folder, monkeypatch)
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=f"{tmp_path / 'data'}"):
        train(tmp_path)
    synthetic.dataset(tmp_path / "other", size=16, action_size=1)
    with pytest.raises(DataError, match=r"since this run began; restore the dataset as it was"):
        train(tmp_path, data="other")
    assert train(tmp_path, data="moved") == 0


def test_I15_another_number_of_threads_is_a_warning_and_a_note(tmp_path, monkeypatch, capsys):
    from semopo_tf.run import checkpoints

    data = synthetic.dataset(tmp_path / "data", size=16)
    flags = synthetic.train_flags(data, tmp_path / "run", *LENGTHS)
    monkeypatch.setattr(devices, "threads", lambda: 2)
    with monkeypatch.context() as patched, pytest.raises(InterruptedError):
        patched.setattr(checkpoints, "prune", lambda logdir, phases, keep: stop(logdir))
        training.train(flags, Stop(), make_learner=victims.Toy)
    monkeypatch.setattr(devices, "threads", lambda: 3)
    capsys.readouterr()
    assert training.train(flags, Stop(), make_learner=victims.Toy) == 0
    warning = "warning: ckpt-model-000000001 was computed with threads 2 (now 3): the run goes on, but no longer to"
    assert warning in capsys.readouterr().out
    newest = checkpoints.load_newest(tmp_path / "run", ["model", "policy"])[0]
    assert [entry["versions"]["threads"] for entry in newest.state["versions"]] == ["2", "3"]


@pytest.mark.parametrize(("given", "expected"), [("", 3), ("0", 3), ("5", 5), ("many", 3)])
def test_I15_the_threads_of_an_operation_are_counted_as_tensorflow_does(monkeypatch, given, expected):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", given)
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda process: {0, 1, 2})
    assert devices.threads() == expected
