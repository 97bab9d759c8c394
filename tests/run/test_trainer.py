"""Where the frames of a run go, a run that would not fit, and a dataset that has changed."""

import re

import pytest
import synthetic
import victims

from semopo_tf import config as configuration
from semopo_tf.engine import devices
from semopo_tf.errors import DataError, DeviceError
from semopo_tf.run import alarms
from semopo_tf.run.alarms import explained_reward
from semopo_tf.run.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic.dataset(
        tmp_path_factory.mktemp("data"), episodes=50, records=40
    )  # 2000 frames of 12 288 bytes: 24.6 MB


@pytest.mark.parametrize(
    ("replay", "available", "place"),
    [
        ("auto", 0, "device"),  # unknown: taken to be enough
        ("auto", 1 << 30, "device"),
        ("auto", 40 << 20, "host"),  # the model phase needs about 30 MB besides the frames
        ("host", 1 << 30, "host"),
    ],
)
def test_frames_go_where_they_fit_or_where_they_are_told(data, tmp_path, monkeypatch, capsys, replay, available, place):
    monkeypatch.setattr(devices, "device_memory", lambda device: available)
    Trainer(configuration.load(synthetic.train_flags(data, tmp_path, "--replay", replay)), tmp_path)
    printed = capsys.readouterr().out
    assert f"2000 records, frames on the {place}" in printed
    assert "memory of the model phase: weights" in printed


@pytest.mark.parametrize(("replay", "available"), [("device", 40 << 20), ("auto", 1 << 20), ("host", 1 << 20)])
def test_a_run_that_does_not_fit_is_refused_with_the_remedies_before_it_starts(
    data, tmp_path, monkeypatch, replay, available
):
    monkeypatch.setattr(devices, "device_memory", lambda device: available)
    with pytest.raises(
        DeviceError,
        match=r"device memory: expected at most .* GB, the estimate is .* GB; lower --batch.size, or set --remat 400",
    ):
        Trainer(configuration.load(synthetic.train_flags(data, tmp_path, "--replay", replay)), tmp_path)


def test_the_memory_of_this_machine_is_known():
    assert devices.device_memory("/CPU:0") > 1 << 20
    assert devices.peak_memory("/CPU:0") > 1 << 20


def test_the_share_of_the_reward_that_the_head_explains():
    """A unit normal's negative log-likelihood is half the squared error and 0.918939: an error of 0.02 of a variance of
    0.1 explains 80 %.
    """
    assert explained_reward({"reward_loss": 0.918939 + 0.01, "reward_var": 0.1}) == pytest.approx(0.8, abs=1e-4)
    assert explained_reward({"reward_loss": 0.918939 + 0.05, "reward_var": 0.1}) == pytest.approx(0.0, abs=1e-4)
    assert (
        explained_reward({"reward_loss": 0.918939, "reward_var": 0.0}) == 1
    )  # a constant reward leaves nothing to explain


def test_I24_a_reward_that_never_changes_raises_no_alarm_about_the_head_that_predicts_it():
    """CartPole pays 1 everywhere."""
    assert alarms.raised({"reward_loss": 1.5, "reward_var": 1e-4}, last=True) == {}
    assert "explained" in alarms.raised({"reward_loss": 1.5, "reward_var": 0.1}, last=True)


def add(directory):
    synthetic.dataset(directory, episodes=5)
    return "000004-00000004-19.npz", "added"


def remove(directory):
    (directory / "000001-00000001-19.npz").unlink()
    return "000001-00000001-19.npz", "removed"


def edit(directory):
    synthetic.write_episode(directory / "000002-00000002-19.npz", synthetic.episode(9))
    return "000002-00000002-19.npz", "changed"


@pytest.mark.parametrize("change", [add, remove, edit])
def test_R15_a_changed_dataset_is_refused_with_its_first_file_that_differs(tmp_path, change):
    data = synthetic.dataset(tmp_path / "data")
    config = configuration.load(synthetic.train_flags(data, tmp_path))
    for _ in range(2):
        Trainer(config, tmp_path, make_learner=victims.Toy)
    before = (tmp_path / "dataset_manifest.json").read_bytes()
    name, what = change(data)
    with pytest.raises(
        DataError, match=re.escape(f"{data / name}: {what} since this run began; restore the dataset")
    ) as caught:
        Trainer(config, tmp_path, make_learner=victims.Toy)
    assert caught.value.exit_code == 3
    assert (tmp_path / "dataset_manifest.json").read_bytes() == before
