"""How many answers may grow at once, as far as memory has shown."""

from __future__ import annotations

from dataclasses import dataclass

from macpo.memory import halved


@dataclass(slots=True)
class Room:
    """Starts without a limit of its own; after want of memory it lets fewer answers grow at once.

    Keep one for all calls that decode with a model, so that what was found out is not tried again.
    """

    most: int | None = None

    def rows(self, planned: int) -> int:
        """Return how many of the planned rows there is room for."""
        return planned if self.most is None else min(planned, self.most)

    def gives_way(self, error: BaseException, rows: int, tokens: int) -> bool:
        """After an error, go on with half as many rows if it was want of memory.

        Args:
            error: what was raised.
            rows: how many answers grew at once.
            tokens: of the longest prompt with its answer.

        Returns:
            Whether it was; else nothing has changed.

        Raises:
            SmallestBudgetError: there was one answer alone.
        """
        less = halved(
            error,
            rows,
            rows,
            "answers at once",
            f"with one answer at a time (up to {tokens:,} tokens with its prompt); lower "
            "sampling.max_new_tokens or limits.prompt_tokens, or set dtype: bfloat16; then run "
            "again",
        )
        if less is not None:
            self.most = less
        return less is not None
