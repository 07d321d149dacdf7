"""The `evaluation.evaluators` list: what evaluators' options have in common, and which there are.

An evaluator is named by a word, or by a section with its options. What each of them measures stands
with its stages, in `macpo.evaluation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from macpo.config.base import Section
from macpo.config.values import shown
from macpo.registry import Registry


class EvaluatorConfig(Section):
    """Base of all evaluators' options.

    `default` says that the evaluator takes part where the config does not list any, if `faults`
    has nothing against it.
    """

    default: ClassVar[bool] = False

    name: str

    def faults(self, source: str, answers: int) -> Iterator[str]:
        """Yield why this evaluator cannot measure in a run.

        Args:
            source: `data.source` of the run.
            answers: `evaluation.answers`, the number of test prompts that are answered.
        """
        yield from ()


EVALUATORS: Registry[type[EvaluatorConfig]] = Registry(
    "evaluator",
    {
        "preference": "macpo.evaluation.preference",
        "answers": "macpo.evaluation.answers",
    },
)


def evaluator_class(item: Any) -> type[EvaluatorConfig] | None:
    """Return the class of an item as a config has it: a name, keys, or an instance.

    None when there is no such evaluator.
    """
    if isinstance(item, EvaluatorConfig):
        return type(item)
    name = item.get("name") if isinstance(item, dict) else item
    return EVALUATORS.find(name) if isinstance(name, str) else None


def read_evaluator(value: Any) -> EvaluatorConfig:
    """Read an item of `evaluation.evaluators`.

    Raises:
        ValueError: it names no evaluator, or has options that this one lacks.
    """
    if isinstance(value, EvaluatorConfig):
        return value
    if isinstance(value, str):
        value = {"name": value}
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str):
        raise ValueError(
            f"must be an evaluator's name, or a section with one in `name` (got {shown(value)})"
        )
    kind = evaluator_class(name)
    if kind is None:
        raise ValueError(EVALUATORS.unknown(name))
    return kind.model_validate(value)
