"""The sweep of faults itself, short; `make faults` tries thousands."""

from __future__ import annotations

import json
import time

import pytest

from macpo import run_status
from macpo.errors import DataError
from tests.faults import outcomes
from tests.faults.__main__ import main
from tests.faults.outcomes import Fault, Silent, outcome
from tests.faults.sweep import KINDS
from tests.runs import FinishedRun
from tests.test_resume import digests


def test_some_faults_of_every_kind_end_in_an_answer_or_in_one_line(
    copied: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(copied.folder)
    assert main(["--points", "200", "--seed", "7"], copied.folder) == 0
    *lines, summary = capsys.readouterr().out.splitlines()
    told = json.loads(summary)
    cached = "where it is cached"
    always = sum(2 * share for title, (_, share) in KINDS.items() if cached not in title)
    assert told["points"] in (always, always + 20)
    assert told["answer"] + told["one_line"] == told["points"]
    assert told["traceback"] == told["hang"] == told["silent"] == 0
    assert len(lines) == 2 + len(KINDS)
    assert digests(copied.folder) == before


def test_outcomes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: BaseException) -> Fault:
        def ask() -> None:
            raise error

        return ask

    monkeypatch.setattr(outcomes, "SECONDS", 0.05)
    assert outcome(lambda: None)[0] == "answer"
    assert outcome(raising(DataError("one line")))[0] == "one line"
    assert outcome(raising(DataError("two\nlines")))[0] == "traceback"
    assert outcome(raising(KeyError("x"))) == ("traceback", "KeyError: 'x'")
    assert outcome(raising(Silent("a file")))[0] == "silent"
    assert outcome(lambda: time.sleep(5))[0] == "hang"


def test_damage_that_nobody_looks_for_is_silent(
    copied: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_status, "verify", lambda *given, **more: None)
    assert main(["--points", "40"], copied.folder) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["silent"] > 0
