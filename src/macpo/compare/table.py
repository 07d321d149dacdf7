"""What `macpo compare` prints: the table of results, what failed, what sharing saved; the plan."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from macpo.agents import STUDENT
from macpo.compare.comparison import Comparison
from macpo.compare.design import TEACHERS, Design
from macpo.compare.results import SummaryRow
from macpo.compare.stages import ComparePlan
from macpo.compare.times import Saving
from macpo.errors import ConfigError
from macpo.estimates import Estimate
from macpo.metrics import metric
from macpo.report.text import format_seconds, plain_line, plural

ABOVE, BELOW = "↑", "↓"
GAP, UNDEFINED = "-", "undefined"
CELL_WIDTH = 17
"""Columns of the terminal that a metric takes at most; longer titles are wrapped."""


def render_comparison(
    comparison: Comparison, width: int, policy: str = STUDENT, t: int | None = None
) -> RenderableType:
    """Lay out a comparison's results.

    Args:
        comparison: as `compare` returned it.
        width: columns of the terminal; metrics that do not fit side by side follow below.
        policy: whose metrics.
        t: after which round; None for the last that each method has.

    Raises:
        ConfigError: there is no such policy or round.
    """
    parts: list[RenderableType] = []
    results = comparison.results
    if results.rows:
        check_view(comparison.design, policy, t)
        names = _names(comparison)
        room = max(1, (width - max(map(len, names)) - 20) // (CELL_WIDTH + 2))
        metrics = results.metrics(policy)
        for first in range(0, len(metrics), room):
            parts.append(_table(comparison, names, metrics[first : first + room], policy, t))
        parts += [Text(line, style="dim") for line in legend_lines(comparison, policy, t)]
    parts += [Text(line, style="yellow") for line in note_lines(comparison, policy)]
    for failure in comparison.failures:
        where = comparison.design.describe(failure.cell)
        parts.append(Text(f"failed: {where}: {plain_line(failure.reason)}", style="red"))
    parts += [Text(line) for line in saving_lines(comparison.saving)]
    return Group(*parts)


def check_view(design: Design, policy: str, t: int | None) -> None:
    """Refuse to show what no cell of a design can have.

    Raises:
        ConfigError: there is no such policy or round.
    """
    teachers = dict.fromkeys(a.name for cell in design.cells for a in cell.config.active_teachers)
    policies = [STUDENT, *teachers, TEACHERS]
    if policy not in policies:
        near = difflib.get_close_matches(policy, policies, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(policies)}"
        raise ConfigError(f"--policy {policy}: there is no such agent; {remedy}")
    last = max(cell.config.rounds for cell in design.cells)
    if t is not None and not 0 <= t <= last:
        raise ConfigError(f"--round {t}: there is no such round; give 0 to {last}")


def _table(
    comparison: Comparison, names: list[str], metrics: Sequence[str], policy: str, t: int | None
) -> Table:
    """Lay out some metrics: a row for each method, a block for each setting."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    table.add_column("round", justify="right")
    table.add_column("seeds", justify="right", no_wrap=True)
    for name in metrics:
        title = Text(plain_line(metric(name).title))  # its label, as in [mine], is no markup
        table.add_column(title, justify="right", max_width=CELL_WIDTH)
    several = len(comparison.design.settings) > 1
    for setting in comparison.design.settings:
        if several:
            table.add_section()
            table.add_row(Text(setting, style="bold"))
        for method in comparison.design.methods:
            done, planned = comparison.seeds_of(setting, method)
            if not planned:
                continue
            found = [comparison.results.at(setting, method, policy, name, t) for name in metrics]
            seeds = str(done) if done == planned else f"{done} of {planned}"
            rounds = [row.round for row in found if row is not None]
            table.add_row(
                Text(f"  {method}" if several else method),
                str(max(rounds)) if rounds else GAP,
                seeds,
                *(cell_text(row, done) for row in found),
            )
    return table


def cell_text(row: SummaryRow | None, seeds: int) -> str:
    """Write a mean with its interval and a mark, and over how many seeds if not all."""
    if row is None:
        return GAP
    if row.value is None:
        return UNDEFINED
    text = format_estimate(row.value)
    if row.value.n < seeds:
        text += f" (n={row.value.n})"
    if row.against is not None and row.against.excludes_zero:
        return f"{text} {ABOVE if row.against.mean > 0 else BELOW}"
    return f"{text}  "


