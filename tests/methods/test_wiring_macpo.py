"""MACPO's wiring beside Algorithm 1 of the paper: who learns from whom, stage by stage.

How to read the rows: `tests.methods.wiring`. Two teachers, `a` and `b`; two rounds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

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

ALGORITHM_1 = """
    data | split

    # Initialisation. Teachers learn the good side of their half's ground truth ...
    init/a/positive | sft a+ from base | on data teacher chosen | as sft
    init/b/positive | sft b+ from base | on data teacher chosen | as sft
    # ... and go on with its bad side, which makes their negative policies.
    init/a/negative | sft a+ from init/a/positive | on data teacher rejected | as negative_sft
    init/b/negative | sft b+ from init/b/positive | on data teacher rejected | as negative_sft
    # The student learns weak labels: a teacher's answers to its prompts, Q_w2s ...
    init/a/positive-answers | answer a+ of init/a/positive | to data student
    init/student/positive | sft student+ from base | on init/a/positive-answers | as sft
    # ... and goes on with weak negative labels: answers of that teacher's negative policy.
    init/a/negative-answers | answer a- of init/a/negative | to data student
    init/student/negative
        | sft student+ from init/student/positive
        | on init/a/negative-answers
        | as negative_sft
    # Hard negatives: everybody's own negative policy answers, once for all rounds.
    init/b/negative-answers | answer b- of init/b/negative | to data student
    init/student/negative-answers | answer student- of init/student/negative | to data student

    # Round 1. The student: every teacher's positive policy answers ...
    round-1/a/positive-answers | answer a+ of init/a/positive | to data student
    round-1/b/positive-answers | answer b+ of init/b/positive | to data student
    # ... the student's positive policy scores what they say (and the rejected answers, for DPO) ...
    round-1/student/filter-scores
        | score student+ of init/student/positive
        | on round-1/a/positive-answers, round-1/b/positive-answers, init/student/negative-answers
    # ... and per prompt the least perplexing answer is contrasted with its own negative's.
    round-1/student/pairs
        | chosen best 1 by perplexity of round-1/a/positive-answers, round-1/b/positive-answers
        | scored by student+ of init/student/positive in round-1/student/filter-scores
        | rejected init/student/negative-answers
    # L_DPO + gamma L_SFT, from and against the policy before the round.
    round-1/student/train
        | dpo student+ from init/student/positive
        | on round-1/student/pairs
        | reference student+ of init/student/positive in round-1/student/filter-scores
        | as dpo
    # Round 1. Each teacher: the updated student's answer against its own negative's.
    round-1/student/positive-answers | answer student+ of round-1/student/train | to data student
    round-1/a/pairs | chosen round-1/student/positive-answers | rejected init/a/negative-answers
    round-1/a/reference | score a+ of init/a/positive | on round-1/a/pairs
    round-1/a/train
        | dpo a+ from init/a/positive
        | on round-1/a/pairs
        | reference a+ of init/a/positive in round-1/a/reference
        | as dpo
    round-1/b/pairs | chosen round-1/student/positive-answers | rejected init/b/negative-answers
    round-1/b/reference | score b+ of init/b/positive | on round-1/b/pairs
    round-1/b/train
        | dpo b+ from init/b/positive
        | on round-1/b/pairs
        | reference b+ of init/b/positive in round-1/b/reference
        | as dpo

    # Round 2: the same, from the policies of round 1; rejected answers are those of before.
    round-2/a/positive-answers | answer a+ of round-1/a/train | to data student
    round-2/b/positive-answers | answer b+ of round-1/b/train | to data student
    round-2/student/filter-scores
        | score student+ of round-1/student/train
        | on round-2/a/positive-answers, round-2/b/positive-answers, init/student/negative-answers
    round-2/student/pairs
        | chosen best 1 by perplexity of round-2/a/positive-answers, round-2/b/positive-answers
        | scored by student+ of round-1/student/train in round-2/student/filter-scores
        | rejected init/student/negative-answers
    round-2/student/train
        | dpo student+ from round-1/student/train
        | on round-2/student/pairs
        | reference student+ of round-1/student/train in round-2/student/filter-scores
        | as dpo
    round-2/student/positive-answers | answer student+ of round-2/student/train | to data student
    round-2/a/pairs | chosen round-2/student/positive-answers | rejected init/a/negative-answers
    round-2/a/reference | score a+ of round-1/a/train | on round-2/a/pairs
    round-2/a/train
        | dpo a+ from round-1/a/train
        | on round-2/a/pairs
        | reference a+ of round-1/a/train in round-2/a/reference
        | as dpo
    round-2/b/pairs | chosen round-2/student/positive-answers | rejected init/b/negative-answers
    round-2/b/reference | score b+ of round-1/b/train | on round-2/b/pairs
    round-2/b/train
        | dpo b+ from round-1/b/train
        | on round-2/b/pairs
        | reference b+ of round-1/b/train in round-2/b/reference
        | as dpo
