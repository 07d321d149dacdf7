"""The perplexity filter (paper, section 3.2): which of the teachers' answers the student learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from macpo.agents import Policy
from macpo.positives import Filter as FilterKind
from macpo.positives import FilteredPairs
from macpo.program import Program
from macpo.scoring import ScoreResponses
from macpo.stage import Stage


@dataclass(frozen=True, slots=True)
class Filter:
    """What the student keeps of its teachers' answers.

    Attributes:
        kind: by which merit, see `merit`.
        policy: in whose eyes: the student's positive policy as it is now, or as it was before the
            first round.
        samples: answers of each teacher to a prompt.
        top_k: how many of all are kept.
    """

    kind: FilterKind = "perplexity"
    policy: Literal["current", "initial"] = "current"
    samples: int = 1
    top_k: int = 1

    def lay_out(
        self,
        program: Program,
        t: int,
        judge: Policy,
        negative: Policy | None,
        answers: Sequence[Stage],
        rejected: Stage,
    ) -> tuple[Stage, Stage]:
        """Lay out round `t`'s filtering.

        Args:
            program: gets the stages.
            t: the round.
            judge: the student's positive policy that filters.
            negative: its negative one, which the contrast filters compare with.
            answers: the teachers'.
            rejected: the answers that they are paired with.

        Returns:
            The pairs, and the judge's scores of all answers in them, rejected ones included.
        """
        here = f"round-{t}/{judge.agent.name}"
        scores = program.add(ScoreResponses(f"{here}/filter-scores", judge, (*answers, rejected)))
        against = None
        if self.kind != "perplexity":
            assert negative is not None  # a method trains one where a filter asks for it
            against = program.add(
                ScoreResponses(f"{here}/negative-scores", negative, tuple(answers))
            )
        pairs = FilteredPairs(
            f"{here}/pairs", tuple(answers), rejected, scores, self.top_k, self.kind, against
        )
        return program.add(pairs), scores
