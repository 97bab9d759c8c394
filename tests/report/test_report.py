"""The page: its numbers equal those of the files, it names what is missing, its pictures decode, and it loads nothing
from elsewhere.
"""

import base64
import csv
import html
import io
import json
import re
import shutil
import subprocess
from xml.etree import ElementTree

import imageio.v3 as imageio
import numpy as np
import pytest
import records

from semopo_tf import collect, probe, training
from semopo_tf.data.cards import read_card, write_card
from semopo_tf.errors import ConfigError, DataError, StorageError
from semopo_tf.report import __main__ as report
from semopo_tf.report import bootstrap, comparisons, groups, paper, pictures, result, run_record, scores
from semopo_tf.report.tables import TIMES, Table
from semopo_tf.storage.records import read_records

WALKER, POINT = "dmcdrv_walker_walk", "exbmdp_point"
METHODS = {"semopo": ("endo", "exo"), "se_rs": ("endo", "exo"), "offline_dv2": ("joint",)}
RETURNS = {  # of the episodes of two seeds
    (WALKER, "semopo"): ([10, 20], [30, 60]),
    (WALKER, "se_rs"): ([10, 10], [10, 20]),
    (WALKER, "offline_dv2"): ([5, 5], [5, 5]),
    (POINT, "semopo"): ([11, 20], [20, 29]),
    (POINT, "se_rs"): ([2, 2], [11, 11]),
    (POINT, "offline_dv2"): ([2, 20], [2, 20]),
}
ANALYSED = ("Figure 2", "Figure 3", "Figure 5", "Figure 6", "Figure 7", "Figure 8")


def make(out, *logdirs, flags=()):
    assert report.main([*map(str, logdirs), "--out", str(out), *flags]) == 0
    return (out / "index.html").read_text()


