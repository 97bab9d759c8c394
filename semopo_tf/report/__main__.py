"""`python -m semopo_tf.report LOGDIR ... --out DIR`: one page about runs with every table and figure of the paper, made
from the files of the runs.

    data, references      dataset.json of --data DIR ...: mean return of each behaviour
    runs                  config.yaml, dataset_manifest.json, metrics.jsonl, timing.jsonl, scores.jsonl, analysis/,
                          videos/model-*.mp4
    imported runs         origin.json, metrics.jsonl, scores.jsonl

`index.html` is one file without scripts or external links; it can be mailed and printed. It begins with the result and
ends with what the given runs cannot show. `scores.csv` has a row for each run, `tables/` each table as CSV and LaTeX,
`figures/` each drawing as SVG and its numbers as CSV. Needs no TensorFlow; equal files give equal bytes.
"""

import html
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from semopo_tf.config import task_name
from semopo_tf.data.cards import read_card
from semopo_tf.errors import CommandParser, ConfigError, DataError, StorageError, run_command, user_path
from semopo_tf.report import comparisons, figures, paper, paper_tables, pictures, result
from semopo_tf.report.groups import EVALUATE, Group, grouped, labels, uneven
from semopo_tf.report.page import Part, Section, page, paragraphs, table_part
from semopo_tf.report.penalties import bound_part, trust_part
from semopo_tf.report.probes import probe_part
from semopo_tf.report.run_record import RunRecord, reached, read_run, usual_settings
from semopo_tf.report.scores import STATISTICS, score_table
from semopo_tf.report.svg import Style
from semopo_tf.report.tables import NOTHING, Table, span
from semopo_tf.storage.files import FILES, remedy, write_whole

BEHAVIOURS = {"iid": "uniform random actions", "expert": "analytic controller"}  # others are shown by name
CLOCK = """Minutes are the mean wall-clock time of training a seed, compilation and evaluations included, on whatever
machine it ran and beside whatever else ran there."""


def main(argv: list[str]) -> int:
    """Write the page and its files.

    Raises:
      SemopoError: any of `errors`; ConfigError for a directory that is not that of a run, DataError for a file that
        differs from what a run writes.
    """
    arguments = parse(argv)
    logdirs = {logdir.resolve(): logdir for logdir in arguments.logdirs}
    runs = [read_run(logdir) for logdir in logdirs.values()]
    used = {user_path(run.settings["offline_dir"]).resolve() for run in runs if run.settings}
    unused = [directory for directory in arguments.data if directory.resolve() not in used]
    references = [read_reference(directory) for directory in unused]
    groups, left_out = grouped(runs)
    style, table = Style(labels(groups)), score_table(groups, arguments.normalisation)
    units = sorted(comparisons.UNITS, key=lambda unit: unit != arguments.unit)
    seen = (pictures.strips_part, pictures.reconstructions_part, pictures.frames_part)
    curves = [figures.learning_curves(groups, style), figures.gradient_norms(groups, style)]
    tables = paper_tables.tables_section(table, references, [read_data_row(directory) for directory in unused])
    sections = [
        Section("Result", [result.returns_part(table, style)]),
        Section("What the models see", [part(groups) for part in seen]),
        Section("Curves", [*curves, figures.action_entropy(groups, style)]),
        Section("Uncertainty", [*figures.uncertainties(groups, style), trust_part(groups), bound_part(groups)]),
        tables._replace(parts=[*tables.parts, probe_part(groups)]),
        comparisons.aggregate_section(table, units, style),
        Section("Runs and settings", [runs_part(groups, left_out)]),
    ]
    write(arguments.out, page(arguments.title, result.sentence(table), sections), sections)
    print(f"report: {arguments.out / 'index.html'}")
    return 0


def parse(argv: Sequence[str]) -> Any:
    """The flags."""
    parser = CommandParser(prog="python -m semopo_tf.report", description=__doc__.splitlines()[0])
    parser.add_argument("logdirs", nargs="*", type=Path, metavar="LOGDIR")
    about = "datasets with a card, whose returns are listed beside those of the runs, and in Table 3"
    parser.add_argument("--data", nargs="*", type=Path, default=[], help=about)
    parser.add_argument("--out", required=True, type=Path, help="folder of the page, index.html")
    parser.add_argument("--title", default="semopo_tf: report")
    about = "what counts as a run in aggregates; the other unit is listed beside it"
    parser.add_argument("--unit", choices=comparisons.UNITS, default="seed", help=about)
    about = "the paper's rule, or the constants that reproduce its Table 1"
    parser.add_argument("--normalisation", choices=paper.RULES, default="definition", help=about)
    arguments = parser.parse_args(argv)
    if not arguments.logdirs and not arguments.data:
        raise ConfigError("report: expected logdirs of runs, or datasets after --data, received none; name some")
    return arguments


