"""Being asked to stop: by Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def stop_on_signal(note: Callable[[str], None]) -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into a request to stop at the next safe point.

    The second one interrupts at once. Outside the main thread signals are left alone.

    Args:
        note: tells the user that the request was heard.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        with contextlib.suppress(RuntimeError):  # the signal came while a line was being written
            note("stopping at the next safe point; once more to stop at once")

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
