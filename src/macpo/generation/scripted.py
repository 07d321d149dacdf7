"""A generator without a model: a function writes the answers.

For tests, and for dry trials of a whole run: of equal rank with the other backends, instant and
deterministic.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from macpo import __version__
from macpo.config import SamplingConfig
from macpo.generation.protocol import prompt_seed
from macpo.records import Origin, Prompt, Response

WORDS = """
yes no maybe first then because often never please consider another good simple careful answer
question people water bread light number seven day place time thank you
"""


@dataclass(frozen=True, slots=True)
class ScriptedGenerator:
    """Answers with what `script` returns.

    Args:
        script: takes the prompt and its seed, returns the text of the answer.
        policy: `agent/positive` or `agent/negative`, for the responses' origin.
        weights: store key, likewise.
    """

    script: Callable[[Prompt, int], str]
    policy: str
    weights: str = ""

    def respond(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, seed_parts: Sequence[str | int]
    ) -> list[Response]:
        """Answer each prompt once; see `macpo.generation.protocol.Generator.respond`.

        Responses carry text and no token ids: nobody sampled them.
        """
        responses = []
        for prompt in prompts:
            seed = prompt_seed(seed_parts, prompt)
            responses.append(
                Response(
                    prompt_id=prompt.id,
                    text=self.script(prompt, seed),
                    origin=Origin(
                        self.policy,
                        self.weights,
                        f"macpo {__version__} scripted",
                        sampling.model_dump(),
                        seed,
                    ),
                )
            )
        return responses


def random_words(prompt: Prompt, seed: int) -> str:
    """Write 3 to 12 common words chosen by the seed: a script for dry trials."""
    chooser = random.Random(seed)
    return " ".join(chooser.choices(WORDS.split(), k=chooser.randint(3, 12))).capitalize() + "."
