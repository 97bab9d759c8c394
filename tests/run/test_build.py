"""Which source of a setting wins, and how checkpoints are restored into variables."""

import numpy as np
import pytest
import synthetic
import tensorflow as tf

from semopo_tf.config import load
from semopo_tf.data.dataset import open_dataset
from semopo_tf.data.episodes import write_episode
from semopo_tf.errors import CheckpointError, ConfigError
from semopo_tf.run import build

CARD = {
    "environment": {"size": 64, "action_repeat": 2, "camera": -1},
    "background": {"source": "clips", "color": "rgb", "split": "train", "seed": 7, "mask_rule": "sky"},
}


def settings(*flags, card=None, overrides=None):
    return build.environment_settings(load(["--configs", *flags]), card, overrides)


def test_the_card_describes_the_background():
    found = settings("walker_walk", card=CARD)
    assert (found["background"], found["background_color"], found["background_seed"], found["mask_rule"]) == (
        "clips",
        "rgb",
        7,
        "sky",
    )


def test_data_of_another_action_repeat_are_refused():
    with pytest.raises(ConfigError, match=r"--env\.action_repeat: expected 4 as in the dataset card, received 2"):
        settings("walker_walk", card=CARD | {"environment": {"size": 64, "action_repeat": 4, "camera": -1}})


def test_without_a_card_the_presets_rule_holds():
    assert settings("walker_walk")["mask_rule"] == "sky"
    assert settings("released", "walker_walk")["mask_rule"] == "blue"
    assert settings("released", "walker_walk", card=CARD)["mask_rule"] == "sky"


def test_configuration_wins_over_the_card_and_flags_of_evaluation_over_both():
    assert settings("walker_walk", "--env.mask_rule", "blue", card=CARD)["mask_rule"] == "blue"
    found = settings(
        "walker_walk", "--env.mask_rule", "blue", card=CARD, overrides={"mask_rule": "sky", "background_split": "test"}
    )
    assert (found["mask_rule"], found["background_split"]) == ("sky", "test")


def test_a_task_without_distractors_has_no_background():
    assert set(settings("--task", "dmc_walker_walk")) == {"size", "action_repeat", "camera"}


def test_without_its_background_a_moving_task_has_nothing_to_say_about_it():
    plain = {"size", "action_repeat", "camera"}
    assert set(settings("walker_walk", card=CARD, overrides={"background": "none", "mask_rule": "blue"})) == plain | {
        "background"
    }
    assert set(settings("walker_walk", "--env.background", "none")) == plain | {"background"}


@pytest.mark.parametrize("flag", build.CARD_KEYS)
@pytest.mark.parametrize("task", ["dmc_walker_walk", "exbmdp_point"])
def test_a_background_flag_is_refused_where_none_is_shown(task, flag):
    with pytest.raises(
        ConfigError, match=f"--{flag}: expected no such flag, as {task} shows no background, received 'x'; remove it"
    ):
        settings("--task", task, overrides={flag: "x"})


def test_a_users_task_has_the_background_that_its_card_or_a_flag_names():
    bare = CARD | {"background": CARD["background"] | {"source": "none"}}
    assert (
        set(settings("--task", "mine", card=bare))
        == set(settings("--task", "mine"))
        == {"size", "action_repeat", "camera"}
    )
    carded = settings("--task", "mine", card=CARD)
    assert carded == settings("walker_walk", card=CARD) and carded["background"] == "clips"
    asked = settings("--task", "mine", card=bare, overrides={"background": "builtin:driving"})
    assert (asked["background"], asked["background_split"], asked["background_seed"]) == ("builtin:driving", "train", 0)


def test_a_folder_of_a_flag_is_kept_by_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings("walker_walk", card=CARD, overrides={"background": "clips"})["background"] == str(
        tmp_path / "clips"
    )


def test_a_longer_list_of_episode_seeds_begins_with_the_shorter():
    seeds = build.episode_seeds(0, 50)
    assert build.episode_seeds(0, 10) == seeds[:10]
    assert len(set(seeds)) == 50
    assert build.episode_seeds(1, 10) != seeds[:10]


def test_restore_checks_every_name_and_shape_before_it_assigns():
    variables = {"a": tf.Variable([1.0, 2.0]), "b": tf.Variable([[0.0]])}
    with pytest.raises(CheckpointError, match=r"b: expected float32 \[1, 1\], received float32 \[2\]"):
        build.restore(variables, {"a": np.array([5, 6], np.float32), "b": np.zeros(2, np.float32)}, "x")
    with pytest.raises(CheckpointError, match="lacks b"):
        build.restore(variables, {"a": np.array([5, 6], np.float32)}, "x")
    with pytest.raises(CheckpointError, match="has c"):
        build.restore(
            variables, {"a": np.array([5, 6], np.float32), "b": np.zeros((1, 1), np.float32), "c": np.zeros(1)}, "x"
        )
    np.testing.assert_array_equal(variables["a"], [1, 2])
    build.restore(variables, {"a": np.array([5, 6], np.float32), "b": np.ones((1, 1), np.float32)}, "x")
    np.testing.assert_array_equal(variables["a"], [5, 6])


def test_the_training_data_are_counted_for_a_learner_that_asks(tmp_path):
    for number, records in enumerate((6, 20, 20, 20, 9)):
        write_episode(tmp_path / f"{number}-{number}-{records}.npz", synthetic.episode(number, records, size=8))
    data = open_dataset(tmp_path)
    assert build.data_sizes(load(["--configs", "semopo"]), data) == {}
    asks = ["--configs", "lompo", "--min_length"]
    assert build.data_sizes(load([*asks, "2"]), data) == {"episodes": 5, "transitions": 5 + 3 * 19 + 8}
    assert build.data_sizes(load([*asks, "8"]), data) == {"episodes": 4, "transitions": 3 * 19 + 8}
    held = build.data_sizes(load([*asks, "10", "--valid_fraction", "0.34"]), data)
    assert held == {"episodes": 2, "transitions": 2 * 19}
