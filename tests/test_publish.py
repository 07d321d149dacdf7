"""What a run hands out loads with the libraries people use, and says the same as the run did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import macpo.publish as publishing
from macpo.adapters import quiet_peft
from macpo.agents import Policy, assemble_team
from macpo.config import TuningConfig, load_config
from macpo.data.stages import content_digest
from macpo.errors import ModelError, StoreError
from macpo.methods.build import build_plan
from macpo.models.sources import ResolvedModel
from macpo.policies import PolicyPool, snapshot
from macpo.publish import merge_adapter, publish
from macpo.runner import run
from tests.likelihood.plain import make_model
from tests.runs import write_config
from tests.test_resume import Quiet, digests
from tests.tiny import tiny_tokenizer
from tests.workbench import CPU, Workbench, Written, make_agent, randomise

OVERRIDES = [
    "rounds=1",
    "tuning={rank: 4, alpha: 24}",  # a scale of 6, so that a lost alpha shows
    "dpo.learning_rate=0.05",
    "teachers.1.tuning={kind: full}",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with one LoRA teacher and one that trains whole."""
    folder = tmp_path_factory.mktemp("published")
    path = write_config(folder)
    run(load_config(path, OVERRIDES), folder / "run", Quiet())
    return folder / "run"


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    """Return logits for a few tokens."""
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits
    return torch.as_tensor(output)


def load_peft(adapter: Path) -> torch.nn.Module:
    """Load an adapter as a user of PEFT would."""
    from peft import PeftModel

    config = json.loads((adapter / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    with quiet_peft():
        return PeftModel.from_pretrained(base, str(adapter)).eval()  # type: ignore[no-any-return]


def test_student_loads_with_peft_and_holds_the_trained_weights(finished: Path) -> None:
    from safetensors.torch import load_file

    model = load_peft(finished / "final" / "student")
    trained = load_file(finished / "stages/round-1/student/train/weights.safetensors")
    loaded = {n: p for n, p in model.named_parameters() if ".lora_" in n}
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[name], trained[name]) for name in trained)
    assert any(bool(p.abs().max() > 0) for n, p in loaded.items() if ".lora_B." in n)


@pytest.mark.parametrize("name", ["student", "weak-a", "weak-b"])
def test_published_policy_says_what_the_runs_own_policy_says(finished: Path, name: str) -> None:
    """The same logits as the pool's policy after the last round; other ones than the base's."""
    config = load_config(finished.parent / "tiny.yaml", OVERRIDES)
    team = assemble_team(config, "float32", fetch=True)
    plan = build_plan(config, team, content_digest(config.data, fetch=True))
    paths = {stage.key: (finished / "stages" / stage.name).resolve() for stage in plan}
    pool = PolicyPool(CPU, paths.__getitem__)
    (last, policy), folder = plan.final()[name], finished / "final" / name
    assert last == 1
    own = logits_of(pool.load(policy).model)
    base = logits_of(pool.load(Policy(policy.agent, "positive")).model)
    lora = (folder / "adapter_config.json").is_file()
    published = load_peft(folder) if lora else AutoModelForCausalLM.from_pretrained(folder).eval()
    assert lora is (name != "weak-b")
    assert torch.allclose(logits_of(published), own, rtol=0, atol=1e-5)
    assert (own - base).abs().max() > 0.1


def test_whole_teacher_is_a_full_model_with_the_trained_weights(finished: Path) -> None:
    from safetensors.torch import load_file

    folder = finished / "final" / "weak-b"
    assert not (folder / "adapter_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(folder)
    trained = load_file(finished / "stages/round-1/weak-b/train/weights.safetensors")
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], trained[name]) for name in trained)


