"""Learning while playing: an episode is played and added to the replay, then the learner learns, again and again.

    round     0 ... prefill-2      prefill-1       prefill, ...
    play      uniform actions      uniform         the learner, exploring
    learn     -                    `online.updates` of every stage, on all episodes so far

A round that learns ends with a checkpoint. An episode is a function of (seed, number, weights), so a run that was
killed plays and learns from its last checkpoint to the same bytes. A signal ends the process at once: at most one round
is done again.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from semopo_tf.config import Config
from semopo_tf.data.replay import Replay
from semopo_tf.engine import compiling, devices
from semopo_tf.engine.loop import HOST_STACK_BYTES, HostImages, StageLoop
from semopo_tf.envs.rollout import RandomPolicy, derived_seed, play
from semopo_tf.errors import DataError, NumericalError
from semopo_tf.random import Key
from semopo_tf.run import build, checkpoints
from semopo_tf.run.players import make_player
from semopo_tf.run.snapshots import FOLDER as SNAPSHOTS
from semopo_tf.run.views import Progress, TensorBoard
from semopo_tf.storage import npz
from semopo_tf.storage.files import FILES, write_whole
from semopo_tf.storage.records import Records
from semopo_tf.storage.untrusted import read_whole
from semopo_tf.types import Batch, Episode, Policy, Stage

EPISODES = "episodes"
EPISODE_STREAM = 0x0E1
ROW_KEYS = ("seen", "action", "reward", "is_terminal")
MAX_FILE_BYTES = 1 << 29
SPARE = 1.25  # room for longer episodes than the first, where the replay has to be made anew


class Online:
    """One run of a learner that plays.

    Args:
      logdir: `metrics.jsonl` has a row for every round, `episodes/` what was played, `snapshots/` the behaviours.
      make: of the player, as `players.make_player`.
    """

    def __init__(self, config: Config, logdir: Path, make: Callable[..., Any] = make_player):
        self._config, self._logdir = config, logdir
        self._device, name = devices.choose_device(config.device)
        self._jit = compiling.choose_jit(config.jit, self._device)
        print(f"device: {name}; XLA compiles {self._jit.describe()}")
        self._metrics = Records(logdir / "metrics.jsonl")
        self._timing = Records(logdir / "timing.jsonl")
        steps = max(0, config.online.episodes - config.online.prefill + 1) * config.online.updates
        with devices.using(self._device):
            self._player = make(config, self._jit, steps)
        self._learner, self._world = self._player.learner, self._player.world
        self._loops: dict[str, StageLoop] = {}
        self._images: dict[str, HostImages] = {}
        self._replay: Any = None
        self._decisions = 0

    def run(self) -> None:
        """Play and learn the rest of the rounds, then write `DONE`."""
        episodes = self._config.online.episodes
        with devices.using(self._device), contextlib.closing(self._world):
            first = self._resume()
            self._board = TensorBoard(self._logdir, self._decisions)
            progress = Progress("play", first, episodes, unit="episode")
            with contextlib.closing(self._board), contextlib.closing(progress):
                for number in range(first, episodes):
                    row = self._round(number)
                    progress.update(number + 1, f"{row['decisions']} decisions, return {row['return']:.1f}")
            self._close()
            write_whole(self._logdir / "DONE", b"")

    @property
    def _phases(self) -> list[str]:
        return [stage.name for stage in self._player.stages]

    def _resume(self) -> int:
        """Restore weights and replay; the number of the first round to do."""
        checkpoint, faults = checkpoints.load_newest(self._logdir, self._phases)
        for fault in faults:
            print(f"warning: {fault}")
        state = checkpoint.state if checkpoint else {"metrics_size": 0, "timing_size": 0, "rounds": 0}
        self._metrics.cut(state["metrics_size"])
        self._timing.cut(state["timing_size"])
        if checkpoint:
            build.restore(self._learner.variables(), checkpoint.tensors, checkpoint.path)
            print(f"continuing from {checkpoint.path.name}, after {state['rounds']} episodes")
        self._forget(state["rounds"])
        for number in range(state["rounds"]):
            self._add(read_rows(self._file(number)))
        return state["rounds"]

    def _forget(self, rounds: int) -> None:
        """Remove the episodes and behaviours that came after the checkpoint."""
        for path in (self._logdir / EPISODES).glob("*.npz"):
            if int(path.stem) >= rounds:
                FILES.unlink(path)
        decisions = sum(len(read_rows(path)["reward"]) - 1 for path in (self._logdir / EPISODES).glob("*.npz"))
        for path in (self._logdir / SNAPSHOTS).glob("*.npz"):
            if int(path.stem) > decisions:
                FILES.unlink(path)

    def _round(self, number: int) -> dict[str, Any]:
        """Play one episode and learn; the row of the round."""
        config, started = self._config.online, time.monotonic()
        episode = self._play(number)
        columns = (self._player.seen(episode), episode.action, episode.reward, episode.is_terminal)
        rows = dict(zip(ROW_KEYS, columns, strict=True))
        self._made(EPISODES)
        write_whole(self._file(number), bytes(npz.pack(rows)))
        self._add(rows)
        score = float(episode.reward.sum(dtype=np.float64))
        row: dict[str, Any] = {"episode": number, "decisions": self._decisions, "return": score}
        played, learned = time.monotonic() - started, number + 2 - config.prefill
        stage = self._player.stages[-1]
        for stage in self._player.stages if learned > 0 else ():
            row |= self._learn(stage, (learned - 1) * config.updates)
        step = max(0, learned) * config.updates
        self._metrics.append({"phase": stage.name, "step": step, **row})
        self._board.scalars(self._decisions, {name: value for name, value in row.items() if name != "episode"})
        seconds = {"played_s": round(played, 3), "round_s": round(time.monotonic() - started, 3)}
        self._timing.append({"phase": stage.name, "step": step, "time": round(time.time(), 3), **seconds})
        if learned > 0:
            self._save(number, stage, step)
        return row

    def _play(self, number: int) -> Episode:
        """Episode `number` of the run."""
        seed = derived_seed(self._config.seed, EPISODE_STREAM, number)
        policy: Policy = RandomPolicy(self._world.action_size)
        if number >= self._config.online.prefill:
            policy = self._player.explorer()
        (episode,) = play([self._world], policy, [seed])
        return episode

    def _add(self, rows: dict[str, np.ndarray]) -> None:
        """Add an episode to the replay, which is made anew with more room if it does not fit."""
        records, least = len(rows["reward"]), self._config.batch.length
        if records < least:
            raise DataError(
                f"{self._config.task}: expected episodes of at least batch.length = {least} records, received "
                f"{records}; lower --batch.length"
            )
        if self._replay is None or not self._replay.has_room(records):
            self._replay, self._loops = self._enlarged(records), {}
            self._close()
        self._replay.add(*(rows[key] for key in ROW_KEYS))
        self._decisions += records - 1

    def _enlarged(self, records: int) -> Replay:
        """A replay with all episodes so far and room for as many as are to come, of `records` each."""
        played = [read_rows(self._file(number)) for number in range(self._replay.episodes)] if self._replay else []
        used, episodes = sum(len(rows["reward"]) for rows in played), self._config.online.episodes
        room = int(SPARE * (used + (episodes - len(played)) * records)) if played else episodes * records
        sizes = {"shape": self._player.shape, "action_size": self._world.action_size}
        replay = Replay(episodes=episodes, records=room, **sizes)
        for rows in played:
            replay.add(*(rows[key] for key in ROW_KEYS))
        return replay

    def _file(self, number: int) -> Path:
        return self._logdir / EPISODES / f"{number:06d}.npz"

    def _learn(self, stage: Stage, step: int) -> dict[str, float]:
        """`online.updates` updates of a stage from update `step` on; the means of their metrics."""
        if stage.name not in self._loops:
            self._loops[stage.name] = self._make_loop(stage, self._replay)
        loop, left = self._loops[stage.name], self._config.online.updates
        if stage.name in self._images:
            self._images[stage.name].forget()  # what was gathered before the last episode came
        while left:
            chunk = loop.run(step, min(left, loop.capacity))
            step, left = step + chunk.done, left - chunk.done
            if not chunk.finite:
                raise NumericalError(
                    f"{stage.name} update {step + 1}: expected finite numbers, received others; lower the learning "
                    "rate and start another run"
                )
        return loop.take_means()

    def _make_loop(self, stage: Stage, replay: Replay) -> StageLoop:
        """The compiled loop of a stage. States are on the device; images are gathered by the host."""
        sizes, images = {"batch": self._config.batch.size, "length": self._config.batch.length}, None
        if replay.table is None:
            shape = (*sizes.values(), *self._player.shape)
            capacity = max(1, min(self._config.online.updates, HOST_STACK_BYTES // int(np.prod(shape))))
            images = HostImages(
                lambda step: replay.host_images(
                    stage.view, Key(self._config.seed, stage.name, tf.constant(step, tf.int64)), **sizes
                ),
                shape,
                capacity,
            )
            self._images[stage.name] = images

        def sample(view: str, key: Key, image: tf.Tensor | None = None) -> Batch:
            return replay.sample(view, key, **sizes, image=image, table=replay.table)

        return StageLoop(stage, sample, seed=self._config.seed, jit=self._jit.of(stage), host_images=images)

    def _close(self) -> None:
        """Stop gathering images."""
        for images in self._images.values():
            images.close()
        self._images = {}

    def _save(self, number: int, stage: Stage, step: int) -> None:
        """The behaviour, if it is due, and then the checkpoint."""
        config = self._config
        if (number + 1) % config.online.snapshot_every == 0 or number + 1 == config.online.episodes:
            path = self._made(SNAPSHOTS) / f"{self._decisions:09d}.npz"
            write_whole(path, bytes(npz.pack(self._player.snapshot())))
        tensors = {name: variable.numpy() for name, variable in self._learner.variables().items()}
        state = {"metrics_size": self._metrics.settle(), "timing_size": self._timing.settle(), "rounds": number + 1}
        checkpoints.save(self._logdir, stage.name, step, tensors, state | {"sums": [], "count": 0})
        for warning in checkpoints.prune(self._logdir, self._phases, keep=config.keep_checkpoints):
            print(f"warning: {warning}")

    def _made(self, name: str) -> Path:
        folder = self._logdir / name
        folder.mkdir(exist_ok=True)
        return folder


def read_rows(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an episode that was played, by `ROW_KEYS`.

    Raises:
      DataError: when the file is damaged.
    """
    try:
        arrays, _ = npz.read_npz(read_whole(path, MAX_FILE_BYTES)[0], ROW_KEYS.__contains__, MAX_FILE_BYTES)
        if set(arrays) != set(ROW_KEYS) or len({len(array) for array in arrays.values()}) != 1:
            raise npz.NpzError(f"expected {', '.join(ROW_KEYS)} of one length")
    except (OSError, npz.NpzError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove the run directory and train again") from error
    return arrays
