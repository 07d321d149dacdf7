"""What stages cost: tokens, floating-point operations and memory, estimated without running them.

Everything here is arithmetic on counts. It is rough on purpose: operations of attention itself are
left out (small beside the weights' for answers of hundreds of tokens), and so is what packing and
allocators add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from macpo.agents import Agent
    from macpo.stage import Stage

BYTES = {"float32": 4, "bfloat16": 2}
ADAPTER_BYTES = 16
"""Of an adapter's weight in training: itself, its gradient and AdamW's two moments, in float32."""
FULL_COPIES = 4
"""Of a weight that trains whole: itself, its gradient and AdamW's two moments, in its dtype."""
ACTIVATIONS_PER_HIDDEN, ACTIVATIONS_PER_INTERMEDIATE = 12, 4
"""Numbers that a decoder layer keeps for the backward pass, for each token and each unit of its
hidden and intermediate size: inputs of norms, projections and products, in the model's dtype."""


@dataclass(frozen=True, slots=True)
class SplitSizes:
    """Prompts and pairs of each split; `exact` when they were counted, not read off the config."""

    prompts: Mapping[str, int]
    pairs: Mapping[str, int]
    exact: bool


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean lengths in tokens of an agent's own tokenizer, template included.

    `measured` on a sample of the data; else they are the config's limits, which are the most.
    """

    prompt: float
    chosen: float
    rejected: float
    measured: bool


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens that a stage takes through its model.

    `read` without gradients (prompts to answer, answers to score), `written` one by one as
    answers, `trained` forward and backward. `at_most`: some lengths are upper bounds.
    """

    read: float = 0.0
    written: float = 0.0
    trained: float = 0.0
    at_most: bool = False

    @property
    def tokens(self) -> float:
        """All of them."""
        return self.read + self.written + self.trained


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers that an answering stage leaves: how many, and their mean length in tokens."""

    count: float
    tokens: float
    at_most: bool


class WorkEstimator:
    """Estimates the work of stages.

    Args:
        sizes: of the splits.
        lengths: by agent name.
        answered: number and mean length of answers of the stages that are done, by stage key.
    """

    def __init__(
        self, sizes: SplitSizes, lengths: Mapping[str, Lengths], answered: Mapping[str, Answers]
    ) -> None:
        self.sizes = sizes
        self.lengths = lengths
        self.answered = answered

    def work(self, stage: Stage) -> Work:
        """Return the work of a stage; none for those that only sort texts."""
        from macpo.evaluation.preference import Evaluate
        from macpo.generation.stages import Respond
        from macpo.scoring import ScorePairs, ScoreResponses
        from macpo.training.stages import SFTOnAnswers, SFTOnDataset, TrainDPO

        by_type: dict[type[Stage], Callable[..., Work]] = {
            Respond: self._respond,
            SFTOnDataset: self._sft_on_dataset,
            SFTOnAnswers: self._sft_on_answers,
            ScoreResponses: self._score_responses,
            ScorePairs: self._score_pairs,
            TrainDPO: self._dpo,
            Evaluate: self._evaluate,
        }
        estimate = by_type.get(type(stage))
        return estimate(stage) if estimate is not None else Work()
