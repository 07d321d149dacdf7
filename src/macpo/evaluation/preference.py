"""Metrics on held-out pairs: does a policy prefer what people preferred, and how does it answer?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from macpo.agents import Policy
from macpo.data.stages import read_examples
from macpo.likelihood import CompletionScore
from macpo.models.chat import Chat
from macpo.records import dataset_response
from macpo.scoring import encode_group, read_prompts, read_responses
from macpo.stage import Stage, StageContext

METRICS_FILE = "metrics.json"


def preference_accuracy(scores: Sequence[tuple[CompletionScore, CompletionScore]]) -> float:
    """Return the share of pairs whose chosen answer has the higher mean log-probability per token.

    Length-normalised, so that short answers do not win by being short; a tie counts one half.

    Args:
        scores: (chosen, rejected) of each pair, under one policy.
    """
    points = [
        1.0 if chosen.mean_nll < rejected.mean_nll else 0.5 * (chosen.mean_nll == rejected.mean_nll)
        for chosen, rejected in scores
    ]
    return sum(points) / len(points)


def corpus_perplexity(scores: Sequence[CompletionScore]) -> float:
    """Return exp of the mean negative log-likelihood (nats) over all tokens of all answers."""
    total = -sum(score.sum_logprob for score in scores)
    return math.exp(min(total / sum(score.tokens for score in scores), 700.0))


def repetition(token_ids: Sequence[int], n: int = 4) -> float:
    """Return the share of an answer's n-grams of tokens that stood earlier in the same answer.

    seq-rep-n (Welleck et al. 2020, arXiv 1908.04319, section 6.1): 0 if no n-gram comes twice, near
    1 for a sentence repeated without end. An answer of fewer than n tokens has none: 0.
    """
    ngrams = _ngrams(token_ids, n)
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def copying(token_ids: Sequence[int], prompt_ids: Sequence[int], n: int = 4) -> float:
    """Return the share of an answer's n-grams of tokens that stand in its prompt.

    The prompt is what the model saw: earlier turns, and a system prompt that the chat template
    adds. An answer of fewer than n tokens has none: 0.
    """
    ngrams, seen = _ngrams(token_ids, n), set(_ngrams(prompt_ids, n))
    return sum(ngram in seen for ngram in ngrams) / len(ngrams) if ngrams else 0.0


def _ngrams(token_ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(token_ids[i:] for i in range(n)), strict=False))


@dataclass(frozen=True, eq=False)
class Evaluate(Stage):
    """Scores the test split's pairs under a policy, and measures its answers to test prompts.

    `answers` is the stage with this policy's answers to some test prompts, or None.
    """

    kind: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 3

    policy: Policy
    data: Stage
    answers: Stage | None

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write metrics.json."""
        examples = read_examples(context.path(self.data), "test")
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
        engine = loaded.engine(context.engine.pack_tokens)
        scored = engine.score(groups, context.counter(len(groups)))
        pairs = [(chosen, rejected) for chosen, rejected in scored]
        metrics = {
            "preference_accuracy": preference_accuracy(pairs),
            "gold_perplexity": corpus_perplexity([chosen for chosen, _ in pairs]),
        }
        if self.answers is not None:
            metrics |= self._measure_answers(context.path(self.answers), loaded.chat)
        text = json.dumps({**metrics, "pairs": len(pairs)}, indent=1, sort_keys=True)
        (context.output / METRICS_FILE).write_text(text + "\n", encoding="utf-8")
        return metrics

    def _measure_answers(self, folder: Path, chat: Chat) -> dict[str, float]:
        """Return means over the policy's answers to test prompts."""
        limit = self.policy.agent.limits.prompt_tokens
        answers = [
            (response, chat.encode_prompt(prompt, limit).ids)
            for prompt, response in zip(read_prompts(folder), read_responses(folder), strict=True)
        ]
        return {
            "answer_tokens": fmean(len(r.token_ids) for r, _ in answers),
            "answer_repetition": fmean(repetition(r.token_ids) for r, _ in answers),
            "answer_copying": fmean(copying(r.token_ids, ids) for r, ids in answers),
            "answers_finished": fmean(r.finished for r, _ in answers),
        }
