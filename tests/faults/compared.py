"""A comparison that loses its power: what it writes of itself.

Its cells are stood in for: each measures something that its config decides, and writes that as a
run does. What a run leaves besides is `tests.faults.power.Recorded`'s.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from macpo.cleaning import sweep_run
from macpo.compare import Cell, Design
from macpo.compare.running import run_comparison
from macpo.compare.stages import CellPlan, CellStage
from macpo.config import RunConfig
from macpo.errors import MacpoError
from macpo.run_directory import MetricRow, RunDir
from macpo.seeds import digest
from macpo.store import Journal, RunLock, write_text_atomic
from tests.compare.files import BASE, designed
from tests.faults.disk import EXTREMES, Choice, Draw, Moment, recording, unsynced, write_out
from tests.faults.power import HOMES, WentWrong, named, put_back
from tests.test_resume import Quiet

RESULTS = ("results.jsonl", "results.csv", "results.json", "tables.md")
"""What a comparison has written down when it says that it is done."""

UNLIKE = ("journal.jsonl", "lock", ".finished.json.partial")
"""Files with times and processes in them; and the old name of a mark that is there under both.

It is of no harm in a cell that is found, and goes when the cell runs or is cleaned.
"""


class Watching(Quiet):
    """An observer of a comparison that keeps why something went wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []

    def comparison_started(self, design: Design, total: int, distinct: int, done: int) -> None:
        """Begin."""

    def cell_started(self, cell: Cell, number: int, total: int, seconds_left: float | None) -> None:
        """Go on."""

    def cell_finished(self, cell: Cell, seconds: float) -> None:
        """Go on."""

    def cell_found(self, cell: Cell) -> None:
        """Go on."""

    def cell_failed(self, cell: Cell, reason: str) -> None:
        """Keep the reason."""
        self.reasons.append(reason)


class Compared:
    """Two designs of the same cells, `first` and `second`; run one after the other, recorded.

    Args:
        home: a folder for it.
    """

    def __init__(self, home: Path) -> None:
        self.disk = home / "disk"
        self.folder = self.disk / "out"
        self.designs = {
            name: designed(
                home / name, base={**BASE, "dpo": {"beta": beta, "gamma": 0.3}}, seeds=[1]
            )
            for name, beta in (("first", 0.1), ("second", 0.2))
        }
        self.ends: dict[str, Mapping[str, bytes | None]] = {}

    @cached_property
    def moments(self) -> list[tuple[str, Moment]]:
        """The moments of both, each with the design that was being run."""
        self.disk.mkdir(parents=True)
        found = []
        for name in self.designs:
            with recording(self.disk) as recorder:
                self._run(name)
                recorder.mark("compared")
            found += [(name, moment) for moment in recorder.moments]
            self.ends[name] = self._end()
        assert self.ends["first"] != self.ends["second"]
        return found

    def ask(self, running: str, moment: Moment, choice: Choice, next_one: str) -> None:
        """Cut the power while one design runs, and run one.

        Raises:
            WentWrong: what was promised is not there, it refuses, or ends in something else.
        """
        write_out(moment, self.disk, choice)
        if "compared" in moment.marks:
            self._promised(running)
        try:
            with unsynced():
                self._run(next_one)
        except MacpoError as error:
            raise WentWrong(f"refused: {error}") from error
        found, expected = self._end(), self.ends[next_one]
        if found != expected:
            names = sorted(n for n in found.keys() | expected if found.get(n) != expected.get(n))
            raise WentWrong(f"another end: {', '.join(names)}")

    def _promised(self, name: str) -> None:
        for file in RESULTS:
            path = self.folder / file
            if not path.is_file() or path.read_bytes() != self.ends[name][file]:
                raise WentWrong(f"a promise was broken: {file}")

    def _run(self, name: str) -> None:
        observer = Watching()
        with _stood_in():
            run_comparison(self.designs[name], self.folder, observer)
        faults = [note for note in observer.notes if not note.startswith("dtype: ")]
        if observer.reasons or faults:
            raise WentWrong(f"failed: {observer.reasons} {faults}")

    def _end(self) -> dict[str, bytes | None]:
        """Return all that is there."""
        found: dict[str, bytes | None] = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.name in UNLIKE:
                continue
            found[name] = None if path.is_dir() else path.read_bytes()
        return found


def cuts(run: Path, generator: random.Random) -> Iterator[tuple[str, Callable[[], object]]]:
    """Cut the power at every moment, and go on with the same design or go back: extremes first."""
    compared = recorded_comparison()
    points = [
        (running, moment, next_one)
        for running, moment in compared.moments
        for next_one in sorted({running, "first"})
    ]
    extremes = [(*point, choice) for point in points for choice in EXTREMES]
    generator.shuffle(extremes)
    drawn = ((*generator.choice(points), Draw(generator.random())) for _ in itertools.count())
    for running, moment, next_one, choice in itertools.chain(extremes, drawn):
        ask = functools.partial(compared.ask, running, next_one=next_one)
        yield (
            named(f"comparison, {next_one} after {running}", moment),
            put_back(ask, moment, choice),
        )


@functools.cache
def recorded_comparison() -> Compared:
    """Return a comparison that is recorded once in a process."""
    HOMES.append(tempfile.TemporaryDirectory(prefix="macpo-compared-"))
    return Compared(Path(HOMES[-1].name))


@contextlib.contextmanager
def _stood_in() -> Iterator[None]:
    """Let cells measure what their configs say, and pages and figures take no time to draw."""
    with contextlib.ExitStack() as stack:
        for name, stand_in in {
            "macpo.compare.running.plan_cells": _plan_cells,
            "macpo.compare.figures._over_rounds": _figure,
            "macpo.compare.page._render": _page,
            "macpo.report.making.gather_run": lambda folder: None,
            "macpo.report.making.render_run": _page,
            "macpo.machine.fastest_dtype": lambda device: ("float32", {"float32": 1.0}),
            "macpo.runner.run": _run_cell,
        }.items():
            stack.enter_context(mock.patch(name, stand_in))
        yield


def _plan_cells(design: Design, *, fetch: bool) -> tuple[CellPlan, ...]:
    return tuple(
        CellPlan(
            cell, (CellStage("train", "dpo", digest([cell.seed, cell.method, _beta(cell)]), None),)
        )
        for cell in design.cells
    )


def _beta(cell: Cell) -> float:
    return cell.config.dpo.beta


def _figure(comparison: Any, policy: str, name: str) -> SimpleNamespace:
    drawn = f"{policy}, {name}: {comparison.results.rows}".encode()
    return SimpleNamespace(savefig=lambda image, **options: image.write(drawn))


def _page(*shown: object) -> str:
    return "<!DOCTYPE html>\n<html>a page, the same each time</html>\n"


def _run_cell(
    config: RunConfig, folder: str | Path, observer: object, executor: object = None
) -> SimpleNamespace:
    """Leave what a comparison looks for in a run."""
    home = RunDir(folder)
    with RunLock(home.lock):
        sweep_run(home)
        Journal(home.journal_file).append("invoked", command="macpo compare")
        rows = [
            MetricRow("student", t, "preference_accuracy", config.dpo.beta * (t + 1) + config.seed)
            for t in (0, 1)
        ]
        lines = "".join(json.dumps(row.to_json()) + "\n" for row in rows)
        write_text_atomic(home.metrics_file, lines, durable=True)
    return SimpleNamespace(metrics=rows)
