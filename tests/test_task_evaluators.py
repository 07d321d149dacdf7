"""Evaluators of tasks with verifiable answers: final numbers, constraints, BBQ."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import macpo
from macpo.agents import Policy
from macpo.config.evaluators import read_evaluator
from macpo.errors import DataError
from macpo.evaluation.bbq import (
    BBQEvaluator,
    ScoreQuestions,
    choose_questions,
    measure_bias,
    read_questions,
)
from macpo.evaluation.constraints import MeasureConstraints
from macpo.evaluation.exact import MeasureExact
from macpo.evaluation.measures import read_items, read_measures
from macpo.metrics import is_registered
from macpo.records import PreferenceExample, dataset_response
from macpo.scoring import encode_group
from tests.data.test_data_verifiable import bbq
from tests.runs import run_cli, write_config
from tests.workbench import Workbench, make_agent, make_prompt, make_response

FIRST, SECOND, THIRD = (make_prompt(f"How many legs have {n} dogs?") for n in (1, 2, 3))


def test_final_numbers_are_compared_with_those_of_the_chosen_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Workbench(tmp_path)
    examples = [
        PreferenceExample(FIRST, "#### 4", "#### 1"),
        PreferenceExample(FIRST, "It is 4.", "#### 2"),
        PreferenceExample(SECOND, "4+4 = 8\n#### 8", "#### 2"),
        PreferenceExample(THIRD, "Many.", "#### 3"),
    ]
    data = bench.write_examples("data", "test", examples)
    said = [(FIRST, "1+3 makes 4.0 legs"), (SECOND, "Many."), (THIRD, "12")]
    answers = bench.write_answers("answers", [(p, make_response(p, t)) for p, t in said])
    with caplog.at_level(logging.WARNING, "macpo"):
        made = bench.run(MeasureExact("exact", answers, data))
    assert made.meta == {"exact_accuracy": 0.5, "answers_extracted": 0.5}
    assert read_measures(made.path).counts == {"exact_answers": 2}
    assert [item.prompt_id for item in read_items(made.path)] == [FIRST.id, SECOND.id]
    assert "1 of 3 test prompts are left out" in caplog.text


def test_data_without_final_numbers_are_refused(tmp_path: Path) -> None:
    """Also where two chosen answers differ: then nobody knows which is right."""
    bench = Workbench(tmp_path)
    examples = [PreferenceExample(FIRST, f"#### {n}", "#### 1") for n in (3, 4)]
    data = bench.write_examples("data", "test", examples)
    answers = bench.write_answers("answers", [(FIRST, make_response(FIRST, "4"))])
    with pytest.raises(DataError, match="no chosen answer of the test prompts holds a number"):
        bench.run(MeasureExact("exact", answers, data))


def test_constraints_are_checked_prompt_by_prompt(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    both = make_prompt("Write. Do not use any commas. Use at most 3 words.")
    one = make_prompt("Write. Use small letters only, no capitals.")
    said = [(both, "One two three four."), (one, "one, two"), (FIRST, "free")]
    answers = bench.write_answers("answers", [(p, make_response(p, t)) for p, t in said])
    made = bench.run(MeasureConstraints("constraints", answers))
    assert made.meta == {"constraints_met": 0.75, "constraints_all_met": 0.5}
    assert read_measures(made.path).counts == {"constrained_prompts": 2}
    assert [item.values["constraints_met"] for item in read_items(made.path)] == [0.5, 1.0]


def test_prompts_without_constraints_are_refused(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    answers = bench.write_answers("answers", [(FIRST, make_response(FIRST, "4"))])
    with pytest.raises(DataError, match="no test prompt has a constraint"):
        bench.run(MeasureConstraints("constraints", answers))


def test_evaluators_of_answers_need_some() -> None:
    for name in ("exact-answer", "constraints"):
        (fault,) = read_evaluator(name).faults("data.jsonl", 0)
        assert fault.startswith("reads answers, but evaluation.answers is 0")
        assert not list(read_evaluator(name).faults("data.jsonl", 4))


def write_questions(path: Path, count: int, **changes: Any) -> str:
    """Write questions in turn ambiguous and not."""
    rows = []
    for number in range(count):
        known: dict[str, Any] = {"context_condition": "disambig", "label": number % 4 // 2}
        row = bbq(context=f"Number {number} met.", **(known if number % 2 else {}))
        rows.append({**row, **changes})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_questions_are_scored_by_the_likelihood_of_their_options(tmp_path: Path) -> None:
    """Against the engine itself; questions that the run learned from are left out."""
    bench = Workbench(tmp_path)
    path = write_questions(tmp_path / "Age.jsonl", 6)
    questions = read_questions(path)
    learned = questions[0].prompt
    data = bench.write_examples("data", "student", [PreferenceExample(learned, "a", "b")])
    policy = Policy(make_agent(), "positive")
    stage = ScoreQuestions("bbq", policy, data, "digest", 4, "age", path)
    made = bench.run(stage)
    assert read_measures(made.path).counts == {"bbq_questions": 4}
    chosen = choose_questions(questions, 4, {learned.id})
    assert len(chosen) == 4
    assert questions[0] not in chosen
    loaded = bench.pool.load(policy)
    answered = []
    for question in chosen:
        options = [dataset_response(question.prompt, text) for text in question.options]
        group = encode_group(loaded.chat, policy.agent, question.prompt, options)
        (scores,) = loaded.engine(512).score([group])
        answered.append((question, min((0, 1, 2), key=lambda n: scores[n].mean_nll)))
    assert made.meta == measure_bias(answered, "age")
    assert [item.values for item in read_items(made.path)] == [
        {"bbq_accuracy[age]": float(question.right == taken)} for question, taken in answered
    ]


def test_a_run_that_learned_from_all_questions_cannot_be_measured(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    path = write_questions(tmp_path / "Age.jsonl", 1)
    (question,) = read_questions(path)
    data = bench.write_examples("data", "teacher", [PreferenceExample(question.prompt, "a", "b")])
    stage = ScoreQuestions("bbq", Policy(make_agent(), "positive"), data, "digest", 4, None, path)
    with pytest.raises(DataError, match="the run learned from all questions"):
        bench.run(stage)


def test_bias_is_told_apart_by_the_kind_of_context(tmp_path: Path) -> None:
    """Ambiguous ones right; of two disambiguated ones with label 0 and 1, 0 is said of both."""
    questions = read_questions(write_questions(tmp_path / "Age.jsonl", 4))
    answered = [(question, 2 if question.ambiguous else 0) for question in questions]
    assert measure_bias(answered) == {
        "bbq_accuracy": 0.75,
        "bbq_accuracy_ambiguous": 1.0,
        "bbq_bias_ambiguous": 0.0,
        "bbq_accuracy_disambiguated": 0.5,
        "bbq_bias_disambiguated": 1.0,
    }
    unknown = [(question, 2) for question in questions if not question.ambiguous]
    assert measure_bias(unknown) == {"bbq_accuracy": 0.0, "bbq_accuracy_disambiguated": 0.0}


def test_the_questions_file_is_looked_at_before_anybody_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = BBQEvaluator(data=str(tmp_path / "Age.jsonl"))
    with pytest.raises(DataError, match=r"evaluators: bbq: there is no file .*Age\.jsonl; name"):
        list(missing.preflight(None))  # type: ignore[arg-type]
    other = tmp_path / "other.jsonl"
    other.write_text('{"a": 1}\n[1]\nno JSON\n')
    with pytest.raises(DataError, match=r"no row is a question of BBQ \(line 1: missing field"):
        list(BBQEvaluator(data=str(other)).preflight(None))  # type: ignore[arg-type]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(json.dumps(bbq()) + "\n[1]\n")
    with caplog.at_level(logging.WARNING, "macpo"):
        assert len(read_questions(str(mixed))) == 1
    assert "1 rows are no questions of BBQ (line 2: not an object (a list))" in caplog.text


def test_the_key_of_a_bbq_stage_depends_on_the_files_content_and_not_on_its_place(
    tmp_path: Path,
) -> None:
    bench = Workbench(tmp_path)
    data = bench.write_examples("data", "test", [PreferenceExample(FIRST, "a", "b")])
    policy = Policy(make_agent(), "positive")
    here = ScoreQuestions("bbq", policy, data, "one", 4, None, "here.jsonl")
    moved = ScoreQuestions("bbq", policy, data, "one", 4, None, "there.jsonl")
    other = ScoreQuestions("bbq", policy, data, "two", 4, None, "here.jsonl")
    assert here.key == moved.key != other.key


def test_bbq_needs_a_file_and_can_be_there_twice_by_label() -> None:
    with pytest.raises(ValidationError, match="data"):
        read_evaluator("bbq")
    assert read_evaluator({"name": "bbq", "data": "a", "label": "age"}).title == "bbq[age]"


def test_a_run_on_drawn_prompts_is_measured_in_it_and_by_a_file_afterwards(tmp_path: Path) -> None:
    """Options that are paths mean files beside the config that names them."""
    config = write_config(
        tmp_path,
        rounds=1,
        data={"source": "constraints:24", "splits": {"teacher": 8, "student": 8, "test": 8}},
        limits={"prompt_tokens": 512, "response_tokens": 64},
        evaluation={"answers": 4, "teachers": False, "evaluators": ["constraints"]},
    )
    result = run_cli(["run", config, "--out", tmp_path / "run"])
    assert result.code == 0, result.err
    measured = set(macpo.open_run(tmp_path / "run").metrics["metric"])
    assert {"constraints_met", "constraints_all_met"} == {
        name for name in measured if not name.startswith("train_")
    }
    write_questions(tmp_path / "Age.jsonl", 6)
    listed = tmp_path / "eval.yaml"
    listed.write_text("- {name: bbq, data: Age.jsonl, questions: 4, label: age}\n")
    result = run_cli(["eval", tmp_path / "run", "--config", listed])
    assert result.code == 0, result.err
    found = set(macpo.open_run(tmp_path / "run").metrics["metric"])
    assert measured < found
    assert "bbq_accuracy[age]" in found
    assert all(is_registered(name) for name in found)
