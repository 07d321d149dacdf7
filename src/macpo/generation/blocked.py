"""Linear layers with weights in oneDNN's blocked order, while answers are decoded on a CPU.

A step multiplies a few dozen rows with every weight of the model. PyTorch's default product
rearranges the weight each time; oneDNN can take one that was rearranged beforehand. Measured on one
core with avx512 (AMD, 576 x 1536, 64 rows): float32 82 -> 101 GFLOP/s, bfloat16 165 -> 190; for the
LM head (49,152 x 576) 65 -> 105 and 160 -> 190.

Since the weights are copied anyway, a float32 LoRA adapter is added into the copy of a float32
weight: one product instead of three, 7 % of a step of 26 rows. Not in bfloat16, where most of an
adapter's changes are smaller than the steps between the numbers that a weight can be.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

LEAST_NUMBERS = 2**14  # smaller weights (LoRA's, tiny models') stay in the CPU's cache anyway


@dataclass(frozen=True, slots=True)
class _Product:
    """What `layer` computes: `x @ (base.weight + delta)^T + base.bias`."""

    layer: torch.nn.Module
    base: torch.nn.Linear
    delta: Tensor | None = None


Kept = dict[int, tuple[int, "Tensor"]]
"""Blocked copies of frozen weights, by the identity of their layer, with the version of the weight
that was copied: torch counts changes in place."""


@contextmanager
def blocked_weights(
    model: torch.nn.Module, most_gib: float, kept: Kept | None = None
) -> Iterator[None]:
    """Let the linear layers of `model` use blocked copies of their weights inside the block.

    Does nothing where it cannot help or would cost too much: on other devices than x86 CPUs,
    without oneDNN, or when the copies would take more than `most_gib`. Products differ by rounding
    only. Neither weights nor the choice of adapters may change inside.

    Args:
        model: a model in memory.
        most_gib: for the copies.
        kept: holds the copies that depend on no adapter from one block to the next, and goes where
            the model goes; without it all are made each time (0.6 s for 135M weights).
    """
    products = _products(model) if _has_onednn() else []
    size = sum(p.base.weight.numel() * p.base.weight.element_size() for p in products)
    if size > most_gib * 2**30:
        products = []
    try:
        for product in products:
            product.layer.forward = _forward(product, kept)
        yield
    finally:
        for product in products:
            product.layer.__dict__.pop("forward", None)


def _has_onednn() -> bool:
    """Tell whether oneDNN's linear operator is there; beyond x86 it is untried."""
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _products(model: torch.nn.Module) -> list[_Product]:
    """Find the products worth a blocked copy: linear layers, alone or with their LoRA adapters."""
    found: dict[int, _Product] = {}  # by base layer, so that each is copied once
    for layer in model.modules():  # a LoRA layer comes before the base layer in it
        product = _adapted(layer)
        if product is None and isinstance(layer, torch.nn.Linear) and _can_block(layer):
            product = _Product(layer, layer)
        if product is not None:
            found.setdefault(id(product.base), product)
    return list(found.values())


def _takes_bfloat16() -> bool:
    """Tell whether oneDNN multiplies bfloat16 here; without avx512 or the like it refuses to."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(supported())


def _can_block(layer: Any) -> bool:
    """Tell whether a module is a plain linear layer of some size, on CPU, in a dtype for it."""
    if type(layer) is not torch.nn.Linear or "forward" in layer.__dict__:
        return False
    weight = layer.weight
    if type(weight) is not torch.nn.Parameter:  # torchao's quantised ones stand in plain layers
        return False
    takes = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and _takes_bfloat16())
    return bool(takes and weight.device.type == "cpu" and weight.numel() >= LEAST_NUMBERS)


def _adapted(layer: Any) -> _Product | None:
    """Return a LoRA layer as one product, if it is plain LoRA in float32, active and unmerged."""
    if not hasattr(layer, "lora_A"):
        return None
    from peft.tuners.lora import Linear as LoraLinear

    if type(layer) is not LoraLinear or layer.disable_adapters or layer.merged:
        return None
    base = layer.get_base_layer()
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    weights = [layer.lora_A[name].weight for name in names]
    plain = not any(name in layer.lora_variant or layer.lora_bias[name] for name in names)
    if not (names and plain and _can_block(base)):
        return None
    if any(weight.dtype != torch.float32 for weight in (base.weight, *weights)):
        return None
    return _Product(layer, base, sum(layer.get_delta_weight(name) for name in names))


def _copy(product: _Product, kept: Kept | None) -> Tensor:
    """Return the blocked copy of a product's weight; one that is kept, if it is still right."""
    weight = product.base.weight
    if product.delta is not None:
        blocked: Tensor = torch.ops.mkldnn._reorder_linear_weight(
            weight.detach() + product.delta.detach()
        )
        return blocked
    found = (kept or {}).get(id(product.base))
    if found is not None and found[0] == weight._version:
        return found[1]
    blocked = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    if kept is not None and not weight.requires_grad:
        kept[id(product.base)] = (weight._version, blocked)
    return blocked


def _forward(product: _Product, kept: Kept | None) -> Callable[[Tensor], Tensor]:
    """Return a stand-in for the forward of `product.layer`."""
    bias = product.base.bias
    blocked = _copy(product, kept)

    def forward(x: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, blocked, bias, "none", [], "")
        return output

    return forward
