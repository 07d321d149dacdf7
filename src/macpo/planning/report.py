"""The plan of a run as a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from macpo.agents import Agent, Team, assemble_team, say_chosen_targets
from macpo.backends import find_backend
from macpo.config import RunConfig
from macpo.config.recipes import say_recipe
from macpo.data.cuts import Cuts
from macpo.data.splits import DataSplits
from macpo.data.stages import content_digest
from macpo.dtype import Resolved, known_dtype
from macpo.methods.build import build_plan
from macpo.models.chat import Chat
from macpo.models.loading import parameter_count
from macpo.planning.costs import Memory, flops, memory, model_shape, state_layers
from macpo.planning.measured import (
    find_chat,
    find_cuts,
    find_splits,
    measure_lengths,
    split_sizes,
    system_note,
)
from macpo.planning.recorded import Recorded, StageState
from macpo.preflight import check_agent
from macpo.program import Plan
from macpo.run_directory import RunDir
from macpo.work import Known, Lengths, SplitSizes, Work


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: its state, its work, and what that takes.

    `work` is None when the sizes of the splits are not known; `operations` also when the number of
    the model's weights is not. `seconds` is what the stage took if it is done, else an estimate:
    see `PlanReport.paced`.
    """

    name: str
    kind: str
    key: str
    agent: str | None
    state: StageState
    work: Work | None
    operations: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """One agent: its model and the memory it takes; None is unknown."""

    name: str
    model: str
    local: bool
    tuning: str
    parameters: int | None
    parameters_estimated: bool
    memory: Memory | None


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What `plan` found.

    `gflops` is the measured speed of matrix products in `dtype`, None when it was not measured.
    `paced` holds the kinds of stages whose times are estimated at the pace of this run's finished
    ones of that kind; those of other kinds are at the speed of matrix products alone, so too short.
    `notes` say what the plan could not know, and what is lost. `cuts` has what an agent's limits
    cut off a sample of the pairs, by the agent's name, where data and tokenizer are here.
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
    cuts: Mapping[str, Cuts] = field(default_factory=dict)

    @property
    def to_run(self) -> tuple[StagePlan, ...]:
        """The stages that are not done."""
        return tuple(stage for stage in self.stages if stage.state != "done")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        folder = None if self.folder is None else str(self.folder)
        return {**asdict(self), "folder": folder, "paced": sorted(self.paced)}


def plan(config: RunConfig, folder: Path | None = None) -> PlanReport:
    """Lay out a run without running it.

    Args:
        config: the run.
        folder: its run directory, to find what is done; None for a run from nothing.

    Raises:
        DataError: the data is here but cannot be read, or is too small for its splits.
        ModelError: a model folder that is here cannot be used, or will not do for this run.
        StoreError: the run directory cannot be read.
    """
    caution = find_backend(config.generation.backend).caution
    notes = [note for note in (caution, say_recipe(config)) if note]
    resolved = None if folder is None else RunDir(folder).resolved()
    dtype = _dtype(config, resolved, notes)
    team = assemble_team(config, dtype, fetch=False)
    if chosen := say_chosen_targets(config, team):
        notes.append(chosen)
    for agent in team.agents:
        check_agent(agent)
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
    agents = {agent.name: _agent_plan(config, agent) for agent in team.agents}
    known = None if sizes is None else Known(sizes, lengths, recorded.answers())
    stages = _stage_plans(layout, recorded, known, agents)
    _note_states(team, layout, recorded, known, notes)
    gflops = _speed(resolved, dtype)
    pace = _pace(stages)
    return PlanReport(
        name=config.name,
        folder=folder,
        dtype=dtype,
        gflops=gflops,
        paced=frozenset(pace),
        data=config.data.source,
        sizes=sizes,
        agents=tuple(agents.values()),
        stages=tuple(_with_time(stage, pace, gflops) for stage in stages),
        notes=tuple(notes),
        cuts=cuts,
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


def _speed(resolved: Resolved | None, dtype: str) -> float | None:
    """Return the measured GFLOP/s of matrix products in a dtype."""
    return None if resolved is None else resolved.matmul_gflops.get(dtype) or None


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


def _agent_plan(config: RunConfig, agent: Agent) -> AgentPlan:
    """Describe one agent's model."""
    counted = parameter_count(agent.base)
    taken = None
    if counted is not None:
        shape = model_shape(agent)
        taken = memory(counted.count, agent.dtype, agent.tuning.kind, shape, config.engine)
    return AgentPlan(
        name=agent.name,
        model=agent.base.name,
        local=agent.base.local,
        tuning=agent.tuning.kind,
        parameters=None if counted is None else counted.count,
        parameters_estimated=counted is not None and counted.estimated,
        memory=taken,
    )


def _stage_plans(
    layout: Plan,
    recorded: Recorded,
    known: Known | None,
    agents: Mapping[str, AgentPlan],
) -> list[StagePlan]:
    """Describe the stages; of time only what is recorded."""
    found = []
    for stage in layout:
        agent = stage.agent
        work = None if known is None else stage.work(known)
        parameters = None if agent is None else agents[agent.name].parameters
        operations: float | None = None
        if agent is None:
            operations = 0.0
        elif work is not None and parameters is not None:
            operations = flops(work, parameters, agent.tuning.kind)
        found.append(
            StagePlan(
                name=stage.name,
                kind=stage.kind,
                key=stage.key,
                agent=None if agent is None else agent.name,
                state=recorded.state(stage),
                work=work,
                operations=operations,
                seconds=recorded.seconds(stage),
            )
        )
    return found


def _pace(stages: Sequence[StagePlan]) -> dict[str, float]:
    """Return the seconds an operation took, by kind of stage, over those that are done."""
    seconds: dict[str, float] = {}
    operations: dict[str, float] = {}
    for stage in stages:
        if stage.seconds is not None and stage.operations:
            seconds[stage.kind] = seconds.get(stage.kind, 0.0) + stage.seconds
            operations[stage.kind] = operations.get(stage.kind, 0.0) + stage.operations
    return {kind: seconds[kind] / operations[kind] for kind in seconds}


def _with_time(stage: StagePlan, pace: Mapping[str, float], gflops: float | None) -> StagePlan:
    """Add the estimated time of a stage that is not done."""
    if stage.state == "done" or stage.operations is None:
        return stage
    if not stage.operations:
        return replace(stage, seconds=0.0)
    if stage.kind in pace:
        return replace(stage, seconds=stage.operations * pace[stage.kind])
    if gflops is None:
        return stage
    return replace(stage, seconds=stage.operations / (gflops * 1e9))
