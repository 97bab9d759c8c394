"""Car Racing and other environments of gym, played for real; gymnasium where it is installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import semopo_tf
from semopo_tf import collect
from semopo_tf.data.cards import read_card
from semopo_tf.data.episodes import read_episode
from semopo_tf.envs import gym_adapter, rollout, tasks
from semopo_tf.envs.driver import Driver
from semopo_tf.errors import ConfigError, NumericalError, SemopoError, SimulatorError, one_line
from semopo_tf.run import collecting
from semopo_tf.storage.resize import resize

ROOT = Path(semopo_tf.__file__).parents[1]
TASK, NEWER = "gym_CarRacing-v2", "gym_CarRacing-v3"
HAS_GYMNASIUM = importlib.util.find_spec("gymnasium") is not None
CAR_RACINGS = [
    TASK,
    pytest.param(NEWER, marks=pytest.mark.skipif(not HAS_GYMNASIUM, reason="gymnasium is not installed")),
]
STRAIGHT = np.array([0.0, 0.4, -1.0])  # off the road and out of the field in 260 frames; with full gas the car spins
DRIVE = np.array([0.1, 0.0, -1.0])  # half gas, slightly to the right


def made(task=TASK, **settings):
    return tasks.make(task, **{"size": 32, "options": {"max_episode_steps": 60}} | settings)


def play(environment, seed, actions):
    """The observations of an episode until it ends or the actions do."""
    seen = [environment.reset(seed)]
    for action in actions:
        if not seen[-1].is_last:
            seen.append(environment.step(action))
    return seen


def same(one, other):
    assert [step[1:5] for step in one] == [step[1:5] for step in other]
    for here, there in zip(one, other, strict=True):
        np.testing.assert_array_equal(here.image, there.image)


def python(code, **variables):
    """A fresh interpreter in which every warning is an error."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SDL")} | variables
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done


# --- Car Racing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", CAR_RACINGS)
def test_E06_fifty_steps_on_this_numpy_without_a_display_a_warning_or_a_notice(task):
    code = f"""
import numpy as np
from semopo_tf.envs import tasks
environment = tasks.make({task!r}, action_repeat=1)
rng = np.random.default_rng(0)
seen = [environment.reset(1), *(environment.step(rng.uniform(-1, 1, 3).astype(np.float32)) for _ in range(50))]
assert all(step.image.shape == (64, 64, 3) and step.image.dtype == np.uint8 for step in seen)
assert all(type(step.reward) is float and type(step.is_last) is bool for step in seen), seen[-1]
assert len({{step.image.tobytes() for step in seen}}) > 40
import os, sys
print(np.__version__.split(".")[0], os.environ["SDL_VIDEODRIVER"], "tensorflow" in sys.modules)
"""
    done = python(code)
    assert (done.stdout, done.stderr) == ("2 dummy False\n", "")


def test_E06_the_users_video_driver_is_kept():
    code = "import os\nfrom semopo_tf.envs.gym_adapter import load\nload('gym')\nprint(os.environ['SDL_VIDEODRIVER'])"
    assert python(code, SDL_VIDEODRIVER="offscreen").stdout == "offscreen\n"


@pytest.mark.parametrize("task", CAR_RACINGS)
def test_an_episode_is_a_function_of_its_seed_and_actions(task):
    environment, another = made(task), made(task)
    actions = np.random.default_rng(2).uniform(-1, 1, (25, 3))
    first, between, again = (play(environment, seed, actions) for seed in (5, 6, 5))
    same(first, again)
    same(first, play(another, 5, actions))
    assert not np.array_equal(first[-1].image, between[-1].image)
    big = play(environment, 2**70, actions[:1])  # a seed of any size
    assert big[-1].image.any()


@pytest.mark.parametrize("task", CAR_RACINGS)
def test_actions_are_rescaled_component_by_component(task):
    environment = made(task)
    for action, control in (
        ([-1, -1, -1], [-1, 0, 0]),
        ([1, 1, 1], [1, 1, 1]),
        ([0, 0, 0.5], [0, 0.5, 0.75]),
    ):
        received = environment._control(np.array(action, np.float32))
        assert (received.dtype, received.tolist()) == (np.float64, control)


