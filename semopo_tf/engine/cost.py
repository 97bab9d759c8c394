"""Arithmetic and memory of one update, from the configuration alone.

FLOPs     two a multiply-add of every matrix product and convolution, nothing else; padding and recomputation are no
work
          trained weights   forward, gradient to the input, gradient to the weights       3 x
          frozen weights    forward, gradient to the input                                2 x
          first layers      no gradient to an input that nothing learns from              1 x less
memory    weights, replay and evidence exactly; activations estimated from the sizes of the layers' outputs
traffic   the least that must pass between memory and processor, were every layer one pass: a prediction's input, not a
measurement
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

Config = Mapping[str, Any]

STRIDE, COLORS = 2, 3


class Flops(NamedTuple):
    """Floating-point operations of one update."""

    encoders: int
    decoders: int
    recurrent: int
    heads: int

    @property
    def total(self) -> int:
        return sum(self)


class Memory(NamedTuple):
    """Bytes on the device."""

    weights: int  # float32 masters, both moments of Adam for every optimiser, one gradient
    frames: int  # uint8 replay; 0 where the host keeps it
    activations: int  # of a model update, an estimate
    evidence: int  # of the policy phase: what the frozen encoder made of every frame

    @property
    def model_phase(self) -> int:
        return self.weights + self.frames + self.activations


class Layer(NamedTuple):
    """A matrix product or convolution on one row or image."""

    multiplications: int
    parameters: int
    outputs: int


def dense(inputs: int, outputs: int) -> Layer:
    return Layer(inputs * outputs, inputs * outputs + outputs, outputs)


def encoder(config: Config, image_size: int) -> list[Layer]:
    """One encoder's convolutions."""
    depth, channels, size, layers = config["encoder"]["depth"], COLORS, image_size, []
    for place, kernel in enumerate(config["encoder"]["kernels"]):
        width, size = depth * 2**place, (size - kernel) // STRIDE + 1
        weights = kernel * kernel * channels * width
        layers.append(Layer(size * size * weights, weights + width, size * size * width))
        channels = width
    return layers


def decoder(config: Config, image_channels: int, features: int) -> list[Layer]:
    """One decoder's dense layer and transposed convolutions; features: size of its input."""
    depth, kernels = config["decoder"]["depth"], config["decoder"]["kernels"]
    channels, size = depth * 2 ** (len(kernels) + 1), 1
    layers = [dense(features, channels)]
    for place, kernel in enumerate(kernels):
        width = depth * 2 ** (len(kernels) - 2 - place) if place < len(kernels) - 1 else image_channels
        weights, positions = kernel * kernel * channels * width, size * size
        size = (size - 1) * STRIDE + kernel
        layers.append(Layer(positions * weights, weights + width, size * size * width))
        channels = width
    return layers


