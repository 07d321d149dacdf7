"""What was found of single families before the sweep was written, to set beside what it finds.

Some 135 families of transformers 5.23 were tried from outside, 230 cases in all. Each finding is
one line with the families that showed it. Of those, only what this sweep builds is compared: its
families are those of the causal-LM mapping, and checkpoints whose config it would have to bend
(ropes with a limit, bidirectional Gemma 3, quantised ones) have tests of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

BEFORE: Mapping[str, tuple[str, ...]] = {
    "attention sinks: padded and by `generate`": (
        *("gpt_oss", "mimo_v2_flash", "granite_swa", "flint"),
    ),
    "windows shorter than a branch: padded": ("gemma3", "gemma3_text"),
    "state along the row: padded and by `generate`": (
        *("qwen3_next", "qwen3_5", "jamba", "bamba", "lfm2", "granitemoehybrid"),
    ),
    "published adapters could not be loaded": ("mixtral", "qwen3_moe", "deepseek_v3", "gemma4"),
    "adapters on vision towers": ("gemma3", "gemma4"),
    "default targets did not exist": (
        *("gpt2", "gpt_neox", "phi3", "bloom", "falcon", "mpt", "deepseek_v2", "deepseek_v3"),
        *("mamba", "dbrx", "persimmon"),
    ),
    "scaled logits: refused": (
        *("granite", "granitemoe", "cohere", "cohere2", "minicpm3", "falcon_h1", "hyperclovax"),
    ),
    "bias of the head: refused": ("phi", "phimoe", "gptj", "codegen", "ctrl"),
    "decoder not found: refused": ("llama4",),
    "raw errors": ("phimoe", "gemma3n", "gemma4", "nemotron_h", "rwkv", "gpt2", "opt"),
}
"""Findings, and the families that showed them."""
