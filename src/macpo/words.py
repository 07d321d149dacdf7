"""Words that configs, commands and code share; importing them costs nothing."""

from __future__ import annotations

import html
from typing import Literal

FormatName = Literal[
    "hh",
    "pku",
    "macpo",
    "trl",
    "orca",
    "alpaca",
    "sharegpt",
    "argilla",
    "openai",
    "helpsteer",
    "stack",
    "shp",
    "arena",
    "swift",
    "gsm8k",
    "bbq",
]
"""Formats of preference data, in the order in which they are told."""

FormatChoice = Literal["auto", FormatName]
"""One of them, or to be found by looking."""

Criterion = Literal["helpful", "harmless"]
"""Which label of PKU-SafeRLHF says which answer is better."""


FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""What spreadsheets take the rest of a cell for a formula after."""


def in_markdown(name: str) -> str:
    """Return a name, such as a folder's, that Markdown shows and does not act on."""
    shown = html.escape(" ".join(name.split()), quote=False)
    return shown.replace("`", "\\`").replace("](", "]\\(")


def in_spreadsheet(cell: object) -> object:
    """Return a cell of a table that a spreadsheet shows and does not compute."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell


def labelled(name: str, label: str | None) -> str:
    """Return a name with a label that tells it from others: `reward[mine]`; without one, itself."""
    return name if label is None else f"{name}[{label}]"


def split_label(name: str) -> tuple[str, str | None]:
    """Take apart what `labelled` returned."""
    plain, bracket, label = name.removesuffix("]").partition("[")
    return (plain, label) if bracket and name.endswith("]") else (name, None)
