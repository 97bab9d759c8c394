"""Choosing an OpenGL backend that works without a display, and saying what to install when none does."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from semopo_tf.errors import SimulatorError

BACKENDS = ("egl", "osmesa")
CHECKED = "SEMOPO_TF_GL_CHECKED"  # the backend that rendered in a probe; inherited by worker processes
PROBE_SECONDS = 60
INSTALL_GL = "apt-get install libegl1 libgl1 libosmesa6"
INSTALL_SIMULATOR = "pip install dm_control 'mujoco>=3.17,<4'"
PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom size="1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(data)
print("rendered" if renderer.render().any() else "black image", flush=True)
renderer.close()
"""


def choose_backend() -> str:
    """Set `MUJOCO_GL` to a backend that renders here and return it. Call before the simulator is imported.

    Each candidate is tried in a child process, because a broken OpenGL library may abort the whole process. A value the
    user has set is tried alone and never replaced. The environment keeps the result, so that neither a second call nor
    a worker process tries again.

    Raises:
      SimulatorError: when no candidate renders.
    """
    chosen = os.environ.get("MUJOCO_GL") or _imported_backend()
    if chosen and chosen == os.environ.get(CHECKED):
        return chosen
    failures = []
    for backend in (chosen,) if chosen else BACKENDS:
        failure = probe(backend)
        if failure is None:
            os.environ["MUJOCO_GL"] = os.environ[CHECKED] = backend
            return backend
        failures.append(f"{backend}: {failure}")
    reasons = "; ".join(failures)
    if chosen:
        remedy = "unset MUJOCO_GL" if os.environ.get("MUJOCO_GL") else "set MUJOCO_GL=egl before dm_control is imported"
        raise SimulatorError(
            f"the OpenGL backend in use does not render here ({reasons}); {remedy} or run {INSTALL_GL}"
        )
    raise SimulatorError(f"no OpenGL backend renders here ({reasons}); run {INSTALL_GL}")


def _imported_backend() -> str:
    """The backend of a simulator that is already imported, which can no longer be changed; empty without one."""
    return getattr(sys.modules.get("dm_control._render"), "BACKEND", None) or ""


def probe(backend: str) -> str | None:
    """Render a tiny image with `backend` in a child process. Returns None when it works, else the reason."""
    command, environment = [sys.executable, "-c", PROBE], os.environ | {"MUJOCO_GL": backend}
    try:
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_SECONDS} s"
    # The exit status is no evidence: OpenGL libraries may fail while the interpreter closes, after a good image.
    if "rendered" in result.stdout:
        return None
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else f"exit status {result.returncode}"


@contextlib.contextmanager
def simulator_errors(where: str) -> Iterator[None]:
    """Turn the failures of a missing or mismatched simulator into one line with its remedy.

    Raises:
      SimulatorError: beginning with `where`.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise SimulatorError(f"{where}: the package {error.name} is not installed; run {INSTALL_SIMULATOR}") from error
    except AttributeError as error:
        # dm_control wraps every field of mujoco's structures by name; a mujoco it does not know lacks some (4.0:
        # flex_vertedge).
        if not any(name in str(error) for name in ("MjModel", "MjData", "mujoco")):
            raise
        raise SimulatorError(
            f"{where}: dm_control does not work with the installed mujoco ({error}); run pip install 'mujoco>=3.17,<4'"
        ) from error
