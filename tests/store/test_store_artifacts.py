"""Artifacts: committed once, found again, never trusted when they changed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from macpo.errors import DamagedError, StoreError
from macpo.seeds import digest
from macpo.store import MANIFEST, Artifact, Store
from macpo.store import artifacts as artifacts_module

KEY = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4
NAME = f"sft-{KEY[:16]}"


def commit(store: Store, key: str = KEY, text: str = "weights") -> Artifact:
    workspace = store.workspace("sft", key)
    (workspace.output / "adapter").mkdir()
    (workspace.output / "adapter" / "weights.bin").write_text(text)
    (workspace.output / "log.txt").write_text("log")
    return workspace.commit({"data": OTHER}, {"steps": 3, "range": (1, 2)})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def fresh(store: Store) -> Store:
    """The store as another process sees it: nothing verified yet."""
    return Store(store.root)


def test_an_artifact_is_found_as_it_was_committed(store: Store) -> None:
    assert store.find("sft", KEY) is None
    committed = commit(store)
    assert committed.path == store.root / NAME
    assert committed.inputs == {"data": OTHER}
    assert committed.meta == {"steps": 3, "range": [1, 2]}  # as JSON gives it back
    assert store.find("sft", KEY) == committed
    assert fresh(store).find("sft", KEY) == committed
    assert store.find("sft", OTHER) is None
    assert store.find("dpo", KEY) is None
    assert len({committed, committed}) == 1


def test_two_runs_of_a_stage_leave_the_same_bytes_at_any_time_and_place(tmp_path: Path) -> None:
    first = commit(Store(tmp_path / "first"))
    second = commit(Store(tmp_path / "elsewhere" / "second"))
    assert first.digest == second.digest
    assert (first.path / MANIFEST).read_bytes() == (second.path / MANIFEST).read_bytes()


def test_the_digest_is_that_of_names_and_contents(store: Store) -> None:
    assert commit(store).digest != commit(store, OTHER, text="others").digest
    manifest = json.loads((store.root / NAME / MANIFEST).read_text())
    checksums = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    assert fresh(store).find("sft", KEY) is not None
    assert commit(Store(store.root / "again")).digest == digest(checksums)


def test_a_workspace_keeps_checkpoints_and_empties_its_output(store: Store) -> None:
    workspace = store.workspace("sft", KEY)
    (workspace.output / "half.txt").write_text("half")
    workspace.checkpoints.save(20, lambda folder: (folder / "state").write_bytes(b"20"))
    again = fresh(store).workspace("sft", KEY)
    assert list(again.output.iterdir()) == []
    latest = again.checkpoints.latest()
    assert latest is not None
    assert latest[0] == 20
    assert (latest[1] / "state").read_bytes() == b"20"


def test_workspaces_of_other_keys_and_kinds_do_not_share_checkpoints(store: Store) -> None:
    store.workspace("sft", KEY).checkpoints.save(1, lambda f: (f / "s").write_bytes(b""))
    assert store.workspace("sft", OTHER).checkpoints.latest() is None
    assert store.workspace("dpo", KEY).checkpoints.latest() is None


def test_a_commit_removes_the_workspace(store: Store) -> None:
    store.workspace("sft", KEY).checkpoints.save(1, lambda f: (f / "s").write_bytes(b""))
    commit(store)
    assert list((store.root / ".partial").iterdir()) == []


def test_an_artifact_is_committed_once(store: Store) -> None:
    first = commit(store)
    with pytest.raises(StoreError, match="it exists already; move it away"):
        commit(store, text="others")
    assert fresh(store).find("sft", KEY) == first


@pytest.mark.parametrize(
    ("meta", "error"), [({"path": Path("x")}, TypeError), ({"loss": float("nan")}, ValueError)]
)
def test_meta_that_is_not_json_is_refused_before_anything_moves(
    store: Store, meta: dict[str, Any], error: type[Exception]
) -> None:
    workspace = store.workspace("sft", KEY)
    (workspace.output / "weights").write_text("w")
    with pytest.raises(error):
        workspace.commit({}, meta)
    assert (workspace.output / "weights").read_text() == "w"
    assert store.find("sft", KEY) is None


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], None], *, seal: bool) -> None:
    """Change a manifest as an attacker would (`seal`: with a checksum that fits again)."""
    path = folder / MANIFEST
    body = json.loads(path.read_text())
    change(body)
    if seal:
        body.pop("checksum", None)
        body["checksum"] = digest(body)
    path.write_text(json.dumps(body))


def rename_entry(target: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        def change(body: dict[str, Any]) -> None:
            body["files"][target] = body["files"].pop("log.txt")

        rewrite_manifest(folder, change, seal=True)

    return damage


def flip_a_bit(folder: Path) -> None:
    path = folder / "adapter" / "weights.bin"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


def replace_by_link(folder: Path) -> None:
    twin = folder.parent / "twin.txt"
    twin.write_bytes((folder / "log.txt").read_bytes())
    (folder / "log.txt").unlink()
    (folder / "log.txt").symlink_to(twin)


def replace_folder_by_link(folder: Path) -> None:
    os.rename(folder / "adapter", folder.parent / "adapter")
    (folder / "adapter").symlink_to(folder.parent / "adapter")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (flip_a_bit, "adapter/weights.bin does not match its checksum"),
    "truncated": (
        lambda f: (f / "log.txt").write_text("lo"),
        "log.txt has 2 bytes instead of 3",
    ),
    "missing": (lambda f: (f / "log.txt").unlink(), "log.txt is missing"),
    "extra": (
        lambda f: (f / "adapter" / "new.bin").write_text(""),
        "adapter/new.bin is not in its manifest",
    ),
    "link": (replace_by_link, "log.txt is a link"),
    "linked folder": (replace_folder_by_link, "adapter is a link"),
    "pipe": (lambda f: os.mkfifo(f / "pipe"), "pipe is not a plain file"),
    "manifest cut": (
        lambda f: os.truncate(f / MANIFEST, 40),
        "manifest.json is not JSON",
    ),
    "manifest empty": (lambda f: os.truncate(f / MANIFEST, 0), "manifest.json is not JSON"),
    "manifest binary": (
        lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe"),
        "manifest.json is not text",
    ),
    "manifest deep": (
        lambda f: (f / MANIFEST).write_text("[" * 100_000),
        "manifest.json is not JSON",
    ),
    "manifest other": (lambda f: (f / MANIFEST).write_text("[1]"), "manifest.json is not a manif"),
    "manifest changed": (
        lambda f: rewrite_manifest(f, lambda b: b["meta"].update(steps=4), seal=False),
        "manifest.json does not match its own checksum",
    ),
    "manifest without files": (
        lambda f: rewrite_manifest(f, lambda b: b.pop("files"), seal=True),
        "manifest.json does not match its own checksum",
    ),
    "manifest with odd files": (
        lambda f: rewrite_manifest(f, lambda b: b.update(files=[1, 2]), seal=True),
        "manifest.json does not match its own checksum",
    ),
    "other key": (
        lambda f: rewrite_manifest(f, lambda b: b.update(key=KEY[:16] + "0" * 48), seal=True),
        f"it says it is sft {KEY[:16] + '0' * 48}, not sft {KEY}",
    ),
    "parent": (rename_entry("../log.txt"), "names '../log.txt', which is outside of the folder"),
    "inner parent": (
        rename_entry("adapter/../../log.txt"),
        "names 'adapter/../../log.txt', which is outside of the folder",
    ),
    "absolute": (rename_entry("/etc/passwd"), "names '/etc/passwd', which is outside of the"),
    "not normal": (rename_entry("adapter//log.txt"), "names 'adapter//log.txt', which is outside"),
    "null": (rename_entry("log\0.txt"), r"names 'log\x00.txt', which is outside of the folder"),
    "no name": (rename_entry(""), "names '', which is outside of the folder"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_is_named_with_the_file_and_never_returned(
    damage: str, store: Store
) -> None:
    commit(store)
    apply, text = DAMAGES[damage]
    apply(store.root / NAME)
    with pytest.raises(DamagedError) as caught:
        fresh(store).find("sft", KEY)
    message = str(caught.value)
    assert message.startswith(f"{store.root / NAME} is damaged: ")
    assert text in message
    assert message.endswith("; move the folder away and run again to compute it anew")
    assert "\n" not in message


def test_a_tampered_manifest_opens_no_file_outside_of_the_artifact(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store)
    secret = store.root / "secret"
    secret.write_text("log")
    rename_entry("../secret")(store.root / NAME)
    real = Path.open

    def watch(path: Path, *args: Any, **kwargs: Any) -> Any:
        assert path.resolve().is_relative_to((store.root / NAME).resolve())
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", watch)
    with pytest.raises(DamagedError):
        fresh(store).find("sft", KEY)


def test_another_store_format_is_not_called_damage(store: Store) -> None:
    commit(store)
    rewrite_manifest(store.root / NAME, lambda b: b.update(format=2), seal=True)
    with pytest.raises(StoreError, match="has store format 2, this macpo reads 1: use the") as e:
        fresh(store).find("sft", KEY)
    assert not isinstance(e.value, DamagedError)


def test_a_folder_without_manifest_is_incomplete_and_set_aside_by_the_next_commit(
    store: Store,
) -> None:
    (store.root / NAME).mkdir(parents=True)
    (store.root / NAME / "log.txt").write_text("half")
    assert store.find("sft", KEY) is None
    artifact = commit(store)
    assert (artifact.path / "log.txt").read_text() == "log"
    assert (store.root / ".damaged" / f"{NAME}.1" / "log.txt").read_text() == "half"


def test_files_are_hashed_once_per_store_object_and_again_when_the_artifact_was_replaced(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store)
    calls: list[Path] = []
    real = artifacts_module.verify

    def count(folder: Path) -> Any:
        calls.append(folder)
        return real(folder)

    monkeypatch.setattr(artifacts_module, "verify", count)
    assert store.find("sft", KEY) is not None
    assert calls == []  # it has just been written
    other = fresh(store)
    assert other.find("sft", KEY) is other.find("sft", KEY)
    assert len(calls) == 1
    store.discard("sft", KEY)
    assert other.find("sft", KEY) is None
    commit(store)
    assert other.find("sft", KEY) is not None
    assert len(calls) == 2


def test_discard_sets_every_damaged_artifact_aside_and_deletes_none(store: Store) -> None:
    assert store.discard("sft", KEY) is None
    for number, text in enumerate(["first", "second"], 1):
        commit(store, text=text)
        aside = store.discard("sft", KEY)
        assert aside == store.root / ".damaged" / f"{NAME}.{number}"
        assert (aside / "adapter" / "weights.bin").read_text() == text
        assert store.find("sft", KEY) is None


def test_sweep_removes_what_nobody_can_use_and_keeps_checkpoints(store: Store) -> None:
    done = commit(store)
    stale = store.workspace("sft", KEY)  # as after a kill between commit and tidying up
    stale.checkpoints.save(1, lambda f: (f / "s").write_bytes(b""))
    unfinished = store.workspace("dpo", KEY)
    unfinished.checkpoints.save(2, lambda f: (f / "s").write_bytes(b"2"))
    (unfinished.output / "huge.bin").write_bytes(bytes(1000))
    hopeless = store.workspace("dpo", OTHER)
    (hopeless.output / "huge.bin").write_bytes(bytes(1000))
    (store.root / ".partial" / ".trash-x").mkdir()
    removed = fresh(store).sweep()
    assert sorted(removed) == sorted(
        [stale.path, hopeless.path, unfinished.output, store.root / ".partial" / ".trash-x"]
    )
    assert not any(path.exists() for path in removed)
    assert unfinished.checkpoints.latest() is not None
    assert fresh(store).find("sft", KEY) == done
    assert fresh(store).sweep() == []


class Waited(Exception):
    """Somebody else has the claim."""


def wait() -> None:
    raise Waited


def test_a_claimed_stage_is_left_alone_until_its_holder_is_done(store: Store) -> None:
    other = fresh(store)
    with store.claim("sft", KEY, wait):
        workspace = store.workspace("sft", KEY)
        (workspace.output / "w.bin").write_bytes(b"weights")
        with pytest.raises(Waited), other.claim("sft", KEY, wait):
            pass
        with other.claim("sft", OTHER, wait):
            pass
        assert other.sweep() == []
        committed = workspace.commit({}, {})
        assert other.sweep() == []
    with other.claim("sft", KEY, wait):
        assert other.find("sft", KEY) == committed
    assert list((store.root / ".partial").iterdir()) == []


def test_the_end_of_a_claim_keeps_the_checkpoints(store: Store) -> None:
    with store.claim("sft", KEY, wait):
        workspace = store.workspace("sft", KEY)
        workspace.checkpoints.save(2, lambda f: (f / "s").write_bytes(b"2"))
    with fresh(store).claim("sft", KEY, wait):
        assert fresh(store).workspace("sft", KEY).checkpoints.latest() is not None


def test_who_waits_for_a_claim_gets_it_in_the_end(store: Store) -> None:
    first = contextlib.ExitStack()
    first.enter_context(store.claim("sft", KEY, wait))
    waits = []

    def patient() -> None:
        waits.append(1)
        first.close()

    with fresh(store).claim("sft", KEY, patient):
        assert waits == [1]
        with pytest.raises(Waited), store.claim("sft", KEY, wait):
            pass


def test_sweep_of_a_new_store_finds_nothing(store: Store) -> None:
    assert store.sweep() == []


@pytest.mark.parametrize(
    ("kind", "key"),
    [("", KEY), ("../sft", KEY), ("SFT", KEY), ("sft", "../" + KEY), ("sft", "short"), ("sft", "")],
)
def test_kind_and_key_can_name_no_other_folder(store: Store, kind: str, key: str) -> None:
    with pytest.raises(ValueError, match="is not a kind and a key in hexadecimal"):
        store.find(kind, key)
    with pytest.raises(ValueError, match="is not a kind and a key in hexadecimal"):
        store.workspace(kind, key)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_a_file_without_permission_is_not_called_damage(store: Store) -> None:
    commit(store)
    (store.root / NAME / "log.txt").chmod(0)
    with pytest.raises(StoreError, match=r"cannot read \S+log.txt: Permission denied") as caught:
        fresh(store).find("sft", KEY)
    assert not isinstance(caught.value, DamagedError)


def test_a_failing_disk_is_not_called_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(store)

    def fail(path: Path, *args: Any, **kwargs: Any) -> Any:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(StoreError, match="Input/output error; check its disk") as caught:
        fresh(store).find("sft", KEY)
    assert not isinstance(caught.value, DamagedError)
