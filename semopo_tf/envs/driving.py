"""A procedural view from a moving car, in NumPy: the background source `builtin:driving`.

Pinhole camera over a flat ground. Image coordinates `u` (right) and `v` (down) run from -1 to 1; the road ahead is a
parabola of curvature `k`, so a ground point at distance z and lateral offset x from the lane's centre is seen at

    u = F * (x + k * z**2 / 2 - sway) / z          v = horizon + F * CAMERA_HEIGHT / z

Every clip is a fixed function of its number: palette, road, objects, speed and all slow signals follow from it.
Nothing depends on the actions of an agent. Frames are drawn at twice the size and averaged, so that far road marks
flicker less.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

F = 1.1  # focal length in half image widths
CAMERA_HEIGHT = 1.5  # metres
NEAR, FAR = 3.0, 110.0  # metres between which objects are drawn
FOG = 80.0  # metres over which contrast falls by e
ENTROPY = 0xD217  # separates the generators of the clips from other uses of the same numbers

# sky above, sky at the horizon, ground, second ground colour, asphalt, hills: RGB 0..255.
PALETTES = np.array(
    [
        [(92, 140, 205), (196, 214, 230), (96, 122, 62), (126, 138, 78), (104, 104, 108), (88, 112, 112)],  # clear day
        [(150, 156, 164), (208, 210, 212), (84, 98, 66), (104, 108, 84), (84, 86, 90), (112, 122, 126)],  # overcast
        [(64, 66, 116), (236, 164, 108), (70, 66, 52), (92, 80, 58), (66, 62, 66), (72, 60, 84)],  # dusk
        [(112, 160, 210), (226, 214, 188), (182, 152, 106), (160, 128, 84), (118, 112, 106), (150, 118, 92)],  # desert
        [(164, 178, 196), (224, 228, 234), (216, 220, 226), (190, 196, 204), (96, 98, 104), (150, 160, 172)],  # snow
    ],
    np.float32,
)


class Scene(NamedTuple):
    """What stays fixed during one clip. The `M` roadside objects and cars are in no order."""

    palette: np.ndarray  # [6, 3] float32
    horizon: float  # v of the horizon at rest
    half_width: float  # metres from the lane marks' centre line to the road's edge
    centre: float  # lateral offset of the road's middle from our lane's centre, metres
    texture: np.ndarray  # [64, 64] float32 in [-1, 1], repeated over the ground
    hills: np.ndarray  # [2, 4, 3] amplitude, frequency, phase of the sines of two ridges
    kind: np.ndarray  # [M] index into PAINTERS
    along: np.ndarray  # [M] metres along the road at frame 0
    aside: np.ndarray  # [M] lateral metres from our lane's centre
    speed: np.ndarray  # [M] metres per frame along the road (0 for standing objects)
    scale: np.ndarray  # [M] height in metres
    tint: np.ndarray  # [M, 3] float32 RGB


class Motion(NamedTuple):
    """The camera's slow signals, `[frames]` each."""

    distance: np.ndarray  # metres driven
    curvature: np.ndarray  # 1/m
    heading: np.ndarray  # radians turned since frame 0
    sway: np.ndarray  # lateral metres
    horizon: np.ndarray  # v, with the shake of the car
    light: np.ndarray  # gain


def driving_clip(number: int, *, size: int, frames: int) -> Iterator[np.ndarray]:
    """Draw the frames of clip `number` one by one, the same bytes every time: [size, size, 3] uint8."""
    rng = np.random.default_rng(np.random.SeedSequence([ENTROPY, number]))
    scene = _scene(rng)
    motion = _motion(rng, frames, scene.horizon)
    for t in range(frames):
        yield _frame(scene, Motion(*(signal[t] for signal in motion)), t, size)


