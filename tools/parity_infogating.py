"""Compare InfoGating with its author's public code: python tools/parity_infogating.py CHECKOUT

CHECKOUT is a work tree of github.com/manantomar/agent-centric-representations. The interpreter needs PyTorch beside
this package; the checkout's other requirements (hydra, dm_control, h5py, matplotlib) are not needed.

The author's agent gets our weights, our batch and our noise, and takes one whole update. Losses, gradients, the step of
every weight, the moving statistics of the batch normalisation and the action at test are compared with our own, at one
update of each part of the schedule. Prints one line a quantity and ends with status 1 if one is off by more than
--tolerance.

Adam's first step is nearly the learning rate times the sign of the gradient, so rounding alone would decide it where a
gradient vanishes. Both sides therefore use --eps, with which the step is a smooth function of the gradient; that of a
run is 1e-8. Gradients have a tolerance of their own: a sum over a hundred thousand pixels in float32 is off by 1e-4.
"""

import argparse
import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import torch

from semopo_tf import config as configuration
from semopo_tf import random
from semopo_tf.methods import gating
from semopo_tf.run import build
from semopo_tf.types import Transitions

EDGE, ACTIONS, ROWS, NEGATIVES = 84, 6, 8, 256  # the author's networks are made for 84 pixels, 256 negatives are fixed
NETWORKS = ("encoder", "inv_model", "mask_net", "policy")
UPDATES = {"noise": 3, "warm-up": 1000, "after": 2601}  # ours; the author counts twice as fast
UNUSED = ("dmc", "h5py", "dm_env", "numpy_replay_buffer", "matplotlib", "matplotlib.pyplot")  # by an update


def author_modules(checkout: Path) -> tuple[Any, Any]:
    """`infogating` and `utils` of the checkout; empty modules stand for what an update does not use."""
    for name in UNUSED:
        sys.modules[name] = types.ModuleType(name)
    sys.modules["dm_env"].StepType = types.SimpleNamespace(FIRST=0, MID=1, LAST=2)  # type: ignore[attr-defined]
    sys.modules["numpy_replay_buffer"].EfficientReplayBuffer = object  # type: ignore[attr-defined]
    sys.modules["matplotlib"].pyplot = sys.modules["matplotlib.pyplot"]  # type: ignore[attr-defined]
    sys.path.insert(0, str(checkout))
    return importlib.import_module("infogating"), importlib.import_module("utils")


# --- weights ----------------------------------------------------------------------------------------------------------


def pairs() -> dict[str, tuple[str, str]]:
    """Our name -> the author's network and the name in it."""
    names = {}
    for place in range(4):
        for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
            names[f"encoder/conv{place}/{ours}"] = ("encoder", f"convnet.{2 * place}.{theirs}")
    norm = (("gamma", "weight"), ("beta", "bias"))
    dense = (("kernel", "weight"), ("bias", "bias"))
    layers = [
        ("encoder/trunk/dense", "encoder", "linear.0", dense),
        ("encoder/trunk/norm", "encoder", "linear.1", norm),
    ]
    layers += [("inverse/norm", "inv_model", "projector.layer1.1", norm)]
    layers += [("inverse/out", "inv_model", "projector.layer2", dense)]
    for place, name in enumerate(("hidden0", "hidden1", "mean")):
        layers.append((f"actor/{name}", "policy", f"policy.{2 * place}", dense))
    for place in range(5):
        for way in ("down", "up"):
            names[f"mask/{way}{place}/conv/kernel"] = ("mask_net", f"{way}.{place}.0.weight")
            layers.append((f"mask/{way}{place}/norm", "mask_net", f"{way}.{place}.1", norm))
    layers += [(f"mask/bottom{place}", "mask_net", f"mlp.{2 * place + 1}", dense) for place in range(3)]
    layers.append(("mask/last", "mask_net", "final_conv", dense))
    for own, network, other, parts in layers:
        names |= {f"{own}/{ours}": (network, f"{other}.{theirs}") for ours, theirs in parts}
    names["inverse/kernel"] = ("inv_model", "projector.layer1.0.weight")
    names["inverse/norm/moving_mean"] = ("inv_model", "projector.layer1.1.running_mean")
    names["inverse/norm/moving_variance"] = ("inv_model", "projector.layer1.1.running_var")
    return names


def to_author(name: str, value: np.ndarray) -> np.ndarray:
    """Our array in the author's layout: channels first, outputs first; a flattened map has its channels first."""
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    if name in ("encoder/trunk/dense/kernel", "mask/bottom0/kernel"):
        channels = 256 if name.startswith("encoder") else 64
        value = value.reshape(-1, channels, value.shape[1]).swapaxes(0, 1).reshape(value.shape)
    if name.startswith("mask/bottom2"):
        value = value.reshape(*value.shape[:-1], -1, 64).swapaxes(-1, -2).reshape(value.shape)
    return value.T


