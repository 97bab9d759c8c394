"""Windows of self-describing episodes, the growth of the pool against the tables of the method, and a slow twin, index
for index.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import philox
import pytest
import synthetic
import tensorflow as tf

from semopo_tf import config
from semopo_tf.data.dataset import Dataset, held_out, open_dataset, split
from semopo_tf.data.sampler import Pool, Sampler
from semopo_tf.engine.loop import HostImages
from semopo_tf.errors import DataError
from semopo_tf.random import Key

PAPER, RELEASED = (Pool(**config.load(argv).pool) for argv in ([], ["--configs", "released"]))
PAPER_STEPS, RELEASED_STEPS = 25_000, 25_100


def dataset(lengths, returns=None, native_returns=None) -> Dataset:
    """Every record says where it comes from: pixels (episode, step, episode + step), action (episode, step) / 256,
    reward 1000 e + t.
    """
    lengths = np.array(lengths, np.int64)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    step = np.concatenate([np.arange(length) for length in lengths])
    frames = np.broadcast_to(
        np.stack([episode, step, episode + step], -1)[:, None, None, :], (len(episode), 2, 2, 3)
    ).astype(np.uint8)
    reward = (1000 * episode + step).astype(np.float32)
    returns = np.array(
        [reward[episode == e].sum() for e in range(len(lengths))] if returns is None else returns, np.float64
    )
    return Dataset(
        directory=Path("self_describing"),
        names=[f"{e:03d}.npz" for e in range(len(lengths))],
        frames=frames,
        action=(np.stack([episode, step], -1) / 256).astype(np.float32),
        reward=reward,
        is_terminal=(step == lengths[episode] - 1) & (episode % 2 == 1),  # the odd episodes end for good
        offset=np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64),
        length=lengths,
        returns=returns,
        native_returns=np.array(returns if native_returns is None else native_returns, np.float64),
        manifest={},
    )


def sampler(
    data: Dataset, train=None, *, sampling="conservative", pool=PAPER, policy_starts="dataset", total_steps=PAPER_STEPS
) -> Sampler:
    train = np.ones(len(data.names), bool) if train is None else np.array(train)
    return Sampler(data, train, sampling=sampling, pool=pool, policy_starts=policy_starts, total_steps=total_steps)


def key(step, seed=1, domain="model") -> Key:
    return Key(seed, domain, tf.convert_to_tensor(step, tf.int64))


def drawn(source: Sampler, view: str, step: int, *, batch: int, length: int, seed=1) -> tuple[np.ndarray, np.ndarray]:
    episode, start = source.draw(view, key(step, seed), batch=batch, length=length)
    return episode.numpy(), start.numpy()


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
def test_a_window_is_consecutive_aligned_and_from_one_episode(compiled):
    lengths = [20, 9, 33, 8, 14]
    source = sampler(dataset(lengths), sampling="uniform")
    sample = tf.function(
        lambda step: source.sample("model", Key(1, "model", step), batch=200, length=8),
        autograph=False,
        jit_compile=compiled,
    )
    batch = [field.numpy() for field in sample(tf.constant(3, tf.int64))]
    image, action, reward, is_first, is_terminal = batch
    assert (image.shape, action.shape, reward.shape) == ((200, 8, 2, 2, 3), (200, 8, 2), (200, 8))
    assert (image.dtype, action.dtype, reward.dtype, is_first.dtype, is_terminal.dtype) == (
        np.uint8,
        np.float32,
        np.float32,
        bool,
        bool,
    )
    episode, step = image[:, :, 0, 0, 0].astype(int), image[:, :, 0, 0, 1].astype(int)
    np.testing.assert_array_equal(episode, np.repeat(episode[:, :1], 8, axis=1))
    np.testing.assert_array_equal(step, step[:, :1] + np.arange(8))
    assert (step[:, -1] < np.array(lengths)[episode[:, 0]]).all()
    np.testing.assert_array_equal(
        image, np.broadcast_to(np.stack([episode, step, episode + step], -1)[:, :, None, None, :], image.shape)
    )
    np.testing.assert_array_equal(action * 256, np.stack([episode, step], -1))
    np.testing.assert_array_equal(reward, 1000 * episode + step)
    np.testing.assert_array_equal(is_first, np.broadcast_to(np.arange(8) == 0, (200, 8)))
    np.testing.assert_array_equal(is_terminal, (episode % 2 == 1) & (step == np.array(lengths)[episode] - 1))
    assert is_terminal.any()


def test_windows_reach_both_ends_of_every_episode():
    lengths = np.array([20, 9, 33, 8])
    episode, start = drawn(sampler(dataset(lengths), sampling="uniform"), "model", 0, batch=4000, length=8)
    for index, length in enumerate(lengths):
        # 1000 windows for at most 26 starts: an expected 38 windows for each, so none is missing.
        assert sorted(set(start[episode == index])) == list(range(length - 8 + 1))


def test_episodes_are_drawn_uniformly_whatever_their_length_and_so_are_starts():
    lengths = [100, 10, 10, 30, 50]
    episode, start = drawn(sampler(dataset(lengths), sampling="uniform"), "model", 5, batch=50_000, length=10)
    counts = np.bincount(episode, minlength=5)
    # Five standard deviations of a multinomial: 5 sqrt(n p (1 - p)) = 447 round 10 000.
    assert np.abs(counts - 10_000).max() < 5 * np.sqrt(50_000 * 0.2 * 0.8)
    starts = np.bincount(start[episode == 0], minlength=91)
    assert len(starts) == 91
    expected = counts[0] / 91
    assert np.abs(starts - expected).max() < 5 * np.sqrt(expected)
    # Episodes 1 and 2 have exactly one window.
    assert set(start[(episode == 1) | (episode == 2)]) == {0}


def test_draws_inside_a_growing_pool_are_uniform():
    """At update 19 the pool of start 3, one more every 5 updates, holds 3 + 3 = 6 episodes, of 10."""
    pool = PAPER._replace(start=3, grow_every=5)
    episode, _ = drawn(sampler(dataset([12] * 10), pool=pool), "model", 19, batch=60_000, length=8)
    counts = np.bincount(episode, minlength=10)
    assert np.abs(counts[:6] - 10_000).max() < 5 * np.sqrt(60_000 / 6 * 5 / 6)
    assert counts[6:].sum() == 0


def test_neighbouring_updates_and_seeds_draw_different_windows():
    source = sampler(dataset([200] * 50), sampling="uniform")
    base = drawn(source, "model", 7, batch=64, length=8)
    for other in (drawn(source, "model", 8, batch=64, length=8), drawn(source, "model", 7, batch=64, length=8, seed=2)):
        assert (base[0] != other[0]).mean() > 0.9  # 1 / 50 would agree by chance
        assert (base[1] != other[1]).mean() > 0.9
    again = drawn(source, "model", 7, batch=64, length=8)
    np.testing.assert_array_equal(base, again)


def test_a_data_set_of_one_episode_works_under_every_rule():
    data = dataset([11])
    for pool, starts, steps in ((PAPER, "dataset", PAPER_STEPS), (RELEASED, "pool", RELEASED_STEPS)):
        source = sampler(data, pool=pool, policy_starts=starts, total_steps=steps)
        for view in ("model", "policy", "all"):
            episode, start = drawn(source, view, 24_999, batch=200, length=8)
            assert set(episode) == {0}
            assert set(start) == {0, 1, 2, 3}


def test_a_too_short_episode_is_named():
    data = dataset([20, 7, 30, 5])
    data.require_length(5, "batch.length")
    with pytest.raises(
        DataError,
        match=r"self_describing/001\.npz: expected at least batch\.length = 8 records, received 7 \(2 such files\)",
    ):
        data.require_length(8, "batch.length")


# --- the pool's growth ------------------------------------------------------------------------------------------------


def sizes(pool: Pool, episodes: int, total_steps: int) -> np.ndarray:
    """Pool size of every update, and of the end."""
    return pool.size(tf.range(total_steps + 1, dtype=tf.int64), episodes, total_steps).numpy()


def original_schedule(episodes: int) -> list[int]:
    """The released loop, as it stands: 251 blocks of 100 updates, the pool enlarged after each; the last entry is what
    is left at the end.
    """
    pool, history = 10, []
    for _ in range(251):
        history.append(pool)
        pool = min(pool + max(int(episodes // (25_001 / 100)), 1), episodes - 1)
    return [*history, pool]


@pytest.mark.parametrize(
    ("episodes", "growth", "full_at", "last_block", "final"),
    [
        # For the released rule: n, growth, update at which the pool is n - 1, pool of the last block, pool
        # that the policy phase inherits.
        (90, 1, 7_900, 89, 89),
        (200, 1, 18_900, 199, 199),
        (350, 1, None, 260, 261),
        (400, 1, None, 260, 261),
        (600, 2, None, 510, 512),
    ],
)
def test_the_released_schedule(episodes, growth, full_at, last_block, final):
    size = sizes(RELEASED, episodes, RELEASED_STEPS)
    assert RELEASED.growth(episodes, RELEASED_STEPS) == growth
    full = np.flatnonzero(size[:RELEASED_STEPS] == episodes - 1)
    assert (int(full[0]) if len(full) else None) == full_at
    assert (size[0], size[99], size[100]) == (10, 10, 10 + growth)
    assert (size[RELEASED_STEPS - 1], size[RELEASED_STEPS]) == (last_block, final)
    np.testing.assert_array_equal(size[::100], original_schedule(episodes))
    np.testing.assert_array_equal(size[:RELEASED_STEPS], np.repeat(size[:RELEASED_STEPS:100], 100))


def test_the_released_schedule_block_by_block_for_200_episodes():
    """Block i (from 0) of the released code uses min(10 + i, 199) episodes."""
    size = sizes(RELEASED, 200, RELEASED_STEPS)
    assert [int(size[100 * block]) for block in range(251)] == [min(10 + block, 199) for block in range(251)]


@pytest.mark.parametrize("episodes", [1, 30, 200, 400, 700])
def test_the_papers_schedule(episodes):
    """Epoch m, counted from 1, draws from the first min(m, n) trajectories; an epoch is 50 updates."""
    size = sizes(PAPER, episodes, PAPER_STEPS)[:PAPER_STEPS]
    assert [int(value) for value in size] == [min(m, episodes) for m in range(1, 501) for _ in range(50)]


def test_the_pool_never_exceeds_the_data_nor_falls_below_one():
    assert set(sizes(RELEASED, 5, RELEASED_STEPS)) == {4}  # the original fails with an index error below ten episodes
    assert set(sizes(RELEASED, 1, RELEASED_STEPS)) == {1}
    assert set(sizes(RELEASED._replace(include_last=True), 5, RELEASED_STEPS)) == {5}


def test_the_policy_phase_starts_from_the_data_set_or_from_the_final_pool():
    data = dataset([10] * 400)
    for starts, reach in (("dataset", 400), ("pool", 261)):
        source = sampler(data, pool=RELEASED._replace(order="file"), policy_starts=starts, total_steps=RELEASED_STEPS)
        for step in (0, 99_999):  # policy updates do not move the pool
            episode, _ = drawn(source, "policy", step, batch=20_000, length=8)
            assert sorted(set(episode)) == list(range(reach))  # at least 50 expected draws for each


def test_uniform_sampling_starts_the_policy_phase_from_the_data_set():
    source = sampler(dataset([10] * 40), sampling="uniform", pool=RELEASED, policy_starts="pool", total_steps=200)
    for view in ("model", "policy"):
        episode, _ = drawn(source, view, 0, batch=4000, length=8)
        assert sorted(set(episode)) == list(range(40))


# --- the order of the pool and equal returns --------------------------------------------------------------------------


def test_two_hundred_episodes_of_return_zero_are_all_kept_in_file_order():
    zeros = np.zeros(200)
    for pool in (PAPER, RELEASED):
        np.testing.assert_array_equal(pool.ranks(zeros, zeros), np.arange(200))
    episode, _ = drawn(
        sampler(dataset([9] * 200, zeros), pool=RELEASED, total_steps=RELEASED_STEPS),
        "model",
        25_000,
        batch=20_000,
        length=8,
    )
    assert sorted(set(episode)) == list(range(199))  # all but the last, which the released rule never reaches


def test_return_order_is_ascending_and_stable_and_file_order_ignores_returns():
    returns = np.array([3.0, -1.0, 3.0, 0.5, -1.0, 7.0])
    np.testing.assert_array_equal(RELEASED.ranks(returns, returns), [1, 4, 3, 0, 2, 5])
    np.testing.assert_array_equal(PAPER.ranks(returns, returns), np.arange(6))


def original_order(native_returns) -> list[int]:
    """The released loading: a mapping keyed by return, sorted ascending. The last episode of equal return overwrites
    the others.
    """
    keyed = dict(zip(native_returns.tolist(), range(len(native_returns))))
    return [keyed[value] for value in sorted(keyed)]


def test_drop_ties_keeps_the_episodes_of_the_original():
    dropping = RELEASED._replace(drop_ties=True)
    np.testing.assert_array_equal(dropping.ranks(np.zeros(200), np.zeros(200)), [199])
    # Both what is equal and the order are those of the stored type, which here differ from the exact sums: episodes 1
    # and 2 tie, 3 is the lowest.
    np.testing.assert_array_equal(
        dropping.ranks(np.array([3.0, 1.0, 2.0, 4.0]), np.array([8.0, 7.0, 7.0, 6.0])), [3, 2, 0]
    )
    np.testing.assert_array_equal(
        RELEASED.ranks(np.array([3.0, 1.0, 2.0, 4.0]), np.array([8.0, 7.0, 7.0, 6.0])), [1, 2, 0, 3]
    )
    # Rewards of half precision: exact sums are all different, sums in that type are not.
    reward = np.random.default_rng(0).uniform(0, 1.5, (200, 500)).astype(np.float16)
    exact, native = reward.sum(1, dtype=np.float64), reward.sum(1, dtype=np.float16).astype(np.float64)
    expected = original_order(native)
    assert len(expected) < 200 == len(set(exact))
    np.testing.assert_array_equal(dropping.ranks(exact, native), expected)
    np.testing.assert_array_equal(RELEASED.ranks(exact, native), np.argsort(exact))


# --- held-out episodes ------------------------------------------------------------------------------------------------


def test_held_out_episodes_are_never_trained_on():
    data = dataset([10] * 60, returns=np.random.default_rng(1).normal(size=60))
    held = held_out(data.names, 0.25, seed=3)
    assert held.sum() == 15
    for pool, starts in ((PAPER, "dataset"), (RELEASED._replace(grow_every=5), "pool")):
        source = sampler(data, ~held, pool=pool, policy_starts=starts, total_steps=1000)
        seen = {
            view: set(drawn(source, view, 999, batch=6000, length=8)[0]) for view in ("model", "policy", "all", "valid")
        }
        assert seen["valid"] == set(np.flatnonzero(held))
        assert seen["all"] == set(np.flatnonzero(~held))
        for view in ("model", "policy"):
            assert seen[view] and seen[view] <= set(np.flatnonzero(~held))


def test_the_pool_counts_training_episodes_alone():
    """Of 60 episodes 15 are held out: the pool ends at 45, and one short of it, without the best of the 45, under the
    released rule.
    """
    returns = np.arange(60)[::-1].astype(float)
    data, held = dataset([10] * 60, returns), np.arange(60) % 4 == 0
    source = sampler(data, ~held, pool=RELEASED, total_steps=RELEASED_STEPS)
    seen = set(drawn(source, "model", RELEASED_STEPS - 1, batch=6000, length=8)[0])
    assert seen == set(np.flatnonzero(~held)) - {1}  # episode 0 is held out, so episode 1 has the highest return


def test_no_training_episode_at_all_is_an_error():
    with pytest.raises(
        DataError,
        match=r"self_describing: expected at least one training episode, received none; lower --valid_fraction",
    ):
        sampler(dataset([10, 10]), [False, False])


# --- the slow twin ----------------------------------------------------------------------------------------------------

EPISODES, BATCH, LENGTH = 90, 100, 8
LENGTHS = [LENGTH + 7 * episode % 41 for episode in range(EPISODES)]  # 8 to 48 records
RETURNS = [float(31 * episode % 17) for episode in range(EPISODES)]  # 17 different returns, five or six episodes each
HELD = [episode % 9 == 4 for episode in range(EPISODES)]  # 10 of them
VIEWS = ("model", "policy", "all", "valid")
RULES = {
    "paper": {"sampling": "conservative", "pool": PAPER, "policy_starts": "dataset", "total_steps": PAPER_STEPS},
    "released": {"sampling": "conservative", "pool": RELEASED, "policy_starts": "pool", "total_steps": RELEASED_STEPS},
    "uniform": {"sampling": "uniform", "pool": RELEASED, "policy_starts": "dataset", "total_steps": PAPER_STEPS},
}


def twin_reach(rule: str, view: str, step: int) -> list[int]:
    """The episodes that a draw may return, in the order of the pool; written from the text of the two rules, without a
    formula in common.
    """
    train = [episode for episode in range(EPISODES) if not HELD[episode]]
    if view == "valid":
        return [episode for episode in range(EPISODES) if HELD[episode]]
    if view == "all" or rule == "uniform" or (rule == "paper" and view == "policy"):
        return train
    if rule == "paper":
        return train[: min(step // 50 + 1, len(train))]
    by_return = sorted(train, key=lambda episode: (RETURNS[episode], episode))
    return by_return[: original_schedule(len(train))[step // 100 if view == "model" else 251]]


def twin_draw(rule: str, view: str, step: int) -> tuple[list[int], list[int]]:
    reach = twin_reach(rule, view, step)
    episodes = [reach[rank] for rank in philox.integers(11, "model", f"{view}_episode", step, BATCH, len(reach))]
    windows = [LENGTHS[episode] - LENGTH + 1 for episode in episodes]
    return episodes, philox.integers(11, "model", f"{view}_start", step, BATCH, windows).tolist()


@pytest.fixture(scope="module")
def all_rules():
    """step -> [rule, view, 2, BATCH] draws of every rule and view, in one program."""
    data = dataset(LENGTHS, RETURNS)
    sources = [sampler(data, ~np.array(HELD), **rule) for rule in RULES.values()]

    def draw(step):
        draws = [
            [tf.stack(source.draw(view, Key(11, "model", step), batch=BATCH, length=LENGTH)) for view in VIEWS]
            for source in sources
        ]
        return tf.stack([tf.stack(views) for views in draws])

    return draw


@pytest.mark.parametrize("compiled", [False, True])
def test_ten_thousand_draws_of_every_rule_and_view_equal_the_slow_twin(all_rules, compiled):
    draw = tf.function(all_rules, autograph=False, jit_compile=compiled)
    # 100 updates over the whole phase, among them both sides of a growth of either pool and of the update at which the
    # released pool of 80 training episodes is full: 10 + 69 = 79 in block 69.
    steps = sorted({0, 49, 50, 99, 100, 6_899, 6_900, 24_999, *np.linspace(1, 24_998, 92).astype(int).tolist()})
    assert len(steps) == 100
    for step in steps:
        received = draw(tf.constant(step, tf.int64)).numpy()
        for r, rule in enumerate(RULES):
            for v, view in enumerate(VIEWS):
                np.testing.assert_array_equal(
                    received[r, v], twin_draw(rule, view, step), err_msg=f"{rule} {view} at update {step}"
                )


@pytest.mark.parametrize("view", ["model", "policy", "all", "valid"])
@pytest.mark.parametrize("compiled", [False, True])
def test_images_from_the_host_make_the_batches_of_the_device_byte_for_byte(view, compiled):
    data, train = dataset([20, 9, 33, 14, 9]), np.array([True, True, False, True, True])
    device, host = (
        Sampler(
            data,
            train,
            sampling="conservative",
            pool=PAPER,
            policy_starts="dataset",
            total_steps=200,
            images_on_device=on,
        )
        for on in (True, False)
    )
    sizes = {"batch": 6, "length": 5}
    whole = tf.function(lambda step: device.sample(view, key(step), **sizes), autograph=False, jit_compile=compiled)
    stacked = tf.function(
        lambda step, image: host.sample(view, key(step), **sizes, image=image), autograph=False, jit_compile=compiled
    )
    for step in (0, 60, 199):
        image = tf.constant(host.host_images(view, key(step), **sizes))
        for one, other in zip(
            whole(tf.constant(step, tf.int64)), stacked(tf.constant(step, tf.int64), image), strict=True
        ):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_a_table_is_gathered_in_place_of_the_images():
    data = dataset([20, 9])
    source, table = sampler(data), tf.constant(np.arange(29, dtype=np.float32)[:, None])
    images, rows = (source.sample("all", key(3), batch=4, length=5, table=given) for given in (None, table))
    record = data.offset[images.image.numpy()[..., 0, 0, 0]] + images.image.numpy()[..., 0, 0, 1]
    np.testing.assert_array_equal(rows.image[..., 0], record)
    np.testing.assert_array_equal(rows.action, images.action)


# --- what must not matter ---------------------------------------------------------------------------------------------


def two_hundred_batches(directory: Path) -> str:
    """A digest of 100 batches of each phase."""
    source, digest = sampler(open_dataset(directory), pool=PAPER._replace(grow_every=10)), hashlib.sha256()
    sample = tf.function(lambda view, step: source.sample(view, key(step), batch=3, length=8), autograph=False)
    for view in ("model", "policy"):
        for step in range(100):
            for field in sample(view, tf.constant(step, tf.int64)):
                digest.update(field.numpy().tobytes())
    return digest.hexdigest()


def test_R13_hash_seed_threads_and_the_order_of_the_directory_change_no_batch(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    names = [path.name for path in sorted(synthetic.dataset(here, episodes=8, size=8).iterdir())]
    there.mkdir()
    for name in reversed(names):
        (there / name).write_bytes((here / name).read_bytes())
    script = (
        "import sys; from pathlib import Path; import test_sampler; "
        "print(test_sampler.two_hundred_batches(Path(sys.argv[1])))"
    )
    settings = {
        "PYTHONHASHSEED": "7",
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, str(there)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == two_hundred_batches(here)


@pytest.mark.parametrize("calls", [[1] * 12, [12], [5, 5, 2], [3, 1, 4, 1, 3]], ids=str)
def test_R13_how_many_batches_are_gathered_ahead_changes_none(calls):
    source = sampler(dataset([20, 9, 33, 14, 9]))

    def gather(step):
        return source.host_images("model", key(step), batch=3, length=5)

    ahead, step = HostImages(gather, (3, 5, 2, 2, 3), max(calls)), 0
    for updates in calls:
        np.testing.assert_array_equal(
            ahead.stack(step, updates)[:updates], [gather(step + place) for place in range(updates)]
        )
        step += updates
    ahead.close()


# --- short episodes ---------------------------------------------------------------------------------------------------


def test_I22_episodes_that_are_too_short_are_neither_trained_on_nor_held_out():
    """The split and every window are those of a dataset without them."""
    lengths = np.array([9, 4, 12, 7, 4, 9, 10, 3, 8, 11])
    long = np.flatnonzero(lengths >= 7)
    mixed = dataset(lengths)
    alone = mixed._replace(
        names=[mixed.names[index] for index in long],
        **{name: getattr(mixed, name)[long] for name in ("offset", "length", "returns", "native_returns")},
    )
    train, valid = split(mixed, 0.3, 5, min_length=7)
    expected = split(alone, 0.3, 5)
    assert [np.flatnonzero(part).tolist() for part in (train, valid)] == [long[part].tolist() for part in expected]
    for view in ("model", "policy", "all", "valid"):
        for rule in ("conservative", "uniform"):
            common = {"sampling": rule, "pool": Pool(**config.load([]).pool), "policy_starts": "dataset"}
            one = Sampler(mixed, train, valid=valid, total_steps=100, **common)
            other = Sampler(alone, expected[0], valid=expected[1], total_steps=100, **common)
            key = Key(3, view, tf.constant(60, tf.int64))
            for left, right in zip(
                one.sample(view, key, batch=16, length=7), other.sample(view, key, batch=16, length=7), strict=True
            ):
                np.testing.assert_array_equal(left, right)


def test_I22_the_window_counts_for_what_is_kept():
    data = dataset([9, 4, 12])
    data.require_length(9, "batch.length", min_length=5)
    with pytest.raises(
        DataError, match=r"000.npz: expected .* 10 records, received 9 \(1 such files\); .* --min_length 10$"
    ):
        data.require_length(10, "batch.length", min_length=5)
    with pytest.raises(DataError, match="at least --min_length 13 records, received at most 12; lower --min_length"):
        data.require_length(10, "batch.length", min_length=13)


# --- whole episodes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
def test_a_whole_episode_is_padded_after_its_end_and_the_training_episodes_go_round(compiled):
    lengths, train = [5, 9, 3, 6], [True, False, True, True]  # the longest of training has 6
    source = sampler(dataset(lengths), train, sampling="uniform")
    episodes = source.source("policy", None, batch=2, length=3, episode=lambda step: step // 2)
    sample = tf.function(lambda step: episodes.sample(Key(1, "policy", step)), autograph=False, jit_compile=compiled)
    for step, expected in ((0, 0), (1, 0), (2, 2), (4, 3), (6, 0), (8, 2)):
        windows, whole = tf.nest.map_structure(lambda x: x.numpy(), sample(tf.constant(step, tf.int64)))
        assert windows.reward.shape == (2, 3)
        assert whole.image.shape == (1, 6, 2, 2, 3)
        column = np.minimum(np.arange(6), lengths[expected] - 1)
        np.testing.assert_array_equal(whole.reward[0], 1000 * expected + column)
        np.testing.assert_array_equal(whole.image[0, :, 0, 0, 1], column)
        np.testing.assert_array_equal(whole.action[0, :, 1], column / 256)
        np.testing.assert_array_equal(whole.is_first[0], [t == 0 or t >= lengths[expected] for t in range(6)])
        assert whole.is_terminal[0, lengths[expected] - 1] == (expected % 2 == 1)


def test_a_whole_episode_can_be_read_from_a_table():
    source = sampler(dataset([4, 6]), sampling="uniform")
    table = tf.reshape(tf.range(20.0), [10, 2])
    whole = source.source("all", None, batch=2, length=3, episode=lambda step: step).sample(key(1), None, table).episode
    np.testing.assert_array_equal(whole.image[0], table[4:])
