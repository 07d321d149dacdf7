"""What a compare file may say, and reading it.

    name: ablations
    base: ../quickstart.yaml      # a run's config, relative to this file, or example:NAME; every
                                  # cell starts from it
    set: {rounds: 2}              # changes for every cell; a method drops what it has no use for
    seeds: [1, 2, 3]
    against: macpo                # whom the others are paired with; by default the first method
    methods:                      # label -> what stands under `method:` in a run's config ...
      macpo: macpo
      no-contrast: {contrast: false}
      spin:                       # ... or that with changes of its own
        method: spin
        set: {dpo.learning_rate: 2.0e-4}
        settings: [clean]         # where it takes part; by default everywhere
      ceiling: ceiling
    settings:                     # label -> changes for every method; by default one, without any
      clean: {}
      noise: {data.noise: 0.3}
    metrics: {preference_accuracy: higher, answer_tokens: neither}    # what tables show, in order

Changes are keys as `--set` takes them, with values in YAML. What stands further in wins: `base`,
`set`, `--set`, a setting, a method's own `set`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from macpo.compare.entries import (
    Changes,
    MethodEntry,
    long_form,
    where_keys_stand,
    without_reserved,
)
from macpo.config import Section
from macpo.config.agents import AGENT_NAME
from macpo.config.faults import describe_fault
from macpo.config.loading import read_mapping
from macpo.config.values import CountOrZero, Text, shown, shown_key
from macpo.errors import ConfigError
from macpo.metrics import Better
from macpo.shipped import is_example, locate

DEFAULT_SETTING = "default"


class CompareConfig(Section):
    """A compare file: see the top of this module."""

    name: Text
    base: Text
    set: Changes = Field(default_factory=dict)
    seeds: Annotated[tuple[CountOrZero, ...], Field(min_length=1)]
    against: Text | None = None
    ceiling: Text | None = None
    methods: Annotated[dict[str, MethodEntry], Field(min_length=1)]
    settings: Annotated[
        dict[str, Changes], Field(min_length=1, default_factory=lambda: {DEFAULT_SETTING: {}})
    ]
    metrics: Annotated[dict[str, Better], Field(min_length=1)] | None = None

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, value: str) -> str:
        _check_label(value, "a folder")
        return value

    @field_validator("set")
    @classmethod
    def _set_leaves_the_rest_alone(cls, value: Changes) -> Changes:
        return without_reserved(value)

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for seed in sorted({seed for seed in value if value.count(seed) > 1}):
            raise ValueError(f"{seed} is there {value.count(seed)} times; a seed counts once")
        return value

    @field_validator("methods", mode="before")
    @classmethod
    def _a_method_alone_is_an_entry(cls, value: Any) -> Any:
        """Take what stands under `method:` for an entry without changes of its own."""
        if not isinstance(value, dict):
            return value
        return {label: long_form(found) for label, found in value.items()}

    @field_validator("settings")
    @classmethod
    def _settings_leave_the_rest_alone(cls, value: dict[str, Changes]) -> dict[str, Changes]:
        for label, changes in value.items():
            _check_label(label, "a setting")
            try:
                without_reserved(changes)
            except ValueError as error:
                raise ValueError(f"{label}: {error}") from None
        return value

    @model_validator(mode="after")
    def _labels_are_known(self) -> CompareConfig:
        faults = []
        for label, entry in self.methods.items():
            try:
                _check_label(label, "a method")
            except ValueError as error:
                faults.append(f"methods: {error}")
            faults += [
                f"methods.{label}.settings: {_unknown(setting, self.settings, 'setting')}"
                for setting in entry.settings or ()
                if setting not in self.settings
            ]
        faults += [
            f"{key}: {_unknown(label, self.methods, 'method')}"
            for key, label in (("against", self.against), ("ceiling", self.ceiling))
            if label is not None and label not in self.methods
        ]
        if faults:
            raise ValueError("\n".join(faults))
        return self


def read_compare(path: str | Path) -> CompareConfig:
    """Read a compare file and check its own keys; the cells are checked by `lay_out`.

    Raises:
        ConfigError: it cannot be read or something in it is wrong; lists every fault.
    """
    path = Path(path)
    raw = read_mapping(path, "compare")
    if "methods" not in raw and "student" in raw:
        raise ConfigError(
            f"{path}: is a run's config; start it with `macpo run`, or name it as `base:` of a "
            "compare file, such as example:compare/main"
        )
    try:
        return CompareConfig.model_validate(raw)
    except ValidationError as error:
        faults = [line for item in error.errors() for line in _describe(dict(item))]
    raise fault_list(str(path), faults)


def fault_list(where: str, faults: list[str]) -> ConfigError:
    """Return the error that lists faults, one a line."""
    count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
    return ConfigError("\n  ".join([f"{where}: {count}", *faults]))


def find_base(config: CompareConfig, folder: Path) -> Path:
    """Return the path of the base config: a shipped example, or relative to the file's folder."""
    if is_example(config.base):
        return locate(config.base)
    return folder / os.path.expanduser(config.base)


def _check_label(label: str, what: str) -> None:
    """Refuse a label that cannot be the name of a folder."""
    if not AGENT_NAME.fullmatch(label):
        raise ValueError(
            f"{shown(label)} cannot name {what}; use lower-case letters, digits, '-', '_', '.'"
        )


def _unknown(label: str, known: Mapping[str, Any], what: str) -> str:
    near = difflib.get_close_matches(label, known, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    return f"there is no {what} {shown(label)}; {remedy}"


def _describe(item: Mapping[str, Any]) -> list[str]:
    """Say one of pydantic's errors in our words.

    `describe_fault` looks keys up in a run's config: what depends on the keys is said here.
    """
    kind, loc, seen = item["type"], item["loc"], item.get("input")
    name = ".".join(shown_key(part) for part in loc if part != "[key]")
    if kind == "extra_forbidden" and loc[0] == "methods" and len(loc) > 1:
        return [f"{name}: unknown key; {where_keys_stand(loc[-1])}"]
    if kind == "extra_forbidden":
        valid = list(CompareConfig.model_fields)
        near = difflib.get_close_matches(str(loc[-1])[:100], valid, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]!r}?" if near else f"valid here: {', '.join(valid)}"
        return [f"{name}: unknown key; {remedy}"]
    if kind == "dict_type":
        return [f"{name}: must be keys with values, such as {{rounds: 2}} (got {shown(seen)})"]
    if seen is None and kind not in ("missing", "value_error"):
        return [f"{name}: is empty; give it a value"]
    return list(describe_fault(item, {}))
