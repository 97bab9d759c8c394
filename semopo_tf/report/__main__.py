"""`python -m semopo_tf.report LOGDIR ... --out DIR`: every table and figure of the paper as one page about runs, from
the files that they left.

    data, references      dataset.json of --data DIR ...: mean return of each behaviour
    runs                  config.yaml, dataset_manifest.json, metrics.jsonl, timing.jsonl, scores.jsonl, analysis/,
    videos/model-*.mp4
    imported runs         origin.json, metrics.jsonl, scores.jsonl

`index.html` is one file without scripts or links to elsewhere; it can be mailed and printed. `tables/` has each table
as CSV and LaTeX, `figures/` each drawing as SVG. What the given runs cannot support is named as missing. Needs no
TensorFlow; equal files give equal
bytes.
"""

import html
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from semopo_tf.data.cards import read_card
from semopo_tf.errors import CommandParser, DataError, StorageError, run_command
from semopo_tf.report import bootstrap, comparisons, figures, paper, paper_tables, pictures
from semopo_tf.report.groups import Group, grouped, labels
from semopo_tf.report.page import Section, page, paragraphs, table_part
from semopo_tf.report.probes import probe_part
from semopo_tf.report.run_record import reached, read_run, usual_settings
from semopo_tf.report.svg import Style
from semopo_tf.report.tables import NOTHING, TIMES, Table
from semopo_tf.storage.files import FILES, write_whole

BEHAVIOURS = {"iid": "uniform random actions", "expert": "analytic controller"}  # others by their name
HOW = f"""Everything here is computed from the files that the runs left. A number with ± is the mean over seeds of each seed's mean return, and the
population standard deviation over seeds; n counts seeds {TIMES} episodes of each. Only finished runs count, at their last evaluated update, in the
environment of their dataset unless another is named."""
ONE_SEED = "Some methods have one seed here: one seed has no spread and ranks nothing."
CLOCK = """Minutes are the mean wall-clock time of training a seed, compilation and evaluations included, on whatever machine and beside whatever else
it ran."""


