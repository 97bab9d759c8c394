"""Runs grouped by dataset and method: the runs of a group differ in the seed alone."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from semopo_tf.config import task_name
from semopo_tf.report import paper
from semopo_tf.report.run_record import RunRecord

ABLATIONS = ("semopo", "se_rs_drp", "se_rs", "offline_dv2")  # come first, in this order
# Settings that identify a run or change no result.
ELSEWHERE = {
    *("method", "seed", "logdir", "offline_dir", "cache_dir", "device", "remat", "replay", "jit", "updates_per_call"),
    *("gpu_tune", "xla_cache"),
    *("log_every", "save_every", "keep_checkpoints", "eval.every", "eval.episodes", "eval.final_episodes"),
    *("eval.environments", "eval.seed", "video.every", "video.episodes", "video.length", "video.context"),
}
ANALYSE = "python -m semopo_tf.analysis --logdir"
EVALUATE = "python evaluate.py --logdir"
SHOWN_SETTINGS = 3  # in the name of a variant


class Dataset(NamedTuple):
    """Episodes that runs were trained on."""

    label: str
    paper: str  # its name in the paper's tables if it were one of theirs, e.g. `walker_walk random`
    task: str
    directory: str = ""  # distinguishes it from others of its task and level, e.g. ` (second)`


class Group(NamedTuple):
    """The runs of one method with one setting on one dataset, one for each seed."""

    dataset: Dataset
    label: str  # the method, and the settings that distinguish its variants
    runs: list[RunRecord]  # by seed

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def finished(self) -> list[RunRecord]:
        return [run for run in self.runs if run.finished]

    def analysed(self, name: str) -> list[RunRecord]:
        """Finished runs that have an analysis."""
        return [run for run in self.finished if name in run.analyses]


def grouped(runs: Sequence[RunRecord]) -> tuple[list[Group], list[str]]:
    """Groups in the order of the page, and a line for each run that is left out as a duplicate."""
    by_group: dict[tuple[Dataset, str], dict[int, RunRecord]] = defaultdict(dict)
    left_out = []
    datasets, variants = _datasets(runs), _variants(runs)
    for run in sorted(runs, key=lambda run: not run.finished):  # of two equal ones, the finished one counts
        first = by_group[datasets[run.logdir], variants[run.logdir]].setdefault(run.seed, run)
        if first is not run:
            left_out.append(f"{run.logdir}: left out, the same method, settings, dataset and seed as {first.logdir}")
    groups = [Group(*key, [seeds[seed] for seed in sorted(seeds)]) for key, seeds in by_group.items()]
    return sorted(groups, key=lambda group: (_dataset_order(group.dataset), _method_order(group))), left_out


def labels(groups: Iterable[Group]) -> list[str]:
    """Labels of the methods of these groups, each once, in the order of methods."""
    return list(dict.fromkeys(group.label for group in sorted(groups, key=_method_order)))


def by_dataset(groups: Iterable[Group]) -> dict[Dataset, list[Group]]:
    by_name: dict[Dataset, list[Group]] = defaultdict(list)
    for group in groups:
        by_name[group.dataset].append(group)
    return by_name


def own_command(groups: Iterable[Group], words: str, flags: str = "") -> str:
    """A command on the first finished run of this package, e.g. `python -m semopo_tf.analysis --logdir runs/a`. Empty
    where all runs are imported: their policies are not here, so that no command works on them.

    Args:
      words: before the logdir.
      flags: after it.
    """
    own = [run for group in groups for run in group.runs if not run.origin]
    logdir = next((str(run.logdir) for run in own if run.finished), "LOGDIR")
    return " ".join(filter(None, (words, logdir, flags))) if own else ""


def uneven(groups: Iterable[Group]) -> list[str]:
    """A sentence for each group whose seeds ended, or were evaluated, at different steps."""
    notes = []
    for group in groups:
        last = {run.seed: f"{run.stages[-1]} step {run.last_step}" for run in group.finished if run.stages}
        played = {run.seed: f"{row['phase']} step {row['step']}" for run in group.finished for row in run.scores[:1]}
        for verb, steps in (("ended", last), ("were evaluated", played)):
            if len(set(steps.values())) > 1:
                listing = ", ".join(f"seed {seed} at {step}" for seed, step in steps.items())
                where = f"{group.dataset.label}, {group.label}"
                notes.append(f"{where}: the seeds {verb} at different steps, and their mean mixes them: {listing}.")
                break
    return notes


def _datasets(runs: Sequence[RunRecord]) -> dict[Any, Dataset]:
    """The dataset of each logdir. Two of one task and level are distinguished by the names of their directories, which
    imported runs do not record.
    """
    directories: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for run in runs:
        if run.dataset_hash:
            directories[run.task, run.level].setdefault(run.dataset_hash, run.data)
    datasets = {}
    for run in runs:
        name, same, which = f"{task_name(run.task)} {run.level}", directories[run.task, run.level], ""
        label = f"{name}, no distractors" if run.task.startswith("dmc_") else name
        if len(same) > 1:
            directory = same.get(run.dataset_hash, "imported")
            ambiguous = list(same.values()).count(directory) > 1
            which = f" ({directory} {run.dataset_hash[:6]})" if ambiguous else f" ({directory})"
        datasets[run.logdir] = Dataset(label + which, name, run.task, which)
    return datasets


def _variants(runs: Sequence[RunRecord]) -> dict[Any, str]:
    """The label of each logdir: the method, and of the settings in which its runs on one dataset differ, those that do
    not have the most frequent value.
    """
    values: dict[tuple[str, str], dict[tuple[str, str], Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for run in runs:
        for key, value in _own_settings(run).items():
            values[run.method, key][run.task, run.dataset_hash][value] += 1
    usual = {
        setting: sum(counts.values(), Counter()).most_common(1)[0][0]
        for setting, counts in values.items()
        if any(len(count) > 1 for count in counts.values())
    }
    variants, taken = {}, dict[str, tuple]()
    for run in runs:
        own, mine = _own_settings(run), {key: value for (method, key), value in usual.items() if method == run.method}
        differing = [f"{key} {own[key]}" for key, value in mine.items() if own.get(key, value) != value]
        differing += ["imported"] if run.origin else []
        more = ["…"] if len(differing) > SHOWN_SETTINGS else []
        label = f"{run.method} ({', '.join([*differing[:SHOWN_SETTINGS], *more])})" if differing else run.method
        while taken.setdefault(label, (run.method, differing)) != (run.method, differing):
            label += "'"
        variants[run.logdir] = label
    return variants


def _own_settings(run: RunRecord) -> dict[str, str]:
    own = {key: str(value) for key, value in run.settings.items() if key not in ELSEWHERE}
    return own | ({"world_model": "of another run" if own["world_model"] else "own"} if own else {})


def _rank(names: Sequence[str], name: str) -> int:
    """The position of a name, after all others where it is not among them."""
    return names.index(name) if name in names else len(names)


def _dataset_order(dataset: Dataset) -> tuple:
    names = list(paper.table(5))
    tasks = [name.split()[0] for name in names]
    return _rank(tasks, dataset.paper.split()[0]), _rank(names, dataset.paper), dataset.label


def _method_order(group: Group) -> tuple:
    methods = list(dict.fromkeys([*ABLATIONS, *paper.METHODS]))
    return _rank(methods, group.method), bool(group.runs[0].origin), group.label
