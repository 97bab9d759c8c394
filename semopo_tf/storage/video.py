"""Writing videos: MP4 files, GIFs for TensorBoard, and the grid that a report shows."""

import io
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np

from semopo_tf.errors import StorageError
from semopo_tf.storage.files import FILES, write_whole

VIDEO_FPS = 15


def encode_gif(frames: np.ndarray) -> bytes:
    """frames [T, H, W, 3] uint8 -> GIF bytes."""
    buffer = io.BytesIO()
    imageio.imwrite(buffer, frames, extension=".gif", duration=1000 / VIDEO_FPS, loop=0)
    return buffer.getvalue()


def write_video(path: Path, frames: np.ndarray) -> None:
    """Write frames [T, H, W, 3] uint8 as MP4 that appears by rename.

    Raises:
      StorageError: when the directory cannot be written.
    """
    height, width = (size + size % 2 for size in frames.shape[1:3])  # the codec wants even sizes
    padded = np.pad(frames, [(0, 0), (0, height - frames.shape[1]), (0, width - frames.shape[2]), (0, 0)])
    try:
        FILES.make_directory(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path.parent}: cannot be made ({error.strerror}); free some space or choose another directory"
        ) from error
    write_whole(path, encode_mp4(padded))


def encode_mp4(frames: np.ndarray) -> bytes:
    """frames [T, H, W, 3] uint8, H and W even -> MP4 bytes.

    The encoder writes into memory: on a full disk it would leave a broken file.

    Raises:
      StorageError: when it fails.
    """
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", size, "-framerate", str(VIDEO_FPS), "-i", "-")
    target = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "12", "-f", "mp4", "-y")
    with os.fdopen(os.memfd_create("video"), "rb") as file:
        command = (
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-v",
            "error",
            *source,
            *target,
            f"file:/proc/self/fd/{file.fileno()}",
        )
        done = subprocess.run(command, input=frames.tobytes(), capture_output=True, pass_fds=(file.fileno(),))
        if done.returncode:
            raise StorageError(
                f"a video of {len(frames)} frames cannot be encoded "
                f"({done.stderr.decode(errors='replace').strip()[-100:]})"
            )
        return file.read()


def video_grid(rows: Mapping[str, np.ndarray], scale: int = 2) -> np.ndarray:
    """Stack the rows of a report below each other and its sequences beside each other.

    Args:
      rows: name -> [B, T, H, W, 1 or 3] floats in 0..1.
      scale: enlargement in whole pixels.

    Returns:
      [T, rows * H * scale, B * W * scale, 3] uint8.
    """
    stacked = []
    for row in rows.values():
        color = np.broadcast_to(row, (*row.shape[:-1], 3)) if row.shape[-1] == 1 else row
        stacked.append(np.concatenate(list(color), axis=2))  # [T, H, B*W, 3]
    grid = np.clip(np.concatenate(stacked, axis=1) * 255 + 0.5, 0, 255).astype(np.uint8)
    return grid.repeat(scale, 1).repeat(scale, 2)
