"""Panels as SVG: lines with bands, bars with whiskers, intervals. Each is small enough to be read on a telephone; equal
data give equal bytes.
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
COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
    "#8c564b",
)  # told apart by the colour-blind too
DASHES = ("-", "--", "-.", ":")
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "path",
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.6,
}
AXIS_LETTERS, SIDE_LETTERS = 50, 18  # of all names below an axis; of a line beside one
LEGEND_LETTERS, LEGEND_ROW = 58, 0.18  # of a line of the legend; inches


class Line(NamedTuple):
    """A curve [points] with a band around it, or none."""

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


class Style:
    """The colour and dashes of a label, the same in all figures of a page."""

    def __init__(self, labels: Sequence[str]):
        self._place = {label: place for place, label in enumerate(dict.fromkeys(labels))}

    def color(self, label: str) -> str:
        return COLORS[self._number(label) % len(COLORS)]

    def dashes(self, label: str) -> str:
        place = self._number(label)
        return DASHES[(place + place // len(COLORS)) % len(DASHES)]

    def _number(self, label: str) -> int:
        return self._place.setdefault(label, len(self._place))


def _drawn(draw: Callable[..., "Figure"]) -> Callable[..., bytes]:
    """What a function draws, as the bytes of an SVG whose marks are named after the title, its first argument."""

    @functools.wraps(draw)
    def drawn(title: str, *arguments: Any, **settings: Any) -> bytes:
        import matplotlib

        buffer = io.BytesIO()
        with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": title}):
            draw(title, *arguments, **settings).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()

    return drawn


@_drawn
def lines(title: str, found: Sequence[Line], style: Style, *, x: str, y: str = "", log: bool = False) -> "Figure":
    figure, axes = _panel(title)
    for line in found:
        color, dashes = style.color(line.faint_of or line.label), ":" if line.faint_of else style.dashes(line.label)
        marker = "o" if np.size(line.x) < 12 else ""
        axes.plot(
            line.x,
            line.y,
            color=color,
            linestyle=dashes,
            marker=marker,
            markersize=3,
            label=line.label,
            linewidth=0.9 if line.faint_of else 1.6,
        )
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.18, linewidth=0)
    axes.set(xlabel=x, ylabel=y)
    if log:
        _logarithmic(axes)
    _legend(figure, axes)
    return figure


@_drawn
def bars(title: str, found: Mapping[str, Mapping[str, Bar]], style: Style, *, y: str) -> "Figure":
    """found: series -> place on the x axis -> bar; a place that a series does not have stays free. No value is
    negative; whiskers end at 0.
    """
    figure, axes = _panel(title)
    places = list(dict.fromkeys(place for series in found.values() for place in series))
    width = 0.8 / len(found)
    for number, (label, series) in enumerate(found.items()):
        x = [places.index(place) + (number - (len(found) - 1) / 2) * width for place in series]
        heights, stds = [bar.value for bar in series.values()], [bar.std for bar in series.values()]
        whiskers = [[min(pair) for pair in zip(heights, stds, strict=True)], stds]
        axes.bar(
            x,
            heights,
            width * 0.92,
            yerr=whiskers,
            color=style.color(label),
            label=label,
            capsize=2,
            error_kw={"linewidth": 0.9},
        )
    names = [place.replace(" ", "\n", 1) for place in places]
    turned = len(places) * max(len(line) for name in names for line in name.split("\n")) > AXIS_LETTERS
    axes.set_xticks(
        range(len(places)), names, rotation=25 if turned else 0, ha="right" if turned else "center", fontsize=8
    )
    axes.set(ylabel=y)
    axes.set_xlim(-0.7, len(places) - 0.3)
    axes.grid(visible=False, axis="x")
    _legend(figure, axes)
    return figure


@_drawn
def pairs(title: str, found: Sequence[tuple[str, str, float, float, float]]) -> "Figure":
    """Bars from the lower to the upper limit with a mark at the estimate; X on the left, Y on the right. (X, Y,
    estimate, low, high) each.
    """
    names = [[textwrap.fill(name, SIDE_LETTERS) for name in each[:2]] for each in found]
    tallest = max(name.count("\n") for both in names for name in both)
    figure, axes = _panel(title, height=1.1 + (0.38 + 0.13 * tallest) * len(found))
    places = np.arange(len(found))[::-1]
    for place, (_, _, estimate, low, high) in zip(places, found, strict=True):
        axes.barh(place, high - low, 0.55, left=low, color=COLORS[0], alpha=0.4)
        axes.plot([estimate] * 2, [place - 0.36, place + 0.36], color="black", linewidth=1.6)
    axes.axvline(0.5, color="black", linestyle="--", linewidth=0.9)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.6, len(found) - 0.4), xlabel="P(X > Y)", ylabel="X")
    axes.set_yticks(places, [x for x, _ in names], fontsize=8)
    right = axes.secondary_yaxis("right")
    right.set_yticks(places, [y for _, y in names], fontsize=8)
    right.set_ylabel("Y")
    axes.grid(visible=False, axis="y")
    return figure


def _panel(title: str, height: float = SIZE[1]) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _logarithmic(axes: "Axes") -> None:
    """With plain numbers, the powers of ten as such."""
    from matplotlib.ticker import LogFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))


def _legend(figure: "Figure", axes: "Axes") -> None:
    """Below the axes, which keep their size."""
    handles, names = axes.get_legend_handles_labels()
    if not handles:
        return
    names = [textwrap.fill(name, LEGEND_LETTERS) for name in names]
    longest = max(len(line) for name in names for line in name.split("\n"))
    columns = max(1, min(len(names), LEGEND_LETTERS // (longest + 5)))
    rows = -(-sum(1 + name.count("\n") for name in names) // columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * rows)
    figure.legend(handles, names, loc="outside lower center", ncols=columns)
