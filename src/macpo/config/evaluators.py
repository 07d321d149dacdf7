"""The `evaluation.evaluators` list: what evaluators' options have in common, and which there are.

An evaluator is named by a word, or by a section with its options. What each of them measures stands
with its stages, in `macpo.evaluation`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import field_validator

from macpo.config.base import Section
from macpo.config.values import Text, shown
from macpo.registry import Registry
from macpo.words import labelled

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


class EvaluatorConfig(Section):
    """Base of all evaluators' options.

    `default` says that the evaluator takes part where the config does not list any, if `faults`
    has nothing against it. `paths` names options that may be a path, and then one relative to the
    config file.
    """

    default: ClassVar[bool] = False
    paths: ClassVar[frozenset[str]] = frozenset()

    name: str

    @property
    def title(self) -> str:
        """What tells it from others in one run, such as its name."""
        return self.name

    def faults(self, source: str, answers: int) -> Iterator[str]:
        """Yield why this evaluator cannot measure in a run.

        Args:
            source: `data.source` of the run.
            answers: `evaluation.answers`, the number of test prompts that are answered.
        """
        yield from ()


class LabelledConfig(EvaluatorConfig):
    """Options of an evaluator that a run may have several times, as with two reward models.

    `label` then tells their metrics apart: `reward[mine]`.
    """

    label: Text | None = None

    @field_validator("label")
    @classmethod
    def _label_is_a_word(cls, value: str | None) -> str | None:
        if value is not None and not LABEL.fullmatch(value):
            raise ValueError(f"{shown(value)} is no label; use letters, digits, '-', '_' and '.'")
        return value

    @property
    def title(self) -> str:
        """Its name, with the label that it was given."""
        return labelled(self.name, self.label)


EVALUATORS: Registry[type[EvaluatorConfig]] = Registry(
    "evaluator",
    {
        "preference": "macpo.evaluation.preference",
        "answers": "macpo.evaluation.answers",
        "pairs": "macpo.evaluation.pairs",
        "kl": "macpo.evaluation.drift",
        "reward": "macpo.evaluation.reward",
        "judge": "macpo.evaluation.judge.evaluator",
        "exact-answer": "macpo.evaluation.exact",
        "constraints": "macpo.evaluation.constraints",
        "bbq": "macpo.evaluation.bbq",
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
