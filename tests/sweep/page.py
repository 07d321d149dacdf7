"""docs/models.md: what the sweep found, as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import transformers

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
  padded), or `padded` (a row for each answer: right, and slower).
- **answers**: `decode` is macpo's own decoder, `generate` is transformers' (right, and slower).
- **adapters on** is what `tuning.targets: auto` takes.

{counts}

| family | scores | answers | adapters on | verdict |
|---|---|---|---|---|
{rows}
"""


def write_page(verdicts: Sequence[Verdict]) -> None:
    """Write the page."""
    kinds = Counter(v.kind for v in verdicts)
    tried = len(verdicts) - kinds["not built"]
    right = [v for v in verdicts if v.right]
    fast = sum(v.scores in ("tree", "windowed tree") and v.answers == "decode" for v in right)
    counts = (
        f"Of {len(verdicts)} families {tried} could be built: {len(right)} are right ({fast} of "
        f"them on both\nfast paths), {kinds['wrong']} have a fault, {kinds['refused']} are refused."
    )
    page = HEAD.format(
        version=transformers.__version__,
        checks=", ".join(CHECKS),
        counts=counts,
        rows="\n".join(map(_row, verdicts)),
    )
    PAGE.write_text(page, encoding="utf-8")


def _row(verdict: Verdict) -> str:
    cells = (verdict.scores, verdict.answers, verdict.targets, verdict.says)
    return " | ".join(["| " + verdict.family, *(c.replace("|", "\\|") for c in cells)]) + " |"
