import time

import numpy as np
import pytest

from semopo_tf.envs import rollout
from semopo_tf.envs.rollout import ATTEMPTS, Discarded, RandomPolicy, play, retry_seed
from semopo_tf.errors import ConfigError, NumericalError, SimulatorError
from semopo_tf.types import Observation


class Counting:
    """An episode of seed s has 2 + s % 4 decisions; image and reward encode (seed, step); odd seeds end in a
    termination.
    """

    action_size, image_shape = 2, (2, 2, 3)

    def __init__(self):
        self.received = []

    def observe(self):
        last = self.time == 2 + self.seed % 4
        image = np.full((2, 2, 3), (10 * self.seed + self.time) % 256, np.uint8)
        return Observation(image, float(self.time), self.time == 0, last, last and self.seed % 2 == 1)

    def reset(self, seed):
        self.seed, self.time = seed, 0
        return self.observe()

    def step(self, action):
        self.received.append(action.copy())
        self.time += 1
        return self.observe()

    def close(self):
        pass


class Recorder:
    """Acts with (seed, step) and records the images it sees."""

    def __init__(self):
        self.calls = []

    def initial(self, episodes):
        return np.zeros(episodes)

    def __call__(self, image, state, seeds, step):
        self.calls.append((image[:, 0, 0, 0].tolist(), seeds.tolist(), step, state.tolist()))
        return np.stack([seeds / 100, np.full(len(seeds), step / 100)], -1), state + 1


def test_records_follow_the_arrival_convention():
    (episode,) = play([Counting()], Recorder(), [7])
    assert episode.image[:, 0, 0, 0].tolist() == [70, 71, 72, 73, 74, 75]
    np.testing.assert_allclose(episode.action[:, 0], [0, 0.07, 0.07, 0.07, 0.07, 0.07], rtol=1e-6)
    np.testing.assert_allclose(episode.action[:, 1], [0, 0, 0.01, 0.02, 0.03, 0.04], rtol=1e-6)
    assert episode.reward.tolist() == [0, 1, 2, 3, 4, 5]
    assert episode.is_first.tolist() == [True] + [False] * 5
    assert episode.is_last.tolist() == episode.is_terminal.tolist() == [False] * 5 + [True]
    assert episode.discount.tolist() == [1, 1, 1, 1, 1, 0]
    assert {name: array.dtype.name for name, array in episode.arrays().items()} == {
        "image": "uint8",
        "action": "float32",
        "reward": "float32",
        "discount": "float32",
        "is_first": "bool",
        "is_last": "bool",
        "is_terminal": "bool",
    }


def test_time_limit_is_no_termination():
    (episode,) = play([Counting()], Recorder(), [4])
    assert episode.is_last[-1]
    assert not episode.is_terminal.any()
    assert episode.discount.tolist() == [1] * 3


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_environments_gives_the_same_episodes(count):
    seeds = [3, 0, 5, 2, 1, 4, 7]
    reference = list(play([Counting()], RandomPolicy(2), seeds))
    episodes = list(play([Counting() for _ in range(count)], RandomPolicy(2), seeds))
    assert [episode.image[0, 0, 0, 0] // 10 for episode in episodes] == seeds
    for one, other in zip(reference, episodes, strict=True):
        for left, right in zip(one, other, strict=True):
            np.testing.assert_array_equal(left, right)


def test_policy_sees_a_row_per_environment_waiting_ones_included():
    policy = Recorder()
    environments = [Counting(), Counting()]
    list(play(environments, policy, [0, 3, 1]))
    assert policy.calls[0] == ([0, 30], [0, 3], 0, [0, 0])
    # Seed 0 has ended after 2 decisions and waits with its last image.
    assert [images[0] for images, *_ in policy.calls[:5]] == [0, 1, 2, 2, 2]
    # The third episode is alone, with a new state.
    assert policy.calls[5] == ([10], [1], 0, [0])
    assert len(environments[0].received) == 2 + 3


def test_environments_that_can_work_at_the_same_time_do():
    order = []

    class Split(Counting):
        def send(self, action):
            order.append(("send", self.seed))
            self.action = action

        def receive(self):
            order.append(("receive", self.seed))
            return self.step(self.action)

    list(play([Split(), Counting(), Split()], RandomPolicy(2), [0, 4, 8]))
    assert order == [("send", 0), ("send", 8), ("receive", 0), ("receive", 8)] * 2


def test_random_policy_depends_on_seed_and_step_alone():
    policy, other = RandomPolicy(3), RandomPolicy(3, stream=1)
    first, _ = policy(None, None, np.array([1, 2, 1]), 0)
    np.testing.assert_array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, policy(None, None, np.array([1, 2, 1]), 1)[0])
    assert not np.array_equal(first, other(None, None, np.array([1, 2, 1]), 0)[0])
    many = np.concatenate([policy(None, None, np.arange(300), step)[0] for step in range(4)])
    assert many.dtype == np.float32
    assert np.abs(many).max() <= 1
    # 3600 uniform draws: standard error of the mean 0.0096, of the variance 1/3 about 0.005.
    assert abs(many.mean()) < 0.04
    assert abs(many.var() - 1 / 3) < 0.02


def test_playing_in_no_environment_is_refused():
    with pytest.raises(ConfigError, match="at least 1 environment, received 0"):
        list(play([], RandomPolicy(2), [1]))


