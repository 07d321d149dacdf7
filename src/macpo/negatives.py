"""Ways to make `rejected` answers beside the paper's negative fine-tuning (its open question 2).

Adversarial prompting and adversarial decoding are options of the answering stage
(`macpo.generation.stages.Respond`): a policy answers under a system prompt that asks for bad
behaviour, or its negative twin answers, pushed away from it token by token. Worst of n samples a
policy several times and keeps the answer that it finds most perplexing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from macpo.agents import Agent
from macpo.records import read_prompts, read_responses, read_scores, write_answers
from macpo.stage import Stage, StageContext
from macpo.work import Answers, Known


@dataclass(frozen=True, eq=False)
class WorstAnswers(Stage):
    """Of several answers to each prompt, the one of highest perplexity under `scores`' policy."""

    kind: ClassVar[str] = "worst"

    answers: tuple[Stage, ...]
    scores: Stage

    def leaves(self, known: Known, reader: Agent) -> tuple[Answers, ...]:
        """One of the answers to each prompt."""
        return known.left_by(self.answers[0], reader)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write prompts.jsonl and responses.jsonl, as an answering stage does."""
        scores = read_scores(context.path(self.scores))
        folders = [context.path(stage) for stage in self.answers]
        prompts = read_prompts(folders[0])
        worst = []
        for answers in zip(*map(read_responses, folders), strict=True):
            scored = [response for response in answers if response.id in scores]
            worst.append(
                max(scored, key=lambda response: scores[response.id].mean_nll)
                if scored
                else answers[0]
            )
        write_answers(context.output, zip(prompts, worst, strict=True))
        return {"responses": len(worst), "empty": sum(r.is_empty for r in worst)}
