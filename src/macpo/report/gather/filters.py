"""What learners kept of the answers that were offered to them, round by round."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from macpo.estimates import quantile
from macpo.records import read_jsonl, read_pairs
from macpo.report.console import guard_numbers
from macpo.report.data import FilterExample, FilterRound, Spread
from macpo.report.gather.finished import Finished, agent_of, round_of
from macpo.report.text import plain_text
from macpo.run_directory import PlannedStage
from macpo.seeds import stable_seed

EXAMPLES = 3
"""Prompts of a round whose candidates are shown."""


def filter_rounds(done: Iterable[Finished], seed: int) -> Iterator[FilterRound]:
    """Yield what learners kept, round by round.

    Args:
        done: finished stages.
        seed: of the run; decides which candidates are shown.
    """
    for found in done:
        path = found.folder / "filter.jsonl"
        if found.stage.kind == "pairs" and path.is_file():
            rows = list(read_jsonl(path))
            kept = _filter_round(found.stage, rows, seed, _texts(found.folder))
            yield replace(kept, refused=guard_numbers(found.meta))


def _texts(folder: Path) -> Callable[[str], str]:
    """Return a function that finds the last turn of a prompt of the pairs in a folder."""
    prompts: dict[str, str] = {}

    def find(prompt_id: str) -> str:
        if not prompts:
            pairs = read_pairs(folder)
            prompts.update((p.prompt.id, p.prompt.messages[-1].content) for p in pairs)
        return prompts.get(prompt_id, "")

    return find


def _filter_round(
    stage: PlannedStage,
    rows: Sequence[Mapping[str, Any]],
    seed: int,
    prompt_of: Callable[[str], str],
) -> FilterRound:
    """Sum up a filter.jsonl."""
    offered: dict[str, list[tuple[float, bool]]] = {}
    for row in rows:
        for candidate in row["candidates"]:
            one = (float(candidate["perplexity"]), bool(candidate["won"]))
            offered.setdefault(candidate["policy"], []).append(one)
    spreads = []
    for policy, found in offered.items():
        values = sorted(perplexity for perplexity, _ in found)
        kept = sorted(perplexity for perplexity, won in found if won)
        low, quarter, middle, upper, high = (
            quantile(values, share) for share in (0.05, 0.25, 0.5, 0.75, 0.95)
        )
        median = quantile(kept, 0.5) if kept else None
        five = (low, quarter, middle, upper, high)
        spreads.append(Spread(policy.partition("/")[0], len(values), len(kept), five, median))
    some = list(rows)
    random.Random(stable_seed(seed, "report", stage.name)).shuffle(some)
    decided = [row for row in some if any(c["won"] for c in row["candidates"])][:EXAMPLES]
    return FilterRound(
        round_of(stage.name) or 0,
        agent_of(stage),
        str(stage.identity.get("filter", "perplexity")),
        len(rows),
        tuple(spreads),
        tuple(
            FilterExample(
                plain_text(prompt_of(row["prompt_id"])),
                tuple(map(_candidate, row["candidates"])),
            )
            for row in decided
        ),
    )


def _candidate(row: Mapping[str, Any]) -> tuple[str, float, bool, str]:
    policy = row["policy"].partition("/")[0]
    return policy, float(row["perplexity"]), bool(row["won"]), plain_text(row["text"])
