from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from macpo.config import ModelConfig
from macpo.errors import ModelError
from macpo.models.folders import generation_stops
from macpo.models.loading import (
    ParameterCount,
    load_chat,
    load_model,
    load_tokenizer,
    parameter_count,
)
from macpo.models.sources import ResolvedModel, resolve
from tests.tiny import ARCHITECTURES, CHATML, tiny_folder, tiny_model, tiny_tokenizer


def resolved(folder: Path, **options: object) -> ResolvedModel:
    return resolve(ModelConfig(source=str(folder), **options))


def named(name: str) -> ResolvedModel:
    return ResolvedModel(name, name, None, None, local=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_is_loaded_in_the_dtype_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    model = load_model(resolved(tiny_folder(tmp_path / "m")), dtype, "cpu")
    assert not model.training
    expected = tiny_model().to(dtype).state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)


def test_missing_tensor_is_an_error_and_not_random_numbers(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    lost = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in weights.items() if k != lost}, folder / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        load_model(resolved(folder), torch.float32, "cpu")
    assert str(caught.value) == (
        f"m: {folder} does not hold 1 of the model's tensors, the first is {lost}; the config "
        "and the weights do not belong together"
    )


def test_tensor_of_another_shape_is_an_error(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
    with pytest.raises(ModelError, match=r"m: .* cannot be loaded|do not belong together"):
        load_model(resolved(folder), torch.float32, "cpu")


def test_truncated_weight_file_is_an_error(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"^m: .* cannot be loaded \(SafetensorError") as caught:
        load_model(resolved(folder), torch.float32, "cpu")
    assert "\n" not in str(caught.value)


def test_model_of_another_kind_is_an_error(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    found = resolved(folder)
    with pytest.raises(ModelError, match=r"^m: .* cannot be loaded \(ValueError"):
        load_model(found, torch.float32, "cpu")
    with pytest.raises(ModelError, match="m: no causal language model"):
        parameter_count(found)


def test_code_of_a_model_is_not_run_unless_trusted(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own"}))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    remedy = "needs Python code that came with it; set trust_remote_code: true if you trust it"
    with pytest.raises(ModelError, match=remedy):
        load_model(resolved(folder), torch.float32, "cpu")
    with pytest.raises(ModelError, match=remedy):
        parameter_count(resolved(folder))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ModelError):  # trusted, it runs, and this one then fails
        load_model(resolved(folder, trust_remote_code=True), torch.float32, "cpu")
    assert (tmp_path / "ran").exists()


def test_model_that_is_not_here_says_so() -> None:
    with pytest.raises(ModelError) as caught:
        load_model(named("org/model"), torch.float32, "cpu")
    assert str(caught.value) == (
        "org/model: its weights are not on this machine yet; resolve it with fetch=True"
    )


def test_tokenizer_keeps_its_template_unless_another_is_asked_for(tmp_path: Path) -> None:
    found = resolved(tiny_folder(tmp_path / "m"))
    assert load_tokenizer(found).chat_template == CHATML
    assert "ASSISTANT:" in load_tokenizer(found, "vicuna").chat_template
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    assert load_tokenizer(found, str(tmp_path / "t.jinja")).chat_template == "{{ messages }}"


def test_folder_without_tokenizer_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"m: no tokenizer in .*; save it there"):
        load_tokenizer(resolved(folder))


def test_damaged_tokenizer_is_one_line(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"m: the tokenizer in .* cannot be loaded") as caught:
        load_tokenizer(resolved(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_counted_without_reading_them(
    tmp_path: Path, architecture: str, tied: bool
) -> None:
    folder = tiny_folder(tmp_path / "m", architecture, tie_word_embeddings=tied)
    found = resolved(folder)
    model = load_model(found, torch.float32, "cpu")
    (folder / "model.safetensors").unlink()
    count = parameter_count(found)
    assert count is not None
    assert not count.estimated
    assert count.count == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("some-org/Llama-2-70b-hf", 70_000_000_000),
        ("some-org/SmolLM2-135M-Instruct", 135_000_000),
        ("Qwen/Qwen1.5-0.5B", 500_000_000),
        ("Qwen/Qwen3-30B-A3B", 30_000_000_000),
        ("mistralai/Mixtral-8x7B-v0.1", 56_000_000_000),
        ("EleutherAI/pythia-1.4b@step3b", 1_400_000_000),
        ("org70b/model", None),
        ("gpt2", None),
        ("org/model-4bit", None),
    ],
)
def test_size_is_read_off_the_name_when_there_is_no_config(name: str, expected: int | None) -> None:
    count = parameter_count(named(name))
    assert (None if count is None else count.count) == expected
    assert count is None or count.estimated


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # as their safetensors files count
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Llama-2-13b-hf", 13_015_864_320),
        ("meta-llama/Llama-2-70b-hf", 68_976_648_192),
        ("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
        ("meta-llama/Llama-3.1-70B", 70_553_706_496),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B", 3_212_749_824),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
        ("Qwen/Qwen3-4B", 4_022_468_096),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen3-14B", 14_768_307_200),
        ("Qwen/Qwen3-32B", 32_762_123_264),
    ],
)
def test_well_known_models_are_counted_without_a_config(name: str, expected: int) -> None:
    assert parameter_count(named(name)) == ParameterCount(expected, estimated=False)


def test_size_of_an_unknown_number_of_layers_is_not_guessed() -> None:
    planned = ResolvedModel("org/m-70b[0-3]", "org/m-70b", None, None, local=False, layers=(0, 1))
    assert parameter_count(planned) is None


@pytest.mark.parametrize(
    ("written", "stops"),
    [("[5, 7]", (5, 7)), ("0", (0,)), ("null", ())],
)
def test_ends_of_answers_are_read_from_the_generation_config(
    tmp_path: Path, written: str, stops: tuple[int, ...]
) -> None:
    assert generation_stops(tmp_path) == ()
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {written}}}')
    assert generation_stops(tmp_path) == stops
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match="fetch or mend the file"):
        generation_stops(tmp_path)


def test_chat_of_a_folder_knows_all_ends_of_an_answer(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 9]}')
    assert load_chat(resolved(folder)).stop_ids >= {1, 9}


def test_template_that_writes_tokens_the_model_lacks_is_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<{i}>" for i in range(200)]})
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|im_start|>", "<199>")
    tokenizer.save_pretrained(folder)
    beyond = tokenizer.convert_tokens_to_ids("<199>")
    assert beyond >= 512
    with pytest.raises(ModelError) as caught:
        load_chat(resolved(folder))
    assert str(caught.value) == (
        f"m: the chat template writes '<199>', token {beyond}, but the model has 512 "
        "embeddings; resize them and save the model, or set another chat_template"
    )
