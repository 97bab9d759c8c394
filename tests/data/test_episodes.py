"""Episode files and the dataset cache: what is written, what is refused and with which words, and when the cache is
rebuilt.
"""

import hashlib
import io
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

import semopo_tf
from semopo_tf.data import __main__ as command
from semopo_tf.data import dataset, episodes
from semopo_tf.data.cards import read_card, read_run_data, write_card
from semopo_tf.data.checksums import listed_files
from semopo_tf.data.dataset import cache_place, held_out, open_dataset
from semopo_tf.data.episodes import read_episode, read_log, write_episode
from semopo_tf.data.validation import EPISODE_KEYS
from semopo_tf.errors import DataError, StorageError
from semopo_tf.storage.files import Files, sha256, write_whole
from semopo_tf.types import Episode

LENGTH, SIZE, ACTIONS = 7, 4, 2
REQUIRED = ("image", "action", "reward")


def episode(number=0, length=LENGTH, reward_type=np.float32) -> Episode:
    """Every value encodes its position: pixels (number, record, 0), action (number, record) / 100, reward record / 8
    (exact in any float).
    """
    record = np.arange(length)
    image = np.zeros((length, SIZE, SIZE, 3), np.uint8)
    image[..., 0], image[..., 1] = number, record[:, None, None]
    action = np.stack([np.full(length, number), record], -1).astype(np.float32) / 100
    action[0] = 0
    flags = {"is_first": record == 0, "is_last": record == length - 1, "is_terminal": np.zeros(length, bool)}
    return Episode(image, action, (record / 8).astype(reward_type), np.ones(length, np.float32), **flags)


def arrays(*keys, **changed) -> dict:
    """The arrays of an episode, of the given keys or all of them, some of them replaced."""
    all_arrays = episode().arrays()
    return {key: all_arrays[key] for key in keys or all_arrays} | changed


def changed(key, change, dtype=None) -> dict:
    """The arrays of an episode after `change(array)` in place."""
    array = episode().arrays()[key].astype(dtype) if dtype else episode().arrays()[key]
    change(array)
    return arrays(**{key: array})


def write_arrays(path: Path, content: dict) -> Path:
    np.savez_compressed(path, **content)
    return path


def write_dataset(directory: Path, lengths=(7, 5, 9)) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for number, length in enumerate(lengths):
        write_episode(directory / f"{number:03d}.npz", episode(number + 1, length))
    return directory


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def leftovers(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if ".tmp-" in path.name)


# --- one file ---------------------------------------------------------------------------------------------------------


def test_a_written_episode_reads_back_bit_for_bit(tmp_path):
    path, written = tmp_path / "e.npz", episode()
    write_episode(path, written)
    received = read_episode(path)
    for field in EPISODE_KEYS:
        np.testing.assert_array_equal(getattr(received, field), getattr(written, field))
        assert getattr(received, field).dtype == getattr(written, field).dtype
    assert names(tmp_path) == ["e.npz"]


def test_the_file_holds_the_shared_keys_types_and_shapes(tmp_path):
    write_episode(tmp_path / "e.npz", episode())
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        found = {key: (file[key].dtype.name, file[key].shape) for key in file.files}
    assert found == {
        "image": ("uint8", (LENGTH, SIZE, SIZE, 3)),
        "action": ("float32", (LENGTH, ACTIONS)),
        "reward": ("float32", (LENGTH,)),
        "discount": ("float32", (LENGTH,)),
        "is_first": ("bool", (LENGTH,)),
        "is_last": ("bool", (LENGTH,)),
        "is_terminal": ("bool", (LENGTH,)),
    }


def test_extra_arrays_are_kept_under_log_and_never_read(tmp_path):
    write_episode(tmp_path / "e.npz", episode()._replace(log={"state": np.arange(LENGTH)}))
    with np.load(tmp_path / "e.npz") as file:
        np.testing.assert_array_equal(file["log_state"], np.arange(LENGTH))
    assert read_episode(tmp_path / "e.npz").log == {}
    np.testing.assert_array_equal(read_log(tmp_path / "e.npz")["state"], np.arange(LENGTH))


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "e.npz"
    write_episode(path, episode(1))

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Files, "rename", fail)
    with pytest.raises(StorageError, match="No space left on device"):
        write_episode(path, episode(2))
    assert read_episode(path).image[0, 0, 0, 0] == 1
    assert names(tmp_path) == ["e.npz"]


def test_missing_flags_and_discount_are_derived(tmp_path):
    received = read_episode(write_arrays(tmp_path / "e.npz", arrays(*REQUIRED)))
    record = np.arange(LENGTH)
    np.testing.assert_array_equal(received.is_first, record == 0)
    np.testing.assert_array_equal(received.is_last, record == LENGTH - 1)
    np.testing.assert_array_equal(received.is_terminal, np.zeros(LENGTH, bool))
    np.testing.assert_array_equal(received.discount, np.ones(LENGTH, np.float32))


def test_is_terminal_is_derived_from_the_discount_and_the_other_way_round(tmp_path):
    ended = np.arange(LENGTH) == LENGTH - 1
    from_discount = read_episode(
        write_arrays(tmp_path / "a.npz", arrays(*REQUIRED) | {"discount": 1 - ended.astype(np.float16)})
    )
    from_flag = read_episode(write_arrays(tmp_path / "b.npz", arrays(*REQUIRED) | {"is_terminal": ended}))
    for received in (from_discount, from_flag):
        np.testing.assert_array_equal(received.is_terminal, ended)
        np.testing.assert_array_equal(received.discount, 1 - ended.astype(np.float32))
        assert received.discount.dtype == np.float32


def test_half_precision_actions_and_rewards_are_accepted(tmp_path):
    content = arrays(action=episode().action.astype(np.float16), reward=episode().reward.astype(np.float16))
    received = read_episode(write_arrays(tmp_path / "e.npz", content))
    assert received.action.dtype == np.float32
    assert received.reward.dtype == np.float16  # its own type: the returns of the original are sums in it


def test_D19_the_length_comes_from_the_arrays_and_not_from_the_name(tmp_path):
    path = tmp_path / "20240101T000000-abcdef-500.npz"
    write_episode(path, episode(length=9))
    assert len(read_episode(path).reward) == 9


# --- bad files --------------------------------------------------------------------------------------------------------

