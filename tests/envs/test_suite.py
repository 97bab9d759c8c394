"""The simulator's child process, with a stand-in for the simulation: answers, errors and death all reach the parent; no
OpenGL here.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import semopo_tf
from semopo_tf.envs import rollout, suite
from semopo_tf.errors import ConfigError, SimulatorError
from semopo_tf.types import Observation

ROOT = Path(semopo_tf.__file__).parents[1]
FAKE = '''
import os, time
import numpy as np
from semopo_tf.errors import ConfigError, SimulatorError
from semopo_tf.envs.suite import Facts, View


class Fake:
    """Image and reward encode (seed, step); the first entry of a control selects a failure."""

    def __init__(self, name, size, action_repeat, camera, sky, render="full", body=False):
        if name == "unknown_task":
            raise ConfigError("unknown task 'unknown_task'")
        if name == "broken_import":
            raise ImportError("libGL.so.1: cannot open shared object file")
        self.size, self.sky = size, sky
        self.facts = Facts(np.array([-1.0, 0.0]), np.array([1.0, 2.0]), camera, 2)

    def reset(self, seed):
        self.seed, self.time = seed, 0
        return self.view(0.0)

    def step(self, control):
        trouble = {1: self.die, 2: self.fail, 3: self.crash, 4: self.hang}.get(int(control[0]))
        if trouble:
            trouble()
        self.time += 1
        return self.view(float(control[1]))

    def view(self, reward):
        image = np.full((self.size, self.size, 3), (self.seed, self.time, 7), np.uint8)
        sky, state = image[..., 0] > 3 if self.sky else None, np.array([self.seed, self.time], np.float64)
        return View(image, sky, state, reward, self.time == 0, self.time == 3, False)

    def die(self):
        os._exit(9)

    def fail(self):
        raise SimulatorError("the physics diverged")

    def crash(self):
        raise ZeroDivisionError("a mistake in the simulator")

    def hang(self):
        time.sleep(60)
'''
SERVER = [
    sys.executable,
    "-c",
    "import sys, fake_simulation; from semopo_tf.envs import suite; suite.Simulation = fake_simulation.Fake; "
    "suite.serve(int(sys.argv[1]))",
]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Makes simulators whose child runs the stand-in."""
    (tmp_path / "fake_simulation.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(suite, "SERVER", SERVER)
    monkeypatch.setattr(suite, "choose_backend", lambda: "none")
    made = []

    def make(name="fake_task", sky=False):
        made.append(suite.Simulator(name, size=4, action_repeat=1, camera=5, sky=sky))
        return made[-1]

    yield make
    for simulator in made:
        simulator.close()


def ask(simulator, method, argument):
    simulator.send(method, argument)
    return simulator.receive()


def test_the_child_gives_what_the_simulation_gives(start):
    import fake_simulation

    remote, local = start(sky=True), fake_simulation.Fake("fake_task", 4, 1, 5, True)
    for field, expected in zip(remote.facts, local.facts):
        np.testing.assert_array_equal(field, expected)
    controls = [[0.0, 0.1 * step] for step in range(3)]
    for seed in (2, 200):
        pairs = [(ask(remote, "reset", seed), local.reset(seed))] + [
            (ask(remote, "step", control), local.step(np.array(control))) for control in controls
        ]
        for received, expected in pairs:
            for field, value in zip(received, expected):
                np.testing.assert_array_equal(field, value)
        assert [view.is_last for view, _ in pairs] == [False, False, False, True]


def test_a_child_holds_neither_tensorflow_nor_cuda(start):
    """So a simulator takes no memory of a GPU that trains."""
    simulator = start()
    ask(simulator, "reset", 0)
    mapped = Path(f"/proc/{simulator._child.process.pid}/maps").read_text()
    assert "python" in mapped and not any(name in mapped for name in ("tensorflow", "libcuda", "libcudart"))


def test_several_children_work_at_the_same_time(start):
    simulators = [start() for _ in range(2)]
    assert len({simulator._child.process.pid for simulator in simulators}) == 2
    for seed, simulator in enumerate(simulators):
        simulator.send("reset", seed)
    assert [simulator.receive().image[0, 0, 0] for simulator in simulators] == [0, 1]


def test_an_error_in_the_child_arrives_with_its_class_and_message_and_the_child_goes_on(start):
    simulator = start()
    ask(simulator, "reset", 0)
    with pytest.raises(SimulatorError, match=r"^the physics diverged$"):
        ask(simulator, "step", [2.0, 0.0])
    assert ask(simulator, "step", [0.0, 0.5]).reward == 0.5


def test_settings_that_the_simulation_refuses_are_refused_here(start):
    with pytest.raises(ConfigError, match=r"^unknown task 'unknown_task'$"):
        start("unknown_task")


def test_R19_a_child_that_dies_is_reported_with_the_task_and_its_status(start):
    simulator = start()
    ask(simulator, "reset", 0)
    for _ in range(2):  # and again, instead of a hang
        with pytest.raises(
            SimulatorError,
            match=r"^fake_task: the simulator's process ended with status 9 .*run python -m semopo_tf\.doctor$",
        ):
            ask(simulator, "step", [1.0, 0.0])


def test_R19_a_child_killed_between_two_steps_is_reported_and_replaced_at_the_next_reset(start):
    simulator = start()
    ask(simulator, "reset", 0)
    os.kill(simulator._child.process.pid, signal.SIGKILL)
    simulator._child.process.wait()
    started = time.monotonic()
    with pytest.raises(SimulatorError, match=r"^fake_task: the simulator's process ended with status -9"):
        ask(simulator, "step", [0.0, 0.0])
    assert time.monotonic() - started < 5
    assert ask(simulator, "reset", 3).image[0, 0, 0] == 3


def test_R19_a_child_is_replaced_at_most_three_times(start):
    simulator = start()
    for _ in range(suite.RESTARTS + 1):
        ask(simulator, "reset", 0)
        with pytest.raises(SimulatorError, match="ended with status 9"):
            ask(simulator, "step", [1.0, 0.0])
    with pytest.raises(SimulatorError, match="ended with status 9"):
        ask(simulator, "reset", 0)


def test_E02_R19_dying_hanging_and_diverging_children_cost_an_attempt_each(start, monkeypatch):
    """Through `rollout.play`, with a policy whose first entry selects the failure, in the first episode only."""

    class World:
        action_size, image_shape = 2, (4, 4, 3)

        def __init__(self):
            self.simulator = start()

        def reset(self, seed):
            self.simulator.send("reset", seed % 100)
            return self.receive()

        def send(self, action):
            self.simulator.send("step", (5 * action).tolist())

        def receive(self):
            view = self.simulator.receive()
            return Observation(view.image, view.reward, view.is_first, view.is_last, view.is_terminal)

    class Troublemaker:
        def initial(self, episodes):
            return None

        def __call__(self, image, state, seeds, step):
            trouble = {11: 1, rollout.retry_seed(11, 1): 2, rollout.retry_seed(11, 2): 4}
            return np.array([[trouble.get(int(seed), 0) / 5 + 0.01, 0.1] for seed in seeds]), None

    monkeypatch.setattr(suite, "ANSWER_SECONDS", 1.0)
    discarded = []
    episodes = list(rollout.play([World(), World()], Troublemaker(), [11, 12, 13], discarded))
    assert [len(episode.reward) for episode in episodes] == [4, 4, 4]
    assert [(entry.seed, entry.attempt) for entry in discarded] == [(11, 0), (11, 1), (11, 2)]
    for entry, words in zip(discarded, ("ended with status 9", "the physics diverged", "no answer"), strict=True):
        assert words in entry.reason


def test_E02_the_suites_own_error_is_recognised():
    from dm_control.rl.control import PhysicsError

    with pytest.raises(SimulatorError, match=r"the physics diverged \(mjWARN_BADQACC\)"), suite.physics_errors():
        raise PhysicsError("mjWARN_BADQACC")


def test_a_mistake_inside_the_simulator_is_quoted(start):
    simulator = start()
    ask(simulator, "reset", 0)
    with pytest.raises(SimulatorError, match=r"status 1 \(ZeroDivisionError: a mistake in the simulator\)"):
        ask(simulator, "step", [3.0, 0.0])
    with pytest.raises(SimulatorError, match=r"status 1 \(ImportError: libGL\.so\.1: cannot open shared object file\)"):
        start("broken_import")


def test_R19_a_simulator_that_does_not_answer_is_given_up(start, monkeypatch):
    simulator = start()
    ask(simulator, "reset", 0)
    monkeypatch.setattr(suite, "ANSWER_SECONDS", 0.2)
    with pytest.raises(
        SimulatorError, match=r"^fake_task: no answer from the simulator within 0 s; run the command again$"
    ):
        ask(simulator, "step", [4.0, 0.0])
    assert simulator._child.process.wait(timeout=5) == -signal.SIGKILL


def test_closing_twice_is_closing_once_and_nothing_works_after_it(start):
    simulator = start()
    process = simulator._child.process
    simulator.close()
    assert process.poll() == 0
    simulator.close()
    with pytest.raises(SimulatorError, match=r"^fake_task: the environment is closed; make a new one$"):
        simulator.send("reset", 0)
    with pytest.raises(SimulatorError, match=r"^fake_task: the environment is closed; make a new one$"):
        simulator.receive()


def test_the_child_ends_with_its_parent(tmp_path):
    """A killed run leaves no simulators behind."""
    (tmp_path / "fake_simulation.py").write_text(FAKE)
    script = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom semopo_tf.envs import suite\n"
        f"suite.SERVER, suite.choose_backend = {SERVER!r}, lambda: 'none'\n"
        "simulator = suite.Simulator('fake_task', size=4, action_repeat=1, camera=0, sky=False)\n"
        "print(simulator._child.process.pid, flush=True)\nsys.stdin.readline()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 60
    while running(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not running(child)


def running(process: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
