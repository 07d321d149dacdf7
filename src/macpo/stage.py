"""Everything is a stage with a key.

A stage is a pure step: train this policy on those pairs, answer these prompts with that policy. It
is a frozen dataclass; its fields are all that determines its output, and some of them are other
stages, so that stages form a graph. Its key is a hash over kind, version, fields and the keys of
the stages in them: a plan knows every key before anything ran, a finished stage is found instead of
run, and what changed is run again with all that stands on it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from macpo.agents import Agent, Policy
from macpo.config import EngineConfig, Section
from macpo.generation.protocol import GeneratorFactory
from macpo.progress import ProgressCallback
from macpo.ranks import ALONE, Ranks
from macpo.seeds import digest, plain
from macpo.store import Artifact, Checkpoints
from macpo.work import Answers, Known, Work

if TYPE_CHECKING:
    from macpo.policies import PolicyPool  # it needs torch


@dataclass(frozen=True, eq=False)
class Stage(ABC):
    """Base of all stages.

    `name` is for readers, such as `round-1/student/train`; it is not part of the key, nor are the
    fields named in `not_in_key`. Fields named in `added` came later than artifacts that are about:
    they are part of the key only where they differ from their default. Bump `version` when the same
    fields come to mean another output.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    not_in_key: ClassVar[frozenset[str]] = frozenset({"name"})
    added: ClassVar[frozenset[str]] = frozenset()

    name: str

    @property
    def agent(self) -> Agent | None:
        """Whose model this stage runs; None for a stage that only sorts texts."""
        return None

    @property
    def uses_model(self) -> bool:
        """Whether this stage runs any model, its agent's or another, and so wants a GPU."""
        return self.agent is not None

    @property
    def by_all_ranks(self) -> bool:
        """Whether all ranks run this stage where there are several; else rank 0 does, alone.

        Then all of them call `run`, and only what rank 0 writes counts. Where they share out work
        by `StageContext.ranks` each of them has less to do.
        """
        return self.agent is not None

    def work(self, known: Known) -> Work:
        """Reckon the tokens that this stage takes through its agent's model."""
        return Work()

    def leaves(self, known: Known, reader: Agent) -> tuple[Answers, ...]:
        """Reckon the answers that this stage leaves to each prompt, in the reader's tokens.

        One entry for a stage that answers, chosen and rejected for one that pairs, none for others.
        """
        return ()

    def accept(self, folder: Path) -> None:
        """Look at a finished artifact of this stage's key before it is used.

        For what a config may ask of it that does not decide what is in it.

        Raises:
            MacpoError: it will not do; in one line.
        """
        return  # whatever has the key will do

    @property
    def may_end_run(self) -> bool:
        """Whether `ends_run` can be true of what this stage returns."""
        return False

    def ends_run(self, meta: Mapping[str, Any]) -> bool:
        """Tell from what `run` returned whether the stages after this one are not to run."""
        return False

    @cached_property
    def key(self) -> str:
        """The content key, 64 hexadecimal characters."""
        return digest([self.kind, self.version, self._description[0]])

    @cached_property
    def inputs(self) -> dict[str, Stage]:
        """The stages whose artifacts this one reads, by where they stand in its fields."""
        return self._description[1]

    @property
    def identity(self) -> dict[str, Any]:
        """What of this stage decides its outcome, as JSON: its fields, stages by their keys."""
        return self._description[0]

    @cached_property
    def _description(self) -> tuple[dict[str, Any], dict[str, Stage]]:
        inputs: dict[str, Stage] = {}
        fields = {
            f.name: _describe(getattr(self, f.name), f.name, inputs)
            for f in dataclasses.fields(self)
            if f.name not in self.not_in_key
            and not (f.name in self.added and _is(getattr(self, f.name), f.default))
        }
        return fields, inputs

    @abstractmethod
    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Do the work: read inputs, write files below `context.output`.

        Returns:
            JSON about the result, kept with the artifact; equal in every run of this stage.
        """


@dataclass(frozen=True)
class StageContext:
    """What a running stage is given.

    Attributes:
        output: an empty folder; its files become the artifact.
        checkpoints: what an earlier, killed attempt at this stage left, or none.
        artifacts: the artifacts of its inputs, by stage key.
        pool: returns `policies`.
        generators: makes policies able to answer.
        engine: how work is laid out on this machine.
        progress: tells how far the stage is.
        kept: a folder of the store for what is worth keeping besides artifacts, because it was paid
            for; it need not be there yet, and other processes may use it at the same time.
        ranks: who runs the stage together; what the others write into their outputs is lost.
    """

    output: Path
    checkpoints: Checkpoints
    artifacts: Mapping[str, Artifact]
    pool: Callable[[], PolicyPool]
    generators: GeneratorFactory
    engine: EngineConfig
    progress: ProgressCallback = field(repr=False)
    kept: Path
    ranks: Ranks = ALONE

    @property
    def policies(self) -> PolicyPool:
        """Loads policies; a stage that does not ask for it needs no torch."""
        return self.pool()

    def path(self, stage: Stage) -> Path:
        """Return the folder with the files of an input stage."""
        return self.artifacts[stage.key].path

    def counter(self, total: int, done: int = 0) -> Callable[[int], None]:
        """Return a function that is told of finished units and reports their sum as progress."""

        def count(units: int) -> None:
            nonlocal done
            done += units
            self.progress(done, total)

        return count


def _is(value: Any, default: Any) -> bool:
    """Tell whether a value is the default, and not only equal to it, as True is to 1."""
    return type(value) is type(default) and bool(value == default)


def _describe(value: Any, where: str, inputs: dict[str, Stage]) -> Any:
    """Turn a field into JSON for the key, and collect the stages in it."""
    if isinstance(value, Stage):
        inputs[where] = value
        return {"stage": value.key}
    if isinstance(value, Policy):
        if value.weights is not None:
            _describe(value.weights, where, inputs)
        return {"agent": value.agent.identity(), "role": value.role, "weights": value.weights_key}
    if isinstance(value, Agent | Section):
        return value.identity()
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, tuple):
        return [_describe(item, f"{where}.{i}", inputs) for i, item in enumerate(value)]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{where}: a {type(value).__name__} cannot be part of a stage's key")
