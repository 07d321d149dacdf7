"""Rows of GSM8K and BBQ, and drawn prompts with constraints, as preference data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from macpo.config import DataConfig
from macpo.data import check_data, detect_format, get_parser, load_preferences, source_digest
from macpo.data.formats import why_undetected
from macpo.data.turns import BadRow
from macpo.data.verifiable import read_question
from macpo.errors import DataError

ASKED = "How many legs have 2 dogs?"


def solved(text: str, right: bool) -> dict[str, Any]:
    return {"is_correct": right, "solution": text}


def gsm8k(**changes: Any) -> dict[str, Any]:
    row = {
        "question": ASKED,
        "ground_truth": "2 dogs have 2*4 = <<2*4=8>>8 legs.\nA: 8",
        "small_model": solved("Two dogs, so 2.\nA: 2", False),
        "large_model": solved("4+4 = <<4+4=8>>8 legs.\nA: 8", True),
    }
    return {name: value for name, value in {**row, **changes}.items() if value is not None}


def bbq(**changes: Any) -> dict[str, Any]:
    row = {
        "example_id": 1,
        "category": "Age",
        "context": "A man met his grandfather.",
        "question": "Who forgot the date?",
        "ans0": "The grandfather",
        "ans1": "The man",
        "ans2": "Not known",
        "label": 2,
        "context_condition": "ambig",
        "question_polarity": "neg",
        "answer_info": {"ans0": ["grandfather", "old"], "ans1": ["man", "nonOld"]}
        | {"ans2": ["Not known", "unknown"]},
        "additional_metadata": {"subcategory": "None", "stereotyped_groups": ["old"]},
    }
    return {name: value for name, value in {**row, **changes}.items() if value is not None}


def pair(row: dict[str, Any]) -> tuple[str, str]:
    format = detect_format([row])
    assert format in ("gsm8k", "bbq"), why_undetected(row)
    example = get_parser(format)(row)
    return example.chosen, example.rejected


def refused(row: dict[str, Any], format: Any) -> str:
    with pytest.raises(BadRow) as caught:
        get_parser(format)(row)
    return str(caught.value)


def test_labelled_solutions_make_a_pair_in_one_manner() -> None:
    """Without annotations, and with the answer's line as GSM8K writes it, on both sides."""
    assert pair(gsm8k()) == ("4+4 = 8 legs.\n#### 8", "Two dogs, so 2.\n#### 2")


def test_the_datas_own_solution_is_chosen_where_no_model_was_right() -> None:
    assert pair(gsm8k(large_model=None))[0] == "2 dogs have 2*4 = 8 legs.\n#### 8"


def test_a_wrong_solution_of_ones_own_completes_gsm8ks_rows() -> None:
    row = {"question": ASKED, "answer": "<<2*4=8>>8\n#### 8", "rejected": "Two.\n#### 2"}
    assert pair(row) == ("8\n#### 8", "Two.\n#### 2")
    del row["rejected"]
    assert detect_format([row]) is None
    told = why_undetected(row)
    assert told.startswith("these are questions with one answer: a pair needs a worse one too")


def test_questions_with_two_answers_of_other_kinds_are_no_problems_of_gsm8k() -> None:
    row = {"question": "When was that?", "answer": "In 1969.", "rejected": "In 1970."}
    assert detect_format([row]) is None
    told = why_undetected(row)
    assert told.startswith("the nearest, gsm8k, has: missing field (a line with #### in answer)")
    assert told.endswith("set data.columns to say which columns hold prompt, chosen and rejected")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"small_model": None}, "no preference (no solution is wrong)"),
        ({"question": None}, "missing field (question)"),
        ({"large_model": solved("Many.", True)}, "no final number (in the right solution)"),
        ({"large_model": solved("8", "yes")}, "wrong type (is_correct in large_model is text)"),  # type: ignore[arg-type]
        ({"small_model": {"is_correct": False, "solution": 3}}, "wrong type (rejected is a number"),
    ],
)
def test_rows_of_gsm8k_without_a_pair_are_told(changes: dict[str, Any], reason: str) -> None:
    assert refused(gsm8k(**changes), "gsm8k").startswith(reason)


