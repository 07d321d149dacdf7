"""Hard negative behaviour construction (paper, section 3.3): where `rejected` comes from.

The paper's way is negative fine-tuning: every learner's negative policy, trained on bad behaviour,
answers the student's prompts, and these answers are familiar to that learner (`own`). `others` is
the paper's ablation. Beside them stand other ways, its open question 2: adversarial prompting
(`prompted`), adversarial decoding (`pushed`), and the worst of several answers (`worst_of`).

Every function lays out answers to the student's prompts, by the learner's name; they are made once
and serve all rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from macpo.agents import Agent, Policy
from macpo.program import Naive, Program
from macpo.records import read_prompts, read_responses, read_scores, write_answers
from macpo.scoring import ScoreResponses
from macpo.stage import Stage, StageContext
from macpo.work import Answers, Known


def fine_tuned(program: Program, naive: Naive) -> dict[str, Policy]:
    """Train negative policies, by name: negative fine-tuning, from the positive ones.

    Teachers learn the bad side of ground truth, the student the answers of the first teacher's
    negative policy: weak negative labels.
    """
    negative = {
        name: program.fine_tune_on_dataset(policy, "negative")
        for name, policy in naive.teachers.items()
    }
    labels = program.weak_labels(negative)
    student = program.fine_tune_on_answers(naive.student, "negative", labels)
    return {**negative, program.team.student.name: student}


def own(program: Program, negative: Mapping[str, Policy]) -> dict[str, Stage]:
    """Every learner's own negative policy answers: hard negatives."""
    return {
        name: program.respond("init", policy, "student", 0) for name, policy in negative.items()
    }


def others(program: Program, negative: Mapping[str, Policy]) -> dict[str, Stage]:
    """The student gets the first teacher's negative answers, every teacher the student's (-HN)."""
    answers = own(program, negative)
    student, first = program.team.student.name, program.team.teachers[0].name
    return {name: answers[first if name == student else student] for name in answers}


def prompted(program: Program, positive: Mapping[str, Policy], system: str) -> dict[str, Stage]:
    """Positive policies answer under a system prompt that asks for bad behaviour."""
    return {
        name: program.respond("init", policy, "student", 0, system=system)
        for name, policy in positive.items()
    }


def pushed(
    program: Program,
    negative: Mapping[str, Policy],
    positive: Mapping[str, Policy],
    strength: float,
) -> dict[str, Stage]:
    """Negative policies answer, pushed away from their positive twins token by token."""
    return {
        name: program.respond(
            "init", policy, "student", 0, away_from=positive[name], strength=strength
        )
        for name, policy in negative.items()
    }


def worst_of(program: Program, positive: Mapping[str, Policy], samples: int) -> dict[str, Stage]:
    """Of several answers of a positive policy, the one that it finds most perplexing."""
    found = {}
    for name, policy in positive.items():
        answers = tuple(
            program.respond("init", policy, "student", 0, sample=n) for n in range(samples)
        )
        scores = program.add(ScoreResponses(f"init/{name}/worst-scores", policy, answers))
        found[name] = program.add(WorstAnswers(f"init/{name}/worst-answers", answers, scores))
    return found


@dataclass(frozen=True, eq=False)
class WorstAnswers(Stage):
    """Of several answers to each prompt, the one of highest perplexity under `scores`' policy."""

    kind: ClassVar[str] = "worst"

    answers: tuple[Stage, ...]
    scores: Stage

    def leaves(self, known: Known, reader: Agent) -> tuple[Answers, ...]:
        """One of the answers to each prompt."""
        return known.left_by(self.answers[0], reader)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write prompts.jsonl and responses.jsonl, as an answering stage does."""
        scores = read_scores(context.path(self.scores))
        folders = [context.path(stage) for stage in self.answers]
        prompts = read_prompts(folders[0])
        worst = []
        for answers in zip(*map(read_responses, folders), strict=True):
            scored = [response for response in answers if response.id in scores]
            worst.append(
                max(scored, key=lambda response: scores[response.id].mean_nll)
                if scored
                else answers[0]
            )
        write_answers(context.output, zip(prompts, worst, strict=True))
        return {"responses": len(worst), "empty": sum(r.is_empty for r in worst)}
