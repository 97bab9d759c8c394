"""The main job on the real simulator at the debug size: collect, check, train both phases, evaluate, videos."""

import json
import os
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import synthetic

import semopo_tf
from semopo_tf import collect, evaluation, training
from semopo_tf.data import __main__ as data
from semopo_tf.envs import rendering, tasks
from semopo_tf.envs.rollout import play
from semopo_tf.errors import CheckpointError, ConfigError, DataError
from semopo_tf.storage.records import read_records

TASK = "dmcdrv_walker_walk"
ROOT = Path(semopo_tf.__file__).parents[1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "walker"
    flags = [
        "--task",
        TASK,
        "--policy",
        "random",
        "--episodes",
        "1",
        "--background",
        "builtin:driving",
        "--processes",
        "1",
    ]
    assert collect.main([*flags, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("runs") / "walker"
    assert (
        training.main(
            [
                "--configs",
                "released",
                "semopo",
                "walker_walk",
                "debug",
                "--offline_dir",
                str(dataset),
                "--logdir",
                str(logdir),
            ]
        )
        == 0
    )
    return logdir


def test_the_collected_dataset_passes_its_check(dataset, capsys):
    assert data.main(["check", str(dataset)]) == 0
    assert data.main(["stats", str(dataset)]) == 0
    printed = capsys.readouterr().out
    assert "1 episodes, all good" in printed
    assert "501 records" in printed


def test_a_run_leaves_its_records_videos_and_final_score(run):
    assert (run / "DONE").exists()
    (score,) = read_records(run / "scores.jsonl")
    assert score["length"] == 500
    assert score["environment"]["background"] == "builtin:driving"
    assert score["environment"]["mask_rule"] == "sky", "the card wins over the preset's rule for datasets without one"
    last = read_records(run / "metrics.jsonl")[-1]
    assert (last["phase"], last["step"], last["eval_return"]) == ("policy", 12, score["return"])
    frames = imageio.imread(run / "videos" / "model-000000012.mp4", plugin="FFMPEG")
    # Six rows (truth, joint, endo, exo, mask, error) of two sequences of 12 frames, 64 pixels at twice the size.
    assert frames.shape == (12, 6 * 128, 2 * 128, 3)
    assert not (run / "config.yaml").read_text().startswith("defaults")


def test_evaluate_repeats_the_returns_of_training_and_writes_videos(run, capsys):
    (score,) = read_records(run / "scores.jsonl")
    assert evaluation.main(["--logdir", str(run), "--episodes", "1", "--video"]) == 0
    again = read_records(run / "scores.jsonl")[-1]
    assert again == score | {"source": "evaluate"}
    assert again["checkpoint"] == "ckpt-policy-000000012" and again["clip"] in again["clips"]
    for kind in ("episodes", "model"):
        assert (run / "videos" / f"evaluation-policy-000000012-{kind}.mp4").stat().st_size > 1000


class Toy:
    """Ten decisions; the image is noise from the seed and the step, the reward is the first action."""

    action_size = 6
    image_shape = (64, 64, 3)

    def reset(self, seed):
        self._seed, self._step = seed, 0
        return self._observe(0.0)

    def step(self, action):
        self._step += 1
        return self._observe(float(action[0]))

    def close(self):
        pass

    def _observe(self, reward):
        image = np.random.default_rng([self._seed, self._step]).integers(0, 256, self.image_shape, np.uint8)
        return tasks.Observation(image, reward, self._step == 0, self._step == 10, False)


def test_one_and_two_environments_give_the_same_actions(run):
    policy = semopo_tf.load_policy(run)
    seeds = [3, 4, 5]
    alone = list(play([Toy()], policy, seeds))
    together = list(play([Toy(), Toy()], policy, seeds))
    for first, second in zip(alone, together, strict=True):
        np.testing.assert_array_equal(first.action, second.action)
    assert np.abs(np.concatenate([episode.action for episode in alone])).max() <= 1
    assert not np.array_equal(alone[0].action, alone[1].action)


def test_a_policy_phase_can_start_from_another_runs_world_model(dataset, run, tmp_path):
    logdir = tmp_path / "second"
    flags = [
        "--configs",
        "released",
        "semopo",
        "walker_walk",
        "debug",
        "--offline_dir",
        str(dataset),
        "--logdir",
        str(logdir),
    ]
    training.main([*flags, "--seed", "5", "--world_model", str(run), "--eval.final_episodes", "0"])
    first, second = (
        {name: np.load(path / "ckpt-policy-000000012" / "tensors.npz") for name in ("t",)}["t"]
        for path in (run, logdir)
    )
    kernel = "model/endo_encoder/conv0/kernel"
    np.testing.assert_array_equal(first[kernel], second[kernel])
    assert not np.array_equal(first["policy/actor/hidden0/kernel"], second["policy/actor/hidden0/kernel"])
    assert {row["phase"] for row in read_records(logdir / "metrics.jsonl")} == {"policy"}


def test_held_out_episodes_are_reported_as_valid_metrics(tmp_path):
    directory = synthetic.dataset(tmp_path / "data")
    training.main(
        synthetic.train_flags(
            directory, tmp_path / "run", "--valid_fraction", "0.25", "--steps.policy", "0", "--video.every", "0"
        )
    )
    row = read_records(tmp_path / "run" / "metrics.jsonl")[0]
    assert np.isfinite(row["valid_image_loss"])
    assert set(row) >= {f"valid_{name}" for name in ("endo_kl", "exo_kl", "reward_loss")}


def test_offline_dv2_runs_by_configuration_alone(tmp_path):
    directory = synthetic.dataset(tmp_path / "data")
    flags = synthetic.train_flags(directory, tmp_path / "run")
    training.main([word.replace("semopo", "offline_dv2") if word == "semopo" else word for word in flags])
    names = set(read_records(tmp_path / "run" / "metrics.jsonl")[0])
    assert "joint_kl" in names
    assert not {"endo_kl", "exo_kl"} & names


def test_a_changed_dataset_or_configuration_is_refused_and_nothing_is_overwritten(tmp_path):
    directory, logdir = synthetic.dataset(tmp_path / "data"), tmp_path / "run"
    flags = synthetic.train_flags(directory, logdir, "--steps.policy", "0", "--video.every", "0")
    training.main(flags)
    before = {path.name: path.read_bytes() for path in logdir.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=r"model_opt\.lr \(there 6e-05, now 0.001\)"):
        training.main([*flags, "--model_opt.lr", "0.001"])
    (logdir / "DONE").unlink()
    synthetic.dataset(directory, episodes=5)
    with pytest.raises(DataError, match="added since this run began"):
        training.main(flags)
    after = {path.name: path.read_bytes() for path in logdir.iterdir() if path.is_file()}
    assert after == {name: content for name, content in before.items() if name != "DONE"}


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dm_control", "mujoco", "gym", "gymnasium", "cv2", "Box2D", "pygame"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def test_E05_training_without_evaluation_needs_no_simulator_and_another_names_what_to_install(tmp_path):
    """The simulator can be imported neither in this process nor in the child that it starts."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    paths = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    directory = synthetic.dataset(tmp_path / "data")

    def start(logdir, *more):
        flags = synthetic.train_flags(directory, tmp_path / logdir, "--steps.policy", "0", "--video.every", "0", *more)
        environment = os.environ | {"PYTHONPATH": paths, rendering.CHECKED: "osmesa", "MUJOCO_GL": "osmesa"}
        return subprocess.run(
            [sys.executable, ROOT / "train.py", *flags], env=environment, capture_output=True, text=True, timeout=200
        )

    assert start("off").returncode == 0
    assert (tmp_path / "off" / "DONE").exists()
    refused = start("on", "--eval.final_episodes", "1", "--task", "dmc_walker_walk")
    assert refused.returncode == 6
    assert f"the package dm_control is not installed; run {rendering.INSTALL_SIMULATOR}" in refused.stderr


def test_E04_an_environment_whose_images_are_not_the_datas_is_refused_before_training(tmp_path):
    semopo_tf.register("toy", lambda **settings: Toy())
    directory = synthetic.dataset(tmp_path / "data", size=32, action_size=6)
    flags = ["--configs", "debug", "--task", "toy", "--offline_dir", str(directory), "--logdir", str(tmp_path / "run")]
    with pytest.raises(DataError, match=r"images of \[32, 32, 3\], but toy shows \[64, 64, 3\]; correct --env.size"):
        training.main(flags)


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ([], ConfigError, "--logdir: expected a value"),
        (["--logdir", "{tmp}/run", "--task", "dmc_walker_walk"], ConfigError, "--offline_dir: expected a value"),
        (
            ["--logdir", "{tmp}/run", "--task", "dmc_walker_walk", "--offline_dir", "{tmp}/none"],
            DataError,
            "no such dataset directory",
        ),
    ],
)
def test_a_wrong_command_line_is_one_clear_error(flags, error, message, tmp_path):
    with pytest.raises(error, match=message):
        training.main([word.replace("{tmp}", str(tmp_path)) for word in flags])


def test_an_unknown_task_fails_before_training(tmp_path):
    directory = synthetic.dataset(tmp_path / "data")
    flags = [
        "--configs",
        "debug",
        "--task",
        "dmcdrv_walker_wolk",
        "--offline_dir",
        str(directory),
        "--logdir",
        str(tmp_path / "run"),
    ]
    with pytest.raises(ConfigError, match="walker_walk"):
        training.main(flags)
    assert not list((tmp_path / "run").glob("ckpt-*"))


def test_evaluating_what_is_no_run_names_the_folder(tmp_path):
    remedy = "name the --logdir that train.py was given"
    with pytest.raises(CheckpointError, match=rf"expected the logdir of a run.*; {remedy}$"):
        evaluation.main(["--logdir", str(tmp_path)])


def test_a_run_card_is_kept_with_the_run(run):
    manifest = json.loads((run / "dataset_manifest.json").read_text())
    assert manifest["card"]["task"] == TASK
    assert len(manifest["files"]) == 1
