"""What a shell, a job and settings for other programs do to a run: its limits count, its numbers stay the same."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import synthetic
import tensorflow as tf
import tiny
from clips import write_grey

from semopo_tf.data import hdf5_process
from semopo_tf.data.dataset import CACHE_NAME, open_dataset
from semopo_tf.engine import devices, xla
from semopo_tf.errors import (
    ConfigError,
    DataError,
    DeviceError,
    LockedError,
    StorageError,
    of_the_shell,
)
from semopo_tf.storage import limits, video
from semopo_tf.storage.child import Child
from semopo_tf.storage.limits import free_memory

ROOT = Path(__file__).parents[2]
MB = 1 << 20


def under(kind: str, limit: int, code: str) -> subprocess.CompletedProcess:
    """Run Python code in a process whose shell has a limit; root could raise it again, so nothing may try."""
    script = f"import resource; resource.setrlimit(resource.RLIMIT_{kind}, ({limit}, {limit}))\n{code}"
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)


# --- 10: settings for other programs ----------------------------------------------------------------------------------

NUMBERS = """
import sys; sys.path.insert(0, "tests")
import hashlib, numpy as np
from semopo_tf.errors import run_command

def main(argv):
    from semopo_tf.engine import xla
    lines = xla.prepare("cpu", "auto", "off")
    import tiny
    learner = tiny.learner("semopo")
    batch, key = tiny.batch(np.random.default_rng(1)), tiny.key()
    learner.stages[0].update(batch, key)
    values = [variable.numpy().tobytes() for variable in learner.variables().values()]
    values += [np.asarray(value).tobytes() for value in learner.validate(batch, key).values()]
    print(hashlib.sha256(b"".join(values)).hexdigest(), *lines, sep="|")

