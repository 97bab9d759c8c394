"""XLA's settings for this process: what it times on a GPU, and where it keeps compiled programs.

They are environment variables that TensorFlow reads once, so this module imports no TensorFlow and `prepare` comes
before its import. Left to itself XLA compiles some thirty variants of every matrix product and times them: minutes at
the paper's sizes. `docs/gpu.md` has the evidence for each flag.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from semopo_tf.errors import ConfigError, DataError, DeviceError, StorageError, cut, user_path
from semopo_tf.storage.files import locked, write_whole
from semopo_tf.storage.limits import LEAST_ADDRESS_SPACE, lacking_address_space
from semopo_tf.storage.schema import read_object, unfit

TESTED = "2.21"  # the TensorFlow whose flags these are; another kills the process at a flag that it does not know
DRIVER = Path("/proc/driver/nvidia/version")
WINDOWS_DRIVER = Path("/dev/dxg")  # of the Windows Subsystem for Linux
# On every GPU. Values are XLA's words.
ALWAYS = {
    "xla_gpu_enable_triton_gemm": "false",  # cuBLAS needs no variants
    "xla_gpu_experimental_enable_fusion_autotuner": "false",  # nor do reductions and transposes
    "xla_gpu_force_conv_nhwc": "true",  # TensorFlow's layout, also below Hopper
    # Its pattern fails with cuDNN 9.3 to 9.23, and ELU is a kernel of its own anyway.
    "xla_disable_hlo_passes": "cudnn-fused-convolution-rewriter",
}
UNTIMED = {"xla_gpu_deterministic_ops": "true"}  # cuDNN's first choice, which is reproducible
TUNED = {"xla_gpu_autotune_level": "1"}  # convolutions and products are timed once
TUNED_CACHES = ("xla_gpu_experimental_autotuner_cache_dir", "xla_gpu_per_fusion_autotune_cache_dir")
CACHE_FLAG = "tf_xla_persistent_cache_directory"
# Beginnings of flags that may be set: those that change no result, and those of a GPU, which are its user's choice.
HARMLESS_XLA = ("xla_dump", "xla_gpu_", "xla_force_host_platform_device_count", *ALWAYS)
HARMLESS_TF_XLA = (CACHE_FLAG, "tf_xla_persistent_cache")
# Beginnings of variables of TensorFlow and its libraries that change results, and of those of TensorFlow that do not.
CHANGING = (
    *("ONEDNN_", "DNNL_", "TF_SET_ONEDNN", "TF_ENABLE_AUTO_MIXED", "TF_AUTO_MIXED", "TF_ENABLE_MKL", "TF_MKL"),
    *("TF_DISABLE_MKL", "TF_ONEDNN", "TF_DETERMINISTIC", "TF_CUDNN", "TF_ENABLE_CUBLAS", "TF_ENABLE_CUDNN"),
    *("TF_ENABLE_WINOGRAD", "TF_CONFIG", "TF_DISABLE_SEGMENT", "NVIDIA_TF32_OVERRIDE", "TF_CPU_ENABLE"),
)
ONEDNN = "TF_ENABLE_ONEDNN_OPTS"  # the package sets it, if it is imported first
HARMLESS = (
    *(ONEDNN, "TF_CPP_", "TF_XLA_FLAGS", "TF_FORCE_GPU_ALLOW_GROWTH", "TF_GPU_ALLOCATOR"),
    *("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "TF_GPU_THREAD", "TF_USE_LEGACY_KERAS", "TF_PROFILER"),
    *("TF_DUMP_GRAPH_PREFIX", "TF_CUDA_PATHS"),
    # Of Terraform, which has the same beginning.
    *("TF_CLI_", "TF_VAR_", "TF_LOG", "TF_DATA_DIR", "TF_INPUT", "TF_WORKSPACE", "TF_IN_AUTOMATION", "TF_REGISTRY"),
    *("TF_IGNORE", "TF_PLUGIN", "TF_TOKEN", "TF_STATE"),
)
LARGEST, LEAST_FREE = 4 << 30, 1 << 30  # bytes: of all cached programs; of the disk that holds them
INDEX, LOCK = "index.json", "index.lock"


def sees_gpu_driver() -> bool:
    """Whether an NVIDIA driver is loaded and not hidden, as far as can be told without TensorFlow."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return not hidden and (DRIVER.exists() or WINDOWS_DRIVER.exists())


