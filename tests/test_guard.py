"""The guard: where its limits come from, what it refuses, and what becomes of that in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from macpo.agents import Agent
from macpo.errors import DataError
from macpo.evaluation.pairs import MeasurePairs
from macpo.filter import FilteredPairs
from macpo.guard import Form, Guard, SetLimits, form_of, read_refusals
from macpo.pairs import DirectPairs, JoinedPairs, ReplayedPairs, chosen_in
from macpo.records import CompletionScore, Response, read_jsonl, read_pairs
from macpo.store import Artifact
from tests.workbench import Workbench, Written, make_agent, make_prompt, make_response

PROMPTS = [make_prompt(f"Please say number {i} aloud now.") for i in range(4)]
GOOD, CUT = "All is well.", "all is"
LOOP = "No no no no no no no no."
PARROT = "Please say number 1 aloud now."


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def answers(bench: Workbench, policy: str, texts: Sequence[str]) -> tuple[Written, list[Response]]:
    """Write answers to the first prompts; `CUT` did not end by itself."""
    made = []
    for prompt, text in zip(PROMPTS, texts, strict=False):
        made.append(replace(make_response(prompt, text, policy), finished=text != CUT))
    asked = PROMPTS[: len(made)]
    return bench.write_answers(policy, list(zip(asked, made, strict=True))), made


def limits(bench: Workbench, stage: Written | None = None, **given: Any) -> SetLimits:
    """Set limits by the answers of a stage, but for those that are given."""
    measured: tuple[Any, ...] = ((), ()) if stage is None else ((make_agent(),), (stage,))
    made = SetLimits("limits", *measured, given.pop("quantile", 0.9), **given)
    bench.run(made)
    return made


STRICT = {"unfinished": False, "repetition": 0.05, "sentences": 0.0, "copying": 0.9}


def guarded(bench: Workbench, *stages: Written) -> Guard:
    made = Guard("guard", limits(bench, **STRICT), (make_agent(),) * len(stages), stages)
    bench.run(made)
    return made


def test_form_is_measured_in_words_and_sentences() -> None:
    """8 words have six 3-grams, of which "no no no" comes back four times; "No" begins another."""
    prompt = PROMPTS[1]
    assert form_of(make_response(prompt, LOOP), "") == Form(0.0, 3 / 6, 0.0, 0.0)
    assert form_of(make_response(prompt, "Stop. Stop."), "") == Form(0.0, 0.0, 1 / 2, 0.0)
    assert form_of(make_response(prompt, PARROT), f"user {PARROT} assistant").copying == 1.0
    assert form_of(replace(make_response(prompt, "a"), finished=False), "a").unfinished == 1.0


def test_refused_is_what_is_above_a_limit_and_not_what_is_at_it() -> None:
    most = Form(unfinished=0.0, repetition=0.1, sentences=0.2, copying=0.3)
    assert Form(0.0, 0.1, 0.2, 0.3).over(most) == ()
    assert Form(1.0, 0.2, 0.2, 0.31).over(most) == ("unfinished", "repetition", "copying")


def test_limits_are_quantiles_of_the_answers_given(bench: Workbench) -> None:
    """Of four answers the median lies between the second and the third: (0 + 1/2) / 2."""
    stage, _ = answers(bench, "a/positive", [GOOD, "Yes.", "Go. Go.", "Go. Go."])
    found = bench.run(limits(bench, stage, quantile=0.5)).meta
    assert found == {"unfinished": 0.0, "repetition": 0.05, "sentences": 0.25, "copying": 0.25}


def test_limit_that_is_given_is_not_measured(bench: Workbench) -> None:
    stage, _ = answers(bench, "a/positive", [LOOP] * 4)
    found = bench.run(limits(bench, stage, repetition=0.3, copying=0.0)).meta
    assert (found["repetition"], found["copying"]) == (0.3, 0.0)
    assert bench.run(limits(bench, **STRICT)).meta == {**STRICT, "unfinished": 0.0}


def test_unfinished_answers_pass_where_many_were_unfinished_before(bench: Workbench) -> None:
    some, _ = answers(bench, "a/positive", [GOOD, GOOD, GOOD, CUT])
    assert bench.run(limits(bench, some, quantile=0.5)).meta["unfinished"] == 0.0
    most, _ = answers(bench, "b/positive", [GOOD, CUT, CUT, CUT])
    assert bench.run(limits(bench, most, quantile=0.5)).meta["unfinished"] == 1.0
    assert bench.run(limits(bench, most, unfinished=True)).meta["unfinished"] == 1.0


def test_silence_sets_no_limit_and_is_not_looked_at(bench: Workbench) -> None:
    stage, _ = answers(bench, "a/positive", ["", " ", "Go. Go.", "Go. Go."])
    assert bench.run(limits(bench, stage, quantile=0.1)).meta["sentences"] == 0.5
    assert bench.run(guarded(bench, stage)).meta["candidates"] == 2


def test_guard_counts_what_it_refuses_by_reason(bench: Workbench) -> None:
    a, _ = answers(bench, "a/positive", [GOOD, PARROT, LOOP, CUT])
    b, said = answers(bench, "b/positive", [GOOD, f"{PARROT} {PARROT}"])
    stage = guarded(bench, a, b)
    made = bench.run(stage)
    assert made.meta == {
        "candidates": 6,
        "refused": 4,
        "reasons": {"copying": 1, "repetition": 2, "sentences": 1, "unfinished": 1},
    }
    assert read_refusals(made.path)[said[1].id] == ("repetition", "sentences")
    rows = list(read_jsonl(made.path / "guard.jsonl"))
    assert [row["refused"] for row in rows[:4]] == [[], ["copying"], ["repetition"], ["unfinished"]]


def test_system_prompt_of_the_template_counts_as_prompt(bench: Workbench, tmp_path: Path) -> None:
    """Nobody asked "You are kind and brief."; the model saw it all the same."""
    template = tmp_path / "kind.jinja"
    template.write_text(
        "You are kind and brief.\n{% for m in messages %}{{ m.role }}: {{ m.content }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
        encoding="utf-8",
    )
    stage, _ = answers(bench, "a/positive", ["You are kind and brief."])

    def refused(reader: Agent) -> int:
        return bench.run(Guard("guard", limits(bench, **STRICT), (reader,), (stage,))).meta[
            "refused"
        ]

    assert refused(make_agent(chat_template=str(template))) == 1
    assert refused(make_agent()) == 0


def filtered(
    bench: Workbench,
    positives: Sequence[tuple[Written, list[Response]]],
    negative: Written,
    own: Written | None = None,
) -> Artifact:
    """Pair answers, of which the filter prefers the earlier policies'; own answers are guarded."""
    scores = [
        (response, CompletionScore(-float(place + 1), 1))
        for place, (_, said) in enumerate(positives)
        for response in said
    ]
    stages = tuple(stage for stage, _ in positives)
    guard = guarded(bench, *stages, *(() if own is None else (own,)))
    written = bench.write_scores("scores", scores)
    return bench.run(FilteredPairs("pairs", stages, negative, written, 1, guard=guard, own=own))


