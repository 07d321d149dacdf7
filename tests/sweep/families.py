"""Every causal-LM family of the installed transformers as a tiny random model.

Families are those of transformers' own mapping. A tiny config is the family's default one with
small numbers in place of every size that is known here by its name, and with as many of its layers
as show every kind that it has, in the default's order; what cannot be built in that way is said,
not left out.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from macpo.models.classes import auto_class

VOCABULARY = 512
WINDOW = 16
LAYERS = 4
MROPE = [2, 1, 1]

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
            *("word_embed_proj_dim", "hidden_size_global"),
            *("adapter_in_dim", "adapter_out_dim", "adapter_input_size"),
            *("ext_pw_out_channel", "depthwise_separable_out_channel", "nemo_conv_channels"),
        ),
        32,
    ),
    **dict.fromkeys(
        (
            *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"),
            *("encoder_layers", "num_blocks", "depth"),
        ),
        LAYERS,
    ),
    **dict.fromkeys(
        (
            *("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads"),
            *("encoder_attention_heads", "num_encoder_attention_heads"),
            *("num_decoder_attention_heads", "linear_num_value_heads", "linear_num_heads"),
        ),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(
        (
            *("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "global_head_dim"),
            *("linear_key_head_dim", "linear_value_head_dim", "swa_head_dim"),
            *("mamba_d_head", "rotary_dim", "d_kv", "attention_head_dim", "swa_v_head_dim"),
            "linear_head_dim",
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
    **dict.fromkeys(
        (
            *("n_shared_experts", "num_shared_experts"),
            *("n_group", "num_expert_group", "topk_group"),
        ),
        1,
    ),
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
    "max_seq_len": 512,
    "zero_expert_num": 2,
    "encoder_hash_byte_group_vocab": VOCABULARY,
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
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": MROPE,
            },
            "full_attention": {"rope_type": "default", "rope_theta": 1e5, "mrope_section": MROPE},
        },
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}},
    "emu3": {"vocabulary_map": {"<image>": 7, "<|visual token 000001|>": 8}},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "lfm2": {"full_attn_idxs": None, "layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    # Its rows are padded to whole chunks: of 256 tokens by default, which takes long.
    "mamba2": {"num_heads": 8, "head_dim": 8, "chunk_size": 16},
    # Its cache rounds the width of keys up to 64, which its layers do not.
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "modernbert-decoder": {"pad_token_id": 2},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16},
        **{"indexer_budget": 64, "indexer_compress_ratio": 4},
        **{
            "eos_token_id": 1,
            "ple_layer_ids": [3],
            "ngram_vocab_size_base": 64,
            "split_ngram_parts": 4,
        },
    },
    "reformer": {
        **{"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 32], "num_buckets": 4},
        **{"local_attn_chunk_length": 16, "lsh_attn_chunk_length": 16, "hash_seed": 0},
    },
    "rwkv": {"attention_hidden_size": 32},
    "xmod": {"default_language": "en_XX"},
    "zaya": {
        **{"layer_types": ["hybrid", "hybrid_sliding"] * 2, "sliding_window": WINDOW},
        **{"num_experts_per_tok": 1, "router_hidden_size": 16},
    },
}
"""What single families need beside, by the type of their text config: their default config is not
usable, or has not the mix of layers that their released models have."""

ALWAYS = (
    *("attn_layer_indices", "head_dim"),
    *("num_experts_per_tok", "n_routed_experts", "n_shared_experts"),
)
"""Fields that are set also where the family's default leaves them open."""


NOT_ALONE: dict[str, str] = {
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"),
        "drafts for another model, from whose states it reads",
    ),
    **dict.fromkeys(("musicgen", "musicgen_melody"), "writes codes of sound, several at a time"),
}
"""Families of the mapping that are no language models by themselves, and why."""


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
        return kind(**(_shrunk_parts(default, "") | small))
    name = next(n for n, value in vars(default).items() if value is text)
    parts = {**_shrunk_parts(default, name), **OVERRIDES.get(family, {})}
    return kind(**{name: type(text)(**small).to_dict(), **parts})


def is_encoder(config: Any) -> bool:
    """Say whether a config can be a decoder's and by default is not."""
    return getattr(config, "is_decoder", True) is False


def tiny_model(family: str, *, decoder: bool = True) -> Any:
    """Return a float32 model of a family in evaluation mode, with a head bias that is not zero.

    Args:
        family: its model type.
        decoder: make a decoder of an encoder that can be one.
    """
    config = tiny_config(family)
    if decoder and is_encoder(config):
        config.is_decoder = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto_class(config).from_config(config, dtype=torch.float32).eval()
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
    return small | _each_kind(config, fields) | OVERRIDES.get(config.model_type, {})


def _each_kind(config: Any, fields: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the lists with an entry for each layer, for as many layers as a tiny model has.

    Layers are chosen in the order of the default: those that show a kind that none before them has,
    then such as combine kinds anew. Fewer are repeated in turn.
    """
    layers = getattr(config, "num_hidden_layers", None)
    each = {n: v for n, v in fields.items() if layers and isinstance(v, list) and len(v) == layers}
    numbers = {name: value[:LAYERS] for name, value in each.items() if value == list(range(layers))}
    kinds = {name: value for name, value in each.items() if name not in numbers}
    if not kinds:
        return numbers
    seen: set[tuple[str, str]] = set()
    first: dict[tuple[tuple[str, str], ...], int] = {}
    new = []
    for i in range(layers):
        profile = tuple((name, str(value[i])) for name, value in kinds.items())
        if first.setdefault(profile, i) == i and not seen.issuperset(profile):
            new.append(i)
        seen.update(profile)
    rest = [i for i in first.values() if i not in new]
    chosen = sorted([*new, *rest][:LAYERS])
    take = [chosen[i % len(chosen)] for i in range(LAYERS)]
    return numbers | {name: [value[i] for i in take] for name, value in kinds.items()}


def _shrunk_parts(config: Any, text: str) -> dict[str, Any]:
    """Return small configs of a composite's other parts."""
    return {
        name: type(value)(**_shrunk(value)).to_dict()
        for name, value in vars(config).items()
        if name != text and hasattr(value, "to_dict") and name.endswith("_config")
    }
