"""The wiring of the methods that MACPO is compared with: Naive SFT in full, the rest beside it.

How to read the rows: `tests.methods.wiring`. Two teachers, `a` and `b`; two rounds where there are
any. In all of them only the student learns after the initialisation.
"""

from __future__ import annotations

from typing import Any

import pytest

from macpo.errors import ConfigError
from tests.methods.wiring import (
    CONFIG,
    Table,
    checks,
    difference,
    label,
    lay_out,
    made,
    of,
    read,
    table,
)

NAIVE_SFT = """
    data | split
    # Teachers on ground truth; the student on the first teacher's answers.
    init/a/positive | sft a+ from base | on data teacher chosen | as sft
    init/b/positive | sft b+ from base | on data teacher chosen | as sft
    init/a/positive-answers | answer a+ of init/a/positive | to data student
    init/student/positive | sft student+ from base | on init/a/positive-answers | as sft
"""

GRADED = "{conversation} {answer}?"
CHOICE = "{conversation} A {first} B {second}?"

ALIGNED_A = """
        + init/teacher-pairs | chosen and rejected of data teacher
        + init/a/reference | score a+ of init/a/positive | on init/teacher-pairs
        + init/a/aligned
            | dpo a+ from init/a/positive
            | on init/teacher-pairs
            | reference a+ of init/a/positive in init/a/reference
            | as dpo gamma 0
"""
ALIGNED_B = """
        + init/b/reference | score b+ of init/b/positive | on init/teacher-pairs
        + init/b/aligned
            | dpo b+ from init/b/positive
            | on init/teacher-pairs
            | reference b+ of init/b/positive in init/b/reference
            | as dpo gamma 0
"""
OWN = "round-t/student/positive-answers, round-t/student/positive-answers-1"
DATA = "init/unlabelled-0, init/unlabelled-1"
TESTED = "init/student/test-answers, round-1/student/test-answers-1"
TWO_OWN = """
        + round-t/student/positive-answers | answer student+ of student(0) | to data student
        + round-t/student/positive-answers-1 | answer student+ of student(0) | to data student
"""
WORSE_A, NEGATIVE_A = "score a+ of init/a/positive", "score a- of init/a/negative"
WORSE_B, NEGATIVE_B = "score b+ of init/b/positive", "score b- of init/b/negative"
SCORED_BY_A = f"""
        + round-t/student/a/better-scores | score a+ of init/a/aligned | on {OWN}
        + round-t/student/a/worse-scores | {WORSE_A} | on {OWN}
"""
SCORED_BY_B = f"""
        + round-t/student/b/better-scores | score b+ of init/b/aligned | on {OWN}
        + round-t/student/b/worse-scores | {WORSE_B} | on {OWN}
"""
PAIRED = f"""
        + round-t/student/pairs
            | chosen best, rejected worst of {OWN}
            | judged in round-t/student/log-ratios
"""
TRAINED = """
        + round-t/student/reference | score student+ of student(0) | on round-t/student/pairs
        + round-t/student/train
            | dpo student+ from student(0)
            | on round-t/student/pairs
            | reference student+ of student(0) in round-t/student/reference
            | as dpo gamma 0
"""