def test_gas_moves_the_car_brakes_hold_it_and_positive_steering_is_to_the_right():
    environment = made(options={})
    where = {}
    for name, action in {"gas": STRAIGHT, "brake": [0, -1, 1], "right": [1, 0, -1], "left": [-1, 0, -1]}.items():
        play(environment, 3, [action] * 20)
        hull = environment.env.unwrapped.car.hull
        where[name] = np.hypot(*hull.linearVelocity), hull.angularVelocity
    assert where["gas"][0] > 10 > 0.5 > where["brake"][0]
    assert where["right"][1] < -0.1 and where["left"][1] > 0.1  # angles count to the left


def test_the_picture_is_the_area_average_of_the_observation():
    small, whole = (made(size=size, action_repeat=1, options={"max_episode_steps": 9}) for size in (64, 96))
    for little, big in zip(play(small, 1, [DRIVE] * 9), play(whole, 1, [DRIVE] * 9), strict=True):
        np.testing.assert_array_equal(little.image, resize(big.image[None], 64)[0])
    np.testing.assert_array_equal(big.image, whole.env.unwrapped.state)
    # 96 to 64: every pixel is the mean of 1.5 x 1.5; of two pixels and a half in the first row and column.
    weights = np.array([1, 0.5]) / 1.5
    expected = np.einsum("i,j,ijc->c", weights, weights, big.image[:2, :2].astype(float))
    np.testing.assert_allclose(little.image[0, 0], expected, atol=1.01)  # both passes round


def test_action_repeat_sums_rewards():
    once, twice = (play(made(action_repeat=repeat), 4, [DRIVE] * 60) for repeat in (1, 2))
    assert (len(once), len(twice)) == (61, 31)
    for index, observation in enumerate(twice[1:]):
        pair = once[1 + 2 * index : 3 + 2 * index]
        assert observation.reward == sum(step.reward for step in pair)
        np.testing.assert_array_equal(observation.image, pair[1].image)


@pytest.mark.parametrize("task", CAR_RACINGS)
def test_leaving_the_field_is_a_real_end_and_the_sum_of_rewards_stops_there(task):
    environment = made(task, action_repeat=1000, options={})
    seen = play(environment, 0, [STRAIGHT])[-1]
    frames = round(environment.env.unwrapped.t * 50) - 1  # the first one is drawn by reset
    assert 200 < frames < 300
    assert (seen.is_last, seen.is_terminal) == (True, True)
    world = environment.env.unwrapped
    earned = world.reward + 0.1  # the last frame is worth -100, whatever it visits
    assert seen.reward == pytest.approx(earned - 100, abs=1e-6)
    with pytest.raises(SimulatorError, match="after its end; call reset first"):
        environment.step(STRAIGHT)
    assert environment.reset(0).is_first


@pytest.mark.parametrize(("task", "terminal"), [(TASK, False), pytest.param(NEWER, True, marks=CAR_RACINGS[1].marks)])
def test_a_finished_lap_ends_v2_like_a_time_limit_and_v3_for_good(task, terminal):
    # Of a lap that counts as complete at once, the first tile is the end.
    seen = play(made(task, options={"lap_complete_percent": 0}), 1, [DRIVE])[-1]
    assert (seen.is_last, seen.is_terminal) == (True, terminal)


@pytest.mark.parametrize("task", CAR_RACINGS)
def test_a_time_limit_is_no_termination(task):
    environment = made(task, action_repeat=4, options={"max_episode_steps": 10})
    seen = play(environment, 1, [DRIVE] * 5)
    assert [step.is_last for step in seen] == [False, False, False, True]  # 4 + 4 + 2 frames
    assert not any(step.is_terminal for step in seen)
    assert environment.env.spec.max_episode_steps == 10
    assert made(task, options={}).env.spec.max_episode_steps == 1000


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([np.nan, 0, 0], r"finite values in \[-1, 1\], received \[nan"),
        ([0, 1.5, 0], "received .*1.5"),
        ([0, 0], r"expected shape \[3\], received \[2\]"),
    ],
)
def test_wrong_actions(action, message):
    environment = made()
    environment.reset(0)
    with pytest.raises(NumericalError, match=message):
        environment.step(np.array(action))


# --- what the rest of the package asks --------------------------------------------------------------------------------


