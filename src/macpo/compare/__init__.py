"""Comparisons: methods x settings x seeds from one file, stages that they share run once.

    from macpo.compare import compare, load_design

    design = load_design("example:compare/ablations", ["rounds=1"])
    comparison = compare(design, "runs/ablations")      # goes on after a kill
    comparison.results.at("default", "macpo", "student", "preference_accuracy")

| module | holds |
|---|---|
| config | what a compare file may say, and reading it |
| entries | its `methods`: the forms of an entry, and what a slip in one meant |
| design | the cells: methods x settings x seeds, each a checked config |
| stages | the stages of all cells, how many are shared; a plan without running |
| running, api | cell after cell over one store; `compare` shows it on stderr |
| folder | what is where in a comparison's folder |
| stats | means, intervals over seeds, paired differences, performance gap recovered |
| rows | measurements, the teachers' means, gaps recovered |
| results | means over seeds, paired differences |
| times | how long stages took: what is left, what sharing saved |
| comparison | what `compare` returns, and the files of results |
| table, markdown, figures, progress | what people see |
| drawing | one style for the lines of all figures |
"""

from __future__ import annotations

from macpo.compare.api import compare
from macpo.compare.comparison import Comparison, Failure
from macpo.compare.config import CompareConfig
from macpo.compare.design import Cell, Design, lay_out, load_design
from macpo.compare.figures import draw_figures
from macpo.compare.progress import CompareObserver
from macpo.compare.results import Results, SummaryRow
from macpo.compare.rows import Row
from macpo.compare.stages import ComparePlan, plan_comparison
from macpo.compare.table import render_comparison, render_plan
from macpo.compare.times import Saving
from macpo.estimates import Estimate

__all__ = [
    "Cell",
    "CompareConfig",
    "CompareObserver",
    "ComparePlan",
    "Comparison",
    "Design",
    "Estimate",
    "Failure",
    "Results",
    "Row",
    "Saving",
    "SummaryRow",
    "compare",
    "draw_figures",
    "lay_out",
    "load_design",
    "plan_comparison",
    "render_comparison",
    "render_plan",
]
