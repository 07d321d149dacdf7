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

UNKNOWN, AT_MOST, MISSING = "unknown", "≤ ", " *"


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
    title = "agents; memory in GiB, each model alone"
    if not all(agent.local for agent in report.agents):
        title += f" ({MISSING.strip()} not on this machine)"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("agent", no_wrap=True)
    table.add_column("model", overflow="fold")
    table.add_column("trains", no_wrap=True)
    for heading in ("parameters", "weights", "training", "answering"):
        table.add_column(heading, justify="right", no_wrap=True)
    for agent in report.agents:
        model = agent.model + ("" if agent.local else MISSING)
        tuning = "LoRA" if agent.tuning == "lora" else "all"
        table.add_row(Text(agent.name), Text(model), tuning, *_sizes(agent))
    return table


def _sizes(agent: AgentPlan) -> list[str]:
    """Write the number of weights and the memory."""
    if agent.parameters is None or agent.memory is None:
        return [UNKNOWN] * 4
    about = "~" if agent.parameters_estimated else ""
    memory = (agent.memory.weights, agent.memory.training, agent.memory.answering)
    return [
        f"{about}{format_count(agent.parameters)}",
        *(UNKNOWN if gib is None else f"{gib:.3g}" for gib in memory),
    ]


def _stages_table(report: PlanReport) -> Table:
    """List the stages in the order in which they run."""
    table = Table(
        title=f"stages ({AT_MOST.strip()} at most)", title_justify="left", box=SIMPLE_HEAD
    )
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
    seconds = "" if stage.seconds is None else format_seconds(stage.seconds)
    if stage.agent is None:
        return ["-", "-", seconds]
    if stage.work is None:
        return [UNKNOWN, UNKNOWN, seconds]
    bound = AT_MOST if stage.work.at_most else ""
    operations = UNKNOWN if stage.operations is None else format_count(stage.operations)
    return [f"{bound}{format_count(stage.work.tokens)}", operations, seconds]


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
    operations = [stage.operations for stage in left if stage.operations is not None]
    if len(operations) == len(left):
        lines.append(f"operations: {bound}{format_count(sum(operations))}")
    seconds = [stage.seconds for stage in left if stage.seconds is not None]
    if len(seconds) == len(left):
        lines.append(f"time: {bound}about {format_seconds(sum(seconds))}, {_basis(report)}")
    return lines


def _basis(report: PlanReport) -> str:
    """Say what the estimated time stands on."""
    kinds = {stage.kind for stage in report.to_run if stage.operations}
    slow = (
        f"of matrix products alone at the {report.gflops or 0:,.0f} GFLOP/s measured in this run; "
        "small batches and answers take longer"
    )
    if not kinds & report.paced:
        return slow
    if kinds <= report.paced:
        return "at the pace of the stages that are done"
    rest = ", ".join(sorted(kinds - report.paced))
    return f"at the pace of the stages that are done; {rest}: {slow}"