@pytest.mark.parametrize("task", CAR_RACINGS)
def test_package_and_version_are_known_and_the_task_shows_no_background(task):
    versions = tasks.environment_versions(task)
    assert next(iter(versions)) == ("gym" if task == TASK else "gymnasium")
    assert {"box2d", "numpy"} < set(versions) and "none" not in versions.values()
    assert tasks.shows_no_background(task)
    assert tasks.usual_settings(task) == {"size": 64, "action_repeat": 2}
    assert list(tasks.behaviours(task)) == ["random", "uniform", "constant", "driver"]


def test_other_environments_of_gym_have_no_driver_and_a_users_module_is_none_of_gym():
    assert list(tasks.behaviours("gym_Pendulum-v1")) == ["random", "uniform", "constant"]
    assert list(tasks.behaviours("gym_tasks:pendulum")) == ["random", "uniform", "constant"]
    assert tasks.environment_versions("gym_tasks:pendulum") == {"numpy": np.__version__}
    assert not tasks.shows_no_background("gym_tasks:pendulum")


def test_a_registered_name_wins(monkeypatch):
    monkeypatch.setitem(tasks._registry, TASK, lambda **settings: settings["size"])
    assert tasks.make(TASK, size=5) == 5
    assert list(tasks.behaviours(TASK)) == ["random", "uniform", "constant"]


CARD = {"task": TASK, "versions": {"gym": "0.26.2", "box2d": "2.3.10", "pygame-ce": "2.5.8", "numpy": "1.0"}}


def test_other_versions_than_those_of_the_data_are_said(monkeypatch):
    monkeypatch.setattr(tasks, "_version", {"gym": "0.26.2", "box2d": "2.3.10", "pygame-ce": "2.5.8"}.get)
    monkeypatch.setattr(gym_adapter, "distributions", lambda name: ("gym", "box2d", "pygame-ce"))
    assert tasks.other_versions(TASK, CARD) == ""  # NumPy's may differ
    assert tasks.other_versions("exbmdp_point", CARD) == "" == tasks.other_versions(TASK, {})
    assert tasks.other_versions(TASK, {"versions": 3}) == "" == tasks.other_versions(TASK, {"versions": {"numpy": 3}})
    monkeypatch.setattr(gym_adapter, "distributions", lambda name: ("gym", "box2d"))
    expected = (
        "the data were collected with gym 0.26.2, box2d 2.3.10, pygame-ce 2.5.8, and the evaluation plays "
        "gym 0.26.2, box2d 2.3.10"
    )
    assert tasks.other_versions(TASK, CARD) == expected


def test_the_suites_versions_are_compared_too():
    card = {"versions": {"dm_control": "0.1", "mujoco": "2", "numpy": "2.4.6", "backend": "egl"}}
    line = tasks.other_versions("dmc_walker_walk", card)
    assert line.startswith("the data were collected with dm_control 0.1, mujoco 2, and the evaluation plays dm_control")


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        (TASK, {"camera": 1}, "--camera: expected -1, as gym_CarRacing-v2 has no other, received 1"),
        (TASK, {"background": "builtin:driving"}, "--background: expected none, as gym_CarRacing-v2 draws its own"),
        (TASK, {"options": {"laps": 2.0}}, "--options laps: expected keywords of gym.make for CarRacing-v2"),
        (TASK, {"options": {"max_episode_steps": "os:system"}}, "max_episode_steps: expected a number, received 'os:"),
        ("gym_CarRacing-v1", {}, "unknown task 'gym_CarRacing-v1'.*gym: .*v1 for `CarRacing` is deprecated"),
        ("gym_CarRacng-v2", {}, "unknown task 'gym_CarRacng-v2'.*Did you mean: `CarRacing`"),
        ("gym_", {}, "unknown task 'gym_'; expected gym_<id> of gym or gymnasium"),
        ("gm_CarRacing-v2", {}, "unknown task 'gm_CarRacing-v2'.*e.g. gym_CarRacing-v2"),
    ],
)
def test_wrong_settings(task, settings, message):
    with pytest.raises(ConfigError, match=message):
        made(task, **{"options": {}} | settings)


def test_a_task_of_gymnasium_without_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ConfigError, match=r"gymnasium is not installed, run pip install 'gymnasium\[box2d\]'") as error:
        made(NEWER)
    assert "gym: Environment version `v3` for environment `CarRacing` doesn't exist" in one_line(error.value)