"""
"""No row has a `seed of`: every use of randomness has a seed of its own."""

OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    # The paper's -MP: everybody reinforces its own positive policy's answers, of before the round.
    # Nothing is filtered, so that the student has a reference pass.
    "positives: own": (
        {"positives": "own"},
        """
        - round-t/student/filter-scores
        ~ round-t/student/positive-answers | answer student+ of student(t-1) | to data student
        ~ round-t/student/pairs
            | chosen round-t/student/positive-answers
            | rejected init/student/negative-answers
        + round-t/student/reference | score student+ of student(t-1) | on round-t/student/pairs
        ~ round-t/student/train
            | dpo student+ from student(t-1)
            | on round-t/student/pairs
            | reference student+ of student(t-1) in round-t/student/reference
            | as dpo
        ~ round-t/a/pairs | chosen round-t/a/positive-answers | rejected init/a/negative-answers
        ~ round-t/b/pairs | chosen round-t/b/positive-answers | rejected init/b/negative-answers
        """,
    ),
    # The paper's -HN: the student's rejected answers are the first teacher's, every teacher's are
    # the student's; so all teachers have the same pairs.
    "negatives: others": (
        {"negatives": "others"},
        """
        ~ round-t/student/filter-scores
            | score student+ of student(t-1)
            | on round-t/a/positive-answers, round-t/b/positive-answers, init/a/negative-answers
        ~ round-t/student/pairs
            | chosen best 1 by perplexity of round-t/a/positive-answers, round-t/b/positive-answers
            | scored by student+ of student(t-1) in round-t/student/filter-scores
            | rejected init/a/negative-answers
        ~ round-t/a/pairs
            | chosen round-t/student/positive-answers
            | rejected init/student/negative-answers
        - round-t/b/pairs
        ~ round-t/b/reference | score b+ of b(t-1) | on round-t/a/pairs
        ~ round-t/b/train
            | dpo b+ from b(t-1)
            | on round-t/a/pairs
            | reference b+ of b(t-1) in round-t/b/reference
            | as dpo
        """,
    ),
    # No negative policies: the positive one of after initialisation is asked for bad behaviour.
    "negatives: prompted": (
        {"negatives": "prompted", "negative_prompt": "Be bad."},
        """
        - init/a/negative
        - init/b/negative
        - init/student/negative
        - init/a/negative-answers
        - init/b/negative-answers
        - init/student/negative-answers
        + init/student/positive-'Be bad.'-answers
            | answer student+ of student(0)
            | to data student
            | under 'Be bad.'
        + init/a/positive-'Be bad.'-answers
            | answer a+ of a(0)
            | to data student
            | under 'Be bad.'
            | seed of init/a/positive-answers
        + init/b/positive-'Be bad.'-answers
            | answer b+ of b(0)
            | to data student
            | under 'Be bad.'
        ~ round-t/student/filter-scores
            | score student+ of student(t-1)
            | on round-t/a/positive-answers, round-t/b/positive-answers,
                init/student/positive-'Be bad.'-answers
        ~ round-t/student/pairs
            | chosen best 1 by perplexity of round-t/a/positive-answers, round-t/b/positive-answers
            | scored by student+ of student(t-1) in round-t/student/filter-scores
            | rejected init/student/positive-'Be bad.'-answers
        ~ round-t/a/pairs
            | chosen round-t/student/positive-answers
            | rejected init/a/positive-'Be bad.'-answers
        ~ round-t/b/pairs
            | chosen round-t/student/positive-answers
            | rejected init/b/positive-'Be bad.'-answers
        """,
    ),
    # The negative policy answers, pushed away from the positive one of the same agent.
    "negatives: decoding": (
        {"negatives": "decoding", "negative_strength": 0.7},
        """
        - init/b/negative-answers
        - init/student/negative-answers
        + init/student/negative-pushed-answers
            | answer student- of init/student/negative
            | to data student
            | away from student+ of student(0) by 0.7
        + init/a/negative-pushed-answers
            | answer a- of init/a/negative
            | to data student
            | away from a+ of a(0) by 0.7
            | seed of init/a/negative-answers
        + init/b/negative-pushed-answers
            | answer b- of init/b/negative
            | to data student
            | away from b+ of b(0) by 0.7
        ~ round-t/student/filter-scores
            | score student+ of student(t-1)
            | on round-t/a/positive-answers, round-t/b/positive-answers,
                init/student/negative-pushed-answers
        ~ round-t/student/pairs
            | chosen best 1 by perplexity of round-t/a/positive-answers, round-t/b/positive-answers
            | scored by student+ of student(t-1) in round-t/student/filter-scores
            | rejected init/student/negative-pushed-answers
        ~ round-t/a/pairs
            | chosen round-t/student/positive-answers
            | rejected init/a/negative-pushed-answers
        ~ round-t/b/pairs
            | chosen round-t/student/positive-answers
            | rejected init/b/negative-pushed-answers
        """,
    ),
    # No negative policies: the positive one answers twice, and finds one more perplexing. Teacher
    # a's first answers are the weak labels.
    "negatives: worst-of-n": (
        {"negatives": "worst-of-n", "negative_samples": 2},
        """
        - init/a/negative
        - init/b/negative
        - init/student/negative
        - init/a/negative-answers
        - init/b/negative-answers
        - init/student/negative-answers
        + init/student/positive-answers | answer student+ of student(0) | to data student
        + init/student/positive-answers-1 | answer student+ of student(0) | to data student
        + init/student/worst-scores
            | score student+ of student(0)
            | on init/student/positive-answers, init/student/positive-answers-1
        + init/student/worst-answers
            | worst of init/student/positive-answers, init/student/positive-answers-1
            | scored by student+ of student(0) in init/student/worst-scores
        + init/a/positive-answers-1 | answer a+ of a(0) | to data student
        + init/a/worst-scores
            | score a+ of a(0)
            | on init/a/positive-answers, init/a/positive-answers-1
        + init/a/worst-answers
            | worst of init/a/positive-answers, init/a/positive-answers-1
            | scored by a+ of a(0) in init/a/worst-scores
        + init/b/positive-answers | answer b+ of b(0) | to data student
        + init/b/positive-answers-1 | answer b+ of b(0) | to data student
        + init/b/worst-scores
            | score b+ of b(0)
            | on init/b/positive-answers, init/b/positive-answers-1
        + init/b/worst-answers
            | worst of init/b/positive-answers, init/b/positive-answers-1
            | scored by b+ of b(0) in init/b/worst-scores
        ~ round-t/student/filter-scores
            | score student+ of student(t-1)
            | on round-t/a/positive-answers, round-t/b/positive-answers, init/student/worst-answers
        ~ round-t/student/pairs
            | chosen best 1 by perplexity of round-t/a/positive-answers, round-t/b/positive-answers
            | scored by student+ of student(t-1) in round-t/student/filter-scores
            | rejected init/student/worst-answers
        ~ round-t/a/pairs | chosen round-t/student/positive-answers | rejected init/a/worst-answers
        ~ round-t/b/pairs | chosen round-t/student/positive-answers | rejected init/b/worst-answers
        """,
    ),
    # The control without contrast: the same pairs, their chosen side alone, the same step size.
    "contrast: false": (
        {"contrast": False},
        """
        - round-t/a/reference
        - round-t/b/reference
        ~ round-t/student/train
            | sft student+ from student(t-1)
            | on chosen of round-t/student/pairs
            | as dpo
        ~ round-t/a/train | sft a+ from a(t-1) | on chosen of round-t/a/pairs | as dpo
        ~ round-t/b/train | sft b+ from b(t-1) | on chosen of round-t/b/pairs | as dpo
        """,
    ),
    # The student's positive policy is compared with its negative one.
    **{
        f"filter: {filter}": (
            {"filter": filter},
            f"""
            + round-t/student/negative-scores
                | score student- of init/student/negative
                | on round-t/a/positive-answers, round-t/b/positive-answers
            ~ round-t/student/pairs
                | chosen best 1 by {filter}
                    of round-t/a/positive-answers, round-t/b/positive-answers
                | scored by student+ of student(t-1) in round-t/student/filter-scores
                | against student- of init/student/negative in round-t/student/negative-scores
                | rejected init/student/negative-answers
            """,
        )
        for filter in ("contrast-mean", "contrast-sum")
    },
    # Lots are drawn anew in every round; that is in the stage's seed alone.
    "filter: random": (
        {"filter": "random"},
        """
        ~ round-t/student/pairs
            | chosen best 1 by random of round-t/a/positive-answers, round-t/b/positive-answers
            | scored by student+ of student(t-1) in round-t/student/filter-scores
            | rejected init/student/negative-answers
        """,
    ),
    # What is usual is what the student that filters says itself: it is asked once in round 0.
    "filter: typical": (
        {"filter": "typical"},
        """
        + init/student/positive-answers | answer student+ of student(0) | to data student
        ~ round-1/student/filter-scores
            | score student+ of student(0)
            | on round-1/a/positive-answers, round-1/b/positive-answers,
                init/student/negative-answers, init/student/positive-answers
        ~ round-1/student/pairs
            | chosen best 1 by typical of round-1/a/positive-answers, round-1/b/positive-answers
            | scored by student+ of student(0) in round-1/student/filter-scores
            | usual as init/student/positive-answers
            | rejected init/student/negative-answers
        ~ round-2/student/filter-scores
            | score student+ of round-1/student/train
            | on round-2/a/positive-answers, round-2/b/positive-answers,
                init/student/negative-answers, round-1/student/positive-answers
        ~ round-2/student/pairs
            | chosen best 1 by typical of round-2/a/positive-answers, round-2/b/positive-answers
            | scored by student+ of round-1/student/train in round-2/student/filter-scores
            | usual as round-1/student/positive-answers
            | rejected init/student/negative-answers
        """,
    ),
    # The bare base filters: nothing that it scores is the reference's.
    "filter_policy: base": (
        {"filter_policy": "base"},
        """
        + round-t/student/reference | score student+ of student(t-1) | on round-t/student/pairs
        ~ round-t/student/train
            | dpo student+ from student(t-1)
            | on round-t/student/pairs
            | reference student+ of student(t-1) in round-t/student/reference
            | as dpo
        ~ round-t/student/filter-scores
            | score student+ of base
            | on round-t/a/positive-answers, round-t/b/positive-answers,
                init/student/negative-answers
        ~ round-t/student/pairs
            | chosen best 1 by perplexity of round-t/a/positive-answers, round-t/b/positive-answers
            | scored by student+ of base in round-t/student/filter-scores
            | rejected init/student/negative-answers
        """,
    ),
    # The student of before the first round filters; it is no longer the reference.
    "filter_policy: initial": (
        {"filter_policy": "initial"},
        """
        # In round 1 both are the same policy: the filter's scores serve.
        + round-2/student/reference | score student+ of round-1/student/train
            | on round-2/student/pairs
        ~ round-2/student/train
            | dpo student+ from round-1/student/train
            | on round-2/student/pairs
            | reference student+ of round-1/student/train in round-2/student/reference
            | as dpo
        ~ round-2/student/filter-scores
            | score student+ of init/student/positive
            | on round-2/a/positive-answers, round-2/b/positive-answers,
                init/student/negative-answers
        ~ round-2/student/pairs
            | chosen best 1 by perplexity of round-2/a/positive-answers, round-2/b/positive-answers
            | scored by student+ of init/student/positive in round-2/student/filter-scores
            | rejected init/student/negative-answers
        """,
    ),
    "samples": (
        {"samples": 2},
        """
        + round-t/a/positive-answers-1 | answer a+ of a(t-1) | to data student
        + round-t/b/positive-answers-1 | answer b+ of b(t-1) | to data student
        ~ round-t/student/filter-scores
            | score student+ of student(t-1)
            | on round-t/a/positive-answers, round-t/a/positive-answers-1,
                round-t/b/positive-answers, round-t/b/positive-answers-1,
                init/student/negative-answers
        ~ round-t/student/pairs
            | chosen best 1 by perplexity of
                round-t/a/positive-answers, round-t/a/positive-answers-1,
                round-t/b/positive-answers, round-t/b/positive-answers-1
            | scored by student+ of student(t-1) in round-t/student/filter-scores
            | rejected init/student/negative-answers
        """,
    ),
    "top_k": (
        {"top_k": 2},
        """
        ~ round-t/student/pairs
            | chosen best 2 by perplexity of round-t/a/positive-answers, round-t/b/positive-answers
            | scored by student+ of student(t-1) in round-t/student/filter-scores
            | rejected init/student/negative-answers
        """,
    ),
    # Limits by the teachers' first candidates. What is refused of a learner's own current answers,
    # which others learn from anyway, it avoids; the student has none such before the first round.
    "guard": (
        {"guard": True},
        """
        + init/guard-limits
            | limits at 0.9 of round-1/a/positive-answers, round-1/b/positive-answers
            | as a, b read them
        + round-1/student/guard
            | guard by init/guard-limits round-1/a/positive-answers, round-1/b/positive-answers
            | as a, b read them
        ~ round-1/student/pairs
            | chosen best 1 by perplexity of round-1/a/positive-answers, round-1/b/positive-answers
            | scored by student+ of student(0) in round-1/student/filter-scores
            | rejected init/student/negative-answers
            | guarded by round-1/student/guard
        + round-2/student/guard
            | guard by init/guard-limits round-2/a/positive-answers, round-2/b/positive-answers,
                round-1/student/positive-answers
            | as a, b, student read them
        ~ round-2/student/filter-scores
            | score student+ of round-1/student/train
            | on round-2/a/positive-answers, round-2/b/positive-answers,
                init/student/negative-answers, round-1/student/positive-answers
        ~ round-2/student/pairs
            | chosen best 1 by perplexity of round-2/a/positive-answers, round-2/b/positive-answers
            | scored by student+ of round-1/student/train in round-2/student/filter-scores
            | rejected init/student/negative-answers
            | or refused of round-1/student/positive-answers
            | guarded by round-2/student/guard
        + round-t/a/guard
            | guard by init/guard-limits
                round-t/student/positive-answers, round-t/a/positive-answers
            | as student, a read them
        ~ round-t/a/pairs
            | chosen round-t/student/positive-answers
            | rejected init/a/negative-answers
            | or refused of round-t/a/positive-answers
            | guarded by round-t/a/guard
        + round-t/b/guard
            | guard by init/guard-limits
                round-t/student/positive-answers, round-t/b/positive-answers
            | as student, b read them
        ~ round-t/b/pairs
            | chosen round-t/student/positive-answers
            | rejected init/b/negative-answers
            | or refused of round-t/b/positive-answers
            | guarded by round-t/b/guard
        """,
    ),
    # From the second round on: what the filter scored is not all that the student learns from.
    "accumulate": (
        {"accumulate": True},
        """
        + round-2/student/all-pairs | all of round-1/student/pairs, round-2/student/pairs
        + round-2/student/reference
            | score student+ of round-1/student/train
            | on round-2/student/all-pairs
        ~ round-2/student/train
            | dpo student+ from round-1/student/train
            | on round-2/student/all-pairs
            | reference student+ of round-1/student/train in round-2/student/reference
            | as dpo
        + round-2/a/all-pairs | all of round-1/a/pairs, round-2/a/pairs
        ~ round-2/a/reference | score a+ of round-1/a/train | on round-2/a/all-pairs
        ~ round-2/a/train
            | dpo a+ from round-1/a/train
            | on round-2/a/all-pairs
            | reference a+ of round-1/a/train in round-2/a/reference
            | as dpo
        + round-2/b/all-pairs | all of round-1/b/pairs, round-2/b/pairs
        ~ round-2/b/reference | score b+ of round-1/b/train | on round-2/b/all-pairs
        ~ round-2/b/train
            | dpo b+ from round-1/b/train
            | on round-2/b/all-pairs
            | reference b+ of round-1/b/train in round-2/b/reference
            | as dpo
        """,
    ),
    # The teachers learn from the student of before the round.
    "schedule: simultaneous": (
        {"schedule": "simultaneous"},
        """
        ~ round-t/student/positive-answers | answer student+ of student(t-1) | to data student
        """,
    ),
}

REFERENCES: dict[str, str] = {
    "previous": "",
    # The policies of after initialisation: in round 1 those of before the round, which filtered.
    "initial": """
        + round-2/student/reference | score student+ of init/student/positive
            | on round-2/student/pairs
        ~ round-2/student/train
            | dpo student+ from round-1/student/train
            | on round-2/student/pairs
            | reference student+ of init/student/positive in round-2/student/reference
            | as dpo
        ~ round-2/a/reference | score a+ of init/a/positive | on round-2/a/pairs
        ~ round-2/a/train
            | dpo a+ from round-1/a/train
            | on round-2/a/pairs
            | reference a+ of init/a/positive in round-2/a/reference
            | as dpo
        ~ round-2/b/reference | score b+ of init/b/positive | on round-2/b/pairs
        ~ round-2/b/train
            | dpo b+ from round-1/b/train
            | on round-2/b/pairs
            | reference b+ of init/b/positive in round-2/b/reference
            | as dpo
        """,
    # The bare base models, as LLaMA-Factory has it (its issue #8459).
    "base": """
        + round-t/student/reference | score student+ of base | on round-t/student/pairs
        ~ round-t/student/train
            | dpo student+ from student(t-1)
            | on round-t/student/pairs
            | reference student+ of base in round-t/student/reference
            | as dpo
        ~ round-t/a/reference | score a+ of base | on round-t/a/pairs
        ~ round-t/a/train
            | dpo a+ from a(t-1)
            | on round-t/a/pairs
            | reference a+ of base in round-t/a/reference
            | as dpo
        ~ round-t/b/reference | score b+ of base | on round-t/b/pairs
        ~ round-t/b/train
            | dpo b+ from b(t-1)
            | on round-t/b/pairs
            | reference b+ of base in round-t/b/reference
            | as dpo
        """,
}
"""By `dpo.reference`."""

MASKED = """
    # The filter's scores are with the end of turn, and serve the filter alone.
    + round-t/student/reference
        | score student+ of student(t-1)
        | on round-t/student/pairs
        | without ends
    ~ round-t/student/train
        | dpo student+ from student(t-1)
        | on round-t/student/pairs
        | reference student+ of student(t-1) in round-t/student/reference
        | as dpo
    ~ round-t/a/reference | score a+ of a(t-1) | on round-t/a/pairs | without ends
    ~ round-t/b/reference | score b+ of b(t-1) | on round-t/b/pairs | without ends
