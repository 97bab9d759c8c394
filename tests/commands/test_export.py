"""An exported policy acts bit for bit as its run does, in a process that never imports the package."""

import base64
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tiny

import semopo_tf
from semopo_tf import config as configuration
from semopo_tf import export
from semopo_tf.data.episodes import write_episode
from semopo_tf.envs import tasks
from semopo_tf.envs.rollout import play
from semopo_tf.errors import CheckpointError, ConfigError, StorageError
from semopo_tf.run import build, checkpoints
from semopo_tf.run.trained import load_run
from semopo_tf.storage.files import Files, remedy

ROOT = Path(semopo_tf.__file__).parents[1]
CASES = {  # (overlays and flags, phase of the checkpoint that is exported)
    "gaussian": (["semopo"], "policy"),
    "categorical": (["released", "semopo"], "policy"),
    "joint": (["offline_dv2", "--precision", "mixed_bfloat16"], "model"),
    "lompo": (["lompo"], "policy"),
    "frames": (["drq_bc", "--transitions.resize", "36", "--drq.filters", "8", "--actor.units", "32"], "policy"),
}
LATE = 7  # the frame at which the last episode of those side by side begins

# Only NumPy and TensorFlow: the example as a script, then all episodes side by side, the last one begun later than the
# others.
CHILD = """
import contextlib, io, json, runpy, sys
from pathlib import Path
sys.modules["semopo_tf"] = None  # an import of it fails
example, late, cases = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
seed = json.loads(Path(cases[0], "seeds.json").read_text())[0]
for number, rest in enumerate([[f"{cases[0]}/0.npz", str(seed)], []]):
    sys.argv = [example, f"{cases[0]}/export", *rest]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(example, run_name="__main__")
    Path(f"printed-{number}.txt").write_text(printed.getvalue())
import numpy as np
import tensorflow as tf
for case in map(Path, cases):
    seeds = json.loads((case / "seeds.json").read_text())
    policy = tf.saved_model.load(str(case / "export"))
    initial, act = policy.signatures["initial"], policy.signatures["act"]
    frames = np.stack([np.load(case / f"{number}.npz")["image"] for number in range(len(seeds))])
    state, actions = initial(episodes=tf.constant(len(seeds))), []
    for time in range(frames.shape[1]):
        if time == late:
            fresh = initial(episodes=tf.constant(1))
            state = {name: tf.concat([rows[:-1], fresh[name]], 0) for name, rows in state.items()}
        image = np.concatenate([frames[:-1, time], frames[-1:, time - late if time >= late else 0]])
        state = act(image=tf.constant(image), seed=tf.constant(seeds, tf.int64), **state)
        actions.append(state["action"].numpy())
    np.save(case / "actions.npy", np.stack(actions, 1))
"""


def make_run(logdir, flags, phase):
    """A run directory as training leaves it, its weights random, with a newer checkpoint that no one exports."""
    config = configuration.load(["--configs", "exbmdp_point", "debug", *flags])
    sizes = {"image_size": config.env.size, "action_size": 2, "episodes": 2, "transitions": 30}
    learner = build.make_learner(config, **sizes)
    logdir.mkdir()
    (logdir / "config.yaml").write_text(config.to_yaml())
    (logdir / "dataset_manifest.json").write_text(json.dumps(sizes | {"card": None, "files": []}))
    for step in (12, 13):
        tiny.randomise(acting(learner), np.random.default_rng(step))
        state = {"metrics_size": 0, "timing_size": 0, "sums": [], "count": 0}
        checkpoints.save(logdir, phase, step, tiny.snapshot(learner.variables()), state)
    return logdir


def acting(learner):
    """The variables that acting may need, by the names that a checkpoint has for them."""
    if hasattr(learner, "world_model"):
        actor = learner.agent if hasattr(learner, "agent") else learner.actor_critic
        values = {f"model/{key}": x for key, x in learner.world_model.trained.items()}
        return values | {f"policy/{key}": x for key, x in actor.actor_variables.items()}
    return {key: x for key, x in learner.variables().items() if key.startswith(("encoder/", "actor/"))}


