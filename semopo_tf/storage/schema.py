"""JSON objects from files, checked against a pattern of types."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from semopo_tf.errors import DataError
from semopo_tf.storage.untrusted import parse_json, read_whole

MAX_OBJECT_BYTES = 1 << 26
JSON_NAMES = {dict: "object", list: "list", str: "text", int: "whole number", float: "number", bool: "truth value"}


def read_object(
    path: Path, wrong_with: Callable[[Any], str], remedy: str, max_bytes: int = MAX_OBJECT_BYTES
) -> dict[str, Any]:
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
    """Where a JSON value is not as `pattern` says, in words; empty if it is. Entries that the pattern does not name are
    free.
    """
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
