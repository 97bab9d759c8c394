"""A replay that grows: what it draws, and that a compiled draw sees new episodes without another trace."""

import numpy as np
import tensorflow as tf

from semopo_tf.data.replay import Replay
from semopo_tf.random import Key


def filled(*lengths, room=100):
    """Episode i has states [i, record], actions and rewards that tell both."""
    replay = Replay(episodes=6, records=room, shape=[2], action_size=1)
    for number, length in enumerate(lengths):
        add(replay, number, length)
    return replay


def add(replay, number, length):
    record = np.arange(length, dtype=np.float32)
    rows = np.stack([np.full(length, number, np.float32), record], 1)
    replay.add(rows, record[:, None] / 100, record + 1000 * number, record == length - 1)


def drawn(replay, step, batch=400):
    key = Key(5, "sac", tf.constant(step, tf.int64))
    return replay.sample("all", key, batch=batch, length=2, table=replay.table)


def test_windows_are_consecutive_records_of_one_episode():
    found = drawn(filled(4, 9, 3), 0)
    episode, record = found.image.numpy()[..., 0], found.image.numpy()[..., 1]
    assert (episode[:, 0] == episode[:, 1]).all() and (record[:, 1] - record[:, 0] == 1).all()
    np.testing.assert_array_equal(found.reward.numpy(), record + 1000 * episode)
    np.testing.assert_allclose(found.action.numpy()[..., 0], record / 100)
    last = np.array([3, 8, 2])[episode.astype(int)]
    np.testing.assert_array_equal(found.is_terminal.numpy(), record == last)
    assert {int(each) for each in episode[:, 0]} == {0, 1, 2}
    counts = np.bincount(episode[:, 0].astype(int), minlength=3) / len(episode)
    np.testing.assert_allclose(counts, 1 / 3, atol=0.08)  # 400 draws: a standard error of 0.024


def test_a_compiled_draw_sees_an_episode_that_was_added_and_is_traced_once():
    replay = filled(5)
    draw = tf.function(
        lambda step: replay.sample("all", Key(5, "sac", step), batch=64, length=2, table=replay.table).image,
        jit_compile=True,
    )
    assert set(draw(tf.constant(0, tf.int64)).numpy()[..., 0].ravel()) == {0}
    add(replay, 1, 7)
    assert set(draw(tf.constant(0, tf.int64)).numpy()[..., 0].ravel()) == {0, 1}
    assert draw.experimental_get_tracing_count() == 1


def test_what_is_drawn_depends_on_seed_step_and_episodes_alone():
    one, other = filled(4, 9), filled(4, 9, room=300)
    np.testing.assert_array_equal(drawn(one, 3).image, drawn(other, 3).image)
    assert not np.array_equal(drawn(one, 3).image, drawn(one, 4).image)


def test_room_is_counted():
    replay = filled(4, 9, room=20)
    assert replay.episodes == 2 and replay.has_room(7) and not replay.has_room(8)
    for number in range(2, 6):
        add(replay, number, 1)
    assert not replay.has_room(1)  # six episodes are there


def test_frames_stay_on_the_host():
    replay = Replay(episodes=2, records=10, shape=[8, 8, 3], action_size=1)
    frames = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    replay.add(frames, np.zeros((5, 1), np.float32), np.zeros(5, np.float32), np.zeros(5, bool))
    key = Key(1, "model", tf.constant(0, tf.int64))
    found = replay.host_images("model", key, batch=3, length=2)
    assert replay.table is None and found.shape == (3, 2, 8, 8, 3) and (found[:, 1] == found[:, 0] + 1).all()
