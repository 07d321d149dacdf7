"""Parsers: each format's good rows, and the reason given for each kind of bad one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from macpo.data.formats import detect_format, get_parser, parse_hh, parse_pku, parse_trl
from macpo.data.turns import BadRow, join_turns, prompt_key
from macpo.records import Message, PreferenceExample, Prompt

TEXT = (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
    .map(str.strip)
    .filter(bool)
)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def hh(*turns: str) -> str:
    """Write turns as HH-RLHF does, the human's first."""
    speakers = ("Human", "Assistant")
    return "".join(f"\n\n{speakers[i % 2]}: {turn}" for i, turn in enumerate(turns))


def contents(example: PreferenceExample) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in example.prompt.messages]


def reason_of(row: dict[str, Any], format: Any) -> str:
    with pytest.raises(BadRow) as caught:
        get_parser(format)(row)
    return str(caught.value)


def test_hh_turns_become_messages_and_the_last_turns_the_answers() -> None:
    example = parse_hh(
        {
            "chosen": hh("Hi", "Hello!", "A prime?", "7"),
            "rejected": hh("Hi", "Hello!", "A prime?", "8"),
        }
    )
    assert contents(example) == [("user", "Hi"), ("assistant", "Hello!"), ("user", "A prime?")]
    assert (example.chosen, example.rejected) == ("7", "8")


def test_hh_marker_needs_a_blank_line_before_it() -> None:
    odd = "Well. Human: said one.\nAssistant: said the other. Humans: many"
    example = parse_hh({"chosen": hh("Hi", odd), "rejected": hh("Hi", "Human: no")})
    assert (example.chosen, example.rejected) == (odd, "Human: no")


def test_hh_marker_inside_a_human_text_makes_a_second_turn_that_joins_the_first() -> None:
    row = {"chosen": hh("Say\n\nHuman: me", "Yes"), "rejected": hh("Say\n\nHuman: me", "No")}
    example = parse_hh(row)
    assert contents(example) == [("user", "Say"), ("user", "me")]
    assert join_turns(example.prompt) == Prompt((Message("user", "Say\n\nme"),))


def test_hh_answers_that_begin_alike_keep_their_whole_text() -> None:
    example = parse_hh({"chosen": hh("Hi", "Yes"), "rejected": hh("Hi", "Yes, and more")})
    assert (example.chosen, example.rejected) == ("Yes", "Yes, and more")


def test_hh_prompt_column_is_put_back_before_the_answers() -> None:
    row = {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello", "rejected": " Go"}
    example = parse_hh(row)
    assert contents(example) == [("user", "Hi")]
    assert (example.chosen, example.rejected) == ("Hello", "Go")


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (hh("Hi", ""), hh("Hi", "No"), "empty answer (chosen)"),
        (hh("Hi", "No"), hh("Hi", " \n"), "empty answer (rejected)"),
        (hh("Hi", "No"), hh("Hi", "No "), "identical answers"),
        (hh("Hi", "a", "b", "c"), hh("Hi", "x", "b", "d"), "prompts differ (from turn 2)"),
        (hh("Hi", "a", "b", "c"), hh("Hi", "d"), "prompts differ (from turn 2)"),
        (hh("Hi", "a", "b"), hh("Hi", "a"), "no assistant turn last (chosen)"),
        (hh("", "a"), hh("", "b"), "empty turn (user)"),
        (
            "\n\nAssistant: Hi" + hh("a", "b"),
            "\n\nAssistant: Hi" + hh("a", "c"),
            "no user turn first",
        ),
        (hh("Hi", "a\n\nAssistant: b"), hh("Hi", "a\n\nAssistant: c"), "no user turn last"),
        ("\n\nAssistant: a", "\n\nAssistant: b", "no user turn last"),
        ("Hi there", "Hi you", "no turn markers (begins with 'Hi there')"),
        ("Hi\n\nAssistant: b", "Hi\n\nAssistant: c", "no user turn last"),
        ("", "", "no turn markers"),
        (hh("Hi", "a \ud83d"), hh("Hi", "b"), "unpaired surrogate (chosen, character 27)"),
        (3, hh("Hi", "b"), "wrong type (chosen is a number, not text)"),
        (None, hh("Hi", "b"), "missing field (chosen)"),
    ],
)
def test_hh_bad_row_is_named(chosen: Any, rejected: Any, reason: str) -> None:
    assert reason_of({"chosen": chosen, "rejected": rejected}, "hh").startswith(reason)


@given(st.lists(TEXT.filter(lambda t: "\n\n" not in t), min_size=3, max_size=7), TEXT)
def test_hh_text_round_trips(turns: list[str], other: str) -> None:
    turns = turns[: len(turns) // 2 * 2]
    assume(other != turns[-1] and "\n\n" not in other)
    example = parse_hh({"chosen": hh(*turns), "rejected": hh(*turns[:-1], other)})
    assert [m.content for m in example.prompt.messages] == turns[:-1]
    assert (example.chosen, example.rejected) == (turns[-1], other)
    assert join_turns(example.prompt) is example.prompt


PKU = {
    "prompt": "How?",
    "response_0": "Zero",
    "response_1": "One",
    "better_response_id": 1,
    "safer_response_id": 0,
}


def test_pku_criterion_selects_the_label() -> None:
    helpful, harmless = parse_pku(PKU), parse_pku(PKU, "harmless")
    assert (helpful.chosen, helpful.rejected) == ("One", "Zero")
    assert (harmless.chosen, harmless.rejected) == ("Zero", "One")
    assert contents(helpful) == [("user", "How?")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"better_response_id": 2}, "no such response (better_response_id is 2)"),
        ({"better_response_id": -1}, "no such response (better_response_id is -1)"),
        ({"better_response_id": True}, "wrong type (better_response_id is a boolean, not 0 or 1)"),
        ({"better_response_id": None}, "missing field (better_response_id)"),
        ({"response_1": " "}, "empty answer (chosen)"),
        ({"prompt": " "}, "empty turn (user)"),
        ({"response_0": ["x"]}, "wrong type (response_0 is a list, not text)"),
    ],
)
def test_pku_bad_row_is_named(change: dict[str, Any], reason: str) -> None:
    assert reason_of({**PKU, **change}, "pku") == reason