def _scene(rng: np.random.Generator) -> Scene:
    lanes = int(rng.integers(1, 3))  # on our side; the other side has as many
    half_width = 3.4 * lanes + 0.5
    centre = -1.7 - 3.4 * float(rng.integers(0, lanes))
    things, cars = 120, 12
    side = rng.choice([-1.0, 1.0], things)
    kind = np.concatenate([rng.choice([0, 1, 2], things, p=rng.dirichlet([2, 3, 1])), np.full(cars, 3)])
    lane = rng.choice([-1.0, 1.0], cars)  # -1: oncoming
    palette = PALETTES[rng.integers(len(PALETTES))] * rng.uniform(0.82, 1.1, (6, 1)) * rng.uniform(0.96, 1.04, (6, 3))
    smallest = np.array([1.0, 4.0, 5.0, 1.4])[kind]
    largest = np.array([7.0, 14.0, 12.0, 2.6])[kind]
    reach = np.where(kind[:things] == 0, 1.0, rng.uniform(2.5, 18, things) + 4.0 * (kind[:things] == 2))
    return Scene(
        palette=np.clip(palette, 0, 255).astype(np.float32),
        horizon=float(rng.uniform(-0.5, 0.0)),
        half_width=half_width,
        centre=centre,
        texture=rng.uniform(-1, 1, (64, 64)).astype(np.float32),
        hills=np.stack(
            [rng.uniform(0.01, 0.07, (2, 4)), rng.uniform(0.8, 7, (2, 4)), rng.uniform(0, 2 * np.pi, (2, 4))], -1
        ),
        kind=kind,
        along=np.concatenate([rng.uniform(0, 260, things), rng.uniform(20, 300, cars)]),
        aside=np.concatenate(
            [centre + side * (half_width + reach), centre + lane * rng.choice([1.7, half_width - 2.2], cars)]
        ),
        speed=np.concatenate(
            [np.zeros(things), np.where(lane < 0, rng.uniform(-0.9, -0.5, cars), rng.uniform(0.5, 0.95, cars))]
        ),
        scale=rng.uniform(smallest, largest),
        tint=rng.uniform(0.7, 1.2, (len(kind), 1)).astype(np.float32) * _tints(rng, kind),
    )


def _tints(rng: np.random.Generator, kind: np.ndarray) -> np.ndarray:
    """Base colours of the objects, [M, 3]: white posts, green trees, brown houses, cars of any colour."""
    base = np.array([(200, 200, 196), (58, 86, 44), (172, 146, 122), (120, 120, 124)], np.float32)[kind]
    spread = np.array([0.0, 0.15, 0.2, 0.7])[kind][:, None]  # how far hues differ within one kind
    return (base * rng.uniform(1 - spread, 1 + spread, base.shape)).astype(np.float32)


def _motion(rng: np.random.Generator, frames: int, horizon: float) -> Motion:
    speed = rng.uniform(0.5, 1.0) * (1 + _wave(rng, frames, 90, 200, 0.2))
    curvature = _wave(rng, frames, 90, 260, 0.014)
    shake = _wave(rng, frames, 6, 15, 0.008) + _wave(rng, frames, 30, 70, 0.012)
    return Motion(
        distance=np.cumsum(speed),
        curvature=curvature,
        heading=np.cumsum(curvature * speed),
        sway=_wave(rng, frames, 50, 120, 0.35),
        horizon=horizon + shake,
        light=1 + _wave(rng, frames, 40, 160, 0.12),
    )


def _wave(rng: np.random.Generator, frames: int, shortest: float, longest: float, amplitude: float) -> np.ndarray:
    """A smooth signal of at most `amplitude`: three sines with periods between the given numbers of frames."""
    period, phase = rng.uniform(shortest, longest, (3, 1)), rng.uniform(0, 2 * np.pi, (3, 1))
    return amplitude * np.sin(2 * np.pi * np.arange(frames) / period + phase).mean(0)


