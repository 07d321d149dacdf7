"""Going back a share of the way to another policy, in weights: W = (1 - a) W_now + a W_anchor.

Under LoRA W is the base's weight + (alpha / r) B A, so what is averaged are the products B A. A and
B averaged apart would be another policy: (1 - a) B A + a B' A' - a (1 - a) (B - B')(A - A'), which
is near while the two are near, and nothing of the kind for factors that were turned against each
other, B Q and Q^-1 A, though their products are the same.

The average of two products of rank r has rank 2 r at most. It is cut back to r: to the nearest
product of that rank in the Frobenius norm, by singular values (Eckart and Young 1936). The product
is never formed; with B = Q R and A^T = Q' R' (thin QR of the stacked factors) its singular values
are those of R R'^T, which is 2 r by 2 r.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

LORA_A, LORA_B = ".lora_A.", ".lora_B."


def go_back(
    now: Mapping[str, Tensor],
    anchor: Mapping[str, Tensor],
    share: float,
    products: Mapping[str, int],
) -> tuple[dict[str, Tensor], float]:
    """Return the weights that lie `share` of the way from one policy's to another's.

    Args:
        now: weights of a policy, as `macpo.policies` saves them.
        anchor: those of another one over the same base, of the same names and shapes.
        share: 0 leaves all as it is, 1 is the other policy.
        products: see `products_of`.

    Returns:
        The weights, and what the rank has cost: the Frobenius norm of what was cut off over that of
        the whole average, 0 where nothing was or where all weights train.
    """
    weights: dict[str, Tensor] = {}
    cut = whole = 0.0
    for name, weight in now.items():
        if LORA_B in name:
            continue  # comes with its A
        if LORA_A not in name:
            average = (1 - share) * weight.float() + share * anchor[name].float()
            weights[name] = average.to(weight.dtype)
            continue
        other = name.replace(LORA_A, LORA_B)
        count = products[name]
        mine, theirs = (_apart(side[name], side[other], count) for side in (now, anchor))
        a, b, values = average_product(*mine, *theirs, share)
        weights[name], weights[other] = _together(a, b)
        whole += float(values.square().sum())
        cut += float(values[..., a.shape[-2] :].square().sum())
    return dict(sorted(weights.items())), math.sqrt(cut / whole) if whole else 0.0


def average_product(
    a: Tensor, b: Tensor, other_a: Tensor, other_b: Tensor, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factors of the product of rank r nearest to (1 - share) B A + share B' A'.

    All may have leading dimensions, of as many pairs of factors. The returned A has rows at right
    angles, all of one length, and the same norm as `a`: AdamW's steps are of one size whatever
    weights they change, so how a product is shared out between A and B decides how fast it learns.

    Args:
        a: A, `[..., r, inputs]`.
        b: B, `[..., outputs, r]`.
        other_a: A', likewise.
        other_b: B'.
        share: of the other product, 0 to 1.

    Returns:
        A and B as they came, and all singular values of the average, float64, the largest first.
    """
    rank = a.shape[-2]
    stacked_a = torch.cat([a, other_a], dim=-2).double()
    stacked_b = torch.cat([(1 - share) * b.double(), share * other_b.double()], dim=-1)
    left, r_left = torch.linalg.qr(stacked_b)
    right, r_right = torch.linalg.qr(stacked_a.mT)
    u, values, vh = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
    kept = min(rank, values.shape[-1])  # a layer may be narrower than its rank
    length = a.double().square().sum(dim=(-2, -1), keepdim=True).sqrt() / math.sqrt(rank)
    average_a = a.double().clone()
    average_b = torch.zeros_like(b, dtype=torch.float64)
    average_a[..., :kept, :] = length * (vh[..., :kept, :] @ right.mT)
    average_b[..., :kept] = left @ (u[..., :kept] * values[..., None, :kept]) / length
    return average_a.to(a.dtype), average_b.to(b.dtype), values


def products_of(model: Any) -> dict[str, int]:
    """Return how many products each A of a PEFT model holds, by its name: one, or one an expert."""
    return {
        f"{name}{LORA_A}{adapter}.weight": getattr(module, "num_experts", 1)
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
        for adapter in module.lora_A
    }


def _apart(a: Tensor, b: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return factors as `[products, r, inputs]` and `[products, outputs, r]`.

    PEFT keeps those of experts in one tensor each: expert by expert in A's rows, and taking turns
    in B's columns.
    """
    rank = a.shape[0] // count
    return (
        a.reshape(count, rank, a.shape[1]),
        b.reshape(b.shape[0], rank, count).permute(2, 0, 1),
    )


def _together(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Undo `_apart`."""
    return a.reshape(-1, a.shape[-1]), b.permute(1, 2, 0).reshape(b.shape[1], -1)