METHODS: dict[str, tuple[dict[str, Any], int, str]] = {
    "confident loss": (
        {"name": "confident-loss", "weight": 0.4, "warmup": 0.3, "threshold": 0.6},
        0,
        """
        ~ init/student/positive
            | confident sft student+ from base
            | on init/a/positive-answers
            | weight 0.4 after 0.3 where sure of 0.6
            | as sft
        """,
    ),
    "ceiling, SFT": (
        {"name": "ceiling", "dpo": False},
        0,
        """
        - init/a/positive-answers
        ~ init/student/positive | sft student+ from base | on data student chosen | as sft
        """,
    ),
    # The student's half's own labels.
    "ceiling": (
        {"name": "ceiling"},
        1,
        """
        - init/a/positive-answers
        ~ init/student/positive | sft student+ from base | on data student chosen | as sft
        + round-t/student/pairs | chosen and rejected of data student
        + round-t/student/reference | score student+ of student(0) | on round-t/student/pairs
        + round-t/student/train
            | dpo student+ from student(0)
            | on round-t/student/pairs
            | reference student+ of student(0) in round-t/student/reference
            | as dpo
        """,
    ),
    # arXiv 2401.01335, Algorithm 1: the supervised answer against the own one of before the round.
    "SPIN": (
        {"name": "spin"},
        2,
        """
        + round-t/student/positive-answers | answer student+ of student(t-1) | to data student
        + round-t/student/pairs
            | chosen init/a/positive-answers
            | rejected round-t/student/positive-answers
        + round-t/student/reference | score student+ of student(t-1) | on round-t/student/pairs
        + round-t/student/train
            | dpo student+ from student(t-1)
            | on round-t/student/pairs
            | reference student+ of student(t-1) in round-t/student/reference
            | as dpo gamma 0
        """,
    ),
    # arXiv 2401.10020, section 2: it judges its own candidates.
    "self-rewarding": (
        {"name": "self-rewarding", "candidates": 3, "question": GRADED, "grades": ["bad", "good"]},
        2,
        f"""
        + round-t/student/positive-answers | answer student+ of student(t-1) | to data student
        + round-t/student/positive-answers-1 | answer student+ of student(t-1) | to data student
        + round-t/student/positive-answers-2 | answer student+ of student(t-1) | to data student
        + round-t/student/grades
            | grade student+ of student(t-1)
            | on round-t/student/positive-answers, round-t/student/positive-answers-1,
                round-t/student/positive-answers-2
            | '{GRADED}' bad<good
        + round-t/student/pairs
            | chosen best, rejected worst of
                round-t/student/positive-answers, round-t/student/positive-answers-1,
                round-t/student/positive-answers-2
            | judged in round-t/student/grades
        + round-t/student/reference | score student+ of student(t-1) | on round-t/student/pairs
        + round-t/student/train
            | dpo student+ from student(t-1)
            | on round-t/student/pairs
            | reference student+ of student(t-1) in round-t/student/reference
            | as dpo gamma 0
        """,
    ),
    # arXiv 2309.00267: every teacher, as it is after SFT, says which of two answers is better ...
    "RLAIF": (
        {"name": "rlaif", "question": CHOICE},
        2,
        f"""
        + round-t/student/positive-answers | answer student+ of student(t-1) | to data student
        + round-t/student/positive-answers-1 | answer student+ of student(t-1) | to data student
        + round-t/a/labels
            | compare a+ of a(0)
            | on round-t/student/positive-answers and round-t/student/positive-answers-1
            | '{CHOICE}' A or B
        + round-t/b/labels
            | compare b+ of b(0)
            | on round-t/student/positive-answers and round-t/student/positive-answers-1
            | '{CHOICE}' A or B
        + round-t/student/pairs
            | chosen best, rejected worst of
                round-t/student/positive-answers, round-t/student/positive-answers-1
            | judged in round-t/a/labels, round-t/b/labels
        + round-t/student/reference | score student+ of student(t-1) | on round-t/student/pairs
        + round-t/student/train
            | dpo student+ from student(t-1)
            | on round-t/student/pairs
            | reference student+ of student(t-1) in round-t/student/reference
            | as dpo gamma 0
        """,
    ),
    # ... or grades them one by one.
    "RLAIF, graded": (
        {"name": "rlaif", "judging": "grade", "question": GRADED},
        2,
        f"""
        + round-t/student/positive-answers | answer student+ of student(t-1) | to data student
        + round-t/student/positive-answers-1 | answer student+ of student(t-1) | to data student
        + round-t/a/labels
            | grade a+ of a(0)
            | on round-t/student/positive-answers, round-t/student/positive-answers-1
            | '{GRADED}' 1<2<3<4<5
        + round-t/b/labels
            | grade b+ of b(0)
            | on round-t/student/positive-answers, round-t/student/positive-answers-1
            | '{GRADED}' 1<2<3<4<5
        + round-t/student/pairs
            | chosen best, rejected worst of
                round-t/student/positive-answers, round-t/student/positive-answers-1
            | judged in round-t/a/labels, round-t/b/labels
        + round-t/student/reference | score student+ of student(t-1) | on round-t/student/pairs
        + round-t/student/train
            | dpo student+ from student(t-1)
            | on round-t/student/pairs
            | reference student+ of student(t-1) in round-t/student/reference
            | as dpo gamma 0
        """,
    ),
    # arXiv 2307.12950: two prompts, one seed, so that the prompt alone makes the difference.
    "RLCD": (
        {"name": "rlcd", "positive_prompt": "Be good.", "negative_prompt": "Be bad."},
        1,
        """
        + round-t/student/positive-'Be good.'-answers
            | answer student+ of student(0)
            | to data student
            | under 'Be good.'
        + round-t/student/positive-'Be bad.'-answers
            | answer student+ of student(0)
            | to data student
            | under 'Be bad.'
            | seed of round-t/student/positive-'Be good.'-answers
        + round-t/student/pairs
            | chosen round-t/student/positive-'Be good.'-answers
            | rejected round-t/student/positive-'Be bad.'-answers
        + round-t/student/reference | score student+ of student(0) | on round-t/student/pairs
        + round-t/student/train
            | dpo student+ from student(0)
            | on round-t/student/pairs
            | reference student+ of student(0) in round-t/student/reference
            | as dpo gamma 0
        """,
    ),
    # arXiv 2409.08813: teachers aligned by DPO on their half's labels, their reward on the
    # student's own answers, and DPO of the student on what that labels.
    "WS-DPO": (
        {"name": "ws-dpo", "samples": 2},
        1,
        f"""
        {ALIGNED_A}
        {ALIGNED_B}
        {TWO_OWN}
        {SCORED_BY_A}
        {SCORED_BY_B}
        + round-t/student/log-ratios
            | mean of
                beta x round-t/student/a/better-scores less round-t/student/a/worse-scores,
                beta x round-t/student/b/better-scores less round-t/student/b/worse-scores
            | on round-t/student/positive-answers, round-t/student/positive-answers-1
        {PAIRED}
        {TRAINED}
        """,
    ),
    # The paper's own setting: one weak model, and the data's answers without their labels.
    "WS-DPO, data": (
        {"name": "ws-dpo", "answers": "data", "teachers": "first"},
        1,
        f"""
        {ALIGNED_A}
        + init/unlabelled-0 | answer 0 of each pair of data student
        + init/unlabelled-1 | answer 1 of each pair of data student
        {SCORED_BY_A.replace(OWN, DATA)}
        + round-t/student/log-ratios
            | mean of beta x round-t/student/a/better-scores less round-t/student/a/worse-scores
            | on init/unlabelled-0, init/unlabelled-1
        {PAIRED.replace(OWN, DATA)}
        {TRAINED}
        """,
    ),
    # arXiv 2603.04968, equations 7 and 8: the same, each pair weighed by the judges' certainty.
    "CW-DPO": (
        {"name": "cw-dpo"},
        1,
        f"""
        {ALIGNED_A}
        {ALIGNED_B}
        {TWO_OWN}
        {SCORED_BY_A}
        {SCORED_BY_B}
        + round-t/student/log-ratios
            | mean of
                beta x round-t/student/a/better-scores less round-t/student/a/worse-scores,
                beta x round-t/student/b/better-scores less round-t/student/b/worse-scores
            | on {OWN}
        {PAIRED}
        {TRAINED.rstrip()}
            | weighed by round-t/student/log-ratios
        """,
    ),
    # arXiv 2410.18640: the log-ratio itself is the target, on single answers.
    "WSPO": (
        {"name": "wspo", "gamma": 0.3, "answers": "data"},
        1,
        f"""
        {ALIGNED_A}
        {ALIGNED_B}
        + init/unlabelled-0 | answer 0 of each pair of data student
        + init/unlabelled-1 | answer 1 of each pair of data student
        {SCORED_BY_A.replace(OWN, DATA)}
        {SCORED_BY_B.replace(OWN, DATA)}
        + round-t/student/log-ratios
            | mean of
                1 x round-t/student/a/better-scores less round-t/student/a/worse-scores,
                1 x round-t/student/b/better-scores less round-t/student/b/worse-scores
            | on {DATA}
        + round-t/student/reference | score student+ of student(0) | on {DATA}
        + round-t/student/train
            | fit student+ from student(0)
            | on {DATA}
            | reference student+ of student(0) in round-t/student/reference
            | 0.3 x log-ratio to round-t/student/log-ratios
            | as dpo
        """,
    ),
    # arXiv 2510.07884: the first teacher, aligned, answers in contrast with what it was before;
    # SFT on that, then DPO against the student's own answers. alpha .4 is a push of 1 / .4 - 1.
    "ConG": (
        {"name": "cong", "alpha": 0.4, "plausible": 0.2},
        1,
        f"""
        - init/a/positive-answers
        {ALIGNED_A}
        + init/a/positive-pushed-answers
            | answer a+ of init/a/aligned
            | to data student
            | away from a+ of init/a/positive by 1.5
            | where plausible to 0.2
        ~ init/student/positive
            | sft student+ from base
            | on init/a/positive-pushed-answers
            | as sft
        + round-t/student/positive-answers | answer student+ of student(0) | to data student
        + round-t/student/pairs
            | chosen init/a/positive-pushed-answers
            | rejected round-t/student/positive-answers
        {TRAINED}
        """,
    ),
    "ConG-S": (
        {"name": "cong", "alpha": 0.4, "plausible": 0.2, "dpo": False},
        0,
        f"""
        - init/a/positive-answers
        {ALIGNED_A}
        + init/a/positive-pushed-answers
            | answer a+ of init/a/aligned
            | to data student
            | away from a+ of init/a/positive by 1.5
            | where plausible to 0.2
        ~ init/student/positive
            | sft student+ from base
            | on init/a/positive-pushed-answers
            | as sft
        """,
    ),
    # Our own: twins judge the student's answers of every round; the least of the teachers counts.
    "twin judges": (
        {"name": "twin-judges", "samples": 2},
        2,
        f"""
        + init/a/negative | sft a+ from init/a/positive | on data teacher rejected | as negative_sft
        + init/b/negative | sft b+ from init/b/positive | on data teacher rejected | as negative_sft
        {TWO_OWN.replace("student(0)", "student(t-1)")}
        {SCORED_BY_A.replace("a+ of init/a/aligned", "a+ of a(0)").replace(WORSE_A, NEGATIVE_A)}
        {SCORED_BY_B.replace("b+ of init/b/aligned", "b+ of b(0)").replace(WORSE_B, NEGATIVE_B)}
        + round-t/student/log-ratios
            | min of
                1 x round-t/student/a/better-scores less round-t/student/a/worse-scores,
                1 x round-t/student/b/better-scores less round-t/student/b/worse-scores
            | on round-t/student/positive-answers, round-t/student/positive-answers-1
        {PAIRED}
        {TRAINED.replace("student(0)", "student(t-1)").replace(" gamma 0", "")}
        """,
    ),
}
"""A `method` section, its number of rounds, and its difference to Naive SFT."""

