"""Token-level decoding of many prompts at once with a packed, preallocated cache.

    what all prompts start with, once                            (layouts.SequenceLayout)
      └─ prefill: several prompts in one row, no padding         (layouts.PrefillLayout)
           └─ step: one row holding one token per live answer    (layouts.StepLayout)
                ├─ an answer ends: the last live row takes its slot
                └─ an eighth of the slots is free: prefill more prompts

Linear layers see one row of tokens throughout; only attention knows rows. Prompts are taken longest
first, so a slot that held one prompt holds any later one, and memory is reserved for real lengths
instead of the longest one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from macpo.attention import base_model
from macpo.config import SamplingConfig
from macpo.errors import ConfigError, ModelError
from macpo.generation.blocked import Kept, blocked_weights
from macpo.generation.cache import KeyValueCache, LayerShape, cache_numbers
from macpo.generation.layouts import SequenceLayout
from macpo.generation.passes import prefill, read_prefix, serving, step
from macpo.generation.protocol import Completion
from macpo.generation.room import Room
from macpo.generation.sampler import pick_tokens, uniform_draws
from macpo.generation.servable import Refused, Served, examine
from macpo.likelihood.groups import shared_prefix
from macpo.memory import release
from macpo.probe import DYNAMIC_ROPE, declared

if TYPE_CHECKING:
    from torch import Tensor

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
    served: Served | None = None,
    away_from: Any = None,
    strength: float = 0.0,
    plausible: float = 0.0,
    heard: Callable[[int, int], None] | None = None,
    blocked: Kept | None = None,
    room: Room | None = None,
) -> list[Completion]:
    """Answer each prompt once.

    The same call gives the same tokens on the same machine. Which prompts share a call changes an
    answer only through rounding, so a caller who wants to keep finished work passes fixed shards.
    Where memory runs out, answers that are finished stay, and the others are begun again, half as
    many at once.

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
        served: what `examine` found, if it was asked already.
        away_from: a model of the same architecture and vocabulary whose token scores are pushed
            away from, in other memory: logits become those of `model` plus `strength` times their
            difference to those of `away_from`. Keys and values of both share `memory_gib`.
        strength: of the push.
        plausible: of a push, tokens whose probability under `model` is less than that share of the
            likeliest one's are left to the last; 0 leaves none.
        heard: called with the place of a prompt and a token of its answer, as soon as it is drawn.
        blocked: keeps copies of the weights of `model`, see `macpo.generation.blocked`.
        room: keeps how many answers memory had room for in earlier calls.

    Raises:
        ConfigError: `memory_gib` does not hold one answer of full length.
        ModelError: the model cannot be served this way, its positions do not suffice, or its
            logits are not finite.
        SmallestBudgetError: memory has no room for one answer.
        ValueError: a prompt is empty, or seeds and prompts differ in number.
    """
    check_prompts(model, prompts, seeds, sampling)
    room = room or Room()
    request = _Request(
        [model] if away_from is None else [model, away_from],
        prompts,
        seeds,
        stop_ids,
        sampling,
        memory_gib if away_from is None else memory_gib / 2,
        pack_tokens,
        progress,
        strength,
        plausible,
        heard,
        blocked,
    )
    done, dtype = request.done, base_model(model).dtype
    while left := [i for i in range(len(prompts)) if i not in done]:
        needs = sorted((len(prompts[i]) + sampling.max_new_tokens - 1 for i in left), reverse=True)
        served = served or _require_served(model, needs[0])
        rows, block = plan_rows(needs, served.shapes, dtype, request.memory_gib, room.most)
        try:
            _answer(request, left, needs[:rows], block, served.shapes)
        except Exception as error:
            if not room.gives_way(error, rows, needs[0] + 1):
                raise
        else:
            break
        release()
    return [done[i] for i in range(len(prompts))]


@dataclass(frozen=True, slots=True)
class _Request:
    """What `decode` is asked for, as there; `memory_gib` is for each of `models`.

    `done` holds what is answered so far, by place.
    """

    models: Sequence[Any]
    prompts: Sequence[Sequence[int]]
    seeds: Sequence[int]
    stop_ids: frozenset[int]
    sampling: SamplingConfig
    memory_gib: float
    pack_tokens: int
    progress: Callable[[int], None] | None
    strength: float
    plausible: float
    heard: Callable[[int, int], None] | None
    blocked: Kept | None
    done: dict[int, Completion] = field(default_factory=dict)


def _answer(
    request: _Request,
    left: Sequence[int],
    needs: Sequence[int],
    rows_per_block: int,
    shapes: dict[int, LayerShape],
) -> None:
    """Answer prompts, each once, into `request.done`.

    Args:
        request: what is asked for.
        left: places of the prompts.
        needs: tokens of the rows that grow at once, falling.
        rows_per_block: of the cache.
        shapes: of the layers.
    """
    prompts, most = request.prompts, request.sampling.max_new_tokens
    waiting = [
        _Row(i, tuple(prompts[i]), uniform_draws(request.seeds[i], most))
        for i in sorted(left, key=lambda i: (len(prompts[i]), -i))
    ]
    with contextlib.ExitStack() as stack:
        for model in request.models:
            stack.enter_context(serving(model))
            kept = request.blocked if model is request.models[0] else None
            stack.enter_context(blocked_weights(model, request.memory_gib, kept))
        shared = shared_prefix([prompts[i] for i in left])
        start = prompts[left[0]][:shared]
        base = base_model(request.models[0])
        readers = [
            _Reader(
                model,
                KeyValueCache(shapes, needs, rows_per_block, base.dtype, base.device),
                read_prefix(model, start) if shared else None,
            )
            for model in request.models
        ]
        run = _Run(request, readers, len(needs), waiting)
        while run.waiting or run.rows:
            if run.wants_prompts():
                run.admit(shared)
            else:
                run.advance()
            ended = run.drop_ended()
            if request.progress is not None and ended:
                request.progress(ended)


def _require_served(model: Any, max_length: int) -> Served:
    found = examine(model, max_length)
    if isinstance(found, Refused):
        raise ModelError(
            f"{found.reason}; answer with macpo.generation.fallback.decode_by_generate instead"
        )
    return found


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
    base = base_model(model)
    limit = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    if any(rope.kind == DYNAMIC_ROPE for rope in declared(base).ropes):
        limit = None  # it is where they begin to stretch
    longest = max(map(len, prompts), default=0)
    if limit is not None and longest + sampling.max_new_tokens - 1 > limit:
        raise ModelError(
            f"a prompt of {longest} tokens and an answer of up to {sampling.max_new_tokens} exceed "
            f"the model's {limit} positions; lower limits.prompt_tokens or sampling.max_new_tokens"
        )


def plan_rows(
    needs: Sequence[int],
    shapes: dict[int, LayerShape],
    dtype: torch.dtype,
    memory_gib: float,
    most: int | None = None,
) -> tuple[int, int]:
    """Return how many rows fit into the budget, and how many of them make a block.

    Args:
        needs: tokens that each prompt and its answer may take, falling.
        shapes: of the layers.
        dtype: of keys and values.
        memory_gib: the budget.
        most: rows, if there is a limit besides.
    """
    budget = memory_gib * 2**30 / dtype.itemsize
    for rows in range(min(len(needs), most or len(needs)), 0, -1):
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
    """An answer, waiting or under way.

    `place` is its prompt's in the caller's list; `uniforms` `[max_new_tokens]` decide its draws.
    """

    place: int
    prompt: tuple[int, ...]
    uniforms: np.ndarray
    token_ids: list[int] = field(default_factory=list)

    @property
    def cached(self) -> int:
        """How many tokens are in the cache: all but the last one drawn."""
        return len(self.prompt) + len(self.token_ids) - 1


@dataclass(frozen=True, slots=True)
class _Reader:
    """A model that reads along, its cache, and what it read of what all prompts start with."""

    model: Any
    cache: KeyValueCache
    prefix: SequenceLayout | None


def push(logits: Tensor, others: Tensor, strength: float, plausible: float) -> Tensor:
    """Push token scores away from another model's, `[rows, vocabulary]` float32.

    logits + strength * (logits - others); what has less than the share `plausible` of the likeliest
    token's probability by `logits` alone gets 10,000 nats less, so that no contrast makes it likely
    (the adaptive plausibility constraint of Li et al. 2022, arXiv 2210.15097, which gives it minus
    infinity: here such tokens keep their order, and top-k finds no tie among them).
    """
    pushed = logits + strength * (logits - others)
    if not plausible:
        return pushed
    least = logits.amax(dim=-1, keepdim=True) + math.log(plausible)
    return pushed - 1e4 * (logits < least)


@dataclass(slots=True)
class _Run:
    """Answers under way: `rows[r]` is the answer in row r of the cache.

    The first of `readers` answers; a second one is pushed away from.
    """

    request: _Request
    readers: Sequence[_Reader]
    most_rows: int
    waiting: list[_Row]  # shortest prompt first: the next one is popped from the end
    rows: list[_Row] = field(default_factory=list)

    def wants_prompts(self) -> bool:
        """Tell whether it is time to prefill.

        Not for a single free row: one prompt at a time would leave matrix products half empty.
        """
        free = self.most_rows - len(self.rows)
        return bool(self.waiting) and free >= max(1, self.most_rows // 8)

    def admit(self, shared: int) -> None:
        """Prefill one row of waiting prompts and draw their first tokens.

        Besides the `shared` tokens that all prompts start with it has at most `pack_tokens`, unless
        one prompt alone has more.
        """
        first, room = len(self.rows), self.request.pack_tokens
        while self.waiting and len(self.rows) < self.most_rows:
            room -= len(self.waiting[-1].prompt) - shared
            if room < 0 and len(self.rows) > first:
                break
            self.rows.append(self.waiting.pop())
        own = [row.prompt[shared:] for row in self.rows[first:]]
        self._draw(first, [prefill(r.model, r.cache, first, own, r.prefix) for r in self.readers])

    def advance(self) -> None:
        """Give every row one more token."""
        tokens = [row.token_ids[-1] for row in self.rows]
        lengths = [row.cached for row in self.rows]
        self._draw(0, [step(r.model, r.cache, tokens, lengths) for r in self.readers])

    def _draw(self, first: int, all_logits: Sequence[Tensor]) -> None:
        """Draw the next token of the rows from `first` on, by the logits of each reader."""
        logits, sampling = all_logits[0], self.request.sampling
        if len(all_logits) > 1:
            away, asked = all_logits[1].float(), self.request
            logits = push(logits.float(), away, asked.strength, asked.plausible)
        rows = self.rows[first:]
        uniforms = np.array([row.uniforms[len(row.token_ids)] for row in rows])
        for row, token in zip(rows, pick_tokens(logits, sampling, uniforms), strict=True):
            row.token_ids.append(token)
            if self.request.heard is not None:
                self.request.heard(row.place, token)

    def drop_ended(self) -> int:
        """Take out the rows that ended, the last row moving into each gap; return how many."""
        asked, before = self.request, len(self.request.done)
        for r in range(len(self.rows) - 1, -1, -1):
            row = self.rows[r]
            stopped = row.token_ids[-1] in asked.stop_ids
            if not stopped and len(row.token_ids) < asked.sampling.max_new_tokens:
                continue
            asked.done[row.place] = Completion(tuple(row.token_ids), stopped)
            last = self.rows.pop()
            if last is not row:
                for reader in self.readers:
                    reader.cache.move(len(self.rows), r, last.cached)
                self.rows[r] = last
        return len(asked.done) - before
