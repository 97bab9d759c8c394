"""Compare bc, drq_bc and drq_cql with V-D4RL's PyTorch code: equal weights, moments, batch and noise; losses, and all
weights after one update.

    python tools/parity_vd4rl.py CHECKOUT --torch PYTHON [--speed]

CHECKOUT is a checkout of github.com/conglu1997/v-d4rl, PYTHON an interpreter that has PyTorch. Nothing of the checkout
is changed. The two sides never share a process: they exchange arrays in a file. Their encoder is made for images of 84
pixels. Adam starts from moments as after 100 updates, so that a step is a smooth function of the gradient.

`--speed` also measures updates a second of both sides in turn, each alone, on batches of 256 that are ready in memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import numpy as np

METHODS = ("bc", "drq_bc", "drq_cql")
SIZE, ACTIONS, FRAMES, BATCH = 84, 6, 3, 16
SPEED_BATCH, SPEED_ROUNDS = 256, 3
MOMENTS_STEP, TOLERANCE = 100, 1e-5
STEP = 1000  # of our updates; theirs counts twice as fast
CONV_EDGE, CONV_FILTERS = 35, 32
# Part of a name here -> there; then kernel or scale -> weight, bias or offset -> bias.
PARTS = {
    "encoder": {f"conv{i}": f"convnet.{2 * i}" for i in range(4)},
    "actor": {"trunk/dense": "trunk.0", "trunk/norm": "trunk.1"}
    | {f"head/{ours}": f"policy.{2 * i}" for i, ours in enumerate(("hidden0", "hidden1", "mean"))},
    "critic": {"trunk/dense": "trunk.0", "trunk/norm": "trunk.1"}
    | {f"q{q}/{ours}": f"Q{q + 1}.{2 * i}" for q in (0, 1) for i, ours in enumerate(("hidden0", "hidden1", "value"))},
}
PARTS["slow_critic"] = PARTS["critic"]
LEAVES = {"kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias"}


# --- weights from here to there ---------------------------------------------------------------------------------------


def their_name(name: str) -> tuple[str, str]:
    """(network, parameter) of a variable such as `critic/q0/hidden1/kernel`."""
    network, _, rest = name.partition("/")
    part, _, leaf = rest.rpartition("/")
    return network, f"{PARTS[network][part]}.{LEAVES[leaf]}"


def their_form(name: str, value: np.ndarray) -> np.ndarray:
    """Kernels [h, w, in, out] -> [out, in, h, w], [in, out] -> [out, in]; a trunk there reads channels first."""
    if value.ndim == 4:
        return np.ascontiguousarray(value.transpose(3, 2, 0, 1))
    if name.endswith("trunk/dense/kernel"):
        cube = value.reshape(CONV_EDGE, CONV_EDGE, CONV_FILTERS, -1).transpose(2, 0, 1, 3)
        value = cube.reshape(value.shape)
    return np.ascontiguousarray(value.T)


# --- our side ---------------------------------------------------------------------------------------------------------


def learner(method: str) -> Any:
    from semopo_tf import config
    from semopo_tf.run import build

    return build.make_learner(config.load(["--configs", method, "walker_walk"]), image_size=SIZE, action_size=ACTIONS)


def transitions(rng: np.random.Generator, batch: int) -> dict[str, np.ndarray]:
    """A batch of noise, as the fields of `Transitions` without `later_image`."""
    shape = (batch, SIZE, SIZE, 3 * FRAMES)
    return {
        "image": rng.integers(0, 256, shape, np.uint8),
        "action": rng.uniform(-1, 1, (batch, ACTIONS)).astype(np.float32),
        "reward": rng.uniform(0, 2, batch).astype(np.float32),
        "discount": np.full(batch, 0.97, np.float32),
        "next_image": rng.integers(0, 256, shape, np.uint8),
    }


def ours(method: str, path: Path) -> dict[str, Any]:
    """Write the problem to `path`, and solve it: the losses, and all weights after the update by their names there."""
    import tensorflow as tf

    from semopo_tf import random
    from semopo_tf.types import Transitions

    rng, made = np.random.default_rng(0), learner(method)
    variables = made.variables()
    for name, variable in variables.items():
        if name.endswith("/updates"):
            variable.assign(MOMENTS_STEP)
        elif "/first/" in name:
            variable.assign(rng.normal(0, 1e-3, variable.shape).astype(np.float32))
        elif "/second/" in name:
            variable.assign(rng.uniform(1e-6, 4e-6, variable.shape).astype(np.float32))
        elif name.startswith("slow_critic/"):  # as after some updates
            variable.assign(variable + 0.01 * rng.normal(size=variable.shape).astype(np.float32))
    key, data = random.Key(1, "policy", tf.constant(STEP, tf.int64)), transitions(rng, BATCH)
    row = [BATCH, 10, ACTIONS]
    noise = {name: random.normal(key, name, [BATCH, ACTIONS]) for name in ("action", "next_action")}
    noise |= {name: random.normal(key, name, row) for name in ("cql_now", "cql_next")}
    noise |= {"cql_uniform": 2 * random.uniform(key, "cql_uniform", row) - 1}
    noise |= {name: random.integers(key, name, [BATCH, 2], 9) for name in ("shift", "next_shift")}
    given = {
        f"weight:{name}": their_form(name, variable.numpy()) for name, variable in variables.items() if named(name)
    }
    for name, variable in variables.items():
        for moment in ("first", "second"):
            if f"/{moment}/" in name:
                inner = name.partition(f"/{moment}/")[2]
                given[f"{moment}:{inner}"] = their_form(inner, variable.numpy())
    np.savez(path, **given, **{f"batch:{n}": v for n, v in data.items()}, **{f"noise:{n}": v for n, v in noise.items()})
    none = np.zeros((BATCH, 0), np.uint8)
    batch = Transitions(**{name: tf.constant(value) for name, value in data.items()}, later_image=tf.constant(none))
    metrics = tf.function(made.update, autograph=False)(batch, key)
    result = {f"loss:{name}": float(value) for name, value in metrics.items()}
    return result | {name: their_form(name, variable.numpy()) for name, variable in variables.items() if named(name)}


def named(name: str) -> bool:
    return name.partition("/")[0] in PARTS


# --- their side, in an interpreter with PyTorch -----------------------------------------------------------------------


def their_modules(checkout: Path) -> Any:
    """(agent class of a method, utils) of the checkout; what the agents do not use is stood in for."""
    for absent in ("hydra", "dmc", "dm_env", "h5py", "drqbc.numpy_replay_buffer"):
        module: Any = types.ModuleType(absent)
        sys.modules[absent] = module
        module.StepType, module.EfficientReplayBuffer = types.SimpleNamespace(FIRST=0, MID=1, LAST=2), object
    sys.path[:0] = [str(checkout / "drqbc"), str(checkout)]
    import bcagent
    import cql
    import drqv2
    import utils

    return {"bc": bcagent.BCAgent, "drq_bc": drqv2.DrQV2Agent, "drq_cql": cql.CQLAgent}, utils


def their_agent(method: str, checkout: Path) -> tuple[Any, Any]:
    agents, utils = their_modules(checkout)
    settings: dict[str, Any] = {
        "obs_shape": (3 * FRAMES, SIZE, SIZE),
        "action_shape": (ACTIONS,),
        **{"device": "cpu", "lr": 3e-4, "feature_dim": 50, "hidden_dim": 1024, "critic_target_tau": 0.01},
        **{"num_expl_steps": 0, "update_every_steps": 2, "stddev_schedule": "linear(1.0,0.1,250000)"},
        **{"stddev_clip": 0.3, "use_tb": True},
    }
    settings |= {} if method == "bc" else {"offline": True}
    settings |= {"min_q_weight": 10.0} if method == "drq_cql" else {}
    return agents[method](**settings), utils


def as_batch(data: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """(obs, action, reward, discount, next_obs), channels first, rewards as columns."""
    first, last = (np.ascontiguousarray(data[name].transpose(0, 3, 1, 2)) for name in ("image", "next_image"))
    return first, data["action"], data["reward"][:, None], data["discount"][:, None], last


def theirs(method: str, checkout: Path, path: Path, out: Path) -> None:
    """Solve the problem of `path` with the checkout's code."""
    import torch

    with np.load(path) as file:
        given: dict[str, dict[str, np.ndarray]] = {}
        for name in file.files:
            kind, _, rest = name.partition(":")
            given.setdefault(kind, {})[rest] = file[name]
    # In double precision, so that the rounding that is seen is ours alone.
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    agent, utils = their_agent(method, checkout)
    nets = {"encoder": agent.encoder, "actor": agent.actor}
    optimizers = {"encoder": agent.encoder_opt, "actor": agent.actor_opt}
    if method != "bc":
        nets |= {"critic": agent.critic, "slow_critic": agent.critic_target}
        optimizers["critic"] = agent.critic_opt
    parameters = {network: dict(net.named_parameters()) for network, net in nets.items()}
    for name, value in given["weight"].items():
        network, parameter = their_name(name)
        parameters[network][parameter].data.copy_(torch.from_numpy(value))
        if network in optimizers:
            optimizers[network].state[parameters[network][parameter]] = {
                "step": torch.tensor(float(MOMENTS_STEP)),
                "exp_avg": torch.from_numpy(given["first"][name]).double(),
                "exp_avg_sq": torch.from_numpy(given["second"][name]).double(),
            }
    noise = given["noise"]
    order = ["action"] if method == "bc" else ["next_action", "action"]
    order[1:1] = ["cql_now", "cql_next"] if method == "drq_cql" else []
    draws, shifts = iter(order), iter(("shift", "next_shift"))
    utils._standard_normal = lambda shape, dtype, device: torch.from_numpy(noise[next(draws)].astype(np.float64))
    # Their grid has the horizontal offset first.
    torch.randint = lambda *_, **__: torch.from_numpy(noise[next(shifts)][:, None, None, ::-1].astype(np.float64))
    torch.Tensor.uniform_ = lambda self, low, high: torch.from_numpy(noise["cql_uniform"].astype(np.float64))
    image, *numbers, following = as_batch(given["batch"])
    metrics = agent.update(iter([(image, *(each.astype(np.float64) for each in numbers), following)]), 2 * STEP)
    found = {}
    for name in given["weight"]:
        network, parameter = their_name(name)
        found[name] = parameters[network][parameter].detach().numpy()
    np.savez(out, **found, **{f"loss:{name}": value for name, value in metrics.items()})