TRL_FORMS: dict[str, dict[str, Any]] = {
    "explicit": {
        "prompt": [user("Hi")],
        "chosen": [assistant("Yes")],
        "rejected": [assistant("No")],
    },
    "implicit": {
        "chosen": [user("Hi"), assistant("Yes")],
        "rejected": [user("Hi"), assistant("No")],
    },
    "implicit, null prompt": {
        "prompt": None,
        "chosen": [user("Hi"), assistant("Yes")],
        "rejected": [user("Hi"), assistant("No")],
    },
    "text prompt repeated": {
        "prompt": "Hi",
        "chosen": [user("Hi"), assistant("Yes")],
        "rejected": [user("Hi"), assistant("No")],
    },
    "plain": {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
    "empty system turn": {
        "prompt": [{"role": "system", "content": ""}, user("Hi")],
        "chosen": [assistant("Yes")],
        "rejected": [assistant("No")],
    },
}


@pytest.mark.parametrize("form", TRL_FORMS)
def test_trl_forms_mean_the_same_example(form: str) -> None:
    expected = PreferenceExample(Prompt((Message("user", "Hi"),)), "Yes", "No")
    assert parse_trl(TRL_FORMS[form]) == expected


def test_trl_row_written_by_an_example_reads_back() -> None:
    prompt = Prompt((Message("system", "Be brief."), Message("user", "Hi")))
    example = PreferenceExample(prompt, "Yes", "No")
    assert parse_trl(example.to_json()) == example


@pytest.mark.parametrize("chosen", ["Yes", "Yes, and more"])
def test_trl_seam_holds_when_one_answer_begins_the_other(chosen: str) -> None:
    rejected = "Yes, and more" if chosen == "Yes" else "Yes"
    implicit = parse_trl(
        {
            "chosen": [user("Hi"), assistant(chosen)],
            "rejected": [user("Hi"), assistant(rejected)],
        }
    )
    assert contents(implicit) == [("user", "Hi")]
    assert (implicit.chosen, implicit.rejected) == (chosen, rejected)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {
                "chosen": [user("Hi"), assistant("Yes")],
                "rejected": [user("Hi"), assistant("Yes"), user("More"), assistant("No")],
            },
            "prompts differ (from turn 2)",
        ),
        (
            {"prompt": "Hi", "chosen": [user("Ho"), assistant("a")], "rejected": "b"},
            "prompts differ (chosen is a conversation without the prompt in it)",
        ),
        ({"chosen": "Yes", "rejected": "No"}, "missing field (prompt)"),
        ({"prompt": "Hi", "chosen": [], "rejected": "No"}, "no assistant turn last (chosen)"),
        (
            {"prompt": 1, "chosen": "a", "rejected": "b"},
            "wrong type (prompt is a number, not text)",
        ),
        (
            {"prompt": ["Hi"], "chosen": "a", "rejected": "b"},
            "wrong type (prompt holds text, not messages)",
        ),
        (
            {"prompt": [{"role": "tool", "content": "x"}], "chosen": "a", "rejected": "b"},
            "unknown role (prompt: 'tool')",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "a"},
            "wrong type (content holds a part of type image, not text)",
        ),
        (
            {
                "prompt": [user("Hi"), {"role": "system", "content": "x"}, user("Ho")],
                "chosen": "a",
                "rejected": "b",
            },
            "system turn not first",
        ),
        (
            {"prompt": [user("Hi"), assistant("Sure,")], "chosen": "a", "rejected": "b"},
            "no user turn last",
        ),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "no user turn last"),
    ],
)
def test_trl_bad_row_is_named(row: dict[str, Any], reason: str) -> None:
    assert reason_of(row, "trl") == reason


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"chosen": hh("Hi", "a"), "rejected": hh("Hi", "b")}, "hh"),
        ({"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "a", "rejected": "b"}, "hh"),
        (PKU, "pku"),
        ({"instruction": "USER: Hi", "input": "", "output": ["a", "b"]}, "macpo"),
        (TRL_FORMS["plain"], "trl"),
        (TRL_FORMS["implicit"], "trl"),
        ({"question": "Hi", "answer": "a"}, None),
        ("text", None),
    ],
)
def test_format_is_detected(row: object, format: str | None) -> None:
    assert detect_format([row]) == format


def test_detection_follows_the_majority_of_rows() -> None:
    good = {"chosen": hh("Hi", "a"), "rejected": hh("Hi", "b")}
    assert detect_format([PKU, good, {"chosen": 1}, good]) == "hh"


def test_prompts_that_differ_in_whitespace_share_a_key() -> None:
    def key(text: str) -> str:
        return prompt_key(Prompt((Message("user", text),)))

    assert key("a  b\nc") == key("a b c")
    assert key("a b c") != key("a bc")
