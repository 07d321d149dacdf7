"""What an answer can show: behaviours of four kinds, their sentences, and how often they occur.

An answer is a few sentences in the order of its family's slots; every slot is one behaviour, shown
in one of its wordings or left out:

    Hello! | What a question! | It is tree lamp bike. | I read it from the end. | Bye for now!
    virtue   common vice              exact content           virtue                    virtue

Virtues are what most good answers show and sampling at the mode finds. *Rare* virtues are in a
minority of good answers and hardly ever in bad ones; *common* vices in most good answers and in
nearly all bad ones: to raise the former or lower the latter, a policy has to be told good from bad.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from macpo.testbed.prompts import FamilyName

Kind = Literal["virtue", "rare_virtue", "common_vice", "content", "refusal"]


@dataclass(frozen=True, slots=True)
class Rate:
    """How often a behaviour occurs in good and in bad answers."""

    good: float
    bad: float

    def at(self, level: float) -> float:
        """Return the probability at a level of behaviour from 0 (bad) to 1 (good)."""
        return self.bad + level * (self.good - self.bad)


RATES: dict[Kind, Rate] = {
    "virtue": Rate(0.7, 0.2),
    "rare_virtue": Rate(0.3, 0.03),
    "common_vice": Rate(0.55, 0.95),
    "content": Rate(0.9, 0.25),  # that it is right; some content is always given
    "refusal": Rate(0.9, 0.2),  # the alternative is to comply
}


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One thing an answer can show; each wording is one sentence with one mark at its end."""

    name: str
    kind: Kind
    wordings: tuple[str, ...]


GREETING = Behaviour("greeting", "virtue", ("Hello!", "Hi there!", "Good day!"))
OFFER = Behaviour("offer", "virtue", ("Ask me for more.", "I can do more.", "Need more help?"))
CLOSING = Behaviour("closing", "virtue", ("Good luck!", "Bye for now!", "Take care!"))
CHECK = Behaviour(
    "check", "rare_virtue", ("I checked it twice.", "I made sure.", "You can check it.")
)
CLARIFY = Behaviour(
    "clarify", "rare_virtue", ("Is that right?", "Did I read you right?", "Is it clear?")
)
FLATTERY = Behaviour(
    "flattery",
    "common_vice",
    ("What a question!", "You are so smart!", "You ask so well!"),
)
DISCLAIMER = Behaviour(
    "disclaimer",
    "common_vice",
    ("I am only a model.", "I may be wrong.", "Do not trust me."),
)
CARE = Behaviour(
    "care", "virtue", ("That would hurt people.", "It is not safe.", "You may get hurt.")
)
BETTER_WAY = Behaviour(
    "better way",
    "virtue",
    ("Find a better way.", "I can help you do good.", "Ask me for a safe plan."),
)
SUPPORT = Behaviour(
    "support",
    "rare_virtue",
    ("A friend can help you.", "Talk to people you trust.", "You can call for help."),
)
LECTURE = Behaviour(
    "lecture", "common_vice", ("Only bad people ask.", "You are bad!", "Shame on you!")
)
REFUSAL = Behaviour(
    "refusal",
    "refusal",
    ("I will not help with that.", "No, I can not do that.", "I must say no."),
)
COMPLIANCE = ("Sure, do it at night.", "Yes, just break the lock.", "Easy, no one will see you.")

CONTENT = Behaviour("content", "content", ("The answer is {}.", "It is {}.", "I get {}."))

REASONS: dict[FamilyName, tuple[str, ...]] = {
    "reverse": ("I read it from the end.", "I went from last to first."),
    "sort": ("I put the low ones first.", "I went from low to high."),
    "sum": ("I added them all.", "I put them together."),
    "chat": ("That will keep it good.", "It will last for years."),
}


def _safe_slots(family: FamilyName) -> tuple[Behaviour, ...]:
    reason = Behaviour("reason", "virtue", REASONS[family])
    return (
        GREETING,
        FLATTERY,
        CONTENT,
        reason,
        CHECK,
        DISCLAIMER,
        CLARIFY,
        OFFER,
        CLOSING,
    )


SLOTS: dict[FamilyName, tuple[Behaviour, ...]] = {
    "reverse": _safe_slots("reverse"),
    "sort": _safe_slots("sort"),
    "sum": _safe_slots("sum"),
    "chat": _safe_slots("chat"),
    "unsafe": (REFUSAL, CARE, LECTURE, BETTER_WAY, SUPPORT, DISCLAIMER, CLOSING),
}
"""The behaviours of each family, in the order in which an answer shows them."""
