"""What a run would do: its stages, which of them are done, and what the others cost.

Nothing is run, downloaded or written into the run directory. Where models or data are not on this
machine the plan is made from their names, and says so.

| module | holds |
|---|---|
| report | `plan`, and the report it returns |
| stages | what each stage has to do, and the clock that times it |
| recorded | what a run directory already has of the plan |
| measured | sizes of the splits and lengths of texts, where data and tokenizers are here |
| costs | operations, by arithmetic on what stages say of their work |
| cards | devices that a run may be planned for |
| memory | memory of one device by part |
| layouts | the layouts that a run may have on some devices, and which of them fit |
| placement | which of them is taken |
| times | how long it takes there |
"""

from __future__ import annotations

from macpo.planning.layouts import Place
from macpo.planning.report import AgentPlan, PlanReport, plan
from macpo.planning.stages import StagePlan

__all__ = ["AgentPlan", "Place", "PlanReport", "StagePlan", "plan"]
