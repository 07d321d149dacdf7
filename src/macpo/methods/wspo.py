"""WSPO: weak-to-strong preference optimisation (Zhu et al. 2024, arXiv 2410.18640, section 3).

What alignment changed in a weak model, log pi_r(y) - log pi_ref(y), is what the student is to
change in itself: gamma (log pi(y) - log ref(y)) is fitted to it by its square, on answers without
labels or pairs.

Taken where our setting differs: log-ratios are sums over whole answers, and the square of their
difference is divided by the answer's length, where the authors' released trainer squares token by
token, which asks for one tokenizer; answers are the student's own by default, or both of the data's
(`answers: data`), where the authors take its chosen ones, whose labels nobody here sees; the
student's reference is Naive SFT; with several teachers the mean of their log-ratios is fitted.
gamma is .1 as in the released configs. The paper was read in summaries, the loss in the released
trainer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from macpo.config.values import Positive
from macpo.methods.judged_answers import JudgedAnswers
from macpo.methods.method import register_method

if TYPE_CHECKING:
    from macpo.program import Program


@register_method
class WSPO(JudgedAnswers):
    """WSPO (arXiv 2410.18640): the student changes as alignment has changed the teachers.

    The student's log-ratio is to be 1 / `gamma` times theirs: the smaller, the further it goes.
    """

    unused: ClassVar[frozenset[str]] = JudgedAnswers.unused | {"dpo.reference", "dpo.anchor"}

    name: Literal["wspo"] = "wspo"
    gamma: Positive = 0.1

    def lay_out(self, program: Program) -> None:
        """Naive SFT, teachers aligned, then one training on answers that they judged."""
        from macpo.agents import Policy
        from macpo.scoring import ScoreResponses
        from macpo.training.stages import FitLogRatios

        naive = program.naive_sft()
        student, agent = naive.student, naive.student.agent
        place = f"round-1/{agent.name}"
        answers, ratios = self.judged(program, naive, times_beta=False)
        reference = program.add(ScoreResponses(f"{place}/reference", student, answers))
        stage = FitLogRatios(
            f"{place}/train",
            student,
            answers,
            reference,
            ratios,
            agent.dpo,
            program.seed("dpo", agent.name, 1),
            self.gamma,
        )
        program.evaluate(1, {agent.name: Policy(agent, "positive", program.add(stage))})
