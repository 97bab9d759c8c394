"""Figures drawn from records: learning curves, uncertainties (Figures 2, 7, 8), action entropy (6) and gradient norms
(9).
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from semopo_tf.report import csv_rows
from semopo_tf.report.groups import ANALYSE, Group, by_dataset, labels, own_command
from semopo_tf.report.page import Panel, Part, figure_part
from semopo_tf.report.run_record import RunRecord, points
from semopo_tf.report.svg import Bar, Line, Style, bars, lines
from semopo_tf.report.tables import TIMES

CURVES = {
    # heading: metrics, the first of them that a run has
    "image loss, nats per frame": ("image_loss",),
    "reward loss, nats": ("reward_loss",),
    "KL of the policy's state, nats": ("endo_kl", "joint_kl"),
    "return in the environment": ("eval_return",),
    "imagined reward minus penalty, per step": ("imagined_reward",),
    "penalty, per step": ("penalty",),
}
MEASURES = {"mean_norm": "mean of norms", "log_prob_variance": "variance of log-probabilities"}
POLICY_NORMS = {"actor_grad_norm", "critic_grad_norm"}  # not of a model
LEAST_POINTS = 2  # of a curve
UNCERTAINTIES = {
    "Figure 2": "Uncertainty of the policy's state: endogenous and joint",
    "Figure 7": "Uncertainty of the policy's state under both measures",
    "Figure 8": "Uncertainty of the endogenous and the exogenous state",
}


def learning_curves(groups: Sequence[Group], style: Style) -> Part:
    """A panel for every dataset and metric."""
    title, panels = "Losses and returns during training", []
    for dataset, same in by_dataset(groups).items():
        for heading, metrics in CURVES.items():
            told = (run.stage_of(metric) for group in same for run in group.runs for metric in metrics)
            stages = list(dict.fromkeys(filter(None, told)))
            for stage in stages:
                if curves := [line for group in same for line in _curve(group, stage, metrics)]:
                    svg = lines(f"{dataset.label}\n{heading}", curves, style, x=f"{stage} updates")
                    name = " ".join(["curves", dataset.label, metrics[0], *([stage] if len(stages) > 1 else [])])
                    rows = csv_rows.of_lines(curves, "step")
                    panels.append(Panel(name, f"{dataset.label}, {heading}; {_legend(curves)}", svg, rows))
    caption = f"""Mean over seeds with a band of one population standard deviation on either side; a single seed has no
        band. {counted(groups)} Values of the model phase are averages over the updates since the last record; returns
        are means over the episodes of one evaluation during training. Thin dotted lines are unfinished runs. The losses
        of models with different likelihoods, or of one stream and two, are not comparable in height."""
    return figure_part("Curves", title, panels, caption, "no run has a metric at two or more steps.")


def gradient_norms(groups: Sequence[Group], style: Style) -> Part:
    """Figure 9: over all levels and seeds of a task."""
    title, panels = "Gradient norms in the model phase", []
    for task in dict.fromkeys(group.dataset.task for group in groups):
        same, curves = [group for group in groups if group.dataset.task == task], []
        stages: dict[str, None] = {}
        for label in labels(same):
            runs = [run for group in same if group.label == label for run in group.finished]
            names = {key for run in runs for row in run.metrics for key in row if key.endswith("_grad_norm")}
            for metric in sorted(names - POLICY_NORMS):
                name = label if metric == "model_grad_norm" else f"{label}: {metric.removesuffix('_grad_norm')}"
                curves += _mean_line(name, [points(run, metric) for run in runs])
                stages |= dict.fromkeys(filter(None, (run.stage_of(metric) for run in runs)))
        if curves:
            heading = f"{task}: gradient norm"
            svg = lines(heading, curves, style, x=f"{' or '.join(stages)} updates", log=True)
            rows = csv_rows.of_lines(curves, "step")
            panels.append(Panel(f"figure9 {task}", f"{heading}; {_legend(curves)}", svg, rows))
    why = "no finished run has a *_grad_norm in the model phase of its metrics.jsonl."
    caption = f"""Global norm of the model's gradient before clipping, averaged over the updates of a record; mean over
        the finished runs of all levels and seeds of a task, with a band of one population standard deviation (none for
        a single run). {counted(groups)} A small norm says that the loss is flat, not that the model is good; the scale
        depends on the size of the network and the weights of the losses."""
    return figure_part("Figure 9", title, panels, caption, why, "python train.py ...")


def uncertainties(groups: Sequence[Group], style: Style) -> list[Part]:
    """Figures 2, 7 and 8."""
    measured = [group for group in groups if group.analysed("uncertainty")]
    if not measured:
        why, command = "no finished run has analysis/uncertainty.json.", own_command(groups, ANALYSE)
        return [Part(name, title, missing=why, command=command) for name, title in UNCERTAINTIES.items()]
    about = f"""Bar and whisker: mean and population standard deviation over random states of the dataset, pooled over
        seeds; no measure is negative, so whiskers end at 0. {counted(measured, _states)} Each model is measured by its
        own ensemble in its own latent space: heights of different models are only as comparable as their spaces. """
    same = {label: [group for group in measured if group.label == label] for label in labels(measured)}
    acting = [(label, "endo" if "endo" in _streams(each[0]) else "joint", each) for label, each in same.items()]
    separated = {label: found for label, each in same.items() if (found := [g for g in each if "exo" in _streams(g)])}
    panels: dict[str, list[Panel]] = {
        "Figure 2": [_bars("figure2", "mean_norm", acting, style)],
        "Figure 7": [_bars("figure7", measure, acting, style) for measure in MEASURES],
        "Figure 8": [],
    }
    for label, each in separated.items():
        series = [("endogenous", "endo", each), ("exogenous", "exo", each)]
        panels["Figure 8"] += [_bars(f"figure8 {label}", measure, series, style, f"{label}: ") for measure in MEASURES]
    captions = {
        "Figure 2": "Separated models: endogenous state; joint models: their only one.",
        "Figure 7": "The paper also shows LOMPO here.",
        "Figure 8": """An exogenous bar above the endogenous one says that the ensemble agrees less about what no action
            influences; it does not say that the streams are separated correctly.""",
    }
    why = "no separated model is among the runs with analysis/uncertainty.json."
    command = "python train.py --configs semopo ..."
    return [
        figure_part(name, title, panels[name], about + captions[name], why, command)
        for name, title in UNCERTAINTIES.items()
    ]


def action_entropy(groups: Sequence[Group], style: Style) -> Part:
    """Figure 6: a panel for every dataset, from the runs of the first method with the record."""
    title, panels, sources = "Entropy of the actions that the model is trained on", [], []
    for dataset, same in by_dataset(groups).items():
        group = next((group for group in same if group.analysed("entropy")), None)
        if group is None:
            continue
        entropies = [run.analyses["entropy"] for run in group.analysed("entropy")]
        curves = []
        for rule in ("conservative", "uniform"):
            curves += _mean_line(rule, [dict(enumerate(each["rules"][rule]["entropy"], 1)) for each in entropies])
        svg = lines(dataset.label, curves, style, x="epoch", y="nats")
        rows = csv_rows.of_lines(curves, "epoch")
        panels.append(Panel(f"figure6 {dataset.label}", f"{dataset.label}; {_legend(curves)}", svg, rows))
        epoch = f"epochs of {entropies[0]['updates_per_epoch']} updates"
        sources.append(f"{dataset.label}: {group.label}, n = {len(entropies)} seeds, {epoch}.")
    why = "no finished run has analysis/entropy.json."
    caption = f"""Differential entropy of the actions in the batches of each epoch: a histogram of every dimension on
        [-1, 1], summed over dimensions as if they were independent, which gives an upper bound. Conservative sampling
        draws from a growing pool, uniform sampling from all episodes. {" ".join(sources)} It depends on the dataset and
        its order, not on the model, and says nothing about returns."""
    return figure_part("Figure 6", title, panels, caption, why, own_command(groups, ANALYSE))


def counted(groups: Iterable[Group], detail: Callable[[Group], str] = lambda group: "") -> str:
    """The number of finished seeds of each method, with the datasets where the numbers differ."""
    counts: dict[str, dict[str, list[str]]] = {}
    for group in (group for group in groups if group.finished):
        count = f"{len(group.finished)}{detail(group)}"
        counts.setdefault(group.label, {}).setdefault(count, []).append(group.dataset.label)
    parts = []
    for label, each in counts.items():
        where = {count: f" ({','.join(datasets)})" if len(each) > 1 else "" for count, datasets in each.items()}
        parts.append(f"{label} {', '.join(count + datasets for count, datasets in where.items())}")
    return f"Finished seeds: {'; '.join(parts)}."


def _curve(group: Group, stage: str, metrics: Sequence[str]) -> list[Line]:
    """The mean over finished runs, and a faint line for every unfinished one."""

    def curve(run: RunRecord) -> dict[int, float]:
        told = (points(run, metric) for metric in metrics if run.stage_of(metric) == stage)
        return next(filter(None, told), {})

    found = _mean_line(group.label, [curve(run) for run in group.finished])
    for run in group.runs:
        if not run.finished and len(each := curve(run)) >= LEAST_POINTS:
            steps = sorted(each)
            label = f"{group.label}, seed {run.seed}, unfinished"
            found.append(Line(label, steps, [each[step] for step in steps], faint_of=group.label))
    return found


def _mean_line(label: str, curves: Sequence[dict[int, float]]) -> list[Line]:
    """The mean over the steps that all curves have; none where these are too few."""
    curves = [curve for curve in curves if curve]
    common = sorted(set.intersection(*map(set, curves))) if curves else []
    if len(common) < LEAST_POINTS:
        return []
    values = np.array([[curve[step] for step in common] for curve in curves])
    mean, std = values.mean(0), values.std(0)
    return [Line(label, common, mean, mean - std, mean + std) if len(curves) > 1 else Line(label, common, mean)]


def _legend(curves: Sequence[Line]) -> str:
    return "lines: " + ", ".join(line.label for line in curves)


def _streams(group: Group) -> set[str]:
    runs = group.analysed("uncertainty")
    return {stream for run in runs for stream in run.analyses["uncertainty"]["measures"]["mean_norm"]}


def _states(group: Group) -> str:
    return f" {TIMES} {group.analysed('uncertainty')[0].analyses['uncertainty']['states']} states"


def _bars(
    name: str, measure: str, series: Sequence[tuple[str, str, list[Group]]], style: Style, before: str = ""
) -> Panel:
    """A panel of (label, stream, groups on several datasets)."""
    heights: dict[str, dict[str, Bar]] = {}
    for label, stream, same in series:
        for group in same:
            if bar := _pooled(group, measure, stream):
                heights.setdefault(label, {})[group.dataset.label] = bar
    title = f"{before}{MEASURES[measure]}"
    flat = [(label, dataset, bar) for label, each in heights.items() for dataset, bar in each.items()]
    shows = "; ".join(f"{label} on {dataset} {bar.value:.3g} ± {bar.std:.2g}" for label, dataset, bar in flat)
    svg = bars(title, heights, style, y="uncertainty")
    return Panel(f"{name} {measure}", f"{title}: {shows}", svg, csv_rows.of_bars(heights))


def _pooled(group: Group, measure: str, stream: str) -> Bar | None:
    """Over the states of all seeds; each seed has the same number of them."""
    measures = [run.analyses["uncertainty"]["measures"][measure] for run in group.analysed("uncertainty")]
    each = [streams[stream] for streams in measures if stream in streams]
    means, stds = (np.array([values[key] for values in each]) for key in ("mean", "std"))
    return Bar(float(means.mean()), float(np.sqrt(np.mean(stds**2) + means.var()))) if each else None
