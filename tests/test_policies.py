"""Policies: one base in memory, and whichever was asked for last stands in it exactly."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from macpo import policies
from macpo.agents import Agent, Policy, assemble_team
from macpo.config import TuningConfig, load_config
from macpo.data.stages import content_digest
from macpo.errors import ModelError
from macpo.execution.local import LocalExecutor
from macpo.likelihood import PromptGroup
from macpo.methods.build import build_plan
from macpo.models.loading import load_model
from macpo.policies import (
    LoadedPolicy,
    PolicyPool,
    expected_bytes,
    restore,
    save_weights,
    snapshot,
)
from macpo.stage import Stage
from macpo.store import RunLock, Store
from tests.likelihood.plain import make_model, plain_sums
from tests.runs import write_config
from tests.test_resume import Quiet
from tests.tiny import tiny_tokenizer
from tests.workbench import CPU, Workbench, make_agent, model_folder, randomise

GROUPS = [PromptGroup((5, 9, 44, 2), ((17, 3, 250), (8,))), PromptGroup((3,), ((4, 5, 6, 7),))]
LORA = TuningConfig(rank=4)
FULL = TuningConfig(kind="full")


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def sums(loaded: LoadedPolicy) -> Tensor:
    scores = loaded.engine(64).score(GROUPS)
    return torch.tensor([score.sum_logprob for of_group in scores for score in of_group])


def some_weights(bench: Workbench, agent: Agent, seed: int) -> Stage:
    """Commit random weights for an agent's policies."""
    weights = snapshot(bench.train_from(agent).trainable)
    randomise(weights, seed)
    return bench.write_weights(f"weights {seed}", weights)


def bare_sums(folder: Path) -> Tensor:
    model = load_model(make_agent(folder).base, torch.float32, CPU)
    with torch.no_grad():
        return torch.cat(plain_sums(model, GROUPS)).float()


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_swapping_policies_back_and_forth_restores_each_exactly(
    bench: Workbench, tuning: TuningConfig
) -> None:
    agent = make_agent(tuning=tuning)
    policies = {
        "positive": Policy(agent, "positive", some_weights(bench, agent, 1)),
        "negative": Policy(agent, "negative", some_weights(bench, agent, 2)),
        "base": Policy(agent, "positive"),
    }
    first = {name: sums(bench.pool.load(policy)) for name, policy in policies.items()}
    assert (first["positive"] - first["negative"]).abs().max() > 0.1
    assert (first["positive"] - first["base"]).abs().max() > 0.1
    for name in ("negative", "positive", "base", "base", "negative", "base", "positive"):
        assert torch.equal(sums(bench.pool.load(policies[name])), first[name])


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_positive_negative_and_reference_share_one_base(
    bench: Workbench, tuning: TuningConfig
) -> None:
    agent = make_agent(tuning=tuning)
    positive = bench.pool.load(Policy(agent, "positive", some_weights(bench, agent, 1)))
    negative = bench.pool.load(Policy(agent, "negative", some_weights(bench, agent, 2)))
    reference = bench.pool.load(Policy(agent, "positive"))
    assert positive.model is negative.model is reference.model
    # The same base under another agent's name is the same memory, too.
    other = bench.pool.load(Policy(make_agent(name="teacher", tuning=tuning), "positive"))
    assert other.model is positive.model


