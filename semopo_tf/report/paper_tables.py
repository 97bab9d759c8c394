"""The paper's Tables 1 to 5 beside the same figures of the given runs, and a table of all returns (paper, App. D.2 and
F).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from semopo_tf.report import paper
from semopo_tf.report.groups import Bounds, Dataset, Group, Spread, bounds, by_dataset, labels, spread
from semopo_tf.report.page import Part, Section, paragraphs, table_part
from semopo_tf.report.tables import NOTHING, PAPER, TIMES, Table

RGB = "background_color rgb"
STATISTICS = ("episodes", "mean", "std", "min", "p25", "median", "p75", "max")
RECORD = ["dataset", "method", "source", "mean", "std", "seeds", "episodes"]
OURS = "these runs"
PLAY = "python evaluate.py --logdir"
TABLES = {
    # number: (title, what the caption says, format, what is missing where no run belongs into it)
    1: (
        "Normalised return on LQV-D4RL",
        "Mean normalised return and population standard deviation over seeds.",
        ".2f",
        "no finished run with scores is on a dataset that has the name of one of the paper's.",
    ),
    2: (
        "Normalised return before an rgb background, data grey",
        "As Table 1, but evaluated with --background_color rgb while the data are grey.",
        ".2f",
        "no finished run on grey data of Table 2 was evaluated with an rgb background.",
    ),
    4: (
        "Raw return without distractors (V-D4RL)",
        "Mean return and population standard deviation over seeds; the paper quotes all columns but semopo from the "
        "V-D4RL paper.",
        ".0f",
        "no finished run with scores is on a dataset dmc_* that has the name of one of the paper's.",
    ),
    5: (
        "Raw return on LQV-D4RL",
        "Mean return and population standard deviation over seeds.",
        ".0f",
        "no finished run with scores is on a dataset that has the name of one of the paper's.",
    ),
}

Choice = Callable[[Group], list[np.ndarray]]  # of scores: one array of episodes a seed


def tables_section(
    groups: Sequence[Group], rule: str, references: Sequence[tuple[str, Mapping[str, float]]]
) -> Section:
    """All returns, then the paper's tables in their order.

    Args:
      references: (behaviour, statistics of its returns) that stand beside those of the runs.
    """
    caption = """All finished runs in all environments that they were evaluated in, with their data and other behaviours beside them. Std, min and
    max are over the episodes of all seeds together; the last column quotes the paper's raw return where it has a dataset of that name."""
    first = table_part("Returns", "Returns of these runs", all_returns(groups, rule, references), caption)
    parts = [
        first,
        *(data_part(groups) if number == 3 else numbered_part(groups, rule, number) for number in (1, 2, 3, 4, 5)),
    ]
    return Section("Tables", parts, paragraphs(*other_data(groups), kind="note") + paragraphs(scales(groups, rule)))


def numbered_part(groups: Sequence[Group], rule: str, number: int) -> Part:
    """Table 1, 2, 4 or 5."""
    title, said, form, lacking = TABLES[number]
    choice = {1: normalised(groups, rule), 2: distracted(groups, rule)}.get(number, raw)
    table = beside_paper(number, groups, choice, form, in_paper(number))
    if table is None:
        return Part(f"Table {number}", title, missing=lacking, command=_command(groups, number))
    also = (
        f"Rows marked paper are the printed values, {paper.SEEDS} seeds; a column without a value above them is a method "
        "that no given run is of."
    )
    return table_part(f"Table {number}", title, table, f"{said} {also}")


def _command(groups: Sequence[Group], number: int) -> str:
    """That would supply a table."""
    if number == 2:
        fitting = (run.logdir for group in groups if in_paper(2)(group.dataset) for run in group.finished)
        return f"{PLAY} {next(fitting, 'LOGDIR')} --background_color rgb"
    task = "dmc_walker_walk" if number == 4 else "dmcdrv_walker_walk"
    return f"python train.py --configs semopo walker_walk --task {task} --offline_dir DATA/random --logdir LOGDIR"


