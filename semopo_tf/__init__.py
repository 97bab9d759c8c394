"""SeMOPO for TensorFlow 2: separated model-based offline policy optimisation from pixels with moving distractors.

    policy = semopo_tf.load_policy("runs/walker")        # a trained run's policy, a `Policy`
    semopo_tf.register("my_task", make_my_environment)   # a task of your own, an `Environment`

The other names are the structures and protocols that these two speak, and the errors that they raise.
"""

import importlib as _importlib
import importlib.util as _importlib_util
import json as _json
import os as _os
import sys as _sys
from pathlib import Path as _Path

# Before TensorFlow is imported by anybody: oneDNN's convolutions are several times faster on a CPU, and TensorFlow
# leaves them off on some processors. A setting for another program must not change results, so these two are not asked.
# Warnings and errors of the C++ runtime stay visible.
if "tensorflow" not in _sys.modules:
    _os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
_os.environ["KERAS_BACKEND"] = "tensorflow"
_os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
for _name in ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH", "KERAS_NNX_ENABLED"):  # its import fails at some values
    _os.environ.pop(_name, None)
# Keras imports matplotlib, which ends at a backend that is not there, such as a notebook's in another environment.
_module = _os.environ.get("MPLBACKEND", "").partition("module://")[2]
if _module and not _importlib_util.find_spec(_module.partition(".")[0]):
    del _os.environ["MPLBACKEND"]


def _usual_keras() -> bool:
    """Whether a user's keras.json is missing or says what Keras does by itself. Keras ends at what it cannot read."""
    home = _Path(_os.environ.get("KERAS_HOME") or _os.environ.get("HOME", "/nowhere") + "/.keras")
    try:
        given = _json.loads((home / "keras.json").read_text())
        return {"floatx": "float32", "epsilon": 1e-07, "image_data_format": "channels_last"}.items() <= given.items()
    except FileNotFoundError:
        return True
    except (OSError, ValueError, AttributeError):
        return False


# The file is about the user's own networks. It is left out only where it differs, as Keras also keeps downloads there.
if "keras" not in _sys.modules and not _usual_keras():
    _os.environ["KERAS_HOME"] = _os.devnull

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
