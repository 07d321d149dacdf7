"""`make sweep`: check every family and write docs/models.md, or print what is found of some.

python -m tests.sweep                 # all, into docs/models.md; some ten minutes on two cores
python -m tests.sweep llama phi3      # these, on the screen
"""

from __future__ import annotations

import signal
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from types import FrameType

SECONDS = 180
WORKERS = 2


class TooSlowError(BaseException):  # no check takes it for a fault of the model
    """A family took more than `SECONDS` of CPU time."""


def stop(number: int, frame: FrameType | None) -> None:
    """Interrupt a family that takes too long."""
    raise TooSlowError(f"took more than {SECONDS} s of CPU")


def check(name: str) -> object:
    """Check one family, in a process of its own kind."""
    import torch
    from transformers.utils import logging

    from tests.sweep.checks import Verdict, complete

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    verdict = Verdict(name)
    try:
        complete(verdict)
    except TooSlowError as error:
        if verdict.scores:
            verdict.faults["time"] = str(error)
        else:
            verdict.built = str(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return verdict


def main(names: list[str]) -> None:
    """Check the families of these names, or all."""
    from tests.sweep.checks import Verdict
    from tests.sweep.families import families
    from tests.sweep.page import write_page

    verdicts = []
    with ProcessPoolExecutor(WORKERS) as pool:
        for verdict in pool.map(check, names or families()):
            assert isinstance(verdict, Verdict)
            print(verdict.line(), flush=True)
            verdicts.append(verdict)
    if not names:
        write_page(verdicts)


if __name__ == "__main__":
    main(sys.argv[1:])