def test_lora_trains_nothing_but_the_adapter(bench: Workbench) -> None:
    loaded = bench.train_from(make_agent(tuning=LORA))
    assert len(loaded.trainable) == 2 * 2 * 2  # layers, (q_proj, v_proj), (A, B)
    assert all(".lora_" in name for name in loaded.trainable)
    trains = [p for p in loaded.model.parameters() if p.requires_grad]
    assert {id(p) for p in trains} == {id(p) for p in loaded.trainable.values()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_bare_policy_is_the_bare_model(bench: Workbench, tuning: TuningConfig, tied: bool) -> None:
    folder = model_folder(tied=tied)
    agent = make_agent(folder, tuning=tuning)
    bench.pool.load(Policy(agent, "positive", some_weights(bench, agent, 1)))
    found = sums(bench.pool.load(Policy(agent, "negative")))
    assert torch.allclose(found, bare_sums(folder), rtol=0, atol=1e-4)


def test_training_starts_at_the_bare_model(bench: Workbench) -> None:
    loaded = bench.train_from(make_agent(tuning=LORA), seed=5)
    assert torch.allclose(sums(loaded), bare_sums(model_folder()), rtol=0, atol=1e-4)


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_what_training_does_to_the_weights_stays_out_of_other_policies(
    bench: Workbench, tuning: TuningConfig
) -> None:
    agent = make_agent(tuning=tuning)
    policy = Policy(agent, "positive", some_weights(bench, agent, 1))
    base = Policy(agent, "positive")
    before = {p: sums(bench.pool.load(p)) for p in (policy, base)}
    for start in (policy, base):
        training = bench.pool.load_for_training(start, 0)
        assert torch.allclose(sums(training), before[start], rtol=0, atol=1e-4)
        randomise(training.trainable, 3)
        for other in (start, policy, base):
            assert torch.equal(sums(bench.pool.load(other)), before[other])


def fresh_adapter(folder: Path, seed: int, targets: tuple[str, ...]) -> dict[str, Tensor]:
    agent = make_agent(tuning=TuningConfig(rank=4, targets=targets))
    return snapshot(Workbench(folder).train_from(agent, seed).trainable)


def test_fresh_adapter_is_a_function_of_the_seed_alone(tmp_path: Path, bench: Workbench) -> None:
    torch.manual_seed(1)
    first = fresh_adapter(tmp_path / "1", 7, ("q_proj", "v_proj"))
    torch.manual_seed(2)
    agent = make_agent(tuning=TuningConfig(rank=4))
    used = bench.train_from(agent, 99)  # a pool that has trained something else before
    randomise(used.trainable, 0)
    again = snapshot(bench.train_from(agent, 7).trainable)
    other = fresh_adapter(tmp_path / "3", 8, ("q_proj", "v_proj"))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor, other[name]) == (".lora_B." in name)


def test_fresh_adapter_is_drawn_as_peft_draws_it(tmp_path: Path) -> None:
    """B is zero; A is uniform within 1/sqrt(fan-in): 32 for q_proj, 64 for down_proj."""
    adapter = fresh_adapter(tmp_path, 7, ("q_proj", "down_proj"))
    for name, tensor in adapter.items():
        if ".lora_B." in name:
            assert not tensor.any()
        else:
            fan_in = 64 if "down_proj" in name else 32
            assert tensor.shape == (4, fan_in)
            assert 0.8 * fan_in**-0.5 < tensor.abs().max() <= fan_in**-0.5
            assert abs(tensor.mean()) < 0.3 * fan_in**-0.5


