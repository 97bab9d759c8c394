"""The figures that are drawn from records: learning curves, uncertainties (Figures 2, 7, 8), action entropy (6) and
gradient norms (9).
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from semopo_tf.report.groups import Group, analyse_command, by_dataset, labels
from semopo_tf.report.page import Panel, Part, figure_part
from semopo_tf.report.run_record import RunRecord, points
from semopo_tf.report.svg import Bar, Line, Style, bars, lines
from semopo_tf.report.tables import TIMES

CURVES = (
    # (heading, phase, metrics: of these the first that a run has)
    ("image loss, nats a frame", "model", ("image_loss",)),
    ("reward loss, nats", "model", ("reward_loss",)),
    ("KL of the policy's state, nats", "model", ("endo_kl", "joint_kl")),
    ("return in the environment", "policy", ("eval_return",)),
    ("imagined reward less penalty, a step", "policy", ("imagined_reward",)),
    ("penalty, a step", "policy", ("penalty",)),
)
CURVES_TITLE = "Losses and returns during training"
MEASURES = {"mean_norm": "mean of norms", "log_prob_variance": "variance of log-probabilities"}
LEAST_POINTS = 2  # of a curve


def learning_curves(groups: Sequence[Group], style: Style) -> Part:
    """A panel for every dataset and metric."""
    panels = []
    for dataset, same in by_dataset(groups).items():
        for heading, phase, metrics in CURVES:
            found = [line for group in same for line in _curve(group, phase, metrics)]
            if found:
                title = f"{dataset.label}\n{heading}"
                drawn = lines(title, found, style, x=f"{phase} updates")
                panels.append(
                    Panel(
                        f"curves {dataset.label} {metrics[0]}", f"{dataset.label}, {heading}; {_legend(found)}", drawn
                    )
                )
    if not panels:
        return Part("Curves", CURVES_TITLE, missing="no run has a metric at two steps or more.")
    caption = f"""Mean over seeds and, where there are several, a band of one population standard deviation on either side; one seed is a line
alone. {counted(groups)} Model-phase values are averages over the updates since the last record; returns are means over the episodes of one
evaluation during training. Dotted thin lines are runs that are not finished. Losses of models with different likelihoods, or of one stream and
two, do not compare in height."""
    return figure_part("Curves", CURVES_TITLE, panels, caption)


def gradient_norms(groups: Sequence[Group], style: Style) -> Part:
    """Figure 9: over all levels and seeds of a task."""
    panels = []
    for task in dict.fromkeys(group.dataset.task for group in groups):
        found = []
        for label in labels(group for group in groups if group.dataset.task == task):
            runs = [
                run for group in groups if (group.dataset.task, group.label) == (task, label) for run in group.finished
            ]
            for metric in sorted(
                {
                    key
                    for run in runs
                    for row in run.metrics
                    if row["phase"] == "model"
                    for key in row
                    if key.endswith("_grad_norm")
                }
            ):
                name = label if metric == "model_grad_norm" else f"{label}: {metric.removesuffix('_grad_norm')}"
                found += _mean_line(name, [points(run, "model", metric) for run in runs])
        if found:
            title = f"{task}: gradient norm"
            panels.append(
                Panel(
                    f"figure9 {task}",
                    f"{title}; {_legend(found)}",
                    lines(title, found, style, x="model updates", log=True),
                )
            )
    title = "Gradient norms in the model phase"
    if not panels:
        return Part(
            "Figure 9",
            title,
            missing="no finished run has a *_grad_norm in the model phase of its metrics.jsonl.",
            command="python train.py ...",
        )
    caption = f"""Global norm of the model's gradient before clipping, averaged over the updates of a record; mean over the finished runs of all
