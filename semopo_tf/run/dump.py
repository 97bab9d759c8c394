"""The dump that a run writes when a loss, gradient or weight is not finite: enough to repeat the update.

dump-<phase>-<step>/   dump.json     phase, step (updates before it), seed, sizes, names of what is not finite,
                                     the last good checkpoint
                       config.yaml   the run's configuration
                       batch.npz     the batch of the update
                       state.npz     every variable before the update, by its name in a checkpoint
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.engine.compiling import compiled
from semopo_tf.engine.loop import StageLoop
from semopo_tf.errors import DataError, StorageError
from semopo_tf.random import Key
from semopo_tf.run.directory import replace_directory
from semopo_tf.storage import npz
from semopo_tf.storage.files import FILES, Files, remedy
from semopo_tf.storage.limits import free_memory
from semopo_tf.storage.npz import not_finite
from semopo_tf.storage.schema import read_object, unfit
from semopo_tf.storage.untrusted import read_whole
from semopo_tf.types import Batch, Learner, Stage, Transitions, WithEpisode

SHOWN = 3  # names in a message
FIELDS = {
    **dict.fromkeys(("phase", "checkpoint", "device"), str),
    **dict.fromkeys(("step", "seed", "image_size", "action_size", "episodes?", "transitions?"), int),
    "not_finite": [str],
}


class Dump(NamedTuple):
    """The content of a dump directory."""

    facts: dict[str, Any]
    batch: dict[str, np.ndarray]  # by the names of `by_name`
    state: dict[str, np.ndarray]


def by_name(batch: Any) -> dict[str, Any]:
    """The tensors of a batch; those of a part of it with its name before theirs."""
    if not isinstance(batch, WithEpisode):
        return batch._asdict()
    return {f"{part}.{name}": value for part in batch._fields for name, value in getattr(batch, part)._asdict().items()}


def from_names(arrays: Mapping[str, np.ndarray]) -> Any:
    """The batch whose tensors `by_name` names.

    Raises:
      TypeError: when it is none.
    """
    if not any("." in name for name in arrays):
        return (Transitions if "next_image" in arrays else Batch)(**arrays)
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        part, _, field = name.partition(".")
        parts.setdefault(part, {})[field] = array
    return WithEpisode(**{part: Batch(**own) for part, own in parts.items()})


def shown(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "a tensor that is finite when the update is done again"


def examine(learner: Learner, stage: Stage, batch: Any, key: Key, *, jit: bool) -> list[str]:
    """Take one update and name everything that is not finite, causes before effects: batch, weights, losses,
    gradients, updated weights.

    The update changes the weights: the caller keeps a copy.
    """
    names = [f"batch/{name}" for name in not_finite(by_name(batch))] + not_finite(learner.variables())
    if gradients_of := stage.gradients:
        metrics, gradients = compiled(lambda batch, step: gradients_of(batch, key._replace(step=step)), jit=jit)(
            batch, key.step
        )
        names += [f"metric/{name}" for name in not_finite(metrics)]
        names += [f"gradient/{name}" for name in not_finite(gradients)]
    if not names:
        update = compiled(lambda batch, step: dict(stage.update(batch, key._replace(step=step))), jit=jit)
        names = [f"metric/{name}" for name in not_finite(update(batch, key.step))]
        names += [f"updated/{name}" for name in not_finite(learner.variables())]
    return names


def first_bad_update(
    loop: StageLoop, learner: Learner, first: int, last: int
) -> tuple[int, dict[str, np.ndarray]] | None:
    """Repeat the updates from `first` to `last` one at a time.

    Returns:
      The first update after which a weight is not finite, and the weights before it; None if there is none.
    """
    for step in range(first, last):
        before = {name: variable.numpy() for name, variable in learner.variables().items()}
        if not loop.run(step, 1).finite or not_finite(learner.variables()):
            return step, before
    return None


def write(
    logdir: Path,
    config: str,
    facts: Mapping[str, Any],
    batch: Mapping[str, Any],
    state: Mapping[str, np.ndarray],
    files: Files = FILES,
) -> Path:
    """Write a dump directory atomically.

    Raises:
      StorageError: when the disk refuses.
    """
    target = logdir / f"dump-{facts['phase']}-{facts['step']:09d}"
    content: dict[str, bytes | memoryview] = {
        "dump.json": json.dumps(facts, indent=1, allow_nan=False).encode(),
        "config.yaml": config.encode(),
        "batch.npz": npz.pack({name: np.asarray(value) for name, value in batch.items()}),
        "state.npz": npz.pack(state),
    }
    try:
        replace_directory(target, content, files)
    except OSError as error:
        helps = remedy(error, "make the run directory writable")
        raise StorageError(f"{target}: cannot be written ({error.strerror}); {helps}") from error
    return target


def read(path: Path) -> Dump:
    """Read a dump directory.

    Raises:
      DataError: when it is not a dump, or damaged.
    """
    remedy = "give the dump of a stopped run, as this version writes it"
    facts = read_object(path / "dump.json", lambda facts: unfit(facts, FIELDS), remedy)
    try:
        batch, state = (
            npz.unpack(read_whole(path / name, free_memory() or sys.maxsize)[0]) for name in ("batch.npz", "state.npz")
        )
        from_names(batch)
        return Dump(facts, batch, state)
    except npz.MALFORMED as error:
        reason = type(error).__name__
        raise DataError(
            f"{path}: expected the dump of a stopped run (dump.json, batch.npz, state.npz), received none or a "
            f"damaged one ({reason})"
        ) from error
