"""A number that is not finite: the run stops, names it, writes no bad checkpoint, and leaves a dump that shows it
again.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import synthetic
import tensorflow as tf
import tiny
from synthetic import Still
from test_engine import Case

import semopo_tf
from semopo_tf import replay_dump, training
from semopo_tf.errors import CheckpointError, DataError, NumericalError, StorageError, run_command
from semopo_tf.run import build, checkpoints, dump
from semopo_tf.run.trainer import Trainer
from semopo_tf.storage.files import Files
from semopo_tf.storage.records import read_records
from semopo_tf.types import Transitions, WithEpisode

PHASES = ("model", "policy")

ROOT = Path(semopo_tf.__file__).parents[1]
QUIET = ("--video.every", "0", *(word for key, value in tiny.SIZES.items() for word in (f"--{key}", value)))
STEPS = ("--steps.model", "24", "--steps.policy", "24")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic.dataset(tmp_path_factory.mktemp("data"), size=tiny.IMAGE_SIZE)


def stopped(flags) -> str:
    """The message of a run that stops."""
    with pytest.raises(NumericalError) as caught:
        training.main(flags)
    return str(caught.value)


def dump_of(logdir: Path) -> Path:
    (found,) = logdir.glob("dump-*")
    return found


def command(*words: str) -> subprocess.CompletedProcess:
    """A command in its own process, as a user runs it."""
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def exploded(data, tmp_path_factory):
    """A run whose learning rate is far too large: its directory, and how its command ended."""
    logdir = tmp_path_factory.mktemp("runs") / "run"
    flags = synthetic.train_flags(data, logdir, *QUIET, *STEPS, "--model_opt.lr", "1e20", "--save_every", "1")
    return logdir, command("train.py", *flags)


def test_N04_the_dump_of_a_learner_of_frame_stacks_shows_the_same(data, tmp_path):
    flags = ["--configs", "drq_bc", "walker_walk", "debug", "--offline_dir", str(data), "--transitions.resize", "16"]
    flags += ["--logdir", str(tmp_path / "run"), "--eval.final_episodes", "0", "--critic_opt.lr", "1e30"]
    assert "policy update" in stopped([*flags, "--actor_opt.lr", "1e30", "--save_every", "1"])
    assert replay_dump.main([str(dump_of(tmp_path / "run"))]) == 0


def test_N04_the_dump_of_a_learner_of_whole_episodes_shows_the_same(data, tmp_path):
    flags = [
        "--configs",
        "lompo",
        "walker_walk",
        "debug",
        "--offline_dir",
        str(data),
        "--logdir",
        str(tmp_path / "run"),
    ]
    flags += [
        "--encoder.kernels",
        "4,4",
        "--decoder.kernels",
        "4,4",
        "--video.every",
        "0",
        "--eval.final_episodes",
        "0",
    ]
    assert "policy update" in stopped(
        [*flags, "--actor_opt.lr", "1e38", "--critic_opt.lr", "1e38", "--save_every", "1"]
    )
    assert replay_dump.main([str(dump_of(tmp_path / "run"))]) == 0


def test_N01_N04_a_learning_rate_of_1e20_stops_the_run_and_the_dump_shows_the_same(exploded):
    logdir, done = exploded
    assert done.returncode == 5
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("semopo_tf:")]
    place = dump_of(logdir)
    facts = json.loads((place / "dump.json").read_text())
    assert facts["not_finite"][0].startswith("metric/")
    last = checkpoints.listed(logdir, PHASES)[-1]
    assert last.name == f"ckpt-model-{facts['step']:09d}" == facts["checkpoint"]
    checkpoints.load(last)
    for words in (
        f"model update {facts['step'] + 1}: expected finite",
        facts["not_finite"][0],
        f"last good checkpoint: {last.name}",
        str(place),
    ):
        assert words in line
    assert read_records(logdir / "metrics.jsonl") == []
    again = command("-m", "semopo_tf.replay_dump", str(place))
    assert again.returncode == 0, again.stderr
    assert f"reproduced: {facts['not_finite'][0]}" in again.stdout


@pytest.mark.full
def test_N01_the_dump_is_of_the_first_bad_update_inside_a_chunk_and_a_restart_stops_there_again(data, tmp_path):
    """Ten updates a call or one: the same update, the same names and the same weights before it."""
    contents, messages = [], []
    for size in ("1", "10"):
        logdir = tmp_path / size
        flags = synthetic.train_flags(
            data, logdir, *QUIET, *STEPS, "--model_opt.lr", "3e3", "--updates_per_call", size, "--log_every", "12"
        )
        messages.append(stopped(flags).replace(str(logdir), ""))
        contents.append(
            {path.name: path.read_bytes() for path in dump_of(logdir).iterdir() if path.name != "config.yaml"}
        )
    assert messages[0] == messages[1]
    assert {name: len(data) for name, data in contents[0].items()} == {
        name: len(data) for name, data in contents[1].items()
    }
    assert contents[0]["dump.json"] == contents[1]["dump.json"]
    states = [dump.read(dump_of(tmp_path / size)).state for size in ("1", "10")]
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name])
    assert stopped(flags).replace(str(logdir), "") == messages[1]


@pytest.fixture(scope="module")
def case():
    return Case(tiny.PAPER)


POISON = {
    "model": (
        "model/reward/hidden0/kernel",
        "model/exo_encoder/conv0/kernel",
        "model_opt/model/first/endo_rssm/input/kernel",
        "batch/reward",
    ),
    "policy": (
        "policy/slow_critic/hidden0/kernel",
        "policy/actor/hidden1/bias",
        "policy/critic/second/critic/hidden0/kernel",
        "batch/action",
    ),
}


@pytest.mark.parametrize(("stage", "name"), [(stage, name) for stage, names in POISON.items() for name in names])
def test_N03_one_number_of_one_tensor_is_found_and_named(case, stage, name):
    tiny.assign(case.variables, case.start)
    loop = case.loops[stage]
    batch, key = loop.batch(7)
    if name.startswith("batch/"):
        field = name.removeprefix("batch/")
        value = getattr(batch, field).numpy()
        value.flat[0] = np.nan
        batch = batch._replace(**{field: value})
    else:
        value = case.start[name].copy()
        value.flat[0] = np.nan
        case.variables[name].assign(value)
    found = dump.examine(case.learner, loop.stage, tiny.Batch(*map(tiny.as_tensor, batch)), key, jit=False)
    assert found[0] == name
    if (
        "first" not in name and "second" not in name
    ):  # a moment is not in the loss; the weights show it after the update
        assert any(other.startswith("metric/") for other in found)


def test_N03_a_healthy_update_has_nothing_to_name(case):
    tiny.assign(case.variables, case.start)
    loop = case.loops["model"]
    batch, key = loop.batch(7)
    assert dump.examine(case.learner, loop.stage, batch, key, jit=False) == []


def test_N03_a_weight_that_an_update_makes_infinite_is_traced_to_that_update(data, tmp_path):
    """The largest learning rate: the loss and the gradients of the first update are finite, its weights are not. Found
    when it is saved.
    """
    flags = synthetic.train_flags(
        data,
        tmp_path / "run",
        *QUIET,
        *STEPS,
        "--model_opt.lr",
        "3e38",
        "--model_opt.weight_decay",
        "3e38",
        "--save_every",
        "1",
    )
    message = stopped([*flags, "--updates_per_call", "1"])
    facts = json.loads((dump_of(tmp_path / "run") / "dump.json").read_text())
    assert not list((tmp_path / "run").glob("ckpt-*"))
    assert "last good checkpoint: none" in message
    assert replay_dump.main([str(dump_of(tmp_path / "run"))]) == 0
    assert facts["step"] == 0 and facts["not_finite"][0].startswith("updated/model/")


@pytest.mark.full
def test_N03_N04_a_weight_that_no_update_made_wrong_is_named_as_it_is(data, tmp_path, capsys):
    """As after a memory fault. The dump contains it, so `replay_dump` reproduces it."""
    from semopo_tf import config as configuration

    logdir = tmp_path / "run"
    logdir.mkdir()
    trainer = Trainer(configuration.load(synthetic.train_flags(data, logdir, *QUIET, *STEPS)), logdir)
    variable = trainer._learner.variables()["policy/slow_critic/hidden0/bias"]
    variable.assign(np.full(variable.shape, np.nan, np.float32))
    with pytest.raises(NumericalError, match=r"received policy/slow_critic/hidden0/bias"):
        trainer.run()
    assert replay_dump.main([str(dump_of(logdir))]) == 0
    assert "reproduced: policy/slow_critic/hidden0/bias" in capsys.readouterr().out


@pytest.fixture(scope="module")
def made(exploded):
    """A dump of a run that stopped."""
    return dump_of(exploded[0])


def copied(made: Path, tmp_path: Path) -> Path:
    target = tmp_path / made.name
    target.mkdir()
    for path in made.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_N04_a_dump_whose_update_is_fine_is_not_reproduced(made, tmp_path, capsys):
    place = copied(made, tmp_path)
    state = {name: np.zeros_like(value) for name, value in dump.read(place).state.items()}
    np.savez(place / "state.npz", **state)
    assert replay_dump.main([str(place)]) == replay_dump.NOT_REPRODUCED
    assert "not reproduced: expected metric/" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["dump.json", "batch.npz", "state.npz"])
@pytest.mark.parametrize("damage", ["missing", "half", "empty", "other"])
def test_N04_what_is_no_dump_is_refused_in_one_line(made, tmp_path, name, damage):
    place = copied(made, tmp_path)
    data = (place / name).read_bytes()
    (place / name).unlink()
    if damage != "missing":
        (place / name).write_bytes({"half": data[: len(data) // 2], "empty": b"", "other": b"[1, 2]"}[damage])
    with pytest.raises(DataError, match=str(place)):
        dump.read(place)


def test_N04_a_dump_of_another_model_is_refused(made, tmp_path):
    place = copied(made, tmp_path)
    np.savez(place / "state.npz", **dict(list(dump.read(place).state.items())[:-1]))
    with pytest.raises(CheckpointError, match="belongs to another model configuration"):
        replay_dump.main([str(place)])


def test_N01_a_dump_that_cannot_be_written_leaves_nothing(made, tmp_path):
    class Full(Files):
        def write(self, path, data):
            if path.name == "state.npz":
                raise OSError(28, "No space left on device")
            super().write(path, data)

    content = dump.read(made)
    with pytest.raises(StorageError, match="No space left on device"):
        dump.write(tmp_path, "", content.facts, content.batch, content.state, Full())
    assert list(tmp_path.iterdir()) == []


# --- half precision ---------------------------------------------------------------------------------------------------


def test_N02_overflows_are_skipped_and_counted_until_the_scale_is_one(data, tmp_path):
    """A real run in float16: a scale far too large is halved, update by update, and each skip is in the metrics."""
    from semopo_tf import config as configuration

    logdir = tmp_path / "run"
    logdir.mkdir()
    flags = synthetic.train_flags(
        data,
        logdir,
        *QUIET,
        "--precision",
        "mixed_float16",
        "--log_every",
        "12",
        "--steps.model",
        "12",
        "--steps.policy",
        "0",
    )
    trainer = Trainer(configuration.load(flags), logdir)
    trainer._learner.variables()["model_opt/model_scale/scale"].assign(2.0**60)
    trainer.run()
    rows = read_records(logdir / "metrics.jsonl")
    assert rows[0]["skipped"] == 1.0
    assert rows[0]["loss_scale"] == pytest.approx(np.mean([2.0 ** (60 - step) for step in range(12)]))


class SmallStill(Still):
    image_shape = (tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, 3)


def test_E03_an_action_that_is_not_finite_stops_an_evaluation_during_training(data, tmp_path, monkeypatch, capsys):
    semopo_tf.register("still", SmallStill)
    monkeypatch.setattr(build, "episode_seeds", lambda seed, count: [5] * count)
    flags = synthetic.train_flags(data, tmp_path / "run", *QUIET, *STEPS, "--task", "still", "--eval.every", "12")
    from semopo_tf.methods.filter_policy import FilterPolicy

    act = FilterPolicy.__call__
    monkeypatch.setattr(
        FilterPolicy, "__call__", lambda self, *given: (np.nan * act(self, *given)[0], act(self, *given)[1])
    )
    with pytest.raises(SystemExit) as caught:
        run_command(training.main, flags)
    assert caught.value.code == 5
    assert (
        "expected finite actions in [-1, 1], received [nan nan] at decision 0 of episode 5" in capsys.readouterr().err
    )


def test_every_form_of_a_batch_is_named_and_found_again(rng):
    windows = tiny.arrays(tiny.batch(rng))
    stacks = Transitions(*(np.full([2], place) for place in range(len(Transitions._fields))))
    for batch in (windows, stacks, WithEpisode(windows, tiny.arrays(tiny.batch(rng, 1, 3)))):
        again = dump.from_names(dump.by_name(batch))
        assert type(again) is type(batch)
        for one, other in zip(tf.nest.flatten(again), tf.nest.flatten(batch), strict=True):
            np.testing.assert_array_equal(one, other)
