"""Checkpoints: bit for bit, whole or not at all, verified before they are believed, ordered by what was learned and
never by a clock.
"""

import copy
import errno
import functools
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import semopo_tf
from semopo_tf.errors import CheckpointError, StorageError
from semopo_tf.run import checkpoints
from semopo_tf.storage import npz
from semopo_tf.storage.files import Files

PHASES = ("model", "policy")
MEMBERS = ("tensors.npz", "state.json", "MANIFEST.json")


def tensors(number=0) -> dict[str, np.ndarray]:
    """One of everything a run saves, and everything awkward: scalars, empty axes, denormals, negative zero, names with
    slashes.
    """
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
        assert (one[name].dtype, one[name].shape, one[name].tobytes()) == (
            two[name].dtype,
            two[name].shape,
            two[name].tobytes(),
        ), name


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def newest(logdir: Path) -> checkpoints.Checkpoint | None:
    return checkpoints.load_newest(logdir, PHASES)[0]


# --- whole ones -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_reads_back_bit_for_bit(tmp_path):
    path = save(tmp_path)
    assert path == tmp_path / "ckpt-model-000000010"
    assert names(path) == sorted(MEMBERS)
    assert names(tmp_path) == [path.name]
    loaded = checkpoints.load(path)
    assert_equal_bit_for_bit(loaded.tensors, tensors())
    assert (loaded.phase, loaded.step, loaded.path) == ("model", 10, path)
    assert loaded.state == STATE | {"phase": "model", "step": 10, "version": semopo_tf.__version__}


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
    paths = [
        checkpoints.save(tmp_path / str(i), "model", 1, content, STATE) for i, content in enumerate((first, second))
    ]
    assert paths[0].joinpath("tensors.npz").read_bytes() == paths[1].joinpath("tensors.npz").read_bytes()


def test_C12_F11_the_newest_is_the_furthest_and_not_the_latest_written(tmp_path):
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
    for name in (
        "ckpt-other-000000099",
        "ckpt-model-99",
        "ckpt-model-0000000099",
        "ckpt-model-000000099.corrupt",
        ".tmp-1-ckpt-model-000000099",
    ):
        shutil.copytree(good, tmp_path / name)
    assert checkpoints.listed(tmp_path, PHASES) == [good]


def test_a_good_checkpoint_of_the_same_step_stays_as_it_is(tmp_path):
    path = save(tmp_path, number=1)
    inode = path.stat().st_ino
    assert save(tmp_path, number=2) == path
    assert path.stat().st_ino == inode
    assert_equal_bit_for_bit(newest(tmp_path).tensors, tensors(1))


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path):
    path = save(tmp_path)
    (path / "tensors.npz").write_bytes(b"damaged")
    save(tmp_path, number=3)
    assert_equal_bit_for_bit(newest(tmp_path).tensors, tensors(3))
    assert names(tmp_path) == [path.name]


# --- damaged ones -----------------------------------------------------------------------------------------------------


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


def test_C01_G5_five_hundred_truncations_are_all_noticed(two):
    """Every length of the two texts, then cuts all over the tensors."""
    older, newer = two
    cuts = [(name, size) for name in MEMBERS[1:] for size in range((newer / name).stat().st_size)]
    whole = (newer / "tensors.npz").stat().st_size
    cuts += [("tensors.npz", size) for size in {0, 1, whole - 1, *np.linspace(2, whole - 2, 200, dtype=int).tolist()}]
    assert len(cuts) >= 500
    for name, size in cuts:
        data = (newer / name).read_bytes()
        (newer / name).write_bytes(data[:size])
        assert_falls_back(older, newer)
        (newer / name).write_bytes(data)
    assert newest(newer.parent).path == newer


@pytest.mark.parametrize("member", MEMBERS)
def test_C01_C03_every_missing_file_is_noticed(two, member):
    older, newer = two
    (newer / member).unlink()
    assert_falls_back(older, newer)