def read_csv(path):
    with open(path) as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(folder of the page, the page, logdirs): three methods, two datasets, two seeds, all analyses; an unfinished and
    an imported run besides.
    """
    folder = tmp_path_factory.mktemp("study")
    logdirs = []
    for (task, method), seeds in RETURNS.items():
        for seed, returns in enumerate(seeds, 1):
            logdir = records.write_run(folder / task / method / f"seed={seed}", method, task, seed, returns=returns)
            records.write_analyses(logdir, METHODS[method])
            if task == WALKER:
                rgb = [
                    records.score(task, episode, value / 2, source="evaluate", background_color="rgb")
                    for episode, value in enumerate(returns)
                ]
                records.write_rows(logdir / "scores.jsonl", rgb, add=True)
            logdirs.append(logdir)
    logdirs.append(records.write_run(folder / "stopped", "semopo", WALKER, 3, returns=[1000], done=False))
    logdirs.append(records.write_import(folder / "imported", "semopo", WALKER))
    return folder / "page", make(folder / "page", *logdirs), logdirs


def rows_of(folder, name):
    heading, *rows = read_csv(folder / "tables" / f"{name}.csv")
    return [dict(zip(heading, row, strict=True)) for row in rows]


def test_table_5_holds_means_and_population_deviations_over_seeds_beside_the_paper(study):
    found = {(row["source"], row["method"]): row for row in rows_of(study[0], "table5")}
    ours = found["these runs", "semopo"]
    assert (float(ours["mean"]), float(ours["std"]), ours["seeds"], ours["episodes"]) == (
        30.0,
        15.0,
        "2",
        "2",
    )  # of 15 and 45
    assert (float(found["paper", "semopo"]["mean"]), float(found["paper", "semopo"]["std"])) == paper.table(5)[
        "walker_walk random"
    ]["semopo"]
    imported = found["these runs", "semopo (imported)"]
    assert (float(imported["mean"]), imported["std"], imported["seeds"]) == (20.0, "", "1")
    assert f"<td>30 ± 15<small>n 2 {TIMES} 2</small></td>" in study[1]
    assert "walker_walk random: these data are not the paper&#x27;s." in study[1]


def test_table_1_is_normalised_and_table_2_is_the_rgb_evaluations(study):
    first = {(row["source"], row["method"]): float(row["mean"]) for row in rows_of(study[0], "table1")}
    second = {(row["source"], row["method"]): float(row["mean"]) for row in rows_of(study[0], "table2")}
    low, high = paper.bounds(WALKER, "definition")
    assert first["these runs", "semopo"] == pytest.approx((30 - low) / (high - low))
    assert second["these runs", "semopo"] == pytest.approx((15 - low) / (high - low))
    assert first["paper", "semopo"] == 0.77 and second["paper", "semopo"] == 0.78
    assert {row["dataset"] for row in rows_of(study[0], "table2")} == {"walker_walk random"}


def test_all_returns_have_a_row_for_every_condition_and_one_for_the_data(study):
    rows = [row for row in rows_of(study[0], "returns") if row["dataset"] == "walker_walk random"]
    assert [row["method"] for row in rows][:3] == ["the data: random", "semopo", "semopo background_color rgb"]
    assert rows[0]["mean return ± std of seeds"] == "11.0" and rows[1]["mean return ± std of seeds"] == "30.0 ± 15.0"
    assert rows[1]["std of episodes"] == f"{np.std([10, 20, 30, 60]):.1f}" and rows[1]["paper"] == "459 ± 41"
    point = next(
        row
        for row in rows_of(study[0], "returns")
        if row["dataset"] == "exbmdp_point random" and row["method"] == "semopo"
    )
    assert point["normalised"] == "1.00 ± 0.25"  # the data's episodes reach from 2 to 20; seeds 15.5 and 24.5
    assert "exbmdp_point: 2.0 to 20.0 (smallest and largest episode return of the runs&#x27; own datasets" in study[1]


def test_unfinished_runs_are_named_and_stand_in_no_table(study):
    assert f"{study[2][-2]}: not finished" in study[1]
    assert "1000" not in (study[0] / "tables" / "returns.csv").read_text()
    assert next(row["finished"] for row in rows_of(study[0], "runs")) == "2 of 3"


def test_statistics_are_those_of_the_matrices_for_both_units(study):
    table = scores.score_table(groups.grouped([run_record.read_run(logdir) for logdir in study[2]])[0], "definition")
    found = comparisons.compared(table)
    assert [dataset.label for dataset in found.datasets] == ["walker_walk random", "exbmdp_point random"]
    assert list(found.scores["seed"]) == ["semopo", "se_rs", "offline_dv2"] and "semopo (imported)" in found.left_out[0]
    low, high = paper.bounds(WALKER, "definition")
    episodes = np.stack([(np.array([10, 20, 30, 60]) - low) / (high - low), (np.array([11, 20, 20, 29]) - 2) / 18], 1)
    np.testing.assert_allclose(found.scores["episode"]["semopo"], episodes)
    np.testing.assert_allclose(found.scores["seed"]["semopo"], [episodes[:2].mean(0), episodes[2:].mean(0)])
    rows = {(row["method"], row["unit"]): row for row in rows_of(study[0], "aggregates")}
    assert float(rows["semopo", "episode"]["interquartile mean"]) == bootstrap.interquartile_mean(episodes)
    assert [row["unit"] for row in rows_of(study[0], "aggregates")] == ["seed"] * 3 + ["episode"] * 3
    better = {(row["X"], row["Y"], row["unit"]): float(row["P(X > Y)"]) for row in rows_of(study[0], "figure4")}
    assert better["semopo", "offline_dv2", "seed"] == 1  # every seed's mean is higher on both
    assert better["semopo", "offline_dv2", "episode"] == (1 + (1 / 2 + 1 / 2 * (1 / 4 + 1 / 4))) / 2


def test_the_page_begins_with_the_result_and_ends_with_what_is_missing(study):
    folder, page, _ = study
    said = re.search(r"</h1><p class=result>([^<]+)</p>", page)[1]
    assert said == (
        "On walker_walk random, semopo has the highest mean return of 4 methods: 30.0 over 2 seeds of 2 episodes, "
        "against 11.0 over the 3 episodes of its data; on exbmdp_point random, semopo has the highest mean return of 3 "
        "methods: 20.0 over 2 seeds of 2 episodes, against 11.0 over the 3 episodes of its data; with one seed of "
        "semopo (imported) the order may be chance."
    )
    order = ["result", "what_the_models_see", "curves", "uncertainty", "tables", "all_tasks_together"]
    assert re.findall(r"<h2 id=(\w+)>", page) == [*order, "runs_and_settings", "what_is_missing"]
    assert "walker_walk random, mean return: the data 11.0; semopo 30.0; semopo (imported) 20.0; se_rs 12.5" in page
    drawn = (folder / "figures" / "return_walker_walk_random.svg").read_bytes()
    assert page.index(base64.b64encode(drawn).decode()) < page.index("<nav>") < page.index("<dl class=missing>")


@pytest.mark.parametrize(
    ("tasks", "methods", "seeds", "expected"),
    [
        (
            (POINT,),
            ("semopo",),
            1,
            "semopo, the only method, averages 15.0 over 1 seed of 2 episodes, against 11.0 over",
        ),
        ((POINT,), ("semopo",), 1, "; one seed says little."),
        ((POINT,), ("semopo", "se_rs"), 1, "; with one seed per method the order may be chance."),
        ((POINT,), ("semopo", "se_rs"), 2, " of 2 methods: 15.0 over 2 seeds of 2 episodes, against 11.0 over the 3 "),
        (
            (*records.TASKS,),
            ("semopo", "se_rs"),
            2,
            "semopo has the highest mean return on 4 of 4 datasets, with 2 seeds of 2 episodes; on 4 of the 4 datasets "
            "with a card it is above the mean return of the data.",
        ),
    ],
)
def test_the_sentence_counts_and_hedges(tmp_path, tasks, methods, seeds, expected):
    runs = []
    for task in tasks:
        for method in methods:
            for seed in range(seeds):
                logdir, returns = (
                    tmp_path / task / method / f"{seed}",
                    (10.0, 20.0) if method == "semopo" else (1.0, 2.0),
                )
                runs.append(run_record.read_run(records.write_run(logdir, method, task, seed, returns=returns)))
    found = result.sentence(scores.score_table(groups.grouped(runs)[0], "definition"))
    assert expected in found and found.endswith(".") and found.count(". ") == 0


def test_without_scores_there_is_no_result_and_stages_may_have_other_names(tmp_path):
    logdir = records.write_run(tmp_path / "run", returns=[])
    rows = [row | {"phase": "only"} for row in read_records(logdir / "metrics.jsonl") if row["phase"] == "policy"]
    records.write_rows(logdir / "metrics.jsonl", rows)
    page = make(tmp_path / "page", logdir)
    assert "No finished run has been evaluated yet" in page and "<dt id=return>" in page
    assert "<th scope=col>only updates</th>" in page and "model updates</th>" not in page
    assert "return in the environment; lines: semopo" in page  # a curve belongs to the stage that recorded it
    records.write_rows(logdir / "scores.jsonl", [records.score(WALKER, 0, 5.0) | {"phase": "only"}])
    assert run_record.read_run(logdir).returns() == [5.0]


def test_every_figure_is_there_with_a_caption_that_counts(study):
    page = study[1]
    assert [name for name in re.findall(r"<h3 id=(\w+)>", page) if name.startswith("figure")] == [
        *("figure_5", "figure_3", "figure_9", "figure_6", "figure_2", "figure_7", "figure_8", "figure_4", "figure_10")
    ]
    assert re.findall(r"<dt id=(\w+)>", page) == ["strips", "penalty", "bound", "table_4", "probes"]
    assert (
        f"Finished seeds: semopo 2 {TIMES} 1000 states; se_rs 2 {TIMES} 1000 states; offline_dv2 2 {TIMES} 1000 states."
        in page
    )
    assert "mean of norms: semopo on walker_walk random 0.1 ± 0.05" in page  # what a reader without pictures gets
    assert "endo 0.100<br>exo 0.100" in page and "<span>offline_dv2, joint</span>" in page
    assert page.count("unfinished") >= 1 and "semopo (imported)" in page


def test_the_penalty_is_shown_against_the_models_error_for_every_run(tmp_path):
    logdirs = []
    for method, seed, excess in (("semopo", 1, 0.1), ("semopo", 2, 0.3), ("lompo", 1, -0.2), ("bc", 1, None)):
        logdirs.append(records.write_run(tmp_path / method / str(seed), method, POINT, seed))
        if excess is not None:
            records.write_trust(
                logdirs[-1], measure="log_prob_std" if method == "lompo" else "mean_norm", excess=excess
            )
    page = make(tmp_path / "page", *logdirs)
    assert "Does the penalty see the model&#x27;s error?" in page
    folder = tmp_path / "page" / "figures"
    names = sorted(path.stem.removeprefix("trust_exbmdp_point_random_") for path in folder.glob("trust*.csv"))
    assert names == ["excess", "reward"]  # the position's error is not known
    heading, *rows = read_csv(folder / "trust_exbmdp_point_random_excess.csv")
    assert heading == ["series", "what", "value", "low", "high"]
    found = [(series, states.split()[-1], float(value)) for series, states, value, *_ in rows]
    policy, dataset = (("semopo", "policy", 0.1), ("semopo", "policy", 0.3)), (("semopo", "dataset", 0.0),) * 2
    assert found == [*policy, *dataset, ("lompo", "policy", -0.2), ("lompo", "dataset", 0.0)]
    _, *rows = read_csv(folder / "trust_exbmdp_point_random_reward.csv")
    assert [row[0] for row in rows[::4]] == ["semopo: sum_squares", "semopo: mean_norm", "lompo: sum_squares"]
    assert rows[0][2:] == ["0.4", "0.1", "0.5"]
    alone = make(tmp_path / "alone", logdirs[-1])
    assert f"<code>python -m semopo_tf.analysis --logdir {logdirs[-1]} --only trust</code>" in html.unescape(alone)


def test_the_return_in_the_model_is_shown_beside_that_of_the_simulator(tmp_path):
    logdirs = []
    for method, seed, model in (("semopo", 1, 8.0), ("semopo", 2, 11.0), ("offline_dv2", 1, 12.0)):
        logdirs.append(records.write_run(tmp_path / method / str(seed), method, POINT, seed))
        records.write_bound(logdirs[-1], model=model, weight=0.25)
    assert "Does the model promise more than it keeps?" in make(tmp_path / "page", *logdirs)
    folder = tmp_path / "page" / "figures"
    _, *rows = read_csv(folder / "bound_exbmdp_point_random_returns.csv")
    penalised = [(row[0], float(row[2])) for row in rows if row[1].endswith("penalised")]
    assert penalised == [("semopo", 6.75), ("semopo", 9.75), ("offline_dv2", 10.75)]
    _, *rows = read_csv(folder / "bound_exbmdp_point_random_weights.csv")
    found = [(row[0], row[1], float(row[2])) for row in rows]
    semopo, joint = "semopo: mean_norm", "offline_dv2: mean_norm"
    smallest = [(semopo, "smallest", -0.4), (semopo, "smallest", 0.2)]
    assert found[:4] == [*smallest, (semopo, "of the run", 0.25), (semopo, "of the run", 0.25)]
    assert found[4:] == [(joint, "smallest", 0.4), (joint, "of the run", 0.25)]
    alone = make(tmp_path / "alone", records.write_run(tmp_path / "none", "semopo", POINT, 1))
    assert "--only bound</code>" in html.unescape(alone)


def test_the_page_is_whole_by_itself(study):
    folder, page, _ = study
    assert "<script" not in page and "name='viewport'" in page and "@media print" in page
    assert not re.search(r"(src|href)=['\"](?!data:|#)", page) and "url(" not in page
    sources = re.findall(r"<img alt='[^']+' src='data:image/([a-z+]+);base64,([^']+)'>", page)
    assert len(sources) == page.count("<img") > 30
    for kind, data in sources:
        image = base64.b64decode(data)
        if kind == "png":
            assert imageio.imread(image, extension=".png").std() > 10
        else:
            assert ElementTree.fromstring(image).tag == "{http://www.w3.org/2000/svg}svg"
    drawn = {path.read_bytes() for path in (folder / "figures").glob("*.svg")}
    assert {base64.b64decode(data) for kind, data in sources if kind == "svg+xml"} == drawn


def test_equal_files_make_equal_bytes(tmp_path):
    logdir = records.write_run(tmp_path / "run")
    records.write_analyses(logdir)
    rows = {row["phase"]: row for row in read_records(logdir / "metrics.jsonl")}
    records.write_rows(logdir / "metrics.jsonl", list(rows.values()))  # one row a stage, no curves: fewer panels
    for name in ("a", "b"):
        make(tmp_path / name, logdir)
    written = {
        name: {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("a", "b")
    }
    assert written["a"] == written["b"] and len(written["a"]) > 20


def test_what_the_runs_cannot_support_is_named_with_its_command_and_not_drawn(tmp_path):
    page = make(tmp_path / "page", records.write_run(tmp_path / "run", "semopo", POINT))
    missing = {name: html.unescape(why) for name, why in re.findall(r"<dt id=(\w+)>[^<]*</dt><dd>(.*?)</dd>", page)}
    assert set(missing) == {
        "table_1",
        "table_2",
        "table_4",
        "table_5",
        "penalty",
        "bound",
        "probes",
        "strips",
        "figure_4",
        *(name.lower().replace(" ", "_") for name in ANALYSED),
    }
    for name in ("figure_2", "figure_3", "figure_5", "figure_6", "figure_7", "figure_8"):
        assert f"<code>python -m semopo_tf.analysis --logdir {tmp_path / 'run'}</code>" in missing[name]
    assert "--background_color rgb" in missing["table_2"] and "one was evaluated" in missing["figure_4"]
    assert page.index("<dl class=missing>") > max(page.rindex("<h3"), page.rindex("<table"))
    names = {path.name.split("_")[0] for path in (tmp_path / "page" / "figures").iterdir()}
    assert names == {"return", "curves", "figure9", "figure10"}


def test_the_newest_row_of_an_episode_at_the_last_step_counts(tmp_path):
    logdir = records.write_run(tmp_path / "run", returns=[10, 20])
    extra = [
        records.score(WALKER, 0, 1.0, step=6),
        records.score(WALKER, 0, 100.0, source="evaluate"),
        records.score(WALKER, 9, 7.0),
    ]
    extra += [records.score(WALKER, 0, 3.0, source="evaluate", background="none", background_color="rgb")]
    records.write_rows(logdir / "scores.jsonl", extra, add=True)
    run = run_record.read_run(logdir)
    assert run.returns() == [100, 20, 7]
    assert run.returns("background none, background_color rgb") == [3]


def test_seeds_of_one_setting_stand_together_and_variants_and_datasets_apart(tmp_path):
    written = [
        records.write_run(tmp_path / f"{seed}", "semopo", WALKER, seed, flags=("--jit", "off") if seed == 2 else ())
        for seed in (1, 2)
    ]
    written.append(records.write_run(tmp_path / "other", "semopo", WALKER, 1, flags=("--penalty.weight", "1.0")))
    written.append(records.write_run(tmp_path / "again", "semopo", WALKER, 2))
    large = records.card(WALKER, high=90.0)
    written += [
        records.write_run(tmp_path / f"large{seed}", "semopo", WALKER, seed, about=large, data="large")
        for seed in (1, 2)
    ]
    plain = records.card("dmc_walker_walk", level="medium")
    written.append(records.write_run(tmp_path / "plain", "semopo", "dmc_walker_walk", 1, about=plain, data="some"))
    found, left_out = groups.grouped([run_record.read_run(logdir) for logdir in written])
    assert {(group.dataset.label, group.label): [run.seed for run in group.runs] for group in found} == {
        ("walker_walk random (random)", "semopo"): [1, 2],
        ("walker_walk random (random)", "semopo (penalty.weight 1.0)"): [1],
        ("walker_walk random (large)", "semopo"): [1, 2],
        ("walker_walk medium, no distractors", "semopo"): [1],
    }
    (said,) = left_out
    assert said == f"{tmp_path / 'again'}: left out, the same method, settings, dataset and seed as {tmp_path / '2'}"


def test_table_4_is_about_tasks_without_distractors(tmp_path):
    logdir = records.write_run(tmp_path / "run", "semopo", "dmc_walker_walk", returns=[100, 200])
    page = make(tmp_path / "page", logdir)
    ours, theirs = (row for row in rows_of(tmp_path / "page", "table4") if row["method"] == "semopo")
    assert (ours["mean"], theirs["mean"]) == ("150.0", "305")
    assert {row[1] for row in read_csv(tmp_path / "page" / "tables" / "table3.csv")[1:]} == {"these runs"}
    assert "<dt id=table_5>Table 5. Raw return on LQV-D4RL</dt>" in page


def test_the_other_rule_and_unit_are_said(tmp_path):
    logdirs = [records.write_run(tmp_path / method, method) for method in ("semopo", "se_rs")]
    page = make(tmp_path / "page", *logdirs, flags=("--unit", "episode", "--normalisation", "paper_table1"))
    assert "This page claims by episode." in page and "rule paper_table1" in page
    assert [row["unit"] for row in rows_of(tmp_path / "page", "aggregates")] == ["episode"] * 2 + ["seed"] * 2
    assert rows_of(tmp_path / "page", "aggregates")[2]["mean"].count("[") == 0  # one seed has no interval


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("scores.jsonl", '{"phase": "policy", "step": 1}\n', "scores.jsonl: record 1: missing episode_seed"),
        (
            "scores.jsonl",
            json.dumps(records.score(WALKER, 1, 1.0) | {"return": "x"}) + "\n",
            "record 1: expected return as a JSON number, received str",
        ),
        (
            "scores.jsonl",
            json.dumps(records.score(WALKER, 1, 1.0) | {"phase": 1}) + "\n",
            "record 1: expected phase as a JSON text, received int",
        ),
        ("scores.jsonl", "{\n{}\n", "scores.jsonl: expected one JSON object a line, line 1 is none"),
        (
            "metrics.jsonl",
            '{"phase": "model", "step": true}\n',
            "metrics.jsonl: record 1: expected step as a JSON whole number",
        ),
        ("timing.jsonl", '{"phase": "model"}\n', "timing.jsonl: record 1: missing time"),
        (
            "metrics.jsonl",
            '{"phase": 1, "step": 1}\n',
            "metrics.jsonl: record 1: expected phase as a JSON text, received int",
        ),
        ("analysis/entropy.json", '{"epochs": 1', "entropy.json: expected a JSON object"),
        (
            "analysis/uncertainty.json",
            '{"states": 3, "frames": {}, "measures": {"mean_norm": {"endo": {"mean": 1}}}}',
            "missing measures.log_prob_variance",
        ),
        ("analysis/trust.json", '{"penalty": {"measure": "mean_norm"}}', "trust.json: missing sources"),
        ("analysis/bound.json", '{"penalty": {"measure": "mean_norm"}}', "bound.json: missing"),
    ],
)
def test_a_file_that_is_not_what_a_run_writes_is_named_in_one_line(tmp_path, file, content, message):
    logdir = records.write_run(tmp_path / "run")
    records.write_analyses(logdir)
    (logdir / file).write_text(content)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        report.main([str(logdir), "--out", str(tmp_path / "page")])
    assert str(logdir) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    ("file", "draw", "message"),
    [
        ("analysis/uncertainty.png", pictures.frames_part, "uncertainty.png: cannot be read as a picture"),
        (
            "analysis/reconstruction.png",
            pictures.reconstructions_part,
            "reconstruction.png: cannot be read as a picture",
        ),
        ("videos/model-1.mp4", pictures.strips_part, "model-1.mp4: cannot be read as a video"),
    ],
)
def test_a_picture_that_is_none_is_named(tmp_path, file, draw, message):
    logdir = records.write_run(tmp_path / "run")
    records.write_analyses(logdir)
    (logdir / "videos").mkdir()
    (logdir / file).write_text("x")
    with pytest.raises(DataError, match=message):
        draw(groups.grouped([run_record.read_run(logdir)])[0])


def test_frames_that_are_not_as_many_as_said_are_refused(tmp_path):
    logdir = records.write_run(tmp_path / "run")
    records.write_analyses(logdir)
    imageio.imwrite(logdir / "analysis" / "uncertainty.png", np.zeros((8, 47, 3), np.uint8))
    with pytest.raises(DataError, match="different numbers of frames"):
        pictures.frames_part(groups.grouped([run_record.read_run(logdir)])[0])
    imageio.imwrite(logdir / "analysis" / "reconstruction.png", np.zeros((8, 47, 3), np.uint8))
    with pytest.raises(DataError, match="not what its picture shows"):
        pictures.reconstructions_part(groups.grouped([run_record.read_run(logdir)])[0])


def test_names_from_outside_are_text(tmp_path):
    logdir = records.write_run(tmp_path / "run")
    text = (logdir / "config.yaml").read_text()
    (logdir / "config.yaml").write_text(text.replace("method: semopo", "method: '<b>$x$_1'"))
    page = make(tmp_path / "page", logdir, flags=("--title", "A <title>"))
    assert "<b>" not in page and "&lt;b&gt;$x$_1" in page and "A &lt;title&gt;" in page
    assert r"<b>" not in (tmp_path / "page" / "tables" / "returns.tex").read_text()
    assert r"$<$b$>$\$x\$\_1" in (tmp_path / "page" / "tables" / "returns.tex").read_text()


def test_a_table_is_the_same_in_all_three_forms():
    table = Table("t", ["a", "b_c", "d"], [["x & y", "paper", "1 ± 2\nn 3"]])
    assert list(csv.reader(io.StringIO(table.csv().decode()))) == [["a", "b_c", "d"], ["x & y", "paper", "1 ± 2 n 3"]]
    assert table.tex().decode().splitlines() == [
        *(r"\begin{tabular}{llr}", r"\hline", r"a & b\_c & d \\", r"\hline"),
        *(r"x \& y & paper & 1 $\pm$ 2 {\scriptsize (n 3)} \\", r"\hline", r"\end{tabular}"),
    ]
    assert "<tr class=paper><td>x &amp; y</td><td>paper</td><td>1 ± 2<small>n 3</small></td></tr>" in table.html()


def test_a_run_of_an_older_version_is_read_with_the_defaults_of_what_it_lacks(tmp_path):
    logdir = records.write_run(tmp_path / "run")
    text = (logdir / "config.yaml").read_text()
    (logdir / "config.yaml").write_text(re.sub(r"^remat: .*\n", "", text, flags=re.MULTILINE))
    assert run_record.read_run(logdir).settings["remat"] == 0


def test_a_folder_that_is_no_run_and_data_without_a_card_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected the logdir of a run with metrics"):
        report.main([str(tmp_path), "--out", str(tmp_path / "page")])
    logdir = records.write_run(tmp_path / "run")
    with pytest.raises(DataError, match="expected a dataset with a complete card"):
        report.main([str(logdir), "--data", str(tmp_path), "--out", str(tmp_path / "page")])


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"--out .*file.* cannot be made"):
        report.main([str(records.write_run(tmp_path / "run")), "--out", str(tmp_path / "file" / "page")])


def test_minutes_leave_out_the_time_between_two_starts(tmp_path):
    rows = [
        ("model", 0, True),
        ("model", 60, False),
        ("model", 660, True),
        ("model", 720, False),
        ("policy", 730, True),
        ("policy", 760, False),
    ]
    records.write_rows(
        tmp_path / "timing.jsonl",
        [{"phase": phase, "step": 0, "time": time} | ({"start": True} if start else {}) for phase, time, start in rows],
    )
    assert run_record.phase_minutes(tmp_path) == {"model": 2.0, "policy": 0.5}


# --- a run that was really trained, and a browser ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(page, run, data): a debug-size run on the testbed and the page about it."""
    folder = tmp_path_factory.mktemp("report")
    data, other, logdir = folder / "data", folder / "other", folder / "run"
    assert collect.main(["--task", "exbmdp_point", "--episodes", "3", "--out", str(data)]) == 0
    assert collect.main(["--task", "exbmdp_point", "--policy", "expert", "--episodes", "2", "--out", str(other)]) == 0
    flags = ["--configs", "semopo", "exbmdp_point", "debug", "--offline_dir", str(data), "--logdir", str(logdir)]
    assert training.main([*flags, "--eval.every", "6", "--eval.final_episodes", "2"]) == 0
    assert probe.main(["--logdir", str(logdir)]) == 0
    return make(folder / "page", logdir, flags=("--data", str(data), str(other))), logdir, data


