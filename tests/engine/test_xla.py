"""XLA's flags on a machine with a driver and without, and the directory of compiled programs, in real processes."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import semopo_tf
from semopo_tf.engine import xla
from semopo_tf.engine.xla import Programs

ROOT = Path(semopo_tf.__file__).parents[1]
# Prepares, compiles a function with XLA on the CPU, and prints what `prepare` said and the programs kept.
SCRIPT = """
import sys
from pathlib import Path
from semopo_tf.engine import xla
xla.DRIVER = Path(sys.argv[1])
said = xla.prepare(sys.argv[2], "full", sys.argv[3])
import tensorflow as tf
from semopo_tf.engine.compiling import compiled
assert not tf.config.list_physical_devices("GPU")
value = compiled(lambda x: tf.reduce_sum(tf.sin(x) @ x), jit=True)(tf.ones([50, 50])).numpy()
programs = xla.current_programs()
if programs:
    programs.settle()
import json, os
print(json.dumps([said, float(value), sorted(programs.names()) if programs else None, os.environ.get("XLA_FLAGS", "")]))
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for name in ("XLA_FLAGS", "TF_XLA_FLAGS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(xla, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(xla, "WINDOWS_DRIVER", tmp_path / "dxg")


def start(driver, cache, device="auto", **environment):
    """What a process said, its value, its kept programs and XLA_FLAGS."""
    command = [sys.executable, "-c", SCRIPT, str(driver), device, str(cache)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def words(variable):
    return os.environ.get(variable, "").split()


def test_the_flags_are_those_that_this_tensorflow_knows(tmp_path):
    """An unknown flag would kill the process."""
    (tmp_path / "version").touch()
    said, _, _, flags = start(tmp_path / "version", "off")
    assert said == []
    assert set(flags.split()) == {f"--{name}={value}" for name, value in (xla.ALWAYS | xla.UNTIMED).items()}
    start(tmp_path / "version", "off", XLA_FLAGS=" ".join(f"--{name}=1" for name in xla.TUNED))
    caches = " ".join(f"--{name}={tmp_path}" for name in xla.TUNED_CACHES)
    start(tmp_path / "version", "off", XLA_FLAGS=caches)


def test_nothing_is_set_for_a_gpu_without_a_driver_or_with_device_cpu_or_hidden_cards(monkeypatch):
    xla.prepare("auto", "full", "off")
    assert not words("XLA_FLAGS")
    xla.DRIVER.touch()
    xla.prepare("cpu", "full", "off")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    xla.prepare("auto", "full", "off")
    assert not words("XLA_FLAGS")


def test_what_the_user_has_set_stays(monkeypatch):
    xla.DRIVER.touch()
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=false --xla_gpu_enable_triton_gemm")
    xla.prepare("gpu", "full", "off")
    assert words("XLA_FLAGS")[:2] == ["--xla_gpu_deterministic_ops=false", "--xla_gpu_enable_triton_gemm"]
    assert sum("deterministic_ops" in word or "triton_gemm" in word for word in words("XLA_FLAGS")) == 2
    before = words("XLA_FLAGS")
    xla.prepare("gpu", "full", "off")
    assert words("XLA_FLAGS") == before


def test_tuning_times_once_and_remembers_it_beside_the_run(tmp_path):
    xla.DRIVER.touch()
    xla.prepare("gpu", "full", "off", tmp_path / "run" / "tuning")
    assert "--xla_gpu_autotune_level=1" in words("XLA_FLAGS") and (tmp_path / "run" / "tuning").is_dir()
    assert sum(word.endswith("run/tuning") for word in words("XLA_FLAGS")) == 2
    assert not any("deterministic" in word for word in words("XLA_FLAGS"))


def test_another_tensorflow_gets_no_flag_and_a_warning(monkeypatch):
    xla.DRIVER.touch()
    monkeypatch.setattr(xla, "version", lambda package: "2.22.0")
    (line,) = xla.prepare("gpu", "full", "auto")
    assert line == "warning: XLA's flags are those of TensorFlow 2.21, received 2.22.0; none is set"
    assert not words("XLA_FLAGS") and not words("TF_XLA_FLAGS")


def test_a_second_start_compiles_nothing(tmp_path):
    said, value, first, _ = start("none", tmp_path)
    assert said == [] and len(first) == 1
    (directory,) = tmp_path.iterdir()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    written = (directory / first[0]).stat().st_mtime_ns
    assert start("none", tmp_path) == [[], value, first, ""]
    assert (directory / first[0]).stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", [b"", b"cut"])
def test_a_damaged_program_is_compiled_again_with_a_warning(tmp_path, damage):
    _, value, first, _ = start("none", tmp_path)
    (program,) = tmp_path.glob(f"*/{first[0]}")
    program.write_bytes(damage and program.read_bytes()[:-100])
    said, again, kept, _ = start("none", tmp_path)
    assert again == value and kept == first
    assert said == [f"warning: {program}: differs from what was written; it is compiled again"]


def opened(parent):
    programs = Programs(parent, "2.21.0")
    return programs.open(), programs


def test_what_is_not_in_the_index_is_removed_and_a_broken_index_said(tmp_path):
    fault, programs = opened(tmp_path)
    (programs.directory / "unknown").write_bytes(b"code of another")
    assert not fault and not opened(tmp_path)[0]
    assert programs.names() == set()
    (programs.directory / xla.INDEX).write_text("{")
    fault, programs = opened(tmp_path)
    assert not fault and "its programs are compiled again" in programs.warnings[0]


def test_a_directory_that_others_may_enter_or_that_cannot_be_used_is_said(tmp_path, monkeypatch):
    _, programs = opened(tmp_path)
    programs.directory.chmod(0o755)
    assert "mode 700), as it holds code, received mode 755" in opened(tmp_path)[0]
    programs.directory.chmod(0o700)
    monkeypatch.setattr(xla.shutil, "disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    assert "received 5 MB; free some" in opened(tmp_path)[0]
    (tmp_path / "file").touch()
    assert "set --xla_cache to another directory" in opened(tmp_path / "file")[0]


def test_the_oldest_programs_go_when_there_are_too_many(tmp_path, monkeypatch):
    _, programs = opened(tmp_path)
    for age in range(4):
        path = programs.directory / f"program{age}"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    programs.settle()
    monkeypatch.setattr(xla, "LARGEST", 250)
    opened(tmp_path)
    assert programs.names() == {"program0", "program1"}


def test_I21_an_account_without_a_home_keeps_no_programs_and_is_told(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(xla.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    (line,) = xla.prepare("cpu", "full", "auto")
    assert line == (
        "warning: this account has no home, so that compiled programs are not kept; --xla_cache names a folder"
    )
