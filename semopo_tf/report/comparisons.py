"""What several tasks say together: mean, median, interquartile mean, optimality gap, probability of improvement,
performance profiles.

Two units: `seed`, one score a seed (the mean of its episodes), for claims about methods; `episode`, one score an
  episode as in the paper's Figures
4 and 10, whose intervals are too narrow for that, since episodes of one seed are not independent.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from semopo_tf.report import bootstrap
from semopo_tf.report.groups import Dataset, Group, bounds, labels
from semopo_tf.report.page import Panel, Part, Section, figure_part, paragraphs, table_part
from semopo_tf.report.svg import Line, Style, lines, pairs
from semopo_tf.report.tables import TIMES, Table

REPLICATES, SEED = 2000, 0
MEASURES = {
    "mean": bootstrap.mean,
    "median": bootstrap.median,
    "interquartile mean": bootstrap.interquartile_mean,
    "optimality gap": bootstrap.optimality_gap,
}
PLAY = "python evaluate.py --logdir LOGDIR"
TITLES = {
    "Aggregates": "Aggregates over tasks",
    "Figure 4": "Probability of improvement",
    "Figure 10": "Performance profiles",
}
THRESHOLDS = 141  # of a profile
LEAST_REACH = 1.4  # of a profile, which goes up to the highest score


class Compared(NamedTuple):
    """Normalised scores of methods on the same tasks."""

    datasets: list[Dataset]
    scores: dict[str, dict[str, np.ndarray]]  # unit -> method -> [runs, tasks]
    left_out: list[str]  # in words


def aggregate_section(groups: Sequence[Group], rule: str, units: Sequence[str], style: Style) -> Section:
    """The aggregates, Figure 4 and Figure 10, for both units."""
    title = "All tasks together"
    found = compared(groups, rule)
    if found is None:
        why, command = "no finished run has scores that can be normalised.", PLAY
        return Section(title, [Part(name, said, missing=why, command=command) for name, said in TITLES.items()])
    about = f"""Normalised scores on {", ".join(dataset.label for dataset in found.datasets)}. Unit seed: a score is the mean of a seed's episodes;
unit episode: every episode is a score, as in the paper's figures. Episodes of one seed are not independent, so the intervals of unit episode are
too narrow for claims about methods. This page claims by {units[0]}."""
    limits = f"""Intervals are 95 %, percentiles of {REPLICATES} stratified bootstrap replicates: runs are drawn anew within each task. One seed
has no interval, and with fewer than about four seeds it is too narrow."""
    table = aggregate_table(found, units)
    caption = (
        "Estimate and interval. The optimality gap is how far scores stay below 1 on average: lower is better. With few "
        "tasks one of them decides."
    )
    parts = [
        table_part("Aggregates", TITLES["Aggregates"], table, caption),
        improvement_part(found, units),
        profile_part(found, units, style),
    ]
    return Section(title, parts, paragraphs(about, limits, *found.left_out))


def improvement_part(found: Compared, units: Sequence[str]) -> Part:
    """Figure 4, with its values as a table; named as missing where there is one method."""
    name, title, panels = "Figure 4", TITLES["Figure 4"], []
    if len(found.scores["seed"]) < 2:
        why = "it compares two methods on the same datasets, and only one was evaluated."
        return Part(name, title, missing=why, command="python train.py --configs se_rs ...")
    for unit in units:
        rows = [
            (x, y, float(each.estimate), float(each.low), float(each.high))
            for x, y, each in improvements(found.scores[unit])
        ]
        panels.append(
            Panel(
                f"figure4 {unit}",
                f"Probability of improvement, unit {unit}; values in the table below",
                pairs(f"unit {unit}", rows),
            )
        )
    caption = """Probability that a run of X, on the left, scores higher than one of Y, on the right, mean over tasks; bar: interval, mark:
