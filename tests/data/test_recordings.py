"""Episodes in the classical form: `data.write`, and what images and actions become."""

import subprocess
import sys

import numpy as np
import pytest
from recordings import recording, require_meant

from semopo_tf import data
from semopo_tf.data import __main__ as command
from semopo_tf.data.cards import read_card, write_card
from semopo_tf.data.dataset import open_dataset
from semopo_tf.data.episodes import episode_files, read_episode
from semopo_tf.data.recording import as_images, from_box, from_choice
from semopo_tf.errors import ConfigError, DataError
from semopo_tf.storage.resize import resize

# --- time and types ---------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_one_record_after_the_decisions(tmp_path):
    made = [recording(0, 5), recording(1, 1, terminal=True), recording(2, 9, terminal=True)]
    data.write(iter(made), str(tmp_path / "mine"))
    files = episode_files(tmp_path / "mine")
    assert [path.name for path in files] == ["000000-5.npz", "000001-1.npz", "000002-9.npz"]
    for path, item in zip(files, made, strict=True):
        require_meant(read_episode(path), item)
    card = read_card(tmp_path / "mine")
    assert (card["status"], card["episodes"], card["records"]) == ("complete", 3, 18)
    assert command.main(["check", str(tmp_path / "mine")]) == 0
    assert open_dataset(tmp_path / "mine").returns.tolist() == [15, 1, 45]


def test_rewards_keep_their_float_type_and_whole_numbers_become_float32(tmp_path):
    for number, (given, kept) in enumerate((("f2", "f2"), ("f4", "f4"), ("f8", "f8"), ("i8", "f4"), ("?", "f4"))):
        made = recording()._replace(rewards=np.array([0, 1, 0, 1, 1], given))
        data.write([made], tmp_path / str(number))
        reward = read_episode(episode_files(tmp_path / str(number))[0]).reward
        assert reward.dtype == kept and reward.tolist() == [0, 0, 1, 0, 1, 1]


def test_lists_are_as_good_as_arrays(tmp_path):
    made = recording()
    lists = data.Recording(list(made.images), made.actions.tolist(), made.rewards.tolist(), False)
    data.write([lists], tmp_path / "mine")
    require_meant(read_episode(episode_files(tmp_path / "mine")[0]), made)


def test_images_of_another_size_are_resized_on_request(tmp_path):
    made = recording(size=96)
    made = made._replace(images=made.images[:, :, :64])
    data.write([made], tmp_path / "mine", size=32)
    episode = read_episode(episode_files(tmp_path / "mine")[0])
    np.testing.assert_array_equal(episode.image, resize(made.images, 32))
    assert read_card(tmp_path / "mine")["written"] == {"size": 32}


def test_channels_come_last_and_grey_becomes_three(rng):
    images = rng.integers(0, 256, (4, 8, 10, 3), np.uint8)
    np.testing.assert_array_equal(as_images(images, "x"), images)
    np.testing.assert_array_equal(as_images(images.transpose(0, 3, 1, 2), "x"), images)
    for grey in (images[..., 0], images[..., :1], images[:, None, :, :, 0]):
        np.testing.assert_array_equal(as_images(grey, "x"), np.repeat(images[..., :1], 3, 3))
    last = rng.integers(0, 256, (4, 3, 10, 3), np.uint8)  # both axes could be the channels: the last one is
    np.testing.assert_array_equal(as_images(last, "x"), last)


@pytest.mark.parametrize(
    "shape, kind", [((4, 8, 8, 3), "f4"), ((4, 8, 8, 4), "u1"), ((4, 2, 8, 8, 3), "u1"), ((4,), "u1")]
)
def test_other_arrays_are_no_images(shape, kind):
    with pytest.raises(DataError, match=r"^x: expected images as uint8 \[N, H, W, 3\].*, received .*; store one image"):
        as_images(np.zeros(shape, kind), "x")


# --- actions ----------------------------------------------------------------------------------------------------------