def author_tensor(agent: Any, network: str, name: str) -> torch.Tensor:
    """A parameter or buffer, in place."""
    module = getattr(agent, network)
    return dict(module.named_parameters()).get(name, dict(module.named_buffers()).get(name))


def give_weights(agent: Any, variables: dict[str, np.ndarray]) -> None:
    names, given = pairs(), set()
    for name, value in variables.items():
        network, other = names[name]
        with torch.no_grad():
            author_tensor(agent, network, other).copy_(torch.from_numpy(to_author(name, value).copy()))
        given.add((network, other))
    for network in NETWORKS:
        for other, _ in getattr(agent, network).named_parameters():
            if (network, other) not in given and not other.startswith("trunk."):  # declared, and never used
                raise SystemExit(f"{network}.{other}: the author's parameter has no counterpart")


# --- noise ------------------------------------------------------------------------------------------------------------


class Draws:
    """Our draws at a key, handed to the author's code in the order in which it asks for them."""

    def __init__(self, key: random.Key, *, noisy: bool):
        mask = random.normal(key, "mask", [2 * ROWS, EDGE, EDGE, 3]).numpy().transpose(0, 3, 1, 2)
        action = random.normal(key, "action", [ROWS, ACTIONS]).numpy()
        self._normal = [*([mask[:ROWS], mask[ROWS:]] if noisy else []), action]
        chosen = [gating.half(key, name, ROWS).numpy() for name in ("whole", "later_whole")]
        self._orders = [np.concatenate([np.flatnonzero(half), np.flatnonzero(~half)]) for half in chosen]
        self._negatives = (2 * random.uniform(key, "negatives", [ROWS, NEGATIVES, ACTIONS]) - 1).numpy()

    def normal(self, shape: Any, dtype: Any = None, device: Any = None) -> torch.Tensor:
        value = torch.from_numpy(self._normal.pop(0).copy())
        if tuple(shape) != tuple(value.shape):
            raise SystemExit(f"noise: the author asks for {tuple(shape)}, ours has {tuple(value.shape)}")
        return value

    def order(self, rows: int) -> torch.Tensor:
        return torch.from_numpy(self._orders.pop(0))

    def uniform(self, low: float, high: float, size: tuple[int, int]) -> np.ndarray:
        return self._negatives.reshape(size)

    def left(self) -> int:
        return len(self._normal) + len(self._orders)


# --- the two updates --------------------------------------------------------------------------------------------------


def batch(rng: np.random.Generator) -> Transitions:
    image, later = (rng.integers(0, 256, (ROWS, EDGE, EDGE, 9)).astype(np.uint8) for _ in range(2))
    action = rng.uniform(-1, 1, (ROWS, ACTIONS)).astype(np.float32)
    none = np.zeros((ROWS, 0), np.uint8)
    return Transitions(
        *map(tf.constant, (image, action, np.zeros(ROWS, np.float32), np.ones(ROWS, np.float32))),
        tf.constant(none),
        tf.constant(later),
    )


def snapshot(agent: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in agent.variables().items() if not name.startswith("optimizer/")}


def perturb(agent: Any, rng: np.random.Generator) -> None:
    """Biases and scales away from zero and one, which would hide a mistake; the mask half open."""
    for name, variable in agent.variables().items():
        if name.startswith("optimizer/") or name.endswith("kernel"):
            continue
        width = 0.02 if name.startswith(("encoder/conv", "actor")) else 0.2
        variable.assign(variable + rng.uniform(-width, width, variable.shape))
    agent.variables()["mask/last/bias"].assign(rng.uniform(0.3, 0.8, 3))


