"""Linear probes: their scores on features with and without a quantity, and the figures of a run."""

import json
import shutil

import numpy as np
import pytest
import synthetic

from semopo_tf import collect, probe, training
from semopo_tf.data.cards import read_card, write_card
from semopo_tf.errors import ConfigError
from semopo_tf.run.linear_probe import RIDGE, fit_probe, r_squared

RNG = np.random.default_rng(0)


def test_a_probe_finds_what_is_linear_and_nothing_where_there_is_nothing():
    features, mixing = RNG.normal(3, [1, 10, 0.1, 1, 1], (4000, 5)), RNG.normal(size=(5, 2))
    target = features @ mixing + 7
    fitted = fit_probe(features[:3000], target[:3000])
    assert r_squared(fitted(features[3000:]), target[3000:]) > 0.999
    noise = RNG.normal(size=(4000, 2))
    fitted = fit_probe(features[:3000], noise[:3000])
    assert abs(r_squared(fitted(features[3000:]), noise[3000:])) < 0.02


def test_the_offset_is_not_shrunk_and_a_constant_feature_does_no_harm():
    features = np.concatenate([RNG.normal(size=(500, 1)), np.full((500, 1), 4.0)], 1)
    fitted = fit_probe(features, np.full((500, 1), 1000.0))
    np.testing.assert_allclose(fitted(features), 1000, rtol=1e-6)


def test_ridge_is_the_least_squares_of_the_rows_and_the_penalty():
    """The same minimum from an augmented least-squares problem."""
    features, target = RNG.normal(size=(50, 3)), RNG.normal(size=(50, 1))
    standard = (features - features.mean(0)) / features.std(0)
    rows = np.concatenate([np.c_[standard, np.ones(50)], np.sqrt(RIDGE * 50) * np.eye(4)[:3]])
    expected = np.linalg.lstsq(rows, np.concatenate([target, np.zeros((3, 1))]), rcond=None)[0]
    np.testing.assert_allclose(fit_probe(features, target).weight, expected, atol=1e-6)


def test_r_squared_by_hand():
    target = np.array([[0.0], [1.0], [2.0]])
    assert r_squared(target, target) == 1
    assert r_squared(np.ones((3, 1)), target) == 0
    assert r_squared(np.array([[1.0], [1.0], [1.5]]), target) == pytest.approx(1 - 1.25 / 2)


def test_swapped_streams_are_those_whose_exogenous_features_know_the_agent_better():
    assert probe.swapped({"r2": {"endo": {"position": 0.1}, "exo": {"position": 0.9}}})
    assert not probe.swapped({"r2": {"endo": {"position": 0.9}, "exo": {"position": 0.1}}})
    assert not probe.swapped({"r2": {"joint": {"position": 0.1}}})


def test_the_mask_is_averaged_on_and_off_the_agent():
    mask = np.zeros((1, 2, 4, 4, 1))
    mask[0, :, :2] = 0.8
    found = probe.mask_figures(mask, np.zeros((1, 2, 2)), lambda place: np.arange(16).reshape(4, 4) < 8)
    assert found == {"on": pytest.approx(0.8), "off": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "point"
    assert (
        collect.main(["--task", "exbmdp_point", "--policy", "mixed", "--episodes", "3", "--out", str(directory)]) == 0
    )
    return directory


@pytest.mark.parametrize(("method", "streams"), [("semopo", ["endo", "exo"]), ("offline_dv2", ["joint"])])
def test_a_run_is_probed_and_the_figures_are_kept(data, tmp_path, capsys, method, streams):
    logdir = tmp_path / "run"
    flags = ["--configs", method, "exbmdp_point", "debug", "--offline_dir", str(data), "--logdir", str(logdir)]
    assert training.main([*flags, "--eval.final_episodes", "2"]) == 0
    assert probe.main(["--logdir", str(logdir)]) == 0
    printed = capsys.readouterr().out
    found = json.loads((logdir / "analysis" / "probe.json").read_text())
    assert (found["phase"], found["step"], list(found["r2"])) == ("policy", 12, streams)
    for stream in streams:
        assert set(found["r2"][stream]) == {"position", "velocity", "phase", "discs"}
        assert set(found["open_loop"][stream]["position"]) == {"5", "15"}
        assert all(value <= 1 for value in found["r2"][stream].values())
    assert found["reward_r2"] <= 1
    assert (found["mask"] is None) == (method == "offline_dv2")
    assert "reward head R^2" in printed and f"{streams[0]} +15" in printed


def test_data_of_a_behaviour_that_cannot_be_played_again_are_refused(data, tmp_path):
    """A replay's card does not say where its snapshots are."""
    replay, logdir = shutil.copytree(data, tmp_path / "data"), tmp_path / "run"
    write_card(replay, read_card(replay) | {"policy": "replay"})
    flags = ["--configs", "semopo", "exbmdp_point", "debug", "--steps.model", "1", "--steps.policy", "0"]
    assert training.main([*flags, "--offline_dir", str(replay), "--logdir", str(logdir)]) == 0
    with pytest.raises(ConfigError, match=r"probe: expected data of a behaviour .*random, .*, received replay; choose"):
        probe.main(["--logdir", str(logdir)])


def test_a_run_whose_data_have_no_card_is_refused(tmp_path):
    data, logdir = synthetic.dataset(tmp_path / "data"), tmp_path / "run"
    assert training.main(synthetic.train_flags(data, logdir)) == 0
    with pytest.raises(ConfigError, match="expected a dataset with a card"):
        probe.main(["--logdir", str(logdir)])
