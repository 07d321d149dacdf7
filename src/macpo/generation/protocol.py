"""The generation boundary: prompts in, responses out, whoever answers.

Backends of equal rank: `macpo.generation.local.LocalGenerator` (a model in this process) and
`macpo.generation.scripted.ScriptedGenerator` (no model at all, for tests and dry trials).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from macpo.config import SamplingConfig
from macpo.records import Prompt, Response
from macpo.seeds import stable_seed


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model answered to one prompt, in its own tokens.

    `token_ids` end with the stop token when `finished`; otherwise the answer was cut at
    `max_new_tokens`.
    """

    token_ids: tuple[int, ...]
    finished: bool


class Generator(Protocol):
    """A policy that answers prompts."""

    def respond(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, seed_parts: Sequence[str | int]
    ) -> list[Response]:
        """Answer each prompt once.

        Args:
            prompts: in any order; the same prompt twice gets the same answer twice.
            sampling: how tokens are drawn.
            seed_parts: what, beside the prompt, decides the randomness: run seed, round, agent and
                stage. The seed of a prompt is `prompt_seed(seed_parts, prompt)`, so no answer
                depends on which other prompts are asked, or in which order (but for rounding).

        Returns:
            One response per prompt, in the order of `prompts`.
        """
        ...


def prompt_seed(seed_parts: Sequence[str | int], prompt: Prompt) -> int:
    """Return the 63-bit seed from which the answer to `prompt` is drawn."""
    return stable_seed(*seed_parts, prompt.id)