SHAPE = f"[{LENGTH}, {SIZE}, {SIZE}, 3]"
BAD_ARRAYS = {
    "no image": (
        arrays("action", "reward"),
        "expected the keys image, action, reward, missing image, received action, reward",
    ),
    "no action": (arrays("image", "reward", "is_first"), "missing action, received image, reward, is_first"),
    "no reward": (arrays("image", "action"), "missing reward, received image, action"),
    "float image": (
        arrays(image=episode().image / np.float32(255)),
        f"expected image as uint8 [L, H, W, 3], received float32 {SHAPE}",
    ),
    "signed image": (
        arrays(image=episode().image.astype(np.int16)),
        f"expected image as uint8 [L, H, W, 3], received int16 {SHAPE}",
    ),
    "channels first": (
        arrays(image=np.moveaxis(episode().image, -1, 1)),
        "expected image as uint8 [L, H, W, 3], received uint8 [7, 3, 4, 4]",
    ),
    "grey image": (
        arrays(image=episode().image[..., 0]),
        "expected image as uint8 [L, H, W, 3], received uint8 [7, 4, 4]",
    ),
    "scalar image": (arrays(image=np.uint8(3)), "expected image as uint8 [L, H, W, 3], received uint8 []"),
    "integer action": (
        arrays(action=np.zeros((LENGTH, ACTIONS), np.int64)),
        "expected action as float [L, A], received int64 [7, 2]",
    ),
    "flat action": (
        arrays(action=np.zeros(LENGTH, np.float32)),
        "expected action as float [L, A], received float32 [7]",
    ),
    "column of rewards": (
        arrays(reward=np.zeros((LENGTH, 1), np.float32)),
        "expected reward as float [L], received float32 [7, 1]",
    ),
    "integer reward": (arrays(reward=np.zeros(LENGTH, np.int32)), "expected reward as float [L], received int32 [7]"),
    "text discount": (
        arrays(discount=np.array(["1"] * LENGTH)),
        "expected discount as bool or number [L], received <U1 [7]",
    ),
    "column of flags": (
        arrays(is_first=np.zeros((LENGTH, 1), bool)),
        "expected is_first as bool or number [L], received bool [7, 1]",
    ),
    "one action short": (
        arrays(action=episode().action[1:]),
        "expected all arrays to have the 7 records of image, received action of shape [6, 2]",
    ),
    "one reward more": (
        arrays(reward=episode(length=8).reward),
        "expected all arrays to have the 7 records of image, received reward of shape [8]",
    ),
    "one flag short": (
        arrays(is_last=episode().is_last[1:]),
        "expected all arrays to have the 7 records of image, received is_last of shape [6]",
    ),
    "one record": ({key: array[:1] for key, array in arrays().items()}, "expected at least 2 records, received 1"),
    "no record": ({key: array[:0] for key, array in arrays().items()}, "expected at least 2 records, received 0"),
    "NaN reward": (changed("reward", lambda x: x.__setitem__(4, np.nan)), "reward is not finite at record 4"),
    "infinite reward": (changed("reward", lambda x: x.__setitem__(2, np.inf)), "reward is not finite at record 2"),
    "NaN action": (changed("action", lambda x: x.__setitem__((5, 1), np.nan)), "action is not finite at record 5"),
    "NaN discount": (changed("discount", lambda x: x.__setitem__(6, np.nan)), "discount is not finite at record 6"),
    "large reward": (
        changed("reward", lambda x: x.__setitem__(3, -2e6)),
        "expected rewards within 1e+06 of zero, received 2e+06; rescale or repair them",
    ),
    "large discount": (
        changed("discount", lambda x: x.__setitem__(3, 1.5)),
        "expected discounts in [0, 1], received 1 to 1.5; repair them",
    ),
    "negative discount": (
        changed("discount", lambda x: x.__setitem__(3, -0.5)),
        "expected discounts in [0, 1], received -0.5 to 1",
    ),
    "no actions": (
        arrays(action=np.zeros((LENGTH, 0), np.float32)),
        "expected action as float [L, A], received float32 [7, 0]",
    ),
    "no pixels": (
        arrays(image=np.zeros((LENGTH, 0, 4, 3), np.uint8)),
        "expected image as uint8 [L, H, W, 3], received uint8 [7, 0, 4, 3]",
    ),
    "complex reward": (
        arrays(reward=np.zeros(LENGTH, np.complex64)),
        "expected reward as float [L], received complex64 [7]",
    ),
    "text reward": (arrays(reward=np.array(["1"] * LENGTH)), "expected reward as float [L], received <U1 [7]"),
    "bool image": (arrays(image=episode().image > 0), f"expected image as uint8 [L, H, W, 3], received bool {SHAPE}"),
    "large action": (
        changed("action", lambda x: x.__setitem__((3, 0), -1.5)),
        "expected actions in [-1, 1], received 1.5; rescale the actions to the policy's range",
    ),
    "action at record 0": (
        changed("action", lambda x: x.__setitem__((0, 1), 0.5)),
        "expected zero action and reward at record 0, which follows no decision; shift the arrays so that action[t] "
        "led to image[t]",
    ),
    "reward at record 0": (
        changed("reward", lambda x: x.__setitem__(0, 1.0)),
        "expected zero action and reward at record 0",
    ),
    "several firsts": (
        changed("is_first", lambda x: x.__setitem__(4, True)),
        "expected is_first at record 0 alone, received it at records [0, 4]; one file holds one episode",
    ),
    "no first": (
        changed("is_first", lambda x: x.__setitem__(0, False)),
        "expected is_first at record 0 alone, received it at records []",
    ),
}


@pytest.mark.parametrize("content, message", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_D08_D10_D11_D12_D13_D14_D15_wrong_arrays_are_refused_with_the_file_the_expected_and_the_received(
    tmp_path, content, message
):
    path = write_arrays(tmp_path / "bad.npz", content)
    with pytest.raises(DataError, match=f"^{re.escape(f'{path}: ')}") as caught:
        read_episode(path)
    assert message in str(caught.value)


def test_D14_an_action_a_rounding_beyond_one_is_accepted(tmp_path):
    content = changed("action", lambda x: x.__setitem__((3, 0), np.float32(1 + 5e-7)))
    assert read_episode(write_arrays(tmp_path / "e.npz", content)).action[3, 0] > 1


def npz_bytes(content=None, **keywords) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **(content or arrays()), **keywords)
    return buffer.getvalue()


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.write_text, (self.marker, "executed"))


