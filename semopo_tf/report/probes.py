"""What linear probes found in the states, from analysis/probe.json of the runs on the testbed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from semopo_tf.report.groups import Dataset, Group
from semopo_tf.report.page import Part, table_part
from semopo_tf.report.run_record import RunRecord
from semopo_tf.report.tables import NOTHING, Table

AHEAD = ("5", "15")  # steps of open loop
STREAMS = ("endo", "exo", "joint")
CAPTION = """R² of linear probes of the true states on unseen episodes, mean ± population standard deviation over seeds: 1 is perfect, 0 is no
better than the mean, below 0 is worse. endo is the endogenous stream: the policy sees it (or the joint one) and nothing else. A separated model
that works has the agent's position in endo and the background's phase in exo. The mask is the share of a pixel that the endogenous stream paints.
A linear probe that finds nothing does not prove that nothing is there."""


def probe_part(groups: Sequence[Group]) -> Part:
    """One row for each method and stream."""
    found = [
        (group, probed) for group in groups if (probed := [run for run in group.finished if "probe" in run.analyses])
    ]
    title = "Linear probes of the true states"
    if not found:
        why = "no finished run has analysis/probe.json; only the testbed (exbmdp_*) stores true states."
        return Part("Probes", title, missing=why, command="python -m semopo_tf.probe --logdir LOGDIR")
    r2 = [run.analyses["probe"]["r2"] for _, runs in found for run in runs]
    quantities = list(
        dict.fromkeys(quantity for streams in r2 for stream in STREAMS for quantity in streams.get(stream, {}))
    )
    ahead = [f"position, {steps} steps ahead" for steps in AHEAD]
    header = [
        "dataset",
        "method",
        "stream",
        "seeds",
        *quantities,
        *ahead,
        "reward head",
        "mask on agent",
        "mask off agent",
    ]
    rows = [
        _row(group.dataset, group.label, stream, runs, quantities)
        for group, runs in found
        for stream in STREAMS
        if _has(runs, stream)
    ]
    return table_part("Probes", title, Table("probes", header, rows), CAPTION)


def _row(dataset: Dataset, label: str, stream: str, runs: Sequence[RunRecord], quantities: Sequence[str]) -> list[str]:
    paths: list[tuple[str, ...]] = [("r2", stream, quantity) for quantity in quantities] + [
        ("open_loop", stream, "position", steps) for steps in AHEAD
    ]
    paths.append(("reward_r2",) if stream != "exo" else ("none",))
    paths += [("mask" if stream == "endo" else "none", where) for where in ("on", "off")]
    return [
        dataset.label,
        label,
        stream,
        str(len(runs)),
        *(_shown([_read(run.analyses["probe"], path) for run in runs]) for path in paths),
    ]


def _has(runs: Sequence[RunRecord], stream: str) -> bool:
    return any(stream in run.analyses["probe"]["r2"] for run in runs)


def _read(found: Any, path: Sequence[str]) -> float | None:
    """The number at a path of keys, or None."""
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return float(found) if isinstance(found, int | float) else None


def _shown(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    return f"{np.mean(known):.2f}" if len(known) == 1 else f"{np.mean(known):.2f} ± {np.std(known):.2f}"