def read_reference(directory: Path) -> tuple[str, dict[str, Any]]:
    """(behaviour, statistics of its returns) of a dataset.

    Raises:
      DataError: for a dataset without a complete card.
    """
    card = read_card(directory)
    if not card or {"returns", "episodes", "policy"} - set(card) or set(STATISTICS) - set(card["returns"]):
        raise DataError(
            f"{directory}: expected a dataset with a complete card; collect it with python -m semopo_tf.collect"
        )
    name = BEHAVIOURS.get(card["policy"], f"{card['policy']} behaviour")
    return name, card["returns"] | {"episodes": card["episodes"]}


def read_data_row(directory: Path) -> paper_tables.DataRow:
    """A dataset's row of Table 3.

    Raises:
      DataError: for a dataset without a complete card.
    """
    _, returns = read_reference(directory)
    card = read_card(directory) or {}
    level = card.get("level", directory.name)
    task = card.get("task", "")
    of_table = "" if task.startswith("dmc_") else f"{task_name(task)} {level}"
    return paper_tables.DataRow(f"{task or directory.parent.name} {level}", of_table, returns)


def write(out: Path, text: str, sections: Sequence[Section]) -> None:
    """Write the files, and the page last, so that it never refers to a file that is not there.

    Raises:
      StorageError: when the folder cannot be written.
    """
    files = {name: data for section in sections for part in section.parts for name, data in part.files.items()}
    for folder in sorted({out, *((out / name).parent for name in files)}):
        try:
            FILES.make_directory(folder)
        except OSError as error:
            helps = remedy(error, "choose another folder")
            raise StorageError(f"--out {folder}: cannot be made ({error.strerror}); {helps}") from error
    for name, data in files.items():
        write_whole(out / name, data)
    write_whole(out / "index.html", text.encode())


def runs_part(groups: Sequence[Group], left_out: Collection[str]) -> Part:
    """The given runs, which of them do not count, and their settings."""
    stages = list(dict.fromkeys(stage for group in groups for run in group.runs for stage in run.stages))
    header = ["dataset", "method", "seeds", *(f"{stage} updates" for stage in stages), "episodes per seed"]
    header += [*(f"{stage}, min" for stage in stages), "finished"]
    part = table_part("Runs", "The runs", Table("runs", header, [_run_row(group, stages) for group in groups]), CLOCK)
    notes = []
    for run in (run for group in groups for run in group.runs):
        if not run.finished:
            notes.append(f"{run.logdir}: {unfinished(run)}")
        elif not run.scores:
            notes.append(f"{run.logdir}: {unevaluated(run)}")
        elif run.origin and run.end is None:
            known = "it is not known at which step it should have ended, and it counts as finished"
            notes.append(f"{run.logdir}: imported; {known}. Import it with --steps to have this checked.")
    return part._replace(body=part.body + paragraphs(*notes, *uneven(groups), *left_out) + settings(groups))


def unfinished(run: RunRecord) -> str:
    """Where a run that is not finished is shown, and what finishes it."""
    where = "it is in no table and no figure but the learning curves"
    if not run.origin:
        return f"not finished; {where}. The same train.py command continues it."
    helps = "Its own program can finish it; import it again then."
    if run.end is not None and run.last_step < run.end and run.stages[-1:] == ["policy"]:
        helps += f" If it was stopped on purpose, import it with --steps {run.last_step}."
    return f"imported, and the run {run.unfinished}; {where}. {helps}"


def unevaluated(run: RunRecord) -> str:
    """What a finished run lacks, and for a run of this package the command that supplies it."""
    if run.origin:
        return "imported, without an evaluation of its trained policy; it is in no table of returns."
    return f"finished, but scores.jsonl has no row of its last stage; {EVALUATE} {run.logdir} adds some."


def _run_row(group: Group, stages: Sequence[str]) -> list[str]:
    updates = [span([reached(run, stage) for run in group.runs]) for stage in stages]
    minutes = []
    for stage in stages:
        known = [run.minutes[stage] for run in group.runs if stage in run.minutes]
        minutes.append(f"{sum(known) / len(known):.1f}" if known else NOTHING)
    done = f"{len(group.finished)} of {len(group.runs)}"
    done += ", imported" if group.runs[0].origin else ""
    seeds, episodes = ", ".join(str(run.seed) for run in group.runs), span([len(run.returns()) for run in group.runs])
    return [group.dataset.label, group.label, seeds, *updates, episodes, *minutes, done]


def settings(groups: Sequence[Group]) -> str:
    """The settings that differ from the defaults, once for all seeds of a group."""
    usual, blocks = usual_settings(), []
    for group in groups:
        run = group.runs[0]
        lines = [f"imported from {run.origin}: its settings are not known"] if run.origin else []
        for key, value in run.settings.items():
            if key not in ("logdir", "offline_dir", "seed") and value != usual.get(key):
                lines.append(f"{key}: {value}")
        name, text = html.escape(f"{group.dataset.label}, {group.label}"), html.escape("\n".join(lines))
        blocks.append(f"<details><summary>{name}</summary><pre>{text}</pre></details>")
    return f"<h4>Settings that differ from the defaults</h4><div class=settings>{''.join(blocks)}</div>"


if __name__ == "__main__":
    run_command(main)
