"""Behaviour policies that data are collected with. All are functions of (recipe, episode's seed), need no TensorFlow,
and play one environment at a time.

uniform     independent uniform actions
random      a freshly initialised network for every episode (paper, App. C: "randomly initialised policies")
constant    one extreme action for a whole episode, with some noise: what policies that exploit their model come to do
snapshot    a policy that was trained on the simulator's own state, as it was after so many decisions (`methods.sac`)

They may see more than a learner will: `environment.state` [S], where an environment has one. The dataset holds pixels
alone, so one trained behaviour serves every background, camera and image size.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.errors import ConfigError, DataError
from semopo_tf.storage.npz import NpzError, read_npz
from semopo_tf.storage.untrusted import read_whole

NETWORK_STREAM, NOISE_STREAM, CONSTANT_STREAM = 0x2E7, 0x5AC, 0xC0A
CELLS = 8  # edge of the grey image that a random network sees where the environment has no state
HIDDEN = (64, 64)
# Standard deviation of a random network's weights times the root of their number, of the hidden layers and of the last
# one. With these the actions are nearly bang-bang and the returns on Walker Walk are those of the paper's Table 3.
GAIN, OUTPUT_GAIN, BIAS = 3.0, 10.0, 0.1
CONSTANT_NOISE = 0.2  # standard deviation, before the actions are cut off at -1 and 1
MAX_SNAPSHOT_BYTES = 1 << 26
MIN_LOG_STD, MAX_LOG_STD = -10.0, 2.0  # of a trained behaviour's actions before the tanh


class Layer(NamedTuple):
    """An affine layer of a small network."""

    kernel: np.ndarray  # [in, out] float32
    bias: np.ndarray  # [out] float32


def forward(layers: Sequence[Layer], inputs: np.ndarray, activation: Any) -> np.ndarray:
    """[in] -> [out]; `activation` after all layers but the last."""
    for layer in layers[:-1]:
        inputs = activation(inputs @ layer.kernel + layer.bias)
    return inputs @ layers[-1].kernel + layers[-1].bias


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


class _OneEnvironment:
    """A policy that sees the state of one environment."""

    def __init__(self, environment: Any):
        self._environment = environment

    def initial(self, episodes: int) -> None:
        if episodes != 1:
            raise ConfigError(f"behaviour: expected 1 environment, received {episodes}; it sees the state of one")


class RandomNetworks(_OneEnvironment):
    """a = tanh(W3 tanh(W2 tanh(W1 x + b1) + b2)), its weights drawn from the episode's seed.

    x is the simulator's state, or an 8 x 8 grey image of what the camera sees.
    """

    FACTS: Mapping[str, Any] = {
        "kind": "networks",
        "hidden": list(HIDDEN),
        "gain": GAIN,
        "output_gain": OUTPUT_GAIN,
        "bias": BIAS,
    }

    def __call__(self, image: np.ndarray, state: Any, seeds: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
        """See `types.Policy`; the episode's network travels in `state`."""
        seen = getattr(self._environment, "state", None)
        x = grey_cells(image[0]) if seen is None else seen
        layers = draw_network(int(seeds[0]), len(x), self._environment.action_size) if state is None else state
        return network_action(layers, x)[None], layers


def draw_network(seed: int, inputs: int, outputs: int) -> list[Layer]:
    """A network with weights N(0, gain^2 / inputs) and biases N(0, BIAS^2), those of the last layer zero."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, NETWORK_STREAM]))
    widths, layers = (inputs, *HIDDEN, outputs), []
    for place, (wide, narrow) in enumerate(itertools.pairwise(widths)):
        last = place == len(HIDDEN)
        kernel = rng.normal(0, (OUTPUT_GAIN if last else GAIN) / np.sqrt(wide), (wide, narrow))
        bias = np.zeros(narrow) if last else rng.normal(0, BIAS, narrow)
        layers.append(Layer(kernel.astype(np.float32), bias.astype(np.float32)))
    return layers


def network_action(layers: Sequence[Layer], x: np.ndarray) -> np.ndarray:
    """The action [outputs] in [-1, 1] of a random network that sees x [inputs]."""
    return np.tanh(forward(layers, x.astype(np.float32), np.tanh))


def grey_cells(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 -> [CELLS * CELLS] in [-1, 1]: mean grey levels, without the mean of the whole image."""
    edges = [np.linspace(0, length, CELLS + 1).astype(int)[:-1] for length in image.shape[:2]]
    counts = [np.diff([*edge, length]) for edge, length in zip(edges, image.shape[:2], strict=True)]
    sums = np.add.reduceat(np.add.reduceat(image.mean(-1), edges[0], 0), edges[1], 1)
    cells = sums / np.outer(*counts) / 127.5
    return (cells - cells.mean()).ravel()


