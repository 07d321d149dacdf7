"""What a run would do: its stages, which of them are done, and what the others cost.

Nothing is run, downloaded or written into the run directory. Where models or data are not on this
machine the plan is made from their names, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from macpo.agents import Agent, Team, assemble_team
from macpo.config import RunConfig
from macpo.costs import (
    Answers,
    Lengths,
    Memory,
    SplitSizes,
    Work,
    WorkEstimator,
    flops,
    memory,
    model_shape,
    stage_agent,
)
from macpo.data.files import is_local
from macpo.data.loading import load_preferences
from macpo.data.splits import DataSplits, split_examples
from macpo.data.stages import SplitData, content_digest, read_examples
from macpo.errors import DamagedError, ModelError
from macpo.generation.stages import Respond
from macpo.loop import Plan, build_plan
from macpo.models.chat import Chat, PromptTooLong
from macpo.models.folders import CONFIG
from macpo.models.loading import load_tokenizer, parameter_count
from macpo.records import PreferenceExample, dataset_response
from macpo.run import STORE_FOLDER, read_resolved
from macpo.stage import Stage
from macpo.store import Manifest, read_manifest

SAMPLE = 48
"""Pairs whose lengths are measured."""

StageState = Literal["done", "damaged", "to run"]


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: its state, its work, and what that takes.

    `work` is None when the sizes of the splits are not known; `operations` also when the number of
    the model's weights is not. `seconds` is at the measured speed of matrix products, so it is less
    than the stage will take.
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
    `notes` say what the plan could not know.
    """

    name: str
    folder: Path | None
    dtype: str
    gflops: float | None
    data: str
    sizes: SplitSizes | None
    agents: tuple[AgentPlan, ...]
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...]

    @property
    def to_run(self) -> tuple[StagePlan, ...]:
        """The stages that are not done."""
        return tuple(stage for stage in self.stages if stage.state != "done")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**asdict(self), "folder": None if self.folder is None else str(self.folder)}


