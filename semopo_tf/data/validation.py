"""What makes the arrays of an episode valid, and the repair of its flags."""

from collections.abc import Callable

import numpy as np

from semopo_tf.errors import DataError
from semopo_tf.types import Episode

REQUIRED_KEYS = ("image", "action", "reward")
EPISODE_KEYS = Episode._fields[:-1]  # all but `log`
ACTION_TOLERANCE = 1e-6
Amend = Callable[
    [dict[str, np.ndarray], str], dict[str, np.ndarray]
]  # the arrays of an episode and where they come from -> the arrays to use
REPAIR = "python -m semopo_tf.data convert SRC DST --repair_flags writes a corrected copy"
MAX_REWARD = 1e6


def validate_episode(arrays: dict[str, np.ndarray], where: str) -> Episode:
    """Check the arrays of one episode against the contract of `types.Episode` and fill in the derivable ones.

    Raises:
      DataError: beginning with `where`.
    """
    image, action, reward = (arrays[key] for key in REQUIRED_KEYS)
    length = len(image) if image.ndim else 0
    _require(
        image.dtype == np.uint8 and image.ndim == 4 and image.shape[-1] == 3 and 0 not in image.shape[1:],
        where,
        "image",
        "uint8 [L, H, W, 3]",
        image,
    )
    _require(
        action.ndim == 2 and action.dtype.kind == "f" and action.shape[1] > 0, where, "action", "float [L, A]", action
    )
    _require(reward.ndim == 1 and reward.dtype.kind == "f", where, "reward", "float [L]", reward)
    for key in [key for key in arrays if key not in REQUIRED_KEYS]:
        _require(
            arrays[key].ndim == 1 and arrays[key].dtype.kind in "bfiu", where, key, "bool or number [L]", arrays[key]
        )
    for key, array in arrays.items():
        if array.ndim == 0 or len(array) != length:
            raise DataError(
                f"{where}: expected all arrays to have the {length} records of image, received {key} of shape "
                f"{list(array.shape)}"
            )
    if length < 2:
        raise DataError(f"{where}: expected at least 2 records, received {length}")
    for key, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{where}: {key} is not finite at record {int(np.argwhere(~np.isfinite(array))[0][0])}")
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
    if "discount" in arrays and not (arrays["discount"].min() >= 0 and arrays["discount"].max() <= 1):
        found = f"{float(arrays['discount'].min()):.4g} to {float(arrays['discount'].max()):.4g}"
        raise DataError(f"{where}: expected discounts in [0, 1], received {found}; repair them")
    if np.any(action[0]) or reward[0] != 0:
        raise DataError(
            f"{where}: expected zero action and reward at record 0, which follows no decision; shift the arrays so "
            "that action[t] led to image[t]"
        )
    flags: dict[str, np.ndarray] = {
        key: arrays[key].astype(bool) for key in ("is_first", "is_last", "is_terminal") if key in arrays
    }
    if "is_terminal" not in flags:
        flags["is_terminal"] = arrays["discount"] == 0 if "discount" in arrays else np.zeros(length, bool)
    flags.setdefault("is_first", np.arange(length) == 0)
    flags.setdefault("is_last", np.arange(length) == length - 1)
    for key, only, remedy in (
        ("is_first", 0, f"one file holds one episode; {REPAIR}"),
        ("is_last", length - 1, REPAIR),
    ):
        if np.flatnonzero(flags[key]).tolist() != [only]:
            raise DataError(
                f"{where}: expected {key} at record {only} alone, received it at records "
                f"{np.flatnonzero(flags[key]).tolist()[:5]}; {remedy}"
            )
    if flags["is_terminal"][:-1].any():
        ended = int(np.argmax(flags["is_terminal"]))
        raise DataError(
            f"{where}: expected is_terminal (or discount 0) at the last record {length - 1} only, received it at "
            f"record {ended}; {REPAIR}"
        )
    discount = arrays.get("discount", 1.0 - flags["is_terminal"]).astype(np.float32)
    return Episode(
        image, action.astype(np.float32), reward, discount, flags["is_first"], flags["is_last"], flags["is_terminal"]
    )


def repair_flags(arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """The arrays with `is_first` and `is_last` at the ends of the file and no termination before its last record; the
    rest as it was.

    Where a termination is taken away, a discount of 0 becomes 1. Arrays of a wrong shape are left for
    `validate_episode` to refuse.

    Raises:
      DataError: beginning with `where`, when the file holds several episodes: a later record that `is_first`, without
        action and reward.
    """
    length = len(arrays["reward"]) if arrays["reward"].ndim else 0
    flags = [key for key in ("is_first", "is_last", "is_terminal", "discount") if key in arrays]
    if any(arrays[key].shape != (length,) or arrays[key].dtype.kind not in "bfiu" for key in flags) or arrays[
        "action"
    ].shape[:-1] != (length,):
        return arrays
    record = np.arange(length)
    if "is_first" in arrays:
        resets = record[
            arrays["is_first"].astype(bool) & (record > 0) & (arrays["reward"] == 0) & ~arrays["action"].any(-1)
        ]
        if len(resets):
            raise DataError(
                f"{where}: a second episode begins at record {resets[0]}; one file holds one episode, cut it there"
            )
    inside = record < length - 1
    sound = {"is_first": record == 0, "is_last": ~inside}
    if "is_terminal" in arrays:
        sound["is_terminal"] = arrays["is_terminal"].astype(bool) & ~inside
    if "discount" in arrays:
        sound["discount"] = np.where(
            inside & (arrays["discount"] == 0), arrays["discount"].dtype.type(1), arrays["discount"]
        )
    return arrays | sound


def _require(condition: bool, where: str, key: str, expected: str, array: np.ndarray) -> None:
    if not condition:
        raise DataError(f"{where}: expected {key} as {expected}, received {array.dtype} {list(array.shape)}")