# --- speed ------------------------------------------------------------------------------------------------------------


def our_speed(method: str) -> dict[str, float]:
    import tensorflow as tf

    from semopo_tf.random import Key
    from semopo_tf.types import Transitions

    made, data = learner(method), transitions(np.random.default_rng(0), SPEED_BATCH)
    none = tf.zeros([SPEED_BATCH, 0], tf.uint8)
    batch = Transitions(**{name: tf.constant(value) for name, value in data.items()}, later_image=none)
    update = tf.function(lambda step: made.update(batch, Key(1, "policy", step)), autograph=False)
    return timed(lambda step: update(tf.constant(step, tf.int64)))


def their_speed(method: str, checkout: Path) -> dict[str, float]:
    agent, _ = their_agent(method, checkout)
    agent.use_tb = False
    batch = as_batch(transitions(np.random.default_rng(0), SPEED_BATCH))
    return timed(lambda step: agent.update(iter([batch]), 2 * step))


def timed(update: Any) -> dict[str, float]:
    """Median seconds of an update after two that warm up, and the most memory of the process."""
    seconds = []
    for step in range(7):
        started = time.perf_counter()
        update(step)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": float(np.median(seconds[2:])), "peak_mb": peak}


# --- the command ------------------------------------------------------------------------------------------------------


