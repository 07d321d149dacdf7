"""The `method.guard` section: what an answer must not be to be chosen."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from macpo.config.base import Section
from macpo.config.values import Flag

Limit = Annotated[float, Field(ge=0, le=1)]


class GuardConfig(Section):
    """Which answers are refused as `chosen`, by their form; `guard: true` is short for `{}`.

    `repetition` is the most that may be repeated of an answer's word 3-grams, `sentences` of its
    sentences, `copying` the most of its 3-grams that may stand in its prompt, a system prompt that
    the chat template adds included; `unfinished` is whether it may have run into
    `sampling.max_new_tokens`. What is not given is measured: it is the `quantile` of the teachers'
    answers to the student's prompts before the first round, but at least .05 of repetition and .25
    of copying; unfinished answers are let through if more than the rest of these were so. With
    `failing_as_rejected` a learner's own current answer, where it is refused, takes the place of
    the one that it learns to avoid.
    """

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.9
    repetition: Limit | None = None
    sentences: Limit | None = None
    copying: Limit | None = None
    unfinished: Flag | None = None
    failing_as_rejected: Flag = True

    @model_validator(mode="after")
    def _a_quantile_measures_something(self) -> GuardConfig:
        limits = (self.repetition, self.sentences, self.copying, self.unfinished)
        if "quantile" in self.model_fields_set and None not in limits:
            raise ValueError("quantile has no effect where every limit is given; remove it")
        return self


def read_guard(value: Any) -> Any:
    """Read the short forms of a guard: `true` for all defaults, `false` for none."""
    if isinstance(value, bool):
        return GuardConfig() if value else None
    return value
