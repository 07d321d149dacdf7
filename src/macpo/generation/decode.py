"""Token-level decoding of many prompts at once with a packed, preallocated cache.

    prompts, longest first
      └─ prefill: several prompts in one row, no padding        (cache.PrefillLayout)
           └─ step: one row holding one token per live answer   (cache.StepLayout)
                ├─ an answer ends: the last live row takes its slot
                └─ an eighth of the slots is free: prefill more prompts

Linear layers see one row of tokens throughout; only attention knows rows. Prompts are taken longest
first, so a slot that held one prompt holds any later one, and memory is reserved for real lengths
instead of the longest one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from macpo.config import SamplingConfig
from macpo.errors import ConfigError, ModelError
from macpo.generation.cache import KeyValueCache, LayerShape, cache_numbers
from macpo.generation.passes import base_model, prefill, serving, step
from macpo.generation.protocol import Completion
from macpo.generation.sampler import pick_tokens, uniform_draws
from macpo.generation.servable import Refused, examine

ROWS_PER_BLOCK = 16
MOST_BLOCKS = 8  # a block costs some 50 microseconds per layer and step


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: frozenset[int],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    memory_gib: float,
    pack_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Answer each prompt once.

    The same call gives the same tokens on the same machine. Which prompts share a call changes an
    answer only through rounding, so a caller who wants to keep finished work passes fixed shards.

    Args:
        model: a transformers causal language model, or a PEFT model over one, that
            `macpo.generation.servable.can_decode` accepts.
        prompts: token ids, at least one each.
        stop_ids: tokens that end an answer; they are kept as its last token.
        sampling: how tokens are drawn; `temperature: 0` is greedy.
        seeds: one per prompt, non-negative.
        memory_gib: what keys and values may take; sets how many answers grow at once.
        pack_tokens: prompts are prefilled in rows of at most that many tokens (a longer prompt
            takes a row of its own).
        progress: called with the number of prompts that were finished since the last call.

    Raises:
        ConfigError: `memory_gib` does not hold one answer of full length.
        ModelError: the model cannot be served this way, its positions do not suffice, or its
            logits are not finite.
        ValueError: a prompt is empty, or seeds and prompts differ in number.
    """
    check_prompts(model, prompts, seeds, sampling)
    if not prompts:
        return []
    needs = sorted((len(p) + sampling.max_new_tokens - 1 for p in prompts), reverse=True)
    served = examine(model, needs[0])
    if isinstance(served, Refused):
        raise ModelError(
            f"{served.reason}; answer with macpo.generation.fallback.decode_by_generate instead"
        )
    base = base_model(model)
    rows, rows_per_block = _layout_rows(needs, served.shapes, base.dtype, memory_gib)
    cache = KeyValueCache(served.shapes, needs[:rows], rows_per_block, base.dtype, base.device)
    with serving(model):
        run = _Run(model, cache, prompts, stop_ids, sampling, seeds, rows, pack_tokens, progress)
        return run.finish()


def check_prompts(
    model: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: SamplingConfig
) -> None:
    """Refuse what no backend can answer.

    Raises:
        ModelError: a prompt and its answer can exceed the model's positions.
        ValueError: a prompt is empty, or seeds and prompts differ in number.
    """
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts, but {len(seeds)} seeds")
    if not all(prompts):
        raise ValueError("a prompt needs at least one token")
    config = base_model(model).config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    longest = max(map(len, prompts), default=0)
    if limit is not None and longest + sampling.max_new_tokens - 1 > limit:
        raise ModelError(
            f"a prompt of {longest} tokens and an answer of up to {sampling.max_new_tokens} exceed "
            f"the model's {limit} positions; lower limits.prompt_tokens or sampling.max_new_tokens"
        )


