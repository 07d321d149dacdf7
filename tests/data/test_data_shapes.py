"""Shapes of rows in the wild: what each means, and what is refused rather than dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from macpo.cli.data import parse_columns as parse_option
from macpo.config import DataConfig
from macpo.data import load_preferences
from macpo.data.columns import Columns
from macpo.data.formats import (
    FORMATS,
    FormatName,
    detect_format,
    get_parser,
    named_shape,
    why_undetected,
)
from macpo.data.turns import BadRow
from macpo.errors import ConfigError
from macpo.records import PreferenceExample

Turn = tuple[str, str]
ASKED: Turn = ("user", "A prime?")
SYSTEM: Turn = ("system", "Be brief.")


def turns(*texts: str, system: str = "") -> list[dict[str, str]]:
    """Write turns in alternation, the user's first."""
    roles = ("user", "assistant")
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def meaning(example: PreferenceExample) -> tuple[list[Turn], str, str]:
    prompt: list[Turn] = [(m.role, m.content) for m in example.prompt.messages]
    return prompt, example.chosen, example.rejected


def read(row: dict[str, Any]) -> tuple[list[Turn], str, str]:
    """Read a row in the format that is detected."""
    name = detect_format([row])
    assert name is not None, why_undetected(row)
    return meaning(get_parser(name)(row))


def refused(row: dict[str, Any], format: FormatName = "trl") -> str:
    with pytest.raises(BadRow) as caught:
        get_parser(format)(row)
    return str(caught.value)


PLAIN = {"prompt": "A prime?", "chosen": "7", "rejected": "8"}
ANSWERS = {"chosen": "7", "rejected": "8"}
HELPSTEER3 = {
    "context": turns("A prime?"),
    "response1": "7",
    "response2": "8",
    "overall_preference": -3,
}


@pytest.mark.parametrize(
    ("row", "format", "prompt"),
    [
        ({**PLAIN, "system": "Be brief."}, "trl", [SYSTEM, ASKED]),
        ({**PLAIN, "system": None}, "trl", [ASKED]),
        ({**PLAIN, "system_prompt": "Be brief."}, "trl", [SYSTEM, ASKED]),
        ({**ANSWERS, "system": "Be brief.", "question": "A prime?"}, "orca", [SYSTEM, ASKED]),
        ({**ANSWERS, "system": "", "input": "A prime?"}, "orca", [ASKED]),
        (
            {**ANSWERS, "instruction": "A", "input": "prime?", "history": [["Hi", "Ho"]]},
            "alpaca",
            [("user", "Hi"), ("assistant", "Ho"), ("user", "A\nprime?")],
        ),
        (
            {"instruction": "A prime?", "chosen_response": "7", "rejected_response": "8"},
            "argilla",
            [ASKED],
        ),
        ({"question": "A prime?", "response_j": "7", "response_k": "8"}, "stack", [ASKED]),
        (
            {
                "conversations": [{"from": "human", "value": "A prime?"}],
                "chosen": {"from": "gpt", "value": "7"},
                "rejected": {"from": "gpt", "value": "8"},
                "system": "Be brief.",
            },
            "sharegpt",
            [SYSTEM, ASKED],
        ),
        (
            {
                "input": {"messages": turns("A prime?"), "tools": [], "parallel_tool_calls": True},
                "preferred_output": answer("7"),
                "non_preferred_output": answer("8"),
            },
            "openai",
            [ASKED],
        ),
        (
            {"messages": turns("A prime?", "7", system="Be brief."), "rejected_response": "8"},
            "swift",
            [SYSTEM, ASKED],
        ),
        (
            {"messages": turns("A prime?", "7"), "rejected_messages": turns("A prime?", "8")},
            "swift",
            [ASKED],
        ),
        (
            {"prompt": "A prime?", "response_1": "8", "response_2": "7", "preference_strength": 1},
            "helpsteer",
            [ASKED],
        ),
        (HELPSTEER3, "helpsteer", [ASKED]),
        (
            {"history": "A prime?", "human_ref_A": "7", "human_ref_B": "8", "labels": 1},
            "shp",
            [ASKED],
        ),
        (
            {
                "conversation_a": turns("A prime?", "8"),
                "conversation_b": turns("A prime?", "7"),
                "winner": "model_b",
            },
            "arena",
            [ASKED],
        ),
        (
            {
                "prompt": "A prime?",
                "response_0": "7",
                "response_1": "8",
                "better_response_id": 0.0,
                "safer_response_id": 1.0,
            },
            "pku",
            [ASKED],
        ),
    ],
)
def test_shape_is_recognised_and_means_the_same(
    row: dict[str, Any], format: str, prompt: list[Turn]
) -> None:
    assert detect_format([row]) == format
    assert read(row) == (prompt, "7", "8")


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        # the prompt is the last turn, the first, the whole beginning, or the system turn is in it
        (
            {"prompt": "A prime?", "chosen": ("Hi", "Ho", "A prime?"), "rejected": ()},
            [("user", "Hi"), ("assistant", "Ho"), ASKED],
        ),
        (
            {"prompt": " A  prime?", "chosen": ("A prime?",), "rejected": ()},
            [ASKED],
        ),
        (
            {"prompt": turns("Hi", "Ho"), "chosen": ("A prime?",), "rejected": ()},
            [("user", "Hi"), ("assistant", "Ho"), ASKED],
        ),
        (
            {
                "prompt": turns("A prime?", system="Be brief."),
                "chosen": ("A prime?",),
                "rejected": (),
            },
            [SYSTEM, ASKED],
        ),
    ],
)
def test_answer_with_user_turns_is_the_conversation(
    row: dict[str, Any], prompt: list[Turn]
) -> None:
    asked = row["chosen"]
    whole = {**row, "chosen": turns(*asked, "7"), "rejected": turns(*asked, "8")}
    assert read(whole) == (prompt, "7", "8")


