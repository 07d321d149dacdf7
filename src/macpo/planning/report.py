"""The plan of a run as a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from macpo.agents import Agent, Team, assemble_team, say_chosen_targets
from macpo.answering import Respond
from macpo.backends import find_backend
from macpo.config import RunConfig
from macpo.config.recipes import say_recipe
from macpo.data.cuts import Cuts
from macpo.data.splits import DataSplits
from macpo.data.stages import content_digest
from macpo.dtype import Resolved, known_dtype
from macpo.machine import choose_device, copied_gbps, measured_gflops, memory_gib
from macpo.methods.build import build_plan
from macpo.models.chat import Chat
from macpo.models.loading import ParameterCount, parameter_count, weight_bytes
from macpo.models.quantising import NF4
from macpo.planning.cards import CPU, Card, Hardware, read_hardware
from macpo.planning.costs import model_shape, state_layers
from macpo.planning.layouts import Member
from macpo.planning.measured import (
    find_chat,
    find_cuts,
    find_splits,
    measure_lengths,
    split_sizes,
    system_note,
)
from macpo.planning.memory import Memory, Model
from macpo.planning.placement import ChosenLayout, Placement, place_run
from macpo.planning.recorded import Recorded
from macpo.planning.stages import Clock, StagePlan, pace_of, stage_plans
from macpo.preflight import check_agent, quantised
from macpo.program import Plan
from macpo.run_directory import RunDir
from macpo.work import Known, Lengths, SplitSizes


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """One agent: its model, the memory it takes, and where its work goes; None is unknown."""

    name: str
    model: str
    local: bool
    tuning: str
    parameters: int | None
    parameters_estimated: bool
    memory: Memory | None
    placement: Placement | None = None


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What `plan` found.

    `gflops` is the measured speed of matrix products in `dtype` on this machine, None for other
    hardware. `paced` holds the kinds of stages whose times are estimated at the pace of this run's
    finished ones of that kind; those of other kinds are at shares of the hardware's speed
    (`macpo.planning.times`). `notes` say what the plan could not know, and what is lost. `cuts` has
    what an agent's limits cut off a sample of the pairs, by the agent's name, where data and
    tokenizer are here. `hardware` is what it is planned for; `asked_for` says that it was named,
    and is not this machine as it is. `layout` holds for all agents. `loading` are the seconds in
    which bases are loaded for the stages to run, None where that is not estimated; `price` is that
    of a device and hour, and `utilisation` the share of its matrix products that was asked for.
    """

    name: str
    folder: Path | None
    dtype: str
    gflops: float | None
    paced: frozenset[str]
    data: str
    sizes: SplitSizes | None
    agents: tuple[AgentPlan, ...]
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...]
    hardware: Hardware
    asked_for: bool
    layout: ChosenLayout
    cuts: Mapping[str, Cuts] = field(default_factory=dict)
    loading: float | None = None
    price: float | None = None
    utilisation: float | None = None

    @property
    def seconds(self) -> float | None:
        """The time of all stages that are to run, with loading; None where one is not known."""
        known = [stage.seconds for stage in self.to_run if stage.seconds is not None]
        if len(known) < len(self.to_run):
            return None
        return sum(known) + (self.loading or 0.0)

    @property
    def cost(self) -> float | None:
        """What that costs; None without a price."""
        if self.price is None or self.seconds is None:
            return None
        return self.seconds / 3600 * self.hardware.count * self.price

    @property
    def to_run(self) -> tuple[StagePlan, ...]:
        """The stages that are not done."""
        return tuple(stage for stage in self.stages if stage.state != "done")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        folder = None if self.folder is None else str(self.folder)
        return {
            **asdict(self),
            "folder": folder,
            "paced": sorted(self.paced),
            "seconds": self.seconds,
            "cost": self.cost,
        }


