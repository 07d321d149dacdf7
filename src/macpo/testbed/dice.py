"""Random draws whose stream is fixed for all versions of Python and NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from macpo.seeds import stable_seed

Item = TypeVar("Item")

BUFFER = 256


class Dice:
    """A stream of draws, made from the raw output of the counter-based generator Philox.

    NumPy promises that stream for good, unlike what its distributions make of it.

    Args:
        *parts: what decides the stream, as in `macpo.seeds.stable_seed`.
    """

    def __init__(self, *parts: str | int) -> None:
        self._bits = np.random.Philox(key=stable_seed(*parts))
        self._uniforms: list[float] = []

    def uniform(self) -> float:
        """Return a number in [0, 1)."""
        if not self._uniforms:
            raw = self._bits.random_raw(BUFFER)
            self._uniforms = ((raw >> np.uint64(11)) * 2.0**-53).tolist()[::-1]
        return self._uniforms.pop()

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.uniform() < probability

    def between(self, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`, both included."""
        return low + int(self.uniform() * (high - low + 1))

    def pick(self, items: Sequence[Item]) -> Item:
        """Return one of the items."""
        return items[self.between(0, len(items) - 1)]

    def pick_weighted(self, weights: Mapping[str, float]) -> str:
        """Return one of the keys, in proportion to its weight."""
        at = self.uniform() * sum(weights.values())
        for name, weight in weights.items():
            at -= weight
            if at < 0:
                return name
        return [name for name, weight in weights.items() if weight > 0][-1]  # rounding

    def sample(self, items: Sequence[Item], count: int) -> tuple[Item, ...]:
        """Return `count` different items in random order."""
        left = list(items)
        return tuple(left.pop(self.between(0, len(left) - 1)) for _ in range(count))

    def shuffle(self, items: Sequence[Item]) -> tuple[Item, ...]:
        """Return the items in random order."""
        return self.sample(items, len(items))