def test_system_turn_of_whole_conversations_is_kept_beside_a_prompt_text() -> None:
    row = {
        "prompt": "A prime?",
        "chosen": turns("A prime?", "7", system="Be brief."),
        "rejected": turns("A prime?", "8", system="Be brief."),
    }
    assert read(row) == ([SYSTEM, ASKED], "7", "8")


def test_prompt_that_is_not_in_the_conversation_is_refused() -> None:
    row = {"prompt": "Hm?", "chosen": turns("A", "7"), "rejected": turns("A", "8")}
    assert refused(row) == "prompts differ (chosen is a conversation without the prompt in it)"


def test_two_system_texts_that_differ_are_refused() -> None:
    row = {**PLAIN, "prompt": turns("A", system="Be brief."), "system": "Be long."}
    assert refused(row) == "system differs ('Be brief.', 'Be long.')"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tools": [{"name": "f"}]}, "not supported (tools)"),
        ({"tools": '[{"name": "f"}]'}, "not supported (tools)"),
        ({"images": ["x.png"]}, "not supported (images)"),
        ({"initial_reason_steps": "Step 1"}, "not supported (initial_reason_steps)"),
        ({"context": "7 is a prime."}, "not supported (context)"),
        (
            {"chosen": [{**answer("7")[0], "tool_calls": [{}]}]},
            "not supported (tool_calls in chosen)",
        ),
        (
            {"chosen": [{**answer("7")[0], "reasoning_content": "Hm."}]},
            "not supported (reasoning_content in chosen)",
        ),
        (
            {"prompt": [*turns("A"), {"role": "tool", "content": "7"}]},
            "unknown role (prompt: 'tool')",
        ),
        ({"chosen": ["7"]}, "wrong type (chosen holds text, not messages)"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "wrong type (content holds a part of type image_url, not text)",
        ),
    ],
)
def test_what_would_change_the_meaning_is_refused(change: dict[str, Any], reason: str) -> None:
    assert refused({**PLAIN, **change}) == reason


@pytest.mark.parametrize("empty", [None, [], "", "[]", {}])
def test_empty_fields_refuse_nothing(empty: object) -> None:
    row = {**PLAIN, "tools": empty, "chosen": [{**answer("7")[0], "tool_calls": empty}]}
    assert read(row) == ([ASKED], "7", "8")


