"""`python -m semopo_tf.probe --logdir DIR`: how well the latent states predict the environment's true state.

Linear probes: ridge regression from the filtered features of each stream to every true quantity, for tasks whose
environment reports its state. They are fitted on fresh episodes of the behaviour that collected the data and scored by
R^2 on other such episodes. The same probes are also scored on the prior's rollouts under the true actions, 5 and 15
steps ahead. The result goes to `analysis/probe.json` in the run directory.
"""

import contextlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from semopo_tf import analysis
from semopo_tf.envs import tasks
from semopo_tf.envs.rollout import play
from semopo_tf.errors import ConfigError, run_command
from semopo_tf.report import tables
from semopo_tf.run.linear_probe import fit_probe, r_squared
from semopo_tf.run.trained import TASK_HELP, Run, as_batch, load_run, require_named, run_parser
from semopo_tf.types import Episode

FIT, TEST, BLOCK = 60, 40, 10  # episodes to fit the probes, to score them, encoded in one call
CONTEXT, AHEAD = 10, (5, 15)  # filtered frames before the open loop, steps into it


def main(argv: list[str]) -> int:
    """Probe a run, print the table, write it into the run directory.

    Raises:
      SemopoError: any of `errors`; ConfigError if the environment reports no true state.
    """
    about = "a run on a task whose environment reports its true state"
    parser = run_parser("python -m semopo_tf.probe", __doc__, about)
    parser.add_argument("--task", help=TASK_HELP)
    arguments = parser.parse_args(argv)
    run = load_run(arguments.logdir, arguments.checkpoint)
    require_named(run.config.task, arguments.task)
    scores = probe(run)
    analysis.write(arguments.logdir / "analysis", "probe", scores)
    print(table(scores))
    if swapped(scores):
        print(
            "warning: the exogenous features predict the agent better than the endogenous ones: the streams are swapped"
        )
    return 0


def probe(run: Run) -> dict[str, Any]:
    """All scores of one run.

    Returns:
      {phase, step, r2: {stream: {quantity: R^2}}, open_loop: {stream: {quantity: {steps ahead: R^2}}}, reward_r2,
      mask: {on, off} or None}
    """
    episodes, agent_pixels = fresh_episodes(run)
    columns = encode(run, episodes)
    truth = {name: np.stack([episode.log[name] for episode in episodes]) for name in episodes[0].log}
    streams = [branch.name for branch in run.world_model.branches]
    r2: dict[str, dict[str, float]] = {stream: {} for stream in streams}
    ahead: dict[str, dict[str, dict[str, float]]] = {stream: {} for stream in streams}
    for stream in streams:
        for name, values in truth.items():
            fitted = fit_probe(_rows(columns[stream][:FIT]), _rows(values[:FIT]))
            r2[stream][name] = r_squared(_rows(fitted(columns[stream][FIT:])), _rows(values[FIT:]))
            later = fitted(columns[f"{stream}_open"][FIT:])
            ahead[stream][name] = {str(k): r_squared(later[:, k - 1], values[FIT:, CONTEXT + k - 1]) for k in AHEAD}
    reward = np.stack([episode.reward for episode in episodes])[FIT:, 1:]  # record 0 has no reward of its own
    result: dict[str, Any] = {"phase": run.phase, "step": run.step, "r2": r2, "open_loop": ahead}
    result["reward_r2"] = r_squared(columns["reward"][FIT:, 1:].reshape(-1, 1), reward.reshape(-1, 1))
    result["mask"] = None
    if "mask" in columns and agent_pixels:
        result["mask"] = mask_figures(columns["mask"][FIT:], truth["position"][FIT:], agent_pixels)
    return result


def fresh_episodes(run: Run) -> tuple[list[Episode], Any]:
    """FIT + TEST episodes of the data's task and behaviour with seeds of their own.

    Returns:
      The episodes, and the environment's function from the agent's position to its pixels, or None.
    """
    from semopo_tf.run import build

    if run.card is None:
        raise ConfigError(
            "probe: expected a dataset with a card, which says how to play more such episodes; this run's dataset has "
            "none"
        )
    settings = build.environment_settings(run.config, run.card, image_size=run.sizes["image_size"])
    with contextlib.closing(tasks.make(run.config.task, **settings)) as environment:
        seeds = [zlib.crc32(f"probe/{index}".encode()) for index in range(FIT + TEST)]
        if not environment.reset(seeds[0]).log:
            raise ConfigError(
                f"probe: {run.config.task} reports no true state; expected an Observation.log, as in the tasks exbmdp_*"
            )
        playable, policy = tasks.behaviours(run.config.task), run.card.get("policy")
        if policy not in playable:
            raise ConfigError(
                f"probe: expected data of a behaviour that needs no training ({', '.join(playable)}), received "
                f"{policy}; choose another run"
            )
        episodes = list(play([environment], playable[policy](environment), seeds))
    lengths = {len(episode.reward) for episode in episodes}
    if len(lengths) > 1 or min(lengths) < CONTEXT + max(AHEAD):
        raise ConfigError(
            f"probe: expected episodes of one length, at least {CONTEXT + max(AHEAD)} records, received "
            f"{sorted(lengths)}"
        )
    return episodes, getattr(environment, "agent_pixels", None)


def encode(run: Run, episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
    """Run `WorldModel.analyse` on all episodes, in blocks; arrays [E, T, ...] float64."""
    from semopo_tf.engine import compiling

    key = run.key("probe")
    analyse = compiling.compiled(lambda batch: run.world_model.analyse(batch, key, CONTEXT), jit=False)
    blocks = []
    for first in range(0, len(episodes), BLOCK):
        found = analyse(as_batch(episodes[first : first + BLOCK]))
        blocks.append({name: array.numpy() for name, array in found.items()})
    return {name: np.concatenate([block[name] for block in blocks]).astype(np.float64) for name in blocks[0]}


def mask_figures(mask: np.ndarray, position: np.ndarray, agent_pixels: Any) -> dict[str, float]:
    """Mean mask where the agent is drawn and elsewhere; mask [E, T, H, W, 1], position [E, T, 2]."""
    where = np.stack([agent_pixels(point) for point in position.reshape(-1, 2)]).reshape(mask.shape[:-1])
    return {"on": float(mask[..., 0][where].mean()), "off": float(mask[..., 0][~where].mean())}


def swapped(scores: Mapping[str, Any]) -> bool:
    """Whether the stream that the policy sees predicts the agent's position less well than the other."""
    positions = [quantities.get("position", 0.0) for quantities in scores["r2"].values()]
    return len(positions) == 2 and positions[0] < positions[1]


def table(scores: Mapping[str, Any]) -> str:
    """The scores as text, one true quantity per line."""
    streams = list(scores["r2"])
    lines = [["R^2", *(f"{stream}{when}" for stream in streams for when in ("", *(f" +{k}" for k in AHEAD)))]]
    for name in scores["r2"][streams[0]]:
        each = ((scores["r2"][stream][name], *scores["open_loop"][stream][name].values()) for stream in streams)
        lines.append([name, *(f"{value:.2f}" for values in each for value in values)])
    text = [tables.aligned(lines)]
    text.append(f"reward head R^2 {scores['reward_r2']:.2f}")
    if scores["mask"]:
        text.append(f"mask {scores['mask']['on']:.2f} on the agent, {scores['mask']['off']:.2f} elsewhere")
    return "\n".join(text)


def _rows(x: np.ndarray) -> np.ndarray:
    """[E, T, D] -> [E*T, D]."""
    return x.reshape(-1, x.shape[-1])


if __name__ == "__main__":
    run_command(main)
