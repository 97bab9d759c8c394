"""Small video files for tests."""

import imageio_ffmpeg
import numpy as np


def write_video(path, frames, *, codec="ffv1", pixels_in="rgb24", pixels_out="gbrp"):
    """Write frames [N, H, W(, 3)] uint8; the default codec keeps every value."""
    height, width = frames.shape[1:3]
    options = {
        "pix_fmt_in": pixels_in,
        "pix_fmt_out": pixels_out,
        "codec": codec,
        "macro_block_size": 1,
        "ffmpeg_log_level": "error",
    }
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=10, **options)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


def write_grey(path, values, shape=(16, 24)):
    """A lossless grey clip whose frame t is filled with values[t]."""
    write_video(
        path, np.stack([np.full(shape, value, np.uint8) for value in values]), pixels_in="gray", pixels_out="gray"
    )
