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

from macpo.records import Message, PreferenceExample, Prompt, Role

Reason = Literal[
    "not JSON",
    "wrong number of cells",
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
    "not supported",
    "rendered text",
    "message list as text",
    "list as text",
    "system differs",
    "no preference",
    "no final number",
    "too large",
]

ROLE_NAMES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name for it
    "user": "user",
    "human": "user",  # ShareGPT
    "assistant": "assistant",
    "gpt": "assistant",  # ShareGPT
    "model": "assistant",  # Gemma, Gemini
    "bot": "assistant",
}
"""What data sets call the three speakers, in small letters."""

MESSAGE_FIELDS = ("role", "content", "from", "value")

NOT_TEXT = (
    *("tool_calls", "function_call", "tool_call_id", "reasoning_content", "reasoning", "thinking"),
    *("images", "image", "videos", "audio", "audios", "prefix"),
)
"""Fields of a message that say what its text does not: without them it would mean another thing."""


END_MARKS = re.compile(
    r"(?:\s*(?:<\|(?:im_end|eot_id|eot|end_of_text|endoftext|end)\|>|<end_of_turn>"
    r"|<｜end▁of▁sentence｜>|</s>))+\s*\Z"
)
"""Ends of a turn as templates write them, at the end of a text."""


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


def clean_answer(value: object, name: str) -> str:
    """Check an answer as `clean_text` does, and strip it of all but the indentation of its start.

    Code may differ in that alone. Blank lines before it go, and so does a single space, which
    separates an answer from "Assistant:" in many data sets. An end of turn that a template wrote
    behind the answer goes too, or it would be learnt as text.

    Raises:
        BadRow: as `clean_text`.
    """
    clean_text(value, name)
    text = cast(str, value)
    text = (text if "<s>" in text else END_MARKS.sub("", text)).rstrip()  # <s>…</s> is HTML, too
    text = re.sub(r"\A(?:[^\S\n]*\n)+", "", text)
    indented = text.startswith("\t") or len(text) - len(text.lstrip()) > 1
    return text if indented else text.lstrip()


def is_absent(value: object) -> bool:
    """Say whether a field says nothing: tables fill cells that a row lacks with such values."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null", "None")
    return value is None or value is False or (isinstance(value, (list, Mapping)) and not value)


def refuse_fields(row: Mapping[str, Any], fields: Sequence[str], where: str = "") -> None:
    """Refuse fields that would change what the row means, were they left unread.

    Raises:
        BadRow: the row has one that says something.
    """
    for field in fields:
        if field in row and not is_absent(row[field]):
            raise BadRow("not supported", f"{field} in {where}" if where else field)


def read_message(value: object, name: str) -> Message:
    """Read one {"role", "content"} object, the form that chat templates take, or {"from", "value"}.

    Content in parts is read if every part is text.

    Raises:
        BadRow: it is no such object, the role is not one of `ROLE_NAMES`, or it holds what is not
            text, such as tool calls.
    """
    if not isinstance(value, Mapping):
        raise BadRow("wrong type", f"{name} holds {json_type(value)}, not messages")
    refuse_fields(value, NOT_TEXT, name)
    sharegpt = "from" in value and is_absent(value.get("role"))
    spelled = get_field(value, "from" if sharegpt else "role")
    role = ROLE_NAMES.get(str(spelled).strip().lower())
    if role is None:
        raise BadRow("unknown role", f"{name}: {str(spelled)[:20]!r}")
    field = "value" if sharegpt else "content"
    content = _join_parts(get_field(value, field), field)
    return Message(role, (clean_answer if role == "assistant" else clean_text)(content, field))


def _join_parts(content: object, name: str) -> object:
    """Return the text of content that is given as a list of text parts; other content as it is."""
    if not isinstance(content, list) or not content:
        return content
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if kind is None:
            raise BadRow("wrong type", f"{name} holds a list of {json_type(part)}, not text")
        if kind != "text":
            raise BadRow("wrong type", f"{name} holds a part of type {str(kind)[:20]}, not text")
        texts.append(clean_text(part.get("text"), name))
    return "\n\n".join(texts)


def split_turns(
    text: str, marker: re.Pattern[str], roles: Mapping[str, Role], head_role: Role | None = None
) -> list[Message]:
    """Split text in which a marker such as "Human:" opens each turn.

    Args:
        text: the whole conversation.
        marker: matches a marker, its one group the speaker.
        roles: the role of each speaker.
        head_role: whose turn it is that stands before the first marker; by default there is none.

    Raises:
        BadRow: there is no marker, or text before the first that is nobody's.
    """
    head, *rest = marker.split(text)
    if (head.strip() and head_role is None) or not rest:
        raise BadRow("no turn markers", f"begins with {text.strip()[:20]!r}")
    opening = [Message(head_role, head.strip())] if head_role and head.strip() else []
    return [
        *opening,
        *(
            Message(roles[speaker], content.strip())
            for speaker, content in zip(rest[::2], rest[1::2], strict=True)
        ),
    ]


def join_conversation(
    before: Sequence[Message], answer: Sequence[Message], side: str
) -> list[Message]:
    """Put a prompt before an answer, be the answer its last turn alone or the whole conversation.

    An answer that opens with a user's turn is the whole conversation. The prompt then has to be in
    it: its beginning, or its last turns. A system turn may stand in either.

    Raises:
        BadRow: "prompts differ" or "system differs": the prompt says other things.
    """
    prompt_system, prompt = _split_system(before)
    system, turns = _split_system(answer)
    if not turns or turns[0].role != "user" or not prompt:
        return add_system(prompt_system, [*system, *prompt, *turns])
    known, given = ([(m.role, m.content.split()) for m in part] for part in (turns, prompt))
    asked = known[:-1] if turns[-1].role == "assistant" else known
    if given not in (known[: len(given)], asked[-len(given) :]):
        if prompt[-1].role == "user":
            raise BadRow("prompts differ", f"{side} is a conversation without the prompt in it")
        turns = [*prompt, *turns]  # a prompt that ends with an answer: earlier turns, cut off
    return add_system(prompt_system, [*system, *turns])


def add_system(system: Sequence[Message], conversation: Sequence[Message]) -> list[Message]:
    """Put a system turn, if there is one, before a conversation.

    Raises:
        BadRow: the conversation has another one.
    """
    spoken = [m for m in system if m.content]
    own, turns = _split_system(conversation)
    if spoken and own and own[0].content and spoken != own:
        raise BadRow("system differs", f"{own[0].content[:20]!r}, {spoken[0].content[:20]!r}")
    return [*(spoken or own), *turns]


def _split_system(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """Split the system turn off the front, if there is one."""
    at = 1 if messages and messages[0].role == "system" else 0
    return list(messages[:at]), list(messages[at:])


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
