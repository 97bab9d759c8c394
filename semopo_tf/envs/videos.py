"""Moving backgrounds: frames of a folder of videos or of the built-in driving scene, and how they replace pixels."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from semopo_tf.envs.driving import driving_clip
from semopo_tf.errors import ConfigError, DataError, user_path
from semopo_tf.storage.video import read_frames

DRIVING = "builtin:driving"
DRIVING_CLIPS = {"train": range(16), "test": range(16, 20)}
DRIVING_LENGTH = 125  # frames per built-in clip
SUFFIXES = frozenset((".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v", ".gif"))
CHANNELS = {"grey": 1, "rgb": 3}
SHUFFLE_STREAM = 0x51DE0  # keeps the order of clips independent of other uses of the same seed
START_STREAM = 0xBAC6  # keeps the first frame independent of the initial state drawn from the same seed


class Background(NamedTuple):
    """`M` consecutive background frames; clips simply follow one another."""

    frames: np.ndarray  # [M, size, size, C] uint8, read-only; C = 1 grey, 3 rgb
    clips: list[str]  # names of the clips used, in order
    skipped: list[tuple[str, str]]  # (name, reason) of links left out and files that could not be decoded
    origin: np.ndarray  # [M] int, index into `clips` of the clip that a frame is from

    def first_frame(self, seed: int) -> int:
        """The frame that the episode of `seed` begins with."""
        return int(np.random.default_rng(np.random.SeedSequence([seed, START_STREAM])).integers(len(self.frames)))

    def clip(self, frame: int) -> str:
        """Name of the clip that a frame is from."""
        return self.clips[self.origin[frame]]


def absolute_source(source: str) -> str:
    """A source as cards and scores keep it: a folder by its absolute path, so that any working directory will do."""
    return source if source == "none" or source.startswith("builtin:") else str(user_path(source).absolute())


def load_background(source: str, *, size: int, color: str, split: str, seed: int, frames: int = 1000) -> Background:
    """Fill `frames` background frames from `source`.

    The clips of the split are shuffled by `seed` and used one after another until there are enough frames. When all of
    them together are too short, the sequence repeats.

    Args:
      source: a folder of videos or `builtin:driving`.
      size: height and width of the result in pixels.
      color: `grey` (the video's luma) or `rgb`.
      split: `train` or `test`; the two never share a clip.

    Raises:
      ConfigError: for an unknown colour, split or built-in name.
      DataError: when the folder is missing or holds no clip that can be decoded.
    """
    require(color in CHANNELS, "background_color", " or ".join(CHANNELS), color)
    require(split in DRIVING_CLIPS, "background_split", " or ".join(DRIVING_CLIPS), split)
    if source.startswith("builtin:"):
        require(source == DRIVING, "background", DRIVING, source)
        where, clips, left_out = source, list[int | Path](DRIVING_CLIPS[split]), list[tuple[str, str]]()
    else:
        where = str(user_path(source))
        clips, left_out = [*clips_of_split(Path(where), split)], video_files(Path(where))[1]
    order = np.random.default_rng(np.random.SeedSequence([seed, SHUFFLE_STREAM])).permutation(len(clips))
    background = _fill([clips[index] for index in order], size, color, frames, where)
    return background._replace(skipped=left_out + background.skipped)


def require(condition: bool, flag: str, expected: str, received: object) -> None:
    """Raises ConfigError about a flag unless the condition holds."""
    if not condition:
        raise ConfigError(f"--{flag}: expected {expected}, received {received!r}")


def clips_of_split(folder: Path, split: str) -> list[Path]:
    """The videos of a folder that belong to a split, sorted by name.

    Of the sorted list every fourth clip, beginning with the fourth, is a test clip; of two or three clips the last one
    is; a single clip serves training only.

    Raises:
      DataError: when the folder is missing, unreadable or without videos, or has no clip in the split.
    """
    files, _ = video_files(folder)
    test = files[3::4] or files[1:][-1:]
    chosen = test if split == "test" else [file for file in files if file not in test]
    if not chosen:
        raise DataError(
            f"{folder}: expected at least 2 videos for the test split, received {len(files)}; add a video or use the "
            "train split"
        )
    return chosen


def video_files(folder: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """The regular, visible files of `folder` with a video's suffix, as absolute paths sorted by name.

    Links to regular files are followed, each file once: a clip under two names could be in both splits.

    Returns:
      the files, and (name, reason) of the links that are left out.

    Raises:
      DataError: when there are none, with what is there instead.
    """
    try:
        entries = sorted(folder.absolute().iterdir())
    except OSError as error:
        remedy = f"correct --background or the folder's permissions, or use {DRIVING}"
        raise DataError(f"{folder}: expected a folder of videos ({error.strerror}); {remedy}") from error
    visible = [path for path in entries if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    files = [path for path in visible if path.is_file() and not path.is_symlink()]
    names = {_identity(path): path.name for path in files}
    left_out = []
    for path in filter(Path.is_symlink, visible):
        if not path.is_file():
            left_out.append((path.name, "a link to no regular file; copy folders with cp -rL, which follows links"))
        elif (first := names.setdefault(_identity(path), path.name)) != path.name:
            left_out.append((path.name, f"a link to the file of {first}"))
        else:
            files.append(path)
    if not files:
        kinds, links = ", ".join(sorted(SUFFIXES)), f" ({left_out[0][0]}: {left_out[0][1]})" if left_out else ""
        raise DataError(
            f"{folder}: expected videos ({kinds}), received {len(entries)} other entries{links}; add videos or use "
            f"{DRIVING}"
        )
    return sorted(files), left_out


def _identity(path: Path) -> tuple[int, int]:
    """What two names of one file have in common."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _fill(clips: list[int | Path], size: int, color: str, frames: int, where: str) -> Background:
    """Decode clips in the given order until `frames` frames are there, one native frame in memory at a time."""
    filled, origin = np.empty((frames, size, size, CHANNELS[color]), np.uint8), np.empty(frames, np.intp)
    count, used, skipped = 0, list[str](), []
    for clip in clips:
        name, before = clip.name if isinstance(clip, Path) else f"driving-{clip:02d}", count
        try:
            for frame in _clip_frames(clip, size, color):
                filled[count] = frame
                count += 1
                if count == frames:
                    break
        except DataError as error:
            skipped.append((name, str(error)))
            count = before  # a clip counts whole or not at all
        else:
            origin[before:count] = len(used)
            used.append(name)
        if count == frames:
            break
    if not count:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
        raise DataError(
            f"{where}: none of {len(clips)} videos can be decoded ({reasons}); replace them or use {DRIVING}"
        )
    repeated = np.arange(frames) % count
    filled = filled[repeated]
    filled.flags.writeable = False
    return Background(filled, used, skipped, origin[repeated])


def _clip_frames(clip: int | Path, size: int, color: str) -> Iterator[np.ndarray]:
    """Frames [size, size, C] uint8 of a file or of a built-in clip."""
    if isinstance(clip, Path):
        yield from decode(clip, size=size, color=color)
    else:
        for frame in driving_clip(clip, size=size, frames=DRIVING_LENGTH):
            yield luma(frame) if color == "grey" else frame


def decode(path: Path, *, size: int, color: str) -> Iterator[np.ndarray]:
    """Decode a video frame by frame, each resized to [size, size, C] uint8.

    Raises:
      DataError: with the reason alone when the file holds no video that can be decoded.
    """
    return (resize_bilinear(frame, size) for frame in read_frames(path, channels=CHANNELS[color]))


def resize_bilinear(frames: np.ndarray, size: int) -> np.ndarray:
    """Resize [..., H, W, C] uint8 to [..., size, size, C]: half-pixel centres, no antialiasing, edges repeated, rounded
    to nearest.
    """
    rows, columns = (_taps(length, size) for length in frames.shape[-3:-1])
    low, high, weight = rows
    mixed = frames[..., low, :, :] * (1 - weight)[:, None, None] + frames[..., high, :, :] * weight[:, None, None]
    low, high, weight = columns
    mixed = mixed[..., low, :] * (1 - weight)[:, None] + mixed[..., high, :] * weight[:, None]
    return np.floor(mixed + 0.5).astype(np.uint8)


def _taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every output position the two input positions around its centre, and the weight of the second, [size]."""
    centre = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    low = np.floor(centre).astype(np.int64)
    return low, np.minimum(low + 1, length - 1), centre - low


def luma(image: np.ndarray) -> np.ndarray:
    """Grey [..., 1] of RGB [..., 3] uint8 by the weights of analogue television, as video files store it."""
    return np.floor(image @ np.array([[0.299], [0.587], [0.114]]) + 0.5).astype(np.uint8)


def blue_mask(image: np.ndarray) -> np.ndarray:
    """The released rule: [..., H, W] bool, true where blue is strictly greater than green and than red."""
    red, green, blue = (image[..., channel] for channel in range(3))
    return (blue > green) & (blue > red)


def composite(image: np.ndarray, background: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A new image [H, W, 3] uint8: `background` [H, W, 1 or 3] where `mask` [H, W], else `image`. Grey fills all three
    channels.
    """
    return np.where(mask[..., None], background, image)
