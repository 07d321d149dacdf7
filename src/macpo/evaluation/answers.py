"""Metrics on a policy's own answers that need neither labels nor a judge.

They show what preference accuracy does not: answers that fall apart while it stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from macpo.agents import Agent
from macpo.config.values import Flag
from macpo.evaluation.diversity import measure_diversity, self_bleu
from macpo.evaluation.evaluator import Evaluator, Subject, register_evaluator
from macpo.evaluation.measures import Item, item_means, write_measures
from macpo.form import copying, repetition
from macpo.records import Response, read_prompts, read_responses
from macpo.stage import Stage, StageContext


@register_evaluator
class AnswersEvaluator(Evaluator):
    """Length, repetition, copying and diversity of a policy's answers to test prompts.

    `self_bleu` adds how like each other they are by BLEU, which takes the square of their number.
    """

    default: ClassVar[bool] = True

    name: Literal["answers"] = "answers"
    self_bleu: Flag = False

    def faults(self, source: str, answers: int) -> Iterator[str]:
        """See `EvaluatorConfig.faults`."""
        if not answers:
            yield "measures answers, but evaluation.answers is 0; raise it or remove the evaluator"
        if self.self_bleu and find_spec("sacrebleu") is None:
            yield "self_bleu needs sacrebleu: pip install 'macpo[diversity]', or remove it"

    def lay_out(self, subject: Subject) -> Iterable[Stage]:
        """See `Evaluator.lay_out`."""
        assert subject.answers is not None  # `faults` has seen to that
        name = f"{subject.place}/answer-metrics"
        yield MeasureAnswers(name, subject.policy.agent, subject.answers, self.self_bleu)


@dataclass(frozen=True, eq=False)
class MeasureAnswers(Stage):
    """Measures the answers of an answering stage, in tokens of `reader`, who gave them."""

    kind: ClassVar[str] = "measure-answers"
    version: ClassVar[int] = 2

    reader: Agent
    answers: Stage
    self_bleu: bool = False

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write measurements."""
        folder, limit = context.path(self.answers), self.reader.limits.prompt_tokens
        chat = context.policies.chat(self.reader)
        prompts = [chat.encode_prompt(prompt, limit).ids for prompt in read_prompts(folder)]
        responses = read_responses(folder)
        items = measure_answers(responses, prompts)
        metrics = item_means(items)
        metrics |= measure_diversity([response.text for response in responses])
        if self.self_bleu:
            metrics["self_bleu"] = self_bleu([response.text for response in responses])
        write_measures(context.output, metrics, items, answers=len(responses))
        return metrics


def measure_answers(responses: Sequence[Response], prompts: Sequence[Sequence[int]]) -> list[Item]:
    """Return length, repetition, copying, and whether it ended, of each answer.

    Args:
        responses: a policy's answers, with their token ids.
        prompts: the token ids that it saw before each of them.
    """
    return [
        Item(
            response.prompt_id,
            {
                "answer_tokens": float(len(response.token_ids)),
                "answer_repetition": repetition(response.token_ids),
                "answer_copying": copying(response.token_ids, ids),
                "answers_finished": float(response.finished),
            },
        )
        for response, ids in zip(responses, prompts, strict=True)
    ]
