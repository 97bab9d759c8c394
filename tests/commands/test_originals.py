"""Metrics files of the original programs, written here from the description of each format, as directories of ours."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import records

from semopo_tf import originals
from semopo_tf.errors import ConfigError, DataError, StorageError, one_line
from semopo_tf.report import __main__ as report
from semopo_tf.storage.files import FILES
from semopo_tf.storage.records import read_records

INFINITY = float("inf")
STORE = {"eval_total_steps": 500, "eval_total_episodes": 1, "eval_loaded_steps": 500, "eval_loaded_episodes": 1}


def episodes(step: int, *returns: float) -> list[dict]:
    """Evaluation episodes as DreamerV2's family logs them: one row each, all with the same step."""
    return [{"step": step, "eval_return": value, "eval_length": 500.0, **STORE} for value in returns]


def model(step: int, **more: float) -> dict:
    losses = {
        "reward_loss": 1.5,
        "image_loss": 11400.0,
        "model_kl": 8.0,
        "prior_ent": 30.0,
        "post_ent": 25.0,
        "model_loss": 11410.0,
    }
    return {"step": step, **losses, "model_loss_scale": 32768.0, "model_grad_norm": 90.0, **more}


def behaviour(step: int, **more: float) -> dict:
    losses = {
        "actor_loss": -3.5,
        "actor_grad_norm": 0.5,
        "critic_loss": 1.25,
        "critic_grad_norm": 2.0,
        "critic_target": 3.0,
    }
    return {
        "step": step,
        **losses,
        "reward_mean": 0.25,
        "reward_std": 0.1,
        "actor_ent": 5.0,
        "critic": 2.5,
        "lambda": 10.0,
        "fps": 4.0,
        **more,
    }


DISEN = {
    **{
        "disen/disen_only_image_loss": 17000.0,
        "disen/disen_reward_loss": -INFINITY,
        "disen/kl": 12.0,
        "disen/prior_ent": 40.0,
    },
    **{"disen/post_ent": 28.0, "disen_loss": 28500.0, "disen_grad_norm": 70.0, "disen_reward_loss": 1.1},
}
# The random episode, two of three evaluations of the untrained policy inside the model phase, then both phases with
# their own steps.
SEMOPO = [
    *episodes(0, 25.0),
    *(model(step, **DISEN) for step in (100, 200)),
    *episodes(0, 20.0, 30.0),
    *(model(step, **DISEN) for step in (300, 400)),
    *episodes(0, 22.0, 32.0),
    *episodes(0, 21.0, 31.0),
    behaviour(1000),
    *episodes(1000, 100.0, 110.0),
    behaviour(2000, actor_loss=float("nan")),
]
OFFLINE_DV2 = [
    *episodes(0, 25.0),
    *(model(step, kl_loss=9.0, validation_model_loss=11500.0) for step in (100, 200, 300)),
    *episodes(0, 40.0),
    behaviour(200),
    *episodes(200, 50.0),
    behaviour(400),
]
DREAMERV2 = [
    {"step": 1000, "train_return": 12.0, "train_length": 500.0, "train_total_steps": 500.0},
    *episodes(1000, 11.0),
    *episodes(1000, 13.0),
    {**model(2000, kl_loss=9.0), **behaviour(2000)},
    {"step": 3000, "train_return": 60.0, "train_length": 500.0, "train_total_steps": 1500.0},
    *episodes(3000, 70.0),
]
# The code base of DeepMind Control: names with a slash, no evaluation with random actions, KL with its free nats.
TIA_LOSSES = {
    "image_loss": 11500.0,
    "reward_loss": 1.0,
    "div": 3.0,
    "model_loss": 11504.0,
    "value_loss": 2.0,
    "actor_loss": -4.0,
}
TIA = [
    *({"step": 1000 * n, "train/return": 30.0 + n, "train/length": 500, "episodes": n} for n in range(1, 6)),
    {"step": 5000, "test/return": 33.0, "test/length": 500, "episodes": 5},
    {
        "step": 5000,
        "model_grad_norm": 80.0,
        "value_grad_norm": 1.5,
        "prior_ent": 20.0,
        "action_ent": 2.0,
        "expl_amount": 0.3,
        **TIA_LOSSES,
    },
    {"step": 10000, "test/return": 44.0, "test/length": 500, "episodes": 10},
]
# Its other one, from which the released SeMOPO took its separated model.
TIA_ATARI = [
    {"step": 1000, "train_return": 12.0, "train_length": 500.0, "train_episodes": 1.0},
    {"step": 1000, "eval_return": 9.0, "eval_length": 500.0, "eval_episodes": 1.0},
    {
        "step": 1000,
        "kl": 7.0,
        "disen/kl": 6.0,
        "main/model_loss": 11000.0,
        "main/model_grad_norm": 60.0,
        "value_loss": 2.0,
        "actor_loss": -1.0,
    },
    {"step": 2000, "eval_return": 15.0, "eval_length": 500.0, "eval_episodes": 1.0},
]
FILES_OF = {"semopo": SEMOPO, "offline_dv2": OFFLINE_DV2, "dreamerv2": DREAMERV2, "tia": TIA}


