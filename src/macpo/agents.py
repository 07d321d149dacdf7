"""Agents and policies: who takes part, and which weights speak for whom.

An agent is a base model that stays frozen under LoRA (or trains whole, for small teachers), with
two policies: a positive one, which is what we are aligning, and a negative one, which shows the bad
behaviour that is familiar to this agent (paper, section 3). Nothing here holds weights; they are
artifacts of training stages, and `macpo.policies` loads them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from macpo.config import (
    AUTO,
    PAPER_TARGETS,
    AgentConfig,
    DPOConfig,
    LimitsConfig,
    NegativeSFTConfig,
    RunConfig,
    SFTConfig,
    TuningConfig,
)
from macpo.config.training import lay_over
from macpo.models.chat import Chat, SystemTurn
from macpo.models.folders import CONFIG, generation_stops, tokenizer_files
from macpo.models.loading import load_chat
from macpo.models.sources import ResolvedModel, resolve
from macpo.seeds import digest, plain

STUDENT = "student"


@dataclass(frozen=True, slots=True)
class Agent:
    """A participant: its base model, how text meets tokens, and how it is trained."""

    name: str
    base: ResolvedModel
    chat_template: str | None
    dtype: str
    tuning: TuningConfig
    limits: LimitsConfig
    sft: SFTConfig
    negative_sft: NegativeSFTConfig
    dpo: DPOConfig
    template_args: tuple[tuple[str, bool | int | float | str], ...] = ()
    system_turn: SystemTurn = "auto"
    tells_tokenizer: bool = False

    @property
    def chat_options(self) -> tuple[Any, ...]:
        """Everything that its chat is made of: agents that have the same can share one."""
        return (self.base.location, self.chat_template, self.template_args, self.system_turn)

    def load_chat(self) -> Chat:
        """Load the tokenizer and template, without the model's weights.

        Raises:
            ModelError: see `macpo.models.loading.load_chat`.
        """
        return load_chat(
            self.base,
            self.chat_template,
            template_args=dict(self.template_args),
            system_turn=self.system_turn,
        )

    def reader(self) -> str:
        """Return a digest of how this agent reads text: tokenizer, template and limits."""
        limits = plain(self.limits.model_dump())
        return digest([self.tokenizer(), self._template(), limits, *self._chat_identity()])

    def tokenizer(self) -> list[list[str]] | str:
        """Return what stands for its tokenizer in a digest: its files, or the model's name."""
        return tokenizer_files(Path(self.base.location)) or self.base.name

    def _template(self) -> str | None:
        """Return what stands for the chat template in a digest: a name, or a file's content."""
        if self.chat_template is not None and Path(self.chat_template).is_file():
            return digest(Path(self.chat_template).read_text(encoding="utf-8"))
        return self.chat_template

    def _chat_identity(self) -> list[Any]:
        """Return what else decides how it reads, and where its answers end."""
        stops = generation_stops(Path(self.base.location))
        return [[list(pair) for pair in self.template_args], self.system_turn, list(stops)]

    def identity(self) -> dict[str, Any]:
        """Return what of this agent decides the outcome of a stage, as JSON.

        The base model counts by the digest of its weights; while they are not on this machine (a
        plan of a large run) by its name, and the stage keys are provisional.

        All stages stand on the data, whose key says which tokenizers a team has, though not who has
        which. So where there are several (`tells_tokenizer`) an agent's own counts as well.
        """
        own = {"tokenizer": digest(self.tokenizer())} if self.tells_tokenizer else {}
        return {
            "name": self.name,
            "base": self.base.digest or f"unresolved:{self.base.name}",
            "chat_template": self._template(),
            "chat": self._chat_identity(),
            "dtype": self.dtype,
            "tuning": plain(self.tuning.model_dump()),
            "limits": plain(self.limits.model_dump()),
            **own,
        }


class TrainedWeights(Protocol):
    """The stage that trained some weights, as far as a policy needs to know it."""

    @property
    def key(self) -> str:
        """The content key under which the weights are kept."""
        ...


