"""Readers of the metrics.jsonl of the original programs: rows, with the phase and step of each.

    format        program                                      steps count                phases
    dreamerv2     DreamerV2, trained online                    steps of the simulator     policy
    tia           TIA, trained online; both its code bases     steps of the simulator     policy
    offline_dv2   Offline DV2 of the V-D4RL repository         updates in the phase       model, then policy
    semopo        the released SeMOPO                          updates in the phase       model, then policy

All of them write one JSON object per line: a `step` and numbers by name, one row for every evaluation episode, and NaN
or Infinity where a number is not finite. Offline, both phases are in one file and the steps start again; evaluations in
the model phase are logged at step 0 and get the step of the update before them here. Online, model and policy learn
together, and everything is called the policy phase.
"""

import collections
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from semopo_tf.errors import DataError, cut, shown
from semopo_tf.storage.untrusted import parse_json

FORMATS = ("dreamerv2", "tia", "offline_dv2", "semopo")
ONLINE = ("dreamerv2", "tia")
LARGEST = 1e308
# Return of an evaluation episode -> its number of decisions.
EVALUATED = {"eval_return": "eval_length", "test/return": "test/length"}
LOSSES = {"model_loss": "model", "actor_loss": "policy"}  # offline, every row of training has one of them


class Row(NamedTuple):
    """One line of a file."""

    line: int  # from 1
    step: int
    names: frozenset[str]
    values: dict[str, float]  # those that are finite

    @property
    def evaluation(self) -> str:
        """The name of the return if this is the row of an evaluation episode, else empty."""
        return next((name for name in EVALUATED if name in self.names), "")


class Placed(NamedTuple):
    """A row with its phase and its step within it."""

    phase: str
    step: int
    row: Row


def read_rows(path: Path, data: bytes) -> tuple[list[Row], list[str]]:
    """The rows of a file that hold numbers, and notes on what is left out.

    Raises:
      DataError: for a line that is not a row.
    """
    rows, notes, dropped = [], [], collections.Counter[str]()
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    for line, text in enumerate(lines, 1):
        try:
            value = parse_json(text, constant=float)
        except ValueError as error:
            if line == len(lines) and not data.endswith(b"\n"):
                notes.append("the last line is incomplete and is left out")
                break
            problem = f"expected a JSON object ({str(error)[:60]})"
            raise DataError(f"{path}: line {line}: {problem}; remove the line") from error
        row = _row(path, line, value)
        dropped.update(row.names - set(row.values))
        if row.names:
            rows.append(row)
    if dropped:
        listed = ", ".join(f"{cut(name, 40)} {count}" for name, count in sorted(dropped.items()))
        notes.append(f"{dropped.total()} numbers that are not finite are left out: {cut(listed, 200)}")
    return rows, notes


def _row(path: Path, line: int, entries: Any) -> Row:
    """The JSON value of a line as a row.

    Raises:
      DataError: when it is not one.
    """
    where = f"{path}: line {line}"
    if not isinstance(entries, dict):
        raise DataError(f"{where}: expected a JSON object, received {type(entries).__name__}; remove the line")
    step = entries.pop("step", None)
    if type(step) is not int or not 0 <= step < 2**53:
        raise DataError(f"{where}: expected a whole number as step, received {shown(step)}; remove the line")
    for name, value in entries.items():
        if type(value) not in (int, float):
            raise DataError(f"{where}: {cut(name)}: expected a number, received {shown(value)}; remove the entry")
    finite = {name: float(value) for name, value in entries.items() if abs(value) <= LARGEST}
    return Row(line, step, frozenset(entries), finite)


def check_format(path: Path, rows: Iterable[Row], format: str) -> None:
    """Raise a DataError when the names are those of another program."""
    names = frozenset[str]().union(*(row.names for row in rows))
    if names & {"train/return", "test/return"}:
        fitting = ["tia"]
    elif "train_return" in names:
        fitting = ["tia"] if "disen/kl" in names else ["dreamerv2"]
    elif "model_loss" in names:
        fitting = ["semopo"] if "disen/kl" in names else ["offline_dv2"]
    else:
        fitting = ["semopo", "offline_dv2"]  # their policy phases have the same names
    if format not in fitting:
        received = f"received those of {' or '.join(fitting)}"
        raise DataError(f"{path}: expected the names that {format} writes, {received}; use --format {fitting[0]}")


def place(path: Path, rows: Sequence[Row], format: str) -> list[Placed]:
    """Phase and step of every row, in the order of the file.

    Offline, an evaluation belongs to the phase of the training row that follows it: between the last update of the
    model and the first of the policy, all evaluations are of the same agent.

    Raises:
      DataError: when the steps of a phase decrease, since then the file holds more than one run.
    """
    if format in ONLINE:
        return [Placed("policy", row.step, row) for row in rows]
    placed, newest = [], {"model": -1, "policy": -1}
    for row, phase in zip(rows, _phases(path, rows), strict=True):
        if not row.evaluation:
            late = phase == "model" and newest["policy"] >= 0
            if late or row.step <= newest[phase]:
                before = f"policy step {newest['policy']}" if late else f"step {newest[phase]}"
                steps = f"{phase} step {row.step} after {before}"
                raise DataError(f"{path}: line {row.line}: {steps}: two runs in one file; keep the lines of one")
            newest[phase] = row.step
        placed.append(Placed(phase, max(newest["model"], 0) if phase == "model" else row.step, row))
    return placed


def _phases(path: Path, rows: Sequence[Row]) -> list[str]:
    """The phase of each row; an evaluation has that of the next row of training, or of the last one at the end of the
    file.

    Raises:
      DataError: for a row of neither phase, or of both.
    """
    named: list[str] = []
    for row in rows:
        phases = [""] if row.evaluation else [phase for name, phase in LOSSES.items() if name in row.names]
        if len(phases) != 1:
            expected, names = ", ".join((*LOSSES, "eval_return")), cut(", ".join(sorted(row.names)), 100)
            problem = f"expected one of {expected} among its names, received {names}"
            raise DataError(f"{path}: line {row.line}: {problem}; see --format")
        named += phases
    phase = next((each for each in reversed(named) if each), "policy")
    for index in reversed(range(len(named))):
        phase = named[index] = named[index] or phase
    return named
