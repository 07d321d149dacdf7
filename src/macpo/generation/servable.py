"""Which models `macpo.generation.decode` can serve; the others go through transformers' generate.

A model is served when its attention goes through `macpo.attention` and nothing else carries state
from token to token. `macpo.probe` says how that is found out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from macpo.attention import base_model
from macpo.generation.cache import KeyValueCache, LayerShape
from macpo.generation.layouts import SequenceLayout
from macpo.generation.passes import evaluating, prefill, read_prefix, serving, step
from macpo.probe import (
    TRIAL_ERRORS,
    Declared,
    declared,
    first_line,
    own_logits,
    probe_ids,
    relative_error,
    tolerance,
)

TRIAL_LENGTHS = (5, 1, 3, 2, 7, 4, 6)


@dataclass(frozen=True, slots=True)
class Served:
    """A model that can be served, and what a token takes in each of its layers."""

    shapes: dict[int, LayerShape]


@dataclass(frozen=True, slots=True)
class Refused:
    """A model that cannot be served, and why, as half a sentence."""

    reason: str


def examine(model: Any, max_length: int) -> Served | Refused:
    """Find out whether answers can be decoded with the packed cache.

    Args:
        model: a transformers causal language model, or a PEFT model over one.
        max_length: the most tokens of any prompt with its answer.
    """
    base = base_model(model)
    found = declared(base)
    reason = _looks_wrong(found, max_length)
    if reason is not None:
        return Refused(reason)
    try:
        with serving(model):
            seen = read_prefix(model, probe_ids(base, 4))
        reason = _seen(found, seen, max_length)
        return Refused(reason) if reason else _tried(model, base, _shapes(seen))
    except TRIAL_ERRORS as error:
        return Refused(f"a trial failed: {first_line(error)}")


def can_decode(model: Any, max_length: int) -> str | None:
    """Return None if `decode` serves the model, else the reason why it must fall back."""
    found = examine(model, max_length)
    return found.reason if isinstance(found, Refused) else None


def _looks_wrong(found: Declared, max_length: int) -> str | None:
    """Return what the model's class or config says against serving it."""
    missing = {"position_ids", "logits_to_keep"} - found.arguments
    if missing:
        return f"{found.name}'s forward takes no {' and no '.join(sorted(missing))}"
    if found.stateful:
        return f"{found.name} keeps a recurrent state"
    if not found.attends_through_interface:
        return f"{found.name} does not use transformers' attention interface"
    if found.other_layer_types:
        return f"{found.name} has layers of type {', '.join(found.other_layer_types)}"
    rope = found.rope_changing_within(max_length)
    if rope is not None:
        return (
            f"{rope.kind} rotary embeddings change with the batch's length above "
            f"{rope.limit} tokens"
        )
    return None


def _seen(found: Declared, seen: SequenceLayout, max_length: int) -> str | None:
    """Return what the first trial says against serving the model."""
    layers = len(found.layer_types)
    if sorted(seen.keys) != list(range(layers)):
        return f"only {len(seen.keys)} of {layers} layers attend through the interface"
    if found.window is None or max_length <= found.window:
        return None
    if any(seen.windows[i] is None for i in found.sliding_layers):
        return f"its window of {found.window} tokens is not passed to the attention function"
    return None


def _shapes(seen: SequenceLayout) -> dict[int, LayerShape]:
    """Return what each layer keeps of a token."""
    return {
        layer: LayerShape(key.shape[0], key.shape[2], seen.values[layer].shape[2])
        for layer, key in seen.keys.items()
    }


def _tried(model: Any, base: Any, shapes: dict[int, LayerShape]) -> Served | Refused:
    """Serve a few short prompts for one step and compare with the model's own forward."""
    prefix = probe_ids(base, 2)
    sequences = [prefix + probe_ids(base, length + 1) for length in TRIAL_LENGTHS]
    with evaluating(model):
        plain = own_logits(model, sequences)
    lengths = [len(ids) - 1 for ids in sequences]
    capacities = [max(lengths) + 1] * len(lengths)
    cache = KeyValueCache(shapes, capacities, len(lengths), base.dtype, base.device)
    with serving(model):
        shared = read_prefix(model, prefix)
        first = prefill(model, cache, 0, [ids[len(prefix) : -1] for ids in sequences], shared)
        second = step(model, cache, [ids[-1] for ids in sequences], lengths)
    for name, ours, place in (("prompt", first, -2), ("step", second, -1)):
        theirs = torch.stack([logits[place] for logits in plain])
        error = relative_error(ours, theirs, base.dtype)
        if not error <= tolerance(base.dtype):
            return Refused(f"in a trial its {name} logits are off by {error:.2g} of their spread")
    return Served(shapes)
