"""Checkpoints: bit for bit, whole or not at all, verified before they are believed, ordered by what was learned and never by a clock."""

import copy
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import semopo_tf
from semopo_tf import checkpoints
from semopo_tf.errors import CheckpointError, StorageError
from semopo_tf.files import Files

PHASES = ("model", "policy")
MEMBERS = ("tensors.npz", "state.json", "MANIFEST.json")


def tensors(number=0) -> dict[str, np.ndarray]:
    """One of everything a run saves, and everything awkward: scalars, empty axes, denormals, negative zero, names with slashes."""
    rng = np.random.default_rng(number)
    return {
        "model/endo_encoder/conv0/kernel": rng.normal(size=(4, 4, 3, 5)).astype(np.float32),
        "model/reward/hidden0/bias": np.array([np.float32(1e-45), -0.0, 3.4e38, number], np.float32),
        "model_opt/model/updates": np.array(2**53 + 1 + number, np.int64),
        "policy/empty": np.zeros((0, 3), np.float32),
        "policy/flags": np.array([True, False]),
    }


STATE = {"metrics_size": 123, "timing_size": 45, "sums": [0.1, 1e-30], "count": 7}


def save(logdir: Path, phase="model", step=10, number=0, **keywords) -> Path:
    return checkpoints.save(logdir, phase, step, tensors(number), STATE, **keywords)


def assert_equal_bit_for_bit(one, two) -> None:
    assert list(one) == list(two)
    for name in one:
        assert (one[name].dtype, one[name].shape, one[name].tobytes()) == (two[name].dtype, two[name].shape, two[name].tobytes()), name


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def newest(logdir: Path) -> checkpoints.Checkpoint | None:
    return checkpoints.load_newest(logdir, PHASES)[0]


# --- whole ones -----------------------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_reads_back_bit_for_bit(tmp_path):
    path = save(tmp_path)
    assert path == tmp_path / "ckpt-model-000000010"
    assert names(path) == sorted(MEMBERS)
    assert names(tmp_path) == [path.name]
    loaded = checkpoints.load(path)
    assert_equal_bit_for_bit(loaded.tensors, tensors())
    assert (loaded.phase, loaded.step, loaded.path) == ("model", 10, path)
    assert loaded.state == STATE | {"phase": "model", "step": 10}


def test_equal_tensors_give_equal_bytes(tmp_path):
    one, two = save(tmp_path / "a"), save(tmp_path / "b")
    os.utime(one / "tensors.npz", (0, 0))
    for member in MEMBERS:
        assert (one / member).read_bytes() == (two / member).read_bytes()
    other = save(tmp_path / "c", number=1)
    assert (other / "tensors.npz").read_bytes() != (one / "tensors.npz").read_bytes()


def test_memory_layout_does_not_matter(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    first, second = ({"x": array}, {"x": np.asfortranarray(array)})
    paths = [checkpoints.save(tmp_path / str(i), "model", 1, content, {}) for i, content in enumerate((first, second))]
    assert paths[0].joinpath("tensors.npz").read_bytes() == paths[1].joinpath("tensors.npz").read_bytes()


def test_the_newest_is_the_furthest_and_not_the_latest_written(tmp_path):
    """Phase before step, step as a number; the clock says the opposite here."""
    ordered = [("model", 5), ("model", 40), ("model", 300), ("policy", 0), ("policy", 7), ("policy", 20)]
    paths = {place: save(tmp_path, *place, number=index) for index, place in reversed(list(enumerate(ordered)))}
    for age, place in enumerate(ordered):
        os.utime(paths[place], (10**9 - age, 10**9 - age))
    assert checkpoints.listed(tmp_path, PHASES) == [paths[place] for place in ordered]
    found, faults = checkpoints.load_newest(tmp_path, PHASES)
    assert (found.phase, found.step, faults) == ("policy", 20, [])
    assert_equal_bit_for_bit(found.tensors, tensors(5))


def test_a_new_run_has_no_checkpoint_and_no_complaint(tmp_path):
    assert checkpoints.load_newest(tmp_path, PHASES) == (None, [])
    assert checkpoints.load_newest(tmp_path / "missing", PHASES) == (None, [])


def test_foreign_names_are_no_checkpoints(tmp_path):
    good = save(tmp_path)
    for name in ("ckpt-other-000000099", "ckpt-model-99", "ckpt-model-0000000099", "ckpt-model-000000099.corrupt", ".tmp-1-ckpt-model-000000099"):
        shutil.copytree(good, tmp_path / name)
    (tmp_path / "ckpt-policy-000000001").write_text("a file")
    (tmp_path / "ckpt-policy-000000002").symlink_to(good)
    assert checkpoints.listed(tmp_path, PHASES) == [good]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path):
    path = save(tmp_path)
    (path / "tensors.npz").write_bytes(b"damaged")
    save(tmp_path, number=3)
    assert_equal_bit_for_bit(newest(tmp_path).tensors, tensors(3))
    assert names(tmp_path) == [path.name]


