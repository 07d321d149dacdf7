"""Running a comparison: cell after cell, over one store."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from macpo.compare.comparison import Comparison, Failure, write_results
from macpo.compare.design import Cell, Design, with_dtype
from macpo.compare.folder import (
    LOCK,
    STORE,
    decide_dtype,
    finished_metrics,
    mark_finished,
    prepare_cell,
    refuse_run,
    unmark_finished,
    write_layout,
)
from macpo.compare.progress import CompareObserver
from macpo.compare.results import Results
from macpo.compare.rows import Row, rows_of
from macpo.compare.stages import CellPlan, count_done, distinct_stages, one_line, plan_cells
from macpo.compare.times import Forecast, measure_saving, stage_seconds
from macpo.errors import MacpoError
from macpo.execution.relay import Relay
from macpo.store import RunLock
from macpo.store.atomic import make_directory

if TYPE_CHECKING:
    from macpo.run_directory import MetricRow
    from macpo.stage import Stage
    from macpo.store import Artifact


def run_comparison(
    design: Design,
    folder: str | Path,
    observer: CompareObserver,
    store: str | Path | None = None,
) -> Comparison:
    """Run all cells of a comparison and tell an observer; see `macpo.compare.api.compare`."""
    folder = Path(folder)
    store = folder / STORE if store is None else Path(store)
    refuse_run(folder)
    with RunLock(folder / LOCK):
        dtype = decide_dtype(design, folder, observer)
        if dtype is not None:
            design = with_dtype(design, dtype)
        write_layout(design, folder)
        make_directory(store)
        session = _Session(design, folder, store, observer)
        try:
            session.run()
        except KeyboardInterrupt:
            if session.finished:
                write_results(session.comparison())
            raise
        comparison = session.comparison()
        write_results(comparison)
        from macpo.compare.figures import draw_figures
        from macpo.compare.markdown import write_tables
        from macpo.compare.page import write_comparison_report
        from macpo.report.making import leave_report

        write_tables(comparison)
        draw_figures(comparison)
        leave_report(lambda: write_comparison_report(folder), observer.note, "macpo report DIR")
    return comparison


class _Session:
    """One call of `run_comparison`, its lock held."""

    def __init__(
        self, design: Design, folder: Path, store: Path, observer: CompareObserver
    ) -> None:
        self.design = design
        self.folder = folder
        self.store = store
        self.observer = observer
        self.plans: tuple[CellPlan, ...] = ()
        self.rows: list[Row] = []
        self.finished: list[Cell] = []
        self.failures: list[Failure] = []

    def run(self) -> None:
        """Run every cell that is not finished."""
        self.plans = plan_cells(self.design, fetch=True)
        total = sum(len(plan.stages) for plan in self.plans)
        distinct = len(distinct_stages(self.plans))
        done = count_done(self.plans, self.store)
        self.observer.comparison_started(self.design, total, distinct, done)
        watch = _StageWatch(self.observer, Forecast(self.plans, stage_seconds(self.store)))
        for number, plan in enumerate(self.plans, 1):
            self._cell(plan, number, watch)

    def comparison(self) -> Comparison:
        """Return what there is so far."""
        saved = measure_saving(self.plans, self.finished, stage_seconds(self.store))
        results = Results(self.design, self.rows)
        finished, failures = tuple(self.finished), tuple(self.failures)
        return Comparison(self.folder, self.design, results, finished, failures, saved)

    def _cell(self, plan: CellPlan, number: int, watch: _StageWatch) -> None:
        """Find or run one cell."""
        cell = plan.cell
        folder = self.folder / self.design.folder_of(cell)
        if plan.fault is not None:
            self._fail(cell, plan.fault)
            return
        known = finished_metrics(folder, plan.digest)
        if known is not None:
            self.observer.cell_found(cell)
            self._finish(cell, known)
            return
        reason = watch.failed_before(plan)
        if reason is not None:
            self._fail(cell, reason)
            return
        left = watch.forecast.seconds_left
        self.observer.cell_started(cell, number, len(self.plans), left)
        started = time.monotonic()
        try:
            metrics = self._run(plan, folder, watch)
        except MacpoError as error:
            reason = one_line(error)
            watch.failed(reason)
            self._fail(cell, reason)
            return
        self._finish(cell, metrics)
        self.observer.cell_finished(cell, time.monotonic() - started)

    def _run(self, plan: CellPlan, folder: Path, watch: _StageWatch) -> list[MetricRow]:
        """Run one cell as an ordinary run."""
        from macpo.report.making import leave_report, write_run_report
        from macpo.runner import run

        prepare_cell(folder, self.store)
        unmark_finished(folder)
        metrics = run(plan.cell.config, folder, watch).metrics
        leave_report(lambda: write_run_report(folder), watch.note)
        mark_finished(folder, plan.digest)
        return metrics

    def _finish(self, cell: Cell, metrics: list[MetricRow]) -> None:
        self.finished.append(cell)
        self.rows += rows_of(cell, metrics)

    def _fail(self, cell: Cell, reason: str) -> None:
        self.failures.append(Failure(cell, reason))
        self.observer.cell_failed(cell, reason)


class _StageWatch(Relay):
    """A run's observer that passes on what it is told, and keeps what other cells need of it."""

    def __init__(self, observer: CompareObserver, forecast: Forecast) -> None:
        super().__init__(observer)
        self.forecast = forecast
        self._running: Stage | None = None
        self._reasons: dict[str, str] = {}

    def failed(self, reason: str) -> None:
        """Take in that the cell failed: if it was in a stage, all cells with that stage would."""
        if self._running is not None:
            self._reasons[self._running.key] = f"{self._running.name}: {reason}"
            self._running = None

    def failed_before(self, plan: CellPlan) -> str | None:
        """Return why a stage of this cell failed in an earlier cell, None if none did."""
        reasons = (self._reasons.get(stage.key) for stage in plan.stages)
        found = next((reason for reason in reasons if reason is not None), None)
        return None if found is None else f"it shares a stage that failed, {found}"

    def stage_started(self, stage: Stage, number: int, total: int) -> None:
        """Take in which stage runs."""
        self._running = stage
        super().stage_started(stage, number, total)

    def stage_finished(self, stage: Stage, seconds: float, artifact: Artifact) -> None:
        """Take in how long the stage took."""
        self._running = None
        self.forecast.finished(stage.key, seconds)
        super().stage_finished(stage, seconds, artifact)

    def stage_found(self, stage: Stage, artifact: Artifact) -> None:
        """Take in that the stage is there."""
        self.forecast.found(stage.key)
        super().stage_found(stage, artifact)
