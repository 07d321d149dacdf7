"""A round of MACPO: the student learns from the teachers, the teachers learn from the student.

Mutual positive behaviour augmentation says whose answers are `chosen`, hard negative behaviour
construction whose are `rejected` (paper, section 3.2 and 3.3): unfamiliar positives, familiar
negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from macpo.agents import Policy
from macpo.filter import Filter
from macpo.program import Answered, Program
from macpo.stage import Stage


@dataclass(frozen=True, slots=True)
class Learner:
    """An agent as a round finds it.

    `positive` is what it has learned so far, `initial` the same before the first round; `rejected`
    are the answers that it learns to avoid, `negative` the policy behind them, None where they
    were made without one. `pairs` are those that it has learned from in the rounds before, by
    round; `labels` ground truth that is mixed in, None for nothing.
    """

    positive: Policy
    initial: Policy
    negative: Policy | None
    rejected: Stage
    pairs: tuple[Stage, ...] = ()
    labels: Stage | None = None

    @property
    def name(self) -> str:
        """The agent's."""
        return self.positive.agent.name


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds in every turn of a run.

    Attributes:
        contrast: there is a DPO term.
        limits: of the guard on what is chosen, None without one.
        failing_as_rejected: what the guard refuses of a learner's own current answers is what that
            learner avoids.
        accumulate: pairs of all rounds so far are learned from, not of this one alone.
    """

    contrast: bool = True
    limits: Stage | None = None
    failing_as_rejected: bool = False
    accumulate: bool = False

    def guard(
        self, program: Program, t: int, learner: Learner, candidates: Answered, own: Stage | None
    ) -> tuple[Stage | None, Stage | None]:
        """Lay out the guard of a learner's pairs in round `t`.

        Args:
            program: gets the stage.
            t: the round.
            learner: whose pairs.
            candidates: answers that may be chosen.
            own: the learner's own current answers, if they are there.

        Returns:
            The guard, None without limits; and `own`, None if it is not looked at.
        """
        if self.limits is None:
            return None, None
        own = own if self.failing_as_rejected else None
        mine: Answered = [] if own is None else [(learner.positive.agent, own)]
        return program.guard(t, learner.name, self.limits, [*candidates, *mine]), own


def student_turn(
    program: Program,
    t: int,
    student: Learner,
    teachers: Sequence[Learner],
    sieve: Filter,
    rules: Rules,
    *,
    own: Stage | None = None,
    usual: Stage | None = None,
) -> Learner:
    """Chosen: the teachers' answers that the filter keeps. Rejected: the student's own negative's.

    The filter's pass also scores the rejected answers: where the policy that filters is the
    reference too, its scores are the reference log-probabilities of the training.

    Args:
        program: gets the stages.
        t: the round.
        student: who learns.
        teachers: who answers.
        sieve: which answers are kept.
        rules: what holds in every turn.
        own: the student's own answers as it is now, if they are there, for the guard.
        usual: own answers of the policy that filters, for the filter that asks for them.
    """
    answered = candidates(program, t, teachers, sieve.samples)
    answers = tuple(stage for _, stage in answered)
    base = program.untrained(student.positive.agent)
    by_name = {"current": student.positive, "initial": student.initial, "base": base}
    judge = by_name[sieve.policy]
    guard, failing = rules.guard(program, t, student, answered, own)
    pairs, scores = sieve.lay_out(
        program, t, judge, student.negative, answers, student.rejected, guard, failing, usual
    )
    reference = {"previous": student.positive, "initial": student.initial, "base": base}
    serves = reference[student.positive.agent.dpo.reference] == judge
    return _learn(program, t, student, pairs, scores if serves else None, rules)


def candidates(program: Program, t: int, teachers: Sequence[Learner], samples: int = 1) -> Answered:
    """Let every teacher's positive policy answer the student's prompts in round `t`."""
    return [
        (
            teacher.positive.agent,
            program.respond(f"round-{t}", teacher.positive, "student", t, sample=sample),
        )
        for teacher in teachers
        for sample in range(samples)
    ]


def teacher_turn(
    program: Program, t: int, teacher: Learner, tutor: Learner, rules: Rules
) -> Learner:
    """Chosen: the tutor's answers as they are. Rejected: the teacher's own negative's.

    Args:
        program: gets the stages.
        t: the round.
        teacher: who learns.
        tutor: the student; or the learner itself, in the ablation without mutual positives.
        rules: what holds in every turn.
    """
    chosen = program.respond(f"round-{t}", tutor.positive, "student", t)
    own = None
    if rules.limits is not None and tutor is not teacher:  # its candidates of this round
        own = program.respond(f"round-{t}", teacher.positive, "student", t)
    guard, failing = rules.guard(program, t, teacher, [(tutor.positive.agent, chosen)], own)
    pairs = program.pair(t, teacher.name, chosen, teacher.rejected, guard, failing)
    return _learn(program, t, teacher, pairs, None, rules)


def _learn(
    program: Program, t: int, learner: Learner, pairs: Stage, scores: Stage | None, rules: Rules
) -> Learner:
    """Train the learner's positive policy on its pairs, with `scores` of them if they are there.

    Pairs of rounds before are not in these scores, nor is ground truth.
    """
    so_far = (*learner.pairs, pairs) if rules.accumulate else (pairs,)
    lesson = program.gather_pairs(t, learner.name, so_far, learner.labels)
    known = scores if lesson is pairs else None
    if rules.contrast:
        policy = program.contrast(t, learner.positive, lesson, learner.initial, known)
    else:
        policy = program.imitate(t, learner.positive, lesson, learner.initial)
    return replace(learner, positive=policy, pairs=so_far)
