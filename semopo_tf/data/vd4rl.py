"""V-D4RL's HDF5 layout: one file holds many episodes, one after another.

    action (N, A), discount (N,), observation (N, 3, H, W) uint8, reward (N,), step_type (N,): 0 first, 1 middle, 2 last

Record t means the same as in an npz episode, nothing is shifted:

    step_type    0     1     1   ...   2
    observation o_0   o_1   o_2  ...  o_T
    action       0    a_1   a_2  ...  a_T
    reward       0    r_1   r_2  ...  r_T

The shards of a dataset are cut anywhere, so episodes may continue in the next file. `answers` runs in a child process
(`hdf5_child.py`).
"""

import contextlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from semopo_tf.data.hdf5 import (
    EPISODE_BYTES,
    FLOATS,
    INTEGERS,
    create,
    damage,
    names_in,
    opened,
    require_dataset,
    require_whole,
)
from semopo_tf.errors import DataError
from semopo_tf.types import Episode

FIRST, MIDDLE, LAST = 0, 1, 2
# name: sizes of its axes (None is any), types, both in words
LAYOUT: dict[str, tuple[tuple[int | None, ...], tuple[str, ...], str]] = {
    "action": ((None, None), FLOATS, "float (N, A)"),
    "discount": ((None,), FLOATS, "float (N,)"),
    "observation": ((None, 3, None, None), ("uint8",), "uint8 (N, 3, H, W)"),
    "reward": ((None,), FLOATS, "float (N,)"),
    "step_type": ((None,), (*INTEGERS, *FLOATS[1:]), "integer or float (N,)"),
}
MAX_RECORDS = 20_000_000
CHUNK_FRAMES = 32  # frames in a chunk that we write


def answers(paths: list[Path], skip: int) -> Iterator[dict[str, Any]]:
    """What the files hold, then the arrays of each episode after the first `skip`. Every file is checked before the
    first record of any is read.

    Raises:
      DataError: naming the file.
    """
    with contextlib.ExitStack() as stack:
        shards = [(path, stack.enter_context(checked(path))) for path in paths]
        require_agreement(shards)
        with damage(paths[0]):
            step_type = np.concatenate([read_step_types(path, shard["step_type"]) for path, shard in shards])
        bounds = cut(step_type)
        inside = sum(stop - start for start, stop in bounds)
        yield {"contents": {"episodes": len(bounds), "records": len(step_type), "outside": len(step_type) - inside}}
        for start, stop in bounds[skip:]:
            yield {"arrays": read_episode(shards, start, stop)}


@contextlib.contextmanager
def checked(path: Path) -> Iterator[dict[str, Any]]:
    """Open one file and yield its datasets by name after looking at their structure. Decodes no data, opens no link.

    Raises:
      DataError: for links, virtual or external data, filters, types, shapes or sizes that an honest file of this layout
        does not have.
    """
    with opened(path) as file:
        with damage(path):
            names = names_in(path, file)
            if missing := [name for name in LAYOUT if name not in names]:
                remedy = "; of a Minari dataset give the folder" if "episode_0" in names else ""
                raise DataError(
                    f"{path}: expected the datasets {', '.join(LAYOUT)}, missing {', '.join(missing)}, received "
                    f"{', '.join(names[:8]) or 'none'}{remedy}"
                )
            datasets = {name: require_dataset(path, file, name, *LAYOUT[name]) for name in LAYOUT}
            lengths = {name: dataset.shape[0] for name, dataset in datasets.items()}
            if len(set(lengths.values())) != 1 or not 0 < lengths["reward"] <= MAX_RECORDS:
                raise DataError(
                    f"{path}: expected equal lengths of 1 to {MAX_RECORDS}, received {lengths}; fetch the file again"
                )
            require_whole(path, datasets)
        yield datasets


def require_agreement(shards: list[tuple[Path, dict[str, Any]]]) -> None:
    """Raises DataError unless all files have the types and record shapes of the first."""
    expected = {name: (dataset.dtype, dataset.shape[1:]) for name, dataset in shards[0][1].items()}
    for path, shard in shards:
        for name, dataset in shard.items():
            if name != "step_type" and (dataset.dtype, dataset.shape[1:]) != expected[name]:
                kind, shape = expected[name]
                raise DataError(
                    f"{path}: expected {name} as {kind} {shape} as in {shards[0][0].name}, received {dataset.dtype} "
                    f"{dataset.shape[1:]}"
                )


def read_step_types(path: Path, dataset: Any) -> np.ndarray:
    """[N] uint8.

    Raises:
      DataError: for a value that is none of the three.
    """
    values = dataset[:]
    wrong = values[~np.isin(values, (FIRST, MIDDLE, LAST))]
    if len(wrong):
        raise DataError(
            f"{path}: expected step_type 0 (first), 1 (middle) or 2 (last), received {wrong[0]} and {len(wrong) - 1} "
            "more"
        )
    return values.astype(np.uint8)


def cut(step_type: np.ndarray) -> list[tuple[int, int]]:
    """The records [start, stop) of every whole episode: a FIRST, any number of MIDDLE, a LAST."""
    marks = itertools.pairwise(np.flatnonzero(step_type != MIDDLE).tolist())
    return [(a, b + 1) for a, b in marks if step_type[a] == FIRST and step_type[b] == LAST]


def read_episode(shards: list[tuple[Path, dict[str, Any]]], start: int, stop: int) -> dict[str, np.ndarray]:
    """The arrays of an episode under their npz names, [start, stop) counted through all files; not yet validated."""
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in LAYOUT if name != "step_type"}
    record = sum(dataset.dtype.itemsize * math.prod(dataset.shape[1:]) for dataset in shards[0][1].values())
    if (stop - start) * record > EPISODE_BYTES:
        raise DataError(
            f"{shards[0][0]}: an episode of {stop - start} records takes more than {EPISODE_BYTES >> 20} MB; expected "
            "shorter ones"
        )
    offset = 0
    for path, shard in shards:
        length = shard["reward"].shape[0]
        low, high = max(start - offset, 0), min(stop - offset, length)
        if low < high:
            with damage(path):
                for name, parts in pieces.items():
                    parts.append(shard[name][low:high])
        offset += length
    arrays = {name: np.concatenate(parts) for name, parts in pieces.items()}
    return {"image": arrays.pop("observation").transpose(0, 2, 3, 1), **arrays}


def write_vd4rl(path: Path, episodes: Iterator[Episode]) -> int:
    """Write episodes one after another with checksums (fletcher32) and gzip; the same episodes give the same bytes.
    Returns their number.
    """
    count = 0
    columns: dict[str, Any] = {}
    with create(path) as file:
        for count, episode in enumerate(episodes, 1):  # noqa: B007
            step_type = np.where(episode.is_first, FIRST, np.where(episode.is_last, LAST, MIDDLE)).astype(np.int64)
            observation = episode.image.transpose(0, 3, 1, 2)
            arrays = {"observation": observation, "action": episode.action, "reward": episode.reward}
            for name, array in {**arrays, "discount": episode.discount, "step_type": step_type}.items():
                columns[name] = columns.get(name) or _create(file, name, array)
                columns[name].resize(columns[name].shape[0] + len(array), axis=0)
                columns[name][-len(array) :] = array
    return count


def _create(file: Any, name: str, array: np.ndarray) -> Any:
    shape, chunk = array.shape[1:], CHUNK_FRAMES if name == "observation" else 1024
    settings = {"compression": "gzip", "shuffle": name != "observation", "fletcher32": True}
    return file.create_dataset(
        name, (0, *shape), array.dtype, maxshape=(None, *shape), chunks=(chunk, *shape), **settings
    )
