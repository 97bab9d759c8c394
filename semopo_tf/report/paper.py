"""The numbers printed in the paper (`published.yaml`): Tables 1 to 5 and the constants that normalise a return.

A dataset is named "<task> <level>", e.g. "walker_walk random"; a task may have the prefix of its suite, e.g.
`dmcdrv_walker_walk`, `gym_CarRacing-v2`.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semopo_tf.config import read_yaml, task_name

FILE = Path(__file__).with_name("published.yaml")
# Method -> its name in print, in the order of the tables.
METHODS = {
    "semopo": "SeMOPO",
    "offline_dv2": "Offline DV2",
    "lompo": "LOMPO",
    "drq_bc": "DrQ+BC",
    "drq_cql": "DrQ+CQL",
    "bc": "BC",
    "infogating": "InfoGating",
}
SEEDS = 4  # behind each mean and standard deviation of Tables 1, 2 and 5
TABLES = {
    1: "table1_normalized_return",  # LQV-D4RL
    2: "table2_distraction_gap",  # normalised return under coloured instead of grey backgrounds
    3: "table3_dataset_stats",  # returns of the episodes of LQV-D4RL
    4: "table4_vd4rl_return",  # return on V-D4RL, which has no distractors
    5: "table5_raw_return",  # LQV-D4RL
}
# `definition`: smallest and largest episode return of the task's datasets (Appendix D.2). `paper_table1`: the constants
# that give Table 1 from Table 5, where the lower one for Car Racing is the mean of the random dataset instead.
RULES = ("definition", "paper_table1")


@functools.cache
def _page() -> dict[str, Any]:
    return read_yaml(FILE)


def table(number: int) -> dict[str, dict[str, Any]]:
    """A table of the paper by its number.

    Returns:
      {dataset: {method: (mean, std)}}; Table 3 as {dataset: {episodes, mean, std, min, p25, median, p75, max}}.

    Raises:
      KeyError: for a number that is not in `TABLES`.
    """
    rows: Mapping[str, Any] = _page()[TABLES[number]]
    cells = {f"{task} {level}": row for task, levels in rows.items() for level, row in levels.items()}
    return {
        dataset: {key: tuple(cell) if isinstance(cell, list) else cell for key, cell in row.items()}
        for dataset, row in cells.items()
    }


def bounds(task: str, rule: str) -> tuple[float, float] | None:
    """The returns that count as 0 and 1; None where the paper has none for the task.

    Raises:
      ValueError: for a rule that is not in `RULES`.
    """
    if rule not in RULES:
        raise ValueError(f"rule: expected one of {', '.join(RULES)}, received {rule!r}")
    rules = _page()["normalisation"].get(task_name(task))
    return (rules[rule]["min"], rules[rule]["max"]) if rules else None


def normalised(task: str, raw: float, rule: str) -> float | None:
    """(raw - low) / (high - low), not clipped; None where the paper has no constants for the task."""
    limits = bounds(task, rule)
    return (raw - limits[0]) / (limits[1] - limits[0]) if limits else None