levels and seeds of a task, with a band of one population standard deviation (none for one run). {counted(groups)} A small norm says that the loss
is flat, not that the model is good; the scale depends on the size of the network and on the weights of the losses."""
    return figure_part("Figure 9", title, panels, caption)


def uncertainties(groups: Sequence[Group], style: Style) -> list[Part]:
    """Figures 2, 7 and 8."""
    measured = [group for group in groups if _measured(group)]
    titles = {
        "Figure 2": "Uncertainty of the policy's state: endogenous against joint",
        "Figure 7": "Uncertainty of the policy's state under both measures",
        "Figure 8": "Uncertainty of the endogenous against the exogenous state",
    }
    if not measured:
        return [
            Part(name, title, missing="no finished run has analysis/uncertainty.json.", command=analyse_command(groups))
            for name, title in titles.items()
        ]
    about = f"""Mean and population standard deviation over random states of the dataset, those of several seeds pooled: bar and whisker, which
ends at 0, as no measure is negative. {counted(measured, _states)} Each model is measured by its own ensemble, in its own latent space: heights of
different models compare only as far as their spaces do. """
    acting, separated = _acting(measured), [group for group in measured if "exo" in _streams(group)]
    first = [_bars("figure2", "mean_norm", acting, style)]
    both = [_bars("figure7", measure, acting, style) for measure in MEASURES]
    parts = [
        figure_part(
            "Figure 2",
            titles["Figure 2"],
            first,
            about + "Separated models: endogenous state; joint models: their only one.",
        ),
        figure_part("Figure 7", titles["Figure 7"], both, about + "The paper also shows LOMPO here."),
    ]
    if not separated:
        return [
            *parts,
            Part(
                "Figure 8",
                titles["Figure 8"],
                missing="no separated model is among the runs with analysis/uncertainty.json.",
            ),
        ]
    panels = []
    for label in labels(separated):
        series = [
            (f"{stream}genous", stream, [group for group in separated if group.label == label])
            for stream in ("endo", "exo")
        ]
        panels += [_bars(f"figure8 {label}", measure, series, style, f"{label}: ") for measure in MEASURES]
    said = """An exogenous bar above the endogenous one says that the ensemble agrees less about what no action reaches; it does not say that the
    streams are separated rightly."""
    return [*parts, figure_part("Figure 8", titles["Figure 8"], panels, about + said)]


def action_entropy(groups: Sequence[Group], style: Style) -> Part:
    """Figure 6: a panel for every dataset, from the runs of the first method that has the record."""
    panels, drawn = [], []
    title = "Entropy of the actions that the model is trained on"
    for dataset, same in by_dataset(groups).items():
        group = next((group for group in same if _with(group, "entropy")), None)
        if group:
            runs = _with(group, "entropy")
            found = [
                line
                for rule in ("conservative", "uniform")
                for line in _mean_line(rule, [_epochs(run, rule) for run in runs])
            ]
            panels.append(
                Panel(
                    f"figure6 {dataset.label}",
                    f"{dataset.label}; {_legend(found)}",
                    lines(dataset.label, found, style, x="epoch", y="nats"),
                )
            )
            drawn.append(
                f"{dataset.label}: {group.label}, n = {len(runs)} seeds, epochs of "
                f"{runs[0].analyses['entropy']['updates_per_epoch']} updates."
            )
    if not panels:
        return Part(
            "Figure 6", title, missing="no finished run has analysis/entropy.json.", command=analyse_command(groups)
        )
    caption = f"""Differential entropy of the actions in the batches of each epoch: a histogram of every dimension on [-1, 1], summed over
