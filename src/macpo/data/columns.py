"""Rows with a column each for prompt, better and worse answer, whatever the columns are called.

Any of the columns holds a text, a list of messages, or either written as text; the answers may be
whole conversations. All of it means one thing: a conversation that ends in two ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from macpo.data.listed import parse_list
from macpo.data.transcripts import is_transcript, read_hh, read_messages, read_text
from macpo.data.turns import (
    BadRow,
    add_system,
    build_example,
    clean_text,
    get_field,
    is_absent,
    join_conversation,
    json_type,
    refuse_fields,
)
from macpo.records import Message, PreferenceExample, Role

MEANINGFUL = (
    *("tools", "functions", "images", "image", "videos", "audio", "audios"),
    *("history", "context", "initial_reason_steps"),
    *("reasoning_content", "chosen_reasoning", "rejected_reasoning"),
    *("chosen_reasoning_content", "rejected_reasoning_content"),
)
"""Columns without which a row would mean another thing, where a format does not read them.

Thoughts that come before an answer are among them. A column `reasoning` is not: beside two answers
it is mostly the judge's.
"""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what; of several names for one thing, the first that a row has counts.

    `more` continues the prompt on a new line (Alpaca's `input`), `history` holds earlier turns as
    pairs of texts.
    """

    chosen: str
    rejected: str
    prompt: tuple[str, ...] = ()
    system: tuple[str, ...] = ("system", "system_prompt")
    more: tuple[str, ...] = ()
    history: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are read."""
        return (*self.prompt, self.chosen, self.rejected, *self.system, *self.more, *self.history)


def parse_columns(row: Mapping[str, Any], columns: Columns) -> PreferenceExample:
    """Read a row by its columns.

    A prompt given as text is the user's one turn. Answers may be whole conversations, which may
    leave the prompt out or repeat it.

    Raises:
        BadRow: the row is unfit.
    """
    before = read_before(row, columns)
    given = any(not _is_blank(row.get(name)) for name in columns.prompt)

    def conversation(side: str) -> list[Message]:
        value = get_field(row, side)
        if isinstance(value, str) and not given:
            turns = read_text(value, "assistant", side)
            if all(turn.role == "assistant" for turn in turns):
                get_field(row, columns.prompt[0] if columns.prompt else "prompt")
        return join_conversation(before, read_turns(value, "assistant", side), side)

    system = read_system(row, columns.system)
    return build_example(
        *(add_system(system, conversation(side)) for side in (columns.chosen, columns.rejected))
    )


def read_before(row: Mapping[str, Any], columns: Columns) -> list[Message]:
    """Read what stands before the answers: earlier turns, and the prompt.

    Raises:
        BadRow: it cannot be read.
    """
    name = next((name for name in columns.prompt if not _is_blank(row.get(name))), None)
    turns = [] if name is None else read_turns(row[name], "user", name)
    for more in columns.more:
        text = clean_text(row.get(more) or "", more)
        if text and turns and more != name:
            turns[-1] = Message(turns[-1].role, f"{turns[-1].content}\n{text}".strip())
    for earlier in columns.history:
        turns = [*_read_history(row.get(earlier), earlier), *turns]
    return turns


def read_system(row: Mapping[str, Any], names: Sequence[str]) -> list[Message]:
    """Read the column that holds the system turn, if the row has one."""
    texts = ((name, row[name]) for name in names if not is_absent(row.get(name)))
    return [Message("system", clean_text(text, name)) for name, text in texts][:1]


def read_turns(value: object, role: Role, name: str) -> list[Message]:
    """Read the turns of one column: messages, or a text, which is a turn of `role`.

    Raises:
        BadRow: it holds neither.
    """
    if isinstance(value, list):
        return read_messages(value, name)
    if isinstance(value, Mapping):
        refuse_fields(value, ("tools",), name)
        nested = value.get("messages")
        return read_messages([value] if nested is None else nested, name)
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{name} is {json_type(value)}, not text")
    return read_text(value, role, name)


def parse_hh(row: Mapping[str, Any]) -> PreferenceExample:
    """Read a row of HH-RLHF: two whole conversations as text.

    A few rows diverge before the last turn, end in an empty answer, or repeat a speaker; some
    assistant texts hold "Human:" in the middle of a line, which is no marker (a blank line must
    precede one). Derived data sets cut the common part off into `prompt`, or repeat it there.

    Raises:
        BadRow: the row is unfit.
    """
    prompt = "" if row.get("prompt") is None else row["prompt"]

    def turns(side: str) -> list[Message]:
        answer = get_field(row, side)
        for name, value in (("prompt", prompt), (side, answer)):
            clean_text(value, name)  # for its checks; the blank line at the seam must stay
        return read_hh(prompt, answer, side)

    system = read_system(row, ("system", "system_prompt"))
    return build_example(*(add_system(system, turns(side)) for side in ("chosen", "rejected")))


def parse_named(row: Mapping[str, Any], columns: Columns) -> PreferenceExample:
    """Read a row by columns that the user named: as HH-RLHF if its texts are that, or as TRL's.

    Raises:
        BadRow: the row is unfit.
    """
    texts = [row.get(name) for name in (*columns.prompt, columns.chosen)]
    if all(isinstance(text, str) for text in texts) and is_transcript(*map(str, texts)):
        names = {"chosen": columns.chosen, "rejected": columns.rejected}
        names |= dict(zip(("prompt",), columns.prompt, strict=False))
        names |= dict(zip(("system",), columns.system, strict=False))
        return parse_hh({field: row.get(name) for field, name in names.items()})
    return parse_columns(row, columns)


def _is_blank(value: object) -> bool:
    """Say whether a column holds nothing at all; an empty list is a prompt, if a bad one."""
    return value is None or (isinstance(value, str) and not value.strip())


def _read_history(value: object, name: str) -> list[Message]:
    """Read earlier turns as Alpaca's data sets hold them: pairs of question and answer."""
    if is_absent(value):
        return []
    if isinstance(value, str):
        value = parse_list(value)
    if not isinstance(value, list) or not all(isinstance(p, list) and len(p) == 2 for p in value):
        raise BadRow("wrong type", f"{name} is no list of pairs of question and answer")
    roles: tuple[Role, Role] = ("user", "assistant")
    return [
        Message(role, clean_text(text, name))
        for pair in value
        for role, text in zip(roles, pair, strict=True)
    ]
