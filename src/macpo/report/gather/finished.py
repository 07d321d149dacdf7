"""The stages of a run whose artifacts are there, and what their names say."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macpo.run_directory import PlannedStage, RunDir, RunPlan
from macpo.store import MANIFEST, read_manifest


@dataclass(frozen=True, slots=True)
class Finished:
    """A stage that is done, the folder of its artifact, and the artifact's meta."""

    stage: PlannedStage
    folder: Path
    meta: Mapping[str, Any]


def finished_stages(run: RunDir, plan: RunPlan) -> list[Finished]:
    """List the stages of a plan that are done, in its order."""
    found = []
    for stage in plan.stages:
        folder = run.artifact(stage)
        if (folder / MANIFEST).is_file():
            found.append(Finished(stage, folder, read_manifest(folder).fields["meta"]))
    return found


def round_of(stage: str) -> int | None:
    """Return the round in a stage's name: 0 of the beginning, None of what has none."""
    when = stage.partition("/")[0]
    if when.startswith("round-"):
        with suppress(ValueError):
            return int(when.removeprefix("round-"))
    return 0 if when == "init" else None


def agent_of(stage: PlannedStage) -> str:
    """Return whose stage it is, by its name: `round-2/student/train`."""
    parts = stage.name.split("/")
    return parts[1] if len(parts) > 1 else ""
