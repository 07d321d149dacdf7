"""What a training run optimises, as the loop needs it: examples, and the loss of scored examples.

An objective turns the engine's sums of log-probabilities into one loss per example; the loop adds
them up over packs, so that no loss ever sees how its sequences were packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from macpo import losses
from macpo.likelihood import PromptGroup


@dataclass(frozen=True, slots=True)
class ExampleLosses:
    """Losses of some examples, `[examples]` with gradients, and numbers to show.

    `shown` maps names to `[examples]` tensors without gradients; the loop reports their means.
    """

    losses: Tensor
    shown: dict[str, Tensor]


class Objective(Protocol):
    """A data set with a loss. All groups of one objective have the same number of completions."""

    @property
    def groups(self) -> Sequence[PromptGroup]:
        """The examples, encoded."""
        ...

    def losses(self, indices: Sequence[int], sum_logprobs: Tensor) -> ExampleLosses:
        """Return the losses of the examples `indices`.

        Args:
            indices: which examples, in the order of `sum_logprobs`.
            sum_logprobs: `[len(indices) * completions per group]` float32, sums in nats.
        """
        ...


@dataclass(frozen=True, slots=True)
class SFTObjective:
    """Mean negative log-likelihood of one completion per prompt."""

    groups: Sequence[PromptGroup]

    def losses(self, indices: Sequence[int], sum_logprobs: Tensor) -> ExampleLosses:
        """See `Objective.losses`."""
        tokens = _tokens(self.groups, indices, 0, sum_logprobs)
        return ExampleLosses(losses.sft(sum_logprobs, tokens), {})


@dataclass(frozen=True, slots=True)
class DPOObjective:
    """L_DPO(beta) + gamma * L_SFT(chosen) on (chosen, rejected) groups (paper, section 3).

    `reference_sums` `[examples, 2]` float32: the reference policy's sum log-probabilities of
    chosen and rejected, in nats.
    """

    groups: Sequence[PromptGroup]
    reference_sums: Tensor
    beta: float
    gamma: float

    def losses(self, indices: Sequence[int], sum_logprobs: Tensor) -> ExampleLosses:
        """See `Objective.losses`."""
        chosen, rejected = sum_logprobs.view(-1, 2).unbind(1)
        reference = self.reference_sums[list(indices)].to(sum_logprobs.device)
        margin = losses.dpo_margin(chosen, rejected, reference[:, 0], reference[:, 1], self.beta)
        contrast = losses.dpo(margin)
        likelihood = losses.sft(chosen, _tokens(self.groups, indices, 0, chosen))
        shown = {
            "dpo_loss": contrast.detach(),
            "sft_loss": likelihood.detach(),
            "margin": margin.detach(),
        }
        return ExampleLosses(contrast + self.gamma * likelihood, shown)


def _tokens(
    groups: Sequence[PromptGroup], indices: Sequence[int], completion: int, like: Tensor
) -> Tensor:
    """Return the lengths in tokens of one completion of each example, `[examples]`."""
    lengths = [len(groups[i].completions[completion]) for i in indices]
    return torch.tensor(lengths, dtype=like.dtype, device=like.device)
