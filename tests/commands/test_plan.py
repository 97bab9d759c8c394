"""The cost of pages of runs: what is counted, by which assumption or measurement; the tables of docs/reproduce.md."""

import json
import re
from pathlib import Path

import pytest

from semopo_tf import bench, plan
from semopo_tf.errors import ConfigError

ROOT = Path(__file__).parents[2]
ONE = """
out: {out}
runs:
  - name: '{{method}}'
    data: data
    flags: [--configs, '{{method}}', exbmdp_point, debug, --eval.final_episodes, 3]
    each: {{method: [semopo, bc]}}
    grid: {{seed: [1, 2]}}
"""
TWO = """
out: {out}
runs:
  - name: semopo
    data: data
    flags: [--configs, semopo, exbmdp_point, debug, --eval.final_episodes, 3]
    grid: {{seed: [1, 2, 3]}}
    evaluate: {{rgb: [--background_color, rgb]}}
"""
ASSUMED = plan.Assumption(rate=2.0, share=(0.25, 0.5), overhead=(0.0, 3.6))


def write(folder, *texts):
    files = [folder / f"page{number}.yaml" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text.format(out=folder / "out"))
    return files


def speeds(folder, name="speeds.json", device="card", **rows):
    """A file of bench.py --json with these seconds of a row's stages."""
    rows = [
        dict.fromkeys(bench.COLUMNS) | {"config": config, "batch": 4, "length": length} | seconds
        for config, (length, seconds) in rows.items()
    ]
    path = folder / name
    path.write_text(json.dumps({"machine": {"device": device}, "rows": rows}))
    return path


def test_a_run_that_two_pages_name_counts_on_the_first(tmp_path):
    first, second = plan.planned(write(tmp_path, ONE, TWO))
    assert (first.runs, len(first.new)) == (4, 4) and (second.runs, len(second.new)) == (3, 1)
    assert {each.method for each in first.new} == {"semopo", "bc"}
    assert first.decisions == 4 * 3 * 500
    assert second.decisions == (1 + 3) * 3 * 500  # one run's own episodes, and more of all three


def test_the_arithmetic_of_a_run_is_that_of_its_updates(tmp_path):
    semopo = plan.planned(write(tmp_path, TWO))[0].new[0]
    assert [(name, updates) for name, updates, _ in semopo.stages] == [("model", 12), ("policy", 12)]
    assert semopo.petaflops == pytest.approx(12 * sum(flops for _, _, flops in semopo.stages) / 1e15)
    assert semopo.checkpoint_bytes > 1e4 and semopo.checkpoints == 4


def test_hours_are_arithmetic_by_share_and_rate_and_overhead_by_updates():
    work = plan.Work("semopo", 4, 8, (("model", 1000, 10**12), ("policy", 1000, 2 * 10**12)), 0, 0)
    assert work.petaflops == 3
    assert ASSUMED.hours(work) == pytest.approx((3000 / 2 / 0.5 / 3600, 3000 / 2 / 0.25 / 3600 + 2000 * 0.0036 / 3600))


def test_measured_hours_are_updates_times_seconds(tmp_path):
    files = write(tmp_path, ONE)
    measured = plan.speeds(
        [
            speeds(tmp_path, semopo=(8, {"model_update_s": 300.0, "policy_update_s": 30.0})),
            speeds(tmp_path, "more.json", bc=(None, {"policy_update_s": 600.0})),
        ]
    )
    hours = {each.method: plan.measured_hours(each, measured) for each in plan.planned(files)[0].new}
    assert hours == pytest.approx({"semopo": 12 * 330 / 3600, "bc": 12 * 600 / 3600})


def test_the_command_prints_both_tables_and_writes_them_into_a_page(tmp_path, capsys):
    files = write(tmp_path, ONE, TWO)
    assert plan.main(["--file", *map(str, files)]) == 0
    printed = capsys.readouterr().out
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table pages -->\nold\n<!-- end -->\nb\n<!-- table methods -->\n<!-- end -->\n")
    assert plan.main(["--file", *map(str, files), "--page", str(page)]) == 0
    written = page.read_text()
    assert "old" not in written and written.startswith("a\n<!-- table pages -->\n| page | runs |")
    assert [line for line in written.splitlines() if line.startswith("| all |")] == [
        line for line in printed.splitlines() if line.startswith("| all |")
    ]
    assert "not measured: 35.6 TFLOP/s, 0.2 to 0.5 of it reached, 2 to 20 ms more" in " ".join(written.split())
    assert max(map(len, re.sub(r"^\|.*$", "", written, flags=re.MULTILINE).splitlines())) <= 120


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rate", "0"], "--rate: expected more than 0, received 0"),
        (["--share", "0.5", "0.2"], "--share: expected LEAST and MOST above 0 and up to 1, received 0.5 0.2"),
        (["--share", "0", "0.2"], "--share: expected"),
        (["--overhead", "3", "2"], "--overhead: expected LEAST and MOST, received 3 2"),
        (["--speeds", "none.json"], "--speeds none.json: expected a file written by bench.py --json"),
        (["--page", "none.md"], "--page none.md: cannot be read"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        plan.main(["--file", str(write(tmp_path, TWO)[0]), *flags])
    assert "\n" not in str(caught.value)


def test_a_page_without_marks_and_a_method_that_was_not_measured_are_refused(tmp_path):
    file, page = write(tmp_path, ONE)[0], tmp_path / "page.md"
    page.write_text("no table\n")
    with pytest.raises(ConfigError, match="expected a table between <!-- table pages or methods -->"):
        plan.main(["--file", str(file), "--page", str(page)])
    measured = speeds(tmp_path, semopo=(8, {"model_update_s": 1.0, "policy_update_s": 1.0}))
    with pytest.raises(ConfigError, match="expected a row bc at 4 x 8, received none; measure it"):
        plan.main(["--file", str(file), "--speeds", str(measured)])
    other = speeds(tmp_path, "other.json", device="another card")
    with pytest.raises(ConfigError, match="expected files of one device, received another card, card"):
        plan.main(["--file", str(file), "--speeds", str(measured), str(other)])


@pytest.mark.full
def test_the_tables_of_the_page_are_those_of_its_command(tmp_path, monkeypatch):
    """One minute: every learner is built at the paper's sizes."""
    monkeypatch.chdir(ROOT)
    page, copy = ROOT / "docs" / "reproduce.md", tmp_path / "reproduce.md"
    copy.write_text(page.read_text())
    files = [f"sweeps/paper/{name}.yaml" for name in ("table1", "table2", "table4", "figures")]
    assert plan.main(["--file", *files, "--page", str(copy)]) == 0
    assert copy.read_text() == page.read_text()
