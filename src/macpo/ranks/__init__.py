"""Several processes at one piece of work: who they are, and what they tell one another.

All ranks call the same functions in the same order; what each of them does on its own lies between.
A `Ranks` object is handed on to whoever needs it and is all that he knows of the others. `ALONE` is
the one of an ordinary run: one process, which waits for nobody.

    protocol.py   what ranks can do together, and one process alone
    group.py      several, over torch.distributed
    launch.py     starting them on this machine, or joining those that a launcher has started
"""

from macpo.ranks.protocol import ALONE, Ranks, Told, shares

__all__ = ["ALONE", "Ranks", "Told", "shares"]
