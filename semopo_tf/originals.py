"""`python -m semopo_tf.originals`: import a run of an original program from its metrics.jsonl.

The result is a directory that the report reads like a run of this package. `report/importers.py` lists the programs
and reads their files.
"""

import collections
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semopo_tf import config as configuration
from semopo_tf.errors import CommandParser, ConfigError, DataError, StorageError, run_command, shown
from semopo_tf.report import importers
from semopo_tf.report.importers import EVALUATED, FORMATS, LOSSES, ONLINE, TRAINING_EPISODES, Placed, Row
from semopo_tf.storage.files import FILES, remedy, temporary_sibling, write_aside
from semopo_tf.storage.untrusted import read_whole

MAX_BYTES = 1 << 25  # of one file; a full run of DreamerV2 writes a few megabytes
# Original name -> name in this package; quantities that do not exist here keep their names.
BEHAVIOUR = {"reward_mean": "imagined_reward", "critic_target": "target"}
JOINT = {
    **{"kl_loss": "joint_kl_loss", "model_kl": "joint_kl"},
    **{"prior_ent": "joint_prior_ent", "post_ent": "joint_post_ent"},
}
SEPARATED = {
    **{"model_kl": "endo_kl", "prior_ent": "endo_prior_ent", "post_ent": "endo_post_ent"},
    **{"disen/kl": "exo_kl", "disen/prior_ent": "exo_prior_ent", "disen/post_ent": "exo_post_ent"},
    # The total of the endogenous model and the joint decoder alone; the norms are those of `model.split_optimizers`.
    **{"model_loss": "main_model_loss", "model_grad_norm": "endo_grad_norm", "disen_grad_norm": "exo_grad_norm"},
}
TIA = {
    **{"kl": "endo_kl", "div": "endo_kl_loss", "value_loss": "critic_loss", "value_grad_norm": "critic_grad_norm"},
    **{"main/model_loss": "main_model_loss", "main/model_grad_norm": "endo_grad_norm"},
    "disen/disen_grad_norm": "exo_grad_norm",
    "model_grad_norm": "main_grad_norm",  # without the joint decoder, which has its own optimiser there
}
NAMES: dict[str, dict[str, str]] = {
    "dreamerv2": BEHAVIOUR | JOINT,
    "dreamerv3": {},  # its losses are of other kinds than those of their names here
    "tia": BEHAVIOUR | SEPARATED | TIA,
    "offline_dv2": BEHAVIOUR | JOINT,
    "semopo": BEHAVIOUR | SEPARATED,
}
# Entries of a row of scores.jsonl that the originals do not record.
UNKNOWN: dict[str, Any] = {
    **{"discarded": 0, "source": "imported", "environment": {}, "versions": {}},
    **{"checkpoint": None, "clips": [], "clip": None},
}

Conditions = Mapping[tuple[str, int], Sequence[Row]]  # (phase, step) -> the evaluation episodes


def main(argv: list[str]) -> int:
    """Import a file.

    Raises:
      ConfigError: for wrong flags, or when the directory exists.
      DataError: when the file does not have the named format.
      StorageError: when the directory cannot be written; nothing is left behind.
    """
    parser = CommandParser(prog="python -m semopo_tf.originals", description=__doc__.splitlines()[0])
    parser.add_argument("--metrics", required=True, type=Path, help="metrics.jsonl of one run of an original program")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--method", required=True, help="its name in tables")
    parser.add_argument("--task", required=True, help="e.g. dmcdrv_walker_walk")
    parser.add_argument("--level", required=True, help="of the dataset, e.g. random")
    about = "distinguishes runs of the same method, task and level"
    parser.add_argument("--seed", required=True, type=int, help=about)
    parser.add_argument("--out", required=True, type=Path, help="directory to write, which must not exist")
    about = "last step of a complete run, as its metrics count; by default from the config.yaml beside the metrics"
    parser.add_argument("--steps", type=int, help=about)
    arguments = parser.parse(argv, steps=1)
    said = {key: getattr(arguments, key) for key in ("format", "method", "task", "level", "seed")}
    for key in ("method", "task", "level"):
        if not said[key].strip() or not said[key].isprintable():
            raise ConfigError(f"--{key}: expected a name, received {shown(said[key])}")
    out = arguments.out
    if out.exists() or out.is_symlink():
        raise ConfigError(f"--out: expected a directory that does not exist yet, received {out}; choose another")
    end = configured_end(arguments.metrics, said["format"]) if arguments.steps is None else arguments.steps
    content, notes = convert(arguments.metrics, said, end)
    publish(out, content)
    for note in notes:
        print(f"note: {note}")
    if end is None:
        where = f"{arguments.metrics.with_name('config.yaml')} does not say where the run should end"
        print(f"note: {where}; --steps names its last step, below which it counts as unfinished")
    metrics, scores = (content[name].count(b"\n") for name in ("metrics.jsonl", "scores.jsonl"))
    print(f"imported: {out}: {metrics} rows of metrics, {scores} evaluation episodes")
    return 0


def configured_end(path: Path, format: str) -> int | None:
    """The last step of the run according to the config.yaml beside its metrics; None where that does not say it."""
    try:
        settings = configuration.flatten(configuration.read_yaml(path.with_name("config.yaml")))
    except ConfigError:
        return None
    return importers.configured_end(settings, format)


