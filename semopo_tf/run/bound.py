"""What a policy returns in its model and in the simulator: the condition of Theorem 3.3, measured for one policy.

The theorem asks for a penalty with which no policy returns more in the penalised model than in truth. The policy of a
run plays in the simulator; its model filters the first frame of each episode and imagines the episode from there, with
the same greedy policy:

    record       0      1            2       ...   T
    simulator    o_0    r_1          r_2     ...   r_T
    model        z_0    r(z_1)       r(z_2)  ...   r(z_T)    z_{k+1} ~ the model after pi(z_k)
    penalty             w u(z_1)     w u(z_2)      w u(z_T)
    weight              1            g       ...   g^{T-1}   g: imagination.discount

An episode counts as many steps in the model as in the simulator. After one that ended in a terminal state the
simulator's rewards are 0, while the model goes on to the length of the longest episode, or as its continue head says.

    return of the simulator  R = E sum g^{k-1} r_k       penalised return of the model  M - w U
    return of the model      M = E sum g^{k-1} r(z_k)    smallest weight                (M - R) / U
    disagreement             U = E sum g^{k-1} u(z_k)

With the smallest weight the penalised return of this policy is not above its true one. The theorem asks that of every
policy, so it needs at least this weight. Below 0, the model promises this policy less than it gets.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from semopo_tf.errors import DataError
from semopo_tf.run.resampling import draws, interval
from semopo_tf.run.trained import Run, as_batch
from semopo_tf.types import Batch, Episode, Latent, Tensor

if TYPE_CHECKING:
    from semopo_tf.random import Key

ROLLOUTS = 8  # of each episode, in one call


def bound(run: Run, episodes: int = 10) -> dict[str, Any]:
    """The record of one run: the returns above, discounted, with 95 % bootstrap intervals over episodes.

    Args:
      episodes: that the policy plays, by the protocol and seeds of evaluate.py.

    Returns:
      {phase, step, seed, members, discount, decisions, episodes, rollouts, penalty, return, simulator, model,
      penalised: interval, disagreement, smallest: {measure: interval}}; `return` is not discounted, `penalised` has
      the run's own measure and weight.

    Raises:
      DataError: when an episode has no decision.
      SemopoError: as `Run.play_for`.
    """
    played, facts = run.play_for("bound", episodes)
    discount, penalty = run.config.imagination.discount, run.config.penalty
    sums = Imaginer(run, discount).compare(played)
    return facts | {
        "discount": discount,
        "decisions": max(len(episode.reward) for episode in played) - 1,
        "episodes": len(played),
        "rollouts": ROLLOUTS,
        **describe(sums, penalty.measure, penalty.weight),
    }


def describe(sums: dict[str, np.ndarray], measure: str, weight: float) -> dict[str, Any]:
    """Intervals of the returns in the module's text.

    Args:
      sums: by episode, [E]: `simulator`, `model`, and the disagreement by every measure.
    """
    drawn = draws(len(sums["simulator"]))
    mean = {name: values[drawn].mean(1) for name, values in sums.items()}  # [1 + replicates]
    disagreement = {name: values for name, values in mean.items() if name not in ("simulator", "model")}
    excess = mean["model"] - mean["simulator"]
    with np.errstate(divide="ignore", invalid="ignore"):
        smallest = {name: interval(excess / values) for name, values in disagreement.items() if values[0]}
    return {
        "simulator": interval(mean["simulator"]),
        "model": interval(mean["model"]),
        "penalised": interval(mean["model"] - weight * disagreement[measure]),
        "disagreement": {name: interval(values) for name, values in disagreement.items()},
        "smallest": smallest,
    }


class Imaginer:
    """Imagines the episodes of a run's policy from their first frames."""

    def __init__(self, run: Run, discount: float):
        from semopo_tf.engine import compiling
        from semopo_tf.random import Key

        self._discount, model, policy, seed = discount, run.world_model, run.policy, run.config.eval.seed
        least = run.config.penalty.reward == "minimum"

        def imagined(first: Batch, steps: int, call: Tensor) -> dict[str, Tensor]:
            return imagine(model, policy, first, steps, Key(seed, "bound", call), least=least)

        self._imagined = compiling.compiled(imagined, jit=False)

    def compare(self, episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
        """Discounted sums of every episode, [E] each: `simulator`, `model`, and the disagreement by every measure.

        Raises:
          DataError: when an episode has no decision.
        """
        if short := [number for number, episode in enumerate(episodes) if len(episode.reward) < 2]:
            raise DataError(
                f"bound: expected episodes of at least 2 records, received 1 in episode {short[0]}; choose another run"
            )
        longest = max(len(episode.reward) for episode in episodes) - 1
        each = [self._compare(episode, number, longest) for number, episode in enumerate(episodes)]
        return {name: np.array([one[name] for one in each]) for name in each[0]}

    def _compare(self, episode: Episode, number: int, longest: int) -> dict[str, float]:
        import tensorflow as tf

        reward = episode.reward[1:].astype(np.float64)
        steps = longest if episode.is_terminal[-1] else len(reward)
        first = tf.nest.map_structure(lambda x: tf.repeat(x, ROLLOUTS, 0), as_batch([episode], length=1))
        imagined = self._imagined(first, steps, tf.constant(number, tf.int64))
        steps_of = {name: x.numpy().astype(np.float64) for name, x in imagined.items()}  # [N, T]
        weights = self._discount ** np.arange(steps)
        goes_on = steps_of.pop("goes_on") * weights
        model = {name: float((values * goes_on).sum(1).mean()) for name, values in steps_of.items()}
        simulator = float((reward * weights[: len(reward)]).sum())
        return {"simulator": simulator, "model": model.pop("reward"), **model}


def imagine(model: Any, policy: Any, first: Batch, steps: int, key: "Key", *, least: bool = False) -> dict[str, Tensor]:
    """Roll the greedy policy from the filtered first records [N, 1, ...], with the members and the noise of
    imagination.

    Args:
      policy: acts from states of the model, as a `FilterPolicy` does.
      least: with `penalty.reward minimum`, the reward is the least of any member, as in imagination.

    Returns:
      Of the states after each of T steps, [N, T] each: `reward`, the disagreement by every measure of
      `losses.MEASURES`, and `goes_on`: by the continue head, how likely the episode had not ended before; else 1.
    """
    import tensorflow as tf

    from semopo_tf.methods.losses import MEASURES

    post = model.posterior(first, key)
    start = tf.nest.map_structure(lambda x: x[:, 0], post)
    noise = model.draw_steps(key, steps, start.deter.shape[0])

    def step(latent: Latent, now: Any) -> Latent:
        reached: Latent = model.step(latent, policy.action_of(model.features(latent)), now)
        return reached

    states = tf.scan(step, noise, initializer=start)
    latent = tf.nest.map_structure(lambda x: tf.transpose(x, [1, 0, *range(2, len(x.shape))]), states)
    features = model.features(latent)
    reward, continues = model.reward(features), model.continues(features)
    if least:
        reward = tf.reduce_min(model.member_rewards(latent, noise), 0)
    goes_on = tf.ones_like(reward) if continues is None else tf.math.cumprod(continues, axis=1, exclusive=True)
    measures = {name: model.disagreement(latent, name) for name in MEASURES}
    return {"reward": reward, "goes_on": goes_on} | measures
