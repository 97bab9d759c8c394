"""`data convert` and `data check`: HDF5 to npz and back, what is refused of an HDF5 file, and how the child that reads
it may end.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import synthetic

from semopo_tf.data import __main__ as data
from semopo_tf.data import foreign, hdf5_process, vd4rl, writing
from semopo_tf.data.cards import read_card
from semopo_tf.data.dataset import open_dataset
from semopo_tf.data.episodes import read_episode, write_episode
from semopo_tf.errors import ConfigError, DataError
from semopo_tf.storage.files import sha256
from semopo_tf.types import Episode

SIZE = 8
SIGNATURE = foreign.SIGNATURE
RNG = np.random.default_rng(0)
PYTHON = [sys.executable, "-c"]


def columns(*lengths: int) -> dict[str, np.ndarray]:
    """The HDF5 columns of synthetic episodes of these lengths, built here and not by the package; types as in V-D4RL's
    converter.
    """
    items = [synthetic.episode(number, length, SIZE) for number, length in enumerate(lengths)]
    marks = [[0.0] + [1.0] * (length - 2) + [2.0] for length in lengths]
    return {
        "action": np.concatenate([item.action for item in items]),
        "discount": np.concatenate([item.discount for item in items]),
        "observation": np.concatenate([item.image for item in items]).transpose(0, 3, 1, 2),
        "reward": np.concatenate([item.reward for item in items]),
        "step_type": np.concatenate(marks),
    }


def write_columns(path: Path, content: dict[str, np.ndarray], **settings) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in content.items():
            file.create_dataset(name, data=array, **({"compression": "gzip"} | settings))
    return path


def run(*words: object) -> None:
    data.main(["convert", *map(str, words)])


def refused(source: Path, tmp_path: Path) -> str:
    """The one line that a conversion of `source` ends with; it leaves no episode behind."""
    with pytest.raises(DataError) as caught:
        run(source, tmp_path / "refused")
    line = " ".join(str(caught.value).split())
    assert not list((tmp_path / "refused").glob("*.npz"))
    assert str(source) in line and len(line.replace(str(tmp_path), "")) <= 300
    assert not any(word in line for word in ("Traceback", "allow_pickle", "KeyError"))
    return line


def episodes_of(directory: Path) -> list[Episode]:
    return [read_episode(path) for path in sorted(directory.glob("*.npz"))]


def require_same(found: list[Episode], expected: list[Episode]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        for name, array in theirs.arrays().items():
            np.testing.assert_array_equal(ours.arrays()[name], array)
            assert ours.arrays()[name].dtype == array.dtype


def digests(directory: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(directory.iterdir()) if not path.name.startswith(".")}


# --- there and back ---------------------------------------------------------------------------------------------------


def test_a_file_of_the_published_converter_becomes_its_episodes(tmp_path, capsys):
    lengths = (20, 7, 31)
    run(write_columns(tmp_path / "data.hdf5", columns(*lengths)), tmp_path / "out")
    require_same(
        episodes_of(tmp_path / "out"),
        [synthetic.episode(number, length, SIZE) for number, length in enumerate(lengths)],
    )
    assert "no checksum is known for 1 of 1 files" in capsys.readouterr().out
    card = read_card(tmp_path / "out")
    assert (card["status"], card["episodes"], card["records"], card["records_left_out"]) == ("complete", 3, 58, 0)
    assert card["converted"]["sources"] == [
        {"file": "data.hdf5", "size": (tmp_path / "data.hdf5").stat().st_size, "sha256": sha256(tmp_path / "data.hdf5")}
    ]
    assert open_dataset(tmp_path / "out").length.tolist() == list(lengths)
    data.main(["check", str(tmp_path / "out")])


@pytest.mark.parametrize("reward_type", [np.float16, np.float32, np.float64])
def test_npz_to_hdf5_and_back_is_exact(tmp_path, reward_type):
    items = [synthetic.episode(number, 20 + number, SIZE) for number in range(3)]
    items = [item._replace(reward=item.reward.astype(reward_type)) for item in items]
    ended = np.arange(22) == 21
    items[2] = items[2]._replace(is_terminal=ended, discount=1 - ended.astype(np.float32))
    (tmp_path / "in").mkdir()
    for number, item in enumerate(items):
        write_episode(tmp_path / "in" / f"{number}.npz", item)
    run(tmp_path / "in", tmp_path / "all.hdf5")
    run(tmp_path / "all.hdf5", tmp_path / "out")
    require_same(episodes_of(tmp_path / "out"), items)
    run(tmp_path / "out", tmp_path / "again.hdf5")
    assert sha256(tmp_path / "again.hdf5") == sha256(tmp_path / "all.hdf5")
    with h5py.File(tmp_path / "all.hdf5") as file:
        assert sorted(file) == sorted(vd4rl.LAYOUT)
        assert all(file[name].fletcher32 and file[name].compression == "gzip" for name in file)


def test_what_hdf5_cannot_give_back_is_refused(tmp_path):
    synthetic.dataset(tmp_path / "in", episodes=2, size=SIZE)
    write_episode(tmp_path / "in" / "z.npz", synthetic.episode(5, size=SIZE)._replace(reward=np.zeros(20, np.float64)))
    with pytest.raises(DataError, match=r"z\.npz: expected types and shapes as in 000000-00000000-19\.npz"):
        run(tmp_path / "in", tmp_path / "out.hdf5")
    write_episode(tmp_path / "in" / "z.npz", synthetic.episode(5, size=SIZE)._replace(is_terminal=np.arange(20) == 19))
    with pytest.raises(DataError, match=r"z\.npz: expected discount 0 where is_terminal"):
        run(tmp_path / "in", tmp_path / "out.hdf5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_shards_are_joined_in_the_order_of_their_numbers(tmp_path):
    """Shards as V-D4RL cuts them: equal parts, cut inside episodes, and shard 10 comes after 9."""
    whole = columns(20, 7, 31, 12)
    parts = {name: np.array_split(array, 11) for name, array in whole.items()}
    (tmp_path / "shards").mkdir()
    for number in range(11):
        write_columns(tmp_path / "shards" / f"{number}.hdf5", {name: pieces[number] for name, pieces in parts.items()})
    run(tmp_path / "shards", tmp_path / "out")
    require_same(
        episodes_of(tmp_path / "out"), [synthetic.episode(n, length, SIZE) for n, length in enumerate((20, 7, 31, 12))]
    )
    content = columns(20)
    write_columns(tmp_path / "shards" / "11.hdf5", content | {"action": content["action"][:, :1]})
    assert "expected action as float32 (2,) as in 0.hdf5, received float32 (1,)" in refused_at(
        tmp_path, tmp_path / "shards"
    )


def refused_at(tmp_path: Path, source: Path) -> str:
    with pytest.raises(DataError) as caught:
        run(source, tmp_path / "refused")
    return str(caught.value)


def test_an_interrupted_conversion_is_finished_with_equal_bytes(tmp_path, monkeypatch, capsys):
    source = write_columns(tmp_path / "data.hdf5", columns(20, 7, 31, 12))
    run(source, tmp_path / "whole")
    real, written = writing.write_episode, []

    def stop_at_the_third(path, episode):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(real(path, episode))

    monkeypatch.setattr(writing, "write_episode", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "parts")
    assert read_card(tmp_path / "parts")["status"] == "incomplete"
    (tmp_path / "parts" / ".tmp-1-x").write_bytes(b"left over")
    monkeypatch.setattr(writing, "write_episode", real)
    run(source, tmp_path / "parts")
    assert "2 episodes are there, going on" in capsys.readouterr().out
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    damaged = sorted((tmp_path / "parts").glob("*.npz"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-5])
    run(source, tmp_path / "parts")
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")


def test_targets_that_hold_something_else_are_left_alone(tmp_path):
    source = write_columns(tmp_path / "data.hdf5", columns(20))
    synthetic.dataset(tmp_path / "mine", episodes=1, size=SIZE)
    before = digests(tmp_path / "mine")
    for words in (
        (source, tmp_path / "mine"),
        (source, tmp_path / "x.hdf5"),
        (tmp_path / "mine", source),
        (tmp_path / "mine", tmp_path / "out"),
    ):
        with pytest.raises(ConfigError):
            run(*words)
    run(source, tmp_path / "out")
    with pytest.raises(ConfigError, match="not made from these files in this way"):
        run(source, tmp_path / "out", "--repair_flags")
    assert digests(tmp_path / "mine") == before
    shutil.copy(source, tmp_path / "mine")
    assert "expected HDF5 files or npz episodes, received both" in refused_at(tmp_path, tmp_path / "mine")


def test_a_source_that_changes_under_way_is_noticed(tmp_path, monkeypatch):
    source = write_columns(tmp_path / "data.hdf5", columns(20))
    real = foreign.read_in_child

    def touching(paths, skip, layout):
        yield from real(paths, skip, layout)
        os.utime(source, ns=(1, 1))

    monkeypatch.setattr(foreign, "read_in_child", touching)
    with pytest.raises(DataError, match=r"data\.hdf5: changed while it was read"):
        run(source, tmp_path / "out")
    assert read_card(tmp_path / "out")["status"] == "incomplete"


def test_training_names_the_conversion_and_reads_no_hdf5(tmp_path):
    write_columns(tmp_path / "data.hdf5", columns(20))
    with pytest.raises(
        DataError, match=r"HDF5 is not trained on, make episodes of it with python -m semopo_tf\.data convert"
    ):
        open_dataset(tmp_path)
    code = (
        "import sys\nfrom semopo_tf import training\nfrom semopo_tf.data import dataset\ntry: "
        f"dataset.open_dataset({str(tmp_path)!r})\nexcept ValueError: pass\n"
    )
    done = subprocess.run(
        [*PYTHON, code + "print('h5py' in sys.modules, 'tensorflow' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "False"]


# --- H01, H02: keys, shapes, marks ------------------------------------------------------------------------------------


def with_group(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["reward"]
        file.create_group("reward")


CHANGES = {
    "missing": (lambda c: c.pop("reward"), "missing reward, received action, discount, observation, step_type"),
    "unequal": (
        lambda c: c.update(reward=c["reward"][1:]),
        "expected equal lengths of 1 to 20000000, received {'action': 20",
    ),
    "empty": (lambda c: [c.update({name: array[:0]}) for name, array in list(c.items())], "'reward': 0"),
    "channels last": (
        lambda c: c.update(observation=c["observation"].transpose(0, 2, 3, 1)),
        "expected observation as uint8 (N, 3, H, W)",
    ),
    "float images": (lambda c: c.update(observation=c["observation"] / np.float32(255)), "received <f4 (20, 3, 8, 8)"),
    "big-endian": (
        lambda c: c.update(reward=c["reward"].astype(">f4")),
        "expected reward as float (N,), little-endian, received >f4 (20,)",
    ),
    "text": (lambda c: c.update(reward=np.array([b"1.0"] * 20)), "expected reward as float (N,)"),
    "complex": (lambda c: c.update(reward=c["reward"].astype(complex)), "expected reward as float (N,)"),
    "flat actions": (lambda c: c.update(action=c["action"][:, 0]), "expected action as float (N, A)"),
    "scalar": (lambda c: c.update(discount=np.float32(1)), "expected discount as float (N,)"),
    "object references": (
        lambda c: c.update(reward=np.array(["x"] * 20, h5py.string_dtype())),
        "expected reward as float (N,)",
    ),
}


@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES)
def test_H01_wrong_columns_are_named(tmp_path, change, message):
    content = columns(20)
    change(content)
    assert message in refused(write_columns(tmp_path / "bad.hdf5", content, compression=None), tmp_path)


def test_H01_a_group_is_no_dataset(tmp_path):
    path = write_columns(tmp_path / "bad.hdf5", columns(20))
    with_group(path)
    assert "expected reward as a dataset float (N,), received a group" in refused(path, tmp_path)


# marks; the episodes as (first record, length); how many records belong to none
MARKS = {
    "varying lengths": ("0112 02 011112", [(0, 4), (4, 2), (6, 6)], 0),
    "begins and ends in an episode": ("1112 0112 01", [(4, 4)], 6),
    "an episode without a last record": ("0112 0111 0112", [(0, 4), (8, 4)], 4),
    "an episode without a first record": ("0112 1112 0112", [(0, 4), (8, 4)], 4),
    "two lasts and two firsts": ("01122 00112", [(0, 4), (6, 4)], 2),
}


@pytest.mark.parametrize("marks, expected, outside", MARKS.values(), ids=MARKS)
def test_H02_episodes_are_cut_at_their_marks_and_the_rest_is_counted(tmp_path, capsys, marks, expected, outside):
    step_type = np.array([int(mark) for mark in marks.replace(" ", "")], np.int64)
    content = columns(len(step_type))
    for start, _ in expected:
        content["action"][start], content["reward"][start] = 0, 0
    run(write_columns(tmp_path / "data.hdf5", content | {"step_type": step_type}), tmp_path / "out")
    found = episodes_of(tmp_path / "out")
    assert [len(item.reward) for item in found] == [length for _, length in expected]
    for item, (start, length) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(item.reward, content["reward"][start : start + length])
        np.testing.assert_array_equal(item.image, content["observation"][start : start + length].transpose(0, 2, 3, 1))
    assert read_card(tmp_path / "out")["records_left_out"] == outside
    assert (f"{outside} of {len(step_type)} records lie between no FIRST and LAST" in capsys.readouterr().out) == bool(
        outside
    )


def test_H02_a_file_without_a_whole_episode_or_with_unknown_marks_is_refused(tmp_path):
    content = columns(20)
    none = write_columns(tmp_path / "none.hdf5", content | {"step_type": np.ones(20)})
    with pytest.raises(DataError, match="expected step_type to mark episodes"):
        run(none, tmp_path / "out")
    for value in (3, -1, 0.5, np.nan):
        step_type = content["step_type"].copy()
        step_type[4] = value
        path = write_columns(tmp_path / f"{value}.hdf5", content | {"step_type": step_type})
        assert f"expected step_type 0 (first), 1 (middle) or 2 (last), received {value}" in refused(path, tmp_path)


def test_H02_an_episode_that_breaks_the_contract_is_named_by_its_number(tmp_path):
    content = columns(20, 7)
    content["reward"][23] = np.nan
    with pytest.raises(DataError, match="episode 1: reward is not finite at record 3"):
        run(write_columns(tmp_path / "data.hdf5", content), tmp_path / "out")


# --- H03, H04, H05: what is refused before reading --------------------------------------------------------------------


def replace(path: Path, name: str, make) -> Path:
    with h5py.File(path, "a") as file:
        del file[name]
        make(file)
    return path


def virtual(file):
    layout = h5py.VirtualLayout((20,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "reward", (20,))
    file.create_virtual_dataset("reward", layout)


def unknown_filter(file):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((20,))
    plist.set_filter(4242, h5py.h5z.FLAG_OPTIONAL)
    h5py.h5d.create(file.id, b"reward", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((20,)), plist)


FOREIGN = {
    "external link": (
        lambda file: file.__setitem__("reward", h5py.ExternalLink("/etc/passwd", "/reward")),
        "reward is a link to another place",
    ),
    "soft link": (
        lambda file: file.__setitem__("reward", h5py.SoftLink("/discount")),
        "reward is a link to another place",
    ),
    "link beside": (
        lambda file: (
            file.create_dataset("reward", data=np.zeros(20, "f4")),
            file.__setitem__("more", h5py.SoftLink("/")),
        ),
        "more is a link",
    ),
    "external storage": (
        lambda file: file.create_dataset("reward", (20,), "f4", external=[("/etc/passwd", 0, 80)]),
        "reward takes its data from other files, refused",
    ),
    "virtual": (virtual, "reward takes its data from other files, refused"),
    "unknown filter": (
        unknown_filter,
        "reward uses the filters {4242: ()}; expected only gzip, shuffle, fletcher32, lzf",
    ),
}


@pytest.mark.parametrize("make, message", FOREIGN.values(), ids=FOREIGN)
def test_H03_data_from_elsewhere_is_refused_before_any_read(tmp_path, make, message):
    path = replace(write_columns(tmp_path / "bad.hdf5", columns(20)), "reward", make)
    line = refused(path, tmp_path)
    assert message in line and "root:" not in line


def sparse(file):
    file.create_dataset("observation", (20, 3, 20000, 20000), "u1", chunks=(1, 3, 64, 64), compression="gzip")


def one_chunk_of_twenty(file):
    file.create_dataset("observation", (20, 3, 64, 64), "u1", chunks=(1, 3, 64, 64), compression="gzip")[3] = (
        RNG.integers(0, 255, (3, 64, 64))
    )


def huge_chunk(file):
    file.create_dataset("observation", (20, 3, 4096, 4096), "u1", chunks=(20, 3, 4096, 4096), compression="gzip")


BOMBS = {
    "22 GB in a few bytes": (sparse, "observation declares 24000000000 bytes and stores 0"),
    "missing pieces": (one_chunk_of_twenty, "observation stores 1 pieces where it says 20"),
    "a piece of a gigabyte": (huge_chunk, "is stored in pieces of (20, 3, 4096, 4096), more than 256 MB each"),
}


@pytest.mark.parametrize("make, message", BOMBS.values(), ids=BOMBS)
def test_H04_a_file_that_declares_more_than_it_stores_is_refused(tmp_path, make, message):
    path = replace(write_columns(tmp_path / "bad.hdf5", columns(20)), "observation", make)
    assert message in refused(path, tmp_path)


def test_H04_an_episode_beyond_the_memory_budget_is_refused(tmp_path):
    """300 MB of zeros in 0.3 MB: an honest ratio, every piece is there, and one episode."""
    records = 100
    content = {name: array[:records] for name, array in columns(records).items() if name != "observation"}
    path, black = write_columns(tmp_path / "bad.hdf5", content), zlib.compress(bytes(3 << 20), 9)
    with h5py.File(path, "a") as file:
        frames = file.create_dataset(
            "observation", (records, 3, 1024, 1024), "u1", chunks=(1, 3, 1024, 1024), compression="gzip"
        )
        for record in range(records):
            frames.id.write_direct_chunk((record, 0, 0, 0), black)
    assert "an episode of 100 records takes more than 256 MB" in refused(path, tmp_path)


NOT_HDF5 = {
    "empty": (b"", "expected an HDF5 file, received 0 bytes of something else"),
    "web page": (b"<!DOCTYPE html><html>Quota exceeded</html>", "this is a web page, not data; the download failed"),
    "archive": (
        b"PK\x03\x04" + b"x" * 100,
        "expected an HDF5 file, received 104 bytes of something else; fetch it again, extract archives yourself",
    ),
    "signature alone": (SIGNATURE, "bad.hdf5: damaged HDF5 file (Unable to"),
}


@pytest.mark.parametrize("content, message", NOT_HDF5.values(), ids=NOT_HDF5)
def test_H05_H08_what_is_no_hdf5_is_named_in_plain_words(tmp_path, content, message):
    path = tmp_path / "bad.hdf5"
    path.write_bytes(content)
    assert message in refused(path, tmp_path)


def test_H05_a_truncated_file_is_named(tmp_path):
    path = write_columns(tmp_path / "bad.hdf5", columns(20))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size - 7])
    assert f"truncated HDF5 file ({size - 7} bytes); fetch the file again" in refused(path, tmp_path)


def test_H05_a_file_that_another_process_writes_is_named(tmp_path):
    path = write_columns(tmp_path / "busy.hdf5", columns(20))
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert "another process holds the lock of this HDF5 file" in refused(path, tmp_path)


def test_H05_missing_files_pipes_and_links_are_named(tmp_path):
    assert "missing or not a regular file" in refused(tmp_path / "nowhere.hdf5", tmp_path)
    os.mkfifo(tmp_path / "pipe.hdf5")
    assert "missing or not a regular file" in refused(tmp_path / "pipe.hdf5", tmp_path)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "0.hdf5").symlink_to(write_columns(tmp_path / "data.hdf5", columns(20)))
    run(tmp_path / "links", tmp_path / "out")  # followed, as downloads of a hub are folders of links
    assert len(list((tmp_path / "out").glob("*.npz"))) == 1
    (tmp_path / "data.hdf5").unlink()
    line = refused(tmp_path / "links", tmp_path)
    assert "0.hdf5: is a link to no regular file; " in line and "copy datasets with cp -rL" in line


def test_I19_a_link_to_a_device_is_no_hdf5_file(tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "0.hdf5").symlink_to("/dev/zero")
    assert "0.hdf5: is a link to no regular file" in refused(tmp_path / "links", tmp_path)


# --- H06, H09: checksums, lists ---------------------------------------------------------------------------------------


def test_H06_every_flip_under_a_checksum_is_caught(tmp_path, rng):
    path = write_columns(tmp_path / "data.hdf5", columns(20))
    whole = path.read_bytes()
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(whole).hexdigest()} *./data.hdf5\n")
    for bit in rng.integers(8 * len(whole), size=100):
        mutated = bytearray(whole)
        mutated[bit // 8] ^= 1 << bit % 8
        path.write_bytes(mutated)
        line = refused(path, tmp_path)
        assert (
            "expected the SHA-256 in SHA256SUMS, received another" in line or bit < 64
        )  # the signature itself is looked at before
    path.write_bytes(whole)
    run(path, tmp_path / "out")


def test_H06_the_converter_leaves_the_checksum_of_what_it_writes(tmp_path, capsys):
    synthetic.dataset(tmp_path / "in", episodes=2, size=SIZE)
    run(tmp_path / "in", tmp_path / "a.hdf5")
    run(tmp_path / "in", tmp_path / "b.hdf5")
    listed = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert listed == [f"{sha256(tmp_path / name)}  {name}" for name in ("a.hdf5", "b.hdf5")]
    capsys.readouterr()
    run(tmp_path / "a.hdf5", tmp_path / "out")
    assert "1 files have the SHA-256 that is listed for them" in capsys.readouterr().out


def listed_dataset(tmp_path: Path) -> Path:
    directory = synthetic.dataset(tmp_path / "data", size=SIZE)
    rows = [
        {"file": path.name, "size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(directory.glob("*.npz"))
    ]
    (tmp_path / "card.json").write_text(json.dumps({"files": rows}))
    (tmp_path / "sums").write_text("".join(f"{row['sha256']}  {row['file']}\n" for row in rows))
    return directory


def table(printed: str) -> dict[str, list[int]]:
    rows = [line.split() for line in printed.splitlines() if line.split()[:1] and line.split()[0] in data.SUBJECTS]
    return {row[0]: [int(word) for word in row[1:]] for row in rows}


def test_H09_a_whole_download_gives_one_table(tmp_path, capsys):
    directory = listed_dataset(tmp_path)
    data.main(["check", str(directory), "--manifest", str(tmp_path / "card.json")])
    assert table(capsys.readouterr().out) == {
        "files": [4, 4, 0],
        "sizes": [4, 4, 0],
        "hashes": [4, 4, 0],
        "schema": [4, 4, 0],
    }
    data.main(["check", str(directory), "--manifest", str(tmp_path / "sums")])
    assert table(capsys.readouterr().out) == {
        "files": [4, 4, 0],
        "sizes": [0, 4, 0],
        "hashes": [4, 4, 0],
        "schema": [4, 4, 0],
    }
    data.main(["check", str(directory)])
    assert table(capsys.readouterr().out) == {
        "files": [4, 4, 0],
        "sizes": [0, 4, 0],
        "hashes": [0, 4, 0],
        "schema": [4, 4, 0],
    }


@pytest.mark.parametrize("manifest", ["card.json", "sums"])
def test_H09_an_incomplete_or_changed_download_is_told_file_by_file(tmp_path, capsys, manifest):
    directory = listed_dataset(tmp_path)
    first, second, third, fourth = sorted(directory.glob("*.npz"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    write_episode(third, synthetic.episode(9, size=SIZE))
    shutil.copy(fourth, directory / "stranger.npz")
    with pytest.raises(DataError, match=r"problems in 4 files, listed above"):
        data.main(["check", str(directory), "--manifest", str(tmp_path / manifest)])
    printed = capsys.readouterr().out
    assert f"{first.name}: listed in {manifest}, but not there" in printed
    assert "stranger.npz: in no list of the dataset's files" in printed
    found = table(printed)
    assert found["files"][2] == 2 and found["schema"][2] == 1
    assert found["sizes"][2] + found["hashes"][2] == 2


LISTS = {
    "no list": (b"hello\n", "line 1: expected `<64 hex digits>  <name>`, received 'hello'"),
    "broken card": (b"{", "expected a card with `files`"),
    "card of another form": (b'{"files": 3}', "expected a card with `files`"),
    "outside": (b"0" * 64 + b"  ../../etc/passwd\n", "expected names inside the dataset, received '../../etc/passwd'"),
    "bytes": (b"\xff\xfe\x00", "line 1: expected"),
    "deep": (b'{"files":' + b"[" * 100000, "expected a card with `files`"),
}


@pytest.mark.parametrize("content, message", LISTS.values(), ids=LISTS)
def test_H09_a_bad_list_is_named(tmp_path, content, message):
    directory = synthetic.dataset(tmp_path / "data", episodes=1, size=SIZE)
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(DataError) as caught:
        data.main(["check", str(directory), "--manifest", str(tmp_path / "list")])
    assert message in str(caught.value)
    with pytest.raises(DataError, match="No such file or directory; correct --manifest"):
        data.main(["check", str(directory), "--manifest", str(tmp_path / "nowhere")])
    (directory / "SHA256SUMS").symlink_to(tmp_path / "list")
    with pytest.raises(DataError) as caught:
        data.main(["check", str(directory)])
    assert "SHA256SUMS" in str(caught.value) and message in str(caught.value)
    (tmp_path / "list").unlink()
    os.mkfifo(tmp_path / "list")
    with pytest.raises(DataError, match=r"SHA256SUMS: expected a list of files .*, but not a regular file"):
        data.main(["check", str(directory)])


# --- H07: how the child may end ---------------------------------------------------------------------------------------

LIMITED = "import json, sys\nfrom multiprocessing.connection import Connection\nfrom semopo_tf.data import hdf5_child\n"
LIMITED += "pipe = Connection(int(sys.argv[1]))\n"
LIMITED += "request = json.loads(pipe.recv_bytes())\nhdf5_child.limit(request['memory'], request['seconds'])\n"
ENDS = {
    "abort": ("import os; os.abort()", "was ended by SIGABRT"),
    "segmentation fault": ("import os; os.kill(os.getpid(), 11)", "was ended by SIGSEGV"),
    "no word": ("pass", "gave an answer that is none"),
    "unknown error": ("raise LookupError('of the library')", "ended with status 1 (LookupError: of the library)"),
    "too much memory": ("x = bytearray(request['memory'])", "ended with status 1 (MemoryError)"),
    "endless work": ("while True: pass", "took more than 1 s of processor time"),
    "silence": ("import time; time.sleep(60)", "gave no answer for 2 s and was ended"),
    "nonsense": ("pipe.send_bytes(b'\\xff')", "gave an answer that is none"),
    "a bomb of words": ("pipe.send_bytes(b' ' * (1 << 20))", "gave an answer that is none"),
    "Python objects": (
        'pipe.send_bytes(b\'{"arrays": {"reward": ["O", [1]]}}\'); pipe.send_bytes(b"x" * 8)',
        "the process that reads it",
    ),
    "a full file system of messages": ("open('filled', 'wb').write(bytes(1 << 21))", "the process that reads it"),
}


@pytest.mark.parametrize("code, message", ENDS.values(), ids=ENDS)
def test_H07_a_child_that_fails_in_any_way_becomes_one_line(tmp_path, monkeypatch, code, message):
    path = write_columns(tmp_path / "data.hdf5", columns(20))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hdf5_process, "READER", [*PYTHON, LIMITED + code])
    monkeypatch.setattr(hdf5_process, "SECONDS", 1)
    monkeypatch.setattr(hdf5_process, "SILENCE", 2.0 if "no answer" in message else 60.0)  # a busy machine is slow
    monkeypatch.setattr(hdf5_process, "MEMORY", 1 << 29)
    assert message in refused(path, tmp_path)


def test_H07_the_real_child_works_within_its_limits_and_reports_when_they_are_too_small(tmp_path, monkeypatch):
    path = write_columns(tmp_path / "data.hdf5", columns(20))
    monkeypatch.setattr(hdf5_process, "MEMORY", 1 << 26)
    line = refused(path, tmp_path)
    assert "memory" in line or "the process that reads it" in line


def test_H07_the_command_exits_with_3_and_one_line(tmp_path):
    (tmp_path / "bad.hdf5").write_bytes(SIGNATURE + bytes(range(256)))
    command = [sys.executable, "-m", "semopo_tf.data", "convert", str(tmp_path / "bad.hdf5"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3
    assert done.stderr.startswith("semopo_tf: data error (exit 3): ") and done.stderr.count("\n") == 1


# --- fuzzing ----------------------------------------------------------------------------------------------------------

FUZZ = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from semopo_tf.data import hdf5_child, vd4rl
from semopo_tf.errors import DataError
hdf5_child.limit(1 << 31, 300)
for name in json.load(sys.stdin):
    print("begin", name, flush=True)
    start, arrays, line = time.monotonic(), {}, None
    try:
        for answer in vd4rl.answers([Path(name)], 0):
            for key, array in answer.get("arrays", {}).items():
                arrays.setdefault(key, []).append(array)
    except DataError as error:
        line = str(error)
    except MemoryError:
        line = f"{name}: memory"
    if line is None:
        np.savez(f"{name}.npz", **{key: np.concatenate(parts) for key, parts in arrays.items()})
    print("end", json.dumps([name, line, time.monotonic() - start]), flush=True)
"""


