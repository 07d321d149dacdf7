"""Going back to another policy in weights, against dense matrices that are averaged as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from macpo.adapters import with_adapter
from macpo.anchoring import average_product, go_back, products_of
from macpo.config import TuningConfig
from macpo.policies import restore, snapshot
from tests.likelihood.plain import make_model
from tests.workbench import randomise

RANK, OUTPUTS, INPUTS = 3, 7, 11


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


A, B = draw(RANK, INPUTS, seed=1), draw(OUTPUTS, RANK, seed=2)
OTHER_A, OTHER_B = draw(RANK, INPUTS, seed=3), draw(OUTPUTS, RANK, seed=4)


def cut(matrix: Tensor, rank: int) -> Tensor:
    """Return the nearest matrix of a rank, from the singular values of the whole matrix."""
    u, values, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ vh[:rank]


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the Frobenius norm of a difference over that of what is expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_average_is_that_of_the_products_cut_to_the_rank(share: float) -> None:
    a, b, values = average_product(A, B, OTHER_A, OTHER_B, share)
    dense = (1 - share) * B @ A + share * OTHER_B @ OTHER_A
    assert (a.shape, b.shape) == (A.shape, B.shape)
    assert relative(b @ a, cut(dense, RANK)) < 1e-6
    # Of two products of unlike policies much is lost, and it is said how much.
    expected = torch.linalg.svdvals(dense.double())
    assert torch.allclose(values[: 2 * RANK], expected[: 2 * RANK], atol=1e-5)
    assert relative(b @ a, dense) == pytest.approx(
        float(values[RANK:].norm() / values.norm()), rel=1e-4
    )


def test_nothing_is_lost_where_both_products_have_the_same_rows() -> None:
    """B A and B' A: their average is ((1 - a) B + a B') A, of rank r again."""
    a, b, values = average_product(A, B, A, OTHER_B, 0.3)
    assert relative(b @ a, (0.7 * B + 0.3 * OTHER_B) @ A) < 1e-6
    assert values[RANK:].max() < 1e-5 * values.max()


def test_nothing_of_the_way_is_the_same_product_and_all_of_it_the_other() -> None:
    for share, expected in ((0.0, B @ A), (1.0, OTHER_B @ OTHER_A)):
        a, b, _ = average_product(A, B, OTHER_A, OTHER_B, share)
        assert relative(b @ a, expected) < 1e-6


def test_first_factor_keeps_its_norm_and_has_rows_at_right_angles() -> None:
    a, _, _ = average_product(A, B, OTHER_A, OTHER_B, 0.3)
    assert torch.allclose(a @ a.T, A.square().sum() / RANK * torch.eye(RANK), atol=1e-4)
    assert a.norm().item() == pytest.approx(A.norm().item(), rel=1e-5)


def test_layer_that_is_narrower_than_its_rank() -> None:
    """Two outputs, rank 3: two singular values, and a row of A that stays as it was."""
    b, other = draw(2, RANK, seed=5), draw(2, RANK, seed=6)
    average_a, average_b, _ = average_product(A, b, OTHER_A, other, 0.4)
    assert relative(average_b @ average_a, 0.6 * b @ A + 0.4 * other @ OTHER_A) < 1e-6
    assert torch.equal(average_a[2], A[2])


@pytest.mark.parametrize("step", [0.01, 0.1, 1.0])
def test_factors_averaged_apart_differ_by_the_product_of_their_steps(step: float) -> None:
    """(1 - a) B A + a B' A' - [(1 - a) B + a B'] [(1 - a) A + a A'] = a (1 - a) (B - B')(A - A').

    So where both factors have moved by 1 % the two ways are 2e-5 apart, relative to the product; by
    10 %, 2e-3; by as much as they were themselves, a tenth. The rank costs half of that and less.
    """
    share = 0.2
    a, b = OTHER_A + step * A, OTHER_B + step * B
    dense = (1 - share) * b @ a + share * OTHER_B @ OTHER_A
    apart = ((1 - share) * b + share * OTHER_B) @ ((1 - share) * a + share * OTHER_A)
    assert relative(dense - apart, share * (1 - share) * step**2 * B @ A) < 1e-2
    average_a, average_b, _ = average_product(a, b, OTHER_A, OTHER_B, share)
    assert relative(average_b @ average_a, dense) <= relative(apart, dense) + 1e-6
    assert relative(apart, dense) < 0.3 * step**2


def test_factors_that_were_turned_are_the_same_policy_only_as_products() -> None:
    """B Q and Q^-1 A are B A: half of the way from a policy to itself is no way at all."""
    turn = draw(RANK, RANK, seed=7)
    turned_a, turned_b = torch.linalg.solve(turn, A), B @ turn
    a, b, _ = average_product(A, B, turned_a, turned_b, 0.5)
    assert relative(b @ a, B @ A) < 1e-5
    apart = (0.5 * B + 0.5 * turned_b) @ (0.5 * A + 0.5 * turned_a)
    assert relative(apart, B @ A) > 0.1


def deltas(model: Any) -> dict[str, Tensor]:
    """Return what an adapter adds to its layers' weights, as PEFT works it out."""
    return {
        name: module.get_delta_weight("default").detach().clone()
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_what_peft_adds_is_averaged_in_every_layer_and_expert(name: str) -> None:
    """The two policies share A, so that the average has their rank and is met exactly."""
    tuning = TuningConfig(rank=2, alpha=6, targets="all-linear")
    model = with_adapter(make_model(name).requires_grad_(False), tuning, "m")
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    sides, added = [], []
    for seed in (1, 2):
        weights = snapshot(trainable)
        randomise({n: w for n, w in weights.items() if ".lora_A." in n}, seed=9)
        randomise({n: w for n, w in weights.items() if ".lora_B." in n}, seed)
        restore(trainable, weights)
        sides.append(weights)
        added.append(deltas(model))
    back, lost = go_back(*sides, 0.25, products_of(model))
    restore(trainable, back)
    found = deltas(model)
    assert lost < 1e-3
    assert len(found) > 4
    for layer, delta in found.items():
        assert relative(delta, 0.75 * added[0][layer] + 0.25 * added[1][layer]) < 1e-4
        assert relative(delta, added[0][layer]) > 0.1


def test_weights_that_train_whole_are_interpolated() -> None:
    now, anchor = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 0.0])}
    weights, lost = go_back(now, anchor, 0.25, {})
    assert weights["w"].tolist() == [1.5, 1.5]
    assert lost == 0
    half = {name: weight.bfloat16() for name, weight in now.items()}
    assert go_back(half, half, 0.5, {})[0]["w"].dtype == torch.bfloat16
