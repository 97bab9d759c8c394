"""Whether a penalty sees the model's error: rank correlations of the ensemble's disagreement with the true error of the
model, in states that the run's policy visits and in states of its dataset.

The policy plays in the simulator. Its episodes, and some of the dataset, are filtered by the model; from some of their
states the model is rolled open loop, exactly as imagination rolls it, but under the actions that were really taken, and
compared with what really happened:

    record       0  ..  t      t+1           ...   t+k
    image        o_0 .. o_t                               filtered
    action                     a_{t+1}       ...   a_{t+k}
    state               s_t -> z_1      ->   ...   z_k    filtered, then predicted
    reward                     r_{t+1}       ...   r_{t+k}       error after k steps  |r(z_k) - r_{t+k}|
    position                   p_{t+1}       ...   p_{t+k}       error after k steps  |probe(z_k) - p_{t+k}|
    disagreement               u(z_1)        ...   u(z_k)        first  u(z_1),   sum  u(z_1) + ... + u(z_k)

Positions are those of the testbed's agent, read from the features by a linear probe that was fitted on other episodes
of the dataset. Each state is rolled out several times, and its errors and disagreements are the means over these
rollouts: what the penalty charges, and how wrong the model is, in expectation.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from semopo_tf.data.dataset import Dataset
from semopo_tf.data.episodes import read_episode, read_log
from semopo_tf.errors import DataError
from semopo_tf.run.linear_probe import Probe, fit_probe
from semopo_tf.run.resampling import draws, interval
from semopo_tf.run.trained import Run, as_batch
from semopo_tf.types import Batch, Episode, Tensor

if TYPE_CHECKING:
    from semopo_tf.random import Key

STARTS = 10  # states of an episode from which the model is rolled out
ROLLOUTS = 4  # of each state
AHEAD = (1, 5, 15)  # steps after which errors are compared, besides the horizon of imagination
FIT = 60  # episodes of the dataset, at most, that the probe is fitted on
TRUTH = "position"  # the true state that is probed, where the environment tells it


class Compared(NamedTuple):
    """Predictions and truth for the states of E episodes, S of each, K steps ahead."""

    predicted: np.ndarray  # [E, S, K] rewards, mean over the rollouts
    reward: np.ndarray  # [E, S, K] of the simulator
    errors: dict[str, np.ndarray]  # [E, S, K] by what is predicted: reward, and position where it is known
    measures: dict[str, np.ndarray]  # [E, S, K] disagreement about each predicted state, by measure


def trust(run: Run, dataset: Dataset, episodes: int = 10) -> dict[str, Any]:
    """The record of one run: for the states of its policy's episodes and of its dataset, mean predictions, errors and
    disagreements, and the rank correlations of the latter two, with intervals.

    Args:
      episodes: that the policy plays, by the protocol and seeds of evaluate.py; as many of the dataset, at most half of
        it, evenly spaced in file order.

    Raises:
      DataError: when no episode is long enough.
      SemopoError: as `Run.play_for`.
    """
    played, facts = run.play_for("trust", episodes)
    compared, fitted = chosen(len(dataset.names), episodes)
    horizon = run.config.imagination.horizon
    steps = sorted({*AHEAD, horizon})
    roller = Roller(run, steps[-1])
    probe = position_probe(roller, dataset, fitted) if TRUTH in played[0].log else None
    sources = {"policy": played, "dataset": [stored_episode(dataset, number) for number in compared]}
    return facts | {
        "horizon": horizon,
        "rollouts": ROLLOUTS,
        "steps": steps,
        "sources": {
            name: describe(roller.compare(each, probe), steps, left_out=roller.too_short(each))
            for name, each in sources.items()
        },
    }


def chosen(episodes: int, wanted: int) -> tuple[list[int], list[int]]:
    """Numbers of the dataset's episodes that are compared and, of the others, of those that the probe is fitted on;
    both evenly spaced.
    """
    compared = _spaced(range(episodes), min(wanted, max(1, episodes // 2)))
    others = [number for number in range(episodes) if number not in compared]
    return compared, _spaced(others, min(FIT, len(others)))


def _spaced(items: Sequence[int], count: int) -> list[int]:
    return [items[at] for at in np.linspace(0, len(items) - 1, count).round().astype(int)] if count else []


def stored_episode(dataset: Dataset, number: int) -> Episode:
    """An episode of the dataset with the true states of its file."""
    path = dataset.directory / dataset.names[number]
    return read_episode(path)._replace(log=read_log(path))


def position_probe(roller: "Roller", dataset: Dataset, numbers: Sequence[int]) -> Probe | None:
    """The probe of the true position, fitted on the filtered states of these episodes; None where their files do not
    tell it.
    """
    episodes = [stored_episode(dataset, number) for number in numbers]
    if not episodes or not all(TRUTH in episode.log for episode in episodes):
        return None
    features = np.concatenate([roller.filtered(episode) for episode in episodes])
    return fit_probe(features, np.concatenate([episode.log[TRUTH] for episode in episodes]))


class Roller:
    """Filters episodes with a run's model and rolls it out under their actions.

    Args:
      steps: K of a rollout.
    """

    def __init__(self, run: Run, steps: int):
        from semopo_tf.engine import compiling
        from semopo_tf.random import Key

        model, seed = run.world_model, run.config.eval.seed
        self._steps, self._calls = steps, 0

        def roll(batch: Batch, starts: Tensor, call: Tensor) -> dict[str, Tensor]:
            return open_loop(model, batch, starts, steps, Key(seed, "trust", call))

        def filtered(batch: Batch, call: Tensor) -> Tensor:
            return model.features(model.posterior(batch, Key(seed, "trust", call)))

        self._roll, self._filter = (compiling.compiled(function, jit=False) for function in (roll, filtered))

    def too_short(self, episodes: Sequence[Episode]) -> int:
        """How many episodes are left out, as they have fewer records than `STARTS` rollouts need."""
        return sum(len(episode.reward) < STARTS + self._steps for episode in episodes)

    def compare(self, episodes: Sequence[Episode], probe: Probe | None) -> Compared:
        """Roll out from states of every episode that is long enough, and compare.

        Raises:
          DataError: when none is.
        """
        long = [episode for episode in episodes if len(episode.reward) >= STARTS + self._steps]
        if not long:
            raise DataError(
                f"trust: expected episodes of at least {STARTS + self._steps} records, received at most "
                f"{max(len(episode.reward) for episode in episodes)}; choose another run"
            )
        each = [self._compare(episode, probe) for episode in long]

        def stacked(name: str) -> dict[str, np.ndarray]:
            parts = [getattr(one, name) for one in each]
            return {key: np.stack([part[key] for part in parts]) for key in parts[0]}

        predicted, reward = (np.stack([getattr(one, name) for one in each]) for name in ("predicted", "reward"))
        return Compared(predicted, reward, stacked("errors"), stacked("measures"))

    def _compare(self, episode: Episode, probe: Probe | None) -> Compared:
        """Of one episode: fields [S, K]."""
        import tensorflow as tf

        starts = np.linspace(0, len(episode.reward) - 1 - self._steps, STARTS).round().astype(int)
        ahead = starts[:, None] + np.arange(1, self._steps + 1)  # [S, K] records that the predicted states stand for
        batch, rollouts = as_batch([episode]), []
        for _ in range(ROLLOUTS):
            rolled = self._roll(batch, tf.constant(starts), self._call())
            rollouts.append({name: x.numpy().astype(np.float64) for name, x in rolled.items()})
        features, predicted = (np.stack([rolled.pop(name) for rolled in rollouts]) for name in ("features", "reward"))
        reward = episode.reward.astype(np.float64)[ahead]
        errors = {"reward": np.abs(predicted - reward).mean(0)}
        if probe:
            errors[TRUTH] = np.linalg.norm(probe(features) - episode.log[TRUTH][ahead], axis=-1).mean(0)
        measures = {name: np.mean([rolled[name] for rolled in rollouts], 0) for name in rollouts[0]}
        return Compared(predicted.mean(0), reward, errors, measures)

    def filtered(self, episode: Episode) -> np.ndarray:
        """Features [L, F] of the filtered states of an episode."""
        features: np.ndarray = self._filter(as_batch([episode]), self._call())[0].numpy()
        return features.astype(np.float64)

    def _call(self) -> Tensor:
        """The step of the key of a call, which no other call has."""
        import tensorflow as tf

        self._calls += 1
        return tf.constant(self._calls, tf.int64)


def open_loop(model: Any, batch: Batch, starts: Tensor, steps: int, key: "Key") -> dict[str, Tensor]:
    """One rollout of `steps` from the filtered states of the records `starts` [S] of an episode [1, L, ...], under its
    actions, with the members and the noise of imagination.

    Returns:
      Of the predicted states, [S, K] each: `reward`, and the disagreement by every measure of `losses.MEASURES`; and
      their `features` [S, K, F].
    """
    import tensorflow as tf

    from semopo_tf.methods.losses import MEASURES

    post = model.posterior(batch, key)
    start = tf.nest.map_structure(lambda x: tf.gather(x[0], starts), post)
    action = tf.gather(batch.action[0], starts[None] + tf.range(1, steps + 1, dtype=starts.dtype)[:, None])  # [K, S, A]
    noise = model.draw_steps(key, steps, starts.shape[0])
    states = tf.scan(lambda latent, now: model.step(latent, *now), (action, noise), initializer=start)
    latent = tf.nest.map_structure(lambda x: tf.transpose(x, [1, 0, *range(2, len(x.shape))]), states)
    features = model.features(latent)
    measures = {name: model.disagreement(latent, name) for name in MEASURES}
    return {"features": features, "reward": model.reward(features)} | measures


# --- statistics -------------------------------------------------------------------------------------------------------


def describe(compared: Compared, steps: Sequence[int], left_out: int = 0) -> dict[str, Any]:
    """Means and rank correlations after some numbers of steps.

    Returns:
      {episodes, states, left_out, means: {predicted, reward, excess: {steps: interval}, error, measure: {name: {steps:
      interval}}}, correlations: {measure: {error: {first, sum: {steps: interval}}}}}, an interval being {estimate, low,
      high}. `excess` is the predicted minus the true reward. Where a quantity does not vary, it has no correlation.
    """
    episodes, starts, _ = compared.predicted.shape
    drawn = draws(episodes)

    def means(values: np.ndarray) -> dict[str, Any]:
        return {str(k): interval(values[..., k - 1].mean(1)[drawn].mean(1)) for k in steps}

    ranked = {
        "error": {name: {k: ranks(x[..., k - 1], drawn) for k in steps} for name, x in compared.errors.items()},
        "first": {name: dict.fromkeys(steps, ranks(x[..., 0], drawn)) for name, x in compared.measures.items()},
        "sum": {name: {k: ranks(x[..., :k].sum(-1), drawn) for k in steps} for name, x in compared.measures.items()},
    }

    def correlations(measure: str, form: str, error: str) -> dict[str, Any]:
        pairs = {k: (ranked[form][measure][k], ranked["error"][error][k]) for k in steps}
        return {str(k): interval(correlation(*pair)) for k, pair in pairs.items() if all(varies(x) for x in pair)}

    return {
        "episodes": episodes,
        "states": episodes * starts,
        "left_out": left_out,
        "means": {
            "predicted": means(compared.predicted),
            "reward": means(compared.reward),
            "excess": means(compared.predicted - compared.reward),
            "error": {name: means(x) for name, x in compared.errors.items()},
            "measure": {name: means(x) for name, x in compared.measures.items()},
        },
        "correlations": {
            measure: {
                error: {form: correlations(measure, form, error) for form in ("first", "sum")}
                for error in compared.errors
            }
            for measure in compared.measures
        },
    }


def ranks(values: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Ranks of values [E, S] in every replicate, ties averaged, minus their mean: [1 + R, E S]."""
    from scipy import stats

    ranked = stats.rankdata(values[drawn].reshape(len(drawn), -1), axis=1)
    return ranked - ranked.mean(1, keepdims=True)


def varies(ranked: np.ndarray) -> bool:
    """Whether the sample of `ranks` has more than one value."""
    return bool(ranked[0].any())


def correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's correlation of every replicate of `ranks`, [1 + R]; not a number where one of them does not vary."""
    with np.errstate(invalid="ignore"):
        return (one * other).sum(1) / np.sqrt((one**2).sum(1) * (other**2).sum(1))