def test_the_bounds_of_a_box_become_minus_one_and_one():
    low, high = np.array([0, -2], np.float32), np.array([1, 4], np.float32)
    actions = np.array([[0, -2], [0.5, 1], [1, 4]], np.float32)
    np.testing.assert_allclose(from_box(actions, low, high, "x"), [[-1, -1], [0, 0], [1, 1]], atol=1e-7)


def test_a_box_from_minus_one_to_one_keeps_every_bit(rng):
    actions = np.concatenate([rng.uniform(-1, 1, (100, 2)), [[1e-30, -1], [1, -1e-12]]]).astype(np.float32)
    ones = np.ones(2, np.float32)
    np.testing.assert_array_equal(from_box(actions, -ones, ones, "x"), actions)


def test_a_choice_is_one_at_its_place_and_zero_elsewhere():
    np.testing.assert_array_equal(from_choice(np.array([5, 7, 6]), 3, "x", 5), np.eye(3)[[0, 2, 1]])
    assert from_choice(np.array([0, 1], np.uint8), 2, "x").dtype == np.float32


ONE, TWO = np.ones((3, 1), np.float32), np.arange(3)


def boxed(low, high, actions=ONE):
    return from_box(actions, np.array(low), np.array(high), "x")


WRONG_ACTIONS = {
    "no bounds": (lambda: boxed([-np.inf], [np.inf]), "bounds of the actions, received [-inf] to [inf]; scale them"),
    "float32's largest": (lambda: boxed([-3.4e38], [3.4e38]), "expected bounds of the actions"),
    "half bounds": (lambda: boxed([0.0], [np.inf]), "expected bounds of the actions"),
    "not a number": (lambda: boxed([np.nan], [1.0]), "expected bounds of the actions"),
    "equal bounds": (lambda: boxed([1.0], [1.0]), "expected bounds of the actions"),
    "other size": (
        lambda: boxed([0.0, 0.0], [1.0, 1.0]),
        "bounds [A] as numbers, received float32 [3, 1], float64 [2]",
    ),
    "text": (lambda: boxed(["a"], [1.0]), "as numbers, received float32 [3, 1], <U1 [1]"),
    "outside": (lambda: boxed([-1.0], [1.0], 2 * ONE), "from [-1.0] to [1.0], received [2.0] in row 0; store what"),
    "a choice of one": (lambda: from_choice(TWO, 1, "x"), "expected 2 to 1000 actions to choose from, received 1"),
    "too many": (lambda: from_choice(TWO, 10**30, "x"), "expected 2 to 1000 actions to choose from"),
    "beyond the last": (lambda: from_choice(TWO, 2, "x"), "expected actions from 0 to 1, received 2 in row 2"),
    "before the first": (lambda: from_choice(TWO, 3, "x", 1), "expected actions from 1 to 3, received 0 in row 0"),
    "fractions": (lambda: from_choice(TWO / 2, 3, "x"), "a whole number a row as the action, received float64 [3]"),
    "a bomb": (
        lambda: from_choice(np.broadcast_to(np.uint8(0), 1 << 28), 1000, "x"),
        "expected fewer rows of 1000 choices, received 268435456; split the file",
    ),
}


@pytest.mark.parametrize("make, message", WRONG_ACTIONS.values(), ids=WRONG_ACTIONS)
def test_actions_that_do_not_fit_their_space_are_named(make, message):
    with pytest.raises(DataError, match=r"^x: ") as caught:
        make()
    assert message in str(caught.value)


# --- refusals of `write` ----------------------------------------------------------------------------------------------

