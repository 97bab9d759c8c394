"""The paper's Tables 1 to 5 beside the same numbers of the given runs, and a table of all returns."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.report import csv_rows, paper
from semopo_tf.report.groups import EVALUATE, Dataset, own_command, uneven
from semopo_tf.report.page import Part, Section, paragraphs, table_part
from semopo_tf.report.scores import STATISTICS, Score, ScoreTable, Spread
from semopo_tf.report.tables import NOTHING, PAPER, TIMES, Table, csv_bytes

RGB = "background_color rgb"
RECORD = ["dataset", "method", "source", "mean", "std", "seeds", "episodes"]
OURS = "these runs"
HOW = f"""A number with ± is the mean over seeds of each seed's mean return, and the population standard deviation over
seeds; n counts seeds {TIMES} episodes of each. Only finished runs count, at their last evaluated update, in the
environment of their dataset unless another is named."""
RETURNS_CAPTION = """All finished runs in all environments in which they were evaluated, with their data and other
behaviours beside them. Std, min and max are over the episodes of all seeds together; the last column quotes the paper's
raw return where it has a dataset of that name."""
DATA_CAPTION = """From dataset_manifest.json of the runs; std is over episodes. The paper's episodes were collected with
policies that TIA learned from the distracted pixels; how ours were collected is in their cards. Differences are in
units of the standard deviation of the paper's episodes."""
DIFFERENCE = "difference / std"
QUOTED = f"""Rows marked paper are the printed values, {paper.SEEDS} seeds; a column without a value above them is a
method that none of these runs trained."""
UNNAMED = "no finished run with scores is on a dataset that has the name of one of the paper's."
UNDISTRACTED = "no finished run with scores is on a dataset dmc_* that has the name of one of the paper's."
UNCOLOURED = "no finished run on grey data of Table 2 was evaluated with an rgb background."
OVER_SEEDS = "return and population standard deviation over seeds"
TABLES = {
    # number: (title, caption, format, why it is missing where no run belongs in it)
    1: ("Normalised return on LQV-D4RL", f"Mean normalised {OVER_SEEDS}.", ".2f", UNNAMED),
    2: (
        "Normalised return before an rgb background, data grey",
        "As Table 1, but evaluated with --background_color rgb while the data are grey.",
        *(".2f", UNCOLOURED),
    ),
    4: (
        "Raw return without distractors (V-D4RL)",
        f"Mean {OVER_SEEDS}; the paper quotes all columns but semopo from the V-D4RL paper.",
        *(".0f", UNDISTRACTED),
    ),
    5: ("Raw return on LQV-D4RL", f"Mean {OVER_SEEDS}.", ".0f", UNNAMED),
}


class DataRow(NamedTuple):
    """The episodes of one dataset for Table 3."""

    label: str
    paper: str  # its name in the paper's Table 3 if it were one of theirs; empty without distractors
    returns: Mapping[str, float]  # `STATISTICS` and `episodes`


def tables_section(
    table: ScoreTable, references: Sequence[tuple[str, Mapping[str, float]]], data: Sequence[DataRow] = ()
) -> Section:
    """All returns, then the paper's tables in their order.

    Args:
      references: (behaviour, statistics of its returns), beside those of the runs.
      data: datasets that none of the runs learned from, for Table 3.
    """
    returns = table_part("Returns", "Returns of these runs", all_returns(table, references), RETURNS_CAPTION)
    parts = [returns._replace(files=returns.files | {"scores.csv": csv_bytes(csv_rows.of_scores(table))})]
    parts += [data_part(table, data) if number == 3 else numbered_part(table, number) for number in (1, 2, 3, 4, 5)]
    return Section(
        "Tables",
        parts,
        paragraphs(*other_data(table), *uneven(table.groups), kind="note") + paragraphs(HOW, scales(table)),
    )


def numbered_part(table: ScoreTable, number: int) -> Part:
    """Table 1, 2, 4 or 5."""
    title, caption, form, lacking = TABLES[number]
    if not (found := spreads(table, number)):
        return Part(f"Table {number}", title, missing=lacking, command=_command(table, number))
    return table_part(f"Table {number}", title, beside_paper(number, found, table, form), f"{caption} {QUOTED}")