SEARCH = f"""
        {ALIGNED_A}
        {ALIGNED_B}
        + round-1/student/test-answers-1
            | answer student+ of init/student/positive
            | to data test first 4
        {SCORED_BY_A.replace(OWN, TESTED).replace("round-t", "round-1")}
        {SCORED_BY_B.replace(OWN, TESTED).replace("round-t", "round-1")}
        + round-1/student/log-ratios
            | mean of
                beta x round-1/student/a/better-scores less round-1/student/a/worse-scores,
                beta x round-1/student/b/better-scores less round-1/student/b/worse-scores
            | on {TESTED}
        + round-1/student/best-answers | best of {TESTED} | judged in round-1/student/log-ratios
        + round-1/student/answer-metrics
            | measure round-1/student/best-answers
            | as student reads them
        + round-1/collapse
            | signs of collapse in
                init/student/evaluate, init/student/answer-metrics, init/a/evaluate,
                init/a/answer-metrics, init/b/evaluate, init/b/answer-metrics,
                init/student/evaluate, round-1/student/answer-metrics
"""
"""arXiv 2405.19262 against Naive SFT: nobody learns, and other answers are measured in round 1."""

WITHOUT_PAIRS = ("WSPO",)
"""They learn from single answers, and there are no pairs to be measured."""

