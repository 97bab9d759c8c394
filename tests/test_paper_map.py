"""docs/paper.md: every function, command and test that it names exists; and the paper's phrases lead to the code."""

import ast
import re
from pathlib import Path

import pytest

import semopo_tf

PACKAGE = Path(semopo_tf.__file__).parent
ROOT = PACKAGE.parent
PAGE = (ROOT / "docs" / "paper.md").read_text()
NAMES = re.findall(r"`([^`]+)`", PAGE)
FUNCTIONS = [name for name in NAMES if re.fullmatch(r"[a-z_]+(\.\w+)+", name) and not name.endswith((".py", ".jsonl"))]
TESTS = [name for name in NAMES if "::" in name]
COMMANDS = [found for name in NAMES for found in re.findall(r"python -m semopo_tf\.(\w+)", name)]
# Someone who greps for these words in the package lands at the function within the first two hits.
PHRASES = {
    "Equation 2": "methods/losses.py",
    "Eq. 2": "methods/losses.py",
    "penalised reward": "methods/losses.py",
    "penalized reward": "methods/losses.py",
    "conservative sampling": "data/sampler.py",
    "Algorithm 1": "methods/semopo.py",
}


def definitions(path: Path) -> set[str]:
    """Functions, classes and methods that a source defines: `f`, `C`, `C.m`."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            inner = node.body if isinstance(node, ast.ClassDef) else []
            found |= {f"{node.name}.{each.name}" for each in inner if isinstance(each, ast.FunctionDef)}
    return found


def exists(name: str) -> bool:
    """Whether `folder.module.Class.method`, or a shorter form, is something in the package."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:cut]).with_suffix(".py")
        if path.is_file():
            return cut == len(parts) or ".".join(parts[cut:]) in definitions(path)
    return False


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_that_the_page_names_exists(name):
    assert exists(name)


@pytest.mark.parametrize("name", TESTS)
def test_every_test_that_the_page_names_exists(name):
    path, _, function = name.partition("::")
    assert function in definitions(ROOT / path)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_the_page_names_exists(name):
    assert (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name / "__main__.py").is_file()


def test_the_page_is_read_and_the_check_can_fail():
    assert len(FUNCTIONS) > 20 and len(TESTS) > 30 and len(COMMANDS) >= 3
    assert not exists("methods.losses.penalty") and not exists("methods.nothing.penalty")
    for number in range(1, 11):
        assert re.search(rf"Figures? [\d, ]*\b{number}\b", PAGE), f"Figure {number}"
    for number in range(1, 6):
        assert f"Table {number}" in PAGE
    assert "Equation 1" in PAGE and "Equation 2" in PAGE and "Algorithm 1" in PAGE


@pytest.mark.parametrize(("phrase", "home"), PHRASES.items())
def test_a_search_for_the_papers_words_lands_at_the_code(phrase, home):
    """In the order of the paths, whatever the case of the letters."""
    hits = []
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = path.read_text().splitlines()
        hits += [path.relative_to(PACKAGE).as_posix() for line in lines if phrase.lower() in line.lower()]
    assert home in hits[:2]
