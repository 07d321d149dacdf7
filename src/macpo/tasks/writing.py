"""Prompts with constraints, each with an answer that meets them and one that violates one of them.

    examples = constrained_examples(600)

Both answers are about what was asked, in sentences of the same stock, so that a pair differs in
nothing but the constraint: a model that learns from them learns to keep to it. Row i depends on the
rows before it alone: a longer data set starts with the shorter one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

from macpo.errors import DataError
from macpo.records import Message, PreferenceExample, Prompt
from macpo.seeds import digest, stable_seed
from macpo.tasks.constraints import Constraint

VERSION = 1
"""Raise it whenever the same number comes to mean other prompts or answers."""

MOST_EXAMPLES = 5_000
TRIES = 60
MOST_CONSTRAINTS = 3

ASKED = ("Tell me something about {}.", "Describe {} to a child.", "Write a note about {}.")
OPENINGS = ("Here we go", "Let us see", "To be brief")
CLOSINGS = ("That is all.", "Ask me for more.", "So much for now.")

STOCK: Mapping[str, tuple[str, ...]] = {
    "bread": (
        "Bread is made of flour, water and a little salt.",
        "Yeast lets the dough rise while it rests.",
        "The crust turns brown in a hot oven.",
        "A fresh loaf smells good, and the kitchen does too.",
        "Old slices can be toasted with butter.",
        "Bakers start their work long before sunrise.",
    ),
    "rivers": (
        "A river carries water from the hills to the sea.",
        "Fish, birds and otters live along its banks.",
        "It is narrow at its spring, and wide at its mouth.",
        "Boats have used rivers as roads for ages.",
        "After heavy rain the water may flood the fields.",
        "Many towns were built beside a bridge.",
    ),
    "bicycles": (
        "A bicycle has two wheels, a frame and a chain.",
        "Riders steer with the bars and push the pedals.",
        "Good brakes matter most on a steep hill.",
        "The tyres need air, or riding gets hard.",
        "With a lamp it can be seen at night.",
        "Short ways through town are quicker by bicycle.",
    ),
    "winter": (
        "Winter is cold, dark and often quiet.",
        "Snow covers the roofs and the garden.",
        "People wear scarves, gloves and warm boots.",
        "Lakes may freeze so hard that children skate.",
        "Some animals sleep until the spring comes.",
        "Evenings are long, and tea tastes better then.",
    ),
    "libraries": (
        "A library lends books to anybody with a card.",
        "The shelves are sorted by subject, author or title.",
        "Children sit on the carpet and listen to stories.",
        "Late books may cost a small fee.",
        "Some people come to read, others to be warm.",
        "A librarian knows where every map is kept.",
    ),
    "cats": (
        "Cats sleep for most of the day.",
        "They hear a mouse through a wall, or nearly so.",
        "A cat cleans its fur with a rough tongue.",
        "Whiskers tell it whether a gap is wide enough.",
        "Young cats play with string, paper and leaves.",
        "When it is content a cat may purr.",
    ),
    "trains": (
        "Trains run on steel rails between stations.",
        "A driver obeys the signals, day and night.",
        "Tickets are cheaper when they are bought early.",
        "Freight trains carry coal, grain and cars.",
        "From the window one sees fields and villages.",
        "Long tunnels lead the line through a mountain.",
    ),
    "honey": (
        "Bees make honey from what they find in flowers.",
        "They keep it in cells of wax, row by row.",
        "Honey may be clear, golden or almost black.",
        "It keeps for years in a closed jar.",
        "A spoon of it sweetens tea or porridge.",
        "Beekeepers leave enough for the hive in autumn.",
    ),
}

Item = TypeVar("Item")


class Draws:
    """A stream of draws that depends on `parts` alone."""

    def __init__(self, *parts: str | int) -> None:
        self._parts = parts
        self._drawn = 0

    def below(self, bound: int) -> int:
        """Return a whole number from 0 to below `bound`."""
        self._drawn += 1
        return stable_seed("constraints", VERSION, *self._parts, self._drawn) % bound

    def pick(self, items: Sequence[Item]) -> Item:
        """Return one of the items."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """Return `count` different items in random order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(count)]


