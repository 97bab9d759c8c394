import contextlib
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from clips import write_grey, write_video

import semopo_tf
from semopo_tf import config as configuration
from semopo_tf.envs import rollout, suite, tasks
from semopo_tf.envs.suite import Facts, Simulator, control_of, find_task
from semopo_tf.errors import ConfigError, NumericalError, SimulatorError
from semopo_tf.run import build
from semopo_tf.types import Observation

SIZE = 32
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 6))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder with one grey clip: frame t is filled with 10 * t + 5."""
    folder = tmp_path_factory.mktemp("videos")
    write_grey(folder / "clip.mkv", [10 * t + 5 for t in range(25)])
    return folder


@pytest.fixture(scope="module")
def world(videos):
    """Walker walk three times: without a background, and with one by either rule."""
    made = {
        "plain": tasks.make("dmc_walker_walk", size=SIZE),
        "sky": tasks.make("dmcdrv_walker_walk", size=SIZE, background=str(videos)),
        "blue": tasks.make("dmcdrv_walker_walk", size=SIZE, background=str(videos), mask_rule="blue"),
    }
    yield made
    for environment in made.values():
        environment.close()


def play(environment, seed, actions=ACTIONS):
    return [environment.reset(seed), *(environment.step(action) for action in actions)]


def images(observations):
    return np.stack([observation.image for observation in observations])


def test_observations(world):
    first, *later = play(world["sky"], 3)
    assert (first.reward, first.is_first, first.is_last, first.is_terminal) == (0.0, True, False, False)
    for observation in later:
        assert (observation.is_first, observation.is_last, observation.is_terminal) == (False, False, False)
        assert 0 < observation.reward <= 2
    assert first.image.dtype == np.uint8
    assert first.image.shape == world["sky"].image_shape == (SIZE, SIZE, 3)
    assert first.image.flags.c_contiguous
    assert world["sky"].action_size == 6
    assert world["sky"].camera == 0


@pytest.mark.parametrize("rule", ["plain", "sky"])
def test_episode_is_a_function_of_its_seed(world, rule):
    first, other, again = (play(world[rule], seed) for seed in (5, 6, 5))
    np.testing.assert_array_equal(images(first), images(again))
    assert [step.reward for step in first] == [step.reward for step in again]
    assert not np.array_equal(images(first), images(other))
    assert [step.reward for step in first] != [step.reward for step in other]


def test_background_moves_one_frame_per_observation(world):
    # The top left corner is sky. 25 frames repeated: the sequence goes on from 245 to 5.
    corner = images(play(world["sky"], 5))[:, 0, 0].astype(int)
    assert (corner == corner[:, :1]).all()
    assert set(np.diff(corner[:, 0])) <= {10, -240}
    starts = {int(world["sky"].reset(seed).image[0, 0, 0]) for seed in range(6)}
    assert len(starts) > 3


def test_sky_rule_keeps_the_floor_and_blue_replaces_it(world):
    plain, sky, blue = (images(play(world[rule], 5)) for rule in ("plain", "sky", "blue"))
    value = sky[:, 0, 0, 0][:, None, None]
    # blue: exactly the released rule.
    is_blue = (plain[..., 2] > plain[..., 1]) & (plain[..., 2] > plain[..., 0])
    np.testing.assert_array_equal(blue, np.where(is_blue[..., None], value[..., None], plain))
    # sky: what changed is grey background; floor and robot stay.
    changed = (sky != plain).any(-1)
    assert (sky[changed] == np.broadcast_to(value, changed.shape)[changed][:, None]).all()
    robot = (plain[..., 0] > plain[..., 2] + 20) & (plain[..., 0] > 60)
    assert robot.any()
    assert changed[robot].mean() < 0.1  # pixels on the robot's smoothed outline belong to either side
    # The floor is a band: away from the robot a row of the last image is replaced as a whole or not at all.
    rows = changed[-1][~robot[-1].any(1)]
    assert set(rows.mean(1)) == {0.0, 1.0}
    assert is_blue[-1][~changed[-1].any(1)].mean() > 0.5


def test_colour_background(tmp_path):
    colour = (200, 10, 30)
    write_video(tmp_path / "clip.mkv", np.full((2, 8, 8, 3), colour, np.uint8))
    environment = tasks.make("dmcdrv_cheetah_run", size=16, background=str(tmp_path), background_color="rgb")
    assert environment.reset(0).image[0, 0].tolist() == list(colour)
    environment.close()


def test_floor_counts_as_sky_where_the_camera_looks_down(videos):
    environment = tasks.make("dmcdrv_humanoid_walk", size=16, background=str(videos))
    image = environment.reset(0).image.astype(int)
    environment.close()
    assert (image == image[0, 0]).all(-1).mean() > 0.5


def test_of_humanoid_the_body_alone_stays(videos):
    """Its camera looks down on a floor that fills the image; both are background, with shadow and reflection."""
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 21))
    simulator = Simulator("humanoid_walk", size=SIZE, action_repeat=2, camera=-1, sky=True, body=True)
    plain = tasks.make("dmc_humanoid_walk", size=SIZE)
    moving = tasks.make("dmcdrv_humanoid_walk", size=SIZE, background=str(videos))
    with contextlib.closing(simulator), contextlib.closing(plain), contextlib.closing(moving):
        simulator.send("reset", 5)
        views = [simulator.receive()]
        for action in actions:
            simulator.send("step", action.tolist())  # its bounds are -1 and 1
            views.append(simulator.receive())
        alone, shown = (images(play(environment, 5, actions)) for environment in (plain, moving))
        frames, first = moving.background.frames, moving.background.first_frame(5)
    for view, bare, image, frame in zip(views, alone, shown, frames[first : first + 5], strict=True):
        np.testing.assert_array_equal(view.image, bare)
        assert 0.02 < view.body.mean() < 0.2 and (view.sky == ~view.body).all()
        np.testing.assert_array_equal(image, np.where(view.body[..., None], bare, frame))


def test_action_repeat_sums_rewards():
    once, twice = (tasks.make("dmc_walker_walk", size=8, action_repeat=repeat) for repeat in (1, 2))
    single = play(once, 7, np.repeat(ACTIONS, 2, axis=0))
    double = play(twice, 7)
    for index, observation in enumerate(double[1:]):
        pair = single[1 + 2 * index : 3 + 2 * index]
        assert observation.reward == pytest.approx(sum(step.reward for step in pair), abs=1e-12)
        np.testing.assert_array_equal(observation.image, pair[1].image)
    once.close()
    twice.close()


def test_full_episode_has_501_records():
    environment = tasks.make("dmc_walker_walk", size=8)
    (episode,) = rollout.play([environment], rollout.RandomPolicy(6), [0])
    assert episode.image.shape == (501, 8, 8, 3)
    assert episode.is_last.nonzero()[0].tolist() == [500]
    assert not episode.is_terminal.any()
    with pytest.raises(SimulatorError, match="after its end; call reset first"):
        environment.step(np.zeros(6))
    environment.close()


def test_repeat_that_does_not_divide_the_episode_stops_early():
    environment = tasks.make("dmc_walker_walk", size=8, action_repeat=300)
    lengths = list(rollout.play([environment], rollout.RandomPolicy(6), [0]))
    assert len(lengths[0].image) == 5  # 300 + 300 + 300 + 100 simulator steps
    environment.close()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.full(6, np.nan), r"finite values in \[-1, 1\], received \[nan"),
        (np.full(6, 1.5), "received .*1.5"),
        (np.zeros(5), r"expected shape \[6\], received \[5\]"),
        (np.zeros((1, 6)), r"expected shape \[6\], received \[1, 6\]"),
    ],
)
def test_wrong_actions(world, action, message):
    world["plain"].reset(0)
    with pytest.raises(NumericalError, match=message):
        world["plain"].step(action)


def test_actions_are_rescaled_to_the_bounds():
    facts = Facts(np.array([-2.0, 0, -1, -1e10, 0, 0]), np.array([2.0, 1, 1, 1e10, 4, 1]), 0, 1)
    np.testing.assert_allclose(control_of(np.array([1, 0, 0.5, 0.5, -1, -1]), facts), [2, 0.5, 0.5, 0.5, 0, 0])


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        (
            "dmcdrv_walker_wlk",
            {"background": "builtin:driving"},
            "unknown task 'walker_wlk'.*nearest known: walker_walk",
        ),
        ("dmvdrv_walker_walk", {}, "unknown task 'dmvdrv_walker_walk'.*dmcdrv_walker_walk"),
        ("Pendulum-v1", {}, "unknown task 'Pendulum-v1'.*gym_<id>.*or <module>:<class> for your own"),
        ("dmcdrv_walker_walk", {}, "needs a moving background; add --background builtin:driving"),
        ("dmc_walker_walk", {"background": "builtin:driving"}, "shows no background.*use dmcdrv_walker_walk"),
        ("dmc_walker_walk", {"camera": 9}, "--camera: expected an index below 2, or -1"),
        ("dmc_walker_walk", {"size": 0}, "--size: expected at least 1, received 0"),
        ("dmc_walker_walk", {"action_repeat": 0}, "--action_repeat: expected at least 1"),
        ("dmc_walker_walk", {"mask_rule": "green"}, "--mask_rule: expected sky or blue, received 'green'"),
    ],
)
def test_wrong_settings(monkeypatch, task, settings, message):
    # The background itself is not what is asked for here.
    monkeypatch.setattr(tasks, "load_background", lambda *_, **__: None)
    tasks.shared_background.cache_clear()
    with pytest.raises(ConfigError, match=message):
        tasks.make(task, **settings)
    tasks.shared_background.cache_clear()


def test_usual_camera():
    environment = tasks.make("dmc_quadruped_walk", size=8)
    assert environment.camera == 2
    environment.close()


def test_domains_and_tasks_may_hold_underscores():
    known = [("ball_in_cup", "catch"), ("humanoid_CMU", "run"), ("cartpole", "swingup_sparse")]
    assert [find_task(f"{domain}_{task}", known) for domain, task in known] == known
    with pytest.raises(ConfigError, match=r"unknown task 'ball_in_cup'.*nearest known: ball_in_cup_catch"):
        find_task("ball_in_cup", known)


def test_registered_environment_takes_the_settings():
    class Still:
        action_size, image_shape = 2, (4, 4, 3)

        def __init__(self, **settings):
            self.settings = settings

        def reset(self, seed):
            return Observation(np.zeros((4, 4, 3), np.uint8), 0.0, True, False, False)

    semopo_tf.register("still", Still)
    environment = tasks.make("still", size=4, background_seed=3)
    assert environment.settings["size"] == 4
    assert environment.settings["background_seed"] == 3
    assert len(environment.settings) == 9


def test_simulator_that_dies_is_reported():
    environment = tasks.make("dmc_walker_walk", size=8)
    environment.reset(0)
    os.kill(environment._simulator._child.process.pid, signal.SIGKILL)
    with pytest.raises(SimulatorError, match="the simulator's process ended with status -9"):
        environment.step(np.zeros(6))
    environment.close()
    environment.close()
    with pytest.raises(SimulatorError, match="the environment is closed"):
        environment.reset(0)


def test_settings_travel_through_the_card():
    settings = {"size": 32, "action_repeat": 4, "camera": 1, "background": "builtin:driving", "background_color": "rgb"}
    settings |= {"background_split": "test", "background_seed": 3, "mask_rule": "blue", "options": {"depth": 2.0}}
    assert tasks.settings_of(tasks.card_of(settings, clips=["a"])) == settings


def test_versions():
    versions = tasks.environment_versions("dmc_walker_walk")
    assert list(versions) == ["dm_control", "mujoco", "numpy", "backend"]
    assert versions["numpy"] == np.__version__


@pytest.mark.parametrize("task", ["exbmdp_point", "catch:Catch", "dmc_mine"])
def test_I21_the_recipe_of_a_task_without_a_simulator_names_no_renderer(task, monkeypatch):
    monkeypatch.setitem(tasks._registry, "dmc_mine", object)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert tasks.environment_versions(task) == {"numpy": np.__version__}


# --- how the simulator draws --------------------------------------------------------------------------------------


def test_fast_drawing_changes_few_pixels_and_no_physics():
    full, fast = (drawn_after_five_steps("dmc_walker_walk", render) for render in ("full", "fast"))
    apart = np.abs(full.image.astype(int) - fast.image.astype(int)).max(-1)
    assert 0 < (apart > 8).mean() < 0.02 and full.reward == fast.reward
    np.testing.assert_array_equal(full.state, fast.state)


def drawn_after_five_steps(task, render, **settings):
    """Image, reward and the simulator's state."""
    with contextlib.closing(tasks.make(task, render=render, **settings)) as environment:
        environment.reset(3)
        for step in range(5):
            last = environment.step(np.full(6, (-1) ** step, np.float32))
        return SimpleNamespace(image=last.image, reward=last.reward, state=environment.state)


