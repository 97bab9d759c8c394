"""`python -m semopo_tf.report LOGDIR ... --out DIR`: every table and figure of the paper as one page about runs, from the files that they left.

    data, references      dataset.json of --data DIR ...: mean return of each behaviour
    runs                  config.yaml, dataset_manifest.json, metrics.jsonl, timing.jsonl, scores.jsonl, analysis/, videos/model-*.mp4
    imported runs         origin.json, metrics.jsonl, scores.jsonl

`index.html` is one file without scripts or links to elsewhere; it can be mailed and printed. `tables/` has each table as CSV and LaTeX, `figures/`
each drawing as SVG. What the given runs cannot support is named as missing. Needs no TensorFlow; equal files give equal bytes.
"""

import html
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from semopo_tf import aggregates, config, pictures, plots, score_tables
from semopo_tf.cards import read_card
from semopo_tf.errors import CommandParser, DataError, run_command
from semopo_tf.figures import Line, Style, lines, pairs
from semopo_tf.files import FILES, write_whole
from semopo_tf.groups import Group, bounds, grouped, labels
from semopo_tf.page import Panel, Part, Section, figure_part, page, paragraphs, table_part
from semopo_tf.probes import probe_part
from semopo_tf.runs import RunRecord, reached, read_run
from semopo_tf.tables import NOTHING, Table

RULES = ("definition", "paper_table1")
BEHAVIOURS = {"iid": "uniform random actions", "expert": "analytic controller"}  # others by their name
HOW = """Everything here is computed from the files that the runs left. A number with ± is the mean over seeds of each seed's mean return, and the population standard deviation over seeds; n
counts seeds × episodes of each. Only finished runs count, at their last evaluated update, in the environment of their dataset unless another is named."""
ONE_SEED = "There are methods with one seed here: one seed has no spread and ranks nothing."
PLAY = "python evaluate.py --logdir"


class Study(NamedTuple):
    """What the page is about."""

    groups: list[Group]
    rule: str
    units: list[str]  # the one for claims on this page first
    references: list[tuple[str, dict[str, float]]]
    style: Style


def main(argv: list[str]) -> int:
    """Write the page and its files.

    Raises:
      SemopoError: any of `errors`; ConfigError for a directory that is no run, DataError for a file that is not what a run writes.
    """
    parser = CommandParser(prog="python -m semopo_tf.report", description=__doc__.splitlines()[0])
    parser.add_argument("logdirs", nargs="+", type=Path, metavar="LOGDIR")
    parser.add_argument("--data", nargs="*", type=Path, default=[], help="datasets with a card, whose mean returns stand beside those of the runs")
    parser.add_argument("--out", required=True, type=Path, help="folder of the page, index.html")
    parser.add_argument("--title", default="semopo_tf: report")
    parser.add_argument("--unit", choices=aggregates.UNITS, default="seed", help="what counts as a run in aggregates; the other stands beside it")
    parser.add_argument("--normalisation", choices=RULES, default="definition", help="the paper's rule, or the constants that give its Table 1")
    arguments = parser.parse_args(argv)
    places = {logdir.expanduser().resolve(): logdir.expanduser() for logdir in arguments.logdirs}
    runs = [read_run(logdir) for logdir in places.values()]
    used = {Path(run.settings["offline_dir"]).expanduser().resolve() for run in runs if run.settings}
    references = [read_reference(directory.expanduser()) for directory in arguments.data if directory.expanduser().resolve() not in used]
    groups, left_out = grouped(runs)
    units = sorted(aggregates.UNITS, key=lambda unit: unit != arguments.unit)
    study = Study(groups, arguments.normalisation, units, references, Style(labels(groups)))
    sections = [runs_section(study, left_out), curves_section(study), tables_section(study), *model_sections(study)]
    write(arguments.out, page(arguments.title, lead(study), sections), sections)
    print(f"report: {arguments.out / 'index.html'}")
    return 0


def read_reference(directory: Path) -> tuple[str, dict[str, Any]]:
    """(behaviour, its statistics) of a dataset.

    Raises:
      DataError: for a dataset without a complete card.
    """
    card = read_card(directory)
    if not card or {"returns", "episodes", "policy"} - set(card) or set(score_tables.STATISTICS[1:]) - set(card["returns"]):
        raise DataError(f"{directory}: expected a dataset with a complete card; collect it with python -m semopo_tf.collect")
    return BEHAVIOURS.get(card["policy"], f"{card['policy']} behaviour"), card["returns"] | {"episodes": card["episodes"]}


def write(out: Path, text: str, sections: Sequence[Section]) -> None:
    """The page last, so that it never speaks of files that are not there."""
    files = {name: data for section in sections for part in section.parts for name, data in part.files.items()}
    for folder in (out, *(out / name for name in sorted({name.split("/")[0] for name in files}))):
        FILES.make_directory(folder)
    for name, data in files.items():
        write_whole(out / name, data)
    write_whole(out / "index.html", text.encode())


def lead(study: Study) -> str:
    few = any(len(group.finished) == 1 for group in study.groups)
    return paragraphs(HOW, ONE_SEED if few else "", kind="lead")


