"""One function for SFT, DPO, reference log-probs, the perplexity filter and preference accuracy:

given prompts, the log-probabilities of their completions.

`LikelihoodEngine.score_pack` is differentiable and is what training calls, pack by pack;
`LikelihoodEngine.score` runs many groups without gradients. How groups were packed, whether they
shared prefixes, went on from copies of a state or were padded, never shows in the results (but for
rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from macpo.attention import base_model
from macpo.errors import ModelError, SmallestBudgetError
from macpo.likelihood.architecture import Architecture, inspect_architecture
from macpo.likelihood.branched import branched_hidden
from macpo.likelihood.groups import Pack, PromptGroup, pack_alike, pack_groups
from macpo.likelihood.head import most_probable_tokens, token_logprobs
from macpo.likelihood.kernels import forward_tree
from macpo.likelihood.padded import padded_hidden
from macpo.likelihood.recompute import recomputed_layers
from macpo.memory import asked_for, halved, is_out_of_memory, release
from macpo.models.sharding import is_sharded, one_pass
from macpo.probe import forget_lengths
from macpo.ranks import ALONE, Ranks, Told, shares
from macpo.records import CompletionScore


class LikelihoodEngine:
    """Scores completions under a model (transformers causal LM, or a PEFT model over one)."""

    def __init__(
        self,
        model: Any,
        *,
        pack_tokens: int = 2048,
        architecture: Architecture | None = None,
        ranks: Ranks = ALONE,
        checkpoint_activations: bool = False,
    ) -> None:
        """Inspect the model once.

        Args:
            model: policy to score with; whichever adapter is active when scoring counts.
            pack_tokens: most tokens in one forward pass (a longer group goes alone).
            architecture: what the model allows, if known; otherwise inspected here.
            ranks: who scores together, each with the same model.
            checkpoint_activations: decoder layers are computed again on the way back; completions
                then never go on from copies of a state, which no layer may write to twice.
        """
        self.model = model
        self.pack_tokens = pack_tokens
        self.checkpoint_activations = checkpoint_activations
        self.causal_lm = base_model(model)
        self.architecture = architecture or inspect_architecture(self.causal_lm)
        self.ranks = ranks

    def packs(self, groups: Sequence[PromptGroup]) -> list[Pack]:
        """Divide groups into packs for `score_pack`."""
        if self.architecture.fallback_reason:
            return pack_alike(groups, self.pack_tokens)
        return pack_groups(groups, self.pack_tokens)

    def gives_way(self, error: BaseException, pack: Pack) -> bool:
        """After an error in a pass, go on with a smaller `pack_tokens` if it was want of memory.

        The caller leaves its `except`, calls `macpo.memory.release` and packs anew what was not
        done. Ranks need not give way together: what one forwards in a pass is its own matter.

        Args:
            error: what was raised.
            pack: what was forwarded.

        Returns:
            Whether it was; else nothing has changed.

        Raises:
            SmallestBudgetError: the pack cannot be divided, or all ranks forward at once.
        """
        if is_out_of_memory(error) and is_sharded(self.causal_lm):
            raise SmallestBudgetError(
                f"out of memory{asked_for(error)} in a pass over a sharded base, which no rank can "
                f"repeat by itself; lower engine.pack_tokens (now {self.pack_tokens:,}), then run "
                "again"
            ) from error
        recompute = torch.is_grad_enabled() and not self.checkpoint_activations
        less = halved(
            error,
            min(self.pack_tokens, pack.tokens),
            len(pack.groups),
            "tokens in a pass",
            f"with one prompt and its answers in a pass ({pack.tokens:,} tokens); lower "
            "limits.prompt_tokens or limits.response_tokens, or set "
            + ("engine.checkpoint_activations: true or " if recompute else "")
            + "dtype: bfloat16; then run again",
        )
        if less is not None:
            self.pack_tokens = less
        return less is not None

    def tokens_read(self, groups: Sequence[PromptGroup], *, gradients: bool) -> int:
        """Return how many tokens `groups` take through the model, without those of padding.

        In padded rows a prompt is read again for each of its completions; else this is the sum of
        the groups' `tokens`, or less where they start alike.

        Args:
            groups: any number of groups.
            gradients: they are trained on, not only scored.
        """
        return sum(
            sum(len(group.prompt) + len(c) - 1 for c in group.completions)
            if self._layout([group], gradients) == "padded"
            else group.tokens
            for group in groups
        )

    def score_pack(self, pack: Pack) -> Tensor:
        """Return the sum log-probability of every completion of a pack, in nats.

        Returns:
            `[completions]` float32, in the order of the groups and of their completions;
            differentiable with respect to whatever trains in the model.
        """
        return torch.stack([part.sum() for part in self._completions(pack)])

    def score_ends(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """Return what `score_pack` does, and the share that each completion's last token has in it.

        Returns:
            Two `[completions]` float32, in nats, differentiable: of all tokens of a completion, and
            of its last one.
        """
        parts = self._completions(pack)
        return torch.stack([part.sum() for part in parts]), torch.stack([p[-1] for p in parts])

    def _completions(self, pack: Pack) -> tuple[Tensor, ...]:
        """Return the log-probabilities of the tokens of every completion of a pack."""
        logprobs = one_pass(
            self.causal_lm, lambda: self._logprobs(self._hidden(pack), self._targets(pack))
        )
        return torch.split(logprobs, [len(c) for g in pack.groups for c in g.completions])

    def score_tokens(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of every completion token, and of the model's own choice there.

        Returns:
            Two `[tokens]` float32, in nats, differentiable: of the tokens of all completions in
            the order of `score_pack`, and of the most probable token in the place of each.
        """

        def work() -> tuple[Tensor, Tensor]:
            hidden = self._hidden(pack)
            top = most_probable_tokens(hidden, self.architecture.head_of(self.causal_lm))
            return self._logprobs(hidden, self._targets(pack)), self._logprobs(hidden, top)

        return one_pass(self.causal_lm, work)

    def fillers(self, packs: Sequence[Pack], spare: PromptGroup) -> list[Pack]:
        """Return packs to forward besides, so that all ranks of a sharded model forward as often.

        Call it before any pass: a rank that is in one waits for the others there.

        Args:
            packs: that this rank is to forward.
            spare: a group, the smaller the better; what comes of it counts for nothing.
        """
        if not is_sharded(self.causal_lm):
            return []
        most = max(self.ranks.gather(len(packs)))
        return [Pack((spare,), (0,))] * (most - len(packs))

    def _hidden(self, pack: Pack) -> Tensor:
        """Forward a pack; return the hidden states that predict, `[tokens, width]`."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            with recomputed_layers(self.causal_lm):
                return self._forward(pack)
        return self._forward(pack)

    def _forward(self, pack: Pack) -> Tensor:
        """See `_hidden`."""
        found, device = self.architecture, self.causal_lm.device
        if found.rope_limit is not None:
            forget_lengths(self.causal_lm)
        layout = self._layout(pack.groups, torch.is_grad_enabled())
        if layout == "tree":
            return forward_tree(self.causal_lm, pack, device, found.attention.name)
        if is_sharded(self.causal_lm):
            raise ModelError(
                "a sharded base is forwarded in trees, as often on all ranks, and this model or a "
                "sequence of this length does not allow them; set engine.sharding: none"
            )
        if layout == "branched" and found.branching is not None:
            return branched_hidden(self.causal_lm, pack, device, found.branching.equal)
        return padded_hidden(self.causal_lm, pack, device, found.rope_limit)

    def _layout(
        self, groups: Sequence[PromptGroup], gradients: bool
    ) -> Literal["tree", "branched", "padded"]:
        """Choose how groups of one pack are forwarded."""
        longest = max(group.longest for group in groups)
        if self.architecture.allows_tree(longest):
            return "tree"
        shares = any(len(group.completions) > 1 for group in groups)
        shares = shares and not (gradients and self.checkpoint_activations)
        if shares and self.architecture.allows_branching(longest, gradients):
            return "branched"
        return "padded"

    def _targets(self, pack: Pack) -> Tensor:
        ids = [t for g in pack.groups for c in g.completions for t in c]
        return torch.tensor(ids, device=self.causal_lm.device)

    def _logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return token_logprobs(hidden, self.architecture.head_of(self.causal_lm), targets)

    def score(
        self,
        groups: Sequence[PromptGroup],
        progress: Callable[[int], None] | None = None,
    ) -> list[list[CompletionScore]]:
        """Score all groups without gradients; one list per group, one score per completion.

        Ranks score a share each, of as many tokens, and all of them get all scores.

        Args:
            groups: any number of groups.
            progress: called after each pack with the number of groups scored since the last call.
        """
        dealt = shares([group.tokens for group in groups], self.ranks.size)
        mine = [groups[place] for place in dealt[self.ranks.rank]]
        told = None if progress is None else Told(progress, len(mine), len(groups))
        spare = min(groups, key=lambda group: group.tokens, default=None)
        scored = self._score(mine, told, spare)
        said = self.ranks.gather([[[s.sum_logprob, s.tokens] for s in group] for group in scored])
        results: list[list[CompletionScore]] = [[] for _ in groups]
        for places, found in zip(dealt, said, strict=True):
            for place, group in zip(places, found, strict=True):
                results[place] = [CompletionScore(*score) for score in group]
        if told is not None:
            told.finish()
        return results

    def _score(
        self,
        groups: Sequence[PromptGroup],
        progress: Callable[[int], None] | None,
        spare: PromptGroup | None,
    ) -> list[list[CompletionScore]]:
        """Score this rank's groups; see `score`, and `fillers` for `spare`."""
        results: list[list[CompletionScore]] = [[] for _ in groups]
        packs = self.packs(groups)
        # What FSDP gathers in inference mode could not be trained with afterwards.
        sharded = is_sharded(self.causal_lm)
        with torch.no_grad() if sharded else torch.inference_mode():
            for filler in self.fillers(packs, spare) if spare is not None else ():
                self.score_pack(filler)
            while packs:
                sums = self._sums_if_they_fit(packs[0])
                if sums is None:
                    release()
                    packs = self._packed_anew(packs)
                    continue
                pack, *packs = packs
                found = iter(sums)
                for index, group in zip(pack.indices, pack.groups, strict=True):
                    results[index] = [
                        CompletionScore(next(found), len(c)) for c in group.completions
                    ]
                if progress is not None:
                    progress(len(pack.groups))
        return results

    def _sums_if_they_fit(self, pack: Pack) -> list[float] | None:
        """Return what `score_pack` does; None if it takes too much memory, see `gives_way`."""
        try:
            return self.score_pack(pack).tolist()
        except Exception as error:
            if not self.gives_way(error, pack):
                raise
        return None

    def _packed_anew(self, packs: Sequence[Pack]) -> list[Pack]:
        """Divide the groups of packs into smaller ones; places stay those of the caller's list."""
        places = [i for pack in packs for i in pack.indices]
        groups = [group for pack in packs for group in pack.groups]
        return [
            Pack(pack.groups, tuple(places[i] for i in pack.indices)) for pack in self.packs(groups)
        ]
