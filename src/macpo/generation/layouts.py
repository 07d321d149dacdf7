"""The attention layouts of generation: what all prompts start with, packed prompts, and a step.

SequenceLayout   one sequence, whose keys and values are kept for all prompts that start with it
PrefillLayout    several prompts in one row, each into its row of the cache
StepLayout       one token per row of the cache
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from macpo.generation.cache import Block, KeyValueCache

if TYPE_CHECKING:
    from torch import Tensor


class SequenceLayout:
    """One sequence attends to itself, causally; what each layer was asked is kept.

    Attributes:
        keys: by layer, `[kv_heads, tokens, key_dim]`.
        values: by layer, `[kv_heads, tokens, value_dim]`.
        windows: by layer, the sliding window that the model asked for.
    """

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.windows: dict[int, int | None] = {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        softcap: float | None,
        sliding_window: int | None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """See `macpo.attention.AttentionLayout.attend`."""
        self.keys[layer], self.values[layer] = key[0], value[0]
        self.windows[layer] = sliding_window
        return _attend_causally(query, key, value, scaling, softcap, sliding_window, sinks)


@dataclass(frozen=True, slots=True)
class PromptSpan:
    """A prompt in a packed row: tokens `start` to `start + length` belong to cache row `row`."""

    row: int
    start: int
    length: int


class PrefillLayout:
    """Each prompt of a packed row attends to itself, causally; its keys and values are kept.

    Args:
        cache: where they are kept.
        spans: the prompts, in the order of the packed row.
        prefix: tokens that stand before each prompt but are not in the row; None if there are none.
    """

    def __init__(
        self, cache: KeyValueCache, spans: Sequence[PromptSpan], prefix: SequenceLayout | None
    ) -> None:
        self.cache = cache
        self.spans = spans
        self.prefix = prefix

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        softcap: float | None,
        sliding_window: int | None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """See `macpo.attention.AttentionLayout.attend`."""
        outputs = []
        for span in self.spans:
            q, k, v = (x.narrow(2, span.start, span.length) for x in (query, key, value))
            if self.prefix is not None:
                k = torch.cat([self.prefix.keys[layer][None], k], dim=2)
                v = torch.cat([self.prefix.values[layer][None], v], dim=2)
            self.cache.write_prompt(layer, span.row, k[0], v[0])
            outputs.append(_attend_causally(q, k, v, scaling, softcap, sliding_window, sinks))
        return torch.cat(outputs, dim=1)


def _attend_causally(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    softcap: float | None,
    sliding_window: int | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attend within one sequence, whose last tokens the queries are; else like `attend`."""
    tokens, seen = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    windowed = sliding_window is not None and sliding_window < seen
    fused = softcap is None and sinks is None
    if fused and not windowed and tokens == seen:
        out = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped
        )
        return out.transpose(1, 2)
    offset = seen - tokens
    visible = torch.ones(tokens, seen, dtype=torch.bool, device=query.device).tril(offset)
    if sliding_window is not None:
        visible = visible.triu(offset + 1 - sliding_window)
    if fused:
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=scaling, enable_gqa=grouped
        )
        return out.transpose(1, 2)
    # [1, kv_heads, group, tokens, key_dim]
    q = query.reshape(1, key.shape[1], -1, tokens, query.shape[-1])
    scores = (q @ key[:, :, None].transpose(3, 4)).float() * scaling
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    weights = _weights(scores.masked_fill(~visible, -torch.inf), sinks).to(value.dtype)
    out = torch.matmul(weights, value[:, :, None])
    return out.flatten(1, 2).transpose(1, 2)


