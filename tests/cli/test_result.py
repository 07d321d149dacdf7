"""What a finished run shows."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from macpo.records import Message, Origin, Prompt, Response, write_answers
from macpo.report.result import accuracy_standard_error, metrics_table, print_result
from macpo.run_directory import MetricRow, PlannedPolicy, PlannedStage, RunDir, RunPlan
from macpo.runner import RunResult

ORIGIN = Origin("student/positive")


def made_run(folder: Path, before: list[str], after: list[str], pairs: int = 400) -> RunResult:
    """Write the answers and the evaluation of a run of two rounds."""
    run = RunDir(folder)
    prompts = [Prompt((Message("user", f"question {i}"),)) for i in range(len(before))]
    stages = []
    for key, texts in (("a" * 64, before), ("b" * 64, after)):
        speaker = {"agent": {"name": "student"}, "role": "positive", "weights": key}
        stage = PlannedStage("answers", "respond", key, {"policy": speaker, "split": "test"})
        stages.append(stage)
        answers = run.artifact(stage)
        answers.mkdir(parents=True)
        write_answers(
            answers,
            [(p, Response(p.id, t, ORIGIN)) for p, t in zip(prompts, texts, strict=True)],
        )
    policies = [
        PlannedPolicy("student", t, stage.key, ()) for t, stage in zip((0, 2), stages, strict=True)
    ]
    plan = RunPlan(tuple(stages), tuple(policies))
    run.plan_file.write_text(json.dumps(plan.to_json()), encoding="utf-8")
    metrics = [
        MetricRow(policy, t, "preference_accuracy", 0.5 + t / 10)
        for policy in ("student", "weak")
        for t in range(3)
    ]
    return RunResult(folder, metrics, pairs, {"student": run.final / "student"})


def printed(result: RunResult, width: int = 100) -> str:
    file = io.StringIO()
    print_result(result, Console(file=file, width=width))
    return file.getvalue()


def rows(rounds: int) -> list[dict[str, Any]]:
    return [
        {"policy": "student", "round": t, "metric": "preference_accuracy", "value": 0.5}
        for t in range(rounds + 1)
    ]


def shown_table(rounds: int, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(metrics_table(rows(rounds), 100, width))
    return file.getvalue()


def test_answers_of_a_model_are_never_acted_on(tmp_path: Path) -> None:
    hostile = "[red]not markup[/red] [/] \x1b[31mred\x1b[0m\x07\rover\nnext [link=http://x]l[/link]"

    out = printed(made_run(tmp_path, [hostile], ["\x1b]0;title\x07 fine \ud83d"]))

    assert "[red]not markup[/red] [/] red� over next [link=http://x]l[/link]" in out
    assert "round 2   fine �" in " ".join(out.split("\n")) or "fine �" in out
    assert not any(c in out for c in "\x1b\x07\r")


def test_answers_are_shortened_and_few(tmp_path: Path) -> None:
    out = printed(made_run(tmp_path, ["long " * 1000] * 9, ["short"] * 9))

    assert out.count("question") == 3
    assert out.count("…") == 3
    assert len(out) < 4000


def test_empty_answer_is_said_to_be_empty(tmp_path: Path) -> None:
    assert "before   (empty)" in printed(made_run(tmp_path, [" \n"], ["x"]))


def test_run_without_answers_shows_none(tmp_path: Path) -> None:
    metrics = [MetricRow("student", 0, "gold_perplexity", 12.0)]

    out = printed(RunResult(tmp_path, metrics, 10, {}))

    assert "gold perplexity" in out
    assert "preference accuracy" not in out
    assert "held-out prompts" not in out


def test_table_has_rounds_as_columns_and_says_what_it_is_worth(tmp_path: Path) -> None:
    out = printed(made_run(tmp_path, ["a"], ["b"], pairs=400))

    lines = out.splitlines()
    assert lines[2].split() == ["before", "round", "1", "round", "2"]
    student = next(line for line in lines if line.split()[:1] == ["student"])
    assert student.split() == ["student", "50.0", "%", "60.0", "%", "70.0", "%"]
    assert "on 400 held-out pairs; the standard error of an accuracy is up to 2.5 points" in (
        " ".join(out.split())
    )


def test_standard_error_is_that_of_a_fair_coin() -> None:
    # sqrt(0.5 * 0.5 / 100) = 0.05
    assert accuracy_standard_error(100) == pytest.approx(0.05)


def test_rounds_that_do_not_fit_are_left_out_and_counted() -> None:
    out = shown_table(rounds=20, width=80)

    # 80 columns less 19 for names leave 6 of 10: before, and the last five.
    assert [int(word) for word in out.split("\n")[1].split() if word.isdigit()] == [
        16,
        17,
        18,
        19,
        20,
    ]
    assert "15 rounds not shown, see metrics.jsonl" in " ".join(out.split())
    assert all(len(line) <= 80 for line in out.splitlines())


def test_all_rounds_that_fit_are_shown() -> None:
    assert "not shown" not in shown_table(rounds=5, width=80)
