"""The losses, on numbers worked by hand, and the objectives made of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from macpo import losses
from macpo.likelihood import LikelihoodEngine, PromptGroup
from macpo.training.objectives import ConfidentObjective, DPOObjective, SFTObjective
from tests.tiny import tiny_model


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_margin_of_two_pairs() -> None:
    """beta = 0.1 times the difference of the log-ratios, chosen minus rejected.

    pair 1: (-10 - -12) - (-20 - -15) = 2 - -5 = 7, times 0.1 = 0.7
    pair 2: (-30 - -30) - (-8 - -11) = 0 - 3 = -3, times 0.1 = -0.3
    """
    margin = losses.dpo_margin(
        policy_chosen=tensor(-10, -30),
        policy_rejected=tensor(-20, -8),
        reference_chosen=tensor(-12, -30),
        reference_rejected=tensor(-15, -11),
        beta=0.1,
    )
    assert margin.tolist() == pytest.approx([0.7, -0.3])


@pytest.mark.parametrize(
    ("which", "sign"),
    [
        ("policy_chosen", 1),
        ("policy_rejected", -1),
        ("reference_chosen", -1),
        ("reference_rejected", 1),
    ],
)
def test_margin_moves_the_right_way_with_each_argument(which: str, sign: int) -> None:
    """One nat more in an argument moves the margin by beta = 0.25, up or down."""
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    arguments = {name: tensor(-5) for name in names}
    before = losses.dpo_margin(**arguments, beta=0.25)
    arguments[which] = tensor(-4)
    after = losses.dpo_margin(**arguments, beta=0.25)
    assert (after - before).item() == pytest.approx(0.25 * sign)


def test_dpo_loss_of_some_margins() -> None:
    """-log sigmoid(m) = log(1 + exp(-m)).

    m = 0: log 2 = 0.6931
    m = 2: log(1 + 0.135335) = 0.126928
    m = -2: log(1 + 7.389056) = 2.126928
    m = 200: exp(-200) is nothing; m = -200: 200, where exp would overflow
    """
    loss = losses.dpo(tensor(0, 2, -2, 200, -200))
    assert loss.tolist() == pytest.approx([math.log(2), 0.126928, 2.126928, 0, 200], abs=1e-6)


def test_dpo_gradient_pushes_apart_and_fades() -> None:
    """d/dm of -log sigmoid(m) is -sigmoid(-m): -0.5 at 0, -0.119203 at 2, -0.880797 at -2."""
    margin = tensor(0, 2, -2).requires_grad_()
    losses.dpo(margin).sum().backward()
    assert margin.grad is not None
    assert margin.grad.tolist() == pytest.approx([-0.5, -0.119203, -0.880797], abs=1e-6)


def test_sft_loss_is_the_mean_per_token_of_each_example() -> None:
    """6 nats over 4 tokens: 1.5 each; 6 nats over 1 token: 6. Their mean is 3.75.

    TRL's mean over all tokens of the batch would be 12 / 5 = 2.4.
    """
    loss = losses.sft(tensor(-6, -6), tensor(4, 1))
    assert loss.tolist() == [1.5, 6.0]


GROUPS = [
    PromptGroup((1,), ((2,) * 2, (3,) * 3)),
    PromptGroup((1, 1), ((2,) * 4, (3,) * 5)),
    PromptGroup((1, 1, 1), ((2,) * 8, (3,) * 1)),
]


def test_sft_objective_divides_by_the_lengths_of_its_examples() -> None:
    """Examples 2 and 0 have answers of 8 and 2 tokens: 4 / 8 = 0.5 and 4 / 2 = 2."""
    groups = [PromptGroup(group.prompt, group.completions[:1]) for group in GROUPS]
    scored = SFTObjective(groups).losses([2, 0], tensor(-4, -4))
    assert scored.losses.tolist() == [0.5, 2.0]
    assert scored.shown == {}


def test_dpo_objective_adds_contrast_and_likelihood() -> None:
    """beta = 0.5, gamma = 0.2, examples 2 and 0, chosen and rejected sums in turn.

    example 2: margin 0.5 * ((-16 - -18) - (-3 - -5)) = 0, loss log 2 + 0.2 * 16 / 8 = 1.093147
    example 0: margin 0.5 * ((-2 - -4) - (-9 - -7)) = 2, loss 0.126928 + 0.2 * 2 / 2 = 0.326928
    """
    reference = torch.tensor([[-4.0, -7.0], [0.0, 0.0], [-18.0, -5.0]])
    objective = DPOObjective(GROUPS, reference, beta=0.5, gamma=0.2)
    scored = objective.losses([2, 0], tensor(-16, -3, -2, -9).requires_grad_())
    assert scored.losses.tolist() == pytest.approx([1.093147, 0.326928], abs=1e-6)
    assert scored.losses.requires_grad
    shown = {name: values.tolist() for name, values in scored.shown.items()}
    assert shown["margin"] == [0, 2]
    assert shown["sft_loss"] == [2, 1]
    assert shown["dpo_loss"] == pytest.approx([math.log(2), 0.126928], abs=1e-6)
    assert not any(values.requires_grad for values in scored.shown.values())


def test_without_gamma_only_the_contrast_is_left() -> None:
    objective = DPOObjective(GROUPS, torch.zeros(3, 2), beta=0.1, gamma=0.0)
    scored = objective.losses([1], tensor(-3, -3))
    assert scored.losses.tolist() == pytest.approx([math.log(2)])


def test_confidence_loss_of_three_tokens() -> None:
    """Weight 0.25, threshold 0.5. Own predictions: p = 0.8, 0.4, 0.5.

    sure:   0.75 * 2 + 0.25 * -log 0.8 = 1.5 + 0.0557859 = 1.5557859
    unsure: the weak label alone, 3
    at the threshold: 0.75 * 1 + 0.25 * -log 0.5 = 0.75 + 0.1732868 = 0.9232868
    """
    own = tensor(0.8, 0.4, 0.5).log()
    found = losses.confidence(tensor(-2, -3, -1), own, weight=0.25, threshold=0.5)
    assert found.tolist() == pytest.approx([1.5557859, 3, 0.9232868])


def test_confident_objective_is_sft_before_warm_up_and_mixes_after() -> None:
    model = tiny_model()
    engine = LikelihoodEngine(model)
    groups = [PromptGroup((5, 6, 7), ((8, 9, 10),)), PromptGroup((11,), ((12, 13),))]
    (pack,) = engine.packs(groups)
    plain = SFTObjective(groups).forward(engine, pack, [0, 1], 0.0).losses
    objective = ConfidentObjective(groups, weight=0.5, warmup=0.5, threshold=1e-6)
    torch.testing.assert_close(objective.forward(engine, pack, [0, 1], 0.0).losses, plain)
    own = engine.score_tokens(pack)[1]
    own_nll = torch.stack([-own[:3].mean(), -own[3:].mean()])
    half = objective.forward(engine, pack, [0, 1], 0.25).losses
    torch.testing.assert_close(half, 0.75 * plain + 0.25 * own_nll)
    full = objective.forward(engine, pack, [0, 1], 0.9).losses
    torch.testing.assert_close(full, 0.5 * plain + 0.5 * own_nll)