def main(argv: list[str]) -> int:
    """Write the page and its files.

    Raises:
      SemopoError: any of `errors`; ConfigError for a directory that is no run, DataError for a file that is not what a
        run writes.
    """
    parser = CommandParser(prog="python -m semopo_tf.report", description=__doc__.splitlines()[0])
    parser.add_argument("logdirs", nargs="+", type=Path, metavar="LOGDIR")
    parser.add_argument(
        "--data",
        nargs="*",
        type=Path,
        default=[],
        help="datasets with a card, whose mean returns stand beside those of the runs",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the page, index.html")
    parser.add_argument("--title", default="semopo_tf: report")
    parser.add_argument(
        "--unit",
        choices=bootstrap.UNITS,
        default="seed",
        help="what counts as a run in aggregates; the other stands beside it",
    )
    parser.add_argument(
        "--normalisation",
        choices=paper.RULES,
        default="definition",
        help="the paper's rule, or the constants that give its Table 1",
    )
    arguments = parser.parse_args(argv)
    places = {logdir.expanduser().resolve(): logdir.expanduser() for logdir in arguments.logdirs}
    runs = [read_run(logdir) for logdir in places.values()]
    used = {Path(run.settings["offline_dir"]).expanduser().resolve() for run in runs if run.settings}
    references = [
        read_reference(directory.expanduser())
        for directory in arguments.data
        if directory.expanduser().resolve() not in used
    ]
    groups, left_out = grouped(runs)
    style, rule = Style(labels(groups)), arguments.normalisation
    units = sorted(bootstrap.UNITS, key=lambda unit: unit != arguments.unit)
    sections = [
        runs_section(groups, left_out),
        Section("Learning curves", [figures.learning_curves(groups, style)]),
        paper_tables.tables_section(groups, rule, references),
        comparisons.aggregate_section(groups, rule, units, style),
        models_section(groups, style),
        Section("What the states know", [probe_part(groups), pictures.strips_part(groups)]),
    ]
    single = any(len(group.finished) == 1 for group in groups)
    write(
        arguments.out,
        page(arguments.title, paragraphs(HOW, ONE_SEED if single else "", kind="lead"), sections),
        sections,
    )
    print(f"report: {arguments.out / 'index.html'}")
    return 0


def read_reference(directory: Path) -> tuple[str, dict[str, Any]]:
    """(behaviour, its statistics) of a dataset.

    Raises:
      DataError: for a dataset without a complete card.
    """
    card = read_card(directory)
    if (
        not card
        or {"returns", "episodes", "policy"} - set(card)
        or set(paper_tables.STATISTICS[1:]) - set(card["returns"])
    ):
        raise DataError(
            f"{directory}: expected a dataset with a complete card; collect it with python -m semopo_tf.collect"
        )
    return BEHAVIOURS.get(card["policy"], f"{card['policy']} behaviour"), card["returns"] | {
        "episodes": card["episodes"]
    }


def write(out: Path, text: str, sections: Sequence[Section]) -> None:
    """The page last, so that it never speaks of files that are not there.

    Raises:
      StorageError: when the folder cannot be written.
    """
    files = {name: data for section in sections for part in section.parts for name, data in part.files.items()}
    for folder in (out, *(out / name for name in sorted({name.split("/")[0] for name in files}))):
        try:
            FILES.make_directory(folder)
        except OSError as error:
            raise StorageError(
                f"--out {folder}: cannot be made ({error.strerror}); free some space or choose another folder"
            ) from error
    for name, data in files.items():
        write_whole(out / name, data)
    write_whole(out / "index.html", text.encode())


def runs_section(groups: Sequence[Group], left_out: Collection[str]) -> Section:
    """What was run, what of it does not count, and the settings."""
    header = [
        "dataset",
        "method",
        "seeds",
        "model updates",
        "policy updates",
        "episodes a seed",
        "model, min",
        "policy, min",
        "finished",
    ]
    rows = [_run_row(group) for group in groups]
    part = table_part("Runs", "The runs", Table("runs", header, rows), CLOCK)
    notes = []
    for run in (run for group in groups for run in group.runs):
        if not run.finished:
            notes.append(
                f"{run.logdir}: not finished; in no table, and in no figure but the learning curves. The same "
                "train.py command continues it."
            )
        elif not run.scores:
            notes.append(
                f"{run.logdir}: finished, but scores.jsonl has no row; {paper_tables.PLAY} {run.logdir} adds some."
            )
    return Section(
        "Runs and settings", [part._replace(body=part.body + paragraphs(*notes, *left_out) + settings(groups))]
    )


def _run_row(group: Group) -> list[str]:
    updates = [_range([reached(run, phase) for run in group.runs]) for phase in ("model", "policy")]
    minutes = [
        _mean([run.minutes[phase] for run in group.runs if phase in run.minutes]) for phase in ("model", "policy")
    ]
    done = "imported" if group.runs[0].origin else f"{len(group.finished)} of {len(group.runs)}"
    seeds, episodes = ", ".join(str(run.seed) for run in group.runs), _range([len(run.returns()) for run in group.runs])
    return [group.dataset.label, group.label, seeds, *updates, episodes, *minutes, done]


def settings(groups: Sequence[Group]) -> str:
    """What differs from the defaults, once for all seeds of a group."""
    usual, found = usual_settings(), []
    for group in groups:
        run = group.runs[0]
        own = [
            key
            for key in run.settings
            if key not in ("logdir", "offline_dir", "seed") and run.settings[key] != usual.get(key)
        ]
        text = (
            "\n".join(f"{key}: {run.settings[key]}" for key in own)
            if run.settings
            else f"imported from {run.origin}: its settings are not known"
        )
        found.append(
            f"<details><summary>{html.escape(f'{group.dataset.label}, {group.label}')}</summary><pre>{html.escape(text)}</pre></details>"
        )
    return f"<h4>Settings that differ from the defaults</h4><div class=settings>{''.join(found)}</div>"


def _range(values: Sequence[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)}-{max(values)}"


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.1f}" if values else NOTHING


def models_section(groups: Sequence[Group], style: Style) -> Section:
    """The figures that look into the models and their batches."""
    parts = [*figures.uncertainties(groups, style), pictures.frames_part(groups), pictures.reconstructions_part(groups)]
    parts += [figures.action_entropy(groups, style), figures.gradient_norms(groups, style)]
    return Section("The models", sorted(parts, key=lambda part: int(part.name.split()[1])))


if __name__ == "__main__":
    run_command(main)
