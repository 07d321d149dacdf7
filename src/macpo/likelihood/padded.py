"""The fallback: one padded row per completion, for models that a tree of branches would confuse.

Recurrent and hybrid layers carry state from one token to the next whatever a mask says, short
sliding windows count positions in the row, and some rotary positions depend on the batch's length.
Such models see each prompt + completion as a row of its own, padded on the right, where no earlier
token of a causal model looks. Same numbers, more work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from macpo.attention import decoder_of
from macpo.likelihood.groups import Pack
from macpo.probe import forget_lengths


def padded_hidden(
    causal_lm: Any, pack: Pack, device: torch.device, alone_above: int | None = None
) -> Tensor:
    """Return the hidden states that predict the pack's completion tokens, `[targets, width]`.

    Rows are batched by similar length; lengths, never token values, decide what is padding. Rows of
    more than `alone_above` tokens, if that is given, are forwarded one by one, each with its last
    token: their numbers depend on the length.
    """
    sequences = [(g.prompt, c) for g in pack.groups for c in g.completions]
    order = sorted(range(len(sequences)), key=lambda i: sum(map(len, sequences[i])))
    found: dict[int, Tensor] = {}
    budget = max(pack.tokens, sum(map(len, sequences[order[-1]])))
    batch: list[int] = []
    for i in order:
        longest = sum(map(len, sequences[i])) - 1
        alone = alone_above is not None and longest + 1 > alone_above
        if batch and (alone or (len(batch) + 1) * longest > budget):
            found.update(_rows(causal_lm, sequences, batch, device, alone_above))
            batch = []
        batch.append(i)
    found.update(_rows(causal_lm, sequences, batch, device, alone_above))
    return torch.cat([found[i] for i in range(len(sequences))])


def _rows(
    causal_lm: Any,
    sequences: list[tuple[tuple[int, ...], tuple[int, ...]]],
    batch: list[int],
    device: torch.device,
    alone_above: int | None,
) -> dict[int, Tensor]:
    """Forward sequences as one padded batch; return hidden states that predict, by sequence."""
    inputs = [[*sequences[i][0], *sequences[i][1][:-1]] for i in batch]
    if alone_above is not None:
        forget_lengths(causal_lm)
        if len(inputs[0]) >= alone_above:  # alone, and the longer by its last token
            inputs = [[*sequences[i][0], *sequences[i][1]] for i in batch]
    width = max(map(len, inputs))
    # Any valid id may stand in for padding: it comes after every token that counts.
    ids = torch.tensor([row + [0] * (width - len(row)) for row in inputs], device=device)
    mask = torch.tensor(
        [[1] * len(row) + [0] * (width - len(row)) for row in inputs], device=device
    )
    output = decoder_of(causal_lm)(input_ids=ids, attention_mask=mask, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return {
        i: hidden[row, len(sequences[i][0]) - 1 :][: len(sequences[i][1])]
        for row, i in enumerate(batch)
    }
