"""`data convert` of npz files of rows (s, a, r, s')."""

import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from recordings import recording, require_meant, rows

from semopo_tf.data import __main__ as data
from semopo_tf.data.cards import read_card
from semopo_tf.data.episodes import episode_files, read_episode
from semopo_tf.errors import ConfigError, DataError
from semopo_tf.storage.resize import resize

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
FOUR = (recording(0, 5), recording(1, 1, terminal=True), recording(2, 9, terminal=True), recording(3, 4))


def write_rows(folder, *files):
    """A folder with one npz file for each dict of columns."""
    folder.mkdir()
    for number, columns in enumerate(files):
        np.savez_compressed(folder / f"{number}.npz", **columns)
    return folder


def episodes_of(folder):
    return [read_episode(path) for path in episode_files(folder)]


def converted(tmp_path, *files, flags=()):
    data.main(["convert", str(write_rows(tmp_path / "rows", *files)), str(tmp_path / "out"), *flags])
    return episodes_of(tmp_path / "out")


def require_all(found, made):
    for episode, item in zip(found, made, strict=True):
        require_meant(episode, item)


def test_files_of_several_episodes_are_cut_at_their_ends(tmp_path):
    require_all(converted(tmp_path, rows(*FOUR[:3]), rows(FOUR[3])), FOUR)
    card = read_card(tmp_path / "out")
    assert (card["status"], card["episodes"], card["records"]) == ("complete", 4, 23)
    assert [source["file"] for source in card["converted"]["sources"]] == ["0.npz", "1.npz"]
    assert data.main(["check", str(tmp_path / "out")]) == 0


RENAMED = {"observation": "obs", "next_observation": "next_obs", "terminated": "terminal", "truncated": "timeout"}
D4RL = {**{name: f"{name}s" for name in rows(FOUR[0])}, "terminated": "terminals", "truncated": "timeouts"}


@pytest.mark.parametrize("names", [RENAMED, D4RL], ids=["short", "D4RL"])
def test_the_other_names_are_read_too_and_other_arrays_ignored(tmp_path, names):
    columns = {names.get(name, name): array for name, array in rows(*FOUR).items()}
    require_all(converted(tmp_path, columns | {"infos_qpos": np.zeros(19)}), FOUR)


def test_the_end_of_a_file_is_the_end_of_an_episode_and_truncated_may_be_missing(tmp_path):
    columns = rows(FOUR[1], FOUR[0])
    del columns["truncated"]
    require_all(converted(tmp_path, columns), (FOUR[1], FOUR[0]))


def test_terminated_and_truncated_at_once_is_a_real_end_and_numbers_are_flags(tmp_path):
    columns = rows(FOUR[2])
    columns |= {"truncated": columns["terminated"].astype(np.float32), "terminated": columns["terminated"].astype("i8")}
    require_all(converted(tmp_path, columns), FOUR[2:3])


def test_a_box_is_scaled_and_a_choice_becomes_numbers(tmp_path):
    columns = rows(FOUR[0])
    low, high = np.array([0, -3], np.float32), np.array([4, 1], np.float32)
    scaled = low + (columns["action"] + 1) / 2 * (high - low)
    (episode,) = converted(tmp_path, columns | {"action": scaled, "action_low": low, "action_high": high})
    np.testing.assert_allclose(episode.action[1:], columns["action"], atol=1e-6)
    chosen = np.array([1, 0, 2, 2, 1])
    write_rows(tmp_path / "choices", columns | {"action": chosen, "action_n": np.int64(3)})
    data.main(["convert", str(tmp_path / "choices"), str(tmp_path / "chosen")])
    np.testing.assert_array_equal(episodes_of(tmp_path / "chosen")[0].action[1:], np.eye(3)[chosen])


def test_images_with_channels_first_grey_or_of_other_sizes(tmp_path):
    columns = rows(FOUR[0])
    first = {name: columns[name].transpose(0, 3, 1, 2) for name in ("observation", "next_observation")}
    require_all(converted(tmp_path, columns | first), FOUR[:1])
    grey = {name: columns[name][..., 0] for name in ("observation", "next_observation")}
    write_rows(tmp_path / "grey", columns | grey)
    data.main(["convert", str(tmp_path / "grey"), str(tmp_path / "small"), "--size", "16"])
    expected = resize(np.repeat(FOUR[0].images[..., :1], 3, 3), 16)
    np.testing.assert_array_equal(episodes_of(tmp_path / "small")[0].image, expected)


def test_short_episodes_are_left_out_and_an_interrupted_conversion_goes_on(tmp_path, capsys):
    found = converted(tmp_path, rows(*FOUR), flags=["--min_length", "6"])
    require_all(found, (FOUR[0], FOUR[2]))
    assert "2 of 4 episodes have fewer than 6 records and are left out" in capsys.readouterr().out
    for name in ("whole", "parts"):
        data.main(["convert", str(tmp_path / "rows"), str(tmp_path / name)])
    for path in episode_files(tmp_path / "parts")[2:]:
        path.unlink()
    data.main(["convert", str(tmp_path / "rows"), str(tmp_path / "parts")])
    assert "2 episodes are there, going on" in capsys.readouterr().out
    for left, right in zip(episode_files(tmp_path / "whole"), episode_files(tmp_path / "parts"), strict=True):
        assert (left.name, left.read_bytes()) == (right.name, right.read_bytes())


def changed(**arrays):
    return rows(*FOUR) | arrays


def torn():
    columns = rows(*FOUR)
    columns["next_observation"][8, 3, 3] += 1
    return columns


