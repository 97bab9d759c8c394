"""What XLA compiles, and how. The only module that says `jit_compile`."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from semopo_tf.types import Stage


class Jit(NamedTuple):
    """What XLA compiles. The numbers agree to rounding whatever is chosen."""

    pixels: bool  # chunks of updates with convolutions in them
    vectors: bool  # chunks of updates without
    parts: bool  # the recurrent part of a chunk that is not compiled as a whole
    products: bool  # convolutions as matrix products: XLA's own are slow inside a loop on a CPU

    def of(self, stage: Stage) -> bool:
        """Whether the chunks of a stage are compiled: those with convolutions have images."""
        return self.pixels if stage.images and not stage.prepare else self.vectors

    def describe(self) -> str:
        """For the first lines of a run."""
        return "whole chunks" if self.pixels else "all but the convolutions" if self.parts else "nothing"


OFF = Jit(pixels=False, vectors=False, parts=False, products=False)


def choose_jit(wanted: str, device: str) -> Jit:
    """What `--jit` means on a device: `full` compiles every chunk, `partial` all but the convolutions; `auto` is full
    on a GPU, else off.
    """
    on_cpu = "GPU" not in device
    if wanted == "off" or (wanted == "auto" and on_cpu):
        return OFF
    if wanted == "partial":
        return Jit(pixels=False, vectors=True, parts=True, products=False)
    return Jit(pixels=True, vectors=True, parts=False, products=on_cpu)


def compiled(
    function: Callable, *, jit: bool, signature: Sequence | None = None
) -> tf.types.experimental.PolymorphicFunction:
    """A graph function, XLA-compiled on request; for acting, reports and other single calls.

    Args:
      signature: of the arguments, where a size may change from call to call without another trace.
    """
    return tf.function(function, autograph=False, jit_compile=jit, input_signature=signature)
