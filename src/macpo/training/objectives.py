"""What a training run optimises, as the loop needs it: examples, and the loss of scored examples.

An objective turns the engine's sums of log-probabilities into one loss per example; the loop adds
them up over packs, so that no loss ever sees how its sequences were packed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from macpo import losses
from macpo.config.training import Loss
from macpo.likelihood import LikelihoodEngine, Pack, PromptGroup


@dataclass(frozen=True, slots=True)
class ExampleLosses:
    """Losses of some examples, `[examples]` with gradients, and numbers to show.

    `shown` maps names to `[examples]` tensors without gradients; the loop reports their means.
    """

    losses: Tensor
    shown: dict[str, Tensor]


class Objective(Protocol):
    """A data set with a loss."""

    @property
    def groups(self) -> Sequence[PromptGroup]:
        """The examples, encoded."""
        ...

    def forward(
        self, engine: LikelihoodEngine, pack: Pack, indices: Sequence[int], progress: float
    ) -> ExampleLosses:
        """Score a pack of examples and return their losses.

        Args:
            engine: over the policy that trains.
            pack: groups of this objective.
            indices: which examples they are, in the order of the pack.
            progress: share of the optimizer steps that are done, in [0, 1).
        """
        ...


@dataclass(frozen=True, slots=True)
class SFTObjective:
    """Mean negative log-likelihood of one completion per prompt."""

    groups: Sequence[PromptGroup]

    def forward(
        self, engine: LikelihoodEngine, pack: Pack, indices: Sequence[int], progress: float
    ) -> ExampleLosses:
        """See `Objective.forward`."""
        return self.losses(indices, engine.score_pack(pack))

    def losses(self, indices: Sequence[int], sum_logprobs: Tensor) -> ExampleLosses:
        """Return the losses of examples with these sums in nats, `[len(indices)]` float32."""
        tokens = _tokens(self.groups, indices, 0, sum_logprobs)
        return ExampleLosses(losses.sft(sum_logprobs, tokens), {})


@dataclass(frozen=True, slots=True)
class DPOObjective:
    """L_DPO(beta) + gamma * L_SFT(chosen) on (chosen, rejected) groups (paper, section 3).

    `reference_sums` `[examples, 2]` float32: the reference policy's sum log-probabilities of
    chosen and rejected, in nats. `loss` stands for L_DPO, see `macpo.losses`; `ipo-mean` takes
    log-ratios per token, all others sums. `label_smoothing` is that of `sigmoid`. `weights`
    `[examples]` float32 say how much each pair's loss counts; without them all count 1. `ends`
    `[examples, 2]` float32 is 1 where an answer's last token counts in the SFT term alone, as
    Llama 3 leaves out end-of-turn tokens (arXiv 2407.21783, section 4.1.4); `reference_sums` are
    then without it, too.
    """

    groups: Sequence[PromptGroup]
    reference_sums: Tensor
    beta: float
    gamma: float
    loss: Loss = "sigmoid"
    label_smoothing: float = 0.0
    weights: Tensor | None = None
    ends: Tensor | None = None

    def forward(
        self, engine: LikelihoodEngine, pack: Pack, indices: Sequence[int], progress: float
    ) -> ExampleLosses:
        """See `Objective.forward`."""
        if self.ends is None:
            return self.losses(indices, engine.score_pack(pack))
        return self.losses(indices, *engine.score_ends(pack))

    def losses(
        self, indices: Sequence[int], sum_logprobs: Tensor, last_logprobs: Tensor | None = None
    ) -> ExampleLosses:
        """Return the losses of examples.

        Args:
            indices: which examples.
            sum_logprobs: of chosen and rejected in turn, in nats, `[2 * len(indices)]` float32.
            last_logprobs: likewise, of their last tokens alone, where there are `ends`.
        """
        whole, tokens = sum_logprobs.view(-1, 2)[:, 0], self._lengths(indices, sum_logprobs)
        counted, lengths = sum_logprobs.view(-1, 2), tokens
        if self.ends is not None:
            assert last_logprobs is not None  # `forward` asks the engine for them
            ends = self.ends[list(indices)].to(sum_logprobs.device)
            counted = counted - ends * last_logprobs.view(-1, 2)
            lengths = lengths - ends
        chosen, rejected = counted.unbind(1)
        reference = self.reference_sums[list(indices)].to(sum_logprobs.device)
        margin = losses.dpo_margin(chosen, rejected, reference[:, 0], reference[:, 1], self.beta)
        chosen_logratio = chosen - reference[:, 0]
        rejected_logratio = rejected - reference[:, 1]
        if self.loss == "sigmoid":
            contrast = losses.dpo(margin, self.label_smoothing)
        elif self.loss == "ipo-mean":
            contrast = losses.ipo(
                chosen_logratio / lengths[:, 0], rejected_logratio / lengths[:, 1], self.beta
            )
        else:
            contrast = _ON_SUMS[self.loss](chosen_logratio, rejected_logratio, self.beta)
        likelihood = losses.sft(whole, tokens[:, 0])
        shown = {
            "dpo_loss": contrast.detach(),
            "sft_loss": likelihood.detach(),
            "margin": margin.detach(),
            "chosen_logratio": chosen_logratio.detach(),
            "rejected_logratio": rejected_logratio.detach(),
        }
        loss = contrast + self.gamma * likelihood
        if self.weights is not None:
            loss = self.weights[list(indices)].to(loss.device) * loss
        return ExampleLosses(loss, shown)

    def _lengths(self, indices: Sequence[int], like: Tensor) -> Tensor:
        """Return the lengths in tokens of chosen and rejected, `[examples, 2]`."""
        return torch.stack([_tokens(self.groups, indices, side, like) for side in (0, 1)], dim=1)


_ON_SUMS: dict[Loss, Callable[[Tensor, Tensor, float], Tensor]] = {
    "ipo": losses.ipo,
    "sppo": losses.sppo,
    "apo-zero": losses.apo_zero,
    "apo-down": losses.apo_down,
}
"""Losses of the summed log-ratios of chosen and rejected, and beta."""


@dataclass(frozen=True, slots=True)
class ConfidentObjective:
    """SFT on weak labels, mixed with the policy's own predictions (arXiv 2312.09390).

    The weight of its own predictions rises linearly to `weight` over the first `warmup` of the
    steps; see `macpo.losses.confidence`.
    """

    groups: Sequence[PromptGroup]
    weight: float
    warmup: float
    threshold: float

    def forward(
        self, engine: LikelihoodEngine, pack: Pack, indices: Sequence[int], progress: float
    ) -> ExampleLosses:
        """See `Objective.forward`."""
        weight = self.weight * (min(1.0, progress / self.warmup) if self.warmup else 1.0)
        logprobs, own = engine.score_tokens(pack)
        per_token = losses.confidence(logprobs, own, weight, self.threshold)
        lengths = [len(self.groups[i].completions[0]) for i in indices]
        means = [part.mean() for part in torch.split(per_token, lengths)]
        return ExampleLosses(torch.stack(means), {})


@dataclass(frozen=True, slots=True)
class LogRatioObjective:
    """The policy's log-ratio on single answers is fitted to given ones (arXiv 2410.18640).

    `reference_sums` and `targets`, `[examples]` float32 in nats, are the reference policy's sum
    log-probabilities and the log-ratios to be fitted; see `macpo.losses.log_ratio_error`.
    """

    groups: Sequence[PromptGroup]
    reference_sums: Tensor
    targets: Tensor
    gamma: float

    def forward(
        self, engine: LikelihoodEngine, pack: Pack, indices: Sequence[int], progress: float
    ) -> ExampleLosses:
        """See `Objective.forward`."""
        return self.losses(indices, engine.score_pack(pack))

    def losses(self, indices: Sequence[int], sum_logprobs: Tensor) -> ExampleLosses:
        """Return the losses of examples with these sums in nats, `[len(indices)]` float32."""
        reference, targets = (
            values[list(indices)].to(sum_logprobs.device)
            for values in (self.reference_sums, self.targets)
        )
        logratio = sum_logprobs - reference
        tokens = _tokens(self.groups, indices, 0, sum_logprobs)
        error = losses.log_ratio_error(logratio, targets, self.gamma, tokens)
        return ExampleLosses(error, {"logratio": logratio.detach(), "target": targets})


def _tokens(
    groups: Sequence[PromptGroup], indices: Sequence[int], completion: int, like: Tensor
) -> Tensor:
    """Return the lengths in tokens of one completion of each example, `[examples]`."""
    lengths = [len(groups[i].completions[completion]) for i in indices]
    return torch.tensor(lengths, dtype=like.dtype, device=like.device)
