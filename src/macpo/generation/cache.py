"""Keys and values of the answers under way.

Rows (one per answer) lie in blocks. A block holds, for every layer, one preallocated buffer of keys
and one of values; live rows are dense: row `r` is slot `r % rows_per_block` of block
`r // rows_per_block`. Attention then runs block by block over views as long as the block's longest
live row, so that short rows do not pay for the longest of all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

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
