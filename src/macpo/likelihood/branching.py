"""Finding out whether completions may go on from copies of their prompt's state.

What is tried is `macpo.likelihood.branched` on a few tokens, against padded rows: the logits, and
the gradient of a vector that is added to every token's embedding. In 16 bits a layer that leaves
its state unread may hide in the rounding, so that is asked by itself: what has no gradient with
respect to some part of the prompts' state does not read it (Mamba's scan in transformers 5.23,
which goes on from a state by one token only), and a layer of which the cache holds nothing keeps
its state elsewhere (RecurrentGemma, in the module).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from macpo.likelihood.branched import PromptState, branched_hidden
from macpo.likelihood.groups import Pack, PromptGroup
from macpo.likelihood.head import Head, head_logits
from macpo.likelihood.padded import padded_hidden
from macpo.probe import TRIAL_ERRORS, agree, probe_ids, setting, tolerance

LENGTHS = ((3, (4, 2, 1)), (6, (3, 5)))
"""Tokens of the trial's prompts, and of their completions."""

NO_LAYER = "DummyLayer"
"""What stands in transformers' caches for a layer that keeps nothing."""

WHOLE_LAYERS = frozenset(
    {NO_LAYER, "DynamicLayer", "LinearAttentionLayer", "LinearAttentionAndFullAttentionLayer"}
)
"""Layers of transformers' caches that treat all lengths alike."""

SLIDING_LAYERS = frozenset(
    {"DynamicSlidingWindowLayer", "LinearAttentionAndSlidingWindowAttentionLayer"}
)
"""Those that keep a window."""

SELECTIONS = ("attention_chunk_size", "index_topk", "keep_window_size")
"""What configs call the tokens beyond which a layer sees only some; no short trial shows it."""


@dataclass(frozen=True, slots=True)
class Branching:
    """How a model may be forwarded from copies of its prompts' state.

    `equal` says that only prompts of the same length may share a pass, `trains` that gradients are
    right. `limit` is the most tokens of a prompt with a completion, None if there is none.
    """

    equal: bool
    trains: bool
    limit: int | None = None


def find_branching(causal_lm: Any, head: Head) -> Branching | None:
    """Try to forward from copies of a state; None where that is not right.

    Args:
        causal_lm: a transformers causal LM, without dropout.
        head: its head.
    """
    try:
        limits = _limits(causal_lm)
        return None if limits is None else _tried(causal_lm, head, min(limits, default=None))
    except TRIAL_ERRORS:
        return None


def _limits(causal_lm: Any) -> list[int] | None:
    """Return the lengths beyond which some layer sees less; None where its cache is not known."""
    config = causal_lm.config.get_text_config()
    named = [setting(config, name) for name in SELECTIONS]
    found = [value for value in named if isinstance(value, int)]
    for layer in PromptState(config=causal_lm.config).layers:
        kind = type(layer).__name__
        if kind in SLIDING_LAYERS:
            found.append(layer.sliding_window)
        elif kind not in WHOLE_LAYERS:
            return None
    return found


def _tried(causal_lm: Any, head: Head, limit: int | None) -> Branching | None:
    pack, device = _pack(causal_lm), causal_lm.device
    rows, rows_gradient, _ = outcome(
        causal_lm, head, lambda states: padded_hidden(causal_lm, pack, device)
    )
    for equal in (False, True):

        def forward(states: list[PromptState], equal: bool = equal) -> Tensor:
            return branched_hidden(causal_lm, pack, device, equal, states)

        logits, gradient, unread = outcome(causal_lm, head, forward)
        if unread:
            return None
        lengths = [len(c) for group in pack.groups for c in group.completions]
        parts = zip(torch.split(logits, lengths), torch.split(rows, lengths), strict=True)
        if not all(agree(ours, theirs, causal_lm.dtype) for ours, theirs in parts):
            continue
        trains = near(gradient, rows_gradient, causal_lm.dtype)
        # In 16 bits a single wrong row is lost among the rounding of others, but not its gradient.
        if trains or gradient is None or causal_lm.dtype.itemsize >= 4:
            return Branching(equal, trains, limit)
    return None


def _pack(causal_lm: Any) -> Pack:
    """Return what is tried: prompts and completions of unlike lengths."""
    count = sum(prompt + sum(completions) for prompt, completions in LENGTHS)
    ids = iter(probe_ids(causal_lm, count))

    def take(length: int) -> tuple[int, ...]:
        return tuple(next(ids) for _ in range(length))

    groups = tuple(PromptGroup(take(p), tuple(take(c) for c in cs)) for p, cs in LENGTHS)
    return Pack(groups, tuple(range(len(groups))))


def outcome(
    causal_lm: Any, head: Head, forward: Callable[[list[PromptState]], Tensor]
) -> tuple[Tensor, Tensor | None, bool]:
    """Forward, and back to the embeddings.

    Returns:
        logits: `[targets, vocabulary]`.
        gradient: of some fixed weighting of the hidden states, `[width]`; None if there is none.
        unread: whether some part of the states has no influence, or lies elsewhere.
    """
    states: list[PromptState] = []
    with torch.enable_grad(), _shifted_embeddings(causal_lm) as shift:
        hidden = forward(states)
        layers = [pair for s in states for pair in zip(s.layers, s.tensors, strict=True)]
        unread = any(not held and type(layer).__name__ != NO_LAYER for layer, held in layers)
        held = [tensor for _, tensors in layers for tensor in tensors if tensor.requires_grad]
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(hidden.shape, generator=generator).to(hidden.device)
        try:
            gradient, *others = torch.autograd.grad(
                (hidden.float() * weights).sum(), [shift, *held], allow_unused=True
            )
        except RuntimeError:  # something on the way was overwritten
            gradient, others = None, []
    with torch.no_grad():
        logits = head_logits(hidden.detach(), head)
    return logits, gradient, unread or any(other is None for other in others)


@contextmanager
def _shifted_embeddings(causal_lm: Any) -> Iterator[Tensor]:
    """Add a vector of zeros to every token's embedding, and yield it, `[width]`."""
    embeddings = causal_lm.get_input_embeddings()
    weight = embeddings.weight
    shift = torch.zeros(weight.shape[-1], device=weight.device, requires_grad=True)
    handle = embeddings.register_forward_hook(lambda _, __, out: out + shift.to(out.dtype))
    try:
        yield shift
    finally:
        handle.remove()


def near(ours: Tensor | None, theirs: Tensor | None, dtype: torch.dtype) -> bool:
    """Tell whether two gradients differ by no more than rounding."""
    if ours is None or theirs is None:
        return False
    return bool((ours - theirs).norm() <= tolerance(dtype) * theirs.norm())
