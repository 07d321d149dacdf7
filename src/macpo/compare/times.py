"""How long stages took, of all attempts together: what is left, and what sharing them saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from macpo.compare.design import Cell
from macpo.compare.stages import CellPlan, distinct_stages
from macpo.store import TIMES, read_journal


def stage_seconds(store: Path) -> dict[str, float]:
    """Return how long each finished stage of a store took, by key, all attempts together.

    Raises:
        StoreError: the store's times cannot be read.
    """
    attempts: dict[str, float] = {}
    finished: dict[str, float] = {}
    for event in read_journal(store / TIMES):
        key = event["key"]
        seconds = attempts.pop(key, 0.0) + float(event["seconds"])
        (finished if event["event"] == "finished" else attempts)[key] = seconds
    return finished


class Forecast:
    """How long the stages that are left will take, at the pace of those that were run.

    Stages are alike that are of one kind and one agent; one without its like that was run counts
    as the mean of all.

    Args:
        plans: the cells.
        seconds: how long finished stages took, by key.
    """

    def __init__(self, plans: Iterable[CellPlan], seconds: Mapping[str, float]) -> None:
        stages = distinct_stages(plans)
        self._sort = {key: (stage.kind, stage.agent) for key, stage in stages.items()}
        self._left = dict.fromkeys(stages)
        self._runs: Counter[tuple[str, str | None]] = Counter()
        self._seconds: dict[tuple[str, str | None], float] = {}
        for key, took in seconds.items():
            self.finished(key, took)

    def finished(self, key: str, seconds: float) -> None:
        """Take in that a stage has run."""
        sort = self._sort.get(key)
        if sort is not None:
            self._left.pop(key, None)
            self._runs[sort] += 1
            self._seconds[sort] = self._seconds.get(sort, 0.0) + seconds

    def found(self, key: str) -> None:
        """Take in that a stage need not run."""
        self._left.pop(key, None)

    @property
    def seconds_left(self) -> float | None:
        """An estimate; None until something was run."""
        if not self._runs:
            return None
        mean = sum(self._seconds.values()) / sum(self._runs.values())
        left = Counter(self._sort[key] for key in self._left)
        return sum(
            count * (self._seconds[sort] / self._runs[sort] if sort in self._runs else mean)
            for sort, count in left.items()
        )


@dataclass(frozen=True, slots=True)
class Saving:
    """What cells saved by sharing stages: both sides count only stages that are done.

    `seconds_*` are wall-clock times of stages, all attempts together, as the store recorded them.
    """

    stages_run: int
    stages_separate: int
    seconds_run: float
    seconds_separate: float


def measure_saving(
    plans: Iterable[CellPlan], finished: Iterable[Cell], seconds: Mapping[str, float]
) -> Saving:
    """Return what sharing saved.

    Args:
        plans: the stages of every cell.
        finished: the cells that were run to their end.
        seconds: how long each finished stage took, by key.
    """
    ended = {cell.place for cell in finished}
    separate = [
        stage.key
        for plan in plans
        for stage in plan.stages
        if stage.key in seconds or plan.cell.place in ended
    ]
    together = set(separate)
    return Saving(
        stages_run=len(together),
        stages_separate=len(separate),
        seconds_run=sum(seconds.get(key, 0.0) for key in together),
        seconds_separate=sum(seconds.get(key, 0.0) for key in separate),
    )
