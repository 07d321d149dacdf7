"""What a comparison has to run: the stages of every cell, most of them in several cells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from macpo.compare.design import Cell, Design, with_dtype
from macpo.config import RunConfig
from macpo.errors import MacpoError
from macpo.seeds import canonical_json, digest
from macpo.store import MANIFEST, artifact_folder

if TYPE_CHECKING:
    from macpo.agents import Team

TEAM_KEYS = (
    *("student", "teachers", "use_teachers", "dtype"),
    *("tuning", "sft", "negative_sft", "dpo", "limits"),
)
"""What of a config `macpo.agents.assemble_team` reads."""


@dataclass(frozen=True, slots=True)
class CellStage:
    """One stage of a cell; `agent` is whose model it runs, None where it only sorts texts."""

    name: str
    kind: str
    key: str
    agent: str | None


@dataclass(frozen=True, slots=True)
class CellPlan:
    """The stages of one cell in order, or why it cannot run."""

    cell: Cell
    stages: tuple[CellStage, ...] = ()
    fault: str | None = None

    @property
    def digest(self) -> str:
        """A digest of all that the cell computes."""
        return digest([stage.key for stage in self.stages])


@dataclass(frozen=True, slots=True)
class ComparePlan:
    """What a comparison would run.

    `total` counts the stages that separate runs would have, `distinct` those that are left when
    cells share them, `done` those of the latter that are in the store. `notes` say what the plan
    could not know.
    """

    design: Design
    cells: tuple[CellPlan, ...]
    done: int
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """The stages of all cells, each cell for itself."""
        return sum(len(plan.stages) for plan in self.cells)

    @property
    def distinct(self) -> int:
        """The stages that have to be run for all cells together."""
        return len(distinct_stages(self.cells))


def plan_comparison(
    design: Design, folder: str | Path, store: str | Path | None = None
) -> ComparePlan:
    """Lay out a comparison without running it; nothing is fetched or written.

    Args:
        design: the comparison.
        folder: where it runs or would run, to find what is done.
        store: where the artifacts are; by default `folder/store`.

    Raises:
        StoreError: the folder cannot be read.
    """
    from macpo.compare.folder import STORE, read_dtype

    folder = Path(folder)
    store = folder / STORE if store is None else Path(store)
    notes = []
    dtype = read_dtype(folder)
    if dtype is None and any(cell.config.dtype == "auto" for cell in design.cells):
        dtype = "float32"
        notes.append(
            "dtype: auto is decided by timing when the comparison starts; keys here are for float32"
        )
    if dtype is not None:
        design = with_dtype(design, dtype)
    plans = plan_cells(design, fetch=False)
    return ComparePlan(design, plans, count_done(plans, store), tuple(notes))


def plan_cells(design: Design, *, fetch: bool) -> tuple[CellPlan, ...]:
    """Lay out the stages of every cell.

    Args:
        design: the comparison, its dtypes decided.
        fetch: bring models and data to this machine if they are not here.
    """
    planner = _Planner(fetch)
    if fetch:
        return tuple(planner.plan(cell) for cell in design.cells)
    from macpo.planning.report import hub_offline

    with hub_offline():
        return tuple(planner.plan(cell) for cell in design.cells)


def distinct_stages(plans: Iterable[CellPlan]) -> dict[str, CellStage]:
    """Return the stages of all cells by key, each once."""
    return {stage.key: stage for plan in plans for stage in plan.stages}


def count_done(plans: Iterable[CellPlan], store: Path) -> int:
    """Return how many distinct stages are in a store; what is in the artifacts is not read."""
    stages = distinct_stages(plans).values()
    return sum((artifact_folder(store, s.kind, s.key) / MANIFEST).is_file() for s in stages)


class _Planner:
    """Plans cells; models and data that several cells name alike are looked up once."""

    def __init__(self, fetch: bool) -> None:
        self._fetch = fetch
        self._teams: dict[str, Team] = {}
        self._data: dict[str, str] = {}

    def plan(self, cell: Cell) -> CellPlan:
        """Lay out one cell; what is wrong with its models or data is told in the plan."""
        from macpo.methods.build import build_plan

        try:
            layout = build_plan(cell.config, self._team(cell.config), self._digest(cell.config))
        except MacpoError as error:
            return CellPlan(cell, fault=one_line(error))
        stages = []
        for stage in layout:
            name = None if stage.agent is None else stage.agent.name
            stages.append(CellStage(stage.name, stage.kind, stage.key, name))
        return CellPlan(cell, tuple(stages))

    def _team(self, config: RunConfig) -> Team:
        from macpo.agents import assemble_team

        key = canonical_json(config.model_dump(mode="json", include=set(TEAM_KEYS)))
        if key not in self._teams:
            self._teams[key] = assemble_team(config, config.dtype, fetch=self._fetch)
        return self._teams[key]

    def _digest(self, config: RunConfig) -> str:
        from macpo.data.stages import content_digest

        key = canonical_json(config.data.model_dump(mode="json"))
        if key not in self._data:
            self._data[key] = content_digest(config.data, fetch=self._fetch)
        return self._data[key]


def one_line(error: BaseException) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
