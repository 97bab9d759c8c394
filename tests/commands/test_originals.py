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
# DreamerV2's API: no prefix, and no evaluation.
DREAMERV2_API = [
    {"step": 1000, "return": 12.0, "length": 500.0, "total_steps": 500.0, "total_episodes": 1.0},
    {**model(2000, kl_loss=9.0), **behaviour(2000)},
    {"step": 2000, "return": 40.0, "length": 500.0, "total_steps": 1000.0, "total_episodes": 2.0},
]
# DreamerV3: what is logged at one step is one row, whichever part of the program logged it.
DREAMERV3 = [
    {"step": 1000, "episode/score": 12.0, "episode/length": 501.0},
    {
        **{"step": 2000, "episode/score": 30.0, "episode/length": 501.0, "train/loss/image": 900.0},
        **{
            "train/loss/policy": -1.0,
            "train/opt/grad_norm": float("nan"),
            "fps/policy": 60.0,
            "epstats/reward_rate": 0.5,
        },
    },
    {"step": 2000, "replay/items": 2000.0, "usage/psutil/proc_cpu_usage": 90.0},
    {"step": 3000, "episode/score": 44.0, "episode/length": 501.0},
]
# Its first version, whose evaluations have a name of their own.
DREAMERV3_EVALUATED = [
    {"step": 1000, "episode/score": 12.0, "episode/length": 500.0},
    {"step": 1000, "eval_episode/score": 10.0, "eval_episode/length": 500.0, "train/actor_loss": 1.0},
    {"step": 2000, "eval_episode/score": 20.0, "eval_episode/length": 500.0},
    {"step": 2500, "episode/score": 99.0, "episode/length": 500.0},
]
FILES_OF = {
    **{"semopo": SEMOPO, "offline_dv2": OFFLINE_DV2, "dreamerv2": DREAMERV2, "tia": TIA},
    "dreamerv3": DREAMERV3,
}


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
        ("--format", "planet", "argument --format: invalid choice"),
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


# --- formats that were named and refused ------------------------------------------------------------------------------


def test_I20_dreamerv2s_api_has_the_returns_of_its_training_episodes(imported):
    metrics, scores, origin = imported(DREAMERV2_API, "dreamerv2")
    assert returns(scores) == {("policy", 1000): [12], ("policy", 2000): [40]}
    assert [row["length"] for row in scores] == [500, 500]
    row = at(metrics, "policy", 2000, "image_loss")
    assert {"joint_kl": 8.0, "actor_loss": -3.5, "imagined_reward": 0.25, "model_loss": 11410.0}.items() <= row.items()
    assert "return" not in row and at(metrics, "policy", 2000, "eval_return")["eval_return"] == 40
    assert origin["notes"] == [
        "the returns are those of single training episodes, exploration included: the rows have no evaluations of "
        "their own"
    ]
    assert origin["unfinished"] == ""


def test_I20_a_start_of_dreamerv2s_api_without_an_episode_is_not_taken_for_another_program(imported):
    metrics, scores, _ = imported(DREAMERV2_API[1:2], "dreamerv2")
    assert [row["step"] for row in metrics] == [2000] and scores == []


def test_I20_dreamerv3_has_scores_and_losses_in_one_row(imported):
    metrics, scores, origin = imported(DREAMERV3, "dreamerv3")
    assert returns(scores) == {("policy", 1000): [12], ("policy", 2000): [30], ("policy", 3000): [44]}
    row = at(metrics, "policy", 2000, "train/loss/image")
    assert row["train/loss/policy"] == -1.0 and "episode/score" not in row and "train/opt/grad_norm" not in row
    assert origin["notes"][0] == "1 numbers that are not finite are left out: train/opt/grad_norm 1"
    assert "training episodes, exploration included" in origin["notes"][1]
    assert origin["axis"].startswith("steps of the simulator") and origin["unfinished"] == ""


def test_I20_dreamerv3s_scores_alone_are_enough(imported):
    kept = ("step", "episode/score")
    metrics, scores, _ = imported([{key: row[key] for key in kept} for row in DREAMERV3[::3]], "dreamerv3")
    assert returns(scores) == {("policy", 1000): [12], ("policy", 3000): [44]}
    assert [row["length"] for row in scores] == [None, None]
    assert [row["eval_return"] for row in metrics] == [12, 44]


def test_I20_evaluations_with_a_name_of_their_own_are_the_scores(imported):
    metrics, scores, origin = imported(DREAMERV3_EVALUATED, "dreamerv3")
    assert returns(scores) == {("policy", 1000): [10], ("policy", 2000): [20]}
    assert at(metrics, "policy", 2500, "episode/score")["episode/score"] == 99
    assert at(metrics, "policy", 1000, "train/actor_loss")["train/actor_loss"] == 1
    assert origin["notes"] == []


def test_I20_rows_of_no_known_program_are_called_so_and_no_format_is_suggested(tmp_path):
    file = write(tmp_path / "metrics.jsonl", [{"step": 1, "loss/total": 2.0, "reward": 1.0}])
    with pytest.raises(
        DataError, match=r"received those of no known program \(loss/total, reward\); give the"
    ) as caught:
        originals.main(flags(file, tmp_path / "out", "dreamerv3"))
    assert "--format" not in str(caught.value)


