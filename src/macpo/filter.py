"""The perplexity filter (paper, section 3.2): which of the teachers' answers the student learns.

Mutual positive behaviour augmentation: the student takes, per prompt, the teachers' answers that it
finds least perplexing. Beside that stand two filters by contrast with its negative policy, one that
takes what is as likely as its own answers are, and one by lot: what any of them is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, ClassVar, Literal

from macpo.agents import Agent, Policy
from macpo.errors import DataError
from macpo.pairs import Verdicts, leave_pairs
from macpo.program import Program
from macpo.records import (
    CompletionScore,
    Pair,
    Prompt,
    Response,
    read_answers,
    read_responses,
    read_scores,
    write_jsonl,
)
from macpo.scoring import ScoreResponses
from macpo.seeds import stable_seed
from macpo.stage import Stage, StageContext
from macpo.work import Answers, Known

Merit = Literal["perplexity", "contrast-mean", "contrast-sum", "typical", "random"]
CONTRASTS: tuple[Merit, ...] = ("contrast-mean", "contrast-sum")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible positive: its score under the student, and what else a filter asks for.

    `negative_score` is that under the student's negative policy, `usual` the mean negative
    log-likelihood per token of the student's own answers (nats), `lot` a random number, 0 to 1.
    """

    response: Response
    score: CompletionScore
    negative_score: CompletionScore | None = None
    usual: float = 0.0
    lot: float = 0.0


def merit(candidate: Candidate, filter: Merit) -> float:
    """Return how good a candidate is in the eyes of a filter; higher is better, in nats.

    `perplexity` is the paper's: minus the mean negative log-likelihood per token. `typical` is
    minus the distance of that to the mean of the student's own answers: neither odd nor too easily
    said. `random` is the candidate's lot. The others measure contrast, log pi(y) under the positive
    policy minus that under the negative one, summed over tokens or as a mean.
    """
    if filter == "perplexity":
        return -candidate.score.mean_nll
    if filter == "typical":
        return -abs(candidate.score.mean_nll - candidate.usual)
    if filter == "random":
        return candidate.lot
    assert candidate.negative_score is not None
    contrast = candidate.score.sum_logprob - candidate.negative_score.sum_logprob
    return contrast / candidate.score.tokens if filter == "contrast-mean" else contrast


def best(candidates: Sequence[Candidate], filter: Merit, top_k: int) -> list[Candidate]:
    """Return the `top_k` candidates of highest merit, best first.

    Ties go to the earlier candidate, that is to the teacher that stands first in the config.
    """
    order = sorted(range(len(candidates)), key=lambda i: (-merit(candidates[i], filter), i))
    return [candidates[i] for i in order[:top_k]]


@dataclass(frozen=True, slots=True)
class Filter:
    """What the student keeps of its teachers' answers.

    Attributes:
        kind: by which merit, see `merit`.
        policy: in whose eyes: the student's positive policy as it is now, as it was before the
            first round, or its bare base.
        samples: answers of each teacher to a prompt.
        top_k: how many of all are kept.
    """

    kind: Merit = "perplexity"
    policy: Literal["current", "initial", "base"] = "current"
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
        guard: Stage | None = None,
        own: Stage | None = None,
        usual: Stage | None = None,
    ) -> tuple[Stage, Stage]:
        """Lay out round `t`'s filtering.

        Args:
            program: gets the stages.
            t: the round.
            judge: the student's positive policy that filters.
            negative: its negative one, which the contrast filters compare with.
            answers: the teachers'.
            rejected: the answers that they are paired with.
            guard: what is refused of the answers, None for nothing.
            own: the student's own answers: refused ones take the place of rejected ones.
            usual: the judge's own answers, for `typical`.

        Returns:
            The pairs, and the judge's scores of all answers in them, rejected ones included.
        """
        here = f"round-{t}/{judge.agent.name}"
        also = dict.fromkeys(stage for stage in (own, usual) if stage is not None)
        scored = (*answers, rejected, *also)
        scores = program.add(ScoreResponses(f"{here}/filter-scores", judge, scored))
        against = None
        if self.kind in CONTRASTS:
            assert negative is not None  # a method trains one where a filter asks for it
            against = program.add(
                ScoreResponses(f"{here}/negative-scores", negative, tuple(answers))
            )
        pairs = FilteredPairs(
            f"{here}/pairs",
            tuple(answers),
            rejected,
            scores,
            top_k=self.top_k,
            filter=self.kind,
            negative_scores=against,
            guard=guard,
            own=own,
            usual=usual,
            seed=program.seed("filter", t) if self.kind == "random" else None,
        )
        return program.add(pairs), scores