def told(made: Artifact) -> list[tuple[str, str]]:
    return [(pair.chosen.text, pair.rejected.text) for pair in read_pairs(made.path)]


def test_refused_candidates_are_not_chosen_however_likely(bench: Workbench) -> None:
    a = answers(bench, "a/positive", [GOOD, PARROT, LOOP, CUT])
    b = answers(bench, "b/positive", ["Fine.", "So be it.", "Right.", LOOP])
    negative, _ = answers(bench, "student/negative", ["Bad."] * 4)
    made = filtered(bench, [a, b], negative)
    assert told(made) == [(GOOD, "Bad."), ("So be it.", "Bad."), ("Right.", "Bad.")]
    assert made.meta == {
        "pairs": 3,
        "prompts_without_pair": 1,
        "candidates": 8,
        "refused": 4,
        "reasons": {"copying": 1, "repetition": 2, "unfinished": 1},
        "own_rejected": 0,
        "wins": {"a/positive": 1, "b/positive": 2},
    }
    rows = list(read_jsonl(made.path / "filter.jsonl"))
    assert [c["refused"] for c in rows[3]["candidates"]] == [["unfinished"], ["repetition"]]


def test_student_avoids_its_own_refused_answers(bench: Workbench) -> None:
    """A negative that says nothing is no loss then; an own answer that is well made is kept out."""
    a = answers(bench, "a/positive", [GOOD] * 4)
    own, _ = answers(bench, "student/positive", [LOOP, "Well.", "", CUT])
    negative, _ = answers(bench, "student/negative", ["", "Bad.", "Bad.", "Bad."])
    made = filtered(bench, [a], negative, own)
    assert told(made) == [(GOOD, LOOP), (GOOD, "Bad."), (GOOD, "Bad."), (GOOD, CUT)]
    assert made.meta["own_rejected"] == 2
    assert (made.meta["candidates"], made.meta["refused"]) == (4, 0)