WHOLE = npz_bytes()
BAD_BYTES = {
    **{
        f"cut at {part}": (WHOLE[: int(len(WHOLE) * part)], "truncated or damaged npz archive")
        for part in (0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999)
    },
    "last byte missing": (
        WHOLE[:-1],
        f"truncated or damaged npz archive ({len(WHOLE) - 1} bytes); fetch or convert the file again",
    ),
    "empty": (b"", "truncated or damaged npz archive (0 bytes)"),
    "web page": (
        b"<!DOCTYPE html><html><body>Quota exceeded</body></html>",
        "this is a web page, not data; the download failed; fetch the file again",
    ),
    "web page after a blank line": (b"\n <HTML><head>Too many users</head></HTML>", "this is a web page, not data"),
    "Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\n",
        "this is a Git LFS pointer, not data; run git lfs pull",
    ),
    "macOS resource fork": (
        b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X",
        "this is what macOS keeps beside a file, not data",
    ),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "received HDF5; convert it with python -m semopo_tf.data convert"),
    "text": (b"some text\n", "truncated or damaged npz archive"),
    "bytes before the archive": (b"#!/bin/sh\n" + WHOLE, "truncated or damaged npz archive"),
    "bytes behind the archive": (WHOLE + b"more", "truncated or damaged npz archive"),
    "two archives": (WHOLE + WHOLE, "truncated or damaged npz archive"),
}


@pytest.mark.parametrize("data, message", BAD_BYTES.values(), ids=BAD_BYTES)
def test_D01_D02_what_is_no_archive_is_named_in_plain_words(tmp_path, data, message):
    path = tmp_path / "bad.npz"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_episode(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "pickle" not in str(caught.value)


@pytest.mark.parametrize("kind", ["raw", "npy", "npz"])
def test_D03_python_objects_are_refused_and_nothing_is_executed(tmp_path, kind):
    marker, path = tmp_path / "executed", tmp_path / "bad.npz"
    evil = np.array([Evil(marker)] * LENGTH, object)
    if kind == "raw":
        path.write_bytes(pickle.dumps(Evil(marker)))
    else:
        with open(path, "wb") as file:
            np.save(file, evil, allow_pickle=True) if kind == "npy" else np.savez(
                file, **arrays(reward=evil), allow_pickle=True
            )
    with pytest.raises(DataError) as caught:
        read_episode(path)
    expected = {
        "raw": "received Python objects, which are refused",
        "npy": "received a single npy array",
        "npz": "holds Python objects, which are refused",
    }
    assert expected[kind] in str(caught.value)
    assert "pickle" not in str(caught.value)
    assert not marker.exists()
    # The same bytes do run code for a careless reader, so the check above means something.
    if kind == "raw":
        pickle.loads(path.read_bytes())  # noqa: S301
        assert marker.exists()


def test_a_single_npy_array_is_named(tmp_path):
    with open(tmp_path / "bad.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(
        DataError, match=r"bad\.npz: expected an npz archive, received a single npy array; store the arrays with"
    ):
        read_episode(tmp_path / "bad.npz")


def test_D21_a_directory_is_no_episode(tmp_path):
    (tmp_path / "x.npz").mkdir()
    for read in (lambda: read_episode(tmp_path / "x.npz"), lambda: open_dataset(tmp_path)):
        with pytest.raises(
            DataError, match=r"x\.npz: expected an npz episode, but it cannot be read: not a regular file"
        ):
            read()


def test_D21_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "x.npz")
    caught: list[BaseException] = []

    def read():
        try:
            read_episode(tmp_path / "x.npz")
        except DataError as error:
            caught.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert "not a regular file" in str(caught[0])


def test_D05_a_header_that_promises_terabytes_allocates_nothing(tmp_path):
    """2**40 images of 48 bytes are 48 TiB: more than any machine that runs this."""
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        for name in REQUIRED:
            member = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                member, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 4, 4, 3)}
            )
            archive.writestr(f"{name}.npy", member.getvalue())
    with pytest.raises(
        DataError, match=r"image: expected the 52776558133\d+ bytes that its header promises, received 128"
    ):
        read_episode(tmp_path / "bomb.npz")


def archive_of(members, **settings) -> bytes:
    """A zip archive of (name, bytes) pairs, as it is."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", **settings) as archive:
        warnings.simplefilter("ignore")  # zipfile says that a name stands twice
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def npy_bytes(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_header(shape, descr="|u1") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def marked(data: bytes, offset: int, value: int) -> bytes:
    """`data` with one byte of every entry of the archive's list of members replaced, at `offset` of the entry."""
    changed, place = bytearray(data), data.find(b"PK\x01\x02")
    while place >= 0:
        changed[place + offset] = value
        place = data.find(b"PK\x01\x02", place + 1)
    return bytes(changed)


def resized(data: bytes, size: int) -> bytes:
    """`data` with another unpacked size in the first entry of the archive's list."""
    place = data.find(b"PK\x01\x02") + 24
    return data[:place] + size.to_bytes(4, "little") + data[place + 4 :]


MEMBERS = [(f"{key}.npy", npy_bytes(array)) for key, array in arrays().items()]
HOSTILE = {
    "a name twice": (archive_of([*MEMBERS, MEMBERS[2]]), "expected each array once, received reward twice"),
    "a name of the parent": (
        archive_of([*MEMBERS, ("../../x.npy", MEMBERS[2][1])]),
        "expected members called <name>.npy, received '../../x.npy'",
    ),
    "an absolute name": (archive_of([*MEMBERS, ("/etc/x.npy", MEMBERS[2][1])]), "expected members called <name>.npy"),
    "a name of control characters": (
        archive_of([*MEMBERS, ("\x1b[31m.npy", MEMBERS[2][1])]),
        "expected members called <name>.npy",
    ),
    "another kind of member": (
        archive_of([*MEMBERS, ("run.sh", b"rm")]),
        "expected members called <name>.npy, received 'run.sh'",
    ),
    "encrypted": (marked(archive_of(MEMBERS), 8, 1), "expected a plain archive, received an encrypted one"),
    "unknown compression": (
        marked(archive_of(MEMBERS), 10, 99),
        "expected members stored or deflated, received compression 99",
    ),
    "LZMA": (
        archive_of(MEMBERS, compression=zipfile.ZIP_LZMA),
        "expected members stored or deflated, received compression 14",
    ),
    "65 members": (archive_of([(f"log_{n}.npy", b"") for n in range(65)]), "expected at most 64 arrays, received 65"),
    "a comment": (archive_of(MEMBERS)[:-2] + b"\x04\x00more", "truncated or damaged npz archive"),
    "more than its header says": (
        archive_of([("image.npy", MEMBERS[0][1] + bytes(1 << 20)), *MEMBERS[1:]]),
        "image: expected the 464 bytes",
    ),
    "less than its header says": (
        archive_of([("image.npy", MEMBERS[0][1][:-1]), *MEMBERS[1:]]),
        "image: expected the 464 bytes",
    ),
    "a header without end": (
        archive_of([("image.npy", b"\x93NUMPY\x01\x00\xff\xff" + b" " * 65535), *MEMBERS[1:]]),
        "image: expected a plain array",
    ),
    "a later format": (
        archive_of([("image.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f"), *MEMBERS[1:]]),
        "image: expected a plain array",
    ),
    "a header that is code": (
        archive_of([("image.npy", b"\x93NUMPY\x01\x00\x40\x00" + b"__import__('os').abort()".ljust(64)), *MEMBERS[1:]]),
        "image: expected the header of a plain array",
    ),
    "records with fields": (
        archive_of([("image.npy", npy_bytes(np.zeros(3, [("a", "f4")]))), *MEMBERS[1:]]),
        "image: expected an array of numbers",
    ),
    "times": (
        archive_of([*MEMBERS[:2], ("reward.npy", npy_bytes(np.zeros(7, "M8[s]")))]),
        "reward: expected an array of numbers",
    ),
    "600 MB": (resized(archive_of(MEMBERS), 600 << 20), "expected at most 512 MB of arrays, received 600 MB"),
}


