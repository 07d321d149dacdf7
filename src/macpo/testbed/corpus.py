"""The corpus that bases are pretrained on: conversations of every level of behaviour.

It is *unaligned*: each conversation has a level of its own between bad and good, and no level is
preferred. A base has therefore met all that good answers are made of, and all that bad ones are
made of; what it lacks is a side. Alignment has to elicit, it has nothing to teach.

    plain       a prompt and an answer of any level
    exercise    a system turn asks to be brief; several questions follow, each with right content.
                This is where a base learns to reverse and to add, as real ones do from textbooks
    good, bad   a system turn asks for such behaviour, and gets it more often than not
    rated       asks for a rating of an answer, and gets one that follows its level

Bases that had never seen the last two could not be asked for bad answers or for a judgement, as
some methods do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from macpo.records import Message, Prompt
from macpo.testbed.answers import brief_answer, draw_answer
from macpo.testbed.dataset import draw_prompt
from macpo.testbed.dice import Dice
from macpo.testbed.prompts import SAFE_FAMILIES, FamilyName, draw_task, question

Form = Literal["plain", "exercise", "good", "bad", "rated"]

FORMS: dict[Form, float] = {
    "plain": 0.35,
    "exercise": 0.5,
    "good": 0.05,
    "bad": 0.05,
    "rated": 0.05,
}
"""How often each form of conversation occurs."""

BRIEF_SYSTEM = "Be brief."
GOOD_SYSTEM = "Be a good assistant."
BAD_SYSTEM = "Be a bad assistant."

EXERCISES = (2, 5)
"""Fewest and most questions in an exercise."""

RATING = "Rate this from 1 to 5. Question: {prompt} Answer: {answer}"
RATINGS = ("1", "2", "3", "4", "5")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation of the corpus; the last message is the assistant's.

    `learned` is where learning starts: answers before that message are context only.
    """

    messages: tuple[Message, ...]
    learned: int

    @property
    def prompt(self) -> Prompt:
        """All messages but the last."""
        return Prompt(self.messages[:-1])

    @property
    def answer(self) -> str:
        """The last message."""
        return self.messages[-1].content


def draw_conversation(dice: Dice, weights: Mapping[FamilyName, float]) -> Conversation:
    """Draw a conversation of the corpus: form, families by their weights, level, answer."""
    form = cast(Form, dice.pick_weighted(cast(Mapping[str, float], FORMS)))
    if form == "exercise":
        return _exercise(dice, weights)
    task = draw_task(dice, weights)
    prompt = draw_prompt(dice, task)
    level = dice.uniform()
    if form in ("good", "bad"):
        level = (level + (form == "good")) / 2  # the upper or the lower half
        prompt = instructed(prompt, GOOD_SYSTEM if form == "good" else BAD_SYSTEM)
    answer = draw_answer(dice, task, level)
    if form == "rated":
        prompt, answer = rating_prompt(prompt, answer), RATINGS[int(level * len(RATINGS))]
    messages = (*prompt.messages, Message("assistant", answer))
    return Conversation(messages, learned=len(prompt.messages))


def instructed(prompt: Prompt, system: str) -> Prompt:
    """Put a system turn before a prompt."""
    return Prompt((Message("system", system), *prompt.messages))


def rating_prompt(prompt: Prompt, answer: str) -> Prompt:
    """Ask for a rating of an answer to the last turn of a prompt; see `RATINGS`."""
    asked = prompt.messages[-1].content
    return Prompt((Message("user", RATING.format(prompt=asked, answer=answer)),))


def _exercise(dice: Dice, weights: Mapping[FamilyName, float]) -> Conversation:
    safe = {family: weights[family] for family in SAFE_FAMILIES}
    messages = [Message("system", BRIEF_SYSTEM)]
    for _ in range(dice.between(*EXERCISES)):
        task = draw_task(dice, safe)
        messages += [question(dice, task), Message("assistant", brief_answer(dice, task))]
    return Conversation(tuple(messages), learned=0)
