"""The report of a comparison: its tables and figures, and links to the reports of its runs.

Made from results.json, so that a comparison which an earlier call ran has one as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from macpo.agents import STUDENT
from macpo.compare.comparison import SUMMARY_FILE
from macpo.compare.design import TEACHERS
from macpo.compare.folder import LAYOUT_FILE
from macpo.compare.table import GAP, UNDEFINED, format_estimate
from macpo.errors import DamagedError, StoreError
from macpo.estimates import Estimate
from macpo.invocation import hide_secrets
from macpo.metrics import PGR, SHARE, Metric, in_order, metric
from macpo.report import charts
from macpo.report.data import Curve, Point, Series
from macpo.report.page import difference_text, render_page
from macpo.report.text import format_seconds, plain_line
from macpo.run_directory import RunDir
from macpo.store import write_text_atomic

REPORT_FILE = "report.html"

Place = tuple[str, str, str, str]
"""Setting, method, policy, metric."""


@dataclass(frozen=True, slots=True)
class TableCell:
    """A mean with its interval, as text; `verdict` colours it, `tip` says how it differs."""

    text: str
    verdict: str
    tip: str


@dataclass(frozen=True, slots=True)
class TableRow:
    """A method of a setting after its last round."""

    method: str
    round: int
    seeds: int
    cells: tuple[TableCell, ...]


@dataclass(frozen=True, slots=True)
class SettingView:
    """A setting's tables (policy, metrics, rows) and the student's curves."""

    title: str
    tables: tuple[tuple[str, list[Metric], list[TableRow]], ...]
    curves: tuple[Curve, ...]


def is_comparison(folder: Path) -> bool:
    """Tell whether a folder is that of a comparison."""
    return (folder / LAYOUT_FILE).is_file() and not RunDir(folder).exists


def write_comparison_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a comparison; returns its path.

    Args:
        folder: the comparison's.
        out: where to; by default `DIR/report.html`.

    Raises:
        StoreError: it has no results yet, or the file cannot be written.
        DamagedError: its results cannot be read.
    """
    target = folder / REPORT_FILE if out is None else out
    path = folder / SUMMARY_FILE
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        page = _render(folder, target, summary)
    except FileNotFoundError:
        raise StoreError(
            f"{folder}: this comparison has no results yet; run `macpo compare` to its end, or "
            "report on the runs below its cells/"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path}: cannot be read ({error}); compare again") from error
    write_text_atomic(target, page.encode("utf-8", "replace").decode(), durable=True, alone=False)
    return target


def _render(
    folder: Path, target: Path, summary: Mapping[str, Any], now: datetime | None = None
) -> str:
    """Return the page."""
    cells = summary["cells"]
    against = summary["against"]
    methods = list(dict.fromkeys([against, *(cell["method"] for cell in cells)]))
    settings = list(dict.fromkeys(cell["setting"] for cell in cells))
    known = {
        name: replace(metric(name), better=found["better"])
        for name, found in summary["metrics"].items()
    }
    layout = folder / LAYOUT_FILE
    return render_page(
        "comparison.html.j2",
        {
            "colour": lambda name: charts.colour_of(name, methods),
            "curve_chart": lambda curve: charts.curve_chart(curve, methods, against),
        },
        now,
        name=summary["name"],
        folder=str(folder.resolve()),
        methods=methods,
        against=against,
        seeds=len(summary["seeds"]),
        settings=[_setting(summary, known, setting, methods) for setting in settings],
        missing=sum(cell["state"] != "finished" for cell in cells),
        cells=[_cell(folder, target, cell) for cell in cells],
        cost=_cost(summary["saving"]),
        layout=hide_secrets(layout.read_text(encoding="utf-8")) if layout.is_file() else "",
    )


def _setting(
    summary: Mapping[str, Any], known: Mapping[str, Metric], setting: str, methods: Sequence[str]
) -> SettingView:
    """Lay out a setting."""
    last = {
        (row["method"], row["policy"], row["metric"]): row
        for row in summary["last_round"]
        if row["setting"] == setting
    }
    seeds: dict[str, int] = {}
    for cell in summary["cells"]:
        if cell["setting"] == setting and cell["state"] == "finished":
            seeds[cell["method"]] = seeds.get(cell["method"], 0) + 1
    tables = []
    for policy in (STUDENT, TEACHERS):
        metrics = _shown(known, {name for _, who, name in last if who == policy})
        rows = [
            _row(method, [last.get((method, policy, m.name)) for m in metrics], metrics, seeds)
            for method in methods
            if any((method, policy, m.name) in last for m in metrics)
        ]
        if rows:
            tables.append((policy, metrics, rows))
    return SettingView(setting, tuple(tables), tuple(_curves(summary, known, setting, methods)))


