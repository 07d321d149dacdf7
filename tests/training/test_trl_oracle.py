"""DPO + SFT against TRL, an implementation that others trust: sums, losses and gradients.

TRL's `DPOTrainer` is asked for its loss on collated batches of token ids (nothing is trained), with
`loss_type: ["sigmoid", "sft"]`; its policy carries a LoRA adapter with random A and B, and its
reference another one, so that every term is far from zero. Ours has the same weights.

The two differ on purpose in the SFT term: TRL's is a mean over all chosen tokens of a batch, ours
the mean over examples of each example's mean (macpo.losses.sft). So the DPO terms are compared as
they are, and the SFT terms where the two conventions say the same: batch by batch, TRL's from our
sums, and one example at a time, directly.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from macpo.config.training import Loss
from macpo.likelihood import LikelihoodEngine, PromptGroup
from macpo.training.objectives import DPOObjective, ExampleLosses
from tests.likelihood.plain import with_adapter
from tests.tiny import tiny_model, tiny_tokenizer
from tests.workbench import randomise

BETA, GAMMA = 0.1, 0.2

GROUPS = [
    PromptGroup((5, 9, 1, 44, 2), ((17, 3, 250, 2), (8, 2))),
    PromptGroup((70, 71), ((40, 12, 13, 14, 15, 2), (11, 12, 13, 14, 15, 16, 17, 2))),
    PromptGroup((5, 9, 1, 44, 31, 32, 33), ((6,), (7, 7, 7, 2))),
    PromptGroup((2, 2, 300), ((2, 9, 2), (5, 2))),  # 2 is <|im_end|>: pad, EOS and a token
]


class Oracle:
    """TRL's trainer with a policy and a reference that differ, and our engine over equal weights.

    Attributes:
        trainer: TRL's.
        policy: our model, its adapter equal to that of TRL's policy.
        objective: ours, with reference sums that our engine computed.
    """

    def __init__(self, folder: Path) -> None:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        reference = with_adapter(tiny_model("llama").requires_grad_(False))
        scored = LikelihoodEngine(reference).score(GROUPS)
        sums = torch.tensor([[score.sum_logprob for score in row] for row in scored])
        self.objective = DPOObjective(GROUPS, sums, BETA, GAMMA)
        self.policy = with_adapter(tiny_model("llama").requires_grad_(False))
        randomise(_adapter(self.policy, "default"), seed=5)
        self.engine = LikelihoodEngine(self.policy)
        self.trainer = DPOTrainer(
            model=with_adapter(tiny_model("llama").requires_grad_(False)),
            args=DPOConfig(
                output_dir=str(folder),
                loss_type=["sigmoid", "sft"],
                loss_weights=[1.0, GAMMA],
                beta=BETA,
                report_to=[],
                use_cpu=True,
                bf16=False,
                activation_checkpointing=False,
            ),
            # Never looked at: the batches below are ids. The trainer copies the adapter that it is
            # given here as its reference.
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
            processing_class=tiny_tokenizer(),
        )
        randomise(_adapter(self.trainer.model, "default"), seed=5)

    def batch(self, groups: list[PromptGroup]) -> dict[str, Tensor]:
        """Collate groups as TRL does."""
        rows = [
            {
                "prompt_ids": list(group.prompt),
                "chosen_ids": list(group.completions[0]),
                "rejected_ids": list(group.completions[1]),
            }
            for group in groups
        ]
        return dict(self.trainer.data_collator(rows))

    def theirs(self, groups: list[PromptGroup]) -> tuple[Tensor, dict[str, float]]:
        """Return TRL's loss on a batch and what it would have logged."""
        metrics: dict[str, list[float]] = self.trainer._metrics["train"]
        metrics.clear()
        self.trainer.model.train()
        loss = self.trainer.compute_loss(self.trainer.model, self.batch(groups))
        return loss, {name: values[-1] for name, values in metrics.items()}

    def ours(self, indices: list[int], **options: Any) -> ExampleLosses:
        """Return our losses of some examples, by an objective of which some options differ."""
        [pack] = self.engine.packs([GROUPS[i] for i in indices])
        objective = replace(self.objective, **options)
        return objective.losses(indices, self.engine.score_pack(pack))