def compare(method: str, checkout: Path, python: str, folder: Path) -> bool:
    """Print the differences of one method; whether all are small."""
    problem, solved = folder / f"{method}.npz", folder / f"{method}-theirs.npz"
    mine = ours(method, problem)
    run([python, __file__, str(checkout), "--side", method, str(problem), str(solved)])
    worst: dict[str, float] = {}
    with np.load(solved) as file:
        losses = {name[5:]: float(file[name]) for name in file.files if name.startswith("loss:")}
        for name in (name for name in file.files if not name.startswith("loss:")):
            network = name.partition("/")[0]
            worst[network] = max(worst.get(network, 0.0), float(np.abs(file[name] - mine[name]).max()))
    for network, difference in worst.items():
        print(f"{method}: {network}: largest difference of a weight after one update {difference:.2e}")
    pairs = {"critic_target_q": mine.get("loss:target"), "critic_q1": mine.get("loss:value")}
    pairs["actor_bc_loss"] = mine["loss:actor_loss"] if method == "bc" else mine["loss:cloning_loss"]
    if method != "bc":
        regulariser = 10.0 * mine.get("loss:cql_loss", 0.0)
        pairs["critic_loss"] = mine["loss:critic_loss"] + regulariser
    if method == "drq_cql":
        pairs["actor_loss"] = mine["loss:actor_loss"]
        del pairs["actor_bc_loss"]
    for name, value in pairs.items():
        if name in losses and value is not None:
            difference = abs(losses[name] - value) / max(1.0, abs(value))
            worst[name] = difference
            print(f"{method}: {name}: {losses[name]:.7g} there, {value:.7g} here, difference {difference:.2e}")
    return max(worst.values()) < TOLERANCE


def speed(method: str, checkout: Path, python: str) -> None:
    """Both sides in turn, each in a process of its own."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for _ in range(SPEED_ROUNDS):
        for side, interpreter in (("ours", sys.executable), ("theirs", python)):
            said = run([interpreter, __file__, str(checkout), "--timed", side, method])
            found[side].append(json.loads(said.splitlines()[-1]))
    seconds = {side: np.median([row["seconds"] for row in rows]) for side, rows in found.items()}
    memory = {side: max(row["peak_mb"] for row in rows) for side, rows in found.items()}
    ratio = seconds["theirs"] / seconds["ours"]
    print(
        f"{method}: {seconds['ours']:.3f} s an update here, {seconds['theirs']:.3f} s there: {ratio:.2f} times as "
        f"fast; peak memory {memory['ours']:.0f} and {memory['theirs']:.0f} MB"
    )


def run(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: failed\n{done.stderr[-2000:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="of github.com/conglu1997/v-d4rl")
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter with PyTorch")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--speed", action="store_true", help="also compare updates a second")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--timed", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        method, problem, solved = arguments.side
        theirs(method, arguments.checkout, Path(problem), Path(solved))
        return
    if arguments.timed:
        side, method = arguments.timed
        print(json.dumps(our_speed(method) if side == "ours" else their_speed(method, arguments.checkout)))
        return
    with tempfile.TemporaryDirectory() as folder:
        good = [compare(method, arguments.checkout, arguments.torch, Path(folder)) for method in arguments.methods]
    if arguments.speed:
        for method in arguments.methods:
            speed(method, arguments.checkout, arguments.torch)
    sys.exit(0 if all(good) else "not equal")


if __name__ == "__main__":
    main()
