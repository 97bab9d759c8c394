"""The second body in the picture: what it changes, what it depends on, and where it is recorded."""

import contextlib
import itertools
import os
import signal

import numpy as np
import pytest
from records import write_run

from semopo_tf import collect
from semopo_tf import config as configuration
from semopo_tf.data.cards import read_card
from semopo_tf.envs import tasks
from semopo_tf.envs.companion import Companion, moved_right
from semopo_tf.envs.rollout import Discarded, RandomPolicy, play
from semopo_tf.envs.suite import Simulator
from semopo_tf.errors import ConfigError
from semopo_tf.report.run_record import read_run
from semopo_tf.run import build
from semopo_tf.run.evaluate import evaluate, make_environment

WALKER, DRIVING = "dmcdrv_walker_walk", "builtin:driving"
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 6))
SHORT = {"size": 16, "action_repeat": 100, "policy": "uniform", "background": DRIVING, "episodes": 3}
SETTINGS = {"size": 32, "background": DRIVING, "distractor": "agent"}


def shown(environment, seed, actions=ACTIONS):
    """Images [T, H, W, 3] and rewards of one short episode."""
    seen = [environment.reset(seed), *(environment.step(action) for action in actions)]
    return np.stack([each.image for each in seen]), [each.reward for each in seen]


@pytest.fixture(scope="module")
def world():
    """Makes environments of 32 x 32 pixels, each once."""
    with contextlib.ExitStack() as opened:
        made = {}

        def make(task=WALKER, distractor="agent", rule="sky"):
            key = (task, distractor, rule)
            if key not in made:
                settings = {"size": 32, "background": DRIVING, "distractor": distractor, "mask_rule": rule}
                made[key] = opened.enter_context(contextlib.closing(tasks.make(task, **settings)))
            return made[key]

        yield make


# --- the picture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [WALKER, "dmcdrv_cheetah_run"])
@pytest.mark.parametrize("rule", tasks.MASK_RULES)
def test_a_second_body_stands_beside_the_agent_and_hides_nothing_of_it(world, task, rule):
    alone, accompanied = world(task, "none", rule), world(task, "agent", rule)
    (bare, rewards), (images, with_rewards) = shown(alone, 5), shown(accompanied, 5)
    np.testing.assert_array_equal(alone.state, accompanied.state)
    assert rewards == with_rewards
    changed = (bare != images).any(-1)
    assert (changed.mean((1, 2)) > 0.02).all() and (changed.mean((1, 2)) < 0.4).all()
    assert not changed[:, :, :8].any()  # it is moved to the right by a fourth
    orange = images[changed].astype(int)  # the suite's bodies are; sky and floor are blue or grey
    assert (orange[:, 0] > orange[:, 2]).mean() > 0.8
    # At every pixel the agent's body comes first.
    bodies = agents_body(task)
    assert bodies.any((1, 2)).all() and not (changed & bodies).any()


def agents_body(task):
    """Where the agent's own body is, [T, 32, 32] bool, in the episode of `shown(..., 5)`."""
    name, size = task.removeprefix(tasks.MOVING), 32
    simulator = Simulator(name, size=size, action_repeat=2, camera=-1, sky=True, body=True)
    with contextlib.closing(simulator):
        simulator.send("reset", 5)
        views = [simulator.receive()]
        for action in ACTIONS:
            simulator.send("step", action.tolist())  # both tasks have bounds of -1 and 1
            views.append(simulator.receive())
    assert not any((view.body & view.sky).any() for view in views)
    return np.stack([view.body for view in views])


def test_moved_right():
    np.testing.assert_array_equal(moved_right(np.array([[1, 2, 3, 4]]), 1), [[0, 1, 2, 3]])
    np.testing.assert_array_equal(moved_right(np.array([[1, 2]]), 0), [[1, 2]])


# --- what it depends on -----------------------------------------------------------------------------------------------


