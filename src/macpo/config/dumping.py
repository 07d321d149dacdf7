"""A config as YAML: what was said, or all that holds.

Both are read back by `load_config`, to the same config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from macpo.config.agents import AgentConfig
from macpo.config.base import Section
from macpo.config.loading import anchor_paths
from macpo.config.sections import RunConfig


def dump_config(config: RunConfig) -> str:
    """Return a config as YAML; what was left to its default is left out."""
    return _yaml(config.model_dump(mode="json", exclude_unset=True))


def dump_resolved(config: RunConfig, dtype: str) -> str:
    """Return a config as YAML with its defaults, as a run has resolved it.

    Keys without effect are left out, for a config that names them is refused; and of an agent's
    own `sft`, `negative_sft` and `dpo` there is what departs from the run's. Paths are absolute.

    Args:
        config: the config.
        dtype: that `dtype` came to.
    """
    values = _written_out(config.model_copy(update={"dtype": dtype}))
    drop_unused(values, config.method.unused | config.method.idle.keys())
    anchor_paths(values, Path.cwd())
    return _yaml(values)


def drop_unused(raw: dict[str, Any], unused: frozenset[str]) -> None:
    """Remove the keys that a method has no use for, of the run and of its agents.

    Args:
        raw: plain values of a config.
        unused: as `MethodConfig.unused` names them, such as `dpo.gamma`.
    """
    teachers = raw.get("teachers")
    sections = [raw, raw.get("student"), *(teachers if isinstance(teachers, list) else [])]
    for section in sections:
        for name in unused:
            *path, last = name.split(".")
            inner: Any = section
            for part in path:
                inner = inner.get(part) if isinstance(inner, dict) else None
            if isinstance(inner, dict):
                inner.pop(last, None)


def _written_out(section: Section) -> dict[str, Any]:
    """Return the plain values of a section with its defaults, but for those without effect."""
    values: dict[str, Any] = {}
    for name, plain in section.model_dump(mode="json").items():
        value = getattr(section, name)
        if plain is None or not (name in section.model_fields_set or _may_be_said(section, name)):
            continue
        if isinstance(section, AgentConfig) and name in AgentConfig.laid_over:
            values[name] = value.model_dump(mode="json", exclude_unset=True)
        elif isinstance(value, Section):
            values[name] = _written_out(value)
        elif isinstance(value, tuple):
            pairs = zip(value, plain, strict=True)
            values[name] = [_written_out(v) if isinstance(v, Section) else p for v, p in pairs]
        else:
            values[name] = plain
    return values


def _may_be_said(section: Section, name: str) -> bool:
    """Tell whether a default may be written out, which those that have no effect may not."""
    said = {key: getattr(section, key) for key in (*section.model_fields_set, name)}
    try:
        type(section).model_validate(said)
    except ValidationError:
        return False
    return True


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
