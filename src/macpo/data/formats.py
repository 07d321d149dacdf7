"""One pure function per format: a parsed JSON row in, a `PreferenceExample` out, or `BadRow`.

    hh         {"chosen": "\\n\\nHuman: … \\n\\nAssistant: …", "rejected": …}   HH-RLHF
    macpo      {"instruction": "USER: …", "input": "", "output": [chosen, rejected]}
    trl        {"prompt", "chosen", "rejected"}, texts or lists of messages
    orca, alpaca, sharegpt, argilla, stack, openai      the same under other names, see `SHAPES`
    pku, helpsteer, shp, arena, swift                   see `macpo.data.labelled`
    gsm8k, bbq                                          see `macpo.data.verifiable`

Fields that a format does not read are counted by the loader; those of `MEANINGFUL` are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from macpo.data.columns import MEANINGFUL, Columns, parse_columns, parse_hh, parse_named
from macpo.data.labelled import (
    parse_arena,
    parse_helpsteer,
    parse_pku,
    parse_shp,
    parse_swift,
)
from macpo.data.official import parse_macpo
from macpo.data.turns import BadRow, is_absent, refuse_fields
from macpo.data.verifiable import holds_solutions, parse_bbq, parse_gsm8k
from macpo.records import PreferenceExample
from macpo.words import Criterion, FormatName

NamedFormat = FormatName | Literal["columns"]
Parser = Callable[[Mapping[str, Any]], PreferenceExample]


@dataclass(frozen=True, slots=True)
class Shape:
    """A format: what people call it, its parser, and the fields that the parser reads.

    `refused` are fields that must say nothing where they are not read. `reads_value` tells fields
    that are read for what they hold, whatever they are called.
    """

    title: str
    parse: Parser
    reads: tuple[str, ...]
    refused: tuple[str, ...] = MEANINGFUL
    reads_value: Callable[[object], bool] = lambda value: False

    def read(self, row: Mapping[str, Any]) -> PreferenceExample:
        """Read a row.

        Raises:
            BadRow: the row is unfit, or says something in a field that is not read and matters.
        """
        example = self.parse(row)
        refuse_fields(row, [field for field in self.refused if field not in self.reads])
        return example


SYSTEM = ("system", "system_prompt")


def _shape(title: str, columns: Columns) -> Shape:
    return Shape(title, partial(parse_columns, columns=columns), columns.names)


SHAPES: Mapping[FormatName, Shape] = {
    "pku": Shape(
        "PKU-SafeRLHF",
        parse_pku,
        (
            *("prompt", "response_0", "response_1", "better_response_id", "safer_response_id"),
            *SYSTEM,
        ),
    ),
    "helpsteer": Shape(
        "HelpSteer's preferences",
        parse_helpsteer,
        (
            *("prompt", "response_1", "response_2", "preference_strength"),
            *("context", "response1", "response2", "overall_preference"),
            *SYSTEM,
        ),
    ),
    "shp": Shape(
        "Stanford Human Preferences",
        parse_shp,
        ("history", "human_ref_A", "human_ref_B", "labels", *SYSTEM),
    ),
    "arena": Shape(
        "Chatbot Arena's battles",
        parse_arena,
        ("conversation_a", "conversation_b", "winner", *SYSTEM),
    ),
    "openai": _shape(
        "OpenAI's preference rows",
        Columns("preferred_output", "non_preferred_output", prompt=("input",)),
    ),
    "swift": Shape(
        "ms-swift's preference rows",
        parse_swift,
        ("messages", "rejected_messages", "rejected_response", *SYSTEM),
    ),
    "macpo": Shape(
        "the MACPO authors' files, LLaMA-Factory's pairs",
        parse_macpo,
        ("instruction", "input", "output", "history", "system"),
    ),
    "hh": Shape("HH-RLHF", parse_hh, ("prompt", "chosen", "rejected", *SYSTEM)),
    "trl": _shape(
        "TRL's preference rows",
        Columns("chosen", "rejected", prompt=("prompt",), history=("history",)),
    ),
    "sharegpt": _shape(
        "ShareGPT conversations with two answers",
        Columns("chosen", "rejected", prompt=("conversations", "conversation")),
    ),
    "alpaca": _shape(
        "Alpaca with two answers",
        Columns(
            "chosen", "rejected", prompt=("instruction",), more=("input",), history=("history",)
        ),
    ),
    "argilla": _shape(
        "Argilla's and distilabel's pairs",
        Columns(
            "chosen_response",
            "rejected_response",
            prompt=("instruction", "prompt", "input"),
            more=("input",),
        ),
    ),
    "stack": _shape(
        "paired answers of Stack Exchange",
        Columns("response_j", "response_k", prompt=("question",)),
    ),
    "orca": _shape(
        "Orca's pairs", Columns("chosen", "rejected", prompt=("question", "input", "query"))
    ),
    "gsm8k": Shape(
        "GSM8K's right and wrong solutions",
        parse_gsm8k,
        ("question", "answer", "ground_truth", "rejected"),
        reads_value=holds_solutions,
    ),
    "bbq": Shape(
        "questions of BBQ",
        parse_bbq,
        (
            *("context", "question", "ans0", "ans1", "ans2", "label", "target_loc"),
            *("context_condition", "question_polarity", "answer_info", "additional_metadata"),
        ),
    ),
}
"""All formats that can be detected; where a row fits two, the earlier wins.

