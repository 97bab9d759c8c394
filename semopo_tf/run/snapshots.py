"""Behaviours by name, as `collect --policy` takes them, and the snapshots that a run of `behave train` has kept.

    uniform, random, ...    those of `envs.tasks.behaviours`
    snapshot:RUN@N          a behaviour as it was after N decisions
    replay:RUN@N/E          for episode i of E the snapshot at the fraction i / E of those up to N: a training in order
    export:DIR              a policy that `python -m semopo_tf.export` wrote; it sees the images

Needs no TensorFlow, but for an exported policy.
"""

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from semopo_tf import config as configuration
from semopo_tf.envs import tasks
from semopo_tf.envs.behaviours import Constant, GaussianNetwork, RandomNetworks, read_layers, require_sizes
from semopo_tf.envs.contract import Contract
from semopo_tf.envs.rollout import derived_seed, play
from semopo_tf.envs.states import make_states
from semopo_tf.errors import ConfigError, StorageError, user_path
from semopo_tf.run.evaluate import make_environment
from semopo_tf.storage.files import sha256, write_whole
from semopo_tf.storage.records import read_records
from semopo_tf.storage.untrusted import parse_json, read_whole
from semopo_tf.types import Environment, Policy

FOLDER, SCORES = "snapshots", "snapshots.json"
EPISODES = 10  # of a snapshot, to know its level
SCORE_STREAM = 0x5C0
MOST_TRIED = 20  # snapshots that are played to find one of a level
ABOUT = 2  # episodes before and after a snapshot
MAX_SCORES_BYTES = 1 << 24
SNAPSHOT, REPLAY, EXPORT = "snapshot", "replay", "export"
TRAINED = (SNAPSHOT, REPLAY)  # kinds of a run of `behave train`
STATE_METHOD = "sac"  # of `methods.STATE_LEARNERS`, which is not imported here


class Named(NamedTuple):
    """A behaviour's name, taken apart."""

    kind: str
    where: Path = Path()  # of a snapshot's run, or of an export
    decisions: int = 0
    episodes: int = 0  # of a replay


def read_name(name: str, task: str) -> Named:
    """Take a name apart.

    Raises:
      ConfigError: for a name that is none, with those of the task.
    """
    kind, _, rest = name.partition(":")
    if kind == EXPORT and rest:
        return Named(EXPORT, user_path(rest))
    match = re.fullmatch(r"(snapshot|replay):(.+)@(\d+)(?:/(\d+))?", name)
    if match and (match[1] == REPLAY) == bool(match[4]):
        return Named(match[1], user_path(match[2]), int(match[3]), int(match[4] or 0))
    known = tasks.behaviours(task)
    if name not in known:
        raise ConfigError(
            f"--policy: expected {', '.join(known)}, snapshot:RUN@DECISIONS or export:DIR for {task}, received {name!r}"
        )
    return Named(name)


def make(name: str, task: str, environment: Environment, *, greedy: bool = False) -> Callable[[int], Policy]:
    """A function that gives the behaviour of episode `number` in an environment.

    Args:
      greedy: without the noise with which a snapshot explored; the other behaviours have no such thing.

    Raises:
      ConfigError: for a behaviour of another task.
      DataError: for a damaged one.
    """
    named = read_name(name, task)
    if named.kind in TRAINED:
        run = Behaviours(named.where)
        run.require_task(task)
        policy = functools.lru_cache(maxsize=2)(functools.partial(run.policy, environment, greedy=greedy))
        return lambda number: policy(run.of_episode(named, number))
    if named.kind == EXPORT:
        from semopo_tf.run.players import Exported  # imports TensorFlow

        made: Policy = Exported(named.where)
    else:
        made = tasks.behaviours(task)[named.kind](environment)
    return lambda number: made


def sees_images(name: str, task: str) -> bool:
    """Whether a behaviour needs the pictures; the others can be played without."""
    named = read_name(name, task)
    return named.kind == EXPORT or (named.kind in TRAINED and Behaviours(named.where).sees_images)


def facts(name: str, task: str, *, greedy: bool = False) -> dict[str, Any]:
    """What a dataset's card says of a behaviour, besides its name: nothing that depends on a place."""
    named = read_name(name, task)
    if named.kind in TRAINED:
        run = Behaviours(named.where)
        used = [named.decisions] if named.kind == SNAPSHOT else run.until(named.decisions)
        digests = "".join(sha256(run.path(each)) for each in used)
        known = {"task": run.config.task, "decisions": named.decisions, "seed": run.config.seed}
        replayed = {"episodes": named.episodes, "snapshots": len(used)} if named.kind == REPLAY else {}
        noise = {"greedy": True} if greedy else {}
        return {
            "kind": named.kind,
            **known,
            **replayed,
            **noise,
            "sha256": hashlib.sha256(digests.encode()).hexdigest(),
        }
    if named.kind == EXPORT:
        return {"kind": EXPORT, "sha256": sha256(named.where / "export.json")}
    builder = tasks.behaviours(task)[named.kind]
    return dict(builder.FACTS) if builder in (RandomNetworks, Constant) else {}


