"""A trial of a device: compiles what most often fails there, and names the remedy.

python -m semopo_tf.run.trial DEVICE prints one line; `doctor` runs it in a process of its own, as a broken driver or
compiler may abort.
"""

import sys
from typing import Any

import numpy as np

from semopo_tf.errors import DeviceError

# Words of an error -> what to do. The first that fits counts.
REMEDIES = {
    ("ptxas",): "XLA's assembler is missing: pip install nvidia-cuda-nvcc-cu12, or put CUDA's ptxas on PATH",
    ("could not find any supported configs", "convbiasactivation", "cudnn_status", "dnn library", "cudnn"): (
        "cuDNN does not work with this TensorFlow: pip install 'nvidia-cudnn-cu12>=9.24,<10'"
    ),
    ("driver version is insufficient", "driver is too old", "unsupported toolchain"): "update the NVIDIA driver",
    ("no kernel image", "invalid_ptx", "ptx version", "sm_1"): (
        "TensorFlow has no kernels for this card: train with --device cpu or on another card"
    ),
    ("out of memory", "resource_exhausted", "failed to allocate"): "end other programs on this card",
    ("libcu", "cannot dlopen", "cuda libraries"): "pip install 'tensorflow[and-cuda]'",
}
GENERAL = "pip install --force-reinstall 'semopo_tf[gpu]'"


def remedy(message: str) -> str:
    """What to do about an error of a device, by its words."""
    lower = message.lower()
    return next((advice for words, advice in REMEDIES.items() if any(word in lower for word in words)), GENERAL)


def attempt(wanted: str) -> str:
    """Compile and run, by XLA on a device: convolution, bias and ELU with all gradients, then a whole update.

    Args:
      wanted: as `--device`.

    Returns:
      One line about what works.

    Raises:
      DeviceError: when something fails or computes wrong numbers, with the remedy.
    """
    import tensorflow as tf

    from semopo_tf.engine.devices import choose_device

    device, description = choose_device(wanted)
    try:
        with tf.device(device):
            error = _difference(tf)
            if error > 1e-2:  # TF32 is off by 1e-3
                raise DeviceError(
                    f"{description}: a convolution by XLA is wrong by {error:.1g} of its size; train with --jit off"
                )
            _update(device)
    except tf.errors.OpError as error:
        reason = " ".join(str(error).split())[:200]
        raise DeviceError(f"{description}: XLA does not work there ({reason}); {remedy(str(error))}") from error
    return f"{description}: convolution, bias, ELU, their gradients and a model update compiled by XLA"


def _difference(tf: Any) -> float:
    """Largest relative difference between XLA and TensorFlow of a small network's gradients."""
    from semopo_tf.engine.compiling import compiled

    def gradients(image: Any, kernel: Any, bias: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch([image, kernel, bias])
            hidden = tf.nn.elu(tf.nn.bias_add(tf.nn.conv2d(image, kernel, 2, "VALID"), bias))
            loss = tf.reduce_sum(hidden**2)
        return tape.gradient(loss, [image, kernel, bias])

    rng, shapes = np.random.default_rng(1), ([8, 31, 31, 32], [4, 4, 32, 64], [64])
    arguments = [tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes]
    pairs = zip(compiled(gradients, jit=True)(*arguments), compiled(gradients, jit=False)(*arguments), strict=True)
    return max(float(tf.norm(one - other) / tf.norm(other)) for one, other in pairs)


def _update(device: str) -> None:
    """One model update of the debug size on made-up data."""
    import tensorflow as tf

    from semopo_tf import config as configuration
    from semopo_tf.engine.compiling import choose_jit
    from semopo_tf.engine.loop import StageLoop
    from semopo_tf.run.build import make_learner
    from semopo_tf.types import Batch

    config, jit = configuration.load(["--configs", "semopo", "walker_walk", "debug"]), choose_jit("full", device)
    learner = make_learner(config, image_size=64, action_size=6, jit=jit)
    shape = (config.batch.size, config.batch.length)
    batch = Batch(
        tf.zeros([*shape, 64, 64, 3], tf.uint8),
        tf.zeros([*shape, 6]),
        tf.zeros(shape),
        tf.broadcast_to(tf.range(shape[1]) == 0, shape),
        tf.zeros(shape, tf.bool),
    )
    StageLoop(learner.stages[0], lambda view, key: batch, seed=1, jit=True).run(0, 1)


if __name__ == "__main__":
    try:
        print(attempt(sys.argv[1]))
    except DeviceError as error:
        sys.exit(str(error))