def test_C02_G5_one_thousand_flipped_bits_are_all_noticed(two):
    older, newer = two
    rng = np.random.default_rng(0)
    for trial in range(1000):
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


GARBAGE = [
    "",
    "{",
    "[]",
    "3",
    "null",
    '"files"',
    "{}",
    "\0" * 50,
    "[" * 100_000,
    '{"files": {}}',
    '{"format": 1, "files": []}',
]
GARBAGE += [
    '{"format": 1, "files": {"tensors.npz": 3, "state.json": 4}}',
    '{"format": 1, "files": ["tensors.npz", "state.json"]}',
]


@pytest.mark.parametrize("text", GARBAGE, ids=range(len(GARBAGE)))
def test_C03_a_manifest_of_garbage_is_noticed(two, text):
    older, newer = two
    (newer / "MANIFEST.json").write_text(text)
    assert_falls_back(older, newer)


def test_C03_a_manifest_that_is_no_text_is_noticed(two):
    (two[1] / "MANIFEST.json").write_bytes(b"\xff\xfe\xfd")
    assert_falls_back(*two)


def test_C11_another_format_is_named_with_the_version_that_wrote_it(two):
    manifest(two[1], lambda tree: tree.update(format=2))
    assert_falls_back(*two)
    message = (
        f"expected checkpoint format 1, received 2 of semopo_tf {semopo_tf.__version__}; use the version that wrote it"
    )
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(two[1])
    (two[1] / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"received 2 of semopo_tf \(unknown version\); use"):
        checkpoints.load(two[1])


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory) -> Path:
    """A checkpoint whose manifest is written over and over."""
    return save(tmp_path_factory.mktemp("fuzzed"))


@settings(max_examples=400, deadline=None, database=None)
@given(text=st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode(errors="surrogatepass")))
def test_C03_no_text_of_a_manifest_does_more_than_refuse(fuzzed, text):
    assert_refused_manifest(fuzzed, text)


KEYS = st.sampled_from(["format", "files", "tensors.npz", "state.json", "size", "sha256", "../outside"])
TREE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["tensors.npz", "../x", "/etc/passwd", "0" * 64]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10) | KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None, database=None)
@given(form=st.sampled_from([1, 2, "1", True, None]), entries=TREE)
def test_C03_no_manifest_of_our_form_does_more_than_refuse(fuzzed, form, entries):
    assert_refused_manifest(fuzzed, json.dumps({"format": form, "files": entries}).encode())
    assert_refused_manifest(fuzzed, json.dumps(entries).encode())


def assert_refused_manifest(path: Path, text: bytes) -> None:
    (path / "MANIFEST.json").write_bytes(text)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize("name", ["../outside", "extra.bin", "/etc/passwd"])
def test_C03_a_manifest_with_foreign_names_is_refused(two, name):
    manifest(two[1], lambda tree: tree["files"].update({name: tree["files"]["state.json"]}))
    assert_falls_back(*two)
    with pytest.raises(
        CheckpointError, match=r"expected the files tensors\.npz, state\.json in the manifest, different: "
    ):
        checkpoints.load(two[1])


def test_C03_a_manifest_that_lacks_a_file_is_refused(two):
    manifest(two[1], lambda tree: tree["files"].pop("state.json"))
    assert_falls_back(*two)


IRREGULAR = ("link", "pipe", "directory", "nothing", "device")


def put_irregular(path: Path, kind: str, elsewhere: Path) -> None:
    """Replace a file or directory by something that is none, with its content where a link finds it."""
    path.rename(elsewhere)
    if kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()


@pytest.mark.parametrize("kind", IRREGULAR)
@pytest.mark.parametrize("member", MEMBERS)
def test_C14_what_is_no_regular_file_is_refused_at_once(two, tmp_path, member, kind):
    put_irregular(two[1] / member, kind, tmp_path / "elsewhere")
    assert_falls_back(*two)


