"""SeMOPO for TensorFlow 2: separated model-based offline policy optimisation from pixels with moving distractors.

    policy = semopo_tf.load_policy("runs/walker")        # a trained run's policy, a `Policy`
    semopo_tf.register("my_task", make_my_environment)   # a task of your own, an `Environment`

The other names are the structures and protocols that these two speak, and the errors that they raise.
"""

import importlib as _importlib
import os as _os

# Before TensorFlow is imported by anybody: oneDNN's convolutions are several times faster on a CPU, and TensorFlow
# leaves them off on some processors. Warnings and errors of the C++ runtime stay visible.
_os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
_os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

__version__ = "0.1.0"

# Public name -> the module that defines it.
_HOME = {
    "load_policy": "run.trained",
    "register": "envs.tasks",
    **dict.fromkeys(("Batch", "Environment", "Episode", "Imagined", "Latent", "Learner"), "types"),
    **dict.fromkeys(("Observation", "Policy", "Stage"), "types"),
    **dict.fromkeys(("CheckpointError", "ConfigError", "DataError", "DeviceError", "LockedError"), "errors"),
    **dict.fromkeys(("NumericalError", "SemopoError", "SimulatorError", "StorageError", "SweepError"), "errors"),
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that `import semopo_tf` needs neither TensorFlow nor a simulator."""
    if name in _HOME:
        return getattr(_importlib.import_module(f"semopo_tf.{_HOME[name]}"), name)
    raise AttributeError(f"module 'semopo_tf' has no attribute {name!r}")