def test_the_page_of_a_trained_run_holds_its_scores_probes_and_strips(trained):
    page, logdir, data = trained
    returns, mean = [row["return"] for row in read_records(logdir / "scores.jsonl")], read_card(data)["returns"]["mean"]
    assert f"<td>semopo</td><td>{np.mean(returns):.1f}</td><td>1 {TIMES} 2</td><td>{np.std(returns):.1f}</td>" in page
    assert (
        f"<td>the data: random</td><td>{mean:.1f}</td><td>3 episodes</td>" in page
        and "<td>analytic controller</td>" in page
    )
    found = json.loads((logdir / "analysis" / "probe.json").read_text())
    endo = [f"{found['r2']['endo'][quantity]:.2f}" for quantity in ("position", "velocity", "phase", "discs")]
    assert "<td>endo</td><td>1</td>" + "".join(f"<td>{value}</td>" for value in endo) in page
    (picture,) = re.findall(r"src='data:image/png;base64,([^']+)'", page)
    image = imageio.imread(base64.b64decode(picture), extension=".png")
    assert image.shape == (
        6 * 32 * 2,
        pictures.STRIP_FRAMES * 32 * 2,
        3,
    )  # six rows, enlarged twice, the first of the video's sequences
    assert image.std() > 10 and "return in the environment" in page


BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None
)
WIDTHS = (1280, 400)
MEASURE = """
const found = [];
addEventListener('error', event => document.body.setAttribute('data-error', event.message));
function measure(frame) {
  const page = frame.contentDocument, images = [...page.images];
  const sizes = [...page.querySelectorAll('p,td,th,dt,dd,small,figcaption,code,span,summary,.frames div')]
    .filter(each => each.offsetParent).map(each => parseFloat(frame.contentWindow.getComputedStyle(each).fontSize));
  return {width: frame.clientWidth, scroll: page.documentElement.scrollWidth, images: images.length,
    broken: images.filter(each => !each.naturalWidth || !each.clientWidth).length, letters: Math.min(...sizes),
    panels: Math.min(...[...page.querySelectorAll('.panels img')].map(each => each.clientWidth)),
    wide: [...page.body.children].filter(each => each.getBoundingClientRect().right > frame.clientWidth + 1).length};
}
addEventListener('load', () => {
  document.body.setAttribute('data-found', JSON.stringify([...document.querySelectorAll('iframe')].map(measure)));
});
"""


def browse(address, *flags):
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--window-size=1400,1000",
        *flags,
        address,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.full
@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
def test_a_browser_shows_all_pictures_without_errors_at_both_widths(study, tmp_path):
    opened = browse((study[0] / "index.html").as_uri(), "--dump-dom")
    assert "CONSOLE" not in opened.stderr and "id=figure_9" in opened.stdout.replace('"', "")
    # A frame of its own makes the narrow window that headless browsers refuse.
    frames = "".join(
        f"<iframe style='width:{width}px;height:900px;border:0' srcdoc=\"{html.escape(study[1])}\"></iframe>"
        for width in WIDTHS
    )
    (tmp_path / "frames.html").write_text(
        f"<!doctype html><meta charset='utf-8'><body>{frames}<script>{MEASURE}</script></body>"
    )
    opened = browse((tmp_path / "frames.html").as_uri(), "--dump-dom")
    assert "CONSOLE" not in opened.stderr and "data-error" not in opened.stdout.split("<iframe")[0]
    (said,) = re.findall(r'<body[^>]* data-found="([^"]*)"', opened.stdout)
    found = json.loads(html.unescape(said))
    assert [each["width"] for each in found] == list(WIDTHS)
    for each in found:
        assert each["images"] == study[1].count("<img") and each["broken"] == 0
        assert each["scroll"] <= each["width"] and each["wide"] == 0
        assert each["letters"] >= 9 and each["panels"] >= 351  # so are those of the panels, svg.SMALL


