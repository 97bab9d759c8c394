"""`python -m semopo_tf.plan --file PAGE ...`: what pages of runs cost, before any of them is started.

Hours are updates times seconds an update. The seconds are computed from the arithmetic of an update, under assumptions
that the flags name, and nothing of them is measured:

    arithmetic / (share x rate) + overhead        the most and the least favourable share and overhead give a range

`--speeds FILE ...` adds a column with seconds that `bench.py --json` measured, of methods at the batch of the runs:

    python bench.py --no_env --json windows.json --batch 64 --configs semopo offline_dv2 se_rs se_rs_drp lompo
    python bench.py --no_env --json stacks.json --configs bc drq_bc drq_cql infogating

A run that two pages name counts on the first. `--page PAGE.md` writes the tables between the marks
`<!-- table pages -->` and `<!-- table methods -->` of a Markdown page, each up to `<!-- end -->`.
"""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from semopo_tf import bench
from semopo_tf import config as configuration
from semopo_tf.config import Config
from semopo_tf.errors import CommandParser, ConfigError, run_command
from semopo_tf.report import markdown
from semopo_tf.run.pages import Row, read_sweep

# A dataset of the paper's: 200 episodes of 500 decisions; actions of walker and cheetah.
EPISODES, DECISIONS, ACTION_SIZE = 200, 500, 6
RATE, SHARE, OVERHEAD = 35.6, (0.2, 0.5), (2.0, 20.0)  # TFLOP/s, RTX 3090 in float32; assumptions; milliseconds
PLAYED = 43.0  # decisions a second, 4 environments on two cores (docs/performance.md)
NOT_COST = ("seed", "logdir", "offline_dir", "task")  # settings
COLUMNS = 120  # of a line of text


class Work(NamedTuple):
    """What one run has to do."""

    method: str
    batch: int
    length: int
    stages: tuple[tuple[str, int, int], ...]  # (name, updates, FLOPs of an update)
    checkpoint_bytes: int
    checkpoints: int  # kept at the end: the newest, and the last of each earlier stage

    @property
    def petaflops(self) -> float:
        """Arithmetic of the whole run, in 1e15 operations."""
        return sum(updates * flops for _, updates, flops in self.stages) / 1e15

    @property
    def updates(self) -> int:
        return sum(updates for _, updates, _ in self.stages)


class Assumption(NamedTuple):
    """How fast a card is; nothing of it is measured."""

    rate: float  # TFLOP/s of dense matrix products
    share: tuple[float, float]  # of the rate that an update reaches, least and most
    overhead: tuple[float, float]  # milliseconds an update, least and most

    def hours(self, work: Work) -> tuple[float, float]:
        """Least and most."""
        arithmetic = [work.petaflops * 1000 / self.rate / share / 3600 for share in reversed(self.share)]
        overhead = [work.updates * each / 1000 / 3600 for each in self.overhead]
        return arithmetic[0] + overhead[0], arithmetic[1] + overhead[1]

    def __str__(self) -> str:
        share, overhead = ("{:g} to {:g}".format(*each) for each in (self.share, self.overhead))
        return f"{self.rate:g} TFLOP/s, {share} of it reached, {overhead} ms more for each update"


class Page(NamedTuple):
    """A page's runs that stand on no page before it, with their work, and what is played after training."""

    name: str
    runs: int  # on the page
    new: list[Work]
    decisions: int  # played: the final evaluations of the new runs, and further ones of all


def main(argv: list[str]) -> int:
    """Print the tables, or write them into a page.

    Raises:
      ConfigError: for a wrong page or flag, or a file of speeds without a method that runs.
    """
    arguments = parse(argv)
    assumption = Assumption(arguments.rate, tuple(arguments.share), tuple(arguments.overhead))
    measured = speeds(arguments.speeds)
    pages = planned(arguments.file)
    tables = {"pages": pages_table(pages, assumption, measured), "methods": methods_table(pages, assumption, measured)}
    if not arguments.page:
        print("\n\n".join(tables.values()))
        return 0
    markdown.rewrite(arguments.page, tables.get, " or ".join(tables))
    print(f"plan: {arguments.page}, {sum(len(page.new) for page in pages)} runs")
    return 0


