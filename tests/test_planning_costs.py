"""Estimates of operations and memory, against numbers worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from macpo.config import EngineConfig, TuningConfig
from macpo.models.sources import ResolvedModel
from macpo.planning.costs import (
    GIB,
    ModelShape,
    flops,
    memory,
    model_shape,
)
from macpo.work import Work
from tests.tiny import tiny_folder
from tests.workbench import make_agent


def test_operations() -> None:
    # 1,000 weights; 10 read, 1 written, 5 trained tokens: 2 x 11 + 4 x 5 = 42 a weight
    work = Work(read=10, written=1, trained=5)

    assert flops(work, 1000, "lora") == 42_000
    assert flops(work, 1000, "full") == 52_000


def test_memory_of_lora_and_of_full_training() -> None:
    shape = ModelShape(layers=2, hidden=10, intermediate=20, adapter=GIB // 16)
    engine = EngineConfig(pack_tokens=GIB // 1120, decode_memory_gib=1.5)

    # 2 layers x (8 x 10 + 3 x 20) numbers x 4 bytes = 1,120 bytes a token: 1 GiB
    lora = memory(GIB // 4, "float32", "lora", shape, engine)
    assert (lora.weights, lora.answering) == (1.0, 2.5)
    assert lora.training == pytest.approx(1 + 1 + 1)
    full = memory(GIB // 4, "float32", "full", shape, engine)
    assert full.training == pytest.approx(4 + 1)
    half = memory(GIB // 4, "bfloat16", "lora", shape, engine)
    assert half.weights == 0.5
    assert half.training == pytest.approx(0.5 + 1 + 0.5)


def test_memory_of_a_model_of_unknown_shape() -> None:
    assert memory(GIB, "bfloat16", "lora", None, EngineConfig()).training is None


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "all-linear"])
def test_shape_counts_the_adapter_that_peft_makes(tmp_path: Path, targets: Any) -> None:
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from macpo.adapters import lora_config

    folder = tiny_folder(tmp_path / "model", "mistral", layers=3)
    agent = make_agent(folder, tuning=TuningConfig(rank=4, targets=targets))

    shape = model_shape(agent)

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora_config(agent.tuning))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert isinstance(model.base_model.model.lm_head, torch.nn.Linear)
    assert shape == ModelShape(layers=3, hidden=32, intermediate=64, adapter=trained)


def test_shape_of_a_model_that_will_be_cut(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", layers=3)
    base = ResolvedModel("m[0,2]", str(folder), None, None, local=False, layers=(0, 2))

    shape = model_shape(make_agent(folder, base=base))

    assert shape is not None
    assert shape.layers == 2


def test_shape_of_a_model_that_is_not_here() -> None:
    assert model_shape(make_agent(Path("nowhere"))) is None
