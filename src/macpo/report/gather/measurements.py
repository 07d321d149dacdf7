"""What was measured, over the rounds, with intervals; and how the student changed by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from macpo.estimates import clustered, share_bound
from macpo.evaluation.gather import measuring_stages
from macpo.evaluation.measures import read_items, read_measures
from macpo.metrics import SHARE, in_order
from macpo.report.data import Change, Curve, Point, Series, Values
from macpo.report.pairing import difference, verdict
from macpo.report.result import STUDENT
from macpo.run_directory import EarlyEnd, RunDir, RunPlan
from macpo.words import split_label

NORMAL_QUANTILE = 1.96
"""Standard errors in half of a 95 % interval, of an error that an evaluator gives."""

_Details = dict[tuple[str, int, str], tuple[Mapping[str, int], Values, float | None]]
"""Counts, single values and standard error by agent, round and metric."""


def curves(
    run: RunDir, plan: RunPlan | None, metrics: Iterable[Mapping[str, Any]]
) -> tuple[Curve, ...]:
    """Return all metrics over the rounds, in the order of tables.

    Args:
        run: its folder.
        plan: what it consists of; without it there are no single values.
        metrics: lines of its metrics.jsonl.
    """
    details, said = _details(run, plan)
    points: dict[str, dict[str, list[Point]]] = {}
    of_answers: dict[str, bool] = {}
    for row in metrics:
        name = row["metric"]
        counted, items, error = details.get((row["policy"], row["round"], name), ({}, {}, None))
        of_answers[name] = of_answers.get(name, False) or row["metric"] in said
        point = _point(row["round"], row["value"], counted, items, error, name)
        points.setdefault(name, {}).setdefault(row["policy"], []).append(point)
    return tuple(
        Curve(
            metric,
            tuple(
                Series(agent, tuple(sorted(own, key=lambda point: point.round)))
                for agent, own in points[metric.name].items()
            ),
            of_answers[metric.name],
        )
        for metric in in_order(points)
    )


def _details(run: RunDir, plan: RunPlan | None) -> tuple[_Details, set[str]]:
    """Return on how many things each measurement stands, and the single values if kept.

    The second are the metrics that were measured of answers.
    """
    found: _Details = {}
    said: set[str] = set()
    if plan is None:
        return found, said
    for policy, stage, folder in measuring_stages(run, plan):
        measures = read_measures(folder)
        single: dict[str, dict[str, list[float]]] = {}
        kept = read_items(folder)
        # Where single values are kept, what has none is no mean, and has no such bound.
        counts = {} if kept else measures.counts
        for item in kept:
            for name, value in item.values.items():
                single.setdefault(name, {}).setdefault(item.prompt_id, []).append(value)
        if "answers" in measures.counts or stage.input("answers") is not None:
            said.update(measures.metrics)
        for name in measures.metrics:
            items = {key: tuple(values) for key, values in single.get(name, {}).items()}
            error = measures.metrics.get(error_of(name))
            found[policy.policy, policy.round, name] = (counts, items, error)
    return found, said


def _point(
    round: int,
    value: float,
    counts: Mapping[str, int],
    items: Values,
    error: float | None,
    name: str,
) -> Point:
    """Return a measurement with its interval, as far as one can be told."""
    if items:
        found = clustered(items)
        return Point(round, value, found.half_width, items=items)
    if error is not None:
        return Point(round, value, NORMAL_QUANTILE * error)
    metric = in_order([name])[0]
    if metric.unit == SHARE and len(counts) == 1 and 0 <= value <= 1:
        (n,) = counts.values()
        if n:
            return Point(round, value, share_bound(value, n), at_most=True)
    return Point(round, value)


def error_of(name: str) -> str:
    """Return the metric that holds the standard error of another, as evaluators name them."""
    base, label = split_label(name)
    return f"{base}_se{name.removeprefix(base)}" if label else f"{base}_se"


def changes(curves: Sequence[Curve], ended: EarlyEnd | None) -> Iterator[Change]:
    """Yield how the student changed in every metric that it has of several rounds.

    Of a run that ended early the last is the one that it hands out.
    """
    for curve in curves:
        series = curve.of(STUDENT)
        if series is None or len(series.points) < 2 or curve.metric.shown == "named":
            continue
        first, last = series.points[0], series.points[-1]
        if ended is not None:
            kept = [point for point in series.points if point.round <= ended.kept]
            last = kept[-1] if len(kept) > 1 else last
        sign = -1.0 if curve.metric.better == "lower" else 1.0
        best = max(series.points, key=lambda point: sign * point.value)
        change = difference(last, first)
        yield Change(
            curve.metric, curve.of_answers, first, last, best, change, verdict(curve.metric, change)
        )
