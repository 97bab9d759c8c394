"""Warnings about the health of a run: they appear at their thresholds and change nothing."""

import pytest

from semopo_tf.run import alarms

HEALTHY = {
    "model_loss": 11292.0,
    "image_loss": 11290.0,
    "model_grad_norm": 90.0,
    "endo_kl": 1.2,
    "exo_kl": 3.0,
    "penalty": 12.0,
    "eval_return": -9e9,
}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model_loss", 2e8, "may be exploding"),
        ("critic_grad_norm", -2e8, "may be exploding"),
        ("exo_kl", 0.009, "may have collapsed"),
        ("penalty", 1001.0, "dominates the reward"),
    ],
)
def test_N05_a_value_beyond_its_threshold_is_one_warning(name, value, words):
    assert alarms.raised(HEALTHY, last=True) == {}
    warnings = alarms.raised(HEALTHY | {name: value}, last=False)
    assert list(warnings) == [name] and words in warnings[name]


def test_N05_a_reward_head_that_knows_nothing_is_said_at_the_end_of_the_model_phase_alone():
    row = HEALTHY | {"reward_loss": 0.918939 + 0.05, "reward_var": 0.1}
    assert alarms.raised(row, last=False) == {}
    assert "0% of the reward's variance" in alarms.raised(row, last=True)["explained"]
