"""The config tree: its sections, their keys, and the paper's values as defaults.

Every section is frozen and refuses keys it does not know. Defaults are those of the authors'
released scripts (docs/method.md) unless a comment says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from macpo.backends import LOCAL, SERVER, VLLM
from macpo.config.agents import AGENT_NAME, AgentConfig, TeacherConfig, TuningConfig
from macpo.config.base import Section
from macpo.config.collapse import CollapseConfig
from macpo.config.data import DataConfig
from macpo.config.evaluators import EvaluatorConfig, LabelledConfig, read_evaluator
from macpo.config.execution import ExecutionConfig, read_execution
from macpo.config.generation import GenerationConfig, read_generation
from macpo.config.methods import DEFAULT_METHOD, MethodConfig, method_name, read_method
from macpo.config.recipes import forget, lay_under
from macpo.config.training import DPOConfig, NegativeSFTConfig, SFTConfig, lay_over
from macpo.config.values import (
    MOST_ROUNDS,
    Count,
    CountOrZero,
    Flag,
    NonNegative,
    Positive,
    Text,
)
from macpo.trackers import TRACKERS


class SamplingConfig(Section):
    """How answers are sampled; `temperature: 0` is greedy decoding."""

    temperature: NonNegative = 0.95
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.7
    top_k: CountOrZero = 50  # 0 turns it off
    max_new_tokens: Count = 512

    @model_validator(mode="after")
    def _greedy_has_no_filters(self) -> SamplingConfig:
        extra = sorted(self.model_fields_set & {"top_p", "top_k"})
        if self.temperature == 0 and extra:
            raise ValueError(
                f"temperature 0 is greedy decoding, without {', '.join(extra)}; remove these"
            )
        return self


class LimitsConfig(Section):
    """Cut-offs in tokens of the agent's own tokenizer (the paper cuts at 1,024 in all).

    A prompt over its limit loses its oldest turns first; one whose last turn alone is too long is
    skipped and counted. An answer over its limit loses its end, and then has no end-of-turn token.
    """

    prompt_tokens: Count = 512
    response_tokens: Count = 512


ListedEvaluator = Annotated[SerializeAsAny[EvaluatorConfig], BeforeValidator(read_evaluator)]
"""An item of `evaluation.evaluators`, looked up by its name."""


class EvaluationConfig(Section):
    """What is measured of every policy in every round, on the test split.

    `answers` test prompts are answered by every positive policy, for evaluators that measure
    answers and to be read; 0 turns that off. `teachers: false` measures the student alone.
    `evaluators` are names, or sections with options; by default all that are made for such a run.
    `collapse` says what counts as a sign of collapse, which is told after every round;
    `stop_on_collapse` ends the run at one of the student's, with the round before it as the result.
    """

    answers: CountOrZero = 64
    teachers: Flag = True
    evaluators: tuple[ListedEvaluator, ...] | None = None
    collapse: CollapseConfig = CollapseConfig()
    stop_on_collapse: Flag = False

    @field_validator("evaluators")
    @classmethod
    def _each_is_there_once(
        cls, value: tuple[EvaluatorConfig, ...] | None
    ) -> tuple[EvaluatorConfig, ...] | None:
        titles = [evaluator.title for evaluator in value or ()]
        for evaluator in value or ():
            if (count := titles.count(evaluator.title)) > 1:
                remedy = "name it once"
                if isinstance(evaluator, LabelledConfig):
                    remedy += ", or give each a label of its own"
                raise ValueError(f"{evaluator.title} is there {count} times; {remedy}")
        return value


class EngineConfig(Section):
    """How work is laid out on the machine; results do not depend on it (but for rounding).

    `pack_tokens` is the most tokens in one forward pass, `decode_memory_gib` what keys and values
    may take while answers are decoded, `checkpoint_steps` how many optimizer steps at most are
    lost when a training stage is killed. `processes` is how many ranks share the work of each
    stage; without it one, or as many as a launcher has started. With `sharding: fsdp` they divide
    each base among them, for one that does not fit into the memory of any. With
    `checkpoint_activations` training keeps only what goes into each decoder layer and computes the
    rest again on the way back, for a fraction of the memory: up to half more work under LoRA, a
    third more under `tuning.kind: full`.
    """

    pack_tokens: Count = 2048
    decode_memory_gib: Positive = 2.0
    checkpoint_steps: Count = 20
    processes: Count | None = None
    checkpoint_activations: Flag = False
    sharding: Literal["none", "fsdp"] = "none"


class RunConfig(Section):
    """A whole run.

    `use_teachers: K` lets only the first K of `teachers` take part, to compare numbers of teachers
    by one key. `method.recipe` names defaults over several sections, which stand under what is said
    here. `track` names trackers that are told the run's numbers while it goes on, one or a
    list: `tensorboard`, `trackio`, `wandb`, or what a plugin registers. It is part of no key.
    """

    name: Text
    seed: CountOrZero = 0
    method: SerializeAsAny[MethodConfig] = Field(
        default_factory=lambda: read_method(DEFAULT_METHOD)
    )
    rounds: Annotated[Count, Field(le=MOST_ROUNDS)] = 3
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig
    student: AgentConfig
    teachers: Annotated[tuple[TeacherConfig, ...], Field(min_length=1)]
    use_teachers: Count | None = None
    tuning: TuningConfig = TuningConfig()
    sft: SFTConfig = SFTConfig()
    negative_sft: NegativeSFTConfig = NegativeSFTConfig()
    dpo: DPOConfig = DPOConfig()
    sampling: SamplingConfig = SamplingConfig()
    generation: SerializeAsAny[GenerationConfig] = GenerationConfig()
    limits: LimitsConfig = LimitsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    engine: EngineConfig = EngineConfig()
    execution: Annotated[ExecutionConfig, BeforeValidator(read_execution)] = ExecutionConfig()
    track: tuple[Text, ...] = ()

    @property
    def active_teachers(self) -> tuple[TeacherConfig, ...]:
        """The teachers that take part."""
        return self.teachers[: self.use_teachers]

    def agents(self) -> Iterator[tuple[str, str, AgentConfig]]:
        """Yield each agent's name, where it stands in the config, and its section there."""
        yield "student", "student", self.student
        for number, teacher in enumerate(self.teachers):
            yield teacher.name, f"teachers.{number}", teacher

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, value: str) -> str:
        if not AGENT_NAME.fullmatch(value):
            raise ValueError(f"{value!r} cannot name a folder; use lower-case letters and digits")
        return value

    @field_validator("track", mode="before")
    @classmethod
    def _one_tracker_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("track")
    @classmethod
    def _trackers_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if TRACKERS.find(name) is None:
                raise ValueError(TRACKERS.unknown(name))
        if len(set(value)) < len(value):
            raise ValueError("a tracker is there several times; name it once")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _a_recipe_stands_under_what_is_said(
        cls, raw: Any, read: ModelWrapValidatorHandler[Self]
    ) -> Self:
        if not isinstance(raw, Mapping):
            return read(raw)
        values, laid = lay_under(raw)
        config = read(values)
        forget(config, laid, raw)
        return config

    @field_validator("method", mode="before")
    @classmethod
    def _a_method_is_looked_up(cls, value: Any) -> Any:
        return read_method(value)

    @field_validator("generation", mode="before")
    @classmethod
    def _a_backend_is_looked_up(cls, value: Any) -> Any:
        return read_generation(value)

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        if faults := self.faults():
            raise ValueError("\n".join(faults))
        return self

    def faults(self) -> list[str]:
        """Return why sections cannot take effect together; none in a config that was read."""
        faults = []
        names = [teacher.name for teacher in self.teachers]
        for name in sorted({name for name in names if names.count(name) > 1}):
            times = names.count(name)
            faults.append(f"teachers: {times} of them are named {name!r}; give each its own name")
        if self.use_teachers is not None and self.use_teachers > len(names):
            faults.append(
                f"use_teachers is {self.use_teachers}, but teachers names only {len(names)}; lower "
                "it or add teachers"
            )
        faults += self.method.faults(len(self.active_teachers))
        faults += self.generation.faults(["student", *names])
        for evaluator in self.evaluation.evaluators or ():
            faults += (
                f"evaluation.evaluators: {evaluator.name} {fault}"
                for fault in evaluator.faults(self.data.source, self.evaluation.answers)
            )
        faults += self._faults_of_stopping()
        faults += self._faults_of_dpo()
        faults += self._faults_of_sharding()
        faults += self._faults_of_quantizing()
        faults += self._faults_of_nodes()
        method = method_name(self.method)
        why = dict.fromkeys(self.method.unused, f"method {method}")
        why |= self.method.idle
        for path in _set_keys(self):
            key = re.sub(r"^(student|teachers\.[0-9]+)\.", "", path)
            if key in why:
                faults.append(f"{path}: has no effect under {why[key]}; remove it")
        if self.sampling.max_new_tokens > self.limits.response_tokens:
            faults.append(
                f"sampling.max_new_tokens is {self.sampling.max_new_tokens}, above "
                f"limits.response_tokens {self.limits.response_tokens}: answers would be cut again "
                "before training; lower the one or raise the other"
            )
        return faults

    def _faults_of_dpo(self) -> Iterator[str]:
        """Yield what agents' own sections make of the run's that cannot take effect together."""
        for _, place, agent in self.agents():
            for fault in lay_over(self.dpo, agent.dpo).faults():
                yield f"{place}.dpo, laid over dpo: {fault}"

    def _faults_of_sharding(self) -> Iterator[str]:
        """Yield what cannot be done with bases that are divided among processes."""
        if self.engine.sharding == "none":
            return
        if self.engine.processes == 1:
            yield "engine.sharding divides bases among processes; raise engine.processes"
        if self.execution.backend != "local":
            yield "engine.sharding has no effect on a cluster's stages; remove it"
        if self.generation.backend == LOCAL.name:
            yield (
                "engine.sharding: a base that is divided among processes cannot answer; set "
                "generation.backend: vllm, or server"
            )
        else:
            names = ["student", *(teacher.name for teacher in self.active_teachers)]
            here = [n for n in names if self.generation.backend_of(n).name == LOCAL.name]
            if here:
                yield (
                    "engine.sharding: a base that is divided among processes cannot answer; name "
                    f"in generation.urls: {', '.join(here)}"
                )
        tunings = {"tuning": self.tuning}
        tunings |= {f"{place}.tuning": a.tuning for _, place, a in self.agents() if a.tuning}
        for place, tuning in tunings.items():
            if tuning.kind == "full":
                yield f"{place}.kind is full, but engine.sharding divides frozen bases; use lora"

    def _faults_of_quantizing(self) -> Iterator[str]:
        """Yield what cannot be done with bases that are quantised while they load."""
        for name, place, agent in self.agents():
            if agent.model.quantize is None:
                continue
            if (agent.tuning or self.tuning).kind == "full":
                yield (
                    f"{place}.model.quantize: a quantised base is frozen, and its tuning.kind is "
                    "full; set that to lora, or remove quantize"
                )
            if self.engine.sharding != "none":
                yield (
                    f"{place}.model.quantize: engine.sharding cannot divide quantised weights; "
                    "remove the one or the other"
                )
            backend = self.generation.backend_of(name)
            if backend in (VLLM, SERVER):
                yield (
                    f"{place}.model.quantize: {backend.name} would answer with the base as it is "
                    "stored, which is another model; let local answer, or name a checkpoint that "
                    "is quantised already"
                )

    def _faults_of_nodes(self) -> Iterator[str]:
        """Yield why nodes cannot give a stage what it asks for."""
        if self.device == "cpu" and (gpus := self.execution.gpus_per_stage):
            yield (
                f"execution.gpus_per_stage is {gpus:g}, and device: cpu uses none; remove one of "
                "them"
            )
        each, processes = self.execution.processes_per_node, self.engine.processes
        if each is not None and (processes is None or processes % each):
            yield (
                f"execution.processes_per_node is {each}, and engine.processes "
                f"{processes or 'not set'}; make that a multiple of it"
            )

    def _faults_of_stopping(self) -> Iterator[str]:
        """Yield why `stop_on_collapse` cannot stop this run."""
        if not self.evaluation.stop_on_collapse:
            return
        if "rounds" in self.method.unused:
            yield (
                f"evaluation.stop_on_collapse: method {method_name(self.method)} has no rounds "
                "to stop after; remove it"
            )
        elif not self.data.splits.validation:
            yield (
                "evaluation.stop_on_collapse decides by prompts of the teachers' side that nobody "
                "learns from, and there are none; set data.splits.validation, such as 200"
            )


def _set_keys(section: Section) -> Iterator[str]:
    """Yield the dotted names of all keys that a config gives, and not only has by default."""
    for name in sorted(section.model_fields_set):
        yield name
        value = getattr(section, name)
        items = value if isinstance(value, tuple) else (value,)
        for number, item in enumerate(items):
            if isinstance(item, Section):
                here = f"{name}.{number}" if isinstance(value, tuple) else name
                yield from (f"{here}.{key}" for key in _set_keys(item))
