"""One run: makes the parts, continues from the newest checkpoint, runs the stages, evaluates. Wiring only; no method is named here."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from semopo_tf import checkpoints, cost, engine, envs, wiring
from semopo_tf.agent import FilterPolicy
from semopo_tf.config import Config
from semopo_tf.engine import HostImages, Pace, StageLoop
from semopo_tf.episodes import cache_place, held_out, open_dataset, read_card
from semopo_tf.errors import CheckpointError, DataError, DeviceError, NumericalError
from semopo_tf.files import write_whole
from semopo_tf.random import Key
from semopo_tf.rollout import play
from semopo_tf.run import Patience, Progress, Records, TensorBoard, read_records, video_grid, write_video
from semopo_tf.sampler import Pool, Sampler
from semopo_tf.types import Batch, Environment, Episode, Stage

HOST_STACK_BYTES = 1 << 28  # of the images handed to one compiled call, where the host holds them
LEAST_EXPLAINED = 0.2  # of the reward's variance at the end of the model phase; below it something is said
REPORTED = ("image_loss", "endo_kl", "exo_kl", "joint_kl", "actor_loss", "imagined_reward", "penalty")


class Trainer:
    """The parts of one run and the loop over its stages.

    Making it opens and checks dataset and simulator; `run` does all that is left of the run and leaves `DONE`.
    """

    def __init__(self, config: Config, logdir: Path):
        self._config, self._logdir = config, logdir
        self._device, description = engine.choose_device(config.device)
        self._jit = engine.choose_jit(config.jit, self._device)
        print(f"device: {description}; XLA compiles {self._jit.describe()}; {config.precision}")
        directory = Path(config.offline_dir).expanduser()
        self._card = read_card(directory)
        self._dataset = open_dataset(directory, cache_place(directory, config.cache_dir, logdir))
        self._dataset.require_length(config.batch.length)
        self._claim_dataset()
        self._train_mask = ~held_out(self._dataset.names, config.valid_fraction, config.seed)
        self._settings = wiring.environment_settings(config, self._card)
        if config.eval.every or config.eval.final_episodes:
            self._check_environment()
        self._patience = Patience()
        self._metrics, self._timing, self._scores = (Records(logdir / f"{name}.jsonl") for name in ("metrics", "timing", "scores"))
        with tf.device(self._device):
            self._make_parts()

    def _claim_dataset(self) -> None:
        """Store what the run was started on, or check that it is still the same.

        Raises:
          DataError: naming the first file that differs.
        """
        path, dataset = self._logdir / "dataset_manifest.json", self._dataset
        height, width = dataset.frames.shape[1:3]
        if height != width:
            raise DataError(f"{dataset.directory}: expected square images, received {height} x {width}; resize them with data convert")
        now = {"image_size": height, "action_size": dataset.action.shape[1], "card": self._card, **dataset.manifest}
        if not path.exists():
            write_whole(path, json.dumps(now, indent=1).encode())
            return
        then = json.loads(path.read_text())
        if len(then["files"]) != len(now["files"]):
            raise DataError(f"{dataset.directory}: expected {len(then['files'])} files as at the start of this run, received {len(now['files'])}")
        for old, new in zip(then["files"], now["files"], strict=True):
            if old != new:
                raise DataError(
                    f"{dataset.directory / new['name']}: differs from {old['name']} as this run first read it; restore it or start another run"
                )

    def _check_environment(self) -> None:
        """Fail now rather than at the first evaluation, hours from here."""
        environment = self._make_environment()
        environment.close()
        expected, received = self._dataset.action.shape[1], environment.action_size
        if expected != received:
            raise DataError(f"{self._dataset.directory}: actions of size {expected}, but {self._config.task} takes {received}; correct --task")

    def _make_environment(self) -> Environment:
        return envs.make(self._config.task, **self._settings)

    def _make_parts(self) -> None:
        """Sampler, agent and acting policy."""
        config, dataset = self._config, self._dataset
        image_size, action_size = dataset.frames.shape[1], dataset.action.shape[1]
        self._on_device = self._place_replay(image_size, action_size)
        self._sampler = Sampler(
            dataset,
            self._train_mask,
            sampling=config.sampling,
            pool=Pool(**config.pool),
            policy_starts=config.policy_starts,
            total_steps=config.steps.model,
            images_on_device=self._on_device,
        )
        self._agent = wiring.make_agent(config, image_size=image_size, action_size=action_size, jit=self._jit)
        self._policy = FilterPolicy(self._agent, image_size=image_size, action_size=action_size, jit=self._jit.pixels)
        self._validation = engine.compiled(self._agent.validate, jit=self._jit.pixels)

    def _place_replay(self, image_size: int, action_size: int) -> bool:
        """Whether the frames go to the device: as `replay` says, or if the estimate says that they fit. Prints the estimate.

        Raises:
          DeviceError: when the model phase needs more than there is, with what would lower it.
        """
        config, dataset = self._config, self._dataset
        sizes = {"image_size": image_size, "action_size": action_size, "records": len(dataset.frames)}
        half = config.precision != "float32"
        available = engine.device_memory(self._device)
        fits = {}
        for place in ("device", "host"):
            needed = cost.memory(config, **sizes, half=half, remat_rows=config.remat, replay_on_device=place == "device")
            fits[place] = not available or needed.model_phase <= available
            if config.replay == place or (config.replay == "auto" and (fits[place] or place == "host")):
                break
        print(f"data: {len(dataset.names)} episodes, {len(dataset.frames)} records, frames on the {place}")
        print(f"{cost.describe(needed)}; available {available / 2**30:.1f} GB")
        if not fits[place]:
            raise DeviceError(
                f"device memory: expected at most {available / 2**30:.1f} GB, the estimate is {needed.model_phase / 2**30:.1f} GB; "
                "lower --batch.size, or set --remat 400, --precision mixed_bfloat16 or --replay host"
            )
        return place == "device"

    def _sample_now(self, view: str, key: Key, *, batch: int, length: int) -> Batch:
        """A batch outside the compiled chunks, from wherever the images are."""
        sizes = {"batch": batch, "length": length}
        image = None if self._on_device else tf.constant(self._sampler.host_images(view, key, **sizes))
        return self._sampler.sample(view, key, **sizes, image=image)

    def _make_loop(self, stage: Stage) -> StageLoop:
        """The compiled loop of a stage. One without pixels gets the encoder's evidence of every frame, computed here, once."""
        config, sampler, sizes = self._config, self._sampler, dict(self._config.batch)
        names = {"batch": sizes["size"], "length": sizes["length"]}
        table, host_images = None, None
        if not stage.pixels:
            started = time.monotonic()
            table = self._agent.evidence(self._dataset.frames, jit=self._jit.pixels)
            size = table.dtype.size * int(tf.size(table)) / 2**20
            print(f"{stage.name}: encoded {table.shape[0]} frames once in {time.monotonic() - started:.1f} s, {size:.0f} MB")
        elif not self._on_device:
            shape = (*names.values(), *self._dataset.frames.shape[1:])
            most = config.updates_per_call or config.pool.grow_every
            capacity = max(1, min(most, HOST_STACK_BYTES // int(np.prod(shape))))

            def gather(step: int) -> np.ndarray:
                return sampler.host_images(stage.view, Key(config.seed, stage.name, tf.constant(step, tf.int64)), **names)

            host_images = HostImages(gather, shape, capacity)

        def sample(view: str, key: Key, image: tf.Tensor | None = None) -> Batch:
            return sampler.sample(view, key, **names, image=image, table=table)

        jit = self._jit.pixels if stage.pixels else self._jit.vectors
        return StageLoop(stage, sample, seed=config.seed, jit=jit, host_images=host_images)

    def run(self) -> None:
        """All that is left to do: from the newest checkpoint to `DONE`."""
        with tf.device(self._device):
            phase, step, sums = self._restore()
            self._check_space()
            self._tensorboard = TensorBoard(self._logdir, self._axis(phase, step))
            for stage in self._agent.stages[wiring.PHASES.index(phase) :]:
                self._run_stage(stage, *((step, sums) if stage.name == phase else (0, None)))
            self._finish()
            self._tensorboard.close()

    def _restore(self) -> tuple[str, int, tuple[list[float], int] | None]:
        """Phase, step and running sums to go on from, with all variables and records as they were there."""
        found, faults = checkpoints.load_newest(self._logdir, wiring.PHASES)
        for fault in faults:
            print(f"warning: {fault}")
        self._scores.drop_half_line()
        if found:
            wiring.restore(self._agent.variables(), found.tensors, found.path)
            self._metrics.cut(found.state["metrics_size"])
            self._timing.cut(found.state["timing_size"])
            print(f"continuing from {found.path.name}")
            return found.phase, found.step, (found.state["sums"], found.state["count"])
        self._metrics.cut(0)
        self._timing.cut(0)
        if not self._config.world_model:
            return "model", 0, None
        other = Path(self._config.world_model).expanduser()
        donor, _ = checkpoints.load_newest(other, wiring.PHASES)
        if donor is None:
            raise CheckpointError(f"--world_model {other}: no checkpoint there; expected the logdir of a run")
        wiring.restore_world_model(self._agent, donor.tensors, donor.path)
        print(f"world model from {donor.path}; the model phase is skipped")
        return "policy", 0, None

    def _check_space(self) -> None:
        """Warn now where the disk will be full before the run is done."""
        size = sum(int(np.prod(variable.shape)) * variable.dtype.size for variable in self._agent.variables().values())
        if warning := checkpoints.space_warning(self._logdir, size, keep=self._config.keep_checkpoints):
            print(f"warning: {warning}")

    def _axis(self, phase: str, step: int) -> int:
        """TensorBoard's single axis: updates of both phases, one after the other."""
        return step if phase == "model" else self._config.steps.model + step

    def _run_stage(self, stage: Stage, step: int, sums: tuple[list[float], int] | None) -> None:
        """Run one stage from `step` to its end. Logs, reports, evaluates and saves on the clock, between compiled calls."""
        if step >= stage.steps:
            return
        self._time(stage.name, step, start=True)
        loop = self._make_loop(stage)
        if sums:
            loop.sums, loop.count = np.array(sums[0], np.float32), sums[1]
        pace, progress = Pace(self._config.updates_per_call, self._config.pool.grow_every), Progress(stage.name, step, stage.steps)
        clock = self._clock(stage)
        while step < stage.steps:
            left = min(due(step, every, stage.steps) for every, _ in clock)
            started = time.monotonic()
            chunk = loop.run(step, pace.next(min(left, loop.capacity)))
            seconds = time.monotonic() - started
            step += chunk.done
            if not chunk.finite:
                raise NumericalError(not_finite(stage.name, step, chunk.last))
            pace.took(chunk.done, seconds)
            progress.update(step, ", ".join(f"{name} {chunk.last[name]:.4g}" for name in REPORTED if name in chunk.last))
            for every, act in clock:
                if due(step - 1, every, stage.steps) == 1:
                    act(stage.name, step, loop)
        progress.close()
        loop.close()

    def _clock(self, stage: Stage) -> list[tuple[int, Callable[[str, int, StageLoop], None]]]:
        """(every how many updates, what): in this order where several are due. 0: never; all others also at the stage's end."""
        config = self._config
        video = config.video.every if stage.name == "model" else 0
        evaluate = config.eval.every if stage.name == "policy" else 0
        clock = [(config.log_every, self._log), (video, self._report_video), (evaluate, self._evaluate), (config.save_every, self._save)]
        return [(every, act) for every, act in clock if every]

    def _log(self, phase: str, step: int, loop: StageLoop) -> None:
        """One metrics row: means since the last row, and held-out metrics if there is held-out data."""
        row = loop.take_means()
        if phase == "model" and not self._train_mask.all():
            row |= {f"valid_{name}": float(value) for name, value in self._validate(step).items()}
        self._write(phase, step, row)
        if phase == "model" and step == self._config.steps.model and "reward_var" in row and (share := explained_reward(row)) < LEAST_EXPLAINED:
            print(
                f"warning: the reward head explains {share:.0%} of the reward's variance: the endogenous stream may have missed the agent "
                "(are the streams swapped?); look at the videos, or run python -m semopo_tf.probe where the true state is known"
            )
        self._time(phase, step)

    def _time(self, phase: str, step: int, **more: bool) -> None:
        with self._patience:
            self._timing.append({"phase": phase, "step": step, "time": round(time.time(), 3), **more})

    def _write(self, phase: str, step: int, values: dict[str, float]) -> None:
        with self._patience:
            self._metrics.append({"phase": phase, "step": step, **values})
        with self._patience:
            self._tensorboard.scalars(self._axis(phase, step), {f"{phase}/{name}": value for name, value in values.items()})

    def _validate(self, step: int) -> dict[str, tf.Tensor]:
        """World-model metrics of one held-out batch."""
        key, batch = Key(self._config.seed, "valid", tf.constant(step, tf.int64)), self._config.batch
        return self._validation(self._sample_now("valid", key, batch=batch.size, length=batch.length), key)

    def _report_video(self, phase: str, step: int, loop: StageLoop) -> None:
        """Truth, reconstructions, mask and error of fixed training windows: MP4 in `videos/`, a GIF for TensorBoard."""
        video = self._config.video
        length = min(video.length, int(self._dataset.length.min()))
        key = Key(self._config.seed, "report", tf.constant(0, tf.int64))
        batch = self._sample_now("all", key, batch=video.episodes, length=length)
        rows = {name: row.numpy() for name, row in self._agent.world_model.reconstruct(batch, key, min(video.context, length - 1)).items()}
        with self._patience:
            write_video(self._logdir / "videos" / f"{phase}-{step:09d}.mp4", video_grid(rows))
        with self._patience:
            self._tensorboard.gif(self._axis(phase, step), "reconstruction", video_grid(rows, scale=1))

    def _evaluate(self, phase: str, step: int, loop: StageLoop) -> None:
        """Returns of the current policy in the simulator, as a metrics row; the last step is left to the final evaluation."""
        if step == self._config.steps.policy and self._config.eval.final_episodes:
            return
        seeds = wiring.episode_seeds(self._config.eval.seed, self._config.eval.episodes)
        self._write_returns(phase, step, [wiring.episode_return(episode) for episode in self._play(seeds)])

    def _write_returns(self, phase: str, step: int, returns: list[float]) -> None:
        mean, std = float(np.mean(returns)), float(np.std(returns))
        self._write(phase, step, {"eval_return": mean, "eval_return_std": std, "eval_episodes": len(returns)})
        print(f"evaluation at {phase} {step}: return {mean:.1f} +- {std:.1f} over {len(returns)} episodes", flush=True)

    def _play(self, seeds: Sequence[int]) -> list[Episode]:
        environments = [self._make_environment() for _ in range(min(self._config.eval.environments, len(seeds)))]
        try:
            return list(play(environments, self._policy, seeds))
        finally:
            for environment in environments:
                environment.close()

    def _save(self, phase: str, step: int, loop: StageLoop) -> None:
        tensors = {name: variable.numpy() for name, variable in self._agent.variables().items()}
        state = {"metrics_size": self._metrics.settle(), "timing_size": self._timing.settle(), "sums": loop.sums.tolist(), "count": loop.count}
        checkpoints.save(self._logdir, phase, step, tensors, state)
        for fault in checkpoints.prune(self._logdir, wiring.PHASES, keep=self._config.keep_checkpoints):
            print(f"warning: {fault}")

    def _finish(self) -> None:
        """Final evaluation: a row per episode in scores.jsonl and their mean in metrics.jsonl; then the mark that the run is complete."""
        config, step = self._config, self._config.steps.policy
        if config.eval.final_episodes:
            seeds = wiring.episode_seeds(config.eval.seed, config.eval.final_episodes)
            known = {row["episode_seed"]: row["return"] for row in read_records(self._scores.path) if row["source"] == "train"}
            missing = [seed for seed in seeds if seed not in known]
            for seed, episode in zip(missing, self._play(missing) if missing else [], strict=True):
                row = wiring.score_row(config, self._settings, phase="policy", step=step, seed=seed, episode=episode, source="train")
                self._scores.append(row)
                known[seed] = row["return"]
            self._write_returns("policy", step, [known[seed] for seed in seeds])
        self._metrics.settle()
        self._timing.settle()
        write_whole(self._logdir / "DONE", b"")
        print(f"done: {self._logdir}")


def explained_reward(row: Mapping[str, float]) -> float:
    """R^2 of the reward head on the batches of a metrics row, from its loss (squared error / 2 and a constant) and the rewards' variance."""
    error = 2 * (row["reward_loss"] - 0.5 * np.log(2 * np.pi))
    return 1 - error / row["reward_var"] if row["reward_var"] > 0 else 1.0


def due(step: int, every: int, last: int) -> int:
    """Updates from `step` to the next multiple of `every` or to the stage's end, whichever comes first; at least 1."""
    return min(every - step % every, last - step)


def not_finite(phase: str, step: int, metrics: dict[str, float]) -> str:
    """The message for an update that was not taken, `step` being the updates taken before it."""
    names = sorted(name for name, value in metrics.items() if not np.isfinite(value))
    return (
        f"{phase} update {step + 1}: expected finite losses and gradients, received {', '.join(names) or 'a gradient'} not finite; "
        "the update was not taken and the checkpoints are good; lower the learning rate"
    )
