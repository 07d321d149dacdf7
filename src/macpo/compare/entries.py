"""An entry of `methods:` in a compare file: its forms, and which one a slip in it meant.

    spin                                                      # the name alone
    {name: macpo, top_k: 2}                                   # the section, as under `method:`
    {method: {name: macpo, top_k: 2}, set: {dpo.beta: 0.2}}   # that with changes of its own

Options of the method are easily written beside `set`, and keys of the run among the options. Where
it is plain what was meant, the message shows the entry as it has to be.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import Field, field_validator, model_validator

from macpo.config import RunConfig, Section
from macpo.config.methods import DEFAULT_METHOD as DEFAULT
from macpo.config.methods import METHODS, method_class
from macpo.config.values import Text, shown, shown_key

Changes = dict[str, Any]

RESERVED_KEYS = {
    "name": "it is the comparison's",
    "seed": "`seeds` gives it",
    "method": "`methods` gives it",
}
LONGEST_EXAMPLE = 200


class MethodEntry(Section):
    """A method that takes part.

    `method` is what stands under `method:` in a run's config, `set` are changes of this method's
    cells, `settings` the settings in which it takes part; None is all of them.
    """

    method: Changes
    set: Changes = Field(default_factory=dict)
    settings: tuple[Text, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _keys_stand_where_they_belong(cls, value: Any) -> Any:
        if isinstance(value, dict):
            faults = list(misplaced(value))
            if faults:
                raise ValueError("\n".join(faults))
        return value

    @field_validator("method", mode="before")
    @classmethod
    def _a_name_is_a_section(cls, value: Any) -> Any:
        if not isinstance(value, str | dict):
            raise ValueError(f"must be a method's name, or a section with one (got {shown(value)})")
        return {"name": value} if isinstance(value, str) else value

    @field_validator("set")
    @classmethod
    def _set_leaves_the_rest_alone(cls, value: Changes) -> Changes:
        options = [key for key in value if key.startswith("method.")]
        if options:
            option = options[0].removeprefix("method.")
            raise ValueError(f"{options[0]}: write {option} into this method's own section")
        return without_reserved(value)


def long_form(value: Any) -> Any:
    """Return an entry in its long form, which names the method's section `method`."""
    if isinstance(value, dict) and value.keys() & MethodEntry.model_fields.keys():
        return value
    return {"method": value}


def without_reserved(changes: Changes) -> Changes:
    """Refuse changes of what the comparison itself decides.

    Raises:
        ValueError: there are such; says who decides it.
    """
    for key, reason in RESERVED_KEYS.items():
        if key in changes:
            raise ValueError(f"{key} cannot be changed here, {reason}; remove it")
    return changes


def misplaced(entry: Mapping[str, Any]) -> Iterator[str]:
    """Say which keys of an entry in its long form stand in the wrong place, and show the right one.

    Yields:
        The faults; none where all keys stand right, or where nobody knows what they mean.
    """
    section, changes = entry.get("method", {}), entry.get("set", {})
    section = {"name": section} if isinstance(section, str) else section
    if not isinstance(section, dict) or not isinstance(changes, dict):
        return
    beside = {key: value for key, value in entry.items() if key not in MethodEntry.model_fields}
    options = _options({**beside, **section})
    to_section = [
        *(key for key in beside if key in options),
        *(key for key in changes if key in options and key not in RunConfig.model_fields),
    ]
    to_changes = [
        key for key in (*beside, *section) if key not in options and len(_run_keys(key)) == 1
    ]
    for key in beside:
        if key not in options and len(_run_keys(key)) > 1:
            yield f"{key}: name its section, under `set`: {' or '.join(_run_keys(key))}"
    unknown = [key for key in beside if key not in options and not _run_keys(key)]
    reasons = []
    if to_section == ["name"]:
        reasons.append("name: the method stands under `method`")
    elif to_section:
        reasons.append(f"{', '.join(to_section)}: options of the method stand in its own section")
    if to_changes:
        reasons.append(f"{', '.join(to_changes)}: changes of the run stand under `set`")
    if reasons:
        found = {**beside, **section, **changes}
        right = {
            "method": {key: section[key] for key in section if key not in to_changes}
            | {key: found[key] for key in to_section},
            "set": {key: changes[key] for key in changes if key not in to_section}
            | dict(leaf for key in to_changes for leaf in _leaves(_run_keys(key)[0], found[key])),
            "settings": entry.get("settings"),
        }
        yield f"{'; '.join(reasons)}; write {_example(right)}"
        yield from (f"{shown_key(key)}: unknown key; {where_keys_stand(key)}" for key in unknown)


def where_keys_stand(key: Any) -> str:
    """Help with an unknown key of an entry: the nearest valid one, or where which keys stand."""
    valid = list(MethodEntry.model_fields)
    near = difflib.get_close_matches(str(key)[:100], valid, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return (
        f"valid here: {', '.join(valid)}; options of the method stand in its own section, as in "
        "{method: {name: macpo, top_k: 2}}, changes of the run under `set`"
    )


def _options(section: Mapping[str, Any]) -> frozenset[str]:
    """Return what a method's section may name; nothing if there is no such method."""
    kind = method_class(dict(section))
    return frozenset(kind.model_fields) if kind is not None else frozenset()


def _run_keys(key: Any) -> list[str]:
    """Return the keys of a run's config that are meant by one, which may lack its section.

    What some method calls an option is none of them.
    """
    first = str(key).partition(".")[0]
    if first in RESERVED_KEYS:
        return []
    if first in RunConfig.model_fields:
        return [str(key)]
    if any(first in kind.model_fields for kind in METHODS.all().values()):
        return []
    return [
        f"{name}.{key}"
        for name, field in RunConfig.model_fields.items()
        if isinstance(field.annotation, type)
        and issubclass(field.annotation, Section)
        and first in field.annotation.model_fields
    ]


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the changes that a whole section stands for: `dpo: {beta: 0.2}` is `dpo.beta: 0.2`."""
    if not isinstance(value, dict):
        yield key, value
        return
    for name, inner in value.items():
        yield from _leaves(f"{key}.{name}", inner)


def _example(entry: Mapping[str, Any]) -> str:
    """Write an entry as it may stand in a compare file, on one line; what is empty is left out."""
    section = entry["method"]
    method = section if section.keys() - {"name"} else section.get("name", DEFAULT)
    shortest = {key: value for key, value in {**entry, "method": method}.items() if value}
    text = yaml.safe_dump(
        shortest, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf
    ).strip()
    return text if len(text) <= LONGEST_EXAMPLE else "{method: {name: ..., ...}, set: {...}}"
