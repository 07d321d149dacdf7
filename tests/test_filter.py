"""Mutual positives: who becomes `chosen`, who is left out, and what is recorded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macpo.errors import DataError
from macpo.filter import Candidate, FilteredPairs, best
from macpo.pairs import DirectPairs
from macpo.records import CompletionScore, Pair, Prompt, Response, read_jsonl, read_pairs
from macpo.store import Artifact
from tests.workbench import Workbench, Written, make_prompt, make_response

PROMPTS = [make_prompt(text) for text in ("Name a prime.", "Name a fruit.", "Say hello.")]


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def candidate(text: str, sum_logprob: float, tokens: int) -> Candidate:
    return Candidate(make_response(PROMPTS[0], text), CompletionScore(sum_logprob, tokens))


def texts(candidates: Sequence[Candidate]) -> list[str]:
    return [c.response.text for c in candidates]


def test_lowest_mean_per_token_wins() -> None:
    """Means of 2, 1.5 and 3 nats a token; the sums would prefer the short first, -4."""
    found = [candidate("short", -4, 2), candidate("long", -15, 10), candidate("odd", -9, 3)]
    assert texts(best(found, "perplexity", 1)) == ["long"]
    assert texts(best(found, "perplexity", 2)) == ["long", "short"]
    assert texts(best(found, "perplexity", 9)) == ["long", "short", "odd"]


def test_ties_go_to_the_earlier_candidate() -> None:
    found = [candidate("a", -9, 3), candidate("b", -4, 2), candidate("c", -2, 1)]
    assert texts(best(found, "perplexity", 3)) == ["b", "c", "a"]


def test_perplexities_beyond_floats_are_still_ordered() -> None:
    """exp(800) and exp(900) are both infinite; their logarithms are not."""
    found = [candidate("worse", -900, 1), candidate("bad", -800, 1)]
    assert {c.score.perplexity for c in found} == {math.inf}
    assert texts(best(found, "perplexity", 1)) == ["bad"]


def test_contrast_filters_compare_with_the_negative_policy() -> None:
    """Perplexity prefers "a" (1 nat a token against 2 and 2.5). log pi+ - log pi-: a -1, b 4 over 2
    tokens, c 6 over 6 tokens."""
    found = [
        Candidate(make_response(PROMPTS[0], text), CompletionScore(own, n), CompletionScore(bad, n))
        for text, own, bad, n in (("a", -2, -1, 2), ("b", -4, -8, 2), ("c", -15, -21, 6))
    ]
    assert texts(best(found, "perplexity", 1)) == ["a"]
    assert texts(best(found, "contrast-mean", 3)) == ["b", "c", "a"]
    assert texts(best(found, "contrast-sum", 3)) == ["c", "b", "a"]


def test_typical_answers_are_as_likely_as_own_ones() -> None:
    """Nats a token: 2, 1.5, .5 and 3; own answers have 1.6. Distances: .4, .1, 1.1, 1.4."""
    rows = [("plain", -4, 2), ("usual", -15, 10), ("easy", -1, 2), ("odd", -9, 3)]
    found = [replace(candidate(*row), usual=1.6) for row in rows]
    assert texts(best(found, "typical", 3)) == ["usual", "plain", "easy"]


def test_random_filter_goes_by_the_lot_alone() -> None:
    found = [replace(candidate("a", -1, 2), lot=0.2), replace(candidate("b", -9, 2), lot=0.7)]
    assert texts(best(found, "random", 2)) == ["b", "a"]


def test_nobody_wins_among_nobody() -> None:
    assert best([], "perplexity", 2) == []


@given(st.lists(st.tuples(st.integers(-50, 0), st.integers(1, 9)), max_size=8), st.integers(1, 9))
def test_winners_are_never_more_perplexing_than_losers(
    scores: list[tuple[int, int]], top_k: int
) -> None:
    found = [candidate(str(i), total, tokens) for i, (total, tokens) in enumerate(scores)]
    winners = best(found, "perplexity", top_k)
    assert len(winners) == min(top_k, len(found))
    means = [c.score.mean_nll for c in winners]
    losers = [c.score.mean_nll for c in found if c not in winners]
    assert means == sorted(means)
    assert max(means, default=-math.inf) <= min(losers, default=math.inf)


class Scene:
    """Answers of two teachers and of the student's negative policy, with made-up perplexities."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.scores: list[tuple[Response, CompletionScore]] = []

    def answers(self, policy: str, answers: Sequence[tuple[str, float | None]]) -> Written:
        """Write a policy's answers to `PROMPTS` with their mean nats; None: not scored."""
        given = []
        for prompt, (text, mean_nll) in zip(PROMPTS, answers, strict=False):
            response = make_response(prompt, text, policy)
            given.append((prompt, response))
            if mean_nll is not None:
                self.scores.append((response, CompletionScore(-4 * mean_nll, 4)))
        return self.bench.write_answers(policy, given)

    def filtered(self, positives: Sequence[Written], negatives: Written, top_k: int) -> Artifact:
        scores = self.bench.write_scores("scores", self.scores)
        stage = FilteredPairs("pairs", tuple(positives), negatives, scores, top_k)
        return self.bench.run(stage)


