"""Runs to be killed: the real trainer, sampler, records and checkpoints in a process that a server forks, with
TensorFlow imported already.

What learns is the real agent, or `Toy`, a learner that is traced in a moment.
"""

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

import semopo_tf
from semopo_tf import training
from semopo_tf.errors import run_command
from semopo_tf.nets.accounting import Cost
from semopo_tf.random import normal
from semopo_tf.run.directory import steady_output
from semopo_tf.run.stopping import listening
from semopo_tf.types import Observation, Stage

HERE = Path(__file__).parent
WIDTH = 30_000  # numbers in a weight: a checkpoint of half a megabyte, whose writing takes milliseconds


class Toy:
    """A learner of three weights, with momentum and noise; everything of it is in its variables."""

    def __init__(self, config, *, image_size, action_size, jit=None):
        self._variables = {
            name: tf.Variable(tf.fill([WIDTH], start))
            for name, start in (("model/w", 0.5), ("model_opt/momentum", 0.0), ("policy/w", 0.1), ("policy/noise", 0.0))
        }
        self._work = tf.constant(config.kl.free)
        steps = config.steps
        self.stages = [
            Stage("model", steps["model"], "model", self._update_model, validated=True, pictured=True),
            Stage("policy", steps["policy"], "policy", self._update_policy, prepare=self._prepare, evaluated=True),
        ]
        self._action_size = action_size

    def policy(self):
        return ToyPolicy(self, self._action_size)

    def cost(self, stage, batch, length):
        return Cost()

    def variables(self):
        return self._variables

    def _update_model(self, batch, key):
        weight, momentum = self._variables["model/w"], self._variables["model_opt/momentum"]
        target = tf.reduce_mean(batch.reward) + tf.reduce_mean(tf.cast(batch.image, tf.float32)) / 255
        error = weight - target - 0.1 * normal(key, "toy_model", [WIDTH])
        momentum.assign(0.9 * momentum + error)
        weight.assign_sub(0.01 * momentum)
        loss = tf.reduce_mean(error**2) + 0 * self._burn()
        return {"image_loss": loss, "reward_loss": loss, "reward_var": loss * 0, "finite": tf.constant(1.0)}

    def _burn(self):
        """Work that takes a while inside one call: `kl.free` thousand rounds."""
        rounds = tf.cast(1000 * (self._work - 1), tf.int32)
        return tf.while_loop(lambda i, _: i < rounds, lambda i, x: (i + 1, tf.sin(x)), (0, tf.ones([1000])))[1][0]

    def _update_policy(self, batch, key):
        weight, noise = self._variables["policy/w"], self._variables["policy/noise"]
        noise.assign(0.5 * noise + normal(key, "toy_policy", [WIDTH]))
        weight.assign(0.99 * weight + 0.01 * (noise + self._variables["model/w"]) * tf.reduce_mean(batch.image))
        return {"actor_loss": tf.reduce_mean(weight), "finite": tf.constant(1.0)}

    def _prepare(self, frames):
        return tf.cast(tf.reduce_mean(tf.cast(tf.constant(frames), tf.float32), [1, 2]), tf.float32) / 255

    def validate(self, batch, key):
        return {"image_loss": tf.reduce_mean(tf.cast(batch.image, tf.float32)) * self._variables["model/w"][0]}

    def pictures(self, batch, key, context):
        return {"truth": tf.cast(batch.image, tf.float32) / 255}


class ToyPolicy:
    """Acts with the sum of its weights and of the picture."""

    def __init__(self, learner, action_size):
        self._learner, self._size = learner, action_size

    def initial(self, episodes):
        return None

    def __call__(self, image, state, seeds, step):
        weight = float(tf.reduce_mean(self._learner.variables()["policy/w"]))
        rows = np.tanh(image.mean((1, 2, 3)) / 255 + weight)
        return np.repeat(rows[:, None], self._size, 1).astype(np.float32), None


class Slow:
    """An environment without a simulator: ten records of noise, fifteen milliseconds each."""

    action_size, image_shape = 2, (16, 16, 3)

    def __init__(self, **settings):
        pass

    def reset(self, seed):
        self._seed, self._step = seed, 0
        print("playing", flush=True)
        return self._observe(0.0)

    def step(self, action):
        self._step += 1
        time.sleep(0.015)
        return self._observe(float(action[0]))

    def close(self):
        pass

    def _observe(self, reward):
        image = np.random.default_rng([self._seed, self._step]).integers(0, 256, self.image_shape, np.uint8)
        return Observation(image, reward, self._step == 0, self._step == 10, False)


semopo_tf.register("slow", Slow)


def disturb() -> None:
    """Seed every global generator again and again, beside the run."""
    for number in itertools.count():
        np.random.seed(number % 1000)  # noqa: NPY002
        random.seed(number)
        if number % 100 == 0:
            tf.random.set_seed(number)
        time.sleep(0.005)


def train(
    argv: list[str],
    log: Path,
    *,
    toy: bool = True,
    disturbed: bool = False,
    home: Path | None = None,
    closed: bool = False,
) -> None:
    """A process's whole life: `train.py` with its output in `log`.

    Args:
      home: the working and home directory.
      closed: nobody reads the output, and the disk that takes the errors is full.
    """
    os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    if home:
        os.chdir(home)
        os.environ["HOME"] = str(home)
    if closed:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    if disturbed:
        threading.Thread(target=disturb, daemon=True).start()
    run_command(train_toy if toy else training.main, argv)


def train_toy(argv: list[str]) -> int:
    with steady_output(), listening() as stop:
        return training.train(argv, stop, make_learner=Toy)


class Server:
    """Forks victims."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["victims"])
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])

    def start(self, argv: list[str], log: Path, **how) -> multiprocessing.Process:
        victim = self._context.Process(target=train, args=(argv, log), kwargs=how)
        victim.start()
        return victim


def ended(victim: multiprocessing.Process, seconds: float = 120) -> int:
    """The exit code, minus the signal's number if one ended it."""
    victim.join(seconds)
    if victim.exitcode is None:
        victim.kill()
        victim.join()
        raise TimeoutError(f"the run did not end within {seconds} s")
    return victim.exitcode


def wait_for(condition, victim: multiprocessing.Process, seconds: float = 120) -> bool:
    """True as soon as the condition holds, False if the victim ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        if victim.exitcode is not None:
            return condition()
        if time.monotonic() > deadline:
            victim.kill()
            raise TimeoutError("what the test waits for did not happen")
        time.sleep(0.0005)
    return True


def kill(victim: multiprocessing.Process, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim.pid, number)
