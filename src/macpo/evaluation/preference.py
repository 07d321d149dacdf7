"""The evaluation of a policy: does it prefer what people preferred on held-out pairs?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from macpo.agents import Agent, Policy
from macpo.evaluation.evaluator import Evaluator, Subject, register_evaluator
from macpo.evaluation.measures import Item, write_measures
from macpo.records import CompletionScore, Split, dataset_response, read_examples
from macpo.stage import Stage, StageContext
from macpo.work import Known, Work


@register_evaluator
class PreferenceEvaluator(Evaluator):
    """Preference accuracy and perplexity on the pairs of the test split."""

    default: ClassVar[bool] = True

    name: Literal["preference"] = "preference"

    def lay_out(self, subject: Subject) -> Iterable[Stage]:
        """See `Evaluator.lay_out`."""
        yield Evaluate(f"{subject.place}/evaluate", subject.policy, subject.data)


def preference_accuracy(scores: Sequence[tuple[CompletionScore, CompletionScore]]) -> float:
    """Return the share of pairs whose chosen answer has the higher mean log-probability per token.

    Length-normalised, so that short answers do not win by being short; a tie counts one half.

    Args:
        scores: (chosen, rejected) of each pair, under one policy.
    """
    return sum(prefers(chosen, rejected) for chosen, rejected in scores) / len(scores)


def prefers(chosen: CompletionScore, rejected: CompletionScore) -> float:
    """Return 1 where the chosen answer is more probable per token, 0 where not, 0.5 for a tie."""
    if chosen.mean_nll == rejected.mean_nll:
        return 0.5
    return 1.0 if chosen.mean_nll < rejected.mean_nll else 0.0


def corpus_perplexity(scores: Sequence[CompletionScore]) -> float:
    """Return exp of the mean negative log-likelihood (nats) over all tokens of all answers."""
    total = -sum(score.sum_logprob for score in scores)
    return math.exp(min(total / sum(score.tokens for score in scores), 700.0))


@dataclass(frozen=True, eq=False)
class Evaluate(Stage):
    """Scores the test split's pairs under a policy."""

    kind: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 5
    split: ClassVar[Split] = "test"
    accuracy: ClassVar[str] = "preference_accuracy"
    perplexity: ClassVar[str] = "gold_perplexity"
    counted: ClassVar[str] = "pairs"

    policy: Policy
    data: Stage

    @property
    def agent(self) -> Agent:
        """The policy's."""
        return self.policy.agent

    def work(self, known: Known) -> Work:
        """Read every pair of the split."""
        return known.reading(self.agent, known.labelled(self.split, self.agent))

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write measurements."""
        from macpo.scoring import encode_group

        examples = read_examples(context.path(self.data), self.split)
        loaded = context.policies.load(self.policy)
        groups = [
            encode_group(
                loaded.chat,
                self.policy.agent,
                e.prompt,
                [dataset_response(e.prompt, e.chosen), dataset_response(e.prompt, e.rejected)],
            )
            for e in examples
        ]
        engine = loaded.engine(context.engine.pack_tokens, context.ranks)
        scored = engine.score(groups, context.counter(len(groups)))
        # Answers that are the same tokens, perhaps after the cut, tie: rounding must not decide.
        pairs = [
            (chosen, chosen if len(set(group.completions)) == 1 else rejected)
            for group, (chosen, rejected) in zip(groups, scored, strict=True)
        ]
        metrics = {
            self.accuracy: preference_accuracy(pairs),
            self.perplexity: corpus_perplexity([chosen for chosen, _ in pairs]),
        }
        items = [
            Item(example.prompt.id, {self.accuracy: prefers(*pair)})
            for example, pair in zip(examples, pairs, strict=True)
        ]
        write_measures(context.output, metrics, items, **{self.counted: len(pairs)})
        return metrics


@dataclass(frozen=True, eq=False)
class Validate(Evaluate):
    """Scores the validation split's pairs, by which a run may decide when to stop."""

    kind: ClassVar[str] = "validate"
    version: ClassVar[int] = 1
    split: ClassVar[Split] = "validation"
    accuracy: ClassVar[str] = "validation_accuracy"
    perplexity: ClassVar[str] = "validation_perplexity"
    counted: ClassVar[str] = "validation_pairs"
