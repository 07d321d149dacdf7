"""What is said of a faulty config: one line a fault, with the nearest valid name or the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from macpo.backends import BACKENDS
from macpo.config.evaluators import EvaluatorConfig, evaluator_class
from macpo.config.generation import GenerationConfig, generation_class
from macpo.config.methods import DEFAULT_METHOD, METHODS, MethodConfig, method_class, method_name
from macpo.config.sections import RunConfig
from macpo.config.values import shown, shown_key

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


def describe_fault(
    item: Mapping[str, Any], raw: Any, root: type[BaseModel] = RunConfig
) -> Iterator[str]:
    """Say one of pydantic's errors in our words; yields a line for each fault in it.

    Args:
        item: the error.
        raw: the config as it was checked: it says which method and evaluators are meant.
        root: the config's class.
    """
    kind, loc, seen = item["type"], item["loc"], item.get("input")
    name = ".".join(map(shown_key, loc))
    if kind in ("extra_forbidden", "invalid_key"):
        yield f"{name}: unknown key; {_where_key_belongs(loc, raw, root)}"
    elif kind == "missing":
        yield f"{name}: missing; it has no default{_what_to_give(loc, raw, root)}"
    elif kind == "value_error":
        for line in str(item["msg"]).removeprefix("Value error, ").split("\n"):
            yield f"{name}: {line}" if name else line
    elif kind == "too_short":
        if not seen:  # else every item was faulty, which was said
            yield f"{name}: is empty; give at least one"
    elif kind == "string_unicode":
        yield f"{name or 'a key'}: is not text that can be written as UTF-8"
    elif seen is None:
        remedy = (
            "give it a value"
            if _is_required(loc, raw, root)
            else "give it a value or remove the key"
        )
        yield f"{name}: is empty; {remedy}"
    else:
        words = _WORDS.get(kind) or str(item["msg"]).replace("Input should be", "must be")
        yield f"{name}: {words} (got {shown(seen)}){_meant(item, seen)}"


def _meant(item: Mapping[str, Any], seen: Any) -> str:
    """Suggest the nearest of the words that a key takes."""
    if item["type"] != "literal_error" or not isinstance(seen, str):
        return ""
    valid = re.findall(r"'([^']*)'", str(item["ctx"]["expected"]))
    near = difflib.get_close_matches(seen[:100], valid, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _where_key_belongs(loc: Sequence[Any], raw: Any, root: type[BaseModel]) -> str:
    """Help with an unknown key: a key of nearly that name here, or its place elsewhere."""
    key = str(loc[-1])[:100]
    here = _section_at(loc[:-1], raw, root)
    if issubclass(here, MethodConfig):
        others = [n for n, m in METHODS.all().items() if key in m.model_fields and m is not here]
        if others:
            return f"it belongs to method {' or '.join(others)}, this is {method_name(here)}"
    if issubclass(here, GenerationConfig):
        others = [n for n, b in BACKENDS.all().items() if key in (b.section() or here).model_fields]
        if others and key not in here.model_fields:
            return f"it belongs to generation.backend: {' or '.join(others)}"
    valid = list(here.model_fields)
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    if not difflib.get_close_matches(key, valid, n=1, cutoff=0.75):
        inside = [".".join(map(str, (*loc[:-1], home))) for home in _homes(key, here)]
        homes = inside or _homes(key, root)
        if key in root.model_fields:
            homes = ["the top level"]
        if homes:
            return f"it belongs to {' or '.join(homes)}"
    return f"did you mean {near[0]!r}?" if near else f"valid here: {', '.join(sorted(valid))}"


def _is_required(loc: Sequence[Any], raw: Any, root: type[BaseModel]) -> bool:
    """Tell whether the key at `loc` has no default."""
    field = _section_at(loc[:-1], raw, root).model_fields.get(str(loc[-1]))
    return field is not None and field.is_required()


def _what_to_give(loc: Sequence[Any], raw: Any, root: type[BaseModel]) -> str:
    """Return what a field's own description asks for, behind a semicolon; or nothing."""
    field = _section_at(loc[:-1], raw, root).model_fields.get(str(loc[-1]))
    asked = None if field is None else field.description
    return f"; {asked}" if asked else ""


def _section_at(loc: Sequence[Any], raw: Any, root: type[BaseModel]) -> type[BaseModel]:
    """Return the section at `loc`, walking the annotations of the config tree beside its values."""
    section = root
    for part in loc:
        raw = _item(raw, part)
        field = section.model_fields.get(str(part))  # none for a list's item or a mapping's key
        if field is not None:
            section = _section_in(field.annotation) or section
        if issubclass(section, MethodConfig):
            section = method_class(raw) or section
        elif issubclass(section, EvaluatorConfig):
            section = evaluator_class(raw) or section
        elif issubclass(section, GenerationConfig):
            section = generation_class(raw) or section
    return section


def _item(raw: Any, part: Any) -> Any:
    """Return what stands at a key or number of a config's plain values, None where nothing does."""
    if isinstance(raw, Mapping):
        return raw.get(part)
    if isinstance(raw, list | tuple) and isinstance(part, int) and part < len(raw):
        return raw[part]
    return None


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
    """Find the section class inside an annotation such as `tuple[TeacherConfig, ...]`.

    For the section of the method, whose class depends on its name, the default's.
    """
    if annotation is MethodConfig:
        return METHODS.get(DEFAULT_METHOD)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_in(inner)
        if found is not None:
            return found
    return None
