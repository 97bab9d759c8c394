"""`python -m semopo_tf.summary --file SWEEP.yaml ... --page RESULTS.md`: write the tables of a results page from the
runs of sweeps.

The page is handwritten Markdown around generated tables. A pair of marks names the runs of a table, which has one row
for each run, all its seeds together; a column that none of them fills is left out:

    <!-- table core/point -->
    <!-- end -->

A table stays unchanged when none of its runs is here, since the runs of one page may be on several machines.

A cell is the mean over seeds with the half-width of its 95 % interval (Student's t over seeds; episodes of one seed are
not independent).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from semopo_tf.data.cards import read_card
from semopo_tf.errors import CommandParser, ConfigError, run_command
from semopo_tf.report import markdown
from semopo_tf.report.run_record import RunRecord, read_run
from semopo_tf.run.pages import Row, read_sweep

CONFIDENCE = 0.95
UNSEEDED = re.compile(r"(^|,)seed=\d+(?=,|$)")


class Group(NamedTuple):
    """One entry of the sweep with one combination of its grid: all finished seeds."""

    name: str
    runs: list[RunRecord]
    seeds: int  # in the sweep, finished or not
    data: Path


def main(argv: list[str]) -> int:
    """Write the tables between their marks.

    Raises:
      ConfigError: for an invalid sweep, two with other runs of one name, a page without marks, or a mark that names no
        run.
    """
    parser = CommandParser(prog="python -m semopo_tf.summary", description=__doc__.splitlines()[0])
    about = "the sweeps, YAML pages; a table may name runs of any"
    parser.add_argument("--file", required=True, type=Path, nargs="+", help=about)
    parser.add_argument("--page", required=True, type=Path, help="the Markdown page whose tables are rewritten")
    arguments = parser.parse_args(argv)
    rows = list({row.logdir: row for file in arguments.file for row in read_sweep(file)["rows"]}.values())
    places = {(row.name.rpartition("/")[0], row.logdir.parent) for row in rows}
    if twice := [name for name, count in Counter(name for name, _ in places).items() if count > 1]:
        raise ConfigError(f"--file: {twice[0]} names different runs on two of the pages; give one page, or rename them")

    def table_of(name: str, now: str) -> str:
        entries = groups(rows, name)
        return now if now and not any(group.runs for group in entries) else described(entries)

    markdown.rewrite(arguments.page, table_of)
    print(f"summary: {arguments.page}, {sum(row.done for row in rows)} of {len(rows)} runs")
    return 0


def groups(rows: Sequence[Row], name: str) -> list[Group]:
    """The rows whose names start with `name` and a `/`, grouped over seeds, in the order of the sweep.

    Raises:
      ConfigError: when there are none.
    """
    chosen: dict[str, list[Row]] = {}
    for row in rows:
        if row.name.startswith(name + "/"):
            entry, _, values = row.name.rpartition("/")
            rest = UNSEEDED.sub("", values).strip(",")
            label = entry if rest in ("", "run") else f"{entry}/{rest}"
            chosen.setdefault(label.removeprefix(name + "/"), []).append(row)
    if not chosen:
        problem = "expected the beginning of a run's name, received one of no run in the sweep"
        raise ConfigError(f"<!-- table {name} -->: {problem}")
    return [
        Group(label, [read_run(row.logdir) for row in same if row.done], len(same), same[0].data)
        for label, same in chosen.items()
    ]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half the width of its 95 % interval) of one value per seed; nan where there are too few."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return (float(x.mean()) if len(x) else np.nan), np.nan
    return float(x.mean()), float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))


def difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """(mean of first - mean of second, half the width of its 95 % interval) by Welch's approximation; nan where there
    are too few.
    """
    if min(len(first), len(second)) < 2:
        return np.nan, np.nan
    low, high = stats.ttest_ind(first, second, equal_var=False).confidence_interval(CONFIDENCE)
    return float(np.mean(first) - np.mean(second)), float((high - low) / 2)


def mean_return(run: RunRecord) -> float:
    return float(np.mean(run.returns()))


def _policy_stream(run: RunRecord) -> str:
    return "endo" if run.settings["model.kind"] == "separated" else "joint"


def _bound(run: RunRecord, name: str) -> float | None:
    """A discounted return of `run.bound`, where it was measured."""
    return run.analyses["bound"][name]["estimate"] if "bound" in run.analyses else None


def _smallest_weight(run: RunRecord) -> float | None:
    """Of the run's own measure, where it was measured."""
    bound = run.analyses.get("bound")
    smallest = bound and bound["smallest"].get(bound["penalty"]["measure"])
    return smallest["estimate"] if smallest else None


