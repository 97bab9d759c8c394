"""The dataset card, `dataset.json`: how the episodes of a folder were made; and what a run was trained on."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semopo_tf.errors import DataError
from semopo_tf.storage.files import write_whole
from semopo_tf.storage.schema import read_object, unfit

CARD_NAME = "dataset.json"
# Older cards and those of conversions have a part of this.
CARD: dict[str, Any] = {
    **dict.fromkeys(("task?", "policy?", "status?"), str),
    **dict.fromkeys(("seed?", "episodes?", "records?"), int),
    "environment?": {
        **dict.fromkeys(("size?", "action_repeat?", "camera?"), int),
        **{"render?": str, "options?": dict},
    },
    "background?": {
        **dict.fromkeys(("source?", "color?", "split?", "mask_rule?", "distractor?"), str),
        **{"seed?": int, "clips?": [str]},
    },
    "versions?": dict,
    "returns?": dict.fromkeys(("mean?", "std?", "min?", "p25?", "median?", "p75?", "max?"), float),
    "files?": [{"file?": str, "seed?": int, "return?": float, "sha256?": str}],
}
RUN_DATA: dict[str, Any] = {
    "image_size": int,
    "action_size": int,
    "episodes?": int,
    "transitions?": int,
    "card": object,  # a card, or null for a dataset without one
    "files": [{"name": str, "size": int, "sha256": str}],
}


def read_card(directory: Path) -> dict[str, Any] | None:
    """The dataset card of a directory, if there is one: every entry that it has is of the type that `collect` writes.
    A link to a regular file is followed.

    Raises:
      DataError: when it is not a JSON object, or an entry has another type.
    """
    path, remedy = directory / CARD_NAME, "remove the file or collect the dataset again"
    if not os.path.lexists(path):
        return None
    return read_object(path, lambda card: unfit(card, CARD), remedy, follow=True)


def write_card(directory: Path, card: dict[str, Any]) -> None:
    """Write the dataset card of a directory, whole or not at all."""
    write_whole(directory / CARD_NAME, json.dumps(card, indent=1, allow_nan=False).encode())


def return_statistics(returns: Sequence[float]) -> dict[str, float]:
    """A card's `returns`: of one number per episode, in float64, the standard deviation that of the population."""
    scores = np.array(returns, np.float64)
    low, median, high = np.percentile(scores, [25, 50, 75])
    quartiles = {"p25": low, "median": median, "p75": high}
    values = {"mean": scores.mean(), "std": scores.std(), "min": scores.min(), **quartiles, "max": scores.max()}
    return {name: float(value) for name, value in values.items()}


def read_run_data(logdir: Path) -> dict[str, Any]:
    """What a run was trained on, `dataset_manifest.json`: {image_size, action_size, card or None, files}.

    Raises:
      DataError: when it is not what a run writes.
    """
    path, remedy = logdir / "dataset_manifest.json", "restore the file or train again"
    data = read_object(path, lambda data: unfit(data, RUN_DATA), remedy)
    if data["card"] is not None and (wrong := unfit(data["card"], CARD, "card")):
        raise DataError(f"{path}: {wrong}; {remedy}")
    return data
