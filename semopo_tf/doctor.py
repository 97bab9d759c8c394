"""Check that this machine can train, render and decode, and name one fix for every problem.

python -m semopo_tf.doctor
"""

import contextlib
import importlib
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from semopo_tf.envs import tasks, videos
from semopo_tf.envs.rendering import INSTALL_GL, choose_backend
from semopo_tf.errors import (
    CommandParser,
    ConfigError,
    DataError,
    DeviceError,
    SemopoError,
    SimulatorError,
    StorageError,
    run_command,
)
from semopo_tf.run.trial import remedy
from semopo_tf.storage.limits import free_memory, usable_cores
from semopo_tf.storage.video import write_video

PYTHON_FROM, PYTHON_BELOW = (3, 11), (3, 14)
# Distribution name -> what to install when it is absent. TensorFlow's companions must move together with it.
REQUIRED = {
    "tensorflow": "tensorflow",
    "keras": "keras",
    "tensorflow-probability": "'tensorflow-probability[tf]'",
    "numpy": "numpy",
    "dm_control": "dm_control 'mujoco>=3.17,<4'",
    "mujoco": "'mujoco>=3.17,<4'",
    "imageio": "imageio",
    "imageio-ffmpeg": "imageio-ffmpeg",
}
OPTIONAL = ("gym", "gymnasium")
GAINS_BY_BFLOAT16 = (
    (8, 6),
    (8, 9),
)  # compute capabilities of RTX 30 and 40: convolutions take their time (docs/gpu.md)
LEAST_MEMORY, LEAST_DISK = 4.0, 2.0  # GiB
GIB = 2**30


def main(argv: list[str]) -> int:
    """Run every check and print a line for each; the exit code is that of the first problem, or 0."""
    CommandParser(prog="python -m semopo_tf.doctor", description="Check this machine.").parse_args(argv)
    code = 0
    for name, check in CHECKS.items():
        try:
            print(f"ok       {name}: {check()}", flush=True)
        except SemopoError as error:
            print(f"problem  {name}: {' '.join(str(error).split())}", flush=True)
            code = code or error.exit_code
    return code


def check_python() -> str:
    """The version of Python, if TensorFlow is published for it."""
    if not PYTHON_FROM <= sys.version_info[:2] < PYTHON_BELOW:
        raise ConfigError(
            f"expected Python 3.11 to 3.13, received {platform.python_version()}; make a virtual environment with "
            "python3.11"
        )
    return platform.python_version()


def check_packages() -> str:
    """Versions of the packages a run needs; refuses a missing one and a mujoco that dm_control does not know."""
    versions = {name: _version(name) for name in (*REQUIRED, *OPTIONAL)}
    missing = [name for name in REQUIRED if versions[name] is None]
    if missing:
        raise ConfigError(
            f"not installed: {', '.join(missing)}; run pip install {' '.join(REQUIRED[name] for name in missing)}"
        )
    mujoco = versions["mujoco"] or "0"
    if int(mujoco.split(".")[0]) >= 4:
        raise ConfigError(
            f"expected mujoco 3.17 or later but below 4, received {mujoco}; run pip install 'mujoco>=3.17,<4'"
        )
    return ", ".join(f"{name} {version or 'not installed (optional)'}" for name, version in versions.items())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tensorflow() -> Any:
    """TensorFlow, or one line for a broken installation."""
    try:
        return importlib.import_module("tensorflow")
    except ImportError as error:
        raise ConfigError(
            f"TensorFlow cannot be imported ({error}); run pip install --force-reinstall tensorflow"
        ) from error


def check_memory() -> str:
    """Free memory of the machine, where it says so."""
    free = free_memory() / GIB
    if free and free < LEAST_MEMORY:
        expected = f"expected at least {LEAST_MEMORY:.0f} GiB of free memory"
        raise DeviceError(f"{expected}, received {free:.1f}; end other programs")
    return f"{free:.1f} GiB free" if free else "unknown on this system"


def check_disk() -> str:
    """Free space of the working directory's device."""
    free, here = shutil.disk_usage(Path.cwd()).free / GIB, Path.cwd()
    if free < LEAST_DISK:
        expected = f"expected at least {LEAST_DISK:.0f} GiB of free space"
        raise StorageError(f"{here}: {expected}, received {free:.1f}; delete something or work elsewhere")
    return f"{free:.1f} GiB free in {here}"


def check_processors() -> str:
    return f"{usable_cores()} usable"


def check_devices() -> str:
    """The GPUs that TensorFlow sees, and where bfloat16 pays."""
    config = _tensorflow().config
    names = []
    for device in config.list_physical_devices("GPU"):
        details = config.experimental.get_device_details(device)
        pays = details.get("compute_capability") in GAINS_BY_BFLOAT16
        names.append(f"{device.name}{' (faster with --precision mixed_bfloat16)' if pays else ''}")
    return ", ".join(names) or "TensorFlow sees no GPU, training will run on the CPU"


def check_compiler() -> str:
    """Compile a small network with its gradients and a model update on every GPU, or on the CPU where there is none:
    a missing library, a broken XLA or a card without kernels shows here first.
    """
    gpus = len(_tensorflow().config.list_physical_devices("GPU"))
    return "; ".join(tried(device) for device in [f"gpu:{index}" for index in range(gpus)] or ["cpu"])


def tried(device: str) -> str:
    """What `run.trial` says of a device. It runs in a process of its own, which may abort."""
    done = subprocess.run([sys.executable, "-m", "semopo_tf.run.trial", device], capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout.strip().splitlines()[-1]
    lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
    if done.returncode == 1 and "; " in lines[-1]:
        raise DeviceError(lines[-1])
    raise DeviceError(f"{device}: XLA ended the process ({lines[-1][:200]}); {remedy(done.stderr)}")


def check_render() -> str:
    """Draw one image of the simulator."""
    with contextlib.closing(tasks.make("dmc_walker_walk")) as environment:
        image = environment.reset(seed=0).image
    if len(np.unique(image)) < 8:
        raise SimulatorError(f"the image of walker walk is empty; run {INSTALL_GL}")
    return f"walker walk at {image.shape[0]} x {image.shape[1]}, mean brightness {image.mean():.1f}"


def check_video() -> str:
    """Write a tiny video and read it back through the background loader's decoder."""
    brightness = np.arange(0, 240, 30, dtype=np.uint8)  # of the frames
    frames = len(brightness)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        try:
            write_video(path, np.broadcast_to(brightness[:, None, None, None], (frames, 64, 64, 3)))
            decoded = list(videos.decode(path, size=64, color="grey"))
        except ImportError as error:
            raise ConfigError("imageio-ffmpeg is not installed; run pip install imageio-ffmpeg") from error
        except (OSError, RuntimeError, DataError) as error:
            raise DataError(
                f"a video cannot be written and read ({error}); run pip install --force-reinstall imageio-ffmpeg"
            ) from error
    if len(decoded) != frames:
        raise DataError(
            f"expected {frames} frames of a test video, received {len(decoded)}; run pip install --force-reinstall "
            "imageio-ffmpeg"
        )
    return f"{frames} frames written and read"


CHECKS: dict[str, Callable[[], str]] = {
    "python": check_python,
    "packages": check_packages,
    "processors": check_processors,
    "memory": check_memory,
    "disk": check_disk,
    "rendering backend": choose_backend,
    "rendering": check_render,
    "video": check_video,
    "GPU": check_devices,
    "compiler": check_compiler,
}

if __name__ == "__main__":
    run_command(main)
