"""What methods are written with: each call lays out a stage, or finds the equal one there already.

Nothing runs here. A method (`macpo.methods`, one module each) is a short program over these calls;
two methods that make the same calls share the stages, and so the work.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from macpo.agents import Agent, Policy, Team
from macpo.answering import Respond
from macpo.config import RunConfig
from macpo.config.guard import GuardConfig
from macpo.data.stages import DatasetPairs, SplitData
from macpo.errors import ConfigError
from macpo.evaluation.collapse import CheckCollapse
from macpo.evaluation.evaluator import Subject, chosen_evaluators
from macpo.evaluation.preference import Validate
from macpo.guard import Guard, SetLimits
from macpo.pairs import DirectPairs, JoinedPairs, ReplayedPairs
from macpo.records import Split
from macpo.scoring import ScorePairs
from macpo.seeds import digest, stable_seed
from macpo.stage import Stage
from macpo.training.stages import (
    SFTOnAnswers,
    SFTOnDataset,
    SFTOnPairs,
    TrainDPO,
    TrainWeightedDPO,
)

OnPairs = SFTOnPairs | TrainDPO | TrainWeightedDPO
"""Training stages that learn from pairs."""

Role = Literal["positive", "negative"]

Answered = Sequence[tuple[Agent, Stage]]
"""Answering stages, each with the agent whose answers they are."""


@dataclass(slots=True)
class Plan:
    """A run: its stages in order, and what they stand for.

    `policies[t][agent]` is the positive policy after round t (0: after initialisation), and
    `evaluations[t][agent]` the stages that measure it. `answers[t][agent]` is the stage with its
    answers to test prompts where a method chooses them for it; others answer as themselves.
    """

    stages: list[Stage] = field(default_factory=list)
    policies: list[dict[str, Policy]] = field(default_factory=list)
    evaluations: list[dict[str, tuple[Stage, ...]]] = field(default_factory=list)
    answers: list[dict[str, Stage]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def final(self, kept: int | None = None) -> dict[str, tuple[int, Policy]]:
        """Return everybody's last positive policy, or that after round `kept`, and its round."""
        return {
            name: (t, policy)
            for t, policies in enumerate(self.policies)
            if kept is None or t <= kept
            for name, policy in policies.items()
        }


@dataclass(frozen=True, slots=True)
class Naive:
    """Naive SFT, with which every baseline begins: `labels` are the weak labels."""

    teachers: dict[str, Policy]
    student: Policy
    labels: Stage


