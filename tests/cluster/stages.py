"""Stages without a model that do what a test on a cluster is about; workers import this module."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from macpo.errors import TrainingError
from macpo.stage import Stage, StageContext


@dataclass(frozen=True, eq=False)
class Write(Stage):
    """Writes its text, and what it reads."""

    kind: ClassVar[str] = "write"

    text: str
    before: Stage | None = None

    def run(self, context: StageContext) -> Mapping[str, Any]:
        read = "" if self.before is None else (context.path(self.before) / "text").read_text()
        (context.output / "text").write_text(read + self.text)
        return {}


@dataclass(frozen=True, eq=False)
class Dies(Stage):
    """Kills its own process the first `times`; counts in a file beside the store."""

    kind: ClassVar[str] = "dies"

    count: Path
    times: int
    not_in_key: ClassVar[frozenset[str]] = frozenset({"name", "count", "times"})

    def run(self, context: StageContext) -> Mapping[str, Any]:
        (context.output / "half").write_text("half")
        died = len(self.count.read_text()) if self.count.exists() else 0
        if died < self.times:
            self.count.write_text("x" * (died + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return {}


@dataclass(frozen=True, eq=False)
class Waits(Stage):
    """Reports progress until a file is there."""

    kind: ClassVar[str] = "waits"
    not_in_key: ClassVar[frozenset[str]] = frozenset({"name", "file"})

    number: int
    file: Path

    def run(self, context: StageContext) -> Mapping[str, Any]:
        step = 0
        while not self.file.exists():
            step += 1
            context.progress(step, 1000)
            time.sleep(0.05)
        (context.output / "text").write_text(str(self.number))
        return {}


@dataclass(frozen=True, eq=False)
class Fails(Stage):
    """Fails with an error of the user's, or with a bug's."""

    kind: ClassVar[str] = "fails"

    bug: bool = False

    def run(self, context: StageContext) -> Mapping[str, Any]:
        if self.bug:
            raise RuntimeError("shapes differ")
        raise TrainingError("the loss is nan; lower the learning rate")


@dataclass(frozen=True, eq=False)
class Ends(Stage):
    """Ends the run."""

    kind: ClassVar[str] = "ends"

    before: Stage

    @property
    def may_end_run(self) -> bool:
        return True

    def ends_run(self, meta: Mapping[str, Any]) -> bool:
        return True

    def run(self, context: StageContext) -> Mapping[str, Any]:
        return {}
