"""docs/models.md: what the sweep found, as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import transformers

from tests.sweep.before import BEFORE
from tests.sweep.checks import CHECKS, Verdict

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"

HEAD = """# Which models work

Written by `make sweep`, with transformers {version}: every causal-LM family of its own mapping as a
tiny random model in float32, against one plain forward per sequence. Checked:
{checks}.
A family that is refused is refused in one line before anybody works; one that could not be built is
a gap of the sweep, not a verdict. How well a model learns is another question.

- **scores** is how likelihoods are computed: `tree` (a prompt once, its answers as branches),
  `windowed tree` (the same with sliding windows of any size), `tree within the window` (longer ones
  padded), `copied state` (a prompt once, its answers from copies of what the family's cache made
  of it), or `padded` (a row for each answer: right, and slower).
- **answers**: `decode` is macpo's own decoder, `generate` is transformers' (right, and slower).
- **adapters on** is what `tuning.targets: auto` takes.

## How many

{counts}

Before, about 135 families had been tried from outside (230 cases). What was found then, and what
the sweep finds of the same families now:

| found before | families | right now | of them fast |
|---|---:|---:|---:|
{before}

## All families

| family | scores | answers | adapters on | verdict |
|---|---|---|---|---|
{rows}
"""


def write_page(verdicts: Sequence[Verdict]) -> None:
    """Write the page."""
    page = HEAD.format(
        version=transformers.__version__,
        checks=", ".join(CHECKS),
        counts="\n".join(count_lines(verdicts)),
        before="\n".join(_before_rows(verdicts)),
        rows="\n".join(map(_row, verdicts)),
    )
    PAGE.write_text(page, encoding="utf-8")


def count_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Count decoders by verdict; what is none is counted apart."""
    encoders = [v for v in verdicts if v.encoder and not v.built]
    decoders = [v for v in verdicts if not (v.encoder or v.alone or v.built)]
    kinds = Counter(v.kind for v in decoders)
    fast = sum(v.right and v.fast for v in decoders)
    share = f"{kinds['right'] / max(len(decoders), 1):.0%}"
    return [
        f"- Of {len(verdicts)} families in the mapping {len(decoders)} are decoders that could be "
        "built:",
        f"  **{kinds['right']} are right ({share}), {fast} of them fast** (both `tree` and "
        f"`decode`); {kinds['refused']} are refused,",
        f"  {kinds['wrong']} have a fault.",
        f"- {len(encoders)} are encoders, no decoder by default; right when made decoders by "
        f"`is_decoder`: {sum(v.right for v in encoders)}.",
        f"- {sum(bool(v.alone) for v in verdicts)} are no language models by themselves; "
        f"{sum(bool(v.built) for v in verdicts)} could not be built.",
    ]


def _before_rows(verdicts: Sequence[Verdict]) -> list[str]:
    """Set beside what was found of families before how many of them are right now."""
    found = {verdict.family: verdict for verdict in verdicts}
    rows = []
    for finding, names in BEFORE.items():
        now = [found[name] for name in names]
        right = [v for v in now if v.right]
        fast = sum(v.fast for v in right)
        rows.append(f"| {finding} | {len(now)} | {len(right)} | {fast} |")
    return rows


def _row(verdict: Verdict) -> str:
    cells = (verdict.scores, verdict.answers, verdict.targets, verdict.says)
    return " | ".join(["| " + verdict.family, *(c.replace("|", "\\|") for c in cells)]) + " |"
