"""The bench: what a row measures, its table and file, and its comparison with an earlier result."""

import json
import re

import pytest

from semopo_tf import bench
from semopo_tf import config as configuration
from semopo_tf.errors import ConfigError

KEYS = {"config", "batch", "length", *bench.COLUMNS}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One real row at the debug size, with a profile."""
    directory = tmp_path_factory.mktemp("bench")
    flags = [
        "--configs",
        "debug",
        "--updates",
        "1",
        "--no_env",
        "--device",
        "cpu",
        "--json",
        str(directory / "result.json"),
    ]
    assert bench.main([*flags, "--trace", str(directory / "trace")]) == 0
    return directory


def row(**changed):
    values = dict.fromkeys(bench.COLUMNS, 1.0) | {"config": "small", "batch": 8, "length": 16, "env_steps_per_s": None}
    return values | changed


def result(*rows, **machine):
    return {"machine": {"device": "CPU", **machine}, "rows": list(rows)}


def test_a_row_has_every_key_and_consistent_figures(measured):
    found = json.loads((measured / "result.json").read_text())
    assert set(found) == {"machine", "rows"}
    assert found["machine"]["cores"] >= 1
    (one,) = found["rows"]
    assert set(one) == KEYS
    assert (one["config"], one["batch"], one["length"]) == ("debug", 4, 8)
    assert one["env_steps_per_s"] is None
    assert one["first_update_s"] > one["model_update_s"] > 0
    fraction = one["model_update_flops"] / one["model_update_s"] / (one["matmul_gflops"] * 1e9)
    assert one["model_fraction_of_matmul"] == pytest.approx(fraction)
    assert one["imagined_steps_per_s"] == pytest.approx(4 * 8 * 5 / one["policy_update_s"])
    assert one["peak_memory_mb"] > 100
    assert one["checkpoint_mb"] > 0.1 and one["load_s"] > 0
    assert one["save_percent"] == pytest.approx(100 * one["save_s"] / (6 * one["model_update_s"]))


def test_a_row_of_frame_stacks_has_what_it_has(capsys):
    flags = ["--configs", "bc+debug", "drq_cql+debug", "--updates", "1", "--no_env", "--jit", "off"]
    assert bench.main(flags) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^ +bc\+debug 4 +drq_cql\+debug 4$", printed, re.MULTILINE)
    assert re.search(r"^model updates/s +- +-$", printed, re.MULTILINE)
    assert re.search(r"^policy updates/s +[\d.,]+ +[\d.,]+$", printed, re.MULTILINE)


def test_a_profile_of_each_phase_is_where_tensorboard_looks(measured):
    for stage in ("model", "policy"):
        assert len(list((measured / "trace" / f"debug-{stage}").glob("plugins/profile/*/*.xplane.pb"))) == 1


def test_a_result_compares_with_itself(measured, capsys):
    earlier = bench.read_result(measured / "result.json")
    text = bench.comparison(earlier, earlier)
    # Neither the work nor the yardstick has a word, nor what was not measured.
    assert text.count(" same") == len(bench.COLUMNS) - 2 - len(bench.SIMULATED)
    assert "different machines" not in text


# --------------------------------------------------------------------------------------------------------------- frames


@pytest.fixture
def little(tmp_path, monkeypatch):
    """Episodes of ten decisions and small images, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "ENV_STEPS", 5)
    monkeypatch.setattr(bench, "ENV_SETTINGS", bench.ENV_SETTINGS | {"size": 16, "action_repeat": 100})
    return tmp_path


def test_a_measured_collection_counts_the_frames_of_all_processes_and_leaves_nothing(little):
    assert bench.measure_collection(2, "plain") > 0
    assert list(little.iterdir()) == []


@pytest.mark.full
def test_frames_are_measured_without_any_training(little, capsys):
    flags = ["--what", "frames", "--json", "frames.json"]
    assert bench.main(flags) == 0
    (one,) = bench.read_result(little / "frames.json")["rows"]
    assert set(one) == KEYS and one["config"] == "frames"
    assert {key for key, value in one.items() if value is not None} == {"config", *bench.FRAMES}
    for kind in bench.CHEAPER:
        assert 100 >= one[f"{kind}_pixels_percent"] >= one[f"{kind}_seen_pixels_percent"] >= 0
    assert all(one[key] > 0 for key in bench.FRAMES if "_per_s" in key)
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 1 + len(bench.FRAMES)
    assert "frames: now, before, change" in bench.comparison(
        {"rows": [one], "machine": {}}, {"rows": [one], "machine": {}}
    )