def direct(bench: Workbench, chosen: Written, own: Written | None, negative: Written) -> Artifact:
    guard = guarded(bench, chosen, *(() if own is None else (own,)))
    return bench.run(DirectPairs("pairs", chosen, negative, guard, own))


def test_teacher_is_guarded_in_the_same_way(bench: Workbench) -> None:
    chosen, _ = answers(bench, "student/positive", [GOOD, PARROT, GOOD, GOOD])
    own, _ = answers(bench, "a/positive", ["Well.", LOOP, LOOP, "Well."])
    negative, _ = answers(bench, "a/negative", ["Bad."] * 4)
    made = direct(bench, chosen, own, negative)
    assert told(made) == [(GOOD, "Bad."), (GOOD, LOOP), (GOOD, "Bad.")]
    assert made.meta == {
        "pairs": 3,
        "prompts_without_pair": 1,
        "candidates": 4,
        "refused": 1,
        "reasons": {"copying": 1},
        "own_rejected": 1,
    }


def test_what_is_refused_is_a_metric_of_the_round_that_is_newest(bench: Workbench) -> None:
    """Of four candidates one is refused, whatever the pairs are put together with."""
    chosen, _ = answers(bench, "student/positive", [GOOD, PARROT, GOOD, GOOD])
    negative, _ = answers(bench, "a/negative", ["Bad."] * 4)
    newest = DirectPairs("pairs", chosen, negative, guarded(bench, chosen))
    other = bench.write_pairs("other", read_pairs(bench.run(newest).path))
    everything = ReplayedPairs("mixed", JoinedPairs("all", (other, newest)), other, 0.5, 0)
    assert chosen_in(everything) is newest
    assert bench.run(MeasurePairs("metrics", newest)).meta["refused_candidates"] == 1 / 4
    measured = MeasurePairs("metrics", other, newest)
    assert bench.run(measured).meta["refused_candidates"] == 1 / 4
    assert "refused_candidates" not in bench.run(MeasurePairs("metrics", other)).meta
    assert MeasurePairs("metrics", other).identity.keys() == {"pairs"}


def test_nobody_avoids_the_text_that_is_chosen(bench: Workbench) -> None:
    """The same words, once as an answer that ended and once cut off."""
    chosen, said = answers(bench, "student/positive", [GOOD])
    cut = replace(said[0], finished=False)
    own = bench.write_answers("a/positive", [(PROMPTS[0], cut)])
    negative, _ = answers(bench, "a/negative", ["Bad."])
    assert told(direct(bench, chosen, own, negative)) == [(GOOD, "Bad.")]


def test_guard_that_leaves_nothing_says_what_to_do(bench: Workbench) -> None:
    chosen, _ = answers(bench, "student/positive", [LOOP, PARROT])
    negative, _ = answers(bench, "a/negative", ["Bad.", "Bad."])
    with pytest.raises(DataError) as raised:
        direct(bench, chosen, None, negative)
    assert str(raised.value) == (
        "none of 2 prompts gave a pair: on each, the guard refused the positives (1 copying, 1 "
        "repetition) or they were empty. Raise method.guard.quantile, or give a limit of your own, "
        "such as method.guard.copying: 0.9"
    )


def test_pairs_without_a_guard_have_the_key_of_before_there_was_one(bench: Workbench) -> None:
    stage, _ = answers(bench, "a/positive", [GOOD])
    pairs = DirectPairs("pairs", stage, stage)
    assert pairs.identity.keys() == {"positives", "negatives"}
    assert FilteredPairs("pairs", (stage,), stage, stage, 1).identity.keys() == {
        *("positives", "negatives", "scores", "top_k", "filter", "negative_scores"),
    }
    assert FilteredPairs("pairs", (stage,), stage, stage, 1, seed=0).identity["seed"] == 0
    guard = guarded(bench, stage)
    assert DirectPairs("pairs", stage, stage, guard).key != pairs.key
    assert DirectPairs("pairs", stage, stage, guard, stage).identity.keys() == {
        *("positives", "negatives", "guard", "own"),
    }
