"""Checkpoints: one directory each, written atomically, verified on every load. Needs no TensorFlow.

    ckpt-<phase>-<step>/   tensors.npz     stable name -> array, uncompressed
                           state.json      phase, step, metrics position, running sums
                           MANIFEST.json   format, size and SHA-256 of the other two, written last

A directory is written under a temporary name, synced to the disk and renamed. It is renamed again before deletion. The
newest one that verifies is used; the order is (phase, step), never a clock. Readers change nothing: a damaged directory
keeps its name.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

import semopo_tf
from semopo_tf.errors import CheckpointError, StorageError
from semopo_tf.run.directory import replace_directory, set_aside
from semopo_tf.storage import npz
from semopo_tf.storage.files import FILES, Files, cure
from semopo_tf.storage.limits import free_memory
from semopo_tf.storage.schema import unfit
from semopo_tf.storage.untrusted import parse_json, read_whole

FORMAT = 1
PATTERN = re.compile(r"ckpt-([a-z]+)-([0-9]{9})")
MEMBERS = ("tensors.npz", "state.json")
MANIFEST = "MANIFEST.json"
# The fields of a manifest, of its entries and of a state.
MANIFEST_FORM = {"format": int, "files": dict}
ENTRY = {"size": int, "sha256": str}
STATE = {"phase": str, "step": int, "metrics_size": int, "timing_size": int, "sums": list, "count": int}
TEXT_BYTES = 1 << 24  # largest manifest or state
RELISTINGS = 20  # attempts of a reader while a writer removes what it has just listed
PICKLES = (".pkl", ".pickle")


class Checkpoint(NamedTuple):
    """A verified checkpoint in memory."""

    path: Path
    phase: str
    step: int
    tensors: dict[str, np.ndarray]
    state: dict[str, Any]


def name_of(phase: str, step: int) -> str:
    """Name of a checkpoint's directory."""
    return f"ckpt-{phase}-{step:09d}"


def save(
    logdir: Path,
    phase: str,
    step: int,
    tensors: Mapping[str, np.ndarray],
    state: Mapping[str, Any],
    files: Files = FILES,
) -> Path:
    """Write `ckpt-<phase>-<step>`. A good one of that name is kept; a damaged one is replaced.

    Raises:
      CheckpointError: when a tensor is not finite; the last good checkpoint stays the newest.
      StorageError: when the disk refuses; the attempt is cleaned up.
    """
    if names := npz.not_finite(tensors):
        raise CheckpointError(
            f"{names[0]}: not finite at {phase} step {step}; not saved, the previous checkpoint stays the newest"
        )
    target = logdir / name_of(phase, step)
    with contextlib.suppress(CheckpointError):
        return load(target).path
    facts = {**state, "phase": phase, "step": step, "version": semopo_tf.__version__}
    content: dict[str, bytes | memoryview] = {"tensors.npz": npz.pack(tensors), "state.json": _json(facts)}
    entries = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()}
    try:
        replace_directory(target, content | {MANIFEST: _json({"format": FORMAT, "files": entries})}, files)
    except OSError as error:
        raise StorageError(
            f"{target}: the checkpoint cannot be written ({error.strerror}); it needs "
            f"{_megabytes(sum(map(len, content.values())))}, {_free(logdir, files)} are free; "
            f"{cure(error) or 'restore its directory'} and run again, the previous checkpoint is good"
        ) from error
    return target


def prune(logdir: Path, phases: Sequence[str], *, keep: int, files: Files = FILES) -> list[str]:
    """Remove all but the newest `keep` checkpoints and the last of each phase, and what killed writers left behind.

    Returns:
      Warning lines. No checkpoint is removed unless the newest one reads back whole.
    """
    for leftover in logdir.glob(".tmp-*-ckpt-*"):
        files.remove_tree(leftover)
    paths = listed(logdir, phases)
    last_of_phase = {path.name.split("-")[1]: path for path in paths}
    surplus = [path for path in paths[:-keep] if path not in last_of_phase.values()]
    if not surplus:
        return []
    try:
        load(paths[-1])
        aside = [set_aside(path, files) for path in surplus]
        files.sync_directory(logdir)
    except (CheckpointError, OSError) as error:
        return [f"{error}; no older checkpoint is removed"]
    for path in aside:
        files.remove_tree(path)
    return []