BLOCKED = """
import sys
from semopo_tf import collect
from semopo_tf.errors import run_command
sys.modules[{module!r}] = None
run_command(collect.main, ["--task", {task!r}, "--episodes", "1", "--out", {out!r}])
"""


@pytest.mark.parametrize(
    ("module", "task", "remedy"),
    [
        ("Box2D", TASK, "box2D is not installed; run pip install 'semopo_tf[carracing]'"),
        ("pygame", TASK, "pygame is not installed; run pip install 'semopo_tf[carracing]'"),
        pytest.param(
            *("Box2D", NEWER, "Box2D is not installed; run pip install 'gymnasium[box2d]'"), marks=CAR_RACINGS[1].marks
        ),
    ],
)
def test_E05_a_missing_package_is_one_line_with_the_remedy(tmp_path, module, task, remedy):
    code = BLOCKED.format(module=module, task=task, out=str(tmp_path / "data"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 6
    assert done.stderr == f"semopo_tf: simulator error (exit 6): {task}: {remedy}\n"
    assert not (tmp_path / "data").exists()


# --- other environments -----------------------------------------------------------------------------------------------


def test_what_gym_renders_is_the_picture_of_other_observations():
    environment = made("gym_Pendulum-v1", options={"max_episode_steps": 6})
    seen = play(environment, 1, [np.array([0.5])] * 3)
    assert environment.action_size == 1 and environment._control(np.array([0.5])).tolist() == [1.0]  # of [-2, 2]
    assert [step.is_last for step in seen] == [False, False, False, True]
    assert len({step.image.tobytes() for step in seen}) == 4 and seen[1].reward < 0
    other = made("gym_Pendulum-v1", options={"max_episode_steps": 6})
    other.reset(2)
    environment.close()  # one environment's end leaves the pictures of another alone
    same(seen, play(other, 1, [np.array([0.5])] * 3))


def test_a_choice_is_the_number_of_the_largest_entry_and_a_fall_is_a_real_end():
    environment = made("gym_CartPole-v1", options={})
    assert environment.action_size == 2
    seen = play(environment, 1, [np.array([-1.0, 1.0])] * 50)
    assert seen[-1].is_last and seen[-1].is_terminal and 3 < len(seen) < 15
    discrete = made(options={"continuous": 0})
    assert discrete.action_size == 5


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        (np.inf, "gym_Blind-v0: expected actions in a Box with finite bounds or a Discrete, received Box"),
        (1, "gym_Blind-v0: expected an image as its observation or from render, received a NoneType"),
    ],
)
def test_actions_without_a_scale_and_environments_without_a_picture_are_refused(monkeypatch, bound, message):
    gym = gym_adapter.load("gym")

    class Blind(gym.Env):
        metadata: ClassVar = {"render_modes": ["rgb_array"]}
        observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
        action_space = gym.spaces.Box(-bound, bound, (2,), np.float32)

        def __init__(self, render_mode):
            pass

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32), {}

        def render(self):
            return None

    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.envs.registration.registry))
    gym.register("Blind-v0", Blind)
    with pytest.raises(SemopoError, match=message):
        made("gym_Blind-v0", options={}).reset(0)


# --- the driver -------------------------------------------------------------------------------------------------------


@pytest.fixture
def undrawn(monkeypatch):
    """Car Racing without its pictures, on which neither physics nor the driver depend: twenty times as fast."""
    world = type(made().env.unwrapped)
    monkeypatch.setattr(world, "_render", lambda self, mode: np.zeros((96, 96, 3), np.uint8))


def returns(episodes):
    return np.array([episode.reward.sum(dtype=np.float64) for episode in episodes])


def test_the_drivers_returns_lie_in_the_medium_band(undrawn):
    environment = tasks.make(TASK, size=32)
    seeds = [collecting.episode_seed(1, index) for index in range(20)]
    episodes = list(rollout.play([environment], Driver(environment), seeds))
    scores = returns(episodes)
    assert scores.min() > 302 and scores.max() < 450 and 350 < scores.mean() < 395
    assert scores.std() > 20  # episodes differ
    actions = np.concatenate([episode.action[1:] for episode in episodes])
    assert (actions.std(0) > 0.03).all() and {len(episode.action) for episode in episodes} == {501}