HH-RLHF rows with a prompt column also read as TRL's texts, but then their turns would be lost
inside one user message.
"""

FORMATS: tuple[FormatName, ...] = tuple(SHAPES)

WITHOUT_PAIRS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "rows of KTO",
        ("completion", "label"),
        "one answer and its label; join a good and a bad one of a prompt into chosen and rejected",
    ),
    (
        "questions with one answer",
        ("question", "answer"),
        "a pair needs a worse one too; name both in data.columns, or, for GSM8K, add it in a "
        "column rejected, or take the model solutions of its release",
    ),
    ("ranked answers", ("answers",), "a list of answers; write two of them as chosen, rejected"),
    (
        "rated completions",
        ("completions",),
        "a list of answers; write two of them as chosen, rejected",
    ),
    (
        "rows for SFT",
        ("completion",),
        "one answer; a pair needs a worse one too, in a column rejected",
    ),
    (
        "rows for SFT",
        ("messages",),
        "one conversation; a pair needs a worse answer too, in a column rejected_response",
    ),
)
"""Well-known rows that hold no pairs: what they are, by which fields, and what they lack."""


def get_parser(format: FormatName, criterion: Criterion = "helpful") -> Parser:
    """Return the parser of a format; `criterion` decides which label of PKU-SafeRLHF counts."""
    return get_shape(format, criterion).read


def get_shape(format: FormatName, criterion: Criterion = "helpful") -> Shape:
    """Return a format; `criterion` decides which label of PKU-SafeRLHF counts."""
    shape = SHAPES[format]
    if format != "pku":
        return shape
    return replace(shape, parse=partial(parse_pku, criterion=criterion))


def named_shape(columns: Columns) -> Shape:
    """Return the format `columns`: what the user names is read, and nothing else matters."""
    return Shape("columns as named", partial(parse_named, columns=columns), columns.names, ())


def parse_trl(row: Mapping[str, Any]) -> PreferenceExample:
    """Read a preference row of TRL, conversational or plain; see `parse_columns`.

    Raises:
        BadRow: the row is unfit.
    """
    return SHAPES["trl"].read(row)


def detect_format(rows: Iterable[object]) -> FormatName | None:
    """Return the format in which most of `rows` can be read; None if none reads any."""
    samples = list(rows)
    best: FormatName | None = None
    most = 0
    for name, shape in SHAPES.items():
        good = sum(_is_good(shape.read, row) for row in samples)
        if good > most:
            best, most = name, good
    return best


def why_undetected(row: Mapping[str, Any]) -> str:
    """Say why a row is in no known format, and what to do.

    The nearest format is the one of which the row has the most fields.
    """
    reasons: list[tuple[int, bool, FormatName, BadRow]] = []
    for name in reversed(FORMATS):
        shape = SHAPES[name]
        try:
            shape.read(row)
        except BadRow as why:
            present = sum(not is_absent(row.get(field)) for field in shape.reads)
            reasons.append((present, why.reason != "missing field", name, why))
    present, complete, name, bad = max(reasons, key=lambda entry: entry[:2])
    if complete:
        remedy = "mend or leave out such rows"
        if bad.detail in SHAPES[name].refused:
            remedy = f"to do without {bad.detail}, name the other columns in data.columns"
        return f"read as {name} it is unfit: {bad}; {remedy}"
    for what, fields, lack in WITHOUT_PAIRS:
        if all(row.get(field) is not None for field in fields) and is_absent(row.get("rejected")):
            return f"these are {what}: {lack}"
    lacks = f"the nearest, {name}, has: {bad}; " if present else ""
    return f"{lacks}set data.columns to say which columns hold prompt, chosen and rejected"


def _is_good(parse: Parser, row: object) -> bool:
    """Say whether `parse` can read `row`."""
    if not isinstance(row, Mapping):
        return False
    try:
        parse(row)
    except BadRow:
        return False
    return True