def test_roles_go_by_several_names_and_content_by_parts() -> None:
    prompt = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "User", "content": [{"type": "text", "text": "A prime?"}]},
    ]
    row = {"prompt": prompt, "chosen": [{"role": "model", "content": "7"}], "rejected": answer("8")}
    assert read(row) == ([SYSTEM, ASKED], "7", "8")


def numpy_repr(messages: list[dict[str, str]]) -> str:
    """Write messages as a csv of pandas holds them, which has read them from parquet."""
    return str(np.array(messages, dtype=object))


def numpy_call(messages: list[dict[str, str]]) -> str:
    return repr(np.array(messages, dtype=object))


@pytest.mark.parametrize("write", [json.dumps, repr, numpy_repr, numpy_call])
def test_message_list_as_text_is_parsed(write: Any) -> None:
    row = {
        "prompt": write(turns("A prime?")),
        "chosen": write(turns("A prime?", "7")),
        "rejected": write(answer("8")),
    }
    assert read(row) == ([ASKED], "7", "8")


def test_message_list_as_text_that_cannot_be_parsed_is_refused() -> None:
    row = {**PLAIN, "chosen": "[{'role': 'assistant' 'content': 7"}
    assert refused(row) == "message list as text (chosen begins as one, but is not valid JSON)"


@pytest.mark.parametrize("text", ["it's 7} {8", "say \"7\" '8'", "a\nb", "array(7), dtype=x"])
@pytest.mark.parametrize("write", [repr, numpy_repr, numpy_call])
def test_texts_in_lists_as_text_stay_as_they_are(write: Any, text: str) -> None:
    assert read({**PLAIN, "chosen": write(answer(text))}) == ([ASKED], text, "8")


def test_list_as_text_that_was_cut_is_refused() -> None:
    row = {**PLAIN, "chosen": "[{'role': 'user', 'content': 'A prime?'}, ...]"}
    assert refused(row) == "message list as text (chosen was cut at '...' by what wrote the file)"


def test_list_as_text_is_never_executed() -> None:
    row = {**PLAIN, "chosen": "[{'role': 'assistant', 'content': exit()}]"}
    assert refused(row).startswith("message list as text")


@pytest.mark.parametrize(
    "output", [["7", "8"], '["7", "8"]', "['7', '8']", "['7' '8']", "['7'\n '8']"]
)
def test_two_answers_in_one_column_may_be_written_as_text(output: object) -> None:
    row = {"instruction": "A prime?", "input": None, "output": output, "history": "[]"}
    assert read(row) == ([ASKED], "7", "8")


def test_earlier_turns_may_be_written_as_text() -> None:
    row = {"instruction": "A prime?", "history": "[['Hi!', 'Hello!']]", **ANSWERS}
    assert read(row) == ([("user", "Hi!"), ("assistant", "Hello!"), ASKED], "7", "8")


def test_several_texts_in_one_answer_are_refused_where_they_are_surely_that() -> None:
    row = {**PLAIN, "chosen": "['7' '11']"}
    assert refused(row) == "list as text (chosen holds several texts as numpy prints them, not one)"
    assert read({**PLAIN, "chosen": "['7', '11']"})[1] == "['7', '11']"  # an answer may say so


@pytest.mark.parametrize(
    "field",
    ["reasoning_content", "chosen_reasoning", "rejected_reasoning", "chosen_reasoning_content"],
)
def test_thoughts_beside_an_answer_are_refused_unless_columns_are_named(field: str) -> None:
    row = {**PLAIN, field: "A prime has two divisors."}
    assert refused(row) == f"not supported ({field})"
    assert f"to do without {field}, name the other columns in data.columns" in why_undetected(row)
    named = named_shape(Columns("chosen", "rejected", prompt=("prompt",)))
    assert meaning(named.read(row)) == ([ASKED], "7", "8")