def test_the_driver_is_a_function_of_the_episodes_seed():
    environment = made()
    first, other, again = (next(rollout.play([environment], Driver(environment), [seed])) for seed in (5, 6, 5))
    np.testing.assert_array_equal(first.action, again.action)
    np.testing.assert_array_equal(first.image, again.image)
    assert not np.array_equal(first.action, other.action)


def test_the_driver_needs_the_three_controls_of_one_environment():
    with pytest.raises(ConfigError, match="--policy driver: expected actions of size 3, received 5"):
        Driver(made(options={"continuous": 0}))
    with pytest.raises(ConfigError, match="behaviour driver: expected 1 environment, received 2"):
        list(rollout.play([made(), made()], Driver(made()), [1, 2]))


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_player():
    collecting.player.cache_clear()
    yield
    collecting.player.cache_clear()


def collected(out, *flags, task=TASK):
    words = ["--task", task, "--options", "max_episode_steps=60", "--size", "32", "--episodes", "3", "--out", str(out)]
    assert collect.main([*words, *flags]) == 0
    return {path.name: path.read_bytes() for path in Path(out).glob("*.npz")}


def test_the_number_of_processes_and_a_kill_change_no_episode(tmp_path, fresh_player):
    alone = collected(tmp_path / "a", "--policy", "driver")
    assert collected(tmp_path / "b", "--policy", "driver", "--processes", "2") == alone
    for path in sorted((tmp_path / "b").glob("*.npz"))[1:]:
        path.unlink()
    (tmp_path / "b" / ".tmp-left").write_bytes(b"half")
    assert collected(tmp_path / "b", "--policy", "driver") == alone
    card = read_card(tmp_path / "b")
    assert card["versions"] == tasks.environment_versions(TASK)
    assert card["environment"] == {
        **{"size": 32, "action_repeat": 2, "camera": -1},
        "options": {"max_episode_steps": 60},
    }


class Straight:
    """Gas, never mind the road."""

    def __init__(self, environment):
        pass

    def initial(self, episodes):
        return None

    def __call__(self, image, state, seeds, step):
        return np.repeat(STRAIGHT[None], len(seeds), 0), None


@pytest.mark.parametrize("task", CAR_RACINGS)
def test_a_termination_reaches_the_data_the_discount_and_the_learner(task, tmp_path, monkeypatch, fresh_player, capsys):
    """A debug run on episodes that end for good, evaluated in the simulator beside TensorFlow."""
    monkeypatch.setattr(tasks, "behaviours", lambda _: {"random": Straight})
    words = ["--task", task, "--size", "32", "--episodes", "2", "--out", str(tmp_path / "data")]
    assert collect.main([*words, "--options", "max_episode_steps=300"]) == 0
    for path in (tmp_path / "data").glob("*.npz"):
        episode = read_episode(path)
        assert 100 < len(episode.reward) < 150 and episode.is_terminal[-1] and episode.is_last[-1]
        assert episode.discount.tolist() == [1.0] * (len(episode.reward) - 1) + [0.0]
        assert episode.reward[-1] <= -99 and not episode.is_terminal[:-1].any()
    card = json.loads((tmp_path / "data" / "dataset.json").read_text())
    package = next(iter(card["versions"]))
    card["versions"]["box2d"] = "2.3.2"
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(card))
    flags = ["--configs", "semopo", "car_racing", "debug", "--task", task, "--env.size", "32"]
    flags += ["--offline_dir", str(tmp_path / "data"), "--logdir", str(tmp_path / "run"), "--video.every", "0"]
    capsys.readouterr()
    from semopo_tf import evaluation, training

    training.main(flags)
    said = capsys.readouterr().out
    assert "episodes end by a termination" not in said  # the overlay has the head that knows it
    assert f"warning: the data were collected with {package} {card['versions'][package]}, box2d 2.3.2, pygame" in said
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("continue" in name for row in metrics for name in row)
    evaluation.main(["--logdir", str(tmp_path / "run"), "--episodes", "1"])
    said = capsys.readouterr().out
    assert "warning: the data were collected with" in said and "normalised" in said
    rows = [json.loads(line) for line in (tmp_path / "run" / "scores.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == ["train", "evaluate"]
    assert rows[0]["return"] == rows[1]["return"] and rows[0]["versions"] == tasks.environment_versions(task)