def told(pairs: Sequence[Pair]) -> list[tuple[str, str, str]]:
    """Return prompt, chosen and rejected of each pair, as text."""
    return [(p.prompt.messages[0].content, p.chosen.text, p.rejected.text) for p in pairs]


def test_student_contrasts_the_least_perplexing_answer_with_its_own_negative(
    bench: Workbench,
) -> None:
    scene = Scene(bench)
    a = scene.answers("a/positive", [("Two", 1.0), ("Fig", 3.0), ("Hi", 2.0)])
    b = scene.answers("b/positive", [("Three", 2.0), ("Plum", 1.0), ("Hey", 2.0)])
    bad = scene.answers("student/negative", [("Four", 0.1), ("Nail", 0.1), ("Bye", 0.1)])
    made = scene.filtered([a, b], bad, top_k=1)
    pairs = read_pairs(made.path)
    assert told(pairs) == [
        ("Name a prime.", "Two", "Four"),
        ("Name a fruit.", "Plum", "Nail"),
        ("Say hello.", "Hi", "Bye"),  # a tie: the teacher that stands first
    ]
    assert [pair.chosen.origin.policy for pair in pairs] == [
        "a/positive",
        "b/positive",
        "a/positive",
    ]
    assert made.meta == {
        "pairs": 3,
        "prompts_without_pair": 0,
        "wins": {"a/positive": 2, "b/positive": 1},
    }


def test_filter_records_every_candidate_and_who_won(bench: Workbench) -> None:
    scene = Scene(bench)
    a = scene.answers("a/positive", [("Two", 1.0), ("Fig", 800.0)])
    b = scene.answers("b/positive", [("Three", 0.5), ("Plum", 900.0)])
    bad = scene.answers("student/negative", [("Four", 0.1), ("Nail", 0.1)])
    made = scene.filtered([a, b], bad, top_k=1)
    rows = list(read_jsonl(made.path / "filter.jsonl"))
    assert [row["prompt_id"] for row in rows] == [PROMPTS[0].id, PROMPTS[1].id]
    first, second = (row["candidates"] for row in rows)
    assert [(c["policy"], c["text"], c["won"]) for c in first] == [
        ("a/positive", "Two", False),
        ("b/positive", "Three", True),
    ]
    assert [c["perplexity"] for c in first] == pytest.approx([math.e, math.e**0.5])
    assert {c["tokens"] for c in first} == {4}
    assert [c["perplexity"] for c in second] == [1e308, 1e308]  # JSON knows no infinity
    assert [c["won"] for c in second] == [True, False]


def test_top_k_makes_that_many_pairs_per_prompt(bench: Workbench) -> None:
    scene = Scene(bench)
    a = scene.answers("a/positive", [("Two", 3.0), ("Fig", 1.0)])
    b = scene.answers("b/positive", [("Three", 2.0), ("", None)])
    c = scene.answers("c/positive", [("Five", 1.0), ("Pear", 2.0)])
    bad = scene.answers("student/negative", [("Four", 0.1), ("Nail", 0.1)])
    made = scene.filtered([a, b, c], bad, top_k=2)
    assert [chosen for _, chosen, _ in told(read_pairs(made.path))] == [
        "Five",
        "Three",
        "Fig",
        "Pear",
    ]
    assert made.meta["wins"] == {"a/positive": 1, "b/positive": 1, "c/positive": 2}


def test_empty_answers_give_no_pair_and_are_counted(bench: Workbench) -> None:
    """Prompt 0: one teacher silent; 1: both; 2: the negative. Blanks alone are silence."""
    scene = Scene(bench)
    a = scene.answers("a/positive", [("", None), (" \n", None), ("Hi", 2.0)])
    b = scene.answers("b/positive", [("Three", 2.0), ("", None), ("Hey", 1.0)])
    bad = scene.answers("student/negative", [("Four", 0.1), ("Nail", 0.1), ("  ", None)])
    made = scene.filtered([a, b], bad, top_k=1)
    assert told(read_pairs(made.path)) == [("Name a prime.", "Three", "Four")]
    assert made.meta == {"pairs": 1, "prompts_without_pair": 2, "wins": {"b/positive": 1}}
    rows = list(read_jsonl(made.path / "filter.jsonl"))
    assert [[c["won"] for c in row["candidates"]] for row in rows] == [[True], [], [False, False]]


