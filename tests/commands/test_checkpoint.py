"""The command that checks and lists checkpoints, as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import semopo_tf
from semopo_tf import checkpoint
from semopo_tf.errors import CheckpointError, ConfigError
from semopo_tf.run import checkpoints

PHASES = ("model", "policy")

ROOT = Path(semopo_tf.__file__).parents[1]
STATE = {"metrics_size": 0, "timing_size": 0, "sums": [], "count": 0}


@pytest.fixture
def logdir(tmp_path) -> Path:
    """Three checkpoints of one mebibyte."""
    for phase, step in (("model", 10), ("model", 20), ("policy", 5)):
        checkpoints.save(tmp_path / "run", phase, step, {"a": np.full(1 << 18, step, np.float32)}, STATE)
    return tmp_path / "run"


def test_check_finds_all_good(logdir, capsys):
    assert checkpoint.main(["check", str(logdir)]) == 0
    assert capsys.readouterr().out == f"{logdir}: 3 checkpoints, all good; newest ckpt-policy-000000005\n"


def test_C01_C02_check_lists_all_damage_and_changes_nothing(logdir, capsys):
    flip(logdir / "ckpt-model-000000010" / "tensors.npz")
    (logdir / "ckpt-policy-000000005" / "MANIFEST.json").unlink()
    before = sorted(path.relative_to(logdir) for path in logdir.rglob("*"))
    with pytest.raises(
        CheckpointError,
        match=r"run: 2 of 3 checkpoints are damaged, listed above; a run goes on from the newest good one",
    ) as caught:
        checkpoint.main(["check", str(logdir)])
    assert caught.value.exit_code == 4
    first, second = capsys.readouterr().out.splitlines()
    assert (
        first
        == f"bad: {logdir}/ckpt-model-000000010/tensors.npz: missing, or different from its manifest (size or SHA-256)"
    )
    assert second == f"bad: {logdir}/ckpt-policy-000000005: incomplete, no readable MANIFEST.json"
    assert sorted(path.relative_to(logdir) for path in logdir.rglob("*")) == before


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_list_has_a_line_for_each(logdir, capsys):
    (logdir / "ckpt-model-000000020" / "state.json").write_text("{}")
    (logdir / "ckpt-policy-000000007").symlink_to("elsewhere")
    assert checkpoint.main(["list", str(logdir)]) == 0
    lines = [line.split(maxsplit=4) for line in capsys.readouterr().out.splitlines()]
    assert [line[:4] for line in lines] == [
        ["model", "10", "1.0", "MB"],
        ["model", "20", "1.0", "MB"],
        ["policy", "5", "1.0", "MB"],
        ["policy", "7", "0.0", "MB"],
    ]
    assert [line[4] for line in (lines[0], lines[2])] == ["good", "good"]
    assert "state.json: missing, or different from its manifest" in lines[1][4]
    assert lines[3][4].endswith("expected a checkpoint directory, received a symbolic link")


@pytest.mark.parametrize("command", ["check", "list"])
def test_one_checkpoint_may_be_named(logdir, command, capsys):
    assert checkpoint.main([command, str(logdir / "ckpt-model-000000020")]) == 0
    assert "good" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "list"])
def test_C10_what_is_no_run_is_refused(tmp_path, command):
    (tmp_path / "variables.pkl").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match=r"variables\.pkl: pickle files can run code and are not loaded"):
        checkpoint.main([command, str(tmp_path / "variables.pkl")])
    with pytest.raises(CheckpointError, match="no checkpoint there; expected the logdir of a run"):
        checkpoint.main([command, str(tmp_path)])
    with pytest.raises(CheckpointError, match="nowhere: no checkpoint there"):
        checkpoint.main([command, str(tmp_path / "nowhere")])
    with pytest.raises(ConfigError):
        checkpoint.main([command])


def run(code: str, *argv, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)], cwd=ROOT, capture_output=True, text=True, timeout=60, **settings
    )


def test_the_command_loads_no_tensorflow_and_ends_with_its_exit_code(logdir):
    code = (
        "import sys; from semopo_tf import checkpoint, errors\n"
        "try: errors.run_command(checkpoint.main)\n"
        "finally: print(sorted({'tensorflow', 'keras', 'tensorboard', 'dm_control'} & set(sys.modules)))"
    )
    done = run(code, "check", logdir)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "[]"
    flip(logdir / "ckpt-model-000000010" / "tensors.npz")
    done = run(code, "check", logdir)
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("semopo_tf: checkpoint error (exit 4): ")


def test_C14_a_pipe_in_place_of_a_file_does_not_hang_the_command(logdir):
    (logdir / "ckpt-model-000000010" / "MANIFEST.json").unlink()
    os.mkfifo(logdir / "ckpt-model-000000010" / "MANIFEST.json")
    done = subprocess.run(
        [sys.executable, "-m", "semopo_tf.checkpoint", "check", logdir], cwd=ROOT, capture_output=True, timeout=20
    )
    assert done.returncode == 4


def test_F08_checking_beside_a_writer_is_no_damage(logdir, monkeypatch, capsys):
    """A checkpoint that the writer removes between listing and reading is left out."""
    paths = checkpoints.listed(logdir, PHASES)
    assert checkpoints.prune(logdir, PHASES, keep=1) == []
    monkeypatch.setattr(checkpoint, "listed", lambda *_: paths)
    assert checkpoint.main(["check", str(logdir)]) == 0
    assert "all good" in capsys.readouterr().out
