"""Want of memory: a part of the work that does not fit is divided and done again, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from macpo import memory
from macpo.agents import Policy
from macpo.config import DPOConfig, EngineConfig, SFTConfig, TuningConfig
from macpo.errors import ModelError, SmallestBudgetError
from macpo.execution.single import Bench, run_stage
from macpo.generation import decode as decode_module
from macpo.generation.room import Room
from macpo.likelihood import LikelihoodEngine, Pack, PromptGroup
from macpo.memory import halved, is_out_of_memory, telling
from macpo.models.chat import Chat
from macpo.models.reward import RewardModel
from macpo.policies import WEIGHTS_FILE
from macpo.records import CompletionScore, read_jsonl
from macpo.reward.config import RewardConfig
from macpo.reward.loop import EncodedPair, RewardTrainer
from macpo.stage import Stage
from macpo.store import Artifact, Checkpoints
from macpo.training.stages import SFTOnAnswers, TrainDPO
from tests.generation.answers import answer, greedy, random_prompts
from tests.runs import python_environment
from tests.tiny import tiny_model, tiny_tokenizer
from tests.workbench import Workbench, ignore_progress, make_agent, make_pairs

TUNING = TuningConfig(rank=2, dropout=0.1)


def no_memory() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")


class Scarce:
    """Lets forward passes of more than `tokens` fail, from the pass `first` on; keeps their sizes.

    The failure comes after the pass has been computed, with everything that it holds.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokens: int, first: int = 0) -> None:
        self.sizes: list[int] = []
        plain = LikelihoodEngine._hidden

        def scarce(engine: LikelihoodEngine, pack: Pack) -> torch.Tensor:
            hidden = plain(engine, pack)
            self.sizes.append(pack.tokens)
            if pack.tokens > tokens and len(self.sizes) > first:
                raise no_memory()
            return hidden

        monkeypatch.setattr(LikelihoodEngine, "_hidden", scarce)


def stage_of(bench: Workbench, kind: str) -> Stage:
    pairs = make_pairs(7)
    start = Policy(make_agent(tuning=TUNING), "positive")
    if kind == "sft":
        answers = bench.write_answers("answers", [(p.prompt, p.chosen) for p in pairs])
        return SFTOnAnswers("sft", start, answers, SFTConfig(epochs=2, batch_size=4), seed=5)
    scores = [(r, CompletionScore(-30.0, 9)) for p in pairs for r in (p.chosen, p.rejected)]
    written, reference = bench.write_pairs("pairs", pairs), bench.write_scores("scores", scores)
    return TrainDPO("dpo", start, written, reference, DPOConfig(batch_size=4), seed=5)


def train(folder: Path, kind: str, pack_tokens: int) -> tuple[Artifact, list[str]]:
    """Train as a run would; return the artifact, and what was said."""
    bench = Workbench(folder)
    said: list[str] = []
    layout = EngineConfig(pack_tokens=pack_tokens)
    at_hand = Bench(lambda: bench.pool, layout, note=said.append)
    stage = stage_of(bench, kind)
    return run_stage(bench.store, stage, bench.artifacts, at_hand, ignore_progress), said


