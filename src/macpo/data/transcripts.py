"""Conversations that stand in one text: HH-RLHF's markers, templates' marks, message lists as text.

    "\\n\\nHuman: Name a prime.\\n\\nAssistant: 7"                            read_hh
    "<|im_start|>user\\nName a prime.<|im_end|>\\n<|im_start|>assistant\\n"   read_rendered
    '[{"role": "user", "content": "Name a prime."}]'                        read_listed

Each is read into turns, or refused: taken as the text of one turn, it would be put into a template
once more, and its marks learnt as words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from macpo.data.listed import is_numpy_texts, parse_list
from macpo.data.turns import (
    BadRow,
    clean_answer,
    clean_text,
    join_conversation,
    read_message,
    split_turns,
)
from macpo.records import Message, Role

HH_MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
HH_LINE_MARKER = re.compile(r"(?:\A\s*|\n)(Human|Assistant):")
HH_OPENING = re.compile(r"\A\s*Human:")
HH_CRLF_MARKER = re.compile(r"\r\n(?:Human|Assistant):")
HH_ROLES: Mapping[str, Role] = {"Human": "user", "Assistant": "assistant"}

LISTED = re.compile(r"\A\s*(?:array\()?\[?\s*\{\s*['\"](?:role|from|content|value)['\"]\s*:")
STARTS = re.compile(
    r"\A\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|<｜begin▁of▁sentence｜>)\s*"
)
LLAMA_SYSTEM = re.compile(r"\A\s*<<SYS>>\s*(.*?)\s*<</SYS>>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a family of templates marks turns.

    `opening` matches what opens a turn, its one group the speaker; `closing` what may stand at the
    turn's end; `head` is whose turn stands before the first mark, if there may be one; `sure` is in
    every text of the family.
    """

    opening: re.Pattern[str]
    closing: re.Pattern[str]
    roles: Mapping[str, Role]
    head: Role | None = None
    sure: str = ""

    def wrote(self, text: str) -> bool:
        """Say whether `text` holds a turn as this family writes it."""
        return self.sure in text and self.opening.search(text) is not None

    def strip(self, content: str) -> str:
        """Take the ends of a turn off its content."""
        return re.sub(rf"(?:\s*(?:{self.closing.pattern}))+\s*\Z", "", content)


NAMED_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
}
NAME = r"(system|developer|user|assistant|model)"


DIALECTS: tuple[Dialect, ...] = (
    Dialect(  # ChatML
        re.compile(rf"<\|im_start\|>\s*{NAME}\s*?(?:\n|\Z)"),
        re.compile(r"<\|im_end\|>|<\|endoftext\|>"),
        NAMED_ROLES,
    ),
    Dialect(  # Llama 3 and 4
        re.compile(
            rf"<\|(?:start_header_id|header_start)\|>\s*{NAME}\s*<\|(?:end_header_id|header_end)\|>"
        ),
        re.compile(r"<\|eot_id\|>|<\|eot\|>|<\|end_of_text\|>"),
        NAMED_ROLES,
    ),
    Dialect(  # Gemma
        re.compile(rf"<start_of_turn>{NAME}\s*?(?:\n|\Z)"),
        re.compile("<end_of_turn>|<eos>"),
        NAMED_ROLES,
    ),
    Dialect(  # Zephyr, Phi-3
        re.compile(rf"<\|{NAME}\|>"), re.compile(r"</s>|<\|end\|>|<\|endoftext\|>"), NAMED_ROLES
    ),
    Dialect(  # Llama 2, Mistral
        re.compile(r"(?:<s>\s*)?(\[/?INST\])"),
        re.compile("</s>"),
        {"[INST]": "user", "[/INST]": "assistant"},
        sure="[/INST]",
    ),
    Dialect(  # DeepSeek
        re.compile(r"<｜(User|Assistant)｜>"),
        re.compile("<｜end▁of▁sentence｜>"),
        {"User": "user", "Assistant": "assistant"},
        head="system",
    ),
    Dialect(  # HelpSteer2
        re.compile(r"\s*<extra_id_1>(User|Assistant)\s*?(?:\n|\Z)"),
        re.compile("(?!)"),
        {"User": "user", "Assistant": "assistant"},
        head="user",
    ),
)


OPEN_PROMPTS: tuple[tuple[re.Pattern[str], Mapping[str, Role]], ...] = (
    (re.compile(r"(?:\A|\s|</s>)(USER|ASSISTANT):"), {"USER": "user", "ASSISTANT": "assistant"}),
    (
        re.compile(r"(?:\A|\s)### ?(Human|User|Assistant):"),
        {"Human": "user", "User": "user", "Assistant": "assistant"},
    ),
    (
        re.compile(r"(?:\A|\n)### ?(Instruction|Input|Response):"),
        {"Instruction": "user", "Input": "user", "Response": "assistant"},
    ),
    (re.compile(r"(?:\A|\n)(User|Assistant):"), {"User": "user", "Assistant": "assistant"}),
)
"""Marks that are words, as Vicuna and Alpaca have them: a prompt has turns by them only if it ends
with one that waits for the assistant. What stands before the first is a system text."""


