"""A process that stands by rank 0 of a run on the same machine: `python -m macpo.execution.worker`.

It is started by `macpo.ranks.launch.started`, and ends when that process says so, or is gone.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Sequence

from macpo.errors import MacpoError, RanksError
from macpo.ranks.launch import LOST, Seat, answered


def main(arguments: Sequence[str]) -> int:
    """Follow rank 0.

    Args:
        arguments: the words of this rank's `Seat`, and a descriptor of the terminal for what is
            said when rank 0 is gone.

    Returns:
        The status to end with.
    """
    seat, terminal = Seat.read(arguments[:-1]), int(arguments[-1])
    parent = os.getppid()
    logging.disable(logging.WARNING)  # rank 0 says the same
    try:
        ranks = answered(seat)
        from macpo.execution.following import follow

        follow(ranks, threading.Event())
    except KeyboardInterrupt:
        return 130
    except RanksError as error:
        print(f"macpo: {error}", file=sys.stderr)
        if seat.rank == 1 and os.getppid() != parent:
            gone = f"macpo: rank 0 of {seat.size} is gone; run the same command to go on\n"
            os.write(terminal, gone.encode())
        return LOST
    except MacpoError as error:
        print(f"macpo: {error}", file=sys.stderr)
        return 1
    except Exception:
        os.write(terminal, traceback.format_exc().encode())  # a bug
        raise
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # without waiting for others that may be gone