def scales(groups: Sequence[Group], rule: str) -> str:
    """What is 0 and 1 of a normalised score."""
    found = []
    for task in dict.fromkeys(group.dataset.task for group in groups):
        limits = bounds(task, rule, groups)
        if limits is None:
            found.append(f"{task}: not normalised, the runs do not say the returns of their data")
            continue
        own = "smallest and largest episode return of the runs' own datasets, since the paper has no constants"
        whose = f"the paper's constants, rule {rule}" if limits.published else own
        found.append(f"{task}: {limits.low:.1f} to {limits.high:.1f} ({whose})")
    return f"Normalised scores are 0 and 1 at these returns. {'; '.join(found)}."


def data_part(groups: Sequence[Group]) -> Part:
    """Table 3."""
    title, table = "Statistics of the datasets: return of an episode", dataset_table(groups)
    if table is None:
        return Part(
            "Table 3",
            title,
            missing="no given run's dataset has a card with statistics.",
            command="python -m semopo_tf.data stats DATA",
        )
    caption = """From dataset_manifest.json of the runs; std is over episodes. The paper's episodes were collected with policies that TIA learned
from the distracted pixels; how ours were is in their cards."""
    return table_part("Table 3", title, table, caption)


def beside_paper(
    number: int, groups: Sequence[Group], choose: Choice, form: str, wanted: Callable[[Dataset], bool]
) -> Table | None:
    """Rows: each dataset twice, these runs and the paper. None where no run has scores for it.

    Args:
      wanted: whether a dataset belongs into this table.
    """
    printed = paper.table(number)
    found = {
        (group.dataset, group.label): spread(values)
        for group in groups
        if wanted(group.dataset) and (values := choose(group))
    }
    if not found:
        return None
    methods = labels(group for group in groups if (group.dataset, group.label) in found)
    columns = [
        *methods,
        *(name for name in paper.METHODS if name not in methods and any(name in row for row in printed.values())),
    ]
    rows, records = [], [list[object](RECORD)]
    for dataset in dict.fromkeys(dataset for dataset, _ in found):
        ours = {label: found[dataset, label] for label in methods if (dataset, label) in found}
        quoted = {
            method: Spread(mean, std, paper.SEEDS, "") for method, (mean, std) in printed.get(dataset.paper, {}).items()
        }
        rows.append([dataset.label, OURS, *(_cell(ours.get(name), form) for name in columns)])
        rows.append([dataset.label, PAPER, *(_cell(quoted.get(name), form) for name in columns)])
        records += _records(dataset.label, OURS, ours) + _records(dataset.label, PAPER, quoted)
    return Table(f"table{number}", ["dataset", "from", *columns], rows, records)


def normalised(groups: Sequence[Group], rule: str) -> Choice:
    """Scores in the environment of the data, between the bounds of the task."""
    return lambda group: _scaled(group.returns(), bounds(group.dataset.task, rule, groups))


def raw(group: Group) -> list[np.ndarray]:
    """Returns in the environment of the data."""
    return group.returns()


def distracted(groups: Sequence[Group], rule: str) -> Choice:
    """Normalised scores before an rgb background of a method whose data are grey; of several such conditions the one
    that changes least.
    """
    return lambda group: _scaled(group.returns(rgb_condition(group)), bounds(group.dataset.task, rule, groups))


def rgb_condition(group: Group) -> str:
    """The condition of Table 2; empty where there is none."""
    grey = group.runs[0].card.get("background", {}).get("color") == "grey"
    found = [condition for condition in group.conditions() if RGB in condition.split(", ")]
    return min(found, key=len) if found and grey else "none of these"


def _scaled(values: Sequence[np.ndarray], found: Bounds | None) -> list[np.ndarray]:
    return [found.scale(each) for each in values] if found else []


def in_paper(number: int) -> Callable[[Dataset], bool]:
    """Whether a dataset's name is one of a table of the paper, and its task has the distractors that the table is
    about.
    """
    plain = number == 4
    return lambda dataset: dataset.paper in paper.table(number) and dataset.task.startswith("dmc_") == plain


def all_returns(groups: Sequence[Group], rule: str, references: Sequence[tuple[str, Mapping[str, float]]]) -> Table:
    """Every dataset, method and condition, with the statistics of the data and of reference behaviours as rows of their
    own.
    """
    header = [
        "dataset",
        "method",
        "mean return ± std of seeds",
        f"seeds {TIMES} episodes",
        "std of episodes",
        "min",
        "max",
        "normalised",
        PAPER,
    ]
    rows = []
    for dataset, same in by_dataset(groups).items():
        if card := _card(same):
            rows.append(
                _behaviour_row(
                    dataset.label, f"the data: {card.get('policy', 'unknown')}", card["episodes"], card["returns"]
                )
            )
        printed = paper.table(4 if dataset.task.startswith("dmc_") else 5).get(dataset.paper, {})
        for group in same:
            rows += [
                _return_row(group, condition, bounds(dataset.task, rule, groups), printed)
                for condition in group.conditions()
            ]
    rows += [_behaviour_row(NOTHING, name, int(returns["episodes"]), returns) for name, returns in references]
    return Table("returns", header, rows)


