"""`python -m semopo_tf.data`: lists all that is bad, by name."""

import json

import numpy as np
import pytest
import synthetic

from semopo_tf.data import __main__ as data
from semopo_tf.errors import ConfigError, DataError
from semopo_tf.storage.files import sha256


def test_check_lists_every_bad_file_and_counts_them(tmp_path, capsys):
    directory = synthetic.dataset(tmp_path / "data")
    (directory / "000001-00000001-19.npz").write_bytes(b"<html>quota exceeded")
    np.savez_compressed(directory / "000002-00000002-19.npz", image=np.zeros((20, 64, 64, 3), np.uint8))
    with pytest.raises(DataError, match="2 problems in 4 files"):
        data.main(["check", str(directory)])
    printed = capsys.readouterr().out
    assert "000001-00000001-19.npz: this is a web page, not data" in printed
    assert "000002-00000002-19.npz: expected the keys image, action, reward, missing action, reward" in printed


def test_check_compares_the_files_with_the_card(tmp_path, capsys):
    directory = synthetic.dataset(tmp_path / "data")
    files = [{"file": path.name, "sha256": sha256(path)} for path in sorted(directory.glob("*.npz"))]
    (directory / "dataset.json").write_text(
        json.dumps({"status": "complete", "files": [*files, {"file": "lost.npz", "sha256": "0"}]})
    )
    synthetic.dataset(directory, episodes=1, records=30)
    (directory / "000000-00000000-29.npz").rename(directory / "000000-00000000-19.npz")
    with pytest.raises(DataError, match="2 problems"):
        data.main(["check", str(directory)])
    printed = capsys.readouterr().out
    assert "lost.npz: listed in dataset.json, but not there" in printed
    assert "000000-00000000-19.npz: expected the SHA-256 in dataset.json, received another" in printed


def test_check_names_files_of_another_shape(tmp_path, capsys):
    directory = synthetic.dataset(tmp_path / "data", episodes=2)
    synthetic.dataset(tmp_path / "other", episodes=3, action_size=4)
    (tmp_path / "other" / "000002-00000002-19.npz").rename(directory / "000002-00000002-19.npz")
    with pytest.raises(DataError, match="1 problems in 3 files"):
        data.main(["check", str(directory)])
    assert "000002-00000002-19.npz has [64, 64, 3] and [4]" in capsys.readouterr().out


def test_stats_prints_returns_and_shares_of_equal_ones(tmp_path, capsys):
    directory = synthetic.dataset(tmp_path / "data", episodes=3)
    (directory / "copy.npz").write_bytes((directory / "000000-00000000-19.npz").read_bytes())
    data.main(["stats", str(directory)])
    printed = capsys.readouterr().out
    expected = [float(synthetic.episode(number).reward.sum(dtype=np.float64)) for number in (0, 1, 2, 0)]
    assert f"return: mean {np.mean(expected):.2f}, std {np.std(expected):.2f}" in printed
    assert "equal returns: 1 episodes share" in printed


def test_an_unknown_command_is_a_configuration_error():
    with pytest.raises(ConfigError, match="invalid choice"):
        data.main(["chek", "somewhere"])
