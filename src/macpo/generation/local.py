"""The local backend: a model in this process answers, prompts and answers pass through its chat."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from macpo.backends import LOCAL
from macpo.config import EngineConfig, SamplingConfig
from macpo.errors import ModelError
from macpo.generation.protocol import Completion, Speaker, prompt_seed
from macpo.generation.room import Room
from macpo.generation.streaming import Spoken
from macpo.records import Origin, Prompt, Response

if TYPE_CHECKING:
    from macpo.generation.blocked import Kept
    from macpo.generation.servable import Refused, Served
    from macpo.models.chat import Chat
    from macpo.policies import LoadedPolicy, PolicyPool

log = logging.getLogger(__name__)


def local_generator(
    speaker: Speaker,
    policies: PolicyPool,
    engine: EngineConfig,
    progress: Callable[[int], None],
) -> LocalGenerator:
    """Load a policy to answer: a `macpo.generation.protocol.GeneratorFactory`.

    With a policy to be pushed away from there is a second copy of the model in memory.
    """
    other = None
    if speaker.away_from is not None:  # a copy: the pool's model is about to change its weights
        other = copy.deepcopy(policies.load(speaker.away_from).model)
    loaded = policies.load(speaker.policy)
    return LocalGenerator(
        loaded.model,
        loaded.chat,
        policy=speaker.policy.name,
        weights=speaker.policy.weights_key,
        backend=speaker.backend,
        prompt_tokens=speaker.policy.agent.limits.prompt_tokens,
        engine=engine,
        progress=progress,
        away_from=other,
        strength=speaker.strength,
        plausible=speaker.plausible,
        examined=loaded.examined,
        blocked=loaded.blocked,
    )


def refuse_mute(name: str, loaded: LoadedPolicy, max_length: int) -> None:
    """Refuse a model with which nothing here can answer.

    Args:
        name: of the agent, for the error.
        loaded: the policy; what is found out of it is remembered there.
        max_length: of a prompt with its answer, in tokens.

    Raises:
        ModelError: neither macpo's decoder nor transformers' `generate` serves it.
    """
    from macpo.generation import fallback
    from macpo.generation.servable import Refused, examine

    if max_length not in loaded.examined:
        loaded.examined[max_length] = examine(loaded.model, max_length)
    if isinstance(loaded.examined[max_length], Refused):
        try:
            fallback.refuse_mute(loaded.model)
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from error


class LocalGenerator:
    """A policy that answers with a transformers model, or a PEFT model, held in memory.

    Args:
        model: the policy, with its adapter active.
        chat: of the model's tokenizer.
        policy: `agent/positive` or `agent/negative`, for the responses' origin.
        weights: store key of the weights, likewise; empty for a bare base model.
        backend: name and version of this backend, likewise.
        prompt_tokens: prompts over this length lose their oldest turns.
        engine: memory and packing limits.
        progress: called with the number of prompts answered since the last call.
        away_from: a model to be pushed away from, see `macpo.generation.decode.decode`.
        strength: of the push.
        plausible: which tokens it may make likely, likewise.
        examined: where to remember which decoder serves the model, see
            `macpo.policies.LoadedPolicy`.
        blocked: where to keep copies of its weights, likewise.
    """

    def __init__(
        self,
        model: Any,
        chat: Chat,
        *,
        policy: str,
        weights: str = "",
        backend: str = LOCAL.label,
        prompt_tokens: int,
        engine: EngineConfig,
        progress: Callable[[int], None] | None = None,
        away_from: Any = None,
        strength: float = 0.0,
        plausible: float = 0.0,
        examined: dict[int, Served | Refused] | None = None,
        blocked: Kept | None = None,
    ) -> None:
        self.model = model
        self.chat = chat
        self.policy = policy
        self.weights = weights
        self.backend = backend
        self.prompt_tokens = prompt_tokens
        self.engine = engine
        self.progress = progress
        self.away_from = away_from
        self.strength = strength
        self.plausible = plausible
        self._found = {} if examined is None else examined
        self._blocked = blocked
        self._room = Room()

    def respond(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, seed_parts: Sequence[str | int]
    ) -> list[Response]:
        """Answer each prompt once; see `macpo.generation.protocol.Generator.respond`.

        An answer ends at the end of turn, or at another of the chat's `stop_ids`.

        Raises:
            DataError: a prompt is over `prompt_tokens` even without its earlier turns.
            ConfigError, ModelError: see `macpo.generation.decode.decode`.
        """
        return self._respond(prompts, sampling, seed_parts, None)

    def stream(
        self,
        prompt: Prompt,
        sampling: SamplingConfig,
        seed_parts: Sequence[str | int],
        tell: Callable[[str], None],
    ) -> Response:
        """Answer one prompt, telling each piece of text as it comes about.

        See `macpo.generation.streaming.Streams`; errors are those of `respond`.
        """
        spoken = Spoken(self.chat, tell)
        [response] = self._respond([prompt], sampling, seed_parts, lambda _, token: spoken(token))
        spoken.end(response.text)
        return response

    def _respond(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        seed_parts: Sequence[str | int],
        heard: Callable[[int, int], None] | None,
    ) -> list[Response]:
        """See `respond`; `heard` is called with a prompt's place and each token drawn for it."""
        ids = [self.chat.encode_prompt(prompt, self.prompt_tokens).ids for prompt in prompts]
        seeds = [prompt_seed(seed_parts, prompt) for prompt in prompts]
        decoder, backend = self._decoder(sampling)
        completions = decoder(
            self.model,
            ids,
            stop_ids=self.chat.stop_ids,
            sampling=sampling,
            seeds=seeds,
            memory_gib=self.engine.decode_memory_gib,
            pack_tokens=self.engine.pack_tokens,
            progress=self.progress,
            heard=heard,
            room=self._room,
        )
        return [
            Response(
                prompt_id=prompt.id,
                text=self.chat.decode(completion.token_ids),
                origin=Origin(self.policy, self.weights, backend, sampling.model_dump(), seed),
                finished=completion.finished,
                token_ids=completion.token_ids,
                tokenizer=self.chat.fingerprint,
            )
            for prompt, seed, completion in zip(prompts, seeds, completions, strict=True)
        ]

    def _decoder(self, sampling: SamplingConfig) -> tuple[Callable[..., list[Completion]], str]:
        """Choose the decoder, for the longest answers that limits allow, and name it.

        The choice does not depend on the prompts at hand: all shards of a stage use one decoder.
        """
        from macpo.generation.decode import decode
        from macpo.generation.fallback import decode_by_generate
        from macpo.generation.servable import Refused, examine

        max_length = self.prompt_tokens + sampling.max_new_tokens
        if max_length not in self._found:
            found = self._found[max_length] = examine(self.model, max_length)
            if isinstance(found, Refused) and self.away_from is not None:
                raise ModelError(
                    f"{self.policy}: cannot be pushed away from another policy while it answers, "
                    f"since macpo's own decoder does not serve it ({found.reason}); make negatives "
                    "in another way, or take another method than cong"
                )
            if isinstance(found, Refused):
                log.warning(
                    "%s answers through transformers' generate, which is slower: %s",
                    self.policy,
                    found.reason,
                )
        found = self._found[max_length]
        if isinstance(found, Refused):
            return decode_by_generate, f"{self.backend} generate"
        ours = functools.partial(
            decode,
            served=found,
            away_from=self.away_from,
            strength=self.strength,
            plausible=self.plausible,
            blocked=self._blocked,
        )
        return ours, f"{self.backend} decode"
