"""The model learns: on the built-in testbed the streams separate, and the endogenous one alone knows where the agent is
and what it earns.

Thresholds leave a margin to the five seeds in RESULTS.md. The policy's return is asserted by `make test-full` alone: it
takes the whole amount of learning before the policy is good with every seed.
"""

import json

import numpy as np
import pytest

from semopo_tf import collect, probe, training
from semopo_tf.data.cards import read_card
from semopo_tf.storage.records import read_records

QUIET = ("--video.every", "0", "--eval.every", "0")
SHORT = ("--steps.model", "400", "--steps.policy", "20", "--eval.final_episodes", "0")
CONTROLLER = 47.4  # mean return of the analytic controller


def learn(folder, task, *flags):
    """Probe figures of one run on 200 episodes of random behaviour."""
    assert collect.main(["--task", task, "--episodes", "200", "--out", str(folder / "data")]) == 0
    flags = ["--configs", "semopo", task, "testbed", *QUIET, *flags]
    assert training.main([*flags, "--offline_dir", str(folder / "data"), "--logdir", str(folder / "run")]) == 0
    assert probe.main(["--logdir", str(folder / "run")]) == 0
    return json.loads((folder / "run" / "analysis" / "probe.json").read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return learn(tmp_path_factory.mktemp("learning"), "exbmdp_scroll", *SHORT)


def test_the_endogenous_features_hold_the_agent_and_the_exogenous_ones_the_background(found):
    r2 = found["r2"]
    assert r2["endo"]["position"] > 0.9
    assert r2["endo"]["phase"] < 0.5
    assert r2["exo"]["phase"] > 0.75
    assert not probe.swapped(found)


def test_the_model_predicts_rewards_and_places_and_masks_the_agent(found):
    assert found["reward_r2"] > 0.6
    assert found["open_loop"]["endo"]["position"]["5"] > 0.4
    assert found["mask"]["on"] > found["mask"]["off"] + 0.1


@pytest.mark.full
def test_the_whole_amount_of_learning_gives_a_good_policy(tmp_path):
    """Five seeds: return 41.7 to 45.5, position 0.94 to 0.98, phase -0.06 to 0.13 and 0.73 to 0.75, reward 0.92 to
    0.94.
    """
    found = learn(tmp_path, "exbmdp_point")
    r2 = found["r2"]
    assert (
        r2["endo"]["position"] > 0.9
        and r2["endo"]["phase"] < 0.5
        and r2["exo"]["phase"] > 0.65
        and found["reward_r2"] > 0.6
    )
    returns = [row["return"] for row in read_records(tmp_path / "run" / "scores.jsonl")]
    data = read_card(tmp_path / "data")["returns"]["mean"]
    assert np.mean(returns) > 4 * data
    assert np.mean(returns) > 0.75 * CONTROLLER
