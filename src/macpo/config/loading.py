"""From a YAML file to a checked `RunConfig`; every fault of a file is reported at once."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from macpo.config.agents import CHAT_TEMPLATES
from macpo.config.evaluators import EvaluatorConfig, evaluator_class
from macpo.config.faults import describe_fault
from macpo.config.generation import generation_class
from macpo.config.reading import apply_override, parse_yaml
from macpo.config.sections import EvaluationConfig, RunConfig
from macpo.config.values import shown
from macpo.errors import ConfigError
from macpo.shipped import locate, nearest_example

LARGEST_FILE = 1 << 20
"""Bytes that a YAML file may have."""

START = "`macpo init` writes one, `macpo examples` lists those that ship"
"""What to say to who has no config, or something else in its place."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML file, apply overrides, and check all of it.

    Args:
        path: the file, or `example:NAME` for a shipped one. A relative path in `data.source`, a
            model's `source` or a `chat_template` that exists beside it means the file there.
        overrides: "section.key=value" items as `--set` takes them; the value is YAML. An item of
            a list is named by its number from 0: "teachers.0.model.layers=0-14". Relative paths
            in them start at the working folder.

    Raises:
        ConfigError: the file cannot be read or something in it is wrong; lists every fault.
    """
    path = locate(path)
    raw = read_mapping(path, "config")
    anchor_paths(raw, path.parent)
    return check_config(override(raw, overrides), str(path))


def override(raw: dict[str, Any], items: Sequence[str]) -> dict[str, Any]:
    """Return plain values with "section.key=value" items applied.

    Raises:
        ConfigError: an item is not of that form, or leads nowhere; lists every fault.
    """
    faults = []
    for item in items:
        try:
            raw = apply_override(raw, item)
        except ValueError as error:
            faults.append(f"--set {item}: {error}")
    if faults:
        raise ConfigError("\n".join(faults))
    return raw


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """Read the plain values of a YAML file.

    Args:
        path: the file.
        what: it is, in errors: `config`.

    Raises:
        ConfigError: it cannot be read, or is not keys with values.
    """
    raw = _read_yaml(path, what)
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: a {what} file is a mapping of keys to values (got {shown(raw)}); {START}"
        )
    return raw


def _read_yaml(path: Path, what: str) -> Any:
    """Read what a YAML file holds.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ConfigError(f"{path}: over {LARGEST_FILE >> 20} MiB, which is no {what} file")
        return parse_yaml(content.decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such {what} file{_nearby_config(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name the {what} file in it") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not text in UTF-8; save it so") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None


def check_config(raw: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Turn plain values into a `RunConfig`.

    Raises:
        ConfigError: something is wrong; lists every fault, one a line.
    """
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        faults = [line for item in error.errors() for line in describe_fault(dict(item), raw)]
    raise refusal(where, faults)


def read_evaluators(path: str | Path) -> list[Any]:
    """Read a YAML file that holds a list as `evaluation.evaluators` does; see `check_evaluators`.

    Relative paths in it that exist beside the file mean the files there.

    Raises:
        ConfigError: it cannot be read, or is no list.
    """
    path = Path(path)
    raw = _read_yaml(path, "evaluation")
    if not isinstance(raw, list):
        raise ConfigError(
            f"{path}: is no list of evaluators (got {shown(raw)}); write a list as in "
            "evaluation.evaluators: names, or sections with a name and options"
        )
    anchor_paths({"evaluation": {"evaluators": raw}}, path.parent)
    return raw


def check_evaluators(items: Sequence[Any], where: str) -> tuple[EvaluatorConfig, ...]:
    """Turn names, sections with options, or evaluators into evaluators.

    Args:
        items: as a config's `evaluation.evaluators` has them.
        where: they stand, for errors.

    Raises:
        ConfigError: something is wrong; lists every fault, one a line.
    """
    raw = {"evaluation": {"evaluators": list(items)}}
    try:
        return EvaluationConfig.model_validate(raw["evaluation"]).evaluators or ()
    except ValidationError as error:
        faults = [
            line
            for item in error.errors()
            for line in describe_fault({**item, "loc": ("evaluation", *item["loc"])}, raw)
        ]
    raise refusal(where, [fault.removeprefix("evaluation.") for fault in faults])


def refusal(where: str, faults: Sequence[str]) -> ConfigError:
    """Return the error that lists the faults of a config, one a line."""
    count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
    return ConfigError("\n  ".join([f"{where}: {count}", *faults]))


def anchor_paths(raw: dict[str, Any], folder: Path) -> None:
    """Make relative paths that exist beside the config file independent of the working folder."""

    def anchor(section: Any, key: str) -> None:
        anchor_path(section, key, folder)

    anchor(raw.get("data"), "source")
    backend = generation_class(raw.get("generation"))
    for key in sorted(backend.paths) if backend is not None else ():
        anchor(raw.get("generation"), key)
    evaluation = raw.get("evaluation")
    evaluators = evaluation.get("evaluators") if isinstance(evaluation, dict) else None
    for evaluator in evaluators if isinstance(evaluators, list) else []:
        kind = evaluator_class(evaluator)
        for key in sorted(kind.paths) if kind is not None else ():
            anchor(evaluator, key)
    teachers = raw.get("teachers")
    agents = [raw.get("student"), *(teachers if isinstance(teachers, list) else [])]
    for agent in agents:
        if not isinstance(agent, dict):
            continue
        anchor(agent, "model")
        for key in ("source", "adapter", "chat_template"):
            anchor(agent.get("model"), key)


def anchor_path(section: Any, key: str, folder: Path) -> None:
    """Make the path at a key absolute, if there is a path and it exists below a folder."""
    value = section.get(key) if isinstance(section, dict) else None
    if not isinstance(value, str) or not value or value in CHAT_TEMPLATES:
        return
    found = folder.absolute() / os.path.expanduser(value)
    if os.path.exists(found):
        # The last name is kept: a file in a hub's cache is a link to one of another name.
        section[key] = str(found.parent.resolve() / found.name)


def _nearby_config(path: Path) -> str:
    """Suggest a config with a name like the one that is missing, beside it or of those shipped."""
    try:
        by_name = {item.stem: item for item in sorted(path.parent.glob("*.y*ml"), reverse=True)}
    except OSError:
        by_name = {}
    near = difflib.get_close_matches(path.stem, by_name, n=1, cutoff=0.5)
    meant = by_name[near[0]] if near else nearest_example(path.stem)
    return f"; did you mean {meant}?" if meant else f"; {START}"