def test_typical_measures_by_the_mean_over_all_own_answers(bench: Workbench) -> None:
    """Own answers of 1, 3 and 2 nats a token: 2 is usual."""
    scene = Scene(bench)
    a = scene.answers("a/positive", [("Two", 1.0), ("Fig", 1.9), ("Hi", 2.6)])
    b = scene.answers("b/positive", [("Three", 2.5), ("Plum", 1.0), ("Hey", 1.5)])
    bad = scene.answers("student/negative", [("Four", 9.0), ("Nail", 9.0), ("Bye", 9.0)])
    usual = scene.answers("student/positive", [("One", 1.0), ("Pear", 3.0), ("Good", 2.0)])
    scores = bench.write_scores("scores", scene.scores)
    stage = FilteredPairs("pairs", (a, b), bad, scores, 1, "typical", usual=usual)
    made = bench.run(stage)
    assert [chosen for _, chosen, _ in told(read_pairs(made.path))] == ["Three", "Fig", "Hey"]
    silent = scene.answers("student/mute", [("", None)] * 3)
    mute = replace(stage, usual=silent)
    with pytest.raises(DataError, match="all empty, so that filter: typical has nothing"):
        bench.run(mute)


def test_lots_are_drawn_by_seed_and_prompt_and_favour_nobody(bench: Workbench) -> None:
    """Of 400 prompts each of two teachers wins 200 +- 10; 150 to 250 is five times that."""
    prompts = [make_prompt(f"Name prime {i}.") for i in range(400)]

    def said(policy: str) -> tuple[Written, list[Response]]:
        made = [make_response(prompt, "Two", policy) for prompt in prompts]
        return bench.write_answers(policy, list(zip(prompts, made, strict=True))), made

    (a, of_a), (b, of_b), (bad, _) = map(said, ("a/positive", "b/positive", "student/negative"))
    scored = [(r, CompletionScore(-1.0, 1)) for r in (*of_a, *of_b)]
    scores = bench.write_scores("scores", scored)

    def winners(seed: int) -> list[str]:
        stage = FilteredPairs("pairs", (a, b), bad, scores, 1, "random", seed=seed)
        return [pair.chosen.origin.policy for pair in read_pairs(bench.run(stage).path)]

    assert 150 < winners(0).count("a/positive") < 250
    assert winners(0) == winners(0) != winners(1)


NONE_LEFT = (
    "none of 2 prompts gave a pair: on each, the positives or the negative were empty. Read the "
    "responses; more SFT epochs or another chat_template may be needed"
)


def test_filter_that_leaves_nothing_is_an_error(bench: Workbench) -> None:
    scene = Scene(bench)
    a = scene.answers("a/positive", [("", None), ("Fig", 1.0)])
    bad = scene.answers("student/negative", [("Four", 0.1), ("", None)])
    with pytest.raises(DataError) as raised:
        scene.filtered([a], bad, top_k=1)
    assert str(raised.value) == NONE_LEFT


def given_answers(
    bench: Workbench, policy: str, answers: Sequence[str], prompts: Sequence[Prompt] = PROMPTS
) -> tuple[Written, list[Response]]:
    responses = [make_response(p, t, policy) for p, t in zip(prompts, answers, strict=False)]
    return bench.write_answers(policy, list(zip(prompts, responses, strict=False))), responses


def test_teacher_takes_the_students_answer_as_it_is(bench: Workbench) -> None:
    student, chosen = given_answers(bench, "student/positive", ["Two", "Plum", "Hi"])
    negative, rejected = given_answers(bench, "a/negative", ["Four", "Nail", "Bye"])
    made = bench.run(DirectPairs("pairs", student, negative))
    expected = [Pair(*row) for row in zip(PROMPTS, chosen, rejected, strict=True)]
    assert read_pairs(made.path) == expected
    assert made.meta == {"pairs": 3, "prompts_without_pair": 0}


def test_teacher_skips_and_counts_empty_answers(bench: Workbench) -> None:
    student, _ = given_answers(bench, "student/positive", ["Two", " ", "Hi"])
    negative, _ = given_answers(bench, "a/negative", ["", "Nail", "Bye"])
    made = bench.run(DirectPairs("pairs", student, negative))
    assert told(read_pairs(made.path)) == [("Say hello.", "Hi", "Bye")]
    assert made.meta == {"pairs": 1, "prompts_without_pair": 2}


def test_teacher_without_any_pair_is_an_error(bench: Workbench) -> None:
    student, _ = given_answers(bench, "student/positive", ["Two", ""])
    negative, _ = given_answers(bench, "a/negative", ["", "Nail"])
    with pytest.raises(DataError) as raised:
        bench.run(DirectPairs("pairs", student, negative))
    assert str(raised.value) == NONE_LEFT