estimate. An interval that is wholly above 0.5 says that X is better more often, not by how much."""
    part, table = figure_part(name, title, panels, caption), improvement_table(found, units)
    return part._replace(body=part.body + table.html(), files=part.files | table.files())


def profile_part(found: Compared, units: Sequence[str], style: Style) -> Part:
    """Figure 10: a panel for each unit."""
    panels = []
    for unit in units:
        thresholds, curves = profiles(found.scores[unit])
        drawn = [Line(label, thresholds, each.estimate, each.low, each.high) for label, each in curves.items()]
        svg = lines(f"unit {unit}", drawn, style, x="normalised score", y="fraction above")
        panels.append(Panel(f"figure10 {unit}", f"Performance profile, unit {unit}", svg))
    caption = """Fraction of scores strictly above each value. The bands are pointwise: they hold at each value, not for a whole curve; where there is
    one seed they have no width."""
    return figure_part("Figure 10", TITLES["Figure 10"], panels, caption)


def compared(groups: Sequence[Group], rule: str) -> Compared | None:
    """The largest set of methods and datasets in which every method was evaluated on every dataset, with the seeds that
    it has on all.

    None where no run has scores that can be normalised.
    """
    found: dict[str, dict[Dataset, dict[int, np.ndarray]]] = {}
    for group in groups:
        limits = bounds(group.dataset.task, rule, groups)
        each = (
            {run.seed: limits.scale(np.asarray(run.returns())) for run in group.finished if run.returns()}
            if limits
            else {}
        )
        if each:
            found.setdefault(group.label, {})[group.dataset] = each
    if not found:
        return None
    sets = [set(datasets) for datasets in found.values()]
    chosen = max(sets, key=lambda wanted: len(wanted) * sum(wanted <= other for other in sets))
    datasets = [dataset for dataset in dict.fromkeys(group.dataset for group in groups) if dataset in chosen]
    whole = [label for label in labels(groups) if label in found and chosen <= set(found[label])]
    partly = [label for label in found if label not in whole]
    left_out = (
        [f"Left out, since they were not evaluated on all of these datasets: {'; '.join(partly)}."] if partly else []
    )
    matrices: dict[str, dict[str, np.ndarray]] = {unit: {} for unit in bootstrap.UNITS}
    for label in whole:
        seeds = sorted(set.intersection(*(set(found[label][dataset]) for dataset in datasets)))
        if seeds:
            scores = [[found[label][dataset][seed] for dataset in datasets] for seed in seeds]
            matrices["seed"][label] = np.array([[each.mean() for each in row] for row in scores])
            episodes = min(len(each) for row in scores for each in row)
            matrices["episode"][label] = np.concatenate(
                [np.stack([each[:episodes] for each in row], 1) for row in scores]
            )
        else:
            left_out.append(f"Left out, since it has no seed on all of these datasets: {label}.")
    return Compared(datasets, matrices, left_out) if matrices["seed"] else None


def aggregate_table(found: Compared, units: Sequence[str]) -> Table:
    """A row for every method and unit; 95 % intervals where there is more than one run."""
    rows = []
    for unit in units:
        for label, scores in found.scores[unit].items():
            figures = [shown_interval(interval(measure, scores)) for measure in MEASURES.values()]
            rows.append([label, unit, f"{scores.shape[0]} {TIMES} {scores.shape[1]}", *figures])
    return Table("aggregates", ["method", "unit", f"runs {TIMES} tasks", *MEASURES], rows)


def improvements(scores: Mapping[str, np.ndarray]) -> list[tuple[str, str, bootstrap.Interval]]:
    """(X, Y, probability that X is better) of all pairs, both in the methods' order."""
    pairs = combinations(scores, 2)
    return [(x, y, interval(bootstrap.probability_of_improvement, scores[x], scores[y])) for x, y in pairs]


def improvement_table(found: Compared, units: Sequence[str]) -> Table:
    rows = [
        [f"{x}, {y}", unit, shown_interval(between)]
        for unit in units
        for x, y, between in improvements(found.scores[unit])
    ]
    return Table("figure4", ["X, Y", "unit", "P(X > Y)"], rows)


def profiles(scores: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, bootstrap.Interval]]:
    """(thresholds, fraction of scores above each with its band) of every method."""
    lowest, highest = (extreme([extreme(each) for each in scores.values()]) for extreme in (np.min, np.max))
    thresholds = np.linspace(min(0.0, float(lowest)), max(LEAST_REACH, float(highest)), THRESHOLDS)
    found = {
        label: interval(lambda x: bootstrap.performance_profile(x, thresholds), each) for label, each in scores.items()
    }
    return thresholds, found


def interval(statistic, *matrices: np.ndarray) -> bootstrap.Interval:
    """With limits at the estimate itself where resampling cannot differ: one run a task."""
    return bootstrap.bootstrap(statistic, *matrices, replicates=REPLICATES, seed=SEED)


def shown_interval(found: bootstrap.Interval) -> str:
    low, high = float(found.low), float(found.high)
    return f"{float(found.estimate):.2f}" if low == high else f"{float(found.estimate):.2f}\n[{low:.2f}, {high:.2f}]"
