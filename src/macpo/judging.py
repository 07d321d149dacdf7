"""Judging: a policy says which answers are good, and the best is paired with the worst.

A judge is asked in words (a prompt of its own) and answers by likelihood: of the grades or labels
that it may give, how probable is each as its next words? That takes one forward pass and no
sampling, needs no parsing, and works for models too weak to follow instructions to the letter.

Twins judge without being asked: two policies of one agent, of which the one is more likely than the
other to say what is good (`LogRatios`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar, Literal

from macpo.agents import Agent, Policy
from macpo.errors import DataError
from macpo.likelihood import PromptGroup
from macpo.models.chat import PromptTooLong
from macpo.pairs import leave_pairs
from macpo.records import (
    Message,
    Origin,
    Pair,
    Prompt,
    Response,
    read_answers,
    read_judgements,
    read_prompts,
    read_responses,
    read_scores,
    write_answers,
    write_judgements,
)
from macpo.stage import Stage, StageContext
from macpo.work import Answers, Known, Work

CHARACTERS_PER_TOKEN = 4
"""Of English, roughly: what a judge's question adds to what it reads."""

UNDECIDED = (
    "the judges left fewer than two answers, or found them equally good. Read the judgements; "
    "higher limits.prompt_tokens or another question for the judge may be needed"
)


@dataclass(frozen=True, slots=True)
class Question:
    """What a judge is asked, and the words that it may answer with."""

    prompt: Prompt
    words: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Grade(Stage):
    """A policy grades answers one by one: the mean of the grades, weighed by their probability.

    `question` is a template with `{conversation}` (or `{question}`, its last turn alone) and
    `{answer}`; `grades` are the words that the judge may say, worst first, and count 1, 2, ...
    """

    kind: ClassVar[str] = "judge"

    policy: Policy
    answers: tuple[Stage, ...]
    question: str
    grades: tuple[str, ...]

    @property
    def agent(self) -> Agent:
        """The judge."""
        return self.policy.agent

    def work(self, known: Known) -> Work:
        """Read every answer in a question of its own."""
        asked = len(self.question) / CHARACTERS_PER_TOKEN
        answers = [a for stage in self.answers for a in known.left_by(stage, self.agent)]
        return sum((known.reading(self.agent, [a], asked) for a in answers), Work())

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write judgements.jsonl: a score for each answer that is not empty."""
        asked: list[Response] = []
        questions: list[Question] = []
        for stage in self.answers:
            for prompt, response in read_answers(context.path(stage)):
                if not response.is_empty:
                    fields = {**told(prompt), "answer": response.text}
                    asked.append(response)
                    questions.append(Question(ask(self.question, fields), self.grades))
        said = _probabilities(self.policy, questions, context)
        judged = [
            (response, sum(p * grade for grade, p in enumerate(probs, 1)))
            for response, probs in zip(asked, said, strict=True)
            if probs is not None
        ]
        return _write(judged, len(asked), context)


@dataclass(frozen=True, eq=False)
class Compare(Stage):
    """A policy says which of two answers to each prompt is better.

    `question` is a template with `{conversation}` (or `{question}`), `{first}` and `{second}`; the
    judge says one of the two `labels`. Each pair is shown in both orders, so that a liking for the
    first place cancels; an answer's score is the mean probability of being called the better one.
    """

    kind: ClassVar[str] = "judge"

    policy: Policy
    one: Stage
    other: Stage
    question: str
    labels: tuple[str, str]

    @property
    def agent(self) -> Agent:
        """The judge."""
        return self.policy.agent

    def work(self, known: Known) -> Work:
        """Read both answers to every prompt, in two orders."""
        both = (*known.left_by(self.one, self.agent), *known.left_by(self.other, self.agent))
        return known.reading(self.agent, both, len(self.question) / CHARACTERS_PER_TOKEN) * 2

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write judgements.jsonl: two scores for each prompt whose answers are not empty."""
        answers = read_answers(context.path(self.one))
        others = read_responses(context.path(self.other))
        both = [
            (told(prompt), one, other)
            for (prompt, one), other in zip(answers, others, strict=True)
            if not one.is_empty and not other.is_empty
        ]
        questions = [
            Question(
                ask(self.question, {**fields, "first": a.text, "second": b.text}),
                self.labels,
            )
            for fields, one, other in both
            for a, b in ((one, other), (other, one))
        ]
        said = iter(_probabilities(self.policy, questions, context))
        judged = []
        for _, one, other in both:
            straight, turned = next(said), next(said)
            if straight is None or turned is None:
                continue
            better = (straight[0] + turned[1]) / 2
            judged += [(one, better), (other, 1 - better)]
        return _write(judged, 2 * len(both), context)