def read_all(paths: list[Path]) -> dict[str, tuple[str | None, float]]:
    """Line (None if read) and seconds of every file, all through as few children as their crashes allow."""
    found: dict[str, tuple[str | None, float]] = {}
    while waiting := [str(path) for path in paths if str(path) not in found]:
        child = subprocess.run(
            [*PYTHON, FUZZ], input=json.dumps(waiting), capture_output=True, text=True, check=False, timeout=120
        )
        lines = child.stdout.splitlines()
        for line in lines:
            if line.startswith("end "):
                name, message, seconds = json.loads(line[4:])
                found[name] = (message, seconds)
        if child.returncode:
            assert child.returncode < 0, (
                child.stderr
            )  # a traceback would be our own fault; a signal is what the real parent reports
            found[lines[-1].removeprefix("begin ")] = (
                f"{lines[-1].removeprefix('begin ')}: signal {-child.returncode}",
                0.0,
            )
    return found


def mutations(whole: bytes, count: int, rng: np.random.Generator) -> list[bytes]:
    """Files with single bits flipped, half of them in the structure at the front; every tenth file is truncated."""
    found = []
    for number in range(count):
        if number % 10 == 9:
            found.append(whole[: rng.integers(len(whole))])
            continue
        mutated = bytearray(whole)
        byte = int(rng.integers(len(whole) if number % 2 else 4096))
        mutated[byte] ^= 1 << int(rng.integers(8))
        found.append(bytes(mutated))
    return found


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.full)])
def test_H06_mutated_files_with_checksums_are_refused_or_read_unchanged(tmp_path, rng, count):
    """No traceback, no hang and no changed data: fletcher32 covers the stored data, the structural checks the rest."""
    synthetic.dataset(tmp_path / "in", episodes=2, records=9, size=SIZE)
    run(tmp_path / "in", tmp_path / "whole.hdf5")
    paths = [tmp_path / f"{number}.hdf5" for number in range(count)]
    whole = tmp_path / "whole.hdf5"
    for path, content in zip(paths, mutations(whole.read_bytes(), count, rng), strict=True):
        path.write_bytes(content)
    found = read_all([whole, *paths])
    assert found[str(whole)][0] is None
    with np.load(f"{whole}.npz") as file:
        expected = {key: file[key] for key in file.files}
    for name, (line, seconds) in found.items():
        assert seconds < 2
        if line is None:
            with np.load(f"{name}.npz") as file:
                assert sorted(file.files) == sorted(expected), name
                for key, array in expected.items():
                    np.testing.assert_array_equal(file[key], array, err_msg=name)
        else:
            assert line.startswith(name) and "\n" not in line and "Traceback" not in line
    refused_count = sum(line is not None for line, _ in found.values())
    assert refused_count >= count // 8


