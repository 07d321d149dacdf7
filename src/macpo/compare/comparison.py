"""A comparison that has run: its results, what failed, and what sharing stages saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from macpo.compare.design import Cell, Design
from macpo.compare.results import Results
from macpo.compare.rows import better_of
from macpo.compare.times import Saving
from macpo.metrics import in_order
from macpo.store import write_text_atomic
from macpo.words import in_spreadsheet

ROWS_FILE, TABLE_FILE, SUMMARY_FILE = "results.jsonl", "results.csv", "results.json"


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell that had to stop, with the reason on one line."""

    cell: Cell
    reason: str


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
        return {
            "name": design.name,
            "against": design.against,
            "ceiling": design.ceiling,
            "seeds": list(design.seeds),
            "cells": list(self._cells_json()),
            "metrics": self._metrics_json(),
            "saving": asdict(self.saving),
            "last_round": [row.to_json() for row in self.results.last_round()],
            "each_round": [row.to_json() for row in self.results.each_round()],
        }

    def _metrics_json(self) -> dict[str, Any]:
        """Return what is known of each metric, which way is better as the compare file has it."""
        return {
            found.name: {
                "title": found.title,
                "unit": found.unit,
                "better": better_of(found.name, self.design),
            }
            for found in in_order(row.metric for row in self.results.rows)
        }

    def _cells_json(self) -> Iterator[dict[str, Any]]:
        """Yield how each cell ended."""
        failed = {failure.cell.place: failure.reason for failure in self.failures}
        done = {cell.place for cell in self.finished}
        for cell in self.design.cells:
            ended = "failed" if cell.place in failed else "not run"
            yield {
                "setting": cell.setting,
                "method": cell.method,
                "seed": cell.seed,
                "folder": str(self.design.folder_of(cell)),
                "state": "finished" if cell.place in done else ended,
                "reason": failed.get(cell.place),
            }


def write_results(comparison: Comparison) -> None:
    """Write results.jsonl, results.csv and results.json into the comparison's folder.

    Raises:
        StoreError: they cannot be written.
    """
    folder, rows = comparison.folder, comparison.results.rows
    lines = "".join(json.dumps(row.to_json(), allow_nan=False) + "\n" for row in rows)
    write_text_atomic(folder / ROWS_FILE, lines, durable=True)
    cells = comparison.results.frame.map(in_spreadsheet)
    table = cells.to_csv(index=False, lineterminator="\n")
    write_text_atomic(folder / TABLE_FILE, table, durable=True)
    summary = json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n"
    write_text_atomic(folder / SUMMARY_FILE, summary, durable=True)
