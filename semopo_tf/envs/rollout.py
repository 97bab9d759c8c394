"""Play episodes: one loop for every policy and every environment, several environments in lockstep.

An episode that its environment spoils (diverged physics, a crash, no answer, a reward that is not a number) is
discarded and played again with the next seed, which is a function of the first one and the attempt. Discarded attempts
are reported, counted and limited.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.envs.contract import Contract, ContractError
from semopo_tf.errors import ConfigError, NumericalError, SimulatorError
from semopo_tf.types import Environment, Episode, Observation, Policy

ACTION_TOLERANCE = 1e-6
ANSWER_SECONDS = 300.0  # longer than any step, reset or start takes on a busy machine
ATTEMPTS = 4  # of one episode
MOST_DECISIONS = 40_000  # of one episode; 490 MB of images of 64 x 64 pixels
RETRY_STREAM = 0x5EED


class RandomPolicy:
    """Uniform actions in [-1, 1], each a function of (episode seed, step) alone."""

    def __init__(self, action_size: int, stream: int = 0) -> None:
        """Args: stream: policies with different streams draw independent actions."""
        self._size = action_size
        self._stream = stream

    def initial(self, episodes: int) -> None:
        return None

    def __call__(self, image: np.ndarray, state: Any, seeds: np.ndarray, step: int) -> tuple[np.ndarray, None]:
        return np.stack([self._draw(int(seed), step) for seed in seeds]), None

    def _draw(self, seed: int, step: int) -> np.ndarray:
        rng = np.random.default_rng(np.random.SeedSequence([seed, self._stream, step]))
        return rng.uniform(-1, 1, self._size).astype(np.float32)


class EndlessEpisode(ContractError):
    """An episode that has not ended after the most decisions that are played."""


class Discarded(NamedTuple):
    """An attempt that its environment spoiled."""

    seed: int  # of the list of seeds
    attempt: int  # from 0; `retry_seed` has the seed that was played
    reason: str


def retry_seed(seed: int, attempt: int) -> int:
    """The seed of an episode after `attempt` discarded attempts: its own at first, then others of 32 bits."""
    return derived_seed(seed, RETRY_STREAM, attempt) if attempt else seed


def derived_seed(*numbers: int) -> int:
    """32 bits that are a function of the numbers, which count from 0."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def require_few(failing: int, episodes: int, reason: str) -> None:
    """At most a tenth of the episodes may need another seed, though one always may.

    Raises:
      SimulatorError: when there are more.
    """
    allowed = max(1, episodes // 10)
    if failing > allowed:
        raise SimulatorError(
            f"{failing} of {episodes} episodes could not be played with their own seed, expected at most {allowed} "
            f"(last: {reason})"
        )


def play(
    environments: Sequence[Environment | Contract],
    policy: Policy,
    seeds: Sequence[int],
    discarded: list[Discarded] | None = None,
    *,
    most: int = MOST_DECISIONS,
) -> Iterator[Episode]:
    """Play one episode per seed, `len(environments)` at a time, and yield them in the order of `seeds`.

    Args:
      discarded: gets an entry for every attempt that was discarded, before the episode that replaces it is yielded.
      most: decisions of one episode.

    Raises:
      ConfigError: when there is no environment.
      ContractError: when an environment has other members, or returns something else, than `types.Environment` says.
      EndlessEpisode: when an episode has not ended after `most` decisions.
      NumericalError: when the policy returns actions of a wrong shape, not finite or outside [-1, 1].
      SimulatorError: when an episode fails `ATTEMPTS` times, or more than a tenth of the episodes fail.
    """
    if not environments:
        raise ConfigError("play: expected at least 1 environment, received 0")
    discarded = [] if discarded is None else discarded
    contracts = [
        environment if isinstance(environment, Contract) else Contract(environment) for environment in environments
    ]
    for start in range(0, len(seeds), len(contracts)):
        wave = list(seeds[start : start + len(contracts)])
        yield from _wave_with_retries(contracts, policy, wave, len(seeds), discarded, most)


def _wave_with_retries(
    environments: list[Contract],
    policy: Policy,
    seeds: list[int],
    total: int,
    discarded: list[Discarded],
    most: int,
) -> list[Episode]:
    """One episode for each of at most `len(environments)` seeds; those that fail are played again, side by side."""
    done: dict[int, Episode] = {}
    for attempt in range(ATTEMPTS):
        missing = [index for index in range(len(seeds)) if index not in done]
        games = _wave(environments, policy, [retry_seed(seeds[index], attempt) for index in missing], most)
        for index, game in zip(missing, games):
            if game.failure is None:
                done[index] = _episode(game.observed, game.actions)
                continue
            discarded.append(Discarded(seeds[index], attempt, game.failure))
            what = f"episode {seeds[index]}, attempt {attempt + 1} is discarded: {game.failure}"
            print(f"semopo_tf: warning: {what}", file=sys.stderr, flush=True)
            require_few(len({entry.seed for entry in discarded}), total, game.failure)
        if len(done) == len(seeds):
            return [done[index] for index in range(len(seeds))]
    seed = next(seeds[index] for index in range(len(seeds)) if index not in done)
    raise SimulatorError(f"episode {seed}: failed with {ATTEMPTS} seeds in a row (last: {discarded[-1].reason})")


class _Game:
    """One attempt at one episode: its records so far, or why it failed."""

    def __init__(self, environment: Contract, seed: int) -> None:
        self._environment, self.seed = environment, seed
        self.observed: list[Observation] = []
        self.actions = [np.zeros(environment.action_size, np.float32)]
        self.failure: str | None = None
        with self._failures():
            self.observed.append(environment.reset(seed))

    @property
    def playing(self) -> bool:
        return self.failure is None and not self.observed[-1].is_last

    @property
    def image(self) -> np.ndarray:
        """The last image; an episode that has ended keeps it."""
        return self.observed[-1].image if self.observed else np.zeros(self._environment.image_shape, np.uint8)

    def send(self, action: np.ndarray) -> None:
        self.actions.append(action.copy())
        with self._failures():
            self._environment.send(action)

    def receive(self) -> None:
        if self.failure is None:
            with self._failures():
                self.observed.append(self._environment.receive())

    def require_end(self, most: int) -> None:
        """Raises EndlessEpisode when the game still goes on after `most` decisions."""
        if self.playing and len(self.actions) > most:
            raise EndlessEpisode(
                f"{self._environment.name}.step: expected is_last within {most} decisions, received none in episode "
                f"{self.seed}; return is_last at a time limit"
            )

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """A RuntimeError (SimulatorError, the suite's PhysicsError) ends the attempt; other errors are mistakes."""
        try:
            with contextlib.nullcontext() if self._environment.split else time_limit(ANSWER_SECONDS):
                yield
        except ContractError:
            raise
        except RuntimeError as error:
            self.failure = " ".join(f"{error}".split()) or type(error).__name__


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise SimulatorError in the main thread of a process when the block takes longer; elsewhere there is no limit."""

    def give_up(*_: Any) -> None:
        raise SimulatorError(f"environment: no answer within {seconds:.0f} s")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _wave(environments: list[Contract], policy: Policy, seeds: list[int], most: int) -> list[_Game]:
    """Play `len(seeds)` episodes side by side. Those that end early wait, showing their last image."""
    games = [_Game(environment, seed) for environment, seed in zip(environments, seeds)]
    state, step = policy.initial(len(seeds)), 0
    while any(game.playing for game in games):
        action, state = policy(np.stack([game.image for game in games]), state, np.array(seeds), step)
        action = _checked_action(np.asarray(action, np.float32), (len(seeds), environments[0].action_size), seeds, step)
        playing = [(game, row) for game, row in zip(games, action) if game.playing]
        for game, row in playing:
            game.send(row)
        for game, _ in playing:
            game.receive()
            game.require_end(most)
        step += 1
    return games


def bounded_action(action: np.ndarray, size: int) -> np.ndarray:
    """An action [size] as an environment takes it: float64 in [-1, 1], what rounding left beyond cut off.

    Raises:
      NumericalError: when it is not finite, out of range or of another shape.
    """
    action = np.asarray(action, np.float64)
    if action.shape != (size,):
        raise NumericalError(f"action: expected shape {[size]}, received {list(action.shape)}; correct the policy")
    if not np.all(np.abs(action) <= 1 + ACTION_TOLERANCE):  # false for NaN
        raise NumericalError(
            f"action: expected finite values in [-1, 1], received {np.array2string(action, precision=4)}; correct "
            "the policy"
        )
    return np.clip(action, -1, 1)


def _checked_action(action: np.ndarray, expected: tuple[int, int], seeds: list[int], step: int) -> np.ndarray:
    """The policy's action before any environment sees it."""
    if action.shape != expected:
        raise NumericalError(f"policy: expected actions of shape {list(expected)}, received {list(action.shape)}")
    for seed, row in zip(seeds, action):
        if not np.all(np.abs(row) <= 1 + ACTION_TOLERANCE):  # false for NaN
            received = np.array2string(row, precision=4)
            raise NumericalError(
                f"policy: expected finite actions in [-1, 1], received {received} at decision {step} of episode {seed}"
            )
    return action


def _episode(observed: list[Observation], actions: list[np.ndarray]) -> Episode:
    """Stack the records of one episode; record t holds the action and reward that led to its image."""
    column = {name: [getattr(record, name) for record in observed] for name in Observation._fields}
    flags = {name: np.array(column[name], bool) for name in ("is_first", "is_last", "is_terminal")}
    return Episode(
        image=np.stack(column["image"]),
        action=np.stack(actions),
        reward=np.array(column["reward"], np.float32),
        discount=1 - flags["is_terminal"].astype(np.float32),
        **flags,
        log={name: np.stack([record.log[name] for record in observed]) for name in observed[0].log},
    )
