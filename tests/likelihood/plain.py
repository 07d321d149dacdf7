"""What the engine is measured against: one plain forward per completion, log-softmax in float64.

Also the models that tests/tiny.py does not have, LoRA adapters that do something, and strategies
for random prompt groups.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from macpo.likelihood import LikelihoodEngine, PromptGroup
from tests.sweep.families import tiny_config
from tests.tiny import tiny_model

VOCABULARY = 512
TREES = ("llama", "qwen3", "gemma2", "gpt_neox", "gpt2", "gpt_oss")
"""Architectures on which completions branch from a shared prompt."""

SINKS = ("gpt_oss", "mimo_v2_flash", "granite_swa", "flint")
"""Architectures with attention sinks, and windows in some layers."""

SCALED = ("cohere", "hyperclovax", "minicpm3", "phi")
"""Architectures whose head has a scale or a bias."""

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_HEADS: dict[str, Any] = {
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def make_model(name: str, **overrides: Any) -> Any:
    """Return a new tiny model of an architecture, in evaluation mode."""
    if name not in _CONFIGS:
        return tiny_model(name, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = _CONFIGS[name](**overrides)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                torch.nn.init.normal_(parameter, mean=2.0)
        bias = model.get_output_embeddings().bias
        if bias is not None:
            torch.nn.init.normal_(bias)  # transformers begins with zeros
        return model


@functools.cache
def shared_engine(name: str, **overrides: Any) -> LikelihoodEngine:
    """Return an engine over a tiny model that no test changes."""
    return LikelihoodEngine(make_model(name, **overrides).requires_grad_(False))


def with_adapter(model: Any, targets: str | list[str] = "all-linear") -> Any:
    """Put a LoRA adapter over `model` of which A and B are random, so that it does something."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        lora_alpha=4,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    peft_model = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(0.2 * draw)
    return peft_model


def plain_sums(model: Any, groups: Sequence[PromptGroup]) -> list[Tensor]:
    """Return each group's sums of log-probabilities (nats, float64), one sequence at a time."""
    return [
        torch.stack([plain_logprobs(model, group.prompt, c).sum() for c in group.completions])
        for group in groups
    ]