# --- D16: flags -------------------------------------------------------------------------------------------------------


def flags(**changes) -> dict[str, np.ndarray]:
    """Arrays of an episode of 20 records; each change lists the records at which the flag stands, or gives the
    discounts.
    """
    arrays = synthetic.episode(3, size=SIZE).arrays()
    for key, records in changes.items():
        arrays[key] = (
            np.isin(np.arange(20), records)
            if key != "discount"
            else np.where(np.isin(np.arange(20), records), 0, 1).astype(np.float32)
        )
    return arrays


# arrays; what the refusal says; which records end in is_terminal after the repair
WRONG_FLAGS = {
    "no first": (flags(is_first=[]), "expected is_first at record 0 alone, received it at records []", []),
    "several firsts": (
        flags(is_first=[0, 7]),
        "expected is_first at record 0 alone, received it at records [0, 7]",
        [],
    ),
    "first elsewhere": (flags(is_first=[4]), "expected is_first at record 0 alone, received it at records [4]", []),
    "no last": (flags(is_last=[]), "expected is_last at record 19 alone, received it at records []", []),
    "several lasts": (
        flags(is_last=[5, 19]),
        "expected is_last at record 19 alone, received it at records [5, 19]",
        [],
    ),
    "last before the end": (
        flags(is_last=[18]),
        "expected is_last at record 19 alone, received it at records [18]",
        [],
    ),
    "terminal without last": (flags(is_terminal=[19], is_last=[]), "expected is_last at record 19 alone", [19]),
    "terminal before the end": (
        flags(is_terminal=[6, 19], discount=[6, 19]),
        "expected is_terminal (or discount 0) at the last record 19 only",
        [19],
    ),
    "discount 0 before the end": (
        {key: array for key, array in flags(discount=[3]).items() if key != "is_terminal"},
        "expected is_terminal (or discount 0) at the last record 19 only, received it at record 3",
        [],
    ),
}