class Behaviours:
    """The snapshots of one run.

    Attributes:
      decisions: after which there is one, ascending.

    Raises:
      ConfigError: when the directory holds none.
    """

    def __init__(self, logdir: Path):
        self.logdir = logdir
        paths = (logdir / FOLDER).glob("*.npz")
        self.decisions = sorted(int(path.stem) for path in paths if path.stem.isdigit())
        if not self.decisions or not (logdir / "config.yaml").is_file():
            raise ConfigError(
                f"{logdir}: expected the logdir of a run of python -m semopo_tf.behave train with snapshots, received "
                "none"
            )
        self.config = configuration.load_saved(logdir / "config.yaml")

    def require_task(self, task: str) -> None:
        """Raises ConfigError when the run learned another task: the same physics in front of any background."""
        if configuration.task_name(task) != configuration.task_name(self.config.task):
            raise ConfigError(
                f"{self.logdir}: expected a behaviour of {task}, received one that learned {self.config.task}; choose "
                "another run"
            )

    def path(self, decisions: int) -> Path:
        """The file of one snapshot. Raises ConfigError when there is none."""
        if decisions not in self.decisions:
            near = min(self.decisions, key=lambda there: abs(there - decisions))
            raise ConfigError(
                f"{self.logdir}: expected a snapshot after one of {len(self.decisions)} numbers of decisions, received "
                f"{decisions}; the nearest is {near}"
            )
        return self.logdir / FOLDER / f"{decisions:09d}.npz"

    def until(self, decisions: int) -> list[int]:
        """The snapshots up to one, in the order of training."""
        return [each for each in self.decisions if each <= decisions]

    def of_episode(self, named: Named, number: int) -> int:
        """Which snapshot plays an episode."""
        if named.kind == SNAPSHOT:
            return named.decisions
        used = self.until(named.decisions)
        return used[min(len(used) - 1, number * len(used) // named.episodes)]

    def within(self, low: float, high: float, episodes: int = EPISODES) -> int:
        """A snapshot whose mean return lies within [low, high]: the first that does, beginning with those whose returns
        in training come nearest to the middle of the band.

        Raises:
          ConfigError: when none does, with the nearest.
        """
        trained, means = self.training_returns(), dict[int, float]()
        middle = (low + high) / 2
        for decisions in sorted(self.decisions, key=lambda each: (abs(trained[each] - middle), each)):
            means[decisions] = float(self.returns(decisions, episodes).mean())
            print(f"{self.logdir}: mean return {means[decisions]:.1f} after {decisions} decisions", flush=True)
            if low <= means[decisions] <= high:
                return decisions
            if len(means) == MOST_TRIED:
                break
        near = min(means, key=lambda each: min(abs(means[each] - low), abs(means[each] - high)))
        raise ConfigError(
            f"{self.logdir}: expected a snapshot with a mean return of {low:g} to {high:g}, received none among "
            f"{len(means)}; the nearest, {near}, has {means[near]:.1f}; train longer or choose other --returns"
        )

    def training_returns(self) -> dict[int, float]:
        """For every snapshot the mean return of the episodes that were played about it."""
        rows = [(row["decisions"], row["return"]) for row in read_records(self.logdir / "metrics.jsonl")]
        played = {decisions: place for place, (decisions, _) in enumerate(rows)}
        found = {}
        for decisions in self.decisions:
            place = played.get(decisions, len(rows) - 1)
            found[decisions] = float(np.mean([score for _, score in rows[max(0, place - ABOUT) : place + ABOUT + 1]]))
        return found

    @property
    def sees_images(self) -> bool:
        """Whether the run learned from images (`players.ImagePlayer`)."""
        return self.config.method != STATE_METHOD

    def policy(self, environment: Any, decisions: int, *, greedy: bool = False) -> Policy:
        """The behaviour, acting in an environment as it did in training: with noise, unless it is to be greedy."""
        path = self.path(decisions)
        if self.sees_images:
            from semopo_tf.run.players import saved_player  # imports TensorFlow

            return saved_player(self.config, environment, path, noise=0.0 if greedy else self.config.online.noise)
        layers = read_layers(path)
        require_sizes(layers, environment, f"{path}")
        return GaussianNetwork(environment, layers, greedy=greedy)

    def _world(self) -> tuple[Any, Any]:
        """What the run played in, and the environment that its behaviours see."""
        if self.sees_images:
            from semopo_tf.run import build

            made = make_environment(self.config.task, build.environment_settings(self.config, None))
            return made, made
        states = make_states(self.config.task, self.config.env.action_repeat)
        return states, states.inner

    def returns(self, decisions: int, episodes: int = EPISODES) -> np.ndarray:
        """Returns [episodes] float64 of a snapshot on fixed seeds; kept beside the run, as nothing changes them."""
        digest, known = sha256(self.path(decisions)), self._known()
        scores = known.get(digest, [])
        if len(scores) < episodes:
            seeds = [derived_seed(SCORE_STREAM, place) for place in range(episodes)]
            world, inner = self._world()
            with contextlib.closing(world):
                played = play([Contract(world)], self.policy(inner, decisions), seeds)
                scores = [float(episode.reward.sum(dtype=np.float64)) for episode in played]
            with contextlib.suppress(StorageError):  # a run that may only be read is played again the next time
                write_whole(self.logdir / SCORES, json.dumps(known | {digest: scores}, indent=1).encode())
        return np.array(scores[:episodes])

    def _known(self) -> dict[str, list[float]]:
        try:
            content = parse_json(read_whole(self.logdir / SCORES, MAX_SCORES_BYTES)[0])
        except (OSError, ValueError):
            return {}
        rows = content.items() if isinstance(content, dict) else ()
        return {
            key: value for key, value in rows if isinstance(value, list) and all(type(each) is float for each in value)
        }
