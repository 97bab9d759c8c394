"""The archive of tensors: the same bytes for equal arrays, and back, also with the records for large files."""

import io
import struct
import zipfile

import numpy as np
import pytest

from semopo_tf.storage import npz
from semopo_tf.storage.npz import NpzError, pack, unpack

TENSORS = {
    "model/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "step": np.int64(7),
    "flags": np.array([True, False]),
    "half": np.float16([0.5]),
    "none": np.zeros((0, 4), np.uint8),
}


def test_what_is_packed_is_unpacked_in_its_order():
    read = unpack(bytes(pack(TENSORS)))
    assert list(read) == list(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(read[name], tensor)
        assert read[name].dtype == np.asarray(tensor).dtype
    assert bytes(pack(read)) == bytes(pack(TENSORS))


def test_hundreds_of_tensors_are_read():
    many = {f"layer_{index}/kernel": np.float32([index]) for index in range(1000)}
    assert len(unpack(bytes(pack(many)))) == 1000


def test_an_archive_with_the_records_for_large_files_is_read(monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    data = bytes(pack(TENSORS))
    assert b"PK\x06\x06" in data and b"PK\x06\x07" in data
    assert list(unpack(data)) == list(TENSORS)
    for position in range(len(data) - npz.END_RECORD.size - npz.END_RECORD_64.size, len(data)):
        with pytest.raises(NpzError) if not ignored(data, position) else pytest.MonkeyPatch.context():
            unpack(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])


def ignored(data, position):
    """Fields of the end records that no reader needs: versions, and numbers that the longer record overrides."""
    from_end = len(data) - position
    versions = range(len(data) - 98 + 12, len(data) - 98 + 16)
    return position in versions or 3 <= from_end <= 10


def test_the_records_for_large_files_are_refused_where_they_are_not_needed(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(zipfile, "ZIP64_LIMIT", 100)
        data = bytes(pack(TENSORS))
    with pytest.raises(NpzError, match="truncated or damaged"):
        unpack(data)


def savez(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (savez(a=np.zeros(3)), "a: expected it stored, received compression 8"),
        (bytes(pack({"a": np.zeros(3, "S4")})), "a: expected numbers, received"),
        (bytes(pack({"a": np.zeros(3, complex)})), "a: expected numbers, received complex128"),
        (bytes(pack({"../a": np.zeros(3)})), "expected members called"),
        (b"", "truncated or damaged"),
        (b"x" + bytes(pack({"a": np.zeros(3)})), "truncated or damaged"),
        (bytes(pack({"a": np.zeros(3)})) + b"x", "truncated or damaged"),
        (bytes(pack({"a": np.zeros(3)})).replace(b"(3,)", b"(9,)"), "truncated or damaged|promises"),
    ],
)
def test_another_archive_is_refused(data, words):
    with pytest.raises(NpzError, match=words):
        unpack(data)


def test_more_members_than_allowed_are_refused(monkeypatch):
    monkeypatch.setattr(npz, "MAX_TENSORS", 2)
    with pytest.raises(NpzError, match="expected at most 2 arrays, received 5"):
        unpack(bytes(pack(TENSORS)))


def test_a_count_of_members_is_checked_before_any_is_read():
    data = bytearray(pack({"a": np.zeros(3)}))
    struct.pack_into("<2H", data, len(data) - 14, 65535, 65535)
    with pytest.raises(NpzError, match="received 65535"):
        unpack(bytes(data))
