"""ConG: contrastive weak-to-strong generalisation (Jiang et al. 2025, arXiv 2510.07884).

A weak model is aligned by DPO, and answers by contrastive decoding against what it was before: its
scores of the next token are (1 - alpha) log(pi_r / pi_ref) + alpha log pi_r, so that an answer
collects implicit reward token by token. The student learns these answers by SFT (stage I, the
paper's ConG-S), and then by DPO against its own answers (stage II): `chosen` is the weak model's,
`rejected` the student's after stage I, as the authors' released scripts pair them.

Tokens below a tenth of the likeliest one's probability under pi_r cannot come of the contrast, as
in the paper; alpha is .4 as in the released scripts.

Taken where our setting differs: the first teacher answers, as for all weak labels here; tokens are
drawn as `sampling` says, from scores that are divided by alpha: log pi_r + (1 / alpha - 1)
log(pi_r / pi_ref) is the same order of tokens at a lower temperature. The loss of stage II is that
of the `dpo` section. The equation was read in summaries of the paper, the rest in the scripts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from macpo.config.values import Flag
from macpo.methods.method import Method, register_method

if TYPE_CHECKING:
    from macpo.program import Program


@register_method
class ConG(Method):
    """ConG (arXiv 2510.07884): SFT and DPO on a weak model's contrastively decoded answers.

    `alpha` is the share of the aligned policy's own scores; the rest is contrast with what it was
    before. Tokens of less than `plausible` times the likeliest one's probability are left out; 0
    leaves out none. `dpo: false` stops after SFT: the paper's ConG-S.
    """

    unused: ClassVar[frozenset[str]] = frozenset(
        {"rounds", "negative_sft", "dpo.gamma", "dpo.start"}
    )

    name: Literal["cong"] = "cong"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.4
    plausible: Annotated[float, Field(ge=0, lt=1)] = 0.1
    dpo: Flag = True

    def lay_out(self, program: Program) -> None:
        """The first teacher aligned, its contrastive answers, SFT on them, and DPO against own."""
        from macpo.supervisors import aligned

        teachers = program.teachers_on_ground_truth()
        [twins] = aligned(program, teachers, "first")
        strength = 1 / self.alpha - 1
        labels = program.respond(
            "init",
            twins.better,
            "student",
            0,
            away_from=twins.worse,
            strength=strength,
            plausible=self.plausible,
        )
        untrained = program.untrained(program.team.student)
        student = program.fine_tune_on_answers(untrained, "positive", labels)
        name = student.agent.name
        program.evaluate(0, {name: student, **teachers})
        if self.dpo:
            own = program.respond("round-1", student, "student", 1)
            pairs = program.pair(1, name, labels, own)
            program.evaluate(1, {name: program.contrast(1, student, pairs, student, gamma=0.0)})
