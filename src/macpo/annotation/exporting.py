"""Judgments handed on: as rows for a table, and as preference pairs to train on."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from macpo.annotation.judgments import Judgment, JudgmentFile
from macpo.annotation.results import WORTH
from macpo.errors import ConfigError, StoreError
from macpo.records import Pair, write_jsonl
from macpo.words import in_spreadsheet

TABLES = (".csv", ".jsonl")
COLUMNS = ("prompt_id", "annotator", "one", "other", "better", "left", "seconds", "time")


@dataclass(frozen=True, slots=True)
class ExportedPairs:
    """How many pairs were written, and how many judged ones gave none.

    `undecided`: as many judgments for the one answer as for the other, ties included; `empty`: the
    better or the worse answer says nothing.
    """

    written: int
    undecided: int
    empty: int


def export_pairs(file: JudgmentFile, path: Path) -> ExportedPairs:
    """Write the judged pairs as preference data, in the format of a run's own `pairs.jsonl`.

    What most judgments favour is chosen.

    Raises:
        StoreError: the file cannot be written, or no pair is decided.
    """
    votes: dict[str, list[float]] = defaultdict(list)
    for judgment in file.judgments():
        votes[judgment.pair].append(WORTH[judgment.verdict])
    pairs, undecided, empty = [], 0, 0
    for pair in file.pairs:
        if pair.id not in votes:
            continue
        favour = fmean(votes[pair.id])
        if favour == 0.5:
            undecided += 1
        elif pair.one.is_empty or pair.other.is_empty:
            empty += 1
        else:
            chosen, rejected = (pair.one, pair.other) if favour > 0.5 else (pair.other, pair.one)
            pairs.append(Pair(pair.prompt, chosen, rejected))
    if not pairs:
        raise StoreError(
            f"{file.path}: none of {len(votes)} judged pairs has an answer that most people prefer "
            "and two that say something, so there is nothing to export; judge more pairs"
        )
    with _writing(path):
        write_jsonl(path, (pair.to_json() for pair in pairs))
    return ExportedPairs(len(pairs), undecided, empty)


def export_judgments(file: JudgmentFile, path: Path) -> int:
    """Write every judgment as a row, oldest first, and return how many these are.

    `one` and `other` name the sides, `better` one of them or `tie`, `left` who stood there.

    Raises:
        ConfigError: the file's name ends in neither .csv nor .jsonl.
        StoreError: it cannot be written.
    """
    if path.suffix not in TABLES:
        raise ConfigError(f"{path}: write a name that ends in {' or '.join(TABLES)}")
    rows = [_row(file, judgment) for judgment in file.judgments()]
    with _writing(path):
        if path.suffix == ".jsonl":
            write_jsonl(path, rows)
        else:
            with path.open("w", encoding="utf-8", newline="") as out:
                writer = csv.DictWriter(out, fieldnames=COLUMNS)
                writer.writeheader()
                writer.writerows(
                    {name: in_spreadsheet(cell) for name, cell in row.items()} for row in rows
                )
    return len(rows)


def _row(file: JudgmentFile, judgment: Judgment) -> dict[str, Any]:
    labels = {"one": file.one, "other": file.other, "tie": "tie"}
    values = (
        judgment.prompt_id,
        judgment.annotator,
        file.one,
        file.other,
        labels[judgment.verdict],
        labels[judgment.left],
        judgment.seconds,
        judgment.time,
    )
    return dict(zip(COLUMNS, values, strict=True))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the disk says into one line."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror}; name another") from error
