"""Figures of a comparison: every metric over rounds, and over settings where there are several.

FIGURES/METRIC.png            one panel a setting, one line a method, bands are 95 % intervals
FIGURES/METRIC-settings.png   each method's last round, setting by setting

Colours are those of Okabe and Ito, told apart by colour-blind readers too; past seven methods line
styles and markers tell more of them apart. matplotlib is used through its objects: no window, no
global state.
"""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macpo.compare.comparison import Comparison
from macpo.compare.folder import FIGURES
from macpo.compare.results import STUDENT, SummaryRow
from macpo.metrics import metric
from macpo.store import translate_write_errors
from macpo.store.atomic import make_directory, remove_tree

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PANEL = (4.6, 3.4)  # inches
COLUMNS = 3
BAND, BAND_OF_MANY, AFTERWARDS = 0.15, 0.06, 0.5
"""Opacity of an interval's band, also among five methods or more, and of a line after the end."""


def draw_figures(comparison: Comparison, policy: str = STUDENT) -> list[Path]:
    """Draw every metric that the table shows; earlier figures go.

    Args:
        comparison: as `macpo.compare.compare` returned it.
        policy: whose metrics.

    Returns:
        The PNG files.

    Raises:
        StoreError: they cannot be written.
    """
    folder = comparison.folder / FIGURES
    remove_tree(folder)
    make_directory(folder)
    written = []
    for name in comparison.results.metrics(policy):
        stem = re.sub(r"[^A-Za-z0-9_.-]", "-", name)
        drawn = {stem: _over_rounds(comparison, policy, name)}
        if len(comparison.design.settings) > 1:
            drawn[f"{stem}-settings"] = _over_settings(comparison, policy, name)
        for file, figure in drawn.items():
            path = folder / f"{file}.png"
            image = io.BytesIO()
            figure.savefig(image, format="png", dpi=150)
            with translate_write_errors(path):
                path.write_bytes(image.getvalue())
            written.append(path)
    return written


def _over_rounds(comparison: Comparison, policy: str, name: str) -> Figure:
    """Draw a metric round by round, one panel a setting."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings = comparison.design.settings
    columns = min(COLUMNS, len(settings))
    rows = math.ceil(len(settings) / columns)
    figure = Figure(figsize=(PANEL[0] * columns + 1.8, PANEL[1] * rows), layout="constrained")
    panels: Any = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    last = max((row.round for row in comparison.results.rows if row.metric == name), default=0)
    methods = comparison.design.methods
    band = BAND if len(methods) < 5 else BAND_OF_MANY
    for place, setting in enumerate(settings):
        panel = panels.flat[place]
        for number, method in enumerate(methods):
            line = [
                comparison.results.at(setting, method, policy, name, t) for t in range(last + 1)
            ]
            _draw_line(panel, number, method, line, band)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.tick_params(labelbottom=place + columns >= len(settings))  # nothing stands below
        if len(settings) > 1:
            panel.set_title(setting, fontsize="medium")
    for panel in panels.flat[len(settings) :]:
        panel.set_visible(False)
    figure.supxlabel("round (0: after initialisation)")
    figure.supylabel(f"{metric(name).title}, {policy}")
    _add_legend(figure, panels.flat)
    return figure


def _draw_line(
    panel: Axes, number: int, method: str, line: list[SummaryRow | None], band: float
) -> None:
    """Draw one method: its rounds with a band; after its last one it stays as it is."""
    points = [(t, row) for t, row in enumerate(line) if row is not None and row.value is not None]
    own = [(t, row) for t, row in points if row.round == t]
    if not own:
        return
    style = _style(number)
    means = [row.value.mean for _, row in own if row.value is not None]
    rounds = [t for t, _ in own]
    panel.plot(rounds, means, label=method, markersize=4, **style)
    halves = [row.value.half_width or 0.0 for _, row in own if row.value is not None]
    low = [mean - half for mean, half in zip(means, halves, strict=True)]
    high = [mean + half for mean, half in zip(means, halves, strict=True)]
    if len(own) > 1:
        panel.fill_between(rounds, low, high, color=style["color"], alpha=band, linewidth=0)
    elif halves[0]:
        panel.errorbar(rounds, means, yerr=halves, color=style["color"], capsize=3, linestyle="")
    end = points[-1][0]
    if end > rounds[-1]:
        flat = {**style, "marker": "", "alpha": AFTERWARDS, "linewidth": 1.0}
        panel.plot([rounds[-1], end], [means[-1], means[-1]], **flat)


def _over_settings(comparison: Comparison, policy: str, name: str) -> Figure:
    """Draw each method's last round, setting by setting."""
    from matplotlib.figure import Figure

    settings, methods = comparison.design.settings, comparison.design.methods
    width = max(PANEL[0], 0.9 * len(settings)) + 1.8
    figure = Figure(figsize=(width, PANEL[1]), layout="constrained")
    panel = figure.subplots()
    for number, method in enumerate(methods):
        found = [comparison.results.at(s, method, policy, name) for s in settings]
        points = [(x, row.value) for x, row in enumerate(found) if row is not None and row.value]
        if not points:
            continue
        # Side by side, so that intervals do not hide one another.
        shift = min(0.6, 0.05 * len(methods)) * ((number + 0.5) / len(methods) - 0.5)
        panel.errorbar(
            [x + shift for x, _ in points],
            [value.mean for _, value in points],
            yerr=[value.half_width or 0.0 for _, value in points],
            label=method,
            capsize=3,
            markersize=4,
            **_style(number),
        )
    turned = sum(map(len, settings)) > 40
    panel.set_xticks(range(len(settings)), settings, rotation=30 if turned else 0)
    panel.set_xlabel("setting")
    panel.set_ylabel(f"{metric(name).title}, {policy}")
    _add_legend(figure, [panel])
    return figure


def _style(number: int) -> dict[str, Any]:
    """Return how a method's line looks, by its place among the methods."""
    colour, turn = number % len(COLOURS), number // len(COLOURS)
    return {
        "color": COLOURS[colour],
        "linestyle": LINES[turn % len(LINES)],
        "marker": MARKERS[(colour + turn) % len(MARKERS)],
        "linewidth": 1.6,
    }


def _add_legend(figure: Figure, panels: Any) -> None:
    """Name every method that is in some panel, once, beside the panels."""
    entries: dict[str, Artist] = {}
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        handles, labels = panel.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if entries:
        names = list(entries)
        handles = [entries[name] for name in names]
        figure.legend(handles, names, loc="outside right center", frameon=False)
