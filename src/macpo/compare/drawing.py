"""How lines with intervals are drawn, whatever they are of: one style for all figures.

Colours are those of Okabe and Ito, told apart by colour-blind readers too; past seven lines their
styles and markers tell more of them apart. matplotlib is used through its objects: no window, no
global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from macpo.metrics import PERPLEXITY, Metric

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PANEL = (4.6, 3.4)  # inches
LEGEND_WIDTH = 1.8
BAND, BAND_OF_MANY, AFTERWARDS = 0.15, 0.06, 0.5
"""Opacity of an interval's band, also among five lines or more, and of a line after its end."""
LOGARITHMIC = 20.0
"""Perplexities that differ by more than this factor are drawn on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class Point:
    """A mean at a place of the x axis, with the half-width of its interval where there is one."""

    x: float
    mean: float
    half_width: float | None = None


def style(number: int) -> dict[str, Any]:
    """Return how a line looks, by its place among the lines."""
    colour, turn = number % len(COLOURS), number // len(COLOURS)
    return {
        "color": COLOURS[colour],
        "linestyle": LINES[turn % len(LINES)],
        "marker": MARKERS[(colour + turn) % len(MARKERS)],
        "linewidth": 1.6,
    }


def make_figure(rows: int, columns: int, **shared: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure with room for a legend beside it, and its panels, row by row."""
    from matplotlib.figure import Figure

    size = (PANEL[0] * columns + LEGEND_WIDTH, PANEL[1] * rows)
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **shared).flat)


def draw_line(
    panel: Axes,
    number: int,
    label: str,
    points: Sequence[Point],
    *,
    band: float = BAND,
    until: float | None = None,
) -> None:
    """Draw a line with a band of its intervals; one point alone gets an error bar.

    Args:
        panel: where.
        number: its place among the lines, which decides how it looks.
        label: what the legend calls it.
        points: from left to right; without any nothing is drawn.
        band: the band's opacity.
        until: to where a thin line goes on after the last point, for what stays as it is.
    """
    if not points:
        return
    look = style(number)
    places, means = [point.x for point in points], [point.mean for point in points]
    panel.plot(places, means, label=label, markersize=4, **look)
    halves = [point.half_width or 0.0 for point in points]
    low = [mean - half for mean, half in zip(means, halves, strict=True)]
    high = [mean + half for mean, half in zip(means, halves, strict=True)]
    if len(points) > 1 and any(halves):
        panel.fill_between(places, low, high, color=look["color"], alpha=band, linewidth=0)
    elif halves[0]:
        panel.errorbar(places, means, yerr=halves, color=look["color"], capsize=3, linestyle="")
    if until is not None and until > places[-1]:
        flat = {**look, "marker": "", "alpha": AFTERWARDS, "linewidth": 1.0}
        panel.plot([places[-1], until], [means[-1], means[-1]], **flat)


def draw_bars(
    panel: Axes, number: int, count: int, label: str, points: Sequence[Point], **look: Any
) -> None:
    """Draw points with error bars, beside those of the `count - 1` others at the same places."""
    if not points:
        return
    # Side by side, so that intervals do not hide one another.
    shift = min(0.6, 0.05 * count) * ((number + 0.5) / count - 0.5)
    panel.errorbar(
        [point.x + shift for point in points],
        [point.mean for point in points],
        yerr=[point.half_width or 0.0 for point in points],
        label=label,
        capsize=3,
        markersize=4,
        **{**style(number), **look},
    )


def fit_axis(panels: Sequence[Axes], metric: Metric) -> None:
    """Make the y axis of panels logarithmic where values of a metric lie far apart."""
    lines = [line.get_ydata() for panel in panels for line in panel.get_lines()]
    if metric.unit != PERPLEXITY or not lines:
        return
    values = np.concatenate([np.asarray(line, dtype=float) for line in lines])
    if values.max() > LOGARITHMIC * values.min():
        for panel in panels:
            panel.set_yscale("log")


def add_legend(figure: Figure, panels: Sequence[Axes], *, below: int | None = None) -> None:
    """Name every line that is in some panel, once: beside the panels, or in columns below them.

    Args:
        figure: which figure.
        panels: its panels, which also get their grid.
        below: in how many columns; None for one beside the panels.
    """
    entries: dict[str, Artist] = {}
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        handles, labels = panel.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if not entries:
        return
    names = list(entries)
    handles = [entries[name] for name in names]
    if below is None:
        figure.legend(handles, names, loc="outside right center", frameon=False)
    else:
        figure.legend(handles, names, loc="outside lower center", ncols=below, frameon=False)
