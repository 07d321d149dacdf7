"""The run lock: one holder, a clear message for others, freed by any death of the holder."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import macpo
from macpo.errors import RunLockedError, StoreError
from macpo.store import RunLock, lock_holder
from macpo.store import lock as lock_module

HOLD = """
import sys, time
from pathlib import Path
from macpo.store import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

HOLD_WITH_CHILD = """
import os, sys, time
from pathlib import Path
from macpo.store import RunLock
with RunLock(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


FORK = """
import os, sys
from pathlib import Path
from macpo.errors import RunLockedError
from macpo.store import RunLock, lock_holder
path = Path(sys.argv[1])
lock = RunLock(path)
with lock:
    child = os.fork()
    if child == 0:
        lock.__exit__(None, None, None)
        try:
            with RunLock(path):
                os._exit(1)
        except RunLockedError:
            os._exit(0)
    refused = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    holder = lock_holder(path)
    print("child", "refused," if refused else "took it,", end=" ")
    print("parent still holds it:", holder is not None and holder.pid == os.getpid(), flush=True)
"""

ASK = """
import sys
from pathlib import Path
from macpo.errors import RunLockedError
from macpo.store import lock_holder
print("asking", flush=True)
while True:
    try:
        lock_holder(Path(sys.argv[1]))
    except RunLockedError:
        pass
"""


@contextmanager
def running(script: str, path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a script until it has printed its first line; kill -9 it at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path), "--beta=0.1 x"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(macpo.__file__).parent.parent)},
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "run.lock"


def test_a_second_process_is_told_who_holds_the_run_directory(path: Path) -> None:
    with running(HOLD, path) as (process, line):
        assert line == "held"
        with pytest.raises(RunLockedError) as caught, RunLock(path):
            pass
        holder = lock_holder(path)
    assert re.fullmatch(
        rf"run directory {path.parent} is held by process {process.pid} on "
        rf"{re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\S+ "
        rf"\(command -c {path} '--beta=0.1 x'\): wait for it, stop it, or use another --out",
        str(caught.value),
    )
    assert holder is not None
    assert holder.pid == process.pid


def test_kill_9_frees_the_lock_and_the_next_holder_is_named(path: Path) -> None:
    with running(HOLD, path) as (process, _):
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert lock_holder(path) is None
        with RunLock(path):
            holder = lock_holder(path)
            assert holder is not None
            assert holder.pid == os.getpid()


def test_a_forked_child_that_outlives_its_killed_parent_does_not_keep_the_lock(path: Path) -> None:
    with running(HOLD_WITH_CHILD, path) as (process, child):
        with pytest.raises(RunLockedError), RunLock(path):
            pass
        process.kill()
        process.wait()
        os.kill(int(child), 0)  # it is still alive
        try:
            with RunLock(path):
                pass
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_a_forked_child_can_neither_release_nor_take_the_lock(path: Path) -> None:
    with running(FORK, path) as (_, line):
        assert line == "child refused, parent still holds it: True"


def test_two_locks_in_one_process_exclude_each_other(path: Path) -> None:
    with RunLock(path) as lock:
        with (
            pytest.raises(RunLockedError, match=f"held by process {os.getpid()} on"),
            RunLock(path),
        ):
            pass
        with pytest.raises(RunLockedError), lock:
            pass
        with pytest.raises(RunLockedError), RunLock(path):  # the failures above released nothing
            pass
    with RunLock(path), RunLock(path.with_name("other.lock")):
        pass


def test_an_exception_frees_the_lock_and_the_file_names_nobody(path: Path) -> None:
    with pytest.raises(KeyError), RunLock(path):
        raise KeyError
    assert path.read_text() == ""
    assert lock_holder(path) is None
    with RunLock(path):
        pass


def test_nobody_holds_a_lock_that_was_never_made(path: Path) -> None:
    assert lock_holder(path) is None
    assert not path.parent.exists()


def test_what_a_file_says_is_not_trusted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "_PATIENCE", 0.0)
    with RunLock(path):
        path.write_text(
            '{"pid": 1, "host": "a\\nb", "since": "\\u001b[2J", "command": "%s"}' % ("x" * 500)
        )
        with pytest.raises(RunLockedError) as caught, RunLock(path):
            pass
        assert "process 1 on a b since" in str(caught.value)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500
        for content in ("", "{", "[]", '{"pid": "x"}', "\xff"):
            path.write_text(content, encoding="latin-1")
            with (
                pytest.raises(RunLockedError, match="is held by another process: wait"),
                RunLock(path),
            ):
                pass
            with pytest.raises(RunLockedError, match="is held by another process: wait"):
                lock_holder(path)


def test_asking_who_holds_it_does_not_disturb_a_process_that_takes_it(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with running(ASK, path) as (_, line):
        assert line == "asking"
        until = time.monotonic() + 0.5
        taken = 0
        while time.monotonic() < until:
            with RunLock(path):
                taken += 1
        assert taken > 10


def test_a_place_that_cannot_hold_a_lock_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StoreError, match=r"^cannot write \S+/file: File exists"),
        RunLock(tmp_path / "file" / "run.lock"),
    ):
        pass
    with pytest.raises(StoreError, match=r"^cannot write \S+: Is a directory"), RunLock(tmp_path):
        pass


def test_a_system_without_posix_locks_is_told_in_one_line(tmp_path: Path) -> None:
    """Windows has no `fcntl`; what needs no store, such as the help, works there."""
    script = (
        "import sys; sys.modules['fcntl'] = None; from macpo.cli import main; main(sys.argv[1:])"
    )
    said = {
        name: subprocess.run(
            [sys.executable, "-c", script, name, str(tmp_path)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(macpo.__file__).parent.parent)},
        )
        for name in ("status", "--version")
    }
    assert said["status"].returncode == 1
    assert said["status"].stderr == (
        "macpo: macpo needs Linux or macOS (or WSL): this operating system has no POSIX file "
        "locks\n"
    )
    assert said["--version"].returncode == 0
