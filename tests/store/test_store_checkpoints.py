"""Checkpoints: the newest safe one is always found."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from macpo.errors import StoreError
from macpo.store import MANIFEST, Checkpoints


def writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "optimizer").mkdir()
        (folder / "optimizer" / "state.bin").write_text(text)

    return write


def state(found: tuple[int, Path] | None) -> tuple[int, str]:
    assert found is not None
    return found[0], (found[1] / "optimizer" / "state.bin").read_text()


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "work" / "checkpoints")


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def keep_aside(checkpoints: Checkpoints, name: str) -> Callable[[], object]:
    """Hide a checkpoint from the next save; returns what brings it back."""
    hidden = checkpoints.folder.parent / name
    os.rename(checkpoints.folder / name, hidden)
    return lambda: os.rename(hidden, checkpoints.folder / name)


def test_there_is_no_checkpoint_before_the_first_save(checkpoints: Checkpoints) -> None:
    assert checkpoints.latest() is None


def test_a_new_checkpoint_replaces_the_older_one(checkpoints: Checkpoints) -> None:
    for step in (20, 40):
        checkpoints.save(step, writer(f"after {step}"))
        assert names(checkpoints) == [f"step-{step:08d}"]
        assert state(checkpoints.latest()) == (step, f"after {step}")


def test_the_newest_is_found_by_number_also_past_eight_digits(checkpoints: Checkpoints) -> None:
    checkpoints.save(99_999_999, writer("old"))
    back = keep_aside(checkpoints, "step-99999999")
    checkpoints.save(100_000_000, writer("new"))
    back()
    assert state(checkpoints.latest()) == (100_000_000, "new")


def test_older_ones_stay_when_the_new_one_cannot_be_written(checkpoints: Checkpoints) -> None:
    checkpoints.save(20, writer("after 20"))

    def fail(folder: Path) -> None:
        (folder / "half.bin").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match=r"^cannot write \S+step-00000040: No space left on dev"):
        checkpoints.save(40, fail)
    assert names(checkpoints) == ["step-00000020"]
    assert state(checkpoints.latest()) == (20, "after 20")


def test_a_fault_of_the_writer_passes_through_and_leaves_nothing_half(
    checkpoints: Checkpoints,
) -> None:
    def fail(folder: Path) -> None:
        (folder / "half.bin").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(40, fail)
    assert names(checkpoints) == []


def test_a_damaged_newest_falls_back_to_the_older_with_a_warning(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints.save(20, writer("after 20"))
    back = keep_aside(checkpoints, "step-00000020")
    checkpoints.save(40, writer("after 40"))
    back()
    (checkpoints.folder / "step-00000040" / "optimizer" / "state.bin").write_text("after 4O")
    with caplog.at_level(logging.WARNING):
        assert state(checkpoints.latest()) == (20, "after 20")
    assert caplog.messages == [
        f"checkpoint not used and removed: {checkpoints.folder / 'step-00000040'} is damaged: "
        "optimizer/state.bin does not match its checksum"
    ]
    checkpoints.save(40, writer("after 40"))
    assert state(checkpoints.latest()) == (40, "after 40")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: os.truncate(folder / "optimizer" / "state.bin", 0),
        lambda folder: (folder / "optimizer" / "state.bin").unlink(),
        lambda folder: os.truncate(folder / MANIFEST, 10),
    ],
)
def test_a_damaged_only_one_means_from_the_start(
    checkpoints: Checkpoints, damage: Callable[[Path], None]
) -> None:
    checkpoints.save(20, writer("after 20"))
    damage(checkpoints.folder / "step-00000020")
    assert checkpoints.latest() is None
    assert names(checkpoints) == []


def test_half_written_and_half_removed_ones_are_passed_over_and_removed(
    checkpoints: Checkpoints,
) -> None:
    checkpoints.save(20, writer("after 20"))
    for name in (".partial-step-00000040", ".trash-step-00000010", ".trash-.partial-step-00000030"):
        (checkpoints.folder / name).mkdir()
        (checkpoints.folder / name / "half.bin").write_text("half")
    assert state(checkpoints.latest()) == (20, "after 20")
    assert names(checkpoints) == ["step-00000020"]


def test_a_saved_step_is_not_written_again(checkpoints: Checkpoints) -> None:
    checkpoints.save(20, writer("after 20"))

    def refuse(folder: Path) -> None:
        raise AssertionError("written again")

    checkpoints.save(20, refuse)
    assert state(checkpoints.latest()) == (20, "after 20")


def test_files_that_are_not_checkpoints_are_left_alone(checkpoints: Checkpoints) -> None:
    checkpoints.save(20, writer("after 20"))
    (checkpoints.folder / "notes.txt").write_text("mine")
    checkpoints.save(40, writer("after 40"))
    assert state(checkpoints.latest()) == (40, "after 40")
    assert (checkpoints.folder / "notes.txt").read_text() == "mine"
