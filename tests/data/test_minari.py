"""`data convert` from and to Minari's layout, written here by hand; `test_minari_library.py` has the package itself."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import synthetic
from PIL import Image
from recordings import box, minari_dataset, recording, require_meant

from semopo_tf.data import __main__ as data
from semopo_tf.data import hdf5_process, minari_hdf5
from semopo_tf.data.cards import read_card
from semopo_tf.data.episodes import episode_files, read_episode, write_episode
from semopo_tf.errors import ConfigError, DataError
from semopo_tf.storage.files import sha256
from semopo_tf.storage.resize import resize

THREE = (recording(0, 5), recording(1, 1, terminal=True), recording(2, 9, terminal=True))


def convert(*words: object) -> None:
    data.main(["convert", *map(str, words)])


def episodes_of(folder: Path):
    return [read_episode(path) for path in episode_files(folder)]


def converted(tmp_path: Path, *flags: object, **changes):
    convert(minari_dataset(tmp_path / "mine-v0", *THREE, **changes), tmp_path / "out", *flags)
    return episodes_of(tmp_path / "out")


def packed(image: np.ndarray, kind: str = "JPEG") -> np.ndarray:
    """The bytes of a picture as minari makes them."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def jpegs(images: np.ndarray) -> list[np.ndarray]:
    return [packed(image) for image in images]


def pictures(data: list[np.ndarray]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(item.tobytes()))) for item in data])


# --- from Minari ------------------------------------------------------------------------------------------------------


def test_every_episode_is_one_record_after_the_decisions(tmp_path, capsys):
    for episode, made in zip(converted(tmp_path), THREE, strict=True):
        require_meant(episode, made)
    card = read_card(tmp_path / "out")
    assert (card["status"], card["episodes"], card["records"], "jpeg" in card) == ("complete", 3, 18, False)
    assert [source["file"] for source in card["converted"]["sources"]] == ["main_data.hdf5", "metadata.json"]
    assert "JPEG" not in capsys.readouterr().out
    convert(tmp_path / "mine-v0" / "data", tmp_path / "same")  # the inner folder is as good
    assert [sha256(path) for path in episode_files(tmp_path / "same")] == [
        sha256(path) for path in episode_files(tmp_path / "out")
    ]


@pytest.mark.parametrize("padded", [False, True], ids=["lengths of their own", "one length"])
def test_jpeg_is_decoded_and_said(tmp_path, capsys, padded):
    """Minari stores a plain array where all JPEGs happen to be of one length."""

    def stored(images):
        found = jpegs(images)
        most = max(map(len, found))
        return np.stack([np.pad(item, (0, most - len(item))) for item in found]) if padded else found

    for episode, made in zip(converted(tmp_path, images=stored), THREE, strict=True):
        require_meant(episode, made._replace(images=pictures(jpegs(made.images))))
    assert "main_data.hdf5: the images are JPEG, so not exactly what was seen" in capsys.readouterr().out
    assert read_card(tmp_path / "out")["jpeg"] is True


def test_grey_jpeg_and_one_image_among_other_observations(tmp_path):
    space = {"type": "Dict", "subspaces": {"cam": box((32, 32), 0, 255, "uint8"), "pose": box((3,), -9, 9)}}
    found = converted(
        tmp_path, images=lambda i: {"cam": jpegs(i[..., 2]), "pose": np.zeros((len(i), 3))}, observation=space
    )
    for episode, made in zip(found, THREE, strict=True):
        np.testing.assert_array_equal(
            episode.image, np.repeat(pictures(jpegs(made.images[..., 2]))[..., None], 3, axis=3)
        )


def test_channels_first_and_images_of_another_size(tmp_path, capsys):
    first = (recording(0, 5, size=48),)
    folder = minari_dataset(
        tmp_path / "mine-v0",
        *first,
        images=lambda images: images.transpose(0, 3, 1, 2),
        observation=box((3, 48, 48), 0, 255, "uint8"),
    )
    convert(folder, tmp_path / "kept")
    require_meant(episodes_of(tmp_path / "kept")[0], first[0])
    convert(folder, tmp_path / "small", "--size", 16)
    np.testing.assert_array_equal(episodes_of(tmp_path / "small")[0].image, resize(first[0].images, 16))
    assert "images of 48 x 48 pixels are now 16 x 16" in capsys.readouterr().out


