"""Every causal-LM family of the installed transformers as a tiny random model.

Families are those of transformers' own mapping. A tiny config is the family's default one with
small numbers in place of every size that is known here by its name; what cannot be built in that
way is said, not left out.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 512
WINDOW = 16
LAYERS = 4

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "dim",
            "embedding_size",
            "emb_dim",
            "word_embed_proj_dim",
        ),
        32,
    ),
    **dict.fromkeys(
        (
            *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"),
            *("encoder_layers",),
        ),
        LAYERS,
    ),
    **dict.fromkeys(
        (
            *("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads"),
            *("encoder_attention_heads", "num_encoder_attention_heads"),
            *("num_decoder_attention_heads", "linear_num_value_heads"),
        ),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(
        (
            *("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "global_head_dim"),
            *("linear_key_head_dim", "linear_value_head_dim", "qk_head_dim", "swa_head_dim"),
            *("mamba_d_head", "rotary_dim", "d_kv", "attention_head_dim", "swa_v_head_dim"),
        ),
        8,
    ),
    **dict.fromkeys(
        (
            *("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim"),
            *("intermediate_size_mlp", "ffn_hidden_size", "dff", "shared_intermediate_size"),
            *("mlp_hidden_size", "attention_hidden_size", "dim_ff"),
        ),
        64,
    ),
    **dict.fromkeys(
        (
            *("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"),
            *("moe_shared_expert_intermediate_size", "ffn_dim_moe"),
        ),
        32,
    ),
    **dict.fromkeys(
        (
            "num_local_experts",
            "num_experts",
            "n_routed_experts",
            "moe_num_experts",
            "num_routed_experts",
        ),
        4,
    ),
    **dict.fromkeys(
        ("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token", "top_k_experts"), 2
    ),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "n_group", "topk_group"), 1),
    **dict.fromkeys(
        ("q_lora_rank", "kv_lora_rank", "index_head_dim", "hidden_size_per_layer_input"), 16
    ),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
    "mamba_dt_rank": 4,
    "time_step_rank": 4,
    "mamba_n_heads": 8,
    "mamba_d_ssm": 64,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "n_mamba_heads": 2,
    "mamba_expand": 2,
    "index_n_heads": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "attn_layer_indices": [1, 3],
    "mamba_num_groups": 1,
    "mamba_n_groups": 1,
    "n_groups": 1,
    "index_topk": 64,
    "sliding_window": WINDOW,
    "attention_window_size": WINDOW,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "n_ctx": 512,
    "query_pre_attn_scalar": 8,
    "num_kv_shared_layers": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.15,
    "init_std": 0.15,
}
"""Small values by the name of a config's field."""

OVERRIDES: dict[str, dict[str, Any]] = {
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "rwkv": {"attention_hidden_size": 32},
    "nemotron": {"num_key_value_heads": 2},
    "modernbert-decoder": {"pad_token_id": 2},
}
"""What single families need beside."""

ALWAYS = ("attn_layer_indices", "head_dim")
"""Fields that are set also where the family's default leaves them open."""


def families() -> list[str]:
    """Return the model types of all causal LMs, sorted."""
    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) & set(CONFIG_MAPPING))


def tiny_config(family: str) -> Any:
    """Return a small config of a family, with every kind of layer that its default has."""
    kind = CONFIG_MAPPING[family]
    default = kind()
    if not hasattr(default, "get_text_config"):
        return default
    text = default.get_text_config()
    small = _shrunk(text)
    if text is default:
        return kind(**small)
    name = next(n for n, value in vars(default).items() if value is text)
    return kind(**{name: type(text)(**small).to_dict(), **_shrunk_towers(default, name)})


def tiny_model(family: str) -> Any:
    """Return a float32 model of a family in evaluation mode, with a head bias that is not zero."""
    config = tiny_config(family)
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        head = model.get_output_embeddings()
        if getattr(head, "bias", None) is not None:
            torch.nn.init.normal_(head.bias)
        for name, parameter in model.named_parameters():
            if name.endswith(("sinks", "sink_bias", "attention_sink_bias")):
                torch.nn.init.normal_(parameter)
    return model


def _shrunk(config: Any) -> dict[str, Any]:
    """Return small values for the fields that a config has."""
    fields = config.to_dict()
    small = {name: value for name, value in SMALL.items() if name in fields}
    small = {n: v for n, v in small.items() if fields[n] is not None or n in ALWAYS}
    if "kv_lora_rank" in fields:  # latent attention has a key for each query head
        small["num_key_value_heads"] = small.get("num_attention_heads", 4)
    layers = getattr(config, "num_hidden_layers", None)
    for name, value in fields.items():
        if isinstance(value, list) and layers and len(value) == layers:
            small[name] = _each_kind(value)
    return small | OVERRIDES.get(config.model_type, {})


def _each_kind(layers: list[Any]) -> list[Any]:
    """Return as many entries as a tiny model has layers, with every kind that there is."""
    kinds = list(dict.fromkeys(map(str, layers)))[:LAYERS]
    first = [layers[[str(x) for x in layers].index(kind)] for kind in kinds]
    return [*first, *[first[-1]] * (LAYERS - len(first))]


def _shrunk_towers(config: Any, text: str) -> dict[str, Any]:
    """Return small configs of a composite's other parts."""
    towers = {}
    for name, value in vars(config).items():
        if name != text and hasattr(value, "to_dict") and name.endswith("_config"):
            towers[name] = type(value)(**_shrunk(value)).to_dict()
    return towers
