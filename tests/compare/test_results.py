"""Rows, means over seeds, paired differences and PGR of a comparison worked by hand."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from macpo.compare import Comparison, Design, Failure, Results, Row, Saving
from macpo.compare.comparison import write_results
from macpo.compare.rows import rows_of
from macpo.compare.stages import CellPlan, CellStage
from macpo.compare.times import measure_saving
from macpo.run_directory import MetricRow
from tests.compare.files import designed

METHODS = {"macpo": "macpo", "naive": "naive-sft", "ceiling": "ceiling"}
MACPO = {1: [0.5, 0.6, 0.7], 2: [0.4, 0.6, 0.8], 3: [0.6, 0.7, 0.9]}
"""The student's accuracy before and after each of two rounds, by seed."""


def accuracy(method: str, seed: int, policy: str, t: int, value: float | None) -> Row:
    return Row("default", method, seed, policy, t, "preference_accuracy", value)


def rows(ceiling: float = 0.9) -> list[Row]:
    """Return MACPO over two rounds, naive SFT that is MACPO's beginning, and a ceiling."""
    found = []
    for seed, values in MACPO.items():
        found += [accuracy("macpo", seed, "student", t, v) for t, v in enumerate(values)]
        found.append(accuracy("naive", seed, "student", 0, values[0]))
        found += [accuracy("ceiling", seed, "student", t, v) for t, v in ((0, 0.8), (1, ceiling))]
        found += [accuracy("ceiling", seed, "teachers", t, v) for t, v in ((0, 0.4), (1, 0.45))]
    return found


@pytest.fixture
def design(tmp_path: Path) -> Design:
    return designed(tmp_path, methods=METHODS, seeds=[1, 2, 3])


@pytest.fixture
def results(design: Design) -> Results:
    return Results(design, rows())


def at(results: Results, method: str, metric: str = "preference_accuracy", **keys: Any) -> Any:
    return results.at("default", method, "student", metric, **keys)


def test_mean_over_seeds_after_the_last_round(results: Results) -> None:
    found = at(results, "macpo")

    # 0.7, 0.8, 0.9: standard deviation 0.1, t at 2 degrees of freedom 4.302653.
    assert (found.round, found.value.n) == (2, 3)
    assert found.value.mean == pytest.approx(0.8)
    assert found.value.half_width == pytest.approx(4.302653 * 0.1 / math.sqrt(3), abs=1e-6)
    assert found.against is None


def test_methods_with_fewer_rounds_stay_as_they_are(results: Results) -> None:
    found = at(results, "naive", t=2)

    # Naive SFT ends at 0.5, 0.4, 0.6 where MACPO is at 0.7, 0.8, 0.9: -0.2, -0.4, -0.3.
    assert found.round == 0
    assert found.against_round == 2
    assert found.against.mean == pytest.approx(-0.3)
    assert found.against.half_width == pytest.approx(4.302653 * 0.1 / math.sqrt(3), abs=1e-6)
    assert found.against.excludes_zero


def test_same_beginning_does_not_differ(results: Results) -> None:
    found = at(results, "naive", t=0)

    assert found.against_round == 0
    assert (found.against.mean, found.against.half_width) == (0.0, 0.0)
    assert not found.against.excludes_zero


def test_pairs_are_of_the_seeds_that_both_have(design: Design) -> None:
    kept = [r for r in rows() if (r.method, r.seed) != ("macpo", 3)]

    found = at(Results(design, kept), "naive")

    assert found.value.n == 3
    assert found.against.n == 2
    assert found.against.mean == pytest.approx(-0.3)


def test_what_was_not_measured_is_none(results: Results) -> None:
    assert at(results, "macpo", metric="gold_perplexity") is None
    assert results.at("default", "macpo", "weak-a", "preference_accuracy") is None


def test_gap_recovered_uses_first_teachers_and_last_ceiling(results: Results) -> None:
    found = [r for r in results.rows if r.metric == "pgr_preference_accuracy"]

    # (student - 0.4) / (0.9 - 0.4)
    shares = {(r.method, r.seed, r.round): r.value for r in found}
    assert shares[("macpo", 1, 0)] == pytest.approx(0.2)
    assert shares[("macpo", 3, 2)] == pytest.approx(1.0)
    assert shares[("naive", 2, 0)] == pytest.approx(0.0)
    assert {r.method for r in found} == {"macpo", "naive"}
    assert {r.policy for r in found} == {"student"}


def test_gap_that_is_none_is_undefined_and_counted(design: Design) -> None:
    results = Results(design, rows(ceiling=0.4))

    found = at(results, "macpo", metric="pgr_preference_accuracy")

    assert found.value is None
    assert found.undefined == 3
    assert found.to_json()["value"] is None


def test_metric_without_a_better_side_has_no_gap(design: Design) -> None:
    renamed = [
        Row(r.setting, r.method, r.seed, r.policy, r.round, "tokens", r.value) for r in rows()
    ]

    assert {r.metric for r in Results(design, renamed).rows} == {"tokens"}


