"""Answering by several ranks: each answers a share of the prompts, and all get all answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from macpo.config import SamplingConfig
from macpo.generation.protocol import Generator
from macpo.ranks import Ranks, Told, shares
from macpo.records import Prompt, Response


class SharedGenerator:
    """A generator of several ranks: a `macpo.generation.protocol.Generator`.

    A prompt's seed is its own, so that answers do not depend on who gives them (but for rounding).

    Args:
        make: makes this rank's own generator, given whom it tells of finished prompts.
        ranks: who answers together.
        progress: called with the number of prompts answered since the last call.
    """

    def __init__(
        self,
        make: Callable[[Callable[[int], None]], Generator],
        ranks: Ranks,
        progress: Callable[[int], None],
    ) -> None:
        self._ranks = ranks
        self._progress = progress
        self._told: Told | None = None
        self._own = make(self._count)

    def respond(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, seed_parts: Sequence[str | int]
    ) -> list[Response]:
        """See `Generator.respond`; all ranks are given the same prompts."""
        dealt = shares([_length(prompt) for prompt in prompts], self._ranks.size)
        mine = [prompts[place] for place in dealt[self._ranks.rank]]
        self._told = Told(self._progress, len(mine), len(prompts))
        answers = self._own.respond(mine, sampling, seed_parts) if mine else []
        said = self._ranks.gather([answer.to_json() for answer in answers])
        self._told.finish()
        found: dict[int, Response] = {}
        for places, theirs in zip(dealt, said, strict=True):
            found |= {p: Response.from_json(row) for p, row in zip(places, theirs, strict=True)}
        return [found[place] for place in range(len(prompts))]

    def _count(self, answered: int) -> None:
        """Tell of the whole what this rank has done."""
        if self._told is not None:
            self._told(answered)


def _length(prompt: Prompt) -> int:
    """Return the characters of a prompt, which is all that is known of its cost beforehand."""
    return sum(len(message.content) for message in prompt.messages)
