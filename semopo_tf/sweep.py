"""`python -m semopo_tf.sweep --file sweep.yaml`: many runs from one page, in local processes, each resumable, with a
live table.

    out: runs/point                       every run goes to <out>/<name>/<values of the grid>
    processes: 2                          runs at the same time; the cores are shared out among them
    data:
      random: [--task, exbmdp_point, --policy, random, --episodes, 200]
                                        collected into <out>/data/random if missing; with --only, if a run needs it
    flags: [--eval.every, 0]              of every run, beside its own
    runs:
      - name: semopo
        data: random                      a name from above, or a directory
        flags: [--configs, semopo, exbmdp_point, testbed]     `{seed}` in a flag stands for the grid's value
        grid: {seed: [1, 2, 3], penalty.weight: [0.0, 0.3]}   one run for each combination
        probe: true                       python -m semopo_tf.probe afterwards
        analyses: true                    python -m semopo_tf.analysis afterwards

The same command continues what is unfinished and repeats what failed. The output of a run is in its directory's
`log.txt`, the minutes of all its starts in `minutes.json`.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from semopo_tf import analysis, collect
from semopo_tf import config as configuration
from semopo_tf.errors import CommandParser, ConfigError, SweepError, run_command, shown
from semopo_tf.run.views import last_progress
from semopo_tf.storage.files import locked, write_whole
from semopo_tf.storage.records import read_records

REFRESH_SECONDS, REPORT_SECONDS = 1.0, 20.0
TERMINATED = 128 + signal.SIGTERM
THREAD_SETTINGS = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS")


class Command(NamedTuple):
    """A module of the package and its arguments, and the files in the run directory that it leaves behind."""

    words: tuple[str, ...]
    leaves: tuple[str, ...]


class Row(NamedTuple):
    """One run: what to call, and where its results are."""

    name: str  # <name>/<key=value,...>
    logdir: Path
    data: Path
    position: int  # in its entry's grid
    commands: tuple[Command, ...]  # one after the other

    @property
    def left(self) -> list[Command]:
        """The commands from the first on that has not left all its files."""
        return [
            *itertools.dropwhile(
                lambda command: all((self.logdir / name).exists() for name in command.leaves), self.commands
            )
        ]

    @property
    def done(self) -> bool:
        return not self.left

    @property
    def minutes(self) -> float:
        """Measured wall-clock minutes of all starts so far."""
        path = self.logdir / "minutes.json"
        return json.loads(path.read_text()) if path.exists() else 0.0


def main(argv: list[str]) -> int:
    """Run what is left of a sweep.

    Raises:
      ConfigError: for a wrong file or flag, before anything is started.
      SweepError: after all others are done, when some runs failed.
    """
    parser = CommandParser(prog="python -m semopo_tf.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--file", required=True, type=Path, help="the sweep, a YAML page")
    parser.add_argument("--processes", type=int, help="runs at the same time (default: as the file says)")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="runs whose name begins so")
    parser.add_argument("--list", action="store_true", help="print the table and start nothing")
    arguments = parser.parse_args(argv)
    if arguments.processes is not None and arguments.processes < 1:
        raise ConfigError(f"--processes: expected at least 1, received {arguments.processes}")
    sweep = read_sweep(arguments.file)
    rows = [row for row in sweep["rows"] if not arguments.only or row.name.startswith(tuple(arguments.only))]
    processes = arguments.processes or sweep["processes"]
    if arguments.list:
        print(table(rows, {}))
        return 0
    out = Path(sweep["out"])
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".sweep.lock", wait=False, what=f"the sweep {out}"):
        needed = {row.data for row in rows if not row.done}
        if not arguments.only:  # what no run learns from is there for the reader of the runs
            needed |= sweep["collections"].keys() - {row.data for row in sweep["rows"]}
        for directory, flags in sweep["collections"].items():
            if directory in needed:
                collect.main([*flags, "--out", str(directory)])
        failed = run_rows(rows, processes)
    print(table(rows, dict.fromkeys(failed, "failed")))
    if failed:
        raise SweepError(
            f"{len(failed)} of {len(rows)} runs failed, e.g. {failed[0]}: see its log.txt; the same command tries again"
        )
    return 0


def read_sweep(path: Path) -> dict[str, Any]:
    """The page, checked: {out, processes, collections: {directory: flags of collect}, rows}.

    Every run's flags are resolved once, so that a mistake shows here.

    Raises:
      ConfigError: naming the key or run that is wrong.
    """
    page = configuration.read_yaml(path)
    _known(set(page), set(PAGE), str(path))
    require_kinds(page, str(path))
    if "out" not in page or "runs" not in page:
        raise ConfigError(f"{path}: expected `out` (a directory) and `runs` (a list)")
    out, data = Path(page["out"]).expanduser(), page.get("data", {})
    collections = {out / "data" / name: [*map(str, flags)] for name, flags in data.items()}
    rows = [row for entry in page["runs"] for row in expand(entry, out, data, page.get("flags", []), str(path))]
    names = [row.name for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: two runs are called {twice[0]}; give them different names")
    return {"out": str(out), "processes": page.get("processes", 1), "collections": collections, "rows": rows}


class Kind(NamedTuple):
    """What may stand for a key of the page."""

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
VALUES = Kind(lambda x: WORDS.fits(x) and x != [], "a list of at least one word or number")
MAPPING = Kind(lambda x: isinstance(x, dict) and all(map(NAME.fits, x)), "a mapping of names, none absolute or with ..")
PAGE = {"out": TEXT, "processes": COUNT, "data": MAPPING, "flags": WORDS, "runs": LIST}
RUN = {"name": NAME, "data": TEXT, "flags": WORDS, "grid": MAPPING, "probe": TRUTH, "analyses": TRUTH}


def require_kinds(page: Mapping[str, Any], where: str) -> None:
    """Check the values of the page that are there against the module's docstring.

    Raises:
      ConfigError: naming the first that is not.
    """
    _require(page, PAGE, where)
    _require(page.get("data", {}), dict.fromkeys(page.get("data", {}), WORDS), f"{where}: data")
    for number, entry in enumerate(page.get("runs", []), 1):
        _require({f"run {number}": entry}, {f"run {number}": MAPPING}, f"{where}: runs")
        run = f"{where}: run {entry.get('name', number)}"
        _require(entry, RUN, run)
        _require(entry.get("grid", {}), dict.fromkeys(entry.get("grid", {}), VALUES), f"{run}: grid")


def _require(values: Mapping[str, Any], kinds: Mapping[str, Kind], where: str) -> None:
    for key, value in values.items():
        if key in kinds and not kinds[key].fits(value):
            raise ConfigError(f"{where}: {key}: expected {kinds[key].words}, received {shown(value)}")


def expand(
    entry: Mapping[str, Any], out: Path, data: Mapping[str, Any], common: Sequence[Any], where: str
) -> list[Row]:
    """One row for each combination of an entry's grid; `common` are the flags of every run."""
    _known(set(entry), set(RUN), f"{where}: run {entry.get('name')}")
    if "name" not in entry or "flags" not in entry or "data" not in entry:
        raise ConfigError(f"{where}: expected name, data and flags in every run, received {', '.join(entry)}")
    source = out / "data" / entry["data"] if entry["data"] in data else Path(entry["data"])
    grid, rows = entry.get("grid", {}), []
    for position, values in enumerate(itertools.product(*grid.values())):
        chosen = dict(zip(grid, values, strict=True))
        logdir = out / entry["name"] / (",".join(f"{key}={value}" for key, value in chosen.items()) or "run")
        own = [_filled(str(word), chosen) for word in entry["flags"]]
        flags = [*map(str, common), *own, *(word for key, value in chosen.items() for word in (f"--{key}", str(value)))]
        train = ("training", *flags, "--offline_dir", str(source), "--logdir", str(logdir))
        config = configuration.load(list(train[1:]))
        commands = [Command(train, ("DONE",))]
        if entry.get("probe"):
            commands.append(
                Command(("probe", "--logdir", str(logdir), "--task", config.task), ("analysis/probe.json",))
            )
        if entry.get("analyses"):
            commands.append(
                Command(
                    ("analysis", "--logdir", str(logdir)), tuple(f"analysis/{name}.json" for name in analysis.NAMES)
                )
            )
        rows.append(Row(f"{entry['name']}/{logdir.name}", logdir, source, position, tuple(commands)))
    return rows


