"""How the arithmetic of a learner is carried out on this device: one value, made once, handed to every part."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

# Who computes: TensorFlow's kernels one by one, or a whole program compiled by XLA for a CPU or a GPU. Some parts have
# a form that is faster, or that compiles faster, for one of them; all forms agree to rounding.
Target = Literal["library", "xla_cpu", "xla_gpu"]


def as_it_is(function: Callable[..., Any], signature: Any = None) -> Callable[..., Any]:
    """Compiles nothing: the function itself, run eagerly."""
    return function


class Compute(NamedTuple):
    """Choices of the engine. Results agree to rounding whatever is chosen."""

    precision: str = "float32"  # of matrix products and convolutions: float32, mixed_bfloat16 or mixed_float16
    target: Target = "library"
    remat: int = 0  # frames whose decoders are differentiated at a time; 0: all of them
    # (function, signature) -> the function, compiled: single calls with convolutions in them, such as acting.
    compile: Callable[..., Callable[..., Any]] = as_it_is
    # The same for the convolution-free part of an update.
    compile_part: Callable[..., Callable[..., Any]] = as_it_is


def require_no_loss_scale(compute: Compute, name: str) -> None:
    """Raises ValueError for float16, which needs a loss scale."""
    if compute.precision == "mixed_float16":
        raise ValueError(
            f"--precision: expected float32 or mixed_bfloat16 for {name}, received mixed_float16; it has no loss scale"
        )
