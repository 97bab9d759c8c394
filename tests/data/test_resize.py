"""Images of another size: `data convert --size`, in every direction."""

import numpy as np
import pytest
import synthetic

from semopo_tf.data import __main__ as data
from semopo_tf.data.cards import read_card, write_card
from semopo_tf.data.episodes import episode_files, read_episode, write_episode
from semopo_tf.errors import ConfigError
from semopo_tf.storage.resize import resize


def test_I16_a_smaller_image_is_the_mean_over_areas(rng):
    images = rng.integers(0, 256, (2, 96, 64, 3), np.uint8)
    by_hand = images.reshape(2, 32, 3, 32, 2, 3).mean((2, 4))
    np.testing.assert_allclose(resize(images, 32), by_hand, atol=1.01)  # both passes round


def test_I16_the_same_size_changes_nothing_and_a_larger_one_keeps_what_is_flat(rng):
    images = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(resize(images, 32), images)
    np.testing.assert_array_equal(resize(np.full((1, 20, 30, 3), 77, np.uint8), 64), np.full((1, 64, 64, 3), 77))


def wide_dataset(folder):
    """Two episodes of 96 x 128 pixels."""
    folder.mkdir()
    for number in range(2):
        item = synthetic.episode(number, 6, 128)
        write_episode(folder / f"{number:06d}.npz", item._replace(image=item.image[:, :96]))
    write_card(folder, {"status": "complete", "task": "mine", "environment": {"size": 96, "camera": -1}})
    return folder


def test_I16_every_direction_of_the_conversion_resizes(tmp_path, capsys):
    source = wide_dataset(tmp_path / "wide")
    data.main(["convert", str(source), str(tmp_path / "small"), "--size", "64"])
    assert f"{source}: images of 96 x 128 pixels are now 64 x 64" in capsys.readouterr().out.splitlines()
    data.main(["convert", str(source), str(tmp_path / "wide.hdf5")])
    data.main(["convert", str(source), str(tmp_path / "small.hdf5"), "--size", "64"])
    data.main(["convert", str(tmp_path / "wide.hdf5"), str(tmp_path / "a"), "--size", "64"])
    data.main(["convert", str(tmp_path / "small.hdf5"), str(tmp_path / "b")])
    for name in ("small", "a", "b"):
        for before, path in zip(episode_files(source), episode_files(tmp_path / name), strict=True):
            expected, found = read_episode(before), read_episode(path)
            np.testing.assert_array_equal(found.image, resize(expected.image, 64))
            for left, right in zip(expected[1:-1], found[1:-1], strict=True):
                np.testing.assert_array_equal(left, right)
    card = read_card(tmp_path / "small")
    assert card["environment"] == {"size": 64, "camera": -1} and card["converted"]["size"] == 64


def test_I16_a_conversion_to_another_size_does_not_join_it(tmp_path):
    source = wide_dataset(tmp_path / "wide")
    data.main(["convert", str(source), str(tmp_path / "out"), "--size", "64"])
    data.main(["convert", str(source), str(tmp_path / "out"), "--size", "64"])  # the same again is no change
    with pytest.raises(ConfigError, match="holds a dataset that was not made from these files in this way"):
        data.main(["convert", str(source), str(tmp_path / "out"), "--size", "32"])
    with pytest.raises(ConfigError, match=r"^--size: expected 8 to 1024, received 4$"):
        data.main(["convert", str(source), str(tmp_path / "none"), "--size", "4"])