def test_actions_of_a_wrong_shape():
    with pytest.raises(NumericalError, match=r"expected actions of shape \[1, 2\], received \[1, 3\]"):
        list(play([Counting()], RandomPolicy(3), [1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((2, 2, 3))}, r"uint8 \[2, 2, 3\], received float64 \[2, 2, 3\]"),
        ({"image": np.zeros((3, 2, 3), np.uint8)}, r"received uint8 \[3, 2, 3\]"),
        ({"reward": float("nan")}, "a finite reward, received nan"),
    ],
)
def test_E04_broken_environments(changes, message):
    class Broken(Counting):
        def step(self, action):
            return super().step(action)._replace(**changes)

    with pytest.raises(SimulatorError, match=rf"^episode 1: failed with {ATTEMPTS} seeds in a row .*{message}"):
        list(play([Broken()], RandomPolicy(2), [1]))


def test_E04_an_environment_that_changes_its_spaces():
    class Changing(Counting):
        def step(self, action):
            self.image_shape = (3, 3, 3)
            return super().step(action)

    with pytest.raises(
        SimulatorError,
        match=r"expected images and actions of \(\(2, 2, 3\), 2\) throughout, received \(\(3, 3, 3\), 2\)",
    ):
        list(play([Changing()], RandomPolicy(2), [1]))


class PhysicsError(RuntimeError):
    """The error of the simulator suite has the same base class."""


class Spoiled(Counting):
    """Fails in episodes whose (played) seed is listed, at the first decision or at reset."""

    def __init__(self, seeds, *, at_reset=False):
        super().__init__()
        self.seeds, self.at_reset = set(seeds), at_reset

    def reset(self, seed):
        if self.at_reset and seed in self.seeds:
            raise PhysicsError("mjWARN_BADQACC\nin the walker")
        return super().reset(seed)

    def step(self, action):
        if self.seed in self.seeds:
            raise PhysicsError("mjWARN_BADQACC\nin the walker")
        return super().step(action)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("at_reset", [False, True])
def test_E02_L03_a_spoiled_episode_is_played_with_the_next_seed_and_counted(count, at_reset, capsys):
    """The episodes played beside it do not change, and neither does the one that replaces it."""
    seeds, broken = [3, 0, 5, 2, 1], [5, retry_seed(5, 1)]
    discarded = []
    episodes = list(play([Spoiled(broken, at_reset=at_reset) for _ in range(count)], RandomPolicy(2), seeds, discarded))
    expected = list(play([Counting()], RandomPolicy(2), [3, 0, retry_seed(5, 2), 2, 1]))
    assert discarded == [Discarded(5, attempt, "mjWARN_BADQACC in the walker") for attempt in (0, 1)]
    for one, other in zip(episodes, expected, strict=True):
        for left, right in zip(one, other, strict=True):
            np.testing.assert_array_equal(left, right)
    assert capsys.readouterr().err.count("is discarded: mjWARN_BADQACC in the walker") == 2


@pytest.mark.parametrize(("episodes", "allowed"), [(5, 1), (10, 1), (30, 3)])
def test_E02_L03_more_than_a_tenth_of_the_episodes_is_an_error_and_no_mean(episodes, allowed):
    seeds = list(range(episodes))
    assert len(list(play([Spoiled(seeds[:allowed])], RandomPolicy(2), seeds))) == episodes
    with pytest.raises(
        SimulatorError,
        match=f"^{allowed + 1} of {episodes} episodes could not be played .*expected at most {allowed} .*BADQACC",
    ):
        list(play([Spoiled(seeds[: allowed + 1])], RandomPolicy(2), seeds))


def test_E02_a_mistake_in_an_environment_is_no_spoiled_episode():
    class Mistaken(Counting):
        def step(self, action):
            raise KeyError("walker")

    with pytest.raises(KeyError, match="walker"):
        list(play([Mistaken()], RandomPolicy(2), [1]))


def test_seeds_of_further_attempts_are_fixed_and_differ():
    assert retry_seed(7, 0) == 7
    drawn = {retry_seed(seed, attempt) for seed in range(100) for attempt in range(1, ATTEMPTS)}
    assert len(drawn) == 100 * (ATTEMPTS - 1) and max(drawn) < 2**32
    assert [retry_seed(7, attempt) for attempt in (1, 2, 3)] == [11803744, 2527321439, 3798110162]


def test_R19_a_step_that_never_returns_is_given_up(monkeypatch):
    class Sleeping(Counting):
        def step(self, action):
            if self.seed == 4:
                time.sleep(60)
            return super().step(action)

    monkeypatch.setattr(rollout, "ANSWER_SECONDS", 0.2)
    discarded, started = [], time.monotonic()
    assert len(list(play([Sleeping(), Counting()], RandomPolicy(2), [4, 1], discarded))) == 2
    assert time.monotonic() - started < 5
    assert discarded == [Discarded(4, 0, "environment: no answer within 0 s")]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.1, -1.1])
def test_E03_a_wrong_action_is_the_policys_fault_and_no_environment_sees_it(value):
    class Wrong(RandomPolicy):
        def __call__(self, image, state, seeds, step):
            action, state = super().__call__(image, state, seeds, step)
            action[-1, 1] = value if step == 1 else action[-1, 1]
            return action, state

    environments = [Counting(), Counting()]
    with pytest.raises(
        NumericalError, match=r"expected finite actions in \[-1, 1\], received .* at decision 1 of episode 7$"
    ) as caught:
        list(play(environments, Wrong(2), [3, 7]))
    assert caught.value.exit_code == 5
    assert [len(environment.received) for environment in environments] == [1, 1]