"""
"""With `dpo.end_of_turn: mask`."""

START_INITIAL = """
    # In round 1 nothing changes. From round 2 on training begins where round 1 began, against the
    # reference of before: the policy that the last round left.
    ~ round-2/student/train
        | dpo student+ from init/student/positive
        | on round-2/student/pairs
        | reference student+ of round-1/student/train in round-2/student/filter-scores
        | as dpo
    ~ round-2/a/train
        | dpo a+ from init/a/positive
        | on round-2/a/pairs
        | reference a+ of round-1/a/train in round-2/a/reference
        | as dpo
    ~ round-2/b/train
        | dpo b+ from init/b/positive
        | on round-2/b/pairs
        | reference b+ of round-1/b/train in round-2/b/reference
        | as dpo
"""

START_INITIAL_WITHOUT_CONTRAST = """
    ~ round-2/student/train
        | sft student+ from init/student/positive
        | on chosen of round-2/student/pairs
        | as dpo
    ~ round-2/a/train | sft a+ from init/a/positive | on chosen of round-2/a/pairs | as dpo
    ~ round-2/b/train | sft b+ from init/b/positive | on chosen of round-2/b/pairs | as dpo
"""

MEASURED = """
    init/NAME/test-answers | answer NAME+ of NAME(0) | to data test first 4
    init/NAME/evaluate | measure NAME+ of NAME(0) | on data test
    init/NAME/answer-metrics | measure init/NAME/test-answers | as NAME reads them
    round-t/NAME/test-answers
        | answer NAME+ of NAME(t)
        | to data test first 4
        | seed of init/NAME/test-answers
    round-t/NAME/evaluate | measure NAME+ of NAME(t) | on data test
    round-t/NAME/answer-metrics | measure round-t/NAME/test-answers | as NAME reads them
    round-t/NAME/pair-metrics | measure round-t/NAME/pairs