ITERATED = ("SPIN", "self-rewarding", "RLAIF")

REFERENCES = {
    "initial": """
        ~ round-2/student/reference | score student+ of init/student/positive
            | on round-2/student/pairs
        ~ round-2/student/train
            | dpo student+ from round-1/student/train
            | on round-2/student/pairs
            | reference student+ of init/student/positive in round-2/student/reference
            | as dpo gamma 0
    """,
    "base": """
        ~ round-t/student/reference | score student+ of base | on round-t/student/pairs
        ~ round-t/student/train
            | dpo student+ from student(t-1)
            | on round-t/student/pairs
            | reference student+ of base in round-t/student/reference
            | as dpo gamma 0
    """,
}
"""By `dpo.reference`; `previous` is the default."""

MEASURED_ONCE = """
    init/NAME/test-answers | answer NAME+ of NAME(0) | to data test first 4
    init/NAME/evaluate | measure NAME+ of NAME(0) | on data test
    init/NAME/answer-metrics | measure init/NAME/test-answers | as NAME reads them
"""
MEASURED_EACH_ROUND = """
    round-t/student/test-answers
        | answer student+ of student(t)
        | to data test first 4
        | seed of init/student/test-answers
    round-t/student/evaluate | measure student+ of student(t) | on data test
    round-t/student/answer-metrics
        | measure round-t/student/test-answers
        | as student reads them
    round-t/student/pair-metrics | measure round-t/student/pairs
"""