Aggregate = Literal["mean", "min"]
"""How one number is made of several judges'."""


@dataclass(frozen=True, eq=False)
class LogRatios(Stage):
    """How much more readily the one of two policies gives an answer than the other, in nats.

    weight * (log p(y) - log q(y)), sums over the response's tokens: where p was trained by DPO from
    q with beta, beta times it is the reward that p implies (arXiv 2305.18290, equation 5, up to a
    term of the prompt alone). `ours` and `theirs` hold the scores under p and q, an entry for each
    pair of twins, `weights` their weights; `aggregate` says what the twins' numbers become:
    their mean, or the least of them, so that an answer is good if all judges find it so.
    """

    kind: ClassVar[str] = "log-ratio"

    answers: tuple[Stage, ...]
    ours: tuple[Stage, ...]
    theirs: tuple[Stage, ...]
    weights: tuple[float, ...]
    aggregate: Aggregate = "mean"

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write judgements.jsonl: a number for each answer that is not empty."""
        ours, theirs = (
            [read_scores(context.path(stage)) for stage in side]
            for side in (self.ours, self.theirs)
        )
        aggregate: Callable[[Iterable[float]], float] = fmean if self.aggregate == "mean" else min
        answers = {
            response.id: response
            for stage in self.answers
            for response in read_responses(context.path(stage))
            if not response.is_empty
        }
        judged = [
            (
                response,
                aggregate(
                    weight * (p[id].sum_logprob - q[id].sum_logprob)
                    for weight, p, q in zip(self.weights, ours, theirs, strict=True)
                ),
            )
            for id, response in answers.items()
        ]
        return _write(judged, len(judged), context)


@dataclass(frozen=True, eq=False)
class BestAnswers(Stage):
    """Of several answers to each prompt, the one that is judged best."""

    kind: ClassVar[str] = "best"

    answers: tuple[Stage, ...]
    judgements: Stage

    def leaves(self, known: Known, reader: Agent) -> tuple[Answers, ...]:
        """One of the answers to each prompt."""
        return known.left_by(self.answers[0], reader)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write prompts.jsonl and responses.jsonl, as an answering stage does."""
        scores = read_judgements(context.path(self.judgements))
        folders = [context.path(stage) for stage in self.answers]
        prompts = read_prompts(folders[0])
        best = []
        for answers in zip(*map(read_responses, folders), strict=True):
            judged = [response for response in answers if response.id in scores]
            # Where all of them are empty there is nothing to choose.
            best.append(max(judged or answers[:1], key=lambda r: scores.get(r.id, 0.0)))
        write_answers(context.output, zip(prompts, best, strict=True))
        return {
            "responses": len(best),
            "tokens": sum(len(r.token_ids) for r in best),
            "empty": sum(r.is_empty for r in best),
            "finished": sum(r.finished for r in best),
        }


