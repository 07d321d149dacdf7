"""Single writes: order of fsyncs, full disks, and what is left after a failure."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import macpo
from macpo.errors import DamagedError, StoreError
from macpo.store import (
    MANIFEST,
    Checkpoints,
    Journal,
    Store,
    commit_directory,
    new_directory,
    read_journal,
    translate_write_errors,
    verify,
    write_text_atomic,
)
from macpo.store.atomic import TRASH, fsync_directory, make_directory, remove_tree

KEY = "12" * 32


class FsyncRecorder:
    """Checks at every rename that what is renamed is durable, and remembers what was synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: dict[int, tuple[int, int]] = {}  # inode: (mtime in ns, size) when synced
        self.events: list[str] = []
        real_fsync, real_rename, real_replace = os.fsync, os.rename, os.replace

        def fsync(descriptor: int) -> None:
            real_fsync(descriptor)
            found = os.fstat(descriptor)
            self.synced[found.st_ino] = (found.st_mtime_ns, found.st_size)
            self.events.append("fsync")

        def rename(source: Any, target: Any) -> None:
            if not Path(source).name.startswith(TRASH) and not Path(target).name.startswith(TRASH):
                assert self.undurable(Path(source)) == []
            real_rename(source, target)
            self.events.append(f"rename {Path(target).name}")

        def replace(source: Any, target: Any) -> None:
            assert self.undurable(Path(source)) == []
            real_replace(source, target)
            self.events.append(f"replace {Path(target).name}")

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "rename", rename)
        monkeypatch.setattr(os, "replace", replace)

    def undurable(self, path: Path) -> list[Path]:
        """The files and folders at and below `path` that changed since their last fsync."""
        found = []
        for item in [path, *path.rglob("*")]:
            stat = item.stat()
            if self.synced.get(stat.st_ino) != (stat.st_mtime_ns, stat.st_size):
                found.append(item)
        return found


def fill(folder: Path) -> None:
    (folder / "deep" / "deeper").mkdir(parents=True)
    (folder / "a.txt").write_text("first")
    (folder / "deep" / "deeper" / "b.bin").write_bytes(bytes(range(256)))


def test_commit_renames_only_what_is_durable_and_then_syncs_the_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "new")
    recorder = FsyncRecorder(monkeypatch)
    commit_directory(tmp_path / "new", tmp_path / "final")
    assert recorder.events[-2:] == ["rename final", "fsync"]
    assert recorder.undurable(tmp_path / "final") == []
    assert tmp_path.stat().st_ino in recorder.synced


def test_a_durable_text_is_synced_before_and_its_folder_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = FsyncRecorder(monkeypatch)
    write_text_atomic(tmp_path / "state.json", "text", durable=True)
    assert recorder.events == ["fsync", "replace state.json", "fsync"]
    assert tmp_path.stat().st_ino in recorder.synced


def test_a_text_that_need_not_be_durable_costs_no_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise AssertionError("fsync")

    monkeypatch.setattr(os, "fsync", refuse)
    write_text_atomic(tmp_path / "progress.json", "text", durable=False)
    assert (tmp_path / "progress.json").read_text() == "text"


def test_every_new_folder_is_synced_into_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = FsyncRecorder(monkeypatch)
    make_directory(tmp_path / "a" / "b" / "c")
    for parent in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
        assert parent.stat().st_ino in recorder.synced


def test_a_checkpoint_is_durable_before_the_older_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, lambda folder: fill(folder))
    recorder = FsyncRecorder(monkeypatch)
    checkpoints.save(2, lambda folder: fill(folder))
    committed = recorder.events.index("rename step-00000002")
    assert recorder.events[committed + 1] == "fsync"
    assert recorder.events.index(f"rename {TRASH}step-00000001") > committed + 1


def test_a_journal_line_is_durable_when_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = FsyncRecorder(monkeypatch)
    Journal(tmp_path / "journal.jsonl").append("start")
    assert recorder.undurable(tmp_path / "journal.jsonl") == []
    assert tmp_path.stat().st_ino in recorder.synced  # the first line made the file


def test_a_committed_folder_verifies_and_gives_back_its_fields(tmp_path: Path) -> None:
    fill(tmp_path / "new")
    manifest = commit_directory(tmp_path / "new", tmp_path / "runs" / "final", {"ids": (1, 2)})
    assert not (tmp_path / "new").exists()
    assert verify(tmp_path / "runs" / "final") == manifest
    assert manifest.fields == {"ids": [1, 2]}
    assert sorted(manifest.files) == ["a.txt", "deep/deeper/b.bin"]
    assert manifest.files["a.txt"].size == 5


