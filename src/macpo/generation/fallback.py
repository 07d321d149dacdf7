"""Decoding through transformers' `generate`, for models that `decode` cannot serve.

Slower (an ended answer is computed until its batch has ended), otherwise the same: `generate` runs
the model and its cache, the token is chosen here, from each prompt's own random numbers, and handed
to `generate` as the only one possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from macpo.attention import base_model
from macpo.config import SamplingConfig
from macpo.errors import ModelError
from macpo.generation.decode import check_prompts
from macpo.generation.passes import evaluating
from macpo.generation.protocol import Completion
from macpo.generation.room import Room
from macpo.generation.sampler import pick_tokens, uniform_draws
from macpo.memory import release
from macpo.probe import (
    TRIAL_ERRORS,
    agree,
    declared,
    first_line,
    forget_lengths,
    probe_ids,
    setting,
)

TRIAL_STEPS = 3


def decode_by_generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: frozenset[int],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    memory_gib: float,
    pack_tokens: int,
    progress: Callable[[int], None] | None = None,
    heard: Callable[[int, int], None] | None = None,
    room: Room | None = None,
) -> list[Completion]:
    """Answer each prompt once; see `macpo.generation.decode.decode` for arguments and errors.

    Prompts of similar length share a batch, padded on the left. Where a trial shows that padding
    changes the logits (recurrent layers), only prompts of equal length do; where even those change
    each other's (RWKV in transformers 5.23), none; nor where rotary positions would change with the
    batch's length. `memory_gib` is held to by an estimate from the
    model's config, but a batch has at least one row.
    """
    check_prompts(model, prompts, seeds, sampling)
    room = room or Room()
    done: dict[int, Completion] = {}
    with _plain_generation(model) as base:
        if not prompts:
            return []
        sharing = _try_sharing(base)
        found = declared(base)
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        while order:
            longest = len(prompts[order[0]])
            rows = _batch_rows(base, longest, sampling.max_new_tokens, memory_gib, pack_tokens)
            rope = found.rope_changing_within(longest + sampling.max_new_tokens)
            if sharing == "none" or rope is not None:
                rows = 1
            at_once = order[: room.rows(rows)]
            batch = [i for i in at_once if sharing == "similar" or len(prompts[i]) == longest]
            forget_lengths(base)
            chooser = _Chooser(sampling, [seeds[i] for i in batch], longest)
            if heard is not None:
                chooser.tell = _Teller(batch, stop_ids, heard)
            ids, mask = _left_padded([prompts[i] for i in batch], base.device)
            answers: list[list[int]] | None = None
            try:
                answers = base.generate(
                    ids,
                    attention_mask=mask,
                    logits_processor=LogitsProcessorList([chooser]),
                    max_new_tokens=sampling.max_new_tokens,
                    do_sample=False,
                    eos_token_id=sorted(stop_ids) or None,
                    pad_token_id=0,
                )[:, longest:].tolist()
            except Exception as error:
                if not room.gives_way(error, len(batch), longest + sampling.max_new_tokens):
                    raise
            if answers is None:
                release()
                continue
            order = order[len(batch) :]
            for i, answer in zip(batch, answers, strict=True):
                done[i] = _cut(answer, stop_ids)
            if progress is not None:
                progress(len(batch))
    return [done[i] for i in range(len(prompts))]


def refuse_mute(model: Any) -> None:
    """Let `generate` write a few tokens, so that a model that cannot is refused before the work.

    Raises:
        ModelError: it cannot answer.
    """
    with _plain_generation(model) as base:
        _try_sharing(base)


def _try_sharing(base: Any) -> Literal["similar", "equal", "none"]:
    """Find out prompts of which lengths may share a batch, see `_who_may_share`.

    Raises:
        ModelError: `generate` fails with the model.
    """
    try:
        return _who_may_share(base)
    except TRIAL_ERRORS as error:
        raise ModelError(
            f"{type(base).__name__}: transformers' generate cannot answer with it "
            f"({first_line(error)}); use another model"
        ) from error


class _Chooser(LogitsProcessor):  # type: ignore[misc]
    """Draws the next token of each row and leaves `generate` no other."""

    def __init__(self, sampling: SamplingConfig, seeds: Sequence[int], prompt_tokens: int) -> None:
        self.sampling = sampling
        self.prompt_tokens = prompt_tokens
        self.uniforms = np.stack([uniform_draws(s, sampling.max_new_tokens) for s in seeds])
        self.tell: Callable[[Sequence[int]], None] | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores `[rows, vocabulary]` that are finite for one token per row."""
        drawn = self.uniforms[:, input_ids.shape[1] - self.prompt_tokens]
        tokens = pick_tokens(scores, self.sampling, drawn)
        if self.tell is not None:
            self.tell(tokens)
        chosen = torch.tensor(tokens, device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


class _Teller:
    """Passes on what is drawn, row by row, up to each row's end: `generate` goes on to pad it."""

    def __init__(
        self, places: Sequence[int], stop_ids: frozenset[int], heard: Callable[[int, int], None]
    ) -> None:
        self._open = list(enumerate(places))
        self._stop_ids = stop_ids
        self._heard = heard

    def __call__(self, tokens: Sequence[int]) -> None:
        """Take the next token of every row."""
        for row, place in self._open:
            self._heard(place, tokens[row])
        self._open = [(r, p) for r, p in self._open if tokens[r] not in self._stop_ids]


class _Script(LogitsProcessor):  # type: ignore[misc]
    """Makes `generate` write fixed tokens: row by row the same one in each step."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = iter(tokens)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores `[rows, vocabulary]` that are finite for one token per row."""
        forced = torch.full_like(scores, -torch.inf)
        forced[:, next(self.tokens)] = 0.0
        return forced


@contextmanager
def _plain_generation(model: Any) -> Iterator[Any]:
    """Yield the transformers model without its own generation defaults.

    `generate` would fill what we leave open from them, for example a repetition penalty.
    """
    base = base_model(model)
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        with evaluating(base):
            yield base
    finally:
        base.generation_config = own


def _left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, `[prompts, longest]` each (int64)."""
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _who_may_share(base: Any) -> Literal["similar", "equal", "none"]:
    """Find out prompts of which lengths may share a batch.

    Compares the logits of a few fixed steps of one prompt alone, beside a longer one and beside one
    of its own length.
    """
    prompt, longer = probe_ids(base, 4), probe_ids(base, 7)
    alone = _scripted_logits(base, [prompt])
    for sharing, other in (("similar", longer), ("equal", longer[:4])):
        beside = _scripted_logits(base, [other, prompt])
        if agree(beside, alone, base.dtype):
            return cast(Literal["similar", "equal"], sharing)
    return "none"


def _scripted_logits(base: Any, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the last prompt's logits in each of a few fixed steps, `[steps, vocabulary]`."""
    ids, mask = _left_padded(prompts, base.device)
    output = base.generate(
        ids,
        attention_mask=mask,
        logits_processor=LogitsProcessorList([_Script(probe_ids(base, TRIAL_STEPS))]),
        max_new_tokens=TRIAL_STEPS,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.stack([step[-1] for step in output.logits])


def _batch_rows(
    base: Any, longest: int, new_tokens: int, memory_gib: float, pack_tokens: int
) -> int:
    """Return how many prompts of `longest` tokens a batch may hold, at least one."""
    config = base.config.get_text_config()
    heads = setting(config, "num_key_value_heads")
    head_dim = setting(config, "head_dim")
    width = heads * head_dim if heads and head_dim else config.hidden_size
    per_token = 2 * width * config.num_hidden_layers * base.dtype.itemsize
    fit = int(memory_gib * 2**30 / (per_token * (longest + new_tokens)))
    return max(1, min(fit, pack_tokens // longest))


def _cut(answer: Sequence[int], stop_ids: frozenset[int]) -> Completion:
    """Cut what `generate` padded after the stop token."""
    for place, token in enumerate(answer):
        if token in stop_ids:
            return Completion(tuple(answer[: place + 1]), finished=True)
    return Completion(tuple(answer), finished=False)
