"""What the engine may do with a model: found by looking and by trying, never assumed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from macpo.errors import ModelError
from macpo.likelihood import LikelihoodEngine, PromptGroup, architecture, pack_groups
from macpo.likelihood.architecture import PROMPT_LENGTH, Architecture, inspect_architecture
from macpo.likelihood.layout import TreeLayout, laid_out_hidden, tree_layout
from tests.generation.test_servable import biased_llama
from tests.likelihood.plain import SINKS, TREES, completions_of, make_model, with_adapter

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"


def refusal(model: Any) -> str:
    with pytest.raises(ModelError) as raised:
        inspect_architecture(model)
    return str(raised.value)


@pytest.mark.parametrize("name", TREES)
def test_trees_are_right_for_models_with_full_attention(name: str) -> None:
    found = inspect_architecture(make_model(name))
    assert found.fallback_reason == ""
    assert found.window == (64 if name in ("gemma2", "gpt_oss") else None)
    assert found.logit_softcap == (30.0 if name == "gemma2" else None)


@pytest.mark.parametrize("name", ["mamba", "jamba"])
def test_recurrent_layers_are_seen_in_the_config(name: str) -> None:
    reason = inspect_architecture(make_model(name)).fallback_reason
    assert reason == f"layers of kind {LINEAR} carry state along the row"


@pytest.mark.parametrize("name", SINKS)
def test_attention_sinks_are_honoured(name: str) -> None:
    found = inspect_architecture(make_model(name, sliding_window=64))
    assert (found.fallback_reason, found.window, found.passes_window) == ("", 64, True)


@pytest.mark.parametrize("name", SINKS)
def test_sinks_take_their_share(name: str) -> None:
    """What is compared with a plain forward must depend on them."""
    model = make_model(name).requires_grad_(False)
    groups = [PromptGroup((5, 9, 1, 0, 44), ((17, 3, 3, 250), (8, 0, 0)))]
    with_sinks = completions_of(LikelihoodEngine(model).score(groups))
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            parameter.fill_(-100.0)
    without = completions_of(LikelihoodEngine(model).score(groups))
    assert (with_sinks - without).abs().max() > 0.05


def test_attention_that_asks_for_more_falls_back() -> None:
    reason = inspect_architecture(biased_llama()).fallback_reason
    assert reason == (
        "attention cannot go through a layout (Layer asks for ['tilt'], which no layout can honour)"
    )


def test_attention_outside_the_interface_is_found_by_trying() -> None:
    """Bloom says nothing in its config; its positions are those in the row, whatever we ask."""
    reason = inspect_architecture(make_model("bloom")).fallback_reason
    assert reason == "a row with branches gave other hidden states than the branches alone"


def test_window_shorter_than_the_probe_is_honoured() -> None:
    found = inspect_architecture(make_model("mistral", sliding_window=4))
    assert (found.fallback_reason, found.window, found.passes_window) == ("", 4, True)
    assert found.allows_tree(10**6)


@pytest.mark.parametrize("name", ["qwen2_moe", "phimoe"])
def test_window_that_the_attention_function_is_not_told_is_not_trusted(name: str) -> None:
    found = inspect_architecture(make_model(name, sliding_window=9, use_sliding_window=True))
    assert (found.fallback_reason, found.window, found.passes_window) == ("", 9, False)
    assert found.allows_tree(9)
    assert not found.allows_tree(10)


@pytest.mark.parametrize(
    ("overrides", "window"),
    [
        ({}, None),
        ({"use_sliding_window": True, "sliding_window": 9, "layer_types": [FULL, SLIDING]}, 9),
        ({"use_sliding_window": True, "sliding_window": 9, "layer_types": [FULL, FULL]}, None),
        ({"use_sliding_window": False, "sliding_window": 9}, None),
    ],
)
def test_window_counts_only_where_a_layer_slides(
    overrides: dict[str, Any], window: int | None
) -> None:
    assert inspect_architecture(make_model("qwen3", **overrides)).window == window


def test_tree_is_allowed_up_to_the_window() -> None:
    sliding = Architecture(fallback_reason="", window=8, logit_softcap=None)
    assert sliding.allows_tree(8)
    assert not sliding.allows_tree(9)
    assert dataclasses.replace(sliding, passes_window=True).allows_tree(9)
    assert Architecture("", None, None).allows_tree(10**6)
    assert not Architecture("some reason", None, None).allows_tree(1)


def test_window_that_the_config_hides_is_honoured() -> None:
    """What a layer asks for counts, not what the config says."""
    model = make_model("mistral", sliding_window=8).requires_grad_(False)
    group = PromptGroup((1, 2, 3, 4), ((5, 6, 7, 8, 9, 10),))
    [pack] = pack_groups([group], 100)
    layout = tree_layout(pack, torch.float32, model.device)
    assert layout.longest == 9
    hidden = laid_out_hidden(model, pack, layout)
    assert layout.windows == {0: 8, 1: 8}
    ids = torch.tensor([[*group.prompt, *group.completions[0][:-1]]])
    own = model.model(input_ids=ids).last_hidden_state[0, 3:]
    assert torch.allclose(hidden, own, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "overrides", "scale"),
    [
        ("granite", {"logits_scaling": 1.0}, 1.0),
        ("granite", {"logits_scaling": 2.0}, 0.5),
        ("granite", {"logits_scaling": 0.9}, 1 / 0.9),  # in bfloat16 1 would do
        ("hyperclovax", {"logits_scaling": 2.0}, 2.0),  # the same name, the other way round
        ("cohere", {}, 0.0625),
        ("minicpm3", {"dim_model_base": 8}, 0.25),
    ],
)
def test_scale_of_the_logits_is_found(
    name: str, overrides: dict[str, Any], scale: float, dtype: torch.dtype
) -> None:
    found = inspect_architecture(make_model(name, **overrides).to(dtype))
    assert found.logit_scale == pytest.approx(scale)
    assert found.fallback_reason == ""


def test_logits_that_no_scale_of_the_config_explains_are_refused() -> None:
    model = make_model("llama")
    model.lm_head.register_forward_hook(lambda module, args, logits: 3 * logits)
    assert refusal(model) == (
        "LlamaForCausalLM: its logits are not its LM head times its hidden states, nor scaled as "
        "its config says; this architecture is not supported"
    )


def test_model_that_looks_ahead_is_refused() -> None:
    model = make_model("gemma3_text", use_bidirectional_attention=True)
    assert refusal(model) == (
        "Gemma3ForCausalLM: what it makes of a token depends on later ones, so that it is no "
        "causal language model; use another model"
    )


def test_adapter_on_the_lm_head_is_refused() -> None:
    """The engine multiplies by the head's weight: an adapter there would be passed over."""
    model = with_adapter(make_model("llama"), ["lm_head"])
    with pytest.raises(ModelError, match=r"its LM head is a Linear, not a plain linear layer"):
        LikelihoodEngine(model)


