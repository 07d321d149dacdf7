"""The answering stage: a policy answers the prompts of a split."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from macpo.agents import Agent, Policy
from macpo.backends import LOCAL, backend_labelled
from macpo.config import DECODED_HERE, GenerationConfig, SamplingConfig
from macpo.generation.protocol import Generator, Rests, Speaker
from macpo.generation.sharing import SharedGenerator
from macpo.records import (
    Message,
    Prompt,
    Response,
    Split,
    read_responses,
    read_split_prompts,
    write_answers,
)
from macpo.stage import Stage, StageContext
from macpo.work import Answers, Known, Work

SHARD = 256
"""Prompts answered between two checkpoints. Part of what decides an answer's rounding: fixed."""


@dataclass(frozen=True, eq=False)
class Respond(Stage):
    """A policy answers the prompts of one split, or the first `limit` of them, once each.

    With `system` it answers under that system prompt, which stands before what the conversation
    brings along; the artifact holds the prompts without it. With `away_from`, a policy of the same
    agent, its token scores are pushed away from that one's by `strength`, but for tokens that are
    less than `plausible` times as probable as the likeliest. `backend` is name and version of what
    makes the answers (`macpo.backends`), `generation` the section with its keys, which say where it
    is and how it lays out work.
    """

    kind: ClassVar[str] = "respond"
    added: ClassVar[frozenset[str]] = frozenset({"plausible"})
    not_in_key: ClassVar[frozenset[str]] = frozenset({"name", "generation"})

    policy: Policy
    data: Stage
    split: Split
    limit: int | None
    sampling: SamplingConfig
    seed: int
    system: str = ""
    away_from: Policy | None = None
    strength: float = 0.0
    backend: str = LOCAL.label
    plausible: float = 0.0
    generation: GenerationConfig = DECODED_HERE

    @property
    def agent(self) -> Agent | None:
        """The policy's, if its model answers."""
        return self.policy.agent if backend_labelled(self.backend).runs_policy else None

    @property
    def decodes_here(self) -> bool:
        """Whether macpo's own decoder makes the answers, or what stands in for it."""
        return backend_labelled(self.backend) is LOCAL

    @property
    def by_all_ranks(self) -> bool:
        """Whether several ranks answer a share each; else rank 0 asks for all answers."""
        return self.decodes_here

    def work(self, known: Known) -> Work:
        """Read the prompts and write the answers; twice, if two policies look at every token."""
        if self.agent is None:
            return Work()
        (answers,) = known.left_by(self, self.agent)
        lengths = known.lengths[self.agent.name]
        once = Work(
            read=answers.count * lengths.prompt,
            written=answers.count * answers.tokens,
            at_most=answers.at_most or not lengths.measured,
            answers=answers.count,
        )
        return once if self.away_from is None else once * 2

    def leaves(self, known: Known, reader: Agent) -> tuple[Answers, ...]:
        """Reckon with answers as long as they may be."""
        prompts = known.sizes.prompts[self.split]
        count = prompts if self.limit is None else min(prompts, self.limit)
        return (Answers(count, self.sampling.max_new_tokens, at_most=True),)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write prompts.jsonl and responses.jsonl, in the same order."""
        prompts = read_split_prompts(context.path(self.data), self.split)[: self.limit]
        responses = self._saved(context)
        generator = self._generator(context, context.counter(len(prompts), len(responses)))
        while len(responses) < len(prompts):
            shard = prompts[len(responses) : len(responses) + SHARD]
            asked = [under_system_prompt(prompt, self.system) for prompt in shard]
            answers = generator.respond(asked, self.sampling, (self.seed,))
            responses += [replace(r, prompt_id=p.id) for p, r in zip(shard, answers, strict=True)]
            if len(responses) < len(prompts):
                context.checkpoints.save(len(responses), _writer(prompts, responses))
        if isinstance(generator, Rests):
            generator.rest()
        _writer(prompts, responses)(context.output)
        tokens = sum(len(r.token_ids) for r in responses)
        return {
            "responses": len(responses),
            "tokens": tokens,
            "empty": sum(r.is_empty for r in responses),
            "finished": sum(r.finished for r in responses),
        }

    def _generator(self, context: StageContext, count: Callable[[int], None]) -> Generator:
        """Make what answers, by all ranks where there are several."""
        make = functools.partial(
            context.generators,
            Speaker(
                self.policy,
                self.backend,
                self.away_from,
                self.strength,
                self.plausible,
                self.generation,
            ),
            context.policies,
            context.engine,
        )
        if context.ranks.size == 1:
            return make(count)
        return SharedGenerator(make, context.ranks, count)

    @staticmethod
    def _saved(context: StageContext) -> list[Response]:
        """Return the answers that a killed attempt had saved."""
        found = context.checkpoints.latest()
        return read_responses(found[1]) if found is not None else []


def under_system_prompt(prompt: Prompt, system: str) -> Prompt:
    """Put `system` before a conversation, joined to a system message that is there already."""
    if not system:
        return prompt
    first, *rest = prompt.messages
    if first.role == "system":
        return Prompt((Message("system", f"{system}\n\n{first.content}"), *rest))
    return Prompt((Message("system", system), *prompt.messages))


def _writer(prompts: list[Prompt], responses: list[Response]) -> Callable[[Path], None]:
    """Return a function that writes what is answered so far into a folder."""

    def write(folder: Path) -> None:
        write_answers(folder, zip(prompts, responses, strict=False))

    return write