dimensions as if they were independent, which makes it an upper bound. Conservative sampling draws from a pool that grows; uniform from all
episodes. {" ".join(drawn)} It depends on the dataset and its order, not on the model, and says nothing about returns."""
    return figure_part("Figure 6", title, panels, caption)


def counted(groups: Iterable[Group], detail: Callable[[Group], str] = lambda group: "") -> str:
    """How many seeds stand behind each method, with the datasets where they differ."""
    found: dict[str, dict[str, list[str]]] = {}
    for group in (group for group in groups if group.finished):
        found.setdefault(group.label, {}).setdefault(f"{len(group.finished)}{detail(group)}", []).append(
            group.dataset.label
        )
    said = []
    for label, counts in found.items():
        each = (f"{count}{f' ({chr(44).join(places)})' if len(counts) > 1 else ''}" for count, places in counts.items())
        said.append(f"{label} {', '.join(each)}")
    return f"Finished seeds: {'; '.join(said)}."


def _curve(group: Group, phase: str, metrics: Sequence[str]) -> list[Line]:
    found = {
        run.logdir: next((each for metric in metrics if (each := points(run, phase, metric))), {}) for run in group.runs
    }
    unfinished = [run for run in group.runs if not run.finished and len(found[run.logdir]) >= LEAST_POINTS]
    mean = _mean_line(group.label, [found[run.logdir] for run in group.finished])
    return mean + [
        Line(f"{group.label}, seed {run.seed}, unfinished", *_xy(found[run.logdir]), faint_of=group.label)
        for run in unfinished
    ]


def _mean_line(label: str, curves: Sequence[dict[int, float]]) -> list[Line]:
    """Over the steps that all curves have; none where these are too few."""
    curves = [curve for curve in curves if curve]
    common = sorted(set.intersection(*map(set, curves))) if curves else []
    if len(common) < LEAST_POINTS:
        return []
    values = np.array([[curve[step] for step in common] for curve in curves])
    mean, std = values.mean(0), values.std(0)
    return [Line(label, common, mean, mean - std, mean + std) if len(curves) > 1 else Line(label, common, mean)]


def _xy(curve: dict[int, float]) -> tuple[list[int], list[float]]:
    return sorted(curve), [curve[step] for step in sorted(curve)]


def _legend(found: Sequence[Line]) -> str:
    return "lines: " + ", ".join(line.label for line in found)


def _with(group: Group, name: str) -> list[RunRecord]:
    return [run for run in group.finished if name in run.analyses]


def _measured(group: Group) -> list[RunRecord]:
    return _with(group, "uncertainty")


def _streams(group: Group) -> set[str]:
    return {stream for run in _measured(group) for stream in run.analyses["uncertainty"]["measures"]["mean_norm"]}


def _states(group: Group) -> str:
    return f" {TIMES} {_measured(group)[0].analyses['uncertainty']['states']} states"


Series = tuple[str, str, list[Group]]  # (label, stream, groups on several datasets)


def _acting(measured: Sequence[Group]) -> list[Series]:
    found = []
    for label in labels(measured):
        same = [group for group in measured if group.label == label]
        found.append((label, "endo" if "endo" in _streams(same[0]) else "joint", same))
    return found


def _bars(name: str, measure: str, series: Sequence[Series], style: Style, before: str = "") -> Panel:
    found = {}
    for label, stream, same in series:
        each = {group.dataset: _pooled(group, measure, stream) for group in same}
        found[label] = {dataset.label: bar for dataset, bar in each.items() if bar}
    title = f"{before}{MEASURES[measure]}"
    said = "; ".join(
        f"{label} on {place} {bar.value:.3g} ± {bar.std:.2g}"
        for label, places in found.items()
        for place, bar in places.items()
    )
    return Panel(
        f"{name} {measure}",
        f"{title}: {said}",
        bars(title, {label: places for label, places in found.items() if places}, style, y="uncertainty"),
    )


def _pooled(group: Group, measure: str, stream: str) -> Bar | None:
    """Over the states of all seeds; each seed has as many."""
    each = [run.analyses["uncertainty"]["measures"][measure].get(stream) for run in _measured(group)]
    means, stds = (np.array([values[key] for values in each if values]) for key in ("mean", "std"))
    return Bar(float(means.mean()), float(np.sqrt(np.mean(stds**2) + means.var()))) if len(means) else None


def _epochs(run: RunRecord, rule: str) -> dict[int, float]:
    return dict(enumerate(run.analyses["entropy"]["rules"][rule]["entropy"], 1))
