"""The pages lead somewhere: links, anchors, paths, commands and exit codes that they name exist. Reads text alone."""

import re
from functools import cache
from pathlib import Path

import pytest

from semopo_tf import errors

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "DECISIONS.md", "RESULTS.md", "CHANGELOG.md", "SECURITY.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
# Folders whose files are named by their path from the root of the repository.
FOLDERS = ("semopo_tf", "tests", "sweeps", "tools", "examples", "docs")
PLACEHOLDER = re.compile(r"[<>*…]|\.\.\.")


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def prose(text: str) -> str:
    """A page without its fenced and indented code."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(?:^|(?<=\n\n))(?: {4,}.*\n?)+", "", text)


def slug(heading: str) -> str:
    """The anchor that GitHub and mkdocs make of a heading without special letters."""
    return re.sub(r"[ -]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower())


@cache
def anchors(page: Path) -> frozenset[str]:
    return frozenset(slug(line) for line in re.findall(r"^#+ (.+)$", prose(page.read_text()), re.MULTILINE))


def dead_links(text: str, page: Path) -> list[str]:
    """Relative links of a page that lead to no file or no heading. A page of docs/ may link only inside docs/."""
    dead = []
    for link in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        outside = page.parent.name == "docs" and target.parent != page.parent
        if outside or not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


def dead_paths(text: str) -> list[str]:
    """Paths of source files in a text that do not exist; `path::test` must be a test of that file."""
    dead = []
    for path, name in re.findall(
        rf"(?<![\w/.])((?:{'|'.join(FOLDERS)})/[\w/.-]*\.(?:py|yaml|md|png))(?:::(\w+))?", text
    ):
        if not (ROOT / path).is_file() or (name and f"def {name}(" not in (ROOT / path).read_text()):
            dead.append(f"{path}::{name}" if name else path)
    return dead


def dead_backticks(text: str) -> list[str]:
    """Paths in backticks that begin with a folder of the repository and lead nowhere."""
    quoted = [name for name in re.findall(r"`([^`\n]+)`", text) if name.startswith(tuple(f"{f}/" for f in FOLDERS))]
    return [name for name in quoted if not PLACEHOLDER.search(name) and not (ROOT / name.split("::")[0]).exists()]


def dead_commands(text: str) -> list[str]:
    """`python -m semopo_tf.X` where X is neither a module nor a folder with a `__main__`."""
    modules = set(re.findall(r"python -m (semopo_tf(?:\.\w+)*)", text))
    paths = {module: ROOT.joinpath(*module.split(".")) for module in modules}
    return sorted(
        module
        for module, path in paths.items()
        if not path.with_suffix(".py").is_file() and not (path / "__main__.py").is_file()
    )


def dead_make_targets(text: str) -> list[str]:
    """`make X` in code where the Makefile has no target X."""
    known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    return sorted(set(re.findall(r"(?:`|^ {4})make ([a-z][\w-]*)", text, re.MULTILINE)) - known)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_path_and_command_exists(page):
    text = page.read_text()
    assert dead_links(text, page) == []
    assert dead_paths(text) == []
    assert dead_backticks(text) == []
    assert dead_commands(text) == []
    assert dead_make_targets(text) == []


@pytest.mark.parametrize(
    ("find", "planted"),
    [
        (dead_links, "[x](docs/none.md)"),
        (dead_links, "[x](docs/flags.md#no-such-heading)"),
        (dead_links, "[x](#nowhere)"),
        (dead_paths, "see `tests/test_none.py`"),
        (dead_paths, "tests/test_docs.py::test_that_is_not_there"),
        (dead_paths, "in semopo_tf/published.yaml"),
        (dead_backticks, "`tools/none`"),
        (dead_commands, "    python -m semopo_tf.none --x"),
        (dead_make_targets, "    make nothing"),
    ],
)
def test_a_planted_dead_reference_is_found(find, planted):
    page = [ROOT / "README.md"] if find is dead_links else []
    assert len(find(planted, *page)) == 1


def test_living_references_are_not_found():
    page = ROOT / "README.md"
    assert dead_links("[x](docs/flags.md#exit-codes) [y](https://example.org/none) [z](LICENSE)", page) == []
    assert dead_links("    [x](none.md)\n\n```\n[x](none.md)\n```\n", page) == []
    assert dead_paths("`tests/test_docs.py::test_living_references_are_not_found`") == []
    assert dead_backticks("`sweeps/demo.yaml` `tests/` `docs/*.md`") == []


def test_a_page_of_docs_links_to_nothing_outside_docs():
    """The website is made of docs/ alone."""
    assert dead_links("[x](../README.md)", ROOT / "docs" / "flags.md") == ["../README.md"]


def test_every_page_of_docs_is_in_the_navigation_and_every_entry_exists():
    listed = re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1].split("\n\n")[0])
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_readme_is_short_and_leads_to_every_page():
    text = (ROOT / "README.md").read_text()
    assert 700 <= len(text.split()) <= 900
    assert {"make test", "make demo"} <= {f"make {name}" for name in re.findall(r"make ([\w-]+)", text)}
    views = {"index.md", "results.md"}  # of the website; the README has their contents itself or links to the original
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name})" not in text]
    assert sorted(set(missing) - views) == []


def exit_codes(text: str) -> dict[int, str]:
    """Code -> meaning, from the table of docs/flags.md."""
    table = text.split("## Exit codes\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([\d, ]+) \| (.+) \|$", table, re.MULTILINE)
    return {int(code): meaning for codes, meaning in rows for code in codes.split(",")}


def test_the_documented_exit_codes_are_those_of_the_errors():
    documented = exit_codes((ROOT / "docs" / "flags.md").read_text())
    classes = [
        each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.SemopoError)
    ]
    raised = {each.exit_code for each in classes if each is not errors.SemopoError}
    assert set(documented) == raised | {0} | {128 + signal for signal in (1, 2, 15)}
    assert all(len(meaning) >= 4 for meaning in documented.values())


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_prose_has_at_most_120_columns(page):
    """Tables may be wider; so may what a program writes, between `<!-- table -->` and `<!-- end -->`."""
    text = re.sub(r"<!-- table .*?<!-- end -->", "", page.read_text(), flags=re.DOTALL)
    assert [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")] == []
