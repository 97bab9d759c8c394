"""Memory that runs out and GPUs that are not there: one line with the numbers and what to change."""

import subprocess
import sys
from pathlib import Path

import pytest
import synthetic
import tensorflow as tf

import semopo_tf
from semopo_tf import training
from semopo_tf.engine import devices, loop
from semopo_tf.errors import DeviceError, StorageError, run_command

ROOT = Path(semopo_tf.__file__).parents[1]
RAISED = [
    tf.errors.ResourceExhaustedError(
        None,
        None,
        "OOM when allocating tensor with shape[800,64,64,96] and type float on /GPU:0 by allocator GPU_0_bfc",
    ),
    tf.errors.InternalError(
        None, None, "Failed to allocate: RESOURCE: Out of memory while trying to allocate 21474836480 bytes."
    ),
    tf.errors.UnknownError(
        None, None, "Failed to get convolution algorithm. This is probably because cuDNN failed to initialize"
    ),
    tf.errors.InternalError(
        None, None, "CUDNN_STATUS_INTERNAL_ERROR in external/local_xla/xla/stream_executor/cuda/cuda_dnn.cc"
    ),
    tf.errors.InternalError(None, None, "Blas xGEMM launch failed : a.shape=[1,800,1536], b.shape=[1,1536,400]"),
    tf.errors.InternalError(None, None, "failed to create cublas handle: CUBLAS_STATUS_NOT_INITIALIZED"),
    tf.errors.InternalError(
        None, None, "DNN library initialization failed. Look at the errors above for more details."
    ),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: error.message[:30])
def test_N06_memory_that_runs_out_is_one_line_whatever_it_is_called(error):
    with (
        pytest.raises(
            DeviceError,
            match=r"^/CPU:0: out of memory \(.*GB of main memory free now; lower --batch.size .*--remat 400",
        ) as caught,
        devices.using("/CPU:0"),
    ):
        raise error
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_N06_a_real_allocation_that_fails():
    with pytest.raises(DeviceError, match=r"main memory is exhausted|out of memory"), devices.using("/CPU:0"):
        tf.zeros([1 << 24, 1 << 24])


def test_a_compiled_program_that_finds_no_room_is_no_lack_of_memory(monkeypatch):
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_persistent_cache_directory=/home/me/.cache/semopo_tf/xla")
    fault = tf.errors.ResourceExhaustedError(None, None, "/home/me/.cache/semopo_tf/xla/a.pb: No space left on device")
    refusal = r"cannot be kept there .*; free some space, or set --xla_cache off$"
    with pytest.raises(StorageError, match=refusal), devices.using("/CPU:0"):
        raise fault


def test_N06_other_faults_stay_what_they_are():
    with pytest.raises(tf.errors.InvalidArgumentError), devices.using("/CPU:0"):
        raise tf.errors.InvalidArgumentError(None, None, "Incompatible shapes: [2,3] vs. [3,2]")


def test_N06_a_command_that_runs_out_of_main_memory_ends_with_9(capsys):
    def main(argv):
        raise MemoryError("Unable to allocate 7.28 TiB for an array with shape (1000000, 1000000)")

    with pytest.raises(SystemExit) as caught:
        run_command(main, [])
    assert caught.value.code == 9
    (line,) = capsys.readouterr().err.splitlines()
    assert "main memory is exhausted (Unable to allocate 7.28 TiB" in line


def test_N06_training_whose_device_is_full_ends_with_9_and_its_remedy(tmp_path, monkeypatch, capsys):
    def run(self, step, updates):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[800,64,64,96]")

    monkeypatch.setattr(loop.StageLoop, "run", run)
    flags = synthetic.train_flags(synthetic.dataset(tmp_path / "data"), tmp_path / "run")
    with pytest.raises(SystemExit) as caught:
        run_command(training.main, flags)
    assert caught.value.code == 9
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("semopo_tf:")]
    assert "lower --batch.size" in line and "shape[800,64,64,96]" in line


@pytest.mark.parametrize(
    ("driver", "visible", "reason"),
    [
        (False, None, "no NVIDIA driver is loaded"),
        (True, None, "too old for this TensorFlow"),
        (True, "", "CUDA_VISIBLE_DEVICES='' hides them"),
    ],
)
def test_N07_a_gpu_that_is_not_there_and_why(tmp_path, monkeypatch, driver, visible, reason):
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if driver:
        devices.DRIVER.touch()
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(DeviceError, match=rf"--device gpu: TensorFlow sees 0 GPUs: .*{reason}.*; or use --device cpu"):
        devices.choose_device("gpu")


