"""The released MACPO format, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from macpo.data import official_row, official_rows, parse_macpo, write_official
from macpo.data.turns import BadRow
from macpo.records import Message, Pair, PreferenceExample, Prompt, Role, dataset_response

ROW = {
    "instruction": "USER: Hi! ASSISTANT: Hello! USER: Name a prime.",
    "input": "",
    "output": ["7", "8 is prime."],
}
EXAMPLE = PreferenceExample(
    Prompt(
        (Message("user", "Hi!"), Message("assistant", "Hello!"), Message("user", "Name a prime."))
    ),
    "7",
    "8 is prime.",
)
TEXT = (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
    .map(str.strip)
    .filter(lambda text: text and "USER:" not in text and "ASSISTANT:" not in text)
)


def test_flattened_turns_read_as_messages_and_write_back() -> None:
    assert parse_macpo(ROW) == EXAMPLE
    assert official_row(EXAMPLE) == ROW


def test_sampled_pair_writes_the_same_row() -> None:
    pair = Pair(
        EXAMPLE.prompt,
        dataset_response(EXAMPLE.prompt, EXAMPLE.chosen),
        dataset_response(EXAMPLE.prompt, EXAMPLE.rejected),
    )
    assert list(official_rows([pair, EXAMPLE])) == [ROW, ROW]


def test_instruction_without_a_marker_is_one_user_turn() -> None:
    text = "Translate: ASSISTANT: yes, USER: no"
    example = parse_macpo({**ROW, "instruction": text})
    assert example.prompt.messages == (Message("user", text),)


def test_marker_within_a_line_needs_one_space_on_both_sides() -> None:
    text = "a USER:b (USER: c)\nUSER: d"
    example = parse_macpo({**ROW, "instruction": f"USER: {text}"})
    assert example.prompt.messages == (Message("user", text),)


def test_input_continues_the_instruction() -> None:
    example = parse_macpo({**ROW, "instruction": "Add.", "input": "1 + 1"})
    assert example.prompt.messages == (Message("user", "Add.\n1 + 1"),)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"output": "7"}, "not a pair (output is one text, as in a file for SFT)"),
        ({"output": ["7"]}, "not a pair (output holds 1 texts)"),
        ({"output": {"a": 1}}, "wrong type (output is an object, not a list of two texts)"),
        ({"output": ["7", None]}, "wrong type (output is null, not text)"),
        ({"output": ["7", ""]}, "empty answer (rejected)"),
        ({"instruction": None}, "missing field (instruction)"),
        ({"instruction": "USER: Hi ASSISTANT:"}, "no user turn last"),
        ({"input": ["x"]}, "wrong type (input is a list, not text)"),
        (
            {"history": [["Hi", "Ho"]]},
            "wrong type (history is not empty; flatten the turns into instruction)",
        ),
    ],
)
def test_bad_row_is_named(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        parse_macpo({**ROW, **change})
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    "text", ["say USER: hello", "USER: hello", "hello ASSISTANT:", "USER:", "a\nb ASSISTANT: c"]
)
def test_turn_with_a_marker_in_it_is_refused(text: str, tmp_path: Path) -> None:
    """Flattened, it would read back as more turns: another conversation."""
    for role in ("user", "assistant"):
        turns = {"user": "Hi!", "assistant": "Hello!", role: text}
        messages = (
            Message("user", turns["user"]),
            Message("assistant", turns["assistant"]),
            Message("user", "Name a prime."),
        )
        example = PreferenceExample(Prompt(messages), "7", "8")
        with pytest.raises(BadRow, match=r"turn marker in text \((USER|ASSISTANT): in the "):
            official_row(example)
        with pytest.raises(BadRow):
            write_official(tmp_path / "pairs.json", [EXAMPLE, example])
        assert not (tmp_path / "pairs.json").exists()


def test_markers_where_the_format_can_hold_them_are_kept() -> None:
    example = PreferenceExample(
        Prompt((Message("system", "Never say USER: x."), Message("user", "(USER: b) USER:c"))),
        "I am ASSISTANT: you are USER: .",
        "USER: ",
    )
    read = parse_macpo(official_row(example))
    assert read == PreferenceExample(example.prompt, example.chosen, "USER:")


@given(st.lists(TEXT, min_size=1, max_size=5), st.none() | TEXT, TEXT, TEXT)
def test_rows_round_trip(turns: list[str], system: str | None, chosen: str, rejected: str) -> None:
    assume(chosen != rejected)
    roles: tuple[Role, ...] = ("user", "assistant")
    messages = [Message(roles[i % 2], text) for i, text in enumerate(turns)]
    if len(messages) % 2 == 0:
        messages.pop()
    if system is not None:
        messages.insert(0, Message("system", system))
    example = PreferenceExample(Prompt(tuple(messages)), chosen, rejected)
    assert parse_macpo(json.loads(json.dumps(official_row(example)))) == example


def test_written_file_is_one_readable_json_list(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    write_official(path, [PreferenceExample(EXAMPLE.prompt, "sept – “7”", "8")])
    assert json.loads(path.read_text(encoding="utf-8")) == [{**ROW, "output": ["sept – “7”", "8"]}]
    assert "“7”" not in path.read_text(encoding="ascii", errors="replace")
    assert "sept –".encode() in path.read_bytes()