def convert(path: Path, said: Mapping[str, Any], end: int | None) -> tuple[dict[str, bytes], list[str]]:
    """The files of the directory by name, and notes for readers of the numbers.

    Args:
      said: {format, method, task, level, seed}.
      end: last step of a complete run; None where it is not known.

    Raises:
      DataError: naming the line of the file.
    """
    try:
        data = read_whole(path, MAX_BYTES, follow=True)[0]
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise DataError(f"--metrics {path}: {problem}; expected the metrics.jsonl of a run") from error
    rows, notes = importers.read_rows(path, data)
    if not rows:
        problem = "expected rows of training or evaluation, received none"
        raise DataError(f"{path}: {problem}; give the metrics.jsonl of a run")
    importers.check_format(path, rows, said["format"])
    placed = importers.place(path, importers.with_evaluations(rows), said["format"])
    trained, conditions, more = sort_out(placed)
    notes += more
    if unfinished := importers.unfinished(placed, said["format"], end):
        notes.append(f"the run {unfinished}; it enters no table")
    shared = {"method": said["method"], "task": said["task"], "run_seed": said["seed"]}
    scores = [shared | row for condition, episodes in conditions.items() for row in score_rows(*condition, episodes)]
    metrics = [metric_row(each, NAMES[said["format"]]) for each in trained if each.row.values]
    metrics += [evaluation_row(*condition, episodes) for condition, episodes in conditions.items()]
    metrics.sort(key=lambda row: (("model", "policy").index(row["phase"]), row["step"]))
    online = "steps of the simulator (decisions times action repeat)"
    axis = online if said["format"] in ONLINE else "updates in the phase"
    origin = {**said, "file": str(path), "sha256": hashlib.sha256(data).hexdigest(), "axis": axis, "notes": notes}
    origin |= {"end": end, "unfinished": unfinished}
    return {
        "metrics.jsonl": lines(metrics),
        "scores.jsonl": lines(scores),
        "origin.json": json.dumps(origin, indent=1).encode(),
    }, notes


def sort_out(placed: Sequence[Placed]) -> tuple[list[Placed], Conditions, list[str]]:
    """Rows of training, evaluation episodes by condition, and notes on both."""
    notes = []
    trained = [each for each in placed if not each.row.evaluation]
    episodes = [each for each in placed if each.row.evaluation]
    start = next((each.row.line for each in trained if each.row.names & set(LOSSES)), None)
    # Every program but TIA's own collects one episode with random actions for its evaluation store.
    if episodes and episodes[0].row.evaluation == "eval_return" and (start is None or episodes[0].row.line < start):
        episodes = episodes[1:]
        notes.append("the first evaluation episode, played with random actions before training, is left out")
    conditions: dict[tuple[str, int], list[Row]] = collections.defaultdict(list)
    for each in episodes:
        if each.row.evaluation in each.row.values:
            conditions[each.phase, each.step].append(each.row)
    last = max((each.step for each in trained if "actor_loss" in each.row.names), default=-1)
    newest = max((step for phase, step in conditions if phase == "policy"), default=-1)
    if newest < last:
        newest_evaluation = f"the newest evaluation is at {newest}" if newest >= 0 else "there is no evaluation"
        notes.append(f"the policy of the last step, {last}, was not evaluated; {newest_evaluation}")
    if episodes and episodes[0].row.evaluation in TRAINING_EPISODES:
        what = "the returns are those of single training episodes, exploration included"
        notes.append(f"{what}: the rows have no evaluations of their own")
    return trained, conditions, notes


def metric_row(each: Placed, names: Mapping[str, str]) -> dict[str, Any]:
    """A row of metrics.jsonl, under the names of this package."""
    condition = {"phase": each.phase, "step": each.step}
    return condition | {names.get(name, name): value for name, value in each.row.values.items()} | condition


def evaluation_row(phase: str, step: int, episodes: Sequence[Row]) -> dict[str, Any]:
    """The row of metrics.jsonl for one evaluation; the standard deviation is that of its episodes."""
    returns = [row.values[row.evaluation] for row in episodes]
    figures = {"eval_return": float(np.mean(returns)), "eval_return_std": float(np.std(returns))}
    return {"phase": phase, "step": step, **figures, "eval_episodes": len(returns)}


def score_rows(phase: str, step: int, episodes: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of scores.jsonl. The originals do not seed episodes: `episode_seed` is the number within the evaluation."""
    rows = []
    for number, row in enumerate(episodes):
        length = row.values.get(EVALUATED[row.evaluation])
        known = {"return": row.values[row.evaluation], "length": None if length is None else int(length)}
        rows.append({"phase": phase, "step": step, "episode_seed": number} | known | UNKNOWN)
    return rows


def lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """JSON objects, one per line."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()


def publish(out: Path, content: Mapping[str, bytes]) -> None:
    """Write the directory. It appears complete or not at all.

    Raises:
      StorageError: when the disk refuses.
    """
    try:
        FILES.make_directory(out.parent)
        temporary = write_aside(out, content)
        FILES.rename(temporary, out)
        FILES.sync_directory(out.parent)
    except OSError as error:
        FILES.remove_tree(temporary_sibling(out))
        helps = remedy(error, "choose another --out")
        raise StorageError(f"{out}: cannot be written ({error.strerror}); {helps}") from error


if __name__ == "__main__":
    run_command(main)
