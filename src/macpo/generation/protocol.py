"""The generation boundary: prompts in, responses out, whoever answers.

An answering stage asks its context's `GeneratorFactory` for a `Generator`. The ordinary factory,
`make_generator`, takes the backend that the run's config names (`macpo.backends`): of equal rank
are `macpo.generation.local.LocalGenerator` (a model in this process),
`macpo.generation.served.generator.ServedGenerator` (an engine in another process, or a server) and
`macpo.generation.scripted.ScriptedGenerator` (no model at all, for tests and dry trials).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from macpo.agents import Policy
from macpo.backends import backend_labelled
from macpo.config import DECODED_HERE, EngineConfig, GenerationConfig, SamplingConfig
from macpo.records import Prompt, Response
from macpo.seeds import stable_seed

if TYPE_CHECKING:
    from macpo.policies import PolicyPool  # it needs torch


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


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who is to answer.

    Attributes:
        policy: whose answers they are.
        backend: name and version of what makes them, see `macpo.backends.Backend.labelled`.
        away_from: a policy of the same agent to be pushed away from, see
            `macpo.generation.decode.decode`; only for backends with `pushes`.
        strength: of the push.
        plausible: which tokens the push may make likely, likewise.
        section: `generation` of the config, with the backend's own keys.
    """

    policy: Policy
    backend: str
    away_from: Policy | None = None
    strength: float = 0.0
    plausible: float = 0.0
    section: GenerationConfig = DECODED_HERE


@runtime_checkable
class Rests(Protocol):
    """A generator that holds memory between its calls, and can give it back until the next."""

    def rest(self) -> None:
        """Give it back; an answering stage calls this at its end."""
        ...


class GeneratorFactory(Protocol):
    """Makes a policy able to answer; called once by every answering stage."""

    def __call__(
        self,
        speaker: Speaker,
        policies: PolicyPool,
        engine: EngineConfig,
        progress: Callable[[int], None],
    ) -> Generator:
        """Return the speaker's generator.

        Args:
            speaker: who is to answer.
            policies: loads its weights, or its tokenizer alone. What is loaded is good until the
                stage asks for another policy.
            engine: memory and packing limits of this machine; answers do not depend on them (but
                for rounding).
            progress: to be called with the number of prompts answered since the last call.
        """
        ...


def make_generator(
    speaker: Speaker,
    policies: PolicyPool,
    engine: EngineConfig,
    progress: Callable[[int], None],
) -> Generator:
    """Return the generator that the speaker's backend makes: a `GeneratorFactory`."""
    factory = cast(GeneratorFactory, backend_labelled(speaker.backend).load())
    return factory(speaker, policies, engine, progress)


def prompt_seed(seed_parts: Sequence[str | int], prompt: Prompt) -> int:
    """Return the 63-bit seed from which the answer to `prompt` is drawn."""
    return stable_seed(*seed_parts, prompt.id)
