from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from macpo.generation import blocked
from macpo.generation.blocked import blocked_weights
from tests.tiny import tiny_model

IDS = torch.tensor([[5, 6, 7, 300, 2]])

pytestmark = pytest.mark.skipif(not blocked._has_onednn(), reason="oneDNN's linear is not here")
BFLOAT16 = pytest.mark.skipif(
    not blocked._takes_bfloat16(), reason="oneDNN has no bfloat16 on this CPU"
)


@pytest.fixture(autouse=True)
def _blocks_tiny_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "LEAST_NUMBERS", 1)


def adapted(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_peft_model(tiny_model().to(dtype), config).eval()


def replaced(model: torch.nn.Module) -> set[str]:
    """Return the names of the layers whose forward is a stand-in."""
    return {name for name, layer in model.named_modules() if "forward" in layer.__dict__}


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])  # without and with biases
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=BFLOAT16)])
def test_logits_differ_by_rounding_only(architecture: str, dtype: torch.dtype) -> None:
    model = tiny_model(architecture).to(dtype)
    plain = model(IDS).logits

    with blocked_weights(model, 1.0):
        assert len(replaced(model)) == sum(
            isinstance(layer, torch.nn.Linear) for layer in model.modules()
        )
        ours = model(IDS).logits

    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert torch.allclose(ours, plain, atol=tolerance * float(plain.abs().max()))
    assert not replaced(model)
    assert torch.equal(model(IDS).logits, plain)


def test_bfloat16_weights_stay_as_they_are_where_the_cpu_lacks_the_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocked, "_takes_bfloat16", lambda: False)
    model = tiny_model().to(torch.bfloat16)

    with blocked_weights(model, 1.0):
        assert not replaced(model)


def test_layers_are_restored_after_an_error() -> None:
    model = tiny_model()

    with pytest.raises(KeyError), blocked_weights(model, 1.0):
        raise KeyError

    assert not replaced(model)


def test_copies_above_the_budget_are_not_made() -> None:
    model = tiny_model()
    size = sum(m.weight.numel() * 4 for m in model.modules() if isinstance(m, torch.nn.Linear))

    with blocked_weights(model, (size - 1) / 2**30):
        assert not replaced(model)
    with blocked_weights(model, size / 2**30):
        assert replaced(model)


@torch.no_grad()
def test_a_float32_adapter_is_added_into_the_copy_and_the_weights_stay() -> None:
    model = adapted()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = model(input_ids=IDS).logits

    with blocked_weights(model, 1.0):
        names = replaced(model)
        ours = model(input_ids=IDS).logits

    assert any(name.endswith("q_proj") for name in names)
    assert not any(name.endswith("q_proj.base_layer") for name in names)
    assert torch.allclose(ours, plain, atol=1e-5 * float(plain.abs().max()))
    with model.disable_adapter():
        assert not torch.allclose(ours, model(input_ids=IDS).logits, atol=1e-2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@torch.no_grad()
def test_a_disabled_adapter_is_left_out() -> None:
    model = adapted()

    with model.disable_adapter():
        plain = model(input_ids=IDS).logits
        with blocked_weights(model, 1.0):
            ours = model(input_ids=IDS).logits

    assert torch.allclose(ours, plain, atol=1e-5 * float(plain.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(adapted(torch.bfloat16), marks=BFLOAT16, id="bfloat16"),
        pytest.param(adapted(use_dora=True), id="dora"),
        pytest.param(adapted(lora_bias=True, bias="none"), id="bias"),
    ],
)
def test_other_adapters_keep_their_own_products(model: Any) -> None:
    plain = model(input_ids=IDS).logits

    with blocked_weights(model, 1.0):
        names = replaced(model)
        ours = model(input_ids=IDS).logits

    assert not any(name.endswith("q_proj") for name in names)
    assert any(name.endswith("q_proj.base_layer") for name in names)
    tolerance = 1e-5 if plain.dtype == torch.float32 else 0.05
    assert torch.allclose(ours, plain, atol=tolerance * float(plain.abs().max()))


@torch.no_grad()
def test_copies_that_no_adapter_is_in_are_kept_while_their_weights_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocked, "LEAST_NUMBERS", 200)  # more than an adapter's own layers have
    model = adapted()
    model.requires_grad_(False)
    made = []
    reorder = torch.ops.mkldnn._reorder_linear_weight

    def counted(weight: torch.Tensor) -> torch.Tensor:
        made.append(weight.shape)
        return reorder(weight)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", counted)
    kept: blocked.Kept = {}
    linear = sum(type(layer) is torch.nn.Linear for layer in model.modules())
    adapters = sum(name.endswith("lora_A.default") for name, _ in model.named_modules())

    def logits() -> torch.Tensor:
        made.clear()
        with blocked_weights(model, 1.0, kept):
            return model(IDS).logits

    first = logits()
    assert len(made) == linear - 2 * adapters
    assert len(kept) == linear - 3 * adapters
    assert torch.equal(logits(), first)
    assert len(made) == adapters  # they stand in the copies of their layers

    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.mul_(2)
    other = logits()
    assert len(made) == adapters
    torch.testing.assert_close(other, model(IDS).logits, rtol=1e-4, atol=1e-4)
    assert not torch.equal(other, first)

    model.get_output_embeddings().weight.mul_(2)
    torch.testing.assert_close(logits(), model(IDS).logits, rtol=1e-4, atol=1e-4)
    assert len(made) == adapters + 1


def test_weights_that_train_are_copied_anew_each_time() -> None:
    model = tiny_model().requires_grad_(True)
    kept: blocked.Kept = {}
    with torch.no_grad(), blocked_weights(model, 1.0, kept):
        model(IDS)
    assert kept == {}
