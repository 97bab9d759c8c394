"""The DeepMind Control suite in a process of its own.

TensorFlow and the software OpenGL drivers both carry LLVM, and a process that loads the two crashes in whichever comes
second. So nothing in this package imports the simulator in the calling process: a `Simulator` starts a child that does.
A crash of the renderer becomes an error message, and several simulators draw at the same time.
"""

import contextlib
import difflib
import json
import os
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from semopo_tf.envs.rendering import choose_backend, simulator_errors
from semopo_tf.envs.rollout import ANSWER_SECONDS, bounded_action
from semopo_tf.errors import ConfigError, SemopoError, SimulatorError
from semopo_tf.storage.child import ENDING_SECONDS, Child, send

DEFAULT_CAMERA = {"quadruped": 2}  # every other domain: 0
# Where the usual camera looks down, the floor fills the image and there is no sky. It counts as sky there, as in the
# published environments, whose humanoid stands on a floor that the background replaces.
FLOOR_IS_SKY = frozenset(("humanoid", "humanoid_CMU", "dog", "fish", "point_mass", "reacher", "swimmer"))
RESTARTS = 3  # of a child that died or hung, in the life of a simulator
ERRORS = {kind.__name__: kind for kind in (ConfigError, SimulatorError)}  # what a simulation raises
FAST_SHADOWS = 512  # pixels of the shadow map; the suite's own models have 2048
RENDERS = ("full", "fast", "plain")  # `set_quality`
UNLIMITED = 1e9  # the suite reports +-1e10 for an actuator without limits
NO_IMAGE, NO_BODY = np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), bool)
SERVER = [sys.executable, "-c", "import sys; from semopo_tf.envs.suite import serve; serve(int(sys.argv[1]))"]


class Facts(NamedTuple):
    """What a simulation says about itself."""

    low: np.ndarray  # [A] float64, bounds of the controls
    high: np.ndarray  # [A] float64
    camera: int  # index of the camera in use
    state_size: int


class View(NamedTuple):
    """One record as the simulator gives it."""

    image: np.ndarray  # [size, size, 3] uint8
    sky: np.ndarray | None  # [size, size] bool, if wanted: where the camera sees nothing
    state: np.ndarray  # [S] float64, the task's own observations one after another: joints, speeds, touch
    reward: float
    is_first: bool
    is_last: bool
    is_terminal: bool
    body: np.ndarray = NO_BODY  # [size, size] bool, if wanted: where the camera sees neither sky nor floor


class Simulator:
    """A suite task in a child process. Every method raises SimulatorError when the child fails or does not answer.

    A size of 0 pixels is a simulation that draws nothing and needs no OpenGL.
    """

    def __init__(
        self,
        name: str,
        *,
        size: int,
        action_repeat: int,
        camera: int,
        sky: bool,
        render: str = "full",
        body: bool = False,
    ) -> None:
        """Args: name: `<domain>_<task>`; sky: also draw where nothing is seen; render: one of `RENDERS`; body: also
        draw where the robot is seen. Raises ConfigError for settings that the task does not have.
        """
        self.name = name
        self._settings = (name, size, action_repeat, camera, sky, render, body)
        self._surroundings = {} if size else {"MUJOCO_GL": "disabled"}
        if size:
            choose_backend()
        self._restarts = 0
        self._start()

    def _start(self) -> None:
        self._broken = False
        self._child = Child(SERVER, environment=self._surroundings)
        self.send("start", *self._settings)
        try:
            answer = self._answer()
        except SemopoError:
            self.close()
            raise
        self.facts = Facts(**answer["arrays"], camera=answer["camera"], state_size=answer["state_size"])

    def send(self, method: str, *arguments: Any) -> None:
        """Begin `reset` (seed) or `step` (control, a list of A numbers) in the child; `receive` returns its View.

        A `reset` starts a new child in place of one that died or hung, up to `RESTARTS` times.
        """
        if method == "reset" and self._broken and self._restarts < RESTARTS:
            self._restarts += 1
            self.close()
            self._start()
        try:
            self._child.send([method, *arguments])
        except OSError as error:
            raise SimulatorError(self._ending()) from error

    def receive(self) -> View:
        """Wait for the answer to the last `send`. Errors of the child are raised here."""
        answer = self._answer()
        return View(**({"sky": None} | answer["arrays"] | answer["view"]))

    def _answer(self) -> dict[str, Any]:
        try:
            answer = self._child.receive(ANSWER_SECONDS)
        except TimeoutError as error:
            self._child.process.kill()
            self._broken = True
            raise SimulatorError(
                f"{self.name}: no answer from the simulator within {ANSWER_SECONDS:.0f} s; run the command again"
            ) from error
        except (EOFError, OSError) as error:
            raise SimulatorError(self._ending()) from error
        if "error" in answer:
            raise ERRORS[answer["class"]](answer["error"])
        return answer

    def close(self) -> None:
        """End the child, for good: no `reset` starts another. May be called twice."""
        self._broken = False
        self._child.close(ENDING_SECONDS)

    def _ending(self) -> str:
        """The line for a child that does not answer any more."""
        if self._child.closed:
            return f"{self.name}: the environment is closed; make a new one"
        self._broken = True
        code, last = self._child.ended()
        return (
            f"{self.name}: the simulator's process ended with status {code} ({last[:200]}); run python -m "
            "semopo_tf.doctor"
        )


