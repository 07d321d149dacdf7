"""What the local executor makes of a stage that fails for want of memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from macpo.config import EngineConfig
from macpo.errors import ModelError
from macpo.execution.local import LocalExecutor
from macpo.run_directory import RunDir
from macpo.stage import Stage, StageContext
from macpo.store import Store
from tests.test_resume import Quiet


@dataclass(frozen=True, eq=False)
class Failing(Stage):
    """A stage that does what a test says."""

    kind: ClassVar[str] = "failing"
    not_in_key: ClassVar[frozenset[str]] = frozenset({"name", "do"})

    do: Callable[[], object]

    def run(self, context: StageContext) -> Mapping[str, Any]:
        self.do()
        return {}


def execute(folder: Path, do: Callable[[], object]) -> None:
    store = Store(folder / "store")
    executor = LocalExecutor(folder, store, EngineConfig(), torch.device("cpu"), Quiet())
    executor.execute([Failing("round-1/student/train", do)])


def on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")


def in_python() -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("do", "size"),
    [
        (lambda: torch.empty(10**16), "40000000000000000 bytes"),
        (on_a_gpu, "2.00 GiB"),
        (in_python, None),
    ],
)
def test_want_of_memory_is_one_line_with_the_remedy(
    tmp_path: Path, do: Callable[[], object], size: str | None
) -> None:
    with pytest.raises(ModelError, match="round-1/student/train: out of memory") as caught:
        execute(tmp_path, do)
    message = str(caught.value)
    assert "engine.pack_tokens" in message
    assert "\n" not in message
    assert (f"(tried to allocate {size})" in message) if size else "tried" not in message
    assert [e["event"] for e in RunDir(tmp_path).journal()][-1] == "stopped"


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    def do() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        execute(tmp_path, do)


@dataclass(frozen=True, eq=False)
class Copy(Stage):
    """A stage whose output is a file, read from outside or from the stage before it."""

    kind: ClassVar[str] = "copy"
    not_in_key: ClassVar[frozenset[str]] = frozenset({"name", "outside"})

    outside: Path
    before: Stage | None = None

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Copy it."""
        source = self.outside if self.before is None else context.path(self.before) / "text"
        (context.output / "text").write_text(source.read_text())
        return {}


def test_an_artifact_whose_inputs_have_changed_is_made_again(tmp_path: Path) -> None:
    """The first stage's artifact goes and comes out otherwise under the same key; what was made
    from the old one is not taken for the result of the new."""
    first = Copy("first", tmp_path / "outside")
    stages = [first, second := Copy("second", tmp_path / "outside", first)]
    store = Store(tmp_path / "store")

    def execute_all() -> tuple[Quiet, str]:
        observer = Quiet()
        executor = LocalExecutor(tmp_path, store, EngineConfig(), torch.device("cpu"), observer)
        made = executor.execute(stages)
        return observer, (made[second.key].path / "text").read_text()

    first.outside.write_text("one")
    execute_all()
    observer, text = execute_all()
    assert (observer.ran, text) == ([], "one")
    first.outside.write_text("another")
    store.discard(first.kind, first.key)
    observer, text = execute_all()
    assert (observer.ran, text) == (["first", "second"], "another")
    assert observer.notes == [
        "second is run again: it was made from inputs that have changed since"
    ]
    observer, text = execute_all()
    assert (observer.ran, text) == ([], "another")
