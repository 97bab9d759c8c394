"""How far the policies of a testbed dataset differ, as Theorem 3.4 counts it: python tools/policy_information.py DATA

DATA is a folder of `python -m semopo_tf.collect --task exbmdp_*`; a replay names its run, --policy replay:RUN@N/E.
Every episode is one policy pi_i, which is asked again for its actions in states s+ of all episodes, the theorem's
common distribution. Actions are counted in --bins x --bins cells of [-1, 1]^2, with logarithms to the base e:

    information, mixed   I(a; s) = H(a) - H(a | s)              a ~ pi_mix = mean of pi_i, s ~ states of all episodes
    information, each    mean over i of I(a; s), a ~ pi_i       = mean of H_i(a) - H_i(a | s)
    gap                  H_mix(a | s) - mean of H_i(a | s)      the theorem's step for one decision: never negative
    gap of the marginals H(a) - mean of H_i(a)                  zero under assumption A.4

With A.4 the gap is the difference of the two informations (proof in the paper's App. A.2). It is at most ln n for n
policies, and zero when all episodes are played by one. H_i(a | s), of --noise counts alone, is corrected as by Miller
and Madow: plus (occupied cells - 1) / (2 --noise). Only policies that are known apart from their noise can be asked.
"""

import json
from pathlib import Path

import numpy as np

from semopo_tf.data.cards import read_card
from semopo_tf.data.episodes import read_log
from semopo_tf.envs import exbmdp, tasks
from semopo_tf.errors import CommandParser, ConfigError, DataError, run_command
from semopo_tf.run import snapshots
from semopo_tf.run.collecting import episode_seed

STREAM = 0x1F0
ASKED_AGAIN = ("networks", snapshots.SNAPSHOT, snapshots.REPLAY)
MOST_STEPS = 1 << 31  # a trained behaviour's noise is a function of (seed, step), so any step is another draw


def main(argv: list[str]) -> int:
    """Print the figures as one line of JSON.

    Raises:
      ConfigError: for a dataset of another task, or a behaviour that its card does not name.
      DataError: for a dataset without cards or true states.
    """
    parser = CommandParser(prog="python tools/policy_information.py", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--policy", help="as collect had it (default: as the card says)")
    parser.add_argument("--states", type=int, default=50)
    parser.add_argument("--noise", type=int, default=64, help="actions of each policy in each state")
    parser.add_argument("--bins", type=int, default=4)
    arguments = parser.parse(argv, states=1, noise=1, bins=1)
    card = read_card(arguments.data)
    task = (card or {}).get("task", "")
    if card is None or task not in exbmdp.TASKS:
        raise ConfigError(f"{arguments.data}: expected a dataset of exbmdp_*, received one of {task or 'no card'}")
    policy = arguments.policy or card["policy"]
    if policy.partition(":")[0] not in ASKED_AGAIN:
        raise ConfigError(f"--policy: expected one of {', '.join(ASKED_AGAIN)}, received {policy}; its noise is a plan")
    rng = np.random.default_rng([STREAM, arguments.states])
    states = draw_states(arguments.data, card["files"], arguments.states, rng)
    counts = np.stack(
        [cells(actions, arguments.bins) for actions in actions_of(policy, task, card, states, arguments.noise, rng)]
    )
    print(json.dumps({"data": f"{arguments.data}", "policies": len(counts), **information(counts, arguments.noise)}))
    return 0


def draw_states(directory: Path, files: list[dict], count: int, rng: np.random.Generator) -> np.ndarray:
    """[count, 4] positions and velocities of the agent, drawn from all episodes alike.

    Raises:
      DataError: when an episode has no true states.
    """
    rows = []
    for row in files:
        log = read_log(directory / row["file"])
        if not {"position", "velocity"} <= log.keys():
            raise DataError(f"{row['file']}: expected the true states of the testbed, received none; collect it again")
        rows.append(np.concatenate([log["position"], log["velocity"]], 1)[:-1])
    pool = np.concatenate(rows)
    return pool[rng.choice(len(pool), count, replace=False)]


def actions_of(policy: str, task: str, card: dict, states: np.ndarray, noise: int, rng: np.random.Generator):
    """For each episode the actions [states, noise, 2] of its policy."""
    environment = tasks.make(task, size=card["environment"]["size"], action_repeat=1)
    environment.reset(0)
    behaviour = snapshots.make(policy, task, environment)
    for number, row in enumerate(card["files"]):
        played, plan = behaviour(number), None
        seeds = np.array([row.get("seed", episode_seed(card["seed"], number))])
        actions = np.empty((len(states), noise, 2), np.float32)
        for place, state in enumerate(states):
            environment.position, environment.velocity = state[:2], state[2:]
            for draw, step in enumerate(rng.integers(MOST_STEPS, size=noise)):
                action, plan = played(np.zeros((1, 1, 1, 3), np.uint8), plan, seeds, int(step))
                actions[place, draw] = action[0]
        yield actions


def cells(actions: np.ndarray, bins: int) -> np.ndarray:
    """Shares [states, bins * bins] of the actions [states, noise, 2] in each cell of [-1, 1]^2."""
    place = np.clip(((actions + 1) / 2 * bins).astype(int), 0, bins - 1)
    flat = place[..., 0] * bins + place[..., 1]
    return np.stack([np.bincount(row, minlength=bins * bins) for row in flat]) / actions.shape[1]


def entropy(shares: np.ndarray) -> np.ndarray:
    """Nats over the last axis."""
    safe = np.where(shares > 0, shares, 1.0)
    return -(shares * np.log(safe)).sum(-1)


def information(shares: np.ndarray, noise: int) -> dict[str, float]:
    """The figures of the module's docstring from shares [policies, states, cells] of `noise` actions each."""
    mixed, occupied = shares.mean(0), (shares > 0).sum(-1)
    given_state = entropy(mixed).mean()
    own_given_state = (entropy(shares) + (occupied - 1) / (2 * noise)).mean()
    marginal, own_marginal = float(entropy(mixed.mean(0))), float(entropy(shares.mean(1)).mean())
    return {
        "information_mixed": marginal - given_state,
        "information_each": own_marginal - own_given_state,
        "gap": given_state - own_given_state,
        "gap_of_marginals": marginal - own_marginal,
    }


if __name__ == "__main__":
    run_command(main)
