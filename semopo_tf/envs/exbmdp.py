"""The built-in testbed: an exact Exogenous Block MDP, drawn in NumPy without a simulator.

    s+ = (p, v)       a point mass that the actions push            p, v in the plane, 4 numbers
    s- = the rest     a moving texture and discs, never touched     phases of plane waves, positions of discs, speeds
    o  = picture(p, s-): texture, discs over it, the agent's soft disc on top
    r  = 1 / (1 + (|p - goal| / 0.25)^2) of the new p: a function of s+ alone

Coordinates are those of the picture, [-1, 1] to the right and downwards. An episode has 50 decisions and no
termination. The agent's start and all of s- come from the episode's seed; the agent's motion is deterministic. The true
states are in `Observation.log`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.errors import ConfigError, NumericalError, SimulatorError
from semopo_tf.types import Observation

PREFIX = "exbmdp_"
DECISIONS = 50
GOAL = np.array([0.1, -0.1])
REACH, START = 0.8, 0.8  # walls of the agent's square, and half the edge of the square of its starts
DRAG, PUSH = 0.7, 0.06
REWARD_WIDTH = 0.25
BASE_WAVES = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (3, 0), (0, 3), (2, 2))
LEAST_WAVES, MOST_WAVES = len(BASE_WAVES), 60
STEEPNESS = 1.7  # of the grey level in units of the texture's standard deviation
SOFTNESS = 16.0  # of the agent's edge; the discs' are twice as sharp at 32 pixels
COLOR = np.array([0.95, 0.25, 0.10])
DISC_RADIUS, DISC_GREY = (0.30, 0.24), (0.12, 0.88)
DISC_SPEED, DISC_REACH, DISC_START, DISC_SOFTNESS = 0.09, 0.75, 0.7, 32.0
WORLD_STREAM, BEHAVIOUR_STREAM = 0xE0B, 0xBEA


class World(NamedTuple):
    """What distinguishes the tasks. Every field is a setting, `--options exo_dims=20 contrast=0.3`."""

    # independent numbers that move the texture: 0 (still), 2 (it scrolls), more: as many waves with phases of their own
    exo_dims: int
    discs: int  # 0, 1 or 2, drawn over the texture
    contrast: float  # of the texture, 0..0.5
    sprite: float  # radius of the agent


TASKS = {
    "exbmdp_scroll": World(exo_dims=2, discs=0, contrast=0.2, sprite=0.32),
    "exbmdp_point": World(exo_dims=2, discs=2, contrast=0.2, sprite=0.32),
    "exbmdp_hard": World(exo_dims=10, discs=2, contrast=0.35, sprite=0.32),
}


def make_world(task: str, options: Mapping[str, float]) -> World:
    """The world of a task with some of its settings changed.

    Raises:
      ConfigError: for an unknown task or setting, or a value out of range.
    """
    if task not in TASKS:
        raise ConfigError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    if unknown := sorted(set(options) - set(World._fields)):
        raise ConfigError(f"--options {unknown[0]}: expected one of {', '.join(World._fields)} for {task}")
    world = TASKS[task]._replace(**{name: type(getattr(TASKS[task], name))(value) for name, value in options.items()})
    waves = world.exo_dims in (0, 2) or LEAST_WAVES <= world.exo_dims <= MOST_WAVES
    allowed = {
        "exo_dims": (waves, f"0, 2 or {LEAST_WAVES} to {MOST_WAVES}"),
        "discs": (0 <= world.discs <= len(DISC_RADIUS), f"0 to {len(DISC_RADIUS)}"),
        "contrast": (0 <= world.contrast <= 0.5, "0 to 0.5"),
        "sprite": (0 < world.sprite <= 1, "more than 0, at most 1"),
    }
    for name, (good, expected) in allowed.items():
        if not good:
            raise ConfigError(f"--options {name}={getattr(world, name)}: expected {expected}")
    return world


def wave_vectors(count: int) -> np.ndarray:
    """[count, 2] periods over the picture, to the right and downwards: base waves, then others from long to short."""
    edge = range(-6, 7)
    half_plane = [(a, b) for a in edge for b in edge if (a > 0 or (a == 0 and b > 0)) and (a, b) not in BASE_WAVES]
    return np.array([*BASE_WAVES, *sorted(half_plane, key=lambda k: (k[0] ** 2 + k[1] ** 2, k))][:count])


class Picture:
    """Draws states. Knows the world's looks and nothing of its motion."""

    def __init__(self, world: World, size: int):
        centres = (np.arange(size) + 0.5) / size * 2 - 1
        self._x, self._y = np.meshgrid(centres, centres)
        self._world = world
        self.vectors = wave_vectors(max(world.exo_dims, LEAST_WAVES))
        amplitude = 1 / np.linalg.norm(self.vectors, axis=1)
        right, down = self.vectors.T
        angle = np.pi * (self._x[..., None] * right + self._y[..., None] * down + self.vectors.sum(1))
        scale = amplitude / np.sqrt((amplitude**2).sum() / 2)  # the texture's variance over all phases is 1
        # cos(angle + phase) = cos(angle) cos(phase) - sin(angle) sin(phase)
        self._cos, self._sin = scale * np.cos(angle), scale * np.sin(angle)

    def agent_pixels(self, position: np.ndarray) -> np.ndarray:
        """Where the agent covers more than half of the background; position [2] -> [size, size] bool."""
        return np.hypot(self._x - position[0], self._y - position[1]) < self._world.sprite

    def draw(self, position: np.ndarray, phases: np.ndarray, discs: np.ndarray) -> np.ndarray:
        """position [2], phases [waves], discs [n, 2] -> [size, size, 3] uint8."""
        texture = self._cos @ np.cos(phases) - self._sin @ np.sin(phases)
        image = np.repeat((0.5 + self._world.contrast * np.tanh(STEEPNESS * texture))[..., None], 3, -1)
        for centre, radius, grey in zip(discs, DISC_RADIUS, DISC_GREY, strict=False):
            image = self._cover(image, centre, radius, DISC_SOFTNESS, np.full(3, grey))
        image = self._cover(image, position, self._world.sprite, SOFTNESS, COLOR)
        return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)

    def _cover(
        self, image: np.ndarray, centre: np.ndarray, radius: float, softness: float, color: np.ndarray
    ) -> np.ndarray:
        distance = np.hypot(self._x - centre[0], self._y - centre[1])
        alpha = 1 / (1 + np.exp((distance - radius) * softness))[..., None]
        return (1 - alpha) * image + alpha * color