# --- numbers for other programs ---------------------------------------------------------------------------------------


def test_I23_scores_csv_has_a_row_for_each_run_and_numbers_alone(study):
    heading, *rows = read_csv(study[0] / "scores.csv")
    assert heading == ["method", "task", "level", "seed", "return", "episodes"]
    written = {(method, task, level, int(seed)): (float(mean), int(n)) for method, task, level, seed, mean, n in rows}
    expected = {
        (method, task, "random", seed): (np.mean(returns), 2)
        for (task, method), seeds in RETURNS.items()
        for seed, returns in enumerate(seeds, 1)
    }
    # The stopped run is not there, and an evaluation before another background is no score on the data's.
    assert written == expected | {("semopo (imported)", WALKER, "random", 1): (20.0, 2)} and len(rows) == len(written)


def test_I23_scores_csv_is_the_matrix_of_rliable_for_every_method(study):
    """[seeds, tasks] for each method, as `rliable.library.get_interval_estimates` takes it."""
    _, *rows = read_csv(study[0] / "scores.csv")
    matrices = {}
    for method in METHODS:
        seeds = sorted({int(row[3]) for row in rows if row[0] == method})
        tasks = sorted({(row[1], row[2]) for row in rows if row[0] == method})
        found = {(int(row[3]), row[1], row[2]): float(row[4]) for row in rows if row[0] == method}
        matrices[method] = np.array([[found[seed, *task] for task in tasks] for seed in seeds])
    np.testing.assert_array_equal(matrices["semopo"], [[15, 15.5], [45, 24.5]])
    assert bootstrap.mean(matrices["semopo"]) == 25 and all(matrix.shape == (2, 2) for matrix in matrices.values())


