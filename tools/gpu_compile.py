"""Compile the training programs for a GPU on a machine without one, and count what would run there.

    python tools/gpu_compile.py --configs semopo walker_walk --batch.size 64 --batch.length 50 --card h200 --json FILE

Shows rewriting, layouts, fusion, kernels and compile time; neither run time nor the algorithms that a library picks on
the card. The compiler is the XLA of JAX 0.9.0, of the same month as that of TensorFlow 2.21, with its CUDA plugin. The
wheels, 250 MB, are downloaded once into `--compiler`. JAX never meets TensorFlow: each stage has a process of its own.

One object a stage in the JSON:

    stage                    name of the stage
    compile_cpu_s            CPU seconds of XLA and of ptxas
    hlo_instructions, hlo_mb of the program as TensorFlow hands it to XLA, and of its text
    kernels                  launched by one update outside of the loops over time
    kernels_per_time_step    launched by one step of all these loops together, forward and backward
    convolutions             calls of the convolution library in one update
    misread_convolutions     weight gradients that XLA takes for dilated forward convolutions
    loops_without_trip_count loops over time whose length XLA does not know: the host waits for each of their steps
    temporary_gb             memory beside weights and frames
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CARDS = Path(__file__).parent / "cards"
WHEELS = ("jax==0.9.0", "jaxlib==0.9.0", "jax-cuda13-plugin==0.9.0", "jax-cuda13-pjrt==0.9.0", "nvidia-cuda-nvcc==13.*")
# Nothing can be timed without a card, so XLA takes its first choice; Triton is off as in training.
FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false --xla_gpu_force_conv_nhwc=true"
NO_KERNELS = ("get-tuple-element", "tuple", "parameter", "constant", "bitcast", "while", "conditional", "call")
COLUMNS = (
    *("stage", "compile_cpu_s", "hlo_instructions", "hlo_mb", "kernels", "kernels_per_time_step", "convolutions"),
    *("misread_convolutions", "loops_without_trip_count", "temporary_gb"),
)
# One instruction of HLO text: name, type, operation, the rest of the line.
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)")
CALLED = re.compile(r"\b(body|condition|true_computation|false_computation|to_apply)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", choices=sorted(path.stem for path in CARDS.glob("*.txtpb")), default="h200")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--compiler", type=Path, default=ROOT / ".gpu_compile", help="directory of the wheels")
    parser.add_argument("--keep", type=Path, help="directory for the texts of the programs, before and after XLA")
    parser.add_argument("--stages", nargs="+", help="only these")
    parser.add_argument("--lower", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--compile", type=Path, help=argparse.SUPPRESS)
    arguments, words = parser.parse_known_args()  # the rest is a training command line
    if arguments.lower:
        lower(words, arguments.lower, arguments.stages)
    elif arguments.compile:
        compile_text(arguments.compile, arguments.card, arguments.compiler)
    else:
        compile_all(arguments, words)


def compile_all(arguments: argparse.Namespace, words: list[str]) -> None:
    """Lower and compile every stage, print the table and write the JSON."""
    install(arguments.compiler)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        again = [sys.executable, __file__, "--compiler", str(arguments.compiler.absolute()), "--card", arguments.card]
        stages = ["--stages", *arguments.stages] if arguments.stages else []
        child([*again, "--lower", str(folder), *stages, *words], CUDA_VISIBLE_DEVICES="-1")
        rows = []
        for name in (folder / "stages").read_text().split():
            text = folder / f"{name}.txt"
            child([*again, "--compile", str(text)], XLA_FLAGS=FLAGS, JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL="2")
            rows.append({"stage": name, **measured(text)})
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    for column in COLUMNS:
        print(column.ljust(26), *(f"{row[column]:>10}" for row in rows))


def child(command: list[str], **environment: str) -> None:
    subprocess.run(command, env=os.environ | environment, check=True)


def install(compiler: Path) -> None:
    """Download and unpack the compiler's wheels into a directory that nothing else imports from."""
    if (compiler / "complete").exists():
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(compiler)]
    print(f"downloading the compiler into {compiler}", file=sys.stderr)
    subprocess.run([*pip, *WHEELS], check=True)
    (compiler / "complete").touch()