@pytest.mark.parametrize(("rule", "distractor"), [("sky", "none"), ("blue", "none"), ("sky", "agent")])
def test_a_plain_picture_is_the_mean_of_one_twice_as_large(rule, distractor, videos, monkeypatch):
    look = {"background": str(videos), "mask_rule": rule, "distractor": distractor}
    plain, full = (drawn_after_five_steps("dmcdrv_walker_walk", each, size=SIZE, **look) for each in ("plain", "full"))
    assert plain.reward == full.reward
    np.testing.assert_array_equal(full.state, plain.state)
    monkeypatch.setattr(tasks, "FINER", 1)
    large = drawn_after_five_steps("dmcdrv_walker_walk", "plain", size=2 * SIZE, **look).image
    np.testing.assert_array_equal(plain.image, np.floor(large.reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3)) + 0.5))


def test_a_plain_picture_has_the_background_as_it_is_where_there_is_nothing_else():
    look = {"size": SIZE, "render": "plain", "background": "builtin:driving", "background_color": "rgb"}
    with contextlib.closing(tasks.make("dmcdrv_walker_walk", **look)) as environment:
        image = environment.reset(3).image
        frame = environment.background.frames[environment.background.first_frame(3)]
    np.testing.assert_array_equal(image[: SIZE // 4], frame[: SIZE // 4])
    assert len(np.unique(frame[: SIZE // 4])) > 8


def test_an_enlarged_image_repeats_every_pixel_in_place():
    image = np.arange(12).reshape(2, 2, 3)
    large = tasks.enlarged(image, 2)
    assert large.shape == (4, 4, 3)
    for row, column in np.ndindex(4, 4):
        np.testing.assert_array_equal(large[row, column], image[row // 2, column // 2])


@pytest.mark.parametrize(
    ("render", "shadows", "lights"), [("full", 2048, True), ("fast", 512, True), ("plain", 2048, False)]
)
def test_fast_has_a_coarser_shadow_and_plain_neither_shadows_nor_reflections(render, shadows, lights):
    code = "from dm_control.suite import walker; from semopo_tf.envs.suite import set_quality; import sys; "
    code += "model = walker.walk().physics.model; set_quality(model, sys.argv[1]); "
    code += "print(model.vis.quality.shadowsize, model.light_castshadow.any(), (model.mat_reflectance > 0).any())"
    command = [sys.executable, "-c", code, render]  # a process of its own, as everywhere: the simulator is native code
    environment = os.environ | {"MUJOCO_GL": "disabled"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert shown.split()[-3:] == [str(shadows), str(lights), str(lights)]


def test_the_flags_allow_what_the_environments_know():
    assert configuration.RENDERS == suite.RENDERS
    assert (configuration.DISTRACTORS, configuration.SHOWN["mask_rule"]) == (tasks.DISTRACTORS, tasks.MASK_RULES)


def test_a_card_tells_of_fast_drawing_and_of_nothing_else_than_before():
    settings = tasks.Settings(options=())._asdict()
    assert tasks.card_of(settings, [])["environment"] == {"size": 64, "action_repeat": 2, "camera": -1}
    card = tasks.card_of(settings | {"render": "fast"}, [])
    assert card["environment"]["render"] == "fast" and tasks.settings_of(card)["render"] == "fast"


@pytest.mark.parametrize(
    ("flag", "override", "expected"), [("card", None, "fast"), ("full", None, "full"), ("card", "full", "full")]
)
def test_evaluation_draws_as_the_dataset_unless_told_otherwise(flag, override, expected):
    card = tasks.card_of(tasks.Settings(options=(), render="fast")._asdict(), [])
    config = configuration.load(["--task", "dmc_walker_walk", "--env.render", flag])
    overrides = {"render": override} if override else {}
    settings = build.environment_settings(config, card, overrides)
    assert settings.get("render", "full") == expected


@pytest.mark.parametrize("task", ["exbmdp_point", "dmc_walker_walk"])
def test_another_way_to_draw_is_refused(task):
    with pytest.raises(ConfigError, match=r"^--render: expected full"):
        tasks.make(task, **tasks.usual_settings(task), render="quick")
