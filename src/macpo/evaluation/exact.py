"""Whether a policy's answers end with the right number, as GSM8K is scored."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal

from macpo.errors import DataError
from macpo.evaluation.evaluator import Evaluator, Subject, register_evaluator
from macpo.evaluation.measures import Item, item_means, write_measures
from macpo.records import PreferenceExample, read_examples, read_responses
from macpo.stage import Stage, StageContext
from macpo.tasks.numbers import final_number

_log = logging.getLogger("macpo")


@register_evaluator
class ExactAnswerEvaluator(Evaluator):
    """Compares the final number of an answer with that of the test split's chosen answer."""

    name: Literal["exact-answer"] = "exact-answer"

    def faults(self, source: str, answers: int) -> Iterator[str]:
        """See `EvaluatorConfig.faults`."""
        if not answers:
            yield "reads answers, but evaluation.answers is 0; raise it or remove the evaluator"

    def lay_out(self, subject: Subject) -> Iterable[Stage]:
        """See `Evaluator.lay_out`."""
        assert subject.answers is not None  # `faults` has seen to that
        yield MeasureExact(f"{subject.place}/exact-answer", subject.answers, subject.data)


@dataclass(frozen=True, eq=False)
class MeasureExact(Stage):
    """Compares final numbers; a prompt of which the data do not say one number is left out."""

    kind: ClassVar[str] = "exact-answer"

    answers: Stage
    data: Stage

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write measurements."""
        right = right_numbers(read_examples(context.path(self.data), "test"))
        responses = read_responses(context.path(self.answers))
        items = [
            measure_answer(response.prompt_id, response.text, right[response.prompt_id])
            for response in responses
            if response.prompt_id in right
        ]
        if not items:
            raise DataError(
                f"{self.name}: no chosen answer of the test prompts holds a number to compare "
                "with; remove the evaluator exact-answer"
            )
        if len(items) < len(responses):
            _log.warning(
                "%s: %d of %d test prompts are left out: their chosen answers hold no number, or "
                "differ in it",
                self.name,
                len(responses) - len(items),
                len(responses),
            )
        metrics = item_means(items)
        write_measures(context.output, metrics, items, exact_answers=len(items))
        return metrics


def right_numbers(examples: Iterable[PreferenceExample]) -> dict[str, Fraction]:
    """Return the final number of the chosen answers by prompt id, where there is one and only one.

    A prompt may have several pairs; if their chosen answers end with different numbers, or one with
    none, nobody knows which is right.
    """
    found: dict[str, set[Fraction | None]] = {}
    for example in examples:
        found.setdefault(example.prompt.id, set()).add(final_number(example.chosen))
    return {
        prompt_id: number
        for prompt_id, numbers in found.items()
        if len(numbers) == 1 and (number := next(iter(numbers))) is not None
    }


def measure_answer(prompt_id: str, answer: str, right: Fraction) -> Item:
    """Return whether an answer holds a number, and whether the final one is right."""
    number = final_number(answer)
    values = {
        "exact_accuracy": float(number == right),
        "answers_extracted": float(number is not None),
    }
    return Item(prompt_id, values)
