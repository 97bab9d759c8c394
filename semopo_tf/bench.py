"""`bench.py`: speed and memory of training on this machine, one row a configuration, as a table and as JSON; with
`--what frames` the speed of collecting data alone.

Every row runs on random frames in a fresh process, so that first update and peak memory are its own. The rate of matrix
products is measured in the same process before and after every update: the fraction of it that an update reaches can be
compared between machines and loads, seconds cannot.
"""

import contextlib
import json
import multiprocessing
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from semopo_tf import config as configuration
from semopo_tf.config import RENDERS
from semopo_tf.engine import xla
from semopo_tf.errors import CommandParser, ConfigError, SemopoError, SimulatorError
from semopo_tf.report.tables import aligned
from semopo_tf.run import collecting
from semopo_tf.storage.files import write_whole
from semopo_tf.storage.limits import usable_cores
from semopo_tf.types import Policy

METHOD_ROWS = ("bc", "drq_bc", "drq_cql", "infogating")  # at their own batch
ROWS = ("released", "defaults", "small", "lompo", *METHOD_ROWS)
EPISODES, RECORDS, IMAGE_SIZE, ACTION_SIZE = 8, 501, 64, 6
ENV_TASK, ENV_STEPS = "dmcdrv_walker_walk", 100
ENV_SETTINGS: dict[str, Any] = {"size": IMAGE_SIZE, "action_repeat": 2, "camera": -1, "background": "builtin:driving"}
SIDE_BY_SIDE = (1, 2, 4)  # environments of a measured evaluation
PROCESSES = (1, 2)  # of a measured collection
CHEAPER = RENDERS[1:]  # compared with the first
SEEN = 8  # levels of a colour; a smaller difference is hardly seen
WARM_UP = 5  # decisions, the first of which compiles the policy
COLUMNS = {
    # key of the JSON: (heading, decimals)
    "first_update_s": ("first update, s", 1),
    "trace_s": ("of it: tracing, s", 1),
    "first_call_s": ("of it: compiling and running, s", 1),
    "model_update_s": ("model update, s", 3),
    "policy_update_s": ("policy update, s", 3),
    "model_update_flops": ("GFLOP an update of the first phase", 0),
    "matmul_gflops": ("matmul, GFLOP/s", 0),
    "model_fraction_of_matmul": ("fraction of matmul", 2),
    "imagined_steps_per_s": ("imagined steps/s", 0),
    "env_steps_per_s": ("env steps/s", 1),
    **{f"{kind}_env_steps_per_s": (f"env steps/s with --render {kind}", 1) for kind in CHEAPER},
    **{f"{kind}_pixels_percent": (f"pixels that --render {kind} changes, %", 2) for kind in CHEAPER},
    **{f"{kind}_seen_pixels_percent": (f"by more than {SEEN} levels with {kind}, %", 2) for kind in CHEAPER},
    **{f"frames_per_s_{count}": (f"collected frames/s, processes: {count}", 1) for count in PROCESSES},
    **{
        f"{kind}_frames_per_s_{count}": (f"the same with --render {kind}, processes: {count}", 1)
        for kind in CHEAPER
        for count in PROCESSES
    },
    **{f"eval_steps_per_s_{count}": (f"evaluation steps/s, environments: {count}", 1) for count in SIDE_BY_SIDE},
    "model_peak_memory_mb": ("peak memory of the first phase, MB", 0),
    "peak_memory_mb": ("peak memory of all phases, MB", 0),
    "checkpoint_mb": ("checkpoint, MB", 0),
    "save_s": ("saving it, s", 2),
    "load_s": ("reading and verifying it, s", 2),
    "save_percent": ("saving, % of the first phase", 2),
}
# Figures of `--what frames`.
FRAMES = tuple(key for key in COLUMNS if key.startswith(("env_", "frames_", *(f"{kind}_" for kind in CHEAPER))))
SIMULATED = (*FRAMES, *(key for key in COLUMNS if key.startswith("eval_")))
# Not in results of earlier versions.
LATER = ("trace_s", "first_call_s", *(key for key in SIMULATED if key != "env_steps_per_s"))
# Printed besides the seconds of the JSON.
PER_SECOND = {"model_update_s": "model updates/s", "policy_update_s": "policy updates/s"}
HIGHER_IS_BETTER = ("model_fraction_of_matmul", *(key for key in COLUMNS if key.endswith("_per_s") or "_per_s_" in key))


def main(argv: list[str]) -> int:
    """Measure and print the table; on request write it, compare it, or record a profile.

    Raises:
      ConfigError: for a wrong flag, configuration or comparison file.
    """
    arguments = parse(argv)
    if arguments.compare:
        read_result(arguments.compare)  # a wrong file is refused now, not after minutes
    commands = {name: command(name, arguments) for name in arguments.configs}
    for words in commands.values():
        configuration.load(words)
    simulated: dict[str, float | None] = dict.fromkeys(SIMULATED)
    if not arguments.no_env:
        simulated |= measure_environment() | measure_collections()
    if arguments.what == "frames":
        row = dict.fromkeys(COLUMNS) | simulated | {"config": "frames", "batch": None, "length": None}
        return report(arguments, {"machine": machine("none"), "rows": [row]}, FRAMES)
    if not arguments.no_env:
        simulated |= in_child(measure_evaluation)
    rows: list[dict[str, Any]] = []
    for name, words in commands.items():
        print(f"{name}: measuring", flush=True)
        rows.append(in_child(measure, name, words, arguments.updates, arguments.trace, arguments.gpu_tune) | simulated)
    devices = [row.pop("device") for row in rows]
    return report(arguments, {"machine": machine(devices[0]), "rows": rows}, COLUMNS)


def report(arguments: Any, result: Mapping[str, Any], keys: Iterable[str]) -> int:
    """Print the figures `keys` of a result, write it and compare it as the arguments ask.

    Raises:
      ConfigError: for a wrong comparison file.
      StorageError: when the result cannot be written.
    """
    print(table(result["rows"], keys))
    if arguments.json:
        write_whole(arguments.json, json.dumps(result, indent=1).encode())
    if arguments.compare:
        print(comparison(read_result(arguments.compare), result))
    return 0


def parse(argv: list[str]) -> Any:
    """The command line.

    Raises:
      ConfigError: for a count below 1, or flags that leave nothing to measure.
    """
    parser = CommandParser(prog="bench.py", description=__doc__)
    about_what = "all: training, evaluation and collection; frames: collection alone, in two minutes"
    parser.add_argument("--what", default="all", choices=("all", "frames"), help=about_what)
    rows = "rows: a preset or size, or several joined by a plus, e.g. released+small"
    parser.add_argument("--configs", nargs="+", default=list(ROWS), help=rows)
    parser.add_argument("--batch", type=int, help="windows a batch (default: 16, small 8), or transitions (256)")
    parser.add_argument("--length", type=int, help="records a window (default: 50, small 16)")
    for flag in ("precision", "jit", "remat", "device"):
        parser.add_argument(f"--{flag}", help="as in training")
    parser.add_argument("--xla_cache", default="off", help="as in training, but off by default")
    parser.add_argument("--gpu_tune", type=Path, help="time convolutions and products, and remember them there")
    parser.add_argument("--updates", type=int, default=5, help="measured updates of each phase")
    parser.add_argument("--no_env", action="store_true", help="do not start the simulator")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--compare", type=Path, help="print the change against a file written by --json")
    parser.add_argument("--trace", help="directory for a profile of one update of each phase, for TensorBoard")
    arguments = parser.parse(argv, batch=1, length=1, updates=1)
    if arguments.no_env and arguments.what == "frames":
        raise ConfigError("--no_env: expected no such flag beside --what frames, received it; remove one of them")
    return arguments


def command(name: str, arguments: Any) -> list[str]:
    """The training flags of a row: walker_walk with the overlays that it names, of SeMOPO unless they name a method."""
    overlays = [part for part in name.split("+") if part != "defaults"]
    methods = set(configuration.read_yaml(configuration.CONFIG_FILE)["methods"]).intersection(overlays)
    flags = {key: getattr(arguments, key) for key in ("precision", "jit", "remat", "device", "xla_cache")}
    own_batch = {"small", "debug", *METHOD_ROWS}.intersection(overlays)
    flags["batch.size"] = arguments.batch or (None if own_batch else 16)
    flags["batch.length"] = arguments.length
    given = [word for key, value in flags.items() if value is not None for word in (f"--{key}", str(value))]
    return ["--configs", *([] if methods else ["semopo"]), "walker_walk", *overlays, *given]


def in_child(function: Callable[..., dict], *arguments: Any) -> dict:
    """function(*arguments, time of the call) in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (*arguments, time.time()))


def measure(
    name: str, words: list[str], updates: int, trace: str | None, tuning: Path | None, started: float
) -> dict[str, Any]:
    """One row, measured in a process that does nothing else.

    Args:
      started: start of the process, seconds since the epoch; the time to the first update counts from here.
    """
    config = configuration.load(words)
    xla.prepare(config.device, config.jit, config.xla_cache, tuning)
    import tensorflow as tf

    from semopo_tf.engine import compiling, devices
    from semopo_tf.engine.loop import StageLoop
    from semopo_tf.run import build

    device, description = devices.choose_device(config.device)
    jit = compiling.choose_jit(config.jit, device)
    sizes = {"batch": config.batch.size, "length": config.batch.length}
    row: dict[str, Any] = {"config": name, "device": description, **sizes}
    with tf.device(device):
        dataset, matmul_gflops = random_dataset(), yardstick("GPU" in device)
        sampler = build.make_sampler(config, dataset)
        counts = build.data_sizes(config, dataset)
        learner = build.make_learner(config, image_size=IMAGE_SIZE, action_size=ACTION_SIZE, **counts, jit=jit)
        for stage in learner.stages:
            table = stage.prepare(dataset.frames) if stage.prepare else None
            traced = time.time()
            source = sampler.source(stage.view, stage.stacks, **sizes, episode=stage.episode)
            sample = partial(sampled, source, table)
            loop = StageLoop(stage, sample, seed=1, jit=jit.of(stage))
            called = time.time()
            loop.run(0, 1)
            first = time.time() - started
            seconds, rates = timed_updates(loop, updates, matmul_gflops)
            row[f"{stage.name}_update_s"] = float(np.median(seconds))
            if stage is learner.stages[0]:
                flops = learner.cost(stage.name, **sizes).flops
                row |= {
                    "model_update_flops": flops,
                    "first_update_s": first,
                    "trace_s": called - traced,
                    "first_call_s": started + first - called,
                    "matmul_gflops": float(np.median(rates)),
                    "model_fraction_of_matmul": float(np.median(flops / seconds / rates / 1e9)),
                    "model_peak_memory_mb": devices.peak_memory(device) / 2**20,
                }
            if trace:
                devices.record_profile(Path(trace) / f"{name}-{stage.name}", partial(loop.run, updates + 1, 1))
    if build.reads(config, "actor_critic"):
        starts = sizes["batch"] * sizes["length"]
        row["imagined_steps_per_s"] = starts * config.imagination.horizon / row["policy_update_s"]
    row["peak_memory_mb"] = devices.peak_memory(device) / 2**20
    row |= measure_checkpoint({name: variable.numpy() for name, variable in learner.variables().items()})
    row["save_percent"] = 100 * row["save_s"] / (config.save_every * row[f"{learner.stages[0].name}_update_s"])
    if all(stage.stacks for stage in learner.stages):
        row["length"] = None
    return dict.fromkeys(COLUMNS) | row


def sampled(source: Any, table: Any, view: str, key: Any) -> Any:
    """A batch of a source, whose view is fixed."""
    return source.sample(key, table=table)


def timed_updates(loop: Any, updates: int, matmul_gflops: Callable[[], float]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each update after the first, and the mean of the rates of matrix products before and after it."""
    seconds, rates = [], [matmul_gflops()]
    for step in range(1, updates + 1):
        before = time.perf_counter()
        loop.run(step, 1)
        seconds.append(time.perf_counter() - before)
        rates.append(matmul_gflops())
    return np.array(seconds), np.convolve(rates, [0.5, 0.5], "valid")


def measure_checkpoint(tensors: Mapping[str, Any]) -> dict[str, float]:
    """Size of a checkpoint in MB, seconds to write it through to the disk, and to read and verify it."""
    from semopo_tf.run import checkpoints

    state = {"metrics_size": 0, "timing_size": 0, "sums": [], "count": 0}
    with tempfile.TemporaryDirectory(dir=".", prefix=".bench-") as place:
        times = [time.perf_counter()]
        path = checkpoints.save(Path(place), "model", 0, tensors, state)
        times.append(time.perf_counter())
        checkpoints.load(path)
        times.append(time.perf_counter())
        size = checkpoints.stored_bytes(path) / 2**20
    return {"checkpoint_mb": size, "save_s": times[1] - times[0], "load_s": times[2] - times[1]}


