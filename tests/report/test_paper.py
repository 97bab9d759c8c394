"""The printed numbers agree with each other, which also reveals typing errors in `published.yaml`."""

import pytest

from semopo_tf.report import paper

LEVELS = ("random", "medrep", "medium")
LOCOMOTION = ("walker_walk", "cheetah_run", "hopper_hop", "humanoid_walk")


def errors_of_table_1(rule: str, tasks: tuple[str, ...]) -> list[float]:
    """|normalised Table 5 - Table 1| of every cell of some tasks."""
    raw, printed = paper.table(5), paper.table(1)
    datasets = [f"{task} {level}" for task in tasks for level in LEVELS]
    cells = [(dataset, method) for dataset in datasets for method in paper.METHODS]
    return [
        abs(paper.normalised(dataset.split()[0], raw[dataset][method][0], rule) - printed[dataset][method][0])
        for dataset, method in cells
    ]


@pytest.mark.parametrize("rule", paper.RULES)
def test_table_5_normalised_is_table_1(rule):
    found = errors_of_table_1(rule, LOCOMOTION)
    assert len(found) == 84 and max(found) < 0.01


def test_the_car_racing_row_follows_another_constant_than_the_definition():
    definition, printed = (
        errors_of_table_1("definition", ("car_racing",)),
        errors_of_table_1("paper_table1", ("car_racing",)),
    )
    assert len(printed) == 21 and max(printed) < 0.008
    assert sum(error > 0.02 for error in definition) == 20 and 0.21 < max(definition) < 0.22


@pytest.mark.parametrize("task", [*LOCOMOTION, "car_racing"])
def test_the_definition_is_the_range_of_table_3(task):
    rows = [paper.table(3)[f"{task} {level}"] for level in LEVELS]
    assert paper.bounds(task, "definition") == (min(row["min"] for row in rows), max(row["max"] for row in rows))
    low, high = paper.bounds(task, "paper_table1")
    assert high == paper.bounds(task, "definition")[1]
    assert low == (rows[0]["mean"] if task == "car_racing" else paper.bounds(task, "definition")[0])
    for row in rows:
        assert (
            row["min"] <= row["p25"] <= row["median"] <= row["p75"] <= row["max"]
            and row["min"] < row["mean"] < row["max"]
        )
        assert row["episodes"] in (200, 400)


def test_the_tables_have_their_rows_and_columns():
    methods, datasets = (
        list(paper.METHODS),
        [f"{task} {level}" for task in (*LOCOMOTION, "car_racing") for level in LEVELS],
    )
    for number in (1, 5):
        assert list(paper.table(number)) == datasets
        assert all(list(row) == methods for row in paper.table(number).values())
    assert list(paper.table(3)) == datasets
    assert list(paper.table(2)) == [f"{task} {level}" for task in LOCOMOTION[:2] for level in LEVELS[:2]]
    assert all(list(row) == ["semopo", "offline_dv2", "drq_bc"] for row in paper.table(2).values())
    assert list(paper.table(4)) == datasets[:6]
    assert all(list(row) == methods[:-1] for row in paper.table(4).values())
    assert paper.table(1)["hopper_hop medium"]["semopo"] == (1.24, 0.16)
    assert paper.table(2)["cheetah_run medrep"]["offline_dv2"] == (0.17, 0.06)
    assert paper.table(4)["cheetah_run medrep"]["semopo"] == (410, 13)
    assert paper.table(5)["car_racing random"]["drq_cql"] == (-92, 1)


def test_a_task_is_known_with_the_prefix_of_its_suite_and_others_have_no_constants():
    for name in ("walker_walk", "dmcdrv_walker_walk", "dmc_walker_walk"):
        assert paper.bounds(name, "definition") == (5.0, 598.0)
    for name in ("gym_car_racing", "gym_CarRacing-v2", "gym_CarRacing-v3"):
        assert paper.bounds(name, "definition") == (-82.0, 449.9)
    assert paper.normalised("dmcdrv_walker_walk", 301.5, "definition") == 0.5
    assert paper.normalised("dmcdrv_walker_walk", 1191.0, "definition") == 2.0  # not clipped
    for name in ("exbmdp_point", "dmcdrv_reacher_easy", "module:Class", ""):
        assert paper.bounds(name, "definition") is None
        assert paper.normalised(name, 1.0, "paper_table1") is None


def test_a_rule_that_is_none_is_refused():
    with pytest.raises(ValueError, match="rule: expected one of definition, paper_table1, received 'mean'"):
        paper.bounds("exbmdp_point", "mean")


def test_a_table_that_is_none_is_no_table():
    with pytest.raises(KeyError):
        paper.table(6)