class Background:
    """s-: moves by itself. It has a generator of its own, so that no action can influence it."""

    def __init__(self, world: World, vectors: np.ndarray, rng: np.random.Generator):
        self._rng, self._vectors, self._scrolls = rng, vectors, world.exo_dims == 2
        waves = len(vectors)
        self._offsets = 2 * np.pi * ((np.arange(waves) * 0.6180339887) % 1)  # the same in all episodes
        self.shift, self._drift = rng.uniform(0, 1, 2), 0.035 * _direction(rng)
        self._own = rng.uniform(0, 2 * np.pi, waves)
        self._speed = rng.uniform(0.15, 0.45, waves) * rng.choice([-1, 1], waves)
        self._waves = world.exo_dims >= LEAST_WAVES
        self.discs = rng.uniform(-DISC_START, DISC_START, (world.discs, 2))
        self._velocity = DISC_SPEED * np.array([_direction(rng) for _ in range(world.discs)]).reshape(-1, 2)

    @property
    def phases(self) -> np.ndarray:
        """[waves] of the texture, radians."""
        if self._waves:
            return self._own
        return self._offsets + (2 * np.pi * self._vectors @ self.shift if self._scrolls else 0)

    def step(self) -> None:
        """Move on by one decision."""
        self.shift = (self.shift + self._drift) % 1
        self._drift = 0.98 * self._drift + self._rng.normal(0, 0.004, 2)
        self._own = (self._own + self._speed + self._rng.normal(0, 0.04, len(self._own))) % (2 * np.pi)
        moved = self.discs + self._velocity
        self._velocity = np.where(np.abs(moved) > DISC_REACH, -self._velocity, self._velocity)
        self.discs = np.clip(moved, -DISC_REACH, DISC_REACH)

    def log(self) -> dict[str, np.ndarray]:
        """The true s- in a form that a linear probe can predict: angles as cosine and sine."""
        angles = self.phases if self._waves else 2 * np.pi * self.shift if self._scrolls else np.zeros(0)
        phase = {"phase": np.concatenate([np.cos(angles), np.sin(angles)])} if len(angles) else {}
        return phase | ({"discs": self.discs.ravel()} if len(self.discs) else {})


