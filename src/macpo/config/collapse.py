"""The `evaluation.collapse` section: from where on a change is called a sign of collapse."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from macpo.config.base import Section
from macpo.config.values import Positive

Rise = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


class CollapseConfig(Section):
    """Thresholds of the signs of collapse; why they are as they are stands in docs/collapse.md.

    `perplexity` is the share by which the perplexity of good answers may rise above the lowest so
    far. `repetition` and `copying` are shares of an answer's 4-grams, by which they may rise above
    round 0. `refused` is the share of a round's candidates that `method.guard` may refuse beyond
    that of the first round. `reward` is a number of standard errors, by which a reward may fall
    below the best so far. The others only warn, and never end a run: `length` is the factor by
    which answers may become longer or shorter than in round 0, `diversity` the share of round 0's
    distinct word pairs that must be left, `likeness` how like each other chosen and rejected
    answers may be (0 to 1).
    """

    added: ClassVar[frozenset[str]] = frozenset({"refused"})

    perplexity: Positive = 0.2
    repetition: Rise = 0.1
    copying: Rise = 0.1
    refused: Rise = 0.2
    reward: Positive = 2.0
    length: Annotated[float, Field(gt=1)] = 2.0
    diversity: Share = 0.5
    likeness: Share = 0.9