def test_I23_datasets_of_one_task_and_level_are_told_apart_in_scores_csv(tmp_path):
    large = records.card(WALKER, high=90.0)
    logdirs = [
        records.write_run(tmp_path / "a", "semopo", WALKER, 1),
        records.write_run(tmp_path / "b", "semopo", WALKER, 1, about=large, data="large"),
    ]
    make(tmp_path / "page", *logdirs)
    _, *rows = read_csv(tmp_path / "page" / "scores.csv")
    assert [row[1:4] for row in rows] == [[WALKER, "random (large)", "1"], [WALKER, "random (random)", "1"]]


def test_I23_without_a_score_there_is_the_heading(tmp_path):
    make(tmp_path / "page", records.write_run(tmp_path / "a", done=False))
    assert (tmp_path / "page" / "scores.csv").read_text() == "method,task,level,seed,return,episodes\n"


def test_I23_bounds_of_intervals_have_columns_of_their_own(study):
    table = scores.score_table(groups.grouped([run_record.read_run(logdir) for logdir in study[2]])[0], "definition")
    found = comparisons.compared(table)
    row = next(row for row in rows_of(study[0], "aggregates") if (row["method"], row["unit"]) == ("semopo", "seed"))
    each = comparisons.interval(bootstrap.interquartile_mean, found.scores["seed"]["semopo"])
    names = ("interquartile mean", "interquartile mean low", "interquartile mean high")
    assert [float(row[name]) for name in names] == [float(each.estimate), float(each.low), float(each.high)]
    assert (row["runs"], row["tasks"]) == ("2", "2")
    row = next(row for row in rows_of(study[0], "figure4") if (row["X"], row["Y"]) == ("semopo", "se_rs"))
    (each,) = (each for x, y, each in comparisons.improvements(found.scores["seed"]) if (x, y) == ("semopo", "se_rs"))
    assert [float(row[name]) for name in ("P(X > Y)", "low", "high")] == [float(value) for value in each]