@dataclass(frozen=True, slots=True)
class Policy:
    """An agent with certain weights: those that stage `weights` trained, or the bare base."""

    agent: Agent
    role: Literal["positive", "negative"]
    weights: TrainedWeights | None = None

    @property
    def name(self) -> str:
        """`agent/role`, as it stands in tables and in the origin of responses."""
        return f"{self.agent.name}/{self.role}"

    @property
    def weights_key(self) -> str:
        """The key of the stage that trained the weights; empty for the bare base model."""
        return "" if self.weights is None else self.weights.key


@dataclass(frozen=True, slots=True)
class Team:
    """The strong student and its weak teachers."""

    student: Agent
    teachers: tuple[Agent, ...]

    @property
    def agents(self) -> tuple[Agent, ...]:
        """Everybody, the student first."""
        return (self.student, *self.teachers)


def assemble_team(config: RunConfig, dtype: str, *, fetch: bool) -> Team:
    """Resolve every agent's base model.

    Args:
        config: the run.
        dtype: the run's resolved dtype, `float32` or `bfloat16`.
        fetch: bring models to this machine if they are not here; without it they may stay
            unresolved, which is enough to plan.

    Raises:
        ModelError: a model cannot be had.
    """

    def agent(name: str, section: AgentConfig) -> Agent:
        base = resolve(section.model, fetch=fetch)
        return Agent(
            name=name,
            base=base,
            chat_template=section.model.chat_template,
            template_args=tuple(sorted(section.model.chat_template_args.items())),
            system_turn=section.model.system_turn,
            dtype=dtype,
            tuning=_with_targets(section.tuning or config.tuning, base),
            limits=config.limits,
            sft=lay_over(config.sft, section.sft),
            negative_sft=lay_over(config.negative_sft, section.negative_sft),
            dpo=lay_over(config.dpo, section.dpo),
        )

    teachers = [agent(teacher.name, teacher) for teacher in config.active_teachers]
    student, *teachers = _telling_tokenizers([agent(STUDENT, config.student), *teachers])
    return Team(student, tuple(teachers))


def _telling_tokenizers(agents: Sequence[Agent]) -> Sequence[Agent]:
    """Let folders' tokenizers count agent by agent where the team has several of them.

    The digest of other models, a commit's for one, stands for their tokenizer too.
    """
    if len({digest(agent.tokenizer()) for agent in agents}) == 1:
        return agents
    return [replace(agent, tells_tokenizer=bool(agent.base.beside)) for agent in agents]


@functools.cache
def _with_targets(tuning: TuningConfig, base: ResolvedModel) -> TuningConfig:
    """Say which layers `targets: auto` stands for, so that a key says it; unknown it stays.

    Models that train whole have no targets, but their keys name the paper's.
    """
    if tuning.targets != (AUTO,):
        return tuning
    if tuning.kind == "full":
        return tuning.model_copy(update={"targets": PAPER_TARGETS})
    if not (Path(base.location) / CONFIG).is_file():
        return tuning
    from macpo.adapters import choose_targets
    from macpo.models.loading import empty_model

    return tuning.model_copy(update={"targets": choose_targets(empty_model(base))})


def say_chosen_targets(config: RunConfig, team: Team) -> str:
    """Say for whom `targets: auto` found other layers than the paper's; empty if for nobody."""
    sections = (config.student, *config.active_teachers)
    said = [
        f"{agent.name}: {', '.join(agent.tuning.targets)}"
        for agent, section in zip(team.agents, sections, strict=True)
        if (section.tuning or config.tuning).targets == (AUTO,)
        and agent.tuning.targets not in ((AUTO,), PAPER_TARGETS)
    ]
    missing = f"no {' and '.join(PAPER_TARGETS)} to adapt (tuning.targets: auto), so these layers"
    return f"{missing}: {'; '.join(said)}" if said else ""
