"""Which of the ways to attend through a tree a model gets on its device, found by trial.

    varlen   gathered keys, torch's kernel for variable lengths     CUDA, 16 bits
    flex     a mask by blocks, FlexAttention                        CUDA
    loop     group after group (`macpo.likelihood.layout`)          everywhere

The first that gives the loop's logits and gradients is taken. On a CPU the loop is the fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from macpo.likelihood.branching import near, outcome
from macpo.likelihood.flex import FlexLayout, flex_layout
from macpo.likelihood.gathered import GatheredLayout, gathered_layout
from macpo.likelihood.groups import Pack, PromptGroup
from macpo.likelihood.head import Head
from macpo.likelihood.layout import TreeLayout, laid_out_hidden, tree_layout
from macpo.probe import TRIAL_ERRORS, agree, first_line, probe_ids

LOOP, VARLEN, FLEX = "loop", "varlen", "flex"
SHARED, PROMPTS, COMPLETIONS = 3, (4, 2), ((5, 1, 3), (6, 2))
"""Tokens that the trial's prompts start with, those of their own, and those of completions."""

Layout = TreeLayout | GatheredLayout | FlexLayout


@dataclass(frozen=True, slots=True)
class Chosen:
    """The way that was taken, and why not those before it, by their names."""

    name: str
    refused: dict[str, str]

    def __str__(self) -> str:
        """Say both, as half a sentence."""
        others = "; ".join(f"not {name}: {why}" for name, why in self.refused.items())
        return f"{self.name} ({others})" if others else self.name


BY_LOOP = Chosen(LOOP, {})


def lay_out(pack: Pack, dtype: torch.dtype, device: torch.device, attention: str) -> Layout:
    """Lay out a pack for one way of attending."""
    if attention == VARLEN:
        return gathered_layout(pack, device)
    if attention == FLEX:
        return flex_layout(pack, device)
    return tree_layout(pack, dtype, device)


def forward_tree(causal_lm: Any, pack: Pack, device: torch.device, attention: str) -> Tensor:
    """Forward a pack as one row; return the hidden states that predict, `[targets, width]`.

    Targets are the tokens of all completions, in the order of the groups and their completions.
    """
    return laid_out_hidden(causal_lm, pack, lay_out(pack, causal_lm.dtype, device, attention))


def choose_attention(causal_lm: Any, head: Head, candidates: Sequence[str] | None = None) -> Chosen:
    """Find out how a model that bears trees may attend.

    Args:
        causal_lm: a transformers causal LM, without dropout.
        head: its head.
        candidates: what to try before the loop; None for what its device may have.
    """
    device = causal_lm.device
    if candidates is None:
        candidates = (VARLEN, FLEX) if device.type == "cuda" else ()
    if not candidates:
        return BY_LOOP
    pack = _pack(causal_lm)

    def with_way(name: str) -> Callable[[Any], Tensor]:
        return lambda _: forward_tree(causal_lm, pack, device, name)

    logits, gradient, _ = outcome(causal_lm, head, with_way(LOOP))
    refused = {}
    for name in candidates:
        try:
            ours, own, _ = outcome(causal_lm, head, with_way(name))
        except TRIAL_ERRORS as error:
            refused[name] = first_line(error)
            continue
        lengths = [len(c) for group in pack.groups for c in group.completions]
        parts = zip(torch.split(ours, lengths), torch.split(logits, lengths), strict=True)
        if not all(agree(a, b, causal_lm.dtype) for a, b in parts):
            refused[name] = "in a trial its logits were others than the loop's"
        elif not near(own, gradient, causal_lm.dtype):
            refused[name] = "in a trial its gradients were others than the loop's"
        else:
            return Chosen(name, refused)
    return Chosen(LOOP, refused)


def _pack(causal_lm: Any) -> Pack:
    """Return what is tried: two prompts that start alike, with completions of unlike lengths."""
    count = SHARED + sum(PROMPTS) + sum(map(sum, COMPLETIONS))
    ids = iter(probe_ids(causal_lm, count))

    def take(length: int) -> tuple[int, ...]:
        return tuple(next(ids) for _ in range(length))

    start = take(SHARED)
    groups = tuple(
        PromptGroup((*start, *take(own)), tuple(take(c) for c in lengths))
        for own, lengths in zip(PROMPTS, COMPLETIONS, strict=True)
    )
    return Pack(groups, tuple(range(len(groups))))
