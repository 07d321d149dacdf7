"""What was measured in all cells, and the rows that follow from it.

Measured rows come from the cells' runs. Two things are derived: the policy `teachers` is the mean
over a cell's teachers, and `pgr_METRIC` is the performance gap recovered by the student (see
`macpo.compare.stats`): between the mean of the teachers before the first round and the last round
of the ceiling, both of the same setting and seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from macpo.agents import STUDENT
from macpo.compare.design import TEACHERS, Cell, Design
from macpo.compare.stats import performance_gap_recovered
from macpo.metrics import PGR, Better, metric

if TYPE_CHECKING:
    from macpo.run_directory import MetricRow


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement of one policy of one cell; `value` is None where it is not defined."""

    setting: str
    method: str
    seed: int
    policy: str
    round: int
    metric: str
    value: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the line of results.jsonl."""
        return asdict(self)


def rows_of(cell: Cell, metrics: Iterable[MetricRow]) -> list[Row]:
    """Return a cell's measurements, and the means over its teachers."""
    rows = [
        Row(cell.setting, cell.method, cell.seed, m.policy, m.round, m.metric, m.value)
        for m in metrics
    ]
    together: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        if row.policy != STUDENT and row.value is not None:
            together.setdefault((row.round, row.metric), []).append(row.value)
    means = [
        Row(cell.setting, cell.method, cell.seed, TEACHERS, t, metric, statistics.fmean(values))
        for (t, metric), values in together.items()
    ]
    return rows + means


def gap_rows(rows: Sequence[Row], design: Design) -> list[Row]:
    """Return the performance gap recovered, for every student metric that has a better side."""
    if design.ceiling is None:
        return []
    teachers: dict[tuple[str, int, str], float] = {}
    ceilings: dict[tuple[str, int, str], float] = {}
    for row in sorted(rows, key=lambda row: row.round):
        if row.method != design.ceiling or row.value is None:
            continue
        place = (row.setting, row.seed, row.metric)
        if row.policy == STUDENT:
            ceilings[place] = row.value  # the last round's stays
        elif row.policy == TEACHERS and row.round == 0:
            teachers[place] = row.value
    found = []
    for row in rows:
        place = (row.setting, row.seed, row.metric)
        better = better_of(row.metric, design)
        if row.policy != STUDENT or row.method == design.ceiling or better == "neither":
            continue
        if row.value is None or place not in ceilings or place not in teachers:
            continue
        gap = performance_gap_recovered(
            row.value, teachers[place], ceilings[place], higher_is_better=better == "higher"
        )
        found.append(replace(row, metric=PGR + row.metric, value=gap))
    return found


def better_of(name: str, design: Design) -> Better:
    """Say which way is better: what the compare file says of a metric counts first."""
    return (design.metrics or {}).get(name) or metric(name).better