def record(run, folder):
    """Three episodes as evaluate.py plays them."""
    seeds = build.episode_seeds(run.config.eval.seed, 3)
    environment = tasks.make(run.config.task, **build.environment_settings(run.config, None))
    episodes = list(play([environment], run.policy, seeds))
    for number, episode in enumerate(episodes):
        write_episode(folder / f"{number}.npz", episode)
    (folder / "seeds.json").write_text(json.dumps(seeds))
    return np.stack([episode.action for episode in episodes])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """{case: (folder with run, export, episodes and what the child made of them, run, actions of evaluate.py [3, L,
    A])}
    """
    root, found = tmp_path_factory.mktemp("export"), {}
    for case, (flags, phase) in CASES.items():
        (root / case).mkdir()
        logdir, checkpoint = make_run(root / case / "run", flags, phase), f"ckpt-{phase}-000000012"
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert (
                export.main(["--logdir", str(logdir), "--out", str(root / case / "export"), "--checkpoint", checkpoint])
                == 0
            )
        warned = f"warning: {checkpoint} is from the model phase: its policy is untrained\n" if phase == "model" else ""
        assert printed.getvalue() == f"{warned}{root / case / 'export'}: the policy of {logdir}, {checkpoint}\n"
        run = load_run(logdir, checkpoint)
        found[case] = (root / case, run, record(run, root / case))
    words = [sys.executable, "-c", CHILD, str(ROOT / "examples" / "act.py"), str(LATE), *CASES]
    clean = {key: value for key, value in os.environ.items() if key != "TF_ENABLE_ONEDNN_OPTS"}  # the example sets it
    done = subprocess.run(words, cwd=root, env=clean, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return found


def test_the_example_gives_the_actions_of_evaluate(exported):
    folder, _, actions = exported["gaussian"]
    printed, of_noise = (np.loadtxt(folder.parent / f"printed-{number}.txt", np.float32) for number in (0, 1))
    np.testing.assert_array_equal(printed[:-1], actions[0, 1:])  # it acts on the last frame too
    assert np.abs(np.diff(printed, axis=0)).max() > 0.01
    assert of_noise.shape == (10, 2)


@pytest.mark.parametrize("case", CASES)
def test_episodes_side_by_side_give_the_same_actions_whenever_each_begins(exported, case):
    folder, _, actions = exported[case]
    received = np.load(folder / "actions.npy")
    np.testing.assert_array_equal(received[:2, :-1], actions[:2, 1:])
    np.testing.assert_array_equal(received[2, LATE:], actions[2, 1 : received.shape[1] - LATE + 1])
    assert (actions[0] != actions[1]).any()


@pytest.mark.parametrize("case", CASES)
def test_only_what_acting_needs_is_exported(exported, case):
    folder, run, _ = exported[case]
    values = acting(run.learner)
    if hasattr(run.learner, "world_model"):
        name = run.learner.world_model.main.name
        needed = (f"model/{name}_encoder/", f"model/{name}_rssm/", "policy/")
        values = {key: x for key, x in values.items() if key.startswith(needed) and "/prior/" not in key}
    stored = tf.train.load_checkpoint(str(folder / "export" / "variables" / "variables"))
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    names = {
        key.removeprefix("weights/").removesuffix(suffix).replace(".S", "/")
        for key in stored.get_variable_to_shape_map()
        if suffix in key
    }
    assert names == set(values)
    for key, value in values.items():
        np.testing.assert_array_equal(stored.get_tensor(f"weights/{key.replace('/', '.S')}{suffix}"), value)
    graph = (folder / "export" / "saved_model.pb").read_bytes()
    assert os.fsencode(ROOT) not in graph and b"site-packages" not in graph


def test_what_stands_beside_the_model(exported):
    folder, run, _ = exported["categorical"]
    facts = json.loads((folder / "export" / "export.json").read_text())
    rssm = run.config.rssm
    state = {
        "deter": f"float32 [E, {rssm.deter}]",
        "stoch": f"float32 [E, {rssm.stoch}, {rssm.classes}]",
        "action": "float32 [E, 2]",
        "step": "int64 [E]",
    }
    assert facts.pop("signatures") == {
        "initial": {"inputs": {"episodes": "int32 []"}, "outputs": state},
        "act": {"inputs": {"image": "uint8 [E, 32, 32, 3]", "seed": "int64 [E]"} | state, "outputs": state},
    }
    assert set(facts.pop("graph")) == {"initial", "act"}
    assert set(facts.pop("check")) == {"image", "seed", "expected", "tolerance"}
    assert set(facts.pop("versions")) == {"semopo_tf", "tensorflow", "numpy"}
    assert facts == {
        "format": 1,
        "method": "semopo",
        "task": "exbmdp_point",
        "run_seed": 1,
        "phase": "policy",
        "step": 12,
        "checkpoint": "ckpt-policy-000000012",
        "image_size": 32,
        "action_size": 2,
        "action_range": [-1.0, 1.0],
        "action_repeat": 1,
        "precision": "float32",
        "settings": {"TF_ENABLE_ONEDNN_OPTS": "1"},
    }
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--logdir", "{tmp}/none", "--out", "{tmp}/new"], CheckpointError, "none: expected the logdir of a run"),
        (
            ["--logdir", "{run}", "--out", "{tmp}"],
            ConfigError,
            r"--out .*: expected a new directory, received one that exists",
        ),
        (
            ["--logdir", "{run}", "--out", "{tmp}/new", "--checkpoint", "ckpt-policy-000000099"],
            CheckpointError,
            "received nothing",
        ),
        (
            ["--logdir", "{run}", "--out", "{run}/config.yaml/new"],
            StorageError,
            r"new: cannot be written \(File exists\)",
        ),
        (["--logdir", "{run}"], ConfigError, "--out"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(exported, tmp_path, flags, error, message):
    folder = exported["gaussian"][0]
    with pytest.raises(error, match=message):
        export.main([word.format(tmp=tmp_path, run=folder / "run") for word in flags])
    assert list(tmp_path.iterdir()) == []


class Full(Files):
    """A disk that takes the model and refuses to rename it."""

    def rename(self, source, target):
        raise OSError(28, "No space left on device")


def test_a_disk_that_refuses_leaves_nothing_behind(exported, tmp_path):
    with pytest.raises(StorageError, match=r"out: cannot be written \(No space left on device\); free some space"):
        export.write(tmp_path / "out", exported["gaussian"][1], {}, Full())
    assert list(tmp_path.iterdir()) == []


# --- another TensorFlow computes the same, or the example says that it does not ---------------------------------------


def run_example(folder, export, *words, **environment):
    """The example in a process of its own."""
    clean = {key: value for key, value in os.environ.items() if key != "TF_ENABLE_ONEDNN_OPTS"}
    command = [sys.executable, str(ROOT / "examples" / "act.py"), str(export), *words]
    return subprocess.run(command, cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("case", CASES)
def test_I06_the_frame_of_export_json_gives_the_state_and_the_action_beside_it(exported, case):
    folder, run, _ = exported[case]
    check = json.loads((folder / "export" / "export.json").read_text())["check"]
    frame = np.frombuffer(base64.b64decode(check["image"]), np.uint8).reshape(1, 32, 32, 3)
    np.testing.assert_array_equal(frame[0], export.check_frame(32))
    assert frame.min() == 0 and frame.max() == 255
    seed, step = tf.constant([check["seed"]], tf.int64), tf.zeros([1], tf.int64)
    after = tf.function(run.policy.decide)(tf.constant(frame), seed, step, run.policy.start())
    assert set(check["expected"]) == ({"action"} if case == "frames" else {"action", "deter", "stoch"})
    for name, value in check["expected"].items():
        np.testing.assert_array_equal(np.array(value, np.float32), after[name].numpy()[0])
    assert check["tolerance"] == (0.05 if case == "joint" else 0.01)


def test_I06_the_check_is_the_same_in_every_export_of_a_checkpoint(exported, tmp_path):
    folder, run, _ = exported["gaussian"]
    export.write(tmp_path / "again", run, export.describe(run))
    assert (tmp_path / "again" / "export.json").read_bytes() == (folder / "export" / "export.json").read_bytes()


@pytest.mark.parametrize("name", ["deter", "action"])
def test_I06_the_example_refuses_another_state_in_one_line_with_the_largest_difference(exported, tmp_path, name):
    shutil.copytree(exported["gaussian"][0] / "export", tmp_path / "export")
    path = tmp_path / "export" / "export.json"
    facts = json.loads(path.read_text())
    facts["check"]["expected"][name][1] += 0.625
    path.write_text(json.dumps(facts))
    done = run_example(tmp_path, tmp_path / "export")
    assert done.returncode == 1 and done.stdout == ""
    expected = f"{tmp_path / 'export'}: expected {name} within 0.01 of export.json"
    received = f"received a largest difference of 0.625 with TensorFlow {tf.__version__}"
    helps = f"use TensorFlow {tf.__version__}, or set TF_ENABLE_ONEDNN_OPTS=0"
    assert done.stderr.splitlines()[-1] == f"{expected}, {received}; {helps}"


def test_I24_the_example_refuses_images_of_another_size_in_one_line(exported, tmp_path):
    np.savez(tmp_path / "large.npz", image=np.zeros((3, 96, 96, 3), np.uint8))
    done = run_example(tmp_path, exported["gaussian"][0] / "export", "large.npz")
    assert done.returncode == 1 and done.stdout == ""
    received = "large.npz: expected images of [32, 32, 3], received [96, 96, 3]; resize them, or choose an episode of"
    assert done.stderr.splitlines()[-1].startswith(received)


def test_I06_other_kernels_are_within_the_tolerance(exported, tmp_path):
    done = run_example(tmp_path, exported["gaussian"][0] / "export", TF_ENABLE_ONEDNN_OPTS="0")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 10


def test_I24_export_json_names_the_tensors_of_the_graph(exported):
    folder = exported["gaussian"][0]
    names = json.loads((folder / "export" / "export.json").read_text())["graph"]
    assert set(names) == {"initial", "act"} and names["act"]["inputs"]["image"] == "act_image:0"
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        # As the C interface does it: TF_LoadSessionFromSavedModel with the tag, then tensors by their names.
        tf.compat.v1.saved_model.load(session, ["serve"], str(folder / "export"))
        start = session.run(names["initial"]["outputs"], {names["initial"]["inputs"]["episodes"]: 1})
        feed = {"image": export.check_frame(32)[None], "seed": np.zeros(1, np.int64), **start}
        after = session.run(
            names["act"]["outputs"], {names["act"]["inputs"][name]: value for name, value in feed.items()}
        )
    expected = json.loads((folder / "export" / "export.json").read_text())["check"]["expected"]
    for name, value in expected.items():
        np.testing.assert_allclose(after[name][0], np.array(value, np.float32), rtol=0, atol=1e-5)


def test_I21_a_refusal_of_tensorflows_file_layer_has_the_remedy_of_its_reason():
    for error, words in (
        (tf.errors.ResourceExhaustedError(None, None, "no space\nleft"), "free some space or choose another --out"),
        (tf.errors.PermissionDeniedError(None, None, "denied"), "make it writable for you or choose another --out"),
        (tf.errors.UnknownError(None, None, "x"), "choose another --out"),
    ):
        assert remedy(export._as_os_error(error), "choose another --out") == words
