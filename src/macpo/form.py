"""The form of an answer, whatever it says: does it repeat itself, does it copy its prompt?

What is counted are n-grams of words or of tokens, and sentences. All are shares, 0 to 1.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def repetition(items: Sequence[Hashable], n: int = 4) -> float:
    """Return the share of an answer's n-grams that stood earlier in the same answer.

    seq-rep-n (Welleck et al. 2020, arXiv 1908.04319, section 6.1): 0 if no n-gram comes twice, near
    1 for a sentence repeated without end. An answer of fewer than n words or tokens has none: 0.
    """
    return _earlier(_ngrams(items, n))


def copying(items: Sequence[Hashable], prompt: Sequence[Hashable], n: int = 4) -> float:
    """Return the share of an answer's n-grams that stand in its prompt.

    The prompt is what the model saw: earlier turns, and a system prompt that the chat template
    adds. An answer of fewer than n words or tokens has none: 0.
    """
    ngrams, seen = _ngrams(items, n), set(_ngrams(prompt, n))
    return sum(ngram in seen for ngram in ngrams) / len(ngrams) if ngrams else 0.0


def repeated_sentences(text: str) -> float:
    """Return the share of an answer's sentences that stood earlier in it, case and blanks apart.

    A sentence ends at a full stop, a question or exclamation mark before a blank, or with its line.
    """
    parts = (" ".join(part.casefold().split()) for part in _SENTENCE_END.split(text))
    return _earlier([part for part in parts if part])


def _ngrams(items: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    return list(zip(*(items[i:] for i in range(n)), strict=False))


def _earlier(parts: Sequence[Hashable]) -> float:
    return 1.0 - len(set(parts)) / len(parts) if parts else 0.0
