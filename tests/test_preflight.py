"""Models that will not do are refused before anybody has worked, in one line with the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3ForCausalLM, xLSTMConfig

from macpo import adapters
from macpo.agents import Policy
from macpo.config import LimitsConfig, TuningConfig, load_config
from macpo.errors import ModelError
from macpo.planning import plan
from macpo.preflight import check_agent, positions
from macpo.runner import run
from tests.generation.test_servable import build
from tests.likelihood.plain import make_model
from tests.runs import journal_of, write_config
from tests.test_resume import Quiet
from tests.tiny import tiny_tokenizer
from tests.workbench import Workbench, make_agent


def save_as(folder: Path, architecture: str, **overrides: Any) -> Path:
    make_model(architecture, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "count"),
    [("gpt2", 512), ("opt", 512), ("gptj", 512), ("llama", None), ("gpt_neox", None)],
)
def test_positions_count_where_a_model_has_a_table_of_them(name: str, count: int | None) -> None:
    assert positions(make_model(name)) == count


@pytest.mark.parametrize("name", ["gpt2", "opt", "gptj"])
def test_limits_beyond_the_positions_are_refused(name: str, tmp_path: Path) -> None:
    folder = save_as(tmp_path / name, name)
    check_agent(make_agent(folder, limits=LimitsConfig(prompt_tokens=256, response_tokens=256)))
    beyond = make_agent(folder, limits=LimitsConfig(prompt_tokens=256, response_tokens=257))
    with pytest.raises(ModelError) as raised:
        check_agent(beyond)
    assert str(raised.value) == (
        f"student: {name} has 512 positions, but limits.prompt_tokens + limits.response_tokens "
        "are 513 tokens; lower these to 512 in all"
    )


def refused(folder: Path, *overrides: str) -> str:
    """Return why a run over models in `folder` stops, having made sure that nobody worked."""
    config = load_config(write_config(folder), overrides)
    with pytest.raises(ModelError) as raised:
        run(config, folder / "run", Quiet())
    if (folder / "run" / "journal.jsonl").exists():
        started = [e["stage"] for e in journal_of(folder / "run") if e["event"] == "started"]
        assert started in ([], ["data"])
    text = str(raised.value)
    assert "\n" not in text
    return text


def test_targets_of_the_last_agent_are_refused_before_the_first_stage(tmp_path: Path) -> None:
    text = refused(tmp_path, "teachers.1.tuning.targets=[c_attn]")
    assert text.startswith("weak-b: weak-b: tuning.targets: c_attn fits no layer")


def test_head_that_is_no_linear_layer_is_refused_by_plan_and_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def head(model: Any) -> torch.nn.Module:
        return torch.nn.Identity()

    monkeypatch.setattr(Qwen3ForCausalLM, "get_output_embeddings", head)
    said = (
        "student: Qwen3ForCausalLM: its LM head is a Identity, not a plain linear layer; take "
        "adapters off it (tuning.targets) or use another model"
    )
    assert refused(tmp_path) == said
    with pytest.raises(ModelError) as raised:
        plan(load_config(tmp_path / "tiny.yaml"))
    assert str(raised.value) == said


def test_student_whose_weights_show_that_it_will_not_do_is_refused_before_the_teachers(
    tmp_path: Path,
) -> None:
    save_as(tmp_path / "models" / "student", "gemma3_text", use_bidirectional_attention=True)
    text = refused(tmp_path)
    assert text.startswith("student (student): Gemma3ForCausalLM: what it makes of a token depends")


def test_student_that_cannot_answer_is_refused_before_the_teachers(tmp_path: Path) -> None:
    """xLSTM's cache fits keys of certain widths only (transformers 5.23); it can be scored."""
    config = xLSTMConfig(
        vocab_size=512, hidden_size=32, embedding_dim=32, num_blocks=1, num_hidden_layers=1
    )
    folder = tmp_path / "models" / "student"
    build(config, spread=0.3).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    text = refused(tmp_path)
    assert text.startswith("student: xLSTMForCausalLM: transformers' generate cannot answer")


def test_layers_that_bear_no_adapter_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phi-3.5-MoE's router returns two tensors, which PEFT's layer does not expect."""
    monkeypatch.setattr(adapters, "_is_linear", lambda module: True)  # or it would be passed over
    folder = save_as(tmp_path / "phimoe", "phimoe")
    agent = make_agent(folder, tuning=TuningConfig(targets="all-linear"))
    with pytest.raises(ModelError) as raised:
        Workbench(tmp_path).pool.load(Policy(agent, "positive"))
    text = str(raised.value)
    assert text.startswith("student (phimoe): cannot be trained with adapters on all-linear (")
    assert text.endswith("); change tuning.targets")
    Workbench(tmp_path).pool.load(Policy(make_agent(folder), "positive"))
