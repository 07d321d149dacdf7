"""What a comparison tells while it runs, and showing it on stderr."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.text import Text

from macpo.compare.design import Cell, Design
from macpo.report.console import ConsoleObserver
from macpo.report.text import format_seconds, plain_line, plural

if TYPE_CHECKING:
    from macpo.stage import Stage
    from macpo.store import Artifact


class CompareObserver(Protocol):
    """Is told what happens: of each cell, and between these of its stages as a run's observer."""

    def comparison_started(self, design: Design, total: int, distinct: int, done: int) -> None:
        """All is laid out: `total` stages, `distinct` of them, of which `done` are there."""

    def cell_started(self, cell: Cell, number: int, total: int, seconds_left: float | None) -> None:
        """Cell `number` of `total` (from 1) starts; `seconds_left` for all, None if unknown."""

    def cell_finished(self, cell: Cell, seconds: float) -> None:
        """A cell has run to its end."""

    def cell_found(self, cell: Cell) -> None:
        """A cell had been run to its end before."""

    def cell_failed(self, cell: Cell, reason: str) -> None:
        """A cell had to stop, for a reason on one line; the others go on."""

    def planned(self, stages: Sequence[Stage]) -> None:
        """See `macpo.execution.protocol.Observer`, as for the rest."""

    def stage_started(self, stage: Stage, number: int, total: int) -> None:
        """See `planned`."""

    def stage_progress(self, stage: Stage, done: int, total: int, **fields: float) -> None:
        """See `planned`."""

    def stage_finished(self, stage: Stage, seconds: float, artifact: Artifact) -> None:
        """See `planned`."""

    def stage_found(self, stage: Stage, artifact: Artifact) -> None:
        """See `planned`."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def alert(self, title: str, text: str) -> None:
        """See `planned`."""


class CompareConsole:
    """Shows a comparison on stderr: a line for each cell, and its stages as `macpo run` does.

    A `CompareObserver`, used as a context manager.

    Args:
        console: where to write; by default stderr.
        clock: seconds, monotonic.
    """

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console or Console(stderr=True)
        self._clock = clock
        self._live = ConsoleObserver(self.console).live
        self._design: Design | None = None
        self._stages: ConsoleObserver | None = None
        self._open = 0  # cells that run now: one, or several on a cluster
        self._total = 0  # stages of all cells
        self._found = 0

    def __enter__(self) -> CompareConsole:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the live bar and say what has not been said."""
        self._open = 0
        self._end_stages(error)
        self._tell_found()

    def comparison_started(self, design: Design, total: int, distinct: int, done: int) -> None:
        """See `CompareObserver`."""
        self._design, self._total = design, total
        sides = (
            plural(len(design.methods), "method"),
            plural(len(design.settings), "setting"),
            plural(len(design.seeds), "seed"),
        )
        there = f", {done:,} done already" if done else ""
        self._line(f"{plural(len(design.cells), 'cell')}: {', '.join(sides)}")
        self._line(f"{plural(total, 'stage')}, {distinct:,} of them distinct{there}")

    def cell_started(self, cell: Cell, number: int, total: int, seconds_left: float | None) -> None:
        """See `CompareObserver`."""
        self._tell_found()
        left = "" if seconds_left is None else f"; about {format_seconds(seconds_left)} left in all"
        self._line(f"cell {number:,} of {total:,}: {self._name(cell)}{left}", style="bold")
        self._open += 1
        if self._stages is None:
            self._stages = ConsoleObserver(self.console, self._clock)

    def cell_finished(self, cell: Cell, seconds: float) -> None:
        """See `CompareObserver`."""
        self._end_stages(None)
        self._line(f"finished {self._name(cell)} in {format_seconds(seconds)}", style="green")

    def cell_found(self, cell: Cell) -> None:
        """See `CompareObserver`."""
        self._found += 1

    def cell_failed(self, cell: Cell, reason: str) -> None:
        """See `CompareObserver`."""
        self._end_stages(RuntimeError(reason))
        self._line(f"failed: {self._name(cell)}: {plain_line(reason)}", style="red")

    def planned(self, stages: Sequence[Stage]) -> None:
        """See `CompareObserver`."""
        if self._stages is not None and self._open == 1:
            self._stages.planned(stages)

    def stage_started(self, stage: Stage, number: int, total: int) -> None:
        """See `CompareObserver`."""
        if self._stages is not None:
            self._stages.stage_started(stage, number, total if self._open == 1 else self._total)

    def stage_progress(self, stage: Stage, done: int, total: int, **fields: float) -> None:
        """See `CompareObserver`."""
        if self._stages is not None:
            self._stages.stage_progress(stage, done, total, **fields)

    def stage_finished(self, stage: Stage, seconds: float, artifact: Artifact) -> None:
        """See `CompareObserver`."""
        if self._stages is not None:
            self._stages.stage_finished(stage, seconds, artifact)

    def stage_found(self, stage: Stage, artifact: Artifact) -> None:
        """See `CompareObserver`."""
        if self._stages is not None:
            self._stages.stage_found(stage, artifact)

    def note(self, text: str) -> None:
        """See `CompareObserver`."""
        if self._stages is not None:
            self._stages.note(text)
        else:
            self._line(f"note: {plain_line(text)}", style="yellow")

    def alert(self, title: str, text: str) -> None:
        """See `CompareObserver`."""
        if self._stages is not None:
            self._stages.alert(title, text)

    def _end_stages(self, error: BaseException | None) -> None:
        """Close the view of a cell's stages, if one is open and no other cell's are in it."""
        self._open = max(self._open - 1, 0)
        if self._stages is not None and not self._open:
            stages, self._stages = self._stages, None
            stages.__exit__(None if error is None else type(error), error, None)

    def _tell_found(self) -> None:
        if self._found:
            found, self._found = self._found, 0
            were = "was" if found == 1 else "were"
            self._line(f"{plural(found, 'cell')} {were} done already")

    def _name(self, cell: Cell) -> str:
        return cell.method if self._design is None else self._design.describe(cell)

    def _line(self, text: str, style: str = "") -> None:
        """Write one line, as `ConsoleObserver` does."""
        if self._live:
            self.console.print(Text(text, style=style), soft_wrap=True)
            return
        with contextlib.suppress(OSError):  # a full disk under the log must not end the work
            print(text, file=self.console.file, flush=True)
