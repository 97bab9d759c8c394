"""`python -m semopo_tf.data`: lists all that is bad, by name."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import synthetic

from semopo_tf import config as configuration
from semopo_tf.data import __main__ as data
from semopo_tf.data.cards import read_card, write_card
from semopo_tf.data.episodes import episode_files, read_episode, write_episode
from semopo_tf.errors import ConfigError, DataError
from semopo_tf.storage.files import sha256
from semopo_tf.storage.resize import resize

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


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


def still(directory, number):
    """Episode `number` as an environment that draws into one buffer makes it: all images are the last one."""
    episode = synthetic.episode(number)
    path = next(directory.glob(f"{number:06d}-*.npz"))
    write_episode(path, episode._replace(image=np.broadcast_to(episode.image[-1:], episode.image.shape)))
    return path.name


@pytest.mark.parametrize("command", ["check", "stats"])
def test_I01_episodes_whose_images_never_change_are_a_warning(tmp_path, capsys, command):
    directory = synthetic.dataset(tmp_path / "data")
    assert data.main([command, str(directory)]) == 0
    assert "never change" not in capsys.readouterr().err
    first, _ = still(directory, 1), still(directory, 3)
    assert data.main([command, str(directory)]) == 0
    warning = [line for line in capsys.readouterr().err.splitlines() if line.startswith("semopo_tf: warning")]
    assert warning == [
        f"semopo_tf: warning: {directory}: the images of 2 of 4 episodes never change, first in {first}; an "
        "environment that draws into one buffer makes such files: collect them again"
    ]


def short_dataset(folder):
    """Four episodes of 20 records and two of 8."""
    synthetic.dataset(folder, episodes=2, records=8)
    for path in sorted(folder.glob("*.npz")):
        path.rename(folder / f"short{path.name}")
    return synthetic.dataset(folder)


def test_I22_check_lists_short_episodes(tmp_path, capsys):
    directory = short_dataset(tmp_path / "data")
    assert data.main(["check", str(directory), "--length", "20"]) == 0
    printed = capsys.readouterr().out.splitlines()
    names = sorted(path.name for path in directory.glob("short*.npz"))
    assert [line for line in printed if line.startswith("short:")] == [
        f"short: {name}: 8 of 20 records" for name in names
    ]
    assert (
        f"{directory}: 2 of 6 episodes have fewer than 20 records; --min_length 20 of train.py leaves them out"
        in printed
    )
    data.main(["check", str(directory), "--length", "8"])
    assert f"{directory}: 0 of 6 episodes have fewer than 8 records" in capsys.readouterr().out.splitlines()
    data.main(["check", str(directory)])
    assert "fewer than" not in capsys.readouterr().out


def test_I22_a_copy_without_short_episodes_counts_them(tmp_path, capsys):
    directory, out = short_dataset(tmp_path / "data"), tmp_path / "long"
    write_card(directory, {"status": "complete", "task": "mine", "returns": {"mean": 1.0}})
    data.main(["convert", str(directory), str(out), "--min_length", "20"])
    assert f"{directory}: 2 of 6 episodes have fewer than 20 records and are left out" in capsys.readouterr().out
    names = sorted(path.name for path in directory.glob("0*.npz"))
    assert sorted(path.name for path in out.glob("*.npz")) == names
    for name in names:
        for left, right in zip(read_episode(out / name), read_episode(directory / name), strict=True):
            np.testing.assert_array_equal(left, right)
    card = read_card(out)
    assert (card["task"], card["episodes"], card["converted"]["min_length"]) == ("mine", 4, 20)
    assert "returns" not in card  # they were those of all six
    data.main(["check", str(out), "--length", "20"])
    with pytest.raises(DataError, match="records, received none; lower --min_length"):
        data.main(["convert", str(directory), str(tmp_path / "none"), "--min_length", "21"])
    with pytest.raises(ConfigError, match="--min_length: expected at least 0, received -1"):
        data.main(["convert", str(directory), str(tmp_path / "none"), "--min_length", "-1"])


def test_I22_hdf5_loses_its_short_episodes_on_both_ways(tmp_path, capsys):
    directory = short_dataset(tmp_path / "data")
    data.main(["convert", str(directory), str(tmp_path / "all.hdf5")])
    data.main(["convert", str(directory), str(tmp_path / "long.hdf5"), "--min_length", "20"])
    data.main(["convert", str(tmp_path / "long.hdf5"), str(tmp_path / "a")])
    data.main(["convert", str(tmp_path / "all.hdf5"), str(tmp_path / "b"), "--min_length", "20"])
    data.main(["convert", str(tmp_path / "all.hdf5"), str(tmp_path / "b"), "--min_length", "20"])  # begins anew
    assert capsys.readouterr().out.count("2 of 6 episodes have fewer than 20 records and are left out") == 3
    for left, right in zip(sorted((tmp_path / "a").glob("*.npz")), sorted((tmp_path / "b").glob("*.npz")), strict=True):
        for one, other in zip(read_episode(left), read_episode(right), strict=True):
            np.testing.assert_array_equal(one, other)
    assert len(list((tmp_path / "b").glob("*.npz"))) == 4


def test_I24_the_pages_file_writes_episodes_that_are_read_as_meant(tmp_path, capsys, monkeypatch):
    """docs/data.md: own data without any environment, in twenty lines."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.py").write_text(PAGE.split("```python\n")[1].split("```")[0])
    namespace = runpy.run_path("page.py", run_name="__main__")
    code = [line for line in (tmp_path / "page.py").read_text().splitlines() if line.strip()]
    assert len(code) <= 20
    for path, made in zip(episode_files(tmp_path / "data" / "mine"), namespace["recorded"](), strict=True):
        episode = read_episode(path)
        np.testing.assert_array_equal(episode.image, resize(made.images, 64))
        np.testing.assert_array_equal(episode.action[1:], made.actions.astype(np.float32))
        np.testing.assert_array_equal(episode.reward[1:], made.rewards)
        assert not episode.is_terminal.any()
    assert data.main(["check", str(tmp_path / "data" / "mine"), "--length", "70"]) == 0
    assert "short: 000000-60.npz: 61 of 70 records" in capsys.readouterr().out
    flags = "--configs semopo small --task mine --offline_dir D --logdir R --eval.every 0 --eval.final_episodes 0"
    assert configuration.load(flags.split()).task == "mine"
