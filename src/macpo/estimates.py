"""Means with intervals: over seeds, and over answers to prompts.

Samples may be few, so intervals are Student's: mean +- t * s / sqrt(n), with t the quantile that
leaves 2.5 % on each side at n - 1 degrees of freedom and s the standard deviation of the sample.
Why scipy does not give the quantile: docs/architecture.md, "What stays by hand, and why".
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` samples with the half-width of its 95 % interval, None for one alone."""

    mean: float
    half_width: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval; never so for one sample alone."""
        return self.half_width is not None and abs(self.mean) > self.half_width

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, with the interval's ends."""
        half = self.half_width
        interval = None if half is None else [self.mean - half, self.mean + half]
        return {"mean": self.mean, "half_width": half, "interval": interval, "n": self.n}


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of one value a seed, with its interval.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no values to estimate a mean from")
    n = len(values)
    mean = statistics.fmean(values)
    if n == 1:
        return Estimate(mean, None, 1)
    half_width = student_t_quantile(n - 1) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(mean, half_width, n)


def paired_difference(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """Return the mean of `values - others`, seed by seed, with its interval.

    What a seed does to both sides (its split of the data, its teachers) cancels, so that this
    interval is narrower than those of the two means suggest.
    """
    return estimate([value - other for value, other in zip(values, others, strict=True)])


def clustered(values: Mapping[str, Sequence[float]]) -> Estimate:
    """Return the mean of all values, with an interval that knows that some belong together.

    Values of one prompt are no independent samples. The variance of the mean is that of the sums
    of residuals of each cluster, n / (n - 1) * sum(residual sums squared) / (number of values)
    squared, with n clusters; one value a cluster gives the ordinary standard error.

    Args:
        values: by cluster, such as the id of a prompt; each has at least one.

    Raises:
        ValueError: there is no value.
    """
    everything = [value for own in values.values() for value in own]
    if not everything:
        raise ValueError("no values to estimate a mean from")
    n, mean = len(values), statistics.fmean(everything)
    if n == 1:
        return Estimate(mean, None, 1)
    residuals = (sum(value - mean for value in own) for own in values.values())
    variance = n / (n - 1) * sum(r * r for r in residuals) / len(everything) ** 2
    return Estimate(mean, student_t_quantile(n - 1) * math.sqrt(variance), n)


def share_bound(share: float, n: int) -> float:
    """Return the widest half-width that the 95 % interval of a mean of shares over n can have.

    No values in [0, 1] with that mean vary more than ones and zeros do: sqrt(share (1 - share)).
    """
    spread = math.sqrt(max(share * (1.0 - share), 0.0) / n)
    return (student_t_quantile(n - 1) if n > 1 else 1.96) * spread


@functools.cache
def student_t_quantile(freedom: int) -> float:
    """Return the t that |T| exceeds with probability 5 %, T of Student's distribution.

    Args:
        freedom: degrees of freedom, at least 1.
    """
    low, high = 1.0, 16.0  # at 1 degree of freedom it is 12.71, in the limit 1.96
    while high - low > 1e-12:
        middle = (low + high) / 2
        if _within(middle, freedom) < 0.95:
            low = middle
        else:
            high = middle
    return high


def _within(t: float, freedom: int) -> float:
    """Return P(|T| <= t), by the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    squared = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= squared * (k - 1) / k
        total += term
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values, between neighbours on a straight line."""
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)
