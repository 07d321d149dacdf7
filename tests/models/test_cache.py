from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from macpo.errors import ModelError
from macpo.models.cache import build_once, cache_dir, model_folder, remembered_digest

BUILDER = """
import os, signal, sys, time
from pathlib import Path
from macpo.models.cache import build_once

def make(folder):
    (folder / "weights").write_text("half")
    with open(sys.argv[2], "a") as log:
        log.write("made\\n")
    if sys.argv[1] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60 if sys.argv[1] == "wait" else 0.3)
    (folder / "weights").write_text("whole")

print(build_once("key", make))
"""


def start(mode: str, log: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, mode, str(log)],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )


def test_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACPO_CACHE", "/somewhere")
    assert cache_dir() == Path("/somewhere")
    monkeypatch.delenv("MACPO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert cache_dir() == Path("/shared/macpo")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "macpo"


def test_folder_is_made_once_and_then_found() -> None:
    def make(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_text("whole")

    def never(folder: Path) -> None:
        raise AssertionError("made again")

    folder = build_once("key", make)
    assert (folder / "sub" / "weights").read_text() == "whole"
    assert build_once("key", never) == folder


def test_failed_build_leaves_nothing_behind() -> None:
    def fail(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise ModelError("no")

    with pytest.raises(ModelError, match=r"^no$"):
        build_once("key", fail)
    assert [p.name for p in model_folder("key").parent.iterdir()] == ["key.lock"]


def test_killed_build_does_not_look_finished_and_is_made_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    died = start("die", log)
    died.communicate(timeout=60)
    assert died.returncode == -signal.SIGKILL
    assert not model_folder("key").exists()
    assert model_folder(".partial-key").is_dir()

    again = start("finish", log)
    again.communicate(timeout=60)
    assert again.returncode == 0
    assert (model_folder("key") / "weights").read_text() == "whole"
    assert not model_folder(".partial-key").exists()


def test_who_waits_for_a_builder_that_is_killed_builds_in_its_stead(tmp_path: Path) -> None:
    """The lock dies with its holder: nothing stale is left for the one that waits, or for later."""
    log = tmp_path / "log"
    died = start("wait", log)
    while not log.exists():
        time.sleep(0.01)
    waiting = start("finish", log)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.communicate(timeout=1)
    assert log.read_text() == "made\n"
    died.kill()
    waiting.communicate(timeout=60)
    died.communicate(timeout=60)
    assert waiting.returncode == 0
    assert log.read_text() == "made\nmade\n"
    assert (model_folder("key") / "weights").read_text() == "whole"


def test_made_folder_holds_what_was_written_and_nothing_of_ours() -> None:
    folder = build_once("key", lambda folder: (folder / "weights").touch())
    assert [path.name for path in folder.iterdir()] == ["weights"]


def test_file_system_without_locks_is_refused_rather_than_given_a_marker_that_outlives_a_kill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ModelError, match=r"Function not implemented.* set MACPO_CACHE to a writ"):
        build_once("key", lambda folder: None)
    assert not model_folder("key").exists()


def test_two_processes_share_one_build(tmp_path: Path) -> None:
    log = tmp_path / "log"
    builders = [start("finish", log), start("finish", log)]
    outputs = [builder.communicate(timeout=60)[0].strip() for builder in builders]
    assert outputs == [str(model_folder("key"))] * 2
    assert log.read_text() == "made\n"


def test_unwritable_cache_is_reported_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("MACPO_CACHE", str(blocked))
    with pytest.raises(ModelError, match=r"cannot be written .* set MACPO_CACHE to a writable"):
        build_once("key", lambda folder: None)


def test_digest_is_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert remembered_digest(file) == known

    with monkeypatch.context() as patch:
        patch.setattr("macpo.models.cache.file_digest", lambda path: "hashed again")
        assert remembered_digest(file) == known
        os.utime(file, ns=(1, 1))
        assert remembered_digest(file) == "hashed again"

    file.write_bytes(b"abd")
    assert remembered_digest(file) not in (known, "hashed again")


def test_damaged_note_costs_a_hash_and_nothing_else(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    first = remembered_digest(file)
    (note,) = (cache / "digests").iterdir()
    note.write_text("{")
    assert remembered_digest(file) == first


def test_digest_does_not_need_a_writable_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    monkeypatch.setenv("MACPO_CACHE", str(file))
    with caplog.at_level(logging.WARNING, "macpo"):
        assert remembered_digest(file).startswith("ba7816bf")
    assert "hashed again next time" in caplog.text
