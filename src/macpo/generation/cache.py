"""Keys and values of the answers under way, and the two layouts that read and write them.

Rows (one per answer) lie in blocks. A block holds, for every layer, one preallocated buffer of keys
and one of values; live rows are dense: row `r` is slot `r % rows_per_block` of block
`r // rows_per_block`. Attention runs block by block over a slice as long as the block's longest
live row, so short rows do not pay for the longest of all, and grouped queries read each key once
instead of a repeated copy.

`PrefillLayout` writes packed prompts, `StepLayout` one token per live row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one decoder layer keeps of a token."""

    kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def numbers(self) -> int:
        """How many numbers that is."""
        return self.kv_heads * (self.key_dim + self.value_dim)


class Block:
    """Keys and values of `rows` rows of up to `capacity` tokens each, in every layer."""

    def __init__(
        self,
        shapes: Mapping[int, LayerShape],
        rows: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.capacity = capacity
        self.keys = {
            layer: _zeros((rows, s.kv_heads, capacity, s.key_dim), dtype, device)
            for layer, s in shapes.items()
        }
        self.values = {
            layer: _zeros((rows, s.kv_heads, capacity, s.value_dim), dtype, device)
            for layer, s in shapes.items()
        }


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros; on CPU they take no memory before they are written.

    Zeros, not garbage: what is masked enters a product with weight 0, and 0 * NaN is NaN.
    `torch.zeros` writes all of them at once, also what no answer will reach; `numpy.zeros` gets
    them from the operating system page by page.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8))
    return raw.view(dtype).view(shape)


class KeyValueCache:
    """The blocks, in order of falling capacity, so that a later row fits into any earlier slot."""

    def __init__(
        self,
        shapes: Mapping[int, LayerShape],
        capacities: Sequence[int],
        rows_per_block: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocate.

        Args:
            shapes: by layer index.
            capacities: tokens that each row may take, falling; one per row.
            rows_per_block: the block of rows a..b gets the capacity of row a.
            dtype: of keys and values.
            device: where they lie.
        """
        self.rows_per_block = rows_per_block
        self.blocks = [
            Block(
                shapes,
                len(capacities[first : first + rows_per_block]),
                capacities[first],
                dtype,
                device,
            )
            for first in range(0, len(capacities), rows_per_block)
        ]

    def slot(self, row: int) -> tuple[Block, int]:
        """Return the block of a row, and its slot there."""
        return self.blocks[row // self.rows_per_block], row % self.rows_per_block

    def write_prompt(self, layer: int, row: int, key: Tensor, value: Tensor) -> None:
        """Store a prompt's keys `[kv_heads, tokens, key_dim]` and values from position 0 on."""
        block, slot = self.slot(row)
        block.keys[layer][slot, :, : key.shape[1]] = key
        block.values[layer][slot, :, : value.shape[1]] = value

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of row `source` into the slot of row `target`."""
        old, old_slot = self.slot(source)
        new, new_slot = self.slot(target)
        for layer in old.keys:
            new.keys[layer][new_slot, :, :length] = old.keys[layer][old_slot, :, :length]
            new.values[layer][new_slot, :, :length] = old.values[layer][old_slot, :, :length]


def cache_numbers(
    capacities: Sequence[int], rows_per_block: int, shapes: Mapping[int, LayerShape]
) -> int:
    """Return how many numbers `KeyValueCache` would allocate for these rows."""
    tokens = sum(
        len(capacities[first : first + rows_per_block]) * capacities[first]
        for first in range(0, len(capacities), rows_per_block)
    )
    return tokens * sum(shape.numbers for shape in shapes.values())


@dataclass(frozen=True, slots=True)
class PromptSpan:
    """A prompt in a packed row: tokens `start` to `start + length` belong to cache row `row`."""

    row: int
    start: int
    length: int


class PrefillLayout:
    """Each prompt of a packed row attends to itself, causally; its keys and values are kept."""

    def __init__(self, cache: KeyValueCache, spans: Sequence[PromptSpan]) -> None:
        self.cache = cache
        self.spans = spans

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
    ) -> Tensor:
        """See `macpo.attention.AttentionLayout.attend`."""
        outputs = []
        for span in self.spans:
            q, k, v = (x.narrow(2, span.start, span.length) for x in (query, key, value))
            self.cache.write_prompt(layer, span.row, k[0], v[0])
            out = attend_causally(q, k, v, scaling, softcap, sliding_window)
            outputs.append(out.transpose(1, 2))
        return torch.cat(outputs, dim=1)


def attend_causally(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    softcap: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Attend within one sequence; shapes as in `AttentionLayout.attend`, heads before tokens."""
    tokens = query.shape[2]
    grouped = query.shape[1] != key.shape[1]
    windowed = sliding_window is not None and sliding_window < tokens
    if softcap is None and not windowed:
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped
        )
    visible = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()
    if windowed and sliding_window is not None:
        visible = visible.triu(1 - sliding_window)
    if softcap is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=scaling, enable_gqa=grouped
        )
    kv_heads = key.shape[1]
    q = query.reshape(kv_heads, -1, query.shape[-1])  # [kv_heads, group * tokens, key_dim]
    scores = (q @ key[0].transpose(1, 2)).view(kv_heads, -1, tokens, tokens) * scaling
    scores = (scores / softcap).tanh() * softcap
    weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1, dtype=torch.float32)
    out = weights.to(value.dtype).view(kv_heads, -1, tokens) @ value[0]
    return out.view(1, query.shape[1], tokens, -1)


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
                _attend_all(q[part.first : part.end], keys, values, mask, scaling, softcap)
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
        """Write one token per row: `[rows * kv_heads, key_dim]` and `[rows * kv_heads, value_dim]`."""
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
) -> Tensor:
    """Let each row's queries `[rows, kv_heads, group, key_dim]` see all that the mask leaves.

    The fused kernel, except where scores are capped, which it cannot, and in bfloat16 on CPU, where
    two products with the keys on the left take half its time (measured: 64 rows of 400 tokens, 3
    heads of 64; with the queries on the left they take longer than it).

    Returns:
        `[rows, kv_heads, group, value_dim]`.
    """
    if softcap is None and (query.device.type != "cpu" or query.dtype != torch.bfloat16):
        return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
    scores = (keys @ query.transpose(2, 3)).transpose(2, 3).float() * scaling
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1).to(values.dtype) @ values
