"""What a metrics row says about the health of a run, in words. Warns, and never stops."""

from collections.abc import Mapping

import numpy as np

LEAST_EXPLAINED = 0.2  # of the reward's variance at the end of the model phase
COLLAPSED = 0.01  # nats a frame; the free nats keep a healthy posterior near 1
EXPLODED = 1e8  # far above the constant of the image likelihood, 11 292 at 64 x 64
RULING = 1000.0  # penalty in units of the largest reward, which is about 1


def explained_reward(row: Mapping[str, float]) -> float:
    """R^2 of the reward head on the batches of a metrics row, from its loss (squared error / 2 and a constant) and the
    rewards' variance.
    """
    error = 2 * (row["reward_loss"] - 0.5 * np.log(2 * np.pi))
    return 1 - error / row["reward_var"] if row["reward_var"] > 0 else 1.0


def raised(row: Mapping[str, float], *, last: bool) -> dict[str, str]:
    """The alarms of a metrics row, name -> one line.

    Args:
      last: whether the row is the last of its stage; only then a reward head should know the rewards.
    """
    found = {}
    for name, value in row.items():
        if name.endswith(("_loss", "_grad_norm")) and abs(value) > EXPLODED:
            found[name] = f"{name} is {value:.3g}, beyond {EXPLODED:.0e}: it may be exploding; lower the learning rate"
        if name.endswith("_kl") and not name.startswith("valid_") and value < COLLAPSED:
            found[name] = (
                f"{name} is {value:.3g} nats, below {COLLAPSED}: the posterior may have collapsed onto the prior; "
                "look at the videos"
            )
        if name == "penalty" and abs(value) > RULING:
            found[name] = (
                f"the penalty is {value:.3g} a step, beyond {RULING:.0f}: it rules the reward; lower --penalty.weight"
            )
    if last and "reward_var" in row and (share := explained_reward(row)) < LEAST_EXPLAINED:
        found["explained"] = (
            f"the reward head explains {share:.0%} of the reward's variance: the endogenous stream may have missed "
            "the agent "
            "(are the streams swapped?); look at the videos, or run python -m semopo_tf.probe where the true state is "
            "known"
        )
    return found