def plan(config: RunConfig, folder: Path | None = None) -> PlanReport:
    """Lay out a run without running it.

    Args:
        config: the run.
        folder: its run directory, to find what is done; None for a run from nothing.

    Raises:
        DataError: the data is here but cannot be read, or is too small for its splits.
        ModelError: a model folder that is here cannot be used.
        StoreError: the run directory cannot be read.
    """
    notes: list[str] = []
    resolved = read_resolved(folder) if folder is not None else None
    dtype = _dtype(config, resolved, notes)
    team = assemble_team(config, dtype, fetch=False)
    with hub_offline():
        digest = content_digest(config.data, fetch=False)
    layout = build_plan(config, team, digest)
    artifacts = _Artifacts(folder / STORE_FOLDER if folder is not None else None, layout)
    splits = _splits(config, layout, artifacts)
    sizes = _sizes(config, splits, notes)
    lengths = {agent.name: _lengths(agent, splits) for agent in team.agents}
    agents = {agent.name: _agent_plan(config, agent) for agent in team.agents}
    speed = _speed(resolved, dtype)
    estimator = None
    if sizes is not None:
        estimator = WorkEstimator(sizes, lengths, artifacts.answers())
    _note_lengths(lengths, team, notes)
    return PlanReport(
        name=config.name,
        folder=folder,
        dtype=dtype,
        gflops=speed,
        data=config.data.source,
        sizes=sizes,
        agents=tuple(agents.values()),
        stages=tuple(
            _stage_plan(stage, artifacts.state(stage), estimator, agents, speed) for stage in layout
        ),
        notes=tuple(notes),
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


class _Artifacts:
    """What the store holds of a plan's stages; manifests are read, files are not."""

    def __init__(self, store: Path | None, stages: Plan) -> None:
        self.store = store
        self._manifests: dict[str, Manifest] = {}
        self._states: dict[str, StageState] = {}
        self._stages = list(stages)
        for stage in self._stages:
            self._states[stage.key] = self._look(stage)

    def state(self, stage: Stage) -> StageState:
        """Say whether a stage is done."""
        return self._states[stage.key]

    def path(self, stage: Stage) -> Path | None:
        """Return the artifact's folder; None when the stage is not done."""
        if self.store is None or self._states[stage.key] != "done":
            return None
        return self._folder(self.store, stage)

    def answers(self) -> dict[str, Answers]:
        """Return what finished answering stages left, by stage key."""
        found = {}
        for stage in self._stages:
            if isinstance(stage, Respond) and self._states[stage.key] == "done":
                meta = self._manifests[stage.key].fields["meta"]
                count = meta["responses"]
                mean = meta["tokens"] / count if count else 0.0
                found[stage.key] = Answers(count, mean, at_most=False)
        return found

    def _look(self, stage: Stage) -> StageState:
        if self.store is None:
            return "to run"
        folder = self._folder(self.store, stage)
        if not folder.is_dir():
            return "to run"
        try:
            manifest = read_manifest(folder)
        except DamagedError:
            return "damaged"
        inputs = manifest.fields.get("inputs", {})
        for name, earlier in stage.inputs.items():
            # What an input that is still to be run will hold is not known, but most likely what
            # it held before: stages are deterministic.
            known = self._manifests.get(earlier.key)
            if known is not None and inputs.get(name) != known.digest:
                return "to run"
        self._manifests[stage.key] = manifest
        return "done"

    @staticmethod
    def _folder(store: Path, stage: Stage) -> Path:
        return store / f"{stage.kind}-{stage.key[:16]}"


def _dtype(config: RunConfig, resolved: Mapping[str, Any] | None, notes: list[str]) -> str:
    """Return the dtype that the run has or would have."""
    if resolved is not None and config.dtype in ("auto", resolved["dtype"]):
        return str(resolved["dtype"])
    if config.dtype != "auto":
        return config.dtype
    notes.append(
        "dtype: auto is decided by timing when the run starts; memory and keys here are for float32"
    )
    return "float32"


def _speed(resolved: Mapping[str, Any] | None, dtype: str) -> float | None:
    """Return the measured GFLOP/s of matrix products in a dtype."""
    measured = (resolved or {}).get("matmul_gflops", {})
    speed = measured.get(dtype)
    return float(speed) if speed else None


def _splits(config: RunConfig, layout: Plan, artifacts: _Artifacts) -> DataSplits | None:
    """Return the splits as they were made or would be made; None when the data is not here."""
    stage = layout.stages[0]
    assert isinstance(stage, SplitData)
    made = artifacts.path(stage)
    if made is not None:
        teacher, student, test = (
            tuple(read_examples(made, name)) for name in ("teacher", "student", "test")
        )
        return DataSplits(teacher, student, test)
    source = config.data.source
    if not is_local(source) or not Path(source).expanduser().exists():
        return None
    return split_examples(load_preferences(config.data).examples, config.data.splits, stage.seed)


def _sizes(config: RunConfig, splits: DataSplits | None, notes: list[str]) -> SplitSizes | None:
    """Count the splits, or take their sizes from the config."""
    if splits is not None:
        by_name = {"teacher": splits.teacher, "student": splits.student, "test": splits.test}
        return SplitSizes(
            prompts={name: len({e.prompt.id for e in es}) for name, es in by_name.items()},
            pairs={name: len(examples) for name, examples in by_name.items()},
            exact=True,
        )
    asked = config.data.splits.model_dump()
    if any(isinstance(size, float) for size in asked.values()):
        notes.append(
            f"data: {config.data.source} is not on this machine, and data.splits are fractions of "
            "it: no tokens are estimated"
        )
        return None
    notes.append(
        f"data: {config.data.source} is not on this machine; sizes are those of data.splits, with "
        "one pair a prompt"
    )
    return SplitSizes(asked, asked, exact=False)


def _lengths(agent: Agent, splits: DataSplits | None) -> Lengths:
    """Measure lengths on a sample, or take the limits."""
    limits = agent.limits
    upper = Lengths(
        limits.prompt_tokens, limits.response_tokens, limits.response_tokens, measured=False
    )
    if splits is None:
        return upper
    chat = _chat(agent)
    if chat is None:
        return upper
    measured = []
    for example in _sample(splits):
        try:
            prompt = chat.encode_prompt(example.prompt, limits.prompt_tokens).ids
        except PromptTooLong:  # left out of the run as well
            continue
        sides = [
            len(chat.encode_completion(dataset_response(example.prompt, t), limits.response_tokens))
            for t in (example.chosen, example.rejected)
        ]
        measured.append((len(prompt), *sides))
    if not measured:
        return upper
    means = [sum(column) / len(measured) for column in zip(*measured, strict=True)]
    return Lengths(means[0], means[1], means[2], measured=True)


def _sample(splits: DataSplits) -> Sequence[PreferenceExample]:
    """Return some pairs: splits are ordered by hash, so their first ones are a fair sample."""
    each = SAMPLE // 3
    return [*splits.teacher[:each], *splits.student[:each], *splits.test[:each]]


def _chat(agent: Agent) -> Chat | None:
    """Load an agent's tokenizer if it is here."""
    base = agent.base
    if not (Path(base.location) / CONFIG).is_file():
        return None
    try:
        # A model whose layers are still to be cut out has its tokenizer already.
        return Chat(load_tokenizer(replace(base, local=True), agent.chat_template))
    except ModelError:
        if base.local:
            raise
        return None  # a snapshot of the hub cache with little more than a config


def _note_lengths(lengths: Mapping[str, Lengths], team: Team, notes: list[str]) -> None:
    """Say for whom lengths are upper bounds."""
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


def _stage_plan(
    stage: Stage,
    state: StageState,
    estimator: WorkEstimator | None,
    agents: Mapping[str, AgentPlan],
    gflops: float | None,
) -> StagePlan:
    """Describe one stage."""
    agent = stage_agent(stage)
    work = estimator.work(stage) if estimator is not None else None
    operations = seconds = None
    if agent is None:
        operations = 0.0
    elif work is not None:
        parameters = agents[agent.name].parameters
        if parameters is not None:
            operations = flops(work, parameters, agent.tuning.kind)
    if operations is not None and gflops is not None:
        seconds = operations / (gflops * 1e9)
    return StagePlan(
        name=stage.name,
        kind=stage.kind,
        key=stage.key,
        agent=None if agent is None else agent.name,
        state=state,
        work=work,
        operations=operations,
        seconds=seconds,
    )
