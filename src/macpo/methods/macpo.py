"""MACPO, Algorithm 1 (arXiv 2410.07672); read it beside the paper.

    ground truth ──SFT──> teacher_k(+) ──SFT on y-──> teacher_k(-)
                              │ weak labels              │ weak negatives
                              v                          v
                          student(+) ──────────SFT──> student(-)
    round t:
      teacher_k(+) ──answers──> perplexity filter by student(+) ──chosen──┐
      student(-) ──answers────────────────────────────────────rejected────┴─> DPO+SFT ─> student(+)'
      student(+)' ──answers──chosen──┐
      teacher_k(-) ──answers──rejected┴─> DPO+SFT ─> teacher_k(+)'

Negative policies are trained once, and their answers are sampled once and serve every round, as in
the authors' released data. The paper's ablations are options of the method (`MACPOConfig`).
"""

from __future__ import annotations

from macpo.agents import Policy
from macpo.config import MACPOConfig
from macpo.methods.program import Naive, Program, naive_sft, weak_labels
from macpo.negatives import WorstAnswers
from macpo.positives import DirectPairs, FilteredPairs
from macpo.scoring import ScoreResponses
from macpo.stage import Stage


def plan_macpo(program: Program, method: MACPOConfig) -> None:
    """Initialise, then T rounds; everybody is evaluated before and after each."""
    naive = naive_sft(program)
    initial = positive = {naive.student.agent.name: naive.student, **naive.teachers}
    negative = _negative_policies(program, method, naive)
    rejected = _rejected_answers(program, method, positive, negative)
    for t in range(1, program.config.rounds + 1):
        positive = _Round(program, method, t, positive, negative, initial, rejected).play()
        program.evaluate(t, positive)


def _negative_policies(program: Program, method: MACPOConfig, naive: Naive) -> dict[str, Policy]:
    """Teachers go on with the bad side of ground truth, the student with weak negative labels.

    None are trained where nothing asks for them.
    """
    if method.negatives in ("prompted", "worst-of-n") and method.filter == "perplexity":
        return {}
    negative = {
        name: program.fine_tune_on_dataset(policy, "negative")
        for name, policy in naive.teachers.items()
    }
    labels = weak_labels(program, negative)
    student = naive.student.agent.name
    return {**negative, student: program.fine_tune_on_answers(naive.student, "negative", labels)}


def _rejected_answers(
    program: Program,
    method: MACPOConfig,
    positive: dict[str, Policy],
    negative: dict[str, Policy],
) -> dict[str, Stage]:
    """Let every learner's bad side answer the student's prompts, once for all rounds.

    Hard negatives are familiar: the learner's own. Without them (the paper's -HN) the student gets
    the first teacher's, and every teacher the student's.
    """
    if method.negatives == "prompted":
        return {
            name: program.respond("init", policy, "student", 0, system=method.negative_prompt)
            for name, policy in positive.items()
        }
    if method.negatives == "decoding":
        return {
            name: program.respond(
                "init",
                policy,
                "student",
                0,
                away_from=positive[name],
                strength=method.negative_strength,
            )
            for name, policy in negative.items()
        }
    if method.negatives == "worst-of-n":
        return {name: _worst(program, method, policy) for name, policy in positive.items()}
    answers = {
        name: program.respond("init", policy, "student", 0) for name, policy in negative.items()
    }
    if method.negatives == "own":
        return answers
    student = program.team.student.name
    first = program.team.teachers[0].name
    return {name: answers[first if name == student else student] for name in answers}


def _worst(program: Program, method: MACPOConfig, policy: Policy) -> Stage:
    """Sample a policy several times and keep what it finds most perplexing."""
    name = policy.agent.name
    answers = tuple(
        program.respond("init", policy, "student", 0, sample=n)
        for n in range(method.negative_samples)
    )
    scores = program.add(ScoreResponses(f"init/{name}/worst-scores", policy, answers))
    return program.add(WorstAnswers(f"init/{name}/worst-answers", answers, scores))


class _Round:
    """One round: the student learns from the teachers, the teachers learn from the student."""

    def __init__(
        self,
        program: Program,
        method: MACPOConfig,
        t: int,
        positive: dict[str, Policy],
        negative: dict[str, Policy],
        initial: dict[str, Policy],
        rejected: dict[str, Stage],
    ) -> None:
        self.program = program
        self.method = method
        self.t = t
        self.positive = positive
        self.negative = negative
        self.initial = initial
        self.rejected = rejected
        self.student = program.team.student.name

    def play(self) -> dict[str, Policy]:
        """Return everybody's positive policy after the round."""
        updated = {self.student: self._student_turn()}
        sequential = self.method.schedule == "sequential"
        tutor = updated[self.student] if sequential else self.positive[self.student]
        for teacher in self.program.team.teachers:
            updated[teacher.name] = self._teacher_turn(teacher.name, tutor)
        return updated

    def _student_turn(self) -> Policy:
        """Filter the teachers' answers by the student's perplexity, contrast with its negative.

        The filter's pass also scores the rejected answers: where the policy that filters is the
        reference too, its scores are the reference log-probabilities of the training.
        """
        name, rejected = self.student, self.rejected[self.student]
        policy = self.positive[name]
        if self.method.positives == "own":
            return self._learn(name, self._direct_pairs(name, policy))
        answers = tuple(
            self._respond(self.positive[teacher.name], sample)
            for teacher in self.program.team.teachers
            for sample in range(self.method.samples)
        )
        here = f"round-{self.t}/{name}"
        judge = {"current": policy, "initial": self.initial[name]}[self.method.filter_policy]
        scores = self.program.add(
            ScoreResponses(f"{here}/filter-scores", judge, (*answers, rejected))
        )
        against = None
        if self.method.filter != "perplexity":
            against = self.program.add(
                ScoreResponses(f"{here}/negative-scores", self.negative[name], answers)
            )
        pairs = self.program.add(
            FilteredPairs(
                f"{here}/pairs",
                answers,
                rejected,
                scores,
                self.method.top_k,
                self.method.filter,
                against,
            )
        )
        serves = {"current": "previous", "initial": "initial"}[self.method.filter_policy]
        reference = self.program.team.student.dpo.reference
        return self._learn(name, pairs, scores if serves == reference else None)

    def _teacher_turn(self, name: str, tutor: Policy) -> Policy:
        """Take the student's answers as they are, contrast with the teacher's own negative."""
        source = self.positive[name] if self.method.positives == "own" else tutor
        return self._learn(name, self._direct_pairs(name, source))

    def _direct_pairs(self, name: str, source: Policy) -> Stage:
        """Pair a policy's answers with the learner's rejected ones."""
        answers = self._respond(source)
        return self.program.add(
            DirectPairs(f"round-{self.t}/{name}/pairs", answers, self.rejected[name])
        )

    def _respond(self, policy: Policy, sample: int = 0) -> Stage:
        return self.program.respond(f"round-{self.t}", policy, "student", self.t, sample=sample)

    def _learn(self, name: str, pairs: Stage, scores: Stage | None = None) -> Policy:
        start = self.positive[name]
        if not self.method.contrast:
            return self.program.imitate(self.t, start, pairs)
        return self.program.contrast(self.t, start, pairs, self.initial[name], scores)
