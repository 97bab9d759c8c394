"""SeMOPO for TensorFlow 2: separated model-based offline policy optimisation from pixels with moving distractors."""

import os as _os

# Before TensorFlow is imported by anybody: oneDNN's convolutions are several times faster on a CPU, and TensorFlow
# leaves them off on some processors. Warnings and errors of the C++ runtime stay visible.
_os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
_os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

__version__ = "0.1.0"

__all__ = ["__version__", "load_policy", "register"]


def __getattr__(name: str):
    """Import the two public functions on first use, so that `import semopo_tf` needs neither TensorFlow nor a
    simulator.
    """
    if name == "load_policy":
        from semopo_tf.evaluation import load_policy

        return load_policy
    if name == "register":
        from semopo_tf.envs.tasks import register

        return register
    raise AttributeError(f"module 'semopo_tf' has no attribute {name!r}")