def _filled(word: str, chosen: Mapping[str, Any]) -> str:
    for key, value in chosen.items():
        word = word.replace(f"{{{key}}}", str(value))
    return word


def _known(keys: set[str], allowed: set[str], where: str) -> None:
    if keys - allowed:
        raise ConfigError(
            f"{where}: unknown key {sorted(keys - allowed, key=str)[0]!r}; expected some of "
            f"{', '.join(sorted(allowed))}"
        )


class Job:
    """The processes of one row, one after the other."""

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
        """The exit code once all is done or one process has failed; writes the minutes."""
        code = self._process.poll()
        if code == 0 and self._left:
            self._next()
            return None
        if code is not None:
            self.stop()
        return code

    def terminate(self) -> None:
        """Tell the process to save and end; the run continues from there another time."""
        if self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """Wait for the process to end; writes the minutes."""
        self._process.wait()
        minutes = self._before + (time.monotonic() - self._started) / 60
        write_whole(self.row.logdir / "minutes.json", json.dumps(round(minutes, 2)).encode())


def run_rows(rows: Sequence[Row], processes: int) -> list[str]:
    """Run the rows that are not done, `processes` at a time: the first of every grid, then the second ones.

    Returns:
      The names of those that failed.
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
                shown = table([row for row in rows if row.name in states], states)
                done = f"{sum(row.done for row in rows)} of {len(rows)} runs done"
                print(("\033[H\033[J" if sys.stdout.isatty() else "") + f"{shown}\n{done}", flush=True)
    finally:
        for job in running:
            job.terminate()
        for job in running:
            job.stop()
    return failed


def table(rows: Sequence[Row], states: Mapping[str, str]) -> str:
    """A line for each run: state, progress with the time its phase still takes, last evaluation, minutes."""
    lines = [("run", "state", "at", "return", "minutes")]
    for row in rows:
        records = read_records(row.logdir / "metrics.jsonl")
        returns = [record["eval_return"] for record in records if "eval_return" in record]
        at = f"{records[-1]['phase']} {records[-1]['step']}" if records else "-"
        state = states.get(row.name, "done" if row.done else "begun" if records else "waiting")
        at = (last_progress(row.logdir / "log.txt") or "starting") if state == "running" else at
        lines.append(
            (
                row.name,
                state,
                at,
                f"{returns[-1]:.1f}" if returns else "-",
                f"{row.minutes:.1f}" if row.minutes else "-",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that no run outlives the sweep
    run_command(main)
