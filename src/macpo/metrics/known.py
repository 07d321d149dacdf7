"""What a metric is, and the registry of those that are known."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from macpo.registry import Registry
from macpo.words import split_label

Better = Literal["higher", "lower", "neither"]
Shown = Literal["everywhere", "comparisons", "named"]

PGR = "pgr_"
"""Beginning of the performance gap recovered in a metric, see `macpo.compare.stats`."""

SHARE, TOKENS, PERPLEXITY, COUNT, NATS, NUMBER = (
    *("share", "tokens", "perplexity", "count"),
    *("nats", "number"),
)
"""Units that are known here; a metric may have any other, and is then written as a number."""

RANGES = {
    SHARE: (0.0, 1.0),
    TOKENS: (0.0, math.inf),
    PERPLEXITY: (1.0, math.inf),
    COUNT: (0.0, math.inf),
}
"""The least and the greatest value that is possible, by unit; of other units any value is."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What is known of a metric.

    Attributes:
        name: what it is called in metrics.jsonl.
        title: what people read.
        unit: "share" (of one; written in percent), "tokens", "perplexity", "count", "nats", or
            any other word.
        better: which way is better; "neither" where it depends.
        shown: "everywhere": in the result of a run too; "comparisons": in the tables and figures
            of a comparison; "named": only where a compare file's `metrics` names it.
        gap: whether a comparison shows the performance gap recovered in it.
        meaning: one phrase for the documentation.

    Raises:
        ValueError: `better` or `shown` is none of its values.
    """

    name: str
    title: str
    unit: str = NUMBER
    better: Better = "neither"
    shown: Shown = "everywhere"
    gap: bool = False
    meaning: str = ""

    def __post_init__(self) -> None:
        for field, value, valid in (
            ("better", self.better, get_args(Better)),
            ("shown", self.shown, get_args(Shown)),
        ):
            if value not in valid:
                known = ", ".join(valid)
                raise ValueError(f"metric {self.name}: {field} is {value!r}; write one of {known}")

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest value that is possible."""
        return RANGES.get(self.unit, (-math.inf, math.inf))

    def format(self, value: float) -> str:
        """Write a value for people: `62.5 %`, `31.3`, `12.35`."""
        if self.unit == SHARE:
            return f"{100 * value:.1f} %"
        return f"{value:.1f}" if self.unit == TOKENS else f"{value:.4g}"


PREFIXES = {
    PGR: "PGR of {}",
    "train_": "{} in training",
    "chosen_": "{} of chosen answers",
    "rejected_": "{} of rejected answers",
}
"""Beginnings of names, with the title that they make of another metric's."""

METRICS: Registry[Metric] = Registry("metric")


def register_metric(metric: Metric) -> None:
    """Add a metric.

    Raises:
        ConfigError: another one has that name.
    """
    METRICS.register(metric.name, metric)


def metric(name: str) -> Metric:
    """Return what is known of a metric, also of one that nobody registered."""
    plain, label = split_label(name)
    if label is not None:
        known = metric(plain)
        return replace(known, name=name, title=f"{known.title} [{label}]")
    found = METRICS.find(name)
    if found is not None:
        return found
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return derive(metric(name.removeprefix(prefix)), prefix)
    return Metric(name, name.replace("_", " "))


def derive(base: Metric, prefix: str) -> Metric:
    """Return what a prefix of `PREFIXES` makes of a metric."""
    found = replace(
        base,
        name=prefix + base.name,
        title=PREFIXES[prefix].format(base.title),
        better="neither",
        shown="named",
        gap=False,
        meaning="",
    )
    if prefix != PGR:
        return found
    shown: Shown = "comparisons" if base.gap else "named"
    return replace(found, unit=NUMBER, better="higher", shown=shown)


def is_registered(name: str) -> bool:
    """Tell whether a metric is known, by its own name or after a prefix."""
    name, _ = split_label(name)
    bases = (name.removeprefix(p) for p in PREFIXES if name.startswith(p))
    return any(METRICS.find(known) is not None for known in (name, *bases))


def registered() -> tuple[Metric, ...]:
    """Return all metrics that were registered, macpo's own first: the order of every table."""
    return tuple(METRICS.all().values())


def in_order(names: Iterable[str]) -> list[Metric]:
    """Return metrics in the order of tables: as they were registered, then the others as given."""
    asked = dict.fromkeys(names)
    places = {known.name: place for place, known in enumerate(registered())}
    last = len(places)
    return [metric(n) for n in sorted(asked, key=lambda n: places.get(split_label(n)[0], last))]