def _command(table: ScoreTable, number: int) -> str:
    """The command that supplies a table."""
    if number == 2:
        own = [group for group in table.groups if in_paper(2, group.dataset) and not group.runs[0].origin]
        return own_command(own or table.groups, EVALUATE, "--background_color rgb")
    task = "dmc_walker_walk" if number == 4 else "dmcdrv_walker_walk"
    return f"python train.py --configs semopo walker_walk --task {task} --offline_dir DATA/random --logdir LOGDIR"


def scales(table: ScoreTable) -> str:
    """Which returns a normalised score calls 0 and 1."""
    parts = []
    for task, bounds in table.bounds.items():
        if bounds is None:
            parts.append(f"{task}: not normalised, the runs do not record the returns of their data")
            continue
        own = "smallest and largest episode return of the runs' own datasets, since the paper has no constants"
        source = f"the paper's constants, rule {table.rule}" if bounds.published else own
        parts.append(f"{task}: {bounds.low:.1f} to {bounds.high:.1f} ({source})")
    return f"Normalised scores are 0 and 1 at these returns. {'; '.join(parts)}."


def in_paper(number: int, dataset: Dataset) -> bool:
    """Whether a table of the paper has a dataset of this name, with or without distractors as the table."""
    return dataset.paper in paper.table(number) and dataset.task.startswith("dmc_") == (number == 4)


def spreads(table: ScoreTable, number: int) -> dict[tuple[Dataset, str], Spread]:
    """Mean and standard deviation of every dataset and method that belong in a table of the paper: raw returns in
    Tables 4 and 5, normalised ones in 1 and 2. Table 2 has the methods with grey data before an rgb background; of
    several such environments, the one that differs least from the data's.
    """
    found: dict[tuple[Dataset, str], Score] = {}
    for score in table.scores:
        group = score.group
        key, grey = (group.dataset, group.label), group.runs[0].card.get("background", {}).get("color") == "grey"
        fits = grey and RGB in score.condition.split(", ") if number == 2 else not score.condition
        if fits and in_paper(number, group.dataset):
            found[key] = min(found.get(key, score), score, key=lambda each: len(each.condition))
    each = {key: score.normalised if number in (1, 2) else score.raw for key, score in found.items()}
    return {key: spread for key, spread in each.items() if spread}


def beside_paper(number: int, found: Mapping[tuple[Dataset, str], Spread], table: ScoreTable, form: str) -> Table:
    """Two rows for each dataset: these runs and the paper."""
    printed = paper.table(number)
    methods = [label for label in table.methods if any(label == method for _, method in found)]
    quoted_methods = {name for row in printed.values() for name in row}
    columns = [*methods, *(name for name in paper.METHODS if name in quoted_methods and name not in methods)]
    rows, records = [], [list[object](RECORD)]
    for dataset in dict.fromkeys(dataset for dataset, _ in found):
        ours = {label: found[dataset, label] for label in methods if (dataset, label) in found}
        cells = printed.get(dataset.paper, {}).items()
        quoted = {method: Spread(mean, std, paper.SEEDS, "") for method, (mean, std) in cells}
        for source, row in ((OURS, ours), (PAPER, quoted)):
            rows.append([dataset.label, source, *(_cell(row.get(name), form) for name in columns)])
            for method, each in row.items():
                std = "" if np.isnan(each.std) else each.std
                records.append([dataset.label, method, source, each.mean, std, each.seeds, each.episodes])
    return Table(f"table{number}", ["dataset", "from", *columns], rows, records)


def _cell(spread: Spread | None, form: str) -> str:
    if spread is None:
        return NOTHING
    return f"{spread.shown(form)}\n{f'n {spread.n}' if spread.episodes else f'{spread.seeds} seeds'}"


