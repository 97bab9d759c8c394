"""Measure on a GPU what cannot be known without one, in the order of its value: python tools/gpu_check.py --out FILE

Every step is a process of its own under a time limit and one line of JSON in FILE; a step that fails or takes too long
stops none of the others. `--device cpu --size debug` is the whole script on a machine without a GPU, in minutes.

    E0  card, driver, libraries; a float32 matrix product inside and outside of XLA: its rate, and TF32 or not
    E1  `bench.py`, nothing compiled before: first update, seconds an update
    E4  the same in mixed_bfloat16
    E5  the same with the released code's settings
    E2  E1 again, with the programs that it has compiled
    E3  E1 with --gpu_tune: what timing the candidates buys
    E6  E1 with --jit partial: convolutions by TensorFlow
    E7  the ten most expensive kernels of an update
    E8  E1 with loops as CUDA graphs
    E9  training on a dataset (--data) until its time is over; the run's directory stays in --work
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PRODUCT = {"gpu": 4096, "cpu": 512}  # edge of E0's matrices
BATCH = {"defaults": (64, 50), "debug": (2, 5)}
KERNELS = 10


class Step(NamedTuple):
    """What a step runs, and how its line of JSON is made of what that left behind."""

    command: list[str]
    read: Callable[[], dict[str, Any]]
    environment: dict[str, str] = {}  # noqa: RUF012  never changed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_check.jsonl"))
    parser.add_argument("--device", default="gpu", help="as in training; cpu for a dry run")
    parser.add_argument("--size", choices=sorted(BATCH), default="defaults")
    parser.add_argument("--steps", nargs="+", help="only these")
    parser.add_argument("--limit", type=float, default=150, help="seconds of a step")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--data", type=Path, help="dataset of E9")
    parser.add_argument("--minutes", type=float, default=10, help="of E9")
    parser.add_argument("--task", default="walker_walk", help="of E9, an overlay")
    parser.add_argument("--work", type=Path, help="directory for what the steps write (default: a temporary one)")
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probe:
        print(json.dumps(probe(arguments.device)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        work = (arguments.work or Path(scratch)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        for name, step in steps(arguments, work).items():
            if arguments.steps and name not in arguments.steps:
                continue
            limit = 60 * arguments.minutes if name == "E9" else arguments.limit
            line = {"step": name, **taken(step, limit, work / f"{name}.log", stop_is_end=name == "E9")}
            print(json.dumps(line), flush=True)
            with arguments.out.open("a") as out:
                out.write(json.dumps(line) + "\n")
    return 0


def steps(arguments: argparse.Namespace, work: Path) -> dict[str, Step]:
    """The steps in the order in which they run."""
    python, caches = [sys.executable], work / "xla"
    batch, length = BATCH[arguments.size]
    overlay = "" if arguments.size == "defaults" else f"+{arguments.size}"

    def bench(name: str, row: str, *flags: str, cache: str = "", **environment: str) -> Step:
        path = work / f"{name}.json"
        sizes = ["--batch", str(batch), "--length", str(length), "--updates", str(arguments.updates)]
        where = ["--device", arguments.device, "--xla_cache", str(caches / (cache or name)), "--json", str(path)]
        jit = [] if "--jit" in flags else ["--jit", "full"]
        command = ["bench.py", "--no_env", "--configs", row, *sizes, *where, *jit, *flags]
        return Step([*python, *command], lambda: json.loads(path.read_text())["rows"][0], environment)

    usual, profile = f"defaults{overlay}", work / "profile"
    result = {
        "E0": Step([*python, __file__, "--probe", "--device", arguments.device], lambda: last_json(work / "E0.log")),
        "E1": bench("E1", usual, cache="E1"),
        "E4": bench("E4", usual, "--precision", "mixed_bfloat16"),
        "E5": bench("E5", f"released{overlay}"),
        "E2": bench("E2", usual, cache="E1"),
        "E3": bench("E3", usual, "--gpu_tune", str(work / "tuning")),
        "E6": bench("E6", usual, "--jit", "partial"),
        "E7": bench("E7", usual, "--trace", str(profile), cache="E1")._replace(read=lambda: expensive(profile)),
        "E8": bench("E8", usual, XLA_FLAGS="--xla_gpu_enable_command_buffer=+WHILE"),
    }
    if arguments.data:
        run = work / "run"
        overlays = ["--configs", "semopo", arguments.task, *overlay.split("+")[1:]]
        places = ["--offline_dir", str(arguments.data), "--logdir", str(run), "--device", arguments.device]
        often = ["--jit", "full", "--video.every", "500", "--eval.every", "1000", "--valid_fraction", "0.05"]
        result["E9"] = Step([*python, "train.py", *overlays, *places, *often], lambda: learned(run))
    return result


def taken(step: Step, limit: float, log: Path, *, stop_is_end: bool) -> dict[str, Any]:
    """Run a step; what it measured, or why it did not."""
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=os.environ | step.environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(60 if stop_is_end else 5)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            code = 0 if stop_is_end else None
    about: dict[str, Any] = {"seconds": round(time.monotonic() - started, 1)}
    if code != 0:
        lines = log.read_text(errors="replace").strip().splitlines()
        return about | {"failed": "time limit" if code is None else f"exit code {code}", "log": lines[-5:]}
    try:
        return about | step.read()
    except Exception as error:  # whatever a broken result looks like, the next step runs
        return about | {"failed": f"{type(error).__name__}: {error}"}


def last_json(log: Path) -> dict[str, Any]:
    return json.loads([line for line in log.read_text().splitlines() if line.startswith("{")][-1])


def probe(wanted: str) -> dict[str, Any]:
    """E0. The error of a product in TF32 is about 1e-4 of its norm, in float32 below 1e-6."""
    from semopo_tf.engine import xla

    xla.prepare(wanted, "full", "off")
    import numpy as np
    import tensorflow as tf

    from semopo_tf.engine import devices

    device, description = devices.choose_device(wanted)
    size, facts = PRODUCT["gpu" if "GPU" in device else "cpu"], {"device": description, "tensorflow": tf.__version__}
    facts["build"] = {key: str(value) for key, value in tf.sysconfig.get_build_info().items()}
    facts["xla_flags"] = os.environ.get("XLA_FLAGS", "")
    for name, command in {"driver": ["nvidia-smi"], "ptxas": ["ptxas", "--version"]}.items():
        facts[name] = said(command)
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(size, size)).astype(np.float32) for _ in range(2))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    with tf.device(device):
        x, y = tf.constant(a), tf.constant(b)
        for name, compiled in {"xla": True, "outside": False}.items():
            product = tf.function(tf.matmul, jit_compile=compiled)
            error = np.linalg.norm(product(x, y).numpy() - exact) / np.linalg.norm(exact)
            facts |= {f"{name}_error": float(error), f"{name}_tflops": rate(product, x, y)}
    return facts


def rate(product: Callable[..., Any], x: Any, y: Any) -> float:
    """TFLOP/s of the best of five matrix products."""
    seconds = []
    for _ in range(5):
        before = time.perf_counter()
        product(x, y)[0, 0].numpy()
        seconds.append(time.perf_counter() - before)
    return 2 * x.shape[0] ** 3 / min(seconds) / 1e12


def said(command: Sequence[str]) -> str:
    """The first lines of what a program prints; empty where there is no such program."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "\n".join(done.stdout.splitlines()[:4])


