"""Minari's layout: `metadata.json` with the spaces, and `main_data.hdf5` with a group for each episode.

    episode_0/observations   o_0   o_1   o_2  ...  o_T          image    o_0   o_1   o_2  ...  o_T
    episode_0/actions        a_1   a_2  ...  a_T          ->    action    0    a_1   a_2  ...  a_T
    episode_0/rewards        r_1   r_2  ...  r_T                reward    0    r_1   r_2  ...  r_T
    episode_0/terminations    0     0   ...   1                 discount  1     1     1   ...   0

Truncations are like terminations. The observations are images, or a group with one member that is. The package minari
is not needed: `minari_hdf5.py` reads the HDF5 file.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.data.hdf5 import create
from semopo_tf.data.recording import Recording, from_box, from_choice
from semopo_tf.errors import DataError, shown
from semopo_tf.storage.schema import read_object, unfit
from semopo_tf.storage.untrusted import parse_json
from semopo_tf.types import Episode

MAIN_NAME, METADATA_NAME, FOLDER_NAME = "main_data.hdf5", "metadata.json", "data"
METADATA = {"observation_space": str, "action_space": str, "data_format?": str}
BOX = {"type": ("Box",), "shape": [int], "dtype?": str}
CHOICE = {"type": ("Discrete",), "n": int, "start?": int}
REWRITE = "write the dataset again with minari 0.5 and data_format hdf5"
NAME = re.compile(r"[-\w]+-v\d+")
VERSION = "0.5.4"  # of Minari, whose layout is written
MOST_START = 1 << 31  # of a choice's numbers
CHUNK_FRAMES = 32  # in a chunk that we write


class Spaces(NamedTuple):
    """What `metadata.json` says of observations and actions."""

    image_key: str  # member of the observations that is the image; empty where they are the image
    image_shape: list[int]  # of one image
    action_shape: list[int]  # of one action; empty for a choice
    action: dict[str, Any]  # a Box with low and high, or a Discrete with n and start

    @property
    def image_size(self) -> tuple[int, ...]:
        """[H, W]"""
        shape = self.image_shape
        return tuple(shape[-2:] if len(shape) == 3 and shape[2] not in (1, 3) else shape[:2])


def minari_folder(source: Path) -> Path | None:
    """The folder with the two files: `source`, or `data` in it; None where neither holds a Minari dataset."""
    folders = (source, source / FOLDER_NAME)
    return next((f for f in folders if (f / METADATA_NAME).is_file() and (f / MAIN_NAME).is_file()), None)


def read_spaces(path: Path) -> Spaces:
    """Raises DataError for what is no `metadata.json`, or for spaces that no episode can be made of."""
    metadata = read_object(path, lambda value: unfit(value, METADATA), REWRITE, follow=True)
    if metadata.get("data_format", "hdf5") != "hdf5":
        raise DataError(f"{path}: expected data_format hdf5, received {shown(metadata['data_format'])}; {REWRITE}")
    observation, action = (_space(path, name, metadata[name]) for name in ("observation_space", "action_space"))
    if unfit(action, BOX) and (unfit(action, CHOICE) or abs(action.get("start", 0)) > MOST_START):
        raise DataError(
            f"{path}: expected actions of a whole Box or Discrete space, received {shown(action.get('type'))}; make "
            "numbers in [-1, 1] of them and write the episodes with semopo_tf.data.write"
        )
    members = observation.get("subspaces") if observation.get("type") == "Dict" else {"": observation}
    images = {key: space for key, space in members.items() if _is_image(space)} if isinstance(members, dict) else {}
    if len(images) != 1:
        received = f"{', '.join(images)}"[:100] if images else f"none in {shown(observation.get('type'))}"
        raise DataError(
            f"{path}: expected one image of uint8 among the observations, received {received}; record one with "
            "gymnasium.wrappers.AddRenderObservation, or write the episodes with semopo_tf.data.write"
        )
    ((key, space),) = images.items()
    return Spaces(key, space["shape"], action.get("shape", []), action)


def _space(path: Path, name: str, text: str) -> dict[str, Any]:
    """A space, which is JSON inside JSON; bounds may be infinite."""
    try:
        space = parse_json(text.encode(), float)
    except ValueError as error:
        raise DataError(f"{path}: expected {name} as JSON ({str(error)[:100]}); {REWRITE}") from error
    if wrong := unfit(space, dict, name):
        raise DataError(f"{path}: {wrong}; {REWRITE}")
    return space


def _is_image(space: Any) -> bool:
    fits = not unfit(space, BOX) and space.get("dtype") == "uint8" and len(space["shape"]) in (2, 3)
    return fits and min(space["shape"]) > 0


def recording(arrays: dict[str, np.ndarray], spaces: Spaces, where: str) -> Recording:
    """One episode of `answers` in the classical form.

    Raises:
      DataError: beginning with `where`.
    """
    for name in ("terminations", "truncations"):
        if arrays[name][:-1].any():
            step, last = int(np.argmax(arrays[name])), len(arrays[name]) - 1
            raise DataError(
                f"{where}: expected {name} at the last step {last} alone, received one at step {step}; cut the episode "
                "there"
            )
    actions, space = arrays["actions"], spaces.action
    if space["type"] == "Discrete":
        actions = from_choice(actions, space["n"], where, space.get("start", 0))
    else:
        low, high = (_bound(space, name, where) for name in ("low", "high"))
        actions = from_box(actions.reshape(len(actions), -1), low, high, where)
    return Recording(arrays["image"], actions, arrays["rewards"], bool(arrays["terminations"][-1]))


def _bound(space: dict[str, Any], name: str, where: str) -> np.ndarray:
    """[A], the bounds of a box of any shape."""
    try:
        return np.array(space.get(name), np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: expected numbers as {name} of the action space, received none; {REWRITE}") from error


def write_minari(folder: Path, name: str, episodes: Iterator[Episode]) -> int:
    """Write episodes as the Minari dataset `name` into a new folder; the same episodes give the same bytes. Images are
    stored as they are, not as JPEG. Returns the number of episodes.

    All have images and actions of one shape, and discount 0 where they are terminal and 1 elsewhere.
    """
    (folder / FOLDER_NAME).mkdir(parents=True)
    main, count, steps, shapes = folder / FOLDER_NAME / MAIN_NAME, 0, 0, ((0,), (0,))
    with create(main) as file:
        for count, episode in enumerate(episodes, 1):
            shapes = (episode.image.shape[1:], episode.action.shape[1:])
            steps += len(episode.reward) - 1
            _write_episode(file.create_group(f"episode_{count - 1}"), count - 1, episode)
    image, action = shapes
    metadata = {
        "total_episodes": count,
        "total_steps": steps,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": _box("uint8", image, 0, 255),
        "action_space": _box("float32", action, -1.0, 1.0),
        "dataset_id": name,
        "minari_version": VERSION,
        "dataset_size": round(main.stat().st_size / 1e6, 1),
    }
    (folder / FOLDER_NAME / METADATA_NAME).write_text(json.dumps(metadata))
    return count


def _box(kind: str, shape: tuple[int, ...], low: float, high: float) -> str:
    bounds = {"low": np.full(shape, low).tolist(), "high": np.full(shape, high).tolist()}
    return json.dumps({"type": "Box", "dtype": kind, "shape": list(shape), **bounds})


def _write_episode(group: Any, number: int, episode: Episode) -> None:
    """Record 0 follows no decision, so of all but the images it is left out."""
    terminal = episode.is_terminal[1:]
    arrays = {
        "observations": episode.image,
        "actions": episode.action[1:],
        "rewards": episode.reward[1:],
        "terminations": terminal,
        "truncations": episode.is_last[1:] & ~terminal,
    }
    group.attrs.update({"id": number, "total_steps": len(terminal)})
    group.create_group("infos")
    for name, array in arrays.items():
        chunks = (min(CHUNK_FRAMES, len(array)), *array.shape[1:]) if name == "observations" else None
        packed = {"chunks": chunks, "compression": "gzip", "fletcher32": True} if chunks else {}
        group.create_dataset(name, data=array, **packed)
