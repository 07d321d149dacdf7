"""What the decoding tests share: prompts, calls of `decode`, and `generate` as the oracle."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from macpo.config import SamplingConfig
from macpo.generation.decode import decode
from macpo.generation.protocol import Completion

VOCABULARY = 512
STOPS = frozenset(range(5, 30))


def greedy(max_new_tokens: int) -> SamplingConfig:
    return SamplingConfig(temperature=0, max_new_tokens=max_new_tokens)


def random_prompts(
    lengths: Sequence[int], seed: int = 0, start: Sequence[int] = ()
) -> list[list[int]]:
    """Return one prompt per length; each begins with `start`, which counts."""
    draw = random.Random(seed)
    return [
        [*start, *(draw.randrange(30, VOCABULARY) for _ in range(length - len(start)))]
        for length in lengths
    ]


def answer(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    decoder: Any = decode,
    stop_ids: frozenset[int] = STOPS,
    seeds: Sequence[int] | None = None,
    memory_gib: float = 1.0,
    pack_tokens: int = 64,
    progress: Any = None,
    room: Any = None,
) -> list[Completion]:
    return decoder(
        model,
        prompts,
        stop_ids=stop_ids,
        sampling=sampling,
        seeds=range(len(prompts)) if seeds is None else seeds,
        memory_gib=memory_gib,
        pack_tokens=pack_tokens,
        progress=progress,
        room=room,
    )


def generated(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: frozenset[int] = STOPS,
) -> list[Completion]:
    """Return the greedy answers of transformers' generate, one prompt at a time."""
    completions = []
    for prompt in prompts:
        ids = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(stop_ids),
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        completions.append(Completion(tuple(ids), ids[-1] in stop_ids))
    return completions
