"""The engine's attention layout: completions branch from a shared prompt, groups ignore each other.

Attention runs inside each prompt group: its cost is the sum of the squared group lengths, not the
square of the pack's length as a dense mask over the pack would have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from macpo.attention import macpo_attention
from macpo.errors import ModelError
from macpo.likelihood.groups import Pack

# Up to this group length the explicit products are faster than the CPU's flash kernel (fp32: 1.1x,
# bf16: 1.8x forward and backward, bench/attention.py) and the probabilities kept for the backward
# pass are small; beyond it they would grow with the square of the length.
EXPLICIT_LENGTH = 384


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Where each group lies in the packed row, and which of its tokens see which.

    `spans` are (start, length) of the groups; `biases[g]` is a `[length, length]` matrix in the
    model's dtype, 0 where the row's token sees the column's and -inf elsewhere; `positions`
    `[tokens]` (int64) restart at the prompt's end for every completion; `longest` is the length of
    the longest branch, its prompt included.
    """

    spans: tuple[tuple[int, int], ...]
    biases: tuple[Tensor, ...]
    positions: Tensor
    longest: int

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
        """See `macpo.attention.AttentionLayout.attend`.

        Raises:
            ModelError: a sliding window is shorter than a branch. `macpo.likelihood.architecture`
                knows the model's windows and falls back before, unless it overlooked one.
        """
        if sliding_window is not None and sliding_window < self.longest:
            raise ModelError(
                f"layer {layer} sees {sliding_window} tokens of a branch of {self.longest}: a sliding "
                "window that a tree of branches cannot honour"
            )
        outputs = []
        for (start, length), bias in zip(self.spans, self.biases, strict=True):
            q = query[0, :, start : start + length]
            k = key[0, :, start : start + length]
            v = value[0, :, start : start + length]
            explicit = softcap is not None or (
                query.device.type == "cpu" and length <= EXPLICIT_LENGTH
            )
            if explicit:
                out = _explicit_attention(q, k, v, bias, scaling, softcap)
            else:
                out = scaled_dot_product_attention(
                    q[None],
                    k[None],
                    v[None],
                    attn_mask=bias,
                    scale=scaling,
                    enable_gqa=q.shape[0] != k.shape[0],
                )[0]
            outputs.append(out.transpose(0, 1))
        return torch.cat(outputs)[None]


def _explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float, softcap: float | None
) -> Tensor:
    """Attend with plain matrix products, grouped queries folded into rows of their key head.

    Args:
        query: `[heads, length, head_dim]`.
        key: `[kv_heads, length, head_dim]`.
        value: `[kv_heads, length, value_dim]`.
        bias: `[length, length]`, 0 or -inf.
        scaling: factor on the scores.
        softcap: see `AttentionLayout.attend`.

    Returns:
        `[heads, length, value_dim]`.
    """
    heads, length, _ = query.shape
    kv_heads = key.shape[0]
    rows = query.reshape(kv_heads, heads // kv_heads * length, -1)
    scores = torch.bmm(rows, key.transpose(1, 2)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.view(heads, length, length) + bias
    weights = scores.softmax(-1).view(kv_heads, -1, length)
    return torch.bmm(weights, value).view(heads, length, -1)


def tree_layout(pack: Pack, dtype: torch.dtype, device: torch.device) -> TreeLayout:
    """Lay out a pack for a model of this dtype and device."""
    spans, biases, positions = [], [], []
    start = 0
    for group in pack.groups:
        lengths = [len(group.prompt), *(len(c) - 1 for c in group.completions)]
        total, prompt = sum(lengths), lengths[0]
        branch = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        same_branch = (branch[:, None] == branch[None, :]) | (branch[None, :] == 0)
        visible = same_branch & torch.ones(total, total, dtype=torch.bool).tril()
        bias = torch.zeros(total, total, dtype=dtype).masked_fill_(~visible, float("-inf"))
        biases.append(bias.to(device))
        spans.append((start, total))
        positions.append(torch.arange(prompt))
        positions.extend(torch.arange(prompt, prompt + n) for n in lengths[1:])
        start += total
    branches = torch.cat(positions)
    longest = int(branches.max()) + 1
    return TreeLayout(tuple(spans), tuple(biases), branches.to(device), longest)


def tree_hidden(causal_lm: Any, pack: Pack, device: torch.device) -> Tensor:
    """Forward a pack as one row; return the hidden states that predict, `[targets, width]`.

    Targets are the tokens of all completions, in the order of the groups and their completions.
    """
    layout = tree_layout(pack, causal_lm.dtype, device)
    row: list[int] = []
    predicting: list[int] = []
    for group in pack.groups:
        row.extend(group.prompt)
        prompt_end = len(row) - 1
        for completion in group.completions:
            predicting.append(prompt_end)
            predicting.extend(range(len(row), len(row) + len(completion) - 1))
            row.extend(completion[:-1])
    with macpo_attention(causal_lm):
        output = causal_lm.base_model(
            input_ids=torch.tensor([row], device=device),
            position_ids=layout.positions[None],
            macpo_layout=layout,
            use_cache=False,
        )
    hidden: Tensor = output.last_hidden_state[0]
    # Not hidden[...]: its backward pass adds to the shared prompt position in no fixed order.
    return hidden.index_select(0, torch.tensor(predicting, device=device))
