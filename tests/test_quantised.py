"""Checkpoints with quantised weights: read as they mean, frozen under adapters, or refused early.

The libraries that read most of them are no dependency; what needs one is skipped without it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.quantizers import quantizer_bnb_4bit

from macpo.adapters import quiet_peft
from macpo.agents import Policy
from macpo.config import ModelConfig, TuningConfig, load_config
from macpo.errors import ModelError
from macpo.models.loading import load_model
from macpo.models.sources import resolve
from macpo.planning import plan
from macpo.policies import expected_bytes, snapshot
from macpo.preflight import check_agent
from macpo.publish import merge_adapter, publish
from macpo.runner import run
from tests.quantised import MXFP4_VALUES, claim_quantised, fp8_folder, mxfp4_folder
from tests.runs import write_config
from tests.test_publish import logits_of
from tests.test_resume import Quiet
from tests.tiny import tiny_folder, tiny_tokenizer
from tests.workbench import CPU, Workbench, make_agent, randomise

UNQUANTISED = "name the model that it was quantised from"


def trained(bench: Workbench, folder: Path, **changes: Any) -> Policy:
    """Return a policy over a base with an adapter of random weights."""
    agent = make_agent(folder, tuning=TuningConfig(rank=2), **changes)
    weights = snapshot(bench.train_from(agent).trainable)
    randomise(weights, seed=3)
    return Policy(agent, "positive", bench.write_weights("weights", weights))


def refusal(folder: Path, **changes: Any) -> str:
    """Return why an agent over a folder will not do, without its own name before it."""
    with pytest.raises(ModelError) as raised:
        check_agent(make_agent(folder, **changes))
    text = str(raised.value)
    assert "\n" not in text
    return text.removeprefix(f"student: {folder.name}: ")


def test_fp8_weights_are_read_as_the_numbers_they_stand_for(tmp_path: Path) -> None:
    folder, numbers = fp8_folder(tmp_path / "fp8")
    check_agent(make_agent(folder))
    check_agent(make_agent(folder, tuning=TuningConfig(kind="full")))
    model = load_model(resolve(ModelConfig(source=str(folder))), torch.float32, CPU)
    weights = dict(model.named_parameters())
    assert {weights[name].dtype for name in weights} == {torch.float32}
    for name in weights.keys() & numbers.keys():
        assert torch.equal(weights[name], numbers[name]), name


def test_adapter_over_fp8_weights_is_published_and_merged(tmp_path: Path) -> None:
    folder, _ = fp8_folder(tmp_path / "fp8")
    bench = Workbench(tmp_path)
    policy = trained(bench, folder)
    own = logits_of(bench.pool.load(policy).model)
    publish(policy, tmp_path / "out", bench.pool, "card")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder)  # the quantised one
    merge_adapter(tmp_path / "out", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(logits_of(merged), own, rtol=0, atol=1e-4)
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())


def test_mxfp4_experts_are_read_as_the_numbers_they_stand_for(tmp_path: Path) -> None:
    folder = mxfp4_folder(tmp_path / "gpt-oss")
    check_agent(make_agent(folder))
    model = load_model(resolve(ModelConfig(source=str(folder))), torch.float32, CPU)
    stored = load_file(folder / "model.safetensors")["model.layers.0.mlp.experts.down_proj_blocks"]
    codes = torch.stack((stored & 15, stored >> 4), dim=-1).flatten(-3).int()
    expected = MXFP4_VALUES[codes] * 2.0**-3  # [experts, outputs, inputs]
    found = model.model.layers[0].mlp.experts.down_proj
    assert torch.equal(found, expected.transpose(1, 2))
    bench = Workbench(tmp_path)
    assert bench.pool.load(trained(bench, folder)).architecture.fallback_reason == ""


@pytest.mark.parametrize(
    ("method", "fields", "reason"),
    [
        ("bitsandbytes", {"load_in_4bit": True}, "`pip install -U bitsandbytes"),
        ("aqlm", {}, "`pip install aqlm"),
        ("nonsense", {}, "Unknown quantization type, got nonsense"),
    ],
)
def test_what_cannot_be_read_here_is_one_line_that_says_what_to_install(
    method: str,
    fields: dict[str, Any],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantizer_bnb_4bit, "is_bitsandbytes_available", lambda: False)
    folder = claim_quantised(tiny_folder(tmp_path / "m"), quant_method=method, **fields)
    text = refusal(folder)
    assert text.startswith(f"its weights are quantised ({method}) and cannot be read here (")
    assert reason in text
    assert text.endswith(f"); install what that needs, or {UNQUANTISED}")


def test_plan_and_run_refuse_before_anybody_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizer_bnb_4bit, "is_bitsandbytes_available", lambda: False)
    config = load_config(write_config(tmp_path))
    claim_quantised(tmp_path / "models/weak-b", quant_method="bitsandbytes", load_in_4bit=True)
    with pytest.raises(ModelError, match=r"^weak-b: weak-b: its weights are quantised"):
        plan(config)
    with pytest.raises(ModelError, match=r"^weak-b: weak-b: its weights are quantised"):
        run(config, tmp_path / "run", Quiet())
    assert not list((tmp_path / "run" / "stages").glob("init/*"))


def test_weights_over_which_nothing_trains_are_refused(tmp_path: Path) -> None:
    folder = claim_quantised(tiny_folder(tmp_path / "m"), quant_method="bitnet")
    said = "its weights are quantised (bitnet), over which transformers trains no adapters; "
    assert refusal(folder) == said + UNQUANTISED


def test_quantised_weights_do_not_train_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = quantizer_bnb_4bit.Bnb4BitHfQuantizer
    monkeypatch.setattr(kind, "validate_environment", lambda *_, **__: None)
    fields = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    folder = claim_quantised(tiny_folder(tmp_path / "m"), **fields)
    assert refusal(folder, tuning=TuningConfig(kind="full")) == (
        "its weights are quantised (bitsandbytes), so it cannot train whole; set tuning.kind: "
        f"lora, or {UNQUANTISED}"
    )
    check_agent(make_agent(folder))
    with pytest.raises(ModelError, match=r"which engine\.sharding cannot divide; name the model"):
        check_agent(make_agent(folder), divided=True)


def test_layers_are_not_cut_out_of_quantised_weights(tmp_path: Path) -> None:
    folder, _ = fp8_folder(tmp_path / "fp8")
    with pytest.raises(ModelError) as raised:
        resolve(ModelConfig(source=str(folder), layers="0"), fetch=False)
    assert str(raised.value) == (
        f"fp8: its weights are quantised (fp8), so no layers can be cut out of it; {UNQUANTISED}"
    )


def quantised_folder(folder: Path, quantisation: Any) -> Path:
    """Quantise a tiny Llama with a library and save it."""
    plain = tiny_folder(folder.with_name("plain"), hidden_size=64, intermediate_size=128)
    AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=quantisation, dtype=torch.float32, device_map="cpu"
    ).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def bitsandbytes_4bit() -> Any:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )


def bitsandbytes_8bit(threshold: float = 0.0) -> Any:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold)


def torchao_8bit() -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


@pytest.mark.filterwarnings("default")  # the libraries' own
@pytest.mark.parametrize(
    ("quantise", "merges"),
    [(bitsandbytes_4bit, True), (bitsandbytes_8bit, False), (torchao_8bit, False)],
)
def test_adapter_over_a_librarys_quantised_weights(
    quantise: Any, merges: bool, tmp_path: Path
) -> None:
    from peft import PeftModel

    folder = quantised_folder(tmp_path / "m", quantise())
    bench = Workbench(tmp_path)
    policy = trained(bench, folder)
    check_agent(policy.agent)
    assert expected_bytes(policy.agent) < 1.2 * (folder / "model.safetensors").stat().st_size
    model = bench.pool.load(policy).model
    assert model.get_base_model().hf_quantizer is not None
    own = logits_of(model)
    publish(policy, tmp_path / "out", bench.pool, "card")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu")
    with quiet_peft():
        theirs = logits_of(PeftModel.from_pretrained(base, tmp_path / "out").eval())
    assert torch.allclose(theirs, own, rtol=0, atol=1e-4)
    if merges:
        merge_adapter(tmp_path / "out", tmp_path / "merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        assert torch.allclose(logits_of(merged), own, rtol=0, atol=1e-4)
    else:
        with pytest.raises(ModelError, match=r"no adapter can be merged into them \("):
            merge_adapter(tmp_path / "out", tmp_path / "merged")
        assert not (tmp_path / "merged").exists()


@pytest.mark.filterwarnings("default")
def test_weights_that_make_numbers_depend_on_the_batch_are_refused(tmp_path: Path) -> None:
    """As bitsandbytes' do by default in 8 bits: outliers of one sequence change its neighbour's."""
    folder = quantised_folder(tmp_path / "m", bitsandbytes_8bit(threshold=6.0))
    with pytest.raises(ModelError) as raised:
        Workbench(tmp_path).pool.load(Policy(make_agent(folder), "positive"))
    assert str(raised.value).endswith(
        "; its weights are quantised (bitsandbytes), perhaps so that a sequence's numbers depend "
        f"on what is computed beside it: {UNQUANTISED}, or one in 4 bits"
    )
