"""Completions that go on from copies of their prompt's state, for models that no tree is right for.

A recurrent layer cannot be told which token of a row to look back at, but what it has made of a
prompt lies in the model's own cache, as keys and values do. So the prompts of a pack are forwarded
first, padded on the left, then what the cache holds is copied for each completion, and the
completions go on from there, padded on the right:

    prompts          . . a b c     one row a prompt, whose last position predicts first tokens
    (copied state)   d e f         one row a completion, without its last token
                     g . .

As in a tree of branches a prompt is computed once, however many completions it has, and gradients
flow back into it. Whether a family's cache bears this, with prompts of different lengths or only
with equal ones, and with gradients, is found by trial (`macpo.likelihood.architecture`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from macpo.attention import decoder_of
from macpo.errors import ModelError
from macpo.likelihood.groups import Pack

CACHE_ARGUMENTS = ("past_key_values", "cache_params")
"""What decoders call their cache."""

LEAST_WIDTH = 2
"""A single token with a state goes through code of its own, which writes into the state."""


class PromptState(DynamicCache):  # type: ignore[misc]
    """The model's cache, whose recurrent states are replaced where transformers overwrites them.

    Overwritten ones would be lost to the backward pass.
    """

    @property
    def tensors(self) -> list[list[Tensor]]:
        """What it holds of each layer."""
        return [_tensors(layer) for layer in self.layers]

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **keywords: Any
    ) -> Tensor:
        """Keep a layer's new state; see transformers' `Cache`."""
        self.layers[layer_idx].lazy_initialization(
            recurrent_states=recurrent_states, state_idx=state_idx
        )
        kept: Tensor = super().update_recurrent_state(
            recurrent_states, layer_idx, state_idx, **keywords
        )
        return kept

    def branch(self, rows: Tensor) -> PromptState:
        """Return a cache of its own with copies of these rows, `[rows]` int64."""
        branched = copy.copy(self)
        branched.layers = [_copied(layer) for layer in self.layers]
        branched.reorder_cache(rows)
        return branched


def _tensors(layer: Any) -> list[Tensor]:
    """Return what a layer of a cache holds."""
    held: list[Any] = []
    for value in vars(layer).values():
        held += value.values() if isinstance(value, dict) else [value]
    return [value for value in held if isinstance(value, Tensor) and value.numel()]


def _copied(layer: Any) -> Any:
    """Copy a layer of a cache, but not the tensors in it."""
    other = copy.copy(layer)
    vars(other).update({k: dict(v) for k, v in vars(layer).items() if isinstance(v, dict)})
    return other


def branched_hidden(
    causal_lm: Any,
    pack: Pack,
    device: torch.device,
    equal: bool,
    states: list[PromptState] | None = None,
) -> Tensor:
    """Return the hidden states that predict the pack's completion tokens, `[targets, width]`.

    Args:
        causal_lm: a model that bears it (`Architecture.branching`).
        pack: what to forward.
        device: the model's.
        equal: prompts of different lengths never share a pass.
        states: receives those of the prompts, if given.
    """
    found: dict[tuple[int, int], Tensor] = {}
    order = sorted(range(len(pack.groups)), key=lambda g: len(pack.groups[g].prompt))
    for batch in _batches([len(pack.groups[g].prompt) for g in order], pack.tokens, equal):
        state = PromptState(config=causal_lm.config)
        found.update(_forward_batch(causal_lm, pack, [order[i] for i in batch], device, state))
        if states is not None:
            states.append(state)
    places = [(g, c) for g, group in enumerate(pack.groups) for c in range(len(group.completions))]
    return torch.cat([found[place] for place in places])


def _batches(lengths: Sequence[int], budget: int, equal: bool = False) -> Iterator[list[int]]:
    """Divide rows of rising `lengths` into batches of at most `budget` tokens, padding included."""
    batch: list[int] = []
    for i, length in enumerate(lengths):
        full = (len(batch) + 1) * length > budget
        if batch and (full or (equal and length != lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _forward_batch(
    causal_lm: Any, pack: Pack, batch: Sequence[int], device: torch.device, state: PromptState
) -> dict[tuple[int, int], Tensor]:
    """Forward some groups of a pack; return hidden states that predict by (group, completion).

    An empty `state` receives what the model made of the prompts.
    """
    prompts = [pack.groups[g].prompt for g in batch]
    longest = max(map(len, prompts))
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    places = torch.arange(longest, device=device)
    mask = (places >= longest - lengths[:, None]).long()
    positions = (places - (longest - lengths[:, None])).clamp_min(0)
    last = _forward(causal_lm, ids, mask, positions, state)[:, -1]

    rows = [(row, c) for row, g in enumerate(batch) for c in range(len(pack.groups[g].completions))]
    inputs = {(row, c): pack.groups[batch[row]].completions[c][:-1] for row, c in rows}
    found = {(batch[row], c): last[row : row + 1] for row, c in rows}
    rows = sorted((place for place in rows if inputs[place]), key=lambda r: (len(inputs[r]), r))
    widths = [max(len(inputs[place]), LEAST_WIDTH) for place in rows]
    for some in _batches(widths, pack.tokens):
        chosen = [rows[i] for i in some]
        parents = torch.tensor([row for row, _ in chosen], device=device)
        width = max(widths[i] for i in some)
        own = torch.tensor([len(inputs[place]) for place in chosen], device=device)
        ids = torch.tensor(
            [[*inputs[place], *[0] * (width - len(inputs[place]))] for place in chosen],
            device=device,
        )
        places = torch.arange(width, device=device)
        own_mask = (places < own[:, None]).long()
        hidden = _forward(
            causal_lm,
            ids,
            torch.cat((mask[parents], own_mask), dim=1),
            lengths[parents][:, None] + places,
            state.branch(parents),
        )
        for h, (row, c) in zip(hidden, chosen, strict=True):
            place = (batch[row], c)
            found[place] = torch.cat((found[place], h[: len(inputs[row, c])]))
    return found


def _forward(
    causal_lm: Any, ids: Tensor, mask: Tensor, positions: Tensor, state: PromptState
) -> Tensor:
    """Forward rows that go on from a state; return hidden states `[rows, tokens, width]`."""
    decoder = decoder_of(causal_lm)
    known = inspect.signature(decoder.forward).parameters
    cache = next((name for name in CACHE_ARGUMENTS if name in known), None)
    if cache is None:
        raise ModelError(f"{type(decoder).__name__} takes no cache")
    keywords = {"position_ids": positions} if "position_ids" in known else {}
    output = decoder(
        input_ids=ids, attention_mask=mask, use_cache=True, **{cache: state}, **keywords
    )
    hidden: Tensor = output.last_hidden_state
    return hidden