def test_direction_of_the_compare_file_counts(tmp_path: Path) -> None:
    asked = designed(
        tmp_path, methods=METHODS, seeds=[1, 2, 3], metrics={"preference_accuracy": "lower"}
    )

    found = at(Results(asked, rows()), "macpo", metric="pgr_preference_accuracy")

    assert found.undefined == 3


def test_no_gap_without_a_ceiling(tmp_path: Path) -> None:
    asked = designed(tmp_path, seeds=[1, 2, 3])

    assert len(Results(asked, rows()).rows) == len(rows())


def test_rows_of_a_cell_have_the_mean_of_its_teachers(design: Design) -> None:
    measured = [
        MetricRow("student", 0, "preference_accuracy", 0.7),
        MetricRow("weak-a", 0, "preference_accuracy", 0.5),
        MetricRow("weak-b", 0, "preference_accuracy", 0.6),
        MetricRow("weak-b", 1, "preference_accuracy", 0.8),
    ]

    found = rows_of(design.cells[0], measured)

    assert [r.policy for r in found] == ["student", "weak-a", "weak-b", "weak-b", *["teachers"] * 2]
    assert [(r.round, r.value) for r in found[4:]] == [(0, pytest.approx(0.55)), (1, 0.8)]
    assert {(r.setting, r.method, r.seed) for r in found} == {("default", "macpo", 1)}


def test_metrics_to_show(design: Design, tmp_path: Path) -> None:
    more = [Row("default", "macpo", 1, "student", 1, "train_loss", 0.3), *rows()]
    listed = designed(
        tmp_path / "listed",
        methods=METHODS,
        seeds=[1, 2, 3],
        metrics={"train_loss": "neither", "gold_perplexity": "lower"},
    )

    assert Results(design, more).metrics("student") == [
        "preference_accuracy",
        "pgr_preference_accuracy",
    ]
    assert Results(listed, more).metrics("student") == ["train_loss"]
    assert Results(design, more).policies == ["student", "teachers"]


def test_rows_as_a_table_of_pandas(design: Design) -> None:
    results = Results(design, rows(ceiling=0.4))
    frame = results.frame

    assert list(frame.columns) == [
        *("setting", "method", "seed", "policy", "round", "metric", "value"),
    ]
    assert len(frame) == len(results.rows)
    student = frame[(frame.policy == "student") & (frame.metric == "preference_accuracy")]
    means = student[student.method == "macpo"].groupby("round").value.mean()
    assert list(means) == pytest.approx([0.5, 0.6333333, 0.8])
    assert frame[frame.metric == "pgr_preference_accuracy"].value.isna().all()


def stage(name: str, key: str, agent: str | None = None) -> CellStage:
    return CellStage(name, "sft", key, agent)


def test_saving_counts_shared_stages_once(design: Design) -> None:
    first, second, third = design.cells[:3]
    plans = [
        CellPlan(first, (stage("data", "d"), stage("a", "a"))),
        CellPlan(second, (stage("data", "d"), stage("b", "b"))),
        CellPlan(third, (stage("data", "d"), stage("c", "c"))),
    ]

    # The third failed in stage c; of b, which is in the store, no journal tells the time.
    found = measure_saving(plans, [first, second], {"d": 2.0, "a": 3.0})

    assert found == Saving(
        stages_run=3, stages_separate=5, seconds_run=5.0, seconds_separate=3 * 2.0 + 3.0
    )


def test_files_of_results(design: Design, results: Results, tmp_path: Path) -> None:
    failures = (Failure(design.cells[1], "no disk left"),)
    done = tuple(cell for cell in design.cells if cell.method == "macpo")
    write_results(Comparison(tmp_path, design, results, done, failures, Saving(3, 5, 5.0, 9.0)))

    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [row.to_json() for row in results.rows]
    with (tmp_path / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(lines)
    assert table[0] == {
        "setting": "default",
        "method": "macpo",
        "seed": "1",
        "policy": "student",
        "round": "0",
        "metric": "preference_accuracy",
        "value": "0.5",
    }
    summary = json.loads((tmp_path / "results.json").read_text())
    assert summary["saving"] == {
        "stages_run": 3,
        "stages_separate": 5,
        "seconds_run": 5.0,
        "seconds_separate": 9.0,
    }
    assert [cell["state"] for cell in summary["cells"][:3]] == ["finished", "failed", "not run"]
    assert summary["cells"][1]["reason"] == "no disk left"
    assert summary["metrics"]["preference_accuracy"] == {
        "title": "preference accuracy",
        "unit": "share",
        "better": "higher",
    }
    naive = [r for r in summary["last_round"] if (r["method"], r["policy"]) == ("naive", "student")]
    assert naive[0]["difference"]["mean"] == pytest.approx(-0.3)
    assert naive[0]["difference"]["excludes_zero"] is True
    rounds = [
        r["round"]
        for r in summary["each_round"]
        if (r["method"], r["metric"]) == ("macpo", "preference_accuracy")
    ]
    assert rounds == [0, 1, 2]
