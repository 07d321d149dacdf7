"""Estimates of tokens, operations and memory, against numbers worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from macpo.agents import Agent, Team
from macpo.config import EngineConfig, RunConfig, TuningConfig, check_config
from macpo.methods import Plan, build_plan
from macpo.models.sources import ResolvedModel
from macpo.planning.costs import (
    GIB,
    Answers,
    Lengths,
    ModelShape,
    SplitSizes,
    Work,
    WorkEstimator,
    flops,
    memory,
    model_shape,
    stage_agent,
)
from tests.tiny import tiny_folder
from tests.workbench import make_agent

SIZES = SplitSizes(
    prompts={"teacher": 10, "student": 20, "test": 30},
    pairs={"teacher": 11, "student": 21, "test": 31},
    exact=True,
)
LENGTHS = {
    "student": Lengths(prompt=100, chosen=50, rejected=40, measured=True),
    "weak-a": Lengths(prompt=110, chosen=55, rejected=45, measured=True),
    "weak-b": Lengths(prompt=512, chosen=512, rejected=512, measured=False),
}


def config(**overrides: Any) -> RunConfig:
    return check_config(
        {
            "name": "costs",
            "rounds": 1,
            "data": {"source": "x.jsonl"},
            "student": {"model": "student"},
            "teachers": [{"name": name, "model": name} for name in ("weak-a", "weak-b")],
            "sampling": {"max_new_tokens": 8},
            "evaluation": {"answers": 4},
            **overrides,
        }
    )


def layout(run: RunConfig) -> Plan:
    def agent(name: str) -> Agent:
        return make_agent(
            Path("nowhere"), name=name, sft=run.sft, negative_sft=run.negative_sft, dpo=run.dpo
        )

    return build_plan(run, Team(agent("student"), (agent("weak-a"), agent("weak-b"))), "data")


def works(run: RunConfig, answered: dict[str, Answers] | None = None) -> dict[str, Work]:
    plan = layout(run)
    by_key = {stage.key: (answered or {}).get(stage.name) for stage in plan}
    known = {key: answers for key, answers in by_key.items() if answers is not None}
    estimator = WorkEstimator(SIZES, LENGTHS, known)
    return {stage.name: estimator.work(stage) for stage in plan}


def test_work_of_every_kind_of_stage() -> None:
    found = works(config(sft={"epochs": 3}, dpo={"epochs": 2, "reference": "initial"}))

    assert found["data"] == Work()
    # 11 pairs of 110 + 55 tokens, 3 epochs
    assert found["init/weak-a/positive"] == Work(trained=11 * 165 * 3)
    assert found["init/weak-a/negative"] == Work(trained=11 * 155)
    # 20 prompts of 110 tokens, answers of at most 8
    assert found["init/weak-a/positive-answers"] == Work(20 * 110, 20 * 8, at_most=True)
    # 20 x (100 + 8), 3 epochs
    assert found["init/student/positive"] == Work(trained=20 * 108 * 3, at_most=True)
    # 4 of the 30 test prompts
    assert found["init/student/test-answers"] == Work(4 * 100, 4 * 8, at_most=True)
    # 31 pairs: the prompt once, both answers
    assert found["init/student/evaluate"] == Work(read=31 * 190)
    # the prompt once, two teachers' answers and the rejected one
    assert found["round-1/student/filter-scores"] == Work(read=20 * 124, at_most=True)
    assert found["round-1/student/pairs"] == Work()
    assert found["round-1/student/reference"] == Work(read=20 * 116, at_most=True)
    assert found["round-1/student/train"] == Work(trained=20 * 116 * 2, at_most=True)
    assert found["round-1/weak-a/reference"] == Work(read=20 * 126, at_most=True)


def test_every_stage_of_a_model_has_work_and_the_others_none() -> None:
    run = config()
    found = works(run)

    for stage in layout(run):
        assert (found[stage.name].tokens > 0) == (stage_agent(stage) is not None)
    assert {stage.kind for stage in layout(run) if stage_agent(stage) is None} == {"data", "pairs"}


def test_lengths_that_are_limits_give_upper_bounds() -> None:
    found = works(config())

    assert found["init/weak-b/evaluate"] == Work(read=31 * 3 * 512, at_most=True)
    assert not found["init/weak-a/evaluate"].at_most


def test_answers_that_are_there_count_as_they_are() -> None:
    answered = {"init/weak-a/positive-answers": Answers(20, 2.5, at_most=False)}

    found = works(config(), answered)

    assert found["init/student/positive"] == Work(trained=20 * 102.5 * 3, at_most=False)


def test_top_k_multiplies_the_students_pairs() -> None:
    found = works(config(method={"top_k": 2}))

    assert found["round-1/student/train"].trained == 2 * 20 * 116


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

    from macpo.policies import lora_config

    folder = tiny_folder(tmp_path / "model", "mistral", layers=3)
    agent = make_agent(folder, tuning=TuningConfig(rank=4, targets=targets))

    shape = model_shape(agent)

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora_config(agent))
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
