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
the authors' released data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from macpo.config.guard import GuardConfig, read_guard
from macpo.config.recipes import Recipe
from macpo.config.training import OF_CONTRAST
from macpo.config.values import Count, Flag, Text
from macpo.methods.method import Method, register_method
from macpo.methods.wording import BAD_BEHAVIOUR

if TYPE_CHECKING:
    from macpo.agents import Policy
    from macpo.program import Naive, Program
    from macpo.rounds import Learner, Rules
    from macpo.stage import Stage


@register_method
class MACPO(Method):
    """MACPO, the paper's ablations of it, and what the paper leaves open.

    Positives: `positives: own` is the paper's -MP, each agent reinforces its own answers. Of the
    teachers' `samples` answers each, the student takes the `top_k` best in the eyes of `filter`:
    `perplexity` is the paper's; `contrast-mean` and `contrast-sum` compare the student's positive
    with its negative policy. `typical` takes what comes closest to the mean negative log-likelihood
    per token of the own answers, to the same prompts, of the policy that filters: those of the last
    round, of round 0 in the first. `random` draws lots: the control that says what a filter is
    worth. The positive policy that filters is the student's as it is now, or, with `filter_policy:
    initial`, as it was before the first round, which the rounds cannot teach to like degenerate
    answers, or, with `base`, the bare base model, which has learned from no answer at all.

    Negatives: `own` is the paper's negative fine-tuning, `others` its -HN (rejected answers come
    from others' negative policies). `prompted` asks the learner's own positive policy for bad
    behaviour by `negative_prompt`; `worst-of-n` takes the answer that it finds most perplexing out
    of `negative_samples` of its own; `decoding` lets its negative policy answer, its token scores
    pushed away from the positive policy's by `negative_strength` times their difference.

    `guard` refuses answers as chosen by their form, the teachers' and the student's alike
    (`macpo.guard`). A learner's own current answers, of which refused ones are to be avoided, are
    there already: a teacher's are its candidates of the round, the student's those that the
    teachers learned from in the round before (in the same one under `schedule: simultaneous`), so
    that it has none in round 1, and nobody has any with `positives: own`.

    `accumulate: true` learns from the pairs of all rounds so far, each time, so that rounds get
    longer. `data.replay` mixes ground truth of their half into the teachers' pairs. Both ask for a
    pass of the reference policy over all that is learned from.

    `recipe: stable` sets other defaults than the paper's, here and in other sections
    (docs/recipes.md).

    `contrast: false` leaves out the DPO term: the same rounds, SFT on the positives only
    (`dpo.gamma: 0` leaves out the SFT term). `schedule: simultaneous` lets the teachers learn from
    the student as it was before the round.
    """

    replays: ClassVar[bool] = True

    name: Literal["macpo"] = "macpo"
    recipe: Recipe = "paper"
    positives: Literal["mutual", "own"] = "mutual"
    filter: Literal["perplexity", "contrast-mean", "contrast-sum", "typical", "random"] = (
        "perplexity"
    )
    filter_policy: Literal["current", "initial", "base"] = "current"
    samples: Count = 1
    top_k: Count = 1
    negatives: Literal["own", "others", "prompted", "decoding", "worst-of-n"] = "own"
    negative_prompt: Text = BAD_BEHAVIOUR
    negative_samples: Annotated[int, Field(ge=2, le=1000)] = 4
    negative_strength: Annotated[float, Field(gt=0, le=100)] = 0.5
    guard: GuardConfig | None = None
    accumulate: Flag = False
    contrast: Flag = True
    schedule: Literal["sequential", "simultaneous"] = "sequential"

    @field_validator("guard", mode="before")
    @classmethod
    def _true_is_the_default_guard(cls, value: Any) -> Any:
        return read_guard(value)

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> MACPO:
        faults = [
            f"{option} has no effect with positives: own; remove it"
            for option in ("filter", "filter_policy", "samples", "top_k")
            if self.positives == "own" and option in self.model_fields_set
        ]
        for option, kind in (
            ("negative_prompt", "prompted"),
            ("negative_samples", "worst-of-n"),
            ("negative_strength", "decoding"),
        ):
            if option in self.model_fields_set and self.negatives != kind:
                faults.append(f"{option} is for negatives: {kind}; remove it")
        if self.filter == "random" and "filter_policy" in self.model_fields_set:
            faults.append("filter_policy has no effect with filter: random; remove it")
        if self.filter == "typical" and self.filter_policy == "base":
            faults.append(
                "filter: typical measures by own answers of the policy that filters, and the bare "
                "base of filter_policy: base gives none; write filter_policy: initial or current"
            )
        if self.guard is not None and "failing_as_rejected" in self.guard.model_fields_set:
            for useless, why in (
                (self.positives == "own", "positives: own, which chooses its own answers"),
                (not self.contrast, "contrast: false, which rejects nothing"),
            ):
                if useless:
                    faults.append(f"guard.failing_as_rejected has no effect with {why}; remove it")
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @property
    def idle(self) -> dict[str, str]:
        """See `MethodConfig.idle`."""
        return {} if self.contrast else dict.fromkeys(OF_CONTRAST, "method.contrast: false")

    def faults(self, teachers: int) -> Iterator[str]:
        """See `MethodConfig.faults`."""
        if self.top_k > teachers * self.samples:
            yield (
                f"method.top_k is {self.top_k}, but there are only {teachers} teachers with "
                f"{self.samples} answer(s) each to a prompt; lower it to "
                f"{teachers * self.samples}, or add teachers or method.samples"
            )
        elif self.top_k == teachers * self.samples and self.filter in ("typical", "random"):
            yield (
                f"method.filter: {self.filter} has no effect where all {self.top_k} answers to a "
                "prompt are kept; lower method.top_k, add teachers or method.samples, or remove it"
            )

    def lay_out(self, program: Program) -> None:
        """Initialise, then T rounds; everybody is evaluated before and after each."""
        from macpo.filter import Filter
        from macpo.rounds import Learner, student_turn, teacher_turn

        naive = program.naive_sft()
        positive = {naive.student.agent.name: naive.student, **naive.teachers}
        negative = self._negative_policies(program, naive)
        rejected = self._rejected_answers(program, positive, negative)
        labels = program.labelled_pairs("teacher") if program.config.data.replay else None
        student, *teachers = (
            Learner(policy, policy, negative.get(name), rejected[name])
            for name, policy in positive.items()
        )
        teachers = [replace(teacher, labels=labels) for teacher in teachers]
        sieve = Filter(self.filter, self.filter_policy, self.samples, self.top_k)
        rules = self._rules(program, teachers)
        for t in range(1, program.config.rounds + 1):
            if self.positives == "own":
                after = teacher_turn(program, t, student, student, rules)
            else:
                own = None if self.guard is None else self._own_answers(program, t, student)
                usual = self._usual_answers(program, t, student)
                after = student_turn(
                    program, t, student, teachers, sieve, rules, own=own, usual=usual
                )
            tutor = after if self.schedule == "sequential" else student
            teachers = [
                teacher_turn(
                    program, t, teacher, teacher if self.positives == "own" else tutor, rules
                )
                for teacher in teachers
            ]
            student = after
            program.evaluate(t, {who.name: who.positive for who in (student, *teachers)})

    def _rules(self, program: Program, teachers: Sequence[Learner]) -> Rules:
        """Set what holds in every turn; a guard's limits by the teachers' first candidates."""
        from macpo.rounds import Rules, candidates

        rules = Rules(contrast=self.contrast, accumulate=self.accumulate)
        if self.guard is None:
            return rules
        limits = program.limits(self.guard, candidates(program, 1, teachers, self.samples))
        failing = self.guard.failing_as_rejected and self.contrast
        return replace(rules, limits=limits, failing_as_rejected=failing)

    def _own_answers(self, program: Program, t: int, student: Learner) -> Stage | None:
        """Find the answers of the student as it is now: those that teachers learn from anyway."""
        made = t if self.schedule == "simultaneous" else t - 1
        if made == 0:
            return None
        return program.respond(f"round-{made}", student.positive, "student", made)

    def _usual_answers(self, program: Program, t: int, student: Learner) -> Stage | None:
        """Find own answers of the policy that filters, if its filter measures by them.

        There are none of the student before the first round: it is asked once.
        """
        if self.filter != "typical":
            return None
        now = self._own_answers(program, t, student) if self.filter_policy == "current" else None
        return now or program.respond("init", student.initial, "student", 0)

    def _negative_policies(self, program: Program, naive: Naive) -> dict[str, Policy]:
        """Train everybody's bad side, or nobody's where nothing asks for it."""
        from macpo import negatives
        from macpo.filter import CONTRASTS

        if self.negatives in ("prompted", "worst-of-n") and self.filter not in CONTRASTS:
            return {}
        return negatives.fine_tuned(program, naive)

    def _rejected_answers(
        self, program: Program, positive: Mapping[str, Policy], negative: Mapping[str, Policy]
    ) -> dict[str, Stage]:
        """Let every learner's bad side answer the student's prompts, once for all rounds."""
        from macpo import negatives

        if self.negatives == "prompted":
            return negatives.prompted(program, positive, self.negative_prompt)
        if self.negatives == "worst-of-n":
            return negatives.worst_of(program, positive, self.negative_samples)
        if self.negatives == "decoding":
            return negatives.pushed(program, negative, positive, self.negative_strength)
        if self.negatives == "others":
            return negatives.others(program, negative)
        return negatives.own(program, negative)