def format_estimate(value: Estimate) -> str:
    """Write `0.625 ± 0.031`: the half-width with two digits, the mean with as many decimals."""
    half = value.half_width
    if half is None:
        return f"{value.mean:.4g}"
    decimals = 4 if half < 1e-4 else max(0, 1 - math.floor(math.log10(half)))
    decimals = min(decimals, 4)
    return f"{value.mean:.{decimals}f} ± {half:.{decimals}f}"


def _names(comparison: Comparison) -> list[str]:
    return [f"  {label}" for label in (*comparison.design.settings, *comparison.design.methods)]


def legend_lines(comparison: Comparison, policy: str, t: int | None) -> Iterator[str]:
    """Say what the table shows."""
    design = comparison.design
    when = "each method's last round" if t is None else f"round {t}, or the last before it"
    yield f"{policy} after {when}; mean ± half of the 95 % interval over seeds (Student's t)"
    others = [method for method in design.methods if method != design.against]
    if len(design.seeds) < 2:
        yield "one seed: no intervals, and no difference can be told from chance"
    elif others:
        yield (
            f"{ABOVE} {BELOW} above or below {design.against}: the 95 % interval of the paired "
            "difference excludes zero (of 20 that are zero in truth one is marked)"
        )


def note_lines(comparison: Comparison, policy: str) -> Iterator[str]:
    """Say what is not there."""
    design, results = comparison.design, comparison.results
    for name in design.metrics or ():
        if results.rows and name not in results.metrics(policy):
            measured = dict.fromkeys(row.metric for row in results.rows if row.policy == policy)
            there = ", ".join(map(plain_line, measured))
            yield f"note: no {plain_line(name)} was measured of {policy}; there are {there}"
    shown = results.metrics(policy)
    gaps = [row.value for row in results.rows if row.policy == policy and row.metric in shown]
    undefined = sum(value is None for value in gaps)
    if undefined:
        yield (
            f"note: {plural(undefined, 'value')} of PGR undefined: there the ceiling "
            f"({design.ceiling}) is no better than the teachers, so there is no gap to recover"
        )
    missing = len(design.cells) - len(comparison.finished) - len(comparison.failures)
    if missing:
        yield f"note: {plural(missing, 'cell')} not run yet"


def saving_lines(saving: Saving) -> Iterator[str]:
    """Say what sharing stages saved."""
    if not saving.stages_run:
        return
    yield (
        f"stages: {saving.stages_run:,} run; separate runs would have run "
        f"{saving.stages_separate:,} ({saving.stages_separate / saving.stages_run:.2g} times as "
        "many)"
    )
    if saving.seconds_run:
        yield (
            f"time: {format_seconds(saving.seconds_run)} in stages; separate runs would have taken "
            f"{format_seconds(saving.seconds_separate)} "
            f"({saving.seconds_separate / saving.seconds_run:.2g} times as long)"
        )


def render_plan(plan: ComparePlan) -> RenderableType:
    """Lay out what a comparison would run."""
    design = plan.design
    table = Table(box=SIMPLE_HEAD)
    for name, justify in (("cell", "left"), ("stages", "right"), ("new", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
    seen: set[str] = set()
    faults = []
    for cell in plan.cells:
        keys = [stage.key for stage in cell.stages]
        new = sum(key not in seen for key in keys)
        seen.update(keys)
        where = design.describe(cell.cell)
        if cell.fault is not None:
            faults.append(f"{where}: {plain_line(cell.fault)}")
        table.add_row(where, f"{len(keys):,}" if keys else GAP, f"{new:,}" if keys else GAP)
    total = plural(plan.total, "stage")
    shared = f"; {plan.total / plan.distinct:.2g} times fewer" if plan.distinct else ""
    lines = [
        f"{plural(len(plan.cells), 'cell')}: {total} in separate runs, {plan.distinct:,} distinct"
        f"{shared}",
        f"{plan.done:,} of {plan.distinct:,} are done",
    ]
    return Group(
        table,
        *(Text(line) for line in lines),
        *(Text(f"cannot run: {fault}", style="red") for fault in faults),
        *(Text(f"note: {note}", style="yellow") for note in plan.notes),
    )
