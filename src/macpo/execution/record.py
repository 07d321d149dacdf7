"""What an executor writes down of a run: the journal, the store's times, readable names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from macpo.run_directory import RunDir
from macpo.stage import Stage
from macpo.store import Artifact, Journal, Store, describe_stop, translate_write_errors


class Record:
    """The record of a run, whose lock the caller holds; `macpo status` reads it.

    Args:
        run: the run directory.
        store: where its artifacts are.
    """

    def __init__(self, run: RunDir, store: Store) -> None:
        self.run = run
        self._journal = Journal(run.journal_file)
        self._times = store.times

    def planned(self, plan: Sequence[Stage], event: str) -> None:
        """Write down what is about to be found or run; `event` is `planned` or `evaluating`."""
        self._journal.append(event, stages=[[stage.name, stage.key] for stage in plan])

    def told(self) -> set[str]:
        """Return the keys of the stages of which the journal says that they are done."""
        keys: set[str] = set()
        for event in self.run.journal():
            if event["event"] in ("finished", "found"):
                keys.add(event["key"])
            elif event["event"] == "set_aside":
                keys.discard(event["key"])
        return keys

    def found(self, stage: Stage) -> None:
        """Write down that another run, which shares the store, has run a stage."""
        self._journal.append("found", stage=stage.name, key=stage.key)

    def set_aside(self, stage: Stage, reason: str) -> None:
        """Write down that a stage's artifact was of no use."""
        self._journal.append("set_aside", stage=stage.name, key=stage.key, reason=reason)

    def narrowed(self, stage: Stage, text: str) -> None:
        """Write down that a stage goes on with less memory than was asked for."""
        self._journal.append("narrowed", stage=stage.name, key=stage.key, text=text)

    def started(self, stage: Stage, **where: Any) -> None:
        """Write down that a stage runs.

        Args:
            stage: the stage.
            **where: for one that may run beside others, `node`: on which machine.
        """
        self._journal.append("started", stage=stage.name, key=stage.key, **where)

    def stopped(self, stage: Stage, seconds: float, error: BaseException | str) -> None:
        """Write down that a stage stopped before its end, and why."""
        reason = error if isinstance(error, str) else describe_stop(error)
        self._journal.append(
            "stopped", stage=stage.name, key=stage.key, seconds=seconds, reason=reason
        )
        self._times.append("stopped", key=stage.key, seconds=seconds)

    def finished(self, stage: Stage, seconds: float) -> None:
        """Write down that a stage has run."""
        self._journal.append("finished", stage=stage.name, key=stage.key, seconds=seconds)
        self._times.append("finished", key=stage.key, seconds=seconds)

    def link(self, stage: Stage, artifact: Artifact) -> None:
        """Show the artifact under its readable name: stages/round-1/student/pairs."""
        link = self.run.stages / stage.name
        target = os.path.relpath(artifact.path, link.parent)
        if link.is_symlink() and os.readlink(link) == target:
            return
        with translate_write_errors(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            fresh = link.with_name(f".{link.name}.new")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(target)
            fresh.replace(link)
