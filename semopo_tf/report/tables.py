"""Tables as HTML, CSV and LaTeX, where text after a newline in a cell is set small; and as plain text."""

import csv
import html
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

TIMES = "\N{MULTIPLICATION SIGN}"
TEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    TIMES: r"$\times$",
    "²": "$^2$",
    "→": r"$\to$",
    "<": "$<$",
    ">": "$>$",
    "…": r"\ldots{}",
}
TEX |= {letter: "\\" + letter for letter in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
PAPER = "paper"  # second cell of the rows that quote the paper
NOTHING = "-"


class Table(NamedTuple):
    """Cells are plain text. `records`, where given, are the rows of the CSV file, its heading first."""

    name: str  # of the files
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    records: Sequence[Sequence[object]] = ()

    def html(self) -> str:
        """The table in a box that scrolls sideways."""
        head = "".join(f"<th scope=col>{_lines(cell)}</th>" for cell in self.header)
        body = "".join(
            f"<tr{_kind(row)}>{''.join(f'<td>{_lines(cell)}</td>' for cell in row)}</tr>" for row in self.rows
        )
        return f"<div class=scroll tabindex=0><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"

    def csv(self) -> bytes:
        shown = [[cell.replace("\n", " ") for cell in row] for row in (self.header, *self.rows)]
        return csv_bytes(self.records or shown)

    def tex(self) -> bytes:
        """A `tabular` that needs no package."""
        head, *body = (" & ".join(_tex(cell) for cell in row) + r" \\" for row in (self.header, *self.rows))
        columns = "ll" + "r" * (len(self.header) - 2)
        return "\n".join(
            [rf"\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline", *body, r"\hline", r"\end{tabular}", ""]
        ).encode()

    def files(self) -> dict[str, bytes]:
        return {f"tables/{self.name}.csv": self.csv(), f"tables/{self.name}.tex": self.tex()}


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """A CSV file."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


def span(values: Sequence[int], between: str = "-") -> str:
    """The smallest and the largest of some numbers; one number where all are equal."""
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low}{between}{high}"


def _kind(row: Sequence[str]) -> str:
    return f" class={PAPER}" if len(row) > 1 and row[1] == PAPER else ""


def _lines(cell: str) -> str:
    figure, *small = (html.escape(line) for line in cell.split("\n"))
    return figure + "".join(f"<small>{line}</small>" for line in small)


def _tex(cell: str) -> str:
    figure, *small = ("".join(TEX.get(letter, letter) for letter in line) for line in cell.split("\n"))
    return figure + "".join(rf" {{\scriptsize ({line})}}" for line in small)


def aligned(rows: Sequence[Sequence[str]], numbers: str = ">") -> str:
    """Plain text, a line for each row.

    Args:
      numbers: alignment of all columns but the first, `>` right or `<` left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    forms = [f"<{widths[0]}", *(f"{numbers}{width}" for width in widths[1:])]
    return "\n".join("  ".join(map(format, row, forms)).rstrip() for row in rows)
