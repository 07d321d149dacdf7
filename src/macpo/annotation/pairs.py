"""Which answers people compare: those of two policies to the same test prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from macpo.errors import DataError, StoreError
from macpo.records import Prompt, Response, Split, read_answers
from macpo.run_directory import PlannedStage
from macpo.seeds import digest, stable_seed
from macpo.sides import Side
from macpo.store import MANIFEST, Store

SPLIT: Split = "test"


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """A prompt with the answers of the one policy and of the other."""

    prompt: Prompt
    one: Response
    other: Response

    @property
    def id(self) -> str:
        """Content hash, 16 hexadecimal characters; it does not tell whose answer is which."""
        return digest([self.prompt.id, self.one.id, self.other.id])[:16]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "prompt": self.prompt.to_json(),
            "one": self.one.to_json(),
            "other": self.other.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> AnswerPair:
        """Read what `to_json` wrote."""
        return cls(
            Prompt.from_json(value["prompt"]),
            Response.from_json(value["one"]),
            Response.from_json(value["other"]),
        )


@dataclass(frozen=True, slots=True)
class Pairing:
    """What two policies answered to the same prompts.

    Attributes:
        one: the label of the first side, such as `student@3`.
        other: of the second.
        key: digest of where both sides' answers are from: other answers, another key.
        pairs: to be judged, in an order that the answers decide and everybody shares: who stops
            early has judged what the others judged first.
        equal: prompts whose two answers are the same words, which nobody needs to judge.
        alone: prompts that only one of the sides was asked.
    """

    one: str
    other: str
    key: str
    pairs: tuple[AnswerPair, ...]
    equal: int
    alone: int


def pair_answers(one: Side, other: Side) -> Pairing:
    """Lay the answers of two policies side by side.

    Raises:
        StoreError: a side's answers are not there, see `unanswered`; or both sides are the same.
        DataError: the sides were asked different prompts, or all their answers are equal.
    """
    ones, others = _answers(one), _answers(other)
    keys = [[stage.key for stage in _stages(side)] for side in (one, other)]
    if keys[0] == keys[1]:
        raise StoreError(
            f"both sides are the answers of {one.label}; name another with --policy or --against, "
            "such as --against student@0 or another run"
        )
    shared = [id for id in ones if id in others]
    if not shared:
        raise DataError(
            f"{one.label} and {other.label} answered different prompts: none of {len(ones)} and "
            f"{len(others)} is the same; compare runs with the same data and splits"
        )
    both = [AnswerPair(ones[id][0], ones[id][1], others[id][1]) for id in shared]
    pairs = [pair for pair in both if pair.one.text.strip() != pair.other.text.strip()]
    if not pairs:
        raise DataError(
            f"{one.label} and {other.label} gave the same answers to all {len(shared)} prompts: "
            "there is nothing to judge"
        )
    pairs.sort(key=lambda pair: stable_seed("annotation order", pair.id))
    return Pairing(
        one=one.label,
        other=other.label,
        key=digest(keys),
        pairs=tuple(pairs),
        equal=len(shared) - len(pairs),
        alone=len(ones) + len(others) - 2 * len(shared),
    )


def unanswered(side: Side) -> str | None:
    """Say that a policy's answers to test prompts are not there: a `macpo.sides.Missing`."""
    stages = _stages(side)
    name = f"{side.policy.policy}@{side.policy.round}"
    if not stages:
        return f"{name} was not asked the test prompts; set evaluation.answers and run it again"
    missing = [s for s in stages if not (side.run.artifact(s) / MANIFEST).is_file()]
    return f"{missing[0].name} is not done yet; run the config to go on" if missing else None


def _stages(side: Side) -> list[PlannedStage]:
    return side.plan.answers(side.policy, SPLIT)


def _answers(side: Side) -> dict[str, tuple[Prompt, Response]]:
    """Read a side's answers by prompt id, their files compared with their checksums."""
    store = Store(side.run.store)
    found: dict[str, tuple[Prompt, Response]] = {}
    for stage in _stages(side):
        artifact = store.find(stage.kind, stage.key)
        if artifact is None:
            raise StoreError(f"{side.run.path}: {stage.name} is not done yet; run the config")
        for prompt, response in read_answers(artifact.path):
            found.setdefault(prompt.id, (prompt, response))
    return found
