"""The engine's attention layout: completions branch from a shared prompt, groups ignore each other.

Attention runs inside each prompt group: its cost is the sum of the squared group lengths, not the
square of the pack's length as a dense mask over the pack would have it. What the prompts of a pack
have in common at their start (a template's system prompt, usually; `groups.shared_prefix` says how
much) is forwarded once, as part of the first group; the others look back at it:

    shared start | rest of prompt 0 | completions 0 | rest of prompt 1 | completions 1 | ...

In the same row, not in a pass of its own as in generation (`generation.passes.read_prefix`), which
computes it once for all rows to come: here gradients flow back into it, and a pack is forgotten
with its pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from macpo.attention import AttentionLayout, decoder_of, macpo_attention
from macpo.likelihood.groups import Pack

# Up to this group length explicit products over blocks of queries are faster than the CPU's flash
# kernel, which cannot skip what the mask hides (forward and backward at 200, 400, 800 tokens: fp32
# 1.3x, 1.4x, 1.7x; bf16 2.4x, 2.5x, 2.5x), and the probabilities kept for the backward pass are
# small; beyond it they would grow with the square of the length.
EXPLICIT_LENGTH = 1024

QUERY_BLOCK = 128
"""Most query positions per explicit product; a block's keys end where its last query stands."""


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Where each group lies in the packed row, and which of its tokens see which.

    `spans` are (start, length) of the groups in the row. Every group but the first also sees the
    row's first `shared` tokens, which count as its own. `biases[g]` is a matrix in the model's
    dtype, a row for each token of the span and a column for each token that the group sees (the
    shared ones first): 0 where the row's token sees the column's and -inf elsewhere. `positions`
    `[tokens]` (int64) restart at the prompt's end for every completion; `longest` is the length of
    the longest branch, its prompt included. `windows` collects the sliding window that each layer
    asked for in a pass; such a layer sees the latest positions of a branch, not of the row.
    """

    spans: tuple[tuple[int, int], ...]
    shared: int
    biases: tuple[Tensor, ...]
    positions: Tensor
    longest: int
    windows: dict[int, int | None] = field(default_factory=dict)
    _windowed: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

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
        self.windows[layer] = sliding_window
        # Split, not sliced: the backward pass of a slice fills a whole row with zeros.
        lengths = [length for _, length in self.spans]
        queries, keys, values = (torch.split(t[0], lengths, dim=1) for t in (query, key, value))
        outputs = []
        for number, (q, bias) in enumerate(zip(queries, self._biases(sliding_window), strict=True)):
            k, v = keys[number], values[number]
            if number and self.shared:
                k = torch.cat((keys[0][:, : self.shared], k), dim=1)
                v = torch.cat((values[0][:, : self.shared], v), dim=1)
            explicit = (softcap, sinks) != (None, None) or (
                query.device.type == "cpu" and k.shape[1] <= EXPLICIT_LENGTH
            )
            if explicit:
                outputs += _explicit_attention(q, k, v, bias, scaling, softcap, sinks)
            else:
                out = scaled_dot_product_attention(
                    q[None],
                    k[None],
                    v[None],
                    attn_mask=bias,
                    scale=scaling,
                    enable_gqa=q.shape[0] != k.shape[0],
                )
                outputs.append(out[0].transpose(0, 1))
        return torch.cat(outputs)[None]

    def _biases(self, window: int | None) -> tuple[Tensor, ...]:
        """Return the biases of a layer with such a window; made once for all layers of a pass."""
        if window is None or window >= self.longest:
            return self.biases
        if window not in self._windowed:
            own = torch.split(self.positions, [length for _, length in self.spans])
            biases = []
            for number, (rows, bias) in enumerate(zip(own, self.biases, strict=True)):
                start = own[0][: self.shared] if number else rows[:0]
                columns = torch.cat((start, rows))
                hidden = columns[None, :] <= rows[:, None] - window
                biases.append(bias.masked_fill(hidden, float("-inf")))
            self._windowed[window] = tuple(biases)
        return self._windowed[window]


def _explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> list[Tensor]:
    """Attend with plain matrix products, grouped queries folded into rows of their key head.

    Args:
        query: `[heads, length, head_dim]`, of the last `length` tokens that `key` has.
        key: `[kv_heads, seen, head_dim]`.
        value: `[kv_heads, seen, value_dim]`.
        bias: `[length, seen]`, 0 or -inf; no token sees a later one.
        scaling: factor on the scores.
        softcap: see `AttentionLayout.attend`.
        sinks: likewise.

    Returns:
        The outputs of consecutive blocks of queries, each `[block, heads, value_dim]`.
    """
    heads, length, _ = query.shape
    kv_heads, seen, _ = key.shape
    per_key = heads // kv_heads
    blocks = -(-length // QUERY_BLOCK)
    edges = [length * i // blocks for i in range(blocks + 1)]
    outputs = []
    for start, end in pairwise(edges):
        visible = seen - length + end
        rows = query[:, start:end].reshape(kv_heads, per_key * (end - start), -1)
        columns = key[:, :visible].transpose(1, 2)
        mask = bias[start:end, :visible].repeat(per_key, 1)
        if softcap is None:
            scores = torch.baddbmm(mask, rows, columns, alpha=scaling)
        else:
            scores = torch.tanh(torch.bmm(rows, columns) * (scaling / softcap)) * softcap + mask
        if sinks is not None:  # one more column, dropped from what the values are weighted with
            column = sinks.to(scores.dtype).view(kv_heads, per_key, 1)
            column = column.repeat_interleave(end - start, dim=1)
            weights = torch.cat((scores, column), dim=-1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        out = torch.bmm(weights, value[:, :visible])
        outputs.append(out.view(heads, end - start, -1).transpose(0, 1))
    return outputs


def tree_layout(pack: Pack, dtype: torch.dtype, device: torch.device) -> TreeLayout:
    """Lay out a pack for a model of this dtype and device."""
    shared = pack.shared_prefix
    spans, biases, positions = [], [], []
    start = 0
    for number, group in enumerate(pack.groups):
        lengths = [len(group.prompt), *(len(c) - 1 for c in group.completions)]
        total, prompt = sum(lengths), lengths[0]
        skipped = shared if number else 0
        branch = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        same_branch = (branch[:, None] == branch[None, :]) | (branch[None, :] == 0)
        visible = (same_branch & torch.ones(total, total, dtype=torch.bool).tril())[skipped:]
        bias = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, float("-inf"))
        biases.append(bias.to(device))
        spans.append((start, total - skipped))
        positions.append(torch.arange(skipped, prompt))
        positions.extend(torch.arange(prompt, prompt + n) for n in lengths[1:])
        start += total - skipped
    branches = torch.cat(positions)
    longest = int(branches.max()) + 1
    return TreeLayout(tuple(spans), shared, tuple(biases), branches.to(device), longest)


class RowLayout(AttentionLayout, Protocol):
    """An attention layout of a pack in one row, with what else is needed to forward it."""

    @property
    def shared(self) -> int:
        """How many tokens at its start the groups after the first do not repeat."""
        ...

    @property
    def positions(self) -> Tensor:
        """Of every token of the row, `[tokens]` int64."""
        ...


def laid_out_hidden(causal_lm: Any, pack: Pack, layout: RowLayout) -> Tensor:
    """Forward a pack as one row; return the hidden states that predict, `[targets, width]`.

    Targets are the tokens of all completions, in the order of the groups and their completions.
    """
    device = layout.positions.device
    row: list[int] = []
    predicting: list[int] = []
    for group in pack.groups:
        row.extend(group.prompt[layout.shared :] if row else group.prompt)
        prompt_end = len(row) - 1
        for completion in group.completions:
            predicting.append(prompt_end)
            predicting.extend(range(len(row), len(row) + len(completion) - 1))
            row.extend(completion[:-1])
    with macpo_attention(causal_lm):
        output = decoder_of(causal_lm)(
            input_ids=torch.tensor([row], device=device),
            position_ids=layout.positions[None],
            macpo_layout=layout,
            use_cache=False,
        )
    hidden: Tensor = output.last_hidden_state[0]
    # Not hidden[...]: its backward pass adds to the shared prompt position in no fixed order.
    return hidden.index_select(0, torch.tensor(predicting, device=device))
