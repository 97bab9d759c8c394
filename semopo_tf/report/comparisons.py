"""Comparisons over all tasks: mean, median, interquartile mean, optimality gap, probability of improvement and
performance profiles.

There are two units. `seed`: a score is the mean over the episodes of one seed; for claims about methods. `episode`:
every episode is a score, as in the paper's Figures 4 and 10. Episodes of one seed are not independent, so these
intervals are too narrow for claims about methods.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np

from semopo_tf.report import bootstrap, csv_rows
from semopo_tf.report.groups import EVALUATE, Dataset, own_command
from semopo_tf.report.page import Panel, Part, Section, figure_part, paragraphs, table_part
from semopo_tf.report.scores import ScoreTable
from semopo_tf.report.svg import Line, Style, lines, pairs
from semopo_tf.report.tables import TIMES, Table

REPLICATES, SEED = 2000, 0
UNITS = ("seed", "episode")
MEASURES = {
    **{"mean": bootstrap.mean, "median": bootstrap.median},
    **{"interquartile mean": bootstrap.interquartile_mean, "optimality gap": bootstrap.optimality_gap},
}
TITLES = {"Aggregates": "Aggregates over tasks", "Figure 4": "Probability of improvement"}
TITLES["Figure 10"] = "Performance profiles"
THRESHOLDS = 141  # of a profile
LEAST_REACH = 1.4  # of a profile's x axis, which extends to the highest score


class Compared(NamedTuple):
    """Normalised scores of methods on the same tasks."""

    datasets: list[Dataset]
    scores: dict[str, dict[str, np.ndarray]]  # unit -> method -> [runs, tasks]
    left_out: list[str]  # in words


def aggregate_section(table: ScoreTable, units: Sequence[str], style: Style) -> Section:
    """The aggregates, Figure 4 and Figure 10, for both units; claims are by the first."""
    title, found = "All tasks together", compared(table)
    if found is None:
        why, command = "no finished run has scores that can be normalised.", own_command(table.groups, EVALUATE)
        return Section(title, [Part(name, said, missing=why, command=command) for name, said in TITLES.items()])
    about = f"""Normalised scores on {", ".join(dataset.label for dataset in found.datasets)}. Unit seed: a score is
        the mean over the episodes of a seed. Unit episode: every episode is a score, as in the paper's figures;
        episodes of one seed are not independent, so these intervals are too narrow for claims about methods. This page
        claims by {units[0]}."""
    limits = f"""Intervals are 95 %: percentiles of {REPLICATES} stratified bootstrap replicates, which resample the
        runs of each task. One seed has no interval; with fewer than about four seeds it is too narrow."""
    caption = """Estimate and interval. The optimality gap is the average distance of scores below 1: lower is better.
        With few tasks, a single one can decide the order."""
    parts = [
        table_part("Aggregates", TITLES["Aggregates"], aggregate_table(found, units), caption),
        improvement_part(found, units),
        profile_part(found, units, style),
    ]
    return Section(title, parts, paragraphs(about, limits, *found.left_out))


def improvement_part(found: Compared, units: Sequence[str]) -> Part:
    """Figure 4, with its values as a table."""
    name, title, panels = "Figure 4", TITLES["Figure 4"], []
    if len(found.scores["seed"]) < 2:
        why = "it compares two methods on the same datasets, and only one was evaluated."
        return Part(name, title, missing=why, command="python train.py --configs se_rs ...")
    compared = {unit: improvements(found.scores[unit]) for unit in units}
    for unit in units:
        rows = [(x, y, float(each.estimate), float(each.low), float(each.high)) for x, y, each in compared[unit]]
        shows = f"Probability of improvement, unit {unit}; values in the table below"
        panels.append(Panel(f"figure4 {unit}", shows, pairs(f"unit {unit}", rows)))
    caption = """Probability that a run of X (left) scores higher than a run of Y (right), mean over tasks. Bar:
        interval; mark: estimate. An interval entirely above 0.5 says that X is better more often, not by how much."""
    cells, records = [], [list[object](["X", "Y", "unit", "P(X > Y)", *csv_rows.BOUNDS])]
    for unit in units:
        scores = found.scores[unit]
        for x, y, each in compared[unit]:
            cells.append([f"{x}, {y}", unit, shown_interval(each)])
            records.append([x, y, unit, *csv_rows.of_interval(each, scores[x], scores[y])])
    table = Table("figure4", ["X, Y", "unit", "P(X > Y)"], cells, records)
    part = figure_part(name, title, panels, caption)
    return part._replace(body=part.body + table.html(), files=part.files | table.files())


def profile_part(found: Compared, units: Sequence[str], style: Style) -> Part:
    """Figure 10: a panel for each unit."""
    panels = []
    for unit in units:
        thresholds, curves = profiles(found.scores[unit])
        drawn = [Line(label, thresholds, each.estimate, each.low, each.high) for label, each in curves.items()]
        svg = lines(f"unit {unit}", drawn, style, x="normalised score", y="fraction above")
        rows = csv_rows.of_lines(drawn, "threshold")
        panels.append(Panel(f"figure10 {unit}", f"Performance profile, unit {unit}", svg, rows))
    caption = """Fraction of scores strictly above each value. The bands are pointwise: they hold at each value, not for
        a whole curve. With one seed they have no width."""
    return figure_part("Figure 10", TITLES["Figure 10"], panels, caption)


def compared(table: ScoreTable) -> Compared | None:
    """The largest set of methods and datasets in which every method was evaluated on every dataset, restricted to the
    seeds that a method has on all of them. None where no score can be normalised.
    """
    scaled: dict[str, dict[Dataset, dict[int, np.ndarray]]] = {}
    for dataset in table.cards:
        for score in table.of(dataset):
            if score.bounds:
                scaled.setdefault(score.group.label, {})[dataset] = score.scaled
    if not scaled:
        return None
    sets = [set(datasets) for datasets in scaled.values()]
    chosen = max(sets, key=lambda wanted: len(wanted) * sum(wanted <= other for other in sets))
    datasets = [dataset for dataset in table.cards if dataset in chosen]
    whole = [label for label in table.methods if label in scaled and chosen <= set(scaled[label])]
    partly = "; ".join(label for label in scaled if label not in whole)
    left_out = [f"Left out, not evaluated on all of these datasets: {partly}."] if partly else []
    matrices: dict[str, dict[str, np.ndarray]] = {unit: {} for unit in UNITS}
    for label in whole:
        seeds = sorted(set.intersection(*(set(scaled[label][dataset]) for dataset in datasets)))
        if not seeds:
            left_out.append(f"Left out, no seed on all of these datasets: {label}.")
            continue
        rows = [[scaled[label][dataset][seed] for dataset in datasets] for seed in seeds]
        episodes = min(len(each) for row in rows for each in row)
        matrices["seed"][label] = np.array([[each.mean() for each in row] for row in rows])
        matrices["episode"][label] = np.concatenate([np.stack([each[:episodes] for each in row], 1) for row in rows])
    return Compared(datasets, matrices, left_out) if matrices["seed"] else None


def aggregate_table(found: Compared, units: Sequence[str]) -> Table:
    """A row for every method and unit; 95 % intervals where there is more than one run."""
    columns = [f"{measure}{bound}" for measure in MEASURES for bound in ("", *(f" {name}" for name in csv_rows.BOUNDS))]
    rows, records = [], [list[object](["method", "unit", "runs", "tasks", *columns])]
    for unit in units:
        for label, scores in found.scores[unit].items():
            measured = [interval(measure, scores) for measure in MEASURES.values()]
            rows.append([label, unit, f"{scores.shape[0]} {TIMES} {scores.shape[1]}", *map(shown_interval, measured)])
            cells = [value for each in measured for value in csv_rows.of_interval(each, scores)]
            records.append([label, unit, *scores.shape, *cells])
    return Table("aggregates", ["method", "unit", f"runs {TIMES} tasks", *MEASURES], rows, records)


def improvements(scores: Mapping[str, np.ndarray]) -> list[tuple[str, str, bootstrap.Interval]]:
    """(X, Y, probability that X is better) of all pairs, in the order of the methods."""
    both = combinations(scores, 2)
    return [(x, y, interval(bootstrap.probability_of_improvement, scores[x], scores[y])) for x, y in both]


def profiles(scores: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, bootstrap.Interval]]:
    """Thresholds, and for every method the fraction of scores above each with its band."""
    lowest, highest = min(each.min() for each in scores.values()), max(each.max() for each in scores.values())
    thresholds = np.linspace(min(0.0, float(lowest)), max(LEAST_REACH, float(highest)), THRESHOLDS)
    profile = partial(bootstrap.performance_profile, thresholds=thresholds)
    return thresholds, {label: interval(profile, each) for label, each in scores.items()}


def interval(statistic: bootstrap.Statistic, *matrices: np.ndarray) -> bootstrap.Interval:
    """The interval of a statistic; of no width where there is one run per task."""
    return bootstrap.bootstrap(statistic, *matrices, replicates=REPLICATES, seed=SEED)


def shown_interval(each: bootstrap.Interval) -> str:
    low, high = float(each.low), float(each.high)
    return f"{float(each.estimate):.2f}" if low == high else f"{float(each.estimate):.2f}\n[{low:.2f}, {high:.2f}]"
