"""One run: makes the parts, resumes from the newest checkpoint, runs the stages, evaluates. Knows no method by name."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

import semopo_tf
from semopo_tf import config as configuration
from semopo_tf.config import Config
from semopo_tf.data.cards import read_card, read_run_data
from semopo_tf.data.dataset import cache_place, open_dataset
from semopo_tf.engine import compiling, cost, devices, xla
from semopo_tf.engine.loop import HOST_STACK_BYTES, HostImages, Pace, StageLoop
from semopo_tf.envs import tasks
from semopo_tf.envs.contract import Contract, require_members
from semopo_tf.envs.videos import absolute_source
from semopo_tf.errors import CheckpointError, DataError, NumericalError, SimulatorError, user_path
from semopo_tf.random import Key
from semopo_tf.run import alarms, build, checkpoints, dump
from semopo_tf.run.checkpoints import Checkpoint
from semopo_tf.run.directory import MANIFEST, Patience
from semopo_tf.run.evaluate import Played, evaluate, make_environment
from semopo_tf.run.stopping import Interrupted, Interruptible, Stop
from semopo_tf.run.views import Progress, TensorBoard
from semopo_tf.storage import npz
from semopo_tf.storage.files import write_whole
from semopo_tf.storage.records import Records, read_records
from semopo_tf.storage.video import video_grid, write_video
from semopo_tf.types import Learner, Stage

REPORTED = ("image_loss", "endo_kl", "exo_kl", "joint_kl", "actor_loss", "imagined_reward", "penalty")


class Position(NamedTuple):
    """Where a run resumes."""

    phase: str
    step: int = 0
    sums: Sequence[float] = ()  # of the metrics since the last row
    summed: int = 0  # updates in the sums
    pending: Sequence[str] = ()  # actions that were due at this step and are not yet done


class Trainer:
    """The parts of one run and the loop over its stages.

    The constructor opens and checks dataset, simulator and checkpoints, and writes dataset_manifest.json once all are
    good; `run` does the rest of the run and writes `DONE`.

    Args:
      stop: requests that arrive as signals; by default nothing stops the run.
      make_learner: (config, image_size, action_size, jit) -> Learner.
    """

    def __init__(
        self,
        config: Config,
        logdir: Path,
        stop: Stop | None = None,
        *,
        make_learner: Callable[..., Learner] = build.make_learner,
    ):
        self._config, self._logdir = config, logdir
        self._batch = {"batch": config.batch.size, "length": config.batch.length}
        self._stop = stop or Stop()
        self._saved = ""  # name of the newest checkpoint
        self._make_learner = make_learner
        self._device, self._device_name = devices.choose_device(config.device)
        self._jit = compiling.choose_jit(config.jit, self._device)
        print(f"device: {self._device_name}; XLA compiles {self._jit.describe()}; {config.precision}")
        directory = user_path(config.offline_dir)
        self._card = read_card(directory)
        self._dataset = open_dataset(directory, cache_place(directory, config.cache_dir, logdir))
        if short := int((~self._dataset.long_enough(config.min_length)).sum()):
            episodes = f"{short} of {len(self._dataset.names)} episodes"
            print(f"{directory}: {episodes} have fewer than {config.min_length} records and are left out")
        self._check_dataset()
        ended = int(self._dataset.is_terminal.sum())
        if ended and build.reads(config, "model") and not config.model.continue_head:
            print(
                f"warning: {ended} of {len(self._dataset.names)} episodes end by a termination, and imagination does "
                "not know it; add --model.continue_head True"
            )
        self._settings = build.environment_settings(config, self._card, image_size=self._dataset.frames.shape[1])
        self._clips: list[str] = []  # of the background of evaluations
        if config.eval.every or config.eval.final_episodes:
            self._check_environment()
        self._patience = Patience()
        self._metrics, self._timing, self._scores = (
            Records(logdir / f"{name}.jsonl") for name in ("metrics", "timing", "scores")
        )
        self._warned: set[str] = set()
        with devices.using(self._device):
            self._make_parts()
            self._restore()
        self._claim_dataset()

    def _check_dataset(self) -> None:
        """Check that the images can be trained on, and that the dataset has not changed since the run began.

        Raises:
          DataError: naming the first file that differs.
        """
        dataset = self._dataset
        height, width = dataset.frames.shape[1:3]
        if height != width:
            raise DataError(
                f"{dataset.directory}: expected square images, received {height} x {width}; make a copy with python "
                f"-m semopo_tf.data convert {dataset.directory} DST --size 64"
            )
        if (self._logdir / MANIFEST).exists():
            dataset.require_files(read_run_data(self._logdir)["files"])

    def _claim_dataset(self) -> None:
        """Record the run's dataset, unless that has been done."""
        path, dataset = self._logdir / MANIFEST, self._dataset
        if path.exists():
            return
        columns = {"length": dataset.length, "return": dataset.returns, "native_return": dataset.native_returns}
        files = [
            file | {name: column[index].item() for name, column in columns.items()}
            for index, file in enumerate(dataset.manifest["files"])
        ]
        facts = self._sizes | {"card": self._card, "files": files} | ({"clips": self._clips} if self._clips else {})
        write_whole(path, json.dumps(facts, indent=1).encode())

    def _check_environment(self) -> None:
        """Fail now rather than at the first evaluation, hours later."""
        source = self._settings.get("background", "none")
        if source != "none" and not source.startswith("builtin:") and not Path(source).is_dir():
            raise DataError(
                f"{source}: expected the folder of the background's videos, received none; add --env.background with "
                "the folder that holds them now"
            )
        made = make_environment(self._config.task, self._settings)
        require_members(made, "close")
        environment = Contract(made)
        environment.close()
        build.warn_of_other_versions(self._config, self._card)
        background = tasks.background_of(environment.environment)
        self._clips = background.clips if background else []
        self._check_clips(source)
        frames, actions = self._dataset.frames, self._dataset.action
        for what, stored, verb, real, flag in (
            ("images of", list(frames.shape[1:]), "shows", list(environment.image_shape), "--env.size"),
            ("actions of size", actions.shape[1], "takes", environment.action_size, "--task"),
        ):
            if stored != real:
                raise DataError(
                    f"{self._dataset.directory}: {what} {stored}, but {self._config.task} {verb} {real}; correct {flag}"
                )

    def _check_clips(self, source: str) -> None:
        """Compare the background's clips with those that this run, or else the dataset, was shown with.

        Raises:
          DataError: when the folder has another place than at the run's beginning, and shows other clips.
        """
        if not (self._logdir / MANIFEST).exists():
            return
        card, saved = (self._card or {}).get("background", {}), self._logdir / "config.yaml"
        before = (configuration.load_saved(saved) if saved.exists() else self._config).env.background
        as_collected = before == "card" and self._settings.get("background_split") == card.get("split")
        expected = read_run_data(self._logdir).get("clips") or (card.get("clips") if as_collected else None)
        shown = self._clips
        if not expected or shown == expected:
            return
        name = next((name for name in [*expected, *shown] if (name in expected) != (name in shown)), "in their order")
        first = card.get("source") if before == "card" else before
        line = (
            f"{source}: expected the clips that this run began with, received {len(shown)} that differ (first: {name})"
        )
        if first and absolute_source(first) != source:
            raise DataError(f"{line}; give --env.background the folder with those clips")
        print(f"warning: {line}; later evaluations are not comparable with earlier ones")

    def _make_parts(self) -> None:
        """Sampler, learner and acting policy."""
        config, dataset = self._config, self._dataset
        self._sizes = {"image_size": dataset.frames.shape[1], "action_size": dataset.action.shape[1]}
        self._sizes |= build.data_sizes(config, dataset)
        available = devices.device_memory(self._device)  # before the learner's variables take their share
        self._learner = self._make_learner(config, **self._sizes, jit=self._jit)
        for stage in self._learner.stages:
            if stage.stacks:
                dataset.require_length(stage.stacks.steps + 1, "transitions.n_step + 1", config.min_length)
            else:
                dataset.require_length(config.batch.length, "batch.length", config.min_length)
        self._on_device = self._place_replay(available)
        self._sampler = build.make_sampler(config, dataset, images_on_device=self._on_device)
        self._phases = [stage.name for stage in self._learner.stages]
        self._policy = Interruptible(self._learner.policy(), self._stop)
        self._validation = compiling.compiled(self._learner.validate, jit=self._jit.pixels)

    def _place_replay(self, available: int) -> bool:
        """Whether the frames go to the device, as `replay` says or the estimate allows. Prints the estimate.

        Args:
          available: bytes of the device before the learner was made; 0 where unknown.

        Raises:
          DeviceError: when a stage needs more than there is, with what would lower it.
        """
        config, dataset = self._config, self._dataset
        needed = cost.estimate(self._learner, **self._batch, frames=dataset.frames.nbytes)
        needed = cost.place_frames(needed, config.replay, available)
        place = "device" if needed.frames else "host"
        print(f"data: {len(dataset.names)} episodes, {len(dataset.frames)} records, frames on the {place}")
        print(f"{needed.describe()}; available {available / 2**30:.1f} GB")
        cost.require_memory(needed, available)
        return place == "device"

    def _key(self, stream: str, step: int) -> Key:
        return Key(self._config.seed, stream, tf.constant(step, tf.int64))

    def _sample_now(self, source: Any, key: Key, table: tf.Tensor | None = None) -> Any:
        """A batch outside the compiled chunks, wherever the images are stored."""
        on_host = table is None and not self._on_device
        return source.sample(key, tf.constant(source.host_images(key)) if on_host else None, table)

    def _announced(self, stage: Stage) -> contextlib.ExitStack:
        """Announces the wait for XLA, if it compiles this stage, until it is closed after the first call."""
        stack = contextlib.ExitStack()
        if self._jit.of(stage):
            stack.enter_context(compiling.announced(f"{stage.name} update", xla.current_programs()))
        return stack

    def _make_loop(self, stage: Stage) -> StageLoop:
        """The compiled loop of a stage. What the stage prepares from the frames is computed here, once."""
        config = self._config
        source: Any = self._sampler.source(stage.view, stage.stacks, **self._batch, episode=stage.episode)
        table, host_images = None, None
        if stage.prepare:
            started = time.monotonic()
            table = stage.prepare(self._dataset.frames)
            size = table.dtype.size * int(tf.size(table)) / 2**20
            seconds = time.monotonic() - started
            print(f"{stage.name}: prepared {table.shape[0]} frames once in {seconds:.1f} s, {size:.0f} MB")
        elif not stage.images:
            table = tf.zeros([len(self._dataset.frames), 0])
        elif not self._on_device:
            longest = config.updates_per_call or config.pool.grow_every
            capacity = max(1, min(longest, HOST_STACK_BYTES // int(np.prod(source.image_shape))))
            host_images = HostImages(
                lambda step: source.host_images(self._key(stage.name, step)), source.image_shape, capacity
            )
        self._held_out = None
        if stage.validated and config.valid_fraction:
            self._held_out = self._sampler.source("valid", stage.stacks, **self._batch), table

        def sample(view: str, key: Key, image: tf.Tensor | None = None) -> Any:
            return source.sample(key, image, table)

        return StageLoop(stage, sample, seed=config.seed, jit=self._jit.of(stage), host_images=host_images)

    def run(self) -> None:
        """Do the rest of the run, from the newest checkpoint to `DONE`.

        Raises:
          Stopped: when a signal asked the run to stop and everything is saved.
        """
        with devices.using(self._device):
            position = self._resume()
            self._check_space()
            self._tensorboard = TensorBoard(self._logdir, self._axis(position.phase, position.step))
            with contextlib.closing(self._tensorboard):
                for stage in self._learner.stages[self._phases.index(position.phase) :]:
                    self._run_stage(stage, position if stage.name == position.phase else Position(stage.name))
                self._finish()

    def _restore(self) -> None:
        """Restore the variables from the newest checkpoint, or take the world model of another run.

        Raises:
          CheckpointError: when there are checkpoints and none is good, or none fits the learner.
        """
        checkpoint, faults = checkpoints.load_newest(self._logdir, self._phases)
        for fault in faults:
            print(f"warning: {fault}")
        if checkpoint:
            build.restore(self._learner.variables(), checkpoint.tensors, checkpoint.path)
        elif self._config.world_model:
            donor = self._take_world_model(self._learner)
            print(f"world model from {donor}; the {self._phases[0]} phase is skipped")
        self._checkpoint = checkpoint and checkpoint._replace(tensors={})

    def _resume(self) -> Position:
        """Cut the records to the checkpoint that was restored; where the run resumes."""
        checkpoint = self._checkpoint
        self._scores.drop_half_line()
        self._versions = self._trace(checkpoint)
        if checkpoint:
            state = checkpoint.state
            self._metrics.cut(state["metrics_size"])
            self._timing.cut(state["timing_size"])
            self._saved = checkpoint.path.name
            print(f"continuing from {self._saved}")
            return Position(checkpoint.phase, checkpoint.step, state["sums"], state["count"], state.get("pending", []))
        self._metrics.cut(0)
        self._timing.cut(0)
        return Position(self._phases[1 if self._config.world_model else 0])

    def _take_world_model(self, learner: Learner) -> Path:
        """Load the world model of the run that `world_model` names into the learner; returns the checkpoint used."""
        other = user_path(self._config.world_model)
        donor, _ = checkpoints.load_newest(other, self._phases)
        if donor is None:
            raise CheckpointError(f"--world_model {other}: no checkpoint there; expected the logdir of a run")
        build.restore_world_model(learner, donor.tensors, donor.path)
        return donor.path

    def _trace(self, checkpoint: Checkpoint | None) -> list[dict[str, Any]]:
        """The versions and devices that computed the run, each with its first step; warns when this start adds one."""
        now = {"semopo_tf": semopo_tf.__version__, "tensorflow": tf.__version__, "numpy": np.__version__}
        now["device"] = self._device_name
        now["threads"] = f"{devices.threads()}"  # a sum over more threads is taken in another order
        trace = list(checkpoint.state.get("versions", [])) if checkpoint else []
        if checkpoint and trace:
            last = {"threads": now["threads"]} | trace[-1]["versions"]  # older checkpoints do not have the number
            changed = {name: last.get(name, "none") for name in now if last.get(name) != now[name]}
            if not changed:
                return trace
            different = ", ".join(f"{name} {value} (now {now[name]})" for name, value in changed.items())
            print(
                f"warning: {checkpoint.path.name} was computed with {different}: the run goes on, but no longer to the "
                "same bytes"
            )
        phase, step = (checkpoint.phase, checkpoint.step) if checkpoint else (self._phases[0], 0)
        return [*trace, {"phase": phase, "step": step, "versions": now}]

    def _check_space(self) -> None:
        """Warn now if the disk will fill up before the run is done."""
        size = sum(int(np.prod(each.shape)) * each.dtype.size for each in self._learner.variables().values())
        if warning := checkpoints.space_warning(self._logdir, size, keep=self._config.keep_checkpoints):
            print(f"warning: {warning}")

    def _axis(self, phase: str, step: int) -> int:
        """Step on TensorBoard's single axis, which counts the updates of all stages."""
        return step + sum(stage.steps for stage in self._learner.stages[: self._phases.index(phase)])

    def _run_stage(self, stage: Stage, position: Position) -> None:
        """Run a stage from `position` to its end. Logs, films, evaluates and saves between compiled calls."""
        step = position.step
        if step >= stage.steps and not position.pending:
            return
        self._time(stage.name, step, start=True)
        pace = Pace(self._config.updates_per_call, self._config.pool.grow_every)
        progress = Progress(stage.name, step, stage.steps)
        clock = self._clock(stage)
        with (
            self._announced(stage) as compilation,
            contextlib.closing(self._make_loop(stage)) as loop,
            contextlib.closing(progress),
        ):
            if position.sums:
                loop.sums, loop.count = np.array(position.sums, np.float32), position.summed
            self._attend(stage.name, step, loop, [name for name in clock if name in position.pending])
            while step < stage.steps:
                left = min(due(step, every, stage.steps) for every in clock.values())
                started = time.monotonic()
                chunk = loop.run(step, pace.next(min(left, loop.capacity)))
                seconds = time.monotonic() - started
                compilation.close()
                step += chunk.done
                if not chunk.finite:
                    raise self._not_finite(loop, step)
                self._stop.unsaved()
                pace.took(chunk.done, seconds)
                figures = [f"{name} {chunk.last[name]:.4g}" for name in REPORTED if name in chunk.last]
                progress.update(step, ", ".join(figures))
                pending = [name for name, every in clock.items() if due(step - 1, every, stage.steps) == 1]
                self._attend(stage.name, step, loop, pending)
        self._stop.settled(f"the end of the {stage.name} phase")

    def _not_finite(self, loop: StageLoop, step: int) -> NumericalError:
        """Write a dump of the update after `step`, whose loss, gradient or weights are not finite; what to raise.

        Where a weight is not finite before the update, the updates since the last checkpoint are repeated to find the
        one that caused it.
        """
        stage, learner = loop.stage, self._learner
        state = {name: variable.numpy() for name, variable in learner.variables().items()}
        good, _ = checkpoints.load_newest(self._logdir, self._phases)
        if npz.not_finite(state):
            print(f"{stage.name} {step}: a weight is not finite; looking for the update that caused it", flush=True)
            first = self._rewind(good, stage)
            step, state = dump.first_bad_update(loop, learner, first, step + 1) or (step, state)
            build.restore(learner.variables(), state, self._logdir)
        batch, key = loop.batch(step)
        names = dump.examine(learner, stage, batch, key, jit=self._jit.of(stage))
        last = good.path.name if good else "none"
        facts = {"phase": stage.name, "step": step, "seed": self._config.seed, "not_finite": names}
        facts |= {"checkpoint": last, "device": self._device}
        directory = dump.write(self._logdir, self._config.to_yaml(), facts | self._sizes, dump.by_name(batch), state)
        return NumericalError(
            f"{stage.name} update {step + 1}: expected finite numbers, received {dump.shown(names)}; last good "
            f"checkpoint: {last}; lower the learning rate, or look closer with python -m semopo_tf.replay_dump "
            f"{directory}"
        )

    def _rewind(self, good: Checkpoint | None, stage: Stage) -> int:
        """Go back to the last checkpoint, or to the initial weights; returns the stage's updates taken by then."""
        if good:
            build.restore(self._learner.variables(), good.tensors, good.path)
            return good.step if good.phase == stage.name else 0
        fresh = self._make_learner(self._config, **self._sizes, jit=self._jit)
        if self._config.world_model:
            self._take_world_model(fresh)
        for name, variable in self._learner.variables().items():
            variable.assign(fresh.variables()[name])
        return 0

    def _clock(self, stage: Stage) -> dict[str, int]:
        """Action -> updates between two of it. Actions due at the same update run in this order, saving last; all run
        at the end of the stage.
        """
        config = self._config
        video, evaluate = stage.pictured and config.video.every, stage.evaluated and config.eval.every
        clock = {"log": config.log_every, "video": video, "evaluate": evaluate, "save": config.save_every}
        return {name: every for name, every in clock.items() if every}

    def _attend(self, phase: str, step: int, loop: StageLoop, pending: list[str]) -> None:
        """Do the pending actions of a step. A save that a signal requests comes first and stores the rest as pending.

        Raises:
          Stopped: when a signal asked the run to stop; everything is saved.
        """
        actions = {"log": self._log, "video": self._report_video, "evaluate": self._evaluate, "save": self._save}
        with contextlib.suppress(Interrupted):
            while pending and not self._stop.signal:
                if self._stop.take_save():
                    self._save(phase, step, loop, pending)
                actions[pending[0]](phase, step, loop)
                pending.pop(0)
        if self._stop.take_save() or self._stop.signal:
            self._save(phase, step, loop, pending)
        if self._stop.signal:
            self._stop.settled(f"{phase} update {step}")

    def _log(self, phase: str, step: int, loop: StageLoop) -> None:
        """Write one metrics row: means since the last row, and held-out metrics if there are held-out episodes."""
        row = loop.take_means()
        if self._held_out:
            key = self._key("valid", step)
            held_out = self._validation(self._sample_now(self._held_out[0], key, self._held_out[1]), key)
            row |= {f"valid_{name}": float(value) for name, value in held_out.items()}
        self._write(phase, step, row)
        for name, text in alarms.raised(row, last=step == loop.stage.steps).items():
            if name not in self._warned:
                print(f"warning: {phase} {step}: {text}")
            self._warned.add(name)
        self._time(phase, step)

    def _time(self, phase: str, step: int, **more: bool) -> None:
        with self._patience:
            self._timing.append({"phase": phase, "step": step, "time": round(time.time(), 3), **more})

    def _write(self, phase: str, step: int, values: dict[str, float]) -> None:
        if wrong := [name for name, value in values.items() if not np.isfinite(value)]:
            raise NumericalError(
                f"{phase} update {step}: metrics row: expected finite numbers, received {', '.join(wrong[:3])}; lower "
                "the learning rate"
            )
        with self._patience:
            self._metrics.append({"phase": phase, "step": step, **values})
        scalars = {f"{phase}/{name}": value for name, value in values.items()}
        with self._patience:
            self._tensorboard.scalars(self._axis(phase, step), scalars)

    def _report_video(self, phase: str, step: int, loop: StageLoop) -> None:
        """The learner's pictures of fixed training windows: an MP4 in `videos/` and a GIF for TensorBoard."""
        video = self._config.video
        length = min(video.length, int(self._dataset.length.min()))
        key = self._key("report", 0)
        batch = self._sample_now(self._sampler.source("all", None, batch=video.episodes, length=length), key)
        pictures = self._learner.pictures(batch, key, min(video.context, length - 1))
        rows = {name: row.numpy() for name, row in pictures.items()}
        with self._patience:
            write_video(self._logdir / "videos" / f"{phase}-{step:09d}.mp4", video_grid(rows))
        with self._patience:
            self._tensorboard.gif(self._axis(phase, step), "reconstruction", video_grid(rows, scale=1))

    def _evaluate(self, phase: str, step: int, loop: StageLoop) -> None:
        """Play the current policy and write its returns as a metrics row. Skips the last step if a final evaluation
        follows.
        """
        if loop.stage is self._learner.stages[-1] and step == loop.stage.steps and self._config.eval.final_episodes:
            return
        seeds = build.episode_seeds(self._config.eval.seed, self._config.eval.episodes)
        scores, discarded = zip(*((played.score, played.discarded) for played in self._play(seeds)), strict=True)
        self._write_returns(phase, step, scores, sum(discarded))

    def _write_returns(self, phase: str, step: int, returns: Sequence[float], discarded: int) -> None:
        mean, std = float(np.mean(returns)), float(np.std(returns))
        row = {"eval_return": mean, "eval_return_std": std, "eval_episodes": len(returns), "eval_discarded": discarded}
        self._write(phase, step, row)
        spread = f"return {mean:.1f} +- {std:.1f} over {len(returns)} episodes"
        print(f"evaluation at {phase} {step}: {spread}{build.replayed(discarded)}", flush=True)

    def _play(self, seeds: Sequence[int]) -> Iterator[Played]:
        """Play the current policy. A request to stop wins over a simulator that died of the same signal."""
        environments = self._config.eval.environments
        try:
            yield from evaluate(self._policy, self._config.task, self._settings, seeds, environments)
        except SimulatorError as error:
            if self._stop.signal:
                raise Interrupted from error
            raise

    def _save(self, phase: str, step: int, loop: StageLoop, pending: Sequence[str] = ()) -> None:
        """Save this step, unless it is saved already: a resumed run then repeats the actions stored as pending."""
        if self._saved == checkpoints.name_of(phase, step):
            return
        tensors = {name: variable.numpy() for name, variable in self._learner.variables().items()}
        if npz.not_finite(tensors):
            raise self._not_finite(loop, step)
        state: dict[str, Any] = {"metrics_size": self._metrics.settle(), "timing_size": self._timing.settle()}
        state |= {"sums": loop.sums.tolist(), "count": loop.count}
        state |= {"pending": [name for name in pending if name != "save"], "versions": self._versions}
        path = checkpoints.save(self._logdir, phase, step, tensors, state)
        for fault in checkpoints.prune(self._logdir, self._phases, keep=self._config.keep_checkpoints):
            print(f"warning: {fault}")
        self._saved = path.name

    def _finish(self) -> None:
        """Final evaluation: a row per episode in scores.jsonl, their mean in metrics.jsonl. Then mark the run DONE."""
        config, last = self._config, self._learner.stages[-1]
        if config.eval.final_episodes:
            seeds = build.episode_seeds(config.eval.seed, config.eval.final_episodes)
            known = {row["episode_seed"]: row for row in read_records(self._scores.path) if row["source"] == "train"}
            facts: dict[str, Any] = {"phase": last.name, "step": last.steps, "checkpoint": self._saved or None}
            for played in self._play([seed for seed in seeds if seed not in known]):
                known[played.seed] = build.score_row(config, self._settings, played, **facts, source="train")
                self._scores.append(known[played.seed])
            rows = [known[seed] for seed in seeds]
            discarded = sum(row.get("discarded", 0) for row in rows)
            self._write_returns(last.name, last.steps, [row["return"] for row in rows], discarded)
        self._metrics.settle()
        self._timing.settle()
        write_whole(self._logdir / "DONE", b"")
        print(f"done: {self._logdir}")


def due(step: int, every: int, last: int) -> int:
    """Updates from `step` to the next multiple of `every` or to the stage's end, whichever comes first; at least 1."""
    return min(every - step % every, last - step)