class Constant(_OneEnvironment):
    """a = clip(h + noise, -1, 1), where every component of h is -1 or 1 for a whole episode; a function of (episode's
    seed, decision).

    Data of policies that move on purpose hardly ever show what happens under an extreme action that is held, so a model
    may promise anything there.
    """

    FACTS: Mapping[str, Any] = {"kind": "constant", "noise": CONSTANT_NOISE}

    def __call__(self, image: np.ndarray, state: Any, seeds: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
        """See `types.Policy`."""
        size, seed = self._environment.action_size, int(seeds[0])
        held = np.random.default_rng(np.random.SeedSequence([seed, CONSTANT_STREAM])).choice((-1.0, 1.0), size)
        rng = np.random.default_rng(np.random.SeedSequence([seed, NOISE_STREAM, step]))
        action = np.clip(held + CONSTANT_NOISE * rng.standard_normal(size), -1, 1)
        return action[None].astype(np.float32), None


class GaussianNetwork(_OneEnvironment):
    """A trained behaviour: a = tanh(mean(x) + std(x) * noise), the noise a function of (episode's seed, decision).

    Args:
      layers: hidden layers with ReLU, and a last one of mean and logarithm of std, [.., 2 A].
      greedy: without noise.
    """

    def __init__(self, environment: Any, layers: Sequence[Layer], *, greedy: bool = False):
        super().__init__(environment)
        self._layers, self._greedy = list(layers), greedy

    def __call__(self, image: np.ndarray, state: Any, seeds: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
        """See `types.Policy`."""
        mean, log_std = np.split(forward(self._layers, self._environment.state.astype(np.float32), relu), 2)
        if not self._greedy:
            rng = np.random.default_rng(np.random.SeedSequence([int(seeds[0]), NOISE_STREAM, step]))
            noise = rng.standard_normal(len(mean)).astype(np.float32)
            mean = mean + np.exp(np.clip(log_std, MIN_LOG_STD, MAX_LOG_STD)) * noise
        return np.tanh(mean)[None], None


def pack_layers(layers: Sequence[Layer]) -> dict[str, np.ndarray]:
    """The arrays of a snapshot's file by name."""
    return {f"{name}{place}": array for place, layer in enumerate(layers) for name, array in layer._asdict().items()}


def read_layers(path: Path) -> list[Layer]:
    """The layers in a snapshot's file.

    Raises:
      DataError: when it is no snapshot.
    """
    try:
        arrays, _ = read_npz(read_whole(path, MAX_SNAPSHOT_BYTES)[0], lambda key: True, MAX_SNAPSHOT_BYTES)
        count = len(arrays) // 2
        layers = [Layer(arrays[f"kernel{place}"], arrays[f"bias{place}"]) for place in range(count)]
        widths = [(layer.kernel.shape, layer.bias.shape) for layer in layers]
        fits = all(len(kernel) == 2 and bias == kernel[1:] for kernel, bias in widths)
        chained = all(left[0][1] == right[0][0] for left, right in itertools.pairwise(widths))
        finite = all(np.isfinite(array).all() for array in arrays.values())
        if not (count and fits and chained and finite):
            raise NpzError("the shapes of its layers do not fit each other")
    except (OSError, NpzError, KeyError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: expected the layers of a behaviour, received other content ({reason})") from error
    return layers


def require_sizes(layers: Sequence[Layer], environment: Any, where: str) -> None:
    """Check that a trained behaviour belongs to an environment.

    Raises:
      ConfigError: when the environment has no state, or state or action of another size.
    """
    state = getattr(environment, "state_size", None)
    if state is None:
        raise ConfigError(f"{where}: expected a task whose simulator tells its state, received one that shows images")
    expected = (len(layers[0].kernel), len(layers[-1].bias) // 2)
    if expected != (state, environment.action_size):
        raise ConfigError(
            f"{where}: expected a task with states and actions of {expected}, as it was trained on, received "
            f"{(state, environment.action_size)}; choose a snapshot of this task"
        )
