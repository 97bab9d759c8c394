import multiprocessing
import resource
import time
import tracemalloc
import wave

import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np
import pytest
from clips import write_grey, write_video

from semopo_tf.envs import videos
from semopo_tf.envs.driving import driving_clip
from semopo_tf.envs.videos import (
    DRIVING_CLIPS,
    blue_mask,
    clips_of_split,
    composite,
    decode,
    load_background,
    luma,
    resize_bilinear,
)
from semopo_tf.errors import ConfigError, DataError
from semopo_tf.storage import video
from semopo_tf.storage.video import read_frames

RNG_SEED = 0


def load(folder, **changes):
    return load_background(
        str(folder), **({"size": 8, "color": "grey", "split": "train", "seed": 0, "frames": 30} | changes)
    )


def slow_resize(image, size):
    """The definition, one output value at a time."""
    height, width, channels = image.shape
    result = np.empty((size, size, channels), np.uint8)
    for row, column, channel in np.ndindex(size, size, channels):
        y = min(max((row + 0.5) * height / size - 0.5, 0), height - 1)
        x = min(max((column + 0.5) * width / size - 0.5, 0), width - 1)
        top, left = int(y), int(x)
        below, right = min(top + 1, height - 1), min(left + 1, width - 1)
        upper = image[top, left, channel] * (1 - (x - left)) + image[top, right, channel] * (x - left)
        lower = image[below, left, channel] * (1 - (x - left)) + image[below, right, channel] * (x - left)
        result[row, column, channel] = int(upper * (1 - (y - top)) + lower * (y - top) + 0.5)
    return result


@pytest.mark.parametrize("shape", [(13, 29, 3), (5, 4, 1), (8, 8, 3), (1, 1, 1), (40, 7, 1)])
def test_resize_follows_its_definition(shape):
    image = np.random.default_rng(RNG_SEED).integers(0, 256, shape).astype(np.uint8)
    assert np.abs(resize_bilinear(image, 8).astype(int) - slow_resize(image, 8)).max() <= (0 if shape[0] == 8 else 1)
    assert (
        np.mean(resize_bilinear(image, 8) != slow_resize(image, 8)) < 0.01
    )  # sums in another order may round a tie the other way


def test_resize_does_not_average_when_it_shrinks():
    # Half-pixel centres: output 0 of 4 -> 2 lies between inputs 0 and 1, output 0 of 6 -> 2 is input 1 alone.
    assert resize_bilinear(np.array([[[0], [100], [7], [8]]] * 4, np.uint8), 2)[0, :, 0].tolist() == [50, 8]
    assert resize_bilinear(np.array([[[0], [100], [200], [9], [60], [9]]] * 6, np.uint8), 2)[0, :, 0].tolist() == [
        100,
        60,
    ]


def test_grey_frames_are_the_stored_luma(tmp_path):
    frames = np.random.default_rng(RNG_SEED).integers(0, 256, (5, 12, 20)).astype(np.uint8)
    write_video(tmp_path / "a.mkv", frames, pixels_in="gray", pixels_out="gray")
    decoded = np.stack(list(decode(tmp_path / "a.mkv", size=8, color="grey")))
    np.testing.assert_array_equal(decoded, resize_bilinear(frames[..., None], 8))
    assert decoded.shape == (5, 8, 8, 1)


def test_rgb_frames_are_the_stored_colours(tmp_path):
    frames = np.random.default_rng(RNG_SEED).integers(0, 256, (3, 12, 20, 3)).astype(np.uint8)
    write_video(tmp_path / "a.mkv", frames)
    np.testing.assert_array_equal(
        np.stack(list(decode(tmp_path / "a.mkv", size=8, color="rgb"))), resize_bilinear(frames, 8)
    )


def test_grey_of_an_ordinary_colour_video_is_its_brightness(tmp_path):
    colours = np.array([[200, 30, 60], [20, 180, 90], [40, 50, 220]], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (3, 32, 32, 3))
    write_video(tmp_path / "a.mp4", frames, codec="libx264", pixels_out="yuv420p")
    grey = np.stack(list(decode(tmp_path / "a.mp4", size=8, color="grey")))[:, 4, 4, 0]
    np.testing.assert_allclose(grey, luma(colours)[:, 0], atol=4)


