"""An agent that begins where a LoRA adapter ended: the logits of base plus adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from macpo.config import ModelConfig, load_config
from macpo.errors import ModelError
from macpo.models.loading import load_model
from macpo.models.sources import ResolvedModel, resolve
from macpo.planning import plan
from macpo.runner import run
from tests.likelihood.plain import with_adapter
from tests.runs import write_config
from tests.test_resume import Quiet
from tests.tiny import tiny_folder, tiny_tokenizer

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "base", "llama")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    """An adapter as PEFT writes it, with a tokenizer whose template is its own."""
    folder = tmp_path / "sft"
    with_adapter(AutoModelForCausalLM.from_pretrained(base)).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "SFT " + str(tokenizer.chat_template)
    tokenizer.save_pretrained(folder)
    return folder


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=IDS).logits)


def loaded(found: ResolvedModel) -> Tensor:
    return logits(load_model(found, torch.float32, "cpu"))


def test_merged_model_has_the_logits_of_base_plus_adapter(base: Path, adapter: Path) -> None:
    found = resolve(ModelConfig(source=str(base), adapter=str(adapter)))
    plain = AutoModelForCausalLM.from_pretrained(base)
    before = logits(plain)
    expected = logits(PeftModel.from_pretrained(plain, str(adapter)).eval())
    assert torch.allclose(loaded(found), expected, rtol=0, atol=1e-4)
    assert (expected - before).abs().max() > 0.1
    assert (found.name, found.local, found.hub_name) == ("base+sft", True, None)
    tokenizer = AutoTokenizer.from_pretrained(found.location)
    assert tokenizer.chat_template.startswith("SFT ")


def test_adapters_folder_takes_the_base_that_it_names(base: Path, adapter: Path) -> None:
    named = resolve(ModelConfig(source=str(base), adapter=str(adapter)))
    assert resolve(ModelConfig(source=str(adapter))) == named


def test_merged_model_can_be_cut(base: Path, adapter: Path) -> None:
    found = resolve(ModelConfig(source=str(base), adapter=str(adapter), layers="1"))
    assert found.name == "base+sft[1]"
    assert load_model(found, torch.float32, "cpu").config.num_hidden_layers == 1


def test_digest_counts_weights_and_scale_and_not_the_place(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    def digest_of(folder: Path) -> str | None:
        return resolve(ModelConfig(source=str(base), adapter=str(folder)), fetch=False).digest

    first = digest_of(adapter)
    moved = shutil.copytree(adapter, tmp_path / "moved")
    config = json.loads((moved / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "elsewhere"
    (moved / "adapter_config.json").write_text(json.dumps(config))
    assert digest_of(moved) == first
    assert first != resolve(ModelConfig(source=str(base))).digest
    (moved / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 99}))
    assert digest_of(moved) != first
    shutil.copyfile(adapter / "adapter_config.json", moved / "adapter_config.json")
    other = with_adapter(AutoModelForCausalLM.from_pretrained(base), ["q_proj"])
    other.save_pretrained(moved)
    assert digest_of(moved) != first


def refusal(section: ModelConfig) -> str:
    with pytest.raises(ModelError) as raised:
        resolve(section)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_cannot_be_merged_is_refused_in_one_line(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    said = refusal(ModelConfig(source=str(base), adapter=str(empty)))
    assert said.startswith(f"{empty}: no adapter, since adapter_config.json cannot be read (")
    other = tiny_folder(tmp_path / "other", "llama", hidden_size=48)
    said = refusal(ModelConfig(source=str(other), adapter=str(adapter)))
    assert said.startswith(f"{adapter}: cannot be merged into other (RuntimeError: Error")
    deeper = tiny_folder(tmp_path / "deeper", "llama", layers=3)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "v_proj"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    said = refusal(ModelConfig(source=str(deeper), adapter=str(adapter)))
    assert said.startswith(f"{adapter}: does not fit deeper, which has layers that it holds no ")
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert refusal(ModelConfig(source=str(adapter))) == (
        f"{adapter}: an adapter over {tmp_path / 'gone'}, which is not here; write model: "
        f"{{source: BASE, adapter: {adapter}}}"
    )
    (adapter / "adapter_model.safetensors").unlink()
    assert "pickled weights are never read" in refusal(ModelConfig(source=str(adapter)))


def test_run_starts_from_an_adapter_beside_its_config(tmp_path: Path) -> None:
    section = {"source": "models/student", "adapter": "sft"}
    path = write_config(tmp_path, rounds=1, student={"model": section})
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "student")
    with_adapter(student).save_pretrained(tmp_path / "sft")
    config = load_config(path)
    assert [agent.local for agent in plan(config).agents] == [False, True, True]
    run(config, tmp_path / "run", Quiet())
    assert plan(config).agents[0].model == "student+sft"
    assert (tmp_path / "run" / "final" / "student" / "adapter_config.json").is_file()