def expensive(profile: Path) -> dict[str, Any]:
    """E7: total microseconds and calls of the kernels that cost most, of each profiled stage."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    result: dict[str, Any] = {}
    for path in sorted(profile.rglob("*.xplane.pb")):
        space, totals = xplane_pb2.XSpace.FromString(path.read_bytes()), dict[str, list[float]]()
        planes = [plane for plane in space.planes if "GPU" in plane.name] or list(space.planes)
        for plane in planes:
            for event in (event for line in plane.lines for event in line.events):
                total = totals.setdefault(plane.event_metadata[event.metadata_id].name, [0.0, 0])
                total[0] += event.duration_ps / 1e6
                total[1] += 1
        worst = sorted(totals.items(), key=lambda item: -item[1][0])[:KERNELS]
        result[path.relative_to(profile).parts[0]] = [[name[:120], round(us, 1), calls] for name, (us, calls) in worst]
    return {"kernels": result}


def learned(run: Path) -> dict[str, Any]:
    """E9: the last metrics of each phase, and all returns."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = {row["phase"]: row for row in rows}
    returns = [[row["phase"], row["step"], row["eval_return"]] for row in rows if "eval_return" in row]
    return {"last": last, "returns": returns}


if __name__ == "__main__":
    sys.exit(main())
