"""Want of memory: telling it from other errors, and beginning again with less.

What a pass takes is known only when it has been tried. Whoever divides work by a budget catches
want of memory, halves the budget, lets go of what was computed, and does that part again. Results
do not depend on how work is divided (but for rounding), and no key does.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from macpo.errors import ModelError, SmallestBudgetError

_ASKED = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)

LOWER = (
    "engine.pack_tokens (training and scoring) or engine.decode_memory_gib (answers), or set "
    "dtype: bfloat16"
)
"""What takes less memory in a run."""

warn = logging.getLogger("macpo").warning
"""Who hears of a smaller budget where nobody listens."""

_listener: ContextVar[Callable[[str], None]] = ContextVar("listener", default=warn)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is want of memory, of the machine or of an accelerator.

    PyTorch has an error of its own for accelerators; on a CPU, on Apple's GPUs and in some of
    CUDA's libraries only the text tells.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    known = "can't allocate memory" in text or "out of memory" in text.lower()
    return isinstance(error, RuntimeError) and known


def asked_for(error: BaseException) -> str:
    """Return how much was asked for, as ` (tried to allocate 2.00 GiB)`; empty if unknown."""
    found = _ASKED.search(str(error))
    return f" (tried to allocate {found[1]})" if found else ""


def halved(error: BaseException, now: int, parts: int, what: str, advice: str) -> int | None:
    """Return half a budget after want of memory, and tell the listener; None for other errors.

    Args:
        error: what was raised.
        now: what the failed part of the work took of the budget, at least 1.
        parts: into how many the failed part can be divided.
        what: the budget's unit, such as `tokens in a pass`.
        advice: what to lower where the part cannot be divided.

    Raises:
        SmallestBudgetError: it cannot be divided.
    """
    if not is_out_of_memory(error):
        return None
    if parts < 2:
        raise SmallestBudgetError(f"out of memory{asked_for(error)} {advice}") from error
    less = max(1, now // 2)
    _listener.get()(
        f"out of memory{asked_for(error)} with {now:,} {what}: it goes on with {less:,} at most; "
        "results change by rounding at most"
    )
    return less


def release() -> None:
    """Give back what a failed pass held; not within an `except`, whose error holds on to it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def telling(listener: Callable[[str], None]) -> Iterator[None]:
    """Let a function hear of smaller budgets while the block runs."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def translate_memory_errors(what: str, lower: str = LOWER) -> Iterator[None]:
    """Turn want of memory, where nobody gave way to it, into an error of ours.

    Args:
        what: was done, such as a stage's name.
        lower: the options that take less.

    Raises:
        ModelError: one line with what was done, how much was asked for, and the options.
    """
    try:
        yield
    except SmallestBudgetError as error:
        raise ModelError(f"{what}: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"{what}: out of memory{asked_for(error)}; lower {lower}; then run again"
        ) from error