def test_reasons_for_a_preference_are_left_unread_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({**PLAIN, "reasoning": "8 is even."}), encoding="utf-8")
    report = load_preferences(DataConfig(source=str(path))).report
    assert (report.pairs, report.unread) == (1, {"reasoning": 1})


def test_answer_that_is_other_json_stays_text() -> None:
    assert read({**PLAIN, "chosen": '[{"name": "x"}]'}) == ([ASKED], '[{"name": "x"}]', "8")


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [
        ("    return 1\n", "    return 1"),
        ("\n\n\treturn 1", "\treturn 1"),
        (" 7", "7"),
        ("\n7 ", "7"),
        ("7<|im_end|>\n", "7"),
        ("7</s>", "7"),
        ("<s>old</s>", "<s>old</s>"),
    ],
)
def test_answer_keeps_its_indentation_and_loses_what_is_round_it(chosen: str, kept: str) -> None:
    assert read({**PLAIN, "chosen": chosen}) == ([ASKED], kept, "8")


def test_answers_that_differ_in_indentation_only_are_two_answers() -> None:
    row = {**PLAIN, "chosen": "    return 1", "rejected": "return 1"}
    assert read(row) == ([ASKED], "    return 1", "return 1")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "A", "completion": "7", "label": True}, "these are rows of KTO: one answer"),
        ({"prompt": "A", "completion": "7"}, "these are rows for SFT: one answer"),
        ({"messages": turns("A", "7")}, "these are rows for SFT: one conversation"),
        ({"prompt": "A", "answers": ["7", "8"]}, "these are ranked answers: a list of answers"),
        (
            {"prompt": "A", "chosen": ["7"], "rejected": ["8"]},
            "read as trl it is unfit: wrong type (chosen holds text, not messages)",
        ),
        ({"task": "A", "good": "7"}, "set data.columns to say which columns hold"),
        (
            {"question": "A", "chosen": "7"},
            "the nearest, orca, has: missing field (rejected); set data.columns",
        ),
    ],
)
def test_undetected_row_is_told_what_it_lacks(row: dict[str, Any], said: str) -> None:
    assert detect_format([row]) is None
    assert why_undetected(row).startswith(said)


@pytest.mark.parametrize(
    ("row", "format", "reason"),
    [
        ({**HELPSTEER3, "overall_preference": 0}, "helpsteer", "no preference"),
        (
            {"conversation_a": [], "conversation_b": [], "winner": "tie (bothbad)"},
            "arena",
            "no preference",
        ),
        ({**HELPSTEER3, "overall_preference": 0.5}, "helpsteer", "wrong type"),
    ],
)
def test_row_without_a_preference_is_refused(
    row: dict[str, Any], format: FormatName, reason: str
) -> None:
    assert refused(row, format).startswith(reason)


NAMED = Columns("good", "bad", prompt=("task",), system=("persona",))


def test_named_columns_are_read_and_nothing_else_matters() -> None:
    row = {"task": "A prime?", "persona": "Be brief.", "good": "7", "bad": "8", "tools": ["f"]}
    assert meaning(named_shape(NAMED).read(row)) == ([SYSTEM, ASKED], "7", "8")


def test_named_columns_may_hold_transcripts() -> None:
    row = {"task": "\n\nHuman: A prime?\n\nAssistant:", "good": " 7", "bad": " 8"}
    assert meaning(named_shape(NAMED).read(row)) == ([ASKED], "7", "8")


def test_columns_option_reads_as_the_config_does() -> None:
    assert parse_option("prompt=task, chosen=good,rejected=bad") == {
        "prompt": "task",
        "chosen": "good",
        "rejected": "bad",
    }
    with pytest.raises(ConfigError, match="write PART=COLUMN, separated by commas"):
        parse_option("prompt")


def test_config_and_command_line_know_every_format() -> None:
    """They are written out thrice: the config and the command line load no parsers."""
    from macpo.cli.data import Format

    known = ("auto", *get_args(FormatName))
    assert get_args(DataConfig.model_fields["format"].annotation) == known
    assert get_args(get_args(Format)[0]) == known
    assert set(FORMATS) == set(known[1:])
