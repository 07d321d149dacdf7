"""One pure function per format: a parsed JSON row in, a `PreferenceExample` out, or `BadRow`.

    hh      {"chosen": "\\n\\nHuman: … \\n\\nAssistant: …", "rejected": …}   HH-RLHF
    pku     {"prompt", "response_0", "response_1", "better_response_id", "safer_response_id"}
    macpo   {"instruction": "USER: …", "input": "", "output": [chosen, rejected]}
    trl     {"prompt", "chosen", "rejected"}, texts or lists of messages

Fields beyond these are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

from macpo.data.official import parse_macpo
from macpo.data.turns import (
    BadRow,
    build_example,
    clean_text,
    get_field,
    get_text,
    json_type,
    read_message,
    split_turns,
)
from macpo.records import Message, PreferenceExample, Role

FormatName = Literal["hh", "pku", "macpo", "trl"]
Criterion = Literal["helpful", "harmless"]
Parser = Callable[[Mapping[str, Any]], PreferenceExample]

# Where a row fits two formats the earlier wins: HH-RLHF rows with a prompt column also read as TRL
# texts, but then their turns would be lost inside one user message.
FORMATS: tuple[FormatName, ...] = ("pku", "macpo", "hh", "trl")

HH_MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
HH_ROLES: Mapping[str, Role] = {"Human": "user", "Assistant": "assistant"}


def get_parser(format: FormatName, criterion: Criterion = "helpful") -> Parser:
    """Return the parser of a format; `criterion` decides which label of PKU-SafeRLHF counts."""
    parsers: dict[FormatName, Parser] = {
        "hh": parse_hh,
        "pku": partial(parse_pku, criterion=criterion),
        "macpo": parse_macpo,
        "trl": parse_trl,
    }
    return parsers[format]


def detect_format(rows: Iterable[object]) -> FormatName | None:
    """Return the format in which most of `rows` can be read; None if none reads any."""
    samples = list(rows)
    best: FormatName | None = None
    most = 0
    for name in FORMATS:
        parse = get_parser(name)
        good = sum(_is_good(parse, row) for row in samples)
        if good > most:
            best, most = name, good
    return best


def parse_hh(row: Mapping[str, Any]) -> PreferenceExample:
    """Read a row of HH-RLHF: two whole conversations as text.

    A few rows diverge before the last turn, end in an empty answer, or repeat a speaker; some
    assistant texts hold "Human:" in the middle of a line, which is no marker (a blank line must
    precede one). Derived data sets cut the common part off into `prompt`: it is put back.

    Raises:
        BadRow: the row is unfit.
    """
    prompt = "" if row.get("prompt") is None else row["prompt"]

    def turns(side: str) -> list[Message]:
        answer = get_field(row, side)
        for name, value in (("prompt", prompt), (side, answer)):
            clean_text(value, name)  # for its checks; the blank line at the seam must stay
        return split_turns(prompt + answer, HH_MARKER, HH_ROLES)

    return build_example(turns("chosen"), turns("rejected"))


def parse_pku(row: Mapping[str, Any], criterion: Criterion = "helpful") -> PreferenceExample:
    """Read a row of PKU-SafeRLHF: two responses, with one label for help and one for safety.

    Raises:
        BadRow: the row is unfit.
    """
    label = "better_response_id" if criterion == "helpful" else "safer_response_id"
    user = Message("user", get_text(row, "prompt"))
    responses = [Message("assistant", get_text(row, f"response_{i}")) for i in (0, 1)]
    winner = get_field(row, label)
    if isinstance(winner, bool) or not isinstance(winner, int):
        raise BadRow("wrong type", f"{label} is {json_type(winner)}, not 0 or 1")
    if winner not in (0, 1):
        raise BadRow("no such response", f"{label} is {winner}")
    return build_example([user, responses[winner]], [user, responses[1 - winner]])


def parse_trl(row: Mapping[str, Any]) -> PreferenceExample:
    """Read a preference row of TRL, conversational or plain.

    Conversational rows may leave `prompt` out, or repeat it: then `chosen` and `rejected` are whole
    conversations. A prompt given as text is the user's one turn.

    Raises:
        BadRow: the row is unfit.
    """
    prompt = row.get("prompt")
    before: list[Message] = []
    if isinstance(prompt, list):
        before = [read_message(item, "prompt") for item in prompt]
    elif prompt is not None:
        before = [Message("user", clean_text(prompt, "prompt"))]

    def conversation(side: str) -> list[Message]:
        answer = get_field(row, side)
        if not isinstance(answer, list):
            get_field(row, "prompt")
            return [*before, Message("assistant", clean_text(answer, side))]
        messages = [read_message(item, side) for item in answer]
        repeated = messages[: len(before)] == before
        return messages if repeated else [*before, *messages]

    return build_example(conversation("chosen"), conversation("rejected"))


def _is_good(parse: Parser, row: object) -> bool:
    """Say whether `parse` can read `row`."""
    if not isinstance(row, Mapping):
        return False
    try:
        parse(row)
    except BadRow:
        return False
    return True