def prepare(device: str, jit: str, cache: str, tuning: Path | None = None) -> list[str]:
    """Set XLA's environment variables; what the user has set stays.

    Args:
      device, jit: of the configuration. Nothing is set for a GPU where the device is `cpu` or no driver is loaded, and
        no program is kept where none is compiled.
      cache: directory for compiled programs, `auto` or `off`.
      tuning: directory that remembers which convolution and product was fastest; None: nothing is timed.

    Returns:
      Lines to print: what could not be set.

    Raises:
      ConfigError: as `leave_out_what_changes_results`.
      DeviceError: when `ulimit -v` leaves too little for TensorFlow.
    """
    if lacking := lacking_address_space():
        raise DeviceError(
            f"expected a limit on address space of at least {LEAST_ADDRESS_SPACE} kB for TensorFlow, received "
            f"ulimit -v {lacking}; raise it and run again"
        )
    try:
        installed = version("tensorflow")
    except PackageNotFoundError:
        installed = "unknown"
    lines = leave_out_what_changes_results()
    on_gpu = device != "cpu" and sees_gpu_driver()
    if not installed.startswith(f"{TESTED}."):
        return [*lines, f"warning: XLA's flags are those of TensorFlow {TESTED}, received {installed}; none is set"]
    if on_gpu:
        chosen = ALWAYS | (UNTIMED if tuning is None else TUNED | dict.fromkeys(TUNED_CACHES, str(tuning)))
        try:
            if tuning:
                tuning.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            lines.append(f"warning: {tuning}: cannot be made ({error.strerror}); what is timed is not remembered")
            chosen = ALWAYS | TUNED
        _add("XLA_FLAGS", chosen)
    compiles = jit != "off" and (on_gpu or jit != "auto")
    if cache == "off" or not compiles or "tensorflow" in sys.modules or current_programs():
        return lines
    directory = _default_cache() if cache == "auto" else user_path(cache)
    if directory is None:
        kept = "this account has no home, so that compiled programs are not kept; --xla_cache names a folder"
        return [*lines, f"warning: {kept}"]
    programs = Programs(directory, installed, on_gpu=on_gpu)
    if fault := programs.open():
        return [*lines, f"warning: {fault}; compiled programs are not kept"]
    _add("TF_XLA_FLAGS", {CACHE_FLAG: str(programs.directory)})
    return [*lines, *programs.warnings]


def leave_out_what_changes_results() -> list[str]:
    """Remove from this process's environment what would change the numbers of a run.

    Returns:
      Lines to print: what was removed.

    Raises:
      ConfigError: for a flag of XLA that changes results or that this XLA may not know, which would end the process;
        for a variable that TensorFlow has read already; and for Python without docstrings.
    """
    if sys.flags.optimize > 1:
        raise ConfigError(
            "PYTHONOPTIMIZE=2: expected at most 1, as TensorFlow's own packages read their docstrings; unset it"
        )
    for variable, known in (("XLA_FLAGS", HARMLESS_XLA), ("TF_XLA_FLAGS", HARMLESS_TF_XLA)):
        for word in os.environ.get(variable, "").split():
            if not word.removeprefix("--").startswith(known):
                raise ConfigError(
                    f"{variable}: expected flags that change no result on a CPU, received {cut(word)}; unset {variable}"
                )
    given = os.environ.get("TF_NUM_INTRAOP_THREADS")
    lines = [f"warning: TF_NUM_INTRAOP_THREADS={cut(given)}: the last digits depend on it"] if given else []
    names = sorted(name for name in os.environ if _changes_results(name))
    if "tensorflow" in sys.modules:
        wrong = [name for name in names if name.startswith(CHANGING)]
        if os.environ.get(ONEDNN, "1") not in ("1", "true", "True"):
            wrong.append(ONEDNN)
        if wrong:
            raise ConfigError(
                f"{wrong[0]}={cut(os.environ[wrong[0]])}: TensorFlow has started with this variable, which changes "
                "results; unset it and start Python again"
            )
        return lines
    for name in names:
        del os.environ[name]
    return lines + ([f"warning: {', '.join(names)}: may change results; left out"] if names else [])


def _changes_results(name: str) -> bool:
    return name.startswith(CHANGING) or (name.startswith("TF_") and not name.startswith(HARMLESS))


def _add(variable: str, flags: dict[str, str]) -> None:
    """Append flags to an environment variable, but for those that it names."""
    given = os.environ.get(variable, "")
    names = {word.removeprefix("--").partition("=")[0] for word in given.split()}
    new = [f"--{name}={value}" for name, value in flags.items() if name not in names]
    if new:
        os.environ[variable] = " ".join([*given.split(), *new])


def _default_cache() -> Path | None:
    """The folder of compiled programs in the user's cache; None for an account without a home."""
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "semopo_tf"
    try:
        return Path.home() / ".cache" / "semopo_tf"
    except RuntimeError:
        return None