def _layout_rows(
    needs: Sequence[int], shapes: dict[int, LayerShape], dtype: torch.dtype, memory_gib: float
) -> tuple[int, int]:
    """Return how many rows fit into the budget, and how many of them make a block.

    Args:
        needs: tokens that each prompt and its answer may take, falling.
        shapes: of the layers.
        dtype: of keys and values.
        memory_gib: the budget.
    """
    budget = memory_gib * 2**30 / dtype.itemsize
    for rows in range(len(needs), 0, -1):
        rows_per_block = max(ROWS_PER_BLOCK, -(-rows // MOST_BLOCKS))
        if cache_numbers(needs[:rows], rows_per_block, shapes) <= budget:
            return rows, rows_per_block
    one = cache_numbers(needs[:1], 1, shapes) * dtype.itemsize / 2**30
    raise ConfigError(
        f"engine.decode_memory_gib is {memory_gib:g}, but the keys and values of one answer of "
        f"{needs[0]} tokens take {one:.2g} GiB; raise it to at least that"
    )


@dataclass(slots=True)
class _Row:
    """An answer under way: `length` of its tokens are in the cache, its last one is not."""

    prompt: int
    length: int
    uniforms: np.ndarray
    token_ids: list[int] = field(default_factory=list)


class _Run:
    """One call of `decode`."""

    def __init__(
        self,
        model: Any,
        cache: KeyValueCache,
        prompts: Sequence[Sequence[int]],
        stop_ids: frozenset[int],
        sampling: SamplingConfig,
        seeds: Sequence[int],
        most_rows: int,
        pack_tokens: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.model = model
        self.cache = cache
        self.prompts = prompts
        self.stop_ids = stop_ids
        self.sampling = sampling
        self.seeds = seeds
        self.most_rows = most_rows
        self.pack_tokens = pack_tokens
        self.progress = progress
        # Shortest first: the next one is popped from the end.
        self.waiting = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), -i))
        self.rows: list[_Row] = []
        self.done: dict[int, Completion] = {}

    def finish(self) -> list[Completion]:
        """Run until every prompt is answered."""
        while self.waiting or self.rows:
            free = self.most_rows - len(self.rows)
            # Prefilling one prompt at a time would leave the matrix products half empty.
            if self.waiting and free >= max(1, self.most_rows // 8):
                self._admit(free)
            else:
                self._step()
        return [self.done[i] for i in range(len(self.prompts))]

    def _admit(self, free: int) -> None:
        """Prefill up to `free` waiting prompts and draw their first tokens."""
        while free and self.waiting:
            pack: list[int] = []
            tokens = 0
            while len(pack) < free and self.waiting:
                tokens += len(self.prompts[self.waiting[-1]])
                if pack and tokens > self.pack_tokens:
                    break
                pack.append(self.waiting.pop())
            free -= len(pack)
            first = len(self.rows)
            logits = prefill(self.model, self.cache, first, [self.prompts[i] for i in pack])
            for i in pack:
                draws = uniform_draws(self.seeds[i], self.sampling.max_new_tokens)
                self.rows.append(_Row(i, len(self.prompts[i]), draws))
            self._draw(first, logits)
        self._drop()

    def _step(self) -> None:
        """Advance every live row by one token."""
        tokens = [row.token_ids[-1] for row in self.rows]
        logits = step(self.model, self.cache, tokens, [row.length for row in self.rows])
        for row in self.rows:
            row.length += 1
        self._draw(0, logits)
        self._drop()

    def _draw(self, first: int, logits: torch.Tensor) -> None:
        """Draw the next token of the rows from `first` on."""
        rows = self.rows[first:]
        uniforms = np.array([row.uniforms[len(row.token_ids)] for row in rows])
        for row, token in zip(rows, pick_tokens(logits, self.sampling, uniforms), strict=True):
            row.token_ids.append(token)

    def _drop(self) -> None:
        """Take out the rows that ended; the last live row moves into each gap."""
        before = len(self.done)
        for place in range(len(self.rows) - 1, -1, -1):
            row = self.rows[place]
            stopped = row.token_ids[-1] in self.stop_ids
            if not stopped and len(row.token_ids) < self.sampling.max_new_tokens:
                continue
            self.done[row.prompt] = Completion(tuple(row.token_ids), stopped)
            last = self.rows.pop()
            if place < len(self.rows):
                self.cache.move(len(self.rows), place, last.length)
                self.rows[place] = last
        if self.progress is not None and len(self.done) > before:
            self.progress(len(self.done) - before)