@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_C14_a_checkpoint_that_is_no_directory_is_refused_and_not_overlooked(two, tmp_path, kind):
    """The link leads to a good one, but nobody knows who else writes there."""
    older, newer = two
    put_irregular(newer, kind, tmp_path / "elsewhere")
    assert_falls_back(older, newer)
    put_irregular(older, kind, tmp_path / "elsewhere-too")
    with pytest.raises(CheckpointError, match="none of 2 checkpoints can be used"):
        newest(tmp_path)
    save(tmp_path, "model", 20, number=3)
    assert newest(tmp_path).step == 20
    assert (tmp_path / "elsewhere").is_dir()  # what the link led to is untouched


def test_C10_a_pickle_is_refused_and_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'marker'}",)

    (tmp_path / "variables.pkl").write_bytes(pickle.dumps(Bomb()))
    for reading in (
        checkpoints.load,
        lambda path: checkpoints.load_newest(path, PHASES),
        lambda path: checkpoints.load_newest(path.parent, PHASES),
    ):
        with pytest.raises(
            CheckpointError, match=r"variables\.pkl: pickle files can run code and are not loaded"
        ) as caught:
            reading(tmp_path / "variables.pkl")
        assert caught.value.exit_code == 4
    good = save(tmp_path)
    repack(good, (tmp_path / "variables.pkl").read_bytes())
    with pytest.raises(CheckpointError, match=r"tensors\.npz: expected an uncompressed npz of numbers"):
        checkpoints.load(good)
    repack(good, zipped({"a": npy(np.array([Bomb()], object), pickled=True)}))
    with pytest.raises(
        CheckpointError, match=r"tensors\.npz: expected an uncompressed npz of numbers \(a: holds Python objects"
    ):
        checkpoints.load(good)
    assert not (tmp_path / "marker").exists()


def npy(array: np.ndarray, *, pickled=False) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