def _behaviour_row(dataset: str, name: str, episodes: int, returns: Mapping[str, float]) -> list[str]:
    mean, *others = (f"{returns[key]:.1f}" for key in ("mean", "std", "min", "max"))
    return [dataset, name, mean, f"{episodes} episodes", *others, NOTHING, NOTHING]


def _return_row(group: Group, condition: str, found: Bounds | None, printed: Mapping[str, Any]) -> list[str]:
    values = group.returns(condition)
    together, over_seeds = np.concatenate(values), spread(values)
    scaled = spread(_scaled(values, found)).shown(".2f") if found else NOTHING
    figures = [f"{figure:.1f}" for figure in (together.std(), together.min(), together.max())]
    quoted = (
        f"{printed[group.method][0]:.0f} ± {printed[group.method][1]:.0f}"
        if group.method in printed and not condition
        else NOTHING
    )
    name = f"{group.label}\n{condition}" if condition else group.label
    return [group.dataset.label, name, over_seeds.shown(".1f"), over_seeds.n, *figures, scaled, quoted]


def _card(groups: Sequence[Group]) -> dict[str, Any] | None:
    """The card of a dataset with all statistics, from the first run that has it."""
    whole = set(STATISTICS[1:])
    return next(
        (
            run.card
            for group in groups
            for run in group.runs
            if "episodes" in run.card and whole <= set(run.card.get("returns", {}))
        ),
        None,
    )


def dataset_table(groups: Sequence[Group]) -> Table | None:
    """Table 3. None where no dataset has a card with statistics."""
    printed = paper.table(3)
    rows = []
    for dataset, same in by_dataset(groups).items():
        if card := _card(same):
            rows.append(
                [dataset.label, OURS, f"{card['episodes']}", *(f"{card['returns'][key]:.1f}" for key in STATISTICS[1:])]
            )
            if dataset.paper in printed:
                quoted: Mapping[str, Any] = printed[dataset.paper]
                rows.append(
                    [
                        dataset.label,
                        PAPER,
                        f"{quoted['episodes']:.0f}",
                        *(f"{quoted[key]:.1f}" for key in STATISTICS[1:]),
                    ]
                )
    return Table("table3", ["dataset", "from", *STATISTICS], rows) if rows else None


def other_data(groups: Sequence[Group]) -> list[str]:
    """One plain sentence for each dataset that only shares its name with one of the paper's."""
    printed, found = paper.table(3), []
    for dataset, same in by_dataset(groups).items():
        if dataset.paper not in printed or dataset.task.startswith("dmc_"):
            continue
        quoted: Mapping[str, Any] = printed[dataset.paper]
        theirs = f"the paper's has {quoted['episodes']:.0f} episodes of mean return {quoted['mean']:.1f}"
        card = _card(same)
        if card is None:
            found.append(f"{dataset.label}: whether these are the paper's episodes is not known; {theirs}.")
        elif card["episodes"] != quoted["episodes"] or abs(card["returns"]["mean"] - quoted["mean"]) >= 0.1:
            ours = f"{card['episodes']} episodes of mean return {card['returns']['mean']:.1f}"
            found.append(
                f"{dataset.label}: these data are not the paper's. They are {ours}; {theirs}. The numbers stand side "
                "by side, and do not compare."
            )
    return found


def _cell(found: Spread | None, form: str) -> str:
    return (
        NOTHING
        if found is None
        else f"{found.shown(form)}\nn {found.n}"
        if found.episodes
        else f"{found.shown(form)}\n{found.seeds} seeds"
    )


def _records(dataset: str, source: str, found: Mapping[str, Spread]) -> list[list[object]]:
    return [
        [dataset, method, source, each.mean, "" if np.isnan(each.std) else each.std, each.seeds, each.episodes]
        for method, each in found.items()
    ]
