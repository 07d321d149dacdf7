"""What happened when: the run's journal, and the progress of the stage that runs now.

Artifacts hold no times, so that two runs can be compared byte by byte; when something happened and
how long it took stands in journals only: the run's, and the store's `times.jsonl`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from macpo.errors import StoreError
from macpo.store import oslock
from macpo.store.atomic import (
    fsync_directory,
    translate_write_errors,
    write_all,
    write_text_atomic,
)

_RESERVED = frozenset({"time", "event", "stage", "key", "seconds"})

_TEXTS = ("stage", "key", "reason", "title", "text", "command", "device")
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "planned": ("stages",),
    "evaluating": ("stages",),
    "started": ("key",),
    "finished": ("key", "seconds"),
    "found": ("key",),
    "stopped": ("key",),
    "set_aside": ("key",),
    "narrowed": ("key", "text"),
    "alert": ("title", "text"),
    "replied": ("key", "text"),
}
"""What readers take from an event, beside when it was and what."""

_log = logging.getLogger(__name__)

_odd_lines: dict[Path, tuple[int, ...]] = {}
"""Damaged lines that this process has told of, by file."""


class Journal:
    """Appends events to a `journal.jsonl`, one fsynced line each.

        {"time": "2025-01-31T12:00:00.000Z", "event": "finished",
         "stage": "init/student/positive", "key": "6f0c…", "seconds": 12.5}

    Args:
        path: the file; made when the first event comes.
        now: the clock, in seconds since 1970.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._now = now

    def append(
        self,
        event: str,
        *,
        stage: str | None = None,
        key: str | None = None,
        seconds: float | None = None,
        **fields: Any,
    ) -> None:
        """Write one event; it survives a power loss once this returns.

        A line that a kill left unfinished is removed first. Numbers that JSON does not know (NaN,
        infinities) are written as text.

        Args:
            event: what happened, such as `finished`.
            stage: the stage it happened to.
            key: the key of that stage.
            seconds: how long it took.
            **fields: JSON to write with it.

        Raises:
            StoreError: the line cannot be written; the journal is as it was.
        """
        taken = sorted(_RESERVED & fields.keys())
        if taken:
            raise ValueError(f"{', '.join(taken)}: a journal line sets this itself")
        moment = datetime.fromtimestamp(self._now(), UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "event": event,
        }
        given = {"stage": stage, "key": key, "seconds": seconds}
        line |= {name: value for name, value in given.items() if value is not None}
        self._append_line((json.dumps(_plain(line | fields)) + "\n").encode())

    def _append_line(self, line: bytes) -> None:
        with translate_write_errors(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                # Two processes or threads that append at once must not take each other's line, half
                # written, for one that a kill left.
                oslock.lock(descriptor, wait=True)
                size = _drop_torn_line(descriptor)
                try:
                    write_all(descriptor, line)
                    os.fsync(descriptor)
                except BaseException:
                    os.ftruncate(descriptor, size)
                    raise
            finally:
                os.close(descriptor)
            if size == 0:
                fsync_directory(self.path.parent)


def describe_stop(error: BaseException) -> str:
    """Return the reason that a line `stopped` gives."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the events of a journal, oldest first; none when there is no file.

    A last line that a kill left unfinished is not an event yet and is passed over. So is, with a
    warning, any other line that no journal has written: no result depends on what it said.

    Raises:
        StoreError: the file cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check its mode") from error
    events: list[dict[str, Any]] = []
    odd: list[int] = []
    lines = content.split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is unfinished
        event = _parse_object(line)
        if event is not None and _is_event(event):
            events.append(event)
        else:
            odd.append(number)
    _warn_of(Path(path), tuple(odd))
    return events


def _warn_of(path: Path, odd: tuple[int, ...]) -> None:
    """Say which lines are passed over, once for those of a file."""
    if odd and _odd_lines.get(path) != odd:
        _log.warning(
            "%s: %d of its lines are damaged and passed over, the first is line %d; nothing "
            "depends on them",
            path,
            len(odd),
            odd[0],
        )
        _odd_lines[path] = odd


def _is_event(line: Mapping[str, Any]) -> bool:
    """Tell whether an object is what `Journal.append` writes, with what such an event tells."""
    kind = line.get("event")
    if not isinstance(kind, str) or not _is_moment(line.get("time")):
        return False
    if any(not isinstance(line.get(name, ""), str) for name in _TEXTS):
        return False
    if any(not isinstance(line.get(name, {}), dict) for name in ("versions", "machine")):
        return False
    seconds = line.get("seconds", 0.0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e12:
        return False
    stages = line.get("stages", [])
    if not isinstance(stages, list) or not all(map(_is_name_and_key, stages)):
        return False
    return all(name in line for name in _NEEDED.get(kind, ()))


def _is_name_and_key(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)


def _is_moment(text: object) -> bool:
    """Tell whether a text is a time with its zone, in ISO 8601."""
    try:
        moment = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return False
    return isinstance(text, str) and moment.tzinfo is not None


class Progress:
    """Shows where the running stage is, in a small file that is replaced again and again.

        with Progress(run / "progress.json", stage="student/sft", key=key) as progress:
            for step in range(steps):
                ...
                progress.update(done=step + 1, total=steps, loss=loss)

    The file goes when the block ends. It is written every half second at most and never fsynced;
    that it cannot be written is a warning, for no work depends on it.
    """

    def __init__(
        self,
        path: Path,
        stage: str,
        key: str = "",
        *,
        interval: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = Path(path)
        self._stage = stage
        self._key = key
        self._interval = interval
        self._clock = clock
        self._next = -math.inf
        self._start = clock()

    def __enter__(self) -> Progress:
        return self

    def update(self, done: int, total: int, **fields: Any) -> None:
        """Show `done` of `total` units of work, with `fields` beside them, if it is time to."""
        moment = self._clock()
        if moment < self._next:
            return
        self._next = moment + self._interval
        line = {
            "stage": self._stage,
            "key": self._key,
            "done": done,
            "total": total,
            "seconds": round(moment - self._start, 3),
            **fields,
        }
        try:
            write_text_atomic(self.path, json.dumps(_plain(line)) + "\n", durable=False)
        except StoreError as error:
            self._next = math.inf  # one warning is enough
            _log.warning("progress is not shown: %s", error)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the file."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as failure:
            _log.warning("cannot remove %s: %s", self.path, failure.strerror)


def read_progress(path: Path) -> dict[str, Any] | None:
    """Return what `Progress` last wrote; None when no stage shows any.

    The file of a killed process stays until the next stage starts: `lock_holder` tells whether
    anybody is at work.
    """
    try:
        return _parse_object(Path(path).read_bytes())
    except OSError:
        return None


def _drop_torn_line(descriptor: int) -> int:
    """Cut off what follows the last newline; return the size in bytes that remains."""
    size = os.fstat(descriptor).st_size
    end = size
    while end > 0:
        start = max(0, end - 4096)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
    return end


def _parse_object(line: bytes) -> dict[str, Any] | None:
    """Parse a JSON object; None when it is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _plain(value: Any) -> Any:
    """Replace numbers that JSON does not know by their names, as in "nan"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