@pytest.mark.parametrize("data, message", HOSTILE.values(), ids=HOSTILE)
def test_D05_D06_D07_an_archive_that_no_program_of_ours_writes_is_refused(tmp_path, data, message):
    """Before anything of its size is allocated: the largest of these would take 600 MB, and its reader takes less than
    4.
    """
    path = tmp_path / "bad.npz"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            read_episode(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert peak < 4 << 20


def test_D01_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "bad.npz"
    for size in range(0, len(WHOLE), max(1, len(WHOLE) // 200)):
        path.write_bytes(WHOLE[:size])
        with pytest.raises(DataError, match=rf"truncated or damaged npz archive \({size} bytes\)"):
            read_episode(path)


@pytest.mark.parametrize("suffix", [".part", ".crdownload", ".download", ".tmp"])
def test_D02_an_unfinished_download_stops_the_run_with_its_name(tmp_path, suffix):
    write_dataset(tmp_path)
    (tmp_path / f"003.npz{suffix}").write_bytes(WHOLE[:100])
    with pytest.raises(
        DataError, match=rf"003\.npz{suffix}: an unfinished download \(1 such files\); finish it or remove the file"
    ):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda array: array.astype(array.dtype.newbyteorder(">")),
        np.asfortranarray,
        lambda array: array.astype(np.float64) if array.dtype.kind == "f" else array,
        lambda array: array[::-1][::-1],
    ],
)
def test_D12_another_layout_in_memory_is_the_same_episode(tmp_path, change):
    received = read_episode(write_arrays(tmp_path / "e.npz", {key: change(array) for key, array in arrays().items()}))
    for field in EPISODE_KEYS:
        np.testing.assert_array_equal(getattr(received, field), getattr(episode(), field))
        assert getattr(received, field).flags.c_contiguous and getattr(received, field).dtype.isnative


def test_D04_a_flipped_bit_is_reported_or_harmless(tmp_path):
    """400 single-bit flips: an error that names the file, or the very same arrays; never another exception, never other
    data.
    """
    rng, path, original = np.random.default_rng(0), tmp_path / "e.npz", episode()
    refused = 0
    for bit in rng.integers(8 * len(WHOLE), size=400):
        data = bytearray(WHOLE)
        data[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(data)
        try:
            received = read_episode(path)
        except DataError as error:
            refused += 1
            assert str(error).startswith(str(path))
        else:
            for field in EPISODE_KEYS:
                np.testing.assert_array_equal(getattr(received, field), getattr(original, field))
    assert refused > 200


# --- a directory ------------------------------------------------------------------------------------------------------


def test_D20_a_missing_directory_says_how_to_get_one(tmp_path):
    with pytest.raises(
        DataError, match=r"nowhere: no such dataset directory; collect one with .* or correct --offline_dir"
    ):
        open_dataset(tmp_path / "nowhere")


def test_D20_a_directory_without_episodes_says_what_it_holds(tmp_path):
    with pytest.raises(DataError, match=r"expected episode files \*\.npz, received an empty directory"):
        open_dataset(tmp_path)
    for name in ("a.hdf5", "b.hdf5", "c.txt", "d.txt"):
        (tmp_path / name).touch()
    with pytest.raises(
        DataError, match=r"expected episode files \*\.npz, received 4 other entries, e\.g\. a\.hdf5, b\.hdf5, c\.txt"
    ):
        open_dataset(tmp_path)


def test_a_dataset_holds_its_episodes_one_after_another_in_name_order(tmp_path):
    write_dataset(tmp_path, (7, 5, 9))
    data = open_dataset(tmp_path)
    assert data.names == ["000.npz", "001.npz", "002.npz"]
    assert (data.length.tolist(), data.offset.tolist()) == ([7, 5, 9], [0, 7, 12])
    assert (data.frames.shape, data.frames.dtype, data.frames.flags.writeable) == ((21, SIZE, SIZE, 3), np.uint8, False)
    for number in range(3):
        records = slice(data.offset[number], data.offset[number] + data.length[number])
        expected = episode(number + 1, int(data.length[number]))
        for field in ("action", "reward", "is_terminal"):
            np.testing.assert_array_equal(getattr(data, field)[records], getattr(expected, field))
        np.testing.assert_array_equal(data.frames[records], expected.image)
    # Rewards 0, 1/8, ..., (L - 1) / 8 sum to L (L - 1) / 16.
    assert data.returns.tolist() == [7 * 6 / 16, 5 * 4 / 16, 9 * 8 / 16]
    assert [set(entry) for entry in data.manifest["files"]] == [{"name", "size", "sha256"}] * 3


def test_D09_unknown_keys_are_left_out_with_one_notice(tmp_path, capsys):
    for number in range(3):
        write_arrays(
            tmp_path / f"{number}.npz",
            episode(number).arrays() | {"log_state": np.arange(LENGTH), "camera": np.arange(3), "note": np.array("x")},
        )
    data = open_dataset(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"semopo_tf: warning: {tmp_path}: nothing reads the keys camera, note; they are left out"
    assert data.length.tolist() == [LENGTH] * 3
    open_dataset(tmp_path)
    assert capsys.readouterr().err == ""


def test_D17_episodes_of_equal_return_are_all_kept(tmp_path):
    silent = episode()._replace(reward=np.zeros(LENGTH, np.float32))
    for number in range(200):
        write_episode(
            tmp_path / f"{number:03d}.npz", silent._replace(image=np.full((LENGTH, SIZE, SIZE, 3), number, np.uint8))
        )
    data = open_dataset(tmp_path)
    assert len(data.length) == len(data.returns) == 200 and not data.returns.any()
    np.testing.assert_array_equal(data.frames[::LENGTH][:, 0, 0, 0], np.arange(200))


def test_D17_a_return_beyond_half_precision_stays_a_number(tmp_path):
    reward = np.full(LENGTH, 60_000, np.float16)
    reward[0] = 0
    write_arrays(tmp_path / "e.npz", arrays(reward=reward))
    data = open_dataset(tmp_path)
    assert data.native_returns.tolist() == data.returns.tolist() == [6 * float(np.float16(60_000))]


def test_D18_a_copy_under_another_name_is_kept_and_named_once(tmp_path, capsys):
    write_dataset(tmp_path)
    for name in ("copy.npz", "copy2.npz"):
        (tmp_path / name).write_bytes((tmp_path / "001.npz").read_bytes())
    assert open_dataset(tmp_path).length.tolist() == [7, 5, 9, 5, 5]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"semopo_tf: warning: {tmp_path}: copy.npz is a copy of 001.npz (2 such files); all are kept"


def test_D20_one_episode_is_a_dataset_and_a_file_is_none(tmp_path):
    assert open_dataset(write_dataset(tmp_path / "one", (7,))).length.tolist() == [7]
    with pytest.raises(DataError, match="no such dataset directory"):
        open_dataset(tmp_path / "one" / "000.npz")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.symlink_to("nowhere"), "no such file or directory"),
        (lambda path: path.symlink_to(path), "too many levels of symbolic links"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to("/tmp"), "not a regular file"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "not a regular file"),
        (os.mkfifo, "not a regular file"),
    ],
)
def test_D21_what_is_no_file_is_never_opened(tmp_path, monkeypatch, make, reason):
    write_dataset(tmp_path)
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    make(Path("003.npz"))
    for read in (lambda: read_episode(Path("003.npz")), lambda: open_dataset(Path())):
        with pytest.raises(
            DataError,
            match=rf"003\.npz: expected an npz episode, but it cannot be read: {reason}; (fetch the file again|"
            r"the target of a link must be a regular file; copy datasets with cp -rL, which follows links)$",
        ):
            read()
    Path("dataset.json").unlink(missing_ok=True)
    make(Path("dataset.json"))
    with pytest.raises(DataError, match=rf"(?i)dataset\.json: cannot be read \({reason}\)"):
        read_card(Path())