def test_large_images_are_made_small_a_block_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(minari_hdf5, "BLOCK_BYTES", 3 * 32 * 32 * 3)
    monkeypatch.setattr(minari_hdf5, "EPISODE_BYTES", 10 * 16 * 16 * 3)
    folder = minari_dataset(tmp_path / "mine-v0", recording(2, 9))
    paths, shapes = [folder / "data" / "main_data.hdf5"], ("", [32, 32, 3], [2])
    _, answer = minari_hdf5.answers(paths, 0, *shapes, 16)
    np.testing.assert_array_equal(answer["arrays"]["image"], resize(recording(2, 9).images, 16))
    with pytest.raises(
        DataError, match=r"10 images of \[32, 32, 3\] take more than 0 MB; make them smaller with --size"
    ):
        list(minari_hdf5.answers(paths, 0, *shapes, 0))


def test_actions_of_any_box_are_scaled_and_of_a_choice_become_numbers(tmp_path):
    wide = THREE[0]._replace(actions=np.array([[[0], [4]]] * 5, np.float64))  # of shape (2, 1)
    space = box((2, 1), 0.0, 4.0, "float64")
    convert(minari_dataset(tmp_path / "box-v0", wide, action=space), tmp_path / "box")
    assert episodes_of(tmp_path / "box")[0].action[1:].tolist() == [[-1, 1]] * 5
    chosen = THREE[0]._replace(actions=np.array([2, 1, 3, 1, 1]))
    space = {"type": "Discrete", "dtype": "int64", "start": 1, "n": 3}
    convert(minari_dataset(tmp_path / "choice-v0", chosen, action=space), tmp_path / "choice")
    np.testing.assert_array_equal(episodes_of(tmp_path / "choice")[0].action[1:], np.eye(3)[[1, 0, 2, 0, 0]])


def test_a_conversion_is_verified_interrupted_and_continued(tmp_path, capsys):
    whole = converted(tmp_path)
    folder = tmp_path / "mine-v0" / "data"
    (folder / "SHA256SUMS").write_text(f"{sha256(folder / 'main_data.hdf5')}  main_data.hdf5\n")
    before = [path.read_bytes() for path in episode_files(tmp_path / "out")]
    for path in episode_files(tmp_path / "out")[1:]:
        path.unlink()
    convert(tmp_path / "mine-v0", tmp_path / "out")
    assert "1 episodes are there, going on" in capsys.readouterr().out
    assert [path.read_bytes() for path in episode_files(tmp_path / "out")] == before and len(whole) == 3
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  main_data.hdf5\n")
    with pytest.raises(DataError, match=r"main_data\.hdf5: expected the SHA-256 in SHA256SUMS, received another"):
        convert(tmp_path / "mine-v0", tmp_path / "new")


def test_links_of_a_hub_are_followed(tmp_path):
    folder = minari_dataset(tmp_path / "mine-v0", *THREE)
    (tmp_path / "links" / "data").mkdir(parents=True)
    for path in (folder / "data").iterdir():
        (tmp_path / "links" / "data" / path.name).symlink_to(path)
    convert(tmp_path / "links", tmp_path / "out")
    require_meant(episodes_of(tmp_path / "out")[0], THREE[0])


# --- what is refused of it --------------------------------------------------------------------------------------------


def refused(folder: Path, out: Path) -> str:
    with pytest.raises(DataError) as caught:
        convert(folder, out)
    line = str(caught.value)
    assert str(folder) in line and "\n" not in line and len(line.replace(str(folder), "")) <= 400
    assert not list(out.glob("*.npz"))
    return line


