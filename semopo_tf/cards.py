"""The dataset card, `dataset.json`: how the episodes of a folder were made. `collect` writes it, everything else reads it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from semopo_tf.errors import DataError
from semopo_tf.untrusted import parse_json, read_whole

CARD_NAME = "dataset.json"
MAX_CARD_BYTES = 1 << 26
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
JSON_NAMES = {dict: "object", list: "list", str: "text", int: "whole number", float: "number", bool: "truth value"}


def read_card(directory: Path) -> dict[str, Any] | None:
    """The dataset card `dataset.json` if there is one. Every entry that this package reads has the type that `collect` writes.

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
    wrong = f"missing {', '.join(lacking)}" if lacking else found["card"] is not None and unlike(found["card"], CARD, ".card")
    if wrong:
        raise DataError(f"{path}: {wrong}; {remedy}")
    return found


def read_object(path: Path, wrong_with: Callable[[Any], str], remedy: str, max_bytes: int = MAX_CARD_BYTES) -> dict[str, Any]:
    """A file that holds a JSON object.

    Args:
      wrong_with: says in words what is wrong with the value; empty where nothing is.

    Raises:
      DataError: naming the file, what is wrong, and the remedy.
    """
    try:
        found = parse_json(read_whole(path, max_bytes)[0])
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise DataError(f"{path}: expected a JSON object ({str(error)[:100]}); {remedy}") from error
    if wrong := wrong_with(found):
        raise DataError(f"{path}: {wrong}; {remedy}")
    return found


def unlike(value: Any, pattern: Any, where: str = "") -> str:
    """Where a JSON value is not as `pattern` says, in words; empty if it is. Entries that the pattern does not name are free."""
    kind = type(pattern) if isinstance(pattern, dict | list) else pattern
    fits = isinstance(value, int | float if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not fits or (isinstance(value, float) and not np.isfinite(value)):
        name = f"{where.removeprefix('.')[:60]} as " if where else ""
        return f"expected {name}a JSON {JSON_NAMES[kind]}, received {type(value).__name__}"
    if isinstance(pattern, dict):
        parts = ((value[key], pattern[key], f"{where}.{key}") for key in pattern if key in value)
    elif isinstance(pattern, list):
        parts = ((item, pattern[0], f"{where}.{place}") for place, item in enumerate(value))
    else:
        return ""
    return next((wrong for part in parts if (wrong := unlike(*part))), "")
