"""The run directory: records that are the truth (`*.jsonl`, `config.yaml`), and views of them (terminal, TensorBoard, videos).

`metrics.jsonl` is deterministic: one JSON object a line with `phase` and `step`, no clock. Wall-clock figures go to `timing.jsonl`.
"""

import contextlib
import io
import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

from semopo_tf.errors import CheckpointError, DataError, StorageError
from semopo_tf.files import FILES, Files, Growing, locked, temporary_sibling, write_whole

VIDEO_FPS = 15
PRINT_SECONDS = 20.0
LOG_TAIL_BYTES = 4096
WARNING_SECONDS = 60.0
LEFTOVERS = (".tmp-*", "videos/.tmp-*[0-9]-model-*")  # of training; evaluate.py may be writing videos of its own
PROGRESS_LINE = re.compile(r"^\w+ \d+/\d+, \S+ updates/s, \S+ min left", re.MULTILINE)


@contextlib.contextmanager
def open_run(logdir: Path, files: Files = FILES) -> Iterator[None]:
    """Make and lock a run directory for the time of the run, and clear it of what killed writers have left.

    Raises:
      StorageError: when it cannot be written, before anything else is done.
      LockedError: when another process trains in it.
    """
    probe = temporary_sibling(logdir / "writable")
    try:
        files.make_directory(logdir)
        files.write(probe, b"")
        files.unlink(probe)
    except OSError as error:
        raise StorageError(f"{logdir}: the run directory cannot be written ({error.strerror}); choose another --logdir") from error
    with locked(logdir / ".lock", wait=False, what=f"the run directory {logdir}") as killed:
        for pattern in LEFTOVERS:
            for leftover in logdir.glob(pattern):
                files.remove_tree(leftover)
        if killed:
            print(f"warning: the last run in {logdir} ({killed}) ended without a stop record: it was killed, or the machine stopped")
        yield


class Patience:
    """Inside `with`, a `StorageError` is one warning a minute and no end: for what a run can do without until its next checkpoint."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._quiet_until = clock, -math.inf

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, StorageError):
            return False
        if self._clock() >= self._quiet_until:
            self._quiet_until = self._clock() + WARNING_SECONDS
            print(f"warning: {error}; training goes on until a checkpoint cannot be written either", flush=True)
        return True


class Records:
    """An append-only JSON-lines file whose length is known, so that a resumed run can cut it back to its checkpoint."""

    def __init__(self, path: Path, files: Files = FILES):
        self.path, self._file = path, Growing(path, files)

    def drop_half_line(self) -> None:
        """Cut a last line that a killed writer or a power loss left without its end or its content."""
        if self.path.exists():
            data = self.path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            last = whole[whole.rfind(b"\n", 0, -1) + 1 :]
            self.cut(len(whole) - (len(last) if last and _row(last) is None else 0))

    def cut(self, size: int) -> None:
        """Drop everything after the first `size` bytes: rows of work that will be done again.

        Raises:
          CheckpointError: when there are fewer, or they do not end with a row.
        """
        if size == 0 and not self.path.exists():
            return
        try:
            with open(self.path, "r+b") as file:
                file.seek(max(0, size - 1))
                if size and file.read(1) != b"\n":
                    raise CheckpointError(f"{self.path}: expected rows of {size} bytes as at the checkpoint, received {self.size}; restore the file")
                file.truncate(size)
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.path}: expected rows of {size} bytes as at the checkpoint, received no file; restore it") from error

    def append(self, row: Mapping[str, Any]) -> None:
        """One row, on the disk before this returns.

        Raises:
          StorageError: when the disk refuses. The row is kept and written before the next one.
        """
        self._file.append((json.dumps(row, allow_nan=False) + "\n").encode())

    def settle(self) -> int:
        """Write the rows that were kept. Returns the bytes on the disk.

        Raises:
          StorageError: when the disk still refuses.
        """
        self._file.settle()
        return self.size

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.exists() else 0


def read_records(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, none if there is no file. A bad last line (a reader beside a running writer, a power loss) is left out.

    Raises:
      DataError: naming a bad line before the last.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = [_row(line) for line in lines[:-1]]
    if lines[-1] or None in rows[-1:]:
        print(f"warning: {path}: the last line is not whole and is left out", file=sys.stderr)
    if None in rows[:-1]:
        raise DataError(f"{path}: expected one JSON object a line, line {rows.index(None) + 1} is none; remove the line")
    return [row for row in rows if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


class TensorBoard:
    """Scalars and GIFs for TensorBoard, on one axis over both phases. A view: nothing reads it back.

    A start mark at `first_step` makes TensorBoard forget what an interrupted run wrote beyond its checkpoint.
    Every method raises `StorageError` when the disk refuses; what it refused is kept and written before the next.
    """

    def __init__(self, logdir: Path, first_step: int, files: Files = FILES):
        self._file = Growing(event_file(logdir), files)
        self._add(0, file_version="brain.Event:2")
        with contextlib.suppress(StorageError):  # what finds no room is kept
            self._add(first_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._add(step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]))

    def gif(self, step: int, tag: str, frames: np.ndarray) -> None:
        """frames [T, H, W, 3] uint8."""
        height, width = frames.shape[1:3]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encode_gif(frames))
        self._add(step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def close(self) -> None:
        """Write what was kept, if the disk takes it now."""
        with contextlib.suppress(StorageError):
            self._file.settle()

    def _add(self, step: int, **content: Any) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), step=step, **content).SerializeToString())
        self._file.append(record.getvalue())


def event_file(logdir: Path) -> Path:
    """A new name after all that are there: TensorBoard reads them in the order of the seconds in their names, whatever the clock did since."""
    stamps = [int(path.name.split(".")[3]) for path in logdir.glob("events.out.tfevents.[0-9]*.*")]
    stamp = max([int(time.time()), *(last + 1 for last in stamps)])
    return logdir / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}"


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
        raise StorageError(f"{path.parent}: cannot be made ({error.strerror}); free some space or choose another directory") from error
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
        command = (imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, *target, f"file:/proc/self/fd/{file.fileno()}")
        done = subprocess.run(command, input=frames.tobytes(), capture_output=True, pass_fds=(file.fileno(),))
        if done.returncode:
            raise StorageError(f"a video of {len(frames)} frames cannot be encoded ({done.stderr.decode(errors='replace').strip()[-100:]})")
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


class Progress:
    """A bar with the time left on a terminal; a plain line now and then when the output goes to a file."""

    def __init__(self, name: str, step: int, total: int):
        self._name, self._first, self._total = name, step, total
        self._bar = tqdm(total=total, initial=step, desc=name, unit="update", disable=not sys.stderr.isatty())
        self._start = self._printed = time.monotonic()

    def update(self, step: int, note: str) -> None:
        """step: updates done; note: a few figures."""
        if not self._bar.disable:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(step - self._bar.n)
        elif time.monotonic() - self._printed > PRINT_SECONDS or step == self._total:
            self._printed = time.monotonic()
            rate = (step - self._first) / max(self._printed - self._start, 1e-9)
            left = (self._total - step) / rate if rate else 0.0
            print(f"{self._name} {step}/{self._total}, {rate:.2f} updates/s, {left / 60:.1f} min left, {note}", flush=True)

    def close(self) -> None:
        self._bar.close()


def last_progress(log: Path) -> str:
    """From the newest of the plain lines in a run's output where it is, how fast, and the time left; empty where there is none."""
    if not log.exists():
        return ""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        tail = file.read().decode(errors="replace")
    found = PROGRESS_LINE.findall(tail)
    return found[-1] if found else ""