IMAGE, FRONT = box((32, 32, 3), 0, 255, "uint8"), box((4, 32, 32, 3), 0, 255, "uint8")
SPACES = {
    "no image": (
        {"observation": box((17,), -1, 1)},
        "expected one image of uint8 among the observations, received none",
    ),
    "images of floats": ({"observation": box((32, 32, 3), 0, 1)}, "received none in 'Box'; record one with gymnasium"),
    "a stack": ({"observation": FRONT}, "received none in 'Box'"),
    "two images": (
        {"observation": {"type": "Dict", "subspaces": {"left": IMAGE, "right": IMAGE}}},
        "received left, right; record one with gymnasium.wrappers.AddRenderObservation, or write the episodes with",
    ),
    "a tuple": ({"observation": {"type": "Tuple", "subspaces": [IMAGE]}}, "received none in 'Tuple'"),
    "members of nothing": ({"observation": {"type": "Dict", "subspaces": 3}}, "received none in 'Dict'"),
    "many choices": ({"action": {"type": "MultiDiscrete", "nvec": [2, 2]}}, "expected actions of a whole Box or Disc"),
    "a box without shape": ({"action": {"type": "Box"}}, "expected actions of a whole Box or Disc"),
    "a choice far away": ({"action": {"type": "Discrete", "n": 2, "start": 10**30}}, "of a whole Box or Discrete"),
    "no bounds": (
        {"action": box((2,), -np.inf, np.inf)},
        "episode_0: expected bounds of the actions, received [-inf, -i",
    ),
    "bounds of text": (
        {"action": box((2,), 0, 1) | {"low": ["a", "b"]}},
        "expected numbers as low of the action space",
    ),
    "bounds of another size": ({"action": box((2,), 0, 1) | {"low": [0, 0, 0]}}, "expected actions [N, A] and their"),
    "a choice of floats": ({"action": {"type": "Discrete", "n": 2}}, "expected episode_0/actions as number [T]"),
    "arrow": (
        {"data_format": "arrow"},
        "metadata.json: expected data_format hdf5, received 'arrow'; write the dataset",
    ),
    "a list": (
        {"observation_space": "[]"},
        "metadata.json: expected observation_space as a JSON object, received list",
    ),
    "no JSON": ({"observation_space": "{"}, "metadata.json: expected observation_space as JSON ("),
    "deep": (
        {"observation_space": "[" * 100_000},
        "metadata.json: expected observation_space as JSON (nested too deep",
    ),
    "other images": (
        {"observation": box((16, 32, 3), 0, 255, "uint8")},
        "episode_0/observations as uint8 [T + 1, 16",
    ),
    "other actions": (
        {"action": box((3,), -1, 1)},
        "expected episode_0/actions as number [T, 3], little-endian, rec",
    ),
}


@pytest.mark.parametrize("changes, message", SPACES.values(), ids=SPACES)
def test_spaces_that_no_episode_can_be_made_of_are_named(tmp_path, changes, message):
    assert message in refused(minari_dataset(tmp_path / "mine-v0", *THREE, **changes), tmp_path / "out")


def test_missing_spaces_and_files_that_are_none_are_named(tmp_path):
    folder = minari_dataset(tmp_path / "mine-v0", *THREE)
    (folder / "data" / "metadata.json").write_text('{"data_format": "hdf5"}')
    assert "missing observation_space, action_space; write the dataset again" in refused(folder, tmp_path / "out")
    (folder / "data" / "metadata.json").write_bytes(b"<html>")
    assert "metadata.json: expected a JSON object" in refused(folder, tmp_path / "out")
    with pytest.raises(
        DataError, match="received episode_0, episode_1, episode_2; of a Minari dataset give the folder"
    ):
        convert(folder / "data" / "main_data.hdf5", tmp_path / "out")
    (folder / "data" / "main_data.hdf5").write_bytes(b"<html>")
    assert "main_data.hdf5: this is a web page, not data" in refused(folder, tmp_path / "out")


def edit(name, make):
    """A change of one dataset of episode_1, which has one step."""

    def change(file):
        del file["episode_1"][name]
        make(file["episode_1"])

    return change


def flagged(file):
    file["episode_2/terminations"][3] = True


def bombed(group):
    group.create_dataset("observations", (2, 20000, 20000, 3), "u1", chunks=(1, 64, 64, 3), compression="gzip")


