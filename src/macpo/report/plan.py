"""What `macpo plan` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from macpo.planning.placement import written
from macpo.planning.times import (
    CARD_UTILISATION,
    CPU_ANSWERING,
    CPU_UTILISATION,
    LOADING_GIB,
    MEMORY_SHARE,
    STARTING,
)
from macpo.report.text import format_count, format_seconds, plain_line, plural

if TYPE_CHECKING:
    from macpo.planning import AgentPlan, Place, PlanReport, StagePlan

UNKNOWN, AT_MOST, MISSING = "unknown", "≤ ", " *"
PARTS = {
    "weights": "weights",
    "adapters": "adapter",
    "gradients": "grads",
    "optimizer": "Adam",
    "activations": "activ.",
    "logits": "logits",
    "cache": "cache",
    "others": "others",
    "overhead": "rest",
}
"""What the table calls the parts of `macpo.planning.memory.Parts`."""


def render_plan(report: PlanReport) -> RenderableType:
    """Return a plan as something that rich prints."""
    parts: list[RenderableType] = [Text(line, overflow="fold") for line in _heading(report)]
    parts.append(_agents_table(report))
    if report.asked_for:
        parts.append(_memory_table(report))
        parts += [Text(line, overflow="fold") for line in _said_layout(report)]
    parts.append(_stages_table(report))
    parts += [Text(line) for line in _totals(report)]
    parts += [Text(line, style="red") for line in _remedies(report)]
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


def _memory_table(report: PlanReport) -> Table:
    """Show what fills a device, for each agent's two kinds of work."""
    card = report.hardware.card
    title = f"memory of one device by part, in GiB; {report.hardware.name} has {card.memory_gib:g}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("agent", no_wrap=True)
    table.add_column("work", no_wrap=True)
    table.add_column("layout", no_wrap=True)
    for heading in PARTS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("all", justify="right", no_wrap=True)
    table.add_column("fits", no_wrap=True)
    for agent in report.agents:
        if agent.placement is None:
            continue
        places = {"trains": agent.placement.training, "answers": agent.placement.answering}
        for work, place in places.items():
            table.add_row(Text(agent.name), work, _layout(place), *_parts(place), _fits(place))
    return table


def _layout(place: Place) -> str:
    """Say over how many devices a base is divided, and how often it is there."""
    if place.shards > 1:
        sets = "" if place.replicas == 1 else f"{place.replicas} x "
        return f"{sets}{place.way} over {place.shards}"
    return place.way if place.replicas == 1 else f"{place.replicas} x {place.way}"


def _parts(place: Place) -> list[str]:
    """Write the parts, and their sum."""
    if place.parts is None:
        return [UNKNOWN] * (len(PARTS) + 1)
    sizes = [getattr(place.parts, name) for name in PARTS]
    return [f"{gib:.2f}" if gib else "-" for gib in sizes] + [f"{place.parts.total:.1f}"]


def _fits(place: Place) -> str:
    """Say whether it fits."""
    if place.fits is None:
        return UNKNOWN
    return "yes" if place.fits else "no"


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
    if report.seconds is not None:
        lines.append(f"time: {bound}about {format_seconds(report.seconds)}, {_basis(report)}")
    if report.loading:
        lines.append(
            f"of that {format_seconds(report.loading)} to load bases, at {LOADING_GIB:g} GiB/s and "
            f"{STARTING:g} s for each start of vLLM: assumed"
        )
    if report.cost is not None:
        lines.append(
            f"cost: {bound}about {report.cost:,.2f}, at {report.price:g} for each of "
            f"{plural(report.hardware.count, 'device')} and hour"
        )
    return lines


def _said_layout(report: PlanReport) -> list[str]:
    """Name the keys of the run's layout, and in one line those that the config lacks."""
    layout = report.layout
    sections = []
    for section, values in layout.keys.items():
        if said := ", ".join(f"{key}: {written(value)}" for key, value in values.items()):
            sections.append(f"{section}: {{{said}}}")
    places = [p for agent in report.agents if (p := agent.placement) is not None]
    if any(place.training.fits is False or place.answering.fits is False for place in places):
        return [f"no layout fits; the nearest is {', '.join(sections)}"]
    lines = [f"layout of the whole run: {', '.join(sections)}"]
    if layout.missing:
        lines.append(f"the config differs; set {', '.join(layout.missing)}")
    if layout.in_four_bits:
        keys = ", ".join(layout.in_four_bits)
        lines.append(f"in 4 bits (QLoRA) no base need be divided; set {keys}")
    return lines


def _remedies(report: PlanReport) -> list[str]:
    """Say what does not fit, and what to change for it."""
    lines = []
    for agent in report.agents:
        if agent.placement is None or not report.asked_for:
            continue
        places = {"training": agent.placement.training, "answering": agent.placement.answering}
        for work, place in places.items():
            if place.fits is False:
                what = f"{agent.name}: {work} does not fit {report.hardware.name}"
                if report.layout.refused:
                    what += f", and to divide the base is refused ({report.layout.refused})"
                lines.append(f"{what}; what would do: {place.remedy}")
    if lines and report.layout.in_four_bits:
        keys = ", ".join(report.layout.in_four_bits)
        lines.append(f"in 4 bits (QLoRA) all of it fits {report.hardware.name}; set {keys}")
    return lines


def _basis(report: PlanReport) -> str:
    """Say what the estimated time stands on."""
    kinds = {stage.kind for stage in report.to_run if stage.operations}
    shares = _shares(report)
    if not kinds & report.paced:
        return shares
    if kinds <= report.paced:
        return "at the pace of the stages that are done"
    rest = ", ".join(sorted(kinds - report.paced))
    return f"at the pace of the stages that are done; {rest}: {shares}"


def _shares(report: PlanReport) -> str:
    """Say at which shares of the hardware's speed work is reckoned."""
    asked = report.utilisation
    if report.hardware.is_cpu:
        work, answers = asked or CPU_UTILISATION, asked or CPU_ANSWERING
        return (
            f"at {work:.0%} (answers {answers:.0%}) of the {report.gflops or 0:,.0f} GFLOP/s of "
            "matrix products measured on this machine"
        )
    card = report.hardware.card
    return (
        f"at {asked or CARD_UTILISATION:.0%} of {card.tflops:,.0f} TFLOP/s a device ("
        f"{'asked for' if asked else 'assumed'}), answers at {MEMORY_SHARE:.0%} of "
        f"{card.memory_gbps:,.0f} GB/s (assumed)"
    )