"""
"""Everybody after every round, with the same luck: what differs between rounds is the policy."""


@pytest.fixture(scope="module")
def default() -> Table:
    return made(table(lay_out()))


def test_macpo_is_algorithm_1(default: Table) -> None:
    assert default == read(ALGORITHM_1)


GUARDED: dict[str, tuple[dict[str, Any], str]] = {
    "negatives alone": (
        {"guard": {"failing_as_rejected": False}},
        """
        ~ round-2/student/guard
            | guard by init/guard-limits round-2/a/positive-answers, round-2/b/positive-answers
            | as a, b read them
        ~ round-2/student/filter-scores
            | score student+ of round-1/student/train
            | on round-2/a/positive-answers, round-2/b/positive-answers,
                init/student/negative-answers
        ~ round-2/student/pairs
            | chosen best 1 by perplexity of round-2/a/positive-answers, round-2/b/positive-answers
            | scored by student+ of round-1/student/train in round-2/student/filter-scores
            | rejected init/student/negative-answers
            | guarded by round-2/student/guard
        # Both teachers have the same answers to be guarded, so that one guard does.
        ~ round-t/a/guard
            | guard by init/guard-limits round-t/student/positive-answers
            | as student read them
        - round-t/b/guard
        ~ round-t/a/pairs
            | chosen round-t/student/positive-answers
            | rejected init/a/negative-answers
            | guarded by round-t/a/guard
        ~ round-t/b/pairs
            | chosen round-t/student/positive-answers
            | rejected init/b/negative-answers
            | guarded by round-t/a/guard
        """,
    ),
    "some limits given": (
        {"guard": {"quantile": 0.8, "copying": 0.3, "unfinished": True}},
        """
        ~ init/guard-limits
            | limits at 0.8 of round-1/a/positive-answers, round-1/b/positive-answers
            | as a, b read them
            | unfinished 1
            | copying 0.3
        """,
    ),
    # The student of before the round answers in it.
    "simultaneous": (
        {"guard": True, "schedule": "simultaneous"},
        """
        ~ round-t/student/positive-answers | answer student+ of student(t-1) | to data student
        ~ round-t/student/guard
            | guard by init/guard-limits round-t/a/positive-answers, round-t/b/positive-answers,
                round-t/student/positive-answers
            | as a, b, student read them
        ~ round-t/student/filter-scores
            | score student+ of student(t-1)
            | on round-t/a/positive-answers, round-t/b/positive-answers,
                init/student/negative-answers, round-t/student/positive-answers
        ~ round-t/student/pairs
            | chosen best 1 by perplexity of round-t/a/positive-answers, round-t/b/positive-answers
            | scored by student+ of student(t-1) in round-t/student/filter-scores
            | rejected init/student/negative-answers
            | or refused of round-t/student/positive-answers
            | guarded by round-t/student/guard
        """,
    ),
}
"""What further options change of a run with a guard."""


@pytest.mark.parametrize("option", GUARDED)
def test_option_of_the_guard_changes_that_and_nothing_else(option: str) -> None:
    method, expected = GUARDED[option]
    guarded = made(table(lay_out({"guard": True})))
    assert difference(guarded, made(table(lay_out(method)))) == read(expected)


def test_own_answers_are_guarded_and_never_avoided_where_they_are_chosen() -> None:
    rows = made(table(lay_out({"guard": True, "positives": "own"})))
    for name in ("student", "a"):
        expected = f"""
            round-t/{name}/guard
                | guard by init/guard-limits round-t/{name}/positive-answers
                | as {name} read them
            round-t/{name}/pairs
                | chosen round-t/{name}/positive-answers
                | rejected init/{name}/negative-answers
                | guarded by round-t/{name}/guard
        """
        assert read(expected).items() <= rows.items()


def test_guard_without_contrast_refuses_and_looks_at_no_own_answers() -> None:
    rows = made(table(lay_out({"guard": True, "contrast": False})))
    assert "or refused" not in " ".join(rows.values())
    assert rows["round-2/student/pairs"].endswith("guarded by round-2/student/guard")


@pytest.mark.parametrize("option", OPTIONS)
def test_option_changes_that_and_nothing_else(default: Table, option: str) -> None:
    method, expected = OPTIONS[option]
    assert difference(default, made(table(lay_out(method)))) == read(expected)


@pytest.mark.parametrize("reference", REFERENCES)
def test_reference_is_the_one_that_the_config_names(default: Table, reference: str) -> None:
    plan = lay_out(dpo={**CONFIG["dpo"], "reference": reference})
    assert difference(default, made(table(plan))) == read(REFERENCES[reference])


@pytest.mark.parametrize(
    ("method", "expected"),
    [({}, START_INITIAL), ({"contrast": False}, START_INITIAL_WITHOUT_CONTRAST)],
    ids=["contrast", "imitation"],
)
def test_every_round_starts_where_the_config_says(method: dict[str, Any], expected: str) -> None:
    plans = [
        lay_out(method, dpo={**CONFIG["dpo"], "start": start}) for start in ("previous", "initial")
    ]
    before, after = (made(table(plan)) for plan in plans)
    assert before == made(table(lay_out(method)))
    assert difference(before, after) == read(expected)
    first = [{s.name: s.key for s in plan if s.name.startswith("round-1")} for plan in plans]
    assert first[0] == first[1]  # what the option does not change is not run again


@pytest.mark.parametrize("method", [{}, {"contrast": False}], ids=["contrast", "imitation"])
def test_everybody_goes_back_to_where_round_1_began(method: dict[str, Any]) -> None:
    before = made(table(lay_out(method)))
    after = made(table(lay_out(method, dpo={**CONFIG["dpo"], "anchor": 0.2})))
    trained = [f"round-{t}/{name}/train" for t in (1, 2) for name in ("student", "a", "b")]
    expected = {}
    for row in trained:
        name = row.split("/")[1]
        expected[f"~ {row}"] = f"{before[row]} | back by 0.2 to {name}+ of init/{name}/positive"
    assert difference(before, after) == expected


def test_references_are_scored_without_ends_where_these_are_masked(default: Table) -> None:
    plan = lay_out(dpo={**CONFIG["dpo"], "end_of_turn": "mask"})
    assert difference(default, made(table(plan))) == read(MASKED)


def test_an_agent_starts_as_its_own_section_says(default: Table) -> None:
    own = made(table(lay_out(own={"a": {"dpo": {"start": "initial"}}})))
    row = next(row for row in START_INITIAL.split("~") if "dpo a+" in row)
    assert difference(default, own) == read("~" + row)


REPLAY = """
    + init/teacher-pairs | chosen and rejected of data teacher
    + round-t/a/replayed-pairs | round-t/a/pairs | with 0.25 of init/teacher-pairs
    ~ round-t/a/reference | score a+ of a(t-1) | on round-t/a/replayed-pairs
    ~ round-t/a/train
        | dpo a+ from a(t-1)
        | on round-t/a/replayed-pairs
        | reference a+ of a(t-1) in round-t/a/reference
        | as dpo
    + round-t/b/replayed-pairs | round-t/b/pairs | with 0.25 of init/teacher-pairs
    ~ round-t/b/reference | score b+ of b(t-1) | on round-t/b/replayed-pairs
    ~ round-t/b/train
        | dpo b+ from b(t-1)
        | on round-t/b/replayed-pairs
        | reference b+ of b(t-1) in round-t/b/reference
        | as dpo
