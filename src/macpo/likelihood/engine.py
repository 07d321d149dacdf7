"""One function for SFT, DPO, reference log-probs, the perplexity filter and preference accuracy:

given prompts, the log-probabilities of their completions.

`LikelihoodEngine.score_pack` is differentiable and is what training calls, pack by pack;
`LikelihoodEngine.score` runs many groups without gradients. How groups were packed, whether they
shared prefixes or were padded, never shows in the results (but for rounding).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from macpo.likelihood.architecture import Architecture, inspect_architecture
from macpo.likelihood.groups import Pack, PromptGroup, pack_groups
from macpo.likelihood.head import token_logprobs
from macpo.likelihood.layout import tree_hidden
from macpo.likelihood.padded import padded_hidden


@dataclass(frozen=True, slots=True)
class CompletionScore:
    """How probable one completion is: the sum over its tokens in nats, and how many there are."""

    sum_logprob: float
    tokens: int

    @property
    def mean_nll(self) -> float:
        """Mean negative log-likelihood, nats per token."""
        return -self.sum_logprob / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(mean_nll), as the paper's filter compares it; infinite where that overflows."""
        return math.exp(self.mean_nll) if self.mean_nll < 700 else math.inf


class LikelihoodEngine:
    """Scores completions under a model (transformers causal LM, or a PEFT model over one)."""

    def __init__(
        self, model: Any, *, pack_tokens: int = 2048, architecture: Architecture | None = None
    ) -> None:
        """Inspect the model once.

        Args:
            model: policy to score with; whichever adapter is active when scoring counts.
            pack_tokens: most tokens in one forward pass (a longer group goes alone).
            architecture: what the model allows, if known; otherwise inspected here.
        """
        self.model = model
        self.pack_tokens = pack_tokens
        self.causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.architecture = architecture or inspect_architecture(self.causal_lm)

    def packs(self, groups: Sequence[PromptGroup]) -> list[Pack]:
        """Divide groups into packs for `score_pack`."""
        return pack_groups(groups, self.pack_tokens)

    def score_pack(self, pack: Pack) -> Tensor:
        """Return the sum log-probability of every completion of a pack, in nats.

        Returns:
            `[completions]` float32, in the order of the groups and of their completions;
            differentiable with respect to whatever trains in the model.
        """
        device = self.causal_lm.device
        targets = torch.tensor([t for g in pack.groups for c in g.completions for t in c])
        lengths = [len(c) for g in pack.groups for c in g.completions]
        longest = max(len(g.prompt) + max(map(len, g.completions)) for g in pack.groups)
        if self.architecture.allows_tree(longest):
            hidden = tree_hidden(self.causal_lm, pack, device)
        else:
            hidden = padded_hidden(self.causal_lm, pack, device)
        logprobs = token_logprobs(
            hidden,
            self.causal_lm.get_output_embeddings().weight,
            targets.to(device),
            self.architecture.logit_softcap,
        )
        return torch.stack([part.sum() for part in torch.split(logprobs, lengths)])

    def score(
        self,
        groups: Sequence[PromptGroup],
        progress: Callable[[int], None] | None = None,
    ) -> list[list[CompletionScore]]:
        """Score all groups without gradients; one list per group, one score per completion.

        Args:
            groups: any number of groups.
            progress: called after each pack with the number of groups it held.
        """
        results: list[list[CompletionScore]] = [[] for _ in groups]
        with torch.inference_mode():
            for pack in self.packs(groups):
                sums = iter(self.score_pack(pack).tolist())
                for index, group in zip(pack.indices, pack.groups, strict=True):
                    results[index] = [
                        CompletionScore(next(sums), len(c)) for c in group.completions
                    ]
                if progress is not None:
                    progress(len(pack.groups))
        return results
