"""What a stage reads is what was found or made: nothing is computed from what somebody changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from macpo import dtype
from macpo.config import EngineConfig, ModelConfig
from macpo.dtype import keep_numerics, resolve_once
from macpo.errors import ModelError, StoreError
from macpo.execution.local import LocalExecutor
from macpo.models import cache as model_cache
from macpo.models.cache import build_once, model_folder, remembered_digest
from macpo.models.sources import resolve
from macpo.stage import Stage, StageContext
from macpo.store import Checkpoints, Store, folder_state
from tests.test_resume import Quiet
from tests.tiny import tiny_folder

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Told(Stage):
    """A stage that writes a text, and first does what a test wants of it."""

    kind: ClassVar[str] = "told"
    not_in_key: ClassVar[frozenset[str]] = frozenset({"name", "do"})

    do: Callable[[StageContext], object]
    before: Stage | None = None

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Do it, and write."""
        self.do(context)
        (context.output / "text").write_text("text")
        return {}


def test_input_that_changes_while_a_stage_runs_is_refused_and_made_again(tmp_path: Path) -> None:
    def nothing(context: StageContext) -> None:
        pass

    def change(context: StageContext) -> None:
        path = context.path(first) / "text"
        stat = path.stat()
        path.write_text("TEXT")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    first = Told("first", nothing)
    second = Told("second", change, first)

    def execute(*stages: Stage) -> Quiet:
        observer = Quiet()
        store = Store(tmp_path / "store")
        LocalExecutor(tmp_path, store, EngineConfig(), CPU, observer).execute(stages)
        return observer

    with pytest.raises(StoreError) as caught:
        execute(first, second)
    message = str(caught.value)
    assert message.startswith("second: first, which it reads, was changed while the run went on (")
    assert message.endswith("text does not match its checksum); run again to make it anew")
    assert execute(first, Told("second", nothing, first)).ran == ["first", "second"]


def test_folder_is_in_another_state_after_any_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one")
    states = [folder_state(tmp_path)]
    stat = (tmp_path / "file").stat()
    (tmp_path / "file").write_text("two")
    os.utime(tmp_path / "file", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    states.append(folder_state(tmp_path))
    (tmp_path / "other").touch()
    states.append(folder_state(tmp_path))
    assert len(set(states)) == 3
    assert folder_state(tmp_path) == states[-1]
    assert folder_state(tmp_path / "none") is None


def test_checkpoint_under_another_steps_name_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, lambda folder: (folder / "state").write_text("2") and None)
    os.rename(tmp_path / "step-00000002", tmp_path / "step-00000007")
    assert checkpoints.latest() is None
    assert "it says that it is of step 2" in caplog.text


def test_weights_written_over_in_place_count_anew(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    before, stat = remembered_digest(file), file.stat()
    file.write_bytes(b"abd")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert remembered_digest(file) != before


def test_adapter_beside_a_models_weights_is_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "base", layers=1)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(
        ModelError, match=r"an adapter_config\.json lies beside the model, and tran"
    ):
        resolve(ModelConfig(source=str(folder)), fetch=False)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MACPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_weights(folder: Path) -> None:
    (folder / "weights").write_bytes(b"weights")


def damage(folder: Path) -> None:
    """Flip a bit and leave no trace in the file's size and mtime."""
    stat = (folder / "weights").stat()
    (folder / "weights").write_bytes(b"weighty")
    os.utime(folder / "weights", ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_damaged_derived_model_is_told_and_made_again(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(build_once("key", write_weights))
    assert (build_once("key", write_weights) / "weights").read_bytes() == b"weights"
    assert "weights does not match its checksum; it is made again" in caplog.text


def test_derived_model_is_read_once_in_a_process(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_once("key", write_weights)
    compared = []
    monkeypatch.setattr(model_cache, "compare", lambda *given: compared.append(given))
    for _ in range(3):
        build_once("key", write_weights)
    assert len(compared) == 1


def test_derived_model_of_an_older_macpo_is_kept_and_checked_from_then_on(cache: Path) -> None:
    folder = build_once("key", write_weights)
    (folder.parent / "key.sums.json").unlink()
    model_cache._whole.clear()
    build_once("key", lambda folder: pytest.fail("made again"))
    damage(folder)
    build_once("key", write_weights)
    assert (model_folder("key") / "weights").read_bytes() == b"weights"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 7}', "\udcff"])
def test_checksums_that_cannot_be_read_are_no_reason_to_trust(cache: Path, content: str) -> None:
    folder = build_once("key", write_weights)
    sums = folder.parent / "key.sums.json"
    sums.write_text(content, encoding="utf-8", errors="surrogateescape")
    model_cache._whole.clear()
    build_once("key", write_weights)
    assert json.loads(sums.read_text())["files"].keys() == {"weights"}


def test_run_goes_on_with_its_own_number_of_threads(tmp_path: Path) -> None:
    notes: list[str] = []
    resolved = resolve_once(tmp_path / "run.json", "float32", CPU, notes.append)
    keep_numerics(resolved, CPU, notes.append)
    assert notes == []
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        keep_numerics(resolved, CPU, notes.append)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(threads)
    [note] = notes
    assert note.startswith(f"computing with {threads} threads, as the run began, and not with")


def test_every_other_difference_that_rounds_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = resolve_once(tmp_path / "run.json", "float32", CPU, lambda note: None)
    present = {**dtype._present(CPU), "torch": "9.9", "instructions": "OTHER"}
    monkeypatch.setattr(dtype, "_present", lambda device: present)
    notes: list[str] = []
    keep_numerics(resolved, CPU, notes.append)
    assert notes == [
        f"the run began with torch {torch.__version__}, now 9.9; instructions "
        f"{resolved.instructions}, now OTHER: finished stages stay, and what is made from now on "
        "may differ by rounding from what it would have been"
    ]