FILES = {
    "an episode missing": (
        lambda f: f.move("episode_1", "episode_7"),
        "groups episode_0 to episode_2, missing episode_1",
    ),
    "no episodes": (lambda f: [f.pop(name) for name in list(f)], "expected the groups episode_0 to episode_0, missing"),
    "a dataset for an episode": (lambda f: [f.pop("episode_1"), f.create_dataset("episode_1", data=1)], "in episode_1"),
    "rewards missing": (
        edit("rewards", lambda g: None),
        "expected rewards in episode_1, received actions, observations",
    ),
    "text": (
        edit("rewards", lambda g: g.create_dataset("rewards", data=[b"x"])),
        "episode_1/rewards as number or truth",
    ),
    "objects": (
        edit("rewards", lambda g: g.create_dataset("rewards", data=["x"], dtype=h5py.string_dtype())),
        "expected episode_1/rewards as number or truth value [T]",
    ),
    "two rewards a step": (edit("rewards", lambda g: g.create_dataset("rewards", data=np.zeros(2))), "'rewards': 2"),
    "the last image missing": (
        edit("observations", lambda g: g.create_dataset("observations", data=THREE[1].images[1:])),
        "expected episode_1 to have one observation more than steps, and all else of one length, received {'acti",
    ),
    "an end before the end": (
        flagged,
        "episode_2: expected terminations at the last step 8 alone, received one at step 3",
    ),
    "elsewhere": (
        edit("actions", lambda g: g.__setitem__("actions", h5py.ExternalLink("/etc/passwd", "/x"))),
        "episode_1/actions is a link to another place, refused",
    ),
    "elsewhere in the file": (
        edit("actions", lambda g: g.__setitem__("actions", h5py.SoftLink("/episode_0/actions"))),
        "episode_1/actions is a link to another place, refused",
    ),
    "storage elsewhere": (
        edit("rewards", lambda g: g.create_dataset("rewards", (1,), "f8", external=[("/etc/passwd", 0, 8)])),
        "episode_1/rewards takes its data from other files, refused",
    ),
    "more declared than stored": (
        edit("observations", bombed),
        "expected episode_1/observations as uint8 [T + 1, 32",
    ),
    "one array twice": (
        edit("observations", lambda g: g.__setitem__("observations", g.file["episode_0/observations"])),
        "expected episode_1 to have one observation more",
    ),
    "the same storage twice": (
        lambda f: [f.pop("episode_1"), f.__setitem__("episode_1", f["episode_0"])],
        "stored pieces overlap or lie outside it",
    ),
}


@pytest.mark.parametrize("change, message", FILES.values(), ids=FILES)
def test_episodes_that_are_not_whole_are_named_before_any_is_read(tmp_path, change, message):
    folder = minari_dataset(tmp_path / "mine-v0", *THREE)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        change(file)
    if "expected terminations" in message:  # found while it is read
        with pytest.raises(DataError) as caught:
            convert(folder, tmp_path / "out")
        assert message in str(caught.value)
    else:
        assert message in refused(folder, tmp_path / "out")


