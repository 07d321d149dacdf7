"""The results of a comparison: means over seeds and paired differences, looked up by place.

They are looked up in plain mappings, not in a pandas table. A value can be missing in two ways, not
measured (a method with fewer rounds stays as it was) and not defined (no gap to recover), which are
one and the same NaN there; and each lookup has its own last round per seed: the 21,450 of eleven
methods over twelve rounds took 4 s here and 160 s in an indexed table. `Results.frame` is for those
who want to group the rows otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from macpo.compare.design import TEACHERS, Design
from macpo.compare.rows import Row, gap_rows
from macpo.estimates import Estimate, estimate, paired_difference
from macpo.metrics import PGR, in_order

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One policy's metric over seeds.

    Attributes:
        round: the method's own round that this is of.
        value: over the seeds where it is defined; None if there are none such.
        undefined: seeds where it was measured and is not defined.
        against: the difference to the method that all are paired with, over the seeds that both
            have; None where there is no such seed.
        against_round: that method's round: the same, or its last if it has fewer; None without.
    """

    setting: str
    method: str
    policy: str
    round: int
    metric: str
    value: Estimate | None
    undefined: int
    against: Estimate | None
    against_round: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        against = None
        if self.against is not None:
            differs = self.against.excludes_zero
            against = {
                "round": self.against_round,
                **self.against.to_json(),
                "excludes_zero": differs,
            }
        return {
            "setting": self.setting,
            "method": self.method,
            "policy": self.policy,
            "round": self.round,
            "metric": self.metric,
            "value": None if self.value is None else self.value.to_json(),
            "undefined": self.undefined,
            "difference": against,
        }


class Results:
    """All rows of a comparison, looked up by what they are of."""

    def __init__(self, design: Design, rows: Sequence[Row]) -> None:
        self.design = design
        self.rows = (*rows, *gap_rows(rows, design))
        self._series: dict[tuple[str, str, str, str], dict[int, dict[int, float | None]]] = {}
        for row in self.rows:
            place = (row.setting, row.method, row.policy, row.metric)
            by_round = self._series.setdefault(place, {}).setdefault(row.seed, {})
            by_round[row.round] = row.value

    @property
    def frame(self) -> DataFrame:
        """All rows as a table of pandas: one line a measurement, NaN where it is not defined."""
        from pandas import DataFrame

        return DataFrame([row.to_json() for row in self.rows], columns=[*Row.__slots__])

    @property
    def policies(self) -> list[str]:
        """Everybody who was measured, the student first, the teachers' mean last."""
        names = dict.fromkeys(row.policy for row in self.rows if row.policy != TEACHERS)
        return [*names, *([TEACHERS] if any(r.policy == TEACHERS for r in self.rows) else [])]

    def metrics(self, policy: str) -> list[str]:
        """Return the metrics to show of a policy: those that the design lists, else what is known.

        Else those with a better side come first, and gaps recovered last.
        """
        measured = dict.fromkeys(row.metric for row in self.rows if row.policy == policy)
        if self.design.metrics is not None:
            return [name for name in self.design.metrics if name in measured]
        shown = [found for found in in_order(measured) if found.shown != "named"]
        shown.sort(key=lambda found: (found.name.startswith(PGR), found.better == "neither"))
        return [found.name for found in shown]

    def at(
        self, setting: str, method: str, policy: str, metric: str, t: int | None = None
    ) -> SummaryRow | None:
        """Return a metric after round `t`.

        A method that has fewer rounds stays as it is after its last one.

        Args:
            setting: which setting.
            method: which method.
            policy: whose metric.
            metric: which one.
            t: the round; None for the last that each method has.

        Returns:
            The metric over seeds; None when it was not measured so early, or not at all.
        """
        own = self._until((setting, method, policy, metric), t)
        if not own:
            return None
        other = self._until((setting, self.design.against, policy, metric), t)
        values = {seed: v for seed, (_, v) in own.items() if v is not None}
        others = {seed: v for seed, (_, v) in other.items() if v is not None}
        both = [seed for seed in values if seed in others]
        against = None
        if method != self.design.against and both:
            against = paired_difference([values[s] for s in both], [others[s] for s in both])
        return SummaryRow(
            setting=setting,
            method=method,
            policy=policy,
            round=max(found for found, _ in own.values()),
            metric=metric,
            value=estimate(list(values.values())) if values else None,
            undefined=len(own) - len(values),
            against=against,
            against_round=max(other[s][0] for s in both) if against is not None else None,
        )

    def each_round(self) -> list[SummaryRow]:
        """Return every policy and metric after each of the rounds in which it was measured."""
        found = []
        for place, series in self._series.items():
            for t in sorted({t for by_round in series.values() for t in by_round}):
                row = self.at(*place, t)
                if row is not None:
                    found.append(row)
        return found

    def last_round(self) -> list[SummaryRow]:
        """Return every policy and metric after its last round."""
        return [row for place in self._series if (row := self.at(*place)) is not None]

    def _until(
        self, place: tuple[str, str, str, str], t: int | None
    ) -> dict[int, tuple[int, float | None]]:
        """Return by seed the last round up to `t` and its value."""
        found = {}
        for seed, by_round in self._series.get(place, {}).items():
            early = [r for r in by_round if t is None or r <= t]
            if early:
                found[seed] = (max(early), by_round[max(early)])
        return found
