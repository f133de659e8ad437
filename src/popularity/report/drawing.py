"""Charts as SVG with the colours of the page, readable on light and dark, with the same bytes each time.

Text stays text of at least 11 pixels. The colours differ for readers who do not see red or green too.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from scipy.stats import rankdata

from popularity.core.arrays import Float64Array
from popularity.report.placement import place_labels, text_width

INK, MUTED, GRID, SURFACE = "#1f2328", "#59636e", "#d8dee4", "#fefefe"
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#00805e", "#8a4f9e"
SERIES = (BLUE, ORANGE, GREEN, PURPLE)
_VARIABLES = {
    **{INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface"},
    **{BLUE: "blue", ORANGE: "orange", GREEN: "green", PURPLE: "purple"},
}
SMALL = (352, 280)  # pixels; a narrow telephone shows it whole
FONT = 11
MAP = (760, 600)
LEADER = 20  # pixels from a point to its label beyond which a line joins them
_STYLE: dict[Any, Any] = {  # of matplotlib
    "svg.fonttype": "none",
    "svg.hashsalt": "popularity",
    "text.parse_math": False,  # a class may be called "$"
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "font.size": FONT,
    **dict.fromkeys(("axes.labelsize", "axes.titlesize", "xtick.labelsize", "ytick.labelsize"), FONT),
    "legend.fontsize": FONT,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.major.pad": 6,  # or the first label touches that of the other axis
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class Line:
    """A curve: x and y (n,), and the bounds of a band (n,) if there is one; NaN leaves a gap.

    Without a name it is not in the legend.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    colour: str = BLUE
    style: str = "-"
    marker: str = ""


@dataclass(frozen=True)
class Interval:
    """A value with bounds, None where undefined, in a group of rows."""

    group: str
    name: str
    value: float | None
    low: float | None
    high: float | None


class _Canvas:
    """One axes of a given size in pixels, and its SVG once it is drawn."""

    def __init__(self, size: tuple[float, float], label: str) -> None:
        self.label = label
        self.figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72, layout="constrained")
        self.axes: Axes = self.figure.subplots()
        self.svg = Markup("")


@contextmanager
def _canvas(size: tuple[float, float], label: str) -> Iterator[_Canvas]:
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has other fonts
        canvas = _Canvas(size, label)
        yield canvas
        stream = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
    canvas.svg = _for_page(stream.getvalue(), size, label)


