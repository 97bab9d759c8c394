"""Minari's `main_data.hdf5`, see `minari.py` for the layout. `answers` runs in a child process (`hdf5_child.py`).

Minari stores images of at least 32 x 32 pixels as JPEG unless it is told otherwise.
"""

import io
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from semopo_tf.data.hdf5 import (
    EPISODE_BYTES,
    FLOATS,
    INTEGERS,
    LISTS,
    damage,
    is_group,
    names_in,
    opened,
    require_dataset,
    require_whole,
)
from semopo_tf.data.recording import as_images
from semopo_tf.errors import DataError, cut
from semopo_tf.storage.resize import resize

EPISODE = re.compile(r"episode_\d+")
STEPS = {"rewards": (*FLOATS, *INTEGERS), "terminations": ("bool", *INTEGERS), "truncations": ("bool", *INTEGERS)}
BLOCK_BYTES = 1 << 24  # of images that are decoded at a time
# What Pillow may raise on bytes that are no picture.
NO_PICTURE = (OSError, ValueError, SyntaxError, LookupError, TypeError, ArithmeticError, struct.error)


def answers(
    paths: list[Path], skip: int, image_key: str, image_shape: list[int], action_shape: list[int], size: int
) -> Iterator[dict[str, Any]]:
    """What the file holds, then the arrays of each episode after the first `skip`: image [T + 1, H, W, 3], the others
    [T, ...] under Minari's names. Every episode is checked before the data of any are read.

    Args:
      paths: the file first; others are not looked at.
      image_key, image_shape, action_shape: see `Spaces`.
      size: height and width of the images to send; 0 keeps theirs.

    Raises:
      DataError: naming the file.
    """
    path = paths[0]
    with opened(path) as file, damage(path):
        names = names_in(path, file)
        count = max(sum(EPISODE.fullmatch(name) is not None for name in names), 1)
        if missing := sorted({f"episode_{number}" for number in range(count)} - set(names)):
            raise DataError(
                f"{path}: expected the groups episode_0 to episode_{count - 1}, missing {missing[0]}, received "
                f"{', '.join(names[:8]) or 'none'}; fetch the file again"
            )
        groups = (file[f"episode_{number}"] for number in range(count))
        episodes = [_checked(path, group, image_key, image_shape, action_shape) for group in groups]
        require_whole(path, {data.name.lstrip("/"): data for episode in episodes for data in episode.values()})
        jpeg = sum(_is_jpeg(episode["image"]) for episode in episodes)
        yield {"contents": {"episodes": count, "jpeg": jpeg}}
        for episode in episodes[skip:]:
            yield {"arrays": _read(path, episode, image_shape, size)}


def _checked(path: Path, group: Any, key: str, image_shape: list[int], action_shape: list[int]) -> dict[str, Any]:
    """The datasets of an episode, the images as `image`, after looking at their structure."""
    where, names = group.name.lstrip("/"), names_in(path, group) if is_group(group) else []
    if missing := [name for name in ("observations", "actions", *STEPS) if name not in names]:
        received = ", ".join(names[:8]) or "none"
        raise DataError(f"{path}: expected {', '.join(missing)} in {where}, received {received}; fetch the file again")
    words = f"number {_axes('T', action_shape)}"
    found = {"actions": require_dataset(path, group, "actions", (None, *action_shape), (*FLOATS, *INTEGERS), words)}
    for name, kinds in STEPS.items():
        found[name] = require_dataset(path, group, name, (None,), kinds, "number or truth value [T]")
    holder, name = (group["observations"], key) if key else (group, "observations")
    if not is_group(holder) or name not in names_in(path, holder):
        raise DataError(
            f"{path}: expected {where}/observations to hold the image {cut(name)}, received none; fetch it again"
        )
    found["image"] = _checked_image(path, holder, name, image_shape)
    steps = len(found["rewards"])
    lengths = {name: len(data) - (name == "image") for name, data in found.items()}
    if not steps or set(lengths.values()) != {steps}:
        raise DataError(
            f"{path}: expected {where} to have one observation more than steps, and all else of one length, received "
            f"{ {name: len(data) for name, data in found.items()} }; write the dataset again"
        )
    return found


def _checked_image(path: Path, holder: Any, name: str, shape: list[int]) -> Any:
    """The images as they are, [N, *shape]; or as JPEG, padded to one length or each in its own."""
    sizes, kinds = (None, *shape), ("uint8",)
    rank = len(getattr(holder[name], "shape", None) or ())
    if rank in (1, 2):
        sizes, kinds = ((None,), (LISTS,)) if rank == 1 else ((None, None), ("uint8",))
    return require_dataset(path, holder, name, sizes, kinds, f"uint8 {_axes('T + 1', shape)} or JPEG")


def _axes(first: str, others: list[int]) -> str:
    """A shape in words, such as `[T, 2]`."""
    return f"[{', '.join([first, *map(str, others)])}]"


def _is_jpeg(dataset: Any) -> bool:
    return len(dataset.shape) < 3


def _read(path: Path, episode: dict[str, Any], shape: list[int], size: int) -> dict[str, np.ndarray]:
    """The arrays of one episode."""
    image = episode["image"]
    colours = 1 if 3 in (shape[0], shape[-1]) else 3  # of a colour image, or of a grey one that becomes one
    needed = len(image) * (3 * size * size if size else math.prod(shape) * colours)
    others = (math.prod(data.shape) * data.dtype.itemsize for name, data in episode.items() if name != "image")
    if max(needed, math.prod(shape), *others) > EPISODE_BYTES:
        raise DataError(
            f"{path}: {image.name.lstrip('/')}: {len(image)} images of {shape} take more than "
            f"{EPISODE_BYTES >> 20} MB; make them smaller with --size 64"
        )
    arrays = {name: data[:] for name, data in episode.items() if name != "image"}
    for name in ("terminations", "truncations"):
        if arrays[name].dtype == bool:
            arrays[name] = arrays[name].view(np.uint8) != 0  # a file may hold other bytes than 0 and 1
    return {"image": _images(path, image, shape, size), **arrays}


def _images(path: Path, dataset: Any, shape: list[int], size: int) -> np.ndarray:
    """All images, a block at a time, so that large ones that become small never lie in memory together."""
    where, block, parts = f"{path}: {dataset.name.lstrip('/')}", max(1, BLOCK_BYTES // math.prod(shape)), []
    for start in range(0, len(dataset), block):
        images = dataset[start : start + block]
        if _is_jpeg(dataset):
            images = np.stack([_decoded(data, shape, f"{where}: record {start + n}") for n, data in enumerate(images)])
        images = as_images(images, where)
        parts.append(resize(images, size) if size else images)
    return np.concatenate(parts)


def _decoded(data: np.ndarray, shape: list[int], where: str) -> np.ndarray:
    """The picture of JPEG bytes. Its size is compared before it is decoded.

    Raises:
      DataError: beginning with `where`, for what is no JPEG of this shape.
    """
    try:
        with Image.open(io.BytesIO(data.tobytes()), formats=["JPEG"]) as picture:
            width, height = picture.size
            received = [height, width, len(picture.getbands())]
            if received[: len(shape)] == shape:
                return np.asarray(picture)
    except (*NO_PICTURE, Image.DecompressionBombError) as error:
        reason = "no JPEG at all" if isinstance(error, UnidentifiedImageError) else str(error)[:80]
        raise DataError(f"{where}: damaged JPEG ({reason}); fetch the file again") from error
    raise DataError(f"{where}: expected a JPEG of shape {shape}, received {received}; write the dataset again")
