"""An episode in the classical form, as gymnasium, Minari and most programs record it, and what becomes of it here.

    images    o_0   o_1   o_2  ...  o_T            image    o_0   o_1   o_2  ...  o_T
    actions   a_1   a_2  ...  a_T            ->    action    0    a_1   a_2  ...  a_T
    rewards   r_1   r_2  ...  r_T                  reward    0    r_1   r_2  ...  r_T

a_t is taken at o_{t-1} and leads to o_t, where r_t is received.
"""

from typing import Any, NamedTuple

import numpy as np

from semopo_tf.data.validation import ACTION_TOLERANCE
from semopo_tf.errors import DataError, shown

NUMBERS = "biuf"
BOUNDLESS = 1e9  # bounds of a box from here on are none
MAX_CHOICES = 1000
MAX_CHOICE_NUMBERS = 1 << 27  # that all choices of a file become


class Recording(NamedTuple):
    """One episode of `T` decisions in the classical form."""

    images: np.ndarray  # [T + 1, H, W, 3] uint8, or channel first, or grey [T + 1, H, W]
    actions: np.ndarray  # [T, A] in [-1, 1]; actions[t] was taken at images[t] and led to images[t + 1]
    rewards: np.ndarray  # [T]; rewards[t] was paid for actions[t]
    terminal: bool  # whether the last image is a real end (failure, goal) and not a time limit


def episode_arrays(recording: Recording, where: str) -> dict[str, np.ndarray]:
    """The arrays of an npz episode, for `validate_episode`. Rewards keep their own float type.

    Raises:
      DataError: beginning with `where`.
    """
    if not isinstance(recording, Recording):
        raise DataError(f"{where}: expected a Recording, received a {type(recording).__name__}; make one of its arrays")
    images = as_images(_array(recording.images, "images", where), where)
    actions, rewards = (_array(getattr(recording, name), name, where) for name in ("actions", "rewards"))
    steps = len(images) - 1
    if actions.ndim != 2 or len(actions) != steps or rewards.shape != (steps,):
        raise DataError(
            f"{where}: expected actions [{steps}, A] and rewards [{steps}] for {steps + 1} images, received "
            f"{list(actions.shape)} and {list(rewards.shape)}; keep the image after the last step"
        )
    if not isinstance(recording.terminal, bool | np.bool_):
        raise DataError(
            f"{where}: expected terminal as one truth value, received {shown(recording.terminal)}; give that of the "
            "last step"
        )
    discount = np.ones(steps + 1, np.float32)
    discount[-1] = 0 if recording.terminal else 1
    kind = rewards.dtype if rewards.dtype.kind == "f" else np.dtype(np.float32)
    return {
        "image": images,
        "action": np.concatenate([np.zeros((1, actions.shape[1])), actions]).astype(np.float32),
        "reward": np.concatenate([np.zeros(1), rewards]).astype(kind),
        "discount": discount,
    }


def _array(value: Any, name: str, where: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:  # NumPy's for rows of different shapes
        raise DataError(
            f"{where}: expected {name} of one shape, received rows of different shapes; make them alike"
        ) from error
    if array.dtype.kind not in NUMBERS:
        raise DataError(f"{where}: expected {name} as numbers, received {array.dtype}; store plain numbers")
    return array


def as_images(images: np.ndarray, where: str) -> np.ndarray:
    """Images with three channels, which come last: [N, H, W, 3] uint8.

    A channel axis before the others is told by its size of 1 or 3, unless the last axis has such a size. One channel,
    or none, becomes three equal ones.

    Raises:
      DataError: beginning with `where`, for what is no such image.
    """
    found = images[..., None] if images.ndim == 3 else images
    if found.ndim == 4 and found.shape[3] not in (1, 3) and found.shape[1] in (1, 3):
        found = found.transpose(0, 2, 3, 1)
    if found.dtype != np.uint8 or found.ndim != 4 or found.shape[3] not in (1, 3):
        raise DataError(
            f"{where}: expected images as uint8 [N, H, W, 3], [N, 3, H, W] or [N, H, W], received {images.dtype} "
            f"{list(images.shape)}; store one image of 0..255 a record"
        )
    return np.repeat(found, 3, axis=3) if found.shape[3] == 1 else found


def from_box(actions: np.ndarray, low: np.ndarray, high: np.ndarray, where: str) -> np.ndarray:
    """Actions [T, A] of a box with the bounds low and high [A], rescaled to [-1, 1]; unchanged where they are -1 and 1.

    Raises:
      DataError: beginning with `where`, for a box without bounds, or an action outside it.
    """
    numbers = all(array.dtype.kind in NUMBERS for array in (actions, low, high))
    if not numbers or actions.ndim != 2 or not low.shape == high.shape == actions.shape[1:]:
        received = ", ".join(f"{array.dtype} {list(array.shape)}" for array in (actions, low, high))
        raise DataError(
            f"{where}: expected actions [N, A] and their bounds [A] as numbers, received {received}; store one bound "
            "for each of the A"
        )
    if not (np.maximum(-low, high) < BOUNDLESS).all() or not (low < high).all():
        raise DataError(
            f"{where}: expected bounds of the actions, received {low.tolist()} to {high.tolist()}; scale them to "
            "[-1, 1] by the range that you mean and write the episodes with semopo_tf.data.write"
        )
    low, high = low.astype(np.float64), high.astype(np.float64)
    scaled = actions * (2 / (high - low)) - (high + low) / (high - low)
    outside = (np.abs(scaled) > 1 + ACTION_TOLERANCE).any(1)
    if outside.any():
        row = int(np.argmax(outside))
        raise DataError(
            f"{where}: expected actions from {low.tolist()} to {high.tolist()}, received {actions[row].tolist()} in "
            f"row {row}; store what the environment took"
        )
    return scaled.astype(np.float32)


def from_choice(choices: np.ndarray, count: int, where: str, first: int = 0) -> np.ndarray:
    """Choices [N] out of `count` as actions [N, count] float32: 1 at the choice and 0 elsewhere.

    Args:
      first: the number of the first choice.

    Raises:
      DataError: beginning with `where`, for what is no such choice.
    """
    if choices.ndim != 1 or choices.dtype.kind not in "iu":
        raise DataError(
            f"{where}: expected a whole number a row as the action, received {choices.dtype} {list(choices.shape)}; "
            "store the number of the choice"
        )
    if not 2 <= count <= MAX_CHOICES:
        raise DataError(f"{where}: expected 2 to {MAX_CHOICES} actions to choose from, received {count}; correct it")
    if len(choices) * count > MAX_CHOICE_NUMBERS:
        raise DataError(f"{where}: expected fewer rows of {count} choices, received {len(choices)}; split the file")
    places = choices.astype(np.int64) - first
    wrong = (places < 0) | (places >= count)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{where}: expected actions from {first} to {first + count - 1}, received {choices[row]} in row {row}; "
            "correct the action or the number of choices"
        )
    return np.eye(count, dtype=np.float32)[places]