def test_I23_one_run_has_no_bounds(tmp_path):
    make(tmp_path / "page", *(records.write_run(tmp_path / method, method) for method in ("semopo", "se_rs")))
    for table, value in (("aggregates", "mean"), ("figure4", "P(X > Y)")):
        row = next(row for row in rows_of(tmp_path / "page", table) if row["unit"] == "seed")
        bounds = [row[key] for key in row if key.endswith(("low", "high"))]
        assert float(row[value]) >= 0 and set(bounds) == {""}


def test_I23_every_drawing_has_its_numbers_beside_it(study):
    folder = study[0] / "figures"
    drawings = {path.stem for path in folder.glob("*.svg")}
    tabled = {"figure4_seed", "figure4_episode"}  # tables/figure4.csv
    assert drawings - tabled == {path.stem for path in folder.glob("*.csv")}
    for path in folder.glob("*.csv"):
        heading, *rows = read_csv(path)
        assert rows and len(heading) == len(set(heading)) and heading[0] == "series", path.name
        texts = 2 if "dataset" in heading else 1  # the names before the numbers
        for row in rows:
            assert all(cell == "" or np.isfinite(float(cell)) for cell in row[texts:]), path.name
    _, *rows = read_csv(folder / "curves_walker_walk_random_eval_return.csv")
    ours = {int(row[1]): [float(cell) for cell in row[2:]] for row in rows if row[0] == "semopo"}
    assert ours[12] == [30, 15, 45]  # seeds 15 and 45, one population standard deviation on either side
    assert any(row[0] == "semopo, seed 3, unfinished" and row[3:] == ["", ""] for row in rows)
    data, semopo, *_ = read_csv(folder / "return_walker_walk_random.csv")[1:]
    assert (data, semopo) == (["the data", "11.0", "2.0", "20.0"], ["semopo", "30.0", "15.0", "45.0"])


