"""How a command that may take days ends when it is asked to."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

import typer


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Within it Ctrl-C and SIGTERM end the command in one line that says how to go on.

    What is within may turn the first of them into a request, see `macpo.execution.stopping`; then
    this is about the moments before and after.

    Raises:
        Exit: asked to stop; with status 130.
    """
    try:
        with _sigterm_interrupts():
            yield
    except KeyboardInterrupt:
        print("macpo: stopped; run the same command to go on", file=sys.stderr)
        raise typer.Exit(130) from None


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt; outside the main thread signals are left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