def test_merged_export_gives_the_logits_of_base_plus_adapter(
    finished: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    merge_adapter(finished / "final" / "student", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    expected = logits_of(load_peft(finished / "final" / "student"))
    assert torch.allclose(logits_of(merged), expected, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert not (tmp_path / "merged" / "manifest.json").exists()  # it is an ordinary model folder
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_adapter_of_a_hub_model_names_the_revision_it_was_trained_on(
    finished: Path, tmp_path: Path
) -> None:
    from peft import PeftConfig

    base = finished.parent / "models" / "student"
    found = ResolvedModel("o/m", str(base), "c0ffee", "digest", local=True, hub_name="o/m")
    pool = PolicyPool(CPU, lambda key: finished / "stages/round-1/student/train")
    tuning = TuningConfig(rank=4, alpha=24)
    agent = make_agent(base, base=found, tuning=tuning)
    publish(Policy(agent, "positive", Written("w", "w")), tmp_path / "out", pool, "card")
    config = PeftConfig.from_pretrained(str(tmp_path / "out"))
    assert (config.base_model_name_or_path, config.revision) == ("o/m", "c0ffee")


def test_export_refuses_to_overwrite_and_what_is_no_adapter(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="exists already"):
        merge_adapter(finished / "final" / "student", tmp_path)
    with pytest.raises(ModelError, match="full model already"):
        merge_adapter(finished / "final" / "weak-b", tmp_path / "out")
    with pytest.raises(ModelError, match="no adapter_config"):
        merge_adapter(finished / "store", tmp_path / "out")


def test_model_card_names_base_run_and_metrics(finished: Path) -> None:
    card = (finished / "final" / "student" / "README.md").read_text()
    assert "library_name: peft" in card
    assert "preference_accuracy" in card
    assert "arXiv 2410.07672" in card


def test_published_folders_stay_when_nothing_changed(finished: Path) -> None:
    before = {p: p.stat().st_ino for p in sorted((finished / "final").rglob("*"))}
    run(load_config(finished.parent / "tiny.yaml", OVERRIDES), finished, Quiet())
    assert {p: p.stat().st_ino for p in sorted((finished / "final").rglob("*"))} == before


def test_another_policy_replaces_the_one_that_was_published(finished: Path, tmp_path: Path) -> None:
    base = finished.parent / "models" / "student"
    stages = [Written(n, n) for n in ("init/student/positive", "round-1/student/train")]
    paths = {stage.key: finished / "stages" / stage.name for stage in stages}
    pool = PolicyPool(CPU, paths.__getitem__)
    agent = make_agent(base, tuning=TuningConfig(rank=4, alpha=24))
    published = []
    for stage in stages:
        publish(Policy(agent, "positive", stage), tmp_path / "out", pool, "card")
        published.append(digests(tmp_path / "out")["adapter_model.safetensors"])
    assert published[0] != published[1]


def test_metrics_have_one_line_per_policy_round_and_metric(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    keys = [(row["policy"], row["round"], row["metric"]) for row in rows]
    assert len(set(keys)) == len(keys)
    for policy in ("student", "weak-a", "weak-b"):
        for number in (0, 1):
            for metric in ("preference_accuracy", "gold_perplexity", "answer_tokens"):
                assert (policy, number, metric) in keys
        assert (policy, 1, "train_margin") in keys
    assert digests(finished / "final")


@pytest.fixture(params=["mixtral", "qwen3_moe", "gpt_neox", "gpt2"])
def adapted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Workbench, Policy]:
    """A policy with random weights on all linear layers; experts are parameters, not layers."""
    folder = tmp_path / "model"
    make_model(request.param).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    bench = Workbench(tmp_path)
    tuning = TuningConfig(rank=2, alpha=12, targets="all-linear")
    agent = make_agent(folder, tuning=tuning)
    weights = snapshot(bench.train_from(agent).trainable)
    randomise(weights, seed=3)
    return bench, Policy(agent, "positive", bench.write_weights("weights", weights))


def test_adapter_on_all_layers_is_published_with_the_config_that_peft_resolved(
    adapted: tuple[Workbench, Policy], tmp_path: Path
) -> None:
    bench, policy = adapted
    own = logits_of(bench.pool.load(policy).model)
    base = logits_of(bench.pool.load(Policy(policy.agent, "positive")).model)
    publish(policy, tmp_path / "out", bench.pool, "card")
    published = load_peft(tmp_path / "out")
    assert torch.allclose(logits_of(published), own, rtol=0, atol=1e-5)
    assert (own - base).abs().max() > 0.1
    merge_adapter(tmp_path / "out", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(logits_of(merged), own, rtol=0, atol=1e-4)
    assert torch.equal(logits_of(bench.pool.load(policy).model), own)  # the pool goes on


def test_equal_adapters_are_equal_bytes(adapted: tuple[Workbench, Policy], tmp_path: Path) -> None:
    bench, policy = adapted
    for name in ("one", "two"):
        publish(policy, tmp_path / name, bench.pool, "card")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.fixture
def bench_policy(tmp_path: Path) -> tuple[Workbench, Policy]:
    bench = Workbench(tmp_path)
    weights = snapshot(bench.train_from(make_agent()).trainable)
    randomise(weights, seed=3)
    return bench, Policy(make_agent(), "positive", bench.write_weights("weights", weights))


def test_adapter_that_peft_loads_as_another_model_is_not_handed_out(
    bench_policy: tuple[Workbench, Policy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, policy = bench_policy

    def spoil(change: dict[str, Any]) -> str:
        write = publishing.write_adapter

        def written(model: Any, folder: Path, **base: Any) -> None:
            write(model, folder, **base)
            file = folder / "adapter_config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), **change}))

        with monkeypatch.context() as patch:
            patch.setattr(publishing, "write_adapter", written)
            with pytest.raises(ModelError) as raised:
                publish(policy, tmp_path / "out", bench.pool, "card")
        assert not (tmp_path / "out").exists()
        return str(raised.value)

    head = f"student: its adapter over {policy.agent.base.name} cannot be handed out, since "
    assert spoil({"lora_alpha": 1}).startswith(f"{head}with PEFT its logits are off by ")
    refused = spoil({"target_modules": ["nothing"]})
    assert refused.startswith(f"{head}PEFT cannot load it (Target modules ")
    assert refused.endswith("Name other layers in tuning.targets, such as q_proj and v_proj")
