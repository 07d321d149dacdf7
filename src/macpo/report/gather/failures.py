"""What went wrong in a run and was counted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from macpo.data.stages import REPORT_FILE
from macpo.report.data import Failures
from macpo.report.gather.finished import Finished


def failures(done: Sequence[Finished], journal: Sequence[Mapping[str, Any]]) -> Iterator[Failures]:
    """Yield what went wrong and was counted.

    Args:
        done: finished stages.
        journal: the run's events.
    """
    yield from _of_data(done)
    answers = [(f.stage.name, f.meta) for f in done if f.stage.kind == "respond"]
    if answers:
        total = sum(meta["responses"] for _, meta in answers)
        empty = [(name, meta["empty"]) for name, meta in answers]
        cut = [(name, meta["responses"] - meta["finished"]) for name, meta in answers]
        yield _counted("answers that are empty", empty, total)
        yield _counted("answers that did not end by themselves", cut, total)
    pairs = [
        (f.stage.name, f.meta["prompts_without_pair"], f.meta["pairs"])
        for f in done
        if f.stage.kind == "pairs" and "prompts_without_pair" in f.meta
    ]
    if pairs:
        missing = [(name, count) for name, count, _ in pairs]
        total = sum(count + made for _, count, made in pairs)
        yield _counted("prompts that gave no pair", missing, total)
    guarded = [
        (f.stage.name, f.meta) for f in done if f.stage.kind == "pairs" and "refused" in f.meta
    ]
    if guarded:
        refused = [(name, meta["refused"]) for name, meta in guarded]
        total = sum(meta["candidates"] for _, meta in guarded)
        yield _counted("candidates that the guard refused", refused, total)
    for what, event in (
        ("stages that were stopped or failed", "stopped"),
        ("stages set aside, damaged or of other inputs", "set_aside"),
    ):
        names = [e["stage"] for e in journal if e["event"] == event]
        if names:
            yield _counted(what, [(name, names.count(name)) for name in dict.fromkeys(names)])


def _of_data(done: Iterable[Finished]) -> Iterator[Failures]:
    """Yield what was not taken of the data."""
    folder = next((f.folder for f in done if f.stage.kind == "data"), None)
    if folder is None or not (folder / REPORT_FILE).is_file():
        return
    report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    rows = report.get("rows")
    yield Failures("rows of data that could not be used", report.get("bad_rows", 0), rows)
    yield Failures(
        "pairs left out for a prompt over the limit",
        report.get("prompts_too_long", 0),
        report.get("pairs"),
    )
    cuts = report.get("cuts") or []
    if cuts:
        worst = max(cuts, key=lambda cut: cut["answers_cut"])
        yield Failures(
            "answers of the data cut at limits.response_tokens",
            worst["answers_cut"],
            worst["answers"],
        )


def _counted(what: str, counts: Sequence[tuple[str, int]], of: int | None = None) -> Failures:
    """Sum counts up by stage; the stages with most of them are named."""
    there = sorted((c for c in counts if c[1]), key=lambda c: -c[1])
    return Failures(what, sum(count for _, count in there), of, tuple(there[:4]))