def test_clips_follow_one_another_and_repeat(tmp_path):
    for index, name in enumerate(("a.mkv", "b.mkv", "c.mkv", "d.mkv", "e.mkv")):
        write_grey(tmp_path / name, range(40 * index, 40 * index + 4))
    background = load(tmp_path, frames=40)
    once = np.concatenate(
        [np.arange(40 * "abcde".index(name[0]), 40 * "abcde".index(name[0]) + 4) for name in background.clips]
    )
    assert sorted(background.clips) == ["a.mkv", "b.mkv", "c.mkv", "e.mkv"]
    np.testing.assert_array_equal(background.frames[:, 0, 0, 0], np.resize(once, 40))
    assert background.frames.shape == (40, 8, 8, 1)
    assert background.frames.dtype == np.uint8
    assert load(tmp_path, frames=5).clips == background.clips[:2]
    assert [background.clip(frame)[0] for frame in range(40)] == [
        "abcde"[value // 40] for value in background.frames[:, 0, 0, 0]
    ]


def test_an_episode_begins_at_a_frame_of_its_seed(tmp_path):
    write_grey(tmp_path / "a.mkv", range(30))
    background = load(tmp_path, frames=30)
    first = [background.first_frame(seed) for seed in range(200)]
    assert first == [background.first_frame(seed) for seed in range(200)]
    assert min(first) == 0 and max(first) == 29


def test_V04_seed_orders_the_clips(tmp_path):
    for index in range(7):
        write_grey(tmp_path / f"{index}.mkv", [30 * index] * 2)
    first = load(tmp_path)
    np.testing.assert_array_equal(first.frames, load(tmp_path).frames)
    assert len({tuple(load(tmp_path, seed=seed).clips) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("names", "test"), [("ab", "b"), ("abc", "c"), ("abcd", "d"), ("abcdefgh", "dh"), ("abcdefghi", "dh")]
)
def test_V04_train_and_test_share_no_clip(tmp_path, names, test):
    for name in names:
        (tmp_path / f"{name}.mp4").touch()
    parts = {split: [path.stem for path in clips_of_split(tmp_path, split)] for split in ("train", "test")}
    assert parts == {"train": [name for name in names if name not in test], "test": list(test)}


def test_V04_only_visible_regular_videos_count(tmp_path):
    write_grey(tmp_path / "good.mkv", [9])
    (tmp_path / ".hidden.mp4").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "good.mkv")
    assert load(tmp_path).clips == ["good.mkv"]
    assert load(tmp_path).skipped == [("link.mp4", "a link to the file of good.mkv")]
    with pytest.raises(DataError, match="at least 2 videos for the test split, received 1"):
        load(tmp_path, split="test")


def test_I19_links_to_videos_are_followed_and_those_that_lead_nowhere_are_counted(tmp_path):
    """What the download of a hub leaves: links into a store of blobs, equal files once."""
    blobs, folder = tmp_path / "blobs", tmp_path / "videos"
    blobs.mkdir()
    folder.mkdir()
    for value in (9, 8):
        write_grey(blobs / f"{value}.mkv", [value])
    for name, target in {"a.mkv": "9.mkv", "b.mkv": "8.mkv", "c.mkv": "9.mkv", "d.mkv": "none.mkv"}.items():
        (folder / name).symlink_to(f"../blobs/{target}")
    (folder / "e.mkv").symlink_to("/dev/zero")
    (folder / "f.mkv").symlink_to(blobs)
    nowhere = "a link to no regular file; copy folders with cp -rL, which follows links"
    lost = [("c.mkv", "a link to the file of a.mkv"), *((f"{name}.mkv", nowhere) for name in "def")]
    assert load(folder).clips == ["a.mkv"] and load(folder, split="test").clips == ["b.mkv"]
    assert load(folder).skipped == lost
    for blob in blobs.iterdir():
        blob.unlink()
    with pytest.raises(DataError, match=r"expected videos .*, received 6 other entries \(a.mkv: a link to no regular"):
        load(folder)


def spoil(folder):
    """Four files that are named like videos but are not videos."""
    (folder / "text.mp4").write_text("not a video")
    (folder / "empty.mp4").touch()
    with wave.open(str(folder / "sound.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    write_video(folder / "whole.mp4", np.zeros((3, 32, 32, 3), np.uint8), codec="libx264", pixels_out="yuv420p")
    (folder / "cut.mp4").write_bytes((folder / "whole.mp4").read_bytes()[:300])
    (folder / "whole.mp4").unlink()


def test_V02_broken_videos_are_skipped_by_name(tmp_path):
    spoil(tmp_path)
    with pytest.raises(
        DataError, match=r"none of 3 videos can be decoded \(.*mp4: .*\); replace them or use builtin:driving"
    ):
        load(tmp_path)
    write_grey(tmp_path / "a.mkv", [50, 51])
    write_grey(tmp_path / "b.mkv", [60, 61])
    background = load(tmp_path)
    assert set(background.clips) <= {"a.mkv", "b.mkv"}
    assert all(reason and "\n" not in reason for _, reason in background.skipped)
    assert {name for name, _ in background.skipped} <= {"text.mp4", "empty.mp4", "sound.mp4", "cut.mp4"}
    assert background.skipped


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", r"expected a folder of videos \(No such file or directory\)"),
        (lambda folder: folder, r"expected videos \(.*\.mp4.*\), received 0 other entries"),
        (
            lambda folder: [(folder / f"{n}.txt").touch() for n in range(3)] and folder,
            r"expected videos \(.*\), received 3 other entries",
        ),
        (
            lambda folder: (folder / "file").touch() or folder / "file",
            r"expected a folder of videos \(Not a directory\)",
        ),
    ],
)
def test_V01_missing_and_empty_folders(tmp_path, make, message):
    with pytest.raises(DataError, match=message):
        load(make(tmp_path))


def test_V02_clips_of_one_frame_or_one_pixel_or_none_end(tmp_path):
    write_grey(tmp_path / "one.mkv", [7])
    assert load(tmp_path).frames[:, 0, 0, 0].tolist() == [7] * 30
    write_grey(tmp_path / "one.mkv", [9, 9], shape=(1, 1))
    assert load(tmp_path).frames[:, 0, 0, 0].tolist() == [9] * 30
    whole = (tmp_path / "one.mkv").read_bytes()
    (tmp_path / "one.mkv").write_bytes(whole[: whole.index(b"\x1f\x43\xb6\x75")])  # up to the first cluster of frames
    started = time.monotonic()
    with pytest.raises(DataError, match="none of 1 videos can be decoded"):
        load(tmp_path)
    assert time.monotonic() - started < 10


def test_V02_playlists_and_pictures_open_no_other_file(tmp_path):
    """A file that a playlist names must not be opened, wherever it is."""
    secret, folder = tmp_path / "secret.mkv", tmp_path / "videos"
    folder.mkdir()
    write_grey(secret, [42, 42])
    (folder / "secret.bin").write_bytes(secret.read_bytes())
    lists = {
        "concat": f"ffconcat version 1.0\nfile '{secret}'\n",
        "beside": "ffconcat version 1.0\nfile secret.bin\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "address": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    }
    for name, text in lists.items():
        (folder / f"{name}.mp4").write_text(text)
        with pytest.raises(DataError, match=r"Invalid data|moov atom|not a video|whitelist"):
            list(decode(folder / f"{name}.mp4", size=8, color="grey"))
    with pytest.raises(DataError, match="none of 3 videos can be decoded"):
        load(folder)


def test_V02_a_decoder_without_end_or_with_too_much_memory_is_stopped(tmp_path, monkeypatch):
    write_grey(tmp_path / "a.mkv", [1, 2])
    monkeypatch.setitem(video.DECODER_LIMITS, resource.RLIMIT_AS, 1 << 24)
    with pytest.raises(DataError, match="none of 1 videos can be decoded"):
        load(tmp_path)
    monkeypatch.undo()
    slow = tmp_path / "decoder"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(slow))
    monkeypatch.setattr(video, "FRAME_SECONDS", 0.2)
    with pytest.raises(DataError, match=r"no frame within 0\.2 s"):
        load(tmp_path)


def load_large(folder, frames):
    """Shape of the background, peak bytes of this process's arrays, peak kilobytes of the decoder's process."""
    load(folder, color="rgb", frames=1)
    tracemalloc.start()
    background = load(folder, color="rgb", frames=frames)
    peak = tracemalloc.get_traced_memory()[1]
    return background.frames.shape, peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


@pytest.mark.parametrize("count", [8, pytest.param(300, marks=pytest.mark.full)])
def test_V03_a_large_video_is_decoded_one_frame_at_a_time(tmp_path, count):
    """3840 x 2160: a colour frame takes 25 MB, and this process never holds more than a few of them."""
    frame = np.zeros((2160, 3840), np.uint8)
    writer = imageio_ffmpeg.write_frames(
        str(tmp_path / "large.mp4"),
        (3840, 2160),
        fps=30,
        pix_fmt_in="gray",
        codec="mpeg4",
        ffmpeg_log_level="error",
        macro_block_size=1,
    )
    writer.send(None)
    for _ in range(count):
        writer.send(frame)
    writer.close()
    # In a process of its own: a child's peak begins with that of the process that forked it.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        shape, peak, decoder = pool.apply(load_large, (tmp_path, 2 * count))
    assert shape == (2 * count, 8, 8, 3)
    assert peak < 400 << 20
    assert decoder < 1 << 20  # kilobytes


def test_V03_frames_beyond_the_limit_are_refused(tmp_path, monkeypatch):
    write_grey(tmp_path / "a.mkv", [1, 2])
    monkeypatch.setattr(video, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match="none of 1 videos can be decoded"):
        load(tmp_path)


def test_V04_sizes_rates_and_transparency_are_made_alike(tmp_path):
    write_video(tmp_path / "a.mkv", np.full((2, 10, 30, 3), 200, np.uint8))
    write_grey(tmp_path / "b.mkv", [100, 100], shape=(50, 20))
    imageio.imwrite(
        tmp_path / "c.gif", np.full((2, 16, 16, 4), 255, np.uint8), duration=500, loop=0
    )  # says "repeat for ever"
    clips = {name: list(decode(tmp_path / name, size=8, color="rgb")) for name in ("a.mkv", "b.mkv", "c.gif")}
    assert {frame.shape for frames in clips.values() for frame in frames} == {(8, 8, 3)}
    assert [clips[name][0][0, 0, 0] for name in clips] == [200, 100, 255]
    assert len(clips["a.mkv"]) == len(clips["b.mkv"]) == 2


def test_V04_a_clip_deleted_midway_is_skipped_with_its_name(tmp_path, monkeypatch):
    for name in ("a.mkv", "b.mkv"):
        write_grey(tmp_path / name, [50, 51])
    found = clips_of_split(tmp_path, "train")
    monkeypatch.setattr(videos, "clips_of_split", lambda folder, split: [*found, tmp_path / "gone.mkv"])
    background = load(tmp_path)
    assert background.clips == ["a.mkv"]
    background = load(tmp_path, seed=3)  # an order that meets the clip that is gone
    assert [(name, reason.endswith("No such file or directory")) for name, reason in background.skipped] == [
        ("gone.mkv", True)
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"color": "gray"}, "--background_color: expected grey or rgb, received 'gray'"),
        ({"split": "valid"}, "--background_split: expected train or test"),
    ],
)
def test_wrong_settings(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, **changes)
    with pytest.raises(ConfigError, match="expected builtin:driving"):
        load("builtin:flying")