def current_programs() -> "Programs | None":
    """The cache that `prepare` has set; None where there is none."""
    for word in os.environ.get("TF_XLA_FLAGS", "").split():
        name, _, value = word.removeprefix("--").partition("=")
        if name == CACHE_FLAG and value:
            return Programs(directory=Path(value))
    return None


class Programs:
    """A directory of compiled programs of one TensorFlow, one kind of card and one kind of processor.

    Its files are code that TensorFlow runs. So the directory is private, and a file counts only while it has the size
    and hash that the index holds: everything else, such as what a killed run has written by half, is removed before
    TensorFlow may read it.
    """

    def __init__(
        self, parent: Path | None = None, tensorflow: str = "", *, on_gpu: bool = False, directory: Path | None = None
    ):
        self.directory = directory or (parent or Path()) / f"xla-{tensorflow}-{_machine(on_gpu)}"
        self.warnings: list[str] = []

    def open(self) -> str:
        """Make the directory and remove what does not count; why it cannot be used, or nothing."""
        directory = self.directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = directory.stat()
            if status.st_uid != os.getuid() or status.st_mode & 0o077:
                return (
                    f"{directory}: expected a directory of this user alone (mode 700), as it holds code, received "
                    f"mode {status.st_mode & 0o777:o} of user {status.st_uid}; run chmod 700 on it, or --xla_cache off"
                )
            if (free := shutil.disk_usage(directory).free) < LEAST_FREE:
                return (
                    f"{directory}: expected at least {LEAST_FREE >> 20} MB of free space, received {free >> 20} MB; "
                    "free some, or set --xla_cache to a directory elsewhere"
                )
            with self._locked():
                self._remove_what_does_not_count()
        except OSError as error:
            return f"{directory}: cannot be written ({error.strerror}); set --xla_cache to another directory"
        except StorageError as error:
            return f"{error}; set --xla_cache to another directory"
        return ""

    def names(self) -> set[str]:
        """The programs that are there now."""
        with contextlib.suppress(OSError):
            return {path.name for path in self._files()}
        return set()

    def settle(self) -> None:
        """Write the programs that this process added into the index, the newest of them within the size limit."""
        with contextlib.suppress(OSError, StorageError), self._locked():
            known, entries = self._index(), dict[str, Entry]()
            for path in self._files():
                entries[path.name] = known.get(path.name) or Entry.of(path)
            self._write(entries)

    def _locked(self) -> contextlib.AbstractContextManager[str]:
        return locked(self.directory / LOCK, wait=True, what="the compiled programs")

    def _files(self) -> Iterator[Path]:
        yield from (path for path in sorted(self.directory.iterdir()) if path.name not in (INDEX, LOCK))

    def _index(self) -> dict[str, "Entry"]:
        path = self.directory / INDEX
        if not path.exists():
            return {}

        def wrong_with(read: Any) -> str:
            return unfit(read, dict) or unfit(list(read.values()), [{"size": int, "sha256": str}])

        try:
            entries = read_object(path, wrong_with, "delete it")
        except DataError as error:
            self.warnings.append(f"warning: {error}; its programs are compiled again")
            return {}
        return {name: Entry(**entry) for name, entry in entries.items()}

    def _write(self, entries: dict[str, "Entry"]) -> None:
        write_whole(
            self.directory / INDEX, json.dumps({name: entry._asdict() for name, entry in entries.items()}).encode()
        )

    def _remove_what_does_not_count(self) -> None:
        known, kept, total = self._index(), dict[str, Entry](), 0
        for path in sorted(self._files(), key=lambda path: path.stat().st_mtime, reverse=True):
            entry = known.get(path.name)
            sound = entry is not None and entry == Entry.of(path)
            if entry is not None and not sound:
                self.warnings.append(f"warning: {path}: differs from what was written; it is compiled again")
            total += path.stat().st_size
            if entry is None or not sound or total > LARGEST:
                path.unlink()
            else:
                kept[path.name] = entry
        self._write(kept)


class Entry(NamedTuple):
    """What the index knows of a program."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Entry":
        with path.open("rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _machine(on_gpu: bool) -> str:
    """The kinds of card and of processor: a program for another would not run."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        kept = sorted(line for line in lines if line.startswith(("model name", "flags", "Features")))
        processor = hashlib.sha256("\n".join(kept).encode()).hexdigest()[:8]
        return f"{_card() if on_gpu else 'cpu'}-{processor}"
    return "gpu" if on_gpu else "cpu"


def _card() -> str:
    """Name of the first card, in letters and digits; `gpu` where nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return "gpu"
    return "".join(letter for letter in names[0] if letter.isalnum()) if names else "gpu"
