"""Try all mutations, or those that are named, and say which test noticed each.

    python -m tests.mutants                              # all; minutes on two cores
    python -m tests.mutants 'dpo.reference is ignored'   # one or several
    python -m tests.mutants --write docs/mutants.md

Prints a Markdown table and ends with one line of JSON. Exits with 1 if a mutant survives, does not
fit the code, or if the tests fail without any mutation.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.mutations import MUTATIONS, Mutation
from tests.mutants.trial import Outcome, copy_sources, try_mutation, try_nothing

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = [
    "pytest",
    "hypothesis",
    "pydantic",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tests.tiny",
]
"""Imported once, by the process from which every trial is forked; none of them imports macpo."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Try mutations and report; return the exit status."""
    asked = _parser().parse_args(arguments)
    chosen = [m for m in MUTATIONS if not asked.names or m.name in asked.names]
    unknown = set(asked.names) - {m.name for m in MUTATIONS}
    if unknown:
        print(f"there is no mutation {sorted(unknown)[0]}", file=sys.stderr)
        return 1
    started = time.monotonic()
    outcomes = try_all(chosen, asked.jobs)
    text = markdown(chosen, outcomes)
    if asked.write is not None:
        asked.write.write_text(text, encoding="utf-8")
    print(text)
    killed = sum(o.killer is not None for o in outcomes)
    summary = {
        "mutations": len(outcomes),
        "killed": killed,
        "survived": [o.name for o in outcomes if o.killer is None and o.fault is None],
        "faults": {o.name: o.fault for o in outcomes if o.fault is not None},
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(summary))
    return 0 if killed == len(outcomes) else 1


def try_all(mutations: Sequence[Mutation], jobs: int) -> list[Outcome]:
    """Try mutations in processes of their own, several at a time, and show how far that is.

    The same tests run without any, too: if one fails there, the first outcome says so.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    with (
        tempfile.TemporaryDirectory(prefix="macpo-mutants-") as home,
        context.Pool(jobs, maxtasksperchild=1) as pool,
    ):
        sources = Path(home) / "sources"
        copy_sources(ROOT, sources)
        unchanged = pool.apply_async(try_nothing, [tests, sources])
        outcomes = []
        for outcome in pool.imap_unordered(
            functools.partial(try_mutation, sources=sources), mutations
        ):
            outcomes.append(outcome)
            what = outcome.fault or outcome.killer or "SURVIVED"
            print(f"{outcome.seconds:5.1f} s  {outcome.name}: {what}", file=sys.stderr, flush=True)
        found = unchanged.get()
    if found.killer or found.fault:
        reason = found.fault or f"{found.killer} fails without any mutation"
        return [Outcome(found.name, None, reason, found.seconds), *outcomes]
    return outcomes


def markdown(mutations: Sequence[Mutation], outcomes: Sequence[Outcome]) -> str:
    """Return the table: what is changed where, and which test notices."""
    by_name = {outcome.name: outcome for outcome in outcomes}
    lines = [
        "# Mutants",
        "",
        "Small faults put into the code on purpose, and the first test that notices each. The list",
        "is `tests/mutants/mutations.py`; `make mutants` tries it, and",
        "`make mutants MUTANTS='--write docs/mutants.md'` writes this page.",
        "",
        "| mutation | file | noticed by |",
        "|---|---|---|",
    ]
    for mutation in mutations:
        outcome = by_name[mutation.name]
        test = f"`{outcome.killer.removeprefix('tests/')}`" if outcome.killer else "**nothing**"
        file = mutation.file.removeprefix("src/macpo/")
        lines.append(f"| {mutation.name} | `{file}` | {outcome.fault or test} |")
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", help="mutations to try; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