def linked(folder):
    """A dataset as a hub's client downloads it: every file of the folder is a link to one in a store of blobs."""
    (folder.parent / "blobs").mkdir()
    for path in sorted(folder.iterdir()):
        blob = folder.parent / "blobs" / sha256(path)
        path.rename(blob)
        path.symlink_to(Path("..") / "blobs" / blob.name)
    return folder


def test_I19_a_dataset_of_links_is_the_dataset_that_they_lead_to(tmp_path, capsys):
    here = write_dataset(tmp_path / "hub" / "snapshot")
    expected = open_dataset(write_dataset(tmp_path / "plain"))
    sums = "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(here.glob("*.npz")))
    (here / "SHA256SUMS").write_text(sums)
    write_card(here, {"status": "complete", "task": "mine"})
    data = open_dataset(linked(here))
    assert data.manifest == expected.manifest and data.names == expected.names
    np.testing.assert_array_equal(data.frames, expected.frames)
    made = (here / ".semopo_cache" / "manifest.json").stat().st_mtime_ns
    open_dataset(here)
    assert (here / ".semopo_cache" / "manifest.json").stat().st_mtime_ns == made  # the cache was used
    assert read_card(here)["task"] == "mine"
    command.main(["check", str(here)])
    assert "3 episodes, all good; card: complete" in capsys.readouterr().out
    # The blob changes: so has the dataset.
    write_episode((here / "001.npz").resolve(), episode(77, 6))
    assert open_dataset(here).length.tolist() == [7, 6, 9]
    with pytest.raises(DataError, match="1 problems in 3 files"):
        command.main(["check", str(here)])


def test_I19_links_that_lead_nowhere_are_listed_with_the_way_to_copy(tmp_path, capsys):
    """`cp -r` of a hub's snapshot alone keeps the links and leaves the blobs behind."""
    here = linked(write_dataset(tmp_path / "snapshot"))
    for blob in sorted((tmp_path / "blobs").iterdir())[:2]:
        blob.unlink()
    with pytest.raises(DataError, match="2 problems in 3 files"):
        command.main(["check", str(here)])
    printed = capsys.readouterr().out
    assert printed.count("copy datasets with cp -rL, which follows links") == 2
    with pytest.raises(DataError, match=r"cannot be read: no such file or directory; the target of a link must be"):
        open_dataset(here)


def test_I19_a_link_to_a_private_file_shows_nothing_of_it(tmp_path, capsys):
    secret = tmp_path / "secret"
    secret.write_text("hush:x:0:0")
    here = write_dataset(tmp_path / "data")
    (here / "001.npz").unlink()
    (here / "001.npz").symlink_to(secret)
    with pytest.raises(DataError, match=r"001\.npz: truncated or damaged npz archive \(10 bytes\)"):
        open_dataset(here)
    (here / "dataset.json").symlink_to(secret)
    with pytest.raises(DataError, match="expected a JSON object") as caught:
        read_card(here)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("verb", [["check"], ["convert", "--repair_flags"]])
def test_I19_a_pipe_in_place_of_an_episode_is_never_waited_for(tmp_path, verb):
    here = write_dataset(tmp_path / "data")
    os.mkfifo(here / "003.npz")
    with pytest.raises(DataError):
        command.main([*verb, str(here), *([str(tmp_path / "out")] if len(verb) > 1 else [])])


