"""What a reward model's YAML says, and reading it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, field_validator, model_validator

from macpo.config import DataConfig, ModelConfig, OptimizerConfig, TuningConfig
from macpo.config.agents import AGENT_NAME
from macpo.config.base import Section
from macpo.config.faults import describe_fault
from macpo.config.loading import anchor_path, override, read_mapping, refusal
from macpo.config.values import Count, CountOrZero, Epochs, NonNegative, Positive, Size, Text
from macpo.shipped import locate


class RewardOptimizerConfig(OptimizerConfig):
    """One epoch at a step size for adapters."""

    epochs: Epochs = 1
    learning_rate: Positive = 2e-4
    batch_size: Count = 16


class RewardConfig(Section):
    """A reward model: a base model with a head of one number, trained on preference pairs.

    `data` is as in a run's config, but for `splits` and `noise`: here `held_out` prompts (a number,
    or a fraction) are kept apart to measure the accuracy. `leave_out` names run directories, none
    of whose prompts are trained on or held out. Conversations over `max_tokens` lose their oldest
    turns, then the end of the answer. `centre` weighs a penalty on the squared sum of both rewards
    of a pair, which keeps rewards around zero. `batch_tokens` is what goes through the model at a
    time, `checkpoint_steps` what a kill costs at most.
    """

    name: Text
    seed: CountOrZero = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig
    held_out: Size = 0.1
    leave_out: tuple[Text, ...] = ()
    model: ModelConfig
    tuning: TuningConfig = TuningConfig()
    optimizer: RewardOptimizerConfig = RewardOptimizerConfig()
    centre: NonNegative = 0.01
    max_tokens: Count = 1024
    batch_tokens: Count = 4096
    checkpoint_steps: Count = 20

    @field_validator("model", mode="before")
    @classmethod
    def _a_name_is_a_source(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, value: str) -> str:
        if not AGENT_NAME.fullmatch(value):
            raise ValueError(f"{value!r} cannot name a folder; use lower-case letters and digits")
        return value

    @model_validator(mode="after")
    def _data_is_not_divided_for_a_run(self) -> RewardConfig:
        extra = sorted(self.data.model_fields_set & {"splits", "noise"})
        if extra:
            raise ValueError(
                f"data.{extra[0]}: has no effect on a reward model; remove it (held_out says how "
                "many prompts are kept apart)"
            )
        if self.model.quantize is not None:
            raise ValueError(
                "model.quantize: whoever scores with the model would not know of it; remove it"
            )
        extra = sorted(self.model.model_fields_set & {"chat_template_args", "system_turn"})
        if extra:
            raise ValueError(
                f"model.{extra[0]}: whoever scores with the model would not know of it; write it "
                "into a chat_template of your own"
            )
        return self


def load_reward_config(path: str | Path, overrides: Sequence[str] = ()) -> RewardConfig:
    """Read a reward model's YAML file, apply overrides, and check all of it.

    Args:
        path: the file, or `example:NAME` for a shipped one. Relative paths in it that exist beside
            it mean the files there.
        overrides: "section.key=value" items as `--set` takes them.

    Raises:
        ConfigError: the file cannot be read or something in it is wrong; lists every fault.
    """
    path = locate(path)
    raw = read_mapping(path, "reward config")
    for section, key in ((raw.get("data"), "source"), (raw, "model")):
        anchor_path(section, key, path.parent)
    for key in ("source", "adapter", "chat_template"):
        anchor_path(raw.get("model"), key, path.parent)
    raw = override(raw, overrides)
    try:
        return RewardConfig.model_validate(raw)
    except ValidationError as error:
        faults = [
            line
            for item in error.errors()
            for line in describe_fault(dict(item), raw, RewardConfig)
        ]
    raise refusal(str(path), faults)
