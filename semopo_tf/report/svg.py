"""Panels as SVG: lines with bands, bars with whiskers, intervals, dots. Each is legible on a phone, and equal data give
equal bytes.
"""

import functools
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (4.6, 2.9)  # inches
SMALL = 8.5  # points of the smallest letters: nine pixels where a panel is 351 pixels wide
# Distinguishable for colour-blind readers.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c564b")
DASHES = ("-", "--", "-.", ":")
SETTINGS: dict[Any, Any] = {
    **{"svg.fonttype": "path", "text.parse_math": False, "font.size": 9, "axes.titlesize": 9.5},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25},
    **{"legend.frameon": False, "legend.fontsize": SMALL, "lines.linewidth": 1.6},
}
AXIS_LETTERS, SIDE_LETTERS = 47, 18  # of all names below an axis; of a line beside one
TITLE_LETTERS = 44  # of a line of a title
LEGEND_LETTERS, LEGEND_ROW = 55, 0.19  # of a line of the legend; inches
GREY = "#8a94a0"


class Line(NamedTuple):
    """A curve [points], with or without a band around it."""

    label: str
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    faint_of: str = ""  # drawn thin in the colour of this label


class Bar(NamedTuple):
    """A value with its standard deviation."""

    value: float
    std: float


class Dots(NamedTuple):
    """A row of values with their mean and, in grey, a range."""

    label: str
    values: Sequence[float]
    mean: float
    range: tuple[float, float] | None = None


class Estimates(NamedTuple):
    """A row of estimates with the ends of their intervals, one of each run for every series."""

    label: str
    each: Mapping[str, Sequence[tuple[float, float, float]]]  # series -> (estimate, low, high)
    bold: bool = False  # its label


class Style:
    """The colour and dashes of each label, the same in all figures of a page."""

    def __init__(self, labels: Sequence[str]):
        self._numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}

    def of(self, label: str) -> tuple[str, str]:
        """(colour, dashes); a new label gets the next number."""
        number = self._numbers.setdefault(label, len(self._numbers))
        return COLORS[number % len(COLORS)], DASHES[(number + number // len(COLORS)) % len(DASHES)]


def _drawn(draw: Callable[..., "Figure"]) -> Callable[..., bytes]:
    """Make a function that draws a figure return the bytes of its SVG. The title, its first argument, salts the
    identifiers, so that equal data give equal bytes.
    """

    @functools.wraps(draw)
    def drawn(title: str, *arguments: Any, **settings: Any) -> bytes:
        import matplotlib

        buffer = io.BytesIO()
        with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": title}):
            draw(title, *arguments, **settings).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()

    return drawn


@_drawn
def lines(title: str, curves: Sequence[Line], style: Style, *, x: str, y: str = "", log: bool = False) -> "Figure":
    """Curves over one axis; those of `faint_of` are thin and dotted."""
    figure, axes = _panel(title)
    for line in curves:
        color, dashes = style.of(line.faint_of or line.label)
        linestyle, width = (":", 0.9) if line.faint_of else (dashes, 1.6)
        marker = "o" if np.size(line.x) < 12 else ""
        drawn: dict[str, Any] = {"color": color, "linestyle": linestyle, "linewidth": width, "marker": marker}
        axes.plot(line.x, line.y, label=line.label, markersize=3, **drawn)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.18, linewidth=0)
    axes.set(xlabel=x, ylabel=y)
    if log:
        from matplotlib.ticker import LogFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())  # plain numbers
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    _legend(figure, axes)
    return figure


@_drawn
def bars(title: str, series: Mapping[str, Mapping[str, Bar]], style: Style, *, y: str) -> "Figure":
    """Grouped bars.

    Args:
      series: label -> position on the x axis -> bar; a missing position stays empty. No value is negative, so whiskers
        end at 0.
    """
    figure, axes = _panel(title)
    positions = list(dict.fromkeys(position for each in series.values() for position in each))
    width = 0.8 / len(series)
    for number, (label, each) in enumerate(series.items()):
        x = [positions.index(position) + (number - (len(series) - 1) / 2) * width for position in each]
        heights, stds = [bar.value for bar in each.values()], [bar.std for bar in each.values()]
        whiskers: dict[str, Any] = {"yerr": [np.minimum(heights, stds), stds], "error_kw": {"linewidth": 0.9}}
        axes.bar(x, heights, width * 0.92, color=style.of(label)[0], label=label, capsize=2, **whiskers)
    names = [position.replace(" ", "\n", 1) for position in positions]
    turned = len(positions) * max(len(line) for name in names for line in name.split("\n")) > AXIS_LETTERS
    rotation, alignment = (25, "right") if turned else (0, "center")
    axes.set_xticks(range(len(positions)), names, rotation=rotation, ha=alignment, fontsize=SMALL)
    axes.set(ylabel=y, xlim=(-0.7, len(positions) - 0.3))
    axes.grid(visible=False, axis="x")
    _legend(figure, axes)
    return figure