def test_where_nothing_can_be_drawn_nothing_is_measured_and_a_line_says_so(little, monkeypatch, capsys):
    monkeypatch.setattr(bench, "ENV_TASK", "dmcdrv_walker_wlk")
    assert bench.measure_environment() == dict.fromkeys(
        ["env_steps_per_s", "fast_env_steps_per_s", "plain_env_steps_per_s"]
    )
    assert bench.measure_collections() == {}
    printed = capsys.readouterr().out
    assert "env steps/s: not measured (unknown task" in printed
    assert "collected frames/s: not measured (unknown task" in printed


# ------------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("released", [], (16, 50, 48)),
        ("defaults", [], (16, 50, 32)),
        ("small", [], (8, 16, 16)),
        ("released+small", ["--batch", "3"], (3, 16, 16)),
        ("defaults", ["--batch", "64", "--length", "25"], (64, 25, 32)),
    ],
)
def test_rows_are_configurations_at_a_batch_that_fits_their_size(name, flags, expected):
    config = configuration.load(bench.command(name, bench.parse(flags)))
    assert (config.batch.size, config.batch.length, config.encoder.depth) == expected


def test_flags_of_training_reach_the_rows():
    flags = ["--precision", "mixed_bfloat16", "--jit", "partial", "--remat", "100", "--device", "cpu"]
    config = configuration.load(bench.command("released", bench.parse(flags)))
    assert (config.precision, config.jit, config.remat, config.device) == ("mixed_bfloat16", "partial", 100, "cpu")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch", "0"], "--batch: expected at least 1, received 0"),
        (["--updates", "-1"], "--updates: expected at least 1, received -1"),
        (["--configs", "relesed"], "relesed"),
        (["--what", "frames"], "--no_env: expected no such flag beside --what frames"),
        (["--compare", "nowhere.json"], "--compare nowhere.json: expected a file written by bench.py --json"),
    ],
)
def test_mistakes_are_named_before_anything_is_measured(flags, message):
    with pytest.raises(ConfigError, match=message):
        bench.main(["--no_env", *flags])


@pytest.mark.parametrize("content", ["", "{}", '{"rows": [1]}', '{"machine": {}, "rows": [{"config": "small"}]}'])
def test_a_file_that_is_no_result_is_refused(tmp_path, content):
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(ConfigError, match="write one first"):
        bench.read_result(tmp_path / "other.json")


# --------------------------------------------------------------------------------------------------------------- tables


def test_the_table_has_a_line_for_each_figure_and_a_column_for_each_row():
    lines = bench.table([row(), row(config="released", batch=16, length=50, model_update_s=10.25)]).splitlines()
    assert "small 8 x 16  released 16 x 50" in lines[0]
    assert len(lines) == 1 + len(bench.COLUMNS) + len(bench.PER_SECOND)
    (model,) = (line for line in lines if line.startswith("model update,"))
    assert model.split()[-2:] == ["1.000", "10.250"]
    (rate,) = (line for line in lines if line.startswith("model updates/s"))
    assert rate.split()[-2:] == ["1.00", "0.10"]
    env = next(line for line in lines if line.startswith("env steps/s"))
    assert env.split()[-2:] == ["-", "-"]
    assert len({len(line) for line in lines}) == 1


def test_a_result_from_before_the_evaluation_was_measured_compares(tmp_path):
    old = {key: value for key, value in row().items() if key not in bench.LATER}
    (tmp_path / "old.json").write_text(json.dumps(result(old)))
    text = bench.comparison(bench.read_result(tmp_path / "old.json"), result(row(eval_steps_per_s_2=2.0)))
    assert "imagined steps/s" in text and "evaluation" not in text
    assert "+100.0% better" in bench.comparison(result(row()), result(row(eval_steps_per_s_2=2.0)))


def test_changes_are_judged_by_the_direction_that_is_better():
    before = result(row(model_update_s=2.0, imagined_steps_per_s=100.0, policy_update_s=1.0))
    now = result(row(model_update_s=1.0, imagined_steps_per_s=50.0, policy_update_s=1.01), row(config="released"))
    text = bench.comparison(before, now)
    assert "-50.0% better" in next(line for line in text.splitlines() if "model update, s" in line)
    assert "-50.0% worse" in next(line for line in text.splitlines() if "imagined steps/s" in line)
    assert "+1.0% same" in next(line for line in text.splitlines() if "policy update, s" in line)
    assert "released 8 x 16: no such row in the earlier result" in text


def test_results_of_two_machines_are_compared_with_a_warning():
    text = bench.comparison(result(row(), cores=2), result(row(), cores=16))
    assert "different machines" in text
