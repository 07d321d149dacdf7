"""What a comparison says while it runs, and its guess of the time left."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from macpo.compare import Cell, Design
from macpo.compare.progress import CompareConsole
from macpo.compare.stages import CellPlan, CellStage
from macpo.compare.times import Forecast
from tests.compare.files import designed


@pytest.fixture
def design(tmp_path: Path) -> Design:
    return designed(tmp_path)


def plans(cells: tuple[Cell, ...]) -> list[CellPlan]:
    """Return two cells that share their data and their first training."""
    data = CellStage("data", "data", "d", None)
    sft = CellStage("init/student/positive", "sft", "s1", "student")
    more = [CellStage(f"round-{t}/student/train", "dpo", f"d{t}", "student") for t in (1, 2)]
    other = CellStage("round-1/weak-a/train", "dpo", "w1", "weak-a")
    return [
        CellPlan(cells[0], (data, sft, more[0])),
        CellPlan(cells[1], (data, sft, more[1], other)),
    ]


def test_time_left_goes_by_kind_and_agent(design: Design) -> None:
    forecast = Forecast(plans(design.cells), {})

    assert forecast.seconds_left is None
    forecast.finished("d", 1.0)
    forecast.finished("s1", 4.0)
    # Nothing like the three DPO trainings has run: the mean of all, 2.5 s, for each.
    assert forecast.seconds_left == pytest.approx(7.5)
    forecast.finished("d1", 10.0)
    # The student's second takes 10 s like its first, the teacher's counts as the mean, 5 s.
    assert forecast.seconds_left == pytest.approx(15.0)
    forecast.found("w1")
    assert forecast.seconds_left == pytest.approx(10.0)


def test_time_left_knows_earlier_calls(design: Design) -> None:
    forecast = Forecast(plans(design.cells), {"d1": 10.0, "of another plan": 99.0})

    assert forecast.seconds_left == pytest.approx(4 * 10.0)


class Stage:
    """What the console reads of a stage."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind = "custom"


class Artifact:
    """What the console reads of an artifact."""

    meta: dict[str, Any] = {"loss": 0.25}  # noqa: RUF012


def test_log_without_a_terminal_is_plain_lines(design: Design) -> None:
    file = io.StringIO()
    first, second, third, fourth = design.cells
    with CompareConsole(Console(file=file)) as shown:
        shown.note("dtype: float32 for all cells")
        shown.comparison_started(design, 212, 61, 3)
        shown.cell_found(first)
        shown.cell_started(second, 2, 4, 125.0)
        shown.stage_started(Stage("data"), 1, 2)  # type: ignore[arg-type]
        shown.stage_finished(Stage("data"), 1.5, Artifact())  # type: ignore[arg-type]
        shown.stage_found(Stage("a"), Artifact())  # type: ignore[arg-type]
        shown.cell_finished(second, 61.0)
        shown.cell_started(third, 3, 4, None)
        shown.cell_failed(third, "the loss is \x1b[31mnot finite")
        shown.cell_found(fourth)

    assert file.getvalue().splitlines() == [
        "note: dtype: float32 for all cells",
        "4 cells: 2 methods, 1 setting, 2 seeds",
        "212 stages, 61 of them distinct, 3 done already",
        "1 cell was done already",
        "cell 2 of 4: spin, seed 1; about 2 min 05 s left in all",
        "data                                   1.5 s  loss 0.25",
        "1 more stage was done already",
        "finished spin, seed 1 in 1 min 01 s",
        "cell 3 of 4: macpo, seed 2",
        "failed: macpo, seed 2: the loss is not finite",
        "1 cell was done already",
    ]


def test_full_disk_under_the_log_does_not_end_the_work(design: Design) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    with CompareConsole(Console(file=Full())) as shown:
        shown.comparison_started(design, 2, 1, 0)
        shown.note("still here")