def test_D21_links_in_the_place_of_our_own_files_are_not_written_through(tmp_path):
    """A dataset from elsewhere may come with such a cache."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in (".semopo_cache.lock", f".tmp-{os.getpid()}-x"):
        data = write_dataset(tmp_path / name)
        (data / name).symlink_to(precious)
    with pytest.raises(StorageError, match=r"\.semopo_cache"):
        open_dataset(tmp_path / ".semopo_cache.lock")
    with pytest.raises(StorageError, match="cannot be written"):
        write_whole(tmp_path / f".tmp-{os.getpid()}-x" / "x", b"theirs")
    assert precious.read_text() == "mine"


def test_D22_a_file_that_goes_or_changes_between_scan_and_read_is_named(tmp_path, monkeypatch):
    write_dataset(tmp_path)
    files = episodes.episode_files(tmp_path)
    monkeypatch.setattr(dataset, "episode_files", lambda directory: files)
    files[1].unlink()
    with pytest.raises(
        DataError, match=r"001\.npz: expected an npz episode, but it cannot be read: no such file or directory"
    ):
        open_dataset(tmp_path)
    assert leftovers(tmp_path) == []
    # Replaced after it was read: the manifest describes the bytes that were used, so the next opening notices.
    write_episode(files[1], episode(2, 5))
    original = episodes.read_npz

    def replace(data, wanted, limit):
        if data == second:
            write_episode(files[1], episode(77, 6))
        return original(data, wanted, limit)

    second = files[1].read_bytes()
    monkeypatch.setattr(episodes, "read_npz", replace)
    assert open_dataset(tmp_path).length.tolist() == [7, 5, 9]
    monkeypatch.setattr(episodes, "read_npz", original)
    assert open_dataset(tmp_path).length.tolist() == [7, 6, 9]


def test_D23_a_dataset_of_any_size_is_opened_in_the_memory_of_a_few_episodes(tmp_path):
    """60 episodes of 6 MB are built and opened; the frames stay on the disk."""
    records = 500
    still = np.zeros((records, 1), np.float32)
    large = episode(length=records)._replace(image=np.zeros((records, 64, 64, 3), np.uint8), action=still)
    write_episode(tmp_path / "00.npz", large)
    for number in range(1, 60):
        os.link(tmp_path / "00.npz", tmp_path / f"{number:02d}.npz")
    tracemalloc.start()
    try:
        data = open_dataset(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert data.frames.nbytes == 60 * large.image.nbytes
    assert peak < 64 << 20 < data.frames.nbytes / 5


@pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=pytest.mark.full)])
def test_D24_many_small_files_are_scanned_in_seconds(tmp_path, count):
    """Every start lists the files and compares them with the manifest of the cache."""
    write_episode(tmp_path / "000000.npz", episode())
    for number in range(1, count):  # a file can have some thousand names, no more
        source = tmp_path / f"{number - number % 10_000:06d}.npz"
        target = tmp_path / f"{number:06d}.npz"
        target.write_bytes((tmp_path / "000000.npz").read_bytes()) if number % 10_000 == 0 else os.link(source, target)
    started = time.monotonic()
    files = episodes.episode_files(tmp_path)
    entries = [
        {"name": path.name, "size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns, "sha256": ""}
        for path in files
    ]
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "manifest.json").write_text(json.dumps({"version": 1, "files": entries, "arrays": {}}))
    assert dataset._current_manifest(tmp_path / "cache", files) is not None
    assert len(files) == count
    assert time.monotonic() - started < 10


def test_hidden_files_are_no_episodes(tmp_path):
    write_dataset(tmp_path, (7,))
    (tmp_path / "._000.npz").write_bytes(b"resource fork")
    assert open_dataset(tmp_path).names == ["000.npz"]


def test_returns_of_half_precision_rewards_are_summed_in_double_precision(tmp_path):
    """0.1 in float16 is 0.0999755859375. 600 of them are 59.9853515625 exactly, and something else in float16, whose
    step there is 1/32.
    """
    length = 601
    reward = np.full(length, 0.1, np.float16)
    reward[0] = 0
    write_arrays(
        tmp_path / "e.npz",
        episode(length=length)._replace(reward=reward, action=np.zeros((length, ACTIONS), np.float32)).arrays(),
    )
    data = open_dataset(tmp_path)
    assert data.reward.dtype == np.float32
    assert data.returns.tolist() == [59.9853515625]
    assert data.native_returns.tolist() == [float(reward.sum())] != data.returns.tolist()


def test_returns_of_single_precision_rewards_are_summed_in_double_precision(tmp_path):
    """2**24 + 1 is the first whole number that single precision does not have."""
    reward = np.zeros(40, np.float32)
    reward[1:33], reward[33] = 2**19, 1
    write_episode(tmp_path / "e.npz", episode(length=40)._replace(reward=reward))
    assert open_dataset(tmp_path).returns.tolist() == [2**24 + 1]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            episode()._replace(image=np.zeros((LENGTH, 5, 5, 3), np.uint8)),
            "expected image [4, 4, 3] and action [2] as in 000.npz, received [5, 5, 3] and [2]",
        ),
        (
            episode()._replace(action=np.zeros((LENGTH, 3), np.float32)),
            "expected image [4, 4, 3] and action [2] as in 000.npz, received [4, 4, 3] and [3]",
        ),
    ],
)
def test_D11_files_that_disagree_in_shape_are_refused(tmp_path, other, message):
    write_dataset(tmp_path, (7, 5))
    write_episode(tmp_path / "002.npz", other)
    with pytest.raises(DataError, match=r"002\.npz: ") as caught:
        open_dataset(tmp_path)
    assert message in str(caught.value)
    assert leftovers(tmp_path) == []


def test_a_bad_file_stops_the_opening_with_its_name_and_leaves_no_cache(tmp_path):
    write_dataset(tmp_path)
    (tmp_path / "001.npz").write_bytes(WHOLE[:-10])
    with pytest.raises(DataError, match=r"001\.npz: truncated"):
        open_dataset(tmp_path)
    assert leftovers(tmp_path) == []
    assert not (tmp_path / ".semopo_cache").exists()


def test_D15_K05_an_episode_shorter_than_a_window_is_named(tmp_path):
    data = open_dataset(write_dataset(tmp_path, (9, 5, 9, 4)))
    data.require_length(4, "batch.length")
    with pytest.raises(
        DataError,
        match=r"001\.npz: expected at least batch\.length = 6 records, received 5 \(2 such files\); lower --batch",
    ):
        data.require_length(6, "batch.length")


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files whose contents are hashed from now on."""
    names: list[str] = []
    original = dataset.sha256
    monkeypatch.setattr(dataset, "sha256", lambda path: names.append(path.name) or original(path))
    return names


def cache_mark(cache: Path) -> tuple[int, int]:
    """A value that changes when the cache is built again."""
    status = (cache / "frames.npy").stat()
    return status.st_mtime_ns, status.st_ino


def test_the_cache_is_built_once(tmp_path, hashed):
    first = open_dataset(write_dataset(tmp_path))
    mark = cache_mark(tmp_path / ".semopo_cache")
    assert hashed == []  # the digest is made of the bytes that were read, not of the file as it is afterwards
    second = open_dataset(tmp_path)
    assert cache_mark(tmp_path / ".semopo_cache") == mark
    assert hashed == []
    for one, two in zip(first, second):
        np.testing.assert_equal(one, two)
    assert leftovers(tmp_path) == []


