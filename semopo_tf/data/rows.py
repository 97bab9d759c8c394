"""An npz file of rows (s, a, r, s'), as replay buffers and D4RL keep them: one episode or several, one after another.

    row                0     1     2    ...  T-1
    observation       o_0   o_1   o_2        o_{T-1}         image   o_0   o_1   o_2  ...  o_T
    action            a_1   a_2   a_3        a_T       ->    action   0    a_1   a_2  ...  a_T
    reward            r_1   r_2   r_3        r_T             reward   0    r_1   r_2  ...  r_T
    next_observation  o_1   o_2   o_3        o_T

An episode ends at a row that is terminated (a real end) or truncated, and at the end of the file.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from semopo_tf.data.episodes import SHOWN_KEYS, read_arrays
from semopo_tf.data.recording import Recording, from_box, from_choice
from semopo_tf.errors import DataError

# The accepted names; each also with an s.
NAMES = {
    **dict.fromkeys(("observation", "obs"), "observation"),
    **dict.fromkeys(("next_observation", "next_obs"), "next_observation"),
    **dict.fromkeys(("action",), "action"),
    **dict.fromkeys(("reward",), "reward"),
    **dict.fromkeys(("terminated", "terminal"), "terminated"),
    **dict.fromkeys(("truncated", "timeout"), "truncated"),
}
REQUIRED = ("observation", "action", "reward", "next_observation", "terminated")
# Beside rows whose actions are not in [-1, 1]: the bounds of a box [A], or the number of actions to choose from.
SPACE = ("action_low", "action_high", "action_n")


def meaning(key: str) -> str:
    """What an array of this name is, by the name that it has here; empty for any other array."""
    return key if key in SPACE else NAMES.get(key) or NAMES.get(key.removesuffix("s"), "")


def holds_rows(path: Path) -> bool:
    """Whether an npz file has rows, by the names of its arrays.

    Raises:
      DataError: for what is no npz file.
    """
    _, keys, _ = read_arrays(path, lambda key: False)
    return "image" not in keys and "next_observation" in map(meaning, keys)


def read_rows(path: Path) -> Iterator[tuple[str, Recording]]:
    """The episodes of a file, each after the words for its place.

    Raises:
      DataError: naming the file and the row.
    """
    rows = _columns(path)
    observation, following, actions = rows["observation"], rows["next_observation"], _actions(rows, str(path))
    ends = rows["terminated"] | rows["truncated"]
    ends[-1] = True
    start = 0
    for last in np.flatnonzero(ends).tolist():
        for row in range(start, last):
            if not np.array_equal(following[row], observation[row + 1]):
                raise DataError(
                    f"{path}: expected next_observation of row {row} to be the observation of row {row + 1}, received "
                    "another; mark the last row of every episode as terminated or truncated"
                )
        part = slice(start, last + 1)
        images = np.concatenate([observation[part], following[last : last + 1]])
        recording = Recording(images, actions[part], rows["reward"][part], bool(rows["terminated"][last]))
        yield f"{path}: rows {start} to {last}", recording
        start = last + 1


def _columns(path: Path) -> dict[str, np.ndarray]:
    """The arrays by the names that they have here: rows of one number, flags as truth values."""
    arrays, others, _ = read_arrays(path, lambda key: bool(meaning(key)))
    rows: dict[str, np.ndarray] = {}
    for key, array in arrays.items():
        if meaning(key) in rows:
            raise DataError(f"{path}: expected {meaning(key)} once, received it under two names; keep one of them")
        rows[meaning(key)] = array
    if missing := [name for name in REQUIRED if name not in rows]:
        raise DataError(
            f"{path}: expected rows of {', '.join(REQUIRED)}, missing {', '.join(missing)}, received "
            f"{', '.join([*arrays, *others][:SHOWN_KEYS])[:100]}; add them"
        )
    rows.setdefault("truncated", np.zeros(rows["terminated"].shape, bool))
    shapes = {name: list(rows[name].shape) for name in (*REQUIRED, "truncated")}
    length = shapes["observation"][:1]
    flat = all(shapes[name] == length for name in ("reward", "terminated", "truncated"))
    if length in ([], [0]) or not flat or shapes["action"][:1] != length:
        raise DataError(
            f"{path}: expected equally many rows, of one number but for images and actions, received {shapes}; store "
            "one row a step"
        )
    if shapes["observation"] != shapes["next_observation"]:
        raise DataError(
            f"{path}: expected next_observation of the shape of observation, received {shapes}; store both alike"
        )
    for name in ("terminated", "truncated"):
        if not np.isin(rows[name], (0, 1)).all():
            raise DataError(f"{path}: expected {name} as truth values or as 0 and 1, received others; store them so")
        rows[name] = rows[name].astype(bool)
    return rows


def _actions(rows: dict[str, np.ndarray], where: str) -> np.ndarray:
    """[N, A] in [-1, 1]: as they are, or from the box or the choice that the file says they are of."""
    actions = rows["action"]
    if "action_n" in rows and rows["action_n"].size == 1 and rows["action_n"].dtype.kind in "iu":
        return from_choice(actions, int(rows["action_n"].item()), where)
    if "action_low" in rows and "action_high" in rows:
        return from_box(actions, rows["action_low"], rows["action_high"], where)
    if actions.dtype.kind in "iu" or set(SPACE) & set(rows):
        raise DataError(
            f"{where}: expected action in [-1, 1], or beside it action_low and action_high, or action_n for whole "
            f"numbers, received {actions.dtype} {list(actions.shape)}; store env.action_space.n as action_n, or low "
            "and high"
        )
    return actions