COLUMNS: dict[str, tuple[str, Callable[[RunRecord], float | None]]] = {
    # heading: (format, value of a run, or None where it has none)
    "position": (".2f", lambda run: run.probed("r2", _policy_stream(run), "position")),
    "+15 steps": (".2f", lambda run: run.probed("open_loop", _policy_stream(run), "position", "15")),
    "phase": (".2f", lambda run: run.probed("r2", _policy_stream(run), "phase")),
    "phase, exo": (".2f", lambda run: run.probed("r2", "exo", "phase")),
    "position, exo": (".2f", lambda run: run.probed("r2", "exo", "position")),
    "reward": (".2f", lambda run: run.probed("reward_r2")),
    "in the simulator": (".2f", lambda run: _bound(run, "simulator")),
    "in the model": (".2f", lambda run: _bound(run, "model")),
    "smallest weight": (".2f", lambda run: _smallest_weight(run)),
    "penalty": (".2f", lambda run: next((row["penalty"] for row in reversed(run.metrics) if "penalty" in row), None)),
    "model min": (".1f", lambda run: run.minutes.get("model")),
    "policy min": (".1f", lambda run: run.minutes.get("policy")),
}


def described(entries: Sequence[Group]) -> str:
    """The table: returns, then probes of the features that the policy sees, the bound, and minutes. Below it, what did
    not run and the data.
    """
    missing = ", ".join(group.name for group in entries if not group.runs)
    notes = [f"Not run: {missing}."] if missing else []
    finished = [group for group in entries if group.runs]
    if not finished:
        return notes[0]
    first = [mean_return(run) for run in finished[0].runs]
    lines = [["run", "seeds", "return", "of each seed", f"{finished[0].name} less this", *COLUMNS]]
    for group in finished:
        returns = [mean_return(run) for run in group.runs]
        each = ", ".join(f"{value:.1f}" for value in returns)
        less = _cell(difference(first, returns), "+.1f") if group is not finished[0] else ""
        figures = []
        for form, read in COLUMNS.values():
            known = [value for run in group.runs if (value := read(run)) is not None]
            figures.append(_cell(interval(known), form))
        count = str(len(returns)) if len(returns) == group.seeds else f"{len(returns)} of {group.seeds}"
        lines.append([group.name, count, _cell(interval(returns), ".1f"), each, less, *figures])
    notes += [_data(directory) for directory in dict.fromkeys(group.data for group in finished)]
    filled = [column for column in range(len(lines[0])) if any(line[column] for line in lines[1:])]
    shown = [[line[column] for column in filled] for line in lines]
    return f"{markdown.table(shown)}\n\n{' '.join(notes)}"


def _cell(figure: tuple[float, float], form: str) -> str:
    mean, half = figure
    if np.isnan(mean):
        return ""
    return f"{mean:{form}}" if np.isnan(half) else f"{mean:{form}} ± {half:{form.lstrip('+')}}"


def _data(directory: Path) -> str:
    card = read_card(directory)
    if not card or "returns" not in card:
        return f"Data `{directory.name}`: not there."
    options = "".join(
        f" {name}={value:g}" for name, value in (card.get("environment", {}).get("options") or {}).items()
    )
    size = f"{card['episodes']} episodes, mean return {card['returns']['mean']:.1f}"
    return f"Data `{directory.name}`: {card['policy']} behaviour{options}, {size}."


if __name__ == "__main__":
    run_command(main)
