"""Which layers adapters go over: the config's, or chosen where it leaves that open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from macpo.adapters import adapter_weights, choose_targets, with_adapter
from macpo.agents import assemble_team
from macpo.config import TuningConfig, load_config
from macpo.errors import ModelError
from macpo.planning import plan
from macpo.runner import run
from tests.likelihood.plain import make_model
from tests.runs import write_config
from tests.test_resume import Quiet
from tests.tiny import tiny_tokenizer

PAPER = ("q_proj", "v_proj")


def meta_model(name: str) -> Any:
    """Return a model without weights, of a config as a checkpoint has it."""
    config = AutoConfig.for_model(**make_model(name).config.to_dict())
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", PAPER),
        ("qwen3_moe", PAPER),
        ("gpt2", ("c_attn",)),
        ("gpt_neox", ("query_key_value",)),
        ("bloom", ("query_key_value",)),
        ("phi3", ("all-linear",)),  # PEFT says nothing of it
        ("mamba", ("dt_proj", "in_proj", "x_proj")),  # PEFT refuses the other one, out_proj
    ],
)
def test_targets_are_the_papers_or_those_that_peft_takes(
    name: str, targets: tuple[str, ...]
) -> None:
    assert choose_targets(meta_model(name)) == targets
    assert choose_targets(make_model(name)) == targets


@pytest.mark.parametrize("targets", ["auto", "all-linear"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "qwen3_moe"])
def test_adapter_over_a_model_without_weights_is_the_one_that_trains(
    name: str, targets: str
) -> None:
    tuning = TuningConfig(rank=2, targets=targets)
    adapted = with_adapter(make_model(name).requires_grad_(False), tuning, "m")
    trains = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert adapter_weights(meta_model(name), tuning, "m") == trains > 0


@pytest.mark.parametrize(("name", "odd"), [("phimoe", "router"), ("llama4", "router")])
def test_layers_that_are_linear_by_class_alone_are_passed_over(name: str, odd: str) -> None:
    """Routers that return two tensors: PEFT would put an adapter over them and then fail."""
    tuning = TuningConfig(rank=2, targets="all-linear")
    adapted = with_adapter(make_model(name).requires_grad_(False), tuning, "m")
    trains = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert not any(f".{odd}." in n for n in trains)
    adapted(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert all(p.grad is not None for n, p in trains.items() if "self_attn" in n)
    assert adapter_weights(meta_model(name), tuning, "m") == sum(map(torch.numel, trains.values()))
    with pytest.raises(ModelError, match=f"tuning.targets: {odd} fits no layer"):
        with_adapter(make_model(name), TuningConfig(targets=[odd]), "m")


def save_as(folder: Path, architecture: str) -> None:
    make_model(architecture).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def test_auto_has_the_key_of_what_it_stands_for(tmp_path: Path) -> None:
    save_as(tmp_path / "models" / "student", "gpt2")
    path = write_config(tmp_path)

    def keys(*overrides: str) -> list[dict[str, Any]]:
        team = assemble_team(load_config(path, overrides), "float32", fetch=True)
        return [agent.identity() for agent in team.agents]

    auto = keys()
    assert [a["tuning"]["targets"] for a in auto] == [["c_attn"], list(PAPER), list(PAPER)]
    named = keys("student.tuning.targets=[c_attn]", "tuning.targets=[q_proj, v_proj]")
    assert named == auto
    full = keys("tuning={kind: full}")
    assert {tuple(a["tuning"]["targets"]) for a in full} == {PAPER}  # as before there was auto


def test_layers_other_than_the_papers_are_said(tmp_path: Path) -> None:
    save_as(tmp_path / "models" / "student", "gpt2")
    save_as(tmp_path / "models" / "weak-b", "gpt_neox")
    said = (
        "no q_proj and v_proj to adapt (tuning.targets: auto), so these layers: "
        "student: c_attn; weak-b: query_key_value"
    )
    path = write_config(tmp_path, rounds=1)
    config = load_config(path)
    assert said in plan(config).notes
    observer = Quiet()
    notes: list[str] = []
    observer.note = notes.append  # type: ignore[method-assign]
    run(config, tmp_path / "run", observer)
    assert notes[0] == said
    assert (tmp_path / "run" / "final" / "student" / "adapter_config.json").is_file()


def test_plan_refuses_targets_that_fit_no_layer(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), ["student.tuning.targets=[c_attn]"])
    with pytest.raises(
        ModelError, match=r"^student: student: tuning.targets: c_attn fits no layer"
    ):
        plan(config)