def test_a_new_directory_is_whole_and_durable_with_a_manifest_or_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = FsyncRecorder(monkeypatch)
    for name, fields in (("plain", None), ("kept", {"step": 3})):
        with new_directory(tmp_path / "deep" / name, fields) as folder:
            fill(folder)
            assert not (tmp_path / "deep" / name).exists()
        assert recorder.events[-2:] == [f"rename {name}", "fsync"]
        assert recorder.undurable(tmp_path / "deep" / name) == []
    assert verify(tmp_path / "deep" / "kept").fields == {"step": 3}
    assert not (tmp_path / "deep" / "plain" / MANIFEST).exists()
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["kept", "plain"]


def test_a_new_directory_leaves_nothing_when_its_block_fails_and_clears_what_a_kill_left(
    tmp_path: Path,
) -> None:
    def fail(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        fill(folder)
        raise KeyError

    fill(tmp_path / ".partial-new")
    with pytest.raises(KeyError), new_directory(tmp_path / "new", None) as folder:
        fail(folder)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "new").mkdir()
    with (
        pytest.raises(StoreError, match=r"^cannot write \S+/new: it exists already"),
        new_directory(tmp_path / "new", None),
    ):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_writers_of_one_text_that_do_not_know_of_each_other_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "note.json"

    def write(text: str) -> None:
        for _ in range(50):
            write_text_atomic(path, text * 1000, durable=False, alone=False)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, "ab"))
    assert path.read_text() in ("a" * 1000, "b" * 1000)
    assert list(tmp_path.iterdir()) == [path]


def test_commit_never_replaces_what_is_there(tmp_path: Path) -> None:
    fill(tmp_path / "new")
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "old.txt").write_text("old")
    with pytest.raises(StoreError, match=r"final: it exists already; move it away$"):
        commit_directory(tmp_path / "new", tmp_path / "final")
    assert (tmp_path / "final" / "old.txt").read_text() == "old"
    assert (tmp_path / "new" / "a.txt").exists()


def test_commit_refuses_links_and_files_with_the_manifests_name(tmp_path: Path) -> None:
    fill(tmp_path / "linked")
    (tmp_path / "linked" / "deep" / "link").symlink_to("/etc")
    with pytest.raises(StoreError, match="deep/link is a link; write plain files only"):
        commit_directory(tmp_path / "linked", tmp_path / "final")
    fill(tmp_path / "named")
    (tmp_path / "named" / MANIFEST).write_text("mine")
    with pytest.raises(StoreError, match=r"manifest\.json is the store's own name"):
        commit_directory(tmp_path / "named", tmp_path / "final")
    assert not (tmp_path / "final").exists()


def test_commit_refuses_fields_that_the_manifest_sets_itself(tmp_path: Path) -> None:
    fill(tmp_path / "new")
    with pytest.raises(ValueError, match="files: a manifest sets this itself"):
        commit_directory(tmp_path / "new", tmp_path / "final", {"files": {}})


