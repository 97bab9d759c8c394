"""`python -m semopo_tf.sweep --file sweep.yaml`: many runs from one page, here or on a cluster, with a live table.

    out: runs/point                       every run goes to <out>/<name>/<values of the grid>
    processes: 2                          runs, or episodes of a collection, at the same time; they share the cores
    variables: {videos: builtin:driving}  `{videos}` below is replaced; or as --set videos=FOLDER says
    behaviours:
      walker: [--task, walker_walk]       `semopo_tf.behave train` into <out>/behaviours/walker, if data need it;
                                          `{walker}` in the flags of data is that directory
    data:
      random: [--task, exbmdp_point, --policy, random, --episodes, 200]
                                        collected into <out>/data/random if missing; with --only, if a run needs it
    flags: [--eval.every, 0]              added to the flags of every run
    runs:
      - name: semopo
        data: random                      a name from above, or a directory
        flags: [--configs, semopo, exbmdp_point, testbed]     `{seed}` in a flag is replaced by the grid's value
        grid: {seed: [1, 2, 3], penalty.weight: [0.0, 0.3]}   one run for each combination
        evaluate: {rgb: [--background_color, rgb]}   evaluate.py afterwards, for every name with these flags
        probe: true                       python -m semopo_tf.probe afterwards
        analyses: true                    python -m semopo_tf.analysis afterwards
      - name: '{method}'                  with `each`, this entry stands for several
        data: random
        flags: [--configs, '{method}', exbmdp_point, testbed]
        each: {method: [bc, lompo]}       one entry for each combination; `{method}` in its texts is replaced

Pages may have the same `out`: a run that one of them has finished is not repeated by another that names it.
Repeat the command to continue unfinished runs and to retry failed ones. `sweep status --file sweep.yaml` says how they
stand, `sweep cancel` ends them. A run writes its output to `log.txt` in its directory, the minutes of all its starts to
`minutes.json`, and how each start ended to `job.json`.
"""

import argparse
import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from semopo_tf import analysis, collect
from semopo_tf import config as configuration
from semopo_tf.errors import CommandParser, ConfigError, SweepError, is_command, run_command, shown, user_path
from semopo_tf.report.tables import aligned
from semopo_tf.run.executors import Executor, run_jobs, slurm_jobs
from semopo_tf.run.executors.local import Local
from semopo_tf.run.executors.ray_tasks import RayTasks
from semopo_tf.run.jobs import Command, Job, cancel_mark, left, read_minutes, running, starts, state
from semopo_tf.run.views import last_progress
from semopo_tf.storage.files import locked, write_whole
from semopo_tf.storage.records import read_records

REFRESH_SECONDS = 1.0


class Row(NamedTuple):
    """One run: its commands, and where its results are."""

    name: str  # <name>/<key=value,...>
    logdir: Path
    data: Path
    position: int  # in its entry's grid
    commands: tuple[Command, ...]  # modules of the package with arguments, one after the other

    @property
    def left(self) -> list[Command]:
        """The commands still to run."""
        return left(self.logdir, self.commands)

    @property
    def done(self) -> bool:
        return not self.left

    @property
    def state(self) -> str:
        """Of the run, in a word or two."""
        if self.done:
            return "done"
        return state(self.logdir) or ("begun" if (self.logdir / "metrics.jsonl").exists() else "waiting")

    def state_with(self, given: Set[str]) -> str:
        """The state where an executor has the runs of these names: those that do not live wait in its queue."""
        word = self.state
        return "queued" if self.name in given and word not in ("done", "running", "stopping") else word

    def job(self, executor: str, threads: int) -> Job:
        """This run for an executor: its modules of the package become commands of Python."""
        commands = [Command(("-m", f"semopo_tf.{words[0]}", *words[1:]), leaves) for words, leaves in self.commands]
        return Job(self.name, self.logdir, Path.cwd(), executor, threads, tuple(commands))


ACTIONS = {
    "run": "run what is left (the default)",
    "status": "print every run's state, from its directory",
    "cancel": "have running runs save and end, on whichever machine, and begin no other",
}
EXECUTORS = ("local", "ray", "slurm")
OF_EXECUTORS = {  # flag -> those that it is for
    "gpus_per_run": ("ray", "slurm"),
    "address": ("ray",),
    "resource": ("ray",),
    "slurm": ("slurm",),
    "print_script": ("slurm",),
}


