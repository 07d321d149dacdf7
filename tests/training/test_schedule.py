"""Order and learning rate as functions of the step."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macpo.config import SFTConfig
from macpo.training.schedule import batch_at, learning_rate_at, steps_per_epoch


def epoch(number: int, examples: int, batch_size: int, seed: int = 0) -> list[list[int]]:
    """Return the batches of one epoch."""
    steps = steps_per_epoch(examples, batch_size)
    return [batch_at(number * steps + i, examples, batch_size, seed) for i in range(steps)]


@pytest.mark.parametrize(
    ("examples", "batch_size", "steps"), [(8, 4, 2), (9, 4, 3), (3, 4, 1), (1, 1, 1), (7, 1, 7)]
)
def test_epoch_takes_the_last_smaller_batch_too(examples: int, batch_size: int, steps: int) -> None:
    assert steps_per_epoch(examples, batch_size) == steps
    sizes = [len(batch) for batch in epoch(0, examples, batch_size)]
    assert sum(sizes) == examples
    assert sizes[:-1] == [batch_size] * (steps - 1)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5), st.integers(0, 2**63 - 1))
def test_every_epoch_has_every_example_once(
    examples: int, batch_size: int, number: int, seed: int
) -> None:
    batches = epoch(number, examples, batch_size, seed)
    assert Counter(i for batch in batches for i in batch) == Counter(range(examples))


def test_epochs_are_shuffled_and_differ() -> None:
    first, second = epoch(0, 50, 8), epoch(1, 50, 8)
    flat = [i for batch in first for i in batch]
    assert flat != sorted(flat)
    assert first != second


def test_order_is_a_function_of_the_seed() -> None:
    assert epoch(1, 50, 8, seed=3) == epoch(1, 50, 8, seed=3)
    assert epoch(1, 50, 8, seed=3) != epoch(1, 50, 8, seed=4)


def test_order_is_the_same_on_every_machine() -> None:
    """Runs made elsewhere, or with another version of macpo or NumPy, resume in this order."""
    assert batch_at(0, 10, 4, 7) == [3, 7, 1, 5]
    assert batch_at(5, 10, 4, 7) == [0, 3]


def rates(steps: int, **changes: float) -> list[float]:
    config = SFTConfig(learning_rate=8.0, **changes)
    return [learning_rate_at(step, steps, config) for step in range(steps)]


def test_cosine_from_the_full_rate_towards_zero() -> None:
    """Of 4 steps, at 0, 1/4, 1/2, 3/4 of the half wave: 8 * (1 + cos) / 2."""
    assert rates(4) == pytest.approx([8, 6.828427, 4, 1.171573], abs=1e-6)


def test_warm_up_is_linear_and_ends_at_the_full_rate() -> None:
    """A quarter of 8 steps: 8/2 and 8; then the cosine over the 6 others, from its top."""
    cosine = [8, 7.464102, 6, 4, 2, 0.535898]
    assert rates(8, warmup_ratio=0.25) == pytest.approx([4, 8, *cosine], abs=1e-6)


def test_warm_up_is_rounded_up() -> None:
    """A tenth of 5 steps is one step, which has the full rate; the cosine starts from its top."""
    assert rates(5, warmup_ratio=0.1) == pytest.approx([8, 8, 6.828427, 4, 1.171573], abs=1e-6)


def test_single_step_has_the_full_rate() -> None:
    assert rates(1) == [8]
    assert rates(1, warmup_ratio=0.5) == [8]


@given(st.integers(1, 200), st.floats(0, 0.99))
def test_rate_rises_to_the_full_one_and_falls_but_not_to_zero(steps: int, ratio: float) -> None:
    found = rates(steps, warmup_ratio=ratio)
    peak = found.index(max(found))
    assert found[peak] == 8
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert found[-1] > 0
