"""The table of linear probes, from analysis/probe.json of the runs on the testbed."""

from collections.abc import Sequence

import numpy as np

from semopo_tf.report.groups import Group, own_command
from semopo_tf.report.page import Part, table_part
from semopo_tf.report.run_record import STREAMS, RunRecord
from semopo_tf.report.tables import NOTHING, Table

AHEAD = ("5", "15")  # steps of open loop
CAPTION = """R² of linear probes of the true states on unseen episodes, mean ± population standard deviation over seeds:
1 is perfect, 0 is no better than the mean, below 0 is worse. endo is the endogenous stream, the only one that the
policy sees (with a joint model, that is joint). A separated model that works has the agent's position in endo and the
phase of the background in exo. The mask is the share of a pixel that the endogenous stream paints. A linear probe that
finds nothing does not prove that nothing is there."""


def probe_part(groups: Sequence[Group]) -> Part:
    """A row for each method and stream."""
    title = "Linear probes of the true states"
    probed = {number: runs for number, group in enumerate(groups) if (runs := group.analysed("probe"))}
    if not probed:
        why = "no finished run has analysis/probe.json; only the testbed (exbmdp_*) stores true states."
        return Part("Probes", title, missing=why, command=own_command(groups, "python -m semopo_tf.probe --logdir"))
    r2 = [run.analyses["probe"]["r2"] for runs in probed.values() for run in runs]
    quantities = list(dict.fromkeys(name for streams in r2 for each in STREAMS for name in streams.get(each, {})))
    ahead = [f"position, {steps} steps ahead" for steps in AHEAD]
    header = ["dataset", "method", "stream", "seeds", *quantities, *ahead]
    header += ["reward head", "mask on agent", "mask off agent"]
    rows = []
    for number, runs in probed.items():
        for stream in STREAMS:
            if any(stream in run.analyses["probe"]["r2"] for run in runs):
                group, cells = groups[number], [_cell(runs, path) for path in _paths(stream, quantities)]
                rows.append([group.dataset.label, group.label, stream, str(len(runs)), *cells])
    return table_part("Probes", title, Table("probes", header, rows), CAPTION)


def _paths(stream: str, quantities: Sequence[str]) -> list[tuple[str, ...]]:
    """Where probe.json has the columns of a stream's row; an empty path where it has none."""
    reward = ("reward_r2",) if stream != "exo" else ()
    mask = [("mask", where) if stream == "endo" else () for where in ("on", "off")]
    ahead = [("open_loop", stream, "position", steps) for steps in AHEAD]
    return [*(("r2", stream, quantity) for quantity in quantities), *ahead, reward, *mask]


def _cell(runs: Sequence[RunRecord], path: Sequence[str]) -> str:
    values = [value for run in runs if isinstance(value := run.probed(*path), int | float)]
    if not values:
        return NOTHING
    return f"{np.mean(values):.2f}" if len(values) == 1 else f"{np.mean(values):.2f} ± {np.std(values):.2f}"
