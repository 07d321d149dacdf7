"""What a run shows while it goes on."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from macpo.report.console import (
    HEARTBEAT_SECONDS,
    ConsoleObserver,
    Pace,
    running_numbers,
    telling_numbers,
    to_come_line,
)
from macpo.store import Artifact


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def stage(name: str, kind: str = "sft") -> Any:
    return SimpleNamespace(name=name, kind=kind)


def artifact(kind: str = "sft", **meta: Any) -> Artifact:
    return Artifact(kind, "0" * 64, Path("store"), "0" * 64, {}, meta)


def in_a_log() -> tuple[io.StringIO, Clock, ConsoleObserver]:
    """Return a log file, a clock, and an observer that writes there."""
    file, clock = io.StringIO(), Clock()
    return file, clock, ConsoleObserver(Console(file=file), clock)


def test_log_has_one_plain_line_for_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in CI
    file, clock, observer = in_a_log()

    with observer:
        for number in (1, 2):
            observer.stage_started(stage(f"init/weak-{number}/positive"), number, 2)
            for step in range(10):
                clock.now += 1
                observer.stage_progress(stage("x"), step + 1, 10, loss=1.0)
            observer.stage_finished(
                stage(f"init/weak-{number}/positive"), 10.0, artifact(steps=10, loss=1.234)
            )

    assert file.getvalue() == (
        "init/weak-1/positive                    10 s  10 steps, loss 1.23\n"
        "init/weak-2/positive                    10 s  10 steps, loss 1.23\n"
    )


def test_long_stage_in_a_log_is_heard_of_once_a_minute() -> None:
    file, clock, observer = in_a_log()

    with observer:
        observer.stage_started(stage("round-1/student/train"), 1, 1)
        for step in range(600):
            clock.now += 0.5
            observer.stage_progress(
                stage("round-1/student/train"), step + 1, 1200, loss=0.5, tokens_per_second=1234.0
            )

    lines = file.getvalue().splitlines()
    assert len(lines) == 300 / HEARTBEAT_SECONDS
    assert lines[0] == (
        "  round-1/student/train: 120 of 1,200, loss 0.5, 1.23k tokens/s, 9 min 00 s left"
    )


def test_found_stages_are_summed_up_before_the_first_that_runs() -> None:
    file, _, observer = in_a_log()

    with observer:
        for number in range(12):
            observer.stage_found(stage(f"s{number}"), artifact())
        observer.stage_started(stage("new"), 13, 40)
        observer.stage_finished(stage("new"), 1.0, artifact(steps=1))
        observer.stage_found(stage("later"), artifact())

    lines = file.getvalue().splitlines()
    assert lines[0] == "12 of 40 stages were done already"
    assert lines[1].startswith("new ")
    assert lines[2:] == ["1 more stage was done already"]


def test_all_found_says_so() -> None:
    file, _, observer = in_a_log()

    with observer:
        for number in range(3):
            observer.stage_found(stage(f"s{number}"), artifact())

    assert file.getvalue() == "all 3 stages were done already\n"


def test_found_stages_before_an_error_are_not_called_all() -> None:
    file, _, observer = in_a_log()

    def fail() -> None:
        with observer:
            observer.stage_found(stage("data"), artifact())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert file.getvalue() == "1 stage was done already\n"


def test_note_is_plain_text_on_one_line() -> None:
    file, _, observer = in_a_log()

    observer.note("[red]odd[/red]\x1b[31m file\nname\x07")

    assert file.getvalue() == "note: [red]odd[/red] file name�\n"


def test_alert_stands_out_in_a_log() -> None:
    file, _, observer = in_a_log()

    observer.alert("student, round 2: repetition", "41 % of 4-grams repeat\x1b[2J; read answers")

    assert file.getvalue() == (
        "ALERT: student, round 2: repetition: 41 % of 4-grams repeat; read answers\n"
    )


def test_log_that_cannot_be_written_does_not_end_the_run() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    observer = ConsoleObserver(Console(file=Full()))

    observer.note("lost")
    observer.stage_finished(stage("data"), 1.0, artifact(steps=1))


def test_terminal_shows_a_bar_and_keeps_finished_lines() -> None:
    file, clock = Terminal(), Clock()
    console = Console(file=file, force_terminal=True, width=120, color_system=None)

    with ConsoleObserver(console, clock) as observer:
        observer.stage_started(stage("round-1/student/train"), 13, 40)
        observer.stage_progress(stage("round-1/student/train"), 1, 8, loss=0.7)
        clock.now += 10
        observer.stage_progress(
            stage("round-1/student/train"), 3, 8, loss=0.5, margin=0.1, tokens_per_second=900.0
        )
        observer._bar._progress.refresh()  # type: ignore[union-attr]
        observer.stage_finished(stage("round-1/student/train"), 12.0, artifact(steps=8, loss=0.4))

    shown = file.getvalue()
    assert "3 of 8, loss 0.5, margin 0.1, 900 tokens/s, 25 s left" in shown
    assert "12 of 40" in shown
    assert "round-1/student/train                   12 s  8 steps, loss 0.4" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor comes back


def test_terminal_shows_the_stages_to_come() -> None:
    file = Terminal()
    console = Console(file=file, force_terminal=True, width=60, color_system=None)

    with ConsoleObserver(console, Clock()) as observer:
        observer.planned([stage(f"round-1/s{number}") for number in range(1, 13)])
        observer.stage_started(stage("round-1/s2"), 2, 12)
        observer._bar._progress.refresh()  # type: ignore[union-attr]

    assert "to come: round-1/s3, round-1/s4, round-1/s5 and 7 more" in file.getvalue()


def test_terminal_shows_all_stages_that_run_side_by_side() -> None:
    file = Terminal()
    console = Console(file=file, force_terminal=True, width=120, color_system=None)
    plan = [stage(f"s{number}") for number in range(1, 6)]

    with ConsoleObserver(console, Clock()) as observer:
        observer.planned(plan)
        observer.stage_found(plan[0], artifact())
        for number in (3, 2):
            observer.stage_started(plan[number - 1], number, 5)
        observer.stage_progress(plan[1], 1, 8, loss=0.5)
        observer.stage_progress(plan[2], 7, 9, loss=0.25)
        observer._bar._progress.refresh()  # type: ignore[union-attr]
        both = file.getvalue()
        observer.stage_finished(plan[2], 1.0, artifact(steps=9))
        file.truncate(0)
        observer._bar._progress.refresh()  # type: ignore[union-attr]
        one = file.getvalue()

    assert "1 of 8, loss 0.5" in both
    assert "7 of 9, loss 0.25" in both
    assert "1 of 5" in both
    assert "to come: s4, s5" in both
    assert "1 of 8, loss 0.5" in one
    assert "7 of 9" not in one


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (80, "to come: a/b, round-1/c, d"),
        (26, "to come: a/b and 2 more"),
        (17, "to come: a/b and"),
    ],
)
def test_stages_to_come_fit_on_a_line(width: int, line: str) -> None:
    assert to_come_line(["a/b", "round-1/c", "d"], width) == line


def test_terminal_gets_no_markup_from_names() -> None:
    file = Terminal()
    console = Console(file=file, force_terminal=True, width=120, color_system="truecolor")

    observer = ConsoleObserver(console)
    observer.note("[bold red]x[/bold red] [/]")

    assert "[bold red]x[/bold red] [/]" in file.getvalue()


def test_pace_is_measured_from_the_first_report() -> None:
    clock = Clock()
    pace = Pace(clock)

    clock.now = 100.0  # loading
    pace.update(50, 100)  # resumed in the middle
    assert pace.seconds_left is None
    clock.now = 110.0
    pace.update(60, 100)
    assert pace.seconds_left == pytest.approx(40.0)


def test_running_numbers_skip_what_is_no_number() -> None:
    fields = {"loss": "nan", "margin": 0.25, "tokens_per_second": 5400.0, "other": 1}

    assert running_numbers(fields, None) == "margin 0.25, 5.4k tokens/s"


@pytest.mark.parametrize(
    ("kind", "meta", "shown"),
    [
        (
            "data",
            {"pairs": {"teacher": 5000, "student": 48}, "prompts_too_long": 1},
            "pairs: teacher 5,000, student 48; 1 prompt too long",
        ),
        (
            "dpo",
            {"examples": 8, "steps": 1, "loss": 0.7, "dpo_loss": 0.6, "margin": -0.01},
            "1 step, loss 0.7, margin -0.01",
        ),
        (
            "respond",
            {"responses": 4, "tokens": 100, "empty": 1, "finished": 3},
            "4 answers, 25 tokens each, 75% finished, 1 empty, 50 tokens/s",
        ),
        ("score", {"scored": 24, "empty": 0}, "24 answers"),
        ("score", {"scored": 24, "empty": 2}, "24 answers, 2 empty"),
        (
            "pairs",
            {
                "pairs": 7,
                "prompts_without_pair": 1,
                "wins": {"weak-a/positive": 5, "weak-b/positive": 2},
            },
            "7 pairs, 1 prompt without one, chosen from weak-a 5, weak-b 2",
        ),
        (
            "pairs",
            {
                **{"pairs": 7, "prompts_without_pair": 0, "candidates": 16, "refused": 3},
                **{"reasons": {"copying": 1, "repetition": 2}, "own_rejected": 2},
            },
            "7 pairs, 3 of 16 candidates refused (copying 1, repetition 2), 2 against a refused "
            "answer of its own",
        ),
        ("guard", {"candidates": 1, "refused": 0, "reasons": {}}, "0 of 1 candidate refused"),
        (
            "evaluate",
            {"preference_accuracy": 0.625, "gold_perplexity": 12.3456},
            "preference accuracy 62.5 %, gold perplexity 12.35",
        ),
        ("other", {"a": 1, "b": 0.25, "c": "text"}, "a 1, b 0.25"),
    ],
)
def test_finished_stage_tells_its_numbers(kind: str, meta: dict[str, Any], shown: str) -> None:
    assert telling_numbers(kind, meta, 2.0) == shown