def author_update(
    modules: Any, variables: dict[str, np.ndarray], given: Transitions, at: int, draws: Draws, eps: float
) -> Any:
    """The author's agent after one update, and its losses by our names."""
    infogating, utils = modules
    losses: dict[str, float] = {}
    agent = infogating.InfoGatingAgent(
        (9, EDGE, EDGE),
        (ACTIONS,),
        "cpu",
        3e-4,
        256,
        1024,
        0.01,
        2000,
        2,
        "linear(1.0, 0.1, 250000)",
        0.3,
        False,
        augmentation=lambda x: x,
    )
    agent.plot_obs = lambda *_: None
    for optimizer in (agent.encoder_opt, agent.mask_opt, agent.policy_opt):
        optimizer.param_groups[0]["eps"] = eps
    give_weights(agent, variables)
    nce, clone = agent.inv_model.forward, infogating.F.mse_loss

    def noted(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            loss = function(*arguments)
            losses[name] = loss.item()
            return loss

        return call

    first = [np.ascontiguousarray(np.transpose(x, (0, 3, 1, 2)), np.float32) for x in (given.image, given.later_image)]
    rows = np.zeros(ROWS, np.float32)
    data = (first[0], given.action.numpy(), rows, rows, first[0], rows, first[1])
    saved = torch.randperm, np.random.uniform
    try:
        utils._standard_normal = draws.normal
        torch.randperm, np.random.uniform = draws.order, draws.uniform  # type: ignore[assignment]
        agent.inv_model.forward = noted("inverse_loss", nce)
        infogating.F.mse_loss = noted("actor_loss", clone)
        agent.update(iter([data]), 2 * at)
    finally:
        torch.randperm, np.random.uniform = saved
        infogating.F.mse_loss = clone
    if draws.left():
        raise SystemExit("noise: the author's update asked for less than ours")
    return agent, losses


class Report:
    def __init__(self, tolerance: float):
        self._tolerance, self.wrong = tolerance, 0

    def line(self, what: str, off: float, more: str = "", tolerance: float = 0.0) -> None:
        bad = not off <= (tolerance or self._tolerance)
        self.wrong += bad
        print(f"{'OFF ' if bad else 'ok  '} {what:44} {off:.1e} {more}")


def margin(before: dict[str, np.ndarray], feature: tf.Tensor) -> float:
    """How far the actor's hidden units are from the kink of their rectifiers; below 1e-6 rounding may switch one, and
    then neither side's gradient is wrong: take another update, whose number also seeds the batch.
    """
    x, closest = feature.numpy().astype(np.float64), np.inf
    for name in ("actor/hidden0", "actor/hidden1"):
        x = x @ before[f"{name}/kernel"] + before[f"{name}/bias"]
        closest, x = min(closest, np.abs(x).min()), np.maximum(x, 0)
    return float(closest)


def compare(modules: Any, name: str, at: int, report: Report, flags: argparse.Namespace) -> None:
    """One update of both, from the same weights."""
    rng = np.random.default_rng(at)
    words = ["--configs", "infogating", "--transitions.shift", "0", "--batch.size", str(ROWS)]
    words += [word for name in ("model_opt", "actor_opt") for word in (f"--{name}.eps", str(flags.eps))]
    agent = build.make_learner(configuration.load(words), image_size=EDGE, action_size=ACTIONS)
    perturb(agent, rng)
    given, key = batch(rng), random.Key(7, "policy", tf.constant(at, tf.int64))
    before = snapshot(agent)
    (stage,) = agent.stages
    metrics, gradients = stage.gradients(given, key)
    seen = agent._representation.gate(given, key).image[:ROWS]
    stage.update(given, key)
    after = snapshot(agent)
    clear = margin(before, agent._representation.encode(seen))
    print(f"     {name}: the actor's rectifiers are at least {clear:.0e} from their kinks")
    other, losses = author_update(modules, before, given, at, Draws(key, noisy=at <= 500), flags.eps)
    for loss, value in losses.items():
        report.line(f"{name}: {loss}", abs(value - float(metrics[loss])) / max(1, abs(value)), f"{value:.6f}")
    rows = []  # variable, error of its gradient, error of its value after the step
    scale = {
        network: max(float(p.grad.abs().max()) for p in getattr(other, network).parameters() if p.grad is not None)
        for network in NETWORKS
    }
    for own, (network, their) in pairs().items():
        tensor = author_tensor(other, network, their)
        step, off = to_author(own, after[own]) - tensor.detach().numpy(), 0.0
        if own in gradients:
            off = np.abs(tensor.grad.numpy() - to_author(own, gradients[own].numpy())).max() / scale[network]
        rows.append((own, off, np.abs(step).max()))
    worst = max(rows, key=lambda row: row[1])
    report.line(f"{name}: gradients, of each network's largest", worst[1], worst[0], flags.gradient_tolerance)
    worst = max(rows, key=lambda row: row[2])
    moved = max(np.abs(after[own] - before[own]).max() for own in gradients)
    report.line(f"{name}: weights and statistics after the step", worst[2], f"{worst[0]}; weights moved by {moved:.1e}")
    frame = np.asarray(given.image)[:1]
    with torch.no_grad():
        mean = other.act(np.ascontiguousarray(frame[0].transpose(2, 0, 1), np.float32), 0, True)
    ours = agent._mean(agent._representation.encode(tf.cast(frame, tf.float32)))[0].numpy()
    report.line(f"{name}: action at test after the step", np.abs(mean - ours).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--gradient_tolerance", type=float, default=1e-3)
    parser.add_argument("--eps", type=float, default=1e-2)
    flags = parser.parse_args()
    modules, report = author_modules(flags.checkout), Report(flags.tolerance)
    for name, at in UPDATES.items():
        compare(modules, name, at, report, flags)
    return int(report.wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
