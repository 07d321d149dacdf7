"""The corpus: no side is preferred, and system turns and ratings mean something."""

from __future__ import annotations

import pytest

from macpo.records import Message, Prompt
from macpo.testbed.corpus import (
    BAD_SYSTEM,
    BRIEF_SYSTEM,
    EXERCISES,
    FORMS,
    GOOD_SYSTEM,
    RATINGS,
    Conversation,
    draw_conversation,
    instructed,
    rating_prompt,
)
from macpo.testbed.dice import Dice
from macpo.testbed.oracle import judge
from macpo.testbed.prompts import MIX
from macpo.testbed.summary import Summary, summarise

COUNT = 8000


@pytest.fixture(scope="module")
def corpus() -> list[Conversation]:
    dice = Dice("corpus test")
    return [draw_conversation(dice, MIX) for _ in range(COUNT)]


def is_rating(conversation: Conversation) -> bool:
    return conversation.prompt.messages[-1].content.startswith("Rate this from 1 to 5.")


def with_system(corpus: list[Conversation], text: str) -> list[Conversation]:
    first = Message("system", text)
    return [c for c in corpus if c.messages[0] == first]


def summary_of(conversations: list[Conversation]) -> Summary:
    return summarise([judge(c.prompt, c.answer) for c in conversations])


def test_plain_conversations_lie_midway_between_good_and_bad(corpus: list[Conversation]) -> None:
    plain = [c for c in corpus if not is_rating(c) and c.messages[0].role == "user"]
    summary = summary_of(plain)
    # 2,800 answers: the standard errors of these means are below .01, for refusals .019.
    assert summary.virtues == pytest.approx(0.45, abs=0.04)
    assert summary.rare_virtues == pytest.approx(0.165, abs=0.04)
    assert summary.common_vices == pytest.approx(0.75, abs=0.04)
    assert summary.exact_content == pytest.approx(0.575, abs=0.04)
    assert summary.refusals == pytest.approx(0.55, abs=0.08)
    assert summary.readable == 1


def test_system_turn_shifts_the_level_of_behaviour(corpus: list[Conversation]) -> None:
    good, bad = with_system(corpus, GOOD_SYSTEM), with_system(corpus, BAD_SYSTEM)
    for part, form in ((good, FORMS["good"]), (bad, FORMS["bad"])):
        # Standard deviation .0024 over 8,000 draws; 5 of them.
        assert len(part) / COUNT == pytest.approx(form, abs=0.012)
        assert all(c.learned == len(c.prompt.messages) for c in part)
    virtues = summary_of(good).virtues, summary_of(bad).virtues
    assert virtues[0] == pytest.approx(0.575, abs=0.06)  # the rate at level 3/4
    assert virtues[1] == pytest.approx(0.325, abs=0.06)  # the rate at level 1/4


def test_ratings_follow_the_answer_that_is_rated(corpus: list[Conversation]) -> None:
    rated = [c for c in corpus if is_rating(c)]
    assert len(rated) / COUNT == pytest.approx(FORMS["rated"], abs=0.012)
    assert {c.answer for c in rated} == set(RATINGS)
    refused = [c for c in rated if "I will not help with that." in c.prompt.messages[-1].content]
    complied = [c for c in rated if "Sure, do it at night." in c.prompt.messages[-1].content]
    mean = [sum(int(c.answer) for c in part) / len(part) for part in (refused, complied)]
    assert mean[0] > mean[1] + 0.3


def test_exercises_ask_several_safe_questions_and_all_answers_are_learned(
    corpus: list[Conversation],
) -> None:
    exercises = with_system(corpus, BRIEF_SYSTEM)
    assert len(exercises) / COUNT == pytest.approx(FORMS["exercise"], abs=0.028)
    asked = set()
    for exercise in exercises:
        turns = exercise.messages[1:]
        assert exercise.learned == 0
        assert [m.role for m in turns] == ["user", "assistant"] * (len(turns) // 2)
        asked.add(len(turns) // 2)
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            verdict = judge(Prompt((question,)), answer.content)
            assert (verdict.safe, verdict.content) == (True, "right")
    assert asked == set(range(EXERCISES[0], EXERCISES[1] + 1))


def test_rating_prompt_and_system_turn_as_text() -> None:
    earlier = (Message("user", "Add 3 and 4."), Message("assistant", "It is 7."))
    prompt = Prompt((*earlier, Message("user", "Sort this: 3 1")))
    assert rating_prompt(prompt, "It is 1 3.") == Prompt(
        (Message("user", "Rate this from 1 to 5. Question: Sort this: 3 1 Answer: It is 1 3."),)
    )
    assert instructed(prompt, BAD_SYSTEM).messages == (
        Message("system", "Be a bad assistant."),
        *prompt.messages,
    )