@pytest.mark.parametrize("format", ["dreamerv2", "dreamerv3"])
def test_I20_the_page_shows_them(format, tmp_path):
    rows = DREAMERV2_API if format == "dreamerv2" else DREAMERV3
    assert originals.main(flags(write(tmp_path / "metrics.jsonl", rows), tmp_path / "run", format)) == 0
    assert report.main([str(tmp_path / "run"), "--out", str(tmp_path / "page")]) == 0
    table = (tmp_path / "page" / "tables" / "table5.csv").read_text()
    assert f"an original (imported),these runs,{rows[-1].get('return', 44.0)}," in table


# --- runs that never finished -----------------------------------------------------------------------------------------

STOPPED = {
    "model phase": ("semopo", SEMOPO[:-6], "ends in the model phase, at update 400: its policy is untrained"),
    "model phase, Offline DV2": (
        *("offline_dv2", OFFLINE_DV2[:4]),
        "ends in the model phase, at update 300: its policy is untrained",
    ),
    "evaluated before the policy alone": (
        *("semopo", SEMOPO[:-3]),
        "was evaluated only before its policy was trained",
    ),
    "online, before training": ("dreamerv2", DREAMERV2[:3], "has no row of training: its policy is untrained"),
}


def import_to(folder: Path, rows: list[dict], format: str, *more: str, settings: str = "") -> Path:
    """A run of an original in its own folder, imported beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    if settings:
        (folder / "config.yaml").write_text(settings)
    assert originals.main([*flags(write(folder / "metrics.jsonl", rows), folder / "run", format), *more]) == 0
    return folder / "run"


def page_of(folder: Path, *logdirs: Path) -> str:
    assert report.main([*map(str, logdirs), "--out", str(folder)]) == 0
    return (folder / "index.html").read_text()


@pytest.mark.parametrize("case", STOPPED)
def test_I04_an_imported_run_without_a_trained_policy_is_named_and_enters_no_table(case, tmp_path, capsys):
    format, rows, reason = STOPPED[case]
    whole = import_to(tmp_path / "whole", SEMOPO, "semopo", "--method", "whole")
    stopped = import_to(tmp_path / "stopped", rows, format)
    assert f"note: the run {reason}; it enters no table\n" in capsys.readouterr().out
    page = page_of(tmp_path / "page", whole, stopped)
    assert f"{stopped}: imported, and the run {reason}; it is in no table and no figure but the learning curves" in page
    assert "Finished seeds: whole (imported) 1." in page
    for name in ("table1", "table5", "returns", "aggregates"):
        text = (tmp_path / "page" / "tables" / f"{name}.csv").read_text()
        assert "whole (imported)" in text and "an original" not in text


ENDS = {
    # format: (rows, config.yaml, its end, last step, whether it is finished)
    "offline, stopped": ("offline_dv2", OFFLINE_DV2, "steps: 2e5\n", 200_000, 400, False),
    "offline, one row too few": ("offline_dv2", OFFLINE_DV2, "steps: 401\n", 401, 400, False),
    "offline, whole": ("offline_dv2", OFFLINE_DV2, "steps: 400.0\n", 400, 400, True),
    "SeMOPO, stopped": ("semopo", SEMOPO, "steps: 200000\noffline_model_train_steps: 25001\n", 200_000, 2000, False),
    "DreamerV2, stopped": ("dreamerv2", DREAMERV2, "steps: 1e6\naction_repeat: 2\n", 2_000_000, 3000, False),
    "DreamerV2, whole": ("dreamerv2", DREAMERV2, "steps: 1500\naction_repeat: 2\n", 3000, 3000, True),
    "TIA, whole but for its last rows": ("tia", TIA, "steps: 10050.0\n", 10050, 10000, True),
    "TIA, stopped": ("tia", TIA, "steps: 20000\n", 20000, 10000, False),
    "DreamerV3, stopped": (
        *("dreamerv3", DREAMERV3, "task: dmc_walker_walk\nrun: {steps: 1.1e6}\nenv:\n  dmc: {repeat: 2}\n"),
        *(2_200_000, 3000, False),
    ),
    "DreamerV3, whole": ("dreamerv3", DREAMERV3, "task: atari_pong\nrun: {steps: 3000}\n", 3000, 3000, True),
}


@pytest.mark.parametrize("case", ENDS)
def test_I04_a_run_that_stopped_before_its_configured_end_is_unfinished(case, tmp_path):
    format, rows, settings, end, last, finished = ENDS[case]
    run = import_to(tmp_path, rows, format, settings=settings)
    origin = json.loads((run / "origin.json").read_text())
    assert origin["end"] == end and origin["unfinished"] == ("" if finished else f"stopped at step {last} of {end}")
    page, table = page_of(tmp_path / "page", run), tmp_path / "page" / "tables" / "table5.csv"
    assert table.exists() == finished and ("0 of 1, imported" in page) != finished
    assert (f"If it was stopped on purpose, import it with --steps {last}." in page) != finished


def test_I04_the_flag_goes_before_the_file_and_an_unknown_end_is_said(tmp_path, capsys):
    run = import_to(tmp_path / "a", OFFLINE_DV2, "offline_dv2", "--steps", "400", settings="steps: 2e5\n")
    assert json.loads((run / "origin.json").read_text())["unfinished"] == ""
    assert "does not say where" not in capsys.readouterr().out
    for number, settings in enumerate(("", "steps: many\n", "steps: [1]\n", "a: [\n", "steps: true\n", "steps: -1\n")):
        run = import_to(tmp_path / f"unknown{number}", OFFLINE_DV2, "offline_dv2", settings=settings)
        assert "config.yaml does not say where the run should end; --steps names" in capsys.readouterr().out
    page = page_of(tmp_path / "page", run)
    assert f"{run}: imported; it is not known at which step it should have ended, and it counts as finished" in page
    with pytest.raises(ConfigError, match="--steps: expected at least 1, received 0"):
        import_to(tmp_path / "zero", OFFLINE_DV2, "offline_dv2", "--steps", "0")


def test_I04_seeds_with_different_last_steps_are_named(tmp_path):
    longer = [*SEMOPO, behaviour(3000), *episodes(3000, 200.0)]
    first = import_to(tmp_path / "a", SEMOPO, "semopo", "--seed", "1")
    second = import_to(tmp_path / "b", longer, "semopo", "--seed", "2")
    steps = "seed 1 at policy step 2000, seed 2 at policy step 3000"
    sentence = f"the seeds ended at different steps, and their mean mixes them: {steps}."
    page = page_of(tmp_path / "page", first, second)
    assert page.count(f"walker_walk random, an original (imported): {sentence}") == 2  # at the tables, and at the runs
    assert sentence not in page_of(tmp_path / "same", first)


def test_I04_seeds_that_were_evaluated_at_different_steps_are_named(tmp_path):
    first = import_to(tmp_path / "a", SEMOPO, "semopo", "--seed", "1")
    second = import_to(tmp_path / "b", [*SEMOPO, *episodes(2000, 200.0)], "semopo", "--seed", "2")
    where = "seed 1 at policy step 1000, seed 2 at policy step 2000"
    assert f"the seeds were evaluated at different steps, and their mean mixes them: {where}." in page_of(
        tmp_path / "page", first, second
    )


@pytest.mark.parametrize("rows", [SEMOPO, SEMOPO[:-6]], ids=["finished", "stopped"])
def test_I04_a_page_of_imported_runs_suggests_no_command_that_needs_a_run_of_this_package(rows, tmp_path):
    page = page_of(tmp_path / "page", import_to(tmp_path / "a", rows, "semopo"))
    assert "<code>python train.py" in page and "semopo_tf.data stats" in page
    for command in ("evaluate.py", "semopo_tf.analysis", "semopo_tf.probe", "The same train.py command"):
        assert command not in page


def test_I04_a_command_names_a_run_of_this_package_where_there_is_one(tmp_path):
    theirs = import_to(tmp_path / "a", SEMOPO, "semopo")
    ours = records.write_run(tmp_path / "ours", "semopo", "dmcdrv_walker_walk", 1, returns=[10, 20])
    page = page_of(tmp_path / "page", theirs, ours)
    assert f"python evaluate.py --logdir {ours} --background_color rgb" in page
    assert f"python -m semopo_tf.analysis --logdir {ours}<" in page


def test_I04_of_two_imports_of_one_seed_the_finished_one_counts(tmp_path):
    stopped = import_to(tmp_path / "a", SEMOPO[:-6], "semopo")
    whole = import_to(tmp_path / "b", SEMOPO, "semopo")
    page = page_of(tmp_path / "page", stopped, whole)
    assert "Finished seeds: an original (imported) 1." in page and f"{stopped}: left out, the same method" in page


def test_I04_an_import_of_an_earlier_version_is_looked_at_again(tmp_path):
    run = import_to(tmp_path / "a", SEMOPO[:-6], "semopo")
    origin = json.loads((run / "origin.json").read_text())
    (run / "origin.json").write_text(
        json.dumps({key: origin[key] for key in origin if key not in ("end", "unfinished")})
    )
    assert "the run ends in the model phase: its policy is untrained" in page_of(tmp_path / "page", run)


def test_I04_a_finished_run_of_ours_that_was_evaluated_in_its_model_phase_alone_is_in_no_table(tmp_path):
    run = records.write_run(tmp_path / "ours", "semopo", "dmcdrv_walker_walk", 1, returns=())
    records.write_rows(run / "scores.jsonl", [records.score("dmcdrv_walker_walk", 0, 7.0) | {"phase": "model"}])
    page = page_of(tmp_path / "page", run)
    assert f"{run}: finished, but scores.jsonl has no row of its last stage; python evaluate.py --logdir {run}" in page
    assert not (tmp_path / "page" / "tables" / "table5.csv").exists()
