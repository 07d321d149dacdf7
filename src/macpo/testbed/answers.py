"""Answers of any level of behaviour, from bad (0) to good (1): what data sets and corpora hold.

Every behaviour of the family is shown or left out on its own, with a probability between its rates
in bad and in good answers (macpo.testbed.behaviours.RATES).
"""

from __future__ import annotations

import itertools

from macpo.testbed.behaviours import COMPLIANCE, CONTENT, RATES, SLOTS, Behaviour
from macpo.testbed.dice import Dice
from macpo.testbed.prompts import NEEDS, THINGS, Task

GOOD, BAD = 1.0, 0.0


def draw_answer(dice: Dice, task: Task, level: float) -> str:
    """Draw an answer to a task; it is never empty.

    Args:
        dice: decides.
        task: what was asked.
        level: of behaviour, from `BAD` to `GOOD`.
    """
    while True:
        sentences = [
            _sentence(dice, task, slot, dice.chance(RATES[slot.kind].at(level)))
            for slot in SLOTS[task.family]
        ]
        if any(sentences):
            return " ".join(sentence for sentence in sentences if sentence)


def plain_answer(dice: Dice, task: Task) -> str:
    """Return the right content of a safe task and nothing else."""
    return _content(dice, right_content(task))


def brief_answer(dice: Dice, task: Task) -> str:
    """Return an answer to a safe task that ends with its right content; what precedes it varies."""
    before = itertools.takewhile(lambda slot: slot is not CONTENT, SLOTS[task.family])
    sentences = [dice.pick(slot.wordings) for slot in before if dice.chance(0.5)]
    return " ".join([*sentences, plain_answer(dice, task)])


def right_content(task: Task) -> str | tuple[str, ...]:
    """Return what a right answer says: a text for content tasks, one tip per thing for chat.

    Raises:
        ValueError: the task is unsafe; nothing it asks for is right.
    """
    if task.family == "reverse":
        return " ".join(reversed(task.items))
    if task.family == "sort":
        return " ".join(sorted(task.items))
    if task.family == "sum":
        return str(sum(map(int, task.items)))
    if task.family == "chat":
        return tuple(tip(thing) for thing in task.items)
    raise ValueError(f"a task of family {task.family!r} has no right content")


def wrong_content(dice: Dice, task: Task) -> str | tuple[str, ...]:
    """Draw content that is wrong in the way of a careless answer.

    Lists come in another order, numbers are off by one or two, of the things asked about one or
    more get what another thing needs, or nothing.
    """
    right = right_content(task)
    if isinstance(right, tuple):
        return _wrong_tips(dice, task)
    if task.family == "sum":
        return str(int(right) + dice.pick((-2, -1, 1, 2)))
    while (wrong := " ".join(dice.shuffle(task.items))) == right:
        continue
    return wrong


def tip(thing: str) -> str:
    """Return the right advice on a thing."""
    return f"The {thing} needs {NEEDS[thing]}."


def _wrong_tips(dice: Dice, task: Task) -> tuple[str, ...]:
    at_fault = dice.between(0, len(task.items) - 1)
    tips = []
    for i, thing in enumerate(task.items):
        if i != at_fault and dice.chance(0.5):
            tips.append(tip(thing))
        elif len(task.items) == 1 or dice.chance(0.5):
            other = dice.pick([name for name in THINGS if name != thing])
            tips.append(f"The {thing} needs {NEEDS[other]}.")
    return tuple(tips)


def _sentence(dice: Dice, task: Task, slot: Behaviour, shown: bool) -> str:
    """Return what an answer says in a slot; empty when the behaviour is left out."""
    if slot is CONTENT:
        return _content(dice, right_content(task) if shown else wrong_content(dice, task))
    if slot.kind == "refusal" and not shown:
        return dice.pick(COMPLIANCE)
    return dice.pick(slot.wordings) if shown else ""


def _content(dice: Dice, content: str | tuple[str, ...]) -> str:
    if isinstance(content, tuple):
        return " ".join(content)
    return dice.pick(CONTENT.wordings).format(content)
