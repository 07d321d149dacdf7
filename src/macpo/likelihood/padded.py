"""The fallback: one padded row per completion, for models that a tree of branches would confuse.

Recurrent and hybrid layers carry state from one token to the next whatever a mask says, and short
sliding windows count positions in the row. Such models see each prompt + completion as a row of its
own, padded on the right, where no earlier token of a causal model looks. Same numbers, more work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from macpo.likelihood.groups import Pack


def padded_hidden(causal_lm: Any, pack: Pack, device: torch.device) -> Tensor:
    """Return the hidden states that predict the pack's completion tokens, `[targets, width]`.

    Rows are batched by similar length; lengths, never token values, decide what is padding.
    """
    sequences = [(g.prompt, c) for g in pack.groups for c in g.completions]
    order = sorted(range(len(sequences)), key=lambda i: sum(map(len, sequences[i])))
    found: dict[int, Tensor] = {}
    budget = max(pack.tokens, sum(map(len, sequences[order[-1]])))
    batch: list[int] = []
    for i in order:
        longest = sum(map(len, sequences[i])) - 1
        if batch and (len(batch) + 1) * longest > budget:
            found.update(_rows(causal_lm, sequences, batch, device))
            batch = []
        batch.append(i)
    found.update(_rows(causal_lm, sequences, batch, device))
    return torch.cat([found[i] for i in range(len(sequences))])


def _rows(
    causal_lm: Any,
    sequences: list[tuple[tuple[int, ...], tuple[int, ...]]],
    batch: list[int],
    device: torch.device,
) -> dict[int, Tensor]:
    """Forward sequences as one padded batch; return hidden states that predict, by sequence."""
    inputs = [[*sequences[i][0], *sequences[i][1][:-1]] for i in batch]
    width = max(map(len, inputs))
    # Any valid id may stand in for padding: it comes after every token that counts.
    ids = torch.tensor([row + [0] * (width - len(row)) for row in inputs], device=device)
    mask = torch.tensor(
        [[1] * len(row) + [0] * (width - len(row)) for row in inputs], device=device
    )
    output = causal_lm.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return {
        i: hidden[row, len(sequences[i][0]) - 1 : len(inputs[row])] for row, i in enumerate(batch)
    }
