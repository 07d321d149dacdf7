"""Tiny checkpoints with quantised weights, written without the libraries that made such ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.likelihood.plain import make_model
from tests.tiny import tiny_folder, tiny_tokenizer

MXFP4_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""What the sixteen codes of four bits stand for (OCP's E2M1)."""


def claim_quantised(folder: Path, **quantisation: Any) -> Path:
    """Write into a model's config how its weights were quantised."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": quantisation}))
    return folder


def fp8_folder(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Write a tiny Llama in FP8 with a scale for each block of 16 x 16 weights.

    Returns:
        The folder, and the numbers that its weights stand for.
    """
    tiny_folder(folder)
    tensors = load_file(folder / "model.safetensors")
    stored, means = dict(tensors), dict(tensors)
    for name, weight in tensors.items():
        if "_proj" not in name:
            continue
        rows, columns = weight.shape
        blocks = weight.view(rows // 16, 16, columns // 16, 16)
        scale = blocks.abs().amax(dim=(1, 3)) / 448
        codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        stored[name] = codes.view(rows, columns)
        stored[f"{name}_scale_inv"] = scale
        means[name] = (codes.float() * scale[:, None, :, None]).view(rows, columns)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    claim_quantised(folder, quant_method="fp8", weight_block_size=[16, 16])
    return folder, means


def mxfp4_folder(folder: Path) -> Path:
    """Write a tiny GPT-OSS whose experts are in MXFP4: random codes, scales of 1/8."""
    make_model("gpt_oss").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32, 16)
        codes = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        tensors[f"{name}_blocks"] = codes
        tensors[f"{name}_scales"] = torch.full(shape[:3], 124, dtype=torch.uint8)  # 2 ** -3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return claim_quantised(folder, quant_method="mxfp4")
