"""A worker process that is spoken to in JSON lines, with deadlines, and ended with all it started.

The worker is a session of its own, so that Ctrl-C in a terminal reaches macpo alone, and what it
starts (vLLM's engine and its workers) is in its process group.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

TICK_SECONDS = 0.5
"""How often `receive` looks up from waiting."""
TAIL_BYTES = 20_000
SAID_LETTERS = 200


class WorkerFailed(Exception):
    """A worker died, hung, or told of an error; the message continues a sentence about it."""


class WorkerToldError(WorkerFailed):
    """A worker said itself what went wrong."""


class Worker:
    """A running worker.

    Args:
        command: what to run.
        environment: of the process, whole.

    Attributes:
        log: the file with what it writes beside messages; `end` removes it, unless told to keep it.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        number, name = tempfile.mkstemp(prefix="macpo-worker-", suffix=".log")
        self.log = Path(name)
        with os.fdopen(number, "wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=dict(environment),
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        # Also when nobody calls `end`: when the object is forgotten, and when the interpreter ends.
        self._end = weakref.finalize(self, _end_group, self._process)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        assert self._process.stdout is not None  # as asked for above
        threading.Thread(
            target=_read, args=(self._process.stdout, self._lines), daemon=True
        ).start()

    @property
    def pid(self) -> int:
        """The worker's process, whose number is that of its group as well."""
        return self._process.pid

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message.

        Raises:
            WorkerFailed: nobody reads it.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerFailed(self._ended()) from None

    def receive(self, deadline: float, waiting: Callable[[], None]) -> dict[str, Any]:
        """Return the next message.

        Args:
            deadline: seconds after which a worker that is silent counts as hung.
            waiting: called every now and then meanwhile; what it raises is passed on.

        Raises:
            WorkerFailed: there is none in time, the worker has ended, it wrote something else, or
                its message says that it failed.
        """
        started = time.monotonic()
        while True:
            try:
                line = self._lines.get(timeout=min(TICK_SECONDS, deadline))
            except queue.Empty:
                waiting()
                # What it started may hold its pipe open; whatever it had written was read.
                if self._process.poll() is not None and self._lines.empty():
                    raise WorkerFailed(self._ended()) from None
                if time.monotonic() - started >= deadline:
                    raise WorkerFailed(
                        f"gave no sign for {deadline:g} seconds (generation.deadline_s)"
                    ) from None
                continue
            if line is None:
                raise WorkerFailed(self._ended())
            return _message(line)

    def end(self, *, keep_log: bool = False) -> None:
        """End the worker and all that it started, at once."""
        self._end()
        if not keep_log:
            self.log.unlink(missing_ok=True)

    def _ended(self) -> str:
        """Say how the worker ended, with its last words."""
        try:
            code = self._process.wait(TICK_SECONDS)
        except subprocess.TimeoutExpired:
            return f"closed its pipe{self._said()}"
        if code == -signal.SIGKILL:
            return "was killed (signal 9), as the system does when memory runs out"
        how = f"signal {-code}" if code < 0 else f"status {code}"
        return f"ended by itself ({how}{self._said()})"

    def _said(self) -> str:
        """Return the last line of the log, as half a sentence."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            shown = "".join(c if c.isprintable() else " " for c in last)[:SAID_LETTERS]
            return f"; it said last: {shown}" if shown else ""
        return ""


def _message(line: str) -> dict[str, Any]:
    """Read a message; one of failure is raised."""
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise WorkerFailed(f"wrote what is no message: {line.strip()[:SAID_LETTERS]!r}")
    if "failed" in message:
        raise WorkerToldError(f"failed: {message['failed']}")
    return message


def _read(out: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    """Pass on what a worker writes, and None when it cannot write any more."""
    with contextlib.suppress(OSError, ValueError):  # the pipe is closed under us
        for line in out:
            lines.put(line)
    lines.put(None)


def _end_group(process: subprocess.Popen[str]) -> None:
    """Kill a worker and all that it started, before its number can be another's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
