"""Constraints on an answer that a rule can check, after the idea of IFEval (arXiv 2311.07911).

Each kind has one wording. What a prompt asks for is read back out of its text, so any prompt with
such sentences in it can be checked, with no file beside the data:

    read_constraints("Describe a river. Use at most 20 words. Do not use any commas.")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Check = Callable[[str, int, str], bool]
"""Whether a text meets a constraint with this number and these words."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """One constraint: its kind, with the number and the words that the kind's wording holds."""

    kind: str
    number: int = 0
    words: str = ""

    @property
    def sentence(self) -> str:
        """What a prompt says."""
        return KINDS[self.kind].wording.format(number=self.number, words=self.words)

    def met(self, answer: str) -> bool:
        """Tell whether an answer meets it; one without a letter or digit meets nothing."""
        if not count_words(answer):
            return False
        return KINDS[self.kind].check(answer.strip(), self.number, self.words)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of constraint: its wording, with `{number}` or `{words}` in it, and its check."""

    wording: str
    check: Check

    @property
    def pattern(self) -> re.Pattern[str]:
        """What finds it in a prompt."""
        wording = re.escape(self.wording)
        for name, what in (("number", "[0-9]{1,4}"), ("words", '[^"\n]+')):
            wording = wording.replace(re.escape(f"{{{name}}}"), f"(?P<{name}>{what})")
        return re.compile(wording)


def count_words(text: str) -> int:
    """Count what whitespace separates and has a letter or a digit in it."""
    return sum(any(c.isalnum() for c in part) for part in text.split())


def has_word(text: str, word: str) -> bool:
    """Tell whether a word stands in a text by itself, in small or capital letters."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def _paragraphs(text: str) -> int:
    return len(re.split(r"\n[^\S\n]*\n\s*", text))


def _bullets(text: str) -> int:
    return sum(line.lstrip().startswith("- ") for line in text.splitlines())


def _begins(text: str, words: str) -> bool:
    """Tell whether the first words are these; marks before them, such as a bullet, do not count."""
    return re.match(rf"[\W_]*{re.escape(words)}(?!\w)", text, re.IGNORECASE) is not None


KINDS: Mapping[str, Kind] = {
    "least-words": Kind(
        "Use at least {number} words.", lambda text, number, _: count_words(text) >= number
    ),
    "most-words": Kind(
        "Use at most {number} words.", lambda text, number, _: count_words(text) <= number
    ),
    "paragraphs": Kind(
        "Write exactly {number} paragraphs, with a blank line between them.",
        lambda text, number, _: _paragraphs(text) == number,
    ),
    "bullets": Kind(
        'Write exactly {number} bullet points, each on a line that begins with "- ".',
        lambda text, number, _: _bullets(text) == number,
    ),
    "word": Kind('Use the word "{words}".', lambda text, _, words: has_word(text, words)),
    "no-word": Kind(
        'Do not use the word "{words}".', lambda text, _, words: not has_word(text, words)
    ),
    "no-commas": Kind("Do not use any commas.", lambda text, *_: "," not in text),
    "small-letters": Kind(
        "Use small letters only, no capitals.", lambda text, *_: text == text.lower()
    ),
    "begin": Kind('Begin with the words "{words}".', lambda text, _, words: _begins(text, words)),
    "end": Kind(
        'End with the words "{words}" and nothing after them.',
        lambda text, _, words: text.casefold().endswith(words.casefold()),
    ),
}


def read_constraints(prompt: str) -> tuple[Constraint, ...]:
    """Return the constraints that a prompt asks for, in the order in which they stand there."""
    found = []
    for name, kind in KINDS.items():
        for match in kind.pattern.finditer(prompt):
            parts = match.groupdict()
            constraint = Constraint(name, int(parts.get("number", 0)), parts.get("words", ""))
            found.append((match.start(), constraint))
    return tuple(constraint for _, constraint in sorted(found, key=lambda entry: entry[0]))