def test_its_episode_is_a_function_of_the_seed(world):
    environment = world()
    first, other, again = (shown(environment, seed)[0] for seed in (5, 6, 5))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_it_moves_and_no_action_reaches_it(world):
    companion, pictures = Companion("walker_walk", size=32, action_repeat=2, camera=-1, render="full"), []
    with contextlib.closing(companion):
        companion.reset(5)
        pictures.append(companion.receive())
        for _ in ACTIONS:
            companion.step()
            pictures.append(companion.receive())
    bodies = np.stack([body for _, body in pictures])
    assert all((one != other).any() for one, other in itertools.pairwise(bodies))
    for actions in (ACTIONS, -ACTIONS):
        images, _ = shown(world(), 5, actions)
        for image, (picture, body) in zip(images, pictures, strict=True):
            visible = body & (image == picture).all(-1)
            assert visible.sum() > 0.5 * body.sum()  # the rest is behind the agent


def test_environments_side_by_side_show_what_each_shows_alone(world):
    with contextlib.closing(tasks.make(WALKER, **SETTINGS)) as other:
        pair = (world(), other)
        images = [[environment.reset(seed).image] for environment, seed in zip(pair, (5, 6))]
        for action in ACTIONS:
            for environment in pair:
                environment.send(action)
            for environment, seen in zip(pair, images):
                seen.append(environment.receive().image)
    for seed, seen in zip((5, 6), images):
        np.testing.assert_array_equal(np.stack(seen), shown(world(), seed)[0])


@pytest.mark.parametrize("which", ["_simulator", "_companion"])
def test_the_death_of_either_simulator_costs_one_attempt(which):
    """The other one has an answer that nobody took; the next episode must not begin with it."""

    class Killer(RandomPolicy):
        done = False

        def __call__(self, image, state, seeds, step):
            if step == 2 and not self.done:
                self.done = True
                of = getattr(environment, which)
                child = getattr(of, "_simulator", of)._child.process
                os.kill(child.pid, signal.SIGKILL)
                child.wait()
            return super().__call__(image, state, seeds, step)

    discarded: list[Discarded] = []
    settings = SETTINGS | {"action_repeat": 100}
    with contextlib.closing(tasks.make(WALKER, **settings)) as environment:
        (episode,) = play([environment], Killer(6), [5], discarded)
        assert len(discarded) == 1 and "ended with status -9" in discarded[0].reason
        again = shown(environment, 7)[0]
    assert len(episode.reward) == 11
    with contextlib.closing(tasks.make(WALKER, **settings)) as fresh:
        np.testing.assert_array_equal(again, shown(fresh, 7)[0])


# --- where it is recorded ---------------------------------------------------------------------------------------------


def arguments(out, **changes):
    flags = {"task": WALKER, "out": out} | SHORT | changes
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """The same recipe with one process and with two, and without the second body."""
    folder = tmp_path_factory.mktemp("collected")
    for name, changes in {"one": {}, "two": {"processes": 2}, "none": {"distractor": "none"}}.items():
        assert collect.main(arguments(folder / name, **{"distractor": "agent"} | changes)) == 0
    return folder


def test_the_dataset_does_not_depend_on_the_number_of_processes(collected):
    one, two, none = (
        {path.name: path.read_bytes() for path in (collected / name).glob("*.npz")} for name in ("one", "two", "none")
    )
    assert len(one) == 3 and one == two
    assert set(one) == set(none) and all(one[name] != none[name] for name in one)
    assert read_card(collected / "one") == read_card(collected / "two")


def test_the_card_tells_of_it_and_of_nothing_else_than_before(collected):
    one, none = (read_card(collected / name) for name in ("one", "none"))
    assert one["background"] == none["background"] | {"distractor": "agent"}
    assert list(none["background"]) == ["source", "color", "split", "seed", "mask_rule", "clips"]
    assert one["returns"] == none["returns"]
    assert tasks.settings_of(one)["distractor"] == "agent" and "distractor" not in tasks.settings_of(none)


@pytest.mark.parametrize(
    ("there", "asked", "words"),
    [("one", "none", "'agent' there, None asked"), ("none", "agent", "None there, 'agent' asked")],
)
def test_a_dataset_is_continued_with_its_own_recipe_alone(collected, there, asked, words):
    with pytest.raises(ConfigError, match=rf"made in another way \(background\.distractor: {words}\)"):
        collect.main(arguments(collected / there, distractor=asked))


