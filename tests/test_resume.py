"""Kill -9 at any moment, run the same command again: the same final adapters, byte for byte.

A run is forked off and kills itself at the n-th call of some function that changes the disk, or in
the middle of writing a checkpoint. Forking shares the imports; one torch thread makes it safe.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from macpo.config import RunConfig, load_config
from macpo.runner import run
from macpo.stage import Stage
from macpo.store import Artifact, read_journal
from tests.runs import write_config


class Quiet:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.found: list[str] = []
        self.notes: list[str] = []
        self.alerts: list[tuple[str, str]] = []

    def planned(self, stages: Sequence[Stage]) -> None:
        pass

    def stage_started(self, stage: Stage, number: int, total: int) -> None:
        self.ran.append(stage.name)

    def stage_progress(self, stage: Stage, done: int, total: int, **fields: float) -> None:
        pass

    def stage_finished(self, stage: Stage, seconds: float, artifact: Artifact) -> None:
        pass

    def stage_found(self, stage: Stage, artifact: Artifact) -> None:
        self.found.append(stage.name)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def alert(self, title: str, text: str) -> None:
        self.alerts.append((title, text))


def digests(folder: Path) -> dict[str, str]:
    """Return the checksum of every file below a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def run_until_killed(config: RunConfig, folder: Path, prepare: Callable[[], None]) -> bool:
    """Fork a run that `prepare` has rigged to kill itself; tell whether it did."""
    child = os.fork()
    if child == 0:
        try:
            prepare()
            run(config, folder, Quiet())
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def die_at(module: object, name: str, number: int) -> Callable[[], None]:
    """Rig `module.name` so that its `number`-th call kills the process instead."""

    def prepare() -> None:
        original = getattr(module, name)
        calls = 0

        def rigged(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(module, name, rigged)

    return prepare


def die_inside_checkpoint(number: int) -> Callable[[], None]:
    """Rig the trainer so that it dies with half of the `number`-th checkpoint's moments written."""

    def prepare() -> None:
        from macpo.training import loop

        original = loop.save_file
        calls = 0

        def rigged(tensors: dict[str, object], path: Path) -> None:
            nonlocal calls
            calls += 1
            original(tensors, path)
            if calls == number:
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        loop.save_file = rigged  # type: ignore[assignment]

    return prepare


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("config")
    return load_config(write_config(folder), ["engine.checkpoint_steps=1"])


@pytest.fixture(scope="module")
def unbroken(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("unbroken")
    run(config, folder, Quiet())
    return digests(folder / "final")


def finish(config: RunConfig, folder: Path) -> Quiet:
    """Run the same config again, and check that no finished stage runs twice."""
    done = {e["stage"] for e in read_journal(folder / "journal.jsonl") if e["event"] == "finished"}
    observer = Quiet()
    run(config, folder, observer)
    assert not done & set(observer.ran)
    return observer


@pytest.mark.parametrize("number", [1, 4, 9])
def test_a_run_killed_inside_a_checkpoint_write_ends_in_the_same_adapters(
    config: RunConfig, unbroken: dict[str, str], tmp_path: Path, number: int
) -> None:
    assert run_until_killed(config, tmp_path, die_inside_checkpoint(number))
    finish(config, tmp_path)
    assert digests(tmp_path / "final") == unbroken


@pytest.mark.parametrize(("name", "number"), [("rename", 3), ("rename", 25), ("fsync", 200)])
def test_a_run_killed_at_a_disk_change_ends_in_the_same_adapters(
    config: RunConfig, unbroken: dict[str, str], tmp_path: Path, name: str, number: int
) -> None:
    assert run_until_killed(config, tmp_path, die_at(os, name, number))
    finish(config, tmp_path)
    assert digests(tmp_path / "final") == unbroken


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_killed_again_and_again_ends_in_the_same_adapters(
    config: RunConfig, unbroken: dict[str, str], tmp_path: Path
) -> None:
    """Each attempt dies seven renames later than the last one began; progress is never lost."""
    attempts = 0
    while run_until_killed(config, tmp_path, die_at(os, "rename", 7)):
        attempts += 1
        assert attempts < 200
    assert attempts > 5
    finish(config, tmp_path)
    assert digests(tmp_path / "final") == unbroken


def test_a_damaged_artifact_is_named_and_rebuilt(
    config: RunConfig, unbroken: dict[str, str], tmp_path: Path
) -> None:
    run(config, tmp_path, Quiet())
    weights = tmp_path / "stages" / "round-1" / "student" / "train" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    observer = Quiet()
    run(config, tmp_path, observer)
    assert observer.ran == ["round-1/student/train"]
    assert "weights.safetensors" in observer.notes[0]
    assert digests(tmp_path / "final") == unbroken


def test_one_more_round_runs_that_round_only(config: RunConfig, tmp_path: Path) -> None:
    run(config.model_copy(update={"rounds": 1}), tmp_path, Quiet())
    observer = Quiet()
    run(config.model_copy(update={"rounds": 2}), tmp_path, observer)
    assert observer.ran
    assert all(name.startswith("round-2/") for name in observer.ran)


def test_a_changed_beta_keeps_the_initialisation(config: RunConfig, tmp_path: Path) -> None:
    short = config.model_copy(update={"rounds": 1})
    run(short, tmp_path, Quiet())
    dpo = config.dpo.model_copy(update={"beta": 0.3})
    observer = Quiet()
    run(short.model_copy(update={"dpo": dpo}), tmp_path, observer)
    assert not [name for name in observer.ran if name.startswith("init/")]
    assert "round-1/student/train" in observer.ran
