"""A comparison that has run: its results, what failed, and what sharing stages saved."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from macpo.compare.design import Cell, Design
from macpo.compare.results import Results
from macpo.compare.stages import CellPlan
from macpo.store import write_text_atomic

ROWS_FILE, TABLE_FILE, SUMMARY_FILE = "results.jsonl", "results.csv", "results.json"


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell that had to stop, with the reason on one line."""

    cell: Cell
    reason: str


@dataclass(frozen=True, slots=True)
class Saving:
    """What cells saved by sharing stages: both sides count only stages that are done.

    `seconds_*` are wall-clock times of stages, all attempts together, as the store recorded them.
    """

    stages_run: int
    stages_separate: int
    seconds_run: float
    seconds_separate: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` returns.

    `finished` are the cells with results, `failures` those that had to stop; a cell in neither
    was not reached.
    """

    folder: Path
    design: Design
    results: Results
    finished: tuple[Cell, ...]
    failures: tuple[Failure, ...]
    saving: Saving

    def seeds_of(self, setting: str, method: str) -> tuple[int, int]:
        """Return how many seeds of a method there are results of, and how many there should be."""
        here = [c for c in self.design.cells if (c.setting, c.method) == (setting, method)]
        done = [c for c in self.finished if (c.setting, c.method) == (setting, method)]
        return len(done), len(here)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: means over seeds, what failed, the saving; not the single rows."""
        design = self.design
        failed = {(f.cell.setting, f.cell.method, f.cell.seed): f.reason for f in self.failures}
        done = {(c.setting, c.method, c.seed) for c in self.finished}
        cells = []
        for cell in design.cells:
            place = (cell.setting, cell.method, cell.seed)
            state = "finished" if place in done else "failed" if place in failed else "not run"
            cells.append(
                {
                    "setting": cell.setting,
                    "method": cell.method,
                    "seed": cell.seed,
                    "folder": str(design.folder_of(cell)),
                    "state": state,
                    "reason": failed.get(place),
                }
            )
        return {
            "name": design.name,
            "against": design.against,
            "ceiling": design.ceiling,
            "seeds": list(design.seeds),
            "cells": cells,
            "saving": asdict(self.saving),
            "last_round": [row.to_json() for row in self.results.last_round()],
            "each_round": [row.to_json() for row in self.results.each_round()],
        }


def measure_saving(
    plans: Iterable[CellPlan], finished: Iterable[Cell], seconds: Mapping[str, float]
) -> Saving:
    """Return what sharing saved.

    Args:
        plans: the stages of every cell.
        finished: the cells that were run to their end.
        seconds: how long each finished stage took, by key.
    """
    ended = {(cell.setting, cell.method, cell.seed) for cell in finished}
    separate = [
        stage.key
        for plan in plans
        for stage in plan.stages
        if stage.key in seconds or (plan.cell.setting, plan.cell.method, plan.cell.seed) in ended
    ]
    together = set(separate)
    return Saving(
        stages_run=len(together),
        stages_separate=len(separate),
        seconds_run=sum(seconds.get(key, 0.0) for key in together),
        seconds_separate=sum(seconds.get(key, 0.0) for key in separate),
    )


def write_results(comparison: Comparison) -> None:
    """Write results.jsonl, results.csv and results.json into the comparison's folder.

    Raises:
        StoreError: they cannot be written.
    """
    folder, rows = comparison.folder, comparison.results.rows
    lines = "".join(json.dumps(row.to_json(), allow_nan=False) + "\n" for row in rows)
    write_text_atomic(folder / ROWS_FILE, lines, durable=True)
    table = comparison.results.frame.to_csv(index=False, lineterminator="\n")
    write_text_atomic(folder / TABLE_FILE, table, durable=True)
    summary = json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n"
    write_text_atomic(folder / SUMMARY_FILE, summary, durable=True)
