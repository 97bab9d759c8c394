"""The environment of docs/environments.md, as a user would have it: in a folder of its own, through the commands, the
package untouched.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from semopo_tf.envs import tasks
from semopo_tf.errors import ConfigError
from semopo_tf.run.trained import require_named

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "environments.md").read_text()
CODE = PAGE.split("```python\n")[1].split("```")[0]


def command(folder, *words):
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_users_environment_of_thirty_lines_is_collected_trained_and_evaluated(tmp_path):
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 30
    (tmp_path / "catch.py").write_text(CODE)
    command(tmp_path, "-m", "semopo_tf.collect", "--task", "catch:Catch", "--episodes", "4", "--out", "data")
    flags = ["--configs", "semopo", "debug", "--task", "catch:Catch", "--offline_dir", "data", "--logdir", "run"]
    command(tmp_path, str(ROOT / "train.py"), *flags)
    command(tmp_path, str(ROOT / "evaluate.py"), "--logdir", "run", "--episodes", "2", "--task", "catch:Catch")
    rows = [json.loads(line) for line in (tmp_path / "run" / "scores.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == ["train", "evaluate", "evaluate"]
    assert {row["length"] for row in rows} == {20} and {row["task"] for row in rows} == {"catch:Catch"}


@pytest.mark.parametrize(
    ("task", "given"),
    [
        ("catch:Catch", None),
        ("catch:Catch", "other:Catch"),
        ("dmc_walker_walk", "catch:Catch"),
        ("dmc_walker_walk", ""),
    ],
)
def test_a_run_directory_alone_imports_no_module(task, given):
    with pytest.raises(ConfigError, match=f"--task: expected {task}, the run's task, received"):
        require_named(task, given)
    require_named("catch:Catch", "catch:Catch")
    require_named("dmc_walker_walk", None)


@pytest.mark.parametrize("task", ["no_such_module_here:Catch", "json:Catch", ":Catch"])
def test_a_module_or_class_that_is_not_there_is_named(task):
    with pytest.raises(ConfigError, match=f"--task {task}: expected <module>:<class or function>"):
        tasks.make(task)


class Deaf:
    def __init__(self, size=64):
        pass


@pytest.mark.parametrize("kind", [Deaf, 3, lambda: None])
def test_I03_a_class_that_takes_no_settings_is_named(monkeypatch, kind):
    monkeypatch.setitem(tasks._registry, "mine", kind)
    with pytest.raises(ConfigError, match=r"--task mine: expected a class or function .*; add \*\*settings to its arg"):
        tasks.make("mine")