run_command(main)
"""
STRANGE = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "KERAS_BACKEND": "jax",
    "KERAS_MAX_EPOCHS": "many",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_SET_ONEDNN_FPMATH_MODE": "BF16",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "TF_DETERMINISTIC_OPS": "1",
    "TF_CLI_ARGS": "of Terraform",
    "PYTHONPATH": ":/nowhere::.",
    "PYTHONWARNINGS": "error",
    "PYTHONHASHSEED": "7",
}


def numbers(environment: dict) -> list[str]:
    started = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", NUMBERS], cwd=ROOT, env=started, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1].split("|")


@pytest.fixture(scope="module")
def usual():
    return numbers({})[0]


@pytest.mark.parametrize(
    "settings", ['{"floatx": "float64", "image_data_format": "channels_first", "epsilon": 0.1, "backend": "jax"}', "[1"]
)
def test_I10_settings_for_other_programs_change_no_number(usual, tmp_path, settings):
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text(settings)
    digest, *lines = numbers(STRANGE | {"HOME": str(tmp_path)})
    left_out = "ONEDNN_DEFAULT_FPMATH_MODE, ONEDNN_MAX_CPU_ISA, TF_DETERMINISTIC_OPS, TF_SET_ONEDNN_FPMATH_MODE"
    assert (digest, lines) == (usual, [f"warning: {left_out}: may change results; left out"])


def test_I10_what_a_notebook_has_told_keras_changes_no_layer_and_stays():
    def values():
        learner = tiny.learner("semopo")
        out = learner.validate(tiny.batch(np.random.default_rng(3)), tiny.key())
        return {name: value.numpy() for name, value in learner.variables().items()} | tiny.arrays(out)

    expected, own = values(), keras.config
    try:
        own.set_floatx("float64")
        own.set_image_data_format("channels_first")
        own.set_dtype_policy("mixed_float16")
        received = values()
        told = own.floatx(), own.image_data_format(), own.dtype_policy().name
        assert told == ("float64", "channels_first", "mixed_float16")
    finally:
        own.set_floatx("float32")
        own.set_image_data_format("channels_last")
        own.set_dtype_policy("float32")
    assert received.keys() == expected.keys()
    for name, value in expected.items():
        assert value.dtype == received[name].dtype and np.array_equal(value, received[name]), name


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("XLA_FLAGS", "--xla_cpu_enable_fast_math=true"),
        ("XLA_FLAGS", "--xla_dump_to=dump --nonsense"),
        ("XLA_FLAGS", "nonsense"),
        ("TF_XLA_FLAGS", "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit"),
    ],
)
def test_I10_flags_of_xla_that_change_results_or_end_the_process_are_refused_in_one_line(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=rf"^{variable}: expected flags .*, received .*; unset {variable}$"):
        xla.prepare("cpu", "auto", "off")


def test_I10_python_without_docstrings_is_refused_in_one_line():
    code = "from semopo_tf.errors import run_command\nfrom semopo_tf.engine import xla\n"
    code += "run_command(lambda argv: xla.prepare('cpu', 'auto', 'off'))"
    done = subprocess.run([sys.executable, "-OO", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("semopo_tf: configuration error (exit 2): PYTHONOPTIMIZE=2: expected at most 1")


@pytest.mark.parametrize(("name", "value"), [("ONEDNN_DEFAULT_FPMATH_MODE", "BF16"), ("TF_ENABLE_ONEDNN_OPTS", "0")])
def test_I10_what_tensorflow_has_read_already_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"^{name}={value}: .*; unset it and start Python again$"):
        xla.prepare("cpu", "auto", "off")


def test_I10_a_helper_does_not_get_what_only_a_notebook_has(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    helper = Child([sys.executable, "-c", "import os; print(sorted(os.environ))"], output=True)
    said = b""
    while piece := helper.read(1 << 16, 30):
        said += piece
    helper.close()
    assert b"MPLBACKEND" not in said and b"PYTHONWARNINGS" not in said and b"PYTHONPATH" in said


# --- 11: TensorFlow is awake ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "device"), [("auto", "/GPU:0"), ("gpu:1", "/GPU:1"), ("cpu", "/CPU:0")])
def test_I11_a_gpu_of_a_tensorflow_that_is_awake_is_used_under_its_own_number(monkeypatch, wanted, device):
    gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{index}", "GPU") for index in range(2)]

    def awake(*_):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config, "set_visible_devices", awake)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"device_name": "H200"})
    monkeypatch.setattr(devices, "gpu_memory", lambda index: None)
    assert devices.choose_device(wanted)[0] == device
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: gpus[:1])
    with pytest.raises(DeviceError, match=r"TensorFlow has started without /physical_device:GPU:1 .*; restart Python"):
        devices.choose_device("gpu:1")


# --- 12: memory -------------------------------------------------------------------------------------------------------


def system(root: Path, cgroup: str, mount: str, files: dict) -> Path:
    """The parts of /proc and /sys that say how much memory there is: 8 GB of the machine."""
    everything = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8388608 kB\n", "proc/self/cgroup": cgroup}
    everything |= {"proc/self/mountinfo": f"{mount}\n"} | files
    for name, text in everything.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_I12_the_limit_of_a_job_counts_in_cgroups_of_version_2(tmp_path):
    """The nearest folder has no limit, the one above leaves 3 - (2 - 0.5 of reclaimable caches) GB."""
    files = {
        "sys/fs/cgroup/job/memory.max": f"{3072 * MB}\n",
        "sys/fs/cgroup/job/memory.current": f"{2048 * MB}\n",
        "sys/fs/cgroup/job/memory.stat": f"anon 5\ninactive_file {512 * MB}\n",
        "sys/fs/cgroup/job/step/memory.max": "max\n",
        "sys/fs/cgroup/job/step/memory.current": "7\n",
    }
    root = system(tmp_path, "0::/job/step\n", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", files)
    assert limits.free_memory(root) == 1536 * MB


def test_I12_and_of_version_1_also_inside_a_container(tmp_path):
    """A container sees its own folder as the top, but reads the path of the host."""
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{1024 * MB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{1000 * MB}\n",
        "sys/fs/cgroup/memory/memory.stat": f"cache 1\ntotal_inactive_file {500 * MB}\n",
    }
    mount = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"
    root = system(tmp_path, "4:memory:/docker/abc\n0::/\n", mount, files)
    assert limits.free_memory(root) == 524 * MB
    (root / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("9223372036854771712\n")  # none
    assert limits.free_memory(root) == 8192 * MB


def test_I12_without_any_of_it_the_machine_counts_or_nothing_is_known(tmp_path):
    assert limits.free_memory(tmp_path) == 0
    assert limits.free_memory(system(tmp_path, "", "", {})) == 8192 * MB
    assert MB < free_memory() < 1 << 50


@pytest.mark.parametrize("kind", ["AS", "DATA"])
def test_I12_the_limit_of_the_shell_counts(kind):
    done = under(kind, 1000 * MB, "from semopo_tf.storage.limits import free_memory; print(free_memory())")
    assert 100 * MB < int(done.stdout) < 1000 * MB, done.stderr


def test_I12_a_real_cgroup_counts(tmp_path):
    folder = Path("/sys/fs/cgroup/memory", f"test-{os.getpid()}")
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(f"{600 * MB}")
    except OSError:
        pytest.skip("no cgroup can be made here")
    try:
        code = f"open({str(folder / 'cgroup.procs')!r}, 'w').write('0')\n"
        code += "from semopo_tf.storage.limits import free_memory\nprint(free_memory())"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert 300 * MB < int(done.stdout) <= 600 * MB, done.stderr
    finally:
        time.sleep(0.1)
        folder.rmdir()


# --- 9: limits of the shell below ours --------------------------------------------------------------------------------


def test_I09_a_helper_gets_the_smaller_of_both_limits():
    code = (
        "import resource, sys, time\nfrom semopo_tf.storage.child import Child\n"
        "child = Child([sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(9)'], output=True,"
        " limits={resource.RLIMIT_FSIZE: 1 << 20, resource.RLIMIT_CPU: 600})\n"
        "child.read(1, 30)\n"
        "print([resource.prlimit(child.process.pid, kind) for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU)])\n"
        "child.close()"
    )
    assert under("FSIZE", 1000, code).stdout.strip() == "[(1000, 1000), (600, 600)]"


def test_I09_a_video_that_the_decoder_has_no_memory_for_is_no_broken_video(tmp_path):
    write_grey(tmp_path / "a.mkv", range(9))
    code = (
        "from pathlib import Path\nfrom semopo_tf.storage import video\nfrom semopo_tf import errors\n"
        f"errors.run_command(lambda argv: print(len(list(video.read_frames(Path({str(tmp_path / 'a.mkv')!r}))))))"
    )
    assert under("AS", 1 << 40, code).stdout.strip() == "9"
    done = under("CPU", 500, code)  # less than ours, and enough
    assert done.stdout.strip() == "9", done.stderr
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(limits.resource, "getrlimit", lambda kind: (60 * MB, 60 * MB))
        with pytest.raises(DeviceError, match=r"a\.mkv: the decoder had less than it may need: ulimit -v .*; raise"):
            list(video.read_frames(tmp_path / "a.mkv"))


def test_I09_a_broken_video_stays_one_under_any_limit(tmp_path, monkeypatch):
    (tmp_path / "a.mkv").write_bytes(b"no video")
    monkeypatch.setattr(limits.resource, "getrlimit", lambda kind: (900 * MB, 900 * MB))
    with pytest.raises(DataError, match="Invalid data"):
        list(video.read_frames(tmp_path / "a.mkv"))


def test_I09_an_hdf5_file_is_not_blamed_for_the_limit_of_the_shell(tmp_path, monkeypatch):
    monkeypatch.setattr(limits.resource, "getrlimit", lambda kind: (50 * MB, 50 * MB))
    (tmp_path / "a.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(1000))
    monkeypatch.setattr(hdf5_process, "READER", [sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(DeviceError, match=r"a\.hdf5: .* ended with status 1 .*: ulimit -v .*; raise the limit$"):
        list(hdf5_process.read_in_child([tmp_path / "a.hdf5"], 0))


@pytest.mark.parametrize(
    ("kind", "limit", "act", "code", "line"),
    [
        ("NOFILE", 20, "[open('/dev/null') for _ in range(99)]", 7, "/dev/null: expected a higher limit on open files"),
        ("NOFILE", 9, "[Child(['true'], output=True) for _ in range(99)]", 7, "received ulimit -n 9; raise it"),
        ("FSIZE", 9, "write_whole(Path(OUT), bytes(99))", 7, "on the size of files"),
        ("AS", 900 * MB, "__import__('tensorflow')", 9, "received ulimit -v 921600; raise it and run again"),
    ],
)
def test_I09_a_limit_of_the_shell_is_one_line_that_names_it(tmp_path, kind, limit, act, code, line):
    script = (
        "import sys\nfrom pathlib import Path\nfrom semopo_tf.errors import run_command\n"
        "from semopo_tf.storage.child import Child\nfrom semopo_tf.storage.files import write_whole\n"
        f"keep = []\nrun_command(lambda argv: keep.append({act.replace('OUT', repr(str(tmp_path / 'out')))}))"
    )
    done = under(kind, limit, script)
    (said,) = [text for text in done.stderr.splitlines() if text.startswith("semopo_tf:")]
    assert (done.returncode, line in said, "Traceback" in done.stderr) == (code, True, False), done.stderr


def test_I09_an_episode_is_not_called_damaged_where_too_many_files_are_open(tmp_path):
    """The reader's own error is about the file; the command's line is about the limit."""
    data = synthetic.dataset(tmp_path / "data", episodes=1)
    code = (
        f"from semopo_tf.errors import run_command\nfrom semopo_tf.data.episodes import read_episode\n"
        f"from pathlib import Path\n(file,) = Path({str(data)!r}).glob('*.npz')\n"
        "held = []\ndef fill():\n  try:\n    while True: held.append(open('/dev/null'))\n  except OSError: pass\n"
        "fill()\nrun_command(lambda argv: read_episode(file))"
    )
    done = under("NOFILE", 40, code)
    assert done.returncode == 7, done.stderr
    assert "expected a higher limit on open files, received ulimit -n 40" in done.stderr


def test_I09_a_taken_lock_and_a_full_disk_are_no_limits_of_the_shell():
    taken, full = LockedError("in use"), StorageError("full")
    taken.__cause__, full.__cause__ = (
        BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
        OSError(errno.ENOSPC, ""),
    )
    assert of_the_shell(taken) is None and of_the_shell(full) is None


# --- 13: a disk that holds the cache once -----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this process may not mount")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_I13_a_disk_that_holds_the_cache_once_is_enough_also_to_make_it_again(tmp_path, small_disk):
    """Four episodes take 0.96 MB, eight 1.9 MB: with the cache of before they would not fit into 3 MB twice."""
    data = synthetic.dataset(tmp_path / "data", episodes=7)
    cache = small_disk / "cache"
    mapped = open_dataset(data, cache)
    before = np.array(mapped.frames)
    (small_disk / f".tmp-1-{cache.name}").mkdir()  # a builder was killed
    (small_disk / f".tmp-1-{cache.name}" / "frames.npy").write_bytes(bytes(MB))
    del mapped
    synthetic.dataset(data, episodes=8)
    again = open_dataset(data, cache)
    assert len(again.frames) == 160 and np.array_equal(again.frames[:140], before)
    assert sorted(path.name for path in small_disk.iterdir()) == ["cache", "cache.lock"]


def test_I13_a_full_disk_does_not_spoil_a_cache_that_is_good(tmp_path, monkeypatch):
    """Only the note of a file's new time finds no room."""
    data = synthetic.dataset(tmp_path / "data", episodes=2)
    expected = np.array(open_dataset(data).frames)
    os.utime(next(data.glob("*.npz")))
    full = StorageError("no space")
    monkeypatch.setattr("semopo_tf.data.dataset.write_whole", lambda *_: (_ for _ in ()).throw(full))
    assert np.array_equal(open_dataset(data).frames, expected)
    assert (data / CACHE_NAME / "manifest.json").is_file()


def test_I09_a_limit_that_is_a_little_too_low_for_tensorflow_is_refused_before_it_starts(tmp_path):
    """With 1.6 GB it turned for ever in its import, and heard no signal."""
    flags = synthetic.train_flags(synthetic.dataset(tmp_path / "data"), tmp_path / "run")
    done = under(
        "AS", 1_600_000 << 10, f"from semopo_tf import training, errors\nerrors.run_command(training.main, {flags})"
    )
    assert done.returncode == 9, done.stderr
    assert "at least 2500000 kB for TensorFlow, received ulimit -v 1600000; raise it and run again" in done.stderr
    assert not (tmp_path / "run" / "config.yaml").exists()
