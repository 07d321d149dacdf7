"""The loop: gradients of the mean loss whatever the packing, AdamW, clipping, and its errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from macpo.config import DPOConfig, EngineConfig, OptimizerConfig, SFTConfig, TuningConfig
from macpo.errors import TrainingError
from macpo.likelihood import PromptGroup
from macpo.policies import LoadedPolicy, snapshot
from macpo.seeds import stable_seed
from macpo.store import Checkpoints
from macpo.training.loop import Trainer, summary
from macpo.training.objectives import DPOObjective, Objective, SFTObjective
from macpo.training.schedule import batch_at, learning_rate_at
from tests.likelihood.plain import plain_sums
from tests.workbench import Workbench, make_agent, randomise

GROUPS = [
    PromptGroup((5, 9, 1, 44), ((17, 3, 250, 2), (8,))),
    PromptGroup((2,), ((40, 12), (11, 12, 13, 14, 15, 16))),
    PromptGroup((5, 9, 1, 44, 31, 32), ((6,), (7, 7, 7))),
    PromptGroup((1, 1), ((1, 1, 2), (1, 300, 1, 2))),
    PromptGroup((70,) * 12, ((9, 9, 9, 9, 9, 9, 9, 9), (4, 4))),
]
REFERENCE = torch.tensor([[-20.0, -7.0], [-13, -30], [-6, -19], [-18, -26], [-50, -11]])


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def policy_to_train(bench: Workbench, **tuning: Any) -> LoadedPolicy:
    """Return a policy with an adapter that does something already."""
    loaded = bench.train_from(make_agent(tuning=TuningConfig(**tuning)))
    if tuning.get("kind") != "full":
        randomise(loaded.trainable, 1)
    return loaded


def sft(times: int = 1) -> SFTObjective:
    return SFTObjective([PromptGroup(g.prompt, g.completions[:1]) for g in GROUPS * times])


def dpo(times: int = 1) -> DPOObjective:
    return DPOObjective(GROUPS * times, REFERENCE.repeat(times, 1), beta=0.1, gamma=0.2)


def make_trainer(
    policy: LoadedPolicy,
    objective: Objective,
    config: OptimizerConfig,
    folder: Path,
    *,
    progress: Callable[..., None] = lambda *_, **__: None,
    seed: int = 3,
    **engine: int,
) -> Trainer:
    return Trainer(
        policy,
        objective,
        config,
        seed=seed,
        engine=EngineConfig(**engine),
        checkpoints=Checkpoints(folder / "checkpoints"),
        progress=progress,
    )


def config_of(**changes: Any) -> OptimizerConfig:
    fields = {"epochs": 1, "learning_rate": 1e-3, "batch_size": len(GROUPS), "max_grad_norm": 1e6}
    return OptimizerConfig(**{**fields, **changes})


def first_gradients(trainer: Trainer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the log row of the first step and the gradients that AdamW was given in it."""
    taken: list[dict[str, Tensor]] = []

    def keep(*_: Any, **__: Any) -> None:
        trainable = trainer.policy.trainable
        taken.append({n: p.grad.clone() for n, p in trainable.items() if p.grad is not None})

    trainer.optimizer.register_step_pre_hook(keep)
    rows = trainer.train()
    return rows[0], taken[0]