def random_dataset() -> Any:
    """A dataset of noise frames; speed and memory do not depend on what they show."""
    from semopo_tf.data.dataset import Dataset

    rng, records = np.random.default_rng(0), EPISODES * RECORDS
    returns = np.arange(EPISODES, dtype=np.float64)
    return Dataset(
        directory=Path("random frames"),
        names=[f"{episode}.npz" for episode in range(EPISODES)],
        frames=rng.integers(0, 256, (records, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8),
        action=rng.uniform(-1, 1, (records, ACTION_SIZE)).astype(np.float32),
        reward=rng.uniform(0, 1, records).astype(np.float32),
        is_terminal=np.zeros(records, bool),
        offset=np.arange(EPISODES) * RECORDS,
        length=np.full(EPISODES, RECORDS),
        returns=returns,
        native_returns=returns,
        manifest={},
    )


def yardstick(gpu: bool) -> Callable[[], float]:
    """A function that measures the rate of large float32 matrix products, GFLOP/s: the best of five."""
    import tensorflow as tf

    size = 8192 if gpu else 2048
    a = tf.fill([size, size], 0.5)
    product = tf.function(lambda a: tf.reduce_sum(a @ a), autograph=False)
    product(a).numpy()

    def seconds() -> float:
        before = time.perf_counter()
        product(a).numpy()
        return time.perf_counter() - before

    return lambda: 2 * size**3 / min(seconds() for _ in range(5)) / 1e9


def measure_environment() -> dict[str, float | None]:
    """Decisions per second of one environment with distractors for every `--render`, and the percentage of pixels in
    which its images differ from those in full; None where nothing can be drawn.
    """
    from semopo_tf.envs import tasks

    names = {render: f"{prefix(render)}env_steps_per_s" for render in RENDERS}
    figures: dict[str, float | None] = dict.fromkeys(names.values())
    drawn: dict[str, np.ndarray] = {}
    for render, name in names.items():
        images = []
        try:
            with contextlib.closing(tasks.make(ENV_TASK, **ENV_SETTINGS, render=render)) as environment:
                environment.reset(0)
                rng, before = np.random.default_rng(0), time.perf_counter()
                for _ in range(ENV_STEPS):
                    action = rng.uniform(-1, 1, environment.action_size).astype(np.float32)
                    images.append(environment.step(action).image)
                figures[name] = ENV_STEPS / (time.perf_counter() - before)
        except SemopoError as error:
            print(f"env steps/s: not measured ({error})")
            return figures
        drawn[render] = np.stack(images)
    for kind in CHEAPER:
        apart = np.abs(drawn["full"].astype(int) - drawn[kind]).max(-1)
        figures[f"{kind}_pixels_percent"] = 100 * float((apart > 0).mean())
        figures[f"{kind}_seen_pixels_percent"] = 100 * float((apart > SEEN).mean())
    return figures


def prefix(render: str) -> str:
    """What the names of the figures of a `--render` begin with."""
    return "" if render == "full" else f"{render}_"


def measure_collections() -> dict[str, float]:
    """Frames per second that `collect` writes for every `--render`, summed over its processes; nothing where nothing
    can be drawn.
    """
    figures = {}
    for render in RENDERS:
        for count in PROCESSES:
            try:
                figures[f"{prefix(render)}frames_per_s_{count}"] = measure_collection(count, render)
            except SemopoError as error:
                print(f"collected frames/s: not measured ({error})")
                return figures
    return figures


def measure_collection(processes: int, render: str) -> float:
    """Frames per second of `processes` processes that each play, check and write one episode, all at the same time.

    The start of processes and simulators is left out: it is the same for a thousand episodes.
    """
    context = multiprocessing.get_context("spawn")
    recipe = collecting.Recipe(ENV_TASK, "random", tuple((ENV_SETTINGS | {"render": render}).items()))
    with (
        tempfile.TemporaryDirectory(dir=".", prefix=".bench-") as out,
        context.Pool(processes, initializer=_begin_together, initargs=(context.Barrier(processes),)) as pool,
    ):
        jobs = [collecting.Job(recipe, number, collecting.episode_seed(1, number), out) for number in range(processes)]
        frames, started, ended = zip(*pool.map(collect_one, jobs, chunksize=1))
    return sum(frames) / (max(ended) - min(started))


_start: Any = None  # a barrier, in the processes of a measured collection


def _begin_together(barrier: Any) -> None:
    global _start
    _start = barrier


def collect_one(job: collecting.Job) -> tuple[int, float, float]:
    """Collect an episode as soon as all processes are ready to: its frames, start and end, seconds since the epoch.

    Raises:
      SemopoError: as `collecting.collect_episode`.
      SimulatorError: when another process is not ready.
    """
    try:
        collecting.warm_up(job.recipe)
    except SemopoError:
        _start.abort()
        raise
    try:
        _start.wait()
    except threading.BrokenBarrierError as error:
        raise SimulatorError("another process could not start its simulator; run python -m semopo_tf.doctor") from error
    started = time.time()
    written = collecting.collect_episode(job)
    return written.records, started, time.time()


class Enough(Exception):
    """Ends a measured evaluation."""


class Clocked:
    """A policy that records the time of every decision and ends the evaluation after `ENV_STEPS` of them."""

    def __init__(self, policy: Policy):
        self._policy, self.initial, self.times = policy, policy.initial, list[float]()

    def __call__(self, image: Any, state: Any, seeds: Any, step: int) -> Any:
        self.times.append(time.perf_counter())
        if step == ENV_STEPS:
            raise Enough
        return self._policy(image, state, seeds, step)


def measure_evaluation(_started: float) -> dict[str, float]:
    """Decisions per second of evaluations, summed over environments, with an untrained policy of size `small`."""
    from semopo_tf.engine import compiling, devices
    from semopo_tf.run import build, evaluate

    config = configuration.load(["--configs", "semopo", "walker_walk", "small"])
    device, _ = devices.choose_device(config.device)
    jit, figures = compiling.choose_jit(config.jit, device), {}
    policy = build.make_learner(config, image_size=IMAGE_SIZE, action_size=ACTION_SIZE, jit=jit).policy()
    for count in SIDE_BY_SIDE:
        clocked = Clocked(policy)
        try:
            next(evaluate.evaluate(clocked, ENV_TASK, ENV_SETTINGS, range(count), count))
        except Enough:
            passed = clocked.times[ENV_STEPS] - clocked.times[WARM_UP]
            figures[f"eval_steps_per_s_{count}"] = count * (ENV_STEPS - WARM_UP) / passed
        except SemopoError as error:
            print(f"evaluation steps/s: not measured ({error})")
    return figures


def machine(device: str) -> dict[str, Any]:
    """Device, processor and versions."""
    from importlib.metadata import version

    return {
        "device": device,
        "processor": processor(),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "tensorflow": version("tensorflow"),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", ""),
    }


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def table(rows: Sequence[Mapping[str, Any]], keys: Iterable[str] = tuple(COLUMNS)) -> str:
    """The rows as text, one line per quantity."""
    lines = [["", *map(label, rows)]]
    for key in keys:
        heading, decimals = COLUMNS[key]
        scale = 1e-9 if key == "model_update_flops" else 1
        lines.append([heading, *("-" if row[key] is None else f"{row[key] * scale:,.{decimals}f}" for row in rows)])
        if key in PER_SECOND:
            lines.append([PER_SECOND[key], *(f"{1 / row[key]:,.2f}" if row[key] else "-" for row in rows)])
    return aligned(lines)


def label(row: Mapping[str, Any]) -> str:
    sizes = " x ".join(str(size) for size in (row["batch"], row["length"]) if size)
    return f"{row['config']} {sizes}".strip()


def read_result(path: Path, flag: str = "--compare") -> dict[str, Any]:
    """A file written by `--json`, which a flag names.

    Raises:
      ConfigError: when it is not such a file.
    """
    try:
        result = json.loads(path.read_text())
        for row in result["rows"]:
            if not {"config", "batch", "length", *COLUMNS} - set(LATER) <= set(row):
                raise KeyError("a row lacks keys")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{flag} {path}: expected a file written by bench.py --json ({error}); write one first"
        ) from error
    return result


def comparison(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The change of each figure against an earlier result; rows match by configuration, batch and length."""
    before = {label(row): row for row in earlier["rows"]}
    lines = []
    for row in now["rows"]:
        old = before.get(label(row))
        lines.append(f"{label(row)}: {'now, before, change' if old else 'no such row in the earlier result'}")
        for key, (heading, decimals) in COLUMNS.items():
            if not old or not old.get(key) or not row[key] or key == "model_update_flops":
                continue
            change = row[key] / old[key] - 1
            word = "same" if abs(change) < 0.02 else "better" if (change > 0) == (key in HIGHER_IS_BETTER) else "worse"
            word = "" if key == "matmul_gflops" else word
            lines.append(f"  {heading:34} {row[key]:12,.{decimals}f} {old[key]:12,.{decimals}f} {change:+8.1%} {word}")
    if earlier["machine"] != now["machine"]:
        lines.append("measured on different machines or versions: compare the fractions of matmul, not the times")
    return "\n".join(lines)
