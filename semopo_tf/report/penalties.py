"""The figures about penalties. From analysis/trust.json: whether disagreement goes with the model's true error, and how
far the predicted reward is off, in states of the policy and of the dataset. From analysis/bound.json: the policy's
return in the model and in the simulator, and the smallest weight with which the model does not promise more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from semopo_tf.report import csv_rows
from semopo_tf.report.groups import ANALYSE, Group, by_dataset, own_command
from semopo_tf.report.page import Panel, Part, figure_part
from semopo_tf.report.run_record import TRUST_MEASURES, TRUST_STEPS, RunRecord
from semopo_tf.report.svg import Estimates, intervals

SHOWN = {"policy": "states of the policy", "dataset": "states of the dataset"}
ERRORS = {"reward": "the reward", "position": "the position"}
CAPTION = """Rank correlation (Spearman's, over states) of each measure of disagreement, summed over the first five
steps of a rollout, with the error of the model after them. A rollout begins in a filtered state and follows the
actions that were really taken. At 1 the penalty orders states by the model's error, at 0 it knows nothing about it;
the measure in bold is the run's own penalty. Predicted minus true reward: after five steps, of those rollouts; above
0 in states of the policy alone, the policy exploits the model. Every run has its own mark. Lines: 95 % bootstrap
intervals over the episodes of that run, which say nothing about other seeds. Positions are read from the states by a
linear probe, whose own error is part of the error. Disagreement and error both change as a policy's episode goes
on, so a part of a correlation may be that of time. A penalty can also help by its mean, which no rank shows."""

RETURNS = {"simulator": "in the simulator", "model": "in the model", "penalised": "in the model, penalised"}
BOUND_CAPTION = """Discounted return of the greedy policy from the first frames of its evaluation episodes, in the
simulator and as its model imagines it, without and with the run's penalty. Theorem 3.3 needs a penalty with which no
policy returns more in the model than in the simulator; measured is the policy that was learned. The smallest weight of
the run's own measure with which that holds for this policy is below 0 where the model promises less than it keeps. A
run whose weight lies below the interval breaks the theorem's condition; one above it may break it for another policy.
Every run has its own mark. Lines: 95 % bootstrap intervals over the episodes of that run, which say nothing about other
seeds."""


def trust_part(groups: Sequence[Group]) -> Part:
    """Panels of every dataset: one for each kind of error, and one of the predicted reward."""
    title, panels = "Does the penalty see the model's error?", list[Panel]()
    for dataset, same in by_dataset(groups).items():
        measured = {group.label: runs for group in same if (runs := group.analysed("trust"))}
        for error, words in ERRORS.items():
            rows = [row for label, runs in measured.items() for row in _rows(label, runs, error)]
            heading = f"{dataset.label}: disagreement and the error of {words}"
            panels += _panel(f"trust {dataset.label} {error}", heading, rows, "rank correlation")
        rows = [_row(label, runs, ("means", "excess")) for label, runs in measured.items()]
        panels += _panel(
            f"trust {dataset.label} excess", f"{dataset.label}: predicted minus true reward", rows, "reward"
        )
    why = "no finished run has analysis/trust.json."
    return figure_part("Penalty", title, panels, CAPTION, why, own_command(groups, ANALYSE, "--only trust"))


def bound_part(groups: Sequence[Group]) -> Part:
    """Two panels of every dataset: the returns, and the smallest and the used weight of the penalty."""
    title, panels = "Does the model promise more than it keeps?", list[Panel]()
    for dataset, same in by_dataset(groups).items():
        measured = {group.label: runs for group in same if (runs := group.analysed("bound"))}
        returns = [_returns(label, runs) for label, runs in measured.items()]
        panels += _panel(f"bound {dataset.label} returns", f"{dataset.label}: discounted return", returns, "return")
        weights = [_weights(label, runs) for label, runs in measured.items()]
        heading = f"{dataset.label}: weight of the penalty"
        panels += _panel(f"bound {dataset.label} weights", heading, weights, "weight")
    why = "no finished run has analysis/bound.json."
    return figure_part("Bound", title, panels, BOUND_CAPTION, why, own_command(groups, ANALYSE, "--only bound"))


def _returns(label: str, runs: Sequence[RunRecord]) -> Estimates:
    each = {words: [_ends(run.analyses["bound"][name]) for run in runs] for name, words in RETURNS.items()}
    return Estimates(label, each)


def _weights(label: str, runs: Sequence[RunRecord]) -> Estimates:
    """The smallest weight of the run's measure, where there is one, and the run's weight."""
    records = [run.analyses["bound"] for run in runs]
    measure = records[0]["penalty"]["measure"]
    smallest = [_ends(record["smallest"][measure]) for record in records if measure in record["smallest"]]
    used = [(record["penalty"]["weight"],) * 3 for record in records]
    return Estimates(f"{label}: {measure}", {"smallest": smallest, "of the run": used})


def _rows(label: str, runs: Sequence[RunRecord], error: str) -> list[Estimates]:
    """A row for each measure, where this error is known."""
    own = runs[0].analyses["trust"]["penalty"]["measure"]
    paths = {measure: ("correlations", measure, error, "sum") for measure in TRUST_MEASURES}
    rows = [_row(f"{label}: {name}", runs, path)._replace(bold=name == own) for name, path in paths.items()]
    return [row for row in rows if any(row.each.values())]


def _row(label: str, runs: Sequence[RunRecord], path: Sequence[str]) -> Estimates:
    """What every run has at a path of its sources after `TRUST_STEPS` steps."""
    each = {
        words: [found for run in runs if (found := _estimate(run.analyses["trust"]["sources"][source], path))]
        for source, words in SHOWN.items()
    }
    return Estimates(label, each)


def _estimate(source: Any, path: Sequence[str]) -> tuple[float, float, float] | None:
    """(estimate, low, high); the ends are the estimate where there are none."""
    for key in (*path, TRUST_STEPS):
        source = source.get(key, {})
    return _ends(source) if source else None


def _ends(estimate: Mapping[str, float]) -> tuple[float, float, float]:
    value = estimate["estimate"]
    return value, estimate.get("low", value), estimate.get("high", value)


def _panel(name: str, heading: str, rows: Sequence[Estimates], x: str) -> list[Panel]:
    """No panel without rows."""
    if not rows:
        return []
    told = (
        f"{row.label}, {what}: {', '.join(f'{value:.2f} ({low:.2f} to {high:.2f})' for value, low, high in found)}"
        for row in rows
        for what, found in row.each.items()
    )
    return [Panel(name, f"{heading}; {'; '.join(told)}", intervals(heading, rows, x=x), csv_rows.of_estimates(rows))]
