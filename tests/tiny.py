"""Tiny learners and batches, and the package's weights in the form that `reference` wants."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import reference
import tensorflow as tf

from semopo_tf import config as configuration
from semopo_tf.data.cards import read_card
from semopo_tf.data.dataset import Dataset
from semopo_tf.engine.compiling import choose_jit
from semopo_tf.methods.semopo import SeMOPO
from semopo_tf.nets.rssm import RSSM
from semopo_tf.random import Key
from semopo_tf.run import build
from semopo_tf.run.trained import Run
from semopo_tf.types import Batch

MODES = ("eager", "graph", "xla")
IMAGE_SIZE = 10  # two layers of 4 x 4: 10 -> 4 -> 1 and 1 -> 4 -> 10
STACK_SIZE = 16  # for learners of frame stacks: 16 -> 7 -> 5 -> 3 -> 1
STACKED = ("bc", "drq_bc", "drq_cql", "infogating")
ACTION_SIZE = 2
# Wide enough for nothing to degenerate, with sizes that all differ, so that a mixed-up axis cannot pass.
SIZES = {
    "encoder.kernels": "4,4",
    "decoder.kernels": "4,4",
    "rssm.deter": "5",
    "rssm.stoch": "3",
    "rssm.classes": "4",
    "rssm.hidden": "7",
    "rssm.ensemble": "3",
    "rssm.ensemble_hidden": "6",
    "reward_head.layers": "2",
    "actor.layers": "2",
    "critic.layers": "2",
}
GAUSSIAN_SIZES = {name: size for name, size in SIZES.items() if name != "rssm.classes"}  # of lompo, never categorical

RELEASED = ("released", "semopo")  # categorical, zero action, two optimisers
PAPER = ("semopo",)  # Gaussian, no action input, one optimiser
SE_RS_DRP = ("se_rs_drp",)  # with an adversary on the exogenous stream
OFFLINE_DV2 = ("offline_dv2",)  # joint model, Gaussian


def config(*names: str, sizes: Mapping[str, str] | None = None, **flags: Any) -> configuration.Config:
    """The configuration of overlays at the `debug` size, made smaller still; flags with `__` for the dot."""
    given = {key.replace("__", "."): str(value) for key, value in flags.items()}
    if sizes is None:
        sizes = GAUSSIAN_SIZES if "lompo" in names else SIZES
    argv = [word for key, value in {**sizes, **given}.items() for word in (f"--{key}", value)]
    return configuration.load(["--configs", *names, "walker_walk", "debug", *argv])


def learner(*names: str, device: str = "/CPU:0", **flags: Any) -> SeMOPO:
    """device: whose program is made; every program also runs on a CPU."""
    given = config(*names, **flags)
    return build.make_learner(given, image_size=IMAGE_SIZE, action_size=ACTION_SIZE, jit=choose_jit(given.jit, device))


def batch(rng: np.random.Generator, size: int = 2, length: int = 4) -> Batch:
    """Random windows; the first one restarts in the middle."""
    is_first = np.zeros((size, length), bool)
    is_first[:, 0] = True
    is_first[0, length // 2] = True
    return Batch(
        tf.constant(rng.integers(0, 256, (size, length, IMAGE_SIZE, IMAGE_SIZE, 3)), tf.uint8),
        tf.constant(rng.uniform(-1, 1, (size, length, ACTION_SIZE)), tf.float32),
        tf.constant(rng.normal(size=(size, length)), tf.float32),
        tf.constant(is_first),
        tf.zeros((size, length), tf.bool),
    )


def key(step: int = 0, domain: str = "model", seed: int = 1) -> Key:
    return Key(seed, domain, tf.constant(step, tf.int64))


def untrained(data: Dataset, method: str, *flags: str) -> Run:
    """A run on data of exbmdp_point whose learner has its initial weights."""
    words = ["--configs", method, "exbmdp_point", "debug", "--offline_dir", str(data.directory), *flags]
    config = configuration.load(words)
    sizes = {"image_size": 32, "action_size": 2} | build.data_sizes(config, data)
    made = build.make_learner(config, **sizes)
    return Run(config, read_card(data.directory), sizes, made, made.policy(), "ckpt-policy-0", "policy", 0)


def randomise(variables: Mapping[str, tf.Variable], rng: np.random.Generator, gain: float = 1.0) -> None:
    """Give every variable a random value, biases and normalisation scales too: initial zeros would hide mistakes."""
    for name, variable in variables.items():
        shape = variable.shape.as_list()
        if name.endswith("kernel"):
            fan_in = np.prod(shape[:-1]) if len(shape) == 4 else shape[-2]
            variable.assign(rng.normal(0, gain / np.sqrt(fan_in), shape))
        else:
            variable.assign(rng.normal(1.0 if name.endswith("scale") else 0.0, 0.3, shape))


def run(mode: str, function: Callable, *args: Any) -> Any:
    """Call eagerly, as a graph or under XLA; nested tensors come back as arrays."""
    if mode != "eager":
        function = tf.function(function, autograph=False, jit_compile=mode == "xla")
    return arrays(function(*tf.nest.map_structure(as_tensor, args)))


def as_tensor(x: Any) -> Any:
    """Floats become float32; what is a tensor already stays."""
    if tf.is_tensor(x):
        return x
    x = np.asarray(x)
    return tf.constant(x, tf.float32 if x.dtype.kind == "f" else None)


def arrays(nested: Any) -> Any:
    return tf.nest.map_structure(lambda x: x.numpy(), nested)


def float32(x: np.ndarray) -> np.ndarray:
    """Rounded to float32, in float64: the same numbers for the package and the reference."""
    return np.asarray(x, np.float32).astype(np.float64)


def close(received: Any, expected: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(received, expected, rtol=tolerance, atol=tolerance)


def snapshot(variables: Mapping[str, tf.Variable]) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in variables.items()}


def assign(variables: Mapping[str, tf.Variable], values: Mapping[str, np.ndarray]) -> None:
    for name, value in values.items():
        variables[name].assign(value)


# --- weights for `reference` ------------------------------------------------------------------------------------------


class Weights:
    """Values of named variables in float64, handed out as the structures of `reference`."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = {name: np.asarray(value, np.float64) for name, value in values.items()}

    def moved(self, direction: Mapping[str, np.ndarray], by: float) -> "Weights":
        """These weights, a distance along a direction."""
        return Weights(
            {name: value + by * direction[name] if name in direction else value for name, value in self.values.items()}
        )

    def dense(self, name: str) -> reference.Dense:
        return self.values[f"{name}/kernel"], self.values[f"{name}/bias"]

    def mlp(self, name: str, output: str) -> tuple[list[reference.Dense], reference.Dense]:
        return self._numbered(f"{name}/hidden"), self.dense(f"{name}/{output}")

    def _numbered(self, prefix: str) -> list[reference.Dense]:
        found = []
        while f"{prefix}{len(found)}/kernel" in self.values:
            found.append(self.dense(f"{prefix}{len(found)}"))
        return found

    def encoder(self, name: str) -> reference.Convs:
        return reference.Convs(self._numbered(f"{name}/conv"))

    def decoder(self, name: str) -> reference.Convs:
        return reference.Convs(self._numbered(f"{name}/deconv"), self.dense(f"{name}/dense"))

    def mask(self) -> tuple[np.ndarray, float]:
        return self.values["mask/conv/kernel"].reshape(-1), self.values["mask/conv/bias"].item()

    def rssm(self, name: str, stoch: int = 3, classes: int = 0) -> reference.RSSM:
        """classes: 0 for a Gaussian."""
        gru = reference.GRU(*(self.values[f"{name}/gru/{part}"] for part in ("kernel", "bias", "scale", "offset")))
        body, hidden, out = (
            list(zip(self.values[f"{name}/prior/{part}_kernel"], self.values[f"{name}/prior/{part}_bias"]))
            if f"{name}/prior/{part}_kernel" in self.values
            else None
            for part in ("body", "hidden", "out")
        )
        return reference.RSSM(
            self.dense(f"{name}/input"),
            gru,
            self.dense(f"{name}/post_hidden"),
            self.dense(f"{name}/post_out"),
            hidden,
            out,
            stoch,
            classes,
            body,
        )

    def stream(self, name: str, rssm: RSSM, draw: Key, shape: Sequence[int], classes: int = 0) -> reference.Stream:
        """One stream with the noise that the package draws for it at this key."""
        noise = rssm.draw(draw, f"{name}_posterior", tuple(shape)).numpy()
        members = rssm.draw_members(draw, f"{name}_member", shape[1]).numpy()
        return reference.Stream(
            self.encoder(f"{name}_encoder"), self.rssm(f"{name}_rssm", noise.shape[2], classes), noise, members
        )
