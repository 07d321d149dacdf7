"""Claims by lease: two processes, each with a clock of its own, and a file system between them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from macpo.errors import ClaimLostError
from macpo.store import LeaseClaims, Store
from macpo.store.lease import LEASES

KEY = "ab" * 32
LONG = 3600.0  # no heartbeat falls into a test


class Clock:
    """Seconds that a test turns on; clocks of two machines need not agree."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def folder(root: Path) -> Path:
    """The partial folder of a stage."""
    return root / ".partial" / f"sft-{KEY[:16]}"


def leases(root: Path) -> list[str]:
    return sorted(path.name for path in (root / LEASES).iterdir())


def make(store: Store, text: str) -> None:
    """Run the stage as far as its commit."""
    workspace = store.workspace("sft", KEY)
    (workspace.output / "text").write_text(text)
    workspace.commit({}, {})


def never() -> None:
    raise AssertionError("nobody else has the stage")


def test_a_lease_keeps_others_out_until_it_is_released(tmp_path: Path) -> None:
    one, other = LeaseClaims(LONG), LeaseClaims(LONG)

    lease = one.take(folder(tmp_path))

    assert lease is not None
    assert other.take(folder(tmp_path)) is None
    assert one.take(folder(tmp_path)) is None  # within a process too
    lease.release()
    after = other.take(folder(tmp_path))
    assert after is not None
    after.release()


def test_a_silent_lease_is_taken_over_by_the_watchers_own_clock(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(5e8)
    dead = LeaseClaims(LONG).take(folder(tmp_path))
    watcher = LeaseClaims(60, clock)

    assert dead is not None
    assert watcher.take(folder(tmp_path)) is None  # first look: who knows since when
    clock.now += 59
    assert watcher.take(folder(tmp_path)) is None
    clock.now += 2
    with caplog.at_level(logging.WARNING):
        taken = watcher.take(folder(tmp_path))

    assert taken is not None
    assert "no sign of life for 60 s" in caplog.text
    with pytest.raises(ClaimLostError, match="another one runs the stage"):
        dead.confirm()
    with pytest.raises(ClaimLostError):
        dead.check()
    taken.confirm()
    taken.release()
    dead.release()  # says nothing any more about a stage that is not its own
    again = LeaseClaims(LONG).take(folder(tmp_path))
    assert again is not None
    again.release()


def test_a_heartbeat_keeps_a_lease(tmp_path: Path) -> None:
    clock = Clock(0)
    lease = LeaseClaims(LONG).take(folder(tmp_path))
    watcher = LeaseClaims(60, clock)
    assert lease is not None
    for _ in range(5):
        assert watcher.take(folder(tmp_path)) is None
        clock.now += 50
        lease._write(lease.path)  # as its thread does, in an hour
    assert watcher.take(folder(tmp_path)) is None
    lease.release()


def test_the_thread_writes_heartbeats_and_sees_that_the_lease_is_lost(tmp_path: Path) -> None:
    lease = LeaseClaims(0.2).take(folder(tmp_path))
    assert lease is not None
    before = lease.path.read_bytes()
    lease._thread.join(0.3)
    assert lease.path.read_bytes() != before

    (tmp_path / LEASES / f"{folder(tmp_path).name}.2").write_text("somebody else's")
    lease._thread.join(5)

    with pytest.raises(ClaimLostError):
        lease.check()
    lease.release()


def test_one_of_two_that_judged_alike_gets_the_lease(tmp_path: Path) -> None:
    clock = Clock(0)
    dead = LeaseClaims(LONG).take(folder(tmp_path))
    one, other = LeaseClaims(60, clock), LeaseClaims(60, clock)
    assert dead is not None
    assert one.take(folder(tmp_path)) is other.take(folder(tmp_path)) is None
    clock.now += 61

    taken = one.take(folder(tmp_path))

    assert taken is not None
    assert other.take(folder(tmp_path)) is None
    taken.release()


def test_who_lost_a_lease_commits_nothing_and_disturbs_nobody(tmp_path: Path) -> None:
    clock = Clock(0)
    slow, quick = Store(tmp_path, LeaseClaims(LONG)), Store(tmp_path, LeaseClaims(60, clock))

    def wait_long() -> None:
        clock.now += 61

    with slow.claim("sft", KEY, never):
        mine = slow.workspace("sft", KEY)
        (mine.output / "text").write_text("slow")
        with quick.claim("sft", KEY, wait_long):
            theirs = quick.workspace("sft", KEY)
            assert theirs.output != mine.output
            with pytest.raises(OSError, match="text"):
                (mine.output / "text").write_text("slow again")  # its folder is gone
            (theirs.output / "text").write_text("quick")
            mine.output.mkdir()
            (mine.output / "text").write_text("slow again")
            with pytest.raises(ClaimLostError):
                mine.commit({}, {})
            theirs.commit({}, {})

    found = quick.find("sft", KEY)
    assert found is not None
    assert (found.path / "text").read_text() == "quick"


def test_a_late_commit_after_the_next_one_is_done_and_swept_is_refused(tmp_path: Path) -> None:
    """Numbers begin anew once leases are swept; the file that the late one has held is gone."""
    clock = Clock(0)
    slow, quick = Store(tmp_path, LeaseClaims(LONG)), Store(tmp_path, LeaseClaims(60, clock))

    def wait_long() -> None:
        clock.now += 61

    with slow.claim("sft", KEY, never):
        mine = slow.workspace("sft", KEY)
        with quick.claim("sft", KEY, wait_long):
            make(quick, "quick")
        quick.sweep()
        assert leases(tmp_path) == []
        quick.discard("sft", KEY)
        mine.output.mkdir(parents=True)
        with pytest.raises(ClaimLostError):
            mine.commit({}, {})


def test_sweeping_leaves_what_is_claimed_and_checkpoints(tmp_path: Path) -> None:
    store, other = Store(tmp_path, LeaseClaims(LONG)), Store(tmp_path, LeaseClaims(LONG))
    with store.claim("sft", KEY, never):
        workspace = store.workspace("sft", KEY)
        workspace.checkpoints.save(3, lambda path: (path / "state").write_text("3"))
        assert other.sweep() == []
        assert workspace.output.is_dir()

    assert [path.name for path in other.sweep()] == [workspace.output.name]

    with other.claim("sft", KEY, never):
        latest = other.workspace("sft", KEY).checkpoints.latest()
        assert latest is not None
        assert latest[0] == 3


def test_a_commit_leaves_no_partial_folder(tmp_path: Path) -> None:
    store = Store(tmp_path, LeaseClaims(LONG))
    with store.claim("sft", KEY, never):
        make(store, "x")

    assert not folder(tmp_path).exists()
    store.sweep()
    assert leases(tmp_path) == []
