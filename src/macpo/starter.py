"""A config to start from, commented: what `macpo init` writes.

The words are those of starter.yaml, in which `_` stands for each value. A key that is given one is
written so; any other is commented out, with its default out of the config tree.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import yaml
from pydantic import BaseModel

from macpo.config import ModelConfig, OptimizerConfig, RunConfig, check_config
from macpo.config.agents import AGENT_NAME, RESERVED_NAMES
from macpo.config.loading import read_mapping
from macpo.data import load_preferences
from macpo.data.sources import Hub, find_source
from macpo.errors import ConfigError
from macpo.models.sources import resolve
from macpo.shipped import locate

QUICKSTART = "example:quickstart"
QUICKSTART_DATA = "example:data/quickstart.jsonl"
FITTED = ("rounds", "sft", "negative_sft", "dpo", "sampling", "limits", "evaluation")
"""What the quickstart sets to suit its models."""
FEW_PROMPTS = 12_000
"""With fewer, the numbers of prompts that are the default (the paper's) cannot be had."""
FRACTIONS = {"teacher": 0.4, "student": 0.4, "test": 0.2}
COMMENT_COLUMN = 32

_KEY = re.compile(r"(?P<indent> *)(?P<name>[a-z_]+):(?P<leaf> _)?(?:  #(?P<comment> .*))?")


@dataclass(frozen=True, slots=True)
class Started:
    """A config that was written; `found` is what is known of its data and models, by their role."""

    path: Path
    found: tuple[tuple[str, str], ...]


def write_starter(
    path: str | Path,
    *,
    data: str | None = None,
    student: str | None = None,
    teachers: Sequence[str] = (),
) -> Started:
    """Write a commented config; what is not given is the quickstart's.

    Sources are checked as far as that goes without a download.

    Args:
        path: the file to write; there must not be one.
        data: preference data: a path, from the working folder, or a hub name.
        student: a model's source, likewise.
        teachers: sources of the teachers' models, given together with `student`.

    Raises:
        ConfigError: the file exists or cannot be written, or `student` or `teachers` is missing.
        DataError: the data cannot be read.
        ModelError: there is no such model.
    """
    path = Path(path)
    if path.exists():
        raise ConfigError(f"{path}: exists already; name another file, or remove this one")
    values = _values(path, data, student, teachers)
    config = check_config(values, str(path))
    prompts = _prompts(config)
    if data is not None and prompts is not None and prompts < FEW_PROMPTS:
        values["data"]["splits"] = FRACTIONS
        config = check_config(values, str(path))
    found = (
        ("data", _describe_data(config, prompts)),
        ("student", _describe(config.student.model)),
        *((teacher.name, _describe(teacher.model)) for teacher in config.teachers),
    )
    text = starter_text(_seen_from(path.parent, values), str(path), _steps(config, prompts))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    return Started(path, found)


def starter_text(values: Mapping[str, Any], file: str, steps: str = "") -> str:
    """Return the text of a commented config.

    Args:
        values: the keys that are given, as they stand in YAML.
        file: the config's name, for its comments.
        steps: how many optimizer steps that makes, for a comment; may be empty.
    """
    template = resources.files("macpo").joinpath("starter.yaml").read_text(encoding="utf-8")
    words = {"file": " ".join(file.split()), "data": values["data"]["source"], "steps": steps}
    lines: list[str] = []
    path: tuple[str, ...] = ()
    for line in Template(template).substitute(words).splitlines():
        match = _KEY.fullmatch(line)
        if match is None:
            lines.append(line)
            continue
        path = (*path[:1], match["name"]) if match["indent"] else (match["name"],)
        if match["leaf"]:
            lines += _key_lines(path, values, match["comment"])
        else:
            lines.append(f"{match['name']}:" if match["name"] in values else f"#{match['name']}:")
    return "\n".join(lines) + "\n"


def file_name(text: str, otherwise: str) -> str:
    """Return `text` as it can name a run or a teacher: `Qwen3-0.6B` is `qwen3-0.6b`."""
    name = re.sub(r"[^a-z0-9_.-]+", "-", text.lower()).strip("-._")[:60]
    return name if AGENT_NAME.fullmatch(name) and name not in RESERVED_NAMES else otherwise


def teacher_names(sources: Sequence[str]) -> list[str]:
    """Return a name for each teacher, after its model; one that is taken gets a number."""
    names: list[str] = []
    for source in sources:
        last = re.split(r"[/\\:]", source.rstrip("/\\"))[-1]
        name = plain = file_name(last.removesuffix(".gguf"), "teacher")
        number = 1
        while name in names:
            number += 1
            name = f"{plain}-{number}"
        names.append(name)
    return names


def _values(
    path: Path, data: str | None, student: str | None, teachers: Sequence[str]
) -> dict[str, Any]:
    """Return the keys that the config gives; paths are as they were given."""
    if (student is None) != (not teachers):
        raise ConfigError(
            "the student and its teachers are given together: --student MODEL --teacher MODEL; "
            "or leave both out for the quickstart's"
        )
    values = read_mapping(locate(QUICKSTART), "config")
    values["name"] = file_name(path.stem, "my-run")
    values["data"]["source"] = QUICKSTART_DATA
    if data is not None:
        values["data"] = {"source": data}
    if student is None:
        return values
    return {
        **{key: value for key, value in values.items() if key not in FITTED},
        "student": {"model": student},
        "teachers": [
            {"name": name, "model": source}
            for name, source in zip(teacher_names(teachers), teachers, strict=True)
        ],
    }


def _key_lines(path: tuple[str, ...], values: Mapping[str, Any], comment: str | None) -> list[str]:
    """Write a key with the value that it is given, or with its default behind a #."""
    *outer, name = path
    given: Mapping[str, Any] = values
    for part in outer:
        given = given.get(part, {})
    indent = "  " * len(outer)
    if isinstance(given.get(name), list):
        return [f"{indent}{name}:", *(f"{indent}  - {_flow(item)}" for item in given[name])]
    key = f"{name}: {_flow(given[name])}" if name in given else f"#{name}: {_flow(_default(path))}"
    return [f"{indent + key:<{COMMENT_COLUMN}}  #{comment}" if comment else indent + key]


def _default(path: Sequence[str]) -> Any:
    """Return the default of a key of the config tree, as it stands in YAML."""
    section: type[BaseModel] = RunConfig
    for part in path[:-1]:
        inner = section.model_fields[part].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        section = inner
    value = section.model_fields[path[-1]].get_default(call_default_factory=True)
    if not isinstance(value, BaseModel):
        return list(value) if isinstance(value, tuple) else value
    plain = value.model_dump(mode="json")
    return plain.get("name", plain)  # a method is named by a word


def _flow(value: Any) -> str:
    """Write a value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return text.removesuffix("...\n").strip()


def _seen_from(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with paths from the working folder turned into ones from the config's."""

    def seen(source: Any) -> Any:
        if not isinstance(source, str) or os.path.isabs(source) or not os.path.exists(source):
            return source
        return os.path.relpath(source, folder)

    return {
        **values,
        "data": {**values["data"], "source": seen(values["data"]["source"])},
        "student": {**values["student"], "model": seen(values["student"]["model"])},
        "teachers": [{**each, "model": seen(each["model"])} for each in values["teachers"]],
    }


def _prompts(config: RunConfig) -> int | None:
    """Count the prompts of data that can be had without a download; None for a hub data set.

    Raises:
        DataError: the data cannot be read.
    """
    if isinstance(find_source(config.data.source), Hub):
        return None
    return load_preferences(config.data).report.prompts


def _describe_data(config: RunConfig, prompts: int | None) -> str:
    """Say what was found of the data."""
    known = "on the hub; not looked at" if prompts is None else f"{prompts} prompts"
    return f"{config.data.source}: {known}"


def _describe(model: ModelConfig) -> str:
    """Say what was found of a model.

    Raises:
        ModelError: there is no such model.
    """
    found = resolve(model, fetch=False)
    known = "on this machine" if found.local else "not on this machine yet; the run will get it"
    return f"{found.name}: {known}"


def _steps(config: RunConfig, prompts: int | None) -> str:
    """Say how many optimizer steps an agent takes; empty where the data is not known."""
    if prompts is None:
        return ""
    size = config.data.splits.student
    count = round(size * prompts) if isinstance(size, float) else size

    def steps(section: OptimizerConfig) -> int:
        return section.epochs * math.ceil(count / section.batch_size)

    return (
        f"# Here {count} prompts for the student make about {steps(config.sft)} steps of sft and "
        f"{steps(config.dpo)} of dpo.\n"
    )