GOOD = recording()
SMALL = np.zeros((8, 8, 3), np.uint8)
WRONG = {
    "no recording": ({"images": GOOD.images}, "expected a Recording, received a dict; make one of its arrays"),
    "image missing": (GOOD._replace(images=GOOD.images[1:]), "for 5 images, received [5, 2] and [5]; keep the image"),
    "flat actions": (GOOD._replace(actions=GOOD.actions[:, 0]), "expected actions [5, A] and rewards [5] for 6 images"),
    "rewards as a column": (GOOD._replace(rewards=GOOD.rewards[:, None]), "received [5, 2] and [5, 1]"),
    "ends a step": (GOOD._replace(terminal=np.zeros(5, bool)), "expected terminal as one truth value, received array"),
    "terminal as text": (GOOD._replace(terminal="no"), "expected terminal as one truth value, received 'no'"),
    "texts": (GOOD._replace(rewards=["a"] * 5), "expected rewards as numbers, received <U1"),
    "images of two sizes": (GOOD._replace(images=[*GOOD.images[:5], SMALL]), "expected images of one shape, received"),
    "actions out of range": (GOOD._replace(actions=GOOD.actions * 3), "expected actions in [-1, 1], received 3"),
    "no step": (GOOD._replace(images=GOOD.images[:1], actions=np.zeros((0, 2)), rewards=[]), "at least 2 records"),
    "not finite": (GOOD._replace(rewards=np.array([1, 2, np.nan, 4, 5])), "reward is not finite at record 3"),
    "another size": (recording(size=16), "expected images [32, 32, 3] and actions [2] as before, received [16, 16, 3]"),
}


@pytest.mark.parametrize("made, message", WRONG.values(), ids=WRONG)
def test_an_episode_that_training_would_refuse_is_named_and_the_folder_begun_anew(tmp_path, made, message):
    with pytest.raises(DataError, match="mine: episode 1: ") as caught:
        data.write([GOOD, made, GOOD], tmp_path / "mine")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert read_card(tmp_path / "mine")["status"] == "incomplete"
    data.write([GOOD], tmp_path / "mine")
    assert [path.name for path in episode_files(tmp_path / "mine")] == ["000000-5.npz"]
    assert read_card(tmp_path / "mine")["status"] == "complete"


def test_a_folder_with_anything_else_is_left_alone(tmp_path):
    for name in ("complete", "foreign", "converted", "added"):
        (tmp_path / name).mkdir()
    data.write([GOOD], tmp_path / "complete")
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    write_card(tmp_path / "converted", {"status": "incomplete", "converted": {}})
    write_card(tmp_path / "added", {"status": "incomplete", "written": {}})
    (tmp_path / "added" / "000000-abcdef-5.npz").write_bytes(b"a user's own")
    for name in ("complete", "foreign", "converted", "added"):
        before = sorted((path.name, path.read_bytes()) for path in (tmp_path / name).glob("[!.]*"))
        with pytest.raises(ConfigError, match=rf"{name}: expected a folder that is empty or new, received one with "):
            data.write([GOOD], tmp_path / name)
        assert sorted((path.name, path.read_bytes()) for path in (tmp_path / name).glob("[!.]*")) == before


def test_no_episodes_are_no_dataset(tmp_path):
    with pytest.raises(DataError, match="mine: expected episodes to write, received none"):
        data.write([], tmp_path / "mine")


def test_what_the_iterator_raises_reaches_the_caller_and_a_second_call_writes_the_same(tmp_path):
    def stopping():
        yield GOOD
        raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        data.write(stopping(), tmp_path / "parts")
    (tmp_path / "parts" / ".tmp-1-x").write_bytes(b"left over")
    for name in ("parts", "whole"):
        data.write([GOOD, recording(1)], tmp_path / name)
    contents = [sorted((p.name, p.read_bytes()) for p in (tmp_path / name).iterdir()) for name in ("parts", "whole")]
    assert contents[0] == contents[1]


def test_writing_loads_no_tensorflow_and_a_card_is_read_without_pictures():
    code = "import sys, semopo_tf\nprint('semopo_tf.data' in sys.modules)\nfrom semopo_tf.data import cards\n"
    code += "print('PIL' in sys.modules)\nfrom semopo_tf import data\ndata.write\n"
    code += "print(*({'tensorflow', 'h5py', 'keras', 'minari', 'gymnasium'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert set(data.__all__) == {"Recording", "write"}
