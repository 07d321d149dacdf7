"""Estimates of operations and memory, against numbers worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from macpo.config import EngineConfig, TuningConfig
from macpo.models.sources import ResolvedModel
from macpo.planning.costs import GIB, ModelShape, flops, model_shape
from macpo.planning.memory import Model, answering, serving, training
from macpo.work import Work
from tests.likelihood.plain import make_model
from tests.tiny import tiny_folder
from tests.workbench import make_agent


def test_operations() -> None:
    # 1,000 weights; 10 read, 1 written, 5 trained tokens: 2 x 11 + 4 x 5 = 42 a weight
    work = Work(read=10, written=1, trained=5)

    assert flops(work, 1000, "lora") == 42_000
    assert flops(work, 1000, "full") == 52_000


def test_operations_of_a_head_are_those_of_tokens_that_are_predicted() -> None:
    # body 1,000 x 42 as above; head 100 x (2 x (4 scored + 1 written) + 4 x 2 learned) = 1,800
    work = Work(read=10, written=1, trained=5, scored=4, learned=2)

    assert flops(work, 1000, "lora", head=100) == 42_000 + 1_800


def shape(**changes: int) -> ModelShape:
    values = {
        "layers": 2,
        "hidden": 10,
        "intermediate": 20,
        "heads": 0,
        "key_values": 8,
        "vocabulary": 0,
        "met": 0,
        "largest": GIB // 8,
        "adapter": GIB // 16,
    }
    return ModelShape(**values | changes)


def test_memory_of_lora_in_training() -> None:
    # 2 layers x (4.2 x 10 + 3 x 20 + 8) numbers x 4 bytes = 880 bytes a token: 1 GiB
    engine = EngineConfig(pack_tokens=GIB // 880)
    model = Model(GIB // 4, "float32", "lora", shape())

    parts = training(model, engine, longest=1, on_cpu=True)

    assert parts is not None
    assert parts.weights == 1.0
    assert (parts.adapters, parts.gradients, parts.optimizer) == (0.25, 0.25, 0.5)
    assert parts.activations == pytest.approx(1, abs=1e-3)
    assert parts.total == pytest.approx(1 + 1 + 1 + 0.6, abs=1e-3)


def test_memory_of_full_training_has_gradients_and_moments_of_all_weights() -> None:
    parts = training(Model(GIB // 4, "float32", "full", shape()), EngineConfig(), longest=1)

    assert parts is not None
    assert (parts.weights, parts.adapters) == (1.0, 0.0)
    assert (parts.gradients, parts.optimizer) == (1.0, 2.0)


def test_adapters_over_bfloat16_keep_float32_copies_of_what_goes_in() -> None:
    engine = EngineConfig(pack_tokens=GIB)
    model = Model(GIB // 4, "bfloat16", "lora", shape(adapted=40, adapted_apart=20))

    parts = training(model, engine, longest=1)

    # 2 layers x (6.2 x 10 + 3 x 20 + 8, and 2 x 8 gathered) numbers x 2 bytes + 40 x 4 bytes
    assert parts is not None
    assert parts.weights == 0.5
    assert parts.activations == pytest.approx(2 * 146 * 2 + 160)
    assert parts.overhead == pytest.approx(1 + 0.05 * (parts.total - parts.overhead))


def test_activations_computed_again_leave_the_input_of_every_layer_and_one_layer_whole() -> None:
    engine = EngineConfig(pack_tokens=GIB, checkpoint_activations=True)
    model = Model(GIB // 4, "bfloat16", "lora", shape(layers=40))

    parts = training(model, engine, longest=1)

    assert parts is not None
    assert parts.activations == pytest.approx(40 * 10 * 2 + 146 * 2)


def test_a_divided_base_is_gathered_two_layers_and_the_head_at_a_time() -> None:
    model = Model(2 * GIB, "bfloat16", "lora", shape(hidden=1, vocabulary=GIB // 4))

    parts = training(model, EngineConfig(), longest=1, shards=4)

    # 4 GiB over 4, two layers of 1/4 GiB, a head of 1/2 GiB
    assert parts is not None
    assert parts.weights == pytest.approx(1 + 2 * 0.25 + 0.5)


def test_a_group_longer_than_a_pack_sets_the_activations() -> None:
    model = Model(GIB, "bfloat16", "lora", shape())
    short, long = (training(model, EngineConfig(pack_tokens=100), longest=n) for n in (100, 300))
    assert short is not None
    assert long is not None
    assert long.activations == 3 * short.activations


def test_memory_of_answering() -> None:
    engine = EngineConfig(decode_memory_gib=1.5)
    model = Model(GIB // 4, "float32", "lora", None)

    here = answering(model, engine, on_cpu=True)
    card = answering(model, engine)

    assert (here.weights, here.cache) == (2.0, 1.5)  # blocked copies beside the weights
    assert (card.weights, card.cache) == (1.0, 1.5)
    served = serving(Model(40 * GIB, "bfloat16", "lora", None), 2, cache_gib=6, held_gib=10)
    assert (served.weights, served.cache, served.others) == (40.0, 6, 10)
    assert served.total == 40 + 6 + 10 + 3  # vLLM's 2 beside, and a CUDA context of macpo's


def test_memory_of_a_model_of_unknown_shape() -> None:
    assert training(Model(GIB, "bfloat16", "lora", None), EngineConfig(), longest=1) is None


@pytest.mark.parametrize(
    ("dtype", "tuning"),
    [
        ("float32", TuningConfig()),
        ("bfloat16", TuningConfig()),
        ("bfloat16", TuningConfig(targets="all-linear")),
        ("float32", TuningConfig(kind="full")),
    ],
)
def test_activations_are_what_autograd_keeps(tmp_path: Path, dtype: str, tuning: Any) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from macpo.likelihood import LikelihoodEngine, PromptGroup, pack_groups

    folders = {}
    for layers in (1, 3):  # the difference is that of two layers, without embedding and head
        sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": layers}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
        folders[layers] = tmp_path / str(layers)
        LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folders[layers])
    group = PromptGroup(tuple(range(40)), ((5,) * 20, (6,) * 20))
    kept = {}
    for layers, folder in folders.items():
        from macpo.adapters import with_adapter

        causal_lm = LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        model: Any = causal_lm
        if tuning.kind == "lora":
            model = with_adapter(causal_lm.requires_grad_(False), tuning, "m")
        engine = LikelihoodEngine(model)
        [pack] = pack_groups([group], 1000)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        saved: dict[int, int] = {}

        def keep(
            tensor: torch.Tensor, saved: dict[int, int] = saved, weights: set[int] = weights
        ) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            scores = engine.score_pack(pack)
        kept[layers] = sum(saved.values())
        del scores
    agent = make_agent(folders[3], tuning=tuning, dtype=dtype)
    found = model_shape(agent)
    assert found is not None
    model = Model(0, dtype, tuning.kind, found)
    tokens = EngineConfig(pack_tokens=group.tokens)
    parts = training(model, tokens, longest=group.tokens, on_cpu=True)
    assert parts is not None
    assert parts.activations * GIB / 3 == pytest.approx((kept[3] - kept[1]) / 2, rel=0.1)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "all-linear"])
def test_shape_counts_the_adapter_that_peft_makes(tmp_path: Path, targets: Any) -> None:
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from macpo.adapters import lora_config

    folder = tiny_folder(tmp_path / "model", "mistral", layers=3)
    agent = make_agent(folder, tuning=TuningConfig(rank=4, targets=targets))

    found = model_shape(agent)

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora_config(agent.tuning))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert isinstance(model.base_model.model.lm_head, torch.nn.Linear)
    layer = sum(
        p.numel() for n, p in model.named_parameters() if ".layers.0." in n and "lora" not in n
    )
    assert found == ModelShape(
        layers=3,
        hidden=32,
        intermediate=64,
        heads=4,
        key_values=2 * 2 * 8,
        vocabulary=model.config.vocab_size,
        met=3 * layer + 32,  # and the last norm
        largest=layer,
        adapter=trained,
        adapted=3 * 32 * 2 if "q_proj" in targets else 3 * (6 * 32 + 64),
        adapted_apart=3 * 32 if "q_proj" in targets else 3 * (2 * 32 + 64),
    )
    assert found.head == 32 * model.config.vocab_size


def test_shape_of_experts_counts_those_that_a_token_meets(tmp_path: Path) -> None:
    model = make_model("mixtral")
    model.save_pretrained(tmp_path)
    found = model_shape(make_agent(tmp_path))
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    outer = sum(p.numel() for n, p in model.named_parameters() if "embed" in n or "lm_head" in n)
    whole = sum(p.numel() for p in model.parameters())
    share = model.config.num_experts_per_tok / model.config.num_local_experts
    assert experts > 0
    assert share < 1
    assert found is not None
    assert found.met == round(whole - outer - experts * (1 - share))


def test_shape_of_a_model_that_will_be_cut(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", layers=3)
    base = ResolvedModel("m[0,2]", str(folder), None, None, local=False, layers=(0, 2))

    found = model_shape(make_agent(folder, base=base))

    assert found is not None
    assert found.layers == 2


def test_shape_of_a_model_that_is_not_here() -> None:
    assert model_shape(make_agent(Path("nowhere"))) is None
