"""A scripted driver of Car Racing that knows the track: the behaviour `driver`.

It holds a speed that takes it round a share of the lap, steers to a point of the road ahead of it, and shakes:

    speed   = share * length of the track / time limit
    steer   = gain * angle to (centre of the road `ahead` + offset to a side) + jitter
    pedals  = what the speed lacks + jitter, as gas or as brake

Share, look-ahead, offset, gain and jitter are drawn from the episode's seed.
"""

from typing import Any, NamedTuple

import numpy as np

from semopo_tf.errors import ConfigError
from semopo_tf.types import Environment

STREAM = 0xD21
TILE = 3.5  # distance of two tiles of the track, in units of its simulator
SECONDS = 20.0  # 1000 frames
SHARES = (0.405, 0.52)  # of the lap. A whole lap is worth 1000, the frames cost 100
AHEAD, OFFSET, GAIN = (9.0, 20.0), (-3.0, 3.0), (0.7, 1.3)  # the road is 6.7 wide on both sides of its centre
SHAKE, MEMORY = (0.1, 0.22), 0.9  # standard deviation of the jitter, and what a decision leaves of it
GAS, BRAKE = 0.15, 0.3  # gas for each unit of speed that is lacking; brake for what would be gas below zero
BACK, ON = 5, 15  # tiles around the last one that are searched for the next; other parts of the track may be near


class Plan(NamedTuple):
    """One episode's way of driving, and where it is."""

    share: float
    ahead: int  # tiles
    offset: float  # to the right of the road's centre
    gain: float
    shake: float
    tile: int = 0  # where the car is, counted from the start
    jitter: np.ndarray = np.zeros(2)  # of steering and pedals


class Driver:
    """A behaviour policy that plays one environment of Car Racing, seeing its true state. What it draws is a function
    of the episode's seed.
    """

    def __init__(self, environment: Environment) -> None:
        """Raises ConfigError when the environment has other actions than steering, gas and brake."""
        if environment.action_size != 3:
            raise ConfigError(
                f"--policy driver: expected actions of size 3, received {environment.action_size}; leave out --options "
                "continuous"
            )
        self._environment: Any = environment

    def initial(self, episodes: int) -> None:
        return None

    def __call__(self, image: np.ndarray, state: Any, seeds: np.ndarray, step: int) -> tuple[np.ndarray, Plan]:
        """Plays one episode at a time: seeds [1] -> action [1, 3]; the plan travels in `state`."""
        if len(seeds) != 1:
            raise ConfigError(
                f"behaviour driver: expected 1 environment, received {len(seeds)}; it sees the true state of one"
            )
        world = self._environment.env.unwrapped
        track = np.array(world.track)[:, 1:]  # [tiles, 3] direction and place of the road
        seed = int(seeds[0])
        plan = _draw(_random(0, seed)) if state is None else state
        noise = _random(1 + step, seed).normal(size=2)
        plan = _moved(plan, track, np.array(world.car.hull.position), noise)
        steer, pedal = _controls(plan, track, world.car.hull) + plan.jitter
        action = np.array([steer, 2 * pedal - 1, 2 * -BRAKE * pedal - 1])
        return np.clip(action, -1, 1).astype(np.float32)[None], plan


def _random(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([STREAM, *numbers]))


def _draw(rng: np.random.Generator) -> Plan:
    share, ahead, offset, gain, shake = (rng.uniform(*bounds) for bounds in (SHARES, AHEAD, OFFSET, GAIN, SHAKE))
    return Plan(share, round(ahead / TILE), offset, gain, shake)


def _moved(plan: Plan, track: np.ndarray, position: np.ndarray, noise: np.ndarray) -> Plan:
    """The plan at the next decision: the tile nearest to the car's position [2], and the jitter with new noise [2]."""
    near = plan.tile + np.arange(-BACK, ON)
    tile = int(near[np.argmin(((track[near % len(track), 1:] - position) ** 2).sum(1))])
    return plan._replace(tile=tile, jitter=MEMORY * plan.jitter + plan.shake * np.sqrt(1 - MEMORY**2) * noise)


def _controls(plan: Plan, track: np.ndarray, hull: Any) -> np.ndarray:
    """[2]: steering, to the right where positive, and gas, or brake where negative."""
    direction, *centre = track[(plan.tile + plan.ahead) % len(track)]
    right = np.array([np.cos(direction), np.sin(direction)])
    x, y = centre + plan.offset * right - np.array(hull.position)
    angle = np.arctan2(x, y) + hull.angle  # 0 straight ahead; the hull's angle counts to the left
    lacking = plan.share * len(track) * TILE / SECONDS - np.hypot(*hull.linearVelocity)
    return np.array([plan.gain * ((angle + np.pi) % (2 * np.pi) - np.pi), GAS * lacking])
