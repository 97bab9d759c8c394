"""The whole list of GPU measurements, run dry on the CPU at the `debug` size, and what a failing step does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "gpu_check.py"


def check(out, *flags):
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--size", "debug", "--updates", "1", "--out", str(out)]
    subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    return {line["step"]: line for line in map(json.loads, out.read_text().splitlines())}


def test_a_step_that_fails_or_takes_too_long_stops_no_other(tmp_path):
    lines = check(tmp_path / "out.jsonl", "--steps", "E0", "E6", "E9", "--limit", "2", "--data", str(tmp_path / "none"))
    assert lines["E6"]["failed"] == "time limit"
    assert lines["E9"]["failed"] == "exit code 3" and "no such dataset" in lines["E9"]["log"][-1]


@pytest.mark.full
def test_every_step_measures_something_on_a_cpu(tmp_path):
    data = synthetic.dataset(tmp_path / "data", episodes=20, action_size=6)  # one is held out
    lines = check(tmp_path / "out.jsonl", "--data", str(data), "--minutes", "2", "--work", str(tmp_path / "work"))
    assert list(lines) == ["E0", "E1", "E4", "E5", "E2", "E3", "E6", "E7", "E8", "E9"]
    assert not [line for line in lines.values() if "failed" in line]
    assert lines["E0"]["xla_error"] < 1e-5 and lines["E0"]["outside_tflops"] > 0
    for name in ("E1", "E2", "E3", "E4", "E5", "E6", "E8"):
        assert lines[name]["model_update_s"] > 0 and lines[name]["first_call_s"] > 0
    assert lines["E2"]["first_call_s"] < lines["E1"]["first_call_s"]
    assert len(lines["E7"]["kernels"]["debug-model"]) == 10
    assert lines["E9"]["last"]["model"]["step"] > 0