def _direction(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


class ExBMDP:
    """One of the tasks as an `Environment`. An episode is a function of (seed, actions) alone."""

    action_size, state_size = 2, 4

    def __init__(self, task: str, *, size: int, options: Mapping[str, float]):
        self.world = make_world(task, options)
        self.image_shape = (size, size, 3)
        self.picture = Picture(self.world, size)
        self.agent_pixels = self.picture.agent_pixels
        self._step = DECISIONS  # none is running

    def reset(self, seed: int) -> Observation:
        """Begin the episode of `seed`."""
        own, other = np.random.default_rng([seed, WORLD_STREAM, 0]), np.random.default_rng([seed, WORLD_STREAM, 1])
        self.position, self.velocity = own.uniform(-START, START, 2), np.zeros(2)
        self._background = Background(self.world, self.picture.vectors, other)
        self._step = 0
        return self._observe(0.0)

    def step(self, action: np.ndarray) -> Observation:
        """Push with `action` [2] in [-1, 1].

        Raises:
          NumericalError: when the action is not finite or of another shape.
          SimulatorError: when the episode has ended.
        """
        if self._step >= DECISIONS:
            raise SimulatorError(
                "step: expected a running episode, received a step before reset or after its end; call reset first"
            )
        action = np.asarray(action, np.float64)
        if action.shape != (self.action_size,) or not np.isfinite(action).all():
            raise NumericalError(
                f"action: expected 2 finite values in [-1, 1], received {action.tolist()}; correct the policy"
            )
        self.position, self.velocity = move(self.position, self.velocity, np.clip(action, -1, 1))
        self._background.step()
        self._step += 1
        return self._observe(float(reward(self.position)))

    def _observe(self, received: float) -> Observation:
        image = self.picture.draw(self.position, self._background.phases, self._background.discs)
        log = {"position": self.position, "velocity": self.velocity, **self._background.log()}
        return Observation(image, received, self._step == 0, self._step == DECISIONS, False, log)

    @property
    def state(self) -> np.ndarray:
        """The true s+ [4]: position and velocity."""
        return np.concatenate([self.position, self.velocity])

    def close(self) -> None:
        """Nothing to end."""


def move(position: np.ndarray, velocity: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """s+ after one decision; all [..., 2]. At a wall the agent stops.

    v <- 0.7 v + 0.06 a,   p <- p + v
    """
    velocity = DRAG * velocity + PUSH * action
    free = position + velocity
    position = np.clip(free, -REACH, REACH)
    return position, np.where(position == free, velocity, 0.0)


def reward(position: np.ndarray) -> np.ndarray:
    """In 0..1, highest at the goal; position [..., 2] -> [...]."""
    return 1 / (1 + ((position - GOAL) ** 2).sum(-1) / REWARD_WIDTH**2)


def controller(position: np.ndarray, velocity: np.ndarray, goal: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """The push that a spring of stiffness gains[0] and damping gains[1] asks for; all [2] -> action [2]."""
    return np.clip((gains[0] * (goal - position) - gains[1] * velocity) / PUSH, -1, 1)


class Behaviour:
    """A behaviour policy that plays one environment, seeing its true s+. What it draws is a function of the episode's
    seed.

    random    a direction of its own for the episode, held pushes of 2 to 6 decisions, jitter; knows no goal
    iid       uniform every decision
    medium    the controller with gains of its own, towards a wrong goal, pushed about
    mixed     half of the episodes random, half medium
    expert    the controller: near-optimal, the reference of the return table
    """

    KINDS = ("random", "iid", "medium", "mixed", "expert")
    GAINS = np.array([0.8, 0.6])

    def __init__(self, kind: str, environment: Any):
        self._kind, self._environment = kind, environment

    def initial(self, episodes: int) -> None:
        return None

    def __call__(self, image: np.ndarray, state: Any, seeds: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
        """Plays one episode at a time: seeds [1] -> action [1, 2]; the episode's plan travels in `state`."""
        if len(seeds) != 1:
            raise ConfigError(
                f"behaviour {self._kind}: expected 1 environment, received {len(seeds)}; it sees the true state of one"
            )
        plan = self._plan(int(seeds[0])) if state is None else state
        action, now = plan["noise"][step], self._environment
        if plan["goal"] is not None:
            action = action + controller(now.position, now.velocity, plan["goal"], plan["gains"])
        return np.clip(action, -1, 1).astype(np.float32)[None], plan

    def _plan(self, seed: int) -> dict[str, Any]:
        """Noise [DECISIONS, 2], and goal and gains of the controller where there is one."""
        rng = np.random.default_rng([seed, BEHAVIOUR_STREAM])
        kind = self._kind if self._kind != "mixed" else ("random", "medium")[int(rng.integers(2))]
        if kind == "expert":
            return {"noise": np.zeros((DECISIONS, 2)), "goal": GOAL, "gains": self.GAINS}
        if kind == "iid":
            return {"noise": rng.uniform(-1, 1, (DECISIONS, 2)), "goal": None}
        if kind == "random":
            noise = rng.normal(0, 0.15, 2) + 0.9 * _held(rng) + rng.normal(0, 0.08, (DECISIONS, 2))
            return {"noise": noise, "goal": None}
        noise = np.zeros((DECISIONS, 2))
        for step in range(1, DECISIONS):
            noise[step] = 0.8 * noise[step - 1] + rng.normal(0, 0.3, 2)
        return {"noise": noise, "goal": GOAL + rng.normal(0, 0.55, 2), "gains": self.GAINS * rng.uniform(0.5, 1.5, 2)}


def _held(rng: np.random.Generator) -> np.ndarray:
    """[DECISIONS, 2] uniform values, each held for 2 to 6 decisions."""
    lengths = rng.integers(2, 7, DECISIONS)
    return np.repeat(rng.uniform(-1, 1, (DECISIONS, 2)), lengths, 0)[:DECISIONS]