def plan(
    config: RunConfig,
    folder: Path | None = None,
    *,
    hardware: str | None = None,
    price: float | None = None,
    utilisation: float | None = None,
) -> PlanReport:
    """Lay out a run without running it.

    Args:
        config: the run.
        folder: its run directory, to find what is done; None for a run from nothing.
        hardware: what to plan for, such as `8xH100-80GB` (`macpo.planning.cards`); None for this
            machine.
        price: of one device and hour, in any currency.
        utilisation: the share of its matrix products that hardware reaches, above 0 and up to 1;
            None for what is usual (`macpo.planning.times`).

    Raises:
        ConfigError: there is no such hardware.
        DataError: the data is here but cannot be read, or is too small for its splits.
        ModelError: a model folder that is here cannot be used, or will not do for this run.
        StoreError: the run directory cannot be read.
    """
    caution = find_backend(config.generation.backend).caution
    notes = [note for note in (caution, say_recipe(config)) if note]
    resolved = None if folder is None else RunDir(folder).resolved()
    dtype = _dtype(config, resolved, notes)
    device, gflops = _machine(config, hardware, resolved, dtype)
    team = assemble_team(config, dtype, fetch=False)
    if chosen := say_chosen_targets(config, team):
        notes.append(chosen)
    for agent in team.agents:
        check_agent(
            agent,
            recomputes=config.engine.checkpoint_activations,
            divided=config.engine.sharding != "none",
        )
    with hub_offline():
        digest = content_digest(config.data, fetch=False)
    layout = build_plan(config, team, digest)
    recorded = Recorded(folder, layout)
    splits = find_splits(config, layout, recorded)
    sizes = split_sizes(config, splits, notes)
    chats = {agent.name: find_chat(agent) for agent in team.agents}
    lengths = {
        agent.name: measure_lengths(agent, chats[agent.name], splits) for agent in team.agents
    }
    _note_missing(lengths, team, notes)
    cuts = _find_cuts(team, chats, splits, notes)
    _note_system(team, chats, splits, layout, notes)
    counts = {agent.name: parameter_count(agent.base) for agent in team.agents}
    models = {agent.name: _model(agent, counts[agent.name]) for agent in team.agents}
    laid_out, placed = place_run(config, device, _members(team, models), pushes=_pushes(layout))
    agents = {
        agent.name: _agent_plan(
            agent, counts[agent.name], models[agent.name], placed.get(agent.name)
        )
        for agent in team.agents
    }
    known = None if sizes is None else Known(sizes, lengths, recorded.answers())
    clock = Clock(config, device, models, placed, known, utilisation, laid_out.recomputes)
    stages = stage_plans(layout, recorded, known, models)
    _note_states(team, layout, recorded, known, notes)
    pace = pace_of(stages) if hardware is None else {}
    timed = tuple(clock.timed(stage, pace) for stage in stages)
    return PlanReport(
        name=config.name,
        folder=folder,
        dtype=dtype,
        gflops=gflops,
        paced=frozenset(pace),
        data=config.data.source,
        sizes=sizes,
        agents=tuple(agents.values()),
        stages=timed,
        notes=tuple(notes),
        hardware=device,
        asked_for=hardware is not None,
        layout=laid_out,
        cuts=cuts,
        loading=None if device.is_cpu else clock.loading(timed),
        price=price,
        utilisation=utilisation,
    )


