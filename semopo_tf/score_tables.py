"""The paper's Tables 1 to 5 beside the same figures of the given runs, and a table of all returns (App. D.2, F; facts.md 1.10 and 1.11)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from semopo_tf import published
from semopo_tf.groups import Bounds, Dataset, Group, Spread, bounds, by_dataset, labels, spread
from semopo_tf.tables import NOTHING, PAPER, Table

RGB = "background_color rgb"
STATISTICS = ("episodes", "mean", "std", "min", "p25", "median", "p75", "max")
RECORD = ["dataset", "method", "source", "mean", "std", "seeds", "episodes"]
OURS = "these runs"

Choice = Callable[[Group], list[np.ndarray]]  # of scores: one array of episodes a seed


def beside_paper(number: int, groups: Sequence[Group], choose: Choice, form: str, wanted: Callable[[Dataset], bool]) -> Table | None:
    """Rows: each dataset twice, these runs and the paper. None where no run has scores for it.

    Args:
      wanted: whether a dataset belongs into this table.
    """
    printed = published.table(number)
    found = {(group.dataset, group.label): spread(values) for group in groups if wanted(group.dataset) and (values := choose(group))}
    if not found:
        return None
    methods = labels(group for group in groups if (group.dataset, group.label) in found)
    columns = [*methods, *(name for name in published.METHODS if name not in methods and any(name in row for row in printed.values()))]
    rows, records = [], [RECORD]
    for dataset in dict.fromkeys(dataset for dataset, _ in found):
        ours = {label: found[dataset, label] for label in methods if (dataset, label) in found}
        paper = {method: Spread(*figures, published.SEEDS, "") for method, figures in printed.get(dataset.paper, {}).items()}
        rows.append([dataset.label, OURS, *(_cell(ours.get(name), form) for name in columns)])
        rows.append([dataset.label, PAPER, *(_cell(paper.get(name), form) for name in columns)])
        records += _records(dataset.label, OURS, ours) + _records(dataset.label, PAPER, paper)
    return Table(f"table{number}", ["dataset", "from", *columns], rows, records)


def normalised(groups: Sequence[Group], rule: str) -> Choice:
    """Scores in the environment of the data, between the bounds of the task."""
    return lambda group: _scaled(group.returns(), bounds(group.dataset.task, rule, groups))


def raw(group: Group) -> list[np.ndarray]:
    """Returns in the environment of the data."""
    return group.returns()


def distracted(groups: Sequence[Group], rule: str) -> Choice:
    """Normalised scores before an rgb background of a method whose data are grey; of several such conditions the one that changes least."""
    return lambda group: _scaled(group.returns(rgb_condition(group)), bounds(group.dataset.task, rule, groups))


def rgb_condition(group: Group) -> str:
    """The condition of Table 2; empty where there is none."""
    grey = group.runs[0].card.get("background", {}).get("color") == "grey"
    found = [condition for condition in group.conditions() if RGB in condition.split(", ")]
    return min(found, key=len) if found and grey else "none of these"


def _scaled(values: Sequence[np.ndarray], found: Bounds | None) -> list[np.ndarray]:
    return [found.scale(each) for each in values] if found else []


def in_paper(number: int) -> Callable[[Dataset], bool]:
    """Whether a dataset's name is one of a table of the paper, and its task has the distractors that the table is about."""
    plain = number == 4
    return lambda dataset: dataset.paper in published.table(number) and dataset.task.startswith("dmc_") == plain


