"""`quantize: nf4`: a base in four bits, made while it loads, under adapters (QLoRA).

What needs bitsandbytes is skipped without it; `make test-quantised` installs it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.quantizers import quantizer_bnb_4bit

from macpo.adapters import quiet_peft
from macpo.agents import Agent, Policy
from macpo.config import ModelConfig, TuningConfig, load_config
from macpo.errors import ConfigError, ModelError
from macpo.likelihood import PromptGroup
from macpo.models.loading import empty_model, weight_bytes
from macpo.models.merging import adapter_digest, merge_folder
from macpo.models.quantising import NF4_BYTES, NOTE, nf4_bytes
from macpo.models.sources import resolve
from macpo.planning import plan
from macpo.policies import expected_bytes, snapshot
from macpo.preflight import check_agent
from macpo.publish import merge_adapter, publish
from macpo.reward.config import load_reward_config
from macpo.runner import run
from tests.likelihood.plain import completions_of, plain_sums
from tests.quantised import claim_quantised
from tests.runs import write_config
from tests.test_publish import logits_of
from tests.test_resume import Quiet
from tests.tiny import tiny_folder
from tests.workbench import Workbench, make_agent, randomise

NF4 = "nf4"


def wide_folder(folder: Path) -> Path:
    """Write a tiny Llama whose layers are wide enough for whole blocks of 64 weights."""
    return tiny_folder(folder, hidden_size=64, intermediate_size=128)


def nf4_agent(folder: Path, **changes: Any) -> Agent:
    base = resolve(ModelConfig(source=str(folder), quantize=NF4))
    return make_agent(base=base, **{"tuning": TuningConfig(rank=2), **changes})


def plain_agent(folder: Path) -> Agent:
    base = resolve(ModelConfig(source=str(folder)))
    return make_agent(base=base, tuning=TuningConfig(rank=2))


def trained(bench: Workbench, agent: Agent, seed: int = 3) -> Policy:
    """Return a policy with an adapter of random weights."""
    weights = snapshot(bench.train_from(agent).trainable)
    randomise(weights, seed=seed)
    return Policy(agent, "positive", bench.write_weights(f"weights-{seed}", weights))


def turned_back(model: Any) -> dict[str, torch.Tensor]:
    """Return all weights of a base in NF4 as float32, by their names in an ordinary model."""
    from bitsandbytes.functional import dequantize_4bit

    found = {}
    for name, weight in model.named_parameters():
        state = getattr(weight, "quant_state", None)
        found[name] = weight.detach() if state is None else dequantize_4bit(weight.data, state)
    return {name: weight.float() for name, weight in found.items()}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"tuning": {"kind": "full"}},
            "student.model.quantize: a quantised base is frozen, and its tuning.kind is full; set "
            "that to lora, or remove quantize",
        ),
        (
            {"engine": {"sharding": "fsdp"}},
            "student.model.quantize: engine.sharding cannot divide quantised weights; remove the "
            "one or the other",
        ),
        (
            {"generation": {"backend": "vllm", "python": "p"}},
            "student.model.quantize: vllm would answer with the base as it is stored, which is "
            "another model; let local answer, or name a checkpoint that is quantised already",
        ),
        (
            {"generation": {"backend": "server", "urls": {"student": "http://host/v1"}}},
            "student.model.quantize: server would answer with the base as it is stored",
        ),
    ],
)
def test_what_does_not_go_with_a_quantised_base_is_a_fault_of_the_config(
    changes: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    student = {"model": {"source": "models/student", "quantize": NF4}}
    with pytest.raises(ConfigError) as raised:
        load_config(write_config(tmp_path, student=student, **changes))
    assert fault in str(raised.value)


def test_a_server_may_answer_for_those_whose_base_is_as_it_is_stored(tmp_path: Path) -> None:
    student = {"model": {"source": "models/student", "quantize": NF4}}
    generation = {"backend": "server", "urls": {"weak-a": "http://host/v1"}}
    config = load_config(write_config(tmp_path, student=student, generation=generation))
    assert config.student.model.quantize == NF4


def test_another_word_is_refused_with_the_one_there_is(tmp_path: Path) -> None:
    student = {"model": {"source": "models/student", "quantize": "nf5"}}
    with pytest.raises(ConfigError, match=r"student\.model\.quantize: must be 'nf4' .*mean 'nf4'"):
        load_config(write_config(tmp_path, student=student))


def test_a_reward_models_base_is_not_quantised(tmp_path: Path) -> None:
    path = tmp_path / "reward.yaml"
    path.write_text("{name: r, data: {source: d}, model: {source: m, quantize: nf4}}")
    with pytest.raises(ConfigError, match=r"model\.quantize: whoever scores with the model"):
        load_reward_config(path)


def test_without_the_library_plan_and_run_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizer_bnb_4bit, "is_bitsandbytes_available", lambda: False)
    student = {"model": {"source": "models/student", "quantize": NF4}}
    config = load_config(write_config(tmp_path, student=student))
    said = r"^student: student \(nf4\): quantize: nf4 cannot be done here \(.*\); pip install "
    said += r"'macpo\[quantised\]', or remove quantize$"
    with pytest.raises(ModelError, match=said):
        plan(config)
    with pytest.raises(ModelError, match=said):
        run(config, tmp_path / "run", Quiet())
    assert not list((tmp_path / "run" / "stages").glob("init/*"))


def test_the_quantised_base_has_a_key_of_its_own_and_the_others_keep_theirs(
    tmp_path: Path,
) -> None:
    folder = wide_folder(tmp_path / "m")
    plain, made = plain_agent(folder), nf4_agent(folder)
    assert plain.base.digest != made.base.digest
    assert made.base.location == plain.base.location  # nothing is written
    assert made.base.name == "m (nf4)"
    assert {k for k, v in plain.identity().items() if v != made.identity()[k]} == {"base"}
    unknown = ModelConfig(source="owner/model", quantize=NF4)
    assert resolve(unknown, fetch=False).digest is None


def test_memory_is_reckoned_from_the_shape(tmp_path: Path) -> None:
    folder = wide_folder(tmp_path / "m")
    agent = nf4_agent(folder)
    model = empty_model(agent.base)
    packed = sum(p.numel() for name, p in model.named_parameters() if "_proj" in name)
    kept = sum(p.numel() for p in model.parameters()) - packed
    assert nf4_bytes(model, 4) == int(packed * NF4_BYTES) + 4 * kept
    assert weight_bytes(agent.base, "float32") == nf4_bytes(model, 4)
    named = resolve(ModelConfig(source="owner/model-70b", quantize=NF4), fetch=False)
    assert weight_bytes(named, "bfloat16") == int(70e9 * NF4_BYTES)  # by the name alone


def test_a_well_known_base_takes_about_a_quarter(tmp_path: Path) -> None:
    source = "meta-llama/Llama-3.1-70B"
    named = resolve(ModelConfig(source=source, quantize=NF4), fetch=False)
    stored = weight_bytes(named, "bfloat16")
    whole = weight_bytes(resolve(ModelConfig(source=source), fetch=False), "bfloat16")
    assert stored is not None
    assert whole is not None
    assert 0.27 < stored / whole < 0.29  # embedding and head stay as they are


@pytest.fixture
def bitsandbytes() -> Any:
    return pytest.importorskip("bitsandbytes")


@pytest.mark.usefixtures("bitsandbytes")
def test_weights_that_are_quantised_already_are_refused(tmp_path: Path) -> None:
    fields = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    folder = claim_quantised(wide_folder(tmp_path / "m"), **fields)
    with pytest.raises(ModelError) as raised:
        check_agent(nf4_agent(folder))
    assert str(raised.value) == (
        "student: m (nf4): its weights are quantised (bitsandbytes) already; remove quantize, or "
        "name the model that it was quantised from"
    )


@pytest.mark.filterwarnings("default")  # the library's own
@pytest.mark.usefixtures("bitsandbytes")
def test_scores_are_those_of_the_same_numbers_in_a_plain_float32_model(tmp_path: Path) -> None:
    folder = wide_folder(tmp_path / "m")
    bench = Workbench(tmp_path)
    policy = trained(bench, nf4_agent(folder))
    loaded = bench.pool.load(policy)
    base = loaded.model.get_base_model()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    groups = [PromptGroup((5, 9, 2), ((7, 3, 1), (4,))), PromptGroup((8,), ((6, 6, 2, 1),))]
    found = {n: w for n, w in turned_back(base).items() if "lora_" not in n}
    weights = {name.replace(".base_layer", ""): weight for name, weight in found.items()}
    other = [n for n, w in plain.named_parameters() if not torch.equal(w, weights[n])]
    assert other == [n for n, _ in plain.named_parameters() if "_proj" in n]
    for name, weight in weights.items():
        pair = [f"base_model.model.{name[:-7]}.lora_{side}.default.weight" for side in "BA"]
        if pair[0] in loaded.trainable:
            up, down = (loaded.trainable[side].detach() for side in pair)
            weight += policy.agent.tuning.alpha / policy.agent.tuning.rank * (up @ down)
    plain.load_state_dict(weights, strict=False)
    scored = completions_of(loaded.engine(64).score(groups))
    expected = torch.cat(plain_sums(plain, groups))
    assert torch.allclose(scored, expected.double(), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("bitsandbytes")
def test_policies_of_an_agent_share_the_quantised_base_and_others_do_not(tmp_path: Path) -> None:
    folder = wide_folder(tmp_path / "m")
    bench = Workbench(tmp_path)
    agent = nf4_agent(folder)
    first = bench.pool.load(trained(bench, agent, seed=3)).model
    assert bench.pool.load(trained(bench, agent, seed=4)).model is first
    assert bench.pool.load(Policy(agent, "positive")).model is first  # the reference
    plain = bench.pool.load(Policy(plain_agent(folder), "positive")).model
    assert getattr(plain.get_base_model(), "hf_quantizer", None) is None
    states = [p.quant_state for p in first.parameters() if hasattr(p, "quant_state")]
    scales = sum(s.absmax.nbytes + s.state2.absmax.nbytes for s in states)
    weights = sum(p.nbytes for p in first.parameters())
    assert expected_bytes(agent) == pytest.approx(weights + scales, rel=0.02)


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("bitsandbytes")
def test_what_is_handed_out_says_what_base_it_wants(tmp_path: Path) -> None:
    from peft import PeftModel

    folder = wide_folder(tmp_path / "m")
    bench = Workbench(tmp_path)
    policy = trained(bench, nf4_agent(folder))
    own = logits_of(bench.pool.load(policy).model)
    out = tmp_path / "out"
    publish(policy, out, bench.pool, "card")
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        folder
    )
    noted = json.loads((out / NOTE).read_text())
    base = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=BitsAndBytesConfig(**noted)
    )
    with quiet_peft():
        theirs = logits_of(PeftModel.from_pretrained(base, out).eval())
    assert torch.allclose(theirs, own, rtol=0, atol=1e-4)

    merge_adapter(out, tmp_path / "exported")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    assert torch.allclose(logits_of(exported), own, rtol=0, atol=1e-4)
    (tmp_path / "begun").mkdir()
    merge_folder(folder, out, tmp_path / "begun", name="m", with_code=False)
    begun = AutoModelForCausalLM.from_pretrained(tmp_path / "begun").eval()
    assert torch.allclose(logits_of(begun), own, rtol=0, atol=1e-4)

    before = adapter_digest(out)
    (out / NOTE).write_text('{"load_in_8bit": true}')
    assert adapter_digest(out) != before
    with pytest.raises(ModelError, match=r"base_quantization\.json: does not say how the adapter"):
        merge_folder(folder, out, tmp_path / "begun", name="m", with_code=False)


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("bitsandbytes")
def test_a_run_over_a_quantised_student(tmp_path: Path) -> None:
    student = {"model": {"source": "models/student", "quantize": NF4}}
    config = load_config(write_config(tmp_path, student=student, rounds=1))
    planned = plan(config)
    assert planned.agents[0].model == "student (nf4)"
    assert not planned.agents[1].model.endswith("(nf4)")
    run(config, tmp_path / "run", Quiet())
    assert (tmp_path / "run/final/student" / NOTE).is_file()
    assert not (tmp_path / "run/final/weak-a" / NOTE).exists()
    card = (tmp_path / "run/final/student/README.md").read_text()
    assert "quantization_config=BitsAndBytesConfig(load_in_4bit=True, " in card
    assert {stage.state for stage in plan(config, tmp_path / "run").stages} == {"done"}