def test_drawing_an_adapter_leaves_the_global_random_state_to_others(bench: Workbench) -> None:
    agent = make_agent(tuning=LORA)
    bench.train_from(agent)
    state = torch.get_rng_state()
    bench.train_from(agent, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_is_off_until_training_turns_it_on(bench: Workbench) -> None:
    agent = make_agent(tuning=TuningConfig(rank=4, dropout=0.5))
    policy = bench.pool.load(Policy(agent, "positive", some_weights(bench, agent, 1)))
    assert torch.equal(sums(policy), sums(policy))


def test_adapter_over_bfloat16_is_float32(bench: Workbench) -> None:
    loaded = bench.train_from(make_agent(tuning=LORA, dtype="bfloat16"))
    assert {p.dtype for p in loaded.trainable.values()} == {torch.float32}
    frozen = {p.dtype for p in loaded.model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}


def test_saved_weights_have_the_same_bytes_whatever_the_order(
    bench: Workbench, tmp_path: Path
) -> None:
    trainable = dict(bench.train_from(make_agent(tuning=LORA)).trainable)
    save_weights(trainable, tmp_path / "1")
    save_weights(dict(reversed(trainable.items())), tmp_path / "2")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize("tied", [False, True])
def test_full_weights_are_saved_whole(bench: Workbench, tied: bool) -> None:
    """Tied embeddings are one tensor; trained and restored they stay tied."""
    agent = make_agent(model_folder(tied=tied), tuning=FULL)
    policy = Policy(agent, "positive", some_weights(bench, agent, 1))
    loaded = bench.pool.load(policy)
    names = {"lm_head.weight", "model.embed_tokens.weight"} & loaded.trainable.keys()
    assert len(names) == (1 if tied else 2)
    head, embeddings = loaded.model.lm_head.weight, loaded.model.model.embed_tokens.weight
    assert (head is embeddings) == tied
    with torch.no_grad():
        plain = torch.cat(plain_sums(loaded.model, GROUPS)).float()
    assert torch.allclose(sums(loaded), plain, rtol=0, atol=5e-4)


LAYERS = "this model's linear layers are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj"


@pytest.mark.parametrize(
    ("targets", "unfit"),
    [
        (("c_attn",), "c_attn"),
        (("q_proj", "vproj"), "vproj"),  # PEFT would adapt q_proj and not mention the other
        (("q_proj", "lm_head"), "lm_head"),  # the engine would not see its adapter
        (("embed_tokens",), "embed_tokens"),
        (("input_layernorm",), "input_layernorm"),
    ],
)
def test_targets_that_fit_no_layer_are_refused(
    bench: Workbench, targets: tuple[str, ...], unfit: str
) -> None:
    agent = make_agent(tuning=TuningConfig(targets=targets))
    with pytest.raises(ModelError) as raised:
        bench.pool.load(Policy(agent, "positive"))
    assert str(raised.value) == (
        f"{agent.base.name}: tuning.targets: {unfit} fits no layer that can be adapted; "
        f"{LAYERS}, v_proj"
    )


def test_targets_may_name_part_of_a_path_or_all(bench: Workbench) -> None:
    some = bench.train_from(make_agent(tuning=TuningConfig(targets=("0.self_attn.q_proj",))))
    assert len(some.trainable) == 2
    every = bench.train_from(make_agent(tuning=TuningConfig(targets=("all-linear",))))
    assert len(every.trainable) == 2 * 2 * 7
    assert not any("lm_head" in name for name in every.trainable)


def saved_folder(path: Path, name: str) -> Path:
    """Save a tiny model that tests/tiny.py does not have, with a tokenizer."""
    make_model(name).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_gpt2s_linear_layers_are_found(bench: Workbench, tmp_path: Path) -> None:
    """They are Conv1D, whose weight is transposed."""
    folder = saved_folder(tmp_path / "gpt2", "gpt2")
    agent = make_agent(folder, tuning=TuningConfig(targets=("c_attn",)))
    loaded = bench.train_from(agent)
    assert len(loaded.trainable) == 4
    assert expected_bytes(agent) == sum(4 * p.numel() for p in loaded.model.parameters())
    with pytest.raises(ModelError, match=r"linear layers are c_attn, c_fc, c_proj$"):
        bench.train_from(make_agent(folder, tuning=TuningConfig(targets=("q_proj",))))


def test_what_peft_refuses_is_reported_with_its_reason(bench: Workbench, tmp_path: Path) -> None:
    folder = saved_folder(tmp_path / "mamba", "mamba")
    agent = make_agent(folder, tuning=TuningConfig(targets=("out_proj",)))
    with pytest.raises(ModelError) as raised:
        bench.train_from(agent)
    text = str(raised.value)
    assert text.startswith("mamba: PEFT cannot adapt out_proj (")
    assert text.endswith("); change tuning.targets")


def test_weights_of_another_adapter_are_refused(bench: Workbench) -> None:
    agent = make_agent(tuning=LORA)
    fitting = Policy(agent, "positive", some_weights(bench, agent, 1))
    expected = sums(bench.pool.load(fitting))
    weights = snapshot(bench.train_from(agent).trainable)
    name = list(weights)[-1]  # all others are written before it is found out
    renamed = {f"x.{n}" if n == name else n: tensor for n, tensor in weights.items()}
    reshaped = {n: tensor[:2] if n == name else tensor for n, tensor in weights.items()}
    for label, unfit, message in (
        ("renamed", renamed, f"saved weights do not fit the model: {name} is only on one side"),
        (
            "reshaped",
            reshaped,
            f"saved weights do not fit the model: {name} is (2, 4), the model has (16, 4)",
        ),
    ):
        stage = bench.write_weights(label, unfit)
        with pytest.raises(ModelError) as raised:
            bench.pool.load(Policy(agent, "positive", stage))
        assert str(raised.value) == message
        assert torch.equal(sums(bench.pool.load(fitting)), expected)  # nothing half-written stays


def test_restoring_copies_and_does_not_alias() -> None:
    parameters = {"a": torch.nn.Parameter(torch.zeros(2))}
    saved = {"a": torch.ones(2)}
    restore(parameters, saved)
    taken = snapshot(parameters)
    saved["a"].fill_(5)
    restore(parameters, {"a": torch.full((2,), 3.0)})
    assert taken["a"].tolist() == [1, 1]
    assert parameters["a"].tolist() == [3, 3]


def test_bases_stay_in_memory_while_they_fit(tmp_path: Path) -> None:
    one, two, three = (make_agent(model_folder(seed=seed), tuning=LORA) for seed in (0, 1, 2))
    size = sum(4 * p.numel() for p in Workbench(tmp_path / "0").train_from(one).model.parameters())
    pool = Workbench(tmp_path / "1", memory_bytes=int(2.5 * size)).pool

    def model(agent: Agent) -> int:
        return id(pool.load(Policy(agent, "positive")).model)

    kept = {agent.base.location: pool.load(Policy(agent, "positive")) for agent in (one, two)}
    assert model(one) == id(kept[one.base.location].model)  # used last
    pool.load(Policy(three, "positive"))  # two goes
    assert model(one) == id(kept[one.base.location].model)
    assert model(two) != id(kept[two.base.location].model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tuning", [LORA, TuningConfig(targets="all-linear"), FULL], ids=repr)
def test_size_of_a_base_is_known_from_its_config(
    bench: Workbench, tuning: TuningConfig, dtype: str
) -> None:
    for folder in (model_folder(), model_folder(tied=True)):
        agent = make_agent(folder, tuning=tuning, dtype=dtype)
        model = bench.pool.load(Policy(agent, "positive")).model
        taken = sum(p.numel() * p.element_size() for p in model.parameters())
        assert expected_bytes(agent) == taken


class Held:
    """Counts the base models in memory at the moment when another one is about to be loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alive: list[int] = []
        self._models: list[weakref.ref[Any]] = []
        monkeypatch.setattr("macpo.policies.load_model", self._load)

    def _load(self, *args: Any) -> Any:
        self.alive.append(sum(model() is not None for model in self._models))
        model = load_model(*args)
        self._models.append(weakref.ref(model))
        return model


def test_room_is_made_before_the_next_base_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = [make_agent(model_folder(seed=seed), tuning=LORA) for seed in (0, 1, 2)]
    size = expected_bytes(agents[0])

    held = Held(monkeypatch)
    pool = Workbench(tmp_path / "one", memory_bytes=int(1.5 * size)).pool
    for agent in (*agents, *agents):
        pool.load(Policy(agent, "positive"))
    assert held.alive == [0] * 6

    held = Held(monkeypatch)
    pool = Workbench(tmp_path / "two", memory_bytes=2 * size).pool
    for agent in agents:
        pool.load(Policy(agent, "positive"))
    assert held.alive == [0, 1, 1]


def test_whole_run_in_room_for_one_base_never_holds_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write_config(tmp_path), ["rounds=1"])
    team = assemble_team(config, config.dtype, fetch=True)
    plan = build_plan(config, team, content_digest(config.data, fetch=True))
    store = Store(tmp_path / "store")
    executor = LocalExecutor(tmp_path / "run", store, config.engine, CPU, Quiet())
    largest = max(expected_bytes(agent) for agent in team.agents)
    monkeypatch.setattr("macpo.policies._half_of_free_memory", lambda device: largest)
    held = Held(monkeypatch)

    with RunLock(tmp_path / "run" / "lock"):
        executor.execute(plan)

    assert len(held.alive) > 6
    assert set(held.alive) == {0}


def test_weights_go_straight_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    plain = transformers.AutoModelForCausalLM.from_pretrained

    def watch(*args: Any, **options: Any) -> Any:
        asked.append(options.get("device_map"))
        return plain(*args, **options)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", watch)

    model = load_model(make_agent().base, torch.float32, "cpu")

    assert asked == [CPU]
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device for tensor in tensors} == {CPU}
    assert not model.training


def test_base_larger_than_the_memory_is_loaded_all_the_same(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, memory_bytes=1)
    for seed in (0, 1):
        agent = make_agent(model_folder(seed=seed), tuning=LORA)
        found = sums(bench.pool.load(Policy(agent, "positive")))
        assert torch.allclose(found, bare_sums(model_folder(seed=seed)), rtol=0, atol=1e-4)


def test_chat_is_loaded_once_and_without_weights(bench: Workbench, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer-only"
    tiny_tokenizer().save_pretrained(folder)
    agent = make_agent(folder)
    assert bench.pool.chat(agent) is bench.pool.chat(agent)
    vicuna = bench.pool.chat(make_agent(folder, chat_template="vicuna"))
    assert vicuna.fingerprint != bench.pool.chat(agent).fingerprint


def test_pool_without_a_limit_takes_half_of_the_free_memory(tmp_path: Path) -> None:
    pool = PolicyPool(CPU, lambda key: tmp_path / key)
    first = pool.load(Policy(make_agent(model_folder(seed=0)), "positive"))
    pool.load(Policy(make_agent(model_folder(seed=1)), "positive"))
    assert pool.load(Policy(make_agent(model_folder(seed=0)), "positive")).model is first.model


class Helper:
    """A companion that remembers whether it works."""

    def __init__(self) -> None:
        self.works = True

    def close(self) -> None:
        self.works = False


def test_companions_are_kept_while_there_is_room_and_go_the_oldest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Workbench(tmp_path).pool
    monkeypatch.setattr(policies, "_free_memory", lambda: 100)
    first, second = (pool.companion(name, 50, Helper) for name in ("first", "second"))

    assert pool.companion("first", 50, Helper) is first  # so the second is the oldest now
    monkeypatch.setattr(policies, "_free_memory", lambda: 10 if second.works else 60)
    third = pool.companion("third", 50, Helper)

    assert (first.works, second.works, third.works) == (True, False, True)
    pool.close()
    assert not first.works
    assert not third.works