class Program:
    """Lays out the stages of one run."""

    def __init__(self, config: RunConfig, team: Team, data_digest: str) -> None:
        """Start with the data.

        Args:
            config: the run.
            team: its agents, as `macpo.agents.assemble_team` resolved them.
            data_digest: as `macpo.data.stages.content_digest` returns it.
        """
        self.config = config
        self.team = team
        self.plan = Plan()
        self.evaluators = chosen_evaluators(config)
        self._first: dict[str, Subject] = {}
        self._stages: dict[tuple[str, str], Stage] = {}
        self._checked: Stage | None = None
        self.data = self.add(
            SplitData("data", config.data, data_digest, self.seed("split"), team.agents)
        )

    def add(self, stage: Stage) -> Stage:
        """Append a stage to the plan, or return the one with the same key that is there."""
        known = self._stages.setdefault((stage.kind, stage.key), stage)
        if known is stage:
            self.plan.stages.append(stage)
        return known

    def seed(self, *parts: str | int) -> int:
        """Derive the seed of one use of randomness from the run's seed."""
        return stable_seed(self.config.seed, *parts)

    # Beginnings that several methods share

    def untrained(self, agent: Agent) -> Policy:
        """Return the agent's bare base model as a policy."""
        return Policy(agent, "positive")

    def teachers_on_ground_truth(self) -> dict[str, Policy]:
        """SFT every teacher on the good answers of the teacher half."""
        return {
            teacher.name: self.fine_tune_on_dataset(self.untrained(teacher), "positive")
            for teacher in self.team.teachers
        }

    def weak_labels(self, teachers: Mapping[str, Policy]) -> Stage:
        """Let the first teacher answer the student's prompts (the authors' data has one's)."""
        first = teachers[self.team.teachers[0].name]
        return self.respond("init", first, "student", 0)

    def naive_sft(self) -> Naive:
        """Lay out Naive SFT, the student on weak labels, and its evaluation: round 0."""
        teachers = self.teachers_on_ground_truth()
        labels = self.weak_labels(teachers)
        student = self.fine_tune_on_answers(self.untrained(self.team.student), "positive", labels)
        self.evaluate(0, {student.agent.name: student, **teachers})
        return Naive(teachers, student, labels)

    # Answers

    def respond(
        self,
        when: str,
        policy: Policy,
        split: Split,
        t: int,
        limit: int | None = None,
        *,
        sample: int = 0,
        system: str = "",
        away_from: Policy | None = None,
        strength: float = 0.0,
        plausible: float = 0.0,
    ) -> Stage:
        """Let a policy answer the prompts of a split in round `t`.

        Args:
            when: first part of the stage's name, such as `round-2`.
            policy: who answers.
            split: whose prompts.
            t: part of the seed, so that the same policy answers anew in another round.
            limit: only that many prompts, the first ones.
            sample: part of the seed, to draw several answers in one round.
            system: a system prompt to answer under.
            away_from: a policy of the same agent to be pushed away from while answering.
            strength: of the push.
            plausible: tokens less than that share as probable as the likeliest are not to come of
                a push.

        Raises:
            ConfigError: `away_from` is asked of a backend that cannot push, or the backend's engine
                is not there.
        """
        section = self.config.generation
        backend = section.backend_of(policy.agent.name)
        if away_from is not None and not backend.pushes:
            raise ConfigError(
                f"generation.backend: {backend.name} cannot push answers away from another policy, "
                "as method cong and macpo's negatives: decoding ask; take generation.backend: "
                "local, or another method or way to make negatives"
            )
        parts = ("respond", policy.name, split, t, *((sample,) if sample else ()))
        what: str = "test" if split == "test" else policy.role
        if system:
            what = f"{what}-{digest(system)[:6]}"
        if away_from is not None:
            what = f"{what}-pushed"
        name = f"{when}/{policy.agent.name}/{what}-answers" + (f"-{sample}" if sample else "")
        return self.add(
            Respond(
                name,
                policy,
                self.data,
                split,
                limit,
                self.config.sampling,
                self.seed(*parts),
                system,
                away_from,
                strength,
                backend.labelled(section),
                plausible,
                section,
            )
        )

    # Training

    def fine_tune_on_dataset(
        self, start: Policy, role: Role, split: Literal["teacher", "student"] = "teacher"
    ) -> Policy:
        """SFT on one side of the ground truth: chosen for a positive policy, else rejected."""
        agent = start.agent
        stage = SFTOnDataset(
            f"init/{agent.name}/{role}",
            start,
            self.data,
            split,
            "chosen" if role == "positive" else "rejected",
            agent.sft if role == "positive" else agent.negative_sft,
            self._sft_seed(agent, role),
        )
        return Policy(agent, role, self.add(stage))

    def fine_tune_on_answers(self, start: Policy, role: Role, answers: Stage) -> Policy:
        """SFT on another policy's answers."""
        agent = start.agent
        stage = SFTOnAnswers(
            f"init/{agent.name}/{role}",
            start,
            answers,
            agent.sft if role == "positive" else agent.negative_sft,
            self._sft_seed(agent, role),
        )
        return Policy(agent, role, self.add(stage))

    def _sft_seed(self, agent: Agent, role: Role) -> int:
        return self.seed("sft" if role == "positive" else "negative-sft", agent.name)

    def contrast(
        self,
        t: int,
        current: Policy,
        pairs: Stage,
        initial: Policy,
        scores: Stage | None = None,
        gamma: float | None = None,
        judgements: Stage | None = None,
    ) -> Policy:
        """Train a positive policy on pairs: L_DPO + gamma * L_SFT.

        Args:
            t: the round.
            current: the policy as the last round left it.
            pairs: chosen and rejected answers.
            initial: the policy after initialisation, which `dpo.reference` and `dpo.start` may
                name.
            scores: scores of all answers in `pairs` under the reference, if they are there already:
                there is no reference pass then, unless `dpo.end_of_turn` asks for other scores.
            gamma: weight of the SFT term; by default `dpo.gamma`.
            judgements: a judge's rewards of all answers in `pairs`, if a pair is to count as much
                as the judge is sure of it.
        """
        agent = current.agent
        config = agent.dpo if gamma is None else agent.dpo.model_copy(update={"gamma": gamma})
        masks = agent.dpo.end_of_turn == "mask"
        if scores is None or masks:
            reference = {"previous": current, "initial": initial, "base": self.untrained(agent)}
            name = f"round-{t}/{agent.name}/reference"
            reader = reference[agent.dpo.reference]
            scores = self.add(ScorePairs(name, reader, pairs, without_ends=masks))
        start = _start(current, initial)
        seed = self.seed("dpo", agent.name, t)
        name = f"round-{t}/{agent.name}/train"
        back = _anchor(initial)
        stage: TrainDPO | TrainWeightedDPO
        if judgements is None:
            stage = TrainDPO(name, start, pairs, scores, config, seed, **back)
        else:
            stage = TrainWeightedDPO(name, start, pairs, scores, config, seed, judgements, **back)
        return Policy(agent, "positive", self.add(stage))

    def imitate(self, t: int, current: Policy, pairs: Stage, initial: Policy) -> Policy:
        """Train a positive policy on the chosen side of pairs: `contrast` without its DPO term."""
        agent = current.agent
        start = _start(current, initial)
        seed = self.seed("dpo", agent.name, t)
        name = f"round-{t}/{agent.name}/train"
        stage = SFTOnPairs(name, start, pairs, agent.dpo, seed, **_anchor(initial))
        return Policy(agent, "positive", self.add(stage))

    # Pairs

    def pair(
        self,
        t: int,
        learner: str,
        chosen: Stage,
        rejected: Stage,
        guard: Stage | None = None,
        own: Stage | None = None,
    ) -> Stage:
        """Pair answers as they are: chosen and rejected ones to the same prompts.

        Args:
            t: the round.
            learner: whose pairs they are, for the stage's name.
            chosen: an answering stage.
            rejected: likewise.
            guard: what is refused of them, None for nothing.
            own: the learner's own answers: refused ones take the place of rejected ones.
        """
        name = f"round-{t}/{learner}/pairs"
        return self.add(DirectPairs(name, chosen, rejected, guard, own))

    def labelled_pairs(self, split: Split) -> Stage:
        """Pair the answers of a split as ground truth has them."""
        return self.add(DatasetPairs(f"init/{split}-pairs", self.data, split))

    def gather_pairs(
        self, t: int, learner: str, parts: Sequence[Stage], labels: Stage | None = None
    ) -> Stage:
        """Put together what a learner learns from in round `t`.

        Args:
            t: the round.
            learner: whose pairs they are.
            parts: stages of pairs; one alone is taken as it is.
            labels: pairs of ground truth, of which `data.replay` are mixed in.
        """
        pairs = parts[0]
        if len(parts) > 1:
            pairs = self.add(JoinedPairs(f"round-{t}/{learner}/all-pairs", tuple(parts)))
        if labels is None:
            return pairs
        name, share = f"round-{t}/{learner}/replayed-pairs", self.config.data.replay
        return self.add(ReplayedPairs(name, pairs, labels, share, self.seed("replay", learner, t)))

    def limits(self, section: GuardConfig, answered: Answered) -> Stage:
        """Set a guard's limits, as its section gives them or by answers of before round 1."""
        given = (section.unfinished, section.repetition, section.sentences, section.copying)
        readers, answers = zip(*answered, strict=True) if None in given else ((), ())
        return self.add(SetLimits("init/guard-limits", readers, answers, section.quantile, *given))

    def guard(self, t: int, learner: str, limits: Stage, answered: Answered) -> Stage:
        """Hold answers against a guard's limits, for the pairs of a learner in round `t`."""
        readers, answers = zip(*dict.fromkeys(answered), strict=True)
        return self.add(Guard(f"round-{t}/{learner}/guard", limits, readers, answers))

    # Evaluation

    def evaluate(
        self,
        t: int,
        positive: Mapping[str, Policy],
        chosen_answers: Mapping[str, Stage] | None = None,
    ) -> None:
        """Measure everybody's positive policy after round t, by the config's evaluators.

        Args:
            t: the round.
            positive: by agent.
            chosen_answers: by agent, an answering stage on the test prompts that stands in for
                answers of the policy as itself.
        """
        chosen = dict(chosen_answers or {})
        when = f"round-{t}" if t else "init"
        count = self.config.evaluation.answers
        evaluations: dict[str, tuple[Stage, ...]] = {}
        for name, policy in positive.items():
            if not self.config.evaluation.teachers and name != self.team.student.name:
                continue
            # The same seed in every round: what differs between rounds is the policy.
            answers = chosen.get(name)
            if answers is None and count:
                answers = self.respond(when, policy, "test", 0, count)
            pairs = policy.weights.pairs if isinstance(policy.weights, OnPairs) else None
            first = self._first.get(name)
            find = functools.partial(_same, policy)
            place = f"{when}/{name}"
            dtype = policy.agent.dtype
            subject = Subject(place, name, t, dtype, self.data, answers, pairs, first, find)
            if t == 0:
                self._first[name] = subject
            evaluations[name] = tuple(self.add(stage) for stage in self._measuring(policy, subject))
        self.plan.policies.append(dict(positive))
        self.plan.evaluations.append(evaluations)
        self.plan.answers.append(chosen)
        if t:
            self._check_collapse(t)

    def _measuring(self, policy: Policy, subject: Subject) -> Iterator[Stage]:
        """Yield the stages that measure a policy."""
        if self.config.data.splits.validation:
            yield Validate(f"{subject.place}/validate", policy, subject.data)
        for evaluator in self.evaluators:
            yield from evaluator.lay_out(subject)

    def _check_collapse(self, t: int) -> None:
        """Look for signs of collapse after round t, in all who were measured then."""
        section = self.config.evaluation
        rounds = range(t + 1) if self._checked is None else [t]
        entries = [
            (name, r, stages)
            for r in rounds
            for name, stages in self.plan.evaluations[r].items()
            if stages
        ]
        if not entries:
            return
        names, numbers, measured = zip(*entries, strict=True)
        self._checked = self.add(
            CheckCollapse(
                f"round-{t}/collapse",
                t,
                self.team.student.name,
                names,
                numbers,
                measured,
                self._checked,
                section.collapse,
                section.stop_on_collapse,
            )
        )


def _same(policy: Policy) -> Policy:
    return policy


def _start(current: Policy, initial: Policy) -> Policy:
    """Return the policy that a round trains from, as the agent's `dpo.start` names it."""
    return {"previous": current, "initial": initial}[current.agent.dpo.start]


def _anchor(initial: Policy) -> dict[str, Any]:
    """Return what a training stage is told of the agent's `dpo.anchor`; nothing without one."""
    share = initial.agent.dpo.anchor
    return {"anchor": share, "initial": initial} if share else {}
