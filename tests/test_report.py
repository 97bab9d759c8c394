"""The page: its numbers are those of the files, its pictures decode, and it reaches for nothing elsewhere."""

import base64
import json
import re

import imageio.v3 as imageio
import numpy as np
import pytest

from semopo_tf import collect, probe, report, training
from semopo_tf.cards import read_card
from semopo_tf.errors import ConfigError, DataError
from semopo_tf.run import read_records


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(page, run, data): a debug-size run on the testbed and the page about it."""
    folder = tmp_path_factory.mktemp("report")
    data, logdir = folder / "data", folder / "run"
    assert collect.main(["--task", "exbmdp_point", "--episodes", "3", "--out", str(data)]) == 0
    flags = ["--configs", "semopo", "exbmdp_point", "debug", "--offline_dir", str(data), "--logdir", str(logdir)]
    assert training.main([*flags, "--eval.every", "6", "--eval.final_episodes", "2"]) == 0
    assert probe.main(["--logdir", str(logdir)]) == 0
    assert report.main([str(logdir), "--data", str(data), "--out", str(folder / "page"), "--title", "A <title>"]) == 0
    return (folder / "page" / "index.html").read_text(), logdir, data


def test_tables_hold_the_numbers_of_the_files(made):
    page, logdir, data = made
    returns = [row["return"] for row in read_records(logdir / "scores.jsonl")]
    assert f"<td>semopo (2 episodes)</td><td>{np.mean(returns):.1f}</td><td>{np.std(returns):.1f}</td>" in page
    card = read_card(data)
    assert f"<td>the data: random behaviour (3 episodes)</td><td>{card['returns']['mean']:.1f}</td>" in page
    found = json.loads((logdir / "analysis" / "probe.json").read_text())
    first = f"<td>position</td><td>{found['r2']['endo']['position']:.2f}</td><td>{found['r2']['exo']['position']:.2f}</td>"
    assert first in page and f"<td>mask on the agent</td><td>{found['mask']['on']:.2f}</td><td>-</td>" in page


def test_the_page_is_whole_by_itself(made):
    page = made[0]
    assert "A &lt;title&gt;" in page
    assert "<script" not in page and not re.search(r"(src|href)=['\"]https?:", page)
    (picture,) = re.findall(r"src='data:image/png;base64,([^']+)'", page)
    image = imageio.imread(base64.b64decode(picture), extension=".png")
    assert image.shape == (6 * 32 * 2, report.STRIP_FRAMES * 32 * 2, 3)  # six rows, enlarged twice, the first of the video's sequences
    assert image.std() > 10
    assert page.count("<svg") == 1 and "return in the environment" in page


def test_the_same_files_make_the_same_tables_and_pictures(made, tmp_path):
    page, logdir, data = made
    assert report.main([str(logdir), "--data", str(data), "--out", str(tmp_path), "--title", "A <title>"]) == 0
    without_figure = re.compile("<svg.*</svg>", re.DOTALL)  # whose marks have random names
    assert without_figure.sub("", (tmp_path / "index.html").read_text()) == without_figure.sub("", page)


def test_a_folder_that_is_no_run_and_data_without_a_card_are_refused(made, tmp_path):
    with pytest.raises(ConfigError, match="expected the logdir of a run with metrics"):
        report.main([str(tmp_path), "--out", str(tmp_path / "page")])
    with pytest.raises(DataError, match="expected a dataset with a complete card"):
        report.main([str(made[1]), "--data", str(tmp_path), "--out", str(tmp_path / "page")])


def test_minutes_leave_out_the_time_between_two_starts(tmp_path):
    rows = [("model", 0, True), ("model", 60, False), ("model", 660, True), ("model", 720, False), ("policy", 730, True), ("policy", 760, False)]
    lines = [json.dumps({"phase": phase, "step": 0, "time": time} | ({"start": True} if start else {})) for phase, time, start in rows]
    (tmp_path / "timing.jsonl").write_text("\n".join(lines) + "\n")
    assert report.phase_minutes(tmp_path) == {"model": 2.0, "policy": 0.5}
