"""A pack's attention in one kernel call per layer, for GPUs: no loop over groups.

The pack is seen as sequences: each prompt, and each completion. A sequence's tokens stand together
in the row; what it looks back at does not, so its keys are gathered:

    sequence          queries              keys
    prompt g          rest of prompt g     shared start ++ rest of prompt g
    completion i      completion i         shared start ++ rest of prompt g ++ completion i

A sequence's queries are the last of its keys, so that a causal mask that is aligned at the end is
the tree's. All that a token sees is in one softmax: prefix and suffix are not attended to apart and
merged by their log-sum-exp, whose gradient torch's kernel for variable lengths leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from macpo.errors import ModelError
from macpo.likelihood.groups import Pack

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Sequence:
    """A prompt or a completion in a packed row.

    Attributes:
        start: its first place in the row.
        length: its tokens there.
        seen: what it looks at, as ranges of the row in order; the last one is its own.
        position: of its first token.
        group: number of its group.
        is_prompt: whether it is one.
    """

    start: int
    length: int
    seen: tuple[Range, ...]
    position: int
    group: int
    is_prompt: bool


def sequences(pack: Pack) -> Iterator[Sequence]:
    """Yield the sequences of a pack's row, in its order; see `macpo.likelihood.layout`."""
    start, shared = 0, pack.shared_prefix
    for number, group in enumerate(pack.groups):
        skipped = shared if number else 0
        length = len(group.prompt) - skipped
        before: tuple[Range, ...] = ((0, skipped),) if skipped else ()
        prompt = (start, start + length)
        yield Sequence(start, length, (*before, prompt), skipped, number, True)
        start += length
        for completion in group.completions:
            length = len(completion) - 1
            if length:
                seen = (*before, prompt, (start, start + length))
                yield Sequence(start, length, seen, len(group.prompt), number, False)
            start += length


class Kernel(Protocol):
    """Causal attention over sequences of different lengths, packed one after the other."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_ends: Tensor,
        key_ends: Tensor,
        longest_query: int,
        longest_key: int,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Attend.

        Args:
            query: `[tokens, heads, head_dim]`.
            key: `[gathered, kv_heads, head_dim]`.
            value: `[gathered, kv_heads, head_dim]`.
            query_ends: where sequences begin among the queries, and the end, `[sequences + 1]`
                int32.
            key_ends: likewise among the keys.
            longest_query: most tokens of a sequence.
            longest_key: most keys of one.
            scaling: factor on the scores.
            window: if given, a token sees at most this many of the latest keys, its own included.

        Returns:
            `[tokens, heads, head_dim]`.
        """
        ...


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    longest_query: int,
    longest_key: int,
    scaling: float,
    window: int | None,
) -> Tensor:
    """Attend by torch's kernel for variable lengths (16 bits, CUDA): a `Kernel`."""
    from torch.nn.attention.varlen import varlen_attn

    output: Tensor = varlen_attn(  # type: ignore[assignment]
        query,
        key,
        value,
        query_ends,
        key_ends,
        longest_query,
        longest_key,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output


@dataclass(frozen=True, slots=True)
class GatheredLayout:
    """An `AttentionLayout` of a pack over gathered keys.

    Everything is made once for a pack and lies on the model's device. `gather` `[gathered]` int64
    are the places in the row of all sequences' keys; the others are those of `Kernel`, of
    `macpo.likelihood.layout.TreeLayout` and of `sequences`.
    """

    shared: int
    positions: Tensor
    longest: int
    gather: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int
    kernel: Kernel
    windows: dict[int, int | None] = field(default_factory=dict)

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
            ModelError: scores are capped or have sinks, or values have another width than keys:
                the kernel knows none of that.
        """
        if softcap is not None or sinks is not None or key.shape[-1] != value.shape[-1]:
            raise ModelError("scores with a cap or sinks, or values of a width of their own")
        self.windows[layer] = sliding_window
        windowed = sliding_window is not None and sliding_window < self.longest
        output = self.kernel(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1).index_select(0, self.gather),
            value[0].transpose(0, 1).index_select(0, self.gather),
            self.query_ends,
            self.key_ends,
            self.longest_query,
            self.longest_key,
            scaling,
            sliding_window if windowed else None,
        )
        return output[None]


def gathered_layout(pack: Pack, device: torch.device, kernel: Kernel = varlen) -> GatheredLayout:
    """Lay out a pack for a kernel."""
    found = list(sequences(pack))
    keys = [sum(end - start for start, end in s.seen) for s in found]
    places = [torch.arange(*part) for s in found for part in s.seen]
    positions = torch.cat([torch.arange(s.position, s.position + s.length) for s in found])
    return GatheredLayout(
        pack.shared_prefix,
        positions.to(device),
        int(positions.max()) + 1,
        torch.cat(places).to(device),
        _ends([s.length for s in found]).to(device),
        _ends(keys).to(device),
        max(s.length for s in found),
        max(keys),
        kernel,
    )


def _ends(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
