"""`python -m semopo_tf.analysis --logdir DIR`: analyse a run's model and its sampler on the run's dataset.

    uncertainty       disagreement of the ensembles about random states of the dataset (Figures 2, 3, 7 and 8)
    reconstruction    each stream's reconstruction of filtered frames (Figure 5)
    entropy           of the actions in the batches of the model phase, conservative against uniform sampling (Figure 6)
    trust             rank correlation of the ensemble's disagreement with the model's true error, in states that the
                      policy visits and in states of the dataset
    bound             the policy's return in its model, penalised and not, and in the simulator; the smallest weight of
                      the penalty with which the model does not promise more, as Theorem 3.3 asks

The last two play in the simulator, so only if asked for: --only

Each writes a record into the run directory, `analysis/<name>.json`, with its picture, `<name>.png`, beside it if it has
one.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import imageio.v3 as imageio
import numpy as np

from semopo_tf.config import Config
from semopo_tf.data.cards import read_run_data
from semopo_tf.data.dataset import Dataset, cache_place, open_dataset
from semopo_tf.errors import ConfigError, NumericalError, run_command, user_path
from semopo_tf.run.bound import bound
from semopo_tf.run.pages import ANALYSES, PLAYED
from semopo_tf.run.trained import TASK_HELP, Run, load_run, require_named, run_parser
from semopo_tf.run.trust import trust
from semopo_tf.storage.files import FILES, write_whole
from semopo_tf.storage.video import video_grid
from semopo_tf.types import Batch, Tensor

if TYPE_CHECKING:
    from semopo_tf.data.sampler import Sampler

BLOCK = 20  # windows in one call
GROUPS, GROUP_FRAMES, GROUP_STRIDE = 2, 3, 2  # episodes, frames of each, records between them
FRAMES = 8  # of a reconstruction
# Rows of a separated model's picture -> their names in `WorldModel.reconstruct`.
SHOWN = {"observation": "truth", "endo": "endo", "exo": "exo", "mask": "mask", "both": "joint"}
BINS = 32  # of a histogram of actions over [-1, 1]


def main(argv: list[str]) -> int:
    """Analyse a run and write the records into its directory.

    Raises:
      SemopoError: any of `errors`; DataError if the dataset is not the one that the run was trained on.
    """
    parser = run_parser("python -m semopo_tf.analysis", __doc__, "the run")
    usual = f"some of the analyses (default: {' '.join(ANALYSES)})"
    parser.add_argument("--only", nargs="+", choices=(*ANALYSES, *PLAYED), default=ANALYSES, help=usual)
    parser.add_argument("--states", type=int, default=1000, help="number of dataset states for the uncertainty")
    parser.add_argument("--epochs", type=int, default=30, help="number of model-phase epochs for the entropy")
    parser.add_argument("--episodes", type=int, default=10, help="number that the policy plays for trust and bound")
    parser.add_argument("--task", help=f"for trust and bound, {TASK_HELP}")
    moved = "where the run's dataset lies now (default: where the run had it)"
    parser.add_argument("--offline_dir", type=Path, help=moved)
    arguments = parser.parse(argv, states=1, epochs=1, episodes=1)
    logdir = arguments.logdir
    run = load_run(logdir, arguments.checkpoint)
    if set(arguments.only) & set(PLAYED):
        require_named(run.config.task, arguments.task)
    dataset = open_data(run.config, logdir, arguments.offline_dir)
    analyses = {
        "uncertainty": lambda: uncertainty(run, dataset, arguments.states),
        "reconstruction": lambda: reconstruction(run, dataset),
        "entropy": lambda: (entropy(run.config, dataset, arguments.epochs), None),
        "trust": lambda: (trust(run, dataset, arguments.episodes), None),
        "bound": lambda: (bound(run, arguments.episodes), None),
    }
    for name in analyses:
        if name in arguments.only:
            record, picture = analyses[name]()
            write(logdir / "analysis", name, record, picture)
            print(f"{name}: {described(name, record)}", flush=True)
    return 0


def open_data(config: Config, logdir: Path, offline_dir: Path | None = None) -> Dataset:
    """The dataset that a run was trained on.

    Args:
      offline_dir: where it is now, if it was moved.

    Raises:
      DataError: when it is missing, or a file has changed since the run started.
    """
    directory = offline_dir or user_path(config.offline_dir)
    dataset = open_dataset(directory, cache_place(directory, config.cache_dir, logdir))
    dataset.require_files(read_run_data(logdir)["files"])
    return dataset


def write(directory: Path, name: str, record: dict[str, Any], picture: np.ndarray | None = None) -> None:
    """Write the picture [H, W, 3] uint8, if there is one, as `<name>.png`, then `<name>.json`.

    Raises:
      NumericalError: when a figure is not finite; nothing is written then.
    """
    try:
        text = json.dumps(record, indent=1, allow_nan=False)
    except ValueError as error:
        raise NumericalError(
            f"{name}: expected finite numbers, received some that are not; try an earlier checkpoint with --checkpoint"
        ) from error
    FILES.make_directory(directory)
    if picture is not None:
        write_whole(directory / f"{name}.png", imageio.imwrite("<bytes>", picture, extension=".png"))
    write_whole(directory / f"{name}.json", text.encode())


def described(name: str, record: dict[str, Any]) -> str:
    """The main figures of a record in one line."""
    if name == "uncertainty":
        streams = record["measures"]["mean_norm"].items()
        return f"mean_norm of {record['states']} states: " + ", ".join(
            f"{stream} {at['mean']:.4g} +- {at['std']:.4g}" for stream, at in streams
        )
    if name == "trust":
        return described_trust(record)
    if name == "bound":
        return described_bound(record)
    if name == "reconstruction":
        return "mse " + ", ".join(f"{row} {value:.4g}" for row, value in record["mse"].items())
    return ", ".join(
        f"{rule} {curve['entropy'][0]:.3f} to {curve['entropy'][-1]:.3f} nats"
        for rule, curve in record["rules"].items()
    )


def described_trust(record: dict[str, Any]) -> str:
    """What the run's own penalty says about the reward's error at the horizon, in one line."""
    measure, horizon, words = record["penalty"]["measure"], str(record["horizon"]), []
    for source, each in record["sources"].items():
        rho = each["correlations"][measure]["reward"]["sum"].get(horizon, {})
        interval = f" ({rho['low']:.2f} to {rho['high']:.2f})" if "low" in rho else ""
        found = f"{rho['estimate']:.2f}{interval}" if rho else "undefined"
        means = {name: each["means"][name][horizon]["estimate"] for name in ("predicted", "reward")}
        words.append(
            f"{source} {found}, reward {means['predicted']:.3f} predicted and {means['reward']:.3f} true, "
            f"{each['states']} states"
        )
    return f"rank correlation of {measure} with the reward's error over {horizon} steps: {'; '.join(words)}"


def described_bound(record: dict[str, Any]) -> str:
    """Discounted returns and the smallest weight of the run's own measure, in one line."""

    def words(estimate: dict[str, float] | None) -> str:
        if estimate is None:
            return "undefined"
        ends = f" ({estimate['low']:.2f} to {estimate['high']:.2f})" if "low" in estimate else ""
        return f"{estimate['estimate']:.2f}{ends}"

    measure, weight = record["penalty"]["measure"], record["penalty"]["weight"]
    smallest = words(record["smallest"].get(measure))
    return (
        f"discounted return {words(record['simulator'])} in the simulator, {words(record['model'])} in the model, "
        f"{words(record['penalised'])} penalised; smallest weight of {measure} {smallest}, the run's is {weight:g}"
    )


