"""Scoring stages: log-probabilities of answers under a policy, each computed once.

A score is the sum log-probability of a response (nats) and its number of tokens, under the scoring
policy's own tokenizer and chat template, the end of turn included. The perplexity filter reads
scores of the teachers' answers; DPO reads the same file for its reference log-probabilities where
the reference is the policy that filtered, so that there is no reference pass then.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from macpo.agents import Agent, Policy
from macpo.errors import DataError
from macpo.likelihood import LikelihoodEngine, PromptGroup
from macpo.models.chat import Chat
from macpo.records import Prompt, Response, read_answers, read_pairs, write_scores
from macpo.stage import Stage, StageContext
from macpo.work import Known, Work

_log = logging.getLogger("macpo")


@dataclass(frozen=True, eq=False)
class ScoreResponses(Stage):
    """Scores several policies' answers to the same prompts, one prompt group per prompt.

    Each of `answers` is a stage that wrote answers (`macpo.records.write_answers`).
    """

    kind: ClassVar[str] = "score"

    policy: Policy
    answers: tuple[Stage, ...]

    @property
    def agent(self) -> Agent:
        """The policy's."""
        return self.policy.agent

    def work(self, known: Known) -> Work:
        """Read every prompt once, with an answer of each."""
        answers = [a for stage in self.answers for a in known.left_by(stage, self.agent)]
        return known.reading(self.agent, answers)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write scores.jsonl: one line per scored response."""
        by_prompt: dict[str, tuple[Prompt, list[Response]]] = {}
        for stage in self.answers:
            for prompt, response in read_answers(context.path(stage)):
                by_prompt.setdefault(prompt.id, (prompt, []))[1].append(response)
        return _score(self.policy, list(by_prompt.values()), context)


@dataclass(frozen=True, eq=False)
class ScorePairs(Stage):
    """Scores the chosen and rejected answers of pairs: a reference pass.

    With `without_ends` an answer is scored without the token that ends it, where it has one.
    """

    kind: ClassVar[str] = "score"
    added: ClassVar[frozenset[str]] = frozenset({"without_ends"})

    policy: Policy
    pairs: Stage
    without_ends: bool = False

    @property
    def agent(self) -> Agent:
        """The policy's."""
        return self.policy.agent

    def work(self, known: Known) -> Work:
        """Read every prompt once, with both of its answers."""
        return known.reading(self.agent, known.left_by(self.pairs, self.agent))

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write scores.jsonl: one line per scored response."""
        pairs = read_pairs(context.path(self.pairs))
        items = [(p.prompt, [p.chosen, p.rejected]) for p in pairs]
        return _score(self.policy, items, context, without_ends=self.without_ends)


def encode_group(
    chat: Chat, agent: Agent, prompt: Prompt, responses: Sequence[Response]
) -> PromptGroup:
    """Encode a prompt and answers to it as an agent sees them, cut to its limits.

    Raises:
        DataError: an answer is empty, or the prompt too long.
    """
    return PromptGroup(
        chat.encode_prompt(prompt, agent.limits.prompt_tokens).ids,
        tuple(chat.encode_completion(r, agent.limits.response_tokens) for r in responses),
    )


def cut_ends(group: PromptGroup, stops: Collection[int]) -> PromptGroup:
    """Return a group whose answers lack the token that ends them; one that was cut off has none.

    Args:
        group: as `encode_group` encodes it.
        stops: the tokens that end an answer (`macpo.models.chat.Chat.stop_ids`).
    """
    said = (c[:-1] if c[-1] in stops else c for c in group.completions)
    return PromptGroup(group.prompt, tuple(said))


def say_cost(
    name: str, engine: LikelihoodEngine, groups: Sequence[PromptGroup], *, gradients: bool
) -> None:
    """Say what it costs if prompts are read again for each of their answers.

    Args:
        name: of who reads.
        engine: over its model.
        groups: what is read, once.
        gradients: it is trained on, not only scored.
    """
    read = engine.tokens_read(groups, gradients=gradients)
    least = sum(group.tokens for group in groups)
    if read > least:
        _log.info(
            "%s: in padded rows %s tokens are read instead of %s (%.1f times)",
            name,
            f"{read:,}",
            f"{least:,}",
            read / least,
        )


def _score(
    policy: Policy,
    items: Sequence[tuple[Prompt, Sequence[Response]]],
    context: StageContext,
    *,
    without_ends: bool = False,
) -> Mapping[str, Any]:
    """Score the answers that are not empty and write scores.jsonl."""
    loaded = context.policies.load(policy)
    kept = [(p, [r for r in responses if not r.is_empty]) for p, responses in items]
    empty = sum(len(responses) for _, responses in items) - sum(len(rs) for _, rs in kept)
    kept = [(prompt, responses) for prompt, responses in kept if responses]
    if not kept:
        raise DataError(f"{policy.name} has no answer to score: all of them are empty")
    groups = [encode_group(loaded.chat, policy.agent, p, rs) for p, rs in kept]
    if without_ends:
        groups = [cut_ends(group, loaded.chat.stop_ids) for group in groups]
    engine = loaded.engine(context.engine.pack_tokens, context.ranks)
    say_cost(policy.name, engine, groups, gradients=False)
    scores = engine.score(groups, context.counter(len(groups)))
    scored = [
        (response, score)
        for (_, responses), group_scores in zip(kept, scores, strict=True)
        for response, score in zip(responses, group_scores, strict=True)
    ]
    write_scores(context.output, scored)
    tokens = sum(score.tokens for _, score in scored)
    return {"scored": len(scored), "tokens": tokens, "empty": empty}