def test_bias_of_the_lm_head_is_part_of_it() -> None:
    model = make_model("phi")
    assert model.lm_head.bias is not None
    assert inspect_architecture(model).fallback_reason == ""


def test_decoder_out_of_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture, "decoder_of", lambda causal_lm: causal_lm)
    assert refusal(make_model("llama")) == (
        "LlamaForCausalLM: its decoder cannot be called without its LM head; use another model"
    )


def test_decoder_under_another_prefix_is_found() -> None:
    """Llama 4's; its chunked attention goes through padded rows."""
    reason = inspect_architecture(make_model("llama4")).fallback_reason
    assert reason == "layers of kind chunked_attention carry state along the row"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*TREES, "mamba"])
def test_inspecting_accepts_the_rounding_of_a_dtype(name: str, dtype: torch.dtype) -> None:
    model = make_model(name).to(dtype)
    assert bool(inspect_architecture(model).fallback_reason) == (name == "mamba")


def sees_other_branches(layout: TreeLayout) -> TreeLayout:
    """Let every token see all that stands before it in the row."""
    [bias] = layout.biases
    causal = torch.full_like(bias, float("-inf")).triu(1)
    return dataclasses.replace(layout, biases=(causal,))


def runs_on_in_positions(layout: TreeLayout) -> TreeLayout:
    """Count positions along the row instead of along each branch."""
    return dataclasses.replace(layout, positions=torch.arange(len(layout.positions)))


def misses_the_end_of_the_prompt(layout: TreeLayout) -> TreeLayout:
    """Hide the prompt's last token from all completions."""
    [bias] = (bias.clone() for bias in layout.biases)
    bias[PROMPT_LENGTH:, PROMPT_LENGTH - 1] = float("-inf")
    return dataclasses.replace(layout, biases=(bias,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize(
    "fault", [sees_other_branches, runs_on_in_positions, misses_the_end_of_the_prompt]
)
def test_a_tree_that_is_wrong_is_found_by_trial_in_every_dtype(
    fault: Callable[[TreeLayout], TreeLayout],
    name: str,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(architecture, "tree_layout", lambda *rest: fault(tree_layout(*rest)))
    reason = inspect_architecture(make_model(name).to(dtype)).fallback_reason
    assert reason == "a row with branches gave other hidden states than the branches alone"


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss", "bloom"])
def test_inspecting_changes_nothing(name: str) -> None:
    model = make_model(name)
    weights = {n: p.clone() for n, p in model.state_dict().items()}
    before = model.config.to_dict()
    attention = model.config._attn_implementation
    random_state = torch.get_rng_state()
    inspect_architecture(model)
    assert model.config._attn_implementation == attention
    assert model.config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), random_state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])


def test_refusals_are_one_line() -> None:
    for name, overrides in (("gemma3_text", {"use_bidirectional_attention": True}),):
        assert not re.search(r"\n", refusal(make_model(name, **overrides)))
