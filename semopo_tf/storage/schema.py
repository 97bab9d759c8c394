"""JSON objects from files, checked against a pattern."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from semopo_tf.errors import DataError, shown
from semopo_tf.storage.untrusted import parse_json, read_whole

MAX_OBJECT_BYTES = 1 << 26
JSON_NAMES = {dict: "object", list: "list", str: "text", int: "whole number", float: "number", bool: "truth value"}
WHERE_CHARACTERS = 60  # of the position in an error line


def read_object(
    path: Path,
    wrong_with: Callable[[Any], str],
    remedy: str,
    max_bytes: int = MAX_OBJECT_BYTES,
    *,
    follow: bool = False,
) -> dict[str, Any]:
    """A file that holds a JSON object.

    Args:
      wrong_with: says in words what is wrong with the value; empty where nothing is.
      follow: whether the file may be a link to a regular file.

    Raises:
      DataError: naming the file, what is wrong, and the remedy.
    """
    try:
        value = parse_json(read_whole(path, max_bytes, follow=follow)[0])
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise DataError(f"{path}: expected a JSON object ({str(error)[:100]}); {remedy}") from error
    if wrong := wrong_with(value):
        raise DataError(f"{path}: {wrong}; {remedy}")
    return value


def unfit(value: Any, pattern: Any, where: str = "") -> str:
    """What is wrong with a JSON value, in words; empty if it fits the pattern.

    A pattern is one of
      a type        dict, list, str, int, float (whole numbers too), bool; `object` for anything
      a set         of allowed values, or a tuple of them
      [pattern]     a list, every item of which fits
      {key: ...}    an object that has these keys; one that ends with `?` may be absent; others are free

    Args:
      where: name of the value, for the words; keys and indices are appended with dots.
    """
    name = f"{where[:WHERE_CHARACTERS]} as " if where else ""
    if isinstance(pattern, tuple | set | frozenset):
        allowed = pattern if isinstance(pattern, tuple) else sorted(pattern)
        listing = ", ".join(map(str, allowed))
        return "" if value in list(allowed) else f"expected {name}one of {listing}, received {shown(value)}"
    kind = dict if isinstance(pattern, Mapping) else list if isinstance(pattern, list) else pattern
    if not _is_a(value, kind):
        return f"expected {name}a JSON {JSON_NAMES[kind]}, received {type(value).__name__}"
    prefix = f"{where}." if where else ""
    parts: list[tuple[Any, Any, str]] = []
    if isinstance(pattern, list):
        parts = [(item, pattern[0], f"{prefix}{index}") for index, item in enumerate(value)]
    elif isinstance(pattern, Mapping):
        if missing := [f"{prefix}{key}" for key in pattern if not key.endswith("?") and key not in value]:
            return f"missing {', '.join(missing)}"
        keys = ((key.removesuffix("?"), part) for key, part in pattern.items())
        parts = [(value[key], part, f"{prefix}{key}") for key, part in keys if key in value]
    return next((wrong for part in parts if (wrong := unfit(*part))), "")


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a JSON value has a type; a truth value is no number, and a number is finite."""
    if kind is object:
        return True
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, float):
        return kind is float and math.isfinite(value)
    return isinstance(value, int if kind is float else kind)