def _frame(scene: Scene, now: Motion, t: int, size: int) -> np.ndarray:
    """One frame, [size, size, 3] uint8."""
    axis = ((np.arange(2 * size) + 0.5) / size - 1).astype(np.float32)
    sky_rows = int(np.searchsorted(axis, now.horizon))
    canvas = np.concatenate([_backdrop(scene, now, axis, axis[:sky_rows]), _ground(scene, now, axis, axis[sky_rows:])])
    _paint_things(canvas, scene, now, t)
    summed = canvas[::2, ::2] + canvas[::2, 1::2] + canvas[1::2, ::2] + canvas[1::2, 1::2]
    return np.clip(summed * np.float32(now.light / 4) + 0.5, 0, 255).astype(np.uint8)


def _backdrop(scene: Scene, now: Motion, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Sky, clouds and two ridges of hills, [len(v), len(u), 3] float32."""
    above, haze, hills = scene.palette[0], scene.palette[1], scene.palette[5]
    rise = np.clip((now.horizon - v) / 0.9, 0, 1)[:, None, None]
    azimuth = (u / F + now.heading).astype(np.float32)
    clouds = np.sin(3 * azimuth[None] + 14 * np.sqrt(rise[..., 0])) * np.sin(7 * azimuth[None] - 9 * rise[..., 0])
    sky = haze + (above - haze) * rise + 22 * (np.clip(clouds, 0, 1) * np.minimum(4 * rise[..., 0], 1))[..., None]
    for distance, waves in zip((0.55, 0.2), scene.hills, strict=True):
        ridge = 0.04 + sum(a * (1 + np.sin(f * azimuth + p)) * (1.2 - distance) for a, f, p in waves) / 2
        under = (now.horizon - v)[:, None] < ridge[None]
        sky = np.where(under[..., None], hills + (haze - hills) * distance, sky)
    return sky.astype(np.float32)


def _ground(scene: Scene, now: Motion, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Fields, road and lane marks, [len(v), len(u), 3] float32."""
    _, haze, field, field2, asphalt, _ = scene.palette
    z = (F * CAMERA_HEIGHT / np.maximum(v - now.horizon, 1e-3)).astype(np.float32)[:, None]
    along = z + np.float32(now.distance)
    x = u[None] * z / F - now.curvature * z**2 / 2 + now.sway  # lateral metres from our lane's centre
    x = x.astype(np.float32)
    across = np.abs(x - scene.centre)  # from the road's middle
    detail = 1 / (1 + (z / 14) ** 2)  # texture finer than a far pixel would only flicker
    coarse = 1 / (1 + (z / 60) ** 2)
    patches = _lookup(scene.texture, x / 5, along / 7) * coarse
    grain = _lookup(scene.texture, x / 0.7, along / 0.9) * detail
    image = field + (field2 - field) * (0.5 + 0.5 * patches)[..., None] + (13 * grain)[..., None]
    road = across < scene.half_width
    image = np.where((across < scene.half_width + 1.1)[..., None], 0.55 * image + 0.45 * asphalt, image)
    image = np.where(road[..., None], asphalt + (6 * grain + 5 * patches)[..., None], image)
    image += ((232 - asphalt) * (_marks(scene, across, along) * (0.25 + 0.75 * coarse))[..., None]) * road[..., None]
    fog = np.exp(-z / FOG)[..., None]
    return (haze + (image - haze) * fog).astype(np.float32)


def _marks(scene: Scene, across: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Where the road is painted, float32 0 or 1: solid edges and middle, dashes between lanes."""
    solid = (np.abs(across - scene.half_width + 0.4) < 0.13) | (np.abs(across - 0.15) < 0.1)
    lanes = (np.abs(across - 3.4) < 0.13) & (scene.half_width > 5) & (along % 9 < 4)
    return (solid | lanes).astype(np.float32)


def _lookup(texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The texture, repeated without end, at the integer parts of x and y."""
    rows, columns = texture.shape
    return texture[np.floor(x).astype(np.int32) % rows, np.floor(y).astype(np.int32) % columns]


def _paint_things(canvas: np.ndarray, scene: Scene, now: Motion, t: int) -> None:
    """Draw objects and cars onto `canvas` [2S, 2S, 3], the far ones first."""
    half = len(canvas) / 2
    z = scene.along + scene.speed * t - now.distance
    depth = np.clip(z, NEAR, FAR)
    u = F * (scene.aside + now.curvature * depth**2 / 2 - now.sway) / depth
    tall = F * scene.scale / depth
    seen = np.flatnonzero((z == depth) & (np.abs(u) < 1 + tall))
    foot = 1 + now.horizon + F * CAMERA_HEIGHT / depth
    tint = scene.palette[1] + (scene.tint - scene.palette[1]) * np.exp(-depth / FOG)[:, None]
    for i in seen[np.argsort(-z[seen])]:
        PAINTERS[scene.kind[i]](canvas, float(1 + u[i]) * half, float(foot[i]) * half, float(tall[i]) * half, tint[i])


def _box(canvas: np.ndarray, x: float, foot: float, wide: float, tall: float, tint: np.ndarray) -> None:
    """Fill an upright rectangle whose foot is centred on column `x` and row `foot`, in pixels of `canvas`."""
    rows = slice(max(round(foot - tall), 0), max(round(foot), 0))
    canvas[rows, max(round(x - wide / 2), 0) : max(round(x + wide / 2), 0)] = tint


def _blob(canvas: np.ndarray, x: float, y: float, wide: float, tall: float, tint: np.ndarray) -> None:
    """Fill an ellipse around (x, y), lit from above."""
    top, left = max(int(y - tall / 2), 0), max(int(x - wide / 2), 0)
    part = canvas[top : max(int(y + tall / 2) + 1, 0), left : max(int(x + wide / 2) + 1, 0)]
    rows, columns = (np.arange(n) for n in part.shape[:2])
    height = (rows + top + 0.5 - y)[:, None] / (tall / 2)
    inside = height**2 + ((columns + left + 0.5 - x)[None] / (wide / 2)) ** 2 < 1
    np.copyto(part, tint * (1 - 0.25 * height)[..., None], where=inside[..., None])


def _post(canvas: np.ndarray, x: float, foot: float, tall: float, tint: np.ndarray) -> None:
    _box(canvas, x, foot, max(0.06 * tall, 1), tall, tint)
    _box(canvas, x, foot - 0.7 * tall, max(0.06 * tall, 1), 0.2 * tall, tint * 0.3)


def _tree(canvas: np.ndarray, x: float, foot: float, tall: float, tint: np.ndarray) -> None:
    _box(canvas, x, foot, max(0.09 * tall, 1), 0.5 * tall, tint * 0.6)
    _blob(canvas, x, foot - 0.64 * tall, 0.62 * tall, 0.72 * tall, tint)


def _house(canvas: np.ndarray, x: float, foot: float, tall: float, tint: np.ndarray) -> None:
    _box(canvas, x, foot, 1.3 * tall, 0.65 * tall, tint)
    for step in range(5):  # a gable of narrowing courses
        _box(canvas, x, foot - (0.65 + 0.07 * step) * tall, (1.45 - 0.28 * step) * tall, 0.08 * tall + 1, tint * 0.55)
    for offset in (-0.35, 0.35):
        _box(canvas, x + offset * tall, foot - 0.25 * tall, 0.22 * tall, 0.2 * tall, tint * 0.35)


def _car(canvas: np.ndarray, x: float, foot: float, tall: float, tint: np.ndarray) -> None:
    _box(canvas, x, foot, 1.2 * tall, 0.2 * tall, tint * 0.2)
    _box(canvas, x, foot - 0.15 * tall, 1.25 * tall, 0.45 * tall, tint)
    _box(canvas, x, foot - 0.58 * tall, 1.0 * tall, 0.42 * tall, tint * 0.45)
    for offset in (-0.5, 0.5):
        lamp = np.minimum(tint + 120, 255)
        _box(canvas, x + offset * tall, foot - 0.4 * tall, max(0.16 * tall, 1), max(0.12 * tall, 1), lamp)


PAINTERS = (_post, _tree, _house, _car)
