"""What goes between a running stage and the driver: progress there, the wish to stop back."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

FLUSH_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Message:
    """One thing that a running stage tells: `started`, `progress`, `waiting`, `set_aside`, `note`,
    `narrowed`.

    `fields` are the arguments of a report of progress, or `text`.
    """

    kind: str
    fields: dict[str, Any]


class Mailbox:
    """The actor between workers and driver; it lives on the driver's node and ends with it."""

    def __init__(self) -> None:
        self._mail: list[tuple[str, list[Message]]] = []
        self._stopping: set[str] = set()
        self._addresses: dict[str, tuple[str, int]] = {}

    def post(self, job: str, messages: list[Message]) -> bool:
        """Take messages of a job; returns whether it is to stop."""
        if messages:
            self._mail.append((job, messages))
        return job in self._stopping

    def drain(self) -> list[tuple[str, list[Message]]]:
        """Return the mail since this was last asked for, oldest first."""
        mail, self._mail = self._mail, []
        return mail

    def stop(self, jobs: Sequence[str]) -> None:
        """Ask jobs to stop at their next safe point."""
        self._stopping |= set(jobs)

    def meet(self, job: str, host: str, port: int) -> None:
        """Take where the first rank of a job is found."""
        self._addresses[job] = (host, port)

    def met(self, job: str) -> tuple[str, int] | None:
        """Return where the first rank of a job is found; None until it has said so."""
        return self._addresses.get(job)


class Reporter:
    """Posts a job's messages, a few times a second all that have come about.

    Used as a context manager: its end has posted everything.

    Args:
        mailbox: the handle of the actor.
        job: whose messages they are.
    """

    def __init__(self, mailbox: Any, job: str) -> None:
        self._mailbox = mailbox
        self._job = job
        self._messages: list[Message] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_posting, name="reports", daemon=True)

    def __enter__(self) -> Reporter:
        self.post()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.post()

    @property
    def stopping(self) -> bool:
        """Whether the driver asked this job to stop."""
        return self._stop.is_set()

    def wait_to_stop(self, seconds: float) -> bool:
        """Wait for a moment; returns whether the driver asked this job to stop."""
        return self._stop.wait(seconds)

    def tell(self, kind: str, **fields: Any) -> None:
        """Tell the driver something, soon."""
        with self._lock:
            self._messages.append(Message(kind, fields))

    def post(self) -> None:
        """Post what there is now, and hear whether to stop."""
        with self._lock:
            messages, self._messages = self._messages, []
        # Not by ray.get: a task that waits in it gives its CPUs back meanwhile, and Ray starts
        # others on them.
        if self._mailbox.post.remote(self._job, messages).future().result():
            self._stop.set()

    def meet(self, host: str, port: int) -> None:
        """Say where this job's first rank is found, to those who stand by on other nodes."""
        self._mailbox.meet.remote(self._job, host, port).future().result()

    @contextlib.contextmanager
    def warnings(self) -> Iterator[None]:
        """Pass on macpo's warnings as notes while the block runs: nobody reads a worker's log."""
        logger, handler = logging.getLogger("macpo"), _Notes(self)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    def _keep_posting(self) -> None:
        while not self._ended.wait(FLUSH_SECONDS):
            self.post()


class _Notes(logging.Handler):
    """Turns warnings into notes."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.tell("note", text=record.getMessage())
