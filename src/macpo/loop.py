"""MACPO's Algorithm 1 as a graph of stages; read it beside the paper (arXiv 2410.07672).

    ground truth ──SFT──> teacher_k(+) ──SFT on y-──> teacher_k(-)
                              │ weak labels              │ weak negatives
                              v                          v
                          student(+) ──────────SFT──> student(-)
    round t:
      teacher_k(+) ──answers──> perplexity filter by student(+) ──chosen──┐
      student(-) ──answers────────────────────────────────────rejected────┴─> DPO+SFT ─> student(+)'
      student(+)' ──answers──chosen──┐
      teacher_k(-) ──answers──rejected┴─> DPO+SFT ─> teacher_k(+)'

Nothing runs here. `build_plan` makes the stages in the order in which they may run; each names the
stages it reads, and the runner (macpo.execution) finds or runs them. Negative policies are trained
once, and their answers are sampled once and serve every round, as in the authors' released data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from macpo.agents import Agent, Policy, Team
from macpo.config import RunConfig
from macpo.data.stages import Split, SplitData
from macpo.evaluation.preference import Evaluate
from macpo.generation.stages import Respond
from macpo.positives import DirectPairs, FilteredPairs
from macpo.scoring import ScorePairs, ScoreResponses
from macpo.seeds import stable_seed
from macpo.stage import Stage
from macpo.training.stages import SFTOnAnswers, SFTOnDataset, TrainDPO


@dataclass(slots=True)
class Plan:
    """A run: its stages in order, and what they stand for.

    `policies[t][agent]` is the positive policy after round t (0: after initialisation), and
    `evaluations[t][agent]` the stage that measures it.
    """

    stages: list[Stage] = field(default_factory=list)
    policies: list[dict[str, Policy]] = field(default_factory=list)
    evaluations: list[dict[str, Evaluate]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)


def build_plan(config: RunConfig, team: Team, data_digest: str) -> Plan:
    """Lay out a whole run.

    Args:
        config: the run.
        team: its agents, as `macpo.agents.assemble_team` resolved them.
        data_digest: as `macpo.data.stages.content_digest` returns it.
    """
    return _Algorithm(config, team, data_digest).plan_run()


class _Algorithm:
    """Builds the stages of a run; one method per paragraph of the algorithm."""

    def __init__(self, config: RunConfig, team: Team, data_digest: str) -> None:
        self.config = config
        self.team = team
        self.plan = Plan()
        self.data = self._add(
            SplitData("data", config.data, data_digest, self._seed("split"), team.agents)
        )

    def plan_run(self) -> Plan:
        """Initialise, then T rounds; everybody is evaluated before and after each."""
        positive, negative = self._initialise()
        initial = dict(positive)
        self._evaluate(0, positive)
        rejected = self._rejected_answers(negative)
        for t in range(1, self.config.rounds + 1):
            positive = self._round(t, positive, initial, rejected)
            self._evaluate(t, positive)
        return self.plan

    def _initialise(self) -> tuple[dict[str, Policy], dict[str, Policy]]:
        """Teachers on ground truth; the student on weak labels, which the first teacher writes."""
        positive: dict[str, Policy] = {}
        negative: dict[str, Policy] = {}
        for teacher in self.team.teachers:
            name = teacher.name
            positive[name] = self._fine_tune(teacher, "chosen", Policy(teacher, "positive"))
            negative[name] = self._fine_tune(teacher, "rejected", positive[name])
        first = self.team.teachers[0]
        student = self.team.student
        labels = self._respond("init", positive[first.name], "student", 0)
        trained = self._add(
            SFTOnAnswers(
                "init/student/positive",
                Policy(student, "positive"),
                labels,
                student.sft,
                self._seed("sft", student.name),
            )
        )
        positive[student.name] = Policy(student, "positive", trained)
        weak_negatives = self._respond("init", negative[first.name], "student", 0)
        trained = self._add(
            SFTOnAnswers(
                "init/student/negative",
                positive[student.name],
                weak_negatives,
                student.negative_sft,
                self._seed("negative-sft", student.name),
            )
        )
        negative[student.name] = Policy(student, "negative", trained)
        return positive, negative

    def _fine_tune(self, teacher: Agent, side: str, start: Policy) -> Policy:
        """SFT a teacher on one side of the ground truth."""
        good = side == "chosen"
        role = "positive" if good else "negative"
        trained = self._add(
            SFTOnDataset(
                f"init/{teacher.name}/{role}",
                start,
                self.data,
                "chosen" if good else "rejected",
                teacher.sft if good else teacher.negative_sft,
                self._seed("sft" if good else "negative-sft", teacher.name),
            )
        )
        return Policy(teacher, "positive" if good else "negative", trained)

    def _rejected_answers(self, negative: dict[str, Policy]) -> dict[str, Stage]:
        """Every negative policy answers the student's prompts, once for all rounds."""
        return {
            agent.name: self._respond("init", negative[agent.name], "student", 0)
            for agent in self.team.agents
        }

    def _round(
        self,
        t: int,
        positive: dict[str, Policy],
        initial: dict[str, Policy],
        rejected: dict[str, Stage],
    ) -> dict[str, Policy]:
        """The student learns from the teachers, then the teachers from the updated student."""
        updated: dict[str, Policy] = {}
        student = self.team.student.name
        updated[student] = self._student_turn(t, positive, initial[student], rejected[student])
        answers = self._respond(f"round-{t}", updated[student], "student", t)
        for teacher in self.team.teachers:
            name = teacher.name
            pairs = self._add(DirectPairs(f"round-{t}/{name}/pairs", answers, rejected[name]))
            reference = self._reference(teacher, positive[name], initial[name])
            scores = self._add(ScorePairs(f"round-{t}/{name}/reference", reference, pairs))
            updated[name] = self._contrast(t, positive[name], pairs, scores)
        return updated

    def _student_turn(
        self, t: int, positive: dict[str, Policy], initial: Policy, rejected: Stage
    ) -> Policy:
        """Filter the teachers' answers by the student's perplexity and contrast with its negative.

        The filter's pass also scores the rejected answers: with reference `previous` its scores
        are the reference log-probabilities, and there is no reference pass.
        """
        student = positive[self.team.student.name]
        name = student.agent.name
        answers = tuple(
            self._respond(f"round-{t}", positive[teacher.name], "student", t)
            for teacher in self.team.teachers
        )
        scores = self._add(
            ScoreResponses(f"round-{t}/{name}/filter-scores", student, (*answers, rejected))
        )
        pairs = self._add(
            FilteredPairs(
                f"round-{t}/{name}/pairs", answers, rejected, scores, self.config.positives.top_k
            )
        )
        if student.agent.dpo.reference != "previous":
            reference = self._reference(student.agent, student, initial)
            scores = self._add(ScorePairs(f"round-{t}/{name}/reference", reference, pairs))
        return self._contrast(t, student, pairs, scores)

    def _reference(self, agent: Agent, previous: Policy, initial: Policy) -> Policy:
        """Return the reference policy that the config names."""
        return {
            "previous": previous,
            "initial": initial,
            "base": Policy(agent, "positive"),
        }[agent.dpo.reference]

    def _contrast(self, t: int, start: Policy, pairs: Stage, scores: Stage) -> Policy:
        """Train one positive policy on its pairs."""
        agent = start.agent
        trained = self._add(
            TrainDPO(
                f"round-{t}/{agent.name}/train",
                start,
                pairs,
                scores,
                agent.dpo,
                self._seed("dpo", agent.name, t),
            )
        )
        return Policy(agent, "positive", trained)

    def _respond(
        self, when: str, policy: Policy, split: Split, t: int, limit: int | None = None
    ) -> Stage:
        """Let a policy answer the prompts of a split; the same request twice is one stage."""
        seed = self._seed("respond", policy.name, split, t)
        name = f"{when}/{policy.agent.name}/{policy.role}-answers"
        if split == "test":
            name = f"{when}/{policy.agent.name}/test-answers"
        return self._add(Respond(name, policy, self.data, split, limit, self.config.sampling, seed))

    def _evaluate(self, t: int, positive: dict[str, Policy]) -> None:
        """Measure every positive policy on the test split."""
        when = f"round-{t}" if t else "init"
        evaluations = {}
        for agent in self.team.agents:
            policy = positive[agent.name]
            count = self.config.evaluation.answers
            # The same seed in every round: what differs between rounds is the policy.
            answers = self._respond(when, policy, "test", 0, count) if count else None
            stage = Evaluate(f"{when}/{agent.name}/evaluate", policy, self.data, answers)
            self._add(stage)
            evaluations[agent.name] = stage
        self.plan.policies.append(dict(positive))
        self.plan.evaluations.append(evaluations)

    def _add(self, stage: Stage) -> Stage:
        """Append a stage to the plan, or return the one with the same key that is there."""
        for other in self.plan.stages:
            if (other.kind, other.key) == (stage.kind, stage.key):
                return other
        self.plan.stages.append(stage)
        return stage

    def _seed(self, *parts: str | int) -> int:
        """Derive the seed of one use of randomness from the run's seed."""
        return stable_seed(self.config.seed, *parts)
