"""What stages say of their work before they run, against numbers worked by hand."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from pathlib import Path
from typing import Any

import pytest

from macpo.agents import Agent, Policy, Team
from macpo.config import RunConfig, check_config
from macpo.methods.build import build_plan
from macpo.program import Plan
from macpo.scoring import ScorePairs
from macpo.stage import Stage
from macpo.work import Answers, Known, Lengths, SplitSizes, Work
from tests.workbench import Workbench, make_agent, make_pairs

SIZES = SplitSizes(
    prompts={"teacher": 10, "student": 20, "test": 30, "validation": 5},
    pairs={"teacher": 11, "student": 21, "test": 31, "validation": 6},
    exact=True,
)
LENGTHS = {
    "student": Lengths(prompt=100, chosen=50, rejected=40, measured=True),
    "weak-a": Lengths(prompt=110, chosen=55, rejected=45, measured=True),
    "weak-b": Lengths(prompt=512, chosen=512, rejected=512, measured=False),
}

GRADING = {"question": "{question}" + "x" * 22 + "{answer}"}  # 40 characters: 10 tokens
COMPARING = {"question": "{question}" + "x" * 15 + "{first}{second}"}  # as many
QUESTIONS = str(Path(__file__).parents[1] / "examples" / "data" / "quickstart.jsonl")  # unread
VALIDATED = {"source": "x.jsonl", "splits": {"validation": 5}}
VARIETY: list[dict[str, Any]] = [
    {},
    {"method": {"contrast": False}},
    {"method": {"negatives": "decoding"}},
    {"method": {"negatives": "worst-of-n"}},
    {"method": {"filter": "contrast-mean"}},
    {"method": {"positives": "own"}},
    {"method": "naive-sft", "rounds": None},
    {"method": "ceiling", "rounds": None},
    {"method": "confident-loss", "rounds": None},
    {"method": "spin"},
    {"method": "self-rewarding"},
    {"method": "rlaif"},
    {"method": {"name": "rlaif", "judging": "grade"}},
    {"method": "rlcd", "rounds": None},
    {"method": "ws-dpo", "rounds": None},
    {"method": {"name": "ws-dpo", "answers": "data"}, "rounds": None},
    {"method": "cw-dpo", "rounds": None},
    {"method": "wspo", "rounds": None},
    {"method": "cong", "rounds": None},
    {"method": "weak-to-strong-search", "rounds": None},
    {"method": "twin-judges"},
    {"data": {"source": "testbed:60"}},
    {"data": VALIDATED},
    {"evaluation": {"answers": 4, "evaluators": ["kl", {"name": "bbq", "data": QUESTIONS}]}},
]
"""Configs that lay out every kind of stage."""


def config(**overrides: Any) -> RunConfig:
    values = {
        "name": "costs",
        "rounds": 1,
        "data": {"source": "x.jsonl"},
        "student": {"model": "student"},
        "teachers": [{"name": name, "model": name} for name in ("weak-a", "weak-b")],
        "sampling": {"max_new_tokens": 8},
        "evaluation": {"answers": 4},
        **overrides,
    }
    return check_config({key: value for key, value in values.items() if value is not None})


def layout(run: RunConfig) -> Plan:
    def agent(name: str) -> Agent:
        return make_agent(
            Path("nowhere"), name=name, sft=run.sft, negative_sft=run.negative_sft, dpo=run.dpo
        )

    return build_plan(run, Team(agent("student"), (agent("weak-a"), agent("weak-b"))), "data")


def works(run: RunConfig, answered: dict[str, Answers] | None = None) -> dict[str, Work]:
    plan = layout(run)
    by_key = {stage.key: (answered or {}).get(stage.name) for stage in plan}
    left = {key: answers for key, answers in by_key.items() if answers is not None}
    known = Known(SIZES, LENGTHS, left)
    return {stage.name: stage.work(known) for stage in plan}


def test_work_of_every_kind_of_stage() -> None:
    found = works(config(sft={"epochs": 3}, dpo={"epochs": 2, "reference": "base"}))

    assert found["data"] == Work()
    # 11 pairs of 110 + 55 tokens, 3 epochs
    assert found["init/weak-a/positive"] == Work(trained=11 * 165 * 3)
    assert found["init/weak-a/negative"] == Work(trained=11 * 155)
    # 20 prompts of 110 tokens, answers of at most 8
    assert found["init/weak-a/positive-answers"] == Work(20 * 110, 20 * 8, at_most=True)
    # 20 x (100 + 8), 3 epochs
    assert found["init/student/positive"] == Work(trained=20 * 108 * 3, at_most=True)
    # 4 of the 30 test prompts
    assert found["init/student/test-answers"] == Work(4 * 100, 4 * 8, at_most=True)
    # 31 pairs: the prompt once, both answers
    assert found["init/student/evaluate"] == Work(read=31 * 190)
    assert works(config(data=VALIDATED))["init/student/validate"] == Work(read=6 * 190)
    # the prompt once, two teachers' answers and the rejected one
    assert found["round-1/student/filter-scores"] == Work(read=20 * 124, at_most=True)
    assert found["round-1/student/pairs"] == Work()
    assert found["round-1/student/reference"] == Work(read=20 * 116, at_most=True)
    assert found["round-1/student/train"] == Work(trained=20 * 116 * 2, at_most=True)
    assert found["round-1/weak-a/reference"] == Work(read=20 * 126, at_most=True)


@pytest.mark.parametrize("run", VARIETY, ids=repr)
def test_every_stage_of_a_model_has_work_and_the_others_none(run: dict[str, Any]) -> None:
    found = works(config(**run))

    sorting = set()
    for stage in layout(config(**run)):
        assert (found[stage.name].tokens > 0) == (stage.agent is not None), stage.name
        if stage.agent is None:
            sorting.add(stage.kind)
    assert sorting <= {
        *("data", "pairs", "worst", "measure-answers", "measure-pairs", "collapse"),
        *("oracle", "oracle-pairs", "unlabelled", "log-ratio", "best"),
    }


def test_every_kind_of_stage_that_runs_a_policy_says_whose_and_how_much() -> None:
    known = Known(SIZES, LENGTHS, {})
    laid_out = [stage for run in VARIETY for stage in layout(config(**run))]

    running = {kind for kind in concrete(Stage) if policies_of(kind)}
    assert len(running) >= 10
    for kind in running:
        found = [stage for stage in laid_out if type(stage) is kind]
        assert found, f"no method here lays out {kind.__name__}; add one to VARIETY"
        for stage in found:
            assert stage.agent in [getattr(stage, name).agent for name in policies_of(kind)]
            assert stage.work(known).tokens > 0, stage.name


def concrete(kind: type[Stage]) -> set[type[Stage]]:
    """Return the stages of the library below a class."""
    below = {found for sub in kind.__subclasses__() for found in {sub, *concrete(sub)}}
    return {
        sub for sub in below if sub.__module__.startswith("macpo.") and not inspect.isabstract(sub)
    }


def policies_of(kind: type[Stage]) -> list[str]:
    """Return the fields of a stage that always hold a policy."""
    types = typing.get_type_hints(kind)
    return [field.name for field in dataclasses.fields(kind) if types[field.name] is Policy]


def test_judging_reads_every_answer_in_a_question() -> None:
    grades = works(config(method={"name": "self-rewarding", "candidates": 3, **GRADING}))
    # 3 x 20 prompts of 100 + 10 tokens, with an answer of at most 8
    assert grades["round-1/student/grades"] == Work(read=3 * 20 * 118, at_most=True)

    labels = works(config(method={"name": "rlaif", "judging": "grade", **GRADING}))
    # 2 x 20 prompts of 110 + 10 tokens
    assert labels["round-1/weak-a/labels"] == Work(read=2 * 20 * 128, at_most=True)

    labels = works(config(method={"name": "rlaif", **COMPARING}))
    # in two orders, 20 prompts of 110 + 10 tokens with two answers
    assert labels["round-1/weak-a/labels"] == Work(read=2 * 20 * 136, at_most=True)
    # 20 pairs of 100 + 8 + 8
    assert labels["round-1/student/train"] == Work(trained=20 * 116, at_most=True)


def test_training_without_contrast_takes_one_side() -> None:
    found = works(config(method={"contrast": False}, dpo={"epochs": 2}))

    assert found["round-1/student/train"] == Work(trained=2 * 20 * 108, at_most=True)


def test_training_with_the_confidence_loss_costs_what_sft_does() -> None:
    run = config(method="confident-loss", rounds=None, sft={"epochs": 3})

    assert works(run)["init/student/positive"] == Work(trained=3 * 20 * 108, at_most=True)


def test_two_policies_answer_where_one_is_pushed_away_from_the_other() -> None:
    found = works(config(method={"negatives": "decoding"}))

    pushed = found["init/student/negative-pushed-answers"]
    assert pushed == Work(read=2 * 20 * 100, written=2 * 20 * 8, at_most=True)


def test_answers_of_a_dry_trial_cost_nothing_and_what_reads_them_does() -> None:
    run = config(generation={"backend": "scripted"})
    found = works(run)

    respond = [stage for stage in layout(run) if stage.kind == "respond"]
    assert respond
    for stage in respond:
        assert stage.agent is None
        assert found[stage.name] == Work()
    assert found["init/student/positive"].trained > 0


def test_pairs_of_the_data_are_as_long_as_its_answers() -> None:
    found = works(config(method="ceiling", rounds=None))

    assert found["round-1/student/train"] == Work(trained=21 * 190)


def test_twins_read_every_answer_twice() -> None:
    found = works(config(method={"name": "twin-judges", "samples": 3}))

    # 20 prompts of 110 tokens with 3 answers of at most 8, under either twin
    for side in ("better", "worse"):
        scored = found[f"round-1/student/weak-a/{side}-scores"]
        assert scored == Work(read=20 * 134, at_most=True)
    # 20 pairs of 100 + 8 + 8
    assert found["round-1/student/train"] == Work(trained=20 * 116, at_most=True)


def test_unlabelled_answers_are_as_long_as_chosen_and_rejected_on_average() -> None:
    found = works(config(method={"name": "ws-dpo", "answers": "data"}, rounds=None))

    # 21 pairs: a prompt of 110 tokens with two answers of (55 + 45) / 2
    assert found["round-1/student/weak-a/better-scores"] == Work(read=21 * 210)
    assert found["init/weak-a/aligned"] == Work(trained=11 * 210)
    assert found["round-1/student/train"] == Work(trained=21 * 190)


def test_fitting_log_ratios_reads_a_prompt_with_every_answer() -> None:
    found = works(config(method={"name": "wspo", "samples": 3}, dpo={"epochs": 2}, rounds=None))

    assert found["round-1/student/train"] == Work(trained=2 * 3 * 20 * 108, at_most=True)


def test_best_of_several_answers_counts_once() -> None:
    found = works(config(method={"name": "weak-to-strong-search", "samples": 3}, rounds=None))

    # 4 of the 30 test prompts, 3 answers
    assert found["round-1/student/weak-a/worse-scores"] == Work(read=4 * 134, at_most=True)


def test_worst_of_several_answers_counts_once() -> None:
    found = works(config(method={"negatives": "worst-of-n", "negative_samples": 3}))

    assert found["init/student/worst-scores"] == Work(read=20 * 124, at_most=True)
    assert found["round-1/student/filter-scores"] == Work(read=20 * 124, at_most=True)


def test_stage_that_hides_what_it_leaves_is_named(tmp_path: Path) -> None:
    pairs = Workbench(tmp_path).write_pairs("mine", make_pairs(2))
    known = Known(SIZES, LENGTHS, {})

    with pytest.raises(TypeError, match=r"mine does not say what answers it leaves.*Written"):
        ScorePairs("scores", Policy(make_agent(), "positive"), pairs).work(known)


def test_answers_that_a_stage_recorded() -> None:
    assert Answers.recorded({"responses": 4, "tokens": 10}) == Answers(4, 2.5, at_most=False)
    assert Answers.recorded({"responses": 0, "tokens": 0}) == Answers(0, 0.0, at_most=False)
    assert Answers.recorded({"responses": 4, "empty": 0}) is None
    assert Answers.recorded({"pairs": 4}) is None


def test_lengths_that_are_limits_give_upper_bounds() -> None:
    found = works(config())

    assert found["init/weak-b/evaluate"] == Work(read=31 * 3 * 512, at_most=True)
    assert not found["init/weak-a/evaluate"].at_most


def test_answers_that_are_there_count_as_they_are() -> None:
    answered = {"init/weak-a/positive-answers": Answers(20, 2.5, at_most=False)}

    found = works(config(), answered)

    assert found["init/student/positive"] == Work(trained=20 * 102.5 * 3, at_most=False)


def test_top_k_multiplies_the_students_pairs() -> None:
    found = works(config(method={"top_k": 2}))

    assert found["round-1/student/train"].trained == 2 * 20 * 116