# --- damaged ones ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path) -> tuple[Path, Path]:
    """An older and a newer checkpoint."""
    return save(tmp_path, "model", 10, number=1), save(tmp_path, "model", 20, number=2)


def assert_falls_back(older: Path, newer: Path) -> None:
    found, faults = checkpoints.load_newest(older.parent, PHASES)
    assert found.path == older
    assert_equal_bit_for_bit(found.tensors, tensors(1))
    assert len(faults) == 1
    assert str(newer) in faults[0]
    assert faults[0].endswith("; using an older one")


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.7, 0.99, "one byte less"])
@pytest.mark.parametrize("member", MEMBERS)
def test_every_truncated_file_is_noticed(two, member, part):
    older, newer = two
    data = (newer / member).read_bytes()
    (newer / member).write_bytes(data[:-1] if part == "one byte less" else data[: int(part * len(data))])
    assert_falls_back(older, newer)


@pytest.mark.parametrize("member", MEMBERS)
def test_every_missing_file_is_noticed(two, member):
    older, newer = two
    (newer / member).unlink()
    assert_falls_back(older, newer)


def test_two_hundred_flipped_bits_are_all_noticed(two):
    older, newer = two
    rng = np.random.default_rng(0)
    for trial in range(200):
        path = newer / MEMBERS[trial % 3]
        data = path.read_bytes()
        bit = int(rng.integers(8 * len(data)))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped)
        assert_falls_back(older, newer)
        path.write_bytes(data)
    assert newest(newer.parent).path == newer


def manifest(path: Path, change) -> None:
    tree = json.loads((path / "MANIFEST.json").read_text())
    change(tree)
    (path / "MANIFEST.json").write_text(json.dumps(tree))


GARBAGE = ["", "{", "[]", "3", "null", '"files"', "{}", "\0" * 50, "[" * 100_000, '{"files": {}}', '{"format": 1, "files": []}']
GARBAGE += ['{"format": 1, "files": {"tensors.npz": 3, "state.json": 4}}', '{"format": 1, "files": ["tensors.npz", "state.json"]}']


@pytest.mark.parametrize("text", GARBAGE, ids=range(len(GARBAGE)))
def test_a_manifest_of_garbage_is_noticed(two, text):
    older, newer = two
    (newer / "MANIFEST.json").write_text(text)
    assert_falls_back(older, newer)


def test_a_manifest_that_is_no_text_is_noticed(two):
    (two[1] / "MANIFEST.json").write_bytes(b"\xff\xfe\xfd")
    assert_falls_back(*two)


def test_another_format_is_named(two):
    manifest(two[1], lambda tree: tree.update(format=2))
    assert_falls_back(*two)
    with pytest.raises(CheckpointError, match="expected checkpoint format 1, received 2; use the version that wrote it"):
        checkpoints.load(two[1])


@pytest.mark.parametrize("name", ["../outside", "extra.bin", "/etc/passwd"])
def test_a_manifest_with_foreign_names_is_refused(two, name):
    manifest(two[1], lambda tree: tree["files"].update({name: tree["files"]["state.json"]}))
    assert_falls_back(*two)
    with pytest.raises(CheckpointError, match=r"expected the files tensors\.npz, state\.json in the manifest, different: "):
        checkpoints.load(two[1])