class Windows(NamedTuple):
    """Windows of a dataset, drawn by the run's own sampler from all its training episodes."""

    batch: Batch
    names: list[str]  # [B] episode names
    start: np.ndarray  # [B] first records

    def place(self, row: int, column: int) -> list[Any]:
        """[episode name, record] of a record in a window."""
        return [self.names[row], int(self.start[row]) + column]


def draw_windows(sampler: "Sampler", dataset: Dataset, key: Any, *, batch: int, length: int) -> Windows:
    """`batch` windows of `length` records of the view `all`."""
    import tensorflow as tf

    sizes = {"batch": batch, "length": length}
    episode, start = (array.numpy() for array in sampler.draw("all", key, **sizes))
    image = tf.constant(sampler.host_images("all", key, **sizes))
    return Windows(sampler.sample("all", key, **sizes, image=image), [dataset.names[at] for at in episode], start)


def uncertainty(run: Run, dataset: Dataset, states: int = 1000) -> tuple[dict[str, Any], np.ndarray]:
    """Disagreement of every stream's ensemble about random states of the dataset, by every measure.

    Figures 2, 7 and 8 of the paper. A state is the last record of a window of training's length, so that the filter has
    its context; the first `batch.length - 1` records of an episode are therefore never used. The measures are about the
    state that the ensemble *predicts* for the record: the log-probability measures use a sample from one random
    member's prior, as in imagination, not from the posterior (`WorldModel.uncertainties`). The states depend on
    `eval.seed` and the dataset alone, so that methods are compared on the same ones.

    Returns:
      The record, with means and population standard deviations over the states; and six frames side by side,
      [H, 6 W, 3] uint8 (Figure 3).
    """
    import tensorflow as tf

    from semopo_tf.engine import compiling
    from semopo_tf.random import Key
    from semopo_tf.run import build

    config, seed = run.config, run.config.eval.seed
    sampler, length = build.make_sampler(config, dataset, images_on_device=False), config.batch.length
    measure = compiling.compiled(
        lambda batch, block: run.world_model.uncertainties(batch, Key(seed, "uncertainty", block), [length - 1]),
        jit=False,
    )
    blocks = []
    for number in range(-(-states // BLOCK)):
        windows = draw_windows(sampler, dataset, run.key("uncertainty", number), batch=BLOCK, length=length)
        blocks.append(measure(windows.batch, tf.constant(number, tf.int64)))
    measures: dict[str, dict[str, dict[str, float]]] = {}
    for stream, by_measure in blocks[0].items():
        for name in by_measure:
            values = np.concatenate([block[stream][name][:, 0] for block in blocks]).astype(np.float64)[:states]
            measures.setdefault(name, {})[stream] = {"mean": float(values.mean()), "std": float(values.std())}
    record = {"phase": run.phase, "step": run.step, "states": states, "seed": seed, "measures": measures}
    record["frames"], picture = example_frames(run, dataset, sampler)
    return record, picture


def example_frames(run: Run, dataset: Dataset, sampler: "Sampler") -> tuple[dict[str, Any], np.ndarray]:
    """Two groups of three frames, each from one episode, with every stream's uncertainty (`mean_norm`); Figure 3.

    Returns:
      {groups: [[[episode name, record] x3] x2], values: {stream: [[number x3] x2]}}, and the frames side by side.
    """
    import tensorflow as tf

    key, length = run.key("uncertainty_frames"), run.config.batch.length
    windows = draw_windows(sampler, dataset, key, batch=BLOCK, length=length)
    rows = [0, next((row for row in range(BLOCK) if windows.names[row] != windows.names[0]), 1)]
    columns = [max(0, length - 1 - GROUP_STRIDE * back) for back in reversed(range(GROUP_FRAMES))]
    batch = tf.nest.map_structure(lambda x: tf.gather(x, rows), windows.batch)
    values = {
        stream: measures["mean_norm"].numpy().astype(np.float64).tolist()
        for stream, measures in run.world_model.uncertainties(batch, key, columns).items()
    }
    picture = np.concatenate([batch.image.numpy()[group, column] for group in range(GROUPS) for column in columns], 1)
    return {"groups": [[windows.place(row, column) for column in columns] for row in rows], "values": values}, picture


def reconstruction(run: Run, dataset: Dataset) -> tuple[dict[str, Any], np.ndarray]:
    """Eight frames of the dataset as the model reconstructs them after filtering: unmasked means, mask and blend.

    Figure 5 of the paper.

    Returns:
      The record, with the mean squared error of every row that reconstructs the observation (pixels in 0..1, over these
      frames alone); and the picture, [rows * H, 8 W, 3] uint8.
    """
    from semopo_tf.run import build

    key, length = run.key("reconstruction"), run.config.batch.length
    sampler = build.make_sampler(run.config, dataset, images_on_device=False)
    windows = draw_windows(sampler, dataset, key, batch=FRAMES, length=length)
    pictures = run.world_model.reconstruct(windows.batch, key, length)
    names = SHOWN if "mask" in pictures else {"observation": "truth", "joint": "joint"}
    rows = {name: pictures[source].numpy()[:, -1:] for name, source in names.items()}  # [8, 1, H, W, 1 or 3]
    truth = rows["observation"]
    compared = [name for name in rows if name not in ("observation", "mask")]
    record = {
        "phase": run.phase,
        "step": run.step,
        "rows": list(rows),
        "frames": FRAMES,
        "size": dataset.frames.shape[1],
        "places": [windows.place(row, length - 1) for row in range(FRAMES)],
        "mse": {name: float(np.mean((rows[name].astype(np.float64) - truth) ** 2)) for name in compared},
    }
    return record, video_grid(rows, scale=1)[0]


def entropy(config: Config, dataset: Dataset, epochs: int = 30) -> dict[str, Any]:
    """Entropy of the actions in the model phase's batches, per epoch, for conservative and uniform sampling (Figure 6).

    Uses the same batches as training: its seed, batch and window sizes, and for `conservative` its pool. An epoch is
    `pool.grow_every` updates; a model phase shorter than `epochs` gives fewer. `action_entropy` is the estimate.

    Raises:
      ConfigError: when the run has no model phase.
    """
    import tensorflow as tf

    from semopo_tf.engine import compiling
    from semopo_tf.run import build

    every, total = config.pool.grow_every, config.steps.model
    firsts = range(0, min(epochs * every, total), every)
    if not firsts:
        raise ConfigError("entropy: expected a model phase, received steps.model = 0: such a run draws no batches")
    rules = {}
    for rule in ("conservative", "uniform"):
        sampler = build.make_sampler(config, dataset, sampling=rule, images_on_device=False)
        draw = compiling.compiled(lambda step, sampler=sampler: batch_actions(config, sampler, step), jit=False)
        curve: dict[str, list] = {"entropy": [], "pool": []}
        for first in firsts:
            updates = [draw(tf.constant(step, tf.int64)).numpy() for step in range(first, min(first + every, total))]
            curve["entropy"].append(action_entropy(np.concatenate(updates)))
            curve["pool"].append(int(sampler.reach("model", tf.constant(first, tf.int64))[1]))
        rules[rule] = curve
    return {
        "epochs": len(firsts),
        "updates_per_epoch": every,
        "bins": BINS,
        "dimensions": dataset.action.shape[1],
        "rules": rules,
    }


def batch_actions(config: Config, sampler: "Sampler", step: Tensor) -> Tensor:
    """The actions [n, A] in the batch of one model update, without record 0, whose action is a placeholder. Reads no
    image.
    """
    import tensorflow as tf

    from semopo_tf.random import Key

    length = config.batch.length
    episode, start = sampler.draw("model", Key(config.seed, "model", step), batch=config.batch.size, length=length)
    action = sampler.gather(episode, start, length=length, image=tf.zeros([0])).action
    return tf.boolean_mask(action, start[:, None] + tf.range(length, dtype=tf.int64) > 0)


def action_entropy(action: np.ndarray) -> float:
    """Differential entropy in nats of actions [n, A] in [-1, 1], from a histogram of every dimension.

        sum over dimensions of  - sum over bins of  p ln(p / width),    width = 2 / bins

    The dimensions are treated as independent, so the sum is an upper bound. Per dimension, uniform actions have ln 2,
    the maximum, and constant ones ln(2 / bins), the minimum. With only n distinct actions, as in a pool of few short
    episodes, the estimate is too low by about (bins - 1) / 2n per dimension.
    """
    width, sum_of_dimensions = 2 / BINS, 0.0
    for values in np.clip(action, -1, 1).T:
        share = np.histogram(values, BINS, (-1, 1))[0] / len(values)
        share = share[share > 0]
        sum_of_dimensions -= float(np.sum(share * np.log(share / width)))
    return sum_of_dimensions


if __name__ == "__main__":
    run_command(main)
