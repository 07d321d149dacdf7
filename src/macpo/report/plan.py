"""What `macpo plan` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from macpo.report.text import format_count, format_seconds, plain_line, plural

if TYPE_CHECKING:
    from macpo.planning import AgentPlan, PlanReport, StagePlan

UNKNOWN = "unknown"


def render_plan(report: PlanReport) -> RenderableType:
    """Return a plan as something that rich prints."""
    parts: list[RenderableType] = [Text(line, overflow="fold") for line in _heading(report)]
    parts += [_agents_table(report), _stages_table(report)]
    parts += [Text(line) for line in _totals(report)]
    parts += [Text(f"note: {note}", style="yellow") for note in report.notes]
    return Group(*parts)


def _heading(report: PlanReport) -> list[str]:
    """Say what the run is."""
    where = f" in {report.folder}" if report.folder is not None else ""
    lines = [f"{report.name}{where}, {report.dtype}"]
    sizes = "sizes unknown"
    if report.sizes is not None:
        splits = (
            f"{name} {plural(prompts, 'prompt')} ({plural(report.sizes.pairs[name], 'pair')})"
            for name, prompts in report.sizes.prompts.items()
        )
        sizes = ", ".join(splits)
    lines.append(f"data {plain_line(report.data)}: {sizes}")
    return lines


def _agents_table(report: PlanReport) -> Table:
    """List agents with their models and memory."""
    table = Table(
        title="agents; memory in GiB, each model alone", title_justify="left", box=SIMPLE_HEAD
    )
    for heading in ("agent", "model", "weights trained"):
        table.add_column(heading, overflow="fold")
    for heading in ("parameters", "weights", "training", "answering"):
        table.add_column(heading, justify="right")
    for agent in report.agents:
        model = agent.model + ("" if agent.local else " (not here yet)")
        tuning = "LoRA" if agent.tuning == "lora" else "all"
        table.add_row(Text(agent.name), Text(model), tuning, *_sizes(agent))
    return table


def _sizes(agent: AgentPlan) -> list[str]:
    """Write the number of weights and the memory."""
    if agent.parameters is None or agent.memory is None:
        return [UNKNOWN] * 4
    about = "about " if agent.parameters_estimated else ""
    memory = (agent.memory.weights, agent.memory.training, agent.memory.answering)
    return [
        f"{about}{format_count(agent.parameters)}",
        *(UNKNOWN if gib is None else f"{gib:.3g}" for gib in memory),
    ]


def _stages_table(report: PlanReport) -> Table:
    """List the stages in the order in which they run."""
    table = Table(title="stages", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("stage", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for heading in ("tokens", "operations", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in report.stages:
        style = "dim" if stage.state == "done" else ""
        table.add_row(Text(stage.name), stage.state, *_costs(stage), style=style)
    return table


def _costs(stage: StagePlan) -> list[str]:
    """Write the tokens, operations and time of a stage."""
    if stage.agent is None:
        return ["-", "-", "-"]
    if stage.work is None:
        return [UNKNOWN, UNKNOWN, ""]
    bound = "at most " if stage.work.at_most else ""
    return [
        f"{bound}{format_count(stage.work.tokens)}",
        UNKNOWN if stage.operations is None else format_count(stage.operations),
        "" if stage.seconds is None else format_seconds(stage.seconds),
    ]


def _totals(report: PlanReport) -> list[str]:
    """Sum up what is left to run."""
    left = report.to_run
    total = plural(len(report.stages), "stage")
    if not left:
        return [f"all {total} are done"]
    lines = [f"{len(left):,} of {total} to run"]
    works = [stage.work for stage in left if stage.work is not None]
    if len(works) < len(left):
        return lines
    bound = "at most " if any(work.at_most for work in works) else ""
    parts = (("read", "read"), ("written", "written"), ("trained", "trained on"))
    tokens = (
        f"{format_count(sum(getattr(work, name) for work in works))} {verb}" for name, verb in parts
    )
    lines.append(f"tokens: {bound}{', '.join(tokens)}")
    operations = [stage.operations for stage in left]
    if None in operations:
        return lines
    amount = sum(number for number in operations if number is not None)
    lines.append(f"operations: {bound}{format_count(amount)}")
    if report.gflops is not None:
        seconds = amount / (report.gflops * 1e9)
        lines.append(
            f"time: roughly {format_seconds(seconds)} of matrix products alone, at the "
            f"{report.gflops:,.0f} GFLOP/s measured in this run; answering and small batches are "
            "slower"
        )
    return lines