def test_a_manifest_that_lacks_a_file_is_refused(two):
    manifest(two[1], lambda tree: tree["files"].pop("state.json"))
    assert_falls_back(*two)


def test_a_symbolic_link_in_place_of_a_file_is_refused(two, tmp_path):
    older, newer = two
    (newer / "tensors.npz").rename(tmp_path / "elsewhere.npz")
    (newer / "tensors.npz").symlink_to(tmp_path / "elsewhere.npz")
    assert_falls_back(older, newer)


def test_a_directory_in_place_of_a_file_is_refused(two):
    (two[1] / "state.json").unlink()
    (two[1] / "state.json").mkdir()
    assert_falls_back(*two)


def test_when_every_checkpoint_is_damaged_the_run_stops_and_lists_them(two):
    for path in two:
        (path / "tensors.npz").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_newest(two[0].parent, PHASES)
    message = str(caught.value)
    assert "none of 2 checkpoints can be used" in message
    assert all(f"{path / 'tensors.npz'}: missing, or different from its manifest" in message for path in two)
    assert message.endswith("move the folder away to start afresh")


# --- what is not saved ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_tensor_that_is_not_finite_is_never_saved(tmp_path, value, dtype):
    good = save(tmp_path)
    content = tensors() | {"policy/actor/bias": np.array([0, value], dtype)}
    with pytest.raises(CheckpointError, match="policy/actor/bias: not finite at policy step 30; not saved, the previous checkpoint stays the newest"):
        checkpoints.save(tmp_path, "policy", 30, content, STATE)
    assert names(tmp_path) == [good.name]
    assert newest(tmp_path).path == good


def test_pruning_keeps_the_newest_and_the_last_of_each_phase(tmp_path):
    for phase, step in [("model", 10), ("model", 20), ("model", 30), ("policy", 1), ("policy", 2), ("policy", 3), ("policy", 4)]:
        save(tmp_path, phase, step)
    leftover = tmp_path / ".tmp-99999-ckpt-policy-000000005"
    shutil.copytree(tmp_path / "ckpt-model-000000010", leftover)
    (tmp_path / "ckpt-notes").mkdir()
    checkpoints.prune(tmp_path, PHASES, keep=2)
    kept = ["ckpt-model-000000030", "ckpt-notes", "ckpt-policy-000000003", "ckpt-policy-000000004"]
    assert names(tmp_path) == kept
    checkpoints.prune(tmp_path, PHASES, keep=1)
    assert names(tmp_path) == ["ckpt-model-000000030", "ckpt-notes", "ckpt-policy-000000004"]


@pytest.mark.parametrize("keep", [1, 3, 10])
def test_pruning_keeps_all_of_a_short_run(tmp_path, keep):
    save(tmp_path, "model", 10)
    checkpoints.prune(tmp_path, PHASES, keep=keep)
    assert names(tmp_path) == ["ckpt-model-000000010"]


# --- a disk that fails ----------------------------------------------------------------------------------------------------------------------