def write(path: Path, rows: list[dict]) -> Path:
    """Writes rows as the originals do with `json.dumps`, with NaN and -Infinity."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(file: Path, out: Path, format: str) -> list[str]:
    named = ["--method", "an original", "--task", "dmcdrv_walker_walk", "--level", "random", "--seed", "3"]
    return ["--metrics", str(file), "--format", format, *named, "--out", str(out)]


@pytest.fixture
def imported(tmp_path):
    """Import rows; returns (rows of metrics, rows of scores, origin)."""

    def run(rows: list[dict], format: str):
        out = tmp_path / "deep" / "out"
        assert originals.main(flags(write(tmp_path / "metrics.jsonl", rows), out, format)) == 0
        return (
            read_records(out / "metrics.jsonl"),
            read_records(out / "scores.jsonl"),
            json.loads((out / "origin.json").read_text()),
        )

    return run


def returns(scores: list[dict]) -> dict[tuple[str, int], list[float]]:
    found: dict[tuple[str, int], list[float]] = {}
    for row in scores:
        found.setdefault((row["phase"], row["step"]), []).append(row["return"])
    return found


def at(metrics: list[dict], phase: str, step: int, name: str) -> dict:
    (row,) = [row for row in metrics if (row["phase"], row["step"]) == (phase, step) and name in row]
    return row


def test_semopo_has_two_phases_in_one_file_and_evaluations_of_the_model_phase_get_their_step(imported):
    metrics, scores, origin = imported(SEMOPO, "semopo")
    trained = [(row["phase"], row["step"]) for row in metrics if "eval_return" not in row]
    assert trained == [
        ("model", 100),
        ("model", 200),
        ("model", 300),
        ("model", 400),
        ("policy", 1000),
        ("policy", 2000),
    ]
    # After update 400 no model update follows: what was played then and at the policy's step 0 is of one agent.
    assert returns(scores) == {("model", 200): [20, 30], ("policy", 0): [22, 32, 21, 31], ("policy", 1000): [100, 110]}
    assert [row["episode_seed"] for row in scores] == [0, 1, 0, 1, 2, 3, 0, 1]
    assert metrics == sorted(metrics, key=lambda row: (row["phase"], row["step"]))
    row = at(metrics, "policy", 0, "eval_return")
    assert row == {
        "phase": "policy",
        "step": 0,
        "eval_return": 26.5,
        "eval_return_std": np.std([22, 32, 21, 31]),
        "eval_episodes": 4,
    }
    assert origin["axis"] == "updates in the phase"


def test_a_score_row_says_what_is_known(imported):
    row = imported(SEMOPO, "semopo")[1][-1]
    known = {
        "method": "an original",
        "task": "dmcdrv_walker_walk",
        "run_seed": 3,
        "phase": "policy",
        "step": 1000,
        "episode_seed": 1,
    }
    assert known.items() <= row.items()
    assert (row["return"], row["length"], row["source"], row["environment"], row["clips"]) == (
        110.0,
        500,
        "imported",
        {},
        [],
    )


def test_names_are_ours_where_the_quantity_is_and_theirs_elsewhere(imported):
    metrics = imported(SEMOPO, "semopo")[0]
    row = at(metrics, "model", 300, "image_loss")
    same = {"image_loss": 11400.0, "reward_loss": 1.5, "endo_kl": 8.0, "endo_prior_ent": 30.0, "endo_post_ent": 25.0}
    same |= {"exo_kl": 12.0, "exo_prior_ent": 40.0, "exo_post_ent": 28.0, "endo_grad_norm": 90.0, "exo_grad_norm": 70.0}
    assert same.items() <= row.items()
    assert row["main_model_loss"] == 11410.0 and "model_loss" not in row  # ours is the total of both models
    assert (
        row["disen/disen_only_image_loss"] == 17000.0 and "exo_image_loss" not in row
    )  # theirs is multiplied by its weight
    row = at(metrics, "policy", 1000, "actor_loss")
    assert {
        "actor_loss": -3.5,
        "critic_loss": 1.25,
        "target": 3.0,
        "imagined_reward": 0.25,
        "lambda": 10.0,
    }.items() <= row.items()


def test_numbers_that_are_not_finite_are_dropped_and_counted(imported, capsys):
    metrics, _, origin = imported(SEMOPO, "semopo")
    assert not any("disen/disen_reward_loss" in row for row in metrics)
    assert at(metrics, "policy", 2000, "critic_loss") and "actor_loss" not in at(metrics, "policy", 2000, "critic_loss")
    note = "5 numbers that are not finite are left out: actor_loss 1, disen/disen_reward_loss 4"
    assert note in origin["notes"] and f"note: {note}\n" in capsys.readouterr().out


def test_offline_dv2(imported):
    metrics, scores, origin = imported(OFFLINE_DV2, "offline_dv2")
    row = at(metrics, "model", 200, "image_loss")
    assert {
        "joint_kl": 8.0,
        "joint_kl_loss": 9.0,
        "model_loss": 11410.0,
        "model_grad_norm": 90.0,
        "validation_model_loss": 11500.0,
    }.items() <= row.items()
    assert returns(scores) == {("policy", 0): [40], ("policy", 200): [50]}
    assert origin["notes"] == [
        "the first evaluation episode, played with random actions before training, is left out",
        "the policy of the last step, 400, was not evaluated; the newest evaluation is at 200",
    ]


def test_a_run_that_loaded_its_model_has_a_policy_phase_alone(imported):
    metrics, scores, _ = imported([row for row in OFFLINE_DV2 if "model_loss" not in row], "semopo")
    assert returns(scores) == {("policy", 0): [40], ("policy", 200): [50]}
    assert {row["phase"] for row in metrics} == {"policy"}


def test_a_run_that_ended_in_its_model_phase(imported):
    metrics, scores, origin = imported(SEMOPO[:-6], "semopo")
    assert returns(scores) == {("model", 200): [20, 30], ("model", 400): [22, 32]}
    assert metrics[-1]["phase"] == "model" and not any("was not evaluated" in note for note in origin["notes"])


def test_dreamerv2_counts_steps_of_the_simulator(imported):
    metrics, scores, origin = imported(DREAMERV2, "dreamerv2")
    assert origin["axis"] == "steps of the simulator (decisions times action repeat)"
    assert returns(scores) == {("policy", 1000): [13], ("policy", 3000): [70]}
    row = at(metrics, "policy", 2000, "image_loss")
    assert {"joint_kl": 8.0, "actor_loss": -3.5, "imagined_reward": 0.25, "model_loss": 11410.0}.items() <= row.items()
    assert at(metrics, "policy", 3000, "train_return")["train_return"] == 60.0


def test_tia(imported):
    metrics, scores, origin = imported(TIA, "tia")
    assert returns(scores) == {("policy", 5000): [33], ("policy", 10000): [44]}
    row = at(metrics, "policy", 5000, "image_loss")
    same = {
        "image_loss": 11500.0,
        "endo_kl_loss": 3.0,
        "critic_loss": 2.0,
        "critic_grad_norm": 1.5,
        "endo_prior_ent": 20.0,
        "action_ent": 2.0,
    }
    assert same.items() <= row.items()
    assert row["main_model_loss"] == 11504.0 and row["main_grad_norm"] == 80.0
    assert not {"model_loss", "model_grad_norm", "value_loss", "div"} & set(row)
    assert origin["axis"].startswith("steps of the simulator") and origin["notes"] == []


def test_the_other_code_base_of_tia(imported):
    metrics, scores, _ = imported(TIA_ATARI, "tia")
    assert returns(scores) == {("policy", 2000): [15]}
    row = at(metrics, "policy", 1000, "actor_loss")
    assert {
        "endo_kl": 7.0,
        "exo_kl": 6.0,
        "endo_grad_norm": 60.0,
        "main_model_loss": 11000.0,
        "critic_loss": 2.0,
    }.items() <= row.items()


def test_the_origin_says_where_the_numbers_are_from(imported, tmp_path):
    origin = imported(TIA, "tia")[2]
    digest = hashlib.sha256((tmp_path / "metrics.jsonl").read_bytes()).hexdigest()
    said = {
        "format": "tia",
        "method": "an original",
        "task": "dmcdrv_walker_walk",
        "level": "random",
        "seed": 3,
        "sha256": digest,
    }
    assert said.items() <= origin.items() and origin["file"] == str(tmp_path / "metrics.jsonl")
    assert sorted(path.name for path in (tmp_path / "deep" / "out").iterdir()) == [
        "metrics.jsonl",
        "origin.json",
        "scores.jsonl",
    ]


@pytest.mark.parametrize("format", ["semopo", "offline_dv2"])
def test_their_run_stands_in_the_tables_and_curves_beside_ours(format, tmp_path):
    ours = records.write_run(tmp_path / "ours", "semopo", "dmcdrv_walker_walk", 1, returns=[10, 20])
    theirs = tmp_path / "theirs"
    assert originals.main(flags(write(tmp_path / "metrics.jsonl", FILES_OF[format]), theirs, format)) == 0
    assert report.main([str(ours), str(theirs), "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    last = 105.0 if format == "semopo" else 50.0
    assert "an original (imported)" in page
    table = (tmp_path / "page" / "tables" / "table5.csv").read_text()
    assert (
        f"walker_walk random,an original (imported),these runs,{last}," in table
        and "walker_walk random,semopo,these runs,15.0," in table
    )
    curve = (tmp_path / "page" / "figures" / "curves_walker_walk_random_image_loss.svg").read_text()
    assert "an original (imported)" in curve and "semopo" in curve


def test_a_torn_last_line_is_left_out_with_a_note(tmp_path, capsys):
    file = write(tmp_path / "metrics.jsonl", TIA)
    with open(file, "a") as stream:
        stream.write('{"step": 11000, "train/ret')
    assert originals.main(flags(file, tmp_path / "out", "tia")) == 0
    assert "note: the last line is incomplete and is left out\n" in capsys.readouterr().out
    file.write_bytes(file.read_bytes().rstrip(b"\n").rpartition(b"\n")[0])  # whole, but for its end
    assert originals.main(flags(file, tmp_path / "again", "tia")) == 0
    assert "incomplete" not in capsys.readouterr().out
    assert (tmp_path / "again" / "scores.jsonl").read_bytes() == (tmp_path / "out" / "scores.jsonl").read_bytes()


def test_an_episode_whose_return_is_not_finite_is_no_score(imported):
    scores, origin = imported([*TIA, {"step": 15000, "test/return": INFINITY, "test/length": 500}], "tia")[1:]
    assert len(scores) == 2 and origin["notes"] == ["1 numbers that are not finite are left out: test/return 1"]


WRONG = {
    "a list": (b"[1, 2]\n", "line 1: expected a JSON object, received list"),
    "no JSON": (b'{"step": 1}\nstep 2\n{"step": 3}\n', r"line 2: expected a JSON object \("),
    "a name twice": (
        b'{"step": 1, "test/return": 1, "test/return": 2}\n',
        "line 1: expected a JSON object .a name stands twice",
    ),
    "no step": (b'{"test/return": 1}\n', "line 1: expected a whole number as step, received None"),
    "a step that is no number": (
        b'{"step": "1", "test/return": 1}\n',
        "line 1: expected a whole number as step, received '1'",
    ),
    "a step below zero": (b'{"step": -1, "test/return": 1}\n', "line 1: expected a whole number as step, received -1"),
    "a step that is infinite": (
        b'{"step": Infinity, "test/return": 1}\n',
        "line 1: expected a whole number as step, received inf",
    ),
    "a huge step": (b'{"step": 1' + b"0" * 3000 + b', "test/return": 1}\n', "line 1: expected a whole number as step"),
    "a text": (b'{"step": 1, "test/return": "high"}\n', "line 1: test/return: expected a number, received 'high'"),
    "a nested value": (
        b'{"step": 1, "x": {"y": [1]}, "test/return": 1}\n',
        "line 1: x: expected a number, received {'y'",
    ),
    "deep nesting": (b"[" * 100_000 + b"\n", "line 1: expected a JSON object"),
    "bytes": (b"\xff\xfe\x00\n", r"line 1: expected a JSON object \("),
    "nothing": (b"", "expected rows of training or evaluation, received none"),
    "steps alone": (b'{"step": 1}\n{"step": 2}\n', "expected rows of training or evaluation, received none"),
    "names of another program": (
        b'{"step": 1, "train_return": 1}\n',
        "the names that tia writes, received those of dreamerv2; use --format dreamerv2",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_line_and_leaves_nothing(name, tmp_path):
    content, message = WRONG[name]
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        originals.main(flags(tmp_path / "metrics.jsonl", tmp_path / "out", "tia"))
    assert len(one_line(caught.value)) < 300 + len(str(tmp_path)) and "\n" not in one_line(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("format", FILES_OF)
def test_a_file_is_refused_as_that_of_another_program(format, tmp_path):
    file = write(tmp_path / "metrics.jsonl", FILES_OF[format])
    for other in set(FILES_OF) - {format}:
        with pytest.raises(
            DataError,
            match=f"expected the names that {other} writes, received those of {format}; use --format {format}",
        ):
            originals.main(flags(file, tmp_path / "out", other))
    assert not (tmp_path / "out").exists()


def test_two_runs_in_one_file_are_refused(tmp_path):
    """A program that was started again in the same folder appends to the file."""
    for rows, message in (
        ([model(100), model(200), model(100)], "line 3: model step 100 after step 200: two runs in one file"),
        (
            [*OFFLINE_DV2, model(500)],
            f"line {len(OFFLINE_DV2) + 1}: model step 500 after policy step 400: two runs in one file",
        ),
        ([model(100), behaviour(200), behaviour(200)], "line 3: policy step 200 after step 200: two runs in one file"),
    ):
        with pytest.raises(DataError, match=message):
            originals.main(flags(write(tmp_path / "metrics.jsonl", rows), tmp_path / "out", "offline_dv2"))


def test_a_row_of_no_phase_is_refused_offline(tmp_path):
    for row in ({"step": 5, "loss": 1.0}, {**model(5), **behaviour(5)}):
        with pytest.raises(
            DataError, match="line 2: expected one of model_loss, actor_loss, eval_return among its names, received"
        ):
            originals.main(flags(write(tmp_path / "metrics.jsonl", [model(4), row]), tmp_path / "out", "offline_dv2"))


def test_wrong_flags_are_refused(tmp_path):
    file = write(tmp_path / "metrics.jsonl", TIA)
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="--out: expected a directory that does not exist yet"):
        originals.main(flags(file, tmp_path / "out", "tia"))
    for flag, value, message in (
        ("--method", "a\nb", r"--method: expected a name, received 'a\\nb'"),
        ("--level", " ", "--level: expected a name"),
        ("--seed", "one", "argument --seed: invalid int value"),
        ("--format", "dreamerv3", "argument --format: invalid choice"),
    ):
        with pytest.raises(ConfigError, match=message):
            originals.main([*flags(file, tmp_path / "new", "tia"), flag, value])
    with pytest.raises(DataError, match=r"--metrics .*none: cannot be read"):
        originals.main(flags(tmp_path / "none", tmp_path / "new", "tia"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("step", ["write", "rename", "make_directory"])
def test_a_disk_that_refuses_leaves_nothing(step, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    file = write(tmp_path / "metrics.jsonl", TIA)
    monkeypatch.setattr(FILES, step, refuse)
    with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\)"):
        originals.main(flags(file, tmp_path / "out", "tia"))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
