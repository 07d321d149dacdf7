"""`make faults`: thousands of faults, a table of how they ended, and a line of JSON.

python -m tests.faults                          # 10,000 of each sort; half an hour
python -m tests.faults --points 500 --seed 1    # fewer, others
python -m tests.faults --only YAML judge        # of sorts with such words in their names
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from tests.faults.outcomes import OUTCOMES, outcome
from tests.faults.sweep import KINDS

SHOWN = 20


def main(arguments: Sequence[str] | None = None, run: Path | None = None) -> int:
    """Try faults and report; return 1 if one ended in a traceback, a hang, or in silence.

    Args:
        arguments: of the command line.
        run: a finished run, which is put back as it was; one is made by default.
    """
    asked = _parser().parse_args(arguments)
    started = time.monotonic()
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as home:
            counts, bad = sweep(
                run or _finished_run(Path(home)), asked.points, asked.seed, asked.only
            )
    finally:
        logging.disable(logging.NOTSET)
    print(table(counts))
    for line in bad[:SHOWN]:
        print(line)
    total = sum(counts.values(), Counter())
    summary = {
        "points": sum(total.values()),
        **{name.replace(" ", "_"): total[name] for name in OUTCOMES},
        "seed": asked.seed,
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(summary))
    return 1 if bad else 0


def sweep(
    run: Path, points: int, seed: int, only: Sequence[str] = ()
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Try faults of every kind on a finished run; return outcomes by kind, and what went wrong.

    Args:
        run: a finished run.
        points: how many, of which `KINDS` has shares.
        seed: draws other faults.
        only: kinds whose names hold one of these words; all without any.
    """
    counts: dict[str, Counter[str]] = {}
    bad = []
    for title, (kind, share) in KINDS.items():
        if only and not any(word in title for word in only):
            continue
        counts[title] = Counter()
        generator = random.Random(f"{seed} {title}")
        for name, ask in islice(kind(run, generator), max(points * share // 100, 1)):
            ended, words = outcome(ask)
            counts[title][ended] += 1
            if ended not in ("answer", "one line"):
                bad.append(f"{ended}: {title}: {name}: {words}")
    return counts, bad


def table(counts: dict[str, Counter[str]]) -> str:
    """Return outcomes as a Markdown table."""
    lines = [
        f"| what is damaged or odd | points | {' | '.join(OUTCOMES)} |",
        f"|---|{'---:|' * (1 + len(OUTCOMES))}",
    ]
    for title, ended in counts.items():
        cells = [f"{ended[name]:,}" for name in OUTCOMES]
        lines.append(f"| {title} | {sum(ended.values()):,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _finished_run(home: Path) -> Path:
    from tests.runs import run_cli, write_config

    result = run_cli(["run", write_config(home), "--out", home / "run"])
    if result.code:
        raise SystemExit(f"the run to be damaged failed: {result.err}")
    return home / "run"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--points", type=int, default=10_000, help="how many: sweep.KINDS has shares of it"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws other faults")
    parser.add_argument(
        "--only", nargs="*", default=(), help="kinds with such words in their names"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