def all_returns(table: ScoreTable, references: Sequence[tuple[str, Mapping[str, float]]]) -> Table:
    """A row for every dataset, method and condition, and for the data and reference behaviours."""
    header = ["dataset", "method", "mean return ± std of seeds", f"seeds {TIMES} episodes", "std of episodes"]
    rows = []
    for dataset, card in table.cards.items():
        if card:
            name = f"the data: {card.get('policy', 'unknown')}"
            rows.append(_behaviour_row(dataset.label, name, card["episodes"], card["returns"]))
        printed = paper.table(4 if dataset.task.startswith("dmc_") else 5).get(dataset.paper, {})
        rows += [_return_row(score, printed) for score in table.scores if score.group.dataset == dataset]
    rows += [_behaviour_row(NOTHING, name, int(returns["episodes"]), returns) for name, returns in references]
    return Table("returns", [*header, "min", "max", "normalised", PAPER], rows)


def _behaviour_row(dataset: str, name: str, episodes: int, returns: Mapping[str, float]) -> list[str]:
    mean, *others = (f"{returns[key]:.1f}" for key in ("mean", "std", "min", "max"))
    return [dataset, name, mean, f"{episodes} episodes", *others, NOTHING, NOTHING]


def _return_row(score: Score, printed: Mapping[str, Any]) -> list[str]:
    group, together, normalised = score.group, np.concatenate(list(score.returns.values())), score.normalised
    over_episodes = [f"{value:.1f}" for value in (together.std(), together.min(), together.max())]
    quoted = NOTHING
    if group.method in printed and not score.condition:
        mean, std = printed[group.method]
        quoted = f"{mean:.0f} ± {std:.0f}"
    name = f"{group.label}\n{score.condition}" if score.condition else group.label
    scaled = normalised.shown(".2f") if normalised else NOTHING
    return [group.dataset.label, name, score.raw.shown(".1f"), score.raw.n, *over_episodes, scaled, quoted]


def data_part(table: ScoreTable, more: Sequence[DataRow] = ()) -> Part:
    """Table 3, with the difference of each statistic from the paper's in units of the paper's standard deviation."""
    title, printed, rows = "Statistics of the datasets: return of an episode", paper.table(3), []
    known = [
        DataRow(
            dataset.label,
            dataset.paper if in_paper(3, dataset) else "",
            card["returns"] | {"episodes": card["episodes"]},
        )
        for dataset, card in table.cards.items()
        if card
    ]
    for label, name, returns in (*known, *more):
        rows.append([label, OURS, *_statistics(returns)])
        if quoted := printed.get(name):
            rows.append([label, PAPER, *_statistics(quoted)])
            apart = [f"{(returns[key] - quoted[key]) / quoted['std']:+.2f}" for key in STATISTICS]
            rows.append([label, DIFFERENCE, NOTHING, *apart])
    if not rows:
        why, command = "no given run's dataset has a card with statistics.", "python -m semopo_tf.data stats DATA"
        return Part("Table 3", title, missing=why, command=command)
    table3 = Table("table3", ["dataset", "from", "episodes", *STATISTICS], rows)
    return table_part("Table 3", title, table3, DATA_CAPTION)


def _statistics(returns: Mapping[str, float]) -> list[str]:
    return [f"{returns['episodes']:.0f}", *(f"{returns[key]:.1f}" for key in STATISTICS)]


def other_data(table: ScoreTable) -> list[str]:
    """A sentence for each dataset that only shares its name with one of the paper's."""
    printed, notes = paper.table(3), []
    for dataset, card in table.cards.items():
        if dataset.paper not in printed or dataset.task.startswith("dmc_"):
            continue
        quoted: Mapping[str, Any] = printed[dataset.paper]
        theirs = f"the paper's has {quoted['episodes']:.0f} episodes of mean return {quoted['mean']:.1f}"
        if card is None:
            notes.append(f"{dataset.label}: it is not known whether these are the paper's episodes; {theirs}.")
        elif card["episodes"] != quoted["episodes"] or abs(card["returns"]["mean"] - quoted["mean"]) >= 0.1:
            ours = f"{card['episodes']} episodes of mean return {card['returns']['mean']:.1f}"
            text = f"these data are not the paper's. They are {ours}; {theirs}. The returns are not comparable."
            notes.append(f"{dataset.label}: {text}")
    return notes
