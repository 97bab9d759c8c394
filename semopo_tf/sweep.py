"""`python -m semopo_tf.sweep --file sweep.yaml`: start many runs from one page, in local processes, with a live table.

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
Repeat the command to continue unfinished runs and to retry failed ones. A run writes its output to `log.txt` in its
directory, and the minutes of all its starts to `minutes.json`.
"""

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from semopo_tf import analysis, collect
from semopo_tf import config as configuration
from semopo_tf.errors import CommandParser, ConfigError, SweepError, run_command, shown, user_path
from semopo_tf.report.tables import aligned
from semopo_tf.run.views import last_progress
from semopo_tf.storage.files import locked, write_whole
from semopo_tf.storage.records import read_records

REFRESH_SECONDS, REPORT_SECONDS = 1.0, 20.0
TERMINATED = 128 + signal.SIGTERM
THREAD_SETTINGS = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS")


class Command(NamedTuple):
    """A module of the package with its arguments, and the files that it writes into the run directory."""

    words: tuple[str, ...]
    leaves: tuple[str, ...]


class Row(NamedTuple):
    """One run: its commands, and where its results are."""

    name: str  # <name>/<key=value,...>
    logdir: Path
    data: Path
    position: int  # in its entry's grid
    commands: tuple[Command, ...]  # one after the other

    @property
    def left(self) -> list[Command]:
        """The commands still to run, from the first whose files are not all there."""

        def finished(command: Command) -> bool:
            return all((self.logdir / name).exists() for name in command.leaves)

        return list(itertools.dropwhile(finished, self.commands))

    @property
    def done(self) -> bool:
        return not self.left

    @property
    def minutes(self) -> float:
        """Measured wall-clock minutes of all starts so far."""
        path = self.logdir / "minutes.json"
        return json.loads(path.read_text()) if path.exists() else 0.0


def main(argv: list[str]) -> int:
    """Run the unfinished part of a sweep.

    Raises:
      ConfigError: for a wrong file or flag, before anything starts.
      SweepError: when some runs failed, after all others have finished.
    """
    parser = CommandParser(prog="python -m semopo_tf.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--file", required=True, type=Path, help="the sweep, a YAML page")
    parser.add_argument("--processes", type=int, help="runs at the same time (default: as the file says)")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="runs and data whose name begins so")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="values of the page's variables")
    parser.add_argument("--list", action="store_true", help="print the commands that are left and the table")
    arguments = parser.parse(argv, processes=1)
    sweep = read_sweep(arguments.file, dict(word.partition("=")[::2] for word in arguments.set))
    rows = [row for row in sweep["rows"] if not arguments.only or row.name.startswith(tuple(arguments.only))]
    processes = arguments.processes or sweep["processes"]
    needed = {row.data for row in rows if not row.done}
    # Also collect data that no run learns from: people compare the runs with it.
    needed |= named(sweep["collections"].keys() - {row.data for row in sweep["rows"]}, sweep["out"], arguments.only)
    plan = commands_of(sweep, needed, processes)
    if arguments.list:
        own = [(f"semopo_tf.{command.words[0]}", *command.words[1:]) for row in rows for command in row.left]
        for words in (*plan, *own):
            print(f"python -m {shlex.join(words)}")
        print(table(rows, {}))
        return 0
    out = Path(sweep["out"])
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".sweep.lock", wait=False, what=f"the sweep {out}"):
        for number, words in enumerate(plan, 1):
            print(f"{number} of {len(plan)}: {' '.join(words)}", flush=True)
            prepare(words)
        failed = run_rows(rows, processes)
    if rows:
        print(table(rows, dict.fromkeys(failed, "failed")))
    if failed:
        raise SweepError(
            f"{len(failed)} of {len(rows)} runs failed, e.g. {failed[0]}: see its log.txt; the same command tries again"
        )
    return 0


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


class Job:
    """Runs the commands of one row as processes, one after the other."""

    def __init__(self, row: Row, threads: int):
        row.logdir.mkdir(parents=True, exist_ok=True)
        self.row, self._left = row, row.left
        self._before, self._started = row.minutes, time.monotonic()
        self._environment = os.environ | dict.fromkeys(THREAD_SETTINGS, str(threads))
        self._next()

    def _next(self) -> None:
        module, *arguments = self._left.pop(0).words
        command = [sys.executable, "-m", f"semopo_tf.{module}", *arguments]
        with open(self.row.logdir / "log.txt", "ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self._environment
            )

    def poll(self) -> int | None:
        """The exit code once all commands are done or one has failed, else None; writes the minutes."""
        code = self._process.poll()
        if code == 0 and self._left:
            self._next()
            return None
        if code is not None:
            self.stop()
        return code

    def terminate(self) -> None:
        """Ask the process to save and end. The run can be continued from there."""
        if self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """Wait for the process to end; writes the minutes."""
        self._process.wait()
        minutes = self._before + (time.monotonic() - self._started) / 60
        write_whole(self.row.logdir / "minutes.json", json.dumps(round(minutes, 2)).encode())


def run_rows(rows: Sequence[Row], processes: int) -> list[str]:
    """Run the unfinished rows, `processes` at a time: the first of every grid, then the second of every grid.

    Returns:
      The names of the rows that failed.
    """
    waiting, failed = sorted((row for row in rows if not row.done), key=lambda row: row.position), list[str]()
    running: list[Job] = []
    threads = max(1, (os.cpu_count() or 1) // processes)
    printed = 0.0
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                running.append(Job(waiting.pop(0), threads))
            time.sleep(REFRESH_SECONDS)
            for job in list(running):
                code = job.poll()
                if code is not None:
                    running.remove(job)
                    failed += [job.row.name] if code else []
                    printed = 0.0
            if time.monotonic() - printed > REPORT_SECONDS:
                printed = time.monotonic()
                states = dict.fromkeys(failed, "failed") | {job.row.name: "running" for job in running}
                text = table([row for row in rows if row.name in states], states)
                done = f"{sum(row.done for row in rows)} of {len(rows)} runs done"
                print(("\033[H\033[J" if sys.stdout.isatty() else "") + f"{text}\n{done}", flush=True)
    finally:
        for job in running:
            job.terminate()
        for job in running:
            job.stop()
    return failed


def table(rows: Sequence[Row], states: Mapping[str, str]) -> str:
    """A line for each run: state, progress with the time left in its phase, last evaluation, minutes."""
    lines = [["run", "state", "at", "return", "minutes"]]
    for row in rows:
        records = read_records(row.logdir / "metrics.jsonl")
        returns = [record["eval_return"] for record in records if "eval_return" in record]
        at = f"{records[-1]['phase']} {records[-1]['step']}" if records else "-"
        state = states.get(row.name, "done" if row.done else "begun" if records else "waiting")
        at = (last_progress(row.logdir / "log.txt") or "starting") if state == "running" else at
        last = f"{returns[-1]:.1f}" if returns else "-"
        lines.append([row.name, state, at, last, f"{row.minutes:.1f}" if row.minutes else "-"])
    return aligned(lines, numbers="<")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that the sweep can end its runs first
    run_command(main)