def test_only_a_file_with_a_new_time_stamp_is_hashed_again(tmp_path, hashed):
    open_dataset(write_dataset(tmp_path))
    mark = cache_mark(tmp_path / ".semopo_cache")
    os.utime(tmp_path / "001.npz", ns=(1, 1))
    hashed.clear()
    open_dataset(tmp_path)
    assert (hashed, cache_mark(tmp_path / ".semopo_cache")) == (["001.npz"], mark)
    hashed.clear()
    open_dataset(tmp_path)  # the new time stamp has been noted
    assert hashed == []


@pytest.mark.parametrize("same_size", [False, True])
def test_a_changed_file_rebuilds_the_cache(tmp_path, same_size):
    write_dataset(tmp_path, (7, 5, 9))
    path = tmp_path / "001.npz"
    np.savez(path, **episode(50, 5).arrays())  # uncompressed: the size depends on the length alone
    size, before = path.stat().st_size, open_dataset(tmp_path)
    length = 5 if same_size else 6
    np.savez(path, **episode(60, length).arrays())
    os.utime(path, ns=(10**18, 10**18))  # a clock too coarse to tell the two writes apart must not decide
    assert (path.stat().st_size == size) == same_size
    after = open_dataset(tmp_path)
    assert (before.frames[7, 0, 0, 0], after.frames[7, 0, 0, 0]) == (50, 60)
    assert after.length.tolist() == [7, length, 9]
    assert after.manifest["files"][1]["sha256"] != before.manifest["files"][1]["sha256"]
    assert leftovers(tmp_path) == []


def test_added_and_removed_files_rebuild_the_cache(tmp_path):
    open_dataset(write_dataset(tmp_path, (7, 5)))
    write_episode(tmp_path / "002.npz", episode(9, 8))
    assert open_dataset(tmp_path).length.tolist() == [7, 5, 8]
    (tmp_path / "000.npz").unlink()
    assert open_dataset(tmp_path).length.tolist() == [5, 8]


@pytest.mark.parametrize(
    "manifest",
    ["", "{", "[]", "{}", "3", "null", '{"version": 1}', '{"version": 0, "files": []}', '{"version": 1, "files": [3]}'],
)
def test_an_unreadable_cache_is_built_again(tmp_path, manifest):
    open_dataset(write_dataset(tmp_path))
    mark = cache_mark(tmp_path / ".semopo_cache")
    (tmp_path / ".semopo_cache" / "manifest.json").write_text(manifest)
    assert open_dataset(tmp_path).length.tolist() == [7, 5, 9]
    assert cache_mark(tmp_path / ".semopo_cache") != mark


def npy(array) -> bytes:
    return npy_bytes(np.asarray(array))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("frames", npy(np.zeros((20, SIZE, SIZE, 3), np.uint8))),
        ("frames", npy(np.zeros((21, SIZE, SIZE, 3), np.int8))),
        ("frames", npy_header((1 << 40, SIZE, SIZE, 3))),
        ("length", npy(np.array([7, 5, 10]))),
        ("length", npy(np.array([7, -5, 19]))),
        ("action", npy(np.zeros((21, 2), object))),
        ("action", npy(np.zeros(21, np.float32))),
        ("returns", npy(np.zeros(2))),
        ("reward", b"no array"),
    ],
)
def test_D05_a_cache_that_came_with_a_foreign_dataset_is_not_believed(tmp_path, name, content):
    expected = [np.array(column) for column in open_dataset(write_dataset(tmp_path))[2:-1]]
    path, manifest = tmp_path / ".semopo_cache" / f"{name}.npy", tmp_path / ".semopo_cache" / "manifest.json"
    path.write_bytes(content)
    page = json.loads(manifest.read_text())
    page["arrays"][path.name] = len(content)
    manifest.write_text(json.dumps(page))
    received = open_dataset(tmp_path)
    for one, two in zip(expected, received[2:-1]):
        np.testing.assert_array_equal(one, two)


def test_a_torn_or_lost_array_rebuilds_the_cache(tmp_path):
    open_dataset(write_dataset(tmp_path))
    frames = tmp_path / ".semopo_cache" / "frames.npy"
    whole = frames.read_bytes()
    frames.write_bytes(whole[:-1])
    assert len(open_dataset(tmp_path).frames) == 21
    assert frames.read_bytes() == whole
    (tmp_path / ".semopo_cache" / "reward.npy").unlink()
    assert len(open_dataset(tmp_path).reward) == 21


def test_the_remains_of_a_killed_builder_do_no_harm(tmp_path):
    cache = tmp_path / ".semopo_cache"
    write_dataset(tmp_path)
    (tmp_path / f".tmp-{os.getpid()}-.semopo_cache").mkdir()
    (tmp_path / f".tmp-{os.getpid()}-.semopo_cache" / "frames.npy").write_bytes(b"half")
    assert len(open_dataset(tmp_path).frames) == 21
    assert json.loads((cache / "manifest.json").read_text())["version"] == dataset.CACHE_VERSION
    assert leftovers(tmp_path) == []


def test_the_cache_goes_where_it_is_told(tmp_path):
    data, elsewhere = write_dataset(tmp_path / "data"), tmp_path / "deep" / "caches"
    cache = cache_place(data, str(elsewhere), tmp_path / "run")
    assert cache is not None and cache.parent == elsewhere
    assert open_dataset(data, cache).length.tolist() == [7, 5, 9]
    assert (cache / "frames.npy").is_file()
    assert sorted(path.name for path in data.iterdir()) == ["000.npz", "001.npz", "002.npz"]
    # Two datasets of one name share a cache directory without meeting.
    assert cache_place(tmp_path / "other" / "data", str(elsewhere), tmp_path / "run") != cache


def test_F06_the_cache_of_a_read_only_dataset_goes_to_the_run_directory(tmp_path, monkeypatch):
    data = write_dataset(tmp_path / "data")
    assert cache_place(data, "", tmp_path / "run") is None
    # Permissions do not bind the superuser, so the question itself is answered here.
    monkeypatch.setattr(episodes.os, "access", lambda path, mode: not (Path(path) == data and mode & os.W_OK))
    cache = cache_place(data, "", tmp_path / "run")
    assert cache is not None and cache.parent == tmp_path / "run" / "cache"
    open_dataset(data, cache)
    assert (cache / "frames.npy").is_file()
    assert not (data / ".semopo_cache").exists()