def serve(descriptor: int) -> None:
    """The child's whole life: answer requests until the other end is closed."""
    pipe = Connection(descriptor)
    simulation: Simulation | None = None
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            method, *arguments = json.loads(pipe.recv_bytes())
            try:
                if simulation is None:
                    simulation = Simulation(*arguments)
                    low, high, camera, state_size = simulation.facts
                    bounds = {"low": low, "high": high}
                    send(pipe, {"camera": camera, "state_size": state_size, "arrays": bounds})
                else:
                    view = simulation.reset(*arguments) if method == "reset" else simulation.step(np.array(*arguments))
                    record = view._asdict()
                    names = ("image", "sky", "state", "body")
                    arrays = {name: array for name in names if (array := record.pop(name)) is not None}
                    send(pipe, {"view": record, "arrays": arrays})
            except SemopoError as error:
                send(pipe, {"error": str(error), "class": type(error).__name__})
    # OpenGL libraries print errors of their own while the interpreter closes: leave without them.
    os._exit(0)


class Simulation:
    """The task itself; lives in the child. An episode is a function of (seed, controls) alone."""

    def __init__(
        self,
        name: str,
        size: int,
        action_repeat: int,
        camera: int,
        sky: bool,
        render: str = "full",
        body: bool = False,
    ) -> None:
        """Args: as `Simulator`. Raises ConfigError for wrong settings, SimulatorError without a working simulator."""
        # The suite accepts only this old generator and keeps it: seeding it again in `reset` repeats an episode.
        self._random = np.random.RandomState(0)
        with simulator_errors(name):
            from dm_control import suite

            domain, task = find_task(name, suite.ALL_TASKS)
            self._env = suite.load(domain, task, task_kwargs={"random": self._random})
        spec = self._env.action_spec()
        camera = DEFAULT_CAMERA.get(domain, 0) if camera == -1 else camera
        low, high = (np.full(spec.shape, bound, np.float64) for bound in (spec.minimum, spec.maximum))
        sizes = (int(np.prod(each.shape)) for each in self._env.observation_spec().values())
        self.facts = Facts(low, high, camera, sum(sizes))
        self._picture = None
        set_quality(self._env.physics.model, render)  # before anything is drawn
        if size:
            self._picture = Picture(self._env.physics, size, camera, floor_is_sky=domain in FLOOR_IS_SKY)
        self._repeat = action_repeat
        self._sky, self._body = sky, body

    def reset(self, seed: int) -> View:
        """Begin the episode of `seed`."""
        self._random.seed(np.random.SeedSequence(seed).generate_state(8))
        with physics_errors():
            step = self._env.reset()
        return self._view(0.0, step)

    def step(self, control: np.ndarray) -> View:
        """Apply `control` [A] for `action_repeat` simulator steps, or until the episode ends."""
        total = 0.0
        with physics_errors():
            for _ in range(self._repeat):
                step = self._env.step(control)
                total += step.reward or 0.0
                if step.last():
                    break
        return self._view(total, step)

    def _view(self, reward: float, step: Any) -> View:
        image, sky, body = NO_IMAGE, None, NO_BODY
        if self._picture:
            if self._sky or self._body:
                seen_sky, seen_body = self._picture.masks()
                sky = seen_sky if self._sky else None
                body = seen_body if self._body else NO_BODY
            image = self._picture.image()
        state = np.concatenate([np.ravel(each) for each in step.observation.values()]).astype(np.float64)
        terminal = bool(step.last() and step.discount == 0)
        return View(image, sky, state, float(reward), step.first(), step.last(), terminal, body)