def lower(words: list[str], folder: Path, only: list[str] | None) -> None:
    """Write the program of every stage, as TensorFlow hands it to XLA on a GPU, to a text file."""
    sys.path.insert(0, str(ROOT))
    import numpy as np
    import tensorflow as tf

    from semopo_tf import bench
    from semopo_tf import config as configuration
    from semopo_tf.data.sampler import Pool, Sampler
    from semopo_tf.engine import compiling
    from semopo_tf.engine.loop import StageLoop
    from semopo_tf.run import build

    config = configuration.load(words)
    jit, dataset = compiling.choose_jit("full", "/GPU:0"), bench.random_dataset()
    choices = {"sampling": config.sampling, "policy_starts": config.policy_starts, "total_steps": config.steps.model}
    sampler = Sampler(dataset, np.ones(bench.EPISODES, bool), pool=Pool(**config.pool), **choices)
    learner = build.make_learner(config, image_size=bench.IMAGE_SIZE, action_size=bench.ACTION_SIZE, jit=jit)
    stages = [stage for stage in learner.stages if not only or stage.name in only]
    for stage in stages:
        table = tf.zeros([len(dataset.frames), config.rssm.hidden]) if stage.prepare else None

        def sample(view: str, key: Any, table: Any = table) -> Any:
            return sampler.sample(view, key, batch=config.batch.size, length=config.batch.length, table=table)

        loop = StageLoop(stage, sample, seed=1, jit=True)
        counts = (tf.constant(0, tf.int64), tf.constant(1, tf.int64))
        text = loop._chunk.experimental_get_compiler_ir(*counts, tf.constant(loop.sums))(stage="hlo")
        (folder / f"{stage.name}.txt").write_text(text)
    (folder / "stages").write_text("\n".join(stage.name for stage in stages))


def compile_text(path: Path, card: str, compiler: Path) -> None:
    """Compile one program for a card; writes `<name>.compiled.txt` and `<name>.json` beside it."""
    sys.path.insert(0, str(compiler))
    os.environ["PATH"] = os.pathsep.join([str(compiler / "nvidia" / "cu13" / "bin"), os.environ["PATH"]])
    import numpy as np
    from jax._src.interpreters import mlir
    from jax._src.lib import _jax
    from jaxlib import xla_client
    from jaxlib.mlir import ir

    plugin = compiler / "jax_plugins" / "xla_cuda13" / "xla_cuda_plugin.so"
    c_api = xla_client.load_pjrt_plugin_dynamically("cuda", str(plugin))
    xla_client.initialize_pjrt_plugin("cuda")
    target = {"target_config": (CARDS / f"{card}.txtpb").read_text(), "topology": "1x1x1"}
    devices = xla_client.make_c_api_device_topology(c_api, "", **target)._make_compile_only_devices()
    # The conversion below does not know `copy`, which changes a layout that the compiler chooses again anyway.
    text = re.sub(r"(= [a-z0-9]+\[[\d,]*\](?:\{[\d,]*\})?) copy\(", r"\1 reshape(", path.read_text())
    computation = xla_client.XlaComputation(_jax.hlo_module_from_text(text).as_serialized_hlo_module_proto())
    with mlir.make_ir_context():
        module = ir.Module.parse(_jax.mlir.xla_computation_to_mlir_module(computation))
    options = xla_client.CompileOptions()
    options.num_replicas = options.num_partitions = 1
    options.device_assignment = xla_client.DeviceAssignment.create(np.array([[0]]))
    before = cpu_seconds()
    executable = devices[0].client.compile(module, xla_client.DeviceList(tuple(devices)), options)
    seconds = cpu_seconds() - before
    path.with_suffix(".compiled.txt").write_text(executable.hlo_modules()[0].to_string())
    memory = executable.get_compiled_memory_stats().temp_size_in_bytes
    path.with_suffix(".json").write_text(json.dumps({"compile_cpu_s": round(seconds, 1), "temporary": memory}))


