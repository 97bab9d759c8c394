"""`python -m semopo_tf.summary --file sweep.yaml --page RESULTS.md`: the tables of a results page, from what the runs
of a sweep left.

The page is Markdown by hand around tables by machine. A pair of marks says which runs a table is about, one line a run
of the sweep's page, all its seeds together:

    <!-- table core/point -->
    <!-- end -->

A table none of whose runs is here stays as it is: runs of one page may lie on several machines.

A cell is the mean over the seeds with the half-width of its 95 % interval (Student's t over seeds; episodes of one seed
are not independent).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from semopo_tf.data.cards import read_card
from semopo_tf.errors import CommandParser, ConfigError, run_command
from semopo_tf.report.run_record import RunRecord, read_run
from semopo_tf.storage.files import write_whole
from semopo_tf.sweep import Row, read_sweep

CONFIDENCE = 0.95
MARKED = re.compile(r"(?P<open><!-- table (?P<name>\S+) -->\n)(?P<table>.*?)(?P<close><!-- end -->)", re.DOTALL)
UNSEEDED = re.compile(r"(^|,)seed=\d+(?=,|$)")


class Group(NamedTuple):
    """A run of the sweep's page with one combination of its grid: all seeds of it that are done."""

    name: str
    runs: list[RunRecord]
    seeds: int  # of the sweep, done or not
    data: Path


def main(argv: list[str]) -> int:
    """Write the tables between their marks.

    Raises:
      ConfigError: for a wrong sweep, a page without marks, or a mark that names no run.
    """
    parser = CommandParser(prog="python -m semopo_tf.summary", description=__doc__.splitlines()[0])
    parser.add_argument("--file", required=True, type=Path, help="the sweep, a YAML page")
    parser.add_argument("--page", required=True, type=Path, help="the Markdown page whose tables are written anew")
    arguments = parser.parse_args(argv)
    try:
        text = arguments.page.read_text()
    except OSError as error:
        raise ConfigError(f"--page {arguments.page}: cannot be read ({error.strerror})") from error
    if not MARKED.search(text):
        raise ConfigError(
            f"--page {arguments.page}: expected a table between <!-- table NAME --> and <!-- end -->, found none"
        )
    rows = read_sweep(arguments.file)["rows"]
    written = MARKED.sub(
        lambda found: found["open"] + _table(groups(rows, found["name"]), found["table"]) + found["close"], text
    )
    write_whole(arguments.page, written.encode())
    print(f"summary: {arguments.page}, {sum(row.done for row in rows)} of {len(rows)} runs")
    return 0


def groups(rows: Sequence[Row], name: str) -> list[Group]:
    """The rows whose name begins with `name` up to a `/`, those that differ in the seed alone together, in the sweep's
    order.

    Raises:
      ConfigError: when there are none.
    """
    chosen: dict[str, list[Row]] = {}
    for row in rows:
        if row.name.startswith(name + "/"):
            entry, _, values = row.name.rpartition("/")
            rest = UNSEEDED.sub("", values).strip(",")
            chosen.setdefault(
                (entry + "/" + rest if rest not in ("", "run") else entry).removeprefix(name + "/"), []
            ).append(row)
    if not chosen:
        raise ConfigError(
            f"<!-- table {name} -->: expected the beginning of a run's name, found no such run in the sweep"
        )
    return [
        Group(label, [read_run(row.logdir) for row in same if row.done], len(same), same[0].data)
        for label, same in chosen.items()
    ]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half the width of its 95 % interval) of one value a seed; nan where there are too few."""
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
    found = stats.ttest_ind(first, second, equal_var=False)
    low, high = found.confidence_interval(CONFIDENCE)
    return float(np.mean(first) - np.mean(second)), float((high - low) / 2)


def mean_return(run: RunRecord) -> float:
    return float(np.mean(run.returns()))


def _probed(*path: str) -> Callable[[RunRecord], float | None]:
    def read(run: RunRecord) -> float | None:
        found: Any = run.analyses.get("probe")
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    return read


def _policy_stream(run: RunRecord) -> str:
    return "endo" if run.settings["model.kind"] == "separated" else "joint"


COLUMNS: dict[str, tuple[str, Callable[[RunRecord], float | None]]] = {
    # heading: (format, figure of a run, or None where it has none)
    "position": (".2f", lambda run: _probed("r2", _policy_stream(run), "position")(run)),
    "+15 steps": (".2f", lambda run: _probed("open_loop", _policy_stream(run), "position", "15")(run)),
    "phase": (".2f", lambda run: _probed("r2", _policy_stream(run), "phase")(run)),
    "phase, exo": (".2f", _probed("r2", "exo", "phase")),
    "position, exo": (".2f", _probed("r2", "exo", "position")),
    "reward": (".2f", _probed("reward_r2")),
    "penalty": (".2f", lambda run: next((row["penalty"] for row in reversed(run.metrics) if "penalty" in row), None)),
    "model min": (".1f", lambda run: run.minutes.get("model")),
    "policy min": (".1f", lambda run: run.minutes.get("policy")),
}


def _table(found: Sequence[Group], before: str) -> str:
    return markdown(found) + "\n" if any(group.runs for group in found) or not before else before


def markdown(found: Sequence[Group]) -> str:
    """The table: returns first, then what the features that the policy sees know, then minutes. Below it what did not
    run, and the data.
    """
    missing = [group.name for group in found if not group.runs]
    found = [group for group in found if group.runs]
    if not found:
        return "Not run: " + ", ".join(missing) + "."
    first = [mean_return(run) for run in found[0].runs]
    lines = [["run", "seeds", "return", "of each seed", f"{found[0].name} less this", *COLUMNS]]
    for group in found:
        returns = [mean_return(run) for run in group.runs]
        each = ", ".join(f"{value:.1f}" for value in returns)
        less = _cell(difference(first, returns), "+.1f") if group is not found[0] else ""
        figures = [_cell(interval(_known(read, group.runs)), form) for form, read in COLUMNS.values()]
        count = str(len(returns)) if len(returns) == group.seeds else f"{len(returns)} of {group.seeds}"
        lines.append([group.name, count, _cell(interval(returns), ".1f"), each, less, *figures])
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = [f"Not run: {', '.join(missing)}."] if missing else []
    return (
        table + "\n\n" + " ".join([*notes, *(_data(place) for place in dict.fromkeys(group.data for group in found))])
    )


def _known(read: Callable[[RunRecord], float | None], runs: Sequence[RunRecord]) -> list[float]:
    return [value for run in runs if (value := read(run)) is not None]


def _cell(figure: tuple[float, float], form: str) -> str:
    mean, half = figure
    return (
        "" if np.isnan(mean) else f"{mean:{form}}" if np.isnan(half) else f"{mean:{form}} ± {half:{form.lstrip('+')}}"
    )


def _data(directory: Path) -> str:
    card = read_card(directory)
    if not card or "returns" not in card:
        return f"Data `{directory.name}`: not there."
    options = "".join(f" {name}={value:g}" for name, value in (card["environment"].get("options") or {}).items())
    return f"Data `{directory.name}`: {card['policy']} behaviour{options}, {card['episodes']} episodes, mean return {card['returns']['mean']:.1f}."


if __name__ == "__main__":
    run_command(main)
