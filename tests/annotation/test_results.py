"""What judgments come to, worked by hand; and handed on as tables and as pairs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from macpo.annotation.exporting import export_judgments, export_pairs
from macpo.annotation.judgments import Judgment, Verdict
from macpo.annotation.results import summarise, win_rate
from macpo.errors import ConfigError, StoreError
from macpo.records import read_pairs
from macpo.report.console import stdout_console
from macpo.report.people import render_results
from tests.annotation.files import TEXTS, judge_all, make_file


def test_win_rates_count_ties_half_and_leave_them_out(tmp_path: Path) -> None:
    file = make_file(tmp_path)
    judge_all(file, "Anna", ["one", "one", "tie", "other", "one"])

    results = summarise(file)

    assert (results.wins, results.ties, results.losses) == (3, 1, 1)
    assert (results.pairs, results.judged, results.judgments) == (6, 5, 5)
    assert results.win_rate == pytest.approx(0.7)
    assert results.win_rate_without_ties == pytest.approx(0.75)
    assert results.agreement is None


def judged(**said: Sequence[Verdict]) -> list[Judgment]:
    """Return judgments by prompt."""
    return [
        Judgment(prompt, prompt, f"person {i}", verdict, "one", None, "")
        for prompt, verdicts in said.items()
        for i, verdict in enumerate(verdicts)
    ]


def test_interval_of_one_judgment_a_prompt_is_students() -> None:
    """1, 1, 0.5, 0, 1: s = 0.4472, t(4) = 2.776, half-width 2.776 * 0.4472 / sqrt(5) = 0.555."""
    rate, half = win_rate(judged(a=["one"], b=["one"], c=["tie"], d=["other"], e=["one"]))
    assert rate == pytest.approx(0.7)
    assert half == pytest.approx(0.5553, abs=1e-4)


def test_interval_takes_judgments_of_one_prompt_together() -> None:
    """Three people who always agree say no more than one: the same interval as one judgment each.

    Two prompts, 1 1 and 0: mean 2/3, sums of deviations 2/3 and -2/3; the standard error is
    sqrt(2 * (4/9 + 4/9)) / 3 = 4/9, and t(1) = 12.706.
    """
    once = win_rate(judged(a=["one"], b=["other"], c=["one"]))
    assert win_rate(judged(a=["one"] * 3, b=["other"] * 3, c=["one"] * 3)) == pytest.approx(once)
    rate, half = win_rate(judged(a=["one", "one"], b=["other"]))
    assert rate == pytest.approx(2 / 3)
    assert half == pytest.approx(12.7062 * 4 / 9, rel=1e-4)


def test_where_all_say_the_same_there_is_no_interval() -> None:
    assert win_rate(judged(a=["one"], b=["one"])) == (1.0, None)
    assert win_rate(judged(a=["one", "other"])) == (0.5, None)
    assert win_rate([]) == (None, None)


def test_people_are_told_apart_and_their_agreement_measured(tmp_path: Path) -> None:
    file = make_file(tmp_path)
    judge_all(file, "Anna", ["one", "one", "other", "tie"])
    judge_all(file, "Bert", ["one", "other", "other"])
    judge_all(file, "Cleo", ["one"])

    results = summarise(file)

    anna, bert, _ = results.annotators
    assert (anna.name, anna.judged, anna.ties, anna.win_rate) == ("Anna", 4, 1, 0.625)
    assert bert.win_rate == pytest.approx(1 / 3)
    assert anna.median_seconds == 2.0
    lefts = [j.left for j in file.judgments() if j.annotator == "Anna"][:3]
    said = ["one", "one", "other"]
    assert anna.left_rate == sum(a == b for a, b in zip(lefts, said, strict=True)) / 3
    agreement = results.agreement
    assert agreement is not None
    assert (agreement.shared, agreement.judged_by_all) == (3, 1)
    assert agreement.agreed == pytest.approx(4 / 5)
    assert list(agreement.cohen) == ["Anna and Bert", "Anna and Cleo", "Bert and Cleo"]
    # Anna 1 1 2, Bert 1 2 2: p_o = 2/3, p_e = (2 * 1 + 1 * 2) / 9 = 4/9, kappa = 2/5.
    assert agreement.cohen["Anna and Bert"] == pytest.approx(0.4)
    assert agreement.fleiss is None
    json.dumps(results.to_json(), allow_nan=False)


def test_results_are_shown_for_both_sides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make_file(tmp_path)
    judge_all(file, "Anna", ["one", "one", "tie", "other"])
    judge_all(file, "Bert", ["one", "one", "tie", "one"])

    stdout_console().print(render_results(summarise(file)))

    shown = capsys.readouterr().out
    assert "student@2 against student@0" in shown
    assert "4 of 6 pairs judged, by 2 annotators in 8 judgments" in shown
    # Prompts say 1, 1, .5 and .5 on average: s = .2887, t(3) = 3.182, half-width .459.
    assert "75.0 % (29 to 100)" in shown
    assert "25.0 % (0 to 71)" in shown
    assert "Krippendorff's alpha: 0.59\n" in shown
    assert "Cohen's kappa, Anna and Bert: 0.56\n" in shown


def test_file_without_judgments_is_shown_as_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stdout_console().print(render_results(summarise(make_file(tmp_path))))
    assert "0 of 6 pairs judged" in capsys.readouterr().out


def test_what_most_prefer_is_exported_as_pairs(tmp_path: Path) -> None:
    texts = [*TEXTS[:4], ("Say nothing.", "", "No.")]
    file = make_file(tmp_path, texts)
    judge_all(file, "Anna", ["one", "other", "one", "tie", "other"])
    judge_all(file, "Bert", ["tie", "other", "other", "tie"])

    done = export_pairs(file, tmp_path / "pairs.jsonl")

    assert (done.written, done.undecided, done.empty) == (2, 2, 1)
    first, second = read_pairs(tmp_path)
    assert (first.chosen, first.rejected) == (file.pairs[0].one, file.pairs[0].other)
    assert (second.chosen, second.rejected) == (file.pairs[1].other, file.pairs[1].one)
    assert first.chosen.origin == file.pairs[0].one.origin


def test_nothing_decided_is_told_and_nothing_written(tmp_path: Path) -> None:
    file = make_file(tmp_path)
    judge_all(file, "Anna", ["tie"])
    with pytest.raises(StoreError, match=r"none of 1 judged pairs has an answer that most people"):
        export_pairs(file, tmp_path / "pairs.jsonl")
    assert not (tmp_path / "pairs.jsonl").exists()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_judgments_are_rows(tmp_path: Path, suffix: str) -> None:
    file = make_file(tmp_path)
    judge_all(file, 'Anna, "the" first\u00e9', ["one", "tie"])
    path = tmp_path / f"judgments{suffix}"

    assert export_judgments(file, path) == 2

    text = path.read_text(encoding="utf-8")
    rows = (
        list(csv.DictReader(text.splitlines()))
        if suffix == ".csv"
        else [json.loads(line) for line in text.splitlines()]
    )
    assert [row["better"] for row in rows] == ["student@2", "tie"]
    assert {row["annotator"] for row in rows} == {'Anna, "the" firsté'}
    assert rows[0]["left"] in ("student@2", "student@0")
    assert math.isclose(float(rows[0]["seconds"]), 2.0)


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", '=HYPERLINK("http://x")'])
def test_name_is_no_formula_to_a_spreadsheet(tmp_path: Path, name: str) -> None:
    file = make_file(tmp_path)
    judge_all(file, name, ["one"])
    path = tmp_path / "judgments.csv"
    export_judgments(file, path)
    rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    assert [row["annotator"] for row in rows] == [f"'{name}"]


def test_places_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    file = make_file(tmp_path)
    judge_all(file, "Anna", ["one"])
    with pytest.raises(ConfigError, match=r"write a name that ends in \.csv or \.jsonl"):
        export_judgments(file, tmp_path / "judgments.xlsx")
    with pytest.raises(StoreError, match=r"cannot be written: No such file or directory"):
        export_pairs(file, tmp_path / "none" / "pairs.jsonl")