@dataclass(frozen=True, eq=False)
class FilteredPairs(Stage):
    """Pairs for the student: least perplexing teachers' answers against its own negative's.

    `scores` is the student's scoring of all `positives` and of `negatives`, `negative_scores` that
    of its negative policy for the filters that need it. With `top_k` above one a prompt gives that
    many pairs. `guard` refuses some of the positives; what it refuses of the student's `own`
    answers takes the negatives' place. `usual` are answers of the policy that filters, scored too,
    for the filter that measures by them; `seed` is that of the lots.
    """

    kind: ClassVar[str] = "pairs"
    version: ClassVar[int] = 2
    added: ClassVar[frozenset[str]] = frozenset({"guard", "own", "usual", "seed"})

    positives: tuple[Stage, ...]
    negatives: Stage
    scores: Stage
    top_k: int
    filter: Merit = "perplexity"
    negative_scores: Stage | None = None
    guard: Stage | None = None
    own: Stage | None = None
    usual: Stage | None = None
    seed: int | None = None

    def leaves(self, known: Known, reader: Agent) -> tuple[Answers, ...]:
        """The longest of the positives may win, `top_k` times a prompt."""
        positives = [a for stage in self.positives for a in known.left_by(stage, reader)]
        longest = max(positives, key=lambda answers: answers.tokens)
        (negatives,) = known.left_by(self.negatives, reader)
        count = longest.count * self.top_k
        return replace(longest, count=count), replace(negatives, count=count)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write pairs.jsonl, and filter.jsonl: every candidate's perplexity and who won."""
        scores = read_scores(context.path(self.scores))
        against = {}
        if self.negative_scores is not None:
            against = read_scores(context.path(self.negative_scores))
        answers = [read_responses(context.path(stage)) for stage in self.positives]
        asked = read_answers(context.path(self.negatives))
        verdicts = Verdicts.read(self.guard, self.own, context)
        usual = self._usual(scores, context)
        pairs: list[Pair] = []
        report: list[dict[str, Any]] = []
        wins: dict[str, int] = {}
        for (prompt, negative), *candidates in zip(asked, *answers, strict=True):
            scored = [
                Candidate(r, scores[r.id], against.get(r.id), usual, self._lot(prompt, place))
                for place, r in enumerate(candidates)
                if r.id in scores
            ]
            allowed = [c for c in scored if verdicts.lets(c.response)]
            winners = []
            for winner in best(allowed, self.filter, self.top_k):
                rejected = verdicts.rejected(negative, winner.response)
                if rejected.is_empty:
                    continue
                winners.append(winner)
                pairs.append(Pair(prompt, winner.response, rejected))
                name = winner.response.origin.policy
                wins[name] = wins.get(name, 0) + 1
            report.append(_filter_row(prompt, scored, winners, self.filter, verdicts))
        write_jsonl(context.output / "filter.jsonl", report)
        everything = [response for responses in answers for response in responses]
        return {
            **leave_pairs(pairs, len(asked), context, verdicts.why_none(everything)),
            **verdicts.counts(everything, pairs),
            "wins": dict(sorted(wins.items())),
        }

    def _usual(self, scores: Mapping[str, CompletionScore], context: StageContext) -> float:
        """Return the mean over the student's own answers of their nats per token, if asked for.

        Raises:
            DataError: all of them are empty.
        """
        if self.usual is None:
            return 0.0
        said = [r.id for r in read_responses(context.path(self.usual))]
        found = [scores[name].mean_nll for name in said if name in scores]
        if not found:
            raise DataError(
                "the student's own answers are all empty, so that filter: typical has nothing to "
                "measure by; take another filter, or train longer before the first round"
            )
        return fmean(found)

    def _lot(self, prompt: Prompt, place: int) -> float:
        """Draw a candidate's lot, by where it stands."""
        return 0.0 if self.seed is None else stable_seed(self.seed, prompt.id, place) / 2**63


def _filter_row(
    prompt: Prompt,
    scored: Sequence[Candidate],
    winners: Sequence[Candidate],
    filter: Merit,
    verdicts: Verdicts,
) -> dict[str, Any]:
    """Describe one prompt's filtering, for readers."""
    reasons = verdicts.reasons
    return {
        "prompt_id": prompt.id,
        "candidates": [
            {
                "policy": c.response.origin.policy,
                "perplexity": min(c.score.perplexity, 1e308),
                "merit": merit(c, filter),
                "tokens": c.score.tokens,
                "won": any(c is winner for winner in winners),
                "text": c.response.text,
                **({} if reasons is None else {"refused": reasons.get(c.response.id, ())}),
            }
            for c in scored
        ],
    }