JPEG = jpegs(THREE[0].images[:1])[0]
HUGE = JPEG.tobytes().replace(b"\x00\x20\x00\x20\x03", b"\xfd\xe8\xfd\xe8\x03")  # 65 000 x 65 000 in its header
OTHER, GREY = jpegs(np.zeros((1, 32, 40, 3), np.uint8))[0], jpegs(np.zeros((1, 32, 32), np.uint8))[0]
WRONG_JPEG = {
    "no picture": (np.arange(200, dtype=np.uint8), "record 0: damaged JPEG (no JPEG at all); fetch the file again"),
    "cut off": (JPEG[: len(JPEG) // 2], "record 0: damaged JPEG ("),
    "nothing": (JPEG[:0], "record 0: damaged JPEG ("),
    "another size": (OTHER, "record 0: expected a JPEG of shape [32, 32, 3], received [32, 40, 3]"),
    "grey": (GREY, "record 0: expected a JPEG of shape [32, 32, 3], received [32, 32, 1]"),
    "4 gigapixels": (np.frombuffer(HUGE, np.uint8), "record 0: damaged JPEG (Image size (4225000000 pixels) exceeds"),
    "a PNG": (packed(THREE[0].images[0], "PNG"), "record 0: damaged JPEG (no JPEG at all)"),
}


@pytest.mark.parametrize("content, message", WRONG_JPEG.values(), ids=WRONG_JPEG)
def test_bytes_that_are_no_such_picture_are_named(tmp_path, content, message):
    folder = minari_dataset(tmp_path / "mine-v0", THREE[0], images=lambda images: [content, *jpegs(images[1:])])
    assert f"episode_0/observations: {message}" in refused(folder, tmp_path / "out")


def test_a_file_that_the_library_reads_for_ever_is_ended(tmp_path, monkeypatch):
    """In its heap, where HDF5 1.14 keeps what has a length of its own, an object of no size follows itself."""
    folder = minari_dataset(tmp_path / "mine-v0", *THREE, images=jpegs)
    path = folder / "data" / "main_data.hdf5"
    content = bytearray(path.read_bytes())
    first = content.index(b"GCOL") + 16
    content[first : first + 16] = bytes(16)
    path.write_bytes(content)
    monkeypatch.setattr(hdf5_process, "SECONDS", 1)
    assert "main_data.hdf5: the process that reads it took more than 1 s of processor time" in refused(
        folder, tmp_path / "out"
    )


def test_the_command_exits_with_3_and_one_line(tmp_path):
    folder = minari_dataset(tmp_path / "mine-v0", *THREE, images=lambda images: [JPEG[:9]] * len(images))
    command = [sys.executable, "-m", "semopo_tf.data", "convert", str(folder), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3
    assert done.stderr.startswith("semopo_tf: data error (exit 3): ") and done.stderr.count("\n") == 1


# --- to Minari --------------------------------------------------------------------------------------------------------


def ours(folder: Path, *made, reward="f4") -> list:
    """Episodes of ours in a folder."""
    items = [synthetic.episode(number, records, 32) for number, records in enumerate(made)]
    ended = np.arange(made[-1]) == made[-1] - 1
    items[-1] = items[-1]._replace(is_terminal=ended, discount=1 - ended.astype(np.float32))
    items = [item._replace(reward=item.reward.astype(reward)) for item in items]
    folder.mkdir()
    for number, item in enumerate(items):
        write_episode(folder / f"{number}.npz", item)
    return items


@pytest.mark.parametrize("reward", ["f2", "f4", "f8"])
def test_a_round_trip_is_exact_and_the_same_episodes_give_the_same_bytes(tmp_path, capsys, reward):
    items = ours(tmp_path / "in", 7, 2, 20, reward=reward)
    convert(tmp_path / "in", tmp_path / "a-v0", "--to", "minari")
    assert "3 episodes for minari.load_dataset('a-v0')" in capsys.readouterr().out
    convert(tmp_path / "a-v0", tmp_path / "out")
    assert "2 files have the SHA-256 that is listed for them" in capsys.readouterr().out
    for found, item in zip(episodes_of(tmp_path / "out"), items, strict=True):
        for name, array in item.arrays().items():
            np.testing.assert_array_equal(found.arrays()[name], array)
            assert found.arrays()[name].dtype == array.dtype
    (tmp_path / "b").mkdir()
    convert(tmp_path / "out", tmp_path / "b" / "a-v0", "--to", "minari")
    for name in ("main_data.hdf5", "metadata.json", "SHA256SUMS"):
        assert sha256(tmp_path / "a-v0" / "data" / name) == sha256(tmp_path / "b" / "a-v0" / "data" / name)


def test_what_lies_in_the_file_is_minaris_layout(tmp_path):
    (item,) = ours(tmp_path / "in", 20)
    convert(tmp_path / "in", tmp_path / "a-v0", "--to", "minari")
    with h5py.File(tmp_path / "a-v0" / "data" / "main_data.hdf5") as file:
        group = file["episode_0"]
        assert dict(group.attrs) == {"id": 0, "total_steps": 19} and len(group["infos"]) == 0
        np.testing.assert_array_equal(group["observations"][:], item.image)
        np.testing.assert_array_equal(group["actions"][:], item.action[1:])
        np.testing.assert_array_equal(group["rewards"][:], item.reward[1:])
        assert group["terminations"][:].tolist() == [False] * 18 + [True] and not group["truncations"][:].any()
    metadata = json.loads((tmp_path / "a-v0" / "data" / "metadata.json").read_text())
    assert (metadata["total_episodes"], metadata["total_steps"], metadata["jpeg_encoding"]) == (1, 19, False)
    assert json.loads(metadata["action_space"]) == box((2,), -1.0, 1.0)
    assert json.loads(metadata["observation_space"]) == box((32, 32, 3), 0, 255, "uint8")


def test_changes_on_the_way_and_targets_that_do_not_fit(tmp_path):
    ours(tmp_path / "in", 7, 20)
    convert(tmp_path / "in", tmp_path / "a-v0", "--to", "minari", "--size", 16, "--min_length", 8)
    convert(tmp_path / "a-v0", tmp_path / "out")
    assert [episode.image.shape for episode in episodes_of(tmp_path / "out")] == [(20, 16, 16, 3)]
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for name, message in (
        ("walker", "expected a name for minari.load_dataset, such as walker-v0, received 'walker'"),
        ("a-v0", "exists already; choose another DST or remove it"),
    ):
        with pytest.raises(ConfigError) as caught:
            convert(tmp_path / "in", tmp_path / name, "--to", "minari")
        assert message in str(caught.value)
    with pytest.raises(ConfigError, match="make episodes first, then convert those"):
        convert(tmp_path / "a-v0", tmp_path / "b-v0", "--to", "minari")
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_what_minari_cannot_give_back_is_refused_and_nothing_is_left(tmp_path):
    (item,) = ours(tmp_path / "in", 7)
    write_episode(tmp_path / "in" / "1.npz", item._replace(discount=item.discount * np.float32(0.5)))
    for name in (["a-v0", "--to", "minari"],):
        with pytest.raises(
            DataError, match=r"1\.npz: expected discount 0 where is_terminal and 1 elsewhere, as Minari"
        ):
            convert(tmp_path / "in", tmp_path / name[0], *name[1:])
    shutil.copy(tmp_path / "in" / "0.npz", tmp_path / "in" / "1.npz")
    write_episode(tmp_path / "in" / "2.npz", synthetic.episode(0, 7, 16))
    with pytest.raises(DataError, match=r"2\.npz: expected types and shapes as in 0\.npz"):
        convert(tmp_path / "in", tmp_path / "a-v0", "--to", "minari")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# --- fuzzing ----------------------------------------------------------------------------------------------------------

FUZZ = """
import json, resource, sys, time
from pathlib import Path
from semopo_tf.data import hdf5_child, minari_hdf5
from semopo_tf.errors import DataError
hdf5_child.limit(1 << 31, 300)
for name in json.load(sys.stdin):
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 3, 301))
    print("begin", name, flush=True)
    line = None
    try:
        for answer in minari_hdf5.answers([Path(name)], 0, "", [32, 32, 3], [2], 0):
            pass
    except DataError as error:
        line = str(error)
    except MemoryError:
        line = f"{name}: memory"
    print("end", json.dumps([name, line]), flush=True)
"""


@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.full)])
@pytest.mark.parametrize("images", [None, jpegs], ids=["arrays", "JPEG"])
def test_mutated_files_are_read_or_refused_in_one_line(tmp_path, rng, count, images):
    """No traceback; where the library crashes or never ends, the parent reports a signal."""
    folder = minari_dataset(tmp_path / "mine-v0", *THREE, images=images)
    whole = (folder / "data" / "main_data.hdf5").read_bytes()
    names = [str(tmp_path / f"{number}.hdf5") for number in range(count)]
    for number, name in enumerate(names):
        mutated = bytearray(whole)
        for _ in range(3):
            mutated[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        Path(name).write_bytes(mutated[: int(rng.integers(len(whole)))] if number % 10 == 9 else mutated)
    found: dict[str, str | None] = {}
    while waiting := [name for name in names if name not in found]:
        child = subprocess.run(
            [sys.executable, "-c", FUZZ],
            input=json.dumps(waiting),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        lines = child.stdout.splitlines()
        found |= dict(json.loads(line[4:]) for line in lines if line.startswith("end "))
        if child.returncode:
            assert child.returncode < 0, child.stderr
            found[lines[-1].removeprefix("begin ")] = f"{lines[-1].removeprefix('begin ')}: signal"
    refusals = [(name, line) for name, line in found.items() if line is not None]
    assert len(found) == count and refusals
    assert all(line.startswith(name) and "\n" not in line for name, line in refusals)