def zipped(members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def repack(path: Path, data: bytes, member: str = "tensors.npz") -> None:
    """Give a checkpoint other content and the manifest that belongs to it: what a hostile sender can do."""
    (path / member).write_bytes(data)
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    tree = json.loads((path / "MANIFEST.json").read_text())
    tree["files"][member] = entry
    (path / "MANIFEST.json").write_text(json.dumps(tree, indent=1))


def huge(shape: str, kind: str = "<f4") -> bytes:
    """An array of 16 bytes whose header promises more."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(16)


def twice(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a.npy", data)
        archive.writestr("a.npy", data)
    return buffer.getvalue()


def inflated() -> bytes:
    """A stored member whose directory entry declares a terabyte."""
    data = bytearray(zipped({"a": npy(np.zeros(4, np.float32))}))
    place = data.rindex(b"PK\x01\x02")
    data[place + 20 : place + 28] = (0xFFFFFFF0).to_bytes(4, "little") * 2
    return bytes(data)


HOSTILE = {
    "no archive": lambda: b"garbage",
    "empty": lambda: b"",
    "web page": lambda: b"<!doctype html>",
    "one npy": lambda: npy(np.zeros(3)),
    "2^40 numbers": lambda: zipped({"a": huge(f"({2**40},)")}),
    "2^40 numbers a side": lambda: zipped({"a": huge(f"({2**40}, {2**40})")}),
    "negative": lambda: zipped({"a": huge("(-2, -2)")}),
    "fewer than there are": lambda: zipped({"a": huge("(3,)")}),
    "text": lambda: zipped({"a": huge("(1,)", "<U4")}),
    "nothing": lambda: zipped({"a": huge(f"({2**40},)", "<U0")}),
    "unknown type": lambda: zipped({"a": huge("(1,)", "quark")}),
    "deep header": lambda: zipped({"a": huge("(" * 40 + ")" * 40)}),
    "long header": lambda: zipped({"a": b"\x93NUMPY\x02\x00" + (1 << 20).to_bytes(4, "little") + b" " * (1 << 20)}),
    "no header": lambda: zipped({"a": b"\x93NUMPY\x01\x00"}),
    "version 9": lambda: zipped({"a": b"\x93NUMPY\x09\x00" + huge("(4,)")[8:]}),
    "compressed": lambda: zipped({"a": npy(np.zeros(1 << 20))}, zipfile.ZIP_DEFLATED),
    "twice": lambda: twice(npy(np.zeros(3))),
    "inflated": inflated,
    "truncated": lambda: zipped({"a": npy(np.zeros(30))})[:-30],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_C03_sizes_are_compared_with_what_is_there_before_memory_is_taken(two, kind):
    repack(two[1], HOSTILE[kind]())
    tracemalloc.start()
    assert_falls_back(*two)
    assert tracemalloc.get_traced_memory()[1] < 24 << 20
    tracemalloc.stop()
    with pytest.raises(
        CheckpointError, match=r"tensors\.npz: expected an uncompressed npz of numbers \(.*\); it was not written here"
    ):
        checkpoints.load(two[1])


def test_C03_a_file_larger_than_the_memory_is_not_read(two):
    """A sparse file of ten terabytes, as its manifest says."""
    size = 10 << 40
    os.truncate(two[1] / "tensors.npz", size)
    text = (two[1] / "MANIFEST.json").read_text()
    tree = json.loads(text)
    tree["files"]["tensors.npz"]["size"] = size
    (two[1] / "MANIFEST.json").write_text(json.dumps(tree, indent=1))
    assert_falls_back(*two)
    with pytest.raises(
        CheckpointError,
        match=r"tensors\.npz: missing, or cannot be read \(10485760\.0 MB, but .* MB of memory are free\)",
    ):
        checkpoints.load(two[1])
    os.truncate(two[1] / "MANIFEST.json", size)
    assert_falls_back(*two)


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "policy"},
        {"step": 21},
        {"step": "20"},
        {"step": True},
        {"phase": ["model"]},
        {"metrics_size": -1},
        {"metrics_size": 2.5},
        {"timing_size": None},
        {"sums": {}},
        {"sums": [[]]},
        {"count": "x"},
    ],
    ids=str,
)
def test_C03_a_state_of_another_form_is_refused(two, change):
    state = json.loads((two[1] / "state.json").read_text())
    repack(two[1], json.dumps(state | change).encode(), "state.json")
    assert_falls_back(*two)


@pytest.mark.parametrize(
    "text", [*GARBAGE, '{"phase": "model", "step": 20, "metrics_size": NaN, "timing_size": 0, "sums": [], "count": 0}']
)
def test_C03_a_state_of_garbage_is_refused(two, text):
    repack(two[1], text.encode(), "state.json")
    assert_falls_back(*two)


def test_C09_a_checkpoint_that_is_not_finite_is_not_loaded(two):
    repack(two[1], npz.pack(tensors(2) | {"policy/actor/bias": np.float32([0, np.nan])}))
    assert_falls_back(*two)
    with pytest.raises(CheckpointError, match="policy/actor/bias is not finite"):
        checkpoints.load(two[1])


def test_C04_when_every_checkpoint_is_damaged_the_run_stops_and_lists_them(two):
    for path in two:
        (path / "tensors.npz").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_newest(two[0].parent, PHASES)
    message = str(caught.value)
    assert "none of 2 checkpoints can be used" in message
    assert all(
        f"{path / 'tensors.npz'}: missing, or different from its manifest (size or SHA-256)" in message for path in two
    )
    assert message.endswith("move the folder away to start afresh")


# --- what is not saved ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_C09_a_tensor_that_is_not_finite_is_never_saved(tmp_path, value, dtype):
    good = save(tmp_path)
    content = tensors() | {"policy/actor/bias": np.array([0, value], dtype)}
    with pytest.raises(
        CheckpointError,
        match="policy/actor/bias: not finite at policy step 30; not saved, the previous checkpoint stays the newest",
    ):
        checkpoints.save(tmp_path, "policy", 30, content, STATE)
    assert names(tmp_path) == [good.name]
    assert newest(tmp_path).path == good


def test_pruning_keeps_the_newest_and_the_last_of_each_phase(tmp_path):
    for phase, step in [
        ("model", 10),
        ("model", 20),
        ("model", 30),
        ("policy", 1),
        ("policy", 2),
        ("policy", 3),
        ("policy", 4),
    ]:
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


def test_no_older_checkpoint_is_removed_unless_the_newest_reads_back_whole(tmp_path):
    paths = [save(tmp_path, "model", step, number=step) for step in (10, 20, 30)]
    (paths[-1] / "tensors.npz").write_bytes(b"what the disk made of it")
    (fault,) = checkpoints.prune(tmp_path, PHASES, keep=1)
    assert fault.endswith("(size or SHA-256); no older checkpoint is removed")
    assert names(tmp_path) == [path.name for path in paths]
    save(tmp_path, "model", 30, number=30)
    assert checkpoints.prune(tmp_path, PHASES, keep=1) == []
    assert names(tmp_path) == [paths[-1].name]


def test_a_checkpoint_loses_its_name_before_anything_in_it_is_removed(tmp_path):
    """And the loss is forced to the disk in between: no half of a checkpoint ever has a checkpoint's name."""
    for step in (10, 20):
        save(tmp_path / "LOGDIR", "model", step)
    files = Failing(at=-1)
    checkpoints.prune(tmp_path / "LOGDIR", PHASES, keep=1, files=files)
    old = "ckpt-model-000000010-old"
    removal = [f"unlink {name}" for name in sorted(MEMBERS)]
    assert files.done == [
        f"unlink {old}",
        f"rename {old}",
        "sync_directory LOGDIR",
        *removal,
        f"remove_directory {old}",
    ]


@pytest.mark.parametrize("at", range(7))
def test_F04_a_failure_in_pruning_costs_no_checkpoint_that_is_kept(tmp_path, at):
    for step in (10, 20, 30):
        save(tmp_path, "model", step, number=step)
    checkpoints.prune(tmp_path, PHASES, keep=2, files=Failing(at, errno.EIO))
    for path in checkpoints.listed(tmp_path, PHASES)[-2:]:
        assert_equal_bit_for_bit(checkpoints.load(path).tensors, tensors(checkpoints.load(path).step))
    checkpoints.prune(tmp_path, PHASES, keep=2)
    assert names(tmp_path) == ["ckpt-model-000000020", "ckpt-model-000000030"]


@pytest.mark.parametrize("keep", [1, 2])
def test_F08_L04_a_reader_beside_a_writer_always_finds_a_whole_checkpoint(tmp_path, keep):
    """The writer saves and prunes without a pause; what is read never goes back, never mixes, and is never damaged."""
    save(tmp_path, "model", 1, number=1)
    stop = threading.Event()

    def write():
        step = 1
        while not stop.is_set():
            step += 1
            save(tmp_path, "model", step, number=step)
            checkpoints.prune(tmp_path, PHASES, keep=keep)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        last, deadline = 0, time.monotonic() + 2
        while time.monotonic() < deadline:
            found = newest(tmp_path)
            assert found.step >= last
            assert_equal_bit_for_bit(found.tensors, tensors(found.step))
            last = found.step
    finally:
        stop.set()
        writer.join()
    assert last > 20


# --- a disk that fails ------------------------------------------------------------------------------------------------


class Failing(Files):
    """Fails at step number `at`, counted from 0, and notes every step; a failing write leaves half of its bytes, a
    failing close has closed.
    """

    STEPS = (
        "create",
        "put",
        "sync",
        "close",
        "make_one_directory",
        "sync_directory",
        "rename",
        "unlink",
        "remove_directory",
    )

    def __init__(self, at: int, error: int = errno.ENOSPC):
        self.at, self.error, self.done = at, error, []
        for name in self.STEPS:
            setattr(self, name, functools.partial(self._step, name, getattr(super(), name)))

    def _step(self, name, call, *arguments):
        self.done.append(
            name
            if name in ("put", "sync", "close")
            else f"{name} {arguments[-1].name.removeprefix(f'.tmp-{os.getpid()}-')}"
        )
        if len(self.done) - 1 != self.at:
            return call(*arguments)
        if name == "put":
            call(arguments[0], arguments[1][: len(arguments[1]) // 2])
        if name == "close":
            call(*arguments)
        raise OSError(self.error, os.strerror(self.error))


def write_steps(name: str) -> list[str]:
    return [f"create {name}", "put", "sync", "close"]


NEW = "ckpt-model-000000020"
SAVE = [
    f"unlink {NEW}",
    f"make_one_directory {NEW}",
    *[step for name in MEMBERS for step in write_steps(name)],
    f"sync_directory {NEW}",
]
AFTER = [f"rename {NEW}", "sync_directory LOGDIR"]
INSTEAD = [
    f"unlink {NEW}-old",
    f"rename {NEW}-old",
    *AFTER,
    *[f"unlink {name}" for name in sorted(MEMBERS)],
    f"remove_directory {NEW}-old",
]
OPERATIONS = {"beside an older one": SAVE + AFTER, "in place of a damaged one": SAVE + INSTEAD}
ERRORS = [errno.ENOSPC, errno.EIO, errno.EDQUOT]


def start_of(logdir: Path, case: str) -> Path:
    """A run directory before a save of step 20: a good older checkpoint, and where the case says so a damaged one of
    the same name.
    """
    good = save(logdir, "model", 10, number=1)
    if case == "in place of a damaged one":
        (save(logdir, "model", 20, number=9) / "tensors.npz").write_bytes(b"damaged")
    return good


@pytest.mark.parametrize("case", OPERATIONS)
def test_the_operations_of_a_save_in_their_order(tmp_path, case):
    """The manifest is written last and the directory is forced to the disk before it gets its name: a name means a
    whole checkpoint.
    """
    start_of(tmp_path / "LOGDIR", case)
    files = Failing(at=-1)
    save(tmp_path / "LOGDIR", "model", 20, number=2, files=files)
    assert files.done == OPERATIONS[case]


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize(("case", "at"), [(case, at) for case, steps in OPERATIONS.items() for at in range(len(steps))])
def test_F01_F04_G4_a_failure_at_any_operation_leaves_a_good_checkpoint_and_no_remains(tmp_path, case, at, error):
    good = start_of(tmp_path, case)
    before = copy.deepcopy(checkpoints.load(good))
    harmless = OPERATIONS[case][at].split()[0] in ("unlink", "remove_directory")  # of what nobody reads
    if harmless:
        save(tmp_path, "model", 20, number=2, files=Failing(at, error))
        checkpoints.prune(tmp_path, PHASES, keep=3)
    else:
        message = (
            rf"{NEW}: the checkpoint cannot be written \({os.strerror(error)}\); it needs 0\.0 MB, "
            rf"\d+\.\d MB are free; {'check the disk' if error == errno.EIO else 'free some space'} and run again"
        )
        with pytest.raises(StorageError, match=message) as caught:
            save(tmp_path, "model", 20, number=2, files=Failing(at, error))
        assert caught.value.exit_code == 7
    assert not [name for name in names(tmp_path) if name.startswith(".tmp")]
    assert_equal_bit_for_bit(checkpoints.load(good).tensors, before.tensors)
    found, _ = checkpoints.load_newest(tmp_path, PHASES)
    # Only once the rename is done may the new one be found, and then it is whole.
    renamed = at > OPERATIONS[case].index(f"rename {NEW}")
    assert found.step == (20 if renamed or harmless else 10)
    assert_equal_bit_for_bit(found.tensors, tensors(2 if found.step == 20 else 1))
    save(tmp_path, "model", 20, number=2)
    assert newest(tmp_path).step == 20
    assert checkpoints.load_newest(tmp_path, PHASES)[1] == []


def test_F01_a_real_limit_of_the_system_is_an_error_of_storage_and_leaves_no_remains(tmp_path):
    """No file may have more than 64 KiB, in this process and for the moment."""
    good = save(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(StorageError, match=r"cannot be written \(File too large\); it needs 1\.0 MB, "):
            checkpoints.save(tmp_path, "model", 20, {"a": np.zeros(1 << 18, np.float32)}, STATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == [good.name]
    checkpoints.save(tmp_path, "model", 20, {"a": np.zeros(1 << 18, np.float32)}, STATE)
    assert newest(tmp_path).step == 20


class Cramped(Files):
    """A disk with `free` bytes left."""

    def __init__(self, free: float):
        self.free = free

    def free_bytes(self, path):
        return self.free


def test_F03_too_little_space_is_known_before_the_run_begins(tmp_path):
    """Checkpoints of 100 MB, three kept, the last of an earlier phase and the one being written: 500 MB."""
    size = 100 << 20
    assert checkpoints.space_warning(tmp_path, size, keep=3, files=Cramped(5 * size)) is None
    warning = checkpoints.space_warning(tmp_path, size, keep=3, files=Cramped(5 * size - 1))
    assert "will need about 500.0 MB more, 500.0 MB are free; free some space or lower --keep_checkpoints" in warning
    path = save(tmp_path)
    there = sum(file.stat().st_size for file in path.iterdir())
    assert checkpoints.space_warning(tmp_path, size, keep=3, files=Cramped(5 * size - there)) is None
    assert checkpoints.space_warning(tmp_path, size, keep=3) is None


def test_C13_the_remains_of_a_killed_writer_do_not_disturb_the_next(tmp_path):
    leftover = tmp_path / f".tmp-{os.getpid()}-ckpt-model-000000010"
    leftover.mkdir(parents=True)
    (leftover / "tensors.npz").write_bytes(b"half")
    (leftover / "stranger").write_bytes(b"")
    path = save(tmp_path)
    assert names(tmp_path) == [path.name]
    assert names(path) == sorted(MEMBERS)


# --- without TensorFlow, and into variables ---------------------------------------------------------------------------


def test_a_checkpoint_is_checked_without_tensorflow(tmp_path):
    path = save(tmp_path)
    script = (
        "import sys; from pathlib import Path; from semopo_tf.run import checkpoints; "
        "print(len(checkpoints.load(Path(sys.argv[1])).tensors), "
        "sorted({'tensorflow', 'keras', 'dm_control', 'mujoco'} & set(sys.modules)))"
    )
    root = Path(semopo_tf.__file__).parents[1]
    printed = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=root, capture_output=True, text=True, check=True
    ).stdout
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

    from semopo_tf.run import build

    variables = {"a": tf.Variable([1.0, 2.0]), "b": tf.Variable(tf.ones([2, 3])), "n": tf.Variable(7, dtype=tf.int64)}
    stored = {"a": np.float32([8, 9]), "b": np.full((2, 3), 5, np.float32), "n": np.array(2**53 + 1)}
    wrong = {name: array for name, array in (stored | change).items() if array is not None}
    with pytest.raises(CheckpointError, match=message):
        build.restore(variables, wrong, Path("somewhere"))
    assert (variables["a"].numpy().tolist(), variables["b"].numpy().tolist(), int(variables["n"])) == (
        [1, 2],
        [[1] * 3] * 2,
        7,
    )
    build.restore(variables, stored, Path("somewhere"))
    assert_equal_bit_for_bit({name: np.asarray(variable) for name, variable in variables.items()}, stored)