def _adapter(model: Any, name: str) -> dict[str, Tensor]:
    return {n: p for n, p in model.named_parameters() if f".{name}." in n}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(tmp_path_factory.mktemp("trl"))


@pytest.mark.parametrize("index", range(len(GROUPS)))
def test_sums_of_log_probabilities_are_trls(oracle: Oracle, index: int) -> None:
    """Of policy and reference, within 1e-3 nats; a batch of one pair, so that means are sums."""
    group = GROUPS[index]
    [scores] = oracle.engine.score([group])
    _, logged = oracle.theirs([group])
    assert logged["logps/chosen"] == pytest.approx(scores[0].sum_logprob, abs=1e-3)
    assert logged["logps/rejected"] == pytest.approx(scores[1].sum_logprob, abs=1e-3)
    chosen, rejected = oracle.trainer.compute_ref_log_probs(
        oracle.trainer.model, oracle.batch([group])
    )
    reference = oracle.objective.reference_sums[index]
    assert chosen.item() == pytest.approx(reference[0].item(), abs=1e-3)
    assert rejected.item() == pytest.approx(reference[1].item(), abs=1e-3)
    assert abs(scores[0].sum_logprob - reference[0].item()) > 0.02  # they are not one policy


@pytest.mark.parametrize("index", range(len(GROUPS)))
def test_loss_of_one_example_is_trls(oracle: Oracle, index: int) -> None:
    """One example is where both conventions of the SFT term agree: the whole loss, 1e-5."""
    theirs, logged = oracle.theirs([GROUPS[index]])
    ours = oracle.ours([index])
    assert ours.losses.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert ours.shown["margin"].item() == pytest.approx(logged["rewards/margins"], abs=1e-4)
    for side in ("chosen", "rejected"):  # TRL's implicit rewards are beta times our log-ratios
        ratio = ours.shown[f"{side}_logratio"].item()
        assert BETA * ratio == pytest.approx(logged[f"rewards/{side}"], abs=1e-4)


def test_loss_of_a_batch_is_trls_but_for_the_mean_of_the_sft_term(oracle: Oracle) -> None:
    """TRL: mean of DPO terms + gamma * (nats of all chosen answers / their tokens).

    Ours has the same DPO terms, and the mean of nats / tokens of each answer.
    """
    theirs, logged = oracle.theirs(GROUPS)
    ours = oracle.ours([0, 1, 2, 3])
    lengths = torch.tensor([float(len(group.completions[0])) for group in GROUPS])
    per_token = (ours.shown["sft_loss"] * lengths).sum() / lengths.sum()
    contrast = ours.shown["dpo_loss"].mean()
    assert (contrast + GAMMA * per_token).item() == pytest.approx(theirs.item(), rel=1e-5)
    assert ours.losses.mean().item() == pytest.approx(
        (contrast + GAMMA * ours.shown["sft_loss"].mean()).item(), rel=1e-6
    )
    assert ours.losses.mean().item() != pytest.approx(theirs.item(), rel=1e-3)
    assert ours.shown["margin"].mean().item() == pytest.approx(logged["rewards/margins"], abs=1e-4)


@pytest.mark.parametrize("index", range(len(GROUPS)))
@pytest.mark.parametrize(
    ("loss", "trls"),
    [
        ("sigmoid", "sigmoid"),
        ("ipo-mean", "ipo"),
        ("sppo", "sppo_hard"),
        ("apo-zero", "apo_zero"),
        ("apo-down", "apo_down"),
    ],
)
def test_every_loss_that_trl_has_is_trls(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch, loss: Loss, trls: str, index: int
) -> None:
    monkeypatch.setattr(oracle.trainer, "loss_types", [trls])
    monkeypatch.setattr(oracle.trainer, "loss_weights", [1.0])
    assert_same_contrast(oracle, index, loss=loss)