def main(argv: list[str]) -> int:
    """Run the unfinished part of a sweep, say how it stands, or end it.

    Raises:
      ConfigError: for a wrong file or flag, before anything starts.
      SweepError: when some runs failed or were cancelled, after all others have finished.
    """
    arguments = parse(argv)
    sweep = read_sweep(arguments.file, dict(word.partition("=")[::2] for word in arguments.set))
    out = Path(sweep["out"])
    rows = [row for row in sweep["rows"] if not arguments.only or row.name.startswith(tuple(arguments.only))]
    processes = arguments.processes or sweep["processes"]
    if arguments.action == "status":
        print(status(rows, out))
        return 0
    if arguments.action == "cancel":
        cancel(rows, out)
        return 0
    needed = {row.data for row in rows if not row.done}
    # Also collect data that no run learns from: people compare the runs with it.
    needed |= named(sweep["collections"].keys() - {row.data for row in sweep["rows"]}, sweep["out"], arguments.only)
    plan = commands_of(sweep, needed, processes)
    if arguments.list:
        own = [(f"semopo_tf.{command.words[0]}", *command.words[1:]) for row in rows for command in row.left]
        for words in (*plan, *own):
            print(f"python -m {shlex.join(words)}")
        print(table(rows))
        return 0
    cpus = cpus_of_a_run(arguments, processes)
    if arguments.print_script:
        jobs = sum(not row.done for row in rows)
        parameters = slurm_jobs.read_parameters(arguments.slurm)
        print(slurm_jobs.batch_script(out, parameters, jobs=jobs, cpus=cpus, gpus=int(arguments.gpus_per_run)))
        return 0
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".sweep.lock", wait=False, what=f"the sweep {out}"):
        executor = make_executor(arguments, out, processes, cpus)
        if is_command():
            end_on_signals()  # Ray has set its own handlers
        for number, words in enumerate(plan, 1):
            print(f"{number} of {len(plan)}: {' '.join(words)}", flush=True)
            prepare(words)
        unfinished = run_rows(rows, executor, arguments, cpus)
    if rows:
        print(table(rows))
    if unfinished:
        listed = ", ".join(f"{name} ({what})" for name, what in list(unfinished.items())[:3])
        more = f" and {len(unfinished) - 3} more" if len(unfinished) > 3 else ""
        raise SweepError(
            f"{len(unfinished)} of {len(rows)} runs are not done: {listed}{more}; see the log.txt of each; the same "
            "command goes on"
        )
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line.

    Raises:
      ConfigError: also for a flag that is for another executor.
    """
    actions = "; ".join(f"{name}: {words}" for name, words in ACTIONS.items())
    parser = CommandParser(prog="python -m semopo_tf.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("action", nargs="?", choices=ACTIONS, default="run", help=actions)
    parser.add_argument("--file", required=True, type=Path, help="the sweep, a YAML page")
    parser.add_argument("--processes", type=int, help="runs at the same time (default: as the file says)")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="runs and data whose name begins so")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="values of the page's variables")
    parser.add_argument("--list", action="store_true", help="print the commands that are left and the table")
    parser.add_argument("--executor", choices=EXECUTORS, default="local", help="where the runs run (docs/sweeps.md)")
    parser.add_argument("--retries", type=int, default=2, help="of a run that was killed, for each call (default: 2)")
    cpus = "cores and threads of a run (default: 1 for ray and slurm, else the cores divided by the processes)"
    parser.add_argument("--cpus_per_run", type=int, metavar="N", help=cpus)
    parser.add_argument("--gpus_per_run", type=float, default=0.0, metavar="N", help="with ray also a part, e.g. 0.25")
    parser.add_argument("--address", help="the Ray cluster, as of ray.init, e.g. auto")
    parser.add_argument("--resource", default="", help="a custom resource of the Ray nodes that see the directory")
    parameters = "partition, time (minutes), gres, ... of sbatch; cluster=local for submitit's local executor"
    parser.add_argument("--slurm", nargs="*", default=[], metavar="KEY=VALUE", help=parameters)
    parser.add_argument("--print_script", action="store_true", help="print the batch script and submit nothing")
    arguments = parser.parse(argv, processes=1, retries=0, cpus_per_run=1, gpus_per_run=0)
    for flag, executors in OF_EXECUTORS.items():
        if getattr(arguments, flag) and arguments.executor not in executors:
            expected = f"expected --executor {' or '.join(executors)}"
            raise ConfigError(f"--{flag}: {expected} with it, received {arguments.executor}")
    if arguments.executor == "slurm":
        slurm_jobs.read_parameters(arguments.slurm)
        if arguments.gpus_per_run % 1:
            raise ConfigError(f"--gpus_per_run: expected whole GPUs with slurm, received {arguments.gpus_per_run:g}")
    return arguments


def cpus_of_a_run(arguments: argparse.Namespace, processes: int) -> int:
    """The cores of a run: those that the flag says, else this machine's divided, else one."""
    here = arguments.executor == "local" or "cluster=local" in arguments.slurm
    return arguments.cpus_per_run or (max(1, (os.cpu_count() or 1) // processes) if here else 1)


def make_executor(arguments: argparse.Namespace, out: Path, processes: int, cpus: int) -> Executor:
    """Raises ConfigError where a package or the cluster is missing."""
    if arguments.executor == "ray":
        return RayTasks(arguments.address, arguments.gpus_per_run, arguments.resource)
    if arguments.executor == "slurm":
        parameters = slurm_jobs.read_parameters(arguments.slurm)
        gpus = int(arguments.gpus_per_run)
        return slurm_jobs.SlurmJobs(out, parameters, processes=processes, cpus=cpus, gpus=gpus)
    return Local(processes)


def end_on_signals() -> None:
    """SIGTERM, and SIGHUP unless it is ignored, end this process so that its runs can be ended first."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda heard, _: sys.exit(128 + heard))


def run_rows(rows: Sequence[Row], executor: Executor, arguments: argparse.Namespace, cpus: int) -> dict[str, str]:
    """Run the unfinished rows, the first of every grid before the second of every grid, and print the table.

    Returns:
      Name -> what became of it, of the rows that are not done.
    """
    unfinished = sorted((row for row in rows if not row.done), key=lambda row: row.position)
    for row in unfinished:
        if not running(row.logdir):  # one that runs was cancelled a moment ago, and is about to end
            cancel_mark(row.logdir).unlink(missing_ok=True)

    def show(given: Set[str], failed: Mapping[str, str]) -> None:
        text = table([row for row in rows if row.name in given or row.name in failed], given)
        done = f"{sum(row.done for row in rows)} of {len(rows)} runs done"
        print(("\033[H\033[J" if sys.stdout.isatty() else "") + f"{text}\n{done}", flush=True)

    jobs = [row.job(arguments.executor, cpus) for row in unfinished]
    return run_jobs(jobs, executor, arguments.retries, show)


def status(rows: Sequence[Row], out: Path) -> str:
    """The table of all runs and how many are in which state."""
    submitted = slurm_jobs.read_jobs(out / slurm_jobs.FOLDER)
    queued = {row.name for row in rows if submitted.get(row.name, {}).get("starts") == len(starts(row.logdir))}
    words = [row.state_with(queued) for row in rows]
    counted = ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words)))
    return f"{table(rows, queued)}\n{len(rows)} runs: {counted}"


def cancel(rows: Sequence[Row], out: Path) -> None:
    """Mark what is not done as cancelled, take it out of SLURM's queue, and wait until no run lives any more."""
    unfinished = [row for row in rows if not row.done]
    for row in unfinished:
        mark = cancel_mark(row.logdir)
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_whole(mark, b"")
    slurm_jobs.cancel_queued(out, {row.name for row in unfinished})
    alive: list[str] = []
    while now := [row.name for row in unfinished if running(row.logdir)]:
        if now != alive:
            print(f"waiting for {len(now)} runs that save and end, {now[0]} first", flush=True)
        alive = now
        time.sleep(REFRESH_SECONDS)
    print(status(rows, out))


def named(directories: Iterable[Path], out: str, only: Sequence[str]) -> set[Path]:
    """The collections whose name below <out>/data begins with one of `only`; all where that is empty."""
    folder = Path(out) / "data"
    return {each for each in directories if not only or f"{each.relative_to(folder)}".startswith(tuple(only))}


def commands_of(sweep: Mapping[str, Any], needed: set[Path], processes: int) -> list[list[str]]:
    """The modules with their arguments that make the needed data, the behaviours that play them first."""
    collections = {each: flags for each, flags in sweep["collections"].items() if each in needed}
    words = {word for flags in collections.values() for word in flags}
    plan = []
    for directory, flags in sweep["behaviours"].items():
        if any(str(directory) in word for word in words):
            plan.append(["semopo_tf.behave", "train", *flags, "--logdir", str(directory)])
    for directory, flags in collections.items():
        side_by_side = [] if "--processes" in flags else ["--processes", str(processes)]
        plan.append(["semopo_tf.collect", *flags, *side_by_side, "--out", str(directory)])
    return plan


def prepare(words: Sequence[str]) -> None:
    """Train a behaviour in a process of its own, as it needs TensorFlow, or collect data in this one.

    Raises:
      SweepError: when the training of a behaviour ends with an error.
    """
    module, *arguments = words
    if module == "semopo_tf.collect":
        collect.main(arguments)
        return
    done = subprocess.run([sys.executable, "-m", module, *arguments], stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SweepError(
            f"{' '.join(words)}: expected exit status 0, received {done.returncode}; see its lines above, and run the "
            "same command again to go on"
        )


def read_sweep(path: Path, given: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The page, checked: {out, processes, behaviours and collections: {directory: flags}, rows}.

    Args:
      given: values of the page's variables.

    The flags of every run are resolved here, so that a mistake shows before anything starts.

    Raises:
      ConfigError: naming the key or run that is wrong.
    """
    page = configuration.read_yaml(path)
    require_kinds(page, str(path))
    if "out" not in page or not page.keys() & {"runs", "data"}:
        raise ConfigError(f"{path}: expected `out` (a directory) and `runs` (a list) or `data`")
    out, data, variables = user_path(page["out"]), page.get("data", {}), page.get("variables", {})
    if unknown := sorted(set(given or {}) - set(variables)):
        expected = ", ".join(variables) or "none, as the page has no variables"
        raise ConfigError(f"--set {unknown[0]}: expected one of {expected}")
    behaviours = {name: out / "behaviours" / name for name in page.get("behaviours", {})}

    values = variables | dict(given or {})
    trained = {behaviours[name]: filled(flags, values) for name, flags in page.get("behaviours", {}).items()}
    collections = {out / "data" / name: filled(flags, values | behaviours) for name, flags in data.items()}
    entries = [single for entry in page.get("runs", []) for single in copies(entry)]
    rows = [row for entry in entries for row in expand(entry, out, data, page.get("flags", []), str(path))]
    names = [row.name for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: two runs are called {twice[0]}; give them different names")
    found = {"behaviours": trained, "collections": collections, "rows": rows}
    return {"out": str(out), "processes": page.get("processes", 1), **found}


class Kind(NamedTuple):
    """What a value of the page must be, as a test and in words."""

    fits: Callable[[Any], bool]
    words: str


TEXT = Kind(lambda x: isinstance(x, str) and x != "", "a text")
NAME = Kind(
    lambda x: TEXT.fits(x) and not PurePath(x).is_absolute() and ".." not in PurePath(x).parts,
    "a name below `out`, not absolute, without ..",
)
COUNT = Kind(lambda x: type(x) is int and x >= 1, "a whole number of at least 1")
TRUTH = Kind(lambda x: isinstance(x, bool), "true or false")
LIST = Kind(lambda x: isinstance(x, list), "a list")
WORDS = Kind(
    lambda x: isinstance(x, list) and all(isinstance(word, str | int | float) for word in x),
    "a list of words and numbers",
)
WORD = Kind(lambda x: isinstance(x, str | int | float), "a word or a number")
VALUES = Kind(lambda x: WORDS.fits(x) and x != [], "a list of at least one word or number")
MAPPING = Kind(lambda x: isinstance(x, dict) and all(map(NAME.fits, x)), "a mapping of names, none absolute or with ..")
PAGE = {"out": TEXT, "processes": COUNT, "data": MAPPING, "flags": WORDS, "runs": LIST}
PAGE |= {"variables": MAPPING, "behaviours": MAPPING}
RUN = {"name": NAME, "data": TEXT, "flags": WORDS, "each": MAPPING, "grid": MAPPING}
RUN |= {"evaluate": MAPPING, "probe": TRUTH, "analyses": TRUTH}


def require_kinds(page: Mapping[str, Any], where: str) -> None:
    """Check the keys and values of the page, as described in the module's docstring.

    Raises:
      ConfigError: naming the first wrong one.
    """
    _require(page, PAGE, where)
    for section, kind in (("data", WORDS), ("behaviours", WORDS), ("variables", WORD)):
        _require(page.get(section, {}), dict.fromkeys(page.get(section, {}), kind), f"{where}: {section}")
    for number, entry in enumerate(page.get("runs", []), 1):
        _require({f"run {number}": entry}, {f"run {number}": MAPPING}, f"{where}: runs")
        run = f"{where}: run {entry.get('name', number)}"
        _require(entry, RUN, run)
        for section, kind in (("each", VALUES), ("grid", VALUES), ("evaluate", WORDS)):
            _require(entry.get(section, {}), dict.fromkeys(entry.get(section, {}), kind), f"{run}: {section}")


def _require(values: Mapping[str, Any], kinds: Mapping[str, Kind], where: str) -> None:
    """Raise a ConfigError for a key that is not in `kinds`, or a value of another kind."""
    if unknown := values.keys() - kinds:
        expected = f"expected some of {', '.join(sorted(kinds))}"
        raise ConfigError(f"{where}: unknown key {min(unknown, key=str)!r}; {expected}")
    for key, value in values.items():
        if not kinds[key].fits(value):
            raise ConfigError(f"{where}: {key}: expected {kinds[key].words}, received {shown(value)}")


def filled(flags: Sequence[Any], values: Mapping[str, Any]) -> list[str]:
    """The words of a command line, with every `{key}` replaced by its value."""
    return [replaced(str(word), values) for word in flags]


def replaced(text: str, values: Mapping[str, Any]) -> str:
    """A text with every `{key}` replaced by its value."""
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", str(value))
    return text


def copies(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries that one with `each` stands for, the first key's values outermost; without it, the entry itself."""
    each = entry.get("each", {})

    def single(value: Any, chosen: Mapping[str, Any]) -> Any:
        if isinstance(value, dict):
            return {key: single(part, chosen) for key, part in value.items()}
        if isinstance(value, list):
            return [single(part, chosen) for part in value]
        return replaced(value, chosen) if isinstance(value, str) else value

    combinations = [dict(zip(each, values, strict=True)) for values in itertools.product(*each.values())]
    rest = {key: value for key, value in entry.items() if key != "each"}
    return [single(rest, chosen) for chosen in combinations]


def expand(
    entry: Mapping[str, Any], out: Path, data: Mapping[str, Any], common: Sequence[Any], where: str
) -> list[Row]:
    """One row for each combination of an entry's grid.

    Args:
      data: name -> flags of a collection.
      common: the flags of every run.
    """
    if "name" not in entry or "flags" not in entry or "data" not in entry:
        raise ConfigError(f"{where}: expected name, data and flags in every run, received {', '.join(entry)}")
    source = out / "data" / entry["data"] if entry["data"] in data else Path(entry["data"])
    grid, rows = entry.get("grid", {}), []
    for position, values in enumerate(itertools.product(*grid.values())):
        chosen = dict(zip(grid, values, strict=True))
        logdir = out / entry["name"] / (",".join(f"{key}={value}" for key, value in chosen.items()) or "run")
        own = filled(entry["flags"], chosen)
        flags = [*map(str, common), *own, *(word for key, value in chosen.items() for word in (f"--{key}", str(value)))]
        train = ("training", *flags, "--offline_dir", str(source), "--logdir", str(logdir))
        config = configuration.load(list(train[1:]))
        commands = [Command(train, ("DONE",))]
        for name, words in entry.get("evaluate", {}).items():
            leaf = f"evaluations/{name}.json"
            shown = ("--summary", str(logdir / leaf), "--task", config.task)
            commands.append(Command(("evaluation", "--logdir", str(logdir), *map(str, words), *shown), (leaf,)))
        if entry.get("probe"):
            words = ("probe", "--logdir", str(logdir), "--task", config.task)
            commands.append(Command(words, ("analysis/probe.json",)))
        if entry.get("analyses"):
            leaves = tuple(f"analysis/{name}.json" for name in analysis.NAMES)
            commands.append(Command(("analysis", "--logdir", str(logdir)), leaves))
        rows.append(Row(f"{entry['name']}/{logdir.name}", logdir, source, position, tuple(commands)))
    return rows


def table(rows: Sequence[Row], given: Set[str] = frozenset()) -> str:
    """A line for each run: state, progress with the time left in its phase, last evaluation, minutes of all starts; of
    the last start its node, number and exit code.

    Args:
      given: the names of those that an executor has.
    """
    lines = [["run", "state", "at", "return", "minutes", "node", "start", "exit"]]
    for row in rows:
        records, before = read_records(row.logdir / "metrics.jsonl"), starts(row.logdir)
        returns = [record["eval_return"] for record in records if "eval_return" in record]
        at = f"{records[-1]['phase']} {records[-1]['step']}" if records else "-"
        word, minutes = row.state_with(given), read_minutes(row.logdir)
        at = (last_progress(row.logdir / "log.txt") or "starting") if word == "running" else at
        last = f"{returns[-1]:.1f}" if returns else "-"
        code = before[-1]["code"] if before else None
        node = [before[-1]["host"], f"{len(before)}", "-" if code is None else f"{code}"] if before else ["-"] * 3
        lines.append([row.name, word, at, last, f"{minutes:.1f}" if minutes else "-", *node])
    return aligned(lines, numbers="<")


if __name__ == "__main__":
    end_on_signals()
    run_command(main)
