"""Choosing a device, its memory, and what goes wrong with it: no GPU, or memory that runs out under many names."""

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.client import device_lib

from semopo_tf.engine import xla
from semopo_tf.errors import DeviceError, StorageError
from semopo_tf.storage.limits import free_memory, usable_cores

QUERY_SECONDS = 10
NO_KERNELS_FROM = 10  # major compute capability that TensorFlow 2.21 was built before
DRIVER = Path("/proc/driver/nvidia/version")
REMEDY = "lower --batch.size or --batch.length, or set --remat 400, --precision mixed_bfloat16 or --replay host"
# Messages of libraries that run out of memory; some report a fault of their own when they get no workspace.
OUT_OF_MEMORY = (
    "out of memory",
    "oom when allocating",
    "cudnn_status_internal_error",
    "cudnn_status_alloc_failed",
    "cudnn_status_not_initialized",
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",
    "gemm launch failed",
    "create cublas handle",
    "create cudnn handle",
    "get convolution algorithm",
    "dnn library initialization failed",
)


def choose_device(wanted: str) -> tuple[str, str]:
    """The TensorFlow device of `--device` and its description. GPU memory is set to grow on demand.

    Nothing of this process touches another GPU, so runs share a machine: one on each GPU, or several on one.

    Raises:
      DeviceError: for a GPU that does not exist or that TensorFlow has no kernels for, or another word.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if wanted == "cpu" or (wanted == "auto" and not gpus):
        _use([])
        return "/CPU:0", "CPU (no GPU is used)"
    index = int(wanted.partition(":")[2] or 0) if wanted != "auto" and wanted.partition(":")[2].isdigit() else 0
    if wanted not in ("auto", "gpu", f"gpu:{index}"):
        raise DeviceError(f"--device {wanted}: expected auto, cpu, gpu or gpu:N")
    if index >= len(gpus):
        reason = "" if gpus else f": {why_no_gpu()}"
        raise DeviceError(f"--device {wanted}: TensorFlow sees {len(gpus)} GPUs{reason}; or use --device cpu")
    details = tf.config.experimental.get_device_details(gpus[index])
    name = details.get("device_name", "GPU")
    if fault := without_kernels(details.get("compute_capability")):
        if wanted == "auto":
            _use([])
            return "/CPU:0", f"CPU, as {name} cannot be used: {fault}"
        raise DeviceError(f"--device {wanted}: {name}: {fault}; use --device cpu")
    number = _use(gpus[index : index + 1])
    memory = gpu_memory(index)
    return f"/GPU:{number}", f"{name}, {describe(memory)}" if memory else name


def threads() -> int:
    """Number of threads that share one operation. Sums over another number of them differ in the last digits."""
    chosen = tf.config.threading.get_intra_op_parallelism_threads()
    given = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    return chosen or (int(given) if given.isdigit() and int(given) else usable_cores())


def without_kernels(capability: tuple[int, int] | None) -> str:
    """Why TensorFlow cannot use a card of this compute capability; empty where it can.

    XLA aborts the whole process on such a card, so this is asked before anything runs there.
    """
    if not capability or capability[0] < NO_KERNELS_FROM:
        return ""
    return (
        f"TensorFlow {tf.__version__} has no kernels for compute capability {capability[0]}.{capability[1]} (RTX 50 "
        "and later)"
    )


def _use(gpus: list[Any]) -> int:
    """Let TensorFlow see these GPUs only and take their memory bit by bit; the number under which it knows the first.

    Raises:
      DeviceError: when TensorFlow has started, in a notebook for example, without this GPU.
    """
    try:
        tf.config.set_visible_devices(gpus, "GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError as error:  # it has started, and what it sees can no longer be changed
        visible = [gpu.name for gpu in tf.config.get_visible_devices("GPU")]
        if missing := [gpu.name for gpu in gpus if gpu.name not in visible]:
            raise DeviceError(
                f"--device: TensorFlow has started without {missing[0]} ({_short(error)}); restart Python, or choose "
                f"another GPU"
            ) from error
        return visible.index(gpus[0].name) if gpus else 0
    return 0


def why_no_gpu() -> str:
    """Why TensorFlow sees no GPU, as far as can be told from outside, and what to do."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={hidden!r} hides them; unset it"
    if not DRIVER.exists():
        return "no NVIDIA driver is loaded on this machine"
    if not tf.test.is_built_with_cuda():
        return "this TensorFlow is built without CUDA; run pip install 'tensorflow[and-cuda]'"
    return (
        "an NVIDIA driver is loaded, but it is too old for this TensorFlow or the CUDA libraries are missing; "
        "run pip install 'tensorflow[and-cuda]' or update the driver"
    )


