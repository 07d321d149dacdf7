"""From whichever step a training goes on, all that follows is bitwise that of the unbroken one.

Every loss, with rows that batches divide and that they do not, from early, from an epoch's end and
from inside the next: the order of the data, the learning rates, the weights, AdamW's state.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from macpo.config import DPOConfig, EngineConfig, SFTConfig, TuningConfig
from macpo.config.training import Loss
from macpo.likelihood import LikelihoodEngine, Pack
from macpo.policies import LoadedPolicy, snapshot
from macpo.scoring import encode_group
from macpo.store import Checkpoints
from macpo.training.loop import Trainer
from macpo.training.objectives import (
    ConfidentObjective,
    DPOObjective,
    ExampleLosses,
    LogRatioObjective,
    Objective,
    SFTObjective,
)
from macpo.training.schedule import steps_per_epoch
from tests.workbench import Workbench, ignore_progress, make_agent, make_pairs

BATCH, EPOCHS = 2, 2
AGENT = make_agent(tuning=TuningConfig(rank=2, dropout=0.1))


@dataclass
class Recording:
    """An objective that keeps which examples were scored when."""

    plain: Objective
    order: list[tuple[float, list[int]]] = field(default_factory=list)

    @property
    def groups(self) -> Sequence[Any]:
        return self.plain.groups

    def forward(
        self, engine: LikelihoodEngine, pack: Pack, indices: Sequence[int], progress: float
    ) -> ExampleLosses:
        self.order.append((progress, list(indices)))
        return self.plain.forward(engine, pack, indices, progress)


def objective_of(kind: str, rows: int, loaded: LoadedPolicy) -> Objective:
    pairs = make_pairs(rows)
    both = [encode_group(loaded.chat, AGENT, p.prompt, (p.chosen, p.rejected)) for p in pairs]
    one = [encode_group(loaded.chat, AGENT, p.prompt, (p.chosen,)) for p in pairs]
    numbers = torch.linspace(-40.0, -30.0, 2 * rows).view(rows, 2)
    if kind == "sft":
        return SFTObjective(one)
    if kind == "confident":
        return ConfidentObjective(one, 0.5, 0.5, 0.2)
    if kind == "log-ratio":
        return LogRatioObjective(one, numbers[:, 0], numbers[:, 1] / 10, 0.1)
    weights = torch.linspace(0.2, 1.0, rows) if kind == "sigmoid" else None
    ends = torch.ones(rows, 2) if kind == "ipo-mean" else None
    return DPOObjective(both, numbers, 0.1, 0.1, kind, 0.1, weights, ends)  # type: ignore[arg-type]


@dataclass(frozen=True)
class End:
    """All that a training leaves."""

    order: list[tuple[float, list[int]]]
    log: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]
    moments: list[dict[str, torch.Tensor]]


def train(
    bench: Workbench, kind: str, rows: int, folder: Path, progress: Callable[..., None]
) -> End:
    """Train as a new process would, from the checkpoint in a folder if there is one."""
    loaded = bench.train_from(AGENT, seed=3)
    shape: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": 1e-2}
    config = DPOConfig(**shape) if kind in get_args(Loss) else SFTConfig(**shape)
    objective = Recording(objective_of(kind, rows, loaded))
    trainer = Trainer(
        loaded,
        objective,
        config,
        seed=5,
        engine=EngineConfig(checkpoint_steps=1),
        checkpoints=Checkpoints(folder),
        progress=progress,
    )
    log = trainer.train()
    moments = [dict(trainer.optimizer.state[p]) for p in trainer.parameters]
    return End(objective.order, log, snapshot(loaded.trainable), moments)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench(tmp_path_factory.mktemp("grid"))


@pytest.mark.parametrize("rows", [4, 5], ids=["divisible", "not-divisible"])
@pytest.mark.parametrize("kind", ["sft", "confident", "log-ratio", *get_args(Loss)])
def test_going_on_from_any_step_is_bitwise_the_unbroken_training(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rows: int
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # nothing is killed here
    epoch = steps_per_epoch(rows, BATCH)
    stops = (1, epoch, epoch + 1)  # early, at an epoch's end, inside the next
    whole = tmp_path / "whole"

    def keep(done: int, total: int, **fields: float) -> None:
        """Keep the checkpoint of the step before, which is the newest one."""
        if done - 1 in stops:
            name = f"step-{done - 1:08d}"
            shutil.copytree(whole / name, tmp_path / str(done - 1) / name)

    expected = train(bench, kind, rows, whole, keep)
    steps = EPOCHS * epoch
    assert len(expected.log) == steps
    assert len({row["learning_rate"] for row in expected.log}) > 1
    for stop in stops:
        found = train(bench, kind, rows, tmp_path / str(stop), ignore_progress)
        assert found.order == [made for made in expected.order if made[0] >= stop / steps]
        assert found.log == expected.log  # loss, learning rate, gradient's norm of every step
        for name, weight in expected.weights.items():
            assert torch.equal(found.weights[name], weight), name
        for ours, theirs in zip(found.moments, expected.moments, strict=True):
            assert ours.keys() == theirs.keys() == {"step", "exp_avg", "exp_avg_sq"}
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_comparison_can_fail(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments that are not restored give other weights."""
    whole = train(bench, "sft", 4, tmp_path / "whole", ignore_progress)
    monkeypatch.setattr(Trainer, "_restore_moments", lambda trainer, named: None)
    forgetful = train(bench, "sft", 4, tmp_path / "whole", ignore_progress)
    name = next(iter(whole.weights))
    assert not torch.equal(forgetful.weights[name], whole.weights[name])
