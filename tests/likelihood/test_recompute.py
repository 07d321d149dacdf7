"""Layers that are computed again on the way back: the same numbers, and less that is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from macpo.adapters import with_adapter
from macpo.config import TuningConfig
from macpo.errors import ModelError
from macpo.likelihood import LikelihoodEngine, Pack, PromptGroup, pack_groups
from macpo.likelihood.architecture import Architecture
from macpo.likelihood.recompute import recomputable_layers, recomputed_layers
from tests.likelihood.plain import make_model

GROUPS = [
    PromptGroup(tuple(range(3, 23)), (tuple(range(40, 55)), tuple(range(60, 70)))),
    PromptGroup(tuple(range(3, 13)), (tuple(range(30, 50)),)),
]


def adapted(architecture: str, **tuning: Any) -> Any:
    torch.manual_seed(0)
    model = make_model(architecture)
    model.requires_grad_(False).eval()
    model = with_adapter(model, TuningConfig(rank=4, targets="all-linear", **tuning), "tiny")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def gradients(
    model: Any, checkpoint_activations: bool, architecture: Architecture | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Score, and send the sum back with the `with` blocks of the forward pass long behind."""
    engine = LikelihoodEngine(
        model, architecture=architecture, checkpoint_activations=checkpoint_activations
    )
    [pack] = pack_groups(GROUPS, 1000)
    torch.manual_seed(1)
    sums = engine.score_pack(pack)
    before = torch.get_rng_state()
    trains = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(sums.sum(), trains, allow_unused=True, materialize_grads=True)
    assert torch.equal(before, torch.get_rng_state())
    return sums.detach(), list(found)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_neox", "qwen3", "jamba"])
def test_scores_and_gradients_are_the_same_bytes(architecture: str) -> None:
    model = adapted(architecture)
    # A hybrid goes on from copies of a state otherwise, which is another order of sums.
    near = {"rtol": 1e-4, "atol": 1e-5} if architecture == "jamba" else {"rtol": 0.0, "atol": 0.0}

    plain, recomputed = gradients(model, False), gradients(model, True)

    torch.testing.assert_close(recomputed[0], plain[0], **near)
    for ours, theirs in zip(recomputed[1], plain[1], strict=True):
        torch.testing.assert_close(ours, theirs, **near)
    assert all("forward" not in vars(layer) for layer in recomputable_layers(model))


def test_dropout_drops_the_same_on_the_way_back() -> None:
    model = adapted("llama", dropout=0.5)
    found = LikelihoodEngine(model).architecture
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            module.train()

    plain, recomputed = gradients(model, False, found), gradients(model, True, found)

    assert not torch.equal(plain[0], gradients(adapted("llama"), False)[0])
    assert torch.equal(plain[0], recomputed[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], recomputed[1], strict=True))


def test_only_what_goes_into_layers_is_kept() -> None:
    model = adapted("llama")
    kept = {}
    for checkpoint_activations in (False, True):
        engine = LikelihoodEngine(model, checkpoint_activations=checkpoint_activations)
        found: dict[int, int] = {}

        def keep(tensor: torch.Tensor, found: dict[int, int] = found) -> torch.Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            sums = engine.score_pack(Pack((GROUPS[0],), (0,)))
        kept[checkpoint_activations] = sum(found.values())
        del sums
    assert kept[True] < kept[False] / 2


def test_without_gradients_nothing_is_computed_again() -> None:
    model = adapted("llama")
    calls = []
    with recomputed_layers(model), torch.no_grad():
        layer = recomputable_layers(model)[0]
        layer.register_forward_hook(lambda *_: calls.append(1))
        LikelihoodEngine(model).score(GROUPS)
    assert calls


def test_a_model_without_such_layers_is_refused() -> None:
    model = make_model("llama")
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(ModelError, match=r"remove engine\.checkpoint_activations"):
        recomputable_layers(model)
