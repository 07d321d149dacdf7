"""Shapes of well-known models, so that a run can be planned where not even their configs are.

The numbers are those of each model's own config.json on the hub. They are for planning only: a
model that is loaded is described by the config beside its weights.
"""

from __future__ import annotations

from typing import Any

LLAMA = "llama"


def _shape(
    model_type: str,
    layers: int,
    hidden: int,
    intermediate: int,
    heads: tuple[int, int],
    vocabulary: int,
    *,
    tied: bool = False,
    head_dim: int | None = None,
) -> dict[str, Any]:
    """Return a config; `heads` are those of queries and those of keys and values."""
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "head_dim": head_dim or hidden // heads[0],
    }


LLAMA_2_7B = _shape(LLAMA, 32, 4096, 11008, (32, 32), 32000)
LLAMA_2_13B = _shape(LLAMA, 40, 5120, 13824, (40, 40), 32000)
LLAMA_2_70B = _shape(LLAMA, 80, 8192, 28672, (64, 8), 32000)
LLAMA_3_8B = _shape(LLAMA, 32, 4096, 14336, (32, 8), 128256)
LLAMA_3_70B = _shape(LLAMA, 80, 8192, 28672, (64, 8), 128256)
MISTRAL_7B = _shape("mistral", 32, 4096, 14336, (32, 8), 32000)

SHAPES: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": LLAMA_2_7B,
    "meta-llama/Llama-2-7b-chat-hf": LLAMA_2_7B,
    "meta-llama/Llama-2-13b-hf": LLAMA_2_13B,
    "meta-llama/Llama-2-13b-chat-hf": LLAMA_2_13B,
    "meta-llama/Llama-2-70b-hf": LLAMA_2_70B,
    "meta-llama/Llama-2-70b-chat-hf": LLAMA_2_70B,
    "meta-llama/Meta-Llama-3-8B": LLAMA_3_8B,
    "meta-llama/Meta-Llama-3-8B-Instruct": LLAMA_3_8B,
    "meta-llama/Llama-3.1-8B": LLAMA_3_8B,
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA_3_8B,
    "meta-llama/Meta-Llama-3-70B": LLAMA_3_70B,
    "meta-llama/Llama-3.1-70B": LLAMA_3_70B,
    "meta-llama/Llama-3.3-70B-Instruct": LLAMA_3_70B,
    "meta-llama/Llama-3.2-1B": _shape(
        LLAMA, 16, 2048, 8192, (32, 8), 128256, tied=True, head_dim=64
    ),
    "meta-llama/Llama-3.2-3B": _shape(
        LLAMA, 28, 3072, 8192, (24, 8), 128256, tied=True, head_dim=128
    ),
    "mistralai/Mistral-7B-v0.1": MISTRAL_7B,
    "HuggingFaceTB/SmolLM2-135M": _shape(LLAMA, 30, 576, 1536, (9, 3), 49152, tied=True),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _shape(LLAMA, 30, 576, 1536, (9, 3), 49152, tied=True),
    "Qwen/Qwen3-0.6B": _shape("qwen3", 28, 1024, 3072, (16, 8), 151936, tied=True, head_dim=128),
    "Qwen/Qwen3-1.7B": _shape("qwen3", 28, 2048, 6144, (16, 8), 151936, tied=True, head_dim=128),
    "Qwen/Qwen3-4B": _shape("qwen3", 36, 2560, 9728, (32, 8), 151936, tied=True, head_dim=128),
    "Qwen/Qwen3-8B": _shape("qwen3", 36, 4096, 12288, (32, 8), 151936, head_dim=128),
    "Qwen/Qwen3-14B": _shape("qwen3", 40, 5120, 17408, (40, 8), 151936, head_dim=128),
    "Qwen/Qwen3-32B": _shape("qwen3", 64, 5120, 25600, (64, 8), 151936, head_dim=128),
}
"""Configs by name on the hub, as far as the number and the shapes of weights depend on them."""


def known_config(name: str | None) -> Any:
    """Return the transformers config of a well-known model; None for any other."""
    if name not in SHAPES:
        return None
    from transformers import AutoConfig

    values = dict(SHAPES[name])
    return AutoConfig.for_model(values.pop("model_type"), **values)