LINES = rows(*FOUR)
WRONG = {
    "another next image": (torn(), "next_observation of row 8 to be the observation of row 9, received another; mark"),
    "no end marked": (
        changed(truncated=np.zeros(19, bool)),
        "next_observation of row 4 to be the observation of row 5",
    ),
    "no terminated": (
        {k: v for k, v in LINES.items() if k != "terminated"},
        "missing terminated, received observation",
    ),
    "two names": (changed(obs=LINES["observation"]), "expected observation once, received it under two names"),
    "fewer rewards": (changed(reward=LINES["reward"][1:]), "expected equally many rows, of one number but for"),
    "rewards as a column": (changed(reward=LINES["reward"][:, None]), "'reward': [19, 1]"),
    "no rows": ({name: array[:0] for name, array in LINES.items()}, "'observation': [0, 32, 32, 3]"),
    "one number": (changed(reward=np.float32(1)), "'reward': []"),
    "other next size": (changed(next_observation=LINES["observation"][:, :8]), "of the shape of observation, received"),
    "flags of text": (changed(terminated=np.array(["no"] * 19)), "expected terminated as truth values or as 0 and 1"),
    "flags of two": (changed(truncated=np.arange(19)), "expected truncated as truth values or as 0 and 1"),
    "choices of nothing": (
        changed(action=np.zeros(19, int)),
        "or action_n for whole numbers, received int64 [19]; store",
    ),
    "half a box": (changed(action_low=np.zeros(2)), "beside it action_low and action_high"),
    "a choice of text": (changed(action_n=np.array("3")), "beside it action_low and action_high, or action_n"),
    "no bounds": (changed(action_low=np.full(2, -np.inf), action_high=np.ones(2)), "expected bounds of the actions"),
    "not in range": (changed(action=LINES["action"] * 9), "rows 0 to 4: expected actions in [-1, 1], received 9"),
    "images of floats": (
        changed(observation=LINES["observation"] / 255, next_observation=LINES["next_observation"] / 255),
        "rows 0 to 4: expected images as uint8 [N, H, W, 3], [N, 3, H, W] or [N, H, W], received float64 [6, 32,",
    ),
    "objects": (changed(action=np.array([None] * 19)), "Python objects, which are refused"),
}


@pytest.mark.parametrize("columns, message", WRONG.values(), ids=WRONG)
def test_rows_that_contradict_themselves_are_named(tmp_path, columns, message):
    with pytest.raises(DataError) as caught:
        converted(tmp_path, columns)
    line = str(caught.value)
    assert line.startswith(str(tmp_path / "rows" / "0.npz")) and message in line and "\n" not in line
    assert len(line.replace(str(tmp_path), "")) <= 400


def test_files_of_other_shapes_than_the_first_are_named(tmp_path):
    with pytest.raises(DataError, match=r"1\.npz: rows 0 to 4: expected images .* as before, received \[16, 16, 3\]"):
        converted(tmp_path, rows(FOUR[0]), rows(recording(size=16)))
    for path in (tmp_path / "rows").iterdir():
        assert path.suffix == ".npz"
    data.main(["convert", str(tmp_path / "rows"), str(tmp_path / "same"), "--size", "16"])


def test_rows_become_episodes_first_and_never_join_other_files(tmp_path):
    folder = write_rows(tmp_path / "rows", rows(*FOUR))
    for words in (["x.hdf5"], ["x-v0", "--to", "minari"]):
        with pytest.raises(ConfigError, match="make episodes first, then convert those"):
            data.main(["convert", str(folder), str(tmp_path / words[0]), *words[1:]])
    np.savez_compressed(folder / "1.npz", image=FOUR[0].images, action=np.zeros((6, 2)), reward=np.zeros(6))
    with pytest.raises(
        DataError, match=r"1\.npz: expected rows of .*, missing observation, next_observation, terminated"
    ):
        data.main(["convert", str(folder), str(tmp_path / "out")])


# --- the page's recording ---------------------------------------------------------------------------------------------


class Cart:
    """What the page uses of an environment of gymnasium: three episodes, of four to six steps."""

    action_space = types.SimpleNamespace(n=np.int64(2), sample=lambda: np.int64(1))

    def reset(self, *, seed):
        self.time, self.last = 0, 4 + seed % 3

    def step(self, action):
        self.time += 1
        return None, 1.0, self.time == self.last, False, {}

    def render(self):
        return np.full((40, 60, 3), self.time, np.uint8)


@pytest.mark.parametrize("real", [False, True], ids=["stub", "gymnasium"])
def test_a_recording_made_as_docs_data_says_is_converted_as_it_says(tmp_path, monkeypatch, real):
    """The package itself is played where it is installed, as in the environment of `test_minari_library.py`."""
    if real:
        pytest.importorskip("gymnasium")
    else:
        monkeypatch.setitem(sys.modules, "gymnasium", types.SimpleNamespace(make=lambda name, render_mode: Cart()))
    monkeypatch.chdir(tmp_path)
    Path("record.py").write_text(PAGE.split("```python\n")[2].split("```")[0])
    runpy.run_path("record.py")
    data.main(["convert", "rows", "data/cart", "--size", "64"])
    found = episodes_of(Path("data/cart"))
    assert len(found) == 20 and all(episode.is_terminal[-1] for episode in found)
    for number, episode in enumerate(found):
        with np.load(f"rows/{number:06d}.npz") as columns:
            images = np.concatenate([columns["observation"], columns["next_observation"][-1:]])
            np.testing.assert_array_equal(episode.image, resize(images, 64))
            np.testing.assert_array_equal(episode.action[1:], np.eye(2)[columns["action"]])
            np.testing.assert_array_equal(episode.reward[1:], columns["reward"])
