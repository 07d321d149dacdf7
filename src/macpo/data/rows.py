"""Rows as they come out of a source, before their format is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


LARGEST_ROW = 1 << 20
"""Characters that the texts of a row may have in all: some 250,000 tokens."""


def bounded(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """Pass rows on; those with more text than anybody learns from come out as bad rows."""
    for row in rows:
        if row.bad is None and _characters(row.value) > LARGEST_ROW:
            yield too_large(row.number)
        else:
            yield row


def too_large(number: int) -> RawRow:
    """Return what stands for a row with more text than is read."""
    return RawRow(number, "", BadRow("too large", f"over {LARGEST_ROW:,} characters"))


def _characters(value: object) -> int:
    """Count the characters of all texts in a value and the things around them, up to the limit."""
    total, pending = 0, [value]
    while pending and total <= LARGEST_ROW:
        item = pending.pop()
        total += 1
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, Mapping):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            pending += item
    return total
