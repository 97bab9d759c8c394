"""Behaviour policies: functions of (recipe, episode's seed), and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest

from semopo_tf.envs import tasks
from semopo_tf.envs.behaviours import (
    Constant,
    GaussianNetwork,
    Layer,
    RandomNetworks,
    draw_network,
    forward,
    grey_cells,
    pack_layers,
    read_layers,
    relu,
    require_sizes,
)
from semopo_tf.envs.contract import Contract
from semopo_tf.envs.rollout import play
from semopo_tf.envs.states import make_states
from semopo_tf.errors import ConfigError, DataError
from semopo_tf.storage import npz


def actions(policy, environment, seed, steps=5):
    state, found = policy.initial(1), []
    image = np.zeros((1, 16, 16, 3), np.uint8)
    for step in range(steps):
        environment.state = np.random.default_rng(step).normal(size=3)
        action, state = policy(image, state, np.array([seed]), step)
        found.append(action[0])
    return np.stack(found)


def world():
    return SimpleNamespace(action_size=2, state_size=3, state=np.zeros(3))


@pytest.mark.parametrize("task", ["dmc_walker_walk", "exbmdp_point"])
def test_every_behaviour_is_a_function_of_its_seed(task):
    for name, make in tasks.behaviours(task).items():
        environment = world()
        environment.position = environment.velocity = np.zeros(2)
        first, again = (actions(make(environment), environment, 7) for _ in range(2))
        np.testing.assert_array_equal(first, again, err_msg=name)
        assert np.abs(first).max() <= 1
        if name != "expert":
            assert not np.array_equal(first, actions(make(environment), environment, 8)), name


def test_a_random_network_is_drawn_for_every_episode_with_the_stated_scales():
    layers = [draw_network(seed, 100, 2) for seed in range(40)]
    scales = [np.std([each[place].kernel for each in layers]) for place in range(3)]
    np.testing.assert_allclose(scales, [3 / 10, 3 / 8, 10 / 8], rtol=0.03)
    assert np.std([each[0].bias for each in layers]) == pytest.approx(0.1, rel=0.1)
    assert not np.any(layers[0][-1].bias)


def test_a_constant_behaviour_holds_one_extreme_action():
    environment = SimpleNamespace(action_size=3)
    played = [actions(Constant(environment), environment, seed, steps=300) for seed in range(20)]
    held = [np.sign(episode.mean(0)) for episode in played]
    assert len({tuple(each) for each in held}) == 8  # every corner of the cube occurs
    for episode, corner in zip(played, held, strict=True):
        assert (np.abs(episode - corner) < 0.9).all() and (episode == corner).mean() == pytest.approx(0.5, abs=0.06)


def test_a_random_network_without_a_state_sees_the_picture(rng):
    environment = SimpleNamespace(action_size=2)
    policy = RandomNetworks(environment)
    images = rng.integers(0, 256, (2, 20, 30, 3), np.uint8)
    first, network = policy(images[:1], None, np.array([3]), 0)
    second, _ = policy(images[1:], network, np.array([3]), 1)
    assert not np.array_equal(first, second)
    cells = np.array([grey_cells(images[0])]).reshape(8, 8)
    by_hand = images[0][0:2, 0:3].mean() / 127.5  # rows 0-1 and columns 0-2: the first of eight unequal parts
    assert cells[0, 0] - cells[0, 1] == pytest.approx(by_hand - images[0][0:2, 3:7].mean() / 127.5)
    assert cells.mean() == pytest.approx(0, abs=1e-9)


def test_a_trained_behaviour_plays_as_its_file_says(tmp_path, rng):
    layers = [Layer(rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32))]
    layers.append(Layer(rng.normal(size=(4, 4)).astype(np.float32), np.zeros(4, np.float32)))
    (tmp_path / "a.npz").write_bytes(npz.pack(pack_layers(layers)))
    environment = world()
    policy = GaussianNetwork(environment, read_layers(tmp_path / "a.npz"), greedy=True)
    environment.state = np.array([0.1, -0.2, 0.3])
    mean = forward(layers, environment.state.astype(np.float32), relu)[:2]
    np.testing.assert_allclose(policy(None, None, np.array([1]), 0)[0][0], np.tanh(mean), rtol=1e-6)
    require_sizes(layers, environment, "a.npz")
    noisy = GaussianNetwork(environment, layers)
    many = np.stack([np.arctanh(noisy(None, None, np.array([1]), step)[0][0]) for step in range(400)])
    np.testing.assert_allclose(many.mean(0), mean, atol=0.5)
    with pytest.raises(ConfigError, match=r"a.npz: expected a task with states and actions of \(3, 2\).*\(9, 2\)"):
        require_sizes(layers, SimpleNamespace(state_size=9, action_size=2), "a.npz")
    with pytest.raises(ConfigError, match=r"a.npz: expected a task whose simulator tells its state"):
        require_sizes(layers, SimpleNamespace(action_size=2), "a.npz")


@pytest.mark.parametrize("content", [b"", b"text", npz.pack({"kernel0": np.zeros((2, 3), np.float32)})])
def test_a_file_that_is_no_snapshot_is_named(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a.npz: expected the layers of a behaviour"):
        read_layers(tmp_path / "a.npz")


def test_layers_that_do_not_follow_each_other_are_refused(tmp_path):
    layers = [Layer(np.zeros((3, 4), np.float32), np.zeros(4, np.float32))]
    layers.append(Layer(np.zeros((5, 2), np.float32), np.zeros(2, np.float32)))
    (tmp_path / "a.npz").write_bytes(npz.pack(pack_layers(layers)))
    with pytest.raises(DataError, match="do not fit each other"):
        read_layers(tmp_path / "a.npz")


def test_a_world_without_pictures_has_the_rewards_of_the_one_with_them():
    """A behaviour that sees the state plays the same episode whether or not it is drawn."""
    drawn = tasks.make("dmc_cartpole_swingup", size=16, action_repeat=20)
    blind = make_states("dmc_cartpole_swingup", 20)
    with_pictures, without = Contract(drawn), Contract(blind)
    try:
        (one,) = play([with_pictures], RandomNetworks(drawn), [11])
        (other,) = play([without], RandomNetworks(blind.inner), [11])
    finally:
        with_pictures.close()
        without.close()
    np.testing.assert_array_equal(one.reward, other.reward)
    np.testing.assert_array_equal(one.action, other.action)
    assert other.log["state"].shape == (51, drawn.state_size) and other.image.shape == (51, 1, 1, 3)


def test_an_environment_without_a_state_is_refused(monkeypatch):
    monkeypatch.setitem(tasks._registry, "mine", lambda **settings: SimpleNamespace(action_size=1, close=lambda: None))
    with pytest.raises(ConfigError, match="expected an environment with state and state_size"):
        make_states("mine", 1)
