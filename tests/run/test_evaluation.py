"""Evaluation on real environments: training's own returns again, by evaluate.py, with any number of environments, in
front of any background.
"""

import numpy as np
import pytest
import tensorflow as tf
from clips import write_grey

from semopo_tf import collect, evaluation, training
from semopo_tf.envs import tasks
from semopo_tf.errors import ConfigError, DataError
from semopo_tf.report import paper
from semopo_tf.run import build, evaluate, trained
from semopo_tf.run.stopping import Stop
from semopo_tf.storage.records import read_records

EPISODES, CHECKPOINT = 3, "ckpt-policy-000000001"
REPEAT = 100  # an episode of the suite in 10 decisions


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for index, name in enumerate("abcde"):
        write_grey(folder / f"{name}.mkv", range(40 * index, 40 * index + 9))
    return folder


def unlearning(config, **sizes):
    """An agent that acts normally but whose updates do nothing, which would take most of the time of the tests."""
    learner = build.make_learner(config, **sizes)
    learner.stages = tuple(
        stage._replace(update=lambda batch, key: {"finite": tf.ones([])}) for stage in learner.stages
    )
    return learner


def train(directory, task, collecting, *flags):
    """A run that evaluates in two environments side by side, with its checkpoint."""
    data, logdir = directory / "data", directory / "run"
    assert collect.main(["--task", task, "--episodes", "1", "--out", str(data), *collecting]) == 0
    length = [
        "--steps.model",
        "0",
        "--steps.policy",
        "1",
        "--eval.final_episodes",
        str(EPISODES),
        "--eval.environments",
        "2",
    ]
    words = [
        "--configs",
        "semopo",
        "debug",
        "--task",
        task,
        "--offline_dir",
        str(data),
        "--logdir",
        str(logdir),
        *length,
        *flags,
    ]
    assert training.train(words, Stop(), make_learner=unlearning) == 0
    return logdir


@pytest.fixture(scope="module")
def point(tmp_path_factory):
    return train(tmp_path_factory.mktemp("point"), "exbmdp_point", [])


@pytest.fixture(scope="module")
def walker(tmp_path_factory, videos):
    collecting = ["--action_repeat", str(REPEAT), "--background", str(videos)]
    return train(
        tmp_path_factory.mktemp("walker"), "dmcdrv_walker_walk", collecting, "--env.action_repeat", str(REPEAT)
    )


def rows_added(run, *flags):
    """The rows that a command adds."""
    before = len(read_records(run / "scores.jsonl"))
    assert evaluation.main(["--logdir", str(run), *flags]) == 0
    return read_records(run / "scores.jsonl")[before:]


def told(row):
    """The part of a row that must not depend on the process that played the episode."""
    return {key: value for key, value in row.items() if key not in ("source", "versions")}


@pytest.mark.parametrize("name", ["point", "walker"])
def test_returns_of_training_and_of_any_number_of_environments_are_equal_to_the_bit(name, request, capsys):
    run = request.getfixturevalue(name)
    trained = read_records(run / "scores.jsonl")[:EPISODES]
    assert len({row["return"] for row in trained}) == EPISODES
    assert {(row["source"], row["checkpoint"], row["phase"], row["step"]) for row in trained} == {
        ("train", CHECKPOINT, "policy", 1)
    }
    for environments in ("1", "3"):
        again = rows_added(run, "--environments", environments)
        assert [row["source"] for row in again] == ["evaluate"] * EPISODES
        assert [told(row) for row in again] == [told(row) for row in trained]
    assert f"{CHECKPOINT}: return " in capsys.readouterr().out


