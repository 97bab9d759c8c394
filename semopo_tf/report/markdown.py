"""Markdown: a table, and generated tables in a handwritten page, each between a pair of marks:

<!-- table NAME -->
<!-- end -->
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from semopo_tf.errors import ConfigError
from semopo_tf.storage.files import write_whole

MARKED = re.compile(r"(<!-- table (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def table(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the head; the columns after the first are numbers."""
    ruled = [lines[0], ["---", *["---:"] * (len(lines[0]) - 1)], *lines[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in ruled)


def rewrite(page: Path, table_of: Callable[[str, str], str], names: str = "NAME") -> None:
    """Write the tables of a page between their marks.

    Args:
      table_of: (name of the mark, what stands there now) -> what shall stand there.
      names: in words, which marks are expected.

    Raises:
      ConfigError: for a page that cannot be read or has no mark, and as `table_of`.
    """
    try:
        text = page.read_text()
    except OSError as error:
        raise ConfigError(f"--page {page}: cannot be read ({error.strerror})") from error
    if not MARKED.search(text):
        expected = f"expected a table between <!-- table {names} --> and <!-- end -->"
        raise ConfigError(f"--page {page}: {expected}, received none")

    def rewritten(mark: re.Match[str]) -> str:
        begin, name, now, end = mark.groups()
        now = now.removesuffix("\n")
        return f"{begin}{table_of(name, now)}\n{end}"

    write_whole(page, MARKED.sub(rewritten, text).encode())
