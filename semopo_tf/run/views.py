"""Views of a run, which nothing reads back: TensorBoard and the progress line."""

import contextlib
import io
import os
import re
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

from semopo_tf.errors import StorageError
from semopo_tf.storage.files import FILES, Files, Growing
from semopo_tf.storage.video import encode_gif

PRINT_SECONDS = 20.0
LOG_TAIL_BYTES = 4096
PROGRESS_LINE = re.compile(r"^\w+ \d+/\d+, \S+ updates/s, \S+ min left", re.MULTILINE)


class TensorBoard:
    """Scalars and GIFs for TensorBoard, on one axis over all stages.

    A start mark at `first_step` makes TensorBoard drop what an interrupted run wrote beyond its checkpoint. Every
    method raises `StorageError` when the disk refuses; the refused data are kept and written before the next.
    """

    def __init__(self, logdir: Path, first_step: int, files: Files = FILES):
        self._file = Growing(event_file(logdir), files)
        self._add(0, file_version="brain.Event:2")
        with contextlib.suppress(StorageError):  # the refused data are kept
            self._add(first_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._add(
            step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        )

    def gif(self, step: int, tag: str, frames: np.ndarray) -> None:
        """frames [T, H, W, 3] uint8."""
        height, width = frames.shape[1:3]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encode_gif(frames))
        self._add(step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def close(self) -> None:
        """Write refused data, if the disk accepts them now."""
        with contextlib.suppress(StorageError):
            self._file.settle()

    def _add(self, step: int, **content: Any) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), step=step, **content).SerializeToString())
        self._file.append(record.getvalue())


def event_file(logdir: Path) -> Path:
    """A file name that sorts after all existing ones, even if the clock went back: TensorBoard reads the files in the
    order of the seconds in their names.
    """
    stamps = [int(path.name.split(".")[3]) for path in logdir.glob("events.out.tfevents.[0-9]*.*")]
    stamp = max([int(time.time()), *(last + 1 for last in stamps)])
    return logdir / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}"


class Progress:
    """A progress bar on a terminal; a plain line every `PRINT_SECONDS` when the output goes to a file."""

    def __init__(self, name: str, step: int, total: int, unit: str = "update"):
        self._name, self._first, self._total, self._unit = name, step, total, unit
        self._bar = tqdm(
            total=total, initial=step, desc=name, unit=unit, disable=not (sys.stderr and sys.stderr.isatty())
        )
        self._start = self._printed = time.monotonic()

    def update(self, step: int, note: str) -> None:
        """Show `step` units as done, with a `note` of a few figures."""
        if not self._bar.disable:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(step - self._bar.n)
        elif time.monotonic() - self._printed > PRINT_SECONDS or step == self._total:
            self._printed = time.monotonic()
            rate = (step - self._first) / max(self._printed - self._start, 1e-9)
            left = (self._total - step) / rate if rate else 0.0
            print(
                f"{self._name} {step}/{self._total}, {rate:.2f} {self._unit}s/s, {left / 60:.1f} min left, {note}",
                flush=True,
            )

    def close(self) -> None:
        self._bar.close()


def last_progress(log: Path) -> str:
    """Position, speed and time left from the newest plain progress line in a run's output; empty if there is none."""
    if not log.exists():
        return ""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        tail = file.read().decode(errors="replace")
    lines = PROGRESS_LINE.findall(tail)
    return lines[-1] if lines else ""
