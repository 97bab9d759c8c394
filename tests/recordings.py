"""Small self-describing episodes in the classical form, and files of other tools' layouts made of them by hand."""

import json
from pathlib import Path

import h5py
import numpy as np

from semopo_tf.data import Recording


def recording(number: int = 0, steps: int = 5, size: int = 32, terminal: bool = False) -> Recording:
    """Image t is 10 * number + t everywhere but for a bright corner, action t is (t + 1) / 100 in its first place, and
    reward t is t + 1: each says where it belongs.
    """
    images = (
        np.zeros((steps + 1, size, size, 3), np.uint8)
        + (10 * number + np.arange(steps + 1, dtype=np.uint8))[:, None, None, None]
    )
    images[:, 0, 0] = (255, 0, number)
    actions = np.stack([np.arange(1, steps + 1) / 100, np.linspace(-1, 1, steps)], 1).astype(np.float32)
    return Recording(images, actions, np.arange(1.0, steps + 1), terminal)


def require_meant(episode, made: Recording) -> None:
    """The arrays of an npz episode are those of a recording, one record later than the decisions."""
    np.testing.assert_array_equal(episode.image, made.images)
    np.testing.assert_array_equal(episode.action[1:], np.float32(made.actions))
    np.testing.assert_array_equal(episode.reward[1:], made.rewards)
    assert not episode.action[0].any() and episode.reward[0] == 0
    last = np.arange(len(made.images)) == len(made.images) - 1
    assert episode.is_last.tolist() == last.tolist() and episode.is_first.tolist() == [True] + [False] * (len(last) - 1)
    assert episode.is_terminal.tolist() == (last & made.terminal).tolist()
    assert episode.discount.tolist() == (1 - episode.is_terminal).tolist()


def rows(*made: Recording) -> dict[str, np.ndarray]:
    """The columns of a file of rows (s, a, r, s') that holds these episodes."""
    ends = [[False] * (len(item.rewards) - 1) + [True] for item in made]
    return {
        "observation": np.concatenate([item.images[:-1] for item in made]),
        "action": np.concatenate([item.actions for item in made]),
        "reward": np.concatenate([item.rewards for item in made]),
        "next_observation": np.concatenate([item.images[1:] for item in made]),
        "terminated": np.concatenate([np.array(end) & item.terminal for end, item in zip(ends, made, strict=True)]),
        "truncated": np.concatenate(
            [np.array(end) & (not item.terminal) for end, item in zip(ends, made, strict=True)]
        ),
    }


def box(shape: tuple[int, ...], low: float, high: float, kind: str = "float32") -> dict:
    """A space as Minari writes it."""
    bounds = {"low": np.full(shape, low).tolist(), "high": np.full(shape, high).tolist()}
    return {"type": "Box", "dtype": kind, "shape": list(shape), **bounds}


def minari_dataset(folder: Path, *made: Recording, images=None, action=None, observation=None, **metadata) -> Path:
    """A Minari dataset as minari 0.5.4 lays it out.

    Args:
      images: makes of the images of an episode what is stored: an array, a list of bytes, or a dict of those.
      action: the action space; by default a box of [-1, 1].
      observation: the observation space; by default a box of the images.
    """
    (folder / "data").mkdir(parents=True)
    observation = observation or box(made[0].images.shape[1:], 0, 255, "uint8")
    with h5py.File(folder / "data" / "main_data.hdf5", "w", track_order=True) as file:
        for number, item in enumerate(made):
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": len(item.rewards)})
            stored = images(item.images) if images else item.images
            ends = np.arange(len(item.rewards)) == len(item.rewards) - 1
            arrays = {"actions": item.actions, "rewards": item.rewards, "terminations": ends & item.terminal}
            arrays |= {"truncations": ends & (not item.terminal)}
            if isinstance(stored, dict):
                arrays |= {f"observations/{key}": array for key, array in stored.items()}
            else:
                arrays["observations"] = stored
            for name, array in arrays.items():
                if isinstance(array, list):  # each of its own length
                    places = group.create_dataset(name, (len(array),), h5py.vlen_dtype(np.uint8), chunks=True)
                    for place, item_bytes in enumerate(array):
                        places[place] = item_bytes
                else:
                    group.create_dataset(name, data=array, chunks=True)
    spaces = {"observation_space": observation, "action_space": action or box(made[0].actions.shape[1:], -1.0, 1.0)}
    content = {"data_format": "hdf5", **{name: json.dumps(space) for name, space in spaces.items()}, **metadata}
    (folder / "data" / "metadata.json").write_text(json.dumps(content))
    return folder
