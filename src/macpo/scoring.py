"""Scoring stages: log-probabilities of answers under a policy, each computed once.

A score is the sum log-probability of a response (nats) and its number of tokens, under the scoring
policy's own tokenizer and chat template, the end of turn included. The perplexity filter reads
scores of the teachers' answers; DPO reads the same file for its reference log-probabilities where
the reference is the policy that filtered, so that there is no reference pass then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from macpo.agents import Agent, Policy
from macpo.errors import DataError
from macpo.likelihood import CompletionScore, PromptGroup
from macpo.models.chat import Chat
from macpo.records import Pair, Prompt, Response, read_jsonl, write_jsonl
from macpo.stage import Stage, StageContext
from macpo.work import Known, Work


@dataclass(frozen=True, eq=False)
class ScoreResponses(Stage):
    """Scores several policies' answers to the same prompts, one prompt group per prompt.

    Each of `answers` is a stage that wrote `prompts.jsonl` and `responses.jsonl`.
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
            folder = context.path(stage)
            for prompt, response in zip(read_prompts(folder), read_responses(folder), strict=True):
                by_prompt.setdefault(prompt.id, (prompt, []))[1].append(response)
        return _score(self.policy, list(by_prompt.values()), context)


@dataclass(frozen=True, eq=False)
class ScorePairs(Stage):
    """Scores the chosen and rejected answers of pairs: a reference pass."""

    kind: ClassVar[str] = "score"

    policy: Policy
    pairs: Stage

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
        return _score(self.policy, [(p.prompt, [p.chosen, p.rejected]) for p in pairs], context)


def read_prompts(folder: Path) -> list[Prompt]:
    """Read the prompts of an answering stage's artifact, in the order of its responses."""
    return [Prompt.from_json(row) for row in read_jsonl(folder / "prompts.jsonl")]


def read_responses(folder: Path) -> list[Response]:
    """Read the responses of an artifact."""
    return [Response.from_json(row) for row in read_jsonl(folder / "responses.jsonl")]


def read_pairs(folder: Path) -> list[Pair]:
    """Read the pairs of an artifact."""
    return [Pair.from_json(row) for row in read_jsonl(folder / "pairs.jsonl")]


def read_scores(folder: Path) -> dict[str, CompletionScore]:
    """Read scores by response id; responses that could not be scored are not in it."""
    return {
        row["response"]: CompletionScore(row["sum_logprob"], row["tokens"])
        for row in read_jsonl(folder / "scores.jsonl")
    }


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


def is_empty(response: Response) -> bool:
    """Tell whether a sampled answer says nothing: nobody can score or learn it."""
    return not response.text.strip()


def _score(
    policy: Policy,
    items: Sequence[tuple[Prompt, Sequence[Response]]],
    context: StageContext,
) -> Mapping[str, Any]:
    """Score the answers that are not empty and write scores.jsonl."""
    loaded = context.policies.load(policy)
    kept = [(p, [r for r in responses if not is_empty(r)]) for p, responses in items]
    empty = sum(len(responses) for _, responses in items) - sum(len(rs) for _, rs in kept)
    kept = [(prompt, responses) for prompt, responses in kept if responses]
    if not kept:
        raise DataError(f"{policy.name} has no answer to score: all of them are empty")
    groups = [encode_group(loaded.chat, policy.agent, p, rs) for p, rs in kept]
    engine = loaded.engine(context.engine.pack_tokens)
    scores = engine.score(groups, context.counter(len(groups)))
    rows = (
        {
            "prompt_id": prompt.id,
            "response": response.id,
            "policy": response.origin.policy,
            "sum_logprob": score.sum_logprob,
            "tokens": score.tokens,
            "perplexity": min(score.perplexity, 1e308),
        }
        for (prompt, responses), group_scores in zip(kept, scores, strict=True)
        for response, score in zip(responses, group_scores, strict=True)
    )
    write_jsonl(context.output / "scores.jsonl", rows)
    return {"scored": sum(len(rs) for _, rs in kept), "empty": empty}
