"""Videos: MP4 files and GIFs are written, and videos from anywhere are read, frame by frame and with limits."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from semopo_tf.errors import DataError, DeviceError, StorageError, cut
from semopo_tf.storage.child import Child, undisturbed
from semopo_tf.storage.files import FILES, remedy, write_whole
from semopo_tf.storage.limits import tighter

VIDEO_FPS = 15
MAX_PIXELS = 1 << 25  # of one frame that is read; 7680 x 4320
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegts,mpegvideo,m4v,gif"
ENCODERS = {1: ("pgm", "gray", b"P5"), 3: ("ppm", "rgb24", b"P6")}  # channels -> codec, pixels, first line of a picture
FRAME_SECONDS = 30
LINE_BYTES = 32
PIECE = 1 << 20
DECODER_BYTES = 1 << 31
DECODER_SECONDS = 600  # of processor time for one video
DECODER_LOG_BYTES = 1 << 20
DECODER_LIMITS = {
    resource.RLIMIT_AS: DECODER_BYTES,
    resource.RLIMIT_CPU: DECODER_SECONDS,
    resource.RLIMIT_FSIZE: DECODER_LOG_BYTES,
}
TELLING = (  # what a line of the decoder's log contains that names the fault
    *("moov atom", "Invalid data", "does not contain any stream", "End of file", "Permission denied", "No such file"),
    *("larger than", "whitelist"),
)


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
            f"{path.parent}: cannot be made ({error.strerror}); {remedy(error, 'choose another directory')}"
        ) from error
    write_whole(path, encode_mp4(padded))


def encode_mp4(frames: np.ndarray) -> bytes:
    """frames [T, H, W, 3] uint8, H and W even -> MP4 bytes.

    The encoder writes into memory: on a full disk it would leave a broken file.

    Raises:
      StorageError: when it fails.
    """
    import imageio_ffmpeg

    size = f"{frames.shape[2]}x{frames.shape[1]}"
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", size, "-framerate", str(VIDEO_FPS), "-i", "-")
    target = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "12", "-f", "mp4", "-y")
    with os.fdopen(os.memfd_create("video"), "rb") as file:
        output = f"file:/proc/self/fd/{file.fileno()}"
        command = (imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, *target, output)
        with undisturbed():
            encoder = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(file.fileno(),),
            )
        with encoder:
            _, said = encoder.communicate(frames.tobytes())
        if encoder.returncode:
            raise StorageError(
                f"a video of {len(frames)} frames cannot be encoded ({said.decode(errors='replace').strip()[-100:]})"
            )
        return file.read()


def encode_gif(frames: np.ndarray) -> bytes:
    """frames [T, H, W, 3] uint8 -> GIF bytes."""
    import imageio.v3 as imageio

    return imageio.imwrite("<bytes>", frames, extension=".gif", duration=1000 / VIDEO_FPS, loop=0)


def video_grid(rows: Mapping[str, np.ndarray], scale: int = 2) -> np.ndarray:
    """Stack the rows of a report below each other and its sequences beside each other.

    Args:
      rows: name -> [B, T, H, W, 1 or 3] floats in 0..1.
      scale: enlargement in whole pixels.

    Returns:
      [T, rows * H * scale, B * W * scale, 3] uint8.
    """
    colored = [np.broadcast_to(row, (*row.shape[:-1], 3)) for row in rows.values()]
    stacked = [np.concatenate(list(row), axis=2) for row in colored]  # [T, H, B*W, 3] each
    grid = np.clip(np.concatenate(stacked, axis=1) * 255 + 0.5, 0, 255).astype(np.uint8)
    return grid.repeat(scale, 1).repeat(scale, 2)


def read_frames(path: Path, channels: int = 3) -> Iterator[np.ndarray]:
    """The frames of a video one by one, [H, W, C] uint8.

    Args:
      channels: 3 for RGB, 1 for the video's luma.

    Raises:
      DataError: with the reason alone when the file holds no video that can be decoded.
    """
    count, magic = 0, ENCODERS[channels][2]
    with contextlib.closing(_decoder(path, channels)) as child:
        try:
            while header := _line(child):
                width, height = map(int, _line(child).split())
                if header != magic or _line(child) != b"255" or not 0 < width * height <= MAX_PIXELS:
                    raise DataError(f"frames of {width} x {height} pixels")
                pixels = _exactly(child, height * width * channels)
                yield np.frombuffer(pixels, np.uint8).reshape(height, width, channels)
                count += 1
            if child.process.wait(FRAME_SECONDS) != 0 or not count:
                raise DataError(_reason(child.log(), child.process.returncode))
        except DataError as error:
            _require_room(path, child, error)
            raise
        except TimeoutError as error:
            raise DataError(f"no frame within {FRAME_SECONDS} s") from error
        except (ValueError, subprocess.TimeoutExpired) as error:
            raise DataError("the decoder's output is not that of a video") from error


def _decoder(path: Path, channels: int) -> Child:
    """A decoder that writes one PGM or PPM picture a frame, with limits on memory and time. It opens this file alone:
    one may name other files or addresses, as playlists do, so only plain files of known formats are allowed.
    """
    import imageio_ffmpeg

    encoder, layout, _ = ENCODERS[channels]
    restricted = f"-threads 1 -protocol_whitelist file -format_whitelist {FORMATS} -max_pixels {MAX_PIXELS}".split()
    writing = f"-c:v {encoder} -pix_fmt {layout} -f image2pipe pipe:1".split()
    quiet = ["-nostdin", "-hide_banner", "-loglevel", "error"]
    return Child(
        [imageio_ffmpeg.get_ffmpeg_exe(), *quiet, *restricted, "-i", str(path.absolute()), *writing],
        output=True,
        limits=DECODER_LIMITS,
    )


def _require_room(path: Path, child: Child, error: DataError) -> None:
    """Raises DeviceError where the shell gave the decoder less than it may need and it ran out of that. Such a video
    must not be left out as a broken one: another machine would show it.
    """
    starved = "Cannot allocate memory" in child.log() or "loading shared libraries" in child.log()
    lower = tighter(DECODER_LIMITS)
    if lower and (starved or (child.process.poll() or 0) < 0):
        raise DeviceError(f"{path}: the decoder had less than it may need: {lower}; raise the limit") from error


def _line(child: Child) -> bytes:
    """The next line of the output without its end; empty at the end of the output."""
    content = b""
    while len(content) < LINE_BYTES and (byte := child.read(1, FRAME_SECONDS)) not in (b"", b"\n"):
        content += byte
    return content


def _exactly(child: Child, count: int) -> bytearray:
    """Raises DataError when the output ends before `count` bytes."""
    content = bytearray()
    while len(content) < count:
        piece = child.read(min(count - len(content), PIECE), FRAME_SECONDS)
        if not piece:
            raise DataError("ends inside a frame")
        content += piece
    return content


def _reason(log: str, code: int) -> str:
    """The telling line of the decoder's long log."""
    if code < 0:
        return "the decoder needed too much memory or time"
    lines = [line.split("] ")[-1].strip() for line in log.splitlines()]
    telling = (line for line in lines if any(words in line for words in TELLING))
    return cut(next(telling, "not a video that can be decoded"), 100)
