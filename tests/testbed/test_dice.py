"""Draws: their stream is pinned, their distributions are what they say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from macpo.seeds import stable_seed
from macpo.testbed.dice import BUFFER, Dice


def test_stream_is_philox_raw_output_across_buffers() -> None:
    dice = Dice("a", 1)
    raw = np.random.Philox(key=stable_seed("a", 1)).random_raw(BUFFER + 10)
    expected = [int(word >> np.uint64(11)) / 2**53 for word in raw]
    assert [dice.uniform() for _ in range(BUFFER + 10)] == expected


def test_equal_parts_give_equal_draws_and_other_parts_do_not() -> None:
    def draws(*parts: str | int) -> list[float]:
        dice = Dice(*parts)
        return [dice.uniform() for _ in range(5)]

    assert draws("a", 1) == draws("a", 1)
    assert draws("a", 1) != draws("a", "1")


def test_between_reaches_both_ends_and_nothing_else() -> None:
    dice = Dice("ends")
    assert {dice.between(2, 5) for _ in range(300)} == {2, 3, 4, 5}


def test_weights_decide_how_often_a_key_is_drawn() -> None:
    dice = Dice("weights")
    counts = Counter(dice.pick_weighted({"a": 3.0, "none": 0.0, "b": 1.0}) for _ in range(4000))
    assert set(counts) == {"a", "b"}
    # 4000 draws at 3/4: standard deviation 27, so 5 of them allow 137; chance of a miss 6e-7.
    assert counts["a"] == pytest.approx(3000, abs=137)


def test_sample_has_no_item_twice_and_shuffle_keeps_all() -> None:
    dice = Dice("sample")
    for _ in range(100):
        assert len(set(dice.sample("abcdef", 4))) == 4
    assert sorted(dice.shuffle("aabbc")) == list("aabbc")