def all_returns(groups: Sequence[Group], rule: str, references: Sequence[tuple[str, Mapping[str, float]]]) -> Table:
    """Every dataset, method and condition, with the statistics of the data and of reference behaviours as rows of their own."""
    header = ["dataset", "method", "environment", "seeds × episodes", "return, mean ± std of seeds", "std of episodes", "min", "max", "normalised", PAPER]
    rows = [["", name, "as the data", f"{int(returns['episodes'])} episodes", *_statistics(returns), NOTHING, NOTHING] for name, returns in references]
    for dataset, same in by_dataset(groups).items():
        card = next((run.card for group in same for run in group.runs if "returns" in run.card), None)
        if card:
            name = f"the data ({card.get('policy', 'unknown')})"
            rows.append([dataset.label, name, "as the data", f"{card['episodes']} episodes", *_statistics(card["returns"]), NOTHING, NOTHING])
        printed = published.table(4 if dataset.task.startswith("dmc_") else 5).get(dataset.paper, {})
        for group in same:
            rows += [_return_row(group, condition, bounds(dataset.task, rule, groups), printed) for condition in group.conditions()]
    return Table("returns", header, rows)


def dataset_table(groups: Sequence[Group]) -> Table | None:
    """Table 3. None where no dataset has a card with statistics."""
    printed = published.table(3)
    rows = []
    for dataset, same in by_dataset(groups).items():
        card = next((run.card for group in same for run in group.runs if "returns" in run.card), None)
        if card:
            rows.append([dataset.label, OURS, f"{card['episodes']}", *(f"{card['returns'][key]:.1f}" for key in STATISTICS[1:])])
            if dataset.paper in printed:
                paper: Mapping[str, Any] = printed[dataset.paper]
                rows.append([dataset.label, PAPER, f"{paper['episodes']:.0f}", *(f"{paper[key]:.1f}" for key in STATISTICS[1:])])
    return Table("table3", ["dataset", "from", *STATISTICS], rows) if rows else None


def other_data(groups: Sequence[Group]) -> list[str]:
    """One plain sentence for each dataset that only shares its name with one of the paper's."""
    printed, found = published.table(3), []
    for dataset, same in by_dataset(groups).items():
        if dataset.paper not in printed or dataset.task.startswith("dmc_"):
            continue
        paper: Mapping[str, Any] = printed[dataset.paper]
        theirs = f"the paper's has {paper['episodes']:.0f} episodes of mean return {paper['mean']:.1f}"
        card = next((run.card for group in same for run in group.runs if "returns" in run.card), None)
        if card is None:
            found.append(f"{dataset.label}: whether these are the paper's episodes is not known; {theirs}.")
        elif card["episodes"] != paper["episodes"] or abs(card["returns"]["mean"] - paper["mean"]) >= 0.1:
            ours = f"{card['episodes']} episodes of mean return {card['returns']['mean']:.1f}"
            found.append(f"{dataset.label}: these data are not the paper's. They are {ours}; {theirs}. The numbers stand side by side, and do not compare.")
    return found


def _cell(found: Spread | None, form: str) -> str:
    return NOTHING if found is None else f"{found.shown(form)}\nn {found.count}" if found.episodes else f"{found.shown(form)}\n{found.seeds} seeds"


def _records(dataset: str, source: str, found: Mapping[str, Spread]) -> list[list[object]]:
    return [[dataset, method, source, each.mean, "" if np.isnan(each.std) else each.std, each.seeds, each.episodes] for method, each in found.items()]


def _statistics(returns: Mapping[str, float]) -> list[str]:
    return [f"{returns[key]:.1f}" for key in ("mean", "std", "min", "max")]


def _return_row(group: Group, condition: str, found: Bounds | None, printed: Mapping[str, Any]) -> list[str]:
    values = group.returns(condition)
    together, over_seeds = np.concatenate(values), spread(values)
    scaled = spread(_scaled(values, found)).shown(".2f") if found else NOTHING
    figures = [f"{figure:.1f}" for figure in (together.std(), together.min(), together.max())]
    paper = f"{printed[group.method][0]:.0f} ± {printed[group.method][1]:.0f}" if group.method in printed and not condition else NOTHING
    return [group.dataset.label, group.label, condition or "as the data", over_seeds.count, over_seeds.shown(".1f"), *figures, scaled, paper]
