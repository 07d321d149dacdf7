"""How many of the constraints in its prompt an answer meets, checked by rule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar, Literal

from macpo.errors import DataError
from macpo.evaluation.evaluator import Evaluator, Subject, register_evaluator
from macpo.evaluation.measures import Item, item_means, write_measures
from macpo.records import read_answers
from macpo.stage import Stage, StageContext
from macpo.tasks.constraints import read_constraints


@register_evaluator
class ConstraintsEvaluator(Evaluator):
    """The share of constraints met, as far as prompts have them in the words that are known."""

    name: Literal["constraints"] = "constraints"

    def faults(self, source: str, answers: int) -> Iterator[str]:
        """See `EvaluatorConfig.faults`."""
        if not answers:
            yield "reads answers, but evaluation.answers is 0; raise it or remove the evaluator"

    def lay_out(self, subject: Subject) -> Iterable[Stage]:
        """See `Evaluator.lay_out`."""
        assert subject.answers is not None  # `faults` has seen to that
        yield MeasureConstraints(f"{subject.place}/constraints", subject.answers)


@dataclass(frozen=True, eq=False)
class MeasureConstraints(Stage):
    """Checks answers against the constraints in the last turn of their prompts.

    Raise `version` when a wording or a check changes: they are no fields.
    """

    kind: ClassVar[str] = "constraints"

    answers: Stage

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write measurements, of the prompts that have constraints."""
        items = []
        for prompt, response in read_answers(context.path(self.answers)):
            asked = read_constraints(prompt.messages[-1].content)
            if asked:
                met = [constraint.met(response.text) for constraint in asked]
                values = {"constraints_met": fmean(met), "constraints_all_met": float(all(met))}
                items.append(Item(prompt.id, values))
        if not items:
            raise DataError(
                f"{self.name}: no test prompt has a constraint in the words that can be checked "
                "(docs/tasks.md); remove the evaluator constraints"
            )
        metrics = item_means(items)
        write_measures(context.output, metrics, items, constrained_prompts=len(items))
        return metrics