@contextmanager
def hub_offline() -> Iterator[None]:
    """Keep the hub libraries from the network inside the block, if they are asked at all.

    A data set of the hub is looked up by name; offline that is answered from the cache at once,
    or not at all.
    """
    import datasets.config
    from huggingface_hub import constants

    before = (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _dtype(config: RunConfig, resolved: Resolved | None, notes: list[str]) -> str:
    """Return the dtype that the run has or would have."""
    dtype = known_dtype(config.dtype, resolved)
    if dtype is not None:
        return dtype
    notes.append(
        "dtype: auto is decided by timing when the run starts; memory and keys here are for float32"
    )
    return "float32"


def _machine(
    config: RunConfig, asked: str | None, resolved: Resolved | None, dtype: str
) -> tuple[Hardware, float | None]:
    """Return the hardware to plan for, and the GFLOP/s of this machine if that is it."""
    if asked is not None and not asked.lower().endswith(CPU):
        return read_hardware(asked), None
    device = choose_device("cpu" if asked else config.device)
    recorded = None if resolved is None else resolved.matmul_gflops.get(dtype)
    gflops = recorded or measured_gflops(dtype, device)
    here = Card(CPU, memory_gib(device), gflops / 1e3, 0.0, 0.0, "measured")
    if device.type == CPU:
        return read_hardware(asked or CPU, here), gflops
    speed = copied_gbps(device)
    return Hardware(1, replace(here, name="this GPU", memory_gbps=speed)), gflops


def _note_missing(lengths: Mapping[str, Lengths], team: Team, notes: list[str]) -> None:
    """Say for whom lengths are upper bounds, and whose weights are not here."""
    bounded = [agent.name for agent in team.agents if not lengths[agent.name].measured]
    if bounded:
        notes.append(
            f"lengths for {', '.join(bounded)} are the limits, the most there can be: data and "
            "tokenizer are not both on this machine"
        )
    missing = [f"{a.name} ({a.base.name})" for a in team.agents if a.base.digest is None]
    if missing:
        notes.append(
            f"weights of {', '.join(missing)} are not on this machine: their stages' keys are "
            "provisional, so none of these shows as done"
        )


def _note_system(
    team: Team,
    chats: Mapping[str, Chat | None],
    splits: DataSplits | None,
    layout: Plan,
    notes: list[str],
) -> None:
    """Say whose template has no system turns, where there are system texts."""
    for agent in team.agents:
        chat = chats[agent.name]
        note = None if chat is None else system_note(agent, chat, splits, layout)
        if note is not None:
            notes.append(note)


def _note_states(
    team: Team, layout: Plan, recorded: Recorded, known: Known | None, notes: list[str]
) -> None:
    """Say whose layers carry state along the row, and what that may cost.

    Whether answers can go on from copies of a prompt's state, only a trial of the weights tells.
    """
    for agent in team.agents:
        layers = state_layers(agent)
        if not layers:
            continue
        cost = ""
        if known is not None:
            rows = replace(known, by_rows=frozenset({agent.name}))
            own = [s for s in layout if s.agent == agent and recorded.state(s) != "done"]
            shared, apart = (sum(s.work(k).tokens for s in own) for k in (known, rows))
            cost = f": at most {apart:,.0f} tokens instead of {shared:,.0f}"
        notes.append(
            f"{agent.name}: layers of kind {', '.join(layers)} carry state along the row; where "
            f"a trial of the weights shows that answers cannot share their prompt's state, each is "
            f"read with its prompt in a row of its own{cost}"
        )


def _find_cuts(
    team: Team,
    chats: Mapping[str, Chat | None],
    splits: DataSplits | None,
    notes: list[str],
) -> dict[str, Cuts]:
    """Count what limits cut off, once for agents that read alike, and say it."""
    readers: dict[str, list[str]] = {}
    by_name = {agent.name: agent for agent in team.agents}
    for agent in team.agents:
        readers.setdefault(agent.reader(), []).append(agent.name)
    found: dict[str, Cuts] = {}
    for names in readers.values():
        cuts = find_cuts(by_name[names[0]], chats[names[0]], splits)
        if cuts is None:
            continue
        found |= dict.fromkeys(names, cuts)
        said = cuts.warning or "; ".join(cuts.lines())
        if said:
            notes.append(f"data, as {', '.join(names)} read it, in {cuts.pairs:,} pairs: {said}")
    return found


def _model(agent: Agent, counted: ParameterCount | None) -> Model | None:
    """Describe one agent's model; None where its size is not known."""
    if counted is None:
        return None
    stored = weight_bytes(agent.base, agent.dtype) if quantised(agent) else None
    made = agent.base.quantize is not None
    return Model(counted.count, agent.dtype, agent.tuning.kind, model_shape(agent), stored, made)


def _in_nf4(agent: Agent, model: Model) -> Model | None:
    """Return what `quantize: nf4` would make of a model; None where it cannot."""
    if model.tuning == "full" or model.stored is not None:
        return None
    stored = weight_bytes(replace(agent.base, quantize=NF4), agent.dtype)
    return replace(model, stored=stored, made=True)


def _pushes(layout: Plan) -> bool:
    """Tell whether answers of a plan are pushed away from another policy's."""
    return any(isinstance(s, Respond) and s.away_from is not None for s in layout)


def _members(team: Team, models: Mapping[str, Model | None]) -> list[Member]:
    """Describe the agents whose size is known to who places them."""
    found = []
    for agent in team.agents:
        model, limits = models[agent.name], agent.limits
        if model is not None:
            longest = limits.prompt_tokens + 2 * limits.response_tokens
            base = repr((agent.base.location, agent.base.quantize, agent.dtype, agent.tuning))
            found.append(Member(agent.name, model, longest, base, _in_nf4(agent, model)))
    return found


def _agent_plan(
    agent: Agent,
    counted: ParameterCount | None,
    model: Model | None,
    placement: Placement | None,
) -> AgentPlan:
    """Describe one agent."""
    memory = None
    if model is not None and placement is not None:
        training, answering = placement.training.parts, placement.answering.parts
        assert answering is not None
        alone = None if training is None else training.total - training.others
        memory = Memory(model.gib, alone, answering.total - answering.others)
    return AgentPlan(
        name=agent.name,
        model=agent.base.name,
        local=agent.base.local,
        tuning=agent.tuning.kind,
        parameters=None if counted is None else counted.count,
        parameters_estimated=counted is not None and counted.estimated,
        memory=memory,
        placement=placement,
    )
