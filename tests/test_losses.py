"""The losses, on numbers worked by hand, and the objectives made of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from macpo import losses
from macpo.likelihood import LikelihoodEngine, PromptGroup
from macpo.training.objectives import (
    ConfidentObjective,
    DPOObjective,
    LogRatioObjective,
    SFTObjective,
)
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


def test_label_smoothing_turns_a_share_of_the_pairs_around() -> None:
    """e = 0.25: 0.75 * -log sigmoid(m) + 0.25 * -log sigmoid(-m).

    m = 0: log 2, whatever e is
    m = 2: 0.75 * 0.126928 + 0.25 * 2.126928 = 0.095196 + 0.531732 = 0.626928
    m = -2: 0.75 * 2.126928 + 0.25 * 0.126928 = 1.595196 + 0.031732 = 1.626928
    """
    loss = losses.dpo(tensor(0, 2, -2), label_smoothing=0.25)
    assert loss.tolist() == pytest.approx([math.log(2), 0.626928, 1.626928], abs=1e-6)


def test_label_smoothing_asks_for_a_certain_margin() -> None:
    """Least at m = log((1 - e) / e) = log 3 for e = 0.25: it rises below and falls above."""
    margin = tensor(math.log(3), 0, 3).requires_grad_()
    losses.dpo(margin, label_smoothing=0.25).sum().backward()
    assert margin.grad is not None
    at, below, above = margin.grad.tolist()
    assert at == pytest.approx(0, abs=1e-6)
    assert below < 0 < above


# Log-ratios of chosen and rejected of three pairs, for beta = 0.1: 1 / (2 beta) = 5 nats.
CHOSEN, REJECTED = (3, 0, -2), (-2, 0, 1)


def test_ipo_loss_of_some_log_ratios() -> None:
    """(h - 5)^2: h = 3 + 2 = 5 gives 0, h = 0 gives 25, h = -2 - 1 = -3 gives 64."""
    assert losses.ipo(tensor(*CHOSEN), tensor(*REJECTED), 0.1).tolist() == pytest.approx(
        [0, 25, 64]
    )


def test_ipo_pulls_back_what_is_too_far_apart() -> None:
    """d/dh of (h - 5)^2 is 2 (h - 5): at h = 8 the chosen log-ratio is pulled down by 6."""
    chosen, rejected = tensor(5).requires_grad_(), tensor(-3).requires_grad_()
    losses.ipo(chosen, rejected, 0.1).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad.item(), rejected.grad.item()) == pytest.approx((6, -6))


def test_sppo_loss_of_some_log_ratios() -> None:
    """(c - 5)^2 + (r + 5)^2: 4 + 9 = 13; 25 + 25 = 50; 49 + 36 = 85."""
    assert losses.sppo(tensor(*CHOSEN), tensor(*REJECTED), 0.1).tolist() == pytest.approx(
        [13, 50, 85]
    )


def test_apo_losses_of_some_log_ratios() -> None:
    """With s(x) = 1 / (1 + exp(-x)), beta = 0.1.

    zero: 1 - s(0.3) + s(-0.2) = 1 - 0.574443 + 0.450166 = 0.875723
          1 - s(0) + s(0) = 1
          1 - s(-0.2) + s(0.1) = 1 - 0.450166 + 0.524979 = 1.074813
    down: s(0.3) + 1 - s(0.5) = 0.574443 + 1 - 0.622459 = 0.951984
          s(0) + 1 - s(0) = 1
          s(-0.2) + 1 - s(-0.3) = 0.450166 + 1 - 0.425557 = 1.024609
    """
    zero = losses.apo_zero(tensor(*CHOSEN), tensor(*REJECTED), 0.1)
    down = losses.apo_down(tensor(*CHOSEN), tensor(*REJECTED), 0.1)
    assert zero.tolist() == pytest.approx([0.875723, 1, 1.074813], abs=1e-6)
    assert down.tolist() == pytest.approx([0.951984, 1, 1.024609], abs=1e-6)


def test_confidence_of_three_pairs() -> None:
    """2 (sigmoid(d) - 0.5): of 0 it is 0, of log 3 (sigmoid 0.75) 0.5, of -log 3 -0.5."""
    weights = losses.pair_confidence(tensor(1, 1 + math.log(3), 0), tensor(1, 1, math.log(3)))
    assert weights.tolist() == pytest.approx([0, 0.5, -0.5])


def test_log_ratio_error_of_two_answers() -> None:
    """(0.5 * 6 - 1)^2 / 2 = 2; (0.5 * -4 - 2)^2 / 4 = 4."""
    error = losses.log_ratio_error(tensor(6, -4), tensor(1, 2), 0.5, tensor(2, 4))
    assert error.tolist() == [2, 4]


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


def test_weights_multiply_the_loss_of_their_pair() -> None:
    """As above: 1.093147 for example 2, which counts a half, and 0.326928 for 0, which counts 2."""
    reference = torch.tensor([[-4.0, -7.0], [0.0, 0.0], [-18.0, -5.0]])
    weights = tensor(2, 7, 0.5)
    objective = DPOObjective(GROUPS, reference, beta=0.5, gamma=0.2, weights=weights)
    scored = objective.losses([2, 0], tensor(-16, -3, -2, -9))
    assert scored.losses.tolist() == pytest.approx([0.546574, 0.653856], abs=1e-6)
    assert scored.shown["dpo_loss"].tolist() == pytest.approx([math.log(2), 0.126928], abs=1e-6)


def test_log_ratio_objective_takes_reference_target_and_length_of_its_examples() -> None:
    """Examples 2 and 0, with answers of 8 and 2 tokens, gamma 0.5.

    example 2: (0.5 * (-4 - -8) - 6)^2 / 8 = 2; example 0: (0.5 * (-4 - -2) - 1)^2 / 2 = 2
    """
    groups = [PromptGroup(group.prompt, group.completions[:1]) for group in GROUPS]
    objective = LogRatioObjective(groups, tensor(-2, 0, -8), tensor(1, 0, 6), gamma=0.5)
    scored = objective.losses([2, 0], tensor(-4, -4).requires_grad_())
    assert scored.losses.tolist() == [2, 2]
    assert scored.shown["logratio"].tolist() == [4, -2]
    assert scored.shown["target"].tolist() == [6, 1]
    assert not any(values.requires_grad for values in scored.shown.values())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss": "sigmoid"}, (0.693147, 0.126928)),
        ({"loss": "sigmoid", "label_smoothing": 0.25}, (0.693147, 0.626928)),
        ({"loss": "ipo"}, (1, 9)),
        ({"loss": "ipo-mean"}, (7.5625, 0.444444)),
        ({"loss": "sppo"}, (10, 2)),
        ({"loss": "apo-zero"}, (1, 0.537883)),
        ({"loss": "apo-down"}, (1.231059, 0.850262)),
    ],
    ids=str,
)
def test_dpo_objective_takes_the_loss_that_it_is_told(
    options: dict[str, Any], expected: tuple[float, float]
) -> None:
    """beta = 0.5, so that 1 / (2 beta) = 1; examples 2 and 0, of the log-ratios

        example 2: chosen 2 (8 tokens), rejected 2 (1 token): per token 0.25 and 2
        example 0: chosen 2 (2 tokens), rejected -2 (3 tokens): per token 1 and -2/3

    ipo: (0 - 1)^2, (4 - 1)^2; ipo-mean: (-1.75 - 1)^2 = 7.5625 and (5/3 - 1)^2 = 0.444444;
    sppo: 1 + 9, 1 + 1; apo-zero: 1 - s(1) + s(1), 1 - s(1) + s(-1); apo-down: s(1) + 1 - s(0),
    s(1) + 1 - s(2).
    """
    reference = torch.tensor([[-4.0, -7.0], [0.0, 0.0], [-18.0, -5.0]])
    objective = DPOObjective(GROUPS, reference, beta=0.5, gamma=0.2, **options)
    scored = objective.losses([2, 0], tensor(-16, -3, -2, -9))
    assert scored.shown["dpo_loss"].tolist() == pytest.approx(expected, abs=1e-6)
    added = [a - b for a, b in zip(scored.losses.tolist(), expected, strict=True)]
    assert added == pytest.approx([0.2 * 16 / 8, 0.2 * 2 / 2], abs=1e-5)
    assert scored.shown["margin"].tolist() == [0, 2]
    assert scored.shown["chosen_logratio"].tolist() == [2, 2]
    assert scored.shown["rejected_logratio"].tolist() == [2, -2]


def test_end_of_turn_can_be_left_out_of_the_contrast_and_stays_in_the_likelihood() -> None:
    """beta = 0.5, gamma = 0.2; last tokens -1 and -3 in example 2, -0.5 and -7 in example 0.

    example 2: neither is left out: chosen -16 - -18 = 2, rejected -3 - -5 = 2, margin 0
    example 0: chosen -2 + 0.5 = -1.5, - -4 = 2.5 (1 token); rejected -9 + 7 = -2, - -7 = 5
        (2 tokens); margin 0.5 * (2.5 - 5) = -1.25. Its SFT term is 2 / 2 = 1 as before.
    ipo-mean: (2 / 8 - 2 / 1 - 1)^2 = 7.5625, and (2.5 - 2.5 - 1)^2 = 1
    """
    reference = torch.tensor([[-4.0, -7.0], [0.0, 0.0], [-18.0, -5.0]])
    ends = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    sums, last = tensor(-16, -3, -2, -9), tensor(-1, -3, -0.5, -7)
    objective = DPOObjective(GROUPS, reference, beta=0.5, gamma=0.2, ends=ends)
    shown = objective.losses([2, 0], sums, last).shown
    assert shown["margin"].tolist() == [0, -1.25]
    assert shown["chosen_logratio"].tolist() == [2, 2.5]
    assert shown["rejected_logratio"].tolist() == [2, 5]
    assert shown["sft_loss"].tolist() == [2, 1]
    per_token = replace(objective, loss="ipo-mean").losses([2, 0], sums, last)
    assert per_token.shown["dpo_loss"].tolist() == pytest.approx([7.5625, 1])


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