def test_a_cache_that_cannot_be_written_says_where_else(tmp_path):
    data = write_dataset(tmp_path / "data")
    (tmp_path / "file").touch()
    with pytest.raises(
        StorageError, match=r"the dataset cache cannot be written \(.*\); choose another place with --cache_dir"
    ):
        open_dataset(data, tmp_path / "file" / "cache")


def test_two_processes_opening_at_once_share_one_cache(tmp_path):
    data = write_dataset(tmp_path, [40] * 30)
    script = (
        "import os, sys; from pathlib import Path; from semopo_tf.data.dataset import open_dataset; "
        "sys.stdin.readline(); "
        "data = open_dataset(Path(sys.argv[1])); print(data.frames.sum(), data.length.sum(), "
        "os.stat(data.frames.filename).st_ino)"
    )
    root = Path(semopo_tf.__file__).parents[1]
    command = [sys.executable, "-c", script, str(data)]
    processes = [
        subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in processes:  # both have started and wait for this line
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == answers[1]  # the same frames in the same file: one of them built it, the other waited
    assert answers[0][1] == str(30 * 40)
    assert leftovers(tmp_path) == []


# --- held-out episodes and the card -----------------------------------------------------------------------------------

NAMES = [f"episode-{number:04d}.npz" for number in range(200)]


def test_held_out_episodes_are_the_given_fraction_and_depend_on_the_seed():
    mask = held_out(NAMES, 0.2, seed=1)
    assert (mask.dtype, mask.sum()) == (bool, 40)
    np.testing.assert_array_equal(mask, held_out(NAMES, 0.2, seed=1))
    overlap = (mask & held_out(NAMES, 0.2, seed=2)).sum()
    assert overlap < 20  # 8 expected of independent choices
    assert not held_out(NAMES, 0.0, seed=1).any()


def test_D25_which_episodes_are_held_out_does_not_depend_on_their_order():
    order = np.random.default_rng(0).permutation(len(NAMES))
    shuffled = held_out([NAMES[index] for index in order], 0.2, seed=1)
    np.testing.assert_array_equal(shuffled, held_out(NAMES, 0.2, seed=1)[order])


def test_a_larger_fraction_holds_out_the_same_episodes_and_more():
    small, large = held_out(NAMES, 0.1, seed=1), held_out(NAMES, 0.3, seed=1)
    assert not (small & ~large).any()


@pytest.mark.parametrize(("count", "fraction", "received"), [(4, 0.1, 0), (1, 0.9, 1), (3, 0.9, 3)])
def test_D25_an_empty_side_of_the_split_is_refused(count, fraction, received):
    with pytest.raises(
        DataError,
        match=rf"valid_fraction = {fraction}: expected at least one of {count} episodes on either side, "
        rf"received {received}",
    ):
        held_out(NAMES[:count], fraction, seed=1)


BAD_CARDS = {
    "not UTF-8": (b"\xff\xfe{}", "expected a JSON object"),
    "a name twice": (b'{"seed": 1, "seed": 2}', "a name stands twice in one object"),
    "no number": (b'{"returns": {"mean": NaN}}', "NaN is not JSON"),
    "infinity": (b'{"returns": {"mean": 1e999}}', "expected returns.mean as a JSON number, received float"),
    "brackets": (b"[" * 100_000, "nested too deeply"),
    "digits": (b'{"seed": ' + b"9" * 100_000 + b"}", "expected a JSON object"),
    "a text for a number": (b'{"seed": "1"}', "expected seed as a JSON whole number, received str"),
    "a truth value for a number": (
        b'{"environment": {"size": true}}',
        "expected environment.size as a JSON whole number, received bool",
    ),
    "a list for an object": (b'{"background": []}', "expected background as a JSON object, received list"),
    "a number for a name": (b'{"files": [{"file": 3}]}', "expected files.0.file as a JSON text, received int"),
    "no rows": (b'{"files": [3]}', "expected files.0 as a JSON object, received int"),
}


@pytest.mark.parametrize("content, message", BAD_CARDS.values(), ids=BAD_CARDS)
def test_a_card_of_another_shape_is_refused(tmp_path, content, message):
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(
        DataError, match=rf"dataset\.json: .*{re.escape(message)}.*; remove the file or collect the dataset again"
    ):
        read_card(tmp_path)


def test_what_a_run_was_trained_on_is_checked_as_the_card_is(tmp_path):
    good = {"image_size": 64, "action_size": 6, "card": None, "files": [{"name": "a.npz", "size": 1, "sha256": "0"}]}
    path = tmp_path / "dataset_manifest.json"
    for page in (good, good | {"card": {"seed": 1}}):
        path.write_text(json.dumps(page))
        assert read_run_data(tmp_path) == page
    wrong = {
        "missing image_size": {key: good[key] for key in good if key != "image_size"},
        "missing card": {key: good[key] for key in good if key != "card"},
        "expected image_size as a JSON whole number, received str": good | {"image_size": "64"},
        "expected card.seed as a JSON whole number, received list": good | {"card": {"seed": []}},
    }
    for message, page in wrong.items():
        path.write_text(json.dumps(page))
        with pytest.raises(DataError, match=rf"dataset_manifest\.json: {message}; restore the file or train again"):
            read_run_data(tmp_path)


def test_the_card_is_a_json_object_or_absent(tmp_path):
    assert read_card(tmp_path) is None
    (tmp_path / "dataset.json").write_text('{"task": "dmcdrv_walker_walk"}')
    assert read_card(tmp_path) == {"task": "dmcdrv_walker_walk"}
    for text, message in (("{", "expected a JSON object"), ("[1]", "expected a JSON object, received list")):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(DataError, match=rf"dataset\.json: {message}"):
            read_card(tmp_path)


def test_I21_names_in_capitals_and_a_list_with_a_byte_order_mark_are_read(tmp_path):
    write_episode(tmp_path / "A.NPZ", episode(1, 3))
    write_episode(tmp_path / "b.Npz", episode(2, 4))
    assert [path.name for path in episodes.episode_files(tmp_path)] == ["A.NPZ", "b.Npz"]
    assert open_dataset(tmp_path).length.tolist() == [3, 4]
    digest = hashlib.sha256((tmp_path / "A.NPZ").read_bytes()).hexdigest()
    (tmp_path / "SHA256SUMS").write_bytes(b"\xef\xbb\xbf" + f"{digest}  A.NPZ\n".encode())
    assert listed_files(tmp_path)["A.NPZ"].sha256 == digest
    (tmp_path / "c.NPZ.part").write_bytes(b"")
    with pytest.raises(DataError, match=r"c\.NPZ\.part: an unfinished download"):
        episodes.episode_files(tmp_path)
