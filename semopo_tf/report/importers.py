"""Readers of the metrics.jsonl of the original programs: rows, with the phase and step of each.

    format        program                                      steps count                phases
    dreamerv2     DreamerV2, trained online; its API too       steps of the simulator     policy
    dreamerv3     DreamerV3; metrics.jsonl or scores.jsonl     steps of the simulator     policy
    tia           TIA, trained online; both its code bases     steps of the simulator     policy
    offline_dv2   Offline DV2 of the V-D4RL repository         updates in the phase       model, then policy
    semopo        the released SeMOPO                          updates in the phase       model, then policy

All of them write one JSON object per line: a `step` and numbers by name, and NaN or Infinity where a number is not
finite. An evaluation episode has a row of its own, but DreamerV3 writes everything that it logs at one step into one
row, so that of several episodes at a step only the last is there. Offline, both phases are in one file and the steps
start again; evaluations in the model phase are logged at step 0 and get the step of the update before them here.
Online, model and policy learn together, and everything is called the policy phase.

DreamerV2's API and most versions of DreamerV3 have no evaluation of their own: the returns there are those of the
episodes that were collected for training.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from semopo_tf.errors import DataError, cut, shown
from semopo_tf.storage.untrusted import parse_json

FORMATS = ("dreamerv2", "dreamerv3", "tia", "offline_dv2", "semopo")
ONLINE = ("dreamerv2", "dreamerv3", "tia")
LARGEST = 1e308
# Return of an episode -> its number of decisions. The first name that a file has is that of its evaluations.
EVALUATED = {
    "eval_return": "eval_length",
    "test/return": "test/length",
    "eval_episode/score": "eval_episode/length",
    "return": "length",  # DreamerV2's API
    "episode/score": "episode/length",
}
TRAINING_EPISODES = ("return", "episode/score")  # where there are no evaluations
LOSSES = {"model_loss": "model", "actor_loss": "policy"}  # offline, every row of training has one of them
DREAMERV3 = (
    "train/",
    "episode/",
    "eval_episode/",
    "epstats/",
    "report/",
    "eval/",
    "replay/",
    "usage/",
    "fps/",
    "timer/",
)
# The configured end of the last phase, in the steps of the metrics: keys of config.yaml, which are multiplied.
ENDS = {
    "dreamerv2": ("steps", "action_repeat"),
    "dreamerv3": ("run.steps", "env.{suite}.repeat"),
    **dict.fromkeys(("tia", "offline_dv2", "semopo"), ("steps",)),
}
# Offline, the last update has a row. Online, rows are written every so many steps, and the last of them may be a little
# before the end: a run counts as finished from this share of its steps.
END_SHARE = 0.99


class Row(NamedTuple):
    """One line of a file."""

    line: int  # from 1
    step: int
    names: frozenset[str]
    values: dict[str, float]  # those that are finite
    evaluation: str = ""  # name of the return if this is the row of an evaluation episode

    def part(self, names: Iterable[str], evaluation: str = "") -> "Row":
        """The row with these names alone."""
        kept = frozenset(names)
        return Row(
            self.line, self.step, kept, {key: self.values[key] for key in self.values if key in kept}, evaluation
        )


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


def check_format(path: Path, rows: Sequence[Row], format: str) -> None:
    """Raise a DataError when the names are those of another program, or of none."""
    fitting = _programs(rows)
    if not fitting:
        names = cut(", ".join(sorted(frozenset[str]().union(*(row.names for row in rows)))), 100)
        known = f"expected the names that {format} writes, received those of no known program ({names})"
        raise DataError(f"{path}: {known}; give the metrics.jsonl of one of {', '.join(FORMATS)}")
    if format not in fitting:
        received = f"received those of {' or '.join(fitting)}"
        raise DataError(f"{path}: expected the names that {format} writes, {received}; use --format {fitting[0]}")


def _programs(rows: Sequence[Row]) -> list[str]:
    """The formats whose names the rows have."""
    names = frozenset[str]().union(*(row.names for row in rows))
    if names & {"train/return", "test/return"}:
        return ["tia"]
    if "train_return" in names:
        return ["tia"] if "disen/kl" in names else ["dreamerv2"]
    trained = [row.names for row in rows if row.names & set(LOSSES)]
    if "return" in names or (trained and all(set(LOSSES) <= each for each in trained)):  # online, both in one row
        return ["dreamerv2"]
    if any(name.startswith(DREAMERV3) for name in names):
        return ["dreamerv3"]
    if "model_loss" in names:
        return ["semopo"] if "disen/kl" in names else ["offline_dv2"]
    # The policy phases of the two have the same names.
    return ["semopo", "offline_dv2"] if names & {"actor_loss", "eval_return"} else []


def with_evaluations(rows: Sequence[Row]) -> list[Row]:
    """The rows with the evaluation episodes marked. A row with an episode and with losses becomes two."""
    names = frozenset[str]().union(*(row.names for row in rows))
    returned = next((name for name in EVALUATED if name in names), "")
    marked = []
    for row in rows:
        if returned not in row.names:
            marked.append(row)
            continue
        episode = {returned, EVALUATED[returned]}
        others = row.names - episode
        mixed = returned.endswith("/score") or bool(others & set(LOSSES))
        marked.append(row.part(row.names & episode if mixed else row.names, returned))
        if mixed and others:
            marked.append(row.part(others))
    return marked


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


def configured_end(settings: Mapping[str, Any], format: str) -> int | None:
    """The step at which a run ends according to its config.yaml, as its metrics count; None where that does not say.

    Args:
      settings: by dotted key.
    """
    suite = str(settings.get("task", "")).split("_")[0]
    steps, *factors = (settings.get(key.format(suite=suite)) for key in ENDS[format])
    end = _number(steps)
    for factor in factors:
        end *= 1.0 if factor is None else _number(factor)
    return int(end) if 0 < end < 2**53 else None


def _number(value: Any) -> float:
    """A number of a YAML page, where `2e5` is a text; 0 for anything else."""
    try:
        return 0.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return 0.0


def unfinished(placed: Sequence[Placed], format: str, end: int | None) -> str:
    """Why a run is not a result, in words that follow "the run"; empty for one that is.

    Args:
      placed: the rows in the order of the file.
      end: the configured end of the last phase; None where it is not known.
    """
    last = max(placed, key=lambda each: (each.phase == "policy", each.step))
    trained = [each.row.line for each in placed if "actor_loss" in each.row.names]
    if format != "dreamerv3" and not trained:  # DreamerV3's names of losses change from version to version
        where = f"ends in the model phase, at update {last.step}" if last.phase == "model" else "has no row of training"
        return f"{where}: its policy is untrained"
    if end is not None and last.step < (END_SHARE * end if format in ONLINE else end):
        return f"stopped at step {last.step} of {end}"
    evaluated = [each.row.line for each in placed if each.row.evaluation in each.row.values]
    if trained and evaluated and evaluated[-1] < trained[0]:
        return "was evaluated only before its policy was trained"
    return ""