def _for_page(svg: str, size: tuple[float, float], label: str) -> Markup:
    """The drawing without what changes the rest of the page: ids that two drawings share, styles of all elements."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    for colour, name in _VARIABLES.items():
        svg = svg.replace(f": {colour}", f": var(--{name})")
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", svg)
    opening = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {} {}" style="min-width: {}px">')
    body = re.sub(r"\s*\n\s*", "\n", svg[svg.index(">") + 1 :])
    return opening.format(label, *size, size[0]) + Markup(body)


def predicted_against_true(
    label: Float64Array, prediction: Float64Array, limits: tuple[float, float], title: str, description: str
) -> Markup:
    """Density of the posts in hexagons, the diagonal, and the mean label of each tenth of the predictions."""
    with _canvas(SMALL, description) as canvas:
        axes = canvas.axes
        low, high = limits
        cells = axes.hexbin(prediction, label, gridsize=(26, 15), extent=(low, high, low, high), mincnt=1, linewidths=0)
        counts = np.asarray(cells.get_array(), dtype=np.float64)
        cells.set_array(None)
        shade = np.round(0.18 + 0.82 * np.sqrt(counts / counts.max()), 2) if len(counts) else counts
        cells.set_facecolor([mpl.colors.to_rgba(BLUE, alpha) for alpha in shade])
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="equal")
        order = np.argsort(prediction, kind="stable")
        tenths = [rows for rows in np.array_split(order, 10) if len(rows)]
        axes.plot(
            [prediction[rows].mean() for rows in tenths],
            [label[rows].mean() for rows in tenths],
            color=ORANGE, marker="o", label="mean of each tenth",
        )  # fmt: skip
        axes.set(xlim=(low, high), ylim=(low, high), xlabel="predicted", ylabel="true", title=title)
        canvas.figure.legend(loc="outside lower center", ncols=2, handlelength=2.2)
    return canvas.svg


def intervals(
    rows: Sequence[Interval], title: str, description: str, *, strong: str | None = None, zero: bool = False
) -> Markup:
    """Values with their intervals, one below the other in the order given, groups apart.

    Args:
        rows: at least one.
        title: of the axis.
        description: for screen readers.
        strong: the only group in colour; None: all are.
        zero: marked by a line.
    """
    groups = list(dict.fromkeys(row.group for row in rows))
    height = 54 + 19 * len(rows) + 22 * len(groups)
    with _canvas((SMALL[0], height), description) as canvas:
        axes = canvas.axes
        position, ticks, names = 0.0, [], []
        for group in groups:
            axes.text(0, position, f"{group}  ", transform=axes.get_yaxis_transform(), ha="right", va="center",
                      fontweight="bold")  # fmt: skip
            for row in (row for row in rows if row.group == group):
                position += 1
                ticks.append(position)
                names.append(row.name)
                colour = BLUE if strong in (None, group) else MUTED
                if row.low is not None and row.high is not None:
                    axes.plot([row.low, row.high], [position] * 2, color=colour, linewidth=2.2, solid_capstyle="butt")
                if row.value is not None:
                    axes.plot([row.value], [position], "o", color=colour, markersize=6.5)
            position += 1.25
        if zero:
            axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks(ticks, names)
        axes.tick_params(axis="y", length=0)
        axes.set(ylim=(position - 0.5, -0.7), title=title)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
    return canvas.svg


@dataclass(frozen=True)
class XAxis:
    """The horizontal axis of curves.

    Args:
        title: of the axis.
        names: of the positions 0, 1, ... (months); about five are written. Without names the axis has numbers.
    """

    title: str = ""
    names: Sequence[str] = ()


INTEGERS = XAxis()


def lines(
    curves: Sequence[Line],
    title: str,
    description: str,
    *,
    x: XAxis = INTEGERS,
    bottom: float | None = None,
    reference: float | None = None,
) -> Markup:
    """Curves over a common axis.

    Args:
        curves: at least one.
        title: of the vertical axis.
        description: for screen readers.
        x: the horizontal axis.
        bottom: lowest value of the vertical axis.
        reference: height of a dashed line.
    """
    with _canvas(SMALL, description) as canvas:
        axes = canvas.axes
        for curve in curves:
            if curve.low is not None and curve.high is not None:
                axes.fill_between(
                    curve.x, _floats(curve.low), _floats(curve.high), color=curve.colour, alpha=0.2, linewidth=0
                )
            marker = curve.marker or ("o" if len(curve.x) == 1 else "")
            name = curve.name or "_nolegend_"
            axes.plot(curve.x, _floats(curve.y), color=curve.colour, linestyle=curve.style, marker=marker, label=name)
        if reference is not None:
            axes.axhline(reference, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        if x.names:
            step = -(-len(x.names) // 5)
            axes.set_xticks(range(0, len(x.names), step), x.names[::step])
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel=x.title)
        axes.set_title(title)
        if bottom is not None:
            axes.set_ylim(bottom=bottom)
        if len(curves) > 1:
            canvas.figure.legend(loc="outside lower center", ncols=2, handlelength=2.2)
    return canvas.svg


def _floats(values: Sequence[float]) -> Float64Array:
    return np.asarray(values, dtype=np.float64)


@dataclass(frozen=True)
class SplitRow:
    """A validation split: its name, and by role the number of posts in each month."""

    name: str
    posts: Mapping[str, Sequence[int]]


ROLE_COLOURS = {"train": BLUE, "valid": ORANGE, "excluded": MUTED}
BAND = 8  # pixels of a role's band in a split


def split_timeline(rows: Sequence[SplitRow], months: Sequence[str], description: str) -> Markup:
    """Splits one below the other over time: a band for each role, the more posts in a month the stronger.

    Args:
        rows: at least one; roles are those of ROLE_COLOURS.
        months: names of the positions on the time axis.
        description: for screen readers.
    """
    height = 70 + len(rows) * (BAND * len(ROLE_COLOURS) + 8)
    step = 1 + 8 / (BAND * len(ROLE_COLOURS))  # of a row, in heights of its bands
    with _canvas((SMALL[0], height), description) as canvas:
        axes = canvas.axes
        for index, row in enumerate(rows):
            for lane, (role, colour) in enumerate(ROLE_COLOURS.items()):
                counts = np.asarray(row.posts[role], dtype=np.float64)
                for month in np.flatnonzero(counts):
                    alpha = round(0.3 + 0.7 * float(counts[month] / counts.max()) ** 0.5, 2)
                    top = index * step + lane / len(ROLE_COLOURS)
                    box = (month - 0.5, top), 1, 1 / len(ROLE_COLOURS)
                    axes.add_patch(Rectangle(*box, facecolor=colour, alpha=alpha, linewidth=0))
        axes.set_yticks([index * step + 0.5 for index in range(len(rows))], [row.name for row in rows])
        axes.tick_params(axis="y", length=0)
        every = -(-len(months) // 4)
        axes.set_xticks(range(0, len(months), every), months[::every])
        axes.set(xlim=(-0.5, len(months) - 0.5), ylim=(len(rows) * step - 0.2, -0.2))
        axes.grid(visible=False, axis="y")
        handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in ROLE_COLOURS.values()]
        canvas.figure.legend(handles, list(ROLE_COLOURS), loc="outside lower center", ncols=3, handlelength=1.2)
    return canvas.svg


@dataclass(frozen=True)
class MapPoint:
    """A class on the map: position, number of posts, which third of the mean labels (0 low to 2 high)."""

    name: str
    x: float
    y: float
    posts: int
    third: int


THIRDS = (("lower third of mean popularity", BLUE), ("middle", MUTED), ("upper third", ORANGE))


def class_map(classes: Sequence[MapPoint], labelled: int, description: str) -> Markup:
    """Classes by position, area by posts; the first `labelled` classes, the largest, have a label.

    A point is halfway between the coordinates of the class and their ranks, so that an outlier leaves room for others.
    """
    width, height = MAP
    at = np.array([[one.x, one.y] for one in classes])
    span = np.ptp(at, axis=0)
    ranks = rankdata(at, axis=0) - 1
    relative = (at - at.min(axis=0)) / np.where(span > 0, span, 1) / 2 + ranks / max(len(classes) - 1, 1) / 2
    points = np.round([70, 24] + relative * [width - 140, height - 78], 1)
    largest = max(one.posts for one in classes)
    radii = np.array([3 + 7 * (one.posts / largest) ** 0.5 for one in classes])
    names = [one.name if len(one.name) <= 26 else one.name[:25] + "…" for one in classes[:labelled]]
    widths = np.array([text_width(name, FONT) for name in names])
    centres = place_labels(points, radii, widths, FONT + 4, (width, height - 30))
    with _canvas(MAP, description) as canvas:
        canvas.figure.set_layout_engine("none")
        axes = canvas.axes
        axes.set_position((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        for point, centre, name, wide in zip(points, centres, names, widths, strict=False):
            if centre is not None:
                half = np.array([wide, FONT]) / 2
                edge = np.clip(point, np.array(centre) - half, np.array(centre) + half)
                if np.hypot(*(edge - point)) > LEADER:
                    axes.plot([point[0], edge[0]], [point[1], edge[1]], color=MUTED, linewidth=0.6, zorder=1)
                axes.text(*centre, name, ha="center", va="center_baseline", zorder=4)
        for point, radius, one in zip(points, radii, classes, strict=True):
            colour = THIRDS[one.third][1]
            axes.plot(*point, "o", markersize=2 * radius, color=colour, markeredgecolor=SURFACE, zorder=3)
        for index, (name, colour) in enumerate(THIRDS):
            left = 12 + (0, 235, 320)[index]
            axes.plot(left, height - 14, "o", markersize=9, color=colour, markeredgecolor=SURFACE)
            axes.text(left + 11, height - 14, name, va="center_baseline")
    return canvas.svg
