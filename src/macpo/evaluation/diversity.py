"""How different a policy's answers are from one another.

What falls here first is what a collapse takes along: see docs/collapse.md. All of these depend on
how many answers there are, and how long; compare numbers of equal prompts only.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import pairwise


def measure_diversity(texts: Sequence[str]) -> dict[str, float]:
    """Return the diversity metrics of some answers that need nothing but their words.

    A metric that is not defined, since no answer has a word, is left out.
    """
    words = [text.split() for text in texts]
    metrics = {}
    for name, ngrams in (
        ("distinct_1", [w for answer in words for w in answer]),
        ("distinct_2", [pair for answer in words for pair in pairwise(answer)]),
    ):
        if ngrams:
            metrics[name] = len(set(ngrams)) / len(ngrams)
    if any(words):
        metrics["compression_ratio"] = compression_ratio(texts)
    return metrics


def compression_ratio(texts: Sequence[str]) -> float:
    """Return how many times smaller the answers get by deflate: more is less diverse.

    Shaib et al. 2024 (arXiv 2403.00553), where it goes along best with slower measures. Deflate
    looks back 32 KiB, so that far more answers than that holds do not get a higher number.
    """
    plain = "\n".join(texts).encode()
    return len(plain) / len(zlib.compress(plain, level=9))


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean BLEU, 0 to 1, of each answer against all others: more is less diverse.

    Zhu et al. 2018 (Texygen, arXiv 1802.01886), with sacrebleu's sentence BLEU and its tokens.
    Empty answers are left out; fewer than two others give 0.
    """
    from sacrebleu.metrics import BLEU

    said = [text for text in texts if text.strip()]
    if len(said) < 2:
        return 0.0
    bleu = BLEU(effective_order=True)
    scores = [
        bleu.sentence_score(text, [*said[:i], *said[i + 1 :]]).score for i, text in enumerate(said)
    ]
    return float(sum(scores)) / len(scores) / 100