def space_warning(logdir: Path, size: int, *, keep: int, files: Files = FILES) -> str | None:
    """A warning line if the disk has less room than the run's checkpoints will need, else None.

    Args:
      size: bytes of one checkpoint.
      keep: as for `prune`; the last one of an earlier phase and the one being written are extra.
    """
    needed = size * (keep + 2) - sum(map(stored_bytes, logdir.glob("ckpt-*")))
    if needed <= files.free_bytes(logdir):
        return None
    return (
        f"{logdir}: the run's checkpoints will need about {_megabytes(needed)} more, {_free(logdir, files)} are free; "
        "free some space or lower --keep_checkpoints"
    )


def stored_bytes(path: Path) -> int:
    """Total size of a checkpoint's files."""
    total = 0
    for file in path.glob("*"):
        with contextlib.suppress(OSError):  # a concurrent writer may just have removed it
            total += file.stat(follow_symlinks=False).st_size
    return total


def load_newest(logdir: Path, phases: Sequence[str]) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a warning line for each newer one that does not.

    Args:
      phases: in the order of the run.

    Raises:
      CheckpointError: when there are checkpoints but none verifies. A run never starts afresh silently.
    """
    for _ in range(RELISTINGS):
        paths = listed(logdir, phases)
        if not paths:
            _refuse_pickle(logdir)
            return None, []
        faults: list[str] = []
        for path in reversed(paths):
            try:
                return load(path), faults
            except CheckpointError as error:
                faults.append(f"{error}; using an older one")
        if all(os.path.lexists(path) for path in paths):
            break
    raise CheckpointError(
        f"{logdir}: none of {len(paths)} checkpoints can be used: {' | '.join(faults)}; move the folder away to start "
        "afresh"
    )


def listed(logdir: Path, phases: Sequence[str]) -> list[Path]:
    """Every path with the name of a checkpoint, good or not, oldest first by (phase, step)."""
    order = []
    for path in logdir.glob("ckpt-*"):
        match = PATTERN.fullmatch(path.name)
        if match and match[1] in phases:
            order.append(((phases.index(match[1]), int(match[2])), path))
    return [path for _, path in sorted(order)]


def load(path: Path) -> Checkpoint:
    """Read one checkpoint and verify every byte against its manifest. Sizes are checked before memory is allocated.

    Raises:
      CheckpointError: naming the file and what is wrong with it.
    """
    if path.is_symlink() or not path.is_dir():
        _refuse_file(path)
    entries = _manifest(path)
    content = {name: _member(path / name, entries[name]) for name in MEMBERS}
    try:
        tensors = npz.unpack(content["tensors.npz"])
    except npz.MALFORMED as error:
        raise CheckpointError(
            f"{path / 'tensors.npz'}: expected an uncompressed npz of numbers ({_short(error)}); it was not written "
            "here"
        ) from error
    if names := npz.not_finite(tensors):
        raise CheckpointError(f"{path}: {_short(names[0])} is not finite")
    state = _state(path, content["state.json"])
    return Checkpoint(path, state["phase"], state["step"], tensors, state)


def _manifest(path: Path) -> dict[str, Any]:
    """The entries of a manifest. It has no digest of its own, so it must equal, byte for byte, what `save` writes."""
    try:
        data = _read(path / MANIFEST, TEXT_BYTES)
        manifest = parse_json(data)
        if wrong := unfit(manifest, MANIFEST_FORM):
            raise ValueError(wrong)
    except npz.MALFORMED as error:
        raise CheckpointError(f"{path}: incomplete, no readable {MANIFEST}") from error
    if manifest["format"] != FORMAT:
        received = f"{manifest['format']} of semopo_tf {_writer(path)}"
        raise CheckpointError(
            f"{path}: expected checkpoint format {FORMAT}, received {received}; use the version that wrote it"
        )
    entries = manifest["files"]
    if different := sorted(set(entries) ^ set(MEMBERS)):
        raise CheckpointError(
            f"{path}: expected the files {', '.join(MEMBERS)} in the manifest, different: "
            f"{_short(', '.join(different))}"
        )
    if not unfit(entries, dict.fromkeys(MEMBERS, ENTRY)):
        plain = {name: {key: entry[key] for key in ENTRY} for name, entry in entries.items()}
        if data == _json({"format": FORMAT, "files": plain}):
            return plain
    raise CheckpointError(f"{path}: {MANIFEST} differs from what was written")


def _writer(path: Path) -> str:
    """The version that wrote a checkpoint of another format, if its state.json names it."""
    try:
        return _short(parse_json(_read(path / "state.json", TEXT_BYTES))["version"])
    except npz.MALFORMED:
        return "(unknown version)"


def _member(path: Path, entry: Mapping[str, Any]) -> bytes:
    """Read a file and verify it against its manifest entry."""
    try:
        data = _read(path, entry["size"])
    except npz.MALFORMED as error:
        raise CheckpointError(f"{path}: missing, or cannot be read ({_short(error)})") from error
    if len(data) != entry["size"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise CheckpointError(f"{path}: missing, or different from its manifest (size or SHA-256)")
    return data


def _read(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes, if it fits into memory."""
    size, free = path.stat(follow_symlinks=False).st_size, free_memory()
    if free and free < size <= limit:
        raise MemoryError(f"{_megabytes(size)}, but {_megabytes(free)} of memory are free")
    return read_whole(path, limit)[0]


