"""What makes the arrays of an episode valid, and the repair of its flags."""

from collections.abc import Callable

import numpy as np

from semopo_tf.errors import DataError
from semopo_tf.types import Episode

REQUIRED_KEYS = ("image", "action", "reward")
EPISODE_KEYS = Episode._fields[:-1]  # all but `log`
FLAGS = ("is_first", "is_last", "is_terminal")
ACTION_TOLERANCE = 1e-6
MAX_REWARD = 1e6
REPAIR = "python -m semopo_tf.data convert SRC DST --repair_flags writes a corrected copy"
# The arrays of an episode and the name of its file -> the arrays to use.
Amend = Callable[[dict[str, np.ndarray], str], dict[str, np.ndarray]]


def validate_episode(arrays: dict[str, np.ndarray], where: str) -> Episode:
    """Check the arrays of one episode against the contract of `types.Episode` and derive what is missing.

    Raises:
      DataError: beginning with `where`.
    """
    _check_shapes(arrays, where)
    _check_values(arrays, where)
    flags = _flags(arrays)
    _check_flags(flags, where)
    discount = arrays.get("discount", 1.0 - flags["is_terminal"]).astype(np.float32)
    first, last, terminal = (flags[key] for key in FLAGS)
    action = arrays["action"].astype(np.float32)
    return Episode(arrays["image"], action, arrays["reward"], discount, first, last, terminal)


def _check_shapes(arrays: dict[str, np.ndarray], where: str) -> None:
    """Type and rank of every array, and the common number of records."""
    image, action, reward = (arrays[key] for key in REQUIRED_KEYS)
    colour = image.ndim == 4 and image.shape[-1] == 3 and 0 not in image.shape[1:]
    fits = {
        "image": (image.dtype == np.uint8 and colour, "uint8 [L, H, W, 3]"),
        "action": (action.ndim == 2 and action.dtype.kind == "f" and action.shape[1] > 0, "float [L, A]"),
        "reward": (reward.ndim == 1 and reward.dtype.kind == "f", "float [L]"),
    }
    for key, array in arrays.items():
        number = array.ndim == 1 and array.dtype.kind in "bfiu"
        good, expected = fits.get(key, (number, "bool or number [L]"))
        if not good:
            received = f"{array.dtype} {list(array.shape)}"
            raise DataError(f"{where}: expected {key} as {expected}, received {received}")
    for key, array in arrays.items():
        if len(array) != len(image):
            raise DataError(
                f"{where}: expected all arrays to have the {len(image)} records of image, received {key} of shape "
                f"{list(array.shape)}"
            )
    if len(image) < 2:
        raise DataError(f"{where}: expected at least 2 records, received {len(image)}")


def _check_values(arrays: dict[str, np.ndarray], where: str) -> None:
    """Finite numbers in their ranges, and a first record that follows no decision."""
    for key, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{where}: {key} is not finite at record {int(np.argwhere(~np.isfinite(array))[0][0])}")
    action, reward = arrays["action"], arrays["reward"]
    largest = float(np.abs(action).max())
    if largest > 1 + ACTION_TOLERANCE:
        raise DataError(
            f"{where}: expected actions in [-1, 1], received {largest:.4g}; rescale the actions to the policy's range"
        )
    largest = float(np.abs(reward).max())
    if largest > MAX_REWARD:
        raise DataError(
            f"{where}: expected rewards within {MAX_REWARD:g} of zero, received {largest:.4g}; rescale or repair them"
        )
    if "discount" in arrays:
        low, high = float(arrays["discount"].min()), float(arrays["discount"].max())
        if low < 0 or high > 1:
            raise DataError(f"{where}: expected discounts in [0, 1], received {low:.4g} to {high:.4g}; repair them")
    if np.any(action[0]) or reward[0] != 0:
        raise DataError(
            f"{where}: expected zero action and reward at record 0, which follows no decision; shift the arrays so "
            "that action[t] led to image[t]"
        )


def _flags(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The three flags, [L] bool: as stored, else from the ends of the file and the discount."""
    record = np.arange(len(arrays["reward"]))
    terminal = arrays["discount"] == 0 if "discount" in arrays else np.zeros(len(record), bool)
    derived = {"is_first": record == 0, "is_last": record == record[-1], "is_terminal": terminal}
    return {key: arrays[key].astype(bool) if key in arrays else derived[key] for key in FLAGS}


def _check_flags(flags: dict[str, np.ndarray], where: str) -> None:
    """One file holds one episode: it begins at the first record, and only the last one ends it."""
    last = len(flags["is_last"]) - 1
    for key, only, remedy in (("is_first", 0, f"one file holds one episode; {REPAIR}"), ("is_last", last, REPAIR)):
        records = np.flatnonzero(flags[key]).tolist()
        if records != [only]:
            raise DataError(
                f"{where}: expected {key} at record {only} alone, received it at records {records[:5]}; {remedy}"
            )
    if flags["is_terminal"][:-1].any():
        raise DataError(
            f"{where}: expected is_terminal (or discount 0) at the last record {last} only, received it at record "
            f"{int(np.argmax(flags['is_terminal']))}; {REPAIR}"
        )


def never_changes(image: np.ndarray) -> bool:
    """Whether all images [L, H, W, 3] of an episode are equal, as an environment makes them that returns one buffer."""
    return not any(np.any(frame != image[0]) for frame in image[1:])


def repair_flags(arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """The arrays with `is_first` and `is_last` at the ends of the file and no termination before its last record.

    Where a termination is removed, a discount of 0 becomes 1. Arrays of a wrong shape are left for `validate_episode`
    to refuse.

    Raises:
      DataError: beginning with `where`, when the file holds several episodes: a later record has `is_first` and neither
        action nor reward.
    """
    length = len(arrays["reward"]) if arrays["reward"].ndim else 0
    stored = [arrays[key] for key in (*FLAGS, "discount") if key in arrays]
    flat = all(array.shape == (length,) and array.dtype.kind in "bfiu" for array in stored)
    if not flat or arrays["action"].shape[:-1] != (length,):
        return arrays
    record = np.arange(length)
    inside = record < length - 1
    if "is_first" in arrays:
        first = arrays["is_first"].astype(bool) & (record > 0)
        resets = record[first & (arrays["reward"] == 0) & ~arrays["action"].any(-1)]
        if len(resets):
            raise DataError(
                f"{where}: a second episode begins at record {resets[0]}; one file holds one episode, cut it there"
            )
    sound = {"is_first": record == 0, "is_last": ~inside}
    if "is_terminal" in arrays:
        sound["is_terminal"] = arrays["is_terminal"].astype(bool) & ~inside
    if "discount" in arrays:
        discount = arrays["discount"]
        sound["discount"] = np.where(inside & (discount == 0), discount.dtype.type(1), discount)
    return arrays | sound
