"""Every state that a power loss can leave behind while a checkpoint is written or pruned loads what was there before or
what was to come.

The writer runs once with a file layer that notes each step. A model of a disk then replays every prefix of the steps,
and for each all that the disk may have made of what was not yet forced to it: content missing, cut anywhere, or of
zeros, each file for itself; changes of a directory lost in any combination. Every distinct state is put on a real file
system and read.
"""

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from semopo_tf.errors import CheckpointError
from semopo_tf.run import checkpoints
from semopo_tf.storage.files import Files

PHASES = ("model", "policy")
Tree = dict[str, "bytes | Tree"]


def tensors(number: int) -> dict[str, np.ndarray]:
    return {"a/kernel": np.full((3, 4), number, np.float32), "updates": np.array(number)}


def save(logdir: Path, step: int, files: Files | None = None) -> Path:
    state = {"metrics_size": step, "timing_size": 0, "sums": [float(step)], "count": 1}
    return checkpoints.save(logdir, "model", step, tensors(step), state, *([files] if files else []))


class OpLog(Files):
    """Does every step and notes it: its name, the paths it was given, and what was written."""

    def __init__(self):
        self.log: list[tuple] = []
        self._open: dict[int, Path] = {}

    def create(self, path):
        descriptor = super().create(path)
        self._open[descriptor] = path
        self.log.append(("create", path))
        return descriptor

    def put(self, descriptor, data):
        written = super().put(descriptor, data[:400])  # several writes for the larger file
        self.log.append(("put", self._open[descriptor], bytes(data[:written])))
        return written

    def sync(self, descriptor):
        super().sync(descriptor)
        self.log.append(("sync", self._open[descriptor]))

    def make_one_directory(self, path):
        super().make_one_directory(path)
        self.log.append(("make", path))

    def sync_directory(self, path):
        super().sync_directory(path)
        self.log.append(("sync_directory", path))

    def rename(self, source, target):
        super().rename(source, target)
        self.log.append(("rename", source, target))

    def unlink(self, path):
        super().unlink(path)
        self.log.append(("unlink", path))

    def remove_directory(self, path):
        super().remove_directory(path)
        self.log.append(("remove", path))


class Node:
    """A file or directory of the model: what is on the disk for certain, and what was done since."""

    def __init__(self, content: bytes = b"", entries: "dict[str, Node] | None" = None):
        self.content, self.fresh = content, b""
        self.entries = entries  # None for a file; for a directory what is on the disk for certain
        self.changes: list[tuple[str, str, Node | None]] = []  # (name that goes, name that comes, node), not yet forced

    def seen(self) -> "dict[str, Node]":
        """The directory as the running system sees it."""
        return applied(self.entries, self.changes)


def applied(entries: dict[str, Node], changes: list[tuple]) -> dict[str, Node]:
    result = dict(entries)
    for goes, comes, node in changes:
        if goes:
            result.pop(goes, None)
        if comes:
            result[comes] = node
    return result


class Disk:
    """The model. `states` are all directory trees that a power loss at this point may leave."""

    def __init__(self, logdir: Path):
        self._logdir, self._root = logdir, self._read(logdir)

    def _read(self, path: Path) -> Node:
        if path.is_dir():
            return Node(entries={entry.name: self._read(entry) for entry in path.iterdir()})
        return Node(path.read_bytes())

    def _node(self, path: Path) -> Node:
        node = self._root
        for part in path.relative_to(self._logdir).parts:
            node = node.seen()[part]
        return node

    def step(self, name: str, path: Path, *more) -> None:
        if name == "put":
            self._node(path).fresh += more[0]
        elif name == "sync":
            node = self._node(path)
            node.content, node.fresh = node.content + node.fresh, b""
        elif name == "sync_directory":
            node = self._node(path)
            node.entries, node.changes = node.seen(), []
        else:
            parent = self._node(path.parent)
            new = {"create": Node, "make": lambda: Node(entries={}), "rename": lambda: self._node(path)}.get(
                name, lambda: None
            )()
            goes, comes = (
                path.name if name in ("rename", "unlink", "remove") else "",
                path.name if name in ("create", "make") else "",
            )
            parent.changes.append((goes, more[0].name if name == "rename" else comes, new))

    def states(self, every: int) -> Iterator[Tree]:
        return trees(self._root, every)


def trees(node: Node, every: int) -> Iterator:
    """All that a power loss may leave of a file or directory."""
    if node.entries is None:
        yield from contents(node, every)
        return
    found = set()
    for count in range(len(node.changes) + 1):
        for subset in itertools.combinations(node.changes, count):
            entries = applied(node.entries, list(subset))
            key = tuple(sorted((name, id(child)) for name, child in entries.items()))
            if key not in found:
                found.add(key)
                for combination in itertools.product(*(list(trees(child, every)) for child in entries.values())):
                    yield dict(zip(entries, combination, strict=True))


