"""Rendering a chat template that somebody else wrote, within seconds and a stated memory.

A template is a program. The sandbox of transformers keeps it from files and secrets, not from
loops in loops or from `'a' * 10 ** 10`. Here it has some seconds of CPU time between lines of
Python, and on Linux some address space that it may add. Neither ends one operation on little memory
that computes for long. Of these there are powers: templates that have any are refused. A product
takes some three times as long as those that made its factors, at most, and memory ends it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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


def refuse_powers(template: str) -> None:
    """Refuse a template that raises numbers to a power, which no chat template has a use for.

    Compiling it would compute what is constant. Beside the operator, rounding raises 10 to as many
    digits as it is told; `map` can be told any filter's name.

    Args:
        template: its text; what is no template is left to whoever compiles it.

    Raises:
        TemplateError: it does.
    """
    from jinja2 import Environment, TemplateSyntaxError

    try:
        found = [
            (kind, word)
            for _, kind, word in Environment().lex(template)
            if kind not in ("whitespace", "data", "comment")
        ]
    except TemplateSyntaxError:
        return
    padded = [*found, *[("", "")] * 3]
    for at, (kind, word) in enumerate(found):
        after = padded[at + 1 : at + 4]
        if kind == "operator" and word == "**":
            raise TemplateError("raises numbers to a power (**)")
        if kind != "name" or found[at - 1][1] not in ("|", "filter"):
            continue
        if word == "round" and not _rounds_plainly(after):
            raise TemplateError("rounds to a number of digits that is not written out")
        if word == "map" and not _names_a_filter(after):
            raise TemplateError("maps by a filter whose name is not written out")


def _rounds_plainly(after: Sequence[tuple[str, str]]) -> bool:
    """Tell whether what follows `round` is nothing, or one or two figures in brackets."""
    (_, opening), (kind, digits), (_, closing) = after
    if opening != "(":
        return True
    return closing in (")", ",") and kind == "integer" and len(digits) < 3


def _names_a_filter(after: Sequence[tuple[str, str]]) -> bool:
    """Tell whether what follows `map` is the name of a filter that raises nothing to a power."""
    (_, opening), (kind, word), (_, then) = after
    if opening != "(" or (kind == "name" and then == "="):
        return True
    return kind == "string" and then in (")", ",") and "round" not in word and "\\" not in word


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
