import subprocess

import pytest

from semopo_tf.envs import rendering
from semopo_tf.errors import SimulatorError


@pytest.fixture
def machine(monkeypatch):
    """An environment without settings and a record of the backends tried; `works` decides which of them render."""
    tried, works = [], set()
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv(rendering.CHECKED, raising=False)
    monkeypatch.delitem(rendering.sys.modules, "dm_control._render", raising=False)

    def probe(backend):
        tried.append(backend)
        return None if backend in works else "no such library"

    monkeypatch.setattr(rendering, "probe", probe)
    monkeypatch.setattr(rendering.os, "environ", dict(rendering.os.environ))
    return tried, works


def test_E01_backends_are_tried_in_order_and_once(machine):
    tried, works = machine
    works.add("osmesa")
    assert rendering.choose_backend() == "osmesa"
    assert tried == ["egl", "osmesa"]
    assert rendering.os.environ["MUJOCO_GL"] == "osmesa"
    assert rendering.choose_backend() == "osmesa"
    assert tried == ["egl", "osmesa"]


def test_E01_choice_of_the_user_is_kept(machine):
    tried, works = machine
    works.update(("egl", "osmesa"))
    rendering.os.environ["MUJOCO_GL"] = "osmesa"
    assert rendering.choose_backend() == "osmesa"
    assert tried == ["osmesa"]
    works.clear()
    rendering.os.environ["MUJOCO_GL"] = "glfw"
    with pytest.raises(
        SimulatorError, match=r"glfw: no such library\); unset MUJOCO_GL or run apt-get install libegl1"
    ):
        rendering.choose_backend()
    assert rendering.os.environ["MUJOCO_GL"] == "glfw"


def test_E01_none_works(machine):
    with pytest.raises(
        SimulatorError,
        match=r"no OpenGL backend renders here \(egl: no such library; osmesa: .*apt-get install libegl1 libgl1",
    ):
        rendering.choose_backend()


def test_E01_probe_survives_a_backend_that_fails():
    assert "MUJOCO_GL" in rendering.probe("nonsense") or "nonsense" in rendering.probe("nonsense")


def test_E01_probe_does_not_wait_for_ever(monkeypatch):
    def run(*args, timeout, **options):
        raise subprocess.TimeoutExpired(args[0], timeout)

    monkeypatch.setattr(rendering.subprocess, "run", run)
    assert rendering.probe("egl") == "no answer within 60 s"


def test_mujoco_of_another_generation():
    with (
        pytest.raises(
            SimulatorError, match=r"walker: dm_control does not work .*flex_vertedge.*pip install 'mujoco>=3.17,<4'"
        ),
        rendering.simulator_errors("walker"),
    ):
        raise AttributeError("'MjModel' object has no attribute 'flex_vertedge'")


def test_E05_missing_simulator():
    with (
        pytest.raises(SimulatorError, match="the package dm_control is not installed; run pip install dm_control"),
        rendering.simulator_errors("walker"),
    ):
        raise ModuleNotFoundError("No module named 'dm_control'", name="dm_control")


def test_other_errors_pass():
    with pytest.raises(AttributeError, match="spam"), rendering.simulator_errors("walker"):
        raise AttributeError("'list' object has no attribute 'spam'")


def test_E01_a_backend_that_aborts_its_process_is_one_failure_with_its_last_words(monkeypatch):
    """As a broken OpenGL library does."""
    monkeypatch.setattr(
        rendering, "PROBE", "import os, sys; print('libEGL: broken', file=sys.stderr, flush=True); os.abort()"
    )
    assert rendering.probe("egl") == "libEGL: broken"
    monkeypatch.setattr(rendering, "PROBE", "import os; os.abort()")
    assert rendering.probe("egl") == "exit status -6"