@pytest.mark.parametrize("index", range(len(GROUPS)))
def test_label_smoothing_is_trls(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    """TRL smooths labels in `aot`, which pairs sorted log-ratios: of one pair, that pair's own."""
    monkeypatch.setattr(oracle.trainer, "loss_types", ["aot"])
    monkeypatch.setattr(oracle.trainer, "loss_weights", [1.0])
    monkeypatch.setattr(oracle.trainer, "label_smoothing", 0.2)
    assert_same_contrast(oracle, index, label_smoothing=0.2)


def test_ipo_on_sums_is_trls_for_answers_of_one_length(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL's h is of means, and so ours divided by n where both answers have n tokens.

    (h / n - 1 / (2 n beta))^2 is (h - 1 / (2 beta))^2 / n^2: TRL's with n * beta, times n^2.
    """
    monkeypatch.setattr(oracle.trainer, "loss_types", ["ipo"])
    monkeypatch.setattr(oracle.trainer, "loss_weights", [1.0])
    monkeypatch.setattr(oracle.trainer, "beta", 3 * BETA)
    group = PromptGroup((5, 9, 1, 44), ((17, 3, 2), (8, 40, 12)))
    theirs, _ = oracle.theirs([group])
    sides = oracle.trainer.compute_ref_log_probs(oracle.trainer.model, oracle.batch([group]))
    reference = torch.stack(sides, dim=1)
    [pack] = oracle.engine.packs([group])
    sums = oracle.engine.score_pack(pack)
    ours = DPOObjective([group], reference, BETA, 0.0, "ipo").losses([0], sums)
    assert ours.losses.item() == pytest.approx(9 * theirs.item(), rel=1e-4)


@pytest.mark.parametrize("indices", [[0], [1], [2], [3]])
def test_gradients_of_the_adapter_are_trls(oracle: Oracle, indices: list[int]) -> None:
    assert_same_gradients(oracle, oracle.ours(indices).losses.mean(), indices)


def test_gradients_of_a_batch_are_trls(oracle: Oracle) -> None:
    """With TRL's convention for the SFT term, built from our per-example losses.

    loss_i = dpo_i + gamma * sft_i, and TRL weighs sft_i by tokens_i / all tokens, not 1 / 4. A
    second objective with gamma = 0 gives dpo_i alone, so that the two terms come apart.
    """
    indices = [0, 1, 2, 3]
    objective = oracle.objective
    [pack] = oracle.engine.packs(GROUPS)
    sums = oracle.engine.score_pack(pack)
    whole = objective.losses(indices, sums).losses
    contrast = (
        DPOObjective(GROUPS, objective.reference_sums, BETA, 0.0).losses(indices, sums).losses
    )
    lengths = torch.tensor([float(len(group.completions[0])) for group in GROUPS])
    loss = contrast.mean() + ((whole - contrast) * lengths).sum() / lengths.sum()
    assert_same_gradients(oracle, loss, indices)


def assert_same_contrast(oracle: Oracle, index: int, **options: Any) -> None:
    """Compare a loss without an SFT term, on one pair: no value depends on the others."""
    theirs, _ = oracle.theirs([GROUPS[index]])
    ours = oracle.ours([index], gamma=0.0, **options)
    assert ours.losses.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_same_gradients(oracle, ours.losses.mean(), [index])


def assert_same_gradients(oracle: Oracle, ours: Tensor, indices: list[int]) -> None:
    theirs, _ = oracle.theirs([GROUPS[i] for i in indices])
    mine = _adapter(oracle.policy, "default")
    other = _adapter(oracle.trainer.model, "default")
    assert mine.keys() == other.keys()
    found = torch.autograd.grad(ours, list(mine.values()))
    expected = torch.autograd.grad(theirs, [other[name] for name in mine])
    flat = [torch.cat([g.ravel() for g in gradients]) for gradients in (found, expected)]
    assert flat[1].norm() > 0.01
    assert torch.cosine_similarity(flat[0], flat[1], dim=0) >= 0.9999
    assert flat[0].norm().item() == pytest.approx(flat[1].norm().item(), rel=1e-4)
