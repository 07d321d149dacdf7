"""Reports for tests, made by hand: a run of three rounds with whatever texts are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from macpo.annotation.results import Agreement, Annotator, Results
from macpo.estimates import Estimate
from macpo.metrics import metric
from macpo.report.data import (
    Alert,
    Answer,
    Change,
    Curve,
    Failures,
    FilterExample,
    FilterRound,
    Invocation,
    Point,
    Provenance,
    RunReport,
    Series,
    Sign,
    Spread,
    StageRow,
    Tokens,
    TrainingLog,
    Transcript,
    Transcripts,
)

CALL = Invocation(
    "2026-01-31T12:00:00.000Z",
    "macpo run my.yaml",
    {"macpo": "0.1.0", "torch": "2.13.0"},
    {"host": "here", "processor": "a processor", "cores": 2, "memory_gib": 24.0, "system": "Linux"},
    "cpu",
)
MADE = Provenance("name: tiny\n", "name: tiny\nseed: 0\n", (CALL,), {}, {"source": "d"}, 0, "macpo")


def curve(name: str, *values: float, half: float | None = 0.05, of_answers: bool = True) -> Curve:
    """Return the student's curve, and a teacher's that stays at the first value."""
    points = tuple(Point(t, value, half) for t, value in enumerate(values))
    flat = tuple(Point(t, values[0]) for t in range(len(values)))
    return Curve(metric(name), (Series("student", points), Series("weak", flat)), of_answers)


def change(name: str, first: float, last: float, half: float | None, **fields: Any) -> Change:
    """Return a change of the student's, judged as the package judges it."""
    from macpo.report.pairing import verdict

    found = Estimate(last - first, half, 40)
    made = Change(
        metric(name),
        True,
        Point(0, first),
        Point(3, last),
        Point(3, last),
        found,
        verdict(metric(name), found),
    )
    return replace(made, **fields)


def run_report(**fields: Any) -> RunReport:
    """Return a finished run's report; `fields` take the place of what it has by default."""
    empty: Mapping[str, Any] = {
        "name": "tiny",
        "folder": "/runs/tiny",
        "state": "finished",
        "stages_done": 40,
        "stages_total": 40,
        "worked_seconds": 61.0,
        "last_stop": "",
        "rounds": 3,
        "student": "student",
        "agents": ("student", "weak"),
        "pairs": 40,
        "curves": (),
        "changes": (),
        "judgments": (),
        "filters": (),
        "logs": (),
        "signs": (),
        "checked": 0,
        "alerts": (),
        "failures": (),
        "stages": (),
        "cost": {"seconds": 61.0},
        "transcripts": Transcripts(),
        "provenance": MADE,
        "notes": (),
        "faults": (),
    }
    return RunReport(**{**empty, **fields})


def judged(**fields: Any) -> Results:
    """Return what two people's judgments come to; `fields` take the place of the defaults."""
    people = (
        Annotator("Anna", 20, 0.7, 4, 0.5, 6.0),
        Annotator("Bert", 10, 0.6, 0, None, None),
    )
    agreement = Agreement(10, 0.8, 0.61, {"Anna and Bert": 0.6}, None, 10)
    found = Results(
        path=Path("annotations/a.sqlite"),
        one="student@3",
        other="student@0",
        pairs=40,
        judged=20,
        judgments=30,
        wins=18,
        ties=4,
        losses=8,
        win_rate=2 / 3,
        half_width=0.12,
        win_rate_without_ties=18 / 26,
        half_width_without_ties=None,
        annotators=people,
        agreement=agreement,
    )
    return replace(found, **fields)


def report_saying(text: str) -> RunReport:
    """Return a report in which everything that anybody may have written is `text`."""
    answers = tuple(
        Answer(agent, t, text, False, 3, {"answer_tokens": 4.0})
        for agent in ("student", text)
        for t in (0, 3)
    )
    shown = (Transcript("a" * 16, (("user", text),), answers),)
    spread = Spread(text, 40, 20, (1.0, 2.0, 3.0, 4.0, 5.0), 2.5)
    example = FilterExample(text, ((text, 3.0, True, text),))
    made = replace(
        MADE,
        config=text,
        resolved=text,
        data={text: text},
        method=text,
        invocations=(replace(CALL, command=text, versions={text: text}),),
    )
    series = (Series("student", (Point(0, 0.5), Point(1, 0.6))), Series(text, (Point(0, 0.5),)))
    return run_report(
        name=text,
        folder=text,
        last_stop=text,
        agents=("student", text),
        curves=(
            Curve(metric("preference_accuracy"), series, True),
            Curve(metric(text), series, True),
        ),
        judgments=(
            judged(
                one=text,
                other=text,
                annotators=(Annotator(text, 20, 0.7, 4, 0.5, 6.0),),
                agreement=Agreement(10, 0.8, 0.61, {text: 0.6}, 0.6, 10),
            ),
        ),
        filters=(FilterRound(1, text, text, 40, (spread,), (example,)),),
        logs=(TrainingLog(text, "student", 1, (1, 2), {"loss": (1.0, 0.5)}),),
        signs=(Sign(text, 1, text, text, True),),
        checked=1,
        alerts=(Alert("2026", text, text),),
        failures=(Failures(text, 1, 2, ((text, 1),)),),
        stages=(StageRow(text, text, 1, 2.0, Tokens(1), text),),
        transcripts=Transcripts(shown, 1, {"random": (0,), text: (0,)}, metric(text), text),
        provenance=made,
        notes=(text,),
        faults=(text,),
    )
