from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    FalconConfig,
    GPT2Config,
    GptOssConfig,
    GraniteMoeHybridConfig,
    Llama4TextConfig,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen3NextConfig,
)
from transformers.models.llama.modeling_llama import LlamaAttention

from macpo.errors import ModelError
from macpo.generation import layouts
from macpo.generation.servable import Served, can_decode, examine
from tests.generation.answers import answer, generated, greedy, random_prompts
from tests.sweep.families import tiny_model as sweep_model
from tests.tiny import ARCHITECTURES, tiny_model

COMMON: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
GROUPED = {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}


def build(config: Any, spread: float = 0.15) -> Any:
    """Build a model whose weights are large enough that the next token depends on the context."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=spread)
    return model


def gpt2() -> Any:
    return build(GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4))


def opt() -> Any:
    return build(OPTConfig(**COMMON, ffn_dim=64, word_embed_proj_dim=32))


def granite_hybrid(*layers: str) -> Any:
    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 32}
    mamba = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
    heads = {"num_key_value_heads": 2, "intermediate_size": 64}
    return build(
        GraniteMoeHybridConfig(**COMMON, **heads, **sizes, **mamba, layer_types=list(layers))
    )


def mixtral() -> Any:
    return build(MixtralConfig(**COMMON, **GROUPED, num_local_experts=4))


def deepseek() -> Any:
    """Latent attention: keys of 16 numbers, values of 8."""
    latent = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    sizes = {"intermediate_size": 64, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
    return build(DeepseekV3Config(**COMMON, **latent, **experts, **sizes, qk_nope_head_dim=8))


def gpt_oss() -> Any:
    """Sinks beside the scores, and every second layer with a window."""
    config = {**COMMON, **GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = build(GptOssConfig(**config, sliding_window=16))
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks, mean=2.0)
    return model


class Layer(LlamaAttention):
    """Attention that asks for more than any layout knows of."""

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        return super().forward(*arguments, tilt=1, **keywords)


def biased_llama() -> Any:
    """A model that only transformers' own attention serves."""
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.__class__ = Layer
    return model


def llama4() -> Any:
    config = {**COMMON, **GROUPED, "num_local_experts": 2, "intermediate_size_mlp": 64}
    return build(Llama4TextConfig(**config, attention_chunk_size=16))


def mamba() -> Any:
    return build(MambaConfig(vocab_size=512, hidden_size=32, num_hidden_layers=2, state_size=4))


def qwen3_next() -> Any:
    linear = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return build(
        Qwen3NextConfig(
            **{**COMMON, **GROUPED, **linear, **experts},
            linear_value_head_dim=8,
            shared_expert_intermediate_size=16,
            layer_types=["linear_attention", "full_attention"],
        )
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_common_architectures_are_served(architecture: str, dtype: torch.dtype) -> None:
    assert can_decode(tiny_model(architecture).to(dtype), 300) is None


def granite_without_mamba() -> Any:
    return granite_hybrid("full_attention", "full_attention")


@pytest.mark.parametrize("builder", [gpt2, opt, mixtral, deepseek, gpt_oss, granite_without_mamba])
def test_other_attention_models_are_served_and_answer_as_generate(builder: Any) -> None:
    model = builder()
    prompts = random_prompts((1, 30, 7, 12, 3))

    assert can_decode(model, 60) is None
    assert answer(model, prompts, greedy(12)) == generated(model, prompts, 12)


@pytest.mark.parametrize("family", ["mimo_v2_flash", "granite_swa", "flint"])
def test_siblings_of_gpt_oss_are_served_and_answer_as_generate(family: str) -> None:
    model = sweep_model(family)  # sinks that do something, and windows of 16
    prompts = random_prompts((1, 30, 7, 12, 3))

    assert can_decode(model, 60) is None
    assert answer(model, prompts, greedy(12)) == generated(model, prompts, 12)


def test_keys_and_values_of_unlike_size_are_noted() -> None:
    served = examine(deepseek(), 60)

    assert isinstance(served, Served)
    assert [(s.kv_heads, s.key_dim, s.value_dim) for s in served.shapes.values()] == [
        (4, 16, 8)
    ] * 2


@pytest.mark.parametrize(
    ("builder", "reason"),
    [
        (
            biased_llama,
            "a trial failed: Layer asks for ['tilt'], which no layout can honour",
        ),
        (llama4, "Llama4ForCausalLM has layers of type chunked_attention"),
        (mamba, "MambaForCausalLM's forward takes no position_ids"),
        (qwen3_next, "Qwen3NextForCausalLM keeps a recurrent state"),
        (
            lambda: granite_hybrid("linear_attention", "full_attention"),
            "GraniteMoeHybridForCausalLM keeps a recurrent state",
        ),
        (
            lambda: build(FalconConfig(**COMMON)),
            "FalconForCausalLM does not use transformers' attention interface",
        ),
    ],
)
def test_what_cannot_be_served_is_named(builder: Any, reason: str) -> None:
    model = builder()

    assert can_decode(model, 60) == reason
    with pytest.raises(ModelError) as error:
        answer(model, [[1, 2]], greedy(2))
    assert str(error.value) == (
        f"{reason}; answer with macpo.generation.fallback.decode_by_generate instead"
    )


def test_rotary_embeddings_that_change_with_length_are_refused_above_it() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = tiny_model(rope_parameters=rope, max_position_embeddings=128)

    assert can_decode(model, 128) is None
    assert can_decode(model, 129) == (
        "dynamic rotary embeddings change with the batch's length above 128 tokens"
    )


def test_a_window_that_the_attention_is_not_told_of_is_refused_above_it() -> None:
    model = tiny_model("llama")
    model.config.sliding_window = 32

    assert can_decode(model, 32) is None
    assert can_decode(model, 33) == (
        "its window of 32 tokens is not passed to the attention function"
    )


def test_a_token_that_sees_its_neighbour_past_the_attention_is_found_by_trial() -> None:
    class Blur(torch.nn.Module):
        """Adds to each token's embedding a share of the one before it in the row."""

        def __init__(self, inner: torch.nn.Embedding) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            plain = self.inner(ids)
            return plain + 0.3 * torch.nn.functional.pad(plain, (0, 0, 1, 0))[:, :-1]

    model = tiny_model("qwen3")
    embedding = model.get_input_embeddings()
    model.model.embed_tokens = Blur(embedding)
    model.get_input_embeddings = lambda: embedding

    reason = can_decode(model, 60)

    assert reason is not None
    assert reason.startswith("in a trial its prompt logits are off by ")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layout_off_by_one_token_is_found_by_trial(
    architecture: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = layouts._attend_causally

    def shifted(query: Any, key: Any, value: Any, *rest: Any) -> Any:
        return plain(query, key.roll(1, dims=2), value.roll(1, dims=2), *rest)

    monkeypatch.setattr(layouts, "_attend_causally", shifted)

    reason = can_decode(tiny_model(architecture).to(dtype), 60)

    assert reason is not None
    assert reason.startswith("in a trial its prompt logits are off by ")


def test_a_trial_leaves_training_mode_and_attention_as_they_were() -> None:
    model = tiny_model().train()

    assert can_decode(model, 60) is None

    assert model.training
    assert model.config._attn_implementation != "macpo"
