"""What ranks can do together; one process alone; and dividing work among them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Ranks(Protocol):
    """The processes at work on the same thing, as one of them sees them.

    Whatever is a method is called by all ranks, in the same order; it returns when all have called.
    """

    @property
    def rank(self) -> int:
        """Which of them this process is, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    @property
    def local_rank(self) -> int:
        """Which of those on this machine it is, from 0."""
        ...

    @property
    def on_this_machine(self) -> int:
        """How many of them share this machine."""
        ...

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone decides, writes and speaks to people."""
        ...

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up tensors over the ranks, in place: afterwards all hold the same bits.

        The order of the sum is that of the ranks, and so a number of ranks has one result.

        Args:
            tensors: contiguous, of the same shapes on all ranks; they are summed in float32.

        Raises:
            RanksError: a rank was lost.
        """
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return what every rank gave, in the order of the ranks, on all of them.

        Args:
            value: JSON; floats come out as they were.

        Raises:
            RanksError: a rank was lost.
        """
        ...

    def hear(self, order: Any = None) -> Any:
        """Return the order that rank 0 gives, on all of them; others wait for it without end.

        Args:
            order: JSON, of rank 0.

        Raises:
            RanksError: a rank was lost.
        """
        ...


class _Alone:
    """One process: nothing to wait for."""

    rank = 0
    size = 1
    local_rank = 0
    on_this_machine = 1
    leads = True

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Leave all as it is."""

    def gather(self, value: Any) -> list[Any]:
        """Return the value alone."""
        return [value]

    def hear(self, order: Any = None) -> Any:
        """Return the order."""
        return order


ALONE: Ranks = _Alone()


def shares(weights: Sequence[float], count: int) -> list[list[int]]:
    """Divide things among ranks so that weights come out even.

    The heaviest first, each to whom has least so far (Graham's rule: no rank has more than 4/3 of
    what the best division would give it).

    Args:
        weights: of the things, such as their tokens.
        count: of ranks.

    Returns:
        The places of each rank's things, in order.
    """
    if count == 1:
        return [list(range(len(weights)))]
    dealt: list[list[int]] = [[] for _ in range(count)]
    loads = [(0.0, rank) for rank in range(count)]
    for place in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        load, rank = heapq.heappop(loads)
        dealt[rank].append(place)
        heapq.heappush(loads, (load + weights[place], rank))
    return [sorted(places) for places in dealt]


class Told:
    """Tells of the whole what one rank has done of its share.

    Args:
        tell: called with the number of things done since the last call.
        mine: how many this rank does.
        whole: how many there are.
    """

    def __init__(self, tell: Callable[[int], None], mine: int, whole: int) -> None:
        self._tell = tell
        self._mine = mine
        self._whole = whole
        self._done = self._said = 0

    def __call__(self, done: int) -> None:
        """Take note of `done` more of this rank's things."""
        self._done += done
        self._say(self._done * self._whole // max(1, self._mine))

    def finish(self) -> None:
        """Tell that all ranks are through."""
        self._say(self._whole)

    def _say(self, until: int) -> None:
        if until > self._said:
            self._tell(until - self._said)
            self._said = until
