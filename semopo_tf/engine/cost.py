"""The memory that a learner needs on its device, and whether it fits. Knows no method and no configuration."""

from typing import NamedTuple

from semopo_tf.errors import DeviceError
from semopo_tf.types import Learner

GB = 2**30


class Memory(NamedTuple):
    """Bytes on the device during one stage."""

    stage: str
    weights: int  # all variables, optimiser state included; exact
    frames: int  # uint8 images of the dataset, exact; 0 where the host keeps them
    activations: int  # of one update, and the gradients of its weights; an estimate

    @property
    def total(self) -> int:
        return self.weights + self.frames + self.activations

    def describe(self) -> str:
        """One line for the start of a run."""
        weights, frames, activations = (f"{value / GB:.2f} GB" for value in self[1:])
        parts = f"weights {weights}, frames {frames}, activations {activations} (estimate)"
        return f"memory of the {self.stage} phase: {parts}"


def estimate(learner: Learner, *, batch: int, length: int, frames: int) -> Memory:
    """Memory of the stage that needs most.

    Args:
      batch, length: windows of a batch, records of a window.
      frames: bytes of the dataset's images.
    """
    weights = sum(variable.shape.num_elements() * variable.dtype.size for variable in learner.variables().values())
    activations = {stage.name: learner.cost(stage.name, batch, length).bytes for stage in learner.stages}
    stage = max(activations, key=lambda name: activations[name])
    return Memory(stage, weights, frames, activations[stage])


def place_frames(needed: Memory, wanted: str, available: int) -> Memory:
    """The memory once the frames have their place: on the device as they are, or 0 where they go to the host.

    Args:
      wanted: `device`, `host`, or `auto`: on the device if they fit.
      available: bytes of the device; 0 where unknown, which counts as enough.
    """
    fits = not available or needed.total <= available
    return needed if wanted == "device" or (wanted == "auto" and fits) else needed._replace(frames=0)


def require_memory(needed: Memory, available: int) -> None:
    """Raises DeviceError where the estimate exceeds `available` bytes, 0 being unknown."""
    if available and needed.total > available:
        raise DeviceError(
            f"device memory: expected at most {available / GB:.1f} GB, the estimate is {needed.total / GB:.1f} GB; "
            "lower --batch.size, or set --remat 400, --precision mixed_bfloat16 or --replay host"
        )