def _shown(known: Mapping[str, Metric], names: set[str]) -> list[Metric]:
    """Return the metrics of a table: those with a better side first, gaps recovered last."""
    found = [known[m.name] for m in in_order(names) if m.shown != "named"]
    return sorted(found, key=lambda m: (m.name.startswith(PGR), m.better == "neither"))


def _row(
    method: str,
    found: Sequence[Mapping[str, Any] | None],
    metrics: Sequence[Metric],
    seeds: Mapping[str, int],
) -> TableRow:
    there = [row for row in found if row is not None]
    cells = tuple(_table_cell(row, m) for row, m in zip(found, metrics, strict=True))
    return TableRow(method, max(row["round"] for row in there), seeds.get(method, 0), cells)


def _table_cell(row: Mapping[str, Any] | None, known: Metric) -> TableCell:
    """Write a mean, and whether it differs from the method that all are compared with."""
    if row is None:
        return TableCell(GAP, "", "")
    if row["value"] is None:
        return TableCell(UNDEFINED, "", "there is no gap to recover")
    value = _estimate(row["value"])
    text = format_estimate(value) if value.half_width else known.format(value.mean)
    if known.unit == SHARE:
        half = value.half_width
        text = f"{100 * value.mean:.1f} %" + ("" if half is None else f" ± {100 * half:.1f}")
    against = row["difference"]
    if against is None:
        return TableCell(text, "", "")
    found = _estimate(against)
    sign = "+" if found.mean >= 0 else "−"
    tip = f"difference: {sign}{difference_text(known, abs(found.mean))}"
    if found.half_width is not None:
        tip += f" ± {difference_text(known, found.half_width)} over {found.n} seeds"
    if not found.excludes_zero or known.better == "neither":
        return TableCell(text, "", tip)
    better = (found.mean > 0) == (known.better == "higher")
    return TableCell(text, "better" if better else "worse", tip)


def _estimate(value: Mapping[str, Any]) -> Estimate:
    return Estimate(value["mean"], value["half_width"], value["n"])


def _curves(
    summary: Mapping[str, Any], known: Mapping[str, Metric], setting: str, methods: Sequence[str]
) -> Iterator[Curve]:
    """Yield the student's metrics over the rounds, a line for each method."""
    points: dict[str, dict[str, list[Point]]] = {}
    for row in summary["each_round"]:
        if row["setting"] == setting and row["policy"] == STUDENT and row["value"] is not None:
            value = _estimate(row["value"])
            point = Point(row["round"], value.mean, value.half_width)
            points.setdefault(row["metric"], {}).setdefault(row["method"], []).append(point)
    for found in _shown(known, set(points)):
        lines = points[found.name]
        series = [
            Series(method, tuple(sorted(lines[method], key=lambda p: p.round)))
            for method in methods
            if method in lines
        ]
        if any(len(line.points) > 1 for line in series):
            yield Curve(found, tuple(series), of_answers=False)


def _cell(folder: Path, target: Path, cell: Mapping[str, Any]) -> dict[str, str]:
    """Describe a run, with a link to its report if it has one."""
    report = RunDir(folder / cell["folder"]).report_file
    link = ""
    if report.is_file():
        link = os.path.relpath(report.resolve(), target.resolve().parent)
        link = quote(link.replace(os.sep, "/"))
    reason = plain_line(cell["reason"] or "")
    return {"folder": cell["folder"], "state": cell["state"], "reason": reason, "link": link}


def _cost(saving: Mapping[str, Any]) -> str:
    """Say what the comparison cost, and what sharing stages saved."""
    if not saving.get("stages_run"):
        return ""
    return (
        f"{saving['stages_run']:,} stages were run, in {format_seconds(saving['seconds_run'])}; "
        f"separate runs would have run {saving['stages_separate']:,}, in "
        f"{format_seconds(saving['seconds_separate'])}."
    )