class FullDisk:
    """Lets every `os.write` from the `call`-th on fail as on a full disk, after half its bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: int, number: int) -> None:
        self.hit = False
        real, count = os.write, 0

        def write(descriptor: int, data: Any) -> int:
            nonlocal count
            count += 1
            if count < call:
                return real(descriptor, data)
            if count == call:
                real(descriptor, bytes(data)[: len(data) // 2])
            self.hit = True
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "write", write)


def full_disk_text(path: Path) -> str:
    return (
        rf"^cannot write {path}: No space left on device \(\S+ \w+ left on that disk\); free some "
        r"space there or use another --out, then run again: nothing finished is lost$"
    )


def test_a_text_on_a_full_disk_says_so_and_keeps_the_old_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    write_text_atomic(path, "old", durable=True)
    disk = FullDisk(monkeypatch, 1, errno.ENOSPC)
    with pytest.raises(StoreError, match=full_disk_text(path)):
        write_text_atomic(path, "new text", durable=True)
    assert disk.hit
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]
    assert path.read_text() == "old"


def test_a_commit_on_a_full_disk_removes_the_half_written_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "new")
    disk = FullDisk(monkeypatch, 1, errno.ENOSPC)
    with pytest.raises(StoreError, match=full_disk_text(tmp_path / "final")):
        commit_directory(tmp_path / "new", tmp_path / "final")
    assert disk.hit
    assert list(tmp_path.iterdir()) == []


def test_a_failing_fsync_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    fill(tmp_path / "new")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match=r"Input/output error .*; check the disk or use another"):
        commit_directory(tmp_path / "new", tmp_path / "final")
    assert not (tmp_path / "final").exists()


def test_a_file_system_that_refuses_to_sync_folders_is_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    fsync_directory(tmp_path)


def test_a_journal_on_a_full_disk_keeps_its_lines_and_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("first")
    before = journal.path.read_bytes()
    with monkeypatch.context() as patch:
        disk = FullDisk(patch, 1, errno.ENOSPC)
        with pytest.raises(StoreError, match=full_disk_text(journal.path)):
            journal.append("second")
        assert disk.hit
    assert journal.path.read_bytes() == before
    journal.append("third")
    assert [event["event"] for event in read_journal(journal.path)] == ["first", "third"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space there or use another --out"),
        (errno.EDQUOT, "your quota is used up: free some space there or use another --out"),
        (errno.EFBIG, r"raise the limit on file sizes \(ulimit -f\) or use another --out"),
        (errno.EROFS, "make it writable or use another --out"),
        (errno.EIO, "check the disk or use another --out"),
    ],
)
def test_each_kind_of_failure_has_its_advice(tmp_path: Path, number: int, advice: str) -> None:
    path = tmp_path / "file"
    with pytest.raises(StoreError, match=advice) as caught, translate_write_errors(path):
        raise OSError(number, os.strerror(number))
    assert "\n" not in str(caught.value)


def test_a_full_disk_reported_by_a_rust_library_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with pytest.raises(StoreError, match=full_disk_text(path)), translate_write_errors(path):
        raise RuntimeError("Error while serializing: I/O error: full (os error 28)")


def test_other_errors_pass_through_untouched(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^a bug$"), translate_write_errors(tmp_path):
        raise RuntimeError("a bug")
    with pytest.raises(DamagedError, match=r"^mine$"), translate_write_errors(tmp_path):
        raise DamagedError("mine")


LIMITED = """
import resource, sys
from pathlib import Path
from macpo.errors import StoreError
from macpo.store import Store

root = Path(sys.argv[1])
key = "12" * 32
workspace = Store(root).workspace("sft", key)
workspace.checkpoints.save(1, lambda folder: (folder / "state.bin").write_bytes(bytes(100)))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    if sys.argv[3] == "checkpoint":
        workspace.checkpoints.save(2, lambda f: (f / "state.bin").write_bytes(bytes(1 << 20)))
    elif sys.argv[3] == "safetensors":
        import numpy as np
        from safetensors.numpy import save_file
        tensors = {"w": np.zeros(1 << 17)}
        workspace.checkpoints.save(2, lambda f: save_file(tensors, f / "w.safetensors"))
    else:
        (workspace.output / "small.txt").write_text("small")
        workspace.commit({}, {"long": "x" * 100000})
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["checkpoint", "safetensors", "commit"])
def test_a_real_limit_of_the_operating_system_is_one_clear_line_and_loses_nothing(
    what: str, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(root), str(1 << 16), what],
        env={**os.environ, "PYTHONPATH": str(Path(macpo.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    assert "File too large" in lines[0]
    assert "raise the limit on file sizes (ulimit -f) or use another --out" in lines[0]
    checkpoints = Store(root).workspace("sft", KEY).checkpoints
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["step-00000001"]
    latest = checkpoints.latest()
    assert latest is not None
    assert latest[0] == 1
    assert Store(root).find("sft", KEY) is None
    assert not (root / f"sft-{KEY[:16]}").exists()


def test_a_folder_where_a_file_is_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"^cannot write \S+/file/deep: File exists: \S+/file "):
        make_directory(tmp_path / "file" / "deep")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_folder_without_permission_says_what_to_do(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match=r"Permission denied .*; make it writable or use another"):
        make_directory(tmp_path / "new")
    tmp_path.chmod(0o700)


def test_removing_a_folder_finishes_a_removal_that_was_cut_short(tmp_path: Path) -> None:
    fill(tmp_path / "old")
    fill(tmp_path / f"{TRASH}old")
    remove_tree(tmp_path / "old")
    remove_tree(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []
