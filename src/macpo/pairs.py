"""Pairs of a chosen and a rejected answer to one prompt, out of the answers of two policies.

Which answers are `chosen` is said in `macpo.filter` and `macpo.rounds`, which are `rejected` in
`macpo.negatives`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from macpo.agents import Agent
from macpo.errors import DataError
from macpo.guard import count_reasons, read_refusals
from macpo.records import (
    Pair,
    Response,
    read_answers,
    read_pairs,
    read_responses,
    write_pairs,
)
from macpo.seeds import stable_seed
from macpo.stage import Stage, StageContext
from macpo.work import Answers, Known

SILENCE = (
    "the positives or the negative were empty. Read the responses; more SFT epochs or another "
    "chat_template may be needed"
)


@dataclass(frozen=True, eq=False)
class DirectPairs(Stage):
    """Pairs of one policy's answers, as they are, with another's: `positives` over `negatives`.

    So a teacher learns: the student's answer against its own negative's. `guard` refuses some of
    the positives; what it refuses of the learner's `own` answers takes the negatives' place.
    """

    kind: ClassVar[str] = "pairs"
    version: ClassVar[int] = 2
    added: ClassVar[frozenset[str]] = frozenset({"guard", "own"})

    positives: Stage
    negatives: Stage
    guard: Stage | None = None
    own: Stage | None = None

    def leaves(self, known: Known, reader: Agent) -> tuple[Answers, ...]:
        """Both answers to each prompt."""
        return (*known.left_by(self.positives, reader), *known.left_by(self.negatives, reader))

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write pairs.jsonl."""
        asked = read_answers(context.path(self.negatives))
        chosen = read_responses(context.path(self.positives))
        verdicts = Verdicts.read(self.guard, self.own, context)
        pairs = []
        for (prompt, negative), positive in zip(asked, chosen, strict=True):
            rejected = verdicts.rejected(negative, positive)
            if verdicts.lets(positive) and not rejected.is_empty:
                pairs.append(Pair(prompt, positive, rejected))
        counts = leave_pairs(pairs, len(asked), context, verdicts.why_none(chosen))
        return {**counts, **verdicts.counts(chosen, pairs)}


@dataclass(frozen=True, eq=False)
class JoinedPairs(Stage):
    """The pairs of several stages, one after the other: what was learned from in rounds before."""

    kind: ClassVar[str] = "pairs"

    parts: tuple[Stage, ...]

    def leaves(self, known: Known, reader: Agent) -> tuple[Answers, ...]:
        """Those of all parts."""
        sides = zip(*(known.left_by(part, reader) for part in self.parts), strict=True)
        return tuple(map(_all_of, sides))

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write pairs.jsonl."""
        pairs = [pair for part in self.parts for pair in read_pairs(context.path(part))]
        write_pairs(context.output, pairs)
        return {"pairs": len(pairs), "prompts_without_pair": 0}


@dataclass(frozen=True, eq=False)
class ReplayedPairs(Stage):
    """Pairs, with so many of ground truth behind them that these are `share` of all.

    Which of `labels` they are is drawn by `seed`; there are never more than all.
    """

    kind: ClassVar[str] = "pairs"

    pairs: Stage
    labels: Stage
    share: float
    seed: int

    def leaves(self, known: Known, reader: Agent) -> tuple[Answers, ...]:
        """The pairs' answers and, beside them, ground truth's."""
        own = known.left_by(self.pairs, reader)
        truth = known.left_by(self.labels, reader)
        return tuple(
            _all_of([ours, replace(theirs, count=self._drawn(ours.count, theirs.count))])
            for ours, theirs in zip(own, truth, strict=True)
        )

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write pairs.jsonl."""
        pairs = read_pairs(context.path(self.pairs))
        labels = read_pairs(context.path(self.labels))
        places = sorted(range(len(labels)), key=lambda place: stable_seed(self.seed, place))
        drawn = sorted(places[: self._drawn(len(pairs), len(labels))])
        write_pairs(context.output, [*pairs, *(labels[place] for place in drawn)])
        return {
            "pairs": len(pairs) + len(drawn),
            "replayed": len(drawn),
            "prompts_without_pair": 0,
        }

    def _drawn(self, pairs: float, labels: float) -> int:
        """Return how many labels make up their share."""
        return int(min(labels, round(pairs * self.share / (1 - self.share))))