def plain_loss(model: Any, objective: SFTObjective | DPOObjective) -> Tensor:
    """Return the mean over single examples, each worked out from plain forwards (float64)."""
    per_example = []
    for i, (group, sums) in enumerate(
        zip(objective.groups, plain_sums(model, objective.groups), strict=True)
    ):
        likelihood = -sums[0] / len(group.completions[0])
        if isinstance(objective, SFTObjective):
            per_example.append(likelihood)
            continue
        ratios = sums - objective.reference_sums[i]
        contrast = torch.log1p(torch.exp(-objective.beta * (ratios[0] - ratios[1])))
        per_example.append(contrast + objective.gamma * likelihood)
    return torch.stack(per_example).mean()


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("objective", [sft(times=2), dpo(times=2)], ids=["sft", "dpo"])
def test_gradient_is_that_of_the_mean_over_single_examples_whatever_the_packing(
    bench: Workbench, tmp_path: Path, objective: SFTObjective | DPOObjective, kind: str
) -> None:
    policy = policy_to_train(bench, kind=kind)
    start = snapshot(policy.trainable)
    loss = plain_loss(policy.model, objective)
    parameters = list(policy.trainable.values())
    expected = dict(zip(policy.trainable, torch.autograd.grad(loss, parameters), strict=True))
    norm = math.sqrt(sum(g.pow(2).sum().item() for g in expected.values()))
    config = config_of(batch_size=len(objective.groups))
    packs = []
    for pack_tokens in (16, 64, 4096):
        for name, parameter in policy.trainable.items():
            parameter.data.copy_(start[name])
        trainer = make_trainer(policy, objective, config, tmp_path, pack_tokens=pack_tokens)
        packs.append(len(trainer.engine.packs(objective.groups)))
        row, gradients = first_gradients(trainer)
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
        for name, gradient in expected.items():
            assert (gradients[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max(), name
    assert packs[0] > packs[1] > packs[2] == 1


def test_last_smaller_batch_is_a_mean_over_its_own_examples(
    bench: Workbench, tmp_path: Path
) -> None:
    """5 examples in batches of 4: the second step has one example, with full weight."""
    policy = policy_to_train(bench)
    trainer = make_trainer(policy, sft(), config_of(batch_size=4, learning_rate=1e-9), tmp_path)
    [left] = batch_at(1, 5, 4, stable_seed(trainer.seed, "data"))
    rows = trainer.train()
    expected = plain_loss(policy.model, SFTObjective([sft().groups[left]]))
    assert rows[1]["loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_adamw_steps_with_the_scheduled_rate_and_decays_weights(
    bench: Workbench, tmp_path: Path
) -> None:
    """The first step of AdamW is w - rate * (decay * w + g / (|g| + 1e-8)).

    Of 4 steps half are warm-up, so that the first has half of the rate.
    """
    policy = policy_to_train(bench)
    start = snapshot(policy.trainable)
    config = config_of(epochs=4, learning_rate=0.02, warmup_ratio=0.5, weight_decay=0.3)
    stepped: list[dict[str, Tensor]] = []
    trainer = make_trainer(
        policy,
        sft(),
        config,
        tmp_path,
        progress=lambda *_, **__: stepped.append(snapshot(policy.trainable)),
    )
    rows_and_gradients = first_gradients(trainer)
    rate = 0.01
    assert rows_and_gradients[0]["learning_rate"] == rate
    for name, gradient in rows_and_gradients[1].items():
        direction = gradient / (gradient.abs() + 1e-8)
        expected = start[name] - rate * (0.3 * start[name] + direction)
        assert torch.allclose(stepped[0][name], expected, rtol=0, atol=1e-5), name


def test_gradient_is_clipped_by_its_global_norm(bench: Workbench, tmp_path: Path) -> None:
    policy = policy_to_train(bench)
    row, gradients = first_gradients(
        make_trainer(policy, sft(), config_of(max_grad_norm=0.01), tmp_path)
    )
    clipped = math.sqrt(sum(g.pow(2).sum().item() for g in gradients.values()))
    assert clipped == pytest.approx(0.01, rel=1e-3)
    assert row["grad_norm"] > 0.1  # the log has the norm before clipping


def test_log_has_a_row_per_step_with_the_scheduled_rates(bench: Workbench, tmp_path: Path) -> None:
    config = config_of(epochs=3, batch_size=2, warmup_ratio=0.2)
    calls: list[tuple[int, int, set[str]]] = []
    trainer = make_trainer(
        policy_to_train(bench),
        dpo(),
        config,
        tmp_path,
        progress=lambda done, total, **fields: calls.append((done, total, set(fields))),
    )
    rows = trainer.train()
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert [row["learning_rate"] for row in rows] == [
        learning_rate_at(step, 9, config) for step in range(9)
    ]
    names = {"step", "learning_rate", "loss", "grad_norm", "dpo_loss", "sft_loss", "margin"}
    names |= {"chosen_logratio", "rejected_logratio"}
    assert all(row.keys() == names for row in rows)
    for row in rows:
        assert row["loss"] == pytest.approx(row["dpo_loss"] + 0.2 * row["sft_loss"], rel=1e-5)
    shown = {"loss", "margin", "tokens_per_second"}
    assert calls == [(step, 9, shown) for step in range(1, 10)]


def test_sft_makes_its_answers_likely(bench: Workbench, tmp_path: Path) -> None:
    policy = bench.train_from(make_agent())
    frozen = {n: p.clone() for n, p in policy.model.named_parameters() if not p.requires_grad}
    config = SFTConfig(epochs=20, learning_rate=2e-2, batch_size=2)
    rows = make_trainer(policy, sft(), config, tmp_path).train()
    first, last = rows[0]["loss"], sum(row["loss"] for row in rows[-3:]) / 3
    assert last < 0.6 * first
    for name, parameter in policy.model.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name])


