"""Warnings about the health of a run, from its metrics rows. They never stop it."""

from collections.abc import Mapping

import numpy as np

LEAST_EXPLAINED = 0.2  # share of the reward's variance at the end of the model phase
COLLAPSED = 0.01  # nats per frame; the free nats keep a healthy posterior near 1
EXPLODED = 1e8  # far above the constant of the image likelihood, 11 292 at 64 x 64
CONSTANT = 1e-3  # variance of the reward, below which it says nothing about the representation
RULING = 1000.0  # penalty per step; the largest reward is about 1


def explained_reward(row: Mapping[str, float]) -> float:
    """R^2 of the reward head on the batches of a metrics row.

    Computed from the head's loss (half the squared error plus a constant) and the variance of the rewards.
    """
    error = 2 * (row["reward_loss"] - 0.5 * np.log(2 * np.pi))
    return 1 - error / row["reward_var"] if row["reward_var"] > 0 else 1.0


def raised(row: Mapping[str, float], *, last: bool) -> dict[str, str]:
    """The alarms that a metrics row raises, name -> one line.

    Args:
      last: whether the row is the last of its stage; the reward head is only judged there.
    """
    alarms = {}
    for name, value in row.items():
        if name.endswith(("_loss", "_grad_norm")) and abs(value) > EXPLODED:
            alarms[name] = f"{name} is {value:.3g}, beyond {EXPLODED:.0e}: it may be exploding; lower the learning rate"
        if name.endswith("_kl") and not name.startswith("valid_") and value < COLLAPSED:
            alarms[name] = (
                f"{name} is {value:.3g} nats, below {COLLAPSED}: the posterior may have collapsed onto the prior; "
                "look at the videos"
            )
        if name == "penalty" and abs(value) > RULING:
            alarms[name] = (
                f"the penalty is {value:.3g} per step, beyond {RULING:.0f}: it dominates the reward; "
                "lower --penalty.weight"
            )
    varies = row.get("reward_var", 0.0) > CONSTANT  # a reward that is the same everywhere leaves nothing to explain
    if last and varies and (share := explained_reward(row)) < LEAST_EXPLAINED:
        alarms["explained"] = (
            f"the reward head explains {share:.0%} of the reward's variance: the endogenous stream may have missed the "
            "agent (are the streams swapped?); look at the videos, or run python -m semopo_tf.probe where the true "
            "state is known"
        )
    return alarms
