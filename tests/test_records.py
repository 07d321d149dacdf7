"""Records: content ids, JSON there and back, and JSONL files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macpo.errors import DataError
from macpo.records import (
    CompletionScore,
    Message,
    Origin,
    Pair,
    PreferenceExample,
    Prompt,
    Response,
    dataset_response,
    read_answers,
    read_examples,
    read_jsonl,
    read_judgements,
    read_pairs,
    read_prompts,
    read_responses,
    read_scores,
    read_split_prompts,
    write_answers,
    write_examples,
    write_jsonl,
    write_judgements,
    write_pairs,
    write_scores,
)

PROMPT = Prompt((Message("system", "Be brief."), Message("user", "Name a prime.")))
ORIGIN = Origin("student/positive", "6f0c", "transformers 5.17", {"temperature": 0.95}, 7)
RESPONSE = Response(PROMPT.id, "7", ORIGIN, True, (39, 2), "b81d")


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value.to_json()))


def test_a_prompts_id_is_that_of_its_content_and_pinned() -> None:
    again = Prompt((Message("system", "Be brief."), Message("user", "Name a prime.")))
    assert PROMPT.id == again.id == "af61e679d5b6a9fd"
    assert len(PROMPT.id) == 16


@pytest.mark.parametrize(
    "messages",
    [
        (Message("user", "Name a prime."),),
        (Message("user", "Be brief."), Message("user", "Name a prime.")),
        (Message("user", "Name a prime."), Message("system", "Be brief.")),
        (Message("system", "Be brief.Name a prime."),),
        (Message("system", "Be brief."), Message("user", "Name a prime. ")),
    ],
)
def test_other_messages_have_another_id(messages: tuple[Message, ...]) -> None:
    assert Prompt(messages).id != PROMPT.id


def test_halves_of_a_character_that_stand_apart_are_joined_as_in_a_file() -> None:
    prompt = Prompt((Message("user", "a\ud83d\ude00\ude00"),))
    assert prompt == Prompt((Message("user", "a\U0001f600\ude00"),))
    assert Prompt.from_json(json.loads(json.dumps(prompt.to_json()))) == prompt
    assert Response(prompt.id, "\ud83d\ude00", Origin("dataset")).text == "\U0001f600"


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_id": "0"},
        {"text": "7 "},
        {"finished": False},
        {"token_ids": (39,)},
        {"tokenizer": "c92e"},
    ],
)
def test_a_response_that_scores_differently_has_another_id(change: dict[str, Any]) -> None:
    assert dataclasses.replace(RESPONSE, **change).id != RESPONSE.id


def test_a_responses_id_does_not_depend_on_who_gave_it() -> None:
    assert dataclasses.replace(RESPONSE, origin=Origin("weak/positive")).id == RESPONSE.id


def test_records_come_back_from_json_as_they_were() -> None:
    pair = Pair(PROMPT, RESPONSE, dataset_response(PROMPT, "8 is prime."))
    assert Prompt.from_json(through_json(PROMPT)) == PROMPT
    assert Response.from_json(through_json(RESPONSE)) == RESPONSE
    assert Pair.from_json(through_json(pair)) == pair
    example = PreferenceExample(PROMPT, "7", "8")
    assert PreferenceExample.from_json(through_json(example)) == example


@given(st.lists(st.text(), min_size=1), st.text(), st.lists(st.integers(0, 2**31)))
def test_any_text_and_ids_come_back_from_json(
    contents: list[str], text: str, ids: list[int]
) -> None:
    prompt = Prompt(tuple(Message("user", content) for content in contents))
    response = dataclasses.replace(RESPONSE, prompt_id=prompt.id, text=text, token_ids=tuple(ids))
    pair = Pair(prompt, response, dataset_response(prompt, text))
    assert Prompt.from_json(through_json(prompt)) == prompt
    assert Pair.from_json(through_json(pair)) == pair
    assert Response.from_json(through_json(response)) == response


def test_a_preference_is_written_as_trl_reads_it() -> None:
    assert PreferenceExample(PROMPT, "7", "8").to_json() == {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Name a prime."},
        ],
        "chosen": [{"role": "assistant", "content": "7"}],
        "rejected": [{"role": "assistant", "content": "8"}],
    }


def test_an_id_in_json_is_recomputed_and_not_believed() -> None:
    assert Prompt.from_json({**PROMPT.to_json(), "id": "0" * 16}).id == PROMPT.id


def test_an_answer_of_a_data_set_is_finished_and_has_no_ids() -> None:
    response = dataset_response(PROMPT, "7")
    assert response.prompt_id == PROMPT.id
    assert response.origin.policy == "dataset"
    assert response.finished
    assert response.token_ids == ()


def test_records_can_be_members_of_sets_and_cannot_be_changed() -> None:
    twin = Response.from_json(RESPONSE.to_json())
    pair = Pair(PROMPT, RESPONSE, twin)
    assert len({RESPONSE, twin}) == 1
    assert len({pair, Pair(PROMPT, twin, RESPONSE)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        RESPONSE.text = "8"  # type: ignore[misc]


def test_jsonl_is_one_line_a_row_readable_by_eye(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "naïve\r\n\u2028日本"}, {"n": 1}]
    write_jsonl(path, rows)
    assert path.read_bytes() == '{"text": "naïve\\r\\n\u2028日本"}\n{"n": 1}\n'.encode()
    assert list(read_jsonl(path)) == rows


def test_half_a_surrogate_pair_survives_a_jsonl_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "é \ud83d"}, {"text": "é"}]
    write_jsonl(path, rows)
    assert path.read_bytes() == b'{"text": "\\u00e9 \\ud83d"}\n{"text": "\xc3\xa9"}\n'
    assert list(read_jsonl(path)) == rows


@pytest.mark.parametrize(
    ("row", "error"), [({"x": float("nan")}, ValueError), ({"x": b""}, TypeError)]
)
def test_what_json_does_not_know_is_not_written(
    row: dict[str, Any], error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error):
        write_jsonl(tmp_path / "rows.jsonl", [row])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"a": 1', r"not JSON \(Expecting ',' delimiter\); write the file again$"),
        (b"", r"not JSON \(Expecting value\); write the file again$"),
        (b"[1]", "a JSON list, not an object; write the file again$"),
        (b'"text"', "a JSON str, not an object; write the file again$"),
        (b"\xff", "not UTF-8; write the file again$"),
        (b"[" * 100_000, r"not JSON \(nested too deeply\); write the file again$"),
    ],
)
def test_a_bad_line_is_named_by_its_number(line: bytes, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    rows = read_jsonl(path)
    assert next(rows) == {"a": 1}
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: {fault}"):
        next(rows)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"absent\.jsonl: cannot be read: No such file or directory; check the path"
    ):
        list(read_jsonl(tmp_path / "absent.jsonl"))


OTHER = Prompt((Message("user", "Name a fruit."),))
ANSWER = Response(OTHER.id, " \n", ORIGIN, False, (4,), "b81d")


def test_answers_come_back_with_their_prompts(tmp_path: Path) -> None:
    write_answers(tmp_path, iter([(PROMPT, RESPONSE), (OTHER, ANSWER)]))
    assert read_answers(tmp_path) == [(PROMPT, RESPONSE), (OTHER, ANSWER)]
    assert read_prompts(tmp_path) == [PROMPT, OTHER]
    assert read_responses(tmp_path) == [RESPONSE, ANSWER]


def test_prompts_without_as_many_answers_are_refused(tmp_path: Path) -> None:
    write_answers(tmp_path, [(PROMPT, RESPONSE), (OTHER, ANSWER)])
    write_jsonl(tmp_path / "responses.jsonl", [RESPONSE.to_json()])
    with pytest.raises(ValueError, match="shorter"):
        read_answers(tmp_path)


def test_an_answer_of_blanks_is_empty() -> None:
    assert ANSWER.is_empty
    assert not RESPONSE.is_empty


def test_a_pair_is_written_as_trl_reads_it_with_our_columns_beside() -> None:
    row = Pair(PROMPT, RESPONSE, dataset_response(PROMPT, "8")).to_json()
    assert {name: row.pop(name) for name in ("prompt", "chosen", "rejected")} == (
        PreferenceExample(PROMPT, "7", "8").to_json()
    )
    assert row == {
        "prompt_id": PROMPT.id,
        "chosen_response": {
            "finished": True,
            "token_ids": "[39, 2]",
            "tokenizer": "b81d",
            "origin": {
                "policy": "student/positive",
                "weights": "6f0c",
                "backend": "transformers 5.17",
                "sampling": '{"temperature": 0.95}',
                "seed": 7,
            },
        },
        "rejected_response": {
            "finished": True,
            "token_ids": "[]",
            "tokenizer": "",
            "origin": {
                "policy": "dataset",
                "weights": "",
                "backend": "",
                "sampling": "{}",
                "seed": 0,
            },
        },
    }


def test_a_pair_of_answers_to_another_prompt_is_not_written() -> None:
    stray = dataclasses.replace(RESPONSE, prompt_id="0" * 16)
    with pytest.raises(ValueError, match=f"a pair on prompt {PROMPT.id} holds an answer to ano"):
        Pair(PROMPT, RESPONSE, stray).to_json()


def test_pairs_come_back_from_their_file(tmp_path: Path) -> None:
    pairs = [Pair(PROMPT, RESPONSE, dataset_response(PROMPT, "8")), Pair(OTHER, ANSWER, ANSWER)]
    write_pairs(tmp_path, pairs)
    assert read_pairs(tmp_path) == pairs


def test_splits_come_back_and_name_each_prompt_once(tmp_path: Path) -> None:
    examples = [PreferenceExample(p, a, b) for p in (OTHER, PROMPT) for a, b in ("78", "87")]
    write_examples(tmp_path, "student", examples)
    assert read_examples(tmp_path, "student") == examples
    assert read_split_prompts(tmp_path, "student") == [OTHER, PROMPT]
    with pytest.raises(DataError, match=r"test\.jsonl: cannot be read"):
        read_examples(tmp_path, "test")


def test_scores_come_back_by_response_even_beyond_floats(tmp_path: Path) -> None:
    scored = [(RESPONSE, CompletionScore(-3.5, 2)), (ANSWER, CompletionScore(-800.0, 1))]
    write_scores(tmp_path, scored)
    assert read_scores(tmp_path) == {response.id: score for response, score in scored}
    assert [row["perplexity"] for row in read_jsonl(tmp_path / "scores.jsonl")] == [
        pytest.approx(5.7546, abs=1e-4),  # exp(3.5 / 2)
        1e308,  # exp(800) is no float, and JSON knows no infinity
    ]


def test_judgements_come_back_by_response(tmp_path: Path) -> None:
    write_judgements(tmp_path, [(RESPONSE, 0.25), (ANSWER, 4)])
    assert read_judgements(tmp_path) == {RESPONSE.id: 0.25, ANSWER.id: 4}


def test_file_of_an_earlier_version_is_a_data_error(tmp_path: Path) -> None:
    """Pairs were once written with whole records as `prompt`, `chosen` and `rejected`."""
    pair = Pair(PROMPT, RESPONSE, RESPONSE)
    earlier = {"prompt": PROMPT.to_json(), "chosen": RESPONSE.to_json()}
    write_jsonl(tmp_path / "pairs.jsonl", [pair.to_json(), earlier])
    with pytest.raises(DataError, match=r"pairs\.jsonl, line 2: not as this version .* run the co"):
        read_pairs(tmp_path)
