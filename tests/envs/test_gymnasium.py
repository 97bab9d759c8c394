"""The wrapper of docs/environments.md for environments of gymnasium, played as written there. The package itself is not
needed: `gymnasium.py` here has the same interface, and the three kinds of environments that people have.
"""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from semopo_tf import collect
from semopo_tf.data.episodes import read_episode
from semopo_tf.envs import tasks
from semopo_tf.envs.rollout import RandomPolicy
from semopo_tf.run import collecting

PAGE = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
CODE = PAGE.split("```python\n")[2].split("```")[0]
STUB = """
import numpy as np


class spaces:
    class Box:
        def __init__(self, low, high):
            self.low, self.high = np.array(low, np.float32), np.array(high, np.float32)

    class Discrete:
        def __init__(self, n):
            self.n = np.int64(n)


class Base:
    def __init__(self, render_mode=None, max_episode_steps=12):
        assert render_mode == "rgb_array"
        self.limit, self.canvas, self.received = max_episode_steps, np.zeros((60, 90, 3), np.uint8), []

    def reset(self, *, seed=None, options=None):
        self.rng, self.time = np.random.default_rng(seed), 0
        return self.observation(), {}

    def step(self, action):
        self.received.append(action)
        self.time += 1
        over = self.falls()
        return self.observation(), np.float64(self.time), over, not over and self.time == self.limit, {}

    def observation(self):
        return np.zeros(3, np.float32)

    def falls(self):
        return False

    def render(self):
        self.canvas[:] = self.time
        return self.canvas

    def close(self):
        pass


class Pendulum(Base):
    action_space = spaces.Box([-2, 0], [2, 1])


class CartPole(Base):
    action_space = spaces.Discrete(2)

    def falls(self):
        return self.time == 5


class CarRacing(Base):
    action_space = spaces.Box([-1, 0, 0], [1, 1, 1])

    def observation(self):
        return np.full((96, 96, 3), 100 + self.time, np.uint8)


NAMES = {"Pendulum-v1": Pendulum, "CartPole-v1": CartPole, "CarRacing-v3": CarRacing}


def make(name, **settings):
    return NAMES[name](**settings)
"""


@pytest.fixture
def gym_tasks(tmp_path, monkeypatch):
    """The page's file in the working directory."""
    (tmp_path / "gym_tasks.py").write_text(CODE)
    (tmp_path / "gymnasium.py").write_text(STUB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    written = ("gym_tasks", "gymnasium")
    for name in written:
        monkeypatch.delitem(sys.modules, name, raising=False)
    collecting.player.cache_clear()
    yield importlib.import_module(written[0])
    collecting.player.cache_clear()
    for name in written:
        sys.modules.pop(name, None)


def collected(task, *flags):
    collect.main(["--task", f"gym_tasks:{task}", "--episodes", "2", "--out", task, *flags])
    return read_episode(min(Path(task).glob("*.npz")))


def test_I24_pixels_from_render_and_a_time_limit(gym_tasks, capsys):
    episode = collected("pendulum")
    assert episode.image.shape == (7, 64, 64, 3)  # 12 steps, two a decision
    assert episode.image[:, 0, 0, 0].tolist() == [0, 2, 4, 6, 8, 10, 12]  # one buffer is drawn into
    assert episode.reward.tolist() == [0, 3, 7, 11, 15, 19, 23]
    assert not episode.is_terminal.any() and episode.discount.tolist() == [1] * 7
    assert capsys.readouterr().err == ""


def test_I24_a_task_that_terminates_and_has_choices(gym_tasks, capsys):
    episode = collected("cart_pole")
    assert episode.action.shape == (4, 2)  # the third decision is cut short by the fall
    assert episode.reward.tolist() == [0, 3, 7, 5]
    assert episode.is_terminal.tolist() == [False, False, False, True]
    assert capsys.readouterr().err == ""


def test_I24_uniform_actions_take_every_choice(gym_tasks):
    """As the page collects CartPole; `random` holds one choice for most of an episode."""
    action = collected("cart_pole", "--policy", "uniform", "--action_repeat", "1").action[1:]
    assert set(np.argmax(action, 1)) == {0, 1}


def test_I24_observations_of_96_pixels(gym_tasks, capsys):
    assert collected("car_racing", "--size", "96", "--action_repeat", "3").image[:, 5, 5, 1].tolist() == [
        100,
        103,
        106,
        109,
        112,
    ]
    assert capsys.readouterr().err == ""


def test_I24_actions_are_rescaled_to_the_bounds(gym_tasks):
    environment = tasks.make("gym_tasks:pendulum", action_repeat=1)
    environment.reset(0)
    for action in ([-1, -1], [1, 1], [0, 0]):
        environment.step(np.array(action, np.float32))
    assert np.array(environment.env.received).tolist() == [[-2, 0], [2, 1], [0, 0.5]]
    chooser = tasks.make("gym_tasks:cart_pole", action_repeat=1)
    chooser.reset(0)
    for seed in range(3):
        chooser.step(RandomPolicy(2)(None, None, np.array([seed]), 0)[0][0])
    assert set(chooser.env.received) <= {0, 1} and all(isinstance(action, int) for action in chooser.env.received)


def test_I24_a_time_limit_of_ones_own(gym_tasks):
    environment = gym_tasks.Gym("Pendulum-v1", limits={"max_episode_steps": 3})
    environment.reset(0)
    assert [environment.step(np.zeros(2)).is_last for _ in range(3)] == [False, False, True]
