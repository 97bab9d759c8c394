"""The tool that recomputes a run's batches from its own files against the run's sampler."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import synthetic
import tensorflow as tf

from semopo_tf import config as configuration
from semopo_tf.random import Key
from semopo_tf.run.trainer import Trainer
from semopo_tf.training import claim

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "which_frames.py"
RELEASED = (
    "--pool.order",
    "return",
    "--pool.include_last",
    "False",
    "--pool.drop_ties",
    "True",
    "--policy_starts",
    "pool",
    "--pool.grow_by",
    "0",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Fifteen episodes of different lengths; two have the same return."""
    directory = tmp_path_factory.mktemp("data")
    for number in range(15):
        synthetic.write_episode(
            directory / f"{number:03d}.npz", synthetic.episode(number % 14, records=10 + (number % 14) % 4)
        )
    return directory


@pytest.mark.parametrize(
    "rule",
    [("--sampling", "conservative"), ("--sampling", "uniform"), RELEASED, ("--min_length", "12")],
    ids=["conservative", "uniform", "released", "I22_min_length"],
)
def test_R13_the_tool_names_the_frames_of_every_update(data, tmp_path, rule, capsys):
    flags = ("--seed", "5", "--steps.model", "60", "--pool.grow_every", "4", "--valid_fraction", "0.2", *rule)
    config = configuration.load(synthetic.train_flags(data, tmp_path, *flags))
    claim(config, tmp_path)
    trainer = Trainer(config, tmp_path)
    counted = f"{data}: 9 of 15 episodes have fewer than 12 records and are left out"
    assert (counted in capsys.readouterr().out.splitlines()) == ("--min_length" in rule)
    steps = (0, 1, 3, 4, 31, 59, 2**33)
    script = (
        f"import sys; sys.path.insert(0, {str(TOOL.parent)!r}); import which_frames as w; from pathlib import Path\n"
    )
    script += f"for phase in ('model', 'policy'):\n    for step in {steps}: "
    script += f"print(w.windows(Path({str(tmp_path)!r}), phase, step))\n"
    script += "assert not {'semopo_tf', 'tensorflow', 'ruamel'} & set(sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for phase in ("model", "policy"):
        for step in steps:
            episode, start = trainer._sampler.draw(phase, Key(5, phase, tf.constant(step, tf.int64)), batch=4, length=8)
            expected = [
                (f"{e:03d}.npz", s, s + 7)
                for e, s in zip(episode.numpy().tolist(), start.numpy().tolist(), strict=True)
            ]
            assert printed.pop(0) == str(expected)
    assert len(np.unique(episode)) > 1


def test_the_tool_prints_a_line_for_each_window(data, tmp_path):
    config = configuration.load(synthetic.train_flags(data, tmp_path))
    claim(config, tmp_path)
    Trainer(config, tmp_path)
    printed = subprocess.run(
        [sys.executable, TOOL, tmp_path, "model", "7"], capture_output=True, text=True, check=True
    ).stdout
    lines = [line.split() for line in printed.splitlines()]
    assert len(lines) == config.batch.size
    assert all((data / name).exists() and int(last) - int(first) == 7 for name, first, last in lines)
    code = TOOL.read_text().split('"""', 2)[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 60
