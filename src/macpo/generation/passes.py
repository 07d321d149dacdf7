"""The forward passes of decoding: prompts into the cache, and one token for every live row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch

from macpo.attention import base_model, macpo_attention
from macpo.generation.cache import KeyValueCache
from macpo.generation.layouts import PrefillLayout, PromptSpan, SequenceLayout, StepLayout

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Turn dropout and gradients off; afterwards every module has its own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def serving(model: torch.nn.Module) -> Iterator[None]:
    """Prepare `model` for `prefill` and `step`."""
    with evaluating(model), macpo_attention(model):
        yield


def read_prefix(model: Any, tokens: Sequence[int]) -> SequenceLayout:
    """Compute the keys and values of tokens that several prompts start with.

    In a pass of its own, since prompts are prefilled a few at a time, as rows become free: they are
    kept for all of them. (Likelihood forwards a prefix beside the pack that shares it, with its
    gradients: `macpo.likelihood.layout`.)
    """
    layout = SequenceLayout()
    device = base_model(model).device
    model(
        input_ids=torch.tensor([tokens], device=device),
        position_ids=torch.arange(len(tokens), device=device)[None],
        logits_to_keep=1,
        use_cache=False,
        macpo_layout=layout,
    )
    return layout


def prefill(
    model: Any,
    cache: KeyValueCache,
    first_row: int,
    prompts: Sequence[Sequence[int]],
    prefix: SequenceLayout | None = None,
) -> Tensor:
    """Write prompts into the rows `first_row`, `first_row + 1`, ..., in one packed pass.

    Args:
        model: inside `serving`.
        cache: with free rows.
        first_row: the first free row.
        prompts: token ids, at least one each; without those of `prefix`.
        prefix: what `read_prefix` returned, if the prompts start with it.

    Returns:
        Logits of the token after each prompt, `[prompts, vocabulary]`.
    """
    device = base_model(model).device
    spans, start = [], 0
    for row, prompt in enumerate(prompts, first_row):
        spans.append(PromptSpan(row, start, len(prompt)))
        start += len(prompt)
    ids = torch.tensor([[token for prompt in prompts for token in prompt]], device=device)
    before = 0 if prefix is None else next(iter(prefix.keys.values())).shape[1]
    positions = torch.cat([torch.arange(span.length) for span in spans])[None].to(device)
    last = torch.tensor([span.start + span.length - 1 for span in spans], device=device)
    output = model(
        input_ids=ids,
        position_ids=positions + before,
        logits_to_keep=last,
        use_cache=False,
        macpo_layout=PrefillLayout(cache, spans, prefix),
    )
    return cast("Tensor", output.logits[0])


def step(model: Any, cache: KeyValueCache, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Write `tokens[r]` into row r at position `lengths[r]`, for all live rows in one pass.

    Returns:
        Logits of the token after each, `[rows, vocabulary]`.
    """
    device = base_model(model).device
    output = model(
        input_ids=torch.tensor([tokens], device=device),
        position_ids=torch.tensor([lengths], device=device),
        use_cache=False,
        macpo_layout=StepLayout(cache, lengths, device),
    )
    return cast("Tensor", output.logits[0])
