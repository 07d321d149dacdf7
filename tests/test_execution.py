"""Executors: what the local one makes of a want of memory, and one that a test brings along."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from macpo.config import EngineConfig, load_config
from macpo.errors import ModelError
from macpo.execution.local import LocalExecutor
from macpo.execution.protocol import Observer
from macpo.generation.protocol import make_generator
from macpo.memory import halved
from macpo.policies import PolicyPool
from macpo.run_directory import RunDir
from macpo.runner import run
from macpo.stage import Stage, StageContext
from macpo.store import Artifact, Store
from tests.runs import write_config
from tests.test_resume import Quiet, digests


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


@dataclass(frozen=True, eq=False)
class Serving(Failing):
    """A stage that leaves something at work beside the models, and then does what a test says."""

    kind: ClassVar[str] = "serving"

    def run(self, context: StageContext) -> Mapping[str, Any]:
        SERVING.append(context.policies.companion("engine", 0, Engine))
        return super().run(context)


class Engine:
    works = True

    def close(self) -> None:
        self.works = False


SERVING: list[Engine] = []


def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("do", [lambda: None, interrupted])
def test_what_worked_beside_the_models_ends_with_the_run_however_it_ends(
    tmp_path: Path, do: Callable[[], object]
) -> None:
    SERVING.clear()
    store = Store(tmp_path / "store")
    executor = LocalExecutor(tmp_path, store, EngineConfig(), torch.device("cpu"), Quiet())
    stages = [Serving("first", lambda: None), Serving("second", do)]

    with suppress(KeyboardInterrupt):
        executor.execute(stages)

    first, *others = SERVING
    assert all(other is first for other in others)
    assert not first.works


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


def test_a_stage_that_goes_on_with_less_memory_says_so_in_the_journal_and_to_people(
    tmp_path: Path,
) -> None:
    observer, store = Quiet(), Store(tmp_path / "store")
    executor = LocalExecutor(tmp_path, store, EngineConfig(), torch.device("cpu"), observer)
    stage = Failing(
        "round-1/student/train", lambda: halved(MemoryError(), 8, 2, "tokens in a pass", "")
    )
    executor.execute([stage])
    line = (
        "out of memory with 8 tokens in a pass: it goes on with 4 at most; results change by "
        "rounding at most"
    )
    assert observer.notes == [f"{stage.name}: {line}"]
    [told] = [e for e in RunDir(tmp_path).journal() if e["event"] == "narrowed"]
    assert (told["stage"], told["key"], told["text"]) == (stage.name, stage.key, line)
    assert store.find(stage.kind, stage.key) is not None


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


class LastFirst:
    """An executor of a test's own: of the stages that can run, the last in the plan goes first."""

    def __init__(
        self,
        folder: Path,
        store: Store,
        engine: EngineConfig,
        device: torch.device,
        observer: Observer,
    ) -> None:
        self.store = store
        self.engine = engine
        self.observer = observer
        self.artifacts: dict[str, Artifact] = {}
        self.policies = PolicyPool(device, lambda key: self.artifacts[key].path)

    def execute(self, stages: Iterable[Stage]) -> Mapping[str, Artifact]:
        left = {stage.key: stage for stage in stages}
        while left:
            ready = [s for s in left.values() if all(i.key not in left for i in s.inputs.values())]
            stage = left.pop(ready[-1].key)
            self.observer.stage_started(stage, len(self.artifacts) + 1, len(left))
            self.artifacts[stage.key] = artifact = self._run(stage)
            self.observer.stage_finished(stage, 0.0, artifact)
        return self.artifacts

    def _run(self, stage: Stage) -> Artifact:
        work = self.store.workspace(stage.kind, stage.key)
        context = StageContext(
            output=work.output,
            checkpoints=work.checkpoints,
            artifacts=self.artifacts,
            pool=lambda: self.policies,
            generators=make_generator,
            engine=self.engine,
            progress=lambda done, total, **fields: None,
            kept=self.store.kept,
        )
        inputs = {name: self.artifacts[i.key].digest for name, i in stage.inputs.items()}
        return work.commit(inputs, stage.run(context))


def test_another_executor_runs_the_same_plan_to_the_same_bytes(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), ["rounds=1"])
    here, elsewhere = Quiet(), Quiet()

    local = run(config, tmp_path / "local", here)
    other = run(config, tmp_path / "other", elsewhere, executor=LastFirst)

    assert sorted(elsewhere.ran) == sorted(here.ran)
    assert elsewhere.ran != here.ran
    assert other.metrics == local.metrics
    for name in local.final:
        assert digests(other.final[name]) == digests(local.final[name])
    again = Quiet()
    assert run(config, tmp_path / "other", again).metrics == local.metrics
    assert again.ran == []  # the local executor finds what the other one left


def test_protocols_need_no_torch() -> None:
    names = ("work", "backends", "stage", "generation.protocol", "execution.protocol")
    imports = "; ".join(f"import macpo.{name}" for name in names)
    check = f"{imports}; import sys; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