def test_rows_name_what_was_in_the_background(point, walker, videos):
    (row,) = rows_added(point, "--episodes", "1")
    assert (row["clips"], row["clip"], "background" in row["environment"]) == ([], None, False)
    rows = read_records(walker / "scores.jsonl")[:EPISODES]
    for row in rows:
        assert sorted(row["clips"]) == ["a.mkv", "b.mkv", "c.mkv", "e.mkv"] and row["clip"] in row["clips"]
    shown = tasks.shared_background(str(videos), 64, "grey", "train", 0)
    expected = [shown.frames[shown.first_frame(row["episode_seed"])].flat[0] // 40 for row in rows]
    assert ["abcde".index(row["clip"][0]) for row in rows] == expected


def test_the_background_is_chosen_by_flags(walker, videos, monkeypatch):
    usual = read_records(walker / "scores.jsonl")[0]
    monkeypatch.chdir(videos.parent)
    chosen = {"background": videos.name, "background_split": "test", "background_color": "rgb", "mask_rule": "blue"}
    (row,) = rows_added(
        walker, "--episodes", "1", *(word for key, value in chosen.items() for word in (f"--{key}", value))
    )
    assert row["clips"] == ["d.mkv"] and not set(row["clips"]) & set(usual["clips"])
    assert row["environment"] == usual["environment"] | chosen | {"background": str(videos)}


def test_without_its_background_a_task_is_the_plain_one(walker):
    ((row, episode),) = trained.scored(trained.load_run(walker), 1, overrides={"background": "none"})
    assert (row["clips"], row["clip"], row["task"]) == ([], None, "dmcdrv_walker_walk")
    settings = {"size": 64, "action_repeat": REPEAT, "camera": -1}
    assert row["environment"] == settings | {"background": "none"}
    environment = tasks.make("dmc_walker_walk", **settings)
    seen = [environment.reset(row["episode_seed"]), *map(environment.step, episode.action[1:])]
    environment.close()
    np.testing.assert_array_equal([observation.image for observation in seen], episode.image)
    np.testing.assert_array_equal(np.array([observation.reward for observation in seen], np.float32), episode.reward)


def test_what_cannot_be_shown_is_one_line(point, walker, tmp_path):
    write_grey(tmp_path / "only.mkv", [1, 2])
    with pytest.raises(
        DataError, match="expected at least 2 videos for the test split, received 1; add a video or use the train split"
    ):
        rows_added(walker, "--background", str(tmp_path), "--background_split", "test")
    with pytest.raises(
        ConfigError,
        match="--background: expected no such flag, as exbmdp_point shows no background, received 'none'; remove it",
    ):
        rows_added(point, "--background", "none")


@pytest.mark.parametrize(
    ("task", "normalised"),
    [("dmcdrv_walker_walk", True), ("exbmdp_point", False)],
)
def test_the_last_line_has_the_return_raw_and_by_the_rules_that_hold(task, normalised):
    rows = [{"task": task, "return": value, "discarded": 0} for value in (100.0, 300.0)]
    rules = (
        [f"{paper.normalised(task, 200.0, rule):.3f} ({rule})" for rule in ("definition", "paper_table1")]
        if normalised
        else []
    )
    expected = "return 200.0 +- 100.0 over 2 episodes (standard deviation of episodes)"
    assert evaluation.summary(rows) == expected + (f"; normalised {', '.join(rules)}" if rules else "")


def test_a_notebook_plays_the_same(point):
    run = trained.load_run(str(point))
    ((row, episode),) = trained.scored(run, 1)
    assert told(row) == told(read_records(point / "scores.jsonl")[0])
    assert row["return"] == episode.reward.sum(dtype=np.float64)


def test_a_run_that_is_not_complete_says_what_is_played(point, capsys):
    (point / "DONE").rename(point / "NOT_DONE")
    rows_added(point, "--episodes", "1")
    (point / "NOT_DONE").rename(point / "DONE")
    assert f"the run is not complete; playing {CHECKPOINT}" in capsys.readouterr().out


def test_an_evaluation_that_is_given_up_closes_its_environments(monkeypatch):
    closed = []

    class Watched:
        action_size, image_shape = 1, (4, 4, 3)

        def __init__(self, **settings):
            if len(made) == 2:
                raise ConfigError("no third")
            made.append(self)

        def close(self):
            closed.append(self)

    monkeypatch.setitem(tasks._registry, "watched", Watched)
    made = []
    with pytest.raises(ConfigError, match="no third"):
        list(evaluate.evaluate(None, "watched", {}, [1, 2, 3], environments=3))
    assert sorted(map(id, closed)) == sorted(map(id, made)) and len(made) == 2