"""


def test_ground_truth_is_replayed_to_the_teachers_and_never_to_the_student(default: Table) -> None:
    data = {**CONFIG["data"], "replay": 0.25}
    assert difference(default, made(table(lay_out(data=data)))) == read(REPLAY)


def test_replay_is_a_share_of_all_that_is_accumulated() -> None:
    rows = made(table(lay_out({"accumulate": True}, data={**CONFIG["data"], "replay": 0.25})))
    assert rows["round-2/a/replayed-pairs"] == (
        "round-2/a/all-pairs | with 0.25 of init/teacher-pairs"
    )
    assert rows["round-2/a/all-pairs"] == "all of round-1/a/pairs, round-2/a/pairs"


def test_random_filter_draws_new_lots_in_every_round() -> None:
    pairs = [s for s in lay_out({"filter": "random"}) if label(s).endswith("student/pairs")]
    assert len({stage.seed for stage in pairs}) == len(pairs)  # type: ignore[attr-defined]


def test_typical_of_the_first_policy_is_what_the_first_policy_says() -> None:
    rows = made(table(lay_out({"filter": "typical", "filter_policy": "initial"})))
    expected = """
        round-t/student/filter-scores
            | score student+ of student(0)
            | on round-t/a/positive-answers, round-t/b/positive-answers,
                init/student/negative-answers, init/student/positive-answers
        round-t/student/pairs
            | chosen best 1 by typical of round-t/a/positive-answers, round-t/b/positive-answers
            | scored by student+ of student(0) in round-t/student/filter-scores
            | usual as init/student/positive-answers
            | rejected init/student/negative-answers
    """
    assert read(expected).items() <= rows.items()


@pytest.mark.parametrize(("policy", "reference"), [("initial", "student(0)"), ("base", "base")])
def test_scores_of_the_filter_serve_where_its_policy_is_the_reference(
    policy: str, reference: str
) -> None:
    """Both are the student of after initialisation, or its base: there is no reference pass."""
    dpo = {**CONFIG["dpo"], "reference": policy}
    rows = made(table(lay_out({"filter_policy": policy}, dpo=dpo)))
    expected = f"""
        round-t/student/train
            | dpo student+ from student(t-1)
            | on round-t/student/pairs
            | reference student+ of {reference} in round-t/student/filter-scores
            | as dpo
    """
    assert read(expected).items() <= rows.items()
    assert not any(name.endswith("student/reference") for name in rows)


def test_every_later_round_is_like_the_second(default: Table) -> None:
    longer = made(table(lay_out(rounds=3)))
    later = {"round-2": "round-3", "round-1": "round-2"}
    second = {name: row for name, row in default.items() if name.startswith("round-2")}
    third = {renamed(name, later): renamed(row, later) for name, row in second.items()}
    assert longer == {**default, **third}


def test_every_other_teacher_is_like_the_second(default: Table) -> None:
    more = made(table(lay_out(teachers=[{"name": n, "model": n} for n in "abc"])))
    for name, row in default.items():
        if "/b/" in name:
            assert more[renamed(name, {"b": "c"})] == renamed(row, {"b": "c"})
        elif "/student/" not in name:
            assert more[name] == row
    assert more["round-1/student/pairs"].startswith(
        "chosen best 1 by perplexity of "
        "round-1/a/positive-answers, round-1/b/positive-answers, round-1/c/positive-answers | "
    )


def test_one_teacher_is_enough(default: Table) -> None:
    """It is the first, whose answers are the weak labels; the filter has one answer to take."""
    alone = made(table(lay_out(use_teachers=1)))
    assert alone.keys() == {name for name in default if "/b/" not in name}
    changed = {name for name, row in alone.items() if row != default[name]}
    assert changed == {f"round-{t}/student/{x}" for t in (1, 2) for x in ("filter-scores", "pairs")}


def test_everybody_is_measured_after_every_round_with_the_same_luck() -> None:
    rows = table(lay_out())
    everybody = ("student", "a", "b")
    expected = checks(2, everybody, everybody)
    for name in everybody:
        expected |= read(MEASURED.replace("NAME", name))
    assert {name: row for name, row in rows.items() if name not in made(rows)} == expected


def test_plan_knows_who_stands_where() -> None:
    plan = lay_out()
    after = [{name: of(policy) for name, policy in known.items()} for known in plan.policies]
    assert after == [
        {name: f"{name}+ of init/{name}/positive" for name in ("student", "a", "b")},
        *(
            {name: f"{name}+ of round-{t}/{name}/train" for name in ("student", "a", "b")}
            for t in (1, 2)
        ),
    ]
    final = {name: (t, of(policy)) for name, (t, policy) in plan.final().items()}
    assert final == {name: (2, policy) for name, policy in after[2].items()}
    assert [
        {name: [label(stage) for stage in stages] for name, stages in found.items()}
        for found in plan.evaluations
    ] == [
        {
            name: [
                f"{when}/{name}/{kind}"
                for kind in ("evaluate", "answer-metrics", "pair-metrics")
                if (when, kind) != ("init", "pair-metrics")
            ]
            for name in ("student", "a", "b")
        }
        for when in ("init", "round-1", "round-2")
    ]


def renamed(text: str, names: Mapping[str, str]) -> str:
    """Put other names in the place of whole words."""
    return re.sub(rf"\b({'|'.join(names)})\b", lambda found: names[found[0]], text)
