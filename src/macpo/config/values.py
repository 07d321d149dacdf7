"""The kinds of values in a config: how each is checked, and how one is shown in a message."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, PlainValidator

LARGEST = 2**63 - 1


def shown(value: Any) -> str:
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


def shown_key(key: Any) -> str:
    """Show a key, as it stands where that is readable."""
    return key if isinstance(key, str) and key.isprintable() and 0 < len(key) < 60 else shown(key)


def number(text: str) -> int | float | None:
    """Read a number from text; None when it is none."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _check_text(value: str) -> str:
    if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in value):
        raise ValueError(f"{shown(value)} holds a line break or another control character")
    return value


def refuse_password(value: str) -> str:
    """Return a name or path; one that holds a password is in every file of a run soon.

    Raises:
        ValueError: it does; the message does not show it.
    """
    if re.search(r"://[^/@\s]+@", value):
        raise ValueError(
            "holds a user name or password, which would stand in the run's files; log in outside "
            "of the config (hf auth login), or fetch it and name the file"
        )
    return value


def _check_size(value: Any) -> int | float:
    if isinstance(value, str):  # YAML reads 5e-1, without a dot, as text
        value = number(value)
    if not isinstance(value, int | float):
        raise ValueError("must be a number of prompts such as 5000, or a fraction such as 0.5")
    if not 0 < value <= LARGEST:
        raise ValueError(f"must be greater than 0 and finite (got {shown(value)})")
    if isinstance(value, float) and value > 1:
        raise ValueError(f"{value} is no fraction; write {round(value)} for that many prompts")
    return value


def _check_size_or_zero(value: Any) -> int | float:
    return 0 if isinstance(value, int | float) and value == 0 else _check_size(value)


Text = Annotated[str, Field(strict=True, min_length=1), AfterValidator(_check_text)]
Source = Annotated[Text, AfterValidator(refuse_password)]
MOST_ROUNDS = 1000
MOST_EPOCHS = 10_000
LARGEST_RANK = 1 << 16

Count = Annotated[int, Field(gt=0, le=LARGEST)]
Epochs = Annotated[Count, Field(le=MOST_EPOCHS)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(gt=0)]
Flag = Annotated[bool, Field(strict=True)]
NonNegative = Annotated[float, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int | float, PlainValidator(_check_size)]
"""A number of prompts (an integer), or a fraction of all prompts (a float of at most 1.0)."""
SizeOrZero = Annotated[int | float, PlainValidator(_check_size_or_zero)]
"""The same, or 0 for none."""


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
                f'{shown(text)} is not a list of layers; write for example "0-11,27-29"'
            )
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first:
            raise ValueError(
                f"{part.strip()}: the last layer comes before the first; write {last}-{first}"
            )
        for layer in range(first, last + 1):
            if layer in layers:
                raise ValueError(f"{shown(text)} names layer {layer} twice")
            layers[layer] = None
    return tuple(layers)