def chosen_in(pairs: Stage) -> Stage:
    """Return the stage that chose a round's answers, of which `pairs` may be made together."""
    while isinstance(pairs, JoinedPairs | ReplayedPairs):
        pairs = pairs.pairs if isinstance(pairs, ReplayedPairs) else pairs.parts[-1]
    return pairs


def _all_of(answers: Sequence[Answers]) -> Answers:
    """Return what several stages leave together."""
    count = sum(a.count for a in answers)
    tokens = sum(a.count * a.tokens for a in answers) / count if count else 0.0
    return Answers(count, tokens, any(a.at_most for a in answers))


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a guard says of the answers that pairs are made of.

    `reasons` are those of refused answers, by response id, None without a guard; `failing` are the
    learner's own refused answers, by prompt id.
    """

    reasons: Mapping[str, tuple[str, ...]] | None = None
    failing: Mapping[str, Response] = field(default_factory=dict)

    @classmethod
    def read(cls, guard: Stage | None, own: Stage | None, context: StageContext) -> Verdicts:
        """Read what a guard wrote, if there is one, and the learner's `own` answers."""
        if guard is None:
            return cls()
        reasons = read_refusals(context.path(guard))
        said = [] if own is None else read_responses(context.path(own))
        return cls(reasons, {r.prompt_id: r for r in said if r.id in reasons})

    def lets(self, response: Response) -> bool:
        """Tell whether an answer may be chosen: it says something and is not refused."""
        return not response.is_empty and response.id not in (self.reasons or ())

    def rejected(self, negative: Response, chosen: Response) -> Response:
        """Return what is avoided beside a chosen answer: the learner's own one that was refused.

        Where none was, or one of the same text (cut off, say) is chosen, it is the negative.
        """
        own = self.failing.get(negative.prompt_id)
        return negative if own is None or own.text == chosen.text else own

    def counts(self, candidates: Iterable[Response], pairs: Iterable[Pair]) -> dict[str, Any]:
        """Return, for a stage's meta, what was refused of the candidates, and what it came to."""
        if self.reasons is None:
            return {}
        reasons = [self.reasons.get(r.id, ()) for r in candidates if not r.is_empty]
        own = {r.id for r in self.failing.values()}
        return {
            "candidates": len(reasons),
            "refused": sum(map(bool, reasons)),
            "reasons": count_reasons(reasons),
            "own_rejected": sum(pair.rejected.id in own for pair in pairs),
        }

    def why_none(self, candidates: Iterable[Response]) -> str:
        """Return what it means that no pair is left, and what to do."""
        found = self.counts(candidates, ())
        if not found.get("refused"):
            return SILENCE
        reasons = ", ".join(f"{count} {reason}" for reason, count in found["reasons"].items())
        return (
            f"the guard refused the positives ({reasons}) or they were empty. Raise "
            "method.guard.quantile, or give a limit of your own, such as method.guard.copying: 0.9"
        )


def leave_pairs(
    pairs: Sequence[Pair], prompts: int, context: StageContext, why_none: str = SILENCE
) -> dict[str, Any]:
    """Write the pairs of so many prompts, and count the prompts that gave none.

    Raises:
        DataError: there is no pair; `why_none` says what that means and what to do.
    """
    if not pairs:
        raise DataError(f"none of {prompts} prompts gave a pair: on each, {why_none}")
    write_pairs(context.output, pairs)
    used = len({pair.prompt.id for pair in pairs})
    return {"pairs": len(pairs), "prompts_without_pair": prompts - used}
