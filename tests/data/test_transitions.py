"""Transitions between stacks of frames, against a twin that walks over the episodes one record at a time."""

from functools import partial

import numpy as np
import pytest
import synthetic
import tensorflow as tf
import tiny

from semopo_tf.data.dataset import open_dataset
from semopo_tf.data.episodes import write_episode
from semopo_tf.data.transitions import TransitionSource
from semopo_tf.random import integers
from semopo_tf.types import Stacks

LENGTHS = (9, 5, 12)
BATCH = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three episodes of unequal length, the second of which terminates; every frame differs from all others."""
    folder = tmp_path_factory.mktemp("data")
    for number, length in enumerate(LENGTHS):
        episode = synthetic.episode(number, length, size=10)
        image = episode.image.copy()
        image[:, 0, 0, 0], image[:, 0, 0, 1] = np.arange(length), number
        if number == 1:
            ended = episode.is_last.copy()
            episode = episode._replace(is_terminal=ended, discount=1 - ended.astype(np.float32))
        write_episode(folder / f"{number:06d}-x-{length}.npz", episode._replace(image=image))
    return open_dataset(folder)


def source(data, stacks, *, episodes=(0, 1, 2), on_device=True):
    images = tf.constant(data.frames) if on_device else None
    return TransitionSource(data, "all", np.array(episodes), stacks, batch=BATCH, images=images)


def twin(data, stacks, key, episodes=(0, 1, 2)):
    """The same batch, from the rule: list all transitions, draw, and look every frame up in its own episode."""
    listed = [(episode, t) for episode in episodes for t in range(1, data.length[episode] - stacks.steps + 1)]
    drawn = integers(key, "all_transition", [BATCH], len(listed)).numpy()
    limits = [max(1, min(stacks.later, data.length[listed[place][0]] - 1 - listed[place][1])) for place in drawn]
    later = 1 + integers(key, "all_later", [BATCH], tf.constant(limits, tf.int64)).numpy() if stacks.later else limits
    rows = []
    for place, k in zip(drawn, later, strict=True):
        episode, t = listed[place]
        first, n = data.offset[episode], stacks.steps

        def stack(end, first=first):
            frames = [data.frames[first + max(end - back, 0)] for back in reversed(range(stacks.frames))]
            return np.concatenate(frames, -1)

        reward = sum(stacks.discount**i * float(data.reward[first + t + i]) for i in range(n))
        ended = data.is_terminal[first + t + n - 1]
        discount = 0.0 if ended else stacks.discount**n
        assert t - 1 + k <= data.length[episode] - 1
        rows.append((stack(t - 1), data.action[first + t], reward, discount, stack(t + n - 1), stack(t - 1 + k)))
    return [np.stack(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("mode", tiny.MODES)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_batch_is_that_of_the_rule_index_for_index(data, mode, steps):
    stacks = Stacks(3, steps, 0.9, following=True, later=4)
    made = source(data, stacks)
    for step in range(3):
        key = tiny.key(step, "policy")
        found = tiny.run(mode, partial(made.sample, key))
        for received, expected in zip(found, twin(data, stacks, key), strict=True):
            np.testing.assert_allclose(received, expected, rtol=1e-6)
        assert found.image.dtype == np.uint8


def test_every_transition_is_drawn_equally_often_and_no_other(data):
    """T - n + 1 of an episode, whatever its length; record 0, which no action led to, is never one."""
    made = source(data, Stacks(1, 2, 1.0, following=False))
    counts = {}
    for step in range(200):
        image = made.sample(tiny.key(step)).image.numpy()[:, 0, 0]
        for before, episode, _ in image:
            counts[int(episode), int(before)] = counts.get((int(episode), int(before)), 0) + 1
    assert set(counts) == {(number, t - 1) for number, length in enumerate(LENGTHS) for t in range(1, length - 1)}
    share = np.array(list(counts.values())) / (200 * BATCH)
    np.testing.assert_allclose(share, 1 / len(counts), rtol=0.2)


def test_the_images_may_be_on_the_host_or_in_a_table(data):
    stacks, key = Stacks(3, 1, 0.99, following=True, later=3), tiny.key(5)
    whole, host = source(data, stacks).sample(key), source(data, stacks, on_device=False)
    images = host.host_images(key)
    assert images.shape == host.image_shape == (BATCH, 9, 10, 10, 3)
    for other in (host.sample(key, tf.constant(images)), host.sample(key, table=tf.constant(data.frames))):
        for one, two in zip(whole, other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_what_a_stage_does_not_ask_for_is_not_gathered(data):
    batch = source(data, Stacks(3, 1, 0.99, following=False)).sample(tiny.key())
    assert batch.image.shape == (BATCH, 10, 10, 9)
    assert batch.next_image.shape == batch.later_image.shape == (BATCH, 0)


def test_only_the_episodes_of_the_view_are_drawn(data):
    stacks = Stacks(1, 1, 1.0, following=False)
    batch = source(data, stacks, episodes=(2,)).sample(tiny.key())
    assert set(batch.image.numpy()[:, 0, 0, 1]) == {2}


def test_an_episode_without_one_transition_is_refused_by_name(tmp_path):
    """`--min_length` leaves it out, and then the run is what it is without it."""
    from semopo_tf import training
    from semopo_tf.errors import DataError

    folder = synthetic.dataset(tmp_path / "data", size=16, records=8)
    write_episode(folder / "000009-x-3.npz", synthetic.episode(9, 3, size=16))
    flags = [
        "--configs",
        "drq_bc",
        "walker_walk",
        "debug",
        "--offline_dir",
        str(folder),
        "--logdir",
        str(tmp_path / "r"),
    ]
    flags += ["--eval.final_episodes", "0", "--steps.policy", "1"]
    message = r"000009-x-3.npz: expected at least transitions.n_step \+ 1 = 4 records, received 3 .*lower --transitions"
    with pytest.raises(DataError, match=message):
        training.main(flags)
    assert training.main([*flags, "--min_length", "4"]) == 0
