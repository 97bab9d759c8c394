"""The built-in testbed: its dynamics checked by hand, what may depend on what, pictures, behaviours and data."""

import numpy as np
import pytest

from semopo_tf import collect
from semopo_tf.data.cards import read_card
from semopo_tf.data.dataset import open_dataset
from semopo_tf.data.episodes import episode_files, read_log
from semopo_tf.envs import exbmdp, tasks
from semopo_tf.envs.exbmdp import DECISIONS, GOAL, TASKS, Behaviour
from semopo_tf.envs.rollout import play
from semopo_tf.errors import ConfigError, NumericalError, SimulatorError

SIZE = 32
RNG = np.random.default_rng(0)
PUSHES = RNG.uniform(-1, 1, (DECISIONS, 2))


def run(environment, seed, actions=PUSHES):
    return [environment.reset(seed), *(environment.step(action) for action in actions)]


def column(observations, name):
    return np.stack([observation.log[name] for observation in observations])


@pytest.fixture(params=sorted(TASKS))
def environment(request):
    return tasks.make(request.param, size=SIZE, action_repeat=1)


# ------------------------------------------------------------------------------------------------ the contract of every


def test_an_episode_has_fifty_decisions_and_keeps_the_contract(environment):
    first, *later = run(environment, 3)
    assert (first.reward, first.is_first, first.is_last, first.is_terminal) == (0.0, True, False, False)
    assert [observation.is_last for observation in later] == [False] * (DECISIONS - 1) + [True]
    assert not any(observation.is_first or observation.is_terminal for observation in later)
    for observation in (first, *later):
        assert observation.image.dtype == np.uint8 and observation.image.shape == environment.image_shape == (
            SIZE,
            SIZE,
            3,
        )
        assert observation.log.keys() == first.log.keys()
    with pytest.raises(SimulatorError, match="expected a running episode"):
        environment.step(PUSHES[0])


