"""What is there before each scenario of `kill_server`, and what must hold when it is cut short."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from macpo.errors import DamagedError
from macpo.store import Checkpoints, Store, read_journal
from tests.store.kill_server import KEY, OTHER_KEY, SCENARIOS, STEPS, state_after, state_writer


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything below `root`: files with their bytes, folders with None."""
    return {
        path.relative_to(root).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.name != "marks"
    }


def marks(root: Path) -> list[str]:
    """What the killed process had finished, by its own word."""
    return (root / "marks").read_text().splitlines()


def finish(scenario: str, root: Path) -> None:
    SCENARIOS[scenario](root, lambda _: None)


def commit_other(root: Path) -> None:
    workspace = Store(root / "store").workspace("sft", OTHER_KEY)
    (workspace.output / "data.txt").write_text("the other artifact")
    workspace.commit({}, {})


def prepare_train(root: Path) -> None:
    commit_other(root)


def check_train(root: Path) -> None:
    store = Store(root / "store")
    done = marks(root)
    other = store.find("sft", OTHER_KEY)
    assert other is not None
    assert (other.path / "data.txt").read_text() == "the other artifact"
    artifact = store.find("sft", KEY)
    if artifact is not None:
        assert (artifact.path / "adapter" / "weights.bin").read_bytes() == state_after(STEPS)
        assert (artifact.path / "notes.txt").read_bytes() == b"trained"
        assert artifact.inputs == {"data": OTHER_KEY}
        return
    assert "committed" not in done
    latest = Checkpoints(store.root / ".partial" / f"sft-{KEY[:16]}" / "checkpoints").latest()
    if latest is None:
        assert not done
        return
    step, path = latest
    assert (path / "state.bin").read_bytes() == state_after(step)
    assert step >= len(done)  # one mark for every save that had returned


def prepare_damaged_checkpoint(root: Path) -> None:
    checkpoints = Checkpoints(root / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, state_writer(state_after(step)))
        if step == 1:
            os.rename(root / "checkpoints" / "step-00000001", root / "aside")
    os.rename(root / "aside", root / "checkpoints" / "step-00000001")
    (root / "checkpoints" / "step-00000002" / "state.bin").write_bytes(b"damaged")


def check_damaged_checkpoint(root: Path) -> None:
    latest = Checkpoints(root / "checkpoints").latest()
    assert latest is not None
    step, path = latest
    assert (path / "state.bin").read_bytes() == state_after(step)
    assert step == 2 or not marks(root)


def prepare_text(root: Path) -> None:
    (root / "state.json").write_text("old text")


def check_text(root: Path) -> None:
    text = (root / "state.json").read_text()
    assert text in ("old text", "new text")
    assert text == "new text" or not marks(root)


def prepare_journal(root: Path) -> None:
    step = '{"time": "1970-01-01T00:00:00.000Z", "event": "step", "number": 0}'
    (root / "journal.jsonl").write_text(f'{step}\n{{"event": "st')


def check_journal(root: Path) -> None:
    numbers = [event["number"] for event in read_journal(root / "journal.jsonl")]
    assert numbers == list(range(len(numbers)))
    done = [int(mark.split()[1]) for mark in marks(root)]
    assert len(numbers) >= max(done, default=1)


def prepare_damaged_artifact(root: Path) -> None:
    commit_other(root)
    (root / "store" / f"sft-{OTHER_KEY[:16]}" / "data.txt").write_text("damaged")


def check_damaged_artifact(root: Path) -> None:
    store = Store(root / "store")
    aside = store.root / ".damaged" / f"sft-{OTHER_KEY[:16]}.1"
    if aside.exists():
        assert (aside / "data.txt").read_text() == "damaged"
        assert store.find("sft", OTHER_KEY) is None
    else:
        assert not marks(root)
        with pytest.raises(DamagedError):
            store.find("sft", OTHER_KEY)


def prepare_model(root: Path) -> None:
    """An empty cache."""


def check_model(root: Path) -> None:
    folder = root / "models" / "model"
    if folder.exists():
        assert (folder / "config.json").read_bytes() == b"{}"
        assert (folder / "weights" / "part.bin").read_bytes() == b"weights" * 100
    else:
        assert not marks(root)


CASES: dict[str, tuple[Callable[[Path], None], Callable[[Path], None], int]] = {
    # scenario: what is there before, what must hold after any kill, the fewest calls it makes
    "train": (prepare_train, check_train, 60),
    "train_by_lease": (prepare_train, check_train, 75),
    "save_over_damaged": (prepare_damaged_checkpoint, check_damaged_checkpoint, 12),
    "replace_text": (prepare_text, check_text, 4),
    "append_events": (prepare_journal, check_journal, 9),
    "discard": (prepare_damaged_artifact, check_damaged_artifact, 3),
    "build_model": (prepare_model, check_model, 14),
}
