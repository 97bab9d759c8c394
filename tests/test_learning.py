"""The method learns: on the built-in testbed the streams separate, and a policy far better than its data comes out."""

import json

import numpy as np
import pytest

from semopo_tf import collect, probe, training
from semopo_tf.episodes import read_card
from semopo_tf.run import read_records

AMOUNT = ("--steps.model", "700", "--steps.policy", "400", "--video.every", "0", "--eval.every", "0", "--eval.final_episodes", "20")


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """(probe figures, mean return, mean return of the data) of one run on 200 episodes of random behaviour."""
    folder = tmp_path_factory.mktemp("learning")
    assert collect.main(["--task", "exbmdp_scroll", "--episodes", "200", "--out", str(folder / "data")]) == 0
    flags = ["--configs", "semopo", "exbmdp_scroll", "testbed", *AMOUNT]
    assert training.main([*flags, "--offline_dir", str(folder / "data"), "--logdir", str(folder / "run")]) == 0
    assert probe.main(["--logdir", str(folder / "run")]) == 0
    found = json.loads((folder / "run" / "analysis" / "probe.json").read_text())
    returns = [row["return"] for row in read_records(folder / "run" / "scores.jsonl")]
    return found, float(np.mean(returns)), read_card(folder / "data")["returns"]["mean"]


def test_the_endogenous_features_hold_the_agent_and_the_exogenous_ones_the_background(learned):
    r2 = learned[0]["r2"]
    assert r2["endo"]["position"] > 0.9
    assert r2["endo"]["phase"] < 0.5
    assert r2["exo"]["phase"] > 0.75
    assert not probe.swapped(learned[0])


def test_the_model_predicts_rewards_and_places_and_masks_the_agent(learned):
    found = learned[0]
    assert found["reward_r2"] > 0.6
    assert found["open_loop"]["endo"]["position"]["5"] > 0.4
    assert found["mask"]["on"] > found["mask"]["off"] + 0.1


def test_the_policy_is_far_better_than_its_data(learned):
    _, reached, data = learned
    assert reached > 3 * data
