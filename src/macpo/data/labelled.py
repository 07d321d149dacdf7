"""Rows with two answers and a label that says which is better, and rows that mark the better one.

pku        {"prompt", "response_0", "response_1", "better_response_id", "safer_response_id"}
helpsteer  {"prompt", "response_1", "response_2", "preference_strength"}, or HelpSteer3's names
shp        {"history", "human_ref_A", "human_ref_B", "labels"}
arena      {"conversation_a", "conversation_b", "winner"}
swift      {"messages", "rejected_response"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from macpo.data.columns import read_system, read_turns
from macpo.data.turns import (
    BadRow,
    add_system,
    build_example,
    get_field,
    get_text,
    join_conversation,
    json_type,
)
from macpo.records import Message, PreferenceExample
from macpo.words import Criterion


def parse_pku(row: Mapping[str, Any], criterion: Criterion = "helpful") -> PreferenceExample:
    """Read a row of PKU-SafeRLHF: two responses, with one label for help and one for safety.

    Raises:
        BadRow: the row is unfit.
    """
    label = "better_response_id" if criterion == "helpful" else "safer_response_id"
    names = ("response_0", "response_1")
    for name in names:
        get_text(row, name)
    return _labelled(row, "prompt", names, _label(row, label, (0, 1)))


def parse_helpsteer(row: Mapping[str, Any]) -> PreferenceExample:
    """Read a row of HelpSteer2's or HelpSteer3's preferences: below 0 the first answer is better.

    Raises:
        BadRow: the row is unfit, or prefers neither.
    """
    third = "overall_preference" in row
    strength = "overall_preference" if third else "preference_strength"
    value = _label(row, strength)
    if value == 0:
        raise BadRow("no preference", f"{strength} is 0")
    names = ("response1", "response2") if third else ("response_1", "response_2")
    return _labelled(row, "context" if third else "prompt", names, int(value > 0))


def parse_shp(row: Mapping[str, Any]) -> PreferenceExample:
    """Read a row of Stanford Human Preferences: label 1 says that answer A is better.

    Raises:
        BadRow: the row is unfit.
    """
    label = _label(row, "labels", (0, 1))
    return _labelled(row, "history", ("human_ref_A", "human_ref_B"), 1 - label)


def parse_arena(row: Mapping[str, Any]) -> PreferenceExample:
    """Read a battle of Chatbot Arena: two conversations and a winner.

    Raises:
        BadRow: the row is unfit, or a tie.
    """
    winner = str(get_field(row, "winner"))
    if winner.startswith("tie"):
        raise BadRow("no preference", f"winner is {winner[:20]!r}")
    if winner not in ("model_a", "model_b"):
        raise BadRow("no such response", f"winner is {winner[:20]!r}, not model_a or model_b")
    names = ("conversation_a", "conversation_b")
    return _labelled(row, None, names, int(winner == "model_b"))


def parse_swift(row: Mapping[str, Any]) -> PreferenceExample:
    """Read a row of ms-swift: a conversation, and a worse answer for its last turn.

    Raises:
        BadRow: the row is unfit.
    """
    chosen = read_turns(get_field(row, "messages"), "user", "messages")
    worse = "rejected_messages" if row.get("rejected_messages") else "rejected_response"
    rejected = read_turns(get_field(row, worse), "assistant", worse)
    if not chosen or chosen[-1].role != "assistant":
        raise BadRow("no assistant turn last", "messages")
    system = read_system(row, ("system", "system_prompt"))
    return build_example(
        add_system(system, chosen),
        add_system(system, join_conversation(chosen[:-1], rejected, worse)),
    )


def _labelled(
    row: Mapping[str, Any], prompt: str | None, names: Sequence[str], better: int
) -> PreferenceExample:
    """Make an example of a row with two answers, the one numbered `better` the chosen one."""
    before = [] if prompt is None else read_turns(get_field(row, prompt), "user", prompt)
    system = read_system(row, ("system", "system_prompt"))

    def conversation(name: str) -> list[Message]:
        turns = read_turns(get_field(row, name), "assistant", name)
        return add_system(system, join_conversation(before, turns, name))

    return build_example(conversation(names[better]), conversation(names[1 - better]))


def _label(row: Mapping[str, Any], name: str, known: Sequence[int] = ()) -> int:
    """Return a label that is a whole number; tables write it as 1.0, or as text."""
    value = get_field(row, name)
    text = isinstance(value, str) and value.strip().lstrip("+-").isdecimal()
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not text and not (number and value == value // 1):
        wanted = "0 or 1" if known else "a whole number"
        raise BadRow("wrong type", f"{name} is {json_type(value)}, not {wanted}")
    whole = int(value)
    if known and whole not in known:
        raise BadRow("no such response", f"{name} is {whole}")
    return whole
