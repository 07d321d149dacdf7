"""What is printed: the table with its marks and gaps, the saving, the plan."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from macpo.compare import (
    ComparePlan,
    Comparison,
    Design,
    Failure,
    Results,
    Row,
    Saving,
    render_comparison,
    render_plan,
)
from macpo.compare.stages import CellPlan, CellStage
from macpo.compare.table import check_view, format_estimate
from macpo.errors import ConfigError
from macpo.estimates import Estimate
from tests.compare.files import designed
from tests.compare.test_results import METHODS, rows


def text_of(view: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def comparison(design: Design, found: list[Row] | None = None, missing: int = 0) -> Comparison:
    """Return a comparison whose last cell failed, and of which `missing` others were not run."""
    failures = (Failure(design.cells[-1], "the loss is not finite"),)
    finished = design.cells[: len(design.cells) - 1 - missing]
    results = Results(design, rows() if found is None else found)
    return Comparison(Path("d"), design, results, finished, failures, Saving(61, 212, 725, 2400))


@pytest.fixture
def design(tmp_path: Path) -> Design:
    return designed(tmp_path, methods=METHODS, seeds=[1, 2, 3])


def line_of(shown: str, method: str) -> str:
    return next(line for line in shown.splitlines() if line.strip().startswith(f"{method} "))


def test_table_shows_last_rounds_with_marks(design: Design) -> None:
    shown = text_of(render_comparison(comparison(design), 120))

    assert re.search(r"^ +macpo +2 +3 +0\.80 ± 0\.25 +0\.80 ± 0\.50", shown, re.MULTILINE)
    assert re.search(r"^ +naive +0 +3 +0\.50 ± 0\.25 ↓ +0\.20 ± 0\.50 ↓", shown, re.MULTILINE)
    assert re.search(r"^ +ceiling +1 +2 of 3 +0\.9000 ± 0\.0000 +- *$", shown, re.MULTILINE)
    assert "student after each method's last round" in shown
    assert "↑ ↓ above or below macpo" in shown
    assert "PGR of" in shown


def test_table_of_an_earlier_round(design: Design) -> None:
    shown = text_of(render_comparison(comparison(design), 120, t=1))

    assert re.search(r"^ +macpo +1 +3 +0\.63", shown, re.MULTILINE)
    assert re.search(r"^ +naive +0 ", shown, re.MULTILINE)
    assert "student after round 1, or the last before it" in shown


def test_table_of_the_teachers(design: Design) -> None:
    shown = text_of(render_comparison(comparison(design), 120, "teachers"))

    assert line_of(shown, "macpo").split() == ["macpo", "-", "3", "-"]
    assert line_of(shown, "ceiling").split()[:2] == ["ceiling", "1"]


def test_failed_cells_and_cells_not_run_are_told(design: Design) -> None:
    shown = text_of(render_comparison(comparison(design, missing=2), 120))

    assert "failed: ceiling, seed 3: the loss is not finite" in shown
    assert "note: 2 cells not run yet" in shown
    assert " 2 of 3 " in line_of(shown, "macpo")


def test_saving_is_told(design: Design) -> None:
    shown = text_of(render_comparison(comparison(design), 120))

    assert "stages: 61 run; separate runs would have run 212 (3.5 times as many)" in shown
    assert "time: 12 min 05 s in stages; separate runs would have taken 40 min 00 s (3.3 times" in (
        shown
    )


def test_undefined_gap_is_told(design: Design) -> None:
    shown = text_of(render_comparison(comparison(design, rows(ceiling=0.3)), 120))

    assert line_of(shown, "macpo").split()[-1] == "undefined"
    assert "note: 12 values of PGR undefined: there the ceiling (ceiling) is no better" in shown


def test_mean_over_fewer_seeds_than_were_run_says_so(design: Design) -> None:
    found = [row for row in rows() if (row.method, row.seed) != ("macpo", 2)]

    assert "(n=2)" in line_of(text_of(render_comparison(comparison(design, found), 120)), "macpo")


def test_metrics_that_do_not_fit_follow_below(design: Design) -> None:
    shown = text_of(render_comparison(comparison(design), 50), width=50)

    assert len(re.findall(r"^ +macpo ", shown, re.MULTILINE)) == 2
    assert "…" not in shown


def test_settings_are_blocks(tmp_path: Path) -> None:
    asked = designed(
        tmp_path, methods={"macpo": "macpo"}, settings={"k1": {"rounds": 1}, "k2": {}}, seeds=[1]
    )
    found = [Row(s, "macpo", 1, "student", 1, "tokens", 12.5) for s in ("k1", "k2")]
    shown = text_of(render_comparison(comparison(asked, found, missing=1), 100))

    assert [line.strip() for line in shown.splitlines() if line.strip() in ("k1", "k2")] == [
        "k1",
        "k2",
    ]
    assert len(re.findall(r"^ +macpo +1 +[01 of]+ +12\.5 *$", shown, re.MULTILINE)) == 2
    assert "one seed: no intervals" in shown


def test_metric_that_nobody_measured_is_told(tmp_path: Path) -> None:
    asked = designed(
        tmp_path,
        methods=METHODS,
        seeds=[1, 2, 3],
        metrics={"preference_accuracy": "higher", "gold_perplexity": "lower"},
    )
    shown = text_of(render_comparison(comparison(asked), 200), width=200)

    assert (
        "note: no gold_perplexity was measured of student; there are preference_accuracy" in shown
    )


def test_nothing_to_show_is_no_error(design: Design) -> None:
    shown = text_of(render_comparison(comparison(design, [], missing=7), 100))

    assert shown.startswith("note: 7 cells not run yet")


@pytest.mark.parametrize(
    ("mean", "half", "shown"),
    [
        (0.62512, 0.0312, "0.625 ± 0.031"),
        (31.284, 1.26, "31.3 ± 1.3"),
        (312.84, 12.6, "313 ± 13"),
        (0.5, None, "0.5"),
        (0.123456, None, "0.1235"),
        (0.5, 0.0, "0.5000 ± 0.0000"),
        (0.5, 0.000012, "0.5000 ± 0.0000"),
        (0.5, 0.00312, "0.5000 ± 0.0031"),
    ],
)
def test_estimates_are_written_with_the_digits_that_count(
    mean: float, half: float | None, shown: str
) -> None:
    assert format_estimate(Estimate(mean, half, 3)) == shown


def test_view_that_no_cell_can_have_is_refused(design: Design) -> None:
    check_view(design, "weak-b", 2)
    with pytest.raises(
        ConfigError, match="--policy weak_b: there is no such agent; did you mean w"
    ):
        check_view(design, "weak_b", None)
    with pytest.raises(
        ConfigError, match=r"--policy x: .* there are student, weak-a, weak-b, teac"
    ):
        check_view(design, "x", None)
    with pytest.raises(ConfigError, match="--round 4: there is no such round; give 0 to 3"):
        check_view(design, "student", 4)


def test_plan_tells_shared_stages(design: Design) -> None:
    first, second, third = design.cells[:3]
    data, sft = CellStage("data", "data", "d", None), CellStage("a", "sft", "a", "student")
    plans = (
        CellPlan(first, (data, sft)),
        CellPlan(second, (data, sft)),
        CellPlan(third, fault="models/x: no such model folder"),
    )
    shown = text_of(render_plan(ComparePlan(design, plans, done=1, notes=("keys for float32",))))

    assert re.search(r"^ +macpo, seed 1 +2 +2", shown, re.MULTILINE)
    assert re.search(r"^ +naive, seed 1 +2 +0", shown, re.MULTILINE)
    assert "3 cells: 4 stages in separate runs, 2 distinct; 2 times fewer" in shown
    assert "1 of 2 are done" in shown
    assert "cannot run: ceiling, seed 1: models/x: no such model folder" in shown
    assert "note: keys for float32" in shown
