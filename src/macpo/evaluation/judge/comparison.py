"""Two answers to a prompt, judged in both orders, and what counts as a win.

Judges favour a place: the first answer, mostly. So every pair is shown in both orders. Two rules
are usual for what comes of them, and both are reported:

    strict   both orders name the same answer, or the pair is a tie
    mean     the mean of the orders: 1 for a win of ours, 0.5 for a tie, 0 for a loss
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from macpo.evaluation.statistics import (
    Estimate,
    LengthControlled,
    clustered_mean,
    length_controlled,
    length_matched,
)
from macpo.records import Prompt

Verdict = Literal["A", "B", "tie"]

POINTS_OF_A: dict[Verdict, float] = {"A": 1.0, "tie": 0.5, "B": 0.0}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to a prompt in the order in which a judge sees them."""

    prompt: Prompt
    a: str
    b: str

    def swap(self) -> Comparison:
        """Return the same with the answers in the other order."""
        return Comparison(self.prompt, self.b, self.a)


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A pair that was judged in both orders.

    Attributes:
        prompt_id: what was answered.
        first: points of our answer (1, 0.5, 0) where it stood first.
        second: where it stood second.
        lengths: of our answer and of the other, in characters.
    """

    prompt_id: str
    first: float
    second: float
    lengths: tuple[int, int]

    @classmethod
    def of(cls, ours_first: Comparison, first: Verdict, second: Verdict) -> JudgedPair:
        """Make it of the verdicts on a comparison with ours first, and on its swap."""
        lengths = (len(ours_first.a), len(ours_first.b))
        points = (POINTS_OF_A[first], 1 - POINTS_OF_A[second])
        return cls(ours_first.prompt.id, *points, lengths)

    @property
    def consistent(self) -> bool:
        """Whether both orders came to the same."""
        return self.first == self.second

    @property
    def strict(self) -> float:
        """Points under the rule that orders which disagree are a tie."""
        return self.first if self.consistent else 0.5

    @property
    def mean(self) -> float:
        """The mean of the orders."""
        return (self.first + self.second) / 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a judge made of all pairs.

    Attributes:
        win: share of pairs that ours won by the strict rule.
        tie: share of ties by it.
        lose: share that ours lost by it.
        strict: win rate by the strict rule, a tie counted half.
        mean: win rate by the mean of the orders.
        controlled: the latter at equal lengths.
        matched: the latter among pairs of similar length; None without any.
        consistency: share of pairs on which both orders came to the same.
    """

    win: float
    tie: float
    lose: float
    strict: Estimate
    mean: Estimate
    controlled: LengthControlled
    matched: Estimate | None
    consistency: float

    @classmethod
    def of(cls, pairs: Sequence[JudgedPair]) -> Outcome:
        """Sum up pairs, at least one."""
        prompts = [pair.prompt_id for pair in pairs]
        means = [pair.mean for pair in pairs]
        strict = [pair.strict for pair in pairs]
        extra = [float(ours - other) for ours, other in (pair.lengths for pair in pairs)]
        return cls(
            win=fmean(points == 1 for points in strict),
            tie=fmean(points == 0.5 for points in strict),
            lose=fmean(points == 0 for points in strict),
            strict=clustered_mean(strict, prompts),
            mean=clustered_mean(means, prompts),
            controlled=length_controlled(means, extra, prompts),
            matched=length_matched(means, [pair.lengths for pair in pairs], prompts),
            consistency=fmean(pair.consistent for pair in pairs),
        )
