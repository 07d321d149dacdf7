"""A policy that an engine answers for: prompts and answers pass through the policy's chat."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from macpo.config import SamplingConfig
from macpo.errors import ModelError
from macpo.generation.protocol import Completion, Speaker, prompt_seed
from macpo.generation.served.canary import ANSWERS, compare
from macpo.generation.served.engine import Adapter, Drawing, Drawn, Engine, Question
from macpo.records import Origin, Prompt, Response

if TYPE_CHECKING:
    from macpo.policies import LoadedPolicy

log = logging.getLogger("macpo")


@dataclass(slots=True)
class ServedGenerator:
    """Answers with an engine; see `macpo.generation.protocol.Generator`.

    Args:
        speaker: whose answers they are.
        loaded: the policy in this process, for the canary.
        seat: returns the engine and the adapter over its base, given the most tokens of a prompt
            with its answer.
        pack_tokens: see `macpo.config.EngineConfig`.
        progress: called with the number of prompts answered since the last call.
        trusted: the first answers have been compared with the policy.
    """

    speaker: Speaker
    loaded: LoadedPolicy
    seat: Callable[[int], tuple[Engine, Adapter | None]]
    pack_tokens: int
    progress: Callable[[int], None]
    trusted: bool = False
    _seated: dict[int, tuple[Engine, Adapter | None]] = field(default_factory=dict)

    def respond(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, seed_parts: Sequence[str | int]
    ) -> list[Response]:
        """Answer each prompt once; see `macpo.generation.protocol.Generator.respond`.

        Raises:
            DataError: a prompt is over the agent's limit even without its earlier turns.
            ModelError: the engine cannot answer, or its first answers are not the policy's.
        """
        policy, chat = self.speaker.policy, self.loaded.chat
        limit = policy.agent.limits.prompt_tokens
        ids = [chat.encode_prompt(prompt, limit).ids for prompt in prompts]
        seeds = [prompt_seed(seed_parts, prompt) for prompt in prompts]
        told = 0 if self.trusted else ANSWERS
        questions = {
            i: Question(asked, seed, told=i < told)
            for i, (asked, seed) in enumerate(zip(ids, seeds, strict=True))
        }
        drawn = self._drawn(questions, sampling, limit)
        if questions and not self.trusted:
            self._trust(ids[:told], drawn[:told])
        completions = [completion_of(one, chat.stop_ids) for one in drawn]
        return [
            Response(
                prompt_id=prompt.id,
                text=chat.decode(completion.token_ids),
                origin=Origin(
                    policy.name,
                    policy.weights_key,
                    self.speaker.backend,
                    sampling.model_dump(),
                    seed,
                ),
                finished=completion.finished,
                token_ids=completion.token_ids,
                tokenizer=chat.fingerprint,
            )
            for prompt, seed, completion in zip(prompts, seeds, completions, strict=True)
        ]

    def rest(self) -> None:
        """See `macpo.generation.protocol.Rests`."""
        for engine, _ in self._seated.values():
            engine.rest()

    def _drawn(
        self, questions: dict[int, Question], sampling: SamplingConfig, limit: int
    ) -> list[Drawn]:
        """Let the engine answer; returns the answers in the order of the questions."""
        if not questions:
            return []
        length = limit + sampling.max_new_tokens
        if length not in self._seated:
            self._seated[length] = self.seat(length)
        engine, adapter = self._seated[length]
        drawing = Drawing(
            sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens
        )
        found: dict[int, Drawn] = {}
        stops = sorted(self.loaded.chat.stop_ids)
        for index, drawn in engine.answer(
            questions, drawing, stops, adapter, lambda: self.progress(0)
        ):
            found[index] = drawn
            self.progress(1)
        return [found[index] for index in sorted(found)]

    def _trust(self, prompts: Sequence[tuple[int, ...]], drawn: Sequence[Drawn]) -> None:
        """Compare the first answers with the policy.

        Raises:
            ModelError: they are not the policy's.
        """
        name = self.speaker.policy.name
        if any(one.logprobs is None for one in drawn):
            raise ModelError(
                f"{name}: {self.speaker.backend} tells no log-probabilities of its answers, so "
                "nothing shows that they are this policy's; set generation.backend: local"
            )
        found = compare(
            self.loaded,
            self.pack_tokens,
            prompts,
            [one.ids for one in drawn],
            [one.logprobs or () for one in drawn],
        )
        fault = found.fault(self.speaker.policy.agent.dtype)
        if fault is not None:
            raise ModelError(
                f"{name}: {self.speaker.backend} does not answer as this policy: {fault}; nothing "
                "is kept of it. Set generation.backend: local, or other tuning.targets"
            )
        log.info(
            "%s: %s agrees with the policy within %.2g nats per token (%d tokens)",
            name,
            self.speaker.backend,
            found.policy,
            found.tokens,
        )
        self.trusted = True


def completion_of(drawn: Drawn, stops: frozenset[int]) -> Completion:
    """Return an answer as macpo's own decoder does: with the token that ended it, if one did.

    Engines differ in whether that token is among the answer's; nothing comes after it.
    """
    end = next((i for i, token in enumerate(drawn.ids) if token in stops), None)
    if end is not None:
        return Completion(drawn.ids[: end + 1], finished=True)
    if drawn.reason is not None and drawn.reason in stops:
        return Completion((*drawn.ids, drawn.reason), finished=True)
    return Completion(drawn.ids, finished=False)
