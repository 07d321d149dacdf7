"""What a run directory already has of a plan: finished stages, what they left, how long they took.

Manifests and the journal are read, and the sizes of files are compared. Of artifacts only the data,
which are read for the plan, are compared with their checksums: that reads all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from macpo.data.stages import SplitData
from macpo.errors import DamagedError
from macpo.program import Plan
from macpo.run_directory import RunDir
from macpo.stage import Stage
from macpo.store import Manifest, artifact_folder, verify
from macpo.work import Answers

StageState = Literal["done", "damaged", "to run"]


class Recorded:
    """What of a plan is done.

    Args:
        folder: the run directory; None for a run from nothing.
        layout: the plan.

    Raises:
        StoreError: the run directory cannot be read.
    """

    def __init__(self, folder: Path | None, layout: Plan) -> None:
        run = None if folder is None else RunDir(folder)
        self._store = None if run is None else run.store
        self._stages = layout.stages
        self._manifests: dict[str, Manifest] = {}
        self._states: dict[str, StageState] = {}
        for stage in self._stages:
            self._states[stage.key] = self._look(stage)
        events = [] if run is None else run.journal()
        ended = {e["key"]: float(e["seconds"]) for e in events if e["event"] == "finished"}
        self._seconds = {k: s for k, s in ended.items() if self._states.get(k) == "done"}

    def state(self, stage: Stage) -> StageState:
        """Say whether a stage is done."""
        return self._states[stage.key]

    def path(self, stage: Stage) -> Path | None:
        """Return the artifact's folder; None when the stage is not done."""
        if self._store is None or self._states[stage.key] != "done":
            return None
        return artifact_folder(self._store, stage.kind, stage.key)

    def seconds(self, stage: Stage) -> float | None:
        """Return how long a stage took that is done; None when it is not, or nobody knows."""
        return self._seconds.get(stage.key)

    def answers(self) -> dict[str, Answers]:
        """Return what finished answering stages left, by stage key."""
        found = {}
        for stage in self._stages:
            if self._states[stage.key] == "done":
                answers = Answers.recorded(self._manifests[stage.key].fields["meta"])
                if answers is not None:
                    found[stage.key] = answers
        return found

    def _look(self, stage: Stage) -> StageState:
        """Find out the state of a stage, whose inputs' states are known."""
        if self._store is None:
            return "to run"
        folder = artifact_folder(self._store, stage.kind, stage.key)
        if not folder.is_dir():
            return "to run"
        try:
            # The data are read for the plan; of others sizes tell what takes no time to tell.
            manifest = verify(folder, sizes_only=stage.kind != SplitData.kind)
        except DamagedError:
            return "damaged"
        inputs = manifest.fields["inputs"]
        for name, earlier in stage.inputs.items():
            # An input that has to be run again will most likely hold what it held before: stages
            # are deterministic.
            known = self._manifests.get(earlier.key)
            if known is not None and inputs.get(name) != known.digest:
                return "to run"
        self._manifests[stage.key] = manifest
        return "done"
