"""How far a policy has moved from where it was before the first round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar, Literal

from macpo.agents import Agent, Policy
from macpo.errors import DataError
from macpo.evaluation.evaluator import Evaluator, Subject, register_evaluator
from macpo.evaluation.measures import Item, write_measures
from macpo.records import CompletionScore, read_answers
from macpo.stage import Stage, StageContext
from macpo.work import Known, Work


@register_evaluator
class KLEvaluator(Evaluator):
    """The divergence of a policy from itself before the first round, on its own answers."""

    name: Literal["kl"] = "kl"

    def faults(self, source: str, answers: int) -> Iterator[str]:
        """See `EvaluatorConfig.faults`."""
        if not answers:
            yield "reads answers, but evaluation.answers is 0; raise it or remove the evaluator"

    def lay_out(self, subject: Subject) -> Iterable[Stage]:
        """See `Evaluator.lay_out`; in round 0 there is nothing to measure."""
        assert subject.answers is not None  # `faults` has seen to that
        if subject.first is not None:
            initial = subject.first.policy
            yield MeasureKL(f"{subject.place}/kl", subject.policy, initial, subject.answers)


@dataclass(frozen=True, eq=False)
class MeasureKL(Stage):
    """Scores a policy's answers under it and under what it was initially.

    The mean of log pi(y) - log pi_0(y) over answers y that pi sampled estimates KL(pi || pi_0) in
    nats. They were sampled as the run samples (temperature, top-p, top-k), so that it is an
    estimate for what the policy is seen to say, not for all that it might.
    """

    kind: ClassVar[str] = "measure-kl"

    policy: Policy
    initial: Policy
    answers: Stage

    @property
    def agent(self) -> Agent:
        """The policy's."""
        return self.policy.agent

    def work(self, known: Known) -> Work:
        """Read every answer twice."""
        return known.reading(self.agent, known.left_by(self.answers, self.agent)) * 2

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write measurements, of answers that are not empty."""
        from macpo.scoring import encode_group

        asked = [
            (prompt, response)
            for prompt, response in read_answers(context.path(self.answers))
            if not response.is_empty
        ]
        if not asked:
            raise DataError(f"{self.name}: all answers are empty; remove the evaluator kl")
        count = context.counter(2 * len(asked))
        scored: list[list[CompletionScore]] = []
        for policy in (self.policy, self.initial):
            loaded = context.policies.load(policy)
            groups = [encode_group(loaded.chat, policy.agent, p, [r]) for p, r in asked]
            scores = loaded.engine(context.engine.pack_tokens, context.ranks).score(groups, count)
            scored.append([score for (score,) in scores])
        items = [
            Item(prompt.id, {"kl_initial": now.sum_logprob - then.sum_logprob})
            for (prompt, _), now, then in zip(asked, *scored, strict=True)
        ]
        total = sum(item.values["kl_initial"] for item in items)
        metrics = {
            "kl_initial": fmean(item.values["kl_initial"] for item in items),
            "kl_initial_per_token": total / sum(score.tokens for score in scored[0]),
        }
        write_measures(context.output, metrics, items, answers=len(items))
        return metrics
