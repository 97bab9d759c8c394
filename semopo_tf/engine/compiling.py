"""What XLA compiles, and how. The only module that says `jit_compile`."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from semopo_tf.engine.xla import Programs
from semopo_tf.nets.compute import Target
from semopo_tf.types import Stage

ANNOUNCED_SECONDS = 10.0


class Jit(NamedTuple):
    """What XLA compiles. Results agree to rounding whatever is chosen."""

    pixels: bool  # chunks of updates that contain convolutions
    vectors: bool  # chunks of other updates
    parts: bool  # the convolution-free part of an update whose chunk is not compiled
    target: Target  # who computes convolutions and recurrences

    def of(self, stage: Stage) -> bool:
        """Whether the chunks of a stage are compiled. Updates on images contain convolutions, others do not."""
        return self.pixels if stage.images and (stage.stacks or not stage.prepare) else self.vectors

    def describe(self) -> str:
        """What XLA compiles, in words."""
        return "whole chunks" if self.pixels else "all but the convolutions" if self.parts else "nothing"


OFF = Jit(pixels=False, vectors=False, parts=False, target="library")


def choose_jit(wanted: str, device: str) -> Jit:
    """What `--jit` means on a device.

    Args:
      wanted: `full` compiles whole chunks, `partial` everything but convolutions, `off` nothing; `auto` is `full` on a
        GPU, otherwise `off`.
    """
    on_cpu = "GPU" not in device
    if wanted == "off" or (wanted == "auto" and on_cpu):
        return OFF
    if wanted == "partial":
        return Jit(pixels=False, vectors=True, parts=True, target="library")
    return Jit(pixels=True, vectors=True, parts=False, target="xla_cpu" if on_cpu else "xla_gpu")


@contextlib.contextmanager
def announced(what: str, programs: Programs | None, every: float = ANNOUNCED_SECONDS) -> Iterator[None]:
    """Say that XLA compiles, again and again while it does, and at the end whether the program was kept or new."""
    done, started = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(every):
            print(f"{what}: tracing and compiling, {time.monotonic() - started:.0f} s so far", flush=True)

    before = programs.names() if programs else set()
    print(f"{what}: tracing, then compiling by XLA", flush=True)
    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
    where = ""
    if programs:
        where = f", kept in {programs.directory}" if programs.names() - before else ", from the programs kept"
        programs.settle()
    print(f"{what}: first call after {time.monotonic() - started:.0f} s{where}", flush=True)


def compiled(
    function: Callable[..., Any], *, jit: bool, signature: Sequence[Any] | None = None
) -> tf.types.experimental.PolymorphicFunction:
    """A graph function, compiled by XLA on request.

    Args:
      signature: specs of the arguments; an unknown size in them may change from call to call without another trace.
    """
    return tf.function(function, autograph=False, jit_compile=jit, input_signature=signature)
