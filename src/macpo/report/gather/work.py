"""What a run's stages did: how training went, time, tokens, cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from macpo.records import read_jsonl
from macpo.report.console import telling_numbers
from macpo.report.data import StageRow, Tokens, TrainingLog
from macpo.report.gather.finished import Finished, agent_of, round_of
from macpo.run_directory import RunPlan
from macpo.run_status import FinishedStage
from macpo.words import split_label

NUMBERS_OF_LOGS = ("loss", "margin", "chosen_logratio", "rejected_logratio")
LOG_POINTS = 240
"""Steps of a training stage that are drawn at most; of longer ones every n-th."""

JUDGES_COST = ("judge_calls", "judge_tokens_in", "judge_tokens_out", "judge_cost")


def training_logs(done: Iterable[Finished]) -> Iterator[TrainingLog]:
    """Yield what training stages wrote, thinned out."""
    for found in done:
        path = found.folder / "log.jsonl"
        if not path.is_file():
            continue
        rows = list(read_jsonl(path))
        every = max(1, -(-len(rows) // LOG_POINTS))
        kept = rows[::every]
        names = [name for name in NUMBERS_OF_LOGS if all(name in row for row in kept)]
        yield TrainingLog(
            found.stage.name,
            agent_of(found.stage),
            round_of(found.stage.name) or 0,
            tuple(int(row["step"]) for row in kept),
            {name: tuple(float(row[name]) for row in kept) for name in names},
        )


def stage_rows(
    ended: Sequence[FinishedStage], plan: RunPlan | None, done: Iterable[Finished]
) -> tuple[StageRow, ...]:
    """Return all stages of the run as it was last laid out, in its order.

    Args:
        ended: the stages that have run, by the journal.
        plan: what the run consists of; without it only those that have run are told of.
        done: the stages whose artifacts are there.
    """
    if plan is None:
        return tuple(StageRow(s.name, "", round_of(s.name), s.seconds, Tokens()) for s in ended)
    took = {stage.key: stage.seconds for stage in ended}
    artifacts = {found.stage.key: found for found in done}
    rows = []
    for stage in plan.stages:
        numbers, tokens = "", Tokens()
        seconds = took.get(stage.key)
        found = artifacts.get(stage.key)
        if found is not None:
            tokens = _tokens(stage.kind, found.meta, found.folder)
            with suppress(KeyError, TypeError):  # another version's meta
                numbers = telling_numbers(stage.kind, found.meta, seconds or 0.0)
        rows.append(
            StageRow(stage.name, stage.kind, round_of(stage.name), seconds, tokens, numbers)
        )
    return tuple(rows)


def _tokens(kind: str, meta: Mapping[str, Any], folder: Path) -> Tokens:
    """Return the tokens of a finished stage, as far as it counted them."""
    tokens = meta.get("tokens")
    if kind == "respond":
        return Tokens(written=tokens)
    if kind == "score":
        if tokens is None:  # an older version's
            tokens = sum(row["tokens"] for row in read_jsonl(folder / "scores.jsonl"))
        return Tokens(scored=tokens)
    return Tokens(trained=tokens) if kind in ("sft", "dpo") else Tokens()


def cost(stages: Sequence[StageRow], seconds: float) -> dict[str, float]:
    """Sum up what the run has cost: seconds of all attempts, tokens of what is there."""
    sums = {"seconds": seconds}
    for name in ("written", "scored", "trained"):
        found = [n for stage in stages if (n := getattr(stage.tokens, name)) is not None]
        if found:
            sums[name] = float(sum(found))
    return sums


def judges_cost(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Sum up what judges over a server have cost, as they counted it."""
    sums: dict[str, float] = {}
    for row in rows:
        name, _ = split_label(row["metric"])
        if name in JUDGES_COST:
            sums[name] = sums.get(name, 0.0) + row["value"]
    return sums
