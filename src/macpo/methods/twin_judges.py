"""Twin judges: every teacher's twins judge the student's own samples. Our own, from no paper.

In every round the student answers each prompt several times, and a teacher finds an answer good by
as much as its positive policy is likelier than its negative one to give it: log pi+(y) - log pi-(y)
in nats, summed over the answer. The best answer in the eyes of all teachers is learned against the
worst, by DPO+SFT as the `dpo` section says. Teachers stay as initialisation left them: they are
supervisors here and not authors, so that the student never learns to write as they do, and a reward
that is fixed and the least of several cannot drift with it.

The least over teachers is the conservative ensemble of Coste et al. 2023 (arXiv 2310.02743), which
uses reward models in their place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from macpo.methods.method import Method, register_method

if TYPE_CHECKING:
    from macpo.program import Program


@register_method
class TwinJudges(Method):
    """Frozen teachers' twins choose best and worst among `samples` of the student's own answers.

    `aggregate: min` goes by the teacher that finds an answer least good, `mean` by their mean.
    """

    name: Literal["twin-judges"] = "twin-judges"
    samples: Annotated[int, Field(ge=2, le=1000)] = 4
    aggregate: Literal["min", "mean"] = "min"

    def lay_out(self, program: Program) -> None:
        """Naive SFT, negative teachers, then T rounds in which only the student learns."""
        from macpo.judging import RankedPairs
        from macpo.supervisors import Twins, judge

        naive = program.naive_sft()
        student = naive.student
        name = student.agent.name
        twins = [
            Twins(teacher, program.fine_tune_on_dataset(teacher, "negative"))
            for teacher in naive.teachers.values()
        ]
        for t in range(1, program.config.rounds + 1):
            when = f"round-{t}"
            answers = tuple(
                program.respond(when, student, "student", t, sample=n) for n in range(self.samples)
            )
            judgements = judge(program, f"{when}/{name}", twins, answers, self.aggregate)
            pairs = program.add(RankedPairs(f"{when}/{name}/pairs", answers, (judgements,)))
            student = program.contrast(t, student, pairs, naive.student)
            program.evaluate(t, {name: student})
