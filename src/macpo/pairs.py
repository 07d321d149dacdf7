"""Pairs of a chosen and a rejected answer to one prompt, out of the answers of two policies.

Which answers are `chosen` is said in `macpo.filter` and `macpo.rounds`, which are `rejected` in
`macpo.negatives`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from macpo.agents import Agent
from macpo.errors import DataError
from macpo.records import Pair, read_answers, read_responses, write_pairs
from macpo.stage import Stage, StageContext
from macpo.work import Answers, Known

SILENCE = (
    "the positives or the negative were empty. Read the responses; more SFT epochs or another "
    "chat_template may be needed"
)


@dataclass(frozen=True, eq=False)
class DirectPairs(Stage):
    """Pairs of one policy's answers, as they are, with another's: `positives` over `negatives`.

    So a teacher learns: the student's answer against its own negative's.
    """

    kind: ClassVar[str] = "pairs"
    version: ClassVar[int] = 2

    positives: Stage
    negatives: Stage

    def leaves(self, known: Known, reader: Agent) -> tuple[Answers, ...]:
        """Both answers to each prompt."""
        return (*known.left_by(self.positives, reader), *known.left_by(self.negatives, reader))

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write pairs.jsonl."""
        asked = read_answers(context.path(self.negatives))
        chosen = read_responses(context.path(self.positives))
        pairs = [
            Pair(prompt, positive, negative)
            for (prompt, negative), positive in zip(asked, chosen, strict=True)
            if not positive.is_empty and not negative.is_empty
        ]
        return leave_pairs(pairs, len(asked), context)


def leave_pairs(
    pairs: Sequence[Pair], prompts: int, context: StageContext, why_none: str = SILENCE
) -> dict[str, Any]:
    """Write the pairs of so many prompts, and count the prompts that gave none.

    Raises:
        DataError: there is no pair; `why_none` says what that means and what to do.
    """
    if not pairs:
        raise DataError(f"none of {prompts} prompts gave a pair: on each, {why_none}")
    write_pairs(context.output, pairs)
    used = len({pair.prompt.id for pair in pairs})
    return {"pairs": len(pairs), "prompts_without_pair": prompts - used}