def assert_about_equal(found: Artifact, expected: Artifact) -> None:
    ours, theirs = (load_file(a.path / WEIGHTS_FILE) for a in (found, expected))
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in theirs) < 1e-5


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_step_that_does_not_fit_is_begun_again_as_if_the_budget_had_been_smaller(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes, with dropout: nothing of the half-done step is left, its seed is the same."""
    with monkeypatch.context() as patch:
        passes = Scarce(patch, 10**9)
        train(tmp_path / "counted", kind, 10**6)
    whole = passes.sizes[0]
    with monkeypatch.context() as patch:
        scarce = Scarce(patch, whole * 2 // 3)
        halves, said = train(tmp_path / "scarce", kind, 10**6)
    assert scarce.sizes[0] == whole
    assert max(scarce.sizes[1:]) <= whole // 2
    expected, quiet = train(tmp_path / "smaller", kind, whole // 2)
    assert halves.key == expected.key
    assert halves.digest == expected.digest
    assert quiet == []
    assert said == [
        f"out of memory (tried to allocate 2.00 GiB) with {whole:,} tokens in a pass: it goes on "
        f"with {whole // 2:,} at most; results change by rounding at most"
    ]


def test_gradients_of_packs_that_did_fit_are_not_counted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second pack of the first step fails, when the first has sent its share back."""
    with monkeypatch.context() as patch:
        scarce = Scarce(patch, 0, first=1)
        plain = LikelihoodEngine.gives_way

        def once(engine: LikelihoodEngine, error: BaseException, pack: Pack) -> bool:
            patch.undo()
            return plain(engine, error, pack)

        patch.setattr(LikelihoodEngine, "gives_way", once)
        halves, said = train(tmp_path / "scarce", "dpo", 150)
    assert len(said) == 1
    assert len(scarce.sizes) == 2
    budget = min(150, scarce.sizes[1]) // 2
    assert halves.digest == train(tmp_path / "smaller", "dpo", budget)[0].digest


def test_without_dropout_the_numbers_are_those_of_the_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.test_memory.TUNING", TuningConfig(rank=2))
    expected, _ = train(tmp_path / "whole", "dpo", 10**6)
    Scarce(monkeypatch, 100, first=1)  # not from the first step on
    halves, said = train(tmp_path / "scarce", "dpo", 10**6)
    assert said
    assert_about_equal(halves, expected)
    logs = [list(read_jsonl(a.path / "log.jsonl")) for a in (halves, expected)]
    for ours, theirs in zip(*logs, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    with pytest.MonkeyPatch.context() as patch:  # found by its key, whatever the budget was
        patch.setattr(TrainDPO, "run", None)
        bench = Workbench(tmp_path / "scarce")
        assert bench.run(stage_of(bench, "dpo")).digest == halves.digest


def test_an_example_that_does_not_fit_alone_is_one_line_that_says_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scarce = Scarce(monkeypatch, 0)
    with pytest.raises(ModelError, match=r"^dpo: out of memory \(tried to allocate") as caught:
        train(tmp_path, "dpo", 10**6)
    for option in ("limits.prompt_tokens", "limits.response_tokens", "checkpoint_activations"):
        assert option in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(scarce.sizes) <= 4  # a batch of 4 is halved twice, and then given up


def test_other_errors_are_raised_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(engine: LikelihoodEngine, pack: Pack) -> torch.Tensor:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(LikelihoodEngine, "_hidden", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(tmp_path, "sft", 2048)


def groups(count: int) -> list[PromptGroup]:
    return [
        PromptGroup(tuple(range(3, 9 + i)), tuple((5,) * (2 + i % 3) for _ in range(2)))
        for i in range(count)
    ]


def test_scores_are_those_of_the_undisturbed_pass_and_every_group_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    expected = LikelihoodEngine(model).score(groups(9))
    told: list[int] = []
    said: list[str] = []
    Scarce(monkeypatch, 30)
    engine = LikelihoodEngine(model)
    with telling(said.append):
        found = engine.score(groups(9), told.append)
    assert sum(told) == 9
    assert 0 < len(said) < 5
    assert engine.pack_tokens <= 30
    for ours, theirs in zip(found, expected, strict=True):
        assert [s.tokens for s in ours] == [s.tokens for s in theirs]
        wanted = [s.sum_logprob for s in theirs]
        assert [s.sum_logprob for s in ours] == pytest.approx(wanted, abs=1e-5)


def test_answers_that_do_not_fit_side_by_side_grow_fewer_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, prompts = tiny_model(), random_prompts((1, 2, 40, 17, 33, 5, 21, 3))
    expected = answer(model, prompts, greedy(12))
    plain = decode_module.step
    rows: list[int] = []

    def scarce(model: Any, cache: Any, tokens: Any, lengths: Any) -> Any:
        rows.append(len(tokens))
        if len(tokens) > 2 and len(rows) > 3:
            raise no_memory()
        return plain(model, cache, tokens, lengths)

    monkeypatch.setattr(decode_module, "step", scarce)
    said: list[str] = []
    told: list[int] = []
    room = Room()
    with telling(said.append):
        assert answer(model, prompts, greedy(12), room=room, progress=told.append) == expected
    assert sum(told) == len(prompts)
    assert [text.partition(": it goes")[0].rpartition(" with ")[2] for text in said] == [
        "8 answers at once",
        "4 answers at once",
    ]
    rows.clear()
    assert answer(model, prompts, greedy(12), room=room) == expected
    assert max(rows) == 2  # what was found out is not tried again


def test_generate_goes_on_with_smaller_batches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from macpo.generation import fallback

    model, prompts = tiny_model(), random_prompts((1, 2, 40, 17))
    request: dict[str, Any] = {
        "stop_ids": frozenset({1}),
        "sampling": greedy(6),
        "seeds": [0] * 4,
        "memory_gib": 1.0,
        "pack_tokens": 2048,
    }
    expected = fallback.decode_by_generate(model, prompts, **request)
    plain = fallback._left_padded
    sizes: list[int] = []

    def scarce(batch: Any, device: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > 2:  # trials have fewer
            model.generate = fail
        return plain(batch, device)

    def fail(*given: Any, **more: Any) -> Any:
        del model.generate
        raise no_memory()

    monkeypatch.setattr(fallback, "_left_padded", scarce)
    said: list[str] = []
    with telling(said.append):
        assert fallback.decode_by_generate(model, prompts, **request) == expected
    assert len(said) == 1
    assert max(sizes[-2:]) == 2


def test_one_answer_that_does_not_fit_is_one_line_that_says_what_to_lower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def scarce(*given: Any) -> Any:
        raise no_memory()

    monkeypatch.setattr(decode_module, "step", scarce)
    with pytest.raises(SmallestBudgetError, match=r"one answer at a time .*max_new_tokens") as why:
        answer(tiny_model(), random_prompts((4, 5)), greedy(6))
    assert "\n" not in str(why.value)


def test_rewards_are_those_of_larger_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def forward(self: RewardModel, batch: list[list[int]]) -> torch.Tensor:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise no_memory()
        return torch.tensor([float(sum(ids)) for ids in batch])

    monkeypatch.setattr(RewardModel, "forward", forward)
    reward = RewardModel(tiny_model(), Chat(tiny_tokenizer()))
    rows = [[i] * (1 + i % 4) for i in range(1, 10)]
    told: list[int] = []
    with telling(lambda text: None):
        assert reward.score(rows, 1000, told.append) == [float(sum(ids)) for ids in rows]
    assert sum(told) == len(rows)
    assert max(sizes[3:]) <= 2


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (no_memory(), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_want_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_nothing_is_divided_for_another_error() -> None:
    heard: list[str] = []
    with telling(heard.append):
        assert halved(ValueError("x"), 8, 2, "tokens", "advice") is None
        assert halved(SmallestBudgetError("given up"), 8, 2, "tokens", "advice") is None
    assert heard == []


def test_without_a_listener_a_smaller_budget_is_a_warning(caplog: Any) -> None:
    tell: Callable[[], object] = lambda: halved(MemoryError(), 8, 2, "tokens in a pass", "")  # noqa: E731
    assert tell() == 4
    assert "out of memory with 8 tokens in a pass: it goes on with 4" in caplog.text
    memory.release()  # without a GPU there is nothing to give back but Python's own


class Toy(torch.nn.Module):
    """A reward model of one number for each of ten words."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Parameter(torch.linspace(-1, 1, 10))

    def forward(self, rows: list[tuple[int, ...]]) -> torch.Tensor:
        return torch.stack([self.words[list(row)].mean() for row in rows])


@pytest.mark.parametrize("most", [None, 3])
def test_a_reward_models_step_is_begun_again_from_clean_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int | None
) -> None:
    """The second part of a batch of 8 pairs does not fit, after the first has been sent back."""
    pairs = [EncodedPair((i % 10,) * 4, ((3 * i + 1) % 10,) * 4) for i in range(16)]

    def fit(folder: Path, batch_tokens: int) -> tuple[torch.Tensor, list[int]]:
        config = RewardConfig(
            name="toy",
            model={"source": "unused"},
            data={"source": "unused"},
            batch_tokens=batch_tokens,
            optimizer={"epochs": 1, "batch_size": 8, "learning_rate": 0.1},
        )
        reward: Any = SimpleNamespace(model=(model := Toy()), forward=model)
        trainer = RewardTrainer(reward, pairs, config, Checkpoints(folder), lambda *told: None)
        trainer.train()
        return model.words.detach(), sizes

    sizes: list[int] = []
    plain = RewardTrainer._rewards

    def scarce(trainer: RewardTrainer, part: list[EncodedPair]) -> Any:
        sizes.append(len(part))
        if most is not None and len(sizes) > 1 and len(part) > most:
            raise no_memory()
        return plain(trainer, part)

    expected, _ = fit(tmp_path / "smaller", 16 if most else 32)
    sizes.clear()
    monkeypatch.setattr(RewardTrainer, "_rewards", scarce)
    with telling(lambda text: None):
        found, _ = fit(tmp_path / "scarce", 32)
    assert torch.equal(found, expected)
    assert sizes == ([4, 4, 2, 2, 2, 2] + [2] * 4 if most else [4] * 4)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits data as Linux does")
def test_what_the_allocator_itself_refuses_is_divided(tmp_path: Path) -> None:
    """No failure is injected: the operating system lets the process have too little for all."""
    root = Path(__file__).resolve().parents[1]
    environment = python_environment(OMP_NUM_THREADS="1", MALLOC_MMAP_THRESHOLD_=str(1 << 20))
    environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], str(root)])
    command = [sys.executable, "-W", "ignore", "-m", "tests.scarce_memory", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])

    trained, answered = found["train"], found["answer"]
    assert min(trained["bytes"], answered["bytes"]) > 50 << 20
    for said, what in (
        (trained["said"], "tokens in a pass"),
        (answered["said"], "answers at once"),
    ):
        assert said
        assert all(text.startswith("out of memory") and what in text for text in said)
    assert trained["narrowed"] == trained["smaller"]  # the same bytes
    assert trained["quiet"] == []
    assert answered["equal"]
