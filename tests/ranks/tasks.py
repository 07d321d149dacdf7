"""What both ranks of a test do; see `tests.ranks.partner`. Rank 0's results go to the test."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from macpo.agents import Policy
from macpo.answering import Respond
from macpo.config import DPOConfig, EngineConfig, SamplingConfig, SFTConfig, TuningConfig
from macpo.errors import MacpoError
from macpo.execution.single import Bench, help_stage, run_stage
from macpo.likelihood import LikelihoodEngine, Pack
from macpo.models.sharding import bytes_here
from macpo.policies import PolicyPool
from macpo.ranks import Ranks, group
from macpo.records import CompletionScore, PreferenceExample
from macpo.scoring import ScorePairs
from macpo.stage import Stage
from macpo.store import Artifact
from macpo.training.stages import SFTOnAnswers, TrainDPO
from tests.workbench import CPU, Workbench, make_agent, make_pairs

TUNINGS = {
    "lora": TuningConfig(rank=2, targets=("q_proj", "v_proj")),
    "dropout": TuningConfig(rank=2, dropout=0.3),
    "full": TuningConfig(kind="full"),
}


def say(ranks: Ranks, sizes: list[int]) -> list[Any]:
    """Return what ranks tell one another, in words of several lengths."""
    word = "a" if ranks.leads else "b"
    return [ranks.gather([ranks.rank, word * size, 0.1]) for size in sizes]


def hear(ranks: Ranks, size: int) -> Any:
    """Return what rank 1 hears from rank 0."""
    heard = ranks.hear("x" * size if ranks.leads else None)
    return ranks.gather(heard)[1]


def add_up(
    ranks: Ranks, numbers: list[list[float]], lengths: list[int], bucket: int
) -> list[list[Any]]:
    """Return what both ranks have of the sum of their numbers, exchanged `bucket` at a time."""
    tensors = list(torch.tensor(numbers[ranks.rank]).split(lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group, "BUCKET", bucket)
        ranks.sum(tensors)
    return ranks.gather([tensor.tolist() for tensor in tensors])


def stage_of(bench: Workbench, kind: str, tuning: str, model: str) -> Stage:
    """Return a stage; what it reads is written if it is not there."""
    policy = Policy(make_agent(Path(model), tuning=TUNINGS[tuning]), "positive")
    pairs = make_pairs(7)
    if kind == "sft":
        answers = bench.write_answers("answers", [(p.prompt, p.chosen) for p in pairs])
        config = SFTConfig(epochs=2, batch_size=4, learning_rate=1e-3)
        return SFTOnAnswers("sft", policy, answers, config, seed=5)
    if kind == "respond":
        examples = [PreferenceExample(p.prompt, "", "") for p in pairs]
        data = bench.write_examples("examples", "student", examples)
        sampling = SamplingConfig(max_new_tokens=6)
        return Respond("answers", policy, data, "student", None, sampling, seed=3)
    written = bench.write_pairs("pairs", pairs)
    if kind == "score":
        return ScorePairs("scores", policy, written)
    scores = [
        (answer, CompletionScore(-10.0 - i, 5))
        for i, pair in enumerate(pairs)
        for answer in (pair.chosen, pair.rejected)
    ]
    config = DPOConfig(epochs=2, batch_size=4, learning_rate=1e-3, gamma=0.1)
    return TrainDPO("dpo", policy, written, bench.write_scores("scores", scores), config, seed=5)


class Breaker:
    """A progress callback that raises `error` once `step` is done, on the ranks that `who` says."""

    def __init__(self, rank: int, step: int | None, error: str, who: list[int]) -> None:
        self.step = step if rank in who else None
        self.error = {"killed": SystemExit, "asked": KeyboardInterrupt}[error]

    def __call__(self, done: int, total: int, **fields: float) -> None:
        if done == self.step:
            raise self.error


def make(
    ranks: Ranks,
    folder: str,
    model: str,
    kind: str,
    tuning: str = "lora",
    step: int | None = None,
    error: str = "killed",
    who: tuple[int, ...] = (0, 1),
    differ: bool = False,
    **engine: Any,
) -> Artifact | str | None:
    """Run a stage on both ranks.

    Returns:
        The artifact; None on other ranks, or if the stage was stopped at `step`; an error's words.
    """
    bench = Workbench(Path(folder))
    if ranks.leads:
        stage = stage_of(bench, kind, tuning, model)
    ranks.gather(None)  # what the stage reads is written now
    stage = stage_of(bench, kind, tuning, model)
    if differ and not ranks.leads:
        break_training(bench)
    at_hand = Bench(lambda: bench.pool, EngineConfig(checkpoint_steps=2, **engine), ranks=ranks)
    breaker = Breaker(ranks.rank, step, error, list(who))
    work = run_stage if ranks.leads else help_stage
    with contextlib.suppress(SystemExit, KeyboardInterrupt):
        try:
            return work(bench.store, stage, bench.artifacts, at_hand, breaker)
        except MacpoError as fault:
            return str(fault)
    return None


def make_short_of_memory(ranks: Ranks, folder: str, model: str, kind: str) -> list[Any]:
    """Run a stage on both ranks, the second of which has no room for more than half of its work.

    Returns:
        The artifact, None on the second rank, and what was said to people there.
    """
    bench, said = Workbench(Path(folder)), []
    if ranks.leads:
        stage_of(bench, kind, "lora", model)
    ranks.gather(None)  # what the stage reads is written now
    stage = stage_of(bench, kind, "lora", model)
    at_hand = Bench(lambda: bench.pool, EngineConfig(), ranks=ranks, note=said.append)
    plain = LikelihoodEngine._hidden

    def scarce(engine: LikelihoodEngine, pack: Pack) -> torch.Tensor:
        hidden = plain(engine, pack)
        if not ranks.leads and len(pack.groups) > 1:
            raise MemoryError
        return hidden

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LikelihoodEngine, "_hidden", scarce)
        work = run_stage if ranks.leads else help_stage
        made = work(bench.store, stage, bench.artifacts, at_hand, lambda done, total, **more: None)
    return [made, said]


def shard(ranks: Ranks, folder: str, model: str, kinds: list[str], **engine: Any) -> list[Any]:
    """Run stages with a base that is divided among ranks, one pool for all.

    Returns:
        Bytes of weights that each rank holds, bytes of those that train, and the artifacts.
    """
    bench = Workbench(Path(folder))
    if ranks.leads:
        for kind in kinds:
            stage_of(bench, kind, "lora", model)
    ranks.gather(None)  # what the stages read is written now
    stages = [stage_of(bench, kind, "lora", model) for kind in kinds]
    bench.pool = PolicyPool(
        CPU, lambda key: bench.artifacts[key].path, ranks=ranks, sharded=ranks.size > 1
    )
    at_hand = Bench(lambda: bench.pool, EngineConfig(pack_tokens=64, **engine), ranks=ranks)
    work = run_stage if ranks.leads else help_stage
    artifacts = [
        work(bench.store, stage, bench.artifacts, at_hand, lambda done, total, **fields: None)
        for stage in stages
    ]
    loaded = bench.pool.load(Policy(make_agent(Path(model), tuning=TUNINGS["lora"]), "positive"))
    trains = sum(p.numel() * p.element_size() for p in loaded.trainable.values())
    return [ranks.gather(bytes_here(loaded.model)), trains, artifacts]


def break_training(bench: Workbench) -> None:
    """Let a pool load weights that are a little other than those of others."""
    load = bench.pool.load_for_training

    def other(policy: Policy, seed: int) -> Any:
        loaded = load(policy, seed)
        with torch.no_grad():
            next(iter(loaded.trainable.values())).view(-1)[0] += 1e-3
        return loaded

    bench.pool.load_for_training = other  # type: ignore[method-assign]