def parse(argv: Sequence[str]) -> Any:
    """The flags.

    Raises:
      ConfigError: for numbers that are not positive or in the wrong order.
    """
    parser = CommandParser(prog="python -m semopo_tf.plan", description=__doc__.splitlines()[0])
    parser.add_argument("--file", required=True, nargs="+", type=Path, help="sweeps, YAML pages, in their order")
    parser.add_argument("--speeds", nargs="*", default=[], type=Path, help="files of bench.py --json of one machine")
    about = "dense matrix products of the card, TFLOP/s (default: RTX 3090)"
    parser.add_argument("--rate", type=float, default=RATE, help=about)
    about = "assumed part of the rate that an update reaches"
    parser.add_argument("--share", type=float, nargs=2, default=SHARE, metavar=("LEAST", "MOST"), help=about)
    about = "assumed milliseconds an update beside its arithmetic"
    parser.add_argument("--overhead", type=float, nargs=2, default=OVERHEAD, metavar=("LEAST", "MOST"), help=about)
    parser.add_argument("--page", type=Path, help="Markdown page whose tables are rewritten")
    arguments = parser.parse_args(argv)
    if not arguments.rate > 0:
        raise ConfigError(f"--rate: expected more than 0, received {arguments.rate:g}")
    if not 0 < arguments.share[0] <= arguments.share[1] <= 1:
        received = "{:g} {:g}".format(*arguments.share)
        raise ConfigError(f"--share: expected LEAST and MOST above 0 and up to 1, received {received}")
    if not 0 <= arguments.overhead[0] <= arguments.overhead[1]:
        raise ConfigError("--overhead: expected LEAST and MOST, received {:g} {:g}".format(*arguments.overhead))
    return arguments


def planned(files: Iterable[Path]) -> list[Page]:
    """The pages with their new work.

    Raises:
      ConfigError: as `read_sweep`.
    """
    seen, known, pages = set[Path](), dict[tuple, Work](), []
    for file in files:
        rows = read_sweep(file)["rows"]
        new, decisions = [], 0
        for row in rows:
            config = configuration.load(list(row.commands[0].words[1:]))
            decisions += config.eval.final_episodes * DECISIONS * len(evaluations(row))
            if row.logdir not in seen:
                seen.add(row.logdir)
                new.append(work(config, known))
                decisions += config.eval.final_episodes * DECISIONS
        pages.append(Page(file.stem, len(rows), new, decisions))
    return pages


def evaluations(row: Row) -> list[tuple[str, ...]]:
    """The commands of a run that play more episodes."""
    return [command.words for command in row.commands if command.words[0] == "evaluation"]


def work(config: Config, known: dict[tuple, Work]) -> Work:
    """The work of a configuration, from a learner that is built and asked.

    Args:
      known: of configurations seen before, which gains this one.
    """
    key = tuple((name, str(value)) for name, value in sorted(config.flat().items()) if name not in NOT_COST)
    if key not in known:
        from semopo_tf.engine.compiling import OFF
        from semopo_tf.run import build

        sizes = {"image_size": config.env.size, "action_size": ACTION_SIZE}
        sizes |= {"episodes": EPISODES, "transitions": EPISODES * DECISIONS}
        learner = build.make_learner(config, **sizes, jit=OFF)
        batch, length = config.batch.size, config.batch.length
        stages = tuple((each.name, each.steps, learner.cost(each.name, batch, length).flops) for each in learner.stages)
        stored = sum(variable.shape.num_elements() * variable.dtype.size for variable in learner.variables().values())
        known[key] = Work(config.method, batch, length, stages, stored, config.keep_checkpoints + len(stages) - 1)
    return known[key]


