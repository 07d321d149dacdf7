"""The answer at the top: never more than was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from macpo.report.data import Alert, Change, Point, Sign
from macpo.report.headline import headline
from tests.report.pages import change, run_report

RISEN = change("preference_accuracy", 0.5, 0.7, 0.1)
FALLEN = change("oracle_score", 0.7, 0.5, 0.1)
UNSURE = change("preference_accuracy", 0.5, 0.55, 0.1)
UNKNOWN = change("gold_perplexity", 30.0, 29.0, None)
LONGER = change("answer_tokens", 30.0, 40.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "tone", "title"),
    [
        ((RISEN,), "good", "Yes: the student improved in preference accuracy."),
        ((FALLEN,), "bad", "No: the student got worse in score (oracle)."),
        (
            (RISEN, FALLEN),
            "mixed",
            "Mixed: preference accuracy improved, score (oracle) got worse.",
        ),
        ((UNSURE,), "open", "It cannot be told: no change is larger than its uncertainty."),
        (
            (UNKNOWN,),
            "open",
            "It cannot be told: nothing was measured whose better side is known.",
        ),
        (
            (LONGER,),
            "open",
            "It cannot be told: nothing was measured whose better side is known.",
        ),
        ((), "open", "Nothing was measured that could tell."),
    ],
)
def test_answer_is_what_the_intervals_allow(
    changes: tuple[Change, ...], tone: str, title: str
) -> None:
    found = headline(run_report(changes=changes))
    assert (found.tone, found.title) == (tone, title)


def test_likelihoods_alone_are_not_trusted() -> None:
    of_texts = change("preference_accuracy", 0.5, 0.7, 0.1, of_answers=False)
    assert any("does not see answers that fall apart" in line for line in lines(of_texts))
    assert not any("fall apart" in line for line in lines(of_texts, FALLEN))


def test_sentence_names_three_metrics_at_most() -> None:
    names = ("preference_accuracy", "oracle_score", "oracle_helpfulness", "oracle_virtues")
    found = headline(run_report(changes=tuple(change(name, 0.5, 0.7, 0.1) for name in names)))
    assert found.title == (
        "Yes: the student improved in preference accuracy, score (oracle) and 2 more."
    )


def test_what_policies_say_comes_before_how_they_find_given_texts() -> None:
    of_texts = change("preference_accuracy", 0.5, 0.7, 0.1, of_answers=False)
    found = headline(run_report(changes=(of_texts, FALLEN)))
    assert [c.metric.name for c in found.changes] == ["oracle_score", "preference_accuracy"]


def test_best_round_that_is_not_the_last_is_told() -> None:
    found = lines(change("preference_accuracy", 0.5, 0.7, 0.1, best=Point(2, 0.75)))
    assert "Its best preference accuracy was 75.0 %, after round 2, not at the end." in found


def test_run_that_goes_on_and_alerts_are_told() -> None:
    report = run_report(
        state="stopped", stages_done=3, stages_total=9, alerts=(Alert("", "student: copying", ""),)
    )
    found = headline(report)
    assert found.title.startswith("Too early to tell")
    assert "The run has not finished: 3 of 9 stages are done." in found.lines[0]
    assert "Warned during the run: student: copying." in found.lines


def test_signs_of_collapse_qualify_an_improvement() -> None:
    sign = Sign("student", 2, "copying", "copying from the prompt 41 %, 3 % in round 0", True)
    found = headline(run_report(changes=(RISEN,), signs=(sign,)))
    assert found.title == "Mixed: preference accuracy improved, but there are signs of collapse."
    assert any("after round 2: copying from the prompt 41 %" in line for line in found.lines)
    warned = headline(run_report(changes=(RISEN,), signs=(replace(sign, ends=False),)))
    assert warned.tone == "good"


def lines(*changes: Change) -> tuple[str, ...]:
    """Return what is said under the answer."""
    return headline(run_report(changes=changes)).lines