def read_text(text: str, role: Role, name: str) -> list[Message]:
    """Read a text that is a turn of `role`, or else a conversation as a template or JSON writes it.

    Raises:
        BadRow: "rendered text", "message list as text" or "list as text": it looks like one, and
            cannot be read.
    """
    clean_text(text, name)
    if is_numpy_texts(text):
        raise BadRow("list as text", f"{name} holds several texts as numpy prints them, not one")
    found = read_listed(text, name) or read_rendered(text, name)
    if found is None and role == "user":
        found = _read_open_prompt(text)
    if found is None:
        clean = clean_answer if role == "assistant" else clean_text
        return [Message(role, clean(text, name))]
    return found


def read_listed(text: str, name: str) -> list[Message] | None:
    """Read a list of messages that was written as text, see `parse_list`; None if it is no such
    text.

    Raises:
        BadRow: it begins as one and cannot be read.
    """
    if not LISTED.match(text):
        return None
    messages = parse_list(text)
    if messages is None:
        raise BadRow("message list as text", f"{name} begins as one, but is not valid JSON")
    if ... in messages:
        raise BadRow("message list as text", f"{name} was cut at '...' by what wrote the file")
    return read_messages(messages, name)


def read_messages(items: Sequence[object], name: str) -> list[Message]:
    """Read a list of messages.

    Raises:
        BadRow: an item is none, or holds what a template wrote.
    """
    messages = [read_message(item, name) for item in items]
    for message in messages:
        if any(dialect.wrote(message.content) for dialect in DIALECTS):
            raise BadRow("rendered text", f"{name} holds a template's marks inside of a message")
    return messages


def read_rendered(text: str, name: str) -> list[Message] | None:
    """Read a conversation that a chat template wrote; None if the text holds no turn's mark.

    An assistant's turn that is opened and empty, the last thing in a prompt, is left out.

    Raises:
        BadRow: there are marks, but not as a template writes them.
    """
    dialect = next((d for d in DIALECTS if d.wrote(text)), None)
    if dialect is None:
        return None
    try:
        turns = split_turns(STARTS.sub("", text), dialect.opening, dialect.roles, dialect.head)
    except BadRow:
        mark = dialect.opening.search(text)
        shown = mark.group().strip() if mark else ""
        raise BadRow("rendered text", f"{name} holds {shown} after other text") from None
    turns = [Message(m.role, dialect.strip(m.content)) for m in turns]
    turns = [part for turn in turns for part in _split_llama_system(turn)]
    for turn in turns:
        if dialect.closing.search(turn.content) or "<<SYS>>" in turn.content:
            raise BadRow("rendered text", f"{name} holds a template's marks inside of a turn")
    if len(turns) > 1 and turns[-1] == Message("assistant", ""):
        turns.pop()
    return turns


def _read_open_prompt(text: str) -> list[Message] | None:
    """Read a prompt that ends with words that wait for the assistant; None if it does not."""
    for marker, roles in OPEN_PROMPTS:
        speakers = marker.findall(text)
        if not speakers or roles[speakers[-1]] != "assistant" or len(set(speakers)) == 1:
            continue
        *turns, last = split_turns(text, marker, roles, "system")
        if not last.content:
            return turns
    return None


def read_hh(prompt: str, answer: str, side: str) -> list[Message]:
    """Read HH-RLHF's text: an answer that is the whole conversation, or the rest of the prompt.

    Text before the first marker is the system turn. Where no blank lines stand before the markers,
    a transcript is read by its lines.

    Raises:
        BadRow: neither opens with a marker, or the answer is a conversation about something else.
    """
    prompt, answer = (_without_crlf(text) for text in (prompt, answer))
    if not prompt.strip():
        return _split_hh(answer)
    marked = HH_LINE_MARKER.search(prompt) is not None
    if marked and not HH_OPENING.match(answer) and not _begins_with(answer, prompt):
        return _split_hh(prompt + answer)
    turns = _split_hh(answer)
    asked = _split_hh(prompt) if marked else [Message("user", prompt.strip())]
    if asked[-1] == Message("assistant", ""):
        asked.pop()
    return join_conversation(asked, turns, side)


def is_transcript(*texts: str) -> bool:
    """Say whether the first text that is not blank is one of HH-RLHF's, or its beginning."""
    first = next((text for text in texts if text.strip()), "")
    return HH_MARKER.search(_without_crlf(first)) is not None


def _split_hh(text: str) -> list[Message]:
    """Split a transcript at its markers, those after blank lines if there are such."""
    by_line = HH_LINE_MARKER.findall(text)
    if "Assistant" in by_line and "Assistant" not in HH_MARKER.findall(text):
        return split_turns(text, HH_LINE_MARKER, HH_ROLES, "system")
    return split_turns(text, HH_MARKER, HH_ROLES, "system")


def _without_crlf(text: str) -> str:
    """Return a transcript with plain line ends, if those before its markers are not."""
    return text.replace("\r\n", "\n") if HH_CRLF_MARKER.search(text) else text


def _begins_with(text: str, start: str) -> bool:
    """Say whether `text` begins with the words of `start`."""
    words = start.split()
    return text.split()[: len(words)] == words


def _split_llama_system(turn: Message) -> list[Message]:
    """Split off the system text that Llama 2's template writes into the first user turn."""
    system = LLAMA_SYSTEM.match(turn.content) if turn.role == "user" else None
    if system is None:
        return [turn]
    return [Message("system", system.group(1)), Message("user", turn.content[system.end() :])]
