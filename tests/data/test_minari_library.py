"""Minari itself reads what `data convert --to minari` writes, and writes what `data convert` reads. It is not needed by
the package and wants another h5py than TensorFlow, hence an environment of its own; elsewhere these tests are skipped:

    python3 -m venv M
    M/bin/pip install 'minari[hdf5,create]' 'gymnasium[classic-control]' pillow tqdm pytest
    M/bin/python -m pytest tests/data/test_minari_library.py
"""

import numpy as np
import pytest
import synthetic

from semopo_tf.data import __main__ as data
from semopo_tf.data.episodes import episode_files, read_episode, write_episode
from semopo_tf.storage.resize import resize

minari = pytest.importorskip("minari")
gymnasium = pytest.importorskip("gymnasium")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari.*", "ignore::DeprecationWarning")
SIZE = 40


@pytest.fixture(autouse=True)
def minaris_folder(tmp_path, monkeypatch):
    (tmp_path / "datasets").mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def convert(*words: object) -> None:
    data.main(["convert", *map(str, words)])


def episodes_of(folder):
    return [read_episode(path) for path in episode_files(folder)]


def require_same(theirs, ours) -> None:
    """An episode as Minari reads it is one of ours, whose first record follows no decision."""
    np.testing.assert_array_equal(theirs.observations, ours.image)
    np.testing.assert_array_equal(theirs.actions, ours.action[1:])
    np.testing.assert_array_equal(theirs.rewards, ours.reward[1:])
    np.testing.assert_array_equal(theirs.terminations, ours.is_terminal[1:])
    np.testing.assert_array_equal(theirs.truncations, ours.is_last[1:] & ~ours.is_terminal[1:])
    assert (theirs.actions.dtype, theirs.rewards.dtype) == (ours.action.dtype, ours.reward.dtype)


@pytest.mark.parametrize("size", [16, SIZE])  # Minari takes only images of 32 x 32 and more for JPEG
def test_minari_reads_what_is_exported(tmp_path, minaris_folder, size):
    items = [synthetic.episode(number, records, size) for number, records in enumerate((20, 2, 31))]
    ended = np.arange(31) == 30
    items[2] = items[2]._replace(is_terminal=ended, discount=1 - ended.astype(np.float32))
    (tmp_path / "in").mkdir()
    for number, item in enumerate(items):
        write_episode(tmp_path / "in" / f"{number}.npz", item)
    convert(tmp_path / "in", minaris_folder / "mine-v0", "--to", "minari")
    loaded = minari.load_dataset("mine-v0")
    assert (loaded.total_episodes, loaded.total_steps) == (3, 50)
    assert loaded.observation_space == gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
    assert loaded.action_space == gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    for theirs, ours in zip(loaded, items, strict=True):
        require_same(theirs, ours)
        assert repr(theirs)
        assert all(loaded.observation_space.contains(image) for image in theirs.observations)
    assert len(loaded.filter_episodes(lambda episode: episode.terminations[-1])) == 1
    assert list(minari.list_local_datasets()) == ["mine-v0"]


def recorded(action_space, observe, lengths=(12, 1, 30)):
    """Buffers with moving images, as minari's own functions take them; the second one terminates."""
    action_space.seed(0)
    for number, steps in enumerate(lengths):
        images = synthetic.episode(number, steps + 1, SIZE).image
        ends = [False] * (steps - 1) + [True]
        yield minari.data_collector.EpisodeBuffer(
            observations=observe(images),
            actions=[action_space.sample() for _ in range(steps)],
            rewards=[float(step) for step in range(steps)],
            terminations=[end and number == 1 for end in ends],
            truncations=[end and number != 1 for end in ends],
        )


IMAGE = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
FIRST = gymnasium.spaces.Box(0, 255, (3, SIZE, SIZE), np.uint8)
POSE = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)
ACTIONS = {
    "box": gymnasium.spaces.Box(np.array([0, -4], np.float32), np.array([1, 2], np.float32)),
    "choice": gymnasium.spaces.Discrete(3, start=5),
}
OBSERVATIONS = {
    "image": (IMAGE, list, lambda seen: seen),
    "channels first": (FIRST, lambda i: list(i.transpose(0, 3, 1, 2)), lambda seen: seen.transpose(0, 2, 3, 1)),
    "member": (
        gymnasium.spaces.Dict({"camera": IMAGE, "pose": POSE}),
        lambda images: {"camera": list(images), "pose": list(np.zeros((len(images), 4)))},
        lambda seen: seen["camera"],
    ),
}


@pytest.mark.parametrize("jpeg", [True, False], ids=["JPEG", "arrays"])
@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("action", ACTIONS)
def test_what_minari_writes_is_read_as_minari_reads_it(tmp_path, minaris_folder, action, observation, jpeg):
    action_space, (space, observe, seen) = ACTIONS[action], OBSERVATIONS[observation]
    theirs = minari.create_dataset_from_buffers(
        "theirs-v0",
        list(recorded(action_space, observe)),
        action_space=action_space,
        observation_space=space,
        jpeg_encoding=jpeg,
    )
    convert(minaris_folder / "theirs-v0", tmp_path / "out")
    convert(minaris_folder / "theirs-v0", tmp_path / "small", "--size", 16)
    episodes = episodes_of(tmp_path / "out")
    for made, small, ours in zip(theirs, episodes_of(tmp_path / "small"), episodes, strict=True):
        np.testing.assert_array_equal(ours.image, seen(made.observations))
        np.testing.assert_array_equal(small.image, resize(seen(made.observations), 16))
        np.testing.assert_array_equal(ours.reward[1:], made.rewards)
        np.testing.assert_array_equal(ours.is_terminal[1:], made.terminations)
        if action == "choice":
            np.testing.assert_array_equal(ours.action[1:].argmax(1) + 5, made.actions)
        else:
            low, high = action_space.low, action_space.high
            np.testing.assert_allclose(low + (ours.action[1:] + 1) / 2 * (high - low), made.actions, atol=1e-6)
    convert(tmp_path / "out", minaris_folder / "ours-v0", "--to", "minari")
    for made, ours in zip(minari.load_dataset("ours-v0"), episodes, strict=True):
        require_same(made, ours)


def test_a_recording_of_minaris_collector_is_read(tmp_path, minaris_folder):
    """Real pictures of a real environment, with the end that the environment gives."""
    pytest.importorskip("jax")
    picture = gymnasium.wrappers.AddRenderObservation(gymnasium.make("CartPole-v1", render_mode="rgb_array"))
    env = minari.DataCollector(picture, jpeg_encoding=False)
    env.action_space.seed(0)
    for seed in range(3):
        env.reset(seed=seed)
        over = False
        while not over:
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            over = terminated or truncated
    theirs = env.create_dataset("cart-v0")
    convert(minaris_folder / "cart-v0", tmp_path / "out", "--size", 64)
    for made, ours in zip(theirs, episodes_of(tmp_path / "out"), strict=True):
        np.testing.assert_array_equal(ours.image, resize(made.observations, 64))
        np.testing.assert_array_equal(ours.action[1:].argmax(1), made.actions)
        np.testing.assert_array_equal(ours.reward[1:], made.rewards)
        assert ours.is_terminal[-1] and made.terminations[-1]