# --- 1. the runs -----------------------------------------------------------------------------------------------------------------------------


def runs_section(study: Study, left_out: Collection[str]) -> Section:
    header = ["dataset", "method", "seeds", "model updates", "policy updates", "episodes a seed", "model, min", "policy, min", "finished"]
    rows = []
    for group in study.groups:
        updates = [_range([reached(run, phase) for run in group.runs]) for phase in ("model", "policy")]
        minutes = [_mean([run.minutes[phase] for run in group.runs if phase in run.minutes]) for phase in ("model", "policy")]
        done = "imported" if group.runs[0].origin else f"{len(group.finished)} of {len(group.runs)}"
        seeds = ", ".join(str(run.seed) for run in group.runs)
        rows.append([group.dataset.label, group.label, seeds, *updates, _range([len(run.returns()) for run in group.runs]), *minutes, done])
    caption = "Minutes are the mean wall-clock time of training a seed, compilation and evaluations included, on whatever machine and beside whatever else it ran."
    part = table_part("Runs", "The runs", Table("runs", header, rows), caption)
    open_ends = [run for group in study.groups for run in group.runs if not run.finished]
    notes = [f"{run.logdir}: not finished; it is in no table and no figure but the learning curves. The same train.py command continues it." for run in open_ends]
    notes += [f"{run.logdir}: finished, but scores.jsonl has no row; {PLAY} {run.logdir}" for g in study.groups for run in g.finished if not run.scores]
    return Section("Runs and settings", [part._replace(body=part.body + paragraphs(*notes, *left_out) + settings(study.groups))])


def settings(groups: Sequence[Group]) -> str:
    """What differs from the defaults, once for all seeds of a group."""
    usual, found = config.defaults().flat(), []
    for group in groups:
        run = group.runs[0]
        own = [key for key in run.settings if key not in ("logdir", "offline_dir", "seed") and run.settings[key] != usual.get(key)]
        text = "\n".join(f"{key}: {run.settings[key]}" for key in own) if run.settings else f"imported from {run.origin}: its settings are not known"
        found.append(f"<details><summary>{html.escape(f'{group.dataset.label}, {group.label}')}</summary><pre>{html.escape(text)}</pre></details>")
    return "<h4>Settings that differ from the defaults</h4>" + "".join(found)


def _range(values: Sequence[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)}-{max(values)}"


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.1f}" if values else NOTHING


def curves_section(study: Study) -> Section:
    return Section("Learning curves", [plots.learning_curves(study.groups, study.style)])


# --- 2. tables -------------------------------------------------------------------------------------------------------------------------------


def tables_section(study: Study) -> Section:
    before = paragraphs(*score_tables.other_data(study.groups), *scales(study))
    return Section("Tables", [returns_part(study), *(numbered_part(study, number) for number in (1, 2)), data_part(study), *(numbered_part(study, n) for n in (4, 5))], before)


def scales(study: Study) -> list[str]:
    """What is 0 and 1 of a normalised score."""
    found = []
    for task in dict.fromkeys(group.dataset.task for group in study.groups):
        limits = bounds(task, study.rule, study.groups)
        whose = f"the paper's constants, rule {study.rule}" if limits and limits.published else "the paper has no constants: smallest and largest episode return of the runs' own datasets"
        found.append(f"{task}: {limits.low:.1f} to {limits.high:.1f} ({whose})" if limits else f"{task}: not normalised, the runs do not say their data's returns")
    return [f"Normalised scores, return at 0 and at 1: {'; '.join(found)}."]


def returns_part(study: Study) -> Part:
    table = score_tables.all_returns(study.groups, study.rule, study.references)
    caption = """All finished runs in all environments that they were evaluated in, with their data and other behaviours for comparison. Std, min and max are over the episodes of all seeds together; the
last column quotes the paper's raw return where it has a dataset of that name."""
    return table_part("Returns", "Returns of these runs", table, caption)


TABLES = {
    # number: (title, what the caption says, format)
    1: ("Normalised return on LQV-D4RL", "Mean normalised return, population standard deviation over seeds.", ".2f"),
    2: ("Normalised return before an rgb background, data grey", "As Table 1, evaluated with --background_color rgb while the data are grey.", ".2f"),
    4: ("Raw return without distractors (V-D4RL)", "Mean return; the paper quotes all but its own column from the V-D4RL paper.", ".0f"),
    5: ("Raw return on LQV-D4RL", "Mean return, population standard deviation over seeds.", ".0f"),
}


def numbered_part(study: Study, number: int) -> Part:
    """Table 1, 2, 4 or 5."""
    title, said, form = TABLES[number]
    choices = {1: score_tables.normalised(study.groups, study.rule), 2: score_tables.distracted(study.groups, study.rule)}
    table = score_tables.beside_paper(number, study.groups, choices.get(number, score_tables.raw), form, score_tables.in_paper(number))
    if table is None:
        return Part(f"Table {number}", title, missing=MISSING[number], command=_command(study, number))
    caption = f"{said} Rows marked paper are the printed values, 4 seeds. Columns without a value in the first row are methods that no given run is of."
    return table_part(f"Table {number}", title, table, caption)