def latent_sizes(rssm: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of a flattened stochastic state and of its raw statistics."""
    flat = rssm["stoch"] * rssm["classes"] if rssm["latent"] == "categorical" else rssm["stoch"]
    return flat, flat if rssm["latent"] == "categorical" else 2 * flat


def feature_size(rssm: Mapping[str, Any]) -> int:
    return latent_sizes(rssm)[0] + rssm["deter"]


def recurrent(rssm: Mapping[str, Any], action_size: int, embed_size: int) -> dict[str, list[Layer]]:
    """The recurrent model's layers: `step` needs no image, `evidence` only the image, `member` is one prior head."""
    (flat, raw), deter, hidden, wide = latent_sizes(rssm), rssm["deter"], rssm["hidden"], rssm["ensemble_hidden"]
    gru = dense(hidden + deter, 3 * deter)
    return {
        "step": [
            dense(flat + action_size, hidden),
            gru._replace(parameters=gru.parameters + 6 * deter),
        ],  # scale and offset of the normalisation
        "evidence": [Layer(embed_size * hidden, embed_size * hidden, hidden)],
        "posterior": [dense(deter, hidden), dense(hidden, raw)],
        "member": [dense(deter, wide), dense(wide, raw)],
    }


def mlp(settings: Mapping[str, Any], inputs: int, outputs: int) -> list[Layer]:
    """A stack of dense layers with one or several linear outputs."""
    widths = [inputs, *[settings["units"]] * settings["layers"]]
    return [dense(one, other) for one, other in pairwise(widths)] + [dense(widths[-1], outputs)]


def work(layers: list[Layer]) -> int:
    return sum(layer.multiplications for layer in layers)


class Stream(NamedTuple):
    """One recurrent model."""

    rssm: Mapping[str, Any]
    action_size: int


def streams(config: Config, action_size: int) -> list[Stream]:
    """The recurrent models: the main one, and the exogenous one if there is one."""
    main = Stream(config["rssm"], action_size)
    if config["model"]["kind"] == "joint":
        return [main]
    exo_stoch = config["model"]["exo_stoch"] or config["rssm"]["stoch"]
    return [
        main,
        Stream({**config["rssm"], "stoch": exo_stoch}, 0 if config["model"]["exo_action"] == "absent" else action_size),
    ]


def decoders(config: Config) -> list[list[Layer]]:
    sizes = [feature_size(stream.rssm) for stream in streams(config, 0)]
    if config["model"]["kind"] == "joint":
        return [decoder(config, COLORS, sizes[0])]
    found = [decoder(config, 2 * COLORS, size) for size in sizes]
    if config["model"]["exo_only"] and not config["kl"]["strict_elbo"]:
        found.append(decoder(config, COLORS, sizes[1]))
    return found


def mask(config: Config, image_size: int) -> list[Layer]:
    """The 1 x 1 convolution that blends two streams."""
    pixels = image_size * image_size
    return [Layer(pixels * 2 * COLORS, 2 * COLORS + 1, pixels)] if config["model"]["kind"] == "separated" else []


def model_update_flops(config: Config, *, image_size: int, action_size: int) -> Flops:
    """Of one world-model update: all frames of a batch through encoders, recurrences, one drawn prior member a step,
    and decoders.
    """
    frames, convolutions = config["batch"]["size"] * config["batch"]["length"], encoder(config, image_size)
    embed = convolutions[-1].outputs
    encoders = 3 * work(convolutions) - convolutions[0].multiplications
    pixels = sum(work(layers) for layers in decoders(config)) + work(mask(config, image_size))
    inner = sum(
        work(layers) for stream in streams(config, action_size) for layers in recurrent(*stream, embed).values()
    )
    reward = mlp(config["reward_head"], feature_size(config["rssm"]), 1)
    heads = 3 * work(reward) - (0 if config["model"]["reward_gradient"] else reward[0].multiplications)
    if adversary := adversary_head(config):  # its own steps, then a frozen pass whose gradient goes to its input
        heads += config["model"]["drp_updates"] * (3 * work(adversary) - adversary[0].multiplications) + 2 * work(
            adversary
        )
    count = 2 * frames
    return Flops(
        count * encoders * len(streams(config, action_size)), count * 3 * pixels, count * 3 * inner, count * heads
    )


def adversary_head(config: Config) -> list[Layer]:
    """The reward head of dissociated reward prediction, if there is one."""
    if config["model"]["kind"] == "joint" or not config["model"]["drp"] or not config["model"]["drp_scale"]:
        return []
    return mlp(config["reward_head"], feature_size(streams(config, 0)[1].rssm), 1)


def policy_update_flops(config: Config, *, action_size: int) -> Flops:
    """Of one actor-critic update: filtering B*T records from their evidence, then H imagined steps from each, with all
    K members' penalty.
    """
    rows, horizon = config["batch"]["size"] * config["batch"]["length"], config["imagination"]["horizon"]
    parts, feat = recurrent(config["rssm"], action_size, 0), feature_size(config["rssm"])
    filtering = work(parts["step"]) + work(parts["posterior"])
    imagined = 2 * horizon * (work(parts["step"]) + work(parts["member"])) + 2 * (horizon + 1) * config["rssm"][
        "ensemble"
    ] * work(parts["member"])
    actor, critic = mlp(config["actor"], feat, 2 * action_size), mlp(config["critic"], feat, 1)
    heads = horizon * (3 * work(actor) - actor[0].multiplications)  # its features are stopped: no gradient to its input
    heads += horizon * (3 * work(critic) - critic[0].multiplications) + horizon * 2 * work(
        critic
    )  # critic, then slow critic
    heads += (horizon + 1) * 2 * work(mlp(config["reward_head"], feat, 1))
    return Flops(0, 0, 2 * rows * (filtering + imagined), 2 * rows * heads)


def parameters(config: Config, *, image_size: int, action_size: int) -> int:
    """Trained numbers of the world model, its adversary among them."""
    return sum(_parameters(config, image_size, action_size).values())


def _parameters(config: Config, image_size: int, action_size: int) -> dict[str, int]:
    convolutions, members = encoder(config, image_size), config["rssm"]["ensemble"]
    found = {"encoders": 0, "recurrent": 0}
    for stream in streams(config, action_size):
        found["encoders"] += sum(layer.parameters for layer in convolutions)
        for name, layers in recurrent(*stream, convolutions[-1].outputs).items():
            found["recurrent"] += (members if name == "member" else 1) * sum(layer.parameters for layer in layers)
    shared = [*decoders(config)[:2], mask(config, image_size)]
    found["joint"] = sum(layer.parameters for layers in shared for layer in layers)
    found["exo_only"] = sum(layer.parameters for layers in decoders(config)[2:] for layer in layers)
    found["adversary"] = sum(layer.parameters for layer in adversary_head(config))
    return found | {
        "reward": sum(layer.parameters for layer in mlp(config["reward_head"], feature_size(config["rssm"]), 1))
    }


def memory(
    config: Config,
    *,
    image_size: int,
    action_size: int,
    records: int,
    half: bool = False,
    remat_rows: int = 0,
    replay_on_device: bool = True,
) -> Memory:
    """What a run holds on its device.

    Args:
      records: of the dataset.
      half: the compute type has two bytes.
      remat_rows: frames whose decoders are differentiated at a time; 0 for all.
    """
    rows, size = config["batch"]["size"] * config["batch"]["length"], 2 if half else 4
    held = _parameters(config, image_size, action_size)
    # Weight, gradient and two moments; a second optimiser on the joint decoder has two moments of its own.
    weights = 4 * (
        4 * sum(held.values())
        + (2 * held["joint"] if config["model"]["split_optimizers"] and len(decoders(config)) > 1 else 0)
    )
    # A layer's output before and after its activation function; the pixels in float32: image, target and what the
    # likelihood keeps.
    convolutions = (
        2 * size * sum(layer.outputs for layer in encoder(config, image_size)) * len(streams(config, action_size))
    )
    pixels = 4 * image_size * image_size * COLORS
    decoded = [2 * size * sum(layer.outputs for layer in layers) + 3 * pixels for layers in decoders(config)]
    activations = rows * (convolutions + 2 * pixels) + (min(rows, remat_rows) if remat_rows else rows) * sum(decoded)
    table = records * config["rssm"]["hidden"] * size
    return Memory(weights, records * image_size**2 * COLORS if replay_on_device else 0, activations, table)


def model_update_bytes(config: Config, *, image_size: int, action_size: int, half: bool = False) -> int:
    """Least memory traffic of one world-model update, bytes.

    A layer's output is written and read forward; backward it is read again, and its gradient written and read: 5
    passes. A weight is read forward and backward, its gradient written and read, and Adam reads and writes it with both
    moments: 10 passes of
    float32.
    """
    held = memory(config, image_size=image_size, action_size=action_size, records=0, half=half)
    # `activations` holds each output twice, before and after its activation function; `weights` has four numbers a
    # trained one.
    return 5 * held.activations // 2 + 10 * held.weights // 4


def describe(memory: Memory) -> str:
    """One line for the start of a run."""
    weights, frames, activations = (
        f"{value / 2**30:.2f} GB" for value in (memory.weights, memory.frames, memory.activations)
    )
    return f"memory of the model phase: weights {weights}, frames {frames}, activations {activations} (estimate)"