def test_table_3_of_datasets_alone_says_how_far_each_statistic_is_from_the_papers(tmp_path):
    returns = {"mean": 110.6, "std": 40.0, "min": 5.9, "p25": 51.9, "median": 70.8, "p75": 128.3, "max": 199.1}
    facts = {"status": "complete", "policy": "random", "episodes": 40, "returns": returns}
    tasks = {"random": "dmcdrv_walker_walk", "own": "mine:Own", "plain": "dmc_walker_walk"}
    for name, task in tasks.items():
        (tmp_path / name).mkdir()
        write_card(tmp_path / name, facts | {"task": task} | ({} if name == "own" else {"level": "random"}))
    words = [str(tmp_path / name) for name in tasks]
    assert report.main(["--data", *words, "--out", str(tmp_path / "page")]) == 0
    heading, *rows = read_csv(tmp_path / "page" / "tables" / "table3.csv")
    assert heading[:4] == ["dataset", "from", "episodes", "mean"]
    assert [row[1] for row in rows] == ["these runs", "paper", "difference / std", "these runs", "these runs"]
    assert rows[4][0] == "dmc_walker_walk random"  # without distractors: not one of the paper's Table 3
    assert rows[0][0] == "dmcdrv_walker_walk random" and rows[3][0] == "mine:Own own"
    difference = dict(zip(heading, rows[2], strict=True))
    assert (difference["mean"], difference["std"], difference["max"]) == ("+0.50", "-0.17", "+0.00")
    with pytest.raises(ConfigError, match="expected logdirs of runs, or datasets after --data, received none"):
        report.main(["--out", str(tmp_path / "none")])
