"""Twins as judges: what their log-ratios count, what is chosen by them, and the data's answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from macpo.data.stages import UnlabelledAnswers
from macpo.judging import Aggregate, BestAnswers, LogRatios
from macpo.records import (
    CompletionScore,
    PreferenceExample,
    read_answers,
    read_judgements,
    read_prompts,
    read_responses,
    write_judgements,
)
from tests.workbench import Workbench, Written, make_prompt, make_response

FIRST, SECOND = make_prompt("Name a prime."), make_prompt("Name a fruit.")
SEVEN, FOUR = make_response(FIRST, "Seven"), make_response(FIRST, "Four")
PEAR, NOTHING = make_response(SECOND, "Pear"), make_response(SECOND, " ")


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def two_answers(bench: Workbench) -> tuple[Written, Written]:
    """Return two answers to each prompt; the second one's second says nothing."""
    return (
        bench.write_answers("a", [(FIRST, SEVEN), (SECOND, PEAR)]),
        bench.write_answers("b", [(FIRST, FOUR), (SECOND, NOTHING)]),
    )


def scores(bench: Workbench, label: str, nats: Sequence[float]) -> Written:
    """Return a policy's sums of log-probabilities of Seven, Four and Pear."""
    responses = (SEVEN, FOUR, PEAR)
    scored = [(r, CompletionScore(n, 3)) for r, n in zip(responses, nats, strict=True)]
    return bench.write_scores(label, scored)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [("mean", [1.25, -0.5, 0.0]), ("min", [0.5, -2.0, 0.0])],
)
def test_log_ratio_is_weighed_and_then_combined(
    bench: Workbench, aggregate: Aggregate, expected: list[float]
) -> None:
    """Seven, Four, Pear.

    twins 1, weight 0.5: 0.5 * (-4 - -8, -8 - -4, -5 - -5) = 2, -2, 0
    twins 2, weight 1: (-2 - -2.5, -2 - -3, -1 - -1) = 0.5, 1, 0
    mean: 1.25, -0.5, 0; least: 0.5, -2, 0
    """
    ours = scores(bench, "p1", (-4, -8, -5)), scores(bench, "p2", (-2, -2, -1))
    theirs = scores(bench, "q1", (-8, -4, -5)), scores(bench, "q2", (-2.5, -3, -1))
    stage = LogRatios("r", two_answers(bench), ours, theirs, (0.5, 1.0), aggregate)
    found = read_judgements(bench.run(stage).path)
    assert found.keys() == {SEVEN.id, FOUR.id, PEAR.id}
    assert [found[r.id] for r in (SEVEN, FOUR, PEAR)] == pytest.approx(expected)


def test_best_answer_is_kept_and_one_that_says_nothing_only_if_there_is_no_other(
    bench: Workbench,
) -> None:
    """Four is judged higher than Seven; Pear's is below nought, and still better than nothing."""
    rows = [(SEVEN, 1.0), (FOUR, 2.0), (PEAR, -3.0)]
    judged = bench.commit("j", lambda folder: write_judgements(folder, rows))
    a, b = two_answers(bench)
    made = bench.run(BestAnswers("best", (b, a), judged))
    assert [response.text for response in read_responses(made.path)] == ["Four", "Pear"]
    assert read_prompts(made.path) == [FIRST, SECOND]
    empty = bench.write_answers("c", [(FIRST, make_response(FIRST, "")), (SECOND, NOTHING)])
    alone = bench.run(BestAnswers("best", (empty, empty), judged))
    assert alone.meta["empty"] == alone.meta["responses"] == 2


def test_unlabelled_answers_are_both_of_each_pair_in_an_order_that_tells_nothing(
    bench: Workbench,
) -> None:
    prompts = [make_prompt(f"Question {n}?") for n in range(40)]
    straight = [PreferenceExample(p, "Yes, gladly.", "No, never.") for p in prompts]
    turned = [PreferenceExample(p, "No, never.", "Yes, gladly.") for p in prompts]
    orders = []
    for label, examples in (("straight", straight), ("turned", turned)):
        data = bench.write_examples(label, "student", examples)
        found = [
            read_answers(bench.run(UnlabelledAnswers(f"{label}-{n}", data, "student", n)).path)
            for n in (0, 1)
        ]
        assert [[prompt for prompt, _ in answers] for answers in found] == [prompts] * 2
        texts = [tuple(r.text for _, r in both) for both in zip(*found, strict=True)]
        assert all(set(both) == {"Yes, gladly.", "No, never."} for both in texts)
        orders.append(texts)
    assert orders[0] == orders[1]  # whichever is chosen
    first = [both[0] for both in orders[0]]
    assert 10 < first.count("Yes, gladly.") < 30
