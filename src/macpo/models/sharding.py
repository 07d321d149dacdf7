"""A frozen base divided among ranks, for one that no rank's memory holds whole (FSDP2).

Each rank keeps a slice of every weight; a decoder layer is gathered as it runs and let go of after.
What trains (adapters) stays whole on every rank, beside the slices, so that gradients are summed,
steps taken and checkpoints written as without sharding. Embedding, final norm and head are one
group, which also serves models whose head is their embedding; it is gathered once for each pass, in
which the head is read.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from macpo.attention import base_model
from macpo.errors import ModelError

Found = TypeVar("Found")

PASS = "macpo_pass"
"""The method of a sharded model in which a pass runs, see `one_pass`."""


def mesh_over(size: int, device: torch.device) -> Any:
    """Return the ranks as FSDP takes them; all of them call this."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (size,))


def shard(model: Any, name: str, mesh: Any, device: torch.device) -> None:
    """Divide what is frozen of a model in CPU memory among ranks, in place; nothing is exchanged.

    Args:
        model: a PEFT model; what requires gradients stays whole.
        name: of the model, for errors.
        mesh: see `mesh_over`.
        device: where slices, and what trains, go.

    Raises:
        ModelError: it is quantised, or its class does not say what a layer is.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    causal_lm = base_model(model)
    if getattr(causal_lm, "hf_quantizer", None) is not None:
        raise ModelError(f"{name}: quantised weights cannot be sharded; set engine.sharding: none")
    kinds = set(getattr(causal_lm, "_no_split_modules", None) or ())
    layers = [m for m in causal_lm.modules() if type(m).__name__ in kinds]
    if not layers:
        raise ModelError(
            f"{name}: its class does not name its layers (_no_split_modules), by which it would be "
            "sharded; set engine.sharding: none"
        )
    trains = {p for p in model.parameters() if p.requires_grad}
    for parameter in trains:
        parameter.data = parameter.data.to(device)
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=trains)
    fully_shard(causal_lm, mesh=mesh, ignored_params=trains)
    setattr(causal_lm, PASS, types.MethodType(_run, causal_lm))
    register_fsdp_forward_method(causal_lm, PASS)


def _run(causal_lm: Any, work: Callable[[], Any]) -> Any:
    """Do the work of a pass; FSDP gathers before and lets go after, as around a forward."""
    return work()


def is_sharded(causal_lm: Any) -> bool:
    """Tell whether `shard` has divided a model among ranks."""
    return hasattr(causal_lm, PASS)


def one_pass(causal_lm: Any, work: Callable[[], Found]) -> Found:
    """Return what `work` returns, which forwards a model's decoder once and then reads its head.

    Where the model is sharded all ranks call this at the same time, and as often.

    Args:
        causal_lm: the model.
        work: returns a tensor or a tuple of them.
    """
    if not is_sharded(causal_lm):
        return work()
    return cast(Found, getattr(causal_lm, PASS)(work))


def bytes_here(model: Any) -> int:
    """Return the bytes of a model's weights on this rank."""
    whole = (getattr(p, "to_local", p.detach)() for p in model.parameters())
    return sum(p.numel() * p.element_size() for p in whole)
