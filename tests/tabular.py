"""Small tabular processes with an exogenous block, solved exactly: linear algebra for values, enumeration for
trajectories.

Letters: s endogenous state, x exogenous state, o observation, a action; S, X, O, A their numbers, T the horizon, N
  trajectories.
Policies look at s alone. Where a policy is `[..., S, A]`, leading axes are a batch of policies.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class MDP(NamedTuple):
    start: np.ndarray  # [S]
    transition: np.ndarray  # [S, A, S], the last axis sums to one
    reward: np.ndarray  # [S, A], in [0, 1]
    discount: float


class EXBMDP(NamedTuple):
    """mu(s, x) = mu(s) mu(x) and T(s', x' | s, x, a) = T(s' | s, a) T(x' | x); the reward sees s and a alone."""

    endo: MDP
    exo_start: np.ndarray  # [X]
    exo_transition: np.ndarray  # [X, X]
    emission: np.ndarray  # [S, X, O]


class Trajectories(NamedTuple):
    """A distribution over s_1 x_1 o_1 a_1 .. s_T x_T o_T a_T, one row a trajectory. Rows may repeat."""

    prob: np.ndarray  # [N]
    endo: np.ndarray  # [N, T]
    exo: np.ndarray  # [N, T]
    obs: np.ndarray  # [N, T]
    action: np.ndarray  # [N, T]


# --- random instances -------------------------------------------------------------------------------------------------

EMISSIONS = ("block", "merged", "noisy", "free")


def random_policy(rng: np.random.Generator, states: int, actions: int = 2, concentration: float = 1.0) -> np.ndarray:
    return rng.dirichlet(np.full(actions, concentration), states)


def random_mdp(rng: np.random.Generator, states: int = 3, actions: int = 2, discount: float | None = None) -> MDP:
    """Sparse and dense transitions, rewards near both ends of [0, 1], discount between 0.5 and 0.95."""
    concentration = rng.choice([0.2, 1.0])
    return MDP(
        start=rng.dirichlet(np.ones(states)),
        transition=rng.dirichlet(np.full(states, concentration), (states, actions)),
        reward=rng.beta(0.5, 0.5, (states, actions)),
        discount=float(rng.uniform(0.5, 0.95)) if discount is None else discount,
    )


def random_emission(rng: np.random.Generator, kind: str, states: int, exo_states: int) -> np.ndarray:
    """[S, X, O]. The first two are deterministic; all but the last depend on (s, x) through a class f(s, x) given
    beforehand.

    block: o names (s, x). merged: o = f(s, x) = (s + x) mod 2. noisy: a random row for each of these two classes. free:
      a random row for each (s, x).
    """
    merged = np.add.outer(np.arange(states), np.arange(exo_states)) % 2
    if kind == "block":
        return np.eye(states * exo_states).reshape(states, exo_states, -1)
    if kind == "merged":
        return np.eye(2)[merged]
    if kind == "noisy":
        return rng.dirichlet(np.ones(3), 2)[merged]
    return rng.dirichlet(np.ones(3), (states, exo_states))


def random_ex_bmdp(
    rng: np.random.Generator, kind: str = "block", states: int = 2, exo_states: int = 2, actions: int = 2
) -> EXBMDP:
    return EXBMDP(
        endo=random_mdp(rng, states, actions),
        exo_start=rng.dirichlet(np.ones(exo_states)),
        exo_transition=rng.dirichlet(np.ones(exo_states), exo_states),
        emission=random_emission(rng, kind, states, exo_states),
    )


# --- policies ---------------------------------------------------------------------------------------------------------


def deterministic_policies(states: int, actions: int) -> np.ndarray:
    """[A ** S, S, A]"""
    return np.eye(actions)[list(itertools.product(range(actions), repeat=states))]


def lattice_policies(states: int, levels: int) -> np.ndarray:
    """[levels ** S, S, 2]: the probability of the first of two actions on an even grid, ends included."""
    first = np.array(list(itertools.product(np.linspace(0, 1, levels), repeat=states)))
    return np.stack([first, 1 - first], -1)


# --- exact values -----------------------------------------------------------------------------------------------------


def steps(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """P_pi(s' | s), [..., S, S]"""
    return np.einsum("...sa,saz->...sz", policy, mdp.transition)


def values(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """V = (I - gamma P_pi)^-1 r_pi, [..., S]"""
    system = np.eye(len(mdp.start)) - mdp.discount * steps(mdp, policy)
    return np.linalg.solve(system, (policy * mdp.reward).sum(-1)[..., None])[..., 0]


def performance(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """eta(pi) = E sum_t gamma^t r(s_t, a_t), [...]"""
    return values(mdp, policy) @ mdp.start


def occupancy(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """rho(s, a) = pi(a | s) sum_t gamma^t P(s_t = s), [..., S, A]. Not normalised: it sums to 1 / (1 - gamma)."""
    system = np.eye(len(mdp.start)) - mdp.discount * np.swapaxes(steps(mdp, policy), -1, -2)
    state = np.linalg.solve(system, np.broadcast_to(mdp.start[:, None], (*policy.shape[:-1], 1)))
    return policy * state


def best_policy(mdp: MDP) -> np.ndarray:
    """An optimal policy, by trying all deterministic ones. [S, A]"""
    policies = deterministic_policies(*mdp.reward.shape)
    return policies[np.argmax(performance(mdp, policies))]


def full(process: EXBMDP) -> MDP:
    """The same process as one MDP over the pairs (s, x), number s * X + x."""
    endo, pairs = process.endo, len(process.endo.start) * len(process.exo_start)
    transition = np.einsum("saz,xy->sxazy", endo.transition, process.exo_transition)
    return MDP(
        start=np.outer(endo.start, process.exo_start).ravel(),
        transition=transition.reshape(pairs, -1, pairs),
        reward=np.repeat(endo.reward, len(process.exo_start), 0),
        discount=endo.discount,
    )


# --- exact trajectories -----------------------------------------------------------------------------------------------


def trajectories(process: EXBMDP, policy: np.ndarray, horizon: int) -> Trajectories:
    """Every trajectory of positive probability. `policy`: [S, A]"""
    endo, look = process.endo, np.einsum("sxo,sa->sxoa", process.emission, policy)
    prob, past = np.ones(1), np.zeros((1, 0, 4), int)
    to_s, to_x = endo.start[None], process.exo_start[None]  # [N, S], [N, X]
    for _ in range(horizon):
        joint = np.einsum("n,ns,nx,sxoa->nsxoa", prob, to_s, to_x, look)
        index = np.argwhere(joint)  # columns: row of the past, s, x, o, a
        prob, past = joint[tuple(index.T)], np.concatenate([past[index[:, 0]], index[:, None, 1:]], 1)
        to_s, to_x = endo.transition[past[:, -1, 0], past[:, -1, 3]], process.exo_transition[past[:, -1, 1]]
    return Trajectories(prob, *np.moveaxis(past, -1, 0))


def pool(parts: Sequence[Trajectories], sizes: Sequence[float] | None = None) -> Trajectories:
    """The union of datasets: trajectories of part i with weight sizes[i] / sum(sizes); equal sizes unless given."""
    weight = np.ones(len(parts)) if sizes is None else np.array(sizes, float)
    weight = weight / weight.sum()
    return Trajectories(
        np.concatenate([w * part.prob for w, part in zip(weight, parts, strict=True)]),
        *(np.concatenate(columns) for columns in list(zip(*parts, strict=True))[1:]),
    )


def action_marginals(data: Trajectories, actions: int) -> np.ndarray:
    """P(a_t = a), [T, A]"""
    return np.stack([np.bincount(a, data.prob, actions) for a in data.action.T])


# --- likelihoods ------------------------------------------------------------------------------------------------------


def log_likelihood(data: Trajectories, process: EXBMDP, policy: np.ndarray) -> float:
    """E ln p(s, x, o, a) with the density p that `process` and `policy` define."""
    s, x, o, a = data[1:]
    density = (
        process.endo.start[s[:, 0]] * process.exo_start[x[:, 0]] * (process.emission[s, x, o] * policy[s, a]).prod(1)
    )
    density = density * (
        process.endo.transition[s[:, :-1], a[:, :-1], s[:, 1:]] * process.exo_transition[x[:, :-1], x[:, 1:]]
    ).prod(1)
    return float(data.prob @ np.log(density))


def best_of_all(data: Trajectories, *, observed: bool = False) -> float:
    """max of E ln p over every distribution p of whole trajectories, or of their (o, a) alone if `observed`: minus the
    entropy.
    """
    columns = (data.obs, data.action) if observed else data[1:]
    row = np.unique(np.concatenate(columns, 1), axis=0, return_inverse=True)[1].ravel()
    prob = np.bincount(row, data.prob)
    return float(prob @ np.log(prob))


def best_table(context: np.ndarray, outcome: np.ndarray, weight: np.ndarray) -> float:
    """max over tables p(outcome | context) of sum weight ln p: the relative frequencies are the maximum."""
    count = np.zeros((context.max() + 1, outcome.max() + 1))
    np.add.at(count, (context, outcome), weight)
    rate = count / np.maximum(count.sum(1, keepdims=True), 1e-300)
    return float((count * np.log(np.where(rate > 0, rate, 1))).sum())


def best_tables(data: Trajectories, *, collapsed: bool = False) -> dict[str, float]:
    """max of E ln p over the factors of the likelihood, each a free table that is the same at all steps; one entry a
    factor.

    start: p(s_1) p(x_1). endo: p(s' | s, a), or p(s' | s) if `collapsed`. exo: p(x' | x). obs: p(o | s, x). action: p(a
      | s).
    """
    s, x, o, a = data[1:]
    weight = np.broadcast_to(data.prob[:, None], s.shape)
    nothing = np.zeros(len(s), int)
    by = s[:, :-1] if collapsed else s[:, :-1] * (a.max() + 1) + a[:, :-1]
    later = weight[:, 1:].ravel()
    return {
        "start": best_table(nothing, s[:, 0], data.prob) + best_table(nothing, x[:, 0], data.prob),
        "endo": best_table(by.ravel(), s[:, 1:].ravel(), later) if later.size else 0.0,
        "exo": best_table(x[:, :-1].ravel(), x[:, 1:].ravel(), later) if later.size else 0.0,
        "obs": best_table((s * (x.max() + 1) + x).ravel(), o.ravel(), weight.ravel()),
        "action": best_table(s.ravel(), a.ravel(), weight.ravel()),
    }


# --- the two assumptions of theorem 3.4 -------------------------------------------------------------------------------


def classes(emission: np.ndarray) -> np.ndarray:
    """[S, X]: the coarsest f for which equal classes have equal rows of the emission."""
    rows = emission.reshape(-1, emission.shape[-1])
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(emission.shape[:2])


def relabelled(process: EXBMDP, policy: np.ndarray) -> tuple[EXBMDP, np.ndarray]:
    """The same process with a fair coin in s that swaps the names of the two actions at every step; the observation
    shows the coin.

    Whatever the policy, the action is then uniform at every step, so all policies share one action marginal. State
    number 2 s + coin.
    """
    endo, (states, actions) = process.endo, process.endo.reward.shape
    if actions != 2:
        raise ValueError(f"expected two actions, received {actions}")
    swap = np.array([[0, 1], [1, 0]])  # [coin, action] -> the action that is meant
    coin = np.full(2, 0.5)
    moved = np.einsum("scaz,d->scazd", endo.transition[:, swap], coin).reshape(2 * states, 2, 2 * states)
    shown = np.einsum("sxo,cd->scxod", process.emission, np.eye(2))
    return (
        process._replace(
            endo=MDP(np.outer(endo.start, coin).ravel(), moved, endo.reward[:, swap].reshape(-1, 2), endo.discount),
            emission=shown.reshape(2 * states, len(process.exo_start), -1),
        ),
        policy[:, swap].reshape(-1, 2),
    )
