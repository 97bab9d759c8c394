"""`python -m semopo_tf.sweep --file sweep.yaml`: many runs from one page, here or on a cluster, with a live table.
`run/pages.py` describes a page.

Repeat the command to continue unfinished runs and to retry failed ones. `sweep status --file sweep.yaml` says how they
stand, `sweep cancel` ends them. A run writes its output to `log.txt` in its directory, the minutes of all its starts to
`minutes.json`, and how each start ended to `job.json`.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from semopo_tf import collect
from semopo_tf.errors import CommandParser, ConfigError, SweepError, is_command, run_command
from semopo_tf.report.tables import aligned
from semopo_tf.run.executors import Executor, run_jobs, slurm_jobs
from semopo_tf.run.executors.local import Local
from semopo_tf.run.executors.ray_tasks import RayTasks
from semopo_tf.run.jobs import cancel_mark, read_minutes, running, starts
from semopo_tf.run.pages import Row, read_sweep
from semopo_tf.run.views import last_progress
from semopo_tf.storage.files import locked, write_whole
from semopo_tf.storage.records import read_records

REFRESH_SECONDS = 1.0


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
    # Also make data that no run learns from: people compare the runs with it.
    used = {row.data for row in sweep["rows"]}
    used = used.union(*(parts for each, parts in sweep["joined"].items() if each in used))
    needed |= named((sweep["collections"].keys() | sweep["joined"].keys()) - used, sweep["out"], arguments.only)
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
    """The modules with their arguments that make the needed data: the behaviours that play them first, then the
    collections, then what is joined of them.
    """
    joined = {each: parts for each, parts in sweep["joined"].items() if each in needed}
    needed = needed.union(*joined.values())
    collections = {each: flags for each, flags in sweep["collections"].items() if each in needed}
    words = {word for flags in collections.values() for word in flags}
    plan = []
    for directory, flags in sweep["behaviours"].items():
        if any(str(directory) in word for word in words):
            plan.append(["semopo_tf.behave", "train", *flags, "--logdir", str(directory)])
    for directory, flags in collections.items():
        side_by_side = [] if "--processes" in flags else ["--processes", str(processes)]
        plan.append(["semopo_tf.collect", *flags, *side_by_side, "--out", str(directory)])
    for directory, parts in joined.items():
        plan.append(["semopo_tf.data", "join", *map(str, parts), str(directory)])
    return plan


def prepare(words: Sequence[str]) -> None:
    """Collect data in this process; train a behaviour, which needs TensorFlow, or join datasets in a child process.

    Raises:
      SweepError: when that ends with an error.
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
