"""Text models inside vision and audio models: loaded whole, trained and published as loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    Blip2Config,
)

from macpo.adapters import quiet_peft, with_adapter
from macpo.config import ModelConfig, TuningConfig, load_config
from macpo.errors import ModelError
from macpo.models.classes import auto_class, text_decoder_name
from macpo.models.sources import resolve
from macpo.preflight import check_agent
from macpo.publish import merge_adapter
from macpo.runner import run
from tests.composites import composite_folder, tiny_composite
from tests.likelihood.plain import make_model
from tests.runs import write_config
from tests.sweep.checks import check_family
from tests.test_publish import logits_of
from tests.test_resume import Quiet
from tests.tiny import tiny_tokenizer
from tests.workbench import make_agent


@pytest.mark.parametrize(
    ("model_type", "auto"),
    [
        ("llama", AutoModelForCausalLM),
        ("gemma3", AutoModelForCausalLM),
        ("qwen3_5", AutoModelForCausalLM),  # its text model alone is a model of its own
        ("mistral3", AutoModelForImageTextToText),
        ("emu3", AutoModelForImageTextToText),  # its text model alone could not be loaded again
        ("mllama", AutoModelForImageTextToText),
        ("qwen2_audio", AutoModelForMultimodalLM),
        ("bert-generation", AutoModelForCausalLM),
        ("vit", AutoModelForCausalLM),  # none will do, and this one says so
    ],
)
def test_auto_class_is_the_first_that_can_load_what_it_saves(model_type: str, auto: type) -> None:
    assert auto_class(AutoConfig.for_model(model_type)) is auto


@pytest.mark.parametrize(
    ("name", "scores", "answers"),
    [
        ("mistral3", "tree", "decode"),
        ("qwen2_5_vl", "tree", "decode"),
        ("qwen3_vl", "tree", "decode"),
        ("mllama", "tree", "generate"),
        ("qwen2_audio", "tree", "generate"),
    ],
)
def test_composite_gives_the_numbers_of_plain_forwards(
    name: str, scores: str, answers: str
) -> None:
    """Scores, gradients, answers, and the logits of a published adapter that PEFT loads."""
    verdict = check_family(name, tiny_composite)
    assert verdict.right, verdict.line()
    assert (verdict.scores, verdict.answers) == (scores, answers)


@pytest.mark.parametrize("targets", ["auto", "all-linear"])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "qwen2_audio"])
def test_adapters_go_over_the_text_decoder_alone(name: str, targets: str) -> None:
    model = tiny_composite(name)
    decoder = text_decoder_name(model)
    assert decoder is not None
    tuning = TuningConfig(rank=2, targets=targets)
    adapted = with_adapter(model.requires_grad_(False), tuning, name)
    trains = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert trains
    assert all(n.startswith(f"base_model.model.{decoder}.") for n in trains)
    assert text_decoder_name(make_model("llama")) is None


def test_run_over_a_composite_publishes_what_its_users_load(tmp_path: Path) -> None:
    base = composite_folder(tmp_path / "models" / "student", "mistral3")
    path = write_config(tmp_path, rounds=1, tuning={"rank": 2, "alpha": 12})
    config = load_config(path, ["dpo.learning_rate=0.05"])
    run(config, tmp_path / "run", Quiet())
    folder = tmp_path / "run" / "final" / "student"
    card = (folder / "README.md").read_text()
    assert "`AutoModelForImageTextToText`" in card
    named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    plain = AutoModelForImageTextToText.from_pretrained(named, dtype=torch.float32).eval()
    before = logits_of(plain)
    with quiet_peft():
        own = logits_of(PeftModel.from_pretrained(plain, folder).eval())
    assert (own - before).abs().max() > 0.01
    merge_adapter(folder, tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(logits_of(merged), own, rtol=0, atol=1e-4)
    name = "preprocessor_config.json"
    assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()


def test_composite_that_trains_whole_is_published_whole(tmp_path: Path) -> None:
    composite_folder(tmp_path / "models" / "weak-b", "llava")
    path = write_config(tmp_path, rounds=1)
    run(load_config(path, ["teachers.1.tuning={kind: full}"]), tmp_path / "run", Quiet())
    folder = tmp_path / "run" / "final" / "weak-b"
    before = AutoModelForImageTextToText.from_pretrained(tmp_path / "models" / "weak-b")
    after = AutoModelForImageTextToText.from_pretrained(folder)
    decoder = text_decoder_name(before)
    weights = dict(after.named_parameters())
    changed = {n for n, p in before.named_parameters() if not torch.equal(p, weights[n])}
    text = {n for n in weights if n.startswith((f"{decoder}.", "lm_head."))}
    assert changed
    assert changed <= text
    assert (folder / "preprocessor_config.json").is_file()


def test_composite_whose_decoder_cannot_be_called_alone_is_refused(tmp_path: Path) -> None:
    Blip2Config().save_pretrained(tmp_path / "models" / "student")
    tiny_tokenizer().save_pretrained(tmp_path / "models" / "student")
    with pytest.raises(ModelError) as raised:
        check_agent(make_agent(tmp_path / "models" / "student"))
    assert str(raised.value) == (
        "student: Blip2ForConditionalGeneration: its decoder cannot be called without its LM head; "
        "use another model"
    )


def test_text_model_that_no_auto_class_loads_is_refused_by_plan(tmp_path: Path) -> None:
    """What `MllamaForCausalLM` saves: people who have it have to name the composite."""
    config = AutoConfig.for_model("mllama").get_text_config()
    config.save_pretrained(tmp_path / "models" / "student")
    tiny_tokenizer().save_pretrained(tmp_path / "models" / "student")
    with pytest.raises(ModelError, match="no causal language model") as raised:
        check_agent(make_agent(tmp_path / "models" / "student"))
    assert "\n" not in str(raised.value)


def test_layers_of_a_composite_are_refused(tmp_path: Path) -> None:
    folder = composite_folder(tmp_path / "m", "llava")
    with pytest.raises(ModelError, match="so no layers can be cut out"):
        resolve(ModelConfig(source=str(folder), layers="0"), fetch=False)