class StepLayout:
    """One new token per live row attends to all tokens of its row."""

    def __init__(self, cache: KeyValueCache, lengths: Sequence[int], device: torch.device) -> None:
        """Lay out a step.

        Args:
            cache: holds `lengths[r]` tokens of row r; the step writes one more.
            lengths: one per live row.
            device: of the cache.
        """
        size = cache.rows_per_block
        self.parts = [
            _Part(cache.blocks[first // size], first, lengths[first : first + size], device)
            for first in range(0, len(lengths), size)
        ]

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        softcap: float | None,
        sliding_window: int | None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """See `macpo.attention.AttentionLayout.attend`; tokens are the live rows, in order."""
        heads, rows = query.shape[1:3]
        kv_heads = key.shape[1]
        # [rows, kv_heads, queries that share a key, key_dim]: no key is repeated for its queries.
        q = query[0].transpose(0, 1).reshape(rows, kv_heads, heads // kv_heads, -1)
        k = key[0].transpose(0, 1).reshape(rows * kv_heads, -1)
        v = value[0].transpose(0, 1).reshape(rows * kv_heads, -1)
        outputs = []
        for part in self.parts:
            own = slice(part.first * kv_heads, part.end * kv_heads)
            part.append(layer, k[own], v[own])
            keys, values, mask = part.visible(layer, sliding_window)
            outputs.append(
                _attend_all(q[part.first : part.end], keys, values, mask, scaling, softcap, sinks)
            )
        return torch.cat(outputs).view(1, rows, heads, -1)


class _Part:
    """The live rows of one block in one step: rows `first` to `end`."""

    def __init__(
        self, block: Block, first: int, lengths: Sequence[int], device: torch.device
    ) -> None:
        self.block = block
        self.first = first
        self.end = first + len(lengths)
        self.longest = max(lengths) + 1  # the new token included
        self.shortest = min(lengths) + 1
        self.lengths = torch.tensor(lengths, device=device) + 1  # [rows]
        self._places: dict[int, Tensor] = {}
        self._masks: dict[int | None, Tensor | None] = {}

    def append(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write one token per row.

        Args:
            layer: index of the decoder layer.
            key: `[rows * kv_heads, key_dim]`.
            value: `[rows * kv_heads, value_dim]`.
        """
        places = self._place(key.shape[0] // (self.end - self.first))
        for buffer, new in ((self.block.keys[layer], key), (self.block.values[layer], value)):
            buffer.view(-1, new.shape[-1]).index_copy_(0, places, new)

    def _place(self, kv_heads: int) -> Tensor:
        """Return where a buffer flattened to `[slots * kv_heads * capacity, dim]` is written."""
        if kv_heads not in self._places:
            rows = torch.arange(self.end - self.first, device=self.lengths.device)
            heads = torch.arange(kv_heads, device=self.lengths.device)
            start = (rows[:, None] * kv_heads + heads) * self.block.capacity
            self._places[kv_heads] = (start + self.lengths[:, None] - 1).flatten()
        return self._places[kv_heads]

    def visible(self, layer: int, window: int | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the slice of keys and values that holds all that the live rows see, as views.

        Returns:
            keys: `[rows, kv_heads, tokens, key_dim]`.
            values: `[rows, kv_heads, tokens, value_dim]`.
            mask: `[rows, 1, 1, tokens]`, 0 or minus infinity; None if every row sees all of it.
        """
        start = 0 if window is None else max(0, self.shortest - window)
        if window not in self._masks:
            self._masks[window] = self._mask(start, window, self.block.keys[layer].dtype)
        keys, values = (
            buffer[: self.end - self.first, :, start : self.longest]
            for buffer in (self.block.keys[layer], self.block.values[layer])
        )
        return keys, values, self._masks[window]

    def _mask(self, start: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        if self.shortest == self.longest:
            return None
        positions = torch.arange(start, self.longest, device=self.lengths.device)
        ends = self.lengths[:, None]
        hidden = positions >= ends
        if window is not None:
            hidden |= positions < ends - window
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return mask.masked_fill(hidden, -torch.inf)[:, None, None]


def _attend_all(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Let each row's queries `[rows, kv_heads, group, key_dim]` see all that the mask leaves.

    The fused kernel, whose numbers are those of a plain forward (in bfloat16, products of our own
    take two thirds of its time but round the scores), except where scores are capped or have sinks,
    which it cannot.

    Returns:
        `[rows, kv_heads, group, value_dim]`.
    """
    if softcap is None and sinks is None:
        return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
    scores = torch.matmul(query, keys.transpose(2, 3)).float() * scaling
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if mask is not None:
        scores += mask
    if sinks is not None:  # here each row has its own key heads, and one query position
        sinks = sinks.view(1, keys.shape[1], -1)
        return torch.matmul(_weights_with(scores, sinks[..., None]).to(values.dtype), values)
    return torch.matmul(scores.softmax(dim=-1).to(values.dtype), values)


def _weights(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Return the softmax of scores `[1, kv_heads, group, tokens, seen]`, less the sinks' share."""
    if sinks is None:
        return scores.softmax(dim=-1)
    return _weights_with(scores, sinks.view(1, *scores.shape[1:3], 1, 1))


def _weights_with(scores: Tensor, sinks: Tensor) -> Tensor:
    """Return the softmax over scores and one more column, without that column."""
    column = sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, column), dim=-1).softmax(dim=-1)[..., :-1]
