"""The guard: what an answer must not be to be `chosen`, by its form alone.

A filter by likelihood likes what is easy to say, and in later rounds that is what a policy says
again and again, or what stands in its prompt (docs/collapse.md). Chosen answers that repeat
themselves teach the next round to do so more. So what was rare in the answers of before the first
round is refused later: limits come from these answers (`SetLimits`), and every later one is held
against them (`Guard`). Repetition filters with fixed thresholds: Gopher (arXiv 2112.11446, appendix
A).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from macpo.agents import Agent
from macpo.estimates import quantile
from macpo.form import copying, repeated_sentences, repetition
from macpo.records import Response, read_answers, read_jsonl, write_jsonl
from macpo.stage import Stage, StageContext

LIMITS_FILE = "limits.json"
GUARD_FILE = "guard.jsonl"
WORDS = 3
"""Words in an n-gram of the guard: a repeated phrase has that many, and chance few of them."""


@dataclass(frozen=True, slots=True)
class Form:
    """An answer's form, or the most of each that is let through; shares, 0 to 1.

    `unfinished` is 1 for an answer that was cut off, `repetition` the share of its word 3-grams
    that stood earlier in it, `sentences` that of its sentences, `copying` the share of its 3-grams
    that stand in its prompt.
    """

    unfinished: float
    repetition: float
    sentences: float
    copying: float

    def over(self, limits: Form) -> tuple[str, ...]:
        """Return what is above the limits, by name; nothing for an answer that may be chosen."""
        most = asdict(limits)
        return tuple(name for name, share in asdict(self).items() if share > most[name])


LEAST = Form(unfinished=0.0, repetition=0.05, sentences=0.0, copying=0.25)
"""Limits do not go below these: where hardly any answer of round 0 repeats or copies a phrase, a
quantile is 0, and a phrase taken up from the question would be refused."""


def form_of(response: Response, prompt: str) -> Form:
    """Measure an answer; `prompt` is the text that its model saw before it."""
    words = response.text.split()
    return Form(
        unfinished=float(not response.finished),
        repetition=repetition(words, WORDS),
        sentences=repeated_sentences(response.text),
        copying=copying(words, prompt.split(), WORDS),
    )


@dataclass(frozen=True, eq=False)
class SetLimits(Stage):
    """Sets the guard's limits: as given, else the `quantile` of each measure over some answers.

    `answers[i]` are `readers[i]`'s. By the same rule unfinished answers are refused, unless more
    than 1 - `quantile` of these were unfinished.
    """

    kind: ClassVar[str] = "guard-limits"

    readers: tuple[Agent, ...]
    answers: tuple[Stage, ...]
    quantile: float
    unfinished: bool | None = None
    repetition: float | None = None
    sentences: float | None = None
    copying: float | None = None

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write limits.json."""
        forms = [
            form
            for reader, stage in zip(self.readers, self.answers, strict=True)
            for _, form in _forms(reader, stage, context)
        ]
        limits = Form(**{name: self._limit(name, forms) for name in Form.__slots__})
        text = json.dumps(asdict(limits), indent=1, allow_nan=False)
        (context.output / LIMITS_FILE).write_text(text + "\n", encoding="utf-8")
        return asdict(limits)

    def _limit(self, name: str, forms: Sequence[Form]) -> float:
        """Return the most that is let through of one measure."""
        given = getattr(self, name)
        if given is not None:
            return float(given)
        seen = sorted(getattr(form, name) for form in forms)
        least: float = getattr(LEAST, name)
        return max(least, quantile(seen, self.quantile)) if seen else least


@dataclass(frozen=True, eq=False)
class Guard(Stage):
    """Holds answers against the limits; `answers[i]` are `readers[i]`'s.

    Answers that say nothing are left out: they are nobody's candidates.
    """

    kind: ClassVar[str] = "guard"

    limits: Stage
    readers: tuple[Agent, ...]
    answers: tuple[Stage, ...]

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write guard.jsonl: every answer's form, and what of it is refused."""
        limits = _read_limits(context.path(self.limits))
        rows = []
        for reader, stage in zip(self.readers, self.answers, strict=True):
            for response, form in _forms(reader, stage, context):
                rows.append(
                    {
                        "prompt_id": response.prompt_id,
                        "response": response.id,
                        "policy": response.origin.policy,
                        **asdict(form),
                        "refused": form.over(limits),
                    }
                )
        write_jsonl(context.output / GUARD_FILE, rows)
        return {
            "candidates": len(rows),
            "refused": sum(bool(row["refused"]) for row in rows),
            "reasons": count_reasons(row["refused"] for row in rows),
        }


def read_refusals(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return what the guard refuses, by response id, with the reasons; the rest may be chosen."""
    rows = read_jsonl(folder / GUARD_FILE)
    return {row["response"]: tuple(row["refused"]) for row in rows if row["refused"]}


def count_reasons(reasons: Iterable[Sequence[str]]) -> dict[str, int]:
    """Count how many answers were refused for each reason; one may be refused for several."""
    return dict(sorted(Counter(reason for some in reasons for reason in some).items()))


def _read_limits(folder: Path) -> Form:
    return Form(**json.loads((folder / LIMITS_FILE).read_text(encoding="utf-8")))


def _forms(reader: Agent, answers: Stage, context: StageContext) -> Iterator[tuple[Response, Form]]:
    """Yield a stage's answers with their form; those that say nothing have none."""
    chat, limit = context.policies.chat(reader), reader.limits.prompt_tokens
    for prompt, response in read_answers(context.path(answers)):
        if not response.is_empty:
            seen = chat.decode(chat.encode_prompt(prompt, limit).ids)
            yield response, form_of(response, seen)
