"""Every fault that docs/reliability.md lists has a test whose name carries the row's identifier, or a line that says
why not; and every identifier in the name of a test is explained on the page.
"""

import ast
import functools
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text()
SIZES = {"R": 20, "C": 14, "F": 14, "D": 25, "H": 9, "K": 10, "N": 9, "E": 6, "V": 4, "L": 4}
ROWS = [f"{letter}{number:02d}" for letter, size in SIZES.items() for number in range(1, size + 1)]
IDENTIFIER = re.compile(rf"(?<=_)([{''.join(SIZES)}]\d{{2}}|G\d{{1,2}})(?=_)")


@functools.cache
def rows_with_tests() -> dict[str, list[str]]:
    """Row -> names of its tests, over all files of the suite."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for row in IDENTIFIER.findall(f"{node.name}_"):
                    found.setdefault(row, []).append(f"{path.name}::{node.name}")
    return found


def table(heading: str) -> dict[str, list[str]]:
    """Row -> the other cells, from the table under a heading of the page."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if re.match(r"\| [A-Z]\d{1,2}\b", line)]
    pairs = [(row, cells[1:]) for cells in lines for row in re.findall(r"[A-Z]\d{1,2}", cells[0])]
    assert len(dict(pairs)) == len(pairs), "a row is listed twice"
    return dict(pairs)


def explained() -> dict[str, list[str]]:
    """Row -> fault and guarantee."""
    return table("The faults, one by one")


def excused() -> dict[str, str]:
    """Row -> why it has no test."""
    return {row: cells[0] for row, cells in table("Rows without a test of their own").items()}


def test_there_are_115_rows():
    assert len(ROWS) == len(set(ROWS)) == 115


def test_every_row_has_a_test_or_a_reason():
    missing = sorted(set(ROWS) - set(rows_with_tests()) - set(excused()))
    assert missing == [], f"{len(missing)} rows have neither a test named after them nor a line in docs/reliability.md"


def test_no_row_has_a_reason_and_a_test_and_no_reason_is_empty():
    """A reason must not outlive the gap that it explains."""
    assert sorted(set(excused()) & set(rows_with_tests())) == []
    assert [row for row, reason in excused().items() if len(reason) < 10] == []


def test_every_row_and_every_row_in_the_name_of_a_test_is_explained():
    assert sorted({*ROWS, *rows_with_tests()} - set(explained())) == []
    assert [row for row, cells in explained().items() if len(cells) != 2 or min(map(len, cells)) < 5] == []


def test_no_row_is_explained_that_neither_a_test_nor_the_list_has():
    assert sorted(set(explained()) - {*ROWS, *rows_with_tests()}) == []
    assert sorted({*excused(), *table("Rows that are met in another way")} - set(explained())) == []


def test_the_page_quotes_the_count():
    count = sum(row in rows_with_tests() for row in ROWS)
    assert f"{count} of {len(ROWS)} rows" in PAGE
