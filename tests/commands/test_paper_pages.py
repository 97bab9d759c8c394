"""The pages of sweeps/paper and their miniatures: what they hold, and that pages share runs rather than repeat them."""

from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from semopo_tf.report import paper
from semopo_tf.run import pages

SWEEPS = Path(__file__).parents[2] / "sweeps"
PAGES = ("table1", "table2", "table4", "figures")
ABLATIONS = {"semopo", "offline_dv2", "se_rs", "se_rs_drp", "lompo"}


@cache
def rows(size: str, page: str) -> list[pages.Row]:
    return pages.read_sweep(SWEEPS / size / f"{page}.yaml")["rows"]


def cells(page: str) -> Counter:
    """(dataset, method) -> seeds, of a page at the paper's sizes."""
    parts = [row.name.split("/") for row in rows("paper", page)]
    return Counter((f"{task} {level}", method) for task, level, method, _ in parts)


@pytest.mark.parametrize(("page", "number"), [("table1", 1), ("table1", 5), ("table2", 2), ("table4", 4)])
def test_a_page_has_every_cell_of_its_table_with_the_papers_seeds(page, number):
    printed = paper.table(number)
    assert cells(page) == {(data, method): paper.SEEDS for data, row in printed.items() for method in row}


def test_the_page_of_figures_analyses_the_ablations_on_the_nine_locomotion_datasets():
    locomotion = {data for data in paper.table(1) if data.split()[0] in ("walker_walk", "cheetah_run", "hopper_hop")}
    assert cells("figures") == {(data, method): paper.SEEDS for data in locomotion for method in ABLATIONS}
    leaves = {f"analysis/{name}.json" for name in pages.ANALYSES}
    assert all(
        leaves <= {leaf for command in row.commands for leaf in command.leaves} for row in rows("paper", "figures")
    )


def test_the_runs_of_table_2_are_played_before_coloured_and_before_unseen_backgrounds():
    for size in ("paper", "small"):
        for row in rows(size, "table2"):
            shown = [" ".join(command.words) for command in row.commands[1:]]
            assert "--background_color rgb" in shown[0] and "--background_split test" in shown[1]


@pytest.mark.parametrize("size", ["paper", "small"])
def test_a_run_that_two_pages_name_is_the_same_command_on_both(size):
    commands: dict[Path, tuple[str, ...]] = {}
    for page in PAGES:
        for row in rows(size, page):
            assert commands.setdefault(row.logdir, row.commands[0].words) == row.commands[0].words
    total = sum(len(rows(size, page)) for page in PAGES)
    assert (total, len(commands)) == {"paper": (792, 636), "small": (58, 46)}[size]


@pytest.mark.parametrize("page", PAGES)
def test_the_miniature_names_methods_of_its_page_and_data_that_the_pages_share(page):
    big = {row.name.split("/")[-2] for row in rows("paper", page)}
    small = {row.name.split("/")[-2] for row in rows("small", page)}
    assert small <= big and (small == big or page == "table4")
    collections = pages.read_sweep(SWEEPS / "small" / f"{page}.yaml")["collections"]
    assert {row.data for row in rows("small", page)} == set(collections)


def test_pages_of_one_folder_collect_the_same_data_by_the_same_commands():
    found: dict[Path, list[str]] = {}
    for page in PAGES:
        read = pages.read_sweep(SWEEPS / "small" / f"{page}.yaml")
        for directory, flags in (read["collections"] | read["behaviours"]).items():
            assert found.setdefault(directory, flags) == flags