def cpu_seconds() -> float:
    """Of this process and its children."""
    return time.process_time() + sum(os.times()[2:4])


def measured(path: Path) -> dict[str, Any]:
    """The row of a compiled program but for its stage."""
    source, compiled = path.read_text(), path.with_suffix(".compiled.txt").read_text()
    figures = json.loads(path.with_suffix(".json").read_text())
    return {
        "compile_cpu_s": figures["compile_cpu_s"],
        "hlo_instructions": sum(1 for line in source.splitlines() if INSTRUCTION.match(line)),
        "hlo_mb": round(len(source) / 1e6, 1),
        **counted(compiled),
        "temporary_gb": round(figures["temporary"] / 2**30, 2),
    }


def counted(compiled: str) -> dict[str, int]:
    """Kernels, convolutions and loops of a compiled program, whose outermost loop runs over the updates."""
    computations = dict(parse(compiled))
    entry = next(name for name, (is_entry, _) in computations.items() if is_entry)
    update = next(name for kind, name in called(computations[entry][1]) if kind == "body")
    straight, loops = reach(computations, update)
    while loops and not straight:  # a loop that only holds a loop
        straight, loops = reach(computations, loops[0][1])
    inner, unknown, pending = list[str](), 0, list(loops)
    while pending:
        line, body, condition = pending.pop()
        unknown += "known_trip_count" not in line
        for name in (body, condition):
            lines, deeper = reach(computations, name)
            inner += lines
            pending += deeper
    calls = [line for line in straight + inner if "__cudnn$conv" in line]
    return {
        "kernels": kernels(straight),
        "kernels_per_time_step": kernels(inner),
        "convolutions": len(calls),
        "misread_convolutions": sum(1 for line in calls if "convForward" in line and "rhs_dilate" in line),
        "loops_without_trip_count": unknown,
    }


def parse(text: str) -> Iterator[tuple[str, tuple[bool, list[str]]]]:
    """(name, (is entry, lines)) of every computation."""
    name, lines, entry = "", list[str](), False
    for line in text.splitlines():
        if opening := re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{", line):
            entry, name, lines = bool(opening[1]), opening[2], []
        elif line.startswith("}") and name:
            yield name, (entry, lines)
            name = ""
        elif name and INSTRUCTION.match(line):
            lines.append(line)


def called(lines: list[str]) -> list[tuple[str, str]]:
    """(role, computation) of the loops and branches in these lines; fused computations and reducers are no calls."""
    calls = []
    for line in lines:
        operation = INSTRUCTION.match(line)[3]
        if operation in ("while", "conditional", "call"):
            calls += [(role, name) for role, name in CALLED.findall(line)]
            calls += [
                ("branch", name.strip().lstrip("%")) for found in BRANCHES.findall(line) for name in found.split(",")
            ]
    return calls


def reach(computations: dict[str, tuple[bool, list[str]]], name: str) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Lines of a computation and its branches, without those of its loops; and (line, body, condition) of each loop."""
    straight, loops, pending = list[str](), list[tuple[str, str, str]](), [name]
    while pending:
        for line in computations[pending.pop()][1]:
            operation = INSTRUCTION.match(line)[3]
            if operation == "while":
                roles = dict(CALLED.findall(line))
                loops.append((line, roles["body"], roles["condition"]))
            else:
                straight.append(line)
                pending += [callee for _, callee in called([line])]
    return straight, loops


def kernels(lines: list[str]) -> int:
    return sum(1 for line in lines if INSTRUCTION.match(line)[3] not in NO_KERNELS)


if __name__ == "__main__":
    main()