@pytest.fixture(scope="module")
def naive() -> Table:
    return made(table(lay_out({"name": "naive-sft"})))


def test_naive_sft_is_weak_labels_alone(naive: Table) -> None:
    assert naive == read(NAIVE_SFT)


def test_naive_sft_is_where_macpo_begins(naive: Table) -> None:
    assert naive.items() < made(table(lay_out())).items()


@pytest.mark.parametrize("name", METHODS)
def test_method_is_wired_as_its_paper_says(naive: Table, name: str) -> None:
    method, rounds, expected = METHODS[name]
    assert difference(naive, made(table(lay_out(method)))) == read(expected, rounds)


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("name", ITERATED)
def test_reference_is_the_one_that_the_config_names(name: str, reference: str) -> None:
    method, _, _ = METHODS[name]
    before = made(table(lay_out(method)))
    after = made(table(lay_out(method, dpo={"learning_rate": 3e-5, "reference": reference})))
    assert difference(before, after) == read(REFERENCES[reference])


@pytest.mark.parametrize("name", METHODS)
def test_student_is_measured_after_every_round_and_the_teachers_once(name: str) -> None:
    method, rounds, _ = METHODS[name]
    rows = table(lay_out(method))
    expected = read(MEASURED_EACH_ROUND, rounds) if rounds else {}
    expected |= checks(rounds, ("student", "a", "b"), ("student",))
    if name in WITHOUT_PAIRS:
        del expected["round-1/student/pair-metrics"]
        signs = expected["round-1/collapse"].removesuffix(", round-1/student/pair-metrics")
        expected["round-1/collapse"] = signs
    for agent in ("student", "a", "b"):
        expected |= read(MEASURED_ONCE.replace("NAME", agent))
    assert {name: row for name, row in rows.items() if name not in made(rows)} == expected


def test_search_measures_the_best_answers_of_a_student_that_does_not_learn() -> None:
    plan = lay_out({"name": "weak-to-strong-search", "samples": 2})
    naive = table(lay_out({"name": "naive-sft"}))
    assert difference(naive, table(plan)) == read(SEARCH)
    assert plan.policies[1]["student"] == plan.policies[0]["student"]
    assert [list(chosen) for chosen in plan.answers] == [[], ["student"]]
    assert label(plan.answers[1]["student"]) == "round-1/student/best-answers"


def test_teachers_are_aligned_by_the_dpo_section_but_for_reference_and_anchor() -> None:
    before = made(table(lay_out({"name": "ws-dpo"})))
    dpo = {**CONFIG["dpo"], "reference": "base", "anchor": 0.2}
    changed = difference(before, made(table(lay_out({"name": "ws-dpo"}, dpo=dpo))))
    assert changed.keys() == {"~ round-1/student/reference", "~ round-1/student/train"}
    dpo = {**CONFIG["dpo"], "end_of_turn": "mask"}
    changed = difference(before, made(table(lay_out({"name": "ws-dpo"}, dpo=dpo))))
    assert changed == read(
        """
        ~ init/a/reference | score a+ of init/a/positive | on init/teacher-pairs | without ends
        ~ init/b/reference | score b+ of init/b/positive | on init/teacher-pairs | without ends
        ~ round-1/student/reference
            | score student+ of init/student/positive
            | on round-1/student/pairs
            | without ends
        """
    )


def test_search_without_test_answers_says_so() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.answers is 0; raise it"):
        lay_out({"name": "weak-to-strong-search"}, evaluation={"answers": 0})


@pytest.mark.parametrize("name", METHODS)
def test_plan_hands_out_the_last_student_and_the_teachers(name: str) -> None:
    method, rounds, _ = METHODS[name]
    final = {name: (t, of(policy)) for name, (t, policy) in lay_out(method).final().items()}
    trained = f"round-{rounds}/student/train" if rounds else "init/student/positive"
    assert final == {
        "student": (rounds, f"student+ of {trained}"),
        "a": (0, "a+ of init/a/positive"),
        "b": (0, "b+ of init/b/positive"),
    }
