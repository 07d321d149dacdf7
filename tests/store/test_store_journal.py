"""The journal survives torn lines; progress is cheap and never in the way."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import macpo
from macpo.store import Journal, Progress, read_journal, read_progress
from macpo.store import journal as journal_module


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl", now=lambda: 1738324800.25)


def test_an_event_is_one_line_with_time_stage_key_seconds_and_fields(journal: Journal) -> None:
    journal.append("run_start")
    journal.append("finished", stage="student/sft", key="6f0c", seconds=12.5, loss=1.25)
    assert journal.path.read_text() == (
        '{"time": "2025-01-31T12:00:00.250Z", "event": "run_start"}\n'
        '{"time": "2025-01-31T12:00:00.250Z", "event": "finished", "stage": "student/sft", '
        '"key": "6f0c", "seconds": 12.5, "loss": 1.25}\n'
    )
    assert [event["event"] for event in read_journal(journal.path)] == ["run_start", "finished"]


def test_no_journal_means_no_events(journal: Journal) -> None:
    assert read_journal(journal.path) == []


@pytest.mark.parametrize(
    "torn", [b"{", b'{"event": "b"', b'{"event": "b"}', b"\0\0\0", b"\xff", b"x" * 10_000]
)
def test_a_torn_last_line_is_no_event_and_the_next_append_removes_it(
    journal: Journal, torn: bytes
) -> None:
    journal.append("first")
    with journal.path.open("ab") as file:
        file.write(torn)
    assert [event["event"] for event in read_journal(journal.path)] == ["first"]
    journal.append("second")
    assert [event["event"] for event in read_journal(journal.path)] == ["first", "second"]


def test_a_torn_only_line_is_removed_too(journal: Journal) -> None:
    journal.path.write_bytes(b'{"event')
    assert read_journal(journal.path) == []
    journal.append("first")
    assert len(journal.path.read_text().splitlines()) == 1


@pytest.mark.parametrize("line", [b"not json", b"[1]", b"", b"\xff\xfe", b"[" * 100_000])
def test_any_other_bad_line_is_named_and_passed_over(
    journal: Journal, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    journal.append("first")
    with journal.path.open("ab") as file:
        file.write(line + b"\n")
    journal.append("third")
    assert [event["event"] for event in read_journal(journal.path)] == ["first", "third"]
    [told] = caplog.messages
    assert told.startswith(f"{journal.path}: 1 of its lines are damaged and passed over, the first")
    assert told.endswith("is line 2; nothing depends on them")


def test_odd_content_stays_one_line(journal: Journal) -> None:
    fields = {"text": 'two\nlines\u2028 "and" \ud800', "nested": {"loss": float("nan")}}
    journal.append("odd", worst=float("-inf"), **fields)
    (event,) = read_journal(journal.path)
    assert event["text"] == fields["text"]
    assert event["nested"] == {"loss": "nan"}
    assert event["worst"] == "-inf"
    assert journal.path.read_bytes().count(b"\n") == 1


def test_a_field_cannot_take_the_place_of_the_time(journal: Journal) -> None:
    with pytest.raises(ValueError, match="time: a journal line sets this itself"):
        journal.append("event", time="yesterday")
    assert not journal.path.exists()


APPEND = """
import sys
from pathlib import Path
from macpo.store import Journal
journal = Journal(Path(sys.argv[1]))
for number in range(40):
    journal.append("step", writer=sys.argv[2], number=number)
"""


def test_processes_and_threads_that_append_at_once_lose_no_line(journal: Journal) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(macpo.__file__).parent.parent)}
    command = [sys.executable, "-c", APPEND, str(journal.path)]
    processes = [subprocess.Popen([*command, name], env=environment) for name in "ab"]

    def append(name: str) -> None:
        for number in range(40):
            journal.append("step", writer=name, number=number)

    threads = [threading.Thread(target=append, args=(name,)) for name in "cd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in processes] == [0, 0]
    events = read_journal(journal.path)
    for name in "abcd":
        assert [e["number"] for e in events if e["writer"] == name] == list(range(40))


def test_a_line_that_another_thread_is_writing_is_not_taken_for_a_torn_one(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_written = threading.Event()

    def write_slowly(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[:20])
        half_written.set()
        time.sleep(0.05)
        os.write(descriptor, data[20:])

    monkeypatch.setattr(journal_module, "write_all", write_slowly)
    thread = threading.Thread(target=journal.append, args=("first",))
    thread.start()
    assert half_written.wait(timeout=10)
    journal.append("second")
    thread.join()
    assert [event["event"] for event in read_journal(journal.path)] == ["first", "second"]


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_progress_shows_at_once_then_every_half_second_and_goes_at_the_end(tmp_path: Path) -> None:
    path, clock = tmp_path / "progress.json", Clock()
    assert read_progress(path) is None
    with Progress(path, "student/sft", "6f0c", clock=clock) as progress:
        progress.update(1, 50, loss=float("nan"))
        assert read_progress(path) == {
            "stage": "student/sft",
            "key": "6f0c",
            "done": 1,
            "total": 50,
            "seconds": 0.0,
            "loss": "nan",
        }
        clock.seconds += 0.4
        progress.update(2, 50)
        shown = read_progress(path)
        assert shown is not None
        assert shown["done"] == 1
        clock.seconds += 0.1
        progress.update(3, 50)
        shown = read_progress(path)
        assert shown is not None
        assert (shown["done"], shown["seconds"]) == (3, 0.5)
    assert list(tmp_path.iterdir()) == []


def test_progress_goes_when_the_stage_fails(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"

    def fail() -> None:
        with Progress(path, "sft") as progress:
            progress.update(1, 2)
            assert path.exists()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not path.exists()


def test_a_stage_goes_on_without_progress_after_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    with (
        caplog.at_level(logging.WARNING),
        Progress(tmp_path / "absent" / "progress.json", "sft", clock=clock) as progress,
    ):
        for done in range(3):
            progress.update(done, 3)
            clock.seconds += 1
    assert caplog.text.count("progress is not shown: cannot write") == 1


def test_progress_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    for content in ("", "{", json.dumps([1])):
        path.write_text(content)
        assert read_progress(path) is None
    path.unlink()
    path.mkdir()
    assert read_progress(path) is None
