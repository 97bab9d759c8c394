"""Checkpoints: one directory each, written whole, verified before it is believed. Needs no TensorFlow.

    ckpt-<phase>-<step>/   tensors.npz     stable name -> array, uncompressed
                           state.json      phase, step, metrics position, running sums
                           MANIFEST.json   size and SHA-256 of the other two, written last

A directory is written under a temporary name, forced to the disk and renamed. The newest one whose manifest holds is used; the
order is (phase, step), never a clock.
"""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.errors import CheckpointError, StorageError, cut
from semopo_tf.files import FILES, Files, sha256, temporary_sibling

FORMAT = 1
PATTERN = re.compile(r"ckpt-([a-z]+)-(\d{9})")
MEMBERS = ("tensors.npz", "state.json")


class Checkpoint(NamedTuple):
    """A verified checkpoint in memory."""

    path: Path
    phase: str
    step: int
    tensors: dict[str, np.ndarray]
    state: dict[str, Any]


def save(logdir: Path, phase: str, step: int, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any], files: Files = FILES) -> Path:
    """Write `ckpt-<phase>-<step>`, in place of a damaged one of the same name: a run goes on from the good ones and never saves a step twice.

    Raises:
      CheckpointError: when a tensor is not finite; the last good checkpoint stays the newest.
      StorageError: when the disk refuses; nothing of the attempt is left behind.
    """
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise CheckpointError(f"{name}: not finite at {phase} step {step}; not saved, the previous checkpoint stays the newest")
    target = logdir / f"ckpt-{phase}-{step:09d}"
    temporary = temporary_sibling(target)
    content = {"tensors.npz": _npz(tensors), "state.json": _json({**state, "phase": phase, "step": step})}
    entries = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()}
    try:
        files.remove_tree(temporary)
        files.make_directory(temporary)
        for name, data in content.items():
            files.write(temporary / name, data)
        files.write(temporary / "MANIFEST.json", _json({"format": FORMAT, "files": entries}))
        files.sync_directory(temporary)
        if target.exists():
            files.remove_tree(target)
        files.rename(temporary, target)
        files.sync_directory(logdir)
    except OSError as error:
        files.remove_tree(temporary)
        needed = sum(len(data) for data in content.values()) >> 20
        raise StorageError(f"{target}: checkpoint of {needed} MB cannot be written ({error.strerror}); free some space and run again") from error
    return target


def load_newest(logdir: Path, phases: Sequence[str]) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a warning line for each newer one that does not.

    Args:
      phases: in the order of the run.

    Raises:
      CheckpointError: when there are checkpoints but none verifies. A run never silently starts afresh.
    """
    found = listed(logdir, phases)
    faults: list[str] = []
    for path in reversed(found):
        try:
            return load(path), faults
        except CheckpointError as error:
            faults.append(f"{error}; using an older one")
    if found:
        raise CheckpointError(f"{logdir}: none of {len(found)} checkpoints can be used: {' | '.join(faults)}; move the folder away to start afresh")
    return None, []


def load(path: Path) -> Checkpoint:
    """Read one checkpoint after verifying every byte.

    Raises:
      CheckpointError: naming the file and what is wrong with it.
    """
    verify(path)
    state = json.loads((path / "state.json").read_text())
    with np.load(path / "tensors.npz", allow_pickle=False) as file:
        tensors = {name: file[name] for name in file.files}
    return Checkpoint(path, state["phase"], state["step"], tensors, state)


def verify(path: Path) -> None:
    """Compare a checkpoint's files with its manifest.

    Raises:
      CheckpointError: when the manifest is missing or wrong, or a file differs from it.
    """
    try:
        manifest = json.loads((path / "MANIFEST.json").read_text())
        entries = manifest["files"]
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{path}: expected checkpoint format {FORMAT}, received {manifest['format']}; use the version that wrote it")
        wrong = sorted(set(entries) ^ set(MEMBERS))
        if wrong:
            raise CheckpointError(f"{path}: expected the files {', '.join(MEMBERS)} in the manifest, different: {cut(', '.join(wrong))}")
        for name, entry in entries.items():
            file = path / name
            if not file.is_file() or file.is_symlink() or file.stat().st_size != entry["size"] or sha256(file) != entry["sha256"]:
                raise CheckpointError(f"{file}: missing, or different from its manifest (size or SHA-256)")
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: incomplete, no readable MANIFEST.json") from error


def listed(logdir: Path, phases: Sequence[str]) -> list[Path]:
    """The checkpoint directories of a run, oldest first by (phase, step)."""
    found = []
    for path in logdir.glob("ckpt-*"):
        match = PATTERN.fullmatch(path.name)
        if match and match[1] in phases and path.is_dir() and not path.is_symlink():
            found.append(((phases.index(match[1]), int(match[2])), path))
    return [path for _, path in sorted(found)]


def prune(logdir: Path, phases: Sequence[str], *, keep: int, files: Files = FILES) -> None:
    """Remove all but the newest `keep` checkpoints and the last of each phase, and leftovers of killed writers."""
    for leftover in logdir.glob(".tmp-*-ckpt-*"):
        files.remove_tree(leftover)
    found = listed(logdir, phases)
    last_of_phase = {path.name.split("-")[1]: path for path in found}
    for path in found[:-keep]:
        if path not in last_of_phase.values():
            files.remove_tree(path)


def _npz(tensors: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, tensor in tensors.items():
            # A fixed date: equal tensors give equal bytes.
            with archive.open(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(tensor, order="C"), allow_pickle=False)
    return buffer.getvalue()


def _json(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, indent=1, allow_nan=False).encode()