def contents(node: Node, every: int) -> Iterator[bytes]:
    """What was forced, and of the rest: a part of every length, from nothing to all, or the right length in zeros."""
    yield from (node.content + node.fresh[:cut] for cut in (*range(0, len(node.fresh), every), len(node.fresh)))
    if node.fresh:
        yield node.content + bytes(len(node.fresh))


def crash_states(before: Path, log: list[tuple], every: int) -> Iterator[tuple[int, str, Tree]]:
    """(steps done, name of the state, its tree) for every prefix of the steps; what is cut is cut at each `every`
    bytes.
    """
    disk = Disk(before)
    for done in range(len(log) + 1):
        for tree in disk.states(every):
            yield done, json.dumps(tree, default=bytes.hex, sort_keys=True), tree
        if done < len(log):
            disk.step(*log[done])


def materialise(tree: Tree, path: Path) -> None:
    path.mkdir()
    for name, content in tree.items():
        if isinstance(content, dict):
            materialise(content, path / name)
        else:
            (path / name).write_bytes(content)


def rebased(log: list[tuple], old: Path, new: Path) -> list[tuple]:
    return [tuple(new / part.relative_to(old) if isinstance(part, Path) else part for part in step) for step in log]


class Case(NamedTuple):
    """A run directory before the writer's work, the work, and the steps whose checkpoints may be loaded afterwards."""

    present: tuple[int, ...]
    damaged: tuple[int, ...]
    work: str
    allowed: tuple[int, ...]
    least: int  # distinct states, together at least 2,000


CASES = {
    "save over an older one": Case((10,), (), "save", (10, 20), 1000),
    "save in place of a damaged one": Case((10, 20), (20,), "save", (10, 20), 1000),
    "save, then prune": Case((5, 10), (), "save and prune", (10, 20), 1000),
    "prune": Case((5, 10, 20), (), "prune", (20,), 10),
    "prune with a damaged one among the old": Case((5, 10, 20), (10,), "prune", (20,), 10),
}


def run_case(case: Case, place: Path) -> list[tuple]:
    """Make the directory `before` the work. Returns the steps of the work."""
    before, logdir = place / "before", place / "logdir"
    before.mkdir()
    for step in case.present:
        path = save(before, step)
        if step in case.damaged:
            (path / "tensors.npz").write_bytes(b"damaged")
    shutil.copytree(before, logdir)
    files = OpLog()
    if "save" in case.work:
        save(logdir, 20, files)
    if "prune" in case.work:
        assert checkpoints.prune(logdir, PHASES, keep=1, files=files) == []
    return rebased(files.log, logdir, before)


def assert_whole(logdir: Path, allowed: tuple[int, ...]) -> int:
    """Exactly one of the allowed checkpoints is loaded, and it is whole. Returns its step."""
    found, _ = checkpoints.load_newest(logdir, PHASES)
    assert found.step in allowed
    assert {name: array.tolist() for name, array in found.tensors.items()} == {
        name: array.tolist() for name, array in tensors(found.step).items()
    }
    assert (found.state["metrics_size"], found.state["sums"]) == (found.step, [float(found.step)])
    return found.step


@pytest.fixture
def place(tmp_path) -> Iterator[Path]:
    """In memory where there is such a file system: thousands of small files."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


def loaded_states(case: Case, place: Path, log: list[tuple], every: int = 1) -> Iterator[tuple[int, int]]:
    """(steps done, step of the loaded checkpoint) for every state; each distinct state is put on the file system
    once.
    """
    known: dict[str, int] = {}
    for done, name, tree in crash_states(place / "before", log, every):
        if name not in known:
            materialise(tree, place / "crashed")
            known[name] = assert_whole(place / "crashed", case.allowed)
            if len(known) % 20 == 0:  # and the next run goes on from it
                checkpoints.prune(place / "crashed", PHASES, keep=3)
                save(place / "crashed", 30)
                assert_whole(place / "crashed", (30,))
            shutil.rmtree(place / "crashed")
        yield done, known[name]
    print(f"{len(known)} distinct states of {len(log)} steps")


@pytest.mark.parametrize("name", CASES)
def test_R02_R03_G3_every_crash_state_of_the_writer_loads_the_old_or_the_new_checkpoint(place, name, capsys):
    """From the moment that the new one's name is forced to the disk, always the new one."""
    case = CASES[name]
    log = run_case(case, place)
    forced = 1 + log.index(("sync_directory", place / "before")) if "save" in case.work else 0
    found = set()
    for done, step in loaded_states(case, place, log):
        assert step == 20 or done < forced
        found.add(step)
    assert found == set(case.allowed)
    assert int(capsys.readouterr().out.split()[0]) >= case.least


@pytest.mark.parametrize("forgotten", ["sync", "sync_directory"])
def test_the_model_of_the_disk_finds_what_a_writer_forgets(place, forgotten):
    """Without either kind of forcing there is a state after which nothing is found, or an old one after the save had
    ended.
    """
    case = CASES["save, then prune"]
    log = [step for step in run_case(case, place) if step[0] != forgotten]
    with pytest.raises((AssertionError, CheckpointError)):
        for done, step in loaded_states(case, place, log, every=200):
            assert step == 20 or done < len(log)