def control_of(action: np.ndarray, facts: Facts) -> np.ndarray:
    """Map an action [A] in [-1, 1] to the suite's bounds, [A] float64. An actuator without limits takes it as it is.

    Raises:
      NumericalError: when the action is not finite, out of range or of another shape.
    """
    action = bounded_action(action, len(facts.low))
    limited = (np.abs(facts.low) < UNLIMITED) & (np.abs(facts.high) < UNLIMITED)
    return np.where(limited, facts.low + (action + 1) / 2 * (facts.high - facts.low), action)


def set_quality(model: Any, render: str) -> None:
    """Change a model so that it is drawn as `render` says: `fast` with a coarser shadow, `plain` with neither shadows
    nor reflections.
    """
    if render == "fast":
        model.vis.quality.shadowsize = FAST_SHADOWS
    elif render == "plain":
        model.light_castshadow[:] = False
        model.mat_reflectance[:] = 0


def find_task(name: str, known: list[tuple[str, str]]) -> tuple[str, str]:
    """Split `<domain>_<task>` where both may hold underscores, e.g. `ball_in_cup_catch`.

    Raises:
      ConfigError: with the nearest known names.
    """
    tasks = {f"{domain}_{task}": (domain, task) for domain, task in known}
    if name not in tasks:
        near = difflib.get_close_matches(name, tasks, cutoff=0.4) or list(tasks)[:3]
        raise ConfigError(f"unknown task {name!r} of the DeepMind Control suite; nearest known: {', '.join(near)}")
    return tasks[name]


@contextlib.contextmanager
def physics_errors() -> Iterator[None]:
    """Raises SimulatorError when the physics diverge, which the suite reports as its own error."""
    from dm_control.rl.control import PhysicsError

    try:
        yield
    except PhysicsError as error:
        raise SimulatorError(f"the physics diverged ({error}); play this episode with another seed") from error


class Picture:
    """One camera's view, as colours and as the region where nothing is seen.

    The camera and its scene are kept: building them for every image, as the simulator's own `render` does, costs about
    3 ms. The depth buffer cannot tell the sky, which is drawn as a box in front of the far plane. A second rendering
    with object identities instead of colours can; being unlit, it takes about a twentieth of the time of the first.
    """

    def __init__(self, physics: Any, size: int, camera: int, *, floor_is_sky: bool) -> None:
        """Raises ConfigError for a camera that the model, or a size that the simulator's buffer, does not have."""
        from dm_control import mujoco

        cameras, limits = physics.model.ncam, physics.model.vis.global_
        if not 0 <= camera < cameras:
            raise ConfigError(
                f"--camera: expected an index below {cameras}, or -1 for the usual camera, received {camera}"
            )
        if size > min(limits.offwidth, limits.offheight):
            raise ConfigError(
                f"--size: expected at most the simulator's buffer of {limits.offwidth} x {limits.offheight} pixels, "
                f"received {size}; choose a smaller --size, half of it with --render plain, which draws twice as large"
            )
        self._camera = mujoco.Camera(physics, height=size, width=size, camera_id=camera)
        self._geom = int(mujoco.mjtObj.mjOBJ_GEOM)
        planes = (physics.model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE) & (physics.model.geom_bodyid == 0)
        self._floors = np.flatnonzero(planes)  # indices of geoms
        self._floor_is_sky = floor_is_sky

    def image(self) -> np.ndarray:
        """[size, size, 3] uint8, a copy: the camera draws every image into the same buffer, upside down."""
        return self._camera.render().copy()

    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Sky and body, each [size, size] bool.

        The sky is where the camera's ray hits nothing. Robot, floor and targets are false, translucent ones too. The
        body is what is neither sky nor floor.
        """
        hit, kind = np.moveaxis(self._camera.render(segmentation=True), -1, 0)
        nothing, floor = kind == -1, (kind == self._geom) & np.isin(hit, self._floors)
        return nothing | floor if self._floor_is_sky else nothing, ~(nothing | floor)
