"""Weak-to-strong search, as best of n (Zhou et al. 2024, arXiv 2405.19262).

The strong model is not trained: it answers, and what a small tuned model says more readily than the
same model untuned, log pi*(y) - log pi_ref(y) (section 3 of the paper), is searched for. Of the
paper's chunk-level beam search this is the case of one beam and chunks as long as an answer: of n
answers the best is taken.

Taken where our setting differs: the strong model is the student after Naive SFT; tuned is a teacher
after DPO on the labels of its half, untuned the same teacher after SFT; with several teachers the
mean of their implicit rewards decides. The released code's best of n has n = 4 and 8. Sections are
cited from summaries of the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from macpo.methods.method import Method, register_method

if TYPE_CHECKING:
    from macpo.program import Program


@register_method
class WeakToStrongSearch(Method):
    """Weak-to-strong search (arXiv 2405.19262): aligned teachers choose among `samples` answers.

    It works while answering: "round 1" is the student of round 0, unchanged, whose answers to test
    prompts are the best of n. What measures its weights (preference accuracy, perplexity) says the
    same in both rounds, and the adapter that a run hands out is that of Naive SFT. `teachers:
    first` is the paper's single weak model.
    """

    unused: ClassVar[frozenset[str]] = frozenset(
        {"rounds", "negative_sft", "dpo.gamma", "dpo.reference", "dpo.start", "dpo.anchor"}
    )

    name: Literal["weak-to-strong-search"] = "weak-to-strong-search"
    samples: Annotated[int, Field(ge=2, le=1000)] = 4
    teachers: Literal["all", "first"] = "all"

    def lay_out(self, program: Program) -> None:
        """Naive SFT, teachers aligned, and the best of n answers to every test prompt."""
        from macpo.errors import ConfigError
        from macpo.judging import BestAnswers
        from macpo.supervisors import aligned, judge

        count = program.config.evaluation.answers
        if not count:
            raise ConfigError(
                "method weak-to-strong-search chooses among answers to test prompts, but "
                "evaluation.answers is 0; raise it"
            )
        naive = program.naive_sft()
        student, name = naive.student, naive.student.agent.name
        answers = tuple(
            program.respond("round-1", student, "test", 0, count, sample=n)
            for n in range(self.samples)
        )
        twins = aligned(program, naive.teachers, self.teachers)
        judgements = judge(program, f"round-1/{name}", twins, answers)
        best = program.add(BestAnswers(f"round-1/{name}/best-answers", answers, judgements))
        program.evaluate(1, {name: student}, {name: best})