def test_labelled_solutions_count_as_read_whatever_they_are_called(tmp_path: Path) -> None:
    path = tmp_path / "solutions.jsonl"
    path.write_text(json.dumps(gsm8k(difficulty="easy")) + "\n")
    loading = check_data(str(path)).loading
    assert (loading.format, loading.unread) == ("gsm8k", {"difficulty": 1})


@pytest.mark.parametrize(
    ("changes", "chosen", "rejected"),
    [
        ({}, "Not known", "The grandfather"),
        ({"question_polarity": "nonneg"}, "Not known", "The man"),
        ({"context_condition": "disambig", "label": 1}, "The man", "The grandfather"),
        ({"context_condition": "disambig", "label": 0}, "The grandfather", "Not known"),
        ({"target_loc": 1.0}, "Not known", "The man"),
    ],
)
def test_questions_make_pairs_against_the_stereotype(
    changes: dict[str, Any], chosen: str, rejected: str
) -> None:
    assert pair(bbq(**changes)) == (chosen, rejected)


def test_a_question_knows_which_option_goes_with_the_stereotype() -> None:
    question = read_question(bbq())
    assert (question.right, question.unknown, question.biased) == (2, 2, 0)
    assert read_question(bbq(question_polarity="nonneg")).biased == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"context": None}, "missing field (context)"),
        ({"label": 3}, "no such response (label is 3"),
        ({"label": True}, "no such response (label is True"),
        ({"label": 0}, "no such response (label is 0, against context_condition)"),
        ({"question_polarity": "odd"}, "no such response (question_polarity is 'odd'"),
        ({"answer_info": {}}, "missing field (answer_info.ans0)"),
        ({"target_loc": 2}, "no such response (target_loc is 2, which is unknown)"),
        ({"additional_metadata": {}}, "missing field (additional_metadata.stereotyped_groups)"),
        (
            {"additional_metadata": {"stereotyped_groups": ["tall"]}},
            "missing field (target_loc, where groups do not tell the options apart)",
        ),
        (
            {"answer_info": {f"ans{n}": ["x", "old"] for n in range(3)}},
            "not supported (answer_info with 0 options that are unknown)",
        ),
    ],
)
def test_questions_that_do_not_tell_are_refused(changes: dict[str, Any], reason: str) -> None:
    assert refused(bbq(**changes), "bbq").startswith(reason)


def test_prompts_with_constraints_are_drawn_by_number() -> None:
    config = DataConfig(source="constraints:12")
    loaded = load_preferences(config)
    assert (loaded.report.format, loaded.report.pairs, loaded.report.prompts) == ("trl", 12, 12)
    assert source_digest(config) != source_digest(DataConfig(source="constraints:13"))
    short = DataConfig(source="short-constraints:12")
    assert load_preferences(short).report.pairs == 12
    assert source_digest(short) != source_digest(config)


@pytest.mark.parametrize("source", ["constraints:", "constraints:many", "constraints:-1"])
def test_constraints_without_a_number_are_told(source: str) -> None:
    with pytest.raises(DataError, match=r"write constraints:NUMBER, such as constraints:600"):
        load_preferences(DataConfig(source=source))
    with pytest.raises(DataError, match="write constraints:NUMBER"):
        source_digest(DataConfig(source=source))
    with pytest.raises(DataError, match=r"write short-constraints:NUMBER, such as .*:400"):
        load_preferences(DataConfig(source=f"short-{source}"))


def test_what_names_a_hub_data_set_has_no_effect_on_drawn_prompts() -> None:
    with pytest.raises(DataError, match=r"data\.hub_split: has no effect on the drawn constraints"):
        load_preferences(DataConfig(source="constraints:3", hub_split="test"))