@contextlib.contextmanager
def using(device: str) -> Iterator[None]:
    """A context that creates and runs everything on a device.

    Raises:
      DeviceError: when its memory, or the host's, is exhausted; with free memory and what to lower.
      StorageError: when a compiled program finds no room on the disk.
    """
    try:
        with tf.device(device):
            yield
    except MemoryError as error:
        raise DeviceError(
            f"main memory is exhausted ({_short(error)}); {_gigabytes(free_memory())} free now; {REMEDY}"
        ) from error
    except tf.errors.OpError as error:
        programs = xla.current_programs()
        if programs and f"{programs.directory}" in f"{error}":
            denied = isinstance(error, tf.errors.PermissionDeniedError)
            helps = "make it writable for you" if denied else "free some space"
            raise StorageError(
                f"{programs.directory}: a compiled program cannot be kept there ({_short(error)}); {helps}, or set "
                "--xla_cache off"
            ) from error
        exhausted = isinstance(error, tf.errors.ResourceExhaustedError)
        if not exhausted and not any(words in f"{error}".lower() for words in OUT_OF_MEMORY):
            raise
        raise DeviceError(f"{device}: out of memory ({_short(error)}); {_seen(device)}; {REMEDY}") from error


def _short(error: Exception) -> str:
    return " ".join(f"{error}".split())[:100] or type(error).__name__


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.1f} GB"


def _physical(device: str) -> int:
    """Number of a TensorFlow GPU among all that the driver shows to this process."""
    number, visible = int(device.rpartition(":")[2]), tf.config.get_visible_devices("GPU")
    return int(visible[number].name.rpartition(":")[2]) if number < len(visible) else number


def _seen(device: str) -> str:
    """Free memory now, in words."""
    if "GPU" not in device:
        return f"{_gigabytes(free_memory())} of main memory free now"
    memory = gpu_memory(_physical(device))
    return f"{describe(memory)} now, it grows on demand" if memory else "its free memory is unknown"


def device_memory(device: str) -> int:
    """Bytes that training may use: all of a GPU's memory, or the host's free memory; 0 where unknown."""
    if "GPU" not in device:
        return free_memory()
    gpu = {"allow_growth": True, "visible_device_list": f"{_physical(device)}"}
    options = tf.compat.v1.ConfigProto(gpu_options=tf.compat.v1.GPUOptions(**gpu))
    limits = {entry.name: entry.memory_limit for entry in device_lib.list_local_devices(options)}
    return limits.get(f"/device:{device.strip('/')}", 0)


def gpu_memory(index: int) -> tuple[int, int] | None:
    """(free, total) bytes of a GPU according to `nvidia-smi`; None where it does not answer."""
    command = shutil.which("nvidia-smi")
    if not command:
        return None
    visible = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
    chosen = visible[index] if index < len(visible) else f"{index}"
    query = [command, "-i", chosen, "--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=QUERY_SECONDS, check=True).stdout
        free, total = (int(number) << 20 for number in answer.split(","))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return free, total


def describe(memory: tuple[int, int]) -> str:
    """(free, total) bytes in words."""
    return f"{memory[0] / 2**30:.1f} of {_gigabytes(memory[1])} free"


def peak_memory(device: str) -> int:
    """Peak of this process, in bytes: of a GPU's memory, or of the host's."""
    if "GPU" in device:
        return tf.config.experimental.get_memory_info(device.strip("/"))["peak"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def record_profile(directory: Path, work: Callable[[], Any]) -> None:
    """Run `work` under TensorFlow's profiler and write the profile to a directory, for TensorBoard's profile plugin."""
    tf.profiler.experimental.start(str(directory))
    try:
        work()
    finally:
        tf.profiler.experimental.stop()