def test_driving_scene_is_seeded_and_split():
    first = load("builtin:driving", size=16, frames=250)
    np.testing.assert_array_equal(first.frames, load("builtin:driving", size=16, frames=250).frames)
    assert not np.array_equal(first.frames, load("builtin:driving", size=16, frames=250, seed=1).frames)
    assert (len(DRIVING_CLIPS["train"]), len(DRIVING_CLIPS["test"])) == (16, 4)
    assert not set(DRIVING_CLIPS["train"]) & set(DRIVING_CLIPS["test"])
    assert len(set(first.clips)) == 2
    assert load("builtin:driving", split="test", frames=1).clips[0] in (
        "driving-16",
        "driving-17",
        "driving-18",
        "driving-19",
    )


def test_driving_scene_moves_smoothly():
    clip = np.stack(list(driving_clip(3, size=32, frames=60))).astype(float)
    change = [np.abs(clip[lag:] - clip[:-lag]).mean() for lag in (1, 5, 30)]
    assert 0.5 < change[0] < change[1] < change[2]
    assert change[0] < change[2] / 2
    assert not np.array_equal(next(driving_clip(3, size=32, frames=2)), next(driving_clip(4, size=32, frames=2)))


def test_driving_scene_in_grey_is_its_luma():
    colour = load("builtin:driving", color="rgb", frames=3).frames
    assert colour.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(load("builtin:driving", frames=3).frames, luma(colour))


