"""The answering stage: a policy answers the prompts of a split."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from macpo.agents import Policy
from macpo.config import SamplingConfig
from macpo.data.stages import Split, read_prompts
from macpo.generation.local import LocalGenerator
from macpo.records import Prompt, Response, write_jsonl
from macpo.scoring import is_empty, read_responses
from macpo.stage import Stage, StageContext

SHARD = 256
"""Prompts answered between two checkpoints. Part of what decides an answer's rounding: fixed."""


@dataclass(frozen=True, eq=False)
class Respond(Stage):
    """A policy answers the prompts of one split, or the first `limit` of them, once each."""

    kind: ClassVar[str] = "respond"

    policy: Policy
    data: Stage
    split: Split
    limit: int | None
    sampling: SamplingConfig
    seed: int

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write prompts.jsonl and responses.jsonl, in the same order."""
        prompts = read_prompts(context.path(self.data), self.split)[: self.limit]
        responses = self._saved(context)
        loaded = context.policies.load(self.policy)
        generator = LocalGenerator(
            loaded.model,
            loaded.chat,
            policy=self.policy.name,
            weights=self.policy.weights_key,
            prompt_tokens=self.policy.agent.limits.prompt_tokens,
            engine=context.engine,
            progress=context.counter(len(prompts), len(responses)),
        )
        while len(responses) < len(prompts):
            shard = prompts[len(responses) : len(responses) + SHARD]
            responses += generator.respond(shard, self.sampling, (self.seed,))
            if len(responses) < len(prompts):
                context.checkpoints.save(len(responses), _writer(prompts, responses))
        _writer(prompts, responses)(context.output)
        tokens = sum(len(r.token_ids) for r in responses)
        return {
            "responses": len(responses),
            "tokens": tokens,
            "empty": sum(map(is_empty, responses)),
            "finished": sum(r.finished for r in responses),
        }

    @staticmethod
    def _saved(context: StageContext) -> list[Response]:
        """Return the answers that a killed attempt had saved."""
        found = context.checkpoints.latest()
        return read_responses(found[1]) if found is not None else []


def _writer(prompts: list[Prompt], responses: list[Response]) -> Callable[[Path], None]:
    """Return a function that writes what is answered so far into a folder."""

    def write(folder: Path) -> None:
        answered = itertools.islice(prompts, len(responses))
        write_jsonl(folder / "prompts.jsonl", (prompt.to_json() for prompt in answered))
        write_jsonl(folder / "responses.jsonl", (response.to_json() for response in responses))

    return write