MISSING = {
    1: "no finished run with scores is on a dataset with a name of the paper's Table 1.",
    2: "no finished run on grey data of Table 2 was evaluated with an rgb background.",
    4: "no finished run with scores is on a dataset dmc_* with a name of the paper's Table 4.",
    5: "no finished run with scores is on a dataset with a name of the paper's Table 5.",
}


def _command(study: Study, number: int) -> str:
    if number == 2:
        fitting = (run for group in study.groups if score_tables.in_paper(2)(group.dataset) for run in group.finished)
        return next((f"{PLAY} {run.logdir} --background_color rgb" for run in fitting), f"{PLAY} LOGDIR --background_color rgb")
    task = "dmc_walker_walk" if number == 4 else "dmcdrv_walker_walk"
    return f"python train.py --configs semopo walker_walk --task {task} --offline_dir DATA/random --logdir LOGDIR"


def data_part(study: Study) -> Part:
    title, table = "Statistics of the datasets: return of an episode", score_tables.dataset_table(study.groups)
    if table is None:
        return Part("Table 3", title, missing="no given run's dataset has a card with statistics.", command="python -m semopo_tf.data stats DATA")
    return table_part("Table 3", title, table, "From dataset_manifest.json of the runs. Std is over episodes. The paper's datasets were collected with TIA policies; see the card for ours.")


# --- 3. all tasks together, and the models -----------------------------------------------------------------------------------------------------


def model_sections(study: Study) -> list[Section]:
    groups, style = study.groups, study.style
    figures = [*plots.uncertainties(groups, style), pictures.frames_part(groups), pictures.reconstructions_part(groups)]
    figures += [plots.action_entropy(groups, style), plots.gradient_norms(groups, style)]
    figures.sort(key=lambda part: int(part.name.split()[1]))
    return [Section("All tasks together", aggregate_parts(study)), Section("The models", figures), Section("What the states know", [probe_part(groups), pictures.strips_part(groups)])]


def aggregate_parts(study: Study) -> list[Part]:
    """The aggregates, Figure 4 and Figure 10, for both units."""
    titles = {"Aggregates": "Aggregates over tasks", "Figure 4": "Probability of improvement", "Figure 10": "Performance profiles"}
    found = aggregates.compared(study.groups, study.rule)
    if found is None:
        why = "no finished run has scores that can be normalised."
        return [Part(name, title, missing=why, command=f"{PLAY} LOGDIR") for name, title in titles.items()]
    about = f"""On {', '.join(dataset.label for dataset in found.datasets)}. Unit seed: a score is the mean of a seed's episodes, for claims about methods. Unit episode: each episode is a score, as in the
paper's figures; episodes of one seed are not independent, so these intervals are too narrow for claims. This page claims by {study.units[0]}. Intervals: 95 %, percentiles of {aggregates.REPLICATES}
stratified bootstrap replicates; with one seed there is none, and with fewer than about four seeds it is too narrow. {' '.join(f'Left out: {each}.' for each in found.left_out)}"""
    table = aggregates.aggregate_table(found, study.units)
    parts = [table_part("Aggregates", titles["Aggregates"], table, f"Of normalised scores; the gap is to the score 1, lower is better. {about}")]
    if len(found.scores["seed"]) > 1:
        parts.append(improvement_part(found, study.units, about))
    else:
        parts.append(Part("Figure 4", titles["Figure 4"], missing="it compares two methods on the same datasets, and the given runs have one.", command="python train.py --configs se_rs ..."))
    return [*parts, profile_part(found, study, about)]


def improvement_part(found: aggregates.Compared, units: Sequence[str], about: str) -> Part:
    panels = []
    for unit in units:
        rows = [(x, y, float(each.estimate), float(each.low), float(each.high)) for x, y, each in aggregates.improvements(found.scores[unit])]
        title = f"Probability of improvement, unit {unit}"
        panels.append(Panel(f"figure4 {unit}", f"{title}; values in the table below", pairs(title, rows)))
    part = figure_part("Figure 4", "Probability of improvement", panels, f"P(X > Y), X on the left, Y on the right; bar: interval, mark: estimate. {about}")
    table = aggregates.improvement_table(found, units)
    return part._replace(body=part.body + table.html(), files=part.files | table.files())


def profile_part(found: aggregates.Compared, study: Study, about: str) -> Part:
    panels = []
    for unit in study.units:
        thresholds, curves = aggregates.profiles(found.scores[unit])
        drawn = [Line(label, thresholds, each.estimate, each.low, each.high) for label, each in curves.items()]
        title = f"Performance profile, unit {unit}"
        panels.append(Panel(f"figure10 {unit}", title, lines(title, drawn, study.style, x="normalised score", y="fraction above")))
    caption = f"Fraction of scores strictly above each value, with pointwise bands: they hold at each value, not for the whole curve. {about}"
    return figure_part("Figure 10", "Performance profiles", panels, caption)


if __name__ == "__main__":
    run_command(main)