def speeds(files: Sequence[Path]) -> dict[tuple[str, int, int | None], Mapping[str, Any]]:
    """(row, batch, length) -> row of the files that `bench.py --json` wrote.

    Raises:
      ConfigError: for a file that is none, or files of different devices.
    """
    results = {file: bench.read_result(file, "--speeds") for file in files}
    devices = sorted({result["machine"]["device"] for result in results.values()})
    if len(devices) > 1:
        raise ConfigError(f"--speeds: expected files of one device, received {', '.join(devices)}")
    rows = [row | {"device": devices[0]} for result in results.values() for row in result["rows"]]
    return {(row["config"], row["batch"], row["length"]): row for row in rows}


def measured_hours(work: Work, measured: Mapping[tuple, Mapping[str, Any]]) -> float:
    """Hours of a run by measured seconds an update.

    Raises:
      ConfigError: when its method was not measured at its batch.
    """
    row = measured.get((work.method, work.batch, work.length)) or measured.get((work.method, work.batch, None), {})
    seconds = 0.0
    for stage, updates, _ in work.stages:
        if (each := row.get(f"{stage}_update_s")) is None:
            sizes = f"--batch {work.batch} --length {work.length}"
            raise ConfigError(
                f"--speeds: expected a row {work.method} at {work.batch} x {work.length}, received none; measure it: "
                f"python bench.py --no_env --configs {work.method} {sizes} --json FILE"
            )
        seconds += updates * each
    return seconds / 3600


def pages_table(pages: Sequence[Page], assumption: Assumption, measured: Mapping[tuple, Mapping[str, Any]]) -> str:
    """A row for every page and one for all."""
    device = next((row["device"] for row in measured.values()), "")
    header = ["page", "runs", "new here", "PFLOP", "GPU hours, computed"]
    header += [f"hours, measured ({device})"] if measured else []
    header += ["decisions played", "hours of that", "checkpoints, GB"]
    new = [each for page in pages for each in page.new]
    total = Page("all", len(new), new, sum(page.decisions for page in pages))
    lines = [header]
    for page in (*pages, total):
        both = [assumption.hours(each) for each in page.new]
        name = "all" if page is total else f"`{page.name}`"
        low, high = (sum(each[end] for each in both) for end in (0, 1))
        line = [name, f"{page.runs}", f"{len(page.new)}"]
        line += [f"{sum(each.petaflops for each in page.new):,.0f}", span(low, high)]
        line += [f"{sum(measured_hours(each, measured) for each in page.new):,.0f}"] if measured else []
        stored = sum(each.checkpoint_bytes * each.checkpoints for each in page.new) / 1e9
        lines.append([*line, f"{page.decisions:,}", f"{page.decisions / PLAYED / 3600:,.0f}", f"{stored:,.0f}"])
    note = f"""GPU hours are computed, not measured: {assumption}. A run that two pages name counts on the first. Hours
        of playing: at {PLAYED:g} decisions a second, as measured with four environments on two cores."""
    return f"{markdown.table(lines)}\n\n{textwrap.fill(' '.join(note.split()), COLUMNS)}"


def methods_table(pages: Sequence[Page], assumption: Assumption, measured: Mapping[tuple, Mapping[str, Any]]) -> str:
    """A row for every method, about its most frequent settings."""
    header = ["method", "runs", "updates", "GFLOP an update", "GPU hours a run, computed"]
    lines = [[*header, *(["measured"] if measured else []), "checkpoint, MB"]]
    new = [each for page in pages for each in page.new]
    for method in dict.fromkeys(each.method for each in new):
        same = [each for each in new if each.method == method]
        usual = Counter(same).most_common(1)[0][0]
        updates = ", ".join(f"{stage} {count:,}" for stage, count, _ in usual.stages)
        flops = ", ".join(f"{flops / 1e9:,.0f}" for _, _, flops in usual.stages)
        line = [f"`{method}`", f"{len(same)}", updates, flops, span(*assumption.hours(usual), 1)]
        line += [f"{measured_hours(usual, measured):,.0f}"] if measured else []
        lines.append([*line, f"{usual.checkpoint_bytes / 1e6:,.0f}"])
    return markdown.table(lines)


def span(low: float, high: float, digits: int = 0) -> str:
    """`low to high`."""
    return f"{low:,.{digits}f} to {high:,.{digits}f}"


if __name__ == "__main__":
    run_command(main)
