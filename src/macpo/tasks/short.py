"""Prompts for one sentence with constraints: an answer that meets them all, one that meets none.

    examples = short_examples(500)

Prompt and answer take some 60 tokens together, so that a small model on a CPU learns from hundreds
of them in minutes. Where a prompt does not ask for it, a rejected answer may begin, end or be
written as other prompts want it: what tells the sides apart is whether it was asked for, and not
the look of an answer. Row i depends on the rows before it alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from macpo.errors import DataError
from macpo.records import Message, PreferenceExample, Prompt
from macpo.seeds import digest
from macpo.tasks.constraints import Constraint
from macpo.tasks.writing import CLOSINGS, OPENINGS, STOCK, TRIES, Draws, distinct

VERSION = 1
"""Raise it whenever the same number comes to mean other prompts or answers."""

MOST_SHORT = 2_000
MOST_CONSTRAINTS = 3

ASKED = ("Write a sentence about {}.", "Say something about {}.", "Tell a child about {}.")


def short_examples(count: int) -> list[PreferenceExample]:
    """Draw `count` prompts for a sentence with constraints, all different, each with its pair.

    Raises:
        DataError: `count` is not from 1 to `MOST_SHORT`.
    """
    if not 1 <= count <= MOST_SHORT:
        raise DataError(
            f"{count:,} short prompts with constraints were asked for; ask for 1 to {MOST_SHORT:,}"
        )
    return distinct(count, lambda number: _draw_example(Draws("short", number)))


def short_digest(count: int) -> str:
    """Return a digest that stands for `short_examples(count)` without drawing it."""
    return digest(["short prompts with constraints", VERSION, count])


def _draw_example(draws: Draws) -> PreferenceExample | None:
    """Draw a prompt with its pair; None where no answer was found that does as it should."""
    topic = draws.pick(tuple(STOCK))
    constraints = _draw_constraints(draws, topic)
    asked = " ".join((draws.pick(ASKED).format(topic), *(c.sentence for c in constraints)))
    chosen = _draw_answer(draws, topic, constraints, meeting=True)
    rejected = _draw_answer(draws, topic, constraints, meeting=False)
    if chosen is None or rejected is None:
        return None
    return PreferenceExample(Prompt((Message("user", asked),)), chosen, rejected)


def _draw_constraints(draws: Draws, topic: str) -> tuple[Constraint, ...]:
    """Draw up to `MOST_CONSTRAINTS` of the four kinds."""
    words = sorted({w.strip(".,").lower() for s in STOCK[topic] for w in s.split() if len(w) > 5})
    kinds = (
        Constraint("word", words=draws.pick(words)),
        Constraint("small-letters"),
        Constraint("begin", words=draws.pick(OPENINGS)),
        Constraint("end", words=draws.pick(CLOSINGS)),
    )
    return tuple(draws.sample(kinds, 1 + draws.below(MOST_CONSTRAINTS)))


def _draw_answer(
    draws: Draws, topic: str, constraints: Sequence[Constraint], *, meeting: bool
) -> str | None:
    """Draw answers until one meets all constraints, or none of them."""
    asked = {constraint.kind: constraint for constraint in constraints}
    for _ in range(TRIES):
        sentence = draws.pick(STOCK[topic])
        answer = _meet(sentence, asked) if meeting else _stray(draws, sentence, asked.keys())
        if all(constraint.met(answer) == meeting for constraint in constraints):
            return answer
    return None


def _meet(sentence: str, asked: Mapping[str, Constraint]) -> str:
    """Write a sentence in the form that is asked for; its words are left to chance."""
    if "begin" in asked:
        sentence = f"{asked['begin'].words}: {sentence}"
    if "end" in asked:
        sentence = f"{sentence} {asked['end'].words}"
    return sentence.lower() if "small-letters" in asked else sentence


def _stray(draws: Draws, sentence: str, asked: Collection[str]) -> str:
    """Write a sentence plainly, or in a form that other prompts ask for and this one does not."""
    form = draws.pick(("begin", "end", "small-letters", "plain"))
    if form in asked:
        return sentence
    if form == "begin":
        return f"{draws.pick(OPENINGS)}: {sentence}"
    if form == "end":
        return f"{sentence} {draws.pick(CLOSINGS)}"
    return sentence.lower() if form == "small-letters" else sentence