def test_dpo_raises_the_margin(bench: Workbench, tmp_path: Path) -> None:
    policy = bench.train_from(make_agent())
    scores = policy.engine(64).score(GROUPS)
    reference = torch.tensor([[score.sum_logprob for score in row] for row in scores])
    objective = DPOObjective(GROUPS, reference, beta=0.1, gamma=0.2)
    config = DPOConfig(epochs=15, learning_rate=1e-2, batch_size=3)
    rows = make_trainer(policy, objective, config, tmp_path).train()
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert rows[0]["dpo_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert rows[-1]["margin"] > 0.5
    assert rows[-1]["dpo_loss"] < 0.5


def test_checkpointing_more_often_changes_nothing(bench: Workbench, tmp_path: Path) -> None:
    results = []
    for checkpoint_steps in (1, 1000):
        policy = policy_to_train(bench)
        config = config_of(epochs=2, batch_size=2)
        folder = tmp_path / str(checkpoint_steps)
        trainer = make_trainer(policy, dpo(), config, folder, checkpoint_steps=checkpoint_steps)
        rows = trainer.train()
        assert (trainer.checkpoints.latest() is not None) == (checkpoint_steps == 1)
        results.append((rows, snapshot(policy.trainable)))
    (rows, weights), (other_rows, other_weights) = results
    assert rows == other_rows
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def trained(bench: Workbench, folder: Path, seed: int, **tuning: Any) -> list[dict[str, Any]]:
    policy = policy_to_train(bench, **tuning)
    config = config_of(epochs=2, batch_size=1, learning_rate=1e-9)
    return make_trainer(policy, sft(), config, folder, seed=seed).train()


def test_dropout_acts_while_training_and_follows_the_seed(bench: Workbench, tmp_path: Path) -> None:
    """At a rate of 1e-9 nothing is learned, so that the losses differ by dropout alone."""
    plain = trained(bench, tmp_path / "1", 3)
    torch.manual_seed(1)
    dropped = trained(bench, tmp_path / "2", 3, dropout=0.5)
    torch.manual_seed(2)
    assert trained(bench, tmp_path / "3", 3, dropout=0.5) == dropped
    assert abs(dropped[0]["loss"] - plain[0]["loss"]) > 1e-3
    assert _epochs_apart(plain) < 1e-4  # the same examples again in the second epoch
    assert _epochs_apart(dropped) > 1e-2  # dropped otherwise


def _epochs_apart(rows: list[dict[str, Any]]) -> float:
    half = len(rows) // 2
    return abs(sum(row["loss"] for row in rows[:half]) - sum(row["loss"] for row in rows[half:]))


def test_dropout_is_off_and_gradients_are_gone_afterwards(bench: Workbench, tmp_path: Path) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise RuntimeError("stop")

    for progress in (lambda *_, **__: None, stop):
        policy = policy_to_train(bench, dropout=0.5)
        trainer = make_trainer(policy, sft(), config_of(), tmp_path, progress=progress)
        try:
            trainer.train()
        except RuntimeError:
            assert progress is stop
        scorer = policy.engine(64)
        assert scorer.score(GROUPS) == scorer.score(GROUPS)
        assert all(p.grad is None for p in policy.trainable.values())


def test_training_leaves_the_global_random_state_to_others(
    bench: Workbench, tmp_path: Path
) -> None:
    policy = policy_to_train(bench, dropout=0.5)
    state = torch.get_rng_state()
    make_trainer(policy, sft(), config_of(), tmp_path).train()
    assert torch.equal(torch.get_rng_state(), state)


def test_order_follows_the_seed(bench: Workbench, tmp_path: Path) -> None:
    first = [row["loss"] for row in trained(bench, tmp_path / "1", 3)]
    again = [row["loss"] for row in trained(bench, tmp_path / "2", 3)]
    other = [row["loss"] for row in trained(bench, tmp_path / "3", 4)]
    assert first == again
    assert first != other


def test_loss_that_is_not_a_number_stops_the_training(bench: Workbench, tmp_path: Path) -> None:
    policy = policy_to_train(bench)
    parameter = next(iter(policy.trainable.values()))
    parameter.data[0, 0] = math.inf
    before = snapshot(policy.trainable)
    trainer = make_trainer(policy, sft(), config_of(epochs=3), tmp_path, checkpoint_steps=1)
    with pytest.raises(TrainingError) as raised:
        trainer.train()
    assert str(raised.value) == (
        "step 1 of 3: loss nan, gradient norm nan; not finite. Try a lower learning_rate (now "
        "0.001), dtype: float32, or look for odd rows in the data"
    )
    assert trainer.checkpoints.latest() is None  # the weights before the step are kept as they are
    for name, tensor in snapshot(policy.trainable).items():
        assert torch.equal(tensor, before[name])


def test_learning_rate_far_too_high_is_reported_with_its_step(
    bench: Workbench, tmp_path: Path
) -> None:
    policy = policy_to_train(bench)
    trainer = make_trainer(policy, sft(), config_of(epochs=9, learning_rate=1e30), tmp_path)
    with pytest.raises(TrainingError, match=r"^step [2-9] of 9: loss .*\(now 1e\+30\)"):
        trainer.train()


def test_parameter_without_gradients_does_not_prevent_a_resume(
    bench: Workbench, tmp_path: Path
) -> None:
    """An expert that no token was sent to has no gradient, so AdamW keeps no moments for it."""
    unbroken = _train_with_idle_parameter(bench, tmp_path / "1", stop_after=None)
    assert _train_with_idle_parameter(bench, tmp_path / "2", stop_after=3) is None
    resumed = _train_with_idle_parameter(bench, tmp_path / "2", stop_after=None)
    assert unbroken is not None
    assert resumed is not None
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def _train_with_idle_parameter(
    bench: Workbench, folder: Path, stop_after: int | None
) -> dict[str, Tensor] | None:
    def progress(done: int, total: int, **fields: float) -> None:
        if done == stop_after:
            raise InterruptedError

    policy = policy_to_train(bench)
    idle = torch.nn.Parameter(torch.ones(2))
    policy = LoadedPolicy(
        policy.model, policy.chat, policy.architecture, {**policy.trainable, "idle": idle}
    )
    config = config_of(epochs=2, batch_size=2, weight_decay=0.1)
    trainer = make_trainer(policy, sft(), config, folder, progress=progress, checkpoint_steps=2)
    try:
        trainer.train()
    except InterruptedError:
        return None
    return snapshot(policy.trainable)


def test_checkpoint_that_lacks_a_moment_is_refused(bench: Workbench, tmp_path: Path) -> None:
    policy = policy_to_train(bench)
    trainer = make_trainer(policy, sft(), config_of(), tmp_path)
    trainer.train()
    moments = trainer._moments()
    name = next(iter(policy.trainable))
    del moments[f"exp_avg_sq/{name}"]
    with pytest.raises(TrainingError) as raised:
        trainer._restore_moments(moments)
    assert str(raised.value) == (
        f"the checkpoint lacks exp_avg_sq of {name}: another version wrote it; remove the stage's "
        "folder below store/.partial to train it from the start"
    )


def test_summary_is_the_mean_of_the_last_quarter() -> None:
    """Of 8 rows the last two, (7 + 8) / 2; of 3 rows the last one."""
    rows = [{"step": i, "loss": float(i), "margin": 2.0 * i} for i in range(1, 9)]
    assert summary(rows) == {"loss": 7.5, "margin": 15.0}
    assert summary(rows[:3]) == {"loss": 3.0, "margin": 6.0}
