"""Running a comparison: cell after cell over one store, or side by side on a cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from macpo.cleaning import sweep_notes
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
from macpo.execution.stopping import stop_on_signal
from macpo.store import RunLock
from macpo.store.atomic import make_directory

if TYPE_CHECKING:
    from macpo.execution.protocol import ExecutorFactory, Observer
    from macpo.run_directory import MetricRow
    from macpo.stage import Stage
    from macpo.store import Artifact

WAIT_SECONDS = 0.25


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
        sweep_notes(folder)
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
        self._ended: dict[Path, list[Row] | Failure] = {}

    @property
    def finished(self) -> list[Cell]:
        """The cells that have results, in the order of the design."""
        return [p.cell for p in self.plans if isinstance(self._end_of(p.cell), list)]

    def _end_of(self, cell: Cell) -> list[Row] | Failure | None:
        """Return the results of a cell, or why there are none; None while it has not ended."""
        return self._ended.get(self.design.folder_of(cell))

    def run(self) -> None:
        """Run every cell that is not finished."""
        self.plans = plan_cells(self.design, fetch=True)
        total = sum(len(plan.stages) for plan in self.plans)
        distinct = len(distinct_stages(self.plans))
        done = count_done(self.plans, self.store)
        self.observer.comparison_started(self.design, total, distinct, done)
        forecast = Forecast(self.plans, stage_seconds(self.store))
        if any(plan.cell.config.execution.backend == "ray" for plan in self.plans):
            self._side_by_side(forecast)
            return
        watch = _StageWatch(self.observer, forecast)
        for number, plan in enumerate(self.plans, 1):
            self._cell(plan, number, watch)

    def _side_by_side(self, forecast: Forecast) -> None:
        """Run the cells on a cluster, each in a thread of its own, which waits most of the time.

        Raises:
            KeyboardInterrupt: asked to stop; the cells' running stages have come to a safe point.
        """
        from macpo.execution.cluster.executor import ClusterExecutor
        from macpo.execution.cluster.ray import open_cluster

        sections = [plan.cell.config.execution for plan in self.plans]
        section = next(section for section in sections if section.backend == "ray")
        with open_cluster(section) as cluster, stop_on_signal(self.observer.note) as stop:

            def run_cell(plan: CellPlan, number: int) -> None:
                config = plan.cell.config
                label = self.design.describe(plan.cell)
                watch = _StageWatch(_OfCell(self.observer, label), forecast)
                executor = partial(
                    ClusterExecutor,
                    cluster=cluster,
                    config=config.execution,
                    asked=config.device,
                    stop=stop,
                )
                with cluster.turn:
                    if not stop.is_set():
                        self._cell(plan, number, watch, executor)

            with ThreadPoolExecutor(cluster.room()) as threads:
                running = [
                    threads.submit(run_cell, plan, number)
                    for number, plan in enumerate(self.plans, 1)
                ]
                try:
                    while not all(cell.done() for cell in running):
                        time.sleep(WAIT_SECONDS)  # and hear signals: they come to this thread alone
                        if any(cell.done() and cell.exception() for cell in running):
                            stop.set()  # a bug, or asked to stop
                except KeyboardInterrupt:  # asked twice
                    cluster.kill(cluster.jobs())
                    raise
            errors = [error for cell in running if (error := cell.exception()) is not None]
        for error in sorted(errors, key=lambda e: isinstance(e, KeyboardInterrupt)):
            raise error
        if stop.is_set():
            raise KeyboardInterrupt

    def comparison(self) -> Comparison:
        """Return what there is so far."""
        saved = measure_saving(self.plans, self.finished, stage_seconds(self.store))
        ended = [self._end_of(plan.cell) for plan in self.plans]
        rows = [row for end in ended if isinstance(end, list) for row in end]
        failures = tuple(end for end in ended if isinstance(end, Failure))
        results, finished = Results(self.design, rows), tuple(self.finished)
        return Comparison(self.folder, self.design, results, finished, failures, saved)

    def _cell(
        self,
        plan: CellPlan,
        number: int,
        watch: _StageWatch,
        executor: ExecutorFactory | None = None,
    ) -> None:
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
            metrics = self._run(plan, folder, watch, executor)
        except MacpoError as error:
            reason = one_line(error)
            watch.failed(reason)
            self._fail(cell, reason)
            return
        self._finish(cell, metrics)
        self.observer.cell_finished(cell, time.monotonic() - started)

    def _run(
        self, plan: CellPlan, folder: Path, watch: _StageWatch, executor: ExecutorFactory | None
    ) -> list[MetricRow]:
        """Run one cell as an ordinary run."""
        from macpo.report.making import leave_report, write_run_report
        from macpo.runner import run

        prepare_cell(folder, self.store)
        unmark_finished(folder)
        metrics = run(plan.cell.config, folder, watch, executor).metrics
        leave_report(lambda: write_run_report(folder), watch.note)
        mark_finished(folder, plan.digest)
        return metrics

    def _finish(self, cell: Cell, metrics: list[MetricRow]) -> None:
        self._ended[self.design.folder_of(cell)] = rows_of(cell, metrics)

    def _fail(self, cell: Cell, reason: str) -> None:
        self._ended[self.design.folder_of(cell)] = Failure(cell, reason)
        self.observer.cell_failed(cell, reason)


class _OfCell(Relay):
    """Passes on what a cell among others is told, with its name before those of its stages."""

    def __init__(self, observer: Observer, cell: str) -> None:
        super().__init__(observer)
        self._cell = cell
        self._named: dict[str, Stage] = {}

    def planned(self, stages: Sequence[Stage]) -> None:
        """Pass them on under their names."""
        super().planned([self._name(stage) for stage in stages])

    def stage_started(self, stage: Stage, number: int, total: int) -> None:
        """See `planned`."""
        super().stage_started(self._name(stage), number, total)

    def stage_progress(self, stage: Stage, done: int, total: int, **fields: float) -> None:
        """See `planned`."""
        super().stage_progress(self._name(stage), done, total, **fields)

    def stage_finished(self, stage: Stage, seconds: float, artifact: Artifact) -> None:
        """See `planned`."""
        super().stage_finished(self._name(stage), seconds, artifact)

    def stage_found(self, stage: Stage, artifact: Artifact) -> None:
        """See `planned`."""
        super().stage_found(self._name(stage), artifact)

    def _name(self, stage: Stage) -> Stage:
        if stage.key not in self._named:
            self._named[stage.key] = replace(stage, name=f"{self._cell}: {stage.name}")
        return self._named[stage.key]


class _StageWatch(Relay):
    """A run's observer that passes on what it is told, and keeps what other cells need of it."""

    def __init__(self, observer: Observer, forecast: Forecast) -> None:
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
