"""The run directory: records that are the truth (`*.jsonl`, `config.yaml`), and views of them (terminal, TensorBoard, videos).

`metrics.jsonl` is deterministic: one JSON object a line with `phase` and `step`, no clock. Wall-clock figures go to `timing.jsonl`.
"""

import contextlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tqdm import tqdm

from semopo_tf.errors import StorageError
from semopo_tf.files import FILES, locked, write_whole

VIDEO_FPS = 15
PRINT_SECONDS = 20.0
LOG_TAIL_BYTES = 4096
PROGRESS_LINE = re.compile(r"^\w+ \d+/\d+, \S+ updates/s, \S+ min left", re.MULTILINE)


@contextlib.contextmanager
def open_run(logdir: Path) -> Iterator[None]:
    """Make and lock a run directory for the time of the run.

    Raises:
      StorageError: when it cannot be written, before anything else is done.
      LockedError: when another process trains in it.
    """
    try:
        logdir.mkdir(parents=True, exist_ok=True)
        probe = logdir / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise StorageError(f"{logdir}: the run directory cannot be written ({error.strerror}); choose another --logdir") from error
    with locked(logdir / ".lock", wait=False, what=f"the run directory {logdir}"):
        yield


@contextlib.contextmanager
def steady_output() -> Iterator[None]:
    """Let a run outlive the reader of its output, or the disk that takes it: what can no longer be printed is dropped."""
    # Files opened later must not get the numbers of closed standard streams: TensorFlow writes its warnings to number 2.
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(spare)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and SteadyStream(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class SteadyStream:
    """A text stream that turns to /dev/null at the first error of its own."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._try(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        self._try(self._stream.flush, None)

    def _try(self, act: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return act()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            return otherwise


class Records:
    """An append-only JSON-lines file whose length is known, so that a resumed run can cut it back to its checkpoint."""

    def __init__(self, path: Path):
        self.path = path

    def drop_half_line(self) -> None:
        """Cut a last line that a killed writer left without its end."""
        if self.path.exists():
            self.cut(self.path.read_bytes().rfind(b"\n") + 1)

    def cut(self, size: int) -> None:
        """Drop everything after the first `size` bytes: rows of work that will be done again."""
        if self.path.exists():
            with open(self.path, "r+b") as file:
                file.truncate(size)

    def append(self, row: Mapping[str, Any]) -> None:
        """One row, on the disk before this returns.

        Raises:
          StorageError: when the disk refuses.
        """
        try:
            with open(self.path, "ab") as file:
                file.write((json.dumps(row, allow_nan=False) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written ({error.strerror}); free some space and run again") from error

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.exists() else 0


def read_records(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, none if there is no file; a half-written last line (a reader beside a running writer) is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


class TensorBoard:
    """Scalars and GIFs for TensorBoard, on one axis over both phases. A view: nothing reads it back.

    A start mark at `first_step` makes TensorBoard forget what an interrupted run wrote beyond its checkpoint.
    """

    def __init__(self, logdir: Path, first_step: int):
        self._writer = EventFileWriter(str(logdir))
        self._add(first_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._add(step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]))

    def gif(self, step: int, tag: str, frames: np.ndarray) -> None:
        """frames [T, H, W, 3] uint8."""
        height, width = frames.shape[1:3]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encode_gif(frames))
        self._add(step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, **content: Any) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step, **content))
        self._writer.flush()


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
    FILES.make_directory(path.parent)
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        imageio.imwrite(temporary, padded, plugin="FFMPEG", extension=".mp4", fps=VIDEO_FPS, macro_block_size=2, output_params=["-crf", "12"])
        write_whole(path, temporary.read_bytes())
    except OSError as error:
        raise StorageError(f"{path}: the video cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


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
        self._bar = tqdm(total=total, initial=step, desc=name, unit="update", disable=not (sys.stderr and sys.stderr.isatty()))
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
