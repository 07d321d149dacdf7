"""Several runs beside one another: their students, and the differences prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from macpo.estimates import Estimate
from macpo.metrics import Metric, in_order
from macpo.report import charts
from macpo.report.data import Answer, Curve, Point, RunReport, Series, Transcript, Verdict
from macpo.report.page import difference_text, render_page, script_json
from macpo.report.pairing import paired, verdict


@dataclass(frozen=True, slots=True)
class Difference:
    """How a run's student differs from the first run's, after the last round of each.

    `estimate` is None where they cannot be compared, and `why` says so.
    """

    run: str
    value: Point | None
    estimate: Estimate | None
    verdict: Verdict
    why: str


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """A metric: the first run's, and how the others differ from it."""

    metric: Metric
    first: Point
    others: tuple[Difference, ...]


def render_runs(
    reports: Sequence[RunReport], links: Sequence[str], now: datetime | None = None
) -> str:
    """Return several runs as one page of HTML.

    Args:
        reports: two or more; the first is the one that the others are compared with.
        links: to each run's own report, from where the page will be.
        now: when it is made; by default now.
    """
    names = labels(reports)
    curves = _curves(reports, names)
    transcripts, refused = _transcripts(reports, names)
    return render_page(
        "runs.html.j2",
        {
            "colour": lambda name: charts.colour_of(name, names),
            "curve_chart": lambda curve: charts.curve_chart(curve, names, names[0]),
            "difference": difference_text,
            "sign": lambda value: "+" if value >= 0 else "−",
        },
        now,
        runs=list(zip(names, reports, links, strict=True)),
        names=names,
        curves=curves,
        rows=differences(reports, names),
        refused=refused,
        prompts=len(transcripts),
        transcripts_json=script_json(
            {
                "colours": {name: charts.colour_of(name, names) for name in names},
                "orders": {"random": list(range(len(transcripts)))},
                "shown": [_transcript_json(entry) for entry in transcripts],
            }
        ),
    )


def labels(reports: Sequence[RunReport]) -> list[str]:
    """Return a name for each run: the config's where they differ, else the folder's, else both."""
    choices = (
        [report.name for report in reports],
        [Path(report.folder).name for report in reports],
        [f"{Path(report.folder).parent.name}/{Path(report.folder).name}" for report in reports],
    )
    for names in choices:
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {report.name}" for number, report in enumerate(reports, 1)]


def differences(reports: Sequence[RunReport], names: Sequence[str]) -> list[DifferenceRow]:
    """Compare the students of runs after their last rounds, metric by metric."""
    first, *others = reports
    rows = []
    for curve in first.curves:
        own = curve.of(first.student)
        if own is None or curve.metric.shown == "named":
            continue
        point = own.points[-1]
        found = tuple(
            _difference(curve.metric, point, report, name)
            for report, name in zip(others, names[1:], strict=True)
        )
        rows.append(DifferenceRow(curve.metric, point, found))
    return rows


def _difference(metric: Metric, first: Point, report: RunReport, name: str) -> Difference:
    """Compare one run's student with the first run's."""
    curve = next((c for c in report.curves if c.metric.name == metric.name), None)
    series = None if curve is None else curve.of(report.student)
    if series is None:
        return Difference(name, None, None, "changed", "not measured here")
    point = series.points[-1]
    found = paired(point.items, first.items)
    if isinstance(found, str):
        return Difference(name, point, None, "changed", found)
    return Difference(name, point, found, verdict(metric, found), "")


def _curves(reports: Sequence[RunReport], names: Sequence[str]) -> list[Curve]:
    """Return each metric with the student of each run as a line."""
    found: dict[str, list[Series]] = {}
    known: dict[str, Curve] = {}
    for report, name in zip(reports, names, strict=True):
        for curve in report.curves:
            own = curve.of(report.student)
            if own is not None and curve.metric.shown == "everywhere":
                known[curve.metric.name] = curve
                found.setdefault(curve.metric.name, []).append(replace(own, agent=name))
    return [replace(known[m.name], series=tuple(found[m.name])) for m in in_order(found)]


def _transcripts(
    reports: Sequence[RunReport], names: Sequence[str]
) -> tuple[list[Transcript], str]:
    """Return the prompts that all runs' students answered, with the last answer of each.

    The second is why there are none; empty where there are.
    """
    shown = [{t.prompt_id: t for t in report.transcripts.shown} for report in reports]
    first = reports[0].transcripts
    order = [first.shown[place].prompt_id for place in first.orders.get("random", ())]
    shared = [key for key in order if all(key in own for own in shown)]
    if not all(shown):
        return [], "a run has no answers to test prompts"
    if not shared:
        return [], "the runs' students answered different prompts"
    found = []
    for key in shared:
        answers = []
        for report, name, own in zip(reports, names, shown, strict=True):
            said = [a for a in own[key].answers if a.agent == report.student]
            if said:
                answers.append(replace(max(said, key=lambda a: a.round), agent=name))
        found.append(Transcript(key, shown[0][key].messages, tuple(answers)))
    return found, ""


def _transcript_json(entry: Transcript) -> dict[str, object]:
    """Return a transcript as the page's script reads it."""
    return {
        "messages": [list(message) for message in entry.messages],
        "answers": [_answer_json(answer) for answer in entry.answers],
    }


def _answer_json(answer: Answer) -> dict[str, object]:
    return {
        "agent": answer.agent,
        "round": answer.round,
        "text": answer.text,
        "finished": answer.finished,
        "cut": answer.cut,
        "values": [],
    }
