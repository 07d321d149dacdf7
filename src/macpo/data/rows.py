"""Rows as they come out of a source, before their format is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from macpo.data.turns import BadRow


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row before its format is known.

    `number` counts from 1: lines of a file, blank ones too, or items of a list, or rows of a table.
    `value` is the parsed JSON; when `bad` is set, the row's text as far as it could be had.
    """

    number: int
    value: object
    bad: BadRow | None = None


@dataclass(frozen=True, slots=True)
class RowSource:
    """Rows to be read once, in order; `total` is their count where it is known beforehand."""

    name: str
    unit: Literal["line", "item", "row"]
    rows: Iterator[RawRow]
    total: int | None = None