def test_released_background_rule():
    # Strictly more blue than green and than red: (r, g, b) -> replaced or not.
    pixels = {
        (1, 2, 3): True,
        (3, 2, 3): False,
        (2, 3, 3): False,
        (0, 0, 0): False,
        (255, 255, 255): False,
        (10, 20, 30): True,
        (180, 127, 76): False,
    }
    image = np.array([list(pixels)], np.uint8)  # [1, 7, 3]
    before = image.copy()
    mask = blue_mask(image)
    assert mask.tolist() == [list(pixels.values())]
    grey = np.arange(100, 107, dtype=np.uint8).reshape(1, 7, 1)
    result = composite(image, grey, mask)
    expected = [
        [value] * 3 if replaced else list(pixel) for (pixel, replaced), value in zip(pixels.items(), range(100, 107))
    ]
    assert result.tolist() == [expected]
    np.testing.assert_array_equal(image, before)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous


def test_colour_background_keeps_its_channels():
    result = composite(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), (1, 2, 3), np.uint8), np.eye(2, dtype=bool))
    assert result.tolist() == [[[1, 2, 3], [0, 0, 0]], [[0, 0, 0], [1, 2, 3]]]


def test_a_whole_video_is_read_in_colour(tmp_path):
    frames = np.random.default_rng(RNG_SEED).integers(0, 256, (3, 6, 10, 3), np.uint8)
    write_video(tmp_path / "a.mkv", frames)
    np.testing.assert_array_equal(np.stack(list(read_frames(tmp_path / "a.mkv"))), frames)