def test_a_dataset_drawn_fast_is_not_continued_in_full(tmp_path):
    settings = {"episodes": 1, "render": "fast", "distractor": "none"}
    collect.main(arguments(tmp_path, **settings))
    with pytest.raises(ConfigError, match=r"environment\.render: 'fast' there, None asked"):
        collect.main(arguments(tmp_path, **settings | {"render": "full"}))


def card(**settings):
    return tasks.card_of(tasks.Settings(**{"options": (), "background": DRIVING} | settings)._asdict(), ["a"])


@pytest.mark.parametrize(
    ("collected_with", "flag", "override", "expected"),
    [
        ("agent", "card", None, "agent"),
        ("agent", "none", None, "none"),
        ("agent", "card", "none", "none"),
        ("agent", "none", "agent", "agent"),
        ("none", "card", None, "none"),
        ("none", "agent", None, "agent"),
    ],
)
def test_evaluation_shows_what_the_dataset_shows_unless_told_otherwise(collected_with, flag, override, expected):
    config = configuration.load(["--task", WALKER, "--env.distractor", flag])
    overrides = {"distractor": override} if override else {}
    settings = build.environment_settings(config, card(distractor=collected_with), overrides)
    assert settings.get("distractor", "none") == expected
    assert ("distractor" in settings) == (expected != "none")  # so that earlier score rows keep their bytes


def test_without_its_background_a_task_shows_no_second_body_either():
    config, described = configuration.load(["--task", WALKER]), card(distractor="agent")
    settings = build.environment_settings(config, described, {"background": "none"})
    assert "distractor" not in settings and settings["background"] == "none"
    settings = build.environment_settings(config, described, {"background": "none", "distractor": "agent"})
    with pytest.raises(ConfigError, match=r"^--distractor: expected none, as dmc_walker_walk cannot show"):
        make_environment(WALKER, settings)


def test_scores_tell_of_it_and_the_report_keeps_other_conditions_apart(tmp_path):
    config = configuration.load(["--task", WALKER, "--env.action_repeat", "100"])
    described = card(distractor="agent", action_repeat=100) | {"returns": {}, "episodes": 0}
    settings = build.environment_settings(config, described) | {"size": 16}
    (played,) = evaluate(RandomPolicy(6), WALKER, settings, [1])
    row = build.score_row(config, settings, played, phase="policy", step=1, checkpoint=None, source="train")
    assert row["environment"]["distractor"] == "agent"
    run = read_run(write_run(tmp_path / "run", about=card(distractor="agent") | {"returns": {}, "episodes": 1}))
    usual = {name: value for name, value in settings.items() if name not in ("size", "action_repeat")}
    assert run.condition({"environment": usual}) == ""
    del usual["distractor"]
    assert run.condition({"environment": usual}) == "distractor none"
    run = read_run(write_run(tmp_path / "other", about=card() | {"returns": {}, "episodes": 1}))
    assert run.condition({"environment": usual}) == ""
    assert run.condition({"environment": usual | {"distractor": "agent"}}) == "distractor agent"


# --- where it cannot be shown -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task", ["dmc_walker_walk", "dmcdrv_humanoid_walk", "exbmdp_point", "gym_CarRacing-v2", "catch:Catch", "mine"]
)
def test_a_task_that_cannot_show_it_is_refused_in_one_line(monkeypatch, task):
    monkeypatch.setitem(tasks._registry, "mine", object)
    line = rf"^--distractor: expected none, as {task} cannot show a second body, received 'agent'; remove the flag or "
    with pytest.raises(ConfigError, match=line + "choose a task that begins with dmcdrv_walker_ or dmcdrv_cheetah_$"):
        tasks.make(task, distractor="agent", background=DRIVING)


def test_another_distractor_is_refused():
    with pytest.raises(ConfigError, match=r"^--distractor: expected none or agent, received 'video'$"):
        tasks.make(WALKER, distractor="video", background=DRIVING)
