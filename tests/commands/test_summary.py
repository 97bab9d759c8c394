"""The tables of a results page from the runs of several sweeps."""

from pathlib import Path

import pytest
import records

from semopo_tf import summary
from semopo_tf.errors import ConfigError

PAGE = """
out: {out}
runs:
  - {{name: {name}, data: elsewhere, grid: {{seed: [1, 2]}}, flags: [--configs, semopo, exbmdp_point, testbed]}}
"""


def written(folder: Path, name: str, returns: float) -> Path:
    """A page of two finished runs with a measured bound."""
    page = folder / f"{name.replace('/', '_')}.yaml"
    page.write_text(PAGE.format(out=folder / "runs", name=name))
    for seed in (1, 2):
        logdir = folder / "runs" / name / f"seed={seed}"
        records.write_run(logdir, "semopo", "exbmdp_point", seed, returns=[returns])
        records.write_bound(logdir, model=10 + seed, weight=0.25)
    return page


def test_one_page_has_tables_of_several_sweeps_and_no_empty_column(tmp_path):
    files = [written(tmp_path, "one/semopo", 3.0), written(tmp_path, "two/semopo", 5.0)]
    page = tmp_path / "page.md"
    page.write_text("<!-- table one -->\n<!-- end -->\n<!-- table two -->\n<!-- end -->\n")
    assert summary.main(["--file", *map(str, files), "--page", str(page)]) == 0
    head, _, row = page.read_text().splitlines()[1:4]
    cells = dict(zip(head.split(" | ")[1:], row.split(" | ")[1:], strict=True))
    assert cells["seeds"] == "2" and cells["of each seed"] == "3.0, 3.0"
    assert cells["in the simulator"].split()[0] == "10.00" and cells["in the model"].split()[0] == "11.50"
    assert cells["smallest weight"].split()[0] == "0.30"
    assert "position" not in head and "less this" not in head
    assert "5.0, 5.0" in page.read_text()


def test_other_runs_of_one_name_in_two_sweeps_are_refused_and_shared_ones_are_not(tmp_path):
    file, page = written(tmp_path, "one/semopo", 3.0), tmp_path / "page.md"
    page.write_text("<!-- table one -->\n<!-- end -->\n")
    assert summary.main(["--file", str(file), str(file), "--page", str(page)]) == 0
    assert "| 2 |" in page.read_text()
    (tmp_path / "other").mkdir()
    other = written(tmp_path / "other", "one/semopo", 3.0)
    with pytest.raises(ConfigError, match=r"--file: one/semopo names different runs on two of the pages; give one"):
        summary.main(["--file", str(file), str(other), "--page", str(page)])