@dataclass(frozen=True, eq=False)
class RankedPairs(Stage):
    """Pairs of the best against the worst of several answers, by the mean over all judges."""

    kind: ClassVar[str] = "pairs"
    version: ClassVar[int] = 2

    answers: tuple[Stage, ...]
    judgements: tuple[Stage, ...]

    def leaves(self, known: Known, reader: Agent) -> tuple[Answers, ...]:
        """Two of the answers to each prompt."""
        return known.left_by(self.answers[0], reader) * 2

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write pairs.jsonl; a prompt whose answers are all equally good gives none."""
        scores: dict[str, list[float]] = {}
        for stage in self.judgements:
            for response_id, score in read_judgements(context.path(stage)).items():
                scores.setdefault(response_id, []).append(score)
        means = {name: sum(found) / len(found) for name, found in scores.items()}
        folders = [context.path(stage) for stage in self.answers]
        prompts = read_prompts(folders[0])
        pairs = []
        for prompt, *answers in zip(prompts, *map(read_responses, folders), strict=True):
            judged = [response for response in answers if response.id in means]
            if not judged:
                continue
            best = max(judged, key=lambda response: means[response.id])
            worst = min(judged, key=lambda response: means[response.id])
            if means[best.id] > means[worst.id]:
                pairs.append(Pair(prompt, best, worst))
        return leave_pairs(pairs, len(prompts), context, UNDECIDED)


def told(prompt: Prompt) -> dict[str, str]:
    """Return what a judge's question may say of a prompt: all of it, or its last turn alone."""
    return {"conversation": transcript(prompt), "question": prompt.messages[-1].content}


def transcript(prompt: Prompt) -> str:
    """Write a conversation down for a judge to read."""
    return "\n\n".join(f"{m.role.capitalize()}: {m.content}" for m in prompt.messages)


def ask(question: str, fields: Mapping[str, str]) -> Prompt:
    """Fill a template in one pass: what stands in an answer is never taken for a placeholder."""
    parts: list[str] = []
    rest = question
    while rest:
        found = [(rest.find("{" + name + "}"), name) for name in fields]
        first = min((place for place in found if place[0] >= 0), default=None)
        if first is None:
            break
        place, name = first
        parts += [rest[:place], fields[name]]
        rest = rest[place + len(name) + 2 :]
    return Prompt((Message("user", "".join([*parts, rest])),))


def _probabilities(
    policy: Policy, questions: Sequence[Question], context: StageContext
) -> list[list[float] | None]:
    """Return how probable each word is as the judge's answer, normalised over the words.

    None for a question that is too long for the judge.
    """
    loaded = context.policies.load(policy)
    limits = policy.agent.limits
    groups: list[PromptGroup] = []
    places: list[int] = []
    for place, question in enumerate(questions):
        try:
            ids = loaded.chat.encode_prompt(question.prompt, limits.prompt_tokens).ids
        except PromptTooLong:
            continue
        words = [
            Response(question.prompt.id, word, Origin("judge"), finished=False)
            for word in question.words
        ]
        completions = [loaded.chat.encode_completion(w, limits.response_tokens) for w in words]
        groups.append(PromptGroup(ids, tuple(completions)))
        places.append(place)
    engine = loaded.engine(context.engine.pack_tokens, context.ranks)
    scored = engine.score(groups, context.counter(len(groups)))
    said: list[list[float] | None] = [None] * len(questions)
    for place, scores in zip(places, scored, strict=True):
        top = max(score.sum_logprob for score in scores)
        weights = [math.exp(score.sum_logprob - top) for score in scores]
        said[place] = [weight / sum(weights) for weight in weights]
    return said


def _write(
    judged: Sequence[tuple[Response, float]], asked: int, context: StageContext
) -> dict[str, Any]:
    if not judged:
        raise DataError(
            f"none of {asked} answers could be judged: they are empty, or the judge's prompt is "
            "over limits.prompt_tokens; raise the limit or shorten the method's prompt"
        )
    write_judgements(context.output, judged)
    mean = sum(score for _, score in judged) / len(judged)
    return {"judged": len(judged), "too_long": asked - len(judged), "mean_score": mean}
