"""How a fault ended: an answer, one of our errors in one line, a traceback, a hang, or silence."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from macpo.errors import ConfigError, MacpoError

SECONDS = 30.0
"""After so long an answer is a hang; an ordinary one takes some tenths of a second."""

OUTCOMES = ("answer", "one line", "traceback", "hang", "silent")


class Hang(BaseException):  # no `except Exception` takes it for an error of its own
    """An answer took too long."""


class Silent(Exception):
    """Damage was there, and nothing said so."""


Fault = Callable[[], object]
Kind = Callable[[Path, random.Random], Iterator[tuple[str, Fault]]]
"""Yields faults for ever, each with a name; what it does to the run at the path it takes back."""


def outcome(ask: Fault) -> tuple[str, str]:
    """Ask, and say how that ended and with what words."""
    try:
        with _alarm():
            ask()
    except ConfigError:  # lists every fault of a file, one a line
        return "one line", ""
    except MacpoError as error:
        return ("traceback", str(error)) if "\n" in str(error) else ("one line", "")
    except Hang:
        return "hang", f"took more than {SECONDS:g} s"
    except Silent as error:
        return "silent", str(error)
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    return "answer", ""


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
