"""Rendering a chat template that somebody else wrote, within seconds and a stated memory.

A template is a program. The sandbox of transformers keeps it from files and secrets, not from
loops in loops or from `'a' * 10 ** 10`. Here it has some seconds of CPU time between lines of
Python, and on Linux some address space that it may add. What is not bounded is one operation on
little memory that computes for long, such as a power of huge numbers.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SECONDS = 10.0
"""Of CPU time that one rendering may take; ordinary ones take some tenths of a millisecond."""

ADDED_BYTES = 1 << 30
"""Of address space that one rendering may add."""

WRITTEN_AT_LEAST, WRITTEN_PER_CHARACTER = 1 << 20, 16
"""A rendering may have so many characters, or so many for each one of the messages."""


class TemplateError(Exception):
    """A template takes too much, in a few words."""


def bounded(render: Callable[[], str], characters: int) -> str:
    """Return what `render` returns, unless it takes too much time, memory or room.

    Args:
        render: renders one conversation.
        characters: that its messages have.

    Raises:
        TemplateError: it takes too much.
    """
    try:
        with _limited_time(), _limited_memory():
            text = render()
    except MemoryError:
        raise TemplateError(f"takes more than {ADDED_BYTES >> 20} MiB") from None
    most = max(WRITTEN_AT_LEAST, WRITTEN_PER_CHARACTER * characters)
    if len(text) > most:
        raise TemplateError(f"writes {len(text):,} characters for {characters:,}")
    return text


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    """Let Python code run for some seconds of CPU time.

    In the main thread by a timer's signal, which costs nothing; elsewhere signals do not arrive,
    and every line is traced.
    """
    if threading.current_thread() is not threading.main_thread():
        with _traced(time.thread_time() + SECONDS):
            yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise TemplateError(f"takes more than {SECONDS:g} s")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, 0.1)  # again, should somebody swallow it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def _traced(end: float) -> Iterator[None]:
    """Look at this thread's CPU time at every line of Python."""

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > end:
            raise TemplateError(f"takes more than {SECONDS:g} s")
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


@contextlib.contextmanager
def _limited_memory() -> Iterator[None]:
    """Let this process grow by so much; where the system does not say how large it is, by any."""
    try:
        import resource

        with open("/proc/self/statm", "rb") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        limits = [size + ADDED_BYTES, *(limit for limit in before if limit >= 0)]
        resource.setrlimit(resource.RLIMIT_AS, (min(limits), before[1]))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
