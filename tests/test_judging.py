"""Judges: what they are asked, what their words count, and which pairs come of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from macpo.agents import Agent, Policy
from macpo.config import LimitsConfig
from macpo.errors import DataError
from macpo.judging import Compare, Grade, RankedPairs, ask, transcript
from macpo.methods.wording import CHOOSE, GRADE
from macpo.records import (
    Message,
    Prompt,
    Response,
    read_judgements,
    read_pairs,
    write_judgements,
)
from macpo.stage import Stage
from tests.workbench import Workbench, Written, make_agent, make_prompt, make_response

PROMPTS = [make_prompt("Name a prime."), make_prompt("Name a fruit.")]
LABELS = ("A", "B")


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def answers(bench: Workbench, label: str, texts: Sequence[str]) -> Written:
    rows = [(p, make_response(p, text, label)) for p, text in zip(PROMPTS, texts, strict=True)]
    return bench.write_answers(label, rows)


def scores(bench: Workbench, stage: Stage) -> dict[str, float]:
    return read_judgements(bench.run(stage).path)


def plain_probabilities(
    bench: Workbench, agent: Agent, prompt: Prompt, words: Sequence[str]
) -> torch.Tensor:
    """Return how probable single-token words are after a prompt, by a plain forward pass."""
    loaded = bench.pool.load(Policy(agent, "positive"))
    ids = loaded.chat.encode_prompt(prompt, 512).ids
    tokens = [
        loaded.chat.encode_completion(
            Response("", word, make_response(prompt, word).origin, finished=False), 8
        )
        for word in words
    ]
    assert all(len(token) == 1 for token in tokens)
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1]
    return logits[[token[0] for token in tokens]].double().softmax(0)


def test_grade_is_the_mean_of_the_grades_weighed_by_their_probability(bench: Workbench) -> None:
    agent = make_agent()
    given = answers(bench, "student/positive", ["Seven", "Apple"])
    grades = ("1", "2", "3")
    found = scores(bench, Grade("g", Policy(agent, "positive"), (given,), GRADE, grades))
    for prompt, text in zip(PROMPTS, ("Seven", "Apple"), strict=True):
        question = ask(GRADE, {"conversation": transcript(prompt), "answer": text})
        probs = plain_probabilities(bench, agent, question, grades)
        expected = float((probs * torch.tensor([1.0, 2.0, 3.0])).sum())
        response = make_response(prompt, text)
        assert found[response.id] == pytest.approx(expected, abs=1e-4)


def test_comparison_is_the_mean_over_both_orders(bench: Workbench) -> None:
    agent = make_agent()
    one, other = answers(bench, "a", ["Seven", "Apple"]), answers(bench, "b", ["Four", "Nail"])
    found = scores(bench, Compare("c", Policy(agent, "positive"), one, other, CHOOSE, LABELS))
    prompt, fields = PROMPTS[0], {"conversation": transcript(PROMPTS[0])}
    straight = ask(CHOOSE, {**fields, "first": "Seven", "second": "Four"})
    turned = ask(CHOOSE, {**fields, "first": "Four", "second": "Seven"})
    expected = float(
        plain_probabilities(bench, agent, straight, LABELS)[0]
        + plain_probabilities(bench, agent, turned, LABELS)[1]
    )
    assert found[make_response(prompt, "Seven").id] == pytest.approx(expected / 2, abs=1e-4)
    assert found[make_response(prompt, "Four").id] == pytest.approx(1 - expected / 2, abs=1e-4)


def test_an_answer_cannot_pass_for_a_placeholder() -> None:
    question = ask("Q: {conversation} A: {answer} {x}", {"conversation": "{answer}", "answer": "y"})
    assert question.messages[0].content == "Q: {answer} A: y {x}"


def test_transcript_names_the_speakers() -> None:
    prompt = Prompt((Message("system", "Be."), Message("user", "Hi"), Message("assistant", "Yo")))
    assert transcript(prompt) == "System: Be.\n\nUser: Hi\n\nAssistant: Yo"


def test_empty_answers_are_not_judged(bench: Workbench) -> None:
    given = answers(bench, "student/positive", ["Seven", " "])
    stage = Grade("g", Policy(make_agent(), "positive"), (given,), GRADE, ("1", "2"))
    assert len(scores(bench, stage)) == 1


def test_judge_whose_prompts_are_all_too_long_is_an_error(bench: Workbench) -> None:
    agent = make_agent(limits=LimitsConfig(prompt_tokens=8))
    given = answers(bench, "student/positive", ["Seven", "Apple"])
    stage = Grade("g", Policy(agent, "positive"), (given,), GRADE, ("1", "2"))
    with pytest.raises(DataError, match=r"none of 2 answers could be judged: .* raise the limit"):
        bench.run(stage)


def judged(bench: Workbench, label: str, rows: Sequence[tuple[Prompt, str, float]]) -> Written:
    judged = [(make_response(prompt, text), score) for prompt, text, score in rows]
    return bench.commit(label, lambda folder: write_judgements(folder, judged))


def test_best_is_paired_with_worst_by_the_mean_over_judges(bench: Workbench) -> None:
    """Means on the first prompt: Two 2, Three 3, Four 1. On the second all are equal."""
    stages = tuple(
        answers(bench, name, texts)
        for name, texts in (("a", ["Two", "Fig"]), ("b", ["Three", "Pear"]), ("c", ["Four", "Nut"]))
    )
    first, second = PROMPTS
    judges = (
        judged(bench, "j", [(first, "Two", 3), (first, "Three", 2), (first, "Four", 1)]),
        judged(bench, "k", [(first, "Two", 1), (first, "Three", 4), (first, "Four", 1)]),
        judged(bench, "l", [(second, "Fig", 5), (second, "Pear", 5)]),
    )
    made = bench.run(RankedPairs("pairs", stages, judges))
    pairs = read_pairs(made.path)
    assert [(pair.chosen.text, pair.rejected.text) for pair in pairs] == [("Three", "Four")]
    assert made.meta == {"pairs": 1, "prompts_without_pair": 1}


def test_judges_that_find_everything_equally_good_are_an_error(bench: Workbench) -> None:
    stages = answers(bench, "a", ["Two", "Fig"]), answers(bench, "b", ["Three", "Pear"])
    judge = judged(bench, "j", [(PROMPTS[0], "Two", 3), (PROMPTS[0], "Three", 3)])
    with pytest.raises(DataError, match=r"none of 2 prompts gave a pair: on each, the judges"):
        bench.run(RankedPairs("pairs", stages, (judge,)))