def _state(path: Path, data: bytes) -> dict[str, Any]:
    """The content of state.json, whose phase and step must match the directory's name."""
    try:
        state = parse_json(data)
        if wrong := unfit(state, STATE):
            raise ValueError(wrong)
    except npz.MALFORMED as error:
        raise CheckpointError(
            f"{path / 'state.json'}: expected an object with {', '.join(STATE)} ({_short(error)})"
        ) from error
    sizes = (state["metrics_size"], state["timing_size"], state["count"])
    if min(sizes) < 0 or not all(type(value) is float for value in state["sums"]):
        raise CheckpointError(
            f"{path / 'state.json'}: expected sums to be a list of numbers and sizes to be at least 0, received others"
        )
    match = PATTERN.fullmatch(path.name)
    if match and (state["phase"], state["step"]) != (match[1], int(match[2])):
        received = f"{_short(state['phase'])} {_short(state['step'])}"
        raise CheckpointError(f"{path}: expected a state of the same phase and step, received {received}")
    return state


def _refuse_file(path: Path) -> NoReturn:
    if path.suffix in PICKLES:
        raise CheckpointError(
            f"{path}: pickle files can run code and are not loaded; train again, or give a directory "
            "ckpt-<phase>-<step> of a run"
        )
    kind = "a symbolic link" if path.is_symlink() else "something else" if path.exists() else "nothing"
    raise CheckpointError(f"{path}: expected a checkpoint directory, received {kind}")


def _refuse_pickle(logdir: Path) -> None:
    """Refuse a pickle, the checkpoint of the original code, in a run directory without checkpoints."""
    for path in [logdir, *logdir.glob("variables.p*")]:
        if path.suffix in PICKLES and not path.is_dir():
            _refuse_file(path)


def _json(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, indent=1, allow_nan=False).encode()


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.1f} MB"


def _free(logdir: Path, files: Files) -> str:
    try:
        return _megabytes(files.free_bytes(logdir))
    except OSError:
        return "unknown MB"


def _short(value: Any) -> str:
    """Untrusted text, shortened and made printable for an error message."""
    text = " ".join(str(value).split())[:80]
    return "".join(letter if letter.isprintable() else "?" for letter in text)
