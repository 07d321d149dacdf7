"""`make sweep`: check every family and write docs/models.md, or print some families.

python -m tests.sweep                 # all, into docs/models.md
python -m tests.sweep llama phi3      # these, on the screen
"""

from __future__ import annotations

import signal
import sys
import warnings
from types import FrameType

import torch
from transformers.utils import logging

from tests.sweep.checks import Verdict, check_family
from tests.sweep.families import families
from tests.sweep.page import write_page

SECONDS = 180


class TooSlow(Exception):
    """A family took longer than `SECONDS`."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"took longer than {SECONDS} s")


def main(names: list[str]) -> None:
    """Check the families of these names, or all."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _stop)
    verdicts = []
    for name in names or families():
        signal.alarm(SECONDS)
        try:
            verdict = check_family(name)
        except TooSlow as error:
            verdict = Verdict(name, built=str(error))
        finally:
            signal.alarm(0)
        verdicts.append(verdict)
        print(verdict, flush=True)
    if not names:
        write_page(verdicts)


main(sys.argv[1:])