@_drawn
def pairs(title: str, compared: Sequence[tuple[str, str, float, float, float]]) -> "Figure":
    """Intervals with a mark at the estimate; X on the left, Y on the right.

    Args:
      compared: (X, Y, estimate, low, high) each.
    """
    names = [[textwrap.fill(name, SIDE_LETTERS) for name in each[:2]] for each in compared]
    tallest = max(name.count("\n") for both in names for name in both)
    figure, axes = _panel(title, height=1.1 + (0.38 + 0.13 * tallest) * len(compared))
    rows = np.arange(len(compared))[::-1]
    for row, (_, _, estimate, low, high) in zip(rows, compared, strict=True):
        axes.barh(row, high - low, 0.55, left=low, color=COLORS[0], alpha=0.4)
        axes.plot([estimate] * 2, [row - 0.36, row + 0.36], color="black", linewidth=1.6)
    axes.axvline(0.5, color="black", linestyle="--", linewidth=0.9)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.6, len(compared) - 0.4), xlabel="P(X > Y)", ylabel="X")
    axes.set_yticks(rows, [x for x, _ in names], fontsize=SMALL)
    right = axes.secondary_yaxis("right")
    right.set_yticks(rows, [y for _, y in names], fontsize=SMALL)
    right.set_ylabel("Y")
    axes.grid(visible=False, axis="y")
    return figure


@_drawn
def dots(title: str, rows: Sequence[Dots], style: Style, *, x: str, marks: Sequence[float]) -> "Figure":
    """A row of dots for each label, from top to bottom, and dashed lines across all rows at `marks`."""
    names = [textwrap.fill(row.label, SIDE_LETTERS + 6) for row in rows]
    tallest = max(name.count("\n") for name in names)
    figure, axes = _panel(title, height=0.9 + (0.26 + 0.14 * tallest) * len(rows))
    axes.use_sticky_edges = False  # a margin on both sides of the grey bar
    for y, row in zip(range(len(rows))[::-1], rows, strict=True):
        color = GREY if row.range else style.of(row.label)[0]
        if row.range:
            axes.barh(y, row.range[1] - row.range[0], 0.5, left=row.range[0], color=GREY, alpha=0.35)
        axes.plot([row.mean] * 2, [y - 0.36, y + 0.36], color=color, linewidth=2.2)
        axes.plot(row.values, [y] * len(row.values), "o", color=color, markersize=5, alpha=0.75, markeredgewidth=0)
    for mark in marks:
        axes.axvline(mark, color="black", linestyle="--", linewidth=0.9)
    axes.set(xlabel=x, ylim=(-0.6, len(rows) - 0.4))
    axes.set_yticks(range(len(rows))[::-1], names, fontsize=SMALL)
    axes.grid(visible=False, axis="y")
    return figure


@_drawn
def intervals(title: str, rows: Sequence[Estimates], *, x: str) -> "Figure":
    """A row for each label, from top to bottom, with the marks and lines of its series one below the other, and a
    dashed line at 0; the first series in colour, a second one in grey.
    """
    names = [textwrap.fill(row.label, SIDE_LETTERS + 6) for row in rows]
    series = list(dict.fromkeys(name for row in rows for name in row.each))
    figure, axes = _panel(textwrap.fill(title, TITLE_LETTERS), height=1.2 + 0.42 * len(rows))
    for number, name in enumerate(series):
        color = (COLORS[1], GREY)[number] if number < 2 else COLORS[number]
        marks = [
            (y, *one) for y, row in zip(range(len(rows))[::-1], rows, strict=True) for one in row.each.get(name, ())
        ]
        y, value, low, high = np.array(marks).reshape(-1, 4).T
        y = y + 0.17 * ((len(series) - 1) / 2 - number) * 2
        axes.hlines(y, low, high, color=color, linewidth=2.4, alpha=0.45)
        axes.plot(value, y, "os"[number % 2], color=color, markersize=4.5, markeredgewidth=0, label=name)
    axes.axvline(0, color="black", linestyle="--", linewidth=0.9)
    axes.set(xlabel=x, ylim=(-0.6, len(rows) - 0.4))
    axes.set_yticks(range(len(rows))[::-1], names, fontsize=SMALL)
    for row, text in zip(rows, axes.get_yticklabels(), strict=True):
        text.set_fontweight("bold" if row.bold else "normal")
    axes.grid(visible=False, axis="y")
    _legend(figure, axes)
    return figure


def _panel(title: str, height: float = SIZE[1]) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _legend(figure: "Figure", axes: "Axes") -> None:
    """Put the legend below the axes, which keep their size."""
    handles, names = axes.get_legend_handles_labels()
    if not handles:
        return
    names = [textwrap.fill(name, LEGEND_LETTERS) for name in names]
    longest = max(len(line) for name in names for line in name.split("\n"))
    columns = max(1, min(len(names), LEGEND_LETTERS // (longest + 5)))
    rows = -(-sum(1 + name.count("\n") for name in names) // columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * rows)
    figure.legend(handles, names, loc="outside lower center", ncols=columns)
