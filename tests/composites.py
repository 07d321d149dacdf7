"""Tiny random composites: a text model beside an encoder of pictures or sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from macpo.models.classes import auto_class
from tests.tiny import tiny_tokenizer

_TEXT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_VIT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_VIT: dict[str, Any] = {"depth": 2, "num_heads": 4, "patch_size": 14, "out_hidden_size": 32}
_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_IDS = {"image_token_id": 500, "video_token_id": 501, "vision_start_token_id": 502}

_PARTS: dict[str, dict[str, Any]] = {
    "mistral3": {
        "image_token_index": 500,
        "text_config": {"model_type": "mistral", **_TEXT, "sliding_window": None},
        "vision_config": {"model_type": "pixtral", **_VIT, "head_dim": 8},
    },
    "llava": {
        "image_token_index": 500,
        "text_config": {"model_type": "llama", **_TEXT},
        "vision_config": {"model_type": "clip_vision_model", **_VIT, "projection_dim": 32},
    },
    "qwen2_5_vl": {
        **_IDS,
        "text_config": {**_TEXT, "rope_parameters": _SECTIONS},
        "vision_config": {**_QWEN_VIT, "hidden_size": 32, "intermediate_size": 64},
    },
    "qwen3_vl": {
        **_IDS,
        "text_config": {**_TEXT, "rope_parameters": _SECTIONS},
        "vision_config": {
            **_QWEN_VIT,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
    },
    "mllama": {
        "image_token_index": 500,
        "text_config": {**_TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1]},
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 4,
            "image_size": 28,
            "vision_output_dim": 64,
            "intermediate_layers_indices": [0],
            "max_num_tiles": 1,
            "supported_aspect_ratios": [[1, 1]],
        },
    },
    "qwen2_audio": {
        "audio_token_index": 500,
        "text_config": {"model_type": "qwen2", **_TEXT},
        "audio_config": {
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "num_mel_bins": 8,
        },
    },
}


def tiny_composite(name: str) -> Any:
    """Return a new float32 composite in evaluation mode, of the class that its users load."""
    config = AutoConfig.for_model(name, **_PARTS[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return auto_class(config).from_config(config, dtype=torch.float32).eval()


def composite_folder(folder: Path, name: str) -> Path:
    """Save a tiny composite with a tokenizer and the settings of its processor."""
    tiny_composite(name).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"size": 28}')
    return folder
