"""Which models `macpo.generation.decode` can serve; the others go through transformers' generate.

A model is served when its attention goes through `macpo.attention` and nothing else carries state
from token to token. That is checked in two ways: by what its class and config say, and by a trial
with a few tokens whose logits must be those of the model's own forward.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from macpo.errors import ModelError
from macpo.generation.cache import KeyValueCache, LayerShape
from macpo.generation.layouts import SequenceLayout
from macpo.generation.passes import base_model, evaluating, prefill, read_prefix, serving, step

if TYPE_CHECKING:
    from torch import Tensor

SERVED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
# Root mean square of what logits may differ by, as a share of their standard deviation: rounding
# stays far below, a token that sees what it must not, or misses what it must see, far above.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.15}
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
    reason = _declared(base, max_length)
    if reason is not None:
        return Refused(reason)
    try:
        with serving(model):
            seen = read_prefix(model, trial_ids(base, 4))
        reason = _seen(base, seen, max_length)
        return Refused(reason) if reason else _tried(model, base, _shapes(seen))
    except (ModelError, AttributeError, TypeError, ValueError, RuntimeError, KeyError) as error:
        return Refused(f"a trial failed: {' '.join(str(error).split())}")


def can_decode(model: Any, max_length: int) -> str | None:
    """Return None if `decode` serves the model, else the reason why it must fall back."""
    found = examine(model, max_length)
    return found.reason if isinstance(found, Refused) else None


def _declared(base: Any, max_length: int) -> str | None:
    """Return what the model's class or config says against serving it."""
    name = type(base).__name__
    missing = {"position_ids", "logits_to_keep"} - set(inspect.signature(base.forward).parameters)
    if missing:
        return f"{name}'s forward takes no {' and no '.join(sorted(missing))}"
    if getattr(base, "_is_stateful", False):
        return f"{name} keeps a recurrent state"
    if not getattr(base, "_supports_attention_backend", False):
        return f"{name} does not use transformers' attention interface"
    config = base.config.get_text_config()
    other = set(getattr(config, "layer_types", None) or ()) - SERVED_LAYER_TYPES
    if other:
        return f"{name} has layers of type {', '.join(sorted(other))}"
    for rope in _rope_parameters(config):
        kind = rope.get("rope_type", "default")
        limit = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        if kind in LENGTH_DEPENDENT_ROPE and max_length > limit:
            return f"{kind} rotary embeddings change with the batch's length above {limit} tokens"
    return None


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """Return the config's rotary parameters, which some models keep per layer type."""
    found = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in found.values() if isinstance(value, dict)]
    return nested or [found]


def _seen(base: Any, seen: SequenceLayout, max_length: int) -> str | None:
    """Return what the first trial says against serving the model."""
    config = base.config.get_text_config()
    layers = config.num_hidden_layers
    if sorted(seen.keys) != list(range(layers)):
        return f"only {len(seen.keys)} of {layers} layers attend through the interface"
    window = getattr(config, "sliding_window", None)
    if not window or max_length <= window or getattr(config, "use_sliding_window", True) is False:
        return None
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    silent = [i for i, kind in enumerate(types) if kind == "sliding_attention"]
    if any(seen.windows[i] is None for i in silent):
        return f"its window of {window} tokens is not passed to the attention function"
    return None


def _shapes(seen: SequenceLayout) -> dict[int, LayerShape]:
    """Return what each layer keeps of a token."""
    return {
        layer: LayerShape(key.shape[0], key.shape[2], seen.values[layer].shape[2])
        for layer, key in seen.keys.items()
    }


def _tried(model: Any, base: Any, shapes: dict[int, LayerShape]) -> Served | Refused:
    """Serve three short prompts for one step and compare with the model's own forward."""
    prefix = trial_ids(base, 2)
    sequences = [prefix + trial_ids(base, length + 1) for length in TRIAL_LENGTHS]
    with evaluating(model):
        plain = [
            model(input_ids=torch.tensor([ids], device=base.device), use_cache=False).logits[0]
            for ids in sequences
        ]
    lengths = [len(ids) - 1 for ids in sequences]
    capacities = [max(lengths) + 1] * len(lengths)
    cache = KeyValueCache(shapes, capacities, len(lengths), base.dtype, base.device)
    with serving(model):
        shared = read_prefix(model, prefix)
        first = prefill(model, cache, 0, [ids[len(prefix) : -1] for ids in sequences], shared)
        second = step(model, cache, [ids[-1] for ids in sequences], lengths)
    for name, ours, place in (("prompt", first, -2), ("step", second, -1)):
        error = relative_error(ours, torch.stack([logits[place] for logits in plain]))
        if not error <= TOLERANCE[base.dtype]:
            return Refused(f"in a trial its {name} logits are off by {error:.2g} of their spread")
    return Served(shapes)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Return the root mean square difference of logits over their standard deviation.

    Of the worst row in float32. In 16 bits of the median row: there, rounding alone takes single
    rows far astray (0.7 was seen in bfloat16), a fault in the layout takes all.
    """
    difference = (ours.double() - theirs.double()).square().mean(dim=-1).sqrt()
    error = difference / theirs.double().std(dim=-1)
    return float(error.max() if ours.dtype.itemsize >= 4 else error.median())


def trial_ids(base: Any, count: int) -> list[int]:
    """Return `count` token ids spread over the vocabulary, another series for each count."""
    size = base.get_input_embeddings().num_embeddings
    return [(7919 * (i + 1) * count + 13) % size for i in range(count)]
