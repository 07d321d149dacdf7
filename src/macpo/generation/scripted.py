"""A generator without a model: a function writes the answers.

For tests, and for dry trials of a whole run (`generation: {backend: scripted}`): of equal rank with
the other backends, instant and deterministic.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from macpo.backends import SCRIPTED
from macpo.config import EngineConfig, SamplingConfig
from macpo.generation.protocol import Speaker, prompt_seed
from macpo.records import Origin, Prompt, Response

if TYPE_CHECKING:
    from macpo.models.chat import Chat
    from macpo.policies import PolicyPool

WORDS = """
yes no maybe first then because often never please consider another good simple careful answer
question people water bread light number seven day place time thank you
"""


def scripted_generator(
    speaker: Speaker,
    policies: PolicyPool,
    engine: EngineConfig,
    progress: Callable[[int], None],
) -> ScriptedGenerator:
    """Let random words answer for a policy: a `macpo.generation.protocol.GeneratorFactory`."""
    return ScriptedGenerator(
        random_words,
        speaker.policy.name,
        speaker.policy.weights_key,
        speaker.backend,
        policies.chat(speaker.policy.agent),
        progress,
    )


@dataclass(frozen=True, slots=True)
class ScriptedGenerator:
    """Answers with what `script` returns.

    Args:
        script: takes the prompt and its seed, returns the text of the answer.
        policy: `agent/positive` or `agent/negative`, for the responses' origin.
        weights: store key, likewise.
        backend: name and version, likewise.
        chat: encodes the answers, as if the policy had sampled them; without it they carry no
            token ids.
        progress: called with the number of prompts answered since the last call.
    """

    script: Callable[[Prompt, int], str]
    policy: str
    weights: str = ""
    backend: str = SCRIPTED.label
    chat: Chat | None = None
    progress: Callable[[int], None] | None = None

    def respond(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, seed_parts: Sequence[str | int]
    ) -> list[Response]:
        """Answer each prompt once; see `macpo.generation.protocol.Generator.respond`.

        Of `sampling` only `max_new_tokens` counts, and only with a chat.
        """
        responses = []
        for prompt in prompts:
            seed = prompt_seed(seed_parts, prompt)
            origin = Origin(self.policy, self.weights, self.backend, sampling.model_dump(), seed)
            response = Response(prompt.id, self.script(prompt, seed), origin)
            responses.append(self._encoded(response, sampling.max_new_tokens))
        if self.progress is not None:
            self.progress(len(prompts))
        return responses

    def stream(
        self,
        prompt: Prompt,
        sampling: SamplingConfig,
        seed_parts: Sequence[str | int],
        tell: Callable[[str], None],
    ) -> Response:
        """Tell the answer word by word; see `macpo.generation.streaming.Streams`."""
        [response] = self.respond([prompt], sampling, seed_parts)
        for piece in re.findall(r"\s*\S+|\s+$", response.text):
            tell(piece)
        return response

    def _encoded(self, response: Response, limit: int) -> Response:
        """Give an answer the token ids that say it, up to a limit."""
        if self.chat is None or not response.text:
            return response
        ids = self.chat.encode_completion(response, limit)
        return replace(
            response,
            text=self.chat.decode(ids),
            finished=ids[-1] == self.chat.end_of_turn,
            token_ids=ids,
            tokenizer=self.chat.fingerprint,
        )


def random_words(prompt: Prompt, seed: int) -> str:
    """Write 3 to 12 common words chosen by the seed: a script for dry trials."""
    chooser = random.Random(seed)
    return " ".join(chooser.choices(WORDS.split(), k=chooser.randint(3, 12))).capitalize() + "."