def constrained_examples(count: int) -> list[PreferenceExample]:
    """Draw `count` prompts with constraints, all different, each with a pair of answers.

    Raises:
        DataError: `count` is not from 1 to `MOST_EXAMPLES`.
    """
    if not 1 <= count <= MOST_EXAMPLES:
        raise DataError(
            f"{count:,} prompts with constraints were asked for; ask for 1 to {MOST_EXAMPLES:,}"
        )
    return distinct(count, lambda number: _draw_example(Draws(number)))


def distinct(
    count: int, draw: Callable[[int], PreferenceExample | None]
) -> list[PreferenceExample]:
    """Draw until there are `count` examples with different prompts.

    Args:
        count: how many.
        draw: the example of a number from 1 on; None where that number makes none.
    """
    found: dict[Prompt, PreferenceExample] = {}
    number = 0
    while len(found) < count:
        number += 1
        example = draw(number)
        if example is not None:
            found.setdefault(example.prompt, example)
    return list(found.values())


def examples_digest(count: int) -> str:
    """Return a digest that stands for `constrained_examples(count)` without drawing it."""
    return digest(["prompts with constraints", VERSION, count])


def _draw_example(draws: Draws) -> PreferenceExample | None:
    """Draw a prompt with its pair; None where no answer was found that does as it should."""
    topic = draws.pick(tuple(STOCK))
    constraints = draw_constraints(draws, topic)
    violated = draws.pick(constraints)
    asked = " ".join((draws.pick(ASKED).format(topic), *(c.sentence for c in constraints)))
    chosen = _draw_answer(draws, topic, constraints, None)
    rejected = _draw_answer(draws, topic, constraints, violated)
    if chosen is None or rejected is None:
        return None
    return PreferenceExample(Prompt((Message("user", asked),)), chosen, rejected)


def draw_constraints(draws: Draws, topic: str) -> tuple[Constraint, ...]:
    """Draw up to `MOST_CONSTRAINTS` constraints that can be met together."""
    words = sorted({w.strip(".,").lower() for s in STOCK[topic] for w in s.split() if len(w) > 6})
    wanted, unwanted = draws.sample(words, 2)
    drawn = (
        draws.pick(
            (
                Constraint("least-words", 20 + 5 * draws.below(4)),
                Constraint("most-words", 15 + 5 * draws.below(4)),
            )
        ),
        draws.pick(
            (
                Constraint("paragraphs", 2 + draws.below(2)),
                Constraint("bullets", 2 + draws.below(3)),
            )
        ),
        Constraint("word", words=wanted),
        Constraint("no-word", words=unwanted),
        Constraint("no-commas"),
        Constraint("small-letters"),
        Constraint("begin", words=draws.pick(OPENINGS)),
        Constraint("end", words=draws.pick(CLOSINGS)),
    )
    return tuple(draws.sample(drawn, 1 + draws.below(MOST_CONSTRAINTS)))


def _draw_answer(
    draws: Draws, topic: str, constraints: Sequence[Constraint], violated: Constraint | None
) -> str | None:
    """Draw answers until one meets all constraints but `violated`, and that one not."""
    for _ in range(TRIES):
        answer = _write(draws, topic, [c for c in constraints if c != violated])
        if all(c.met(answer) == (c != violated) for c in constraints):
            return answer
    return None


def _write(draws: Draws, topic: str, constraints: Sequence[Constraint]) -> str:
    """Write an answer in the form that constraints ask for; words and length are left to chance."""
    asked = {constraint.kind: constraint for constraint in constraints}
    sentences = draws.sample(STOCK[topic], 1 + draws.below(len(STOCK[topic])))
    if "begin" in asked:
        sentences[0] = f"{asked['begin'].words}: {sentences[0]}"
    if "end" in asked:
        sentences[-1] = f"{sentences[-1]} {asked['end'].words}"
    if "bullets" in asked:
        text = "\n".join(f"- {part}" for part in _divide(sentences, asked["bullets"].number))
    elif "paragraphs" in asked:
        text = "\n\n".join(_divide(sentences, asked["paragraphs"].number))
    else:
        text = " ".join(sentences)
    if "no-commas" in asked:
        text = text.replace(",", "")
    return text.lower() if "small-letters" in asked else text


def _divide(sentences: Sequence[str], parts: int) -> list[str]:
    """Join sentences to so many texts, or fewer where there are not enough, in their order."""
    parts = min(parts, len(sentences))
    bounds = [number * len(sentences) // parts for number in range(parts + 1)]
    return [" ".join(sentences[a:b]) for a, b in pairwise(bounds)]