def test_an_episode_is_a_function_of_seed_and_actions(environment):
    one, other, again = run(environment, 3), run(environment, 4), run(environment, 3)
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert a.reward == b.reward
    assert any((a.image != b.image).any() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("action", [[np.nan, 0.0], [np.inf, 0.0], [0.0], [0.0, 0.0, 0.0]])
def test_a_wrong_action_is_refused(environment, action):
    environment.reset(0)
    with pytest.raises(NumericalError, match="action: expected 2 finite values"):
        environment.step(np.array(action))


# ------------------------------------------------------------------------------------------------ s+ and s-


def test_the_agent_moves_by_the_equations(environment):
    observations = run(environment, 5)
    position, velocity = column(observations, "position"), column(observations, "velocity")
    assert (velocity[0] == 0).all() and (np.abs(position[0]) <= 0.8).all()
    stopped = 0
    for t, action in enumerate(PUSHES, 1):
        for axis in range(2):
            expected_v = 0.7 * velocity[t - 1, axis] + 0.06 * action[axis]
            expected_p = position[t - 1, axis] + expected_v
            if abs(expected_p) > 0.8:  # at a wall
                expected_p, expected_v, stopped = np.sign(expected_p) * 0.8, 0.0, stopped + 1
            assert position[t, axis] == pytest.approx(expected_p) and velocity[t, axis] == pytest.approx(expected_v)
        squared = (position[t, 0] - 0.1) ** 2 + (position[t, 1] + 0.1) ** 2
        assert observations[t].reward == pytest.approx(1 / (1 + squared / 0.0625))


def test_walls_stop_the_agent():
    environment = tasks.make("exbmdp_scroll", size=8, action_repeat=1)
    last = run(environment, 1, np.ones((DECISIONS, 2)))[-1]
    np.testing.assert_array_equal(last.log["position"], [0.8, 0.8])
    np.testing.assert_array_equal(last.log["velocity"], [0, 0])


def test_no_action_reaches_the_exogenous_state_and_the_agent_ignores_it(environment):
    still, moved = run(environment, 7, np.zeros_like(PUSHES)), run(environment, 7)
    for name in set(still[0].log) - {"position", "velocity"}:
        np.testing.assert_array_equal(column(still, name), column(moved, name))
        assert (np.ptp(column(still, name), axis=0) > 0).all()  # it does move
    assert (column(still, "position") != column(moved, "position")).any()
    # The same agent in front of another texture: the same motion and the same rewards.
    other = run(
        tasks.make(environment_name(environment), size=SIZE, action_repeat=1, options={"exo_dims": 0, "discs": 0}), 7
    )
    np.testing.assert_array_equal(column(moved, "position"), column(other, "position"))
    assert [a.reward for a in moved] == [b.reward for b in other]


def environment_name(environment):
    return next(task for task, world in TASKS.items() if world == environment.world)


@pytest.mark.parametrize(("dims", "angles"), [(0, 0), (2, 2), (10, 10), (20, 20), (40, 40)])
def test_as_many_numbers_move_the_texture_as_asked(dims, angles):
    environment = tasks.make("exbmdp_hard", size=SIZE, action_repeat=1, options={"exo_dims": dims, "discs": 0})
    observations = run(environment, 2, np.zeros_like(PUSHES))
    assert observations[0].log.get("phase", np.zeros(0)).shape == (2 * angles,)
    corner = np.stack([observation.image[:8, :8] for observation in observations]).astype(float)
    assert (np.ptp(corner, axis=0).max() > 0) == (dims > 0)


def test_a_scrolling_texture_is_one_picture_shifted():
    """Shifting by a whole number of pixels moves the picture and changes nothing else."""
    world = TASKS["exbmdp_scroll"]
    picture = exbmdp.Picture(world, SIZE)
    background = exbmdp.Background(world, picture.vectors, np.random.default_rng(0))
    away = np.array([20.0, 20.0])  # the agent
    background.shift = np.array([0.25, 0.5])
    one = picture.draw(away, background.phases, background.discs)
    background.shift = background.shift + np.array([3, 5]) / SIZE
    np.testing.assert_array_equal(
        picture.draw(away, background.phases, background.discs), np.roll(one, (-5, -3), (0, 1))
    )


def test_the_texture_is_the_sum_of_waves_written_out():
    world = TASKS["exbmdp_hard"]._replace(discs=0)
    picture = exbmdp.Picture(world, SIZE)
    phases = RNG.uniform(0, 6, 10)
    image = picture.draw(np.array([9.0, 9.0]), phases, np.zeros((0, 2)))
    row, col = 5, 20
    x, y = (col + 0.5) / SIZE, (row + 0.5) / SIZE
    waves = [(1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (3, 0), (0, 3), (2, 2)]
    amplitude = [1 / np.hypot(*k) for k in waves]
    total = sum(
        a * np.cos(2 * np.pi * (k[0] * x + k[1] * y) + p) for a, k, p in zip(amplitude, waves, phases, strict=True)
    )
    grey = 0.5 + 0.35 * np.tanh(1.7 * total / np.sqrt(sum(a * a for a in amplitude) / 2))
    assert image[row, col].tolist() == [round(grey * 255)] * 3


def test_the_agent_is_drawn_on_top_where_it_is():
    environment = tasks.make("exbmdp_hard", size=64, action_repeat=1)
    observation = environment.reset(11)
    x, y = ((observation.log["position"] + 1) / 2 * 64).astype(int)
    assert np.abs(observation.image[y, x] - 255 * exbmdp.COLOR).max() < 8


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": {"exo_dim": 2}}, "--options exo_dim: expected one of exo_dims, discs, contrast, sprite"),
        ({"options": {"exo_dims": 5}}, "--options exo_dims=5: expected 0, 2 or 10 to 60"),
        ({"options": {"discs": 3}}, "--options discs=3: expected 0 to 2"),
        ({"options": {"contrast": 0.7}}, "--options contrast=0.7: expected 0 to 0.5"),
        ({"options": {"sprite": 0}}, "--options sprite=0.0: expected more than 0"),
        ({"action_repeat": 2}, "--action_repeat: expected 1"),
        ({"background": "builtin:driving"}, "--background: expected none"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        tasks.make("exbmdp_point", **{"action_repeat": 1} | settings)


def test_an_unknown_task_and_options_elsewhere_are_refused():
    with pytest.raises(ConfigError, match="unknown task 'exbmdp_pont'"):
        tasks.make("exbmdp_pont", action_repeat=1)
    with pytest.raises(ConfigError, match="--options: expected none, as dmc_walker_walk has none"):
        tasks.make("dmc_walker_walk", options={"exo_dims": 2})


# ------------------------------------------------------------------------------------------------ behaviours and data


def returns(kind, count=60):
    environment = tasks.make("exbmdp_scroll", size=8, action_repeat=1)
    return np.array(
        [episode.reward.sum() for episode in play([environment], Behaviour(kind, environment), range(count))]
    )


def test_the_controller_is_near_optimal_and_the_behaviours_are_poor():
    """The goal is at most 1.3 away and the agent covers 0.2 a decision, so 47 of 50 is out of reach for nobody who
    knows it.
    """
    values = {kind: returns(kind) for kind in Behaviour.KINDS}
    assert values["expert"].mean() > 47 and values["expert"].min() > 44
    for kind in ("random", "iid", "medium", "mixed"):
        assert values[kind].mean() < 12, kind
    assert values["medium"].max() > values["random"].max() + 10  # a few wrong goals lie near the right one


def test_behaviours_draw_from_the_episodes_seed_alone():
    environment = tasks.make("exbmdp_point", size=8, action_repeat=1)
    for kind in Behaviour.KINDS:
        one, _, again = play([environment], Behaviour(kind, environment), [3, 4, 3])
        np.testing.assert_array_equal(one.action, again.action)
        np.testing.assert_array_equal(one.image, again.image)
        assert np.abs(one.action).max() <= 1


def test_mixed_behaviour_is_made_of_both_kinds():
    environment = tasks.make("exbmdp_point", size=8, action_repeat=1)
    kinds = {Behaviour("mixed", environment)._plan(seed)["goal"] is None for seed in range(20)}
    assert kinds == {True, False}


def test_a_behaviour_sees_one_environment():
    environment = tasks.make("exbmdp_point", size=8, action_repeat=1)
    with pytest.raises(ConfigError, match="expected 1 environment, received 2"):
        Behaviour("iid", environment)(np.zeros((2, 8, 8, 3)), None, np.array([1, 2]), 0)


def test_a_dataset_has_true_states_beside_its_records_and_a_card_that_rebuilds_the_task(tmp_path):
    flags = ["--task", "exbmdp_hard", "--policy", "mixed", "--episodes", "3", "--out", str(tmp_path / "data")]
    assert collect.main([*flags, "--options", "exo_dims=20", "contrast=0.3"]) == 0
    dataset = open_dataset(tmp_path / "data")
    assert dataset.frames.shape == (153, 32, 32, 3)
    settings = tasks.settings_of(read_card(tmp_path / "data"))
    assert settings["options"] == {"exo_dims": 20.0, "contrast": 0.3}
    environment = tasks.make("exbmdp_hard", **settings)
    path = episode_files(tmp_path / "data")[1]
    log = read_log(path)
    assert {name: array.shape for name, array in log.items()} == {
        "position": (51, 2),
        "velocity": (51, 2),
        "phase": (51, 40),
        "discs": (51, 4),
    }
    seed = int(path.name.split("-")[1], 16)
    observations = run(environment, seed, dataset.action[51 + 1 : 102])
    np.testing.assert_array_equal(np.stack([o.image for o in observations]), dataset.frames[51:102])
    np.testing.assert_allclose(log["position"], column(observations, "position"))
    assert np.abs(log["position"] - GOAL).max() > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--policy", "clever"],
            "--policy: expected random, iid, medium, mixed, expert, networks, uniform, constant, snap.* for exb",
        ),
        (["--options", "exo_dims"], "--options: expected name=number, received 'exo_dims'"),
    ],
)
def test_wrong_flags_of_a_collection_are_named(tmp_path, flags, message):
    with pytest.raises(ConfigError, match=message):
        collect.main(["--task", "exbmdp_point", "--out", str(tmp_path / "data"), *flags])
    assert not (tmp_path / "data").exists()
