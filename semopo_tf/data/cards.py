"""The dataset card, `dataset.json`: how the episodes of a folder were made. `collect` writes it, everything else reads
it.
"""

import os
from pathlib import Path
from typing import Any

from semopo_tf.errors import DataError
from semopo_tf.storage.schema import read_object, unlike

CARD_NAME = "dataset.json"
CARD: dict[str, Any] = {
    **dict.fromkeys(("task", "policy", "status"), str),
    **dict.fromkeys(("seed", "episodes", "records"), int),
    "environment": {"size": int, "action_repeat": int, "camera": int, "options": dict},
    "background": {**dict.fromkeys(("source", "color", "split", "mask_rule"), str), "seed": int, "clips": [str]},
    "versions": dict,
    "returns": dict.fromkeys(("mean", "std", "min", "p25", "median", "p75", "max"), float),
    "files": [{"file": str, "seed": int, "return": float, "sha256": str}],
}
RUN_DATA: dict[str, Any] = {"image_size": int, "action_size": int, "files": [{"name": str, "size": int, "sha256": str}]}


def read_card(directory: Path) -> dict[str, Any] | None:
    """The dataset card `dataset.json` if there is one. Every entry that this package reads has the type that `collect`
    writes.

    Raises:
      DataError: when it is not a JSON object, or an entry has another type.
    """
    path = directory / CARD_NAME
    remedy = "remove the file or collect the dataset again"
    return read_object(path, lambda found: unlike(found, CARD), remedy) if os.path.lexists(path) else None


def read_run_data(logdir: Path) -> dict[str, Any]:
    """What a run was trained on, `dataset_manifest.json`: {image_size, action_size, card or None, files}.

    Raises:
      DataError: when it is not what a run writes.
    """
    path, remedy = logdir / "dataset_manifest.json", "restore the file or train again"
    found = read_object(path, lambda found: unlike(found, RUN_DATA), remedy)
    lacking = [key for key in (*RUN_DATA, "card") if key not in found]
    wrong = (
        f"missing {', '.join(lacking)}"
        if lacking
        else found["card"] is not None and unlike(found["card"], CARD, ".card")
    )
    if wrong:
        raise DataError(f"{path}: {wrong}; {remedy}")
    return found