def plain_logprobs(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """Return log p of every completion token from the model's own logits, `[tokens]` float64."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0]
    predicting = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
    return predicting.gather(1, torch.tensor(completion)[:, None])[:, 0]


def completions_of(group_sums: Sequence[Any]) -> Tensor:
    """Return the sums of the engine's scores, flat, in float64."""
    sums = [score.sum_logprob for scores in group_sums for score in scores]
    return torch.tensor(sums, dtype=torch.float64)


def tokens(longest: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw sequences of one to `longest` tokens; 0 (padding) and 1 (EOS) come often."""
    token = st.one_of(st.integers(0, 1), st.integers(0, VOCABULARY - 1))
    return st.lists(token, min_size=1, max_size=longest).map(tuple)


def group_lists(longest: int = 12) -> st.SearchStrategy[list[PromptGroup]]:
    """Draw one to five groups with one to four completions each; prompts may start alike."""
    completions = st.lists(tokens(longest), min_size=1, max_size=4).map(tuple)
    groups = st.lists(st.tuples(tokens(longest), completions), min_size=1, max_size=5)
    start = st.one_of(st.just(()), tokens(longest))
    return st.tuples(start, groups).map(lambda drawn: starting_alike(*drawn))


def starting_alike(
    start: tuple[int, ...], groups: Sequence[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]]
) -> list[PromptGroup]:
    """Return groups of (prompt, completions), each prompt with `start` before it."""
    return [PromptGroup(start + prompt, completions) for prompt, completions in groups]


def _gpt2(**overrides: Any) -> Any:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
    return transformers.GPT2Config(**{**sizes, **ids, "initializer_range": 0.15, **overrides})


def _mamba(**overrides: Any) -> Any:
    return transformers.MambaConfig(**{**_SHAPE, "state_size": 8, **overrides})


def _jamba(**overrides: Any) -> Any:
    mixture = {"num_experts": 2, "num_experts_per_tok": 1, "expert_layer_period": 2}
    layers = {"expert_layer_offset": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
    mamba = {"mamba_d_state": 8, "mamba_dt_rank": 4}
    return transformers.JambaConfig(
        **{**_SHAPE, **_HEADS, **mixture, **layers, **mamba, **overrides}
    )


def _gpt_oss(**overrides: Any) -> Any:
    mixture = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    window = {"sliding_window": 64}
    return transformers.GptOssConfig(
        **{**_SHAPE, **_HEADS, **mixture, **rope, **window, **overrides}
    )


def _mixtral(**overrides: Any) -> Any:
    mixture = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
    return transformers.MixtralConfig(**{**_SHAPE, **_HEADS, **mixture, **overrides})


def _qwen3_moe(**overrides: Any) -> Any:
    mixture = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return transformers.Qwen3MoeConfig(
        **{**_SHAPE, **_HEADS, **mixture, "head_dim": 8, **overrides}
    )


def _granite(**overrides: Any) -> Any:
    return transformers.GraniteConfig(**{**_SHAPE, **_HEADS, **overrides})


def _hyperclovax(**overrides: Any) -> Any:
    return transformers.HyperCLOVAXConfig(**{**_SHAPE, **_HEADS, **overrides})


def _cohere(**overrides: Any) -> Any:
    return transformers.CohereConfig(**{**_SHAPE, **_HEADS, **overrides})


def _minicpm3(**overrides: Any) -> Any:
    ranks = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
    heads = {"v_head_dim": 8, "num_key_value_heads": 4}
    return transformers.MiniCPM3Config(**{**_SHAPE, **_HEADS, **ranks, **heads, **overrides})


def _gemma3_text(**overrides: Any) -> Any:
    gemma = {"query_pre_attn_scalar": 8, "sliding_window": 64, "head_dim": 8}
    return transformers.Gemma3TextConfig(**{**_SHAPE, **_HEADS, **gemma, **overrides})


def _bloom(**overrides: Any) -> Any:
    sizes = {"hidden_size": 32, "n_layer": 2, "n_head": 4}
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
    return transformers.BloomConfig(**{**sizes, **ids, "initializer_range": 0.15, **overrides})


def _phi(**overrides: Any) -> Any:
    return transformers.PhiConfig(**{**_SHAPE, **_HEADS, **overrides})


def _phi3(**overrides: Any) -> Any:
    return transformers.Phi3Config(**{**_SHAPE, **_HEADS, **overrides})


def _qwen2_moe(**overrides: Any) -> Any:
    mixture = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    shared = {"shared_expert_intermediate_size": 32}
    return transformers.Qwen2MoeConfig(**{**_SHAPE, **_HEADS, **mixture, **shared, **overrides})


def _phimoe(**overrides: Any) -> Any:
    mixture = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
    return transformers.PhimoeConfig(**{**_SHAPE, **_HEADS, **mixture, **overrides})


def _opt(**overrides: Any) -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 64, "num_attention_heads": 4}
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    rest = {"word_embed_proj_dim": 32, "max_position_embeddings": 512, "init_std": 0.15}
    return transformers.OPTConfig(**{**sizes, **ids, **rest, **overrides})


def _gptj(**overrides: Any) -> Any:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "rotary_dim": 8}
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
    return transformers.GPTJConfig(**{**sizes, **ids, "initializer_range": 0.15, **overrides})


def _llama4(**overrides: Any) -> Any:
    mixture = {"num_local_experts": 2, "intermediate_size_mlp": 64, "head_dim": 8}
    return transformers.Llama4TextConfig(**{**_SHAPE, **_HEADS, **mixture, **overrides})


def _with_sinks(family: str, **overrides: Any) -> Any:
    """Return a config of one of gpt_oss's siblings: sinks beside the scores, and windows."""
    config = tiny_config(family)
    return type(config)(**{**config.to_dict(), **overrides})


_CONFIGS: dict[str, Callable[..., Any]] = {
    **{family: functools.partial(_with_sinks, family) for family in SINKS if family != "gpt_oss"},
    "gpt2": _gpt2,
    "mamba": _mamba,
    "jamba": _jamba,
    "gpt_oss": _gpt_oss,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "granite": _granite,
    "hyperclovax": _hyperclovax,
    "cohere": _cohere,
    "minicpm3": _minicpm3,
    "gemma3_text": _gemma3_text,
    "bloom": _bloom,
    "phi": _phi,
    "phi3": _phi3,
    "qwen2_moe": _qwen2_moe,
    "phimoe": _phimoe,
    "opt": _opt,
    "gptj": _gptj,
    "llama4": _llama4,
}
