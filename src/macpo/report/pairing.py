"""Differences between measurements of the same prompts: rounds of one run, or several runs."""

from __future__ import annotations

from macpo.estimates import Estimate, clustered
from macpo.metrics import Metric
from macpo.report.data import Point, Values, Verdict


def paired(items: Values, others: Values) -> Estimate | str:
    """Return the mean of `items - others`, prompt by prompt, or why there is none.

    What makes a prompt easy or hard cancels, so that the interval is narrower than those of the two
    means suggest. Several values of a prompt are compared in their order.
    """
    if not items or not others:
        return "this measure, or the version that made it, keeps no single values"
    if items.keys() != others.keys():
        shared = len(items.keys() & others.keys())
        return (
            f"measured on different prompts: {shared:,} in common of {len(items):,} and "
            f"{len(others):,}"
        )
    if any(len(items[key]) != len(others[key]) for key in items):
        return "measured on different numbers of values a prompt"
    return clustered(
        {
            key: [value - other for value, other in zip(own, others[key], strict=True)]
            for key, own in items.items()
        }
    )


def difference(last: Point, first: Point) -> Estimate:
    """Return how far two measurements are apart, with an interval as far as one is known.

    Paired by prompt where single values are kept; else from the intervals of the two, which is
    wider than need be.
    """
    found = paired(last.items, first.items)
    if isinstance(found, Estimate):
        return found
    mean = last.value - first.value
    if last.half_width is None or first.half_width is None:
        return Estimate(mean, None, 0)
    return Estimate(mean, (last.half_width**2 + first.half_width**2) ** 0.5, 0)


def verdict(metric: Metric, change: Estimate) -> Verdict:
    """Say what a change means: nothing, while its interval has zero in it."""
    if metric.better == "neither" or change.half_width is None:
        return "changed"
    if not change.excludes_zero:
        return "unclear"
    return "better" if (change.mean > 0) == (metric.better == "higher") else "worse"
