"""Turns of a conversation, and what makes a row unfit: the rules that all formats share.

A prompt that leaves this package has the shape that every chat template accepts: at most one system
turn, at the front, then user and assistant turns in alternation, the user's first and last. Parsers
check all of it but the alternation, which `join_turns` restores afterwards, so that the loader can
count how often it had to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Literal, cast

from macpo.records import ROLES, Message, PreferenceExample, Prompt, Role

Reason = Literal[
    "not JSON",
    "not an object",
    "missing field",
    "wrong type",
    "unpaired surrogate",
    "not a pair",
    "no such response",
    "no turn markers",
    "unknown role",
    "empty answer",
    "identical answers",
    "prompts differ",
    "empty turn",
    "system turn not first",
    "no user turn first",
    "no user turn last",
    "no assistant turn last",
    "turn marker in text",
]


class BadRow(Exception):
    """A row that cannot be used; it never leaves this package but as a count in a report.

    `reason` is one of a fixed set, by which reports group; `detail` says what is particular to
    this row, such as the field's name.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason: Reason = reason
        self.detail = detail


def get_field(row: Mapping[str, Any], name: str) -> Any:
    """Return a field that must be there; null counts as missing (Arrow tables fill with null).

    Raises:
        BadRow: it is missing.
    """
    value = row.get(name)
    if value is None:
        raise BadRow("missing field", name)
    return value


def get_text(row: Mapping[str, Any], name: str) -> str:
    """Return a text field as `clean_text` leaves it.

    Raises:
        BadRow: it is missing or no text.
    """
    return clean_text(get_field(row, name), name)


def clean_text(value: object, name: str) -> str:
    """Check that `value` is text that UTF-8 can encode, and strip the whitespace round it.

    Control characters stay: they are odd but legal, and tokenizers take them.

    Raises:
        BadRow: "wrong type", or "unpaired surrogate" (half of a character, as a JSON escape such
            as a lone "\\ud83d" leaves it; writing it to any file would fail much later).
    """
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{name} is {json_type(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow("unpaired surrogate", f"{name}, character {error.start + 1}") from None
    return value.strip()


def read_message(value: object, name: str) -> Message:
    """Read one {"role", "content"} object, the form that chat templates take.

    Raises:
        BadRow: it is no such object, or the role is not system, user or assistant.
    """
    if not isinstance(value, Mapping):
        raise BadRow("wrong type", f"{name} holds {json_type(value)}, not messages")
    role = get_field(value, "role")
    if role not in ROLES:
        raise BadRow("unknown role", f"{name}: {str(role)[:20]!r}")
    return Message(cast(Role, role), get_text(value, "content"))


def split_turns(text: str, marker: re.Pattern[str], roles: Mapping[str, Role]) -> list[Message]:
    """Split text in which a marker such as "Human:" opens each turn.

    Args:
        text: the whole conversation.
        marker: matches a marker, its one group the speaker.
        roles: the role of each speaker.

    Raises:
        BadRow: the text does not begin with a marker.
    """
    head, *rest = marker.split(text)
    if head.strip() or not rest:
        raise BadRow("no turn markers", f"begins with {text.strip()[:20]!r}")
    return [
        Message(roles[speaker], content.strip())
        for speaker, content in zip(rest[::2], rest[1::2], strict=True)
    ]


def build_example(chosen: Sequence[Message], rejected: Sequence[Message]) -> PreferenceExample:
    """Make an example of two conversations that differ in the last turn, the assistant's.

    The seam is the last turn, never the longest common prefix: answers may begin alike, and one
    may be the beginning of the other. A system turn without text counts as absent.

    Raises:
        BadRow: an answer is missing or empty, the answers are equal, the conversations differ
            earlier, or what precedes the answers is no prompt.
    """
    chosen_prompt, chosen_answer = _split_answer(chosen, "chosen")
    rejected_prompt, rejected_answer = _split_answer(rejected, "rejected")
    if chosen_prompt != rejected_prompt:
        shorter = min(len(chosen_prompt), len(rejected_prompt))
        same = (chosen_prompt[i] == rejected_prompt[i] for i in range(shorter))
        where = next((i for i, equal in enumerate(same) if not equal), shorter)
        raise BadRow("prompts differ", f"from turn {where + 1}")
    _check_prompt(chosen_prompt)
    if chosen_answer == rejected_answer:
        raise BadRow("identical answers")
    return PreferenceExample(Prompt(chosen_prompt), chosen_answer, rejected_answer)


def join_turns(prompt: Prompt) -> Prompt:
    """Join neighbouring turns of one role into one turn, a blank line between them.

    HH-RLHF has a few (0.2 % of the rows); many chat templates refuse them.
    """
    if all(a.role != b.role for a, b in zip(prompt.messages, prompt.messages[1:], strict=False)):
        return prompt
    groups = groupby(prompt.messages, key=lambda message: message.role)
    return Prompt(tuple(Message(role, "\n\n".join(m.content for m in g)) for role, g in groups))


def prompt_key(prompt: Prompt) -> str:
    """Return an id that prompts share when they differ in whitespace alone.

    Splits keep such prompts together: else a test prompt would be known from training but for a
    doubled space.
    """
    return Prompt(tuple(Message(m.role, " ".join(m.content.split())) for m in prompt.messages)).id


def json_type(value: object) -> str:
    """Name the type of a parsed JSON value as JSON names it."""
    names: tuple[tuple[type, str], ...] = (
        (str, "text"),
        (bool, "a boolean"),
        (int, "a number"),
        (float, "a number"),
        (Mapping, "an object"),
        (list, "a list"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "null")


def _split_answer(conversation: Sequence[Message], side: str) -> tuple[tuple[Message, ...], str]:
    """Split a conversation into what precedes the assistant's last turn, and that turn's text."""
    turns = tuple(m for m in conversation if m.content or m.role != "system")
    if not turns or turns[-1].role != "assistant":
        raise BadRow("no assistant turn last", side)
    if not turns[-1].content:
        raise BadRow("empty answer", side)
    return turns[:-1], turns[-1].content


def _check_prompt(messages: tuple[Message, ...]) -> None:
    """Refuse what a chat template could not render, or not without surprises."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if any(m.role == "system" for m in turns):
        raise BadRow("system turn not first")
    if not turns or turns[-1].role != "user":
        raise BadRow("no user turn last")
    if turns[0].role != "user":
        raise BadRow("no user turn first")
    empty = next((m for m in turns if not m.content), None)
    if empty is not None:
        raise BadRow("empty turn", empty.role)