class Failing(Files):
    """Fails at operation number `at`, counted from 0; a failing write leaves half of its bytes."""

    def __init__(self, at: int, error: int = errno.ENOSPC):
        self.at, self.error, self.done = at, error, []

    def _operation(self, name: str) -> bool:
        self.done.append(name)
        return len(self.done) - 1 == self.at

    def _fail(self) -> None:
        raise OSError(self.error, os.strerror(self.error))

    def write(self, path, data):
        if self._operation(f"write {path.name}"):
            super().write(path, data[: len(data) // 2])
            self._fail()
        super().write(path, data)

    def sync_directory(self, path):
        if self._operation("sync"):
            self._fail()
        super().sync_directory(path)

    def rename(self, source, target):
        if self._operation("rename"):
            self._fail()
        super().rename(source, target)

    def make_directory(self, path):
        if self._operation("make"):
            self._fail()
        super().make_directory(path)


OPERATIONS = ["make", "write tensors.npz", "write state.json", "write MANIFEST.json", "sync", "rename", "sync"]


def test_the_operations_of_a_save_in_their_order(tmp_path):
    """The manifest is written last and the directory is forced to the disk before it gets its name: a name means a whole checkpoint."""
    files = Failing(at=-1)
    save(tmp_path, files=files)
    assert files.done == OPERATIONS


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("at", range(len(OPERATIONS)), ids=[f"{index} {name}" for index, name in enumerate(OPERATIONS)])
def test_a_failure_at_any_operation_leaves_a_good_checkpoint_and_no_remains(tmp_path, at, error):
    good = save(tmp_path, "model", 10, number=1)
    before = copy.deepcopy(checkpoints.load(good))
    with pytest.raises(
        StorageError, match=rf"ckpt-model-000000020: checkpoint of \d+ MB cannot be written \({os.strerror(error)}\); free some space"
    ):
        save(tmp_path, "model", 20, number=2, files=Failing(at, error))
    assert not [name for name in names(tmp_path) if name.startswith(".tmp")]
    assert_equal_bit_for_bit(checkpoints.load(good).tensors, before.tensors)
    found, faults = checkpoints.load_newest(tmp_path, PHASES)
    assert faults == []
    # Only once the rename is done may the new one be found, and then it is whole.
    assert (found.step, at) in {(10, at), (20, len(OPERATIONS) - 1)}
    assert_equal_bit_for_bit(found.tensors, tensors(1 if found.step == 10 else 2))
    save(tmp_path, "model", 20, number=2)
    assert newest(tmp_path).step == 20


def test_the_remains_of_a_killed_writer_do_not_disturb_the_next(tmp_path):
    leftover = tmp_path / f".tmp-{os.getpid()}-ckpt-model-000000010"
    leftover.mkdir(parents=True)
    (leftover / "tensors.npz").write_bytes(b"half")
    (leftover / "stranger").write_bytes(b"")
    path = save(tmp_path)
    assert names(tmp_path) == [path.name]
    assert names(path) == sorted(MEMBERS)


# --- without TensorFlow, and into variables -------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_checked_without_tensorflow(tmp_path):
    path = save(tmp_path)
    script = (
        "import sys; from pathlib import Path; from semopo_tf import checkpoints; "
        "print(len(checkpoints.load(Path(sys.argv[1])).tensors), sorted({'tensorflow', 'keras', 'dm_control', 'mujoco'} & set(sys.modules)))"
    )
    root = Path(semopo_tf.__file__).parents[1]
    printed = subprocess.run([sys.executable, "-c", script, str(path)], cwd=root, capture_output=True, text=True, check=True).stdout
    assert printed.split(maxsplit=1) == [str(len(tensors())), "[]\n"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": None}, r"somewhere: lacks b \(1 such differences\); it belongs to another model configuration"),
        ({"b": None, "c": np.zeros(1, np.float32)}, r"somewhere: lacks b \(2 such differences\)"),
        ({"aa": np.zeros(1, np.float32)}, r"somewhere: has aa \(1 such differences\)"),
        ({"b": np.zeros((3, 2), np.float32)}, r"somewhere: b: expected float32 \[2, 3\], received float32 \[3, 2\]"),
        ({"b": np.zeros((2, 3), np.float64)}, r"somewhere: b: expected float32 \[2, 3\], received float64 \[2, 3\]"),
        ({"n": np.zeros((), np.int32)}, r"somewhere: n: expected int64 \[\], received int32 \[\]"),
    ],
)
def test_nothing_is_assigned_unless_every_name_shape_and_type_fits(change, message):
    import tensorflow as tf

    from semopo_tf import wiring

    variables = {"a": tf.Variable([1.0, 2.0]), "b": tf.Variable(tf.ones([2, 3])), "n": tf.Variable(7, dtype=tf.int64)}
    stored = {"a": np.float32([8, 9]), "b": np.full((2, 3), 5, np.float32), "n": np.array(2**53 + 1)}
    wrong = {name: array for name, array in (stored | change).items() if array is not None}
    with pytest.raises(CheckpointError, match=message):
        wiring.restore(variables, wrong, Path("somewhere"))
    assert (variables["a"].numpy().tolist(), variables["b"].numpy().tolist(), int(variables["n"])) == ([1, 2], [[1] * 3] * 2, 7)
    wiring.restore(variables, stored, Path("somewhere"))
    assert_equal_bit_for_bit({name: np.asarray(variable) for name, variable in variables.items()}, stored)
