"""Figures of a comparison: every metric over rounds, and over settings where there are several.

FIGURES/METRIC.png            one panel a setting, one line a method, bands are 95 % intervals
FIGURES/METRIC-settings.png   each method's last round, setting by setting
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from macpo.agents import STUDENT
from macpo.compare.comparison import Comparison
from macpo.compare.drawing import (
    BAND,
    BAND_OF_MANY,
    LEGEND_WIDTH,
    PANEL,
    Point,
    add_legend,
    draw_bars,
    draw_line,
    fit_axis,
    make_figure,
)
from macpo.compare.folder import FIGURES
from macpo.compare.results import SummaryRow
from macpo.metrics import metric
from macpo.report.text import plain_line
from macpo.store import translate_write_errors
from macpo.store.atomic import TRASH, make_directory, remove_tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3
LONGEST_STEM = 100


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
    for earlier in (folder, folder.with_name(TRASH + folder.name)):
        remove_tree(earlier)
    make_directory(folder)
    written = []
    for name in comparison.results.metrics(policy):
        stem = re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:LONGEST_STEM]
        while folder / f"{stem}.png" in written:
            stem += "-"
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
    from matplotlib.ticker import MaxNLocator

    settings, methods = comparison.design.settings, comparison.design.methods
    columns = min(COLUMNS, len(settings))
    rows = math.ceil(len(settings) / columns)
    figure, panels = make_figure(rows, columns, sharex=True, sharey=True)
    last = max((row.round for row in comparison.results.rows if row.metric == name), default=0)
    band = BAND if len(methods) < 5 else BAND_OF_MANY
    for place, setting in enumerate(settings):
        panel = panels[place]
        for number, method in enumerate(methods):
            found = [
                comparison.results.at(setting, method, policy, name, t) for t in range(last + 1)
            ]
            points = _points(row if row and row.round == t else None for t, row in enumerate(found))
            there = [t for t, row in enumerate(found) if row is not None and row.value is not None]
            draw_line(panel, number, method, points, band=band, until=max(there, default=None))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.tick_params(labelbottom=place + columns >= len(settings))  # nothing stands below
        if len(settings) > 1:
            panel.set_title(setting, fontsize="medium")
    for panel in panels[len(settings) :]:
        panel.set_visible(False)
    fit_axis(panels, metric(name))
    figure.supxlabel("round (0: after initialisation)")
    figure.supylabel(_title(name, policy))
    add_legend(figure, panels)
    return figure


def _over_settings(comparison: Comparison, policy: str, name: str) -> Figure:
    """Draw each method's last round, setting by setting."""
    from matplotlib.figure import Figure

    settings, methods = comparison.design.settings, comparison.design.methods
    width = max(PANEL[0], 0.9 * len(settings)) + LEGEND_WIDTH
    figure = Figure(figsize=(width, PANEL[1]), layout="constrained")
    panel = figure.subplots()
    for number, method in enumerate(methods):
        found = [comparison.results.at(s, method, policy, name) for s in settings]
        draw_bars(panel, number, len(methods), method, _points(found))
    turned = sum(map(len, settings)) > 40
    panel.set_xticks(range(len(settings)), settings, rotation=30 if turned else 0)
    panel.set_xlabel("setting")
    panel.set_ylabel(_title(name, policy))
    add_legend(figure, [panel])
    return figure


def _title(name: str, policy: str) -> str:
    """Name a metric of a policy; matplotlib would read what stands between dollars as a formula."""
    return plain_line(f"{metric(name).title}, {policy}").replace("$", r"\$")


def _points(rows: Iterable[SummaryRow | None]) -> list[Point]:
    """Return the points of rows by their place; those without a value are left out."""
    return [
        Point(x, row.value.mean, row.value.half_width)
        for x, row in enumerate(rows)
        if row is not None and row.value is not None
    ]
