"""What the page begins with: the result in one sentence, and the returns of every dataset in one picture."""

from collections import Counter
from collections.abc import Mapping, Sequence

from semopo_tf.report import csv_rows
from semopo_tf.report.groups import EVALUATE, Dataset, own_command
from semopo_tf.report.page import Panel, Part, figure_part
from semopo_tf.report.scores import Score, ScoreTable
from semopo_tf.report.svg import Dots, Style, dots
from semopo_tf.report.tables import span

LISTED_DATASETS = 3  # in the sentence; more of them are counted
CAPTION = """Mean return of an episode. A dot is one seed (the mean over its episodes at the last evaluated update), a
line the mean over seeds; the grey bar spans the lowest to the highest episode of the data, its line their mean. Dashed
lines are the returns that a normalised score calls 0 and 1. Numbers and standard deviations are in the table of
returns."""


def sentence(table: ScoreTable) -> str:
    """Which method has the highest mean return on which data."""
    compared = {dataset: scores for dataset in table.cards if (scores := table.of(dataset))}
    if not compared:
        return "No finished run has been evaluated yet, so there is no result."
    if len(compared) > LISTED_DATASETS:
        text = _counted(table, compared)
    else:
        text = "; ".join(_on_dataset(table, dataset, scores) for dataset, scores in compared.items())
        text = text[0].upper() + text[1:]
    scores = [score for same in compared.values() for score in same]
    single = list(dict.fromkeys(score.group.label for score in scores if score.raw.seeds == 1))
    if all(score.raw.seeds == 1 for score in scores):
        text += "; with one seed per method the order may be chance" if len(scores) > 1 else "; one seed says little"
    elif single:
        text += f"; with one seed of {_listing(single)} the order may be chance"
    return f"{text}."


def returns_part(table: ScoreTable, style: Style) -> Part:
    """A panel for each dataset: the data, every method, and the bounds that normalise."""
    panels = []
    for dataset, card in table.cards.items():
        scores, bounds = table.of(dataset), table.bounds[dataset.task]
        if not scores:
            continue
        data = card["returns"] if card else None
        rows = [Dots("the data", [], data["mean"], (data["min"], data["max"]))] if data else []
        for score in scores:
            seeds = [float(each.mean()) for each in score.returns.values()]
            rows.append(Dots(score.group.label, seeds, score.raw.mean))
        shows = "; ".join(f"{row.label} {row.mean:.1f}" for row in rows)
        svg = dots(dataset.label, rows, style, x="return of an episode", marks=bounds[:2] if bounds else ())
        panels.append(
            Panel(f"return {dataset.label}", f"{dataset.label}, mean return: {shows}", svg, csv_rows.of_dots(rows))
        )
    title, why = "The return of each method beside its data", "no finished run has scores."
    return figure_part("Return", title, panels, CAPTION, why, own_command(table.groups, EVALUATE))


def _on_dataset(table: ScoreTable, dataset: Dataset, scores: Sequence[Score]) -> str:
    """`on <data>, <method> has the highest mean return ...`"""
    best, card = max(scores, key=lambda score: score.raw.mean), table.cards[dataset]
    several = f" has the highest mean return of {len(scores)} methods:"
    has = several if len(scores) > 1 else ", the only method, averages"
    seeds = f"{_number(best.raw.seeds, 'seed')} of {_number(best.raw.episodes, 'episode')}"
    over = f"the {_number(card['episodes'], 'episode')} of its data" if card else ""
    data = f", against {card['returns']['mean']:.1f} over {over}" if card else ""
    return f"on {dataset.label}, {best.group.label}{has} {best.raw.mean:.1f} over {seeds}{data}"


def _counted(table: ScoreTable, compared: Mapping[Dataset, Sequence[Score]]) -> str:
    """`<method> has the highest mean return on 3 of 4 datasets, <method> on 1, ...`"""
    best = {dataset: max(scores, key=lambda score: score.raw.mean) for dataset, scores in compared.items()}
    wins = Counter(score.group.label for score in best.values()).most_common()
    text = f"{wins[0][0]} has the highest mean return on {wins[0][1]} of {len(compared)} datasets"
    text += "".join(f", {label} on {count}" for label, count in wins[1:])
    data = {dataset: card["returns"]["mean"] for dataset in best if (card := table.cards[dataset])}
    above = sum(best[dataset].raw.mean > mean for dataset, mean in data.items())
    seeds = [score.raw.seeds for scores in compared.values() for score in scores]
    episodes = [len(each) for scores in compared.values() for score in scores for each in score.returns.values()]
    text += f", with {span(seeds, ' to ')} seeds of {span(episodes, ' to ')} episodes"
    return f"{text}; on {above} of the {len(data)} datasets with a card it is above the mean return of the data"


def _number(count: int | str, noun: str) -> str:
    return f"{count} {noun}{'' if str(count) == '1' else 's'}"


def _listing(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
