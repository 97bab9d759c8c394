"""The numbers of drawings and the scores of runs as rows of CSV files: a heading, then one number a cell. A bound of an
interval has a column of its own, which is empty where there is no interval.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from semopo_tf.report.bootstrap import Interval
from semopo_tf.report.scores import ScoreTable
from semopo_tf.report.svg import Bar, Dots, Estimates, Line

Rows = list[list[object]]
BOUNDS = ("low", "high")


def of_scores(table: ScoreTable) -> Rows:
    """A row for each finished run: the mean return of its episodes in the environment of its data."""
    rows: Rows = [["method", "task", "level", "seed", "return", "episodes"]]
    for dataset in table.cards:
        level = dataset.paper.removeprefix(dataset.paper.split()[0]).strip() + dataset.directory
        for score in table.of(dataset):
            for seed, returns in score.returns.items():
                rows.append([score.group.label, dataset.task, level, seed, float(returns.mean()), len(returns)])
    return rows


def of_lines(curves: Sequence[Line], x: str) -> Rows:
    """A row for each point of each curve.

    Args:
      x: name of the horizontal axis.
    """
    rows: Rows = [["series", x, "value", *BOUNDS]]
    for line in curves:
        none = np.full(np.shape(line.y), None)
        columns = (line.x, line.y, *(none if bound is None else bound for bound in (line.low, line.high)))
        points = zip(*(np.asarray(column).tolist() for column in columns), strict=True)
        rows += [[line.label, *point] for point in points]
    return rows


def of_bars(series: Mapping[str, Mapping[str, Bar]]) -> Rows:
    """A row for each bar."""
    rows: Rows = [["series", "dataset", "value", "std"]]
    rows += [[label, position, *bar] for label, bars in series.items() for position, bar in bars.items()]
    return rows


def of_dots(rows: Sequence[Dots]) -> Rows:
    """A row for each row of dots: its mean, and the lowest and highest of its dots, or of its range."""
    ends = [row.range or (min(row.values), max(row.values)) for row in rows]
    return [
        ["series", "mean", "lowest", "highest"],
        *([row.label, row.mean, *end] for row, end in zip(rows, ends, strict=True)),
    ]


def of_estimates(rows: Sequence[Estimates]) -> Rows:
    """A row for each estimate with the ends of its interval."""
    found: Rows = [["series", "what", "value", *BOUNDS]]
    found += [[row.label, what, *one] for row in rows for what, each in row.each.items() for one in each]
    return found


def of_interval(each: Interval, *matrices: np.ndarray) -> list[object]:
    """Estimate and bounds; without bounds where every matrix has a single run, which nothing can resample."""
    known = any(len(matrix) > 1 for matrix in matrices)
    return [float(each.estimate), *((float(each.low), float(each.high)) if known else (None, None))]
