"""Small self-describing datasets and run directories for tests: no simulator, no video."""

from pathlib import Path

import numpy as np

from semopo_tf.data.episodes import write_episode
from semopo_tf.types import Episode, Observation


def episode(number: int, records: int = 20, size: int = 64, action_size: int = 2) -> Episode:
    """Images, actions and rewards that are functions of (episode number, record) alone."""
    rng = np.random.default_rng(np.random.SeedSequence([number, records]))
    action = rng.uniform(-1, 1, (records, action_size)).astype(np.float32)
    reward = rng.uniform(0, 1, records).astype(np.float32)
    action[0], reward[0] = 0, 0
    steps = np.arange(records)
    position = np.cumsum(action[:, 0] * 4).astype(int) + size // 2
    image = np.broadcast_to((steps * 3)[:, None, None, None] % 200, (records, size, size, 3)).astype(np.uint8)
    for t in steps:  # a bright bar that the first action moves, on a background that only time moves
        image[t, :, np.clip(position[t], 0, size - 4) : np.clip(position[t], 0, size - 4) + 4, 0] = 250
    zeros = np.zeros(records, bool)
    return Episode(image, action, reward, np.ones(records, np.float32), steps == 0, steps == records - 1, zeros)


def dataset(directory: Path, episodes: int = 4, **shape: int) -> Path:
    """Write a dataset of `episode`s and return its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(episodes):
        item = episode(number, **shape)
        write_episode(directory / f"{number:06d}-{number:08x}-{len(item.reward) - 1}.npz", item)
    return directory


def train_flags(data: Path, logdir: Path, *more: str) -> list[str]:
    """A debug-size run on a synthetic dataset, without a simulator."""
    flags = ["--configs", "semopo", "walker_walk", "debug", "--offline_dir", str(data), "--logdir", str(logdir)]
    return [*flags, *(() if "--eval.final_episodes" in more else ("--eval.final_episodes", "0")), *more]


class Still:
    """An environment without a simulator: five records of one grey picture."""

    action_size, image_shape = 2, (64, 64, 3)

    def __init__(self, **settings):
        pass

    def _observe(self, step):
        return Observation(np.full(self.image_shape, 100, np.uint8), 1.0, step == 0, step == 5, False)

    def reset(self, seed):
        self._step = 0
        return self._observe(0)

    def step(self, action):
        self._step += 1
        return self._observe(self._step)

    def close(self):
        pass
