"""Rank 1 of a test's two ranks: it calls the same functions of `tests.ranks.tasks` as the test.

with partnered() as ranks:
    both(ranks, "add_up", numbers=[1.0, 2.0])  # tasks.add_up(ranks, numbers=...) on both ranks
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from macpo.ranks import Ranks
from macpo.ranks.launch import Seat, answered, started

PARTNER = (sys.executable, "-m", "tests.ranks.partner")
PATIENCE = timedelta(seconds=240)  # below that of a test: what waits for gloo hears no alarm


@contextlib.contextmanager
def partnered() -> Iterator[Ranks]:
    """Be rank 0 of two ranks, the other a partner."""
    from macpo.ranks import group

    before = group.PATIENCE, group.FOREVER
    group.PATIENCE = group.FOREVER = PATIENCE
    try:
        with started(2, PARTNER) as ranks:
            yield ranks
    finally:
        group.PATIENCE, group.FOREVER = before


def both(ranks: Ranks, task: str, **arguments: Any) -> Any:
    """Let both ranks call a task; return what it returns here. Arguments are JSON."""
    from tests.ranks import tasks

    ranks.hear([task, arguments])
    return getattr(tasks, task)(ranks, **arguments)


def main() -> None:
    import torch

    from macpo.ranks import group

    torch.set_num_threads(1)
    group.PATIENCE = group.FOREVER = PATIENCE
    ranks = answered(Seat.read(sys.argv[1:-1]))
    from tests.ranks import tasks

    while (order := ranks.hear()) is not None:
        task, arguments = order
        getattr(tasks, task)(ranks, **arguments)


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)
