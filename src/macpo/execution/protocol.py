"""The execution boundary: a plan goes in, artifacts come out, wherever its stages run.

`macpo.execution.local.LocalExecutor` runs them one after another in this process. Another executor
is given to `macpo.runner.run` as a factory; what it must keep to is written here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from macpo.config import EngineConfig
from macpo.stage import Stage
from macpo.store import Artifact, Store

if TYPE_CHECKING:
    import torch

    from macpo.policies import PolicyPool


class Observer(Protocol):
    """Is told what happens, to show it to people."""

    def planned(self, stages: Sequence[Stage]) -> None:
        """These stages are about to be found or run, in this order; told once, before any."""

    def stage_started(self, stage: Stage, number: int, total: int) -> None:
        """Stage `number` of `total` (from 1) starts to run."""

    def stage_progress(self, stage: Stage, done: int, total: int, **fields: float) -> None:
        """`done` of `total` units of the running stage are done; `fields` are numbers to show."""

    def stage_finished(self, stage: Stage, seconds: float, artifact: Artifact) -> None:
        """A stage has run."""

    def stage_found(self, stage: Stage, artifact: Artifact) -> None:
        """A stage had been run before."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def alert(self, title: str, text: str) -> None:
        """Something is likely wrong with what the run makes, such as a sign of collapse.

        Args:
            title: a few words: `student, round 3: repetition`.
            text: what was seen, the threshold, and what to do.
        """


class Executor(Protocol):
    """Makes the stages of a plan true.

    A stage may run as soon as the artifacts of its `inputs` are there, in any order and anywhere.
    It is given a `StageContext` and leaves an artifact in the store, under its kind and key, whose
    input digests are those of the artifacts that it read. One that the store holds already, made
    from the same inputs, is not run again. The observer is told of every stage that it has run or
    was found: metrics are gathered from what it was told. Where `Stage.ends_run` says so of a
    stage's artifact, what stands after it in the plan is not run.
    """

    @property
    def policies(self) -> PolicyPool:
        """Loads policies out of the artifacts, in the process of the caller, who publishes them."""
        ...

    def execute(self, stages: Iterable[Stage]) -> Mapping[str, Artifact]:
        """Find or run every stage; each stands after its inputs.

        Returns:
            The artifacts, by stage key; those of a run that ended early are fewer.

        Raises:
            MacpoError: a stage failed; what was finished stays.
            KeyboardInterrupt: the process was asked to stop.
        """
        ...


class ExecutorFactory(Protocol):
    """Makes the executor of a run."""

    def __call__(
        self,
        folder: Path,
        store: Store,
        engine: EngineConfig,
        device: torch.device,
        observer: Observer,
    ) -> Executor:
        """Return an executor.

        Args:
            folder: the run directory, whose lock the caller holds. What `macpo status` shows is
                read from the journal and the progress file there (`macpo.run_directory`).
            store: where artifacts are.
            engine: layout of work on this machine.
            device: where models go.
            observer: is told what happens.
        """
        ...
