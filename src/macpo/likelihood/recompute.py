"""Decoder layers that are computed again on the way back (gradient checkpointing).

Of each layer only what goes into it is kept for the backward pass. transformers' own switch is for
models in training mode; policies are never in it, since that would turn their dropout on. So the
`forward` of each layer object is overlaid while a pack is forwarded, and the overlay's own copy of
it is what runs again later, under the attention implementation that it ran under before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from macpo.attention import base_model, decoder_of
from macpo.errors import ModelError

CACHES = ("past_key_values", "past_key_value", "layer_past", "cache_params")
"""What layers call a cache: one that is written to cannot be written to again."""


def recomputable_layers(causal_lm: Any) -> list[Any]:
    """Return the layers that can be computed again, the outermost ones.

    Raises:
        ModelError: the model has none.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    decoder = decoder_of(base_model(causal_lm))
    named = [
        (n, m) for n, m in decoder.named_modules() if isinstance(m, GradientCheckpointingLayer)
    ]
    names = {name for name, _ in named}
    outer = [m for n, m in named if not any(n.startswith(f"{other}.") for other in names)]
    if not outer:
        raise ModelError(
            f"{type(base_model(causal_lm)).__name__} has no layers that can be computed again; "
            "remove engine.checkpoint_activations"
        )
    return outer


@contextmanager
def recomputed_layers(causal_lm: Any) -> Iterator[None]:
    """Let the layers of a model be computed again on the way back from what is forwarded inside.

    Results and gradients are the same numbers. Without gradients, or with a cache, nothing changes.

    Raises:
        ModelError: see `recomputable_layers`.
    """
    layers = recomputable_layers(causal_lm)
    configs = _configs(base_model(causal_lm))
    try:
        for layer in layers:
            layer.forward = _recomputing(layer.forward, configs)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _configs(model: Any) -> list[Any]:
    """Return all configs that say how attention is computed."""
    found = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    return [c for c in found.values() if hasattr(c, "_attn_implementation_internal")]


def _recomputing(forward: Callable[..., Any], configs: list[Any]) -> Callable[..., Any]:
    """Return a stand-in for a layer's forward that keeps what goes in, and nothing else."""

    @functools.wraps(forward)
    def run(*args: Any, **keywords: Any) -> Any:
        cached = any(keywords.get(name) is not None for name in CACHES)
        if cached or not torch.is_grad_enabled():
            return forward(*args, **keywords)
        before = [config._attn_implementation_internal for config in configs]

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _attending_as(configs, before)

        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **keywords)

    return run


@contextmanager
def _attending_as(configs: list[Any], implementations: list[str]) -> Iterator[None]:
    """Set attention implementations inside the block: a backward pass comes after `with` blocks."""
    before = [config._attn_implementation_internal for config in configs]
    try:
        for config, name in zip(configs, implementations, strict=True):
            config._attn_implementation_internal = name
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name
