"""A pack's attention by FlexAttention: one compiled kernel call per layer, for GPUs.

The tree is a mask over the row, told as a function of two places, and a list of the blocks of keys
that each block of queries sees at all. That list is made from the layout, in microseconds; torch's
`create_block_mask` would evaluate the function on all places, for many times what attention takes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from macpo.errors import ModelError
from macpo.likelihood.gathered import Sequence, sequences
from macpo.likelihood.groups import Pack

BLOCK = 128

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@functools.cache
def compiled() -> Callable[..., Any]:
    """Return FlexAttention compiled for any lengths, once in a process.

    Not for the lengths at hand: that would compile for seconds at every pack.
    """
    return torch.compile(flex_attention, dynamic=True)


@dataclass(frozen=True, slots=True)
class FlexLayout:
    """An `AttentionLayout` of a pack as a mask.

    `places` `[4, tokens]` int64 are, of each token of the row, its sequence, its group, whether it
    stands in a prompt, and its position; `blocks` says which blocks see which, as FlexAttention
    takes it; the others are those of `macpo.likelihood.layout.TreeLayout`.
    """

    shared: int
    positions: Tensor
    longest: int
    places: Tensor
    blocks: tuple[Tensor, Tensor]
    kernel: Callable[..., Any]
    windows: dict[int, int | None] = field(default_factory=dict)
    _masks: dict[int | None, BlockMask] = field(default_factory=dict)

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
        """See `macpo.attention.AttentionLayout.attend`.

        Raises:
            ModelError: there are sinks.
        """
        if sinks is not None:
            raise ModelError("scores with sinks")
        self.windows[layer] = sliding_window
        windowed = sliding_window is not None and sliding_window < self.longest
        output = self.kernel(
            query,
            key,
            value,
            score_mod=None if softcap is None else _capped(softcap),
            block_mask=self.mask(sliding_window if windowed else None),
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output.transpose(1, 2)  # type: ignore[no-any-return]

    def mask(self, window: int | None) -> BlockMask:
        """Return the mask of layers with such a window; made once for all layers of a pass."""
        if window not in self._masks:
            tokens = self.positions.shape[0]
            self._masks[window] = BlockMask.from_kv_blocks(
                *self.blocks,
                BLOCK_SIZE=BLOCK,
                mask_mod=_visible(self.places, self.shared, window),
                seq_lengths=(tokens, tokens),
            )
        return self._masks[window]


def flex_layout(
    pack: Pack, device: torch.device, kernel: Callable[..., Any] | None = None
) -> FlexLayout:
    """Lay out a pack.

    Args:
        pack: what to forward.
        device: the model's.
        kernel: with the signature of `flex_attention`; None for that, compiled.
    """
    found = list(sequences(pack))
    lengths = torch.tensor([s.length for s in found])
    positions = torch.cat([torch.arange(s.position, s.position + s.length) for s in found])
    of_sequence = torch.tensor(
        [[number, s.group, int(s.is_prompt)] for number, s in enumerate(found)]
    )
    places = torch.cat((of_sequence.repeat_interleave(lengths, dim=0).T, positions[None]))
    counts, indices = _blocks(found)
    on_device = places.contiguous().to(device)
    return FlexLayout(
        pack.shared_prefix,
        on_device[3],
        int(positions.max()) + 1,
        on_device,
        (counts.to(device), indices.to(device)),
        kernel or compiled(),
    )


def _visible(places: Tensor, shared: int, window: int | None) -> Mask:
    """Return whether a query's place sees a key's, as a function of both."""
    sequence, group, is_prompt, position = places.unbind()

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = sequence[query] == sequence[key]
        prompt = (group[query] == group[key]) & (is_prompt[key] == 1)
        seen = (key <= query) & (own | prompt | (key < shared))
        if window is None:
            return seen
        return seen & (position[key] > position[query] - window)

    return mask


def _capped(softcap: float) -> Callable[..., Tensor]:
    """Return a modification of scores that caps them."""

    def cap(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


def _blocks(found: list[Sequence]) -> tuple[Tensor, Tensor]:
    """Return which blocks of keys each block of queries sees anything of.

    Returns:
        counts: `[1, 1, blocks]` int32.
        indices: `[1, 1, blocks, blocks]` int32, of which the first `counts` count, in order.
    """
    tokens = found[-1].start + found[-1].length
    number = -(-tokens // BLOCK)
    seen: list[set[int]] = [set() for _ in range(number)]
    for s in found:
        for block in range(s.start // BLOCK, (s.start + s.length - 1) // BLOCK + 1):
            for start, end in s.seen:
                last = min(end, (block + 1) * BLOCK) - 1  # no token sees a later one
                seen[block].update(range(start // BLOCK, last // BLOCK + 1))
    rows = [[*sorted(s), *[0] * (number - len(s))] for s in seen]
    counts = torch.tensor([[[len(s) for s in seen]]], dtype=torch.int32)
    return counts, torch.tensor([[rows]], dtype=torch.int32)