def test_N07_the_command_with_no_visible_gpu(tmp_path):
    flags = synthetic.train_flags(synthetic.dataset(tmp_path / "data"), tmp_path / "run", "--device", "gpu")
    script = (
        "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''\nimport sys; from semopo_tf import training, errors; "
        "errors.run_command(training.main)"
    )
    done = subprocess.run([sys.executable, "-c", script, *flags], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 9
    assert "device error (exit 9): --device gpu: TensorFlow sees 0 GPUs" in done.stderr


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A program in the place of `nvidia-smi` that prints what it is told."""

    def tell(answer, *, status=0):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\nprintf '{answer}\\n'\nexit {status}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return tmp_path / "asked"

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tell


def test_N08_the_free_memory_of_a_gpu_is_said(driver, monkeypatch):
    asked = driver("1024, 81920")
    assert devices.gpu_memory(0) == (1 << 30, 80 << 30)
    assert devices.describe(devices.gpu_memory(0)) == "1.0 of 80.0 GB free"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    devices.gpu_memory(1)
    assert asked.read_text().startswith("-i 5 ")
    with pytest.raises(DeviceError, match=r"^/GPU:0: out of memory \(OOM when allocating\); 1\.0 of 80\.0 GB free now"):
        raise_on_a_gpu()


def raise_on_a_gpu():
    with devices.using("/GPU:0"):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")


@pytest.mark.parametrize(("answer", "status"), [("no devices were found", 0), ("", 9), ("1, 2, 3", 0)])
def test_N08_a_driver_that_does_not_say(driver, answer, status):
    driver(answer, status=status)
    assert devices.gpu_memory(0) is None


class Machine:
    """TensorFlow's answers on a machine with GPUs of the given names and compute capabilities."""

    def __init__(self, monkeypatch, *cards):
        self.visible, self.growing = None, []
        gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{index}", "GPU") for index in range(len(cards))]
        details = dict(zip(gpus, cards, strict=True))
        config = tf.config
        monkeypatch.setattr(config, "list_physical_devices", lambda kind: gpus)
        monkeypatch.setattr(config, "set_visible_devices", self.use)
        monkeypatch.setattr(config, "get_visible_devices", lambda kind: self.visible)
        monkeypatch.setattr(config.experimental, "set_memory_growth", lambda gpu, on: self.growing.append(gpu))
        facts = lambda gpu: dict(zip(("device_name", "compute_capability"), details[gpu], strict=True))  # noqa: E731
        monkeypatch.setattr(config.experimental, "get_device_details", facts)
        monkeypatch.setattr(devices, "gpu_memory", lambda index: (index << 30, 80 << 30))

    def use(self, gpus, kind):
        self.visible = gpus


H200, RTX_3090, RTX_5090 = ("NVIDIA H200", (9, 0)), ("GeForce RTX 3090", (8, 6)), ("GeForce RTX 5090", (12, 0))


def test_a_run_touches_no_gpu_but_its_own(monkeypatch):
    machine = Machine(monkeypatch, RTX_3090, H200)
    assert devices.choose_device("gpu:1") == ("/GPU:0", "NVIDIA H200, 1.0 of 80.0 GB free")
    assert [gpu.name for gpu in machine.visible] == ["/physical_device:GPU:1"] and machine.growing == machine.visible
    assert devices._seen("/GPU:0") == "1.0 of 80.0 GB free now, it grows on demand"  # of the machine's second card
    assert devices.choose_device("cpu")[0] == "/CPU:0" and machine.visible == []


def test_a_card_without_kernels_is_not_used_and_said(monkeypatch):
    machine = Machine(monkeypatch, RTX_5090)
    device, description = devices.choose_device("auto")
    assert device == "/CPU:0" and machine.visible == []
    assert "GeForce RTX 5090 cannot be used" in description and "no kernels for compute capability 12.0" in description
    with pytest.raises(DeviceError, match=r"^--device gpu: GeForce RTX 5090: .*; use --device cpu$"):
        devices.choose_device("gpu")