@pytest.mark.parametrize("arrays, message, terminal", WRONG_FLAGS.values(), ids=WRONG_FLAGS)
def test_D16_wrong_flags_are_refused_and_repaired_on_demand(tmp_path, capsys, arrays, message, terminal):
    synthetic.dataset(tmp_path / "in", episodes=1, size=SIZE)
    (tmp_path / "in" / "dataset.json").write_text(
        json.dumps({"task": "kept", "files": [{"file": "bad.npz", "seed": 3}]})
    )
    np.savez_compressed(tmp_path / "in" / "bad.npz", **arrays, log_x=np.arange(20))
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / "in")
    assert message in str(caught.value) and "data convert SRC DST --repair_flags" in str(caught.value)
    with pytest.raises(DataError, match=r"bad\.npz: expected is_"):
        run(tmp_path / "in", tmp_path / "out.hdf5")
    run(tmp_path / "in", tmp_path / "out", "--repair_flags")
    assert " in 1 episodes" in capsys.readouterr().out
    require_same(episodes_of(tmp_path / "out")[:1], [synthetic.episode(0, size=SIZE)])
    repaired, expected = read_episode(tmp_path / "out" / "bad.npz"), synthetic.episode(3, size=SIZE)
    for key in ("image", "action", "reward", "is_first", "is_last"):
        np.testing.assert_array_equal(getattr(repaired, key), getattr(expected, key))
    assert np.flatnonzero(repaired.is_terminal).tolist() == terminal
    card = read_card(tmp_path / "out")
    assert (card["task"], card["status"], card["converted"]["repair_flags"], card["files"][1]["seed"]) == (
        "kept",
        "complete",
        True,
        3,
    )
    data.main(["check", str(tmp_path / "out")])
    before = digests(tmp_path / "out")
    run(tmp_path / "in", tmp_path / "out", "--repair_flags")
    assert digests(tmp_path / "out") == before


def test_D16_two_episodes_in_one_file_are_never_glued(tmp_path):
    parts = [synthetic.episode(number, size=SIZE).arrays() for number in range(2)]
    (tmp_path / "in").mkdir()
    np.savez_compressed(
        tmp_path / "in" / "two.npz", **{key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    )
    with pytest.raises(
        DataError, match=r"two\.npz: a second episode begins at record 20; one file holds one episode, cut it there"
    ):
        run(tmp_path / "in", tmp_path / "out", "--repair_flags")


def test_D16_a_discount_of_zero_inside_an_hdf5_episode(tmp_path, capsys):
    content = columns(20, 7)
    content["discount"][[4, 26]] = 0
    path = write_columns(tmp_path / "data.hdf5", content)
    assert (
        "episode 0: expected is_terminal (or discount 0) at the last record 19 only, received it at record 4"
        in refused_at(tmp_path, path)
    )
    run(path, tmp_path / "out", "--repair_flags")
    assert "repaired 1 flags in 1 episodes" in capsys.readouterr().out
    found = episodes_of(tmp_path / "out")
    assert [np.flatnonzero(item.is_terminal).tolist() for item in found] == [[], [6]]
