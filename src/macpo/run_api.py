"""A run opened in a notebook: its config, metrics, pairs and answers, and its policies at work.

    run = macpo.open_run("runs/quickstart")
    run.metrics                                   # a pandas DataFrame
    run.pairs(1, "student")                       # what the student learned from in round 1
    student = run.policy("student", round=2)
    student.answer(["How do I bake bread?"])
    student.score(["How do I bake bread?"], [["Mix flour and water.", "No."]])

Nothing is written, and no lock is taken: a run that is going on can be opened too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

import pandas as pd

from macpo.agents import Policy
from macpo.answering import SHARD
from macpo.config import RunConfig, SamplingConfig
from macpo.errors import DataError, StoreError
from macpo.evaluation.recorded import RecordedTeam
from macpo.filter import Candidate, best
from macpo.generation.protocol import Generator, Speaker, make_generator
from macpo.generation.streaming import stream_answer
from macpo.machine import choose_device
from macpo.records import (
    ROLES,
    CompletionScore,
    Message,
    Pair,
    Prompt,
    Response,
    Split,
    dataset_response,
    read_answers,
    read_pairs,
)
from macpo.run_directory import RunDir, RunPlan
from macpo.run_status import status
from macpo.scoring import encode_group
from macpo.store import Store

if TYPE_CHECKING:
    from macpo.policies import PolicyPool

PromptLike: TypeAlias = str | Prompt | Sequence[Message | Mapping[str, str]]
"""A prompt as people write it: the user's words, or a conversation as messages."""

METRIC_COLUMNS = ("policy", "round", "metric", "value")


def open_run(folder: str | Path) -> Run:
    """Open a run to look at what it made and to use its policies.

    Args:
        folder: the run directory.

    Raises:
        StoreError: there is no run, or one that an older macpo wrote.
    """
    status(folder)  # says which run may have been meant
    return Run(RunDir(folder))


class Run:
    """A run that is there, finished or not; see `open_run`.

    Models are loaded when a policy is first used and kept. `close`, or the end of a `with` block,
    lets go of them.
    """

    def __init__(self, directory: RunDir) -> None:
        plan = directory.plan()
        if plan is None:
            raise StoreError(
                f"{directory.path}: has no {directory.plan_file.name}, an older macpo ran it; run "
                "its config again, which finds what is done and writes one"
            )
        self._directory = directory
        self._plan: RunPlan = plan
        self._store = Store(directory.store)
        self._pool: PolicyPool | None = None

    def __repr__(self) -> str:
        return f"Run({str(self._directory.path)!r})"

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of the models."""
        self.close()

    def close(self) -> None:
        """Let go of the models; the next use of a policy loads them again."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    @cached_property
    def config(self) -> RunConfig:
        """The config, defaults and dtype as the run resolved them."""
        return self._directory.config()

    @property
    def metrics(self) -> pd.DataFrame:
        """The rows of metrics.jsonl, so far: policy, round (0: before the first), metric, value."""
        return pd.DataFrame(list(status(self._directory.path).metrics), columns=METRIC_COLUMNS)

    def pairs(self, round: int, agent: str = "student") -> list[Pair]:
        """Return the chosen and rejected answers that an agent learned from in a round.

        Raises:
            StoreError: there is no such agent or round, it learned from no pairs in that round,
                or has not come so far.
        """
        trained = self._plan.policy(agent, round).trained
        pairs = None if trained is None else self._plan.stage(trained).input("pairs")
        if pairs is None:
            raise StoreError(f"{agent} learned from no pairs in round {round}")
        return read_pairs(self._artifact(pairs))

    def answers(
        self, round: int, agent: str = "student", split: Split = "test"
    ) -> list[tuple[Prompt, Response]]:
        """Return what an agent's policy, as it was after a round, answered.

        Args:
            round: 0 is before the first.
            agent: whose policy.
            split: `test`, or `student` for the answers that the next turns learned from.

        Raises:
            StoreError: there is no such agent or round, nobody asked that policy, or the run has
                not come so far.
        """
        stages = self._plan.answers(self._plan.policy(agent, round), split)
        if not stages:
            raise StoreError(
                f"{agent} was not asked the prompts of split {split} after round {round}"
            )
        return [answer for stage in stages for answer in read_answers(self._artifact(stage.key))]

    def artifact(self, stage: str) -> Path:
        """Return the folder with the files of a finished stage, such as `round-1/student/train`.

        Raises:
            StoreError: no finished stage has this name; names the nearest.
        """
        return self._directory.stage(stage)

    def policy(self, agent: str = "student", round: int | None = None) -> RunPolicy:
        """Return an agent's positive policy as it was after a round, by default the one handed out.

        Raises:
            StoreError: there is no such agent or round, or the run has not come so far.
            ModelError: its base model is not here, or is another one now.
        """
        planned = self._plan.policy(agent, round, self._directory.ended())
        if planned.trained is not None:
            self._artifact(planned.trained)
        return RunPolicy(self, self._team.policy(planned), planned.round)

    @property
    def pool(self) -> PolicyPool:
        """The models in memory."""
        from macpo.policies import PolicyPool

        if self._pool is None:
            self._pool = PolicyPool(choose_device(self.config.device), self._artifact)
        return self._pool

    @cached_property
    def _team(self) -> RecordedTeam:
        return RecordedTeam(self.config, self._plan)

    def _artifact(self, key: str) -> Path:
        """Return the folder of a stage's artifact, compared with its checksums."""
        stage = self._plan.stage(key)
        artifact = self._store.find(stage.kind, stage.key)
        if artifact is None:
            raise StoreError(
                f"{self._directory.path}: {stage.name} is not done yet; run the config to go on"
            )
        return artifact.path


class RunPolicy:
    """A policy of a run, ready to score and to answer; see `Run.policy`.

    Attributes:
        agent: whose it is.
        round: after which it was so.
    """

    def __init__(self, run: Run, policy: Policy, round: int) -> None:
        self.agent = policy.agent.name
        self.round = round
        self._run = run
        self._policy = policy

    def __repr__(self) -> str:
        return f"RunPolicy({self.agent!r}, round={self.round})"

    def score(
        self, prompts: Sequence[PromptLike], answers: Sequence[Sequence[str | Response]]
    ) -> list[list[CompletionScore]]:
        """Say how probable answers are, as the run's filter and references see them.

        Args:
            prompts: each the user's words, or a conversation.
            answers: to each prompt one or more; those of `Run.answers` are scored in the tokens
                in which they were sampled.

        Returns:
            To each answer the sum of log-probabilities of its tokens (nats, end of turn included)
            and their number; `mean_nll` and `perplexity` follow from these.

        Raises:
            DataError: an answer is empty, a prompt too long, or there are not as many of the one
                as of the other.
        """
        asked, given = _aligned(prompts, answers)
        _refuse_unscorable(given)
        loaded = self._run.pool.load(self._policy)
        pairs = zip(asked, given, strict=True)
        groups = [encode_group(loaded.chat, self._policy.agent, p, rs) for p, rs in pairs]
        return loaded.engine(self._run.config.engine.pack_tokens).score(groups)

    def answer(
        self,
        prompts: Sequence[PromptLike],
        sampling: SamplingConfig | None = None,
        *,
        seed: int = 0,
    ) -> list[Response]:
        """Answer each prompt once.

        Args:
            prompts: each the user's words, or a conversation.
            sampling: how tokens are drawn; by default as in the run.
            seed: decides, together with the prompt, what is drawn.

        Raises:
            DataError: a prompt is too long, or not a conversation that waits for an answer.
        """
        asked = _prompts(prompts)
        config = self._run.config
        generator = self._generator()
        found: list[Response] = []
        for start in range(0, len(asked), SHARD):  # as the run's own stages do
            shard = asked[start : start + SHARD]
            found += generator.respond(shard, sampling or config.sampling, (seed,))
        return found

    def load(self) -> None:
        """Load the model now, which the first answer would do otherwise."""
        self._generator()

    def stream(
        self,
        prompt: PromptLike,
        tell: Callable[[str], None],
        sampling: SamplingConfig | None = None,
        *,
        seed: int = 0,
    ) -> Response:
        """Answer one prompt, telling each piece of the text as it comes about.

            student.stream("How do I bake bread?", lambda text: print(text, end="", flush=True))

        The pieces together are the text of the response, which is that of `answer`. A backend that
        cannot stream tells the whole answer at once.

        Args:
            prompt: the user's words, or a conversation.
            tell: called with each piece; what it raises ends the answer.
            sampling: as in `answer`.
            seed: as in `answer`.

        Raises:
            DataError: as in `answer`.
        """
        drawn = sampling or self._run.config.sampling
        return stream_answer(self._generator(), _prompt(prompt), drawn, (seed,), tell)

    def forgotten_turns(self, prompt: PromptLike) -> int:
        """Count the messages at a conversation's start that `limits.prompt_tokens` cuts off.

        Raises:
            DataError: as in `answer`.
        """
        agent = self._policy.agent
        encoded = self._run.pool.chat(agent).encode_prompt(
            _prompt(prompt), agent.limits.prompt_tokens
        )
        return encoded.dropped_turns

    def _generator(self) -> Generator:
        config = self._run.config
        section = config.generation
        backend = section.backend_of(self._policy.agent.name).labelled(section)
        speaker = Speaker(self._policy, backend, section=section)
        return make_generator(speaker, self._run.pool, config.engine, lambda _: None)


def filter_by_perplexity(
    policy: RunPolicy,
    prompts: Sequence[PromptLike],
    candidates: Sequence[Sequence[str | Response]],
    top_k: int = 1,
) -> list[list[Candidate]]:
    """Keep, per prompt, the candidates that a policy finds least perplexing: MACPO's own filter.

    Args:
        policy: who filters; in MACPO the student, of the teachers' answers.
        prompts: each the user's words, or a conversation.
        candidates: to each prompt some answers; empty ones are left out.
        top_k: how many to keep.

    Returns:
        To each prompt what was kept, best first, each with its score; ties go to the earlier one.

    Raises:
        DataError: as in `RunPolicy.score`.
    """
    asked, given = _aligned(prompts, candidates)
    said = [[response for response in responses if not response.is_empty] for responses in given]
    some = [i for i, responses in enumerate(said) if responses]
    scores = policy.score([asked[i] for i in some], [said[i] for i in some]) if some else []
    kept: list[list[Candidate]] = [[] for _ in asked]
    for i, found in zip(some, scores, strict=True):
        scored = [Candidate(r, score) for r, score in zip(said[i], found, strict=True)]
        kept[i] = best(scored, "perplexity", top_k)
    return kept


def _aligned(
    prompts: Sequence[PromptLike], answers: Sequence[Sequence[str | Response]]
) -> tuple[list[Prompt], list[list[Response]]]:
    """Turn prompts and their answers into records."""
    asked = _prompts(prompts)
    if len(asked) != len(answers):
        raise DataError(
            f"{len(asked)} prompts, but {len(answers)} lists of answers; give one list to each"
        )
    given = []
    for prompt, texts in zip(asked, answers, strict=True):
        if isinstance(texts, str):
            raise DataError("answers to a prompt are a list, such as ['Yes.', 'No.']")
        given.append([dataset_response(prompt, t) if isinstance(t, str) else t for t in texts])
    return asked, given


def _refuse_unscorable(answers: Sequence[Sequence[Response]]) -> None:
    """Refuse what has no score.

    Raises:
        DataError: an answer is empty, or a prompt has none.
    """
    for number, responses in enumerate(answers):
        if not responses or any(response.is_empty for response in responses):
            what = "holds an empty answer" if responses else "has no answers"
            raise DataError(f"prompt {number} (from 0) {what}: leave it out, it has no score")


def _prompts(values: Sequence[PromptLike]) -> list[Prompt]:
    if isinstance(values, str | Prompt):
        raise DataError("prompts are a list, such as ['How do I bake bread?']")
    return [_prompt(value) for value in values]


def _prompt(value: PromptLike) -> Prompt:
    """Turn what people write as a prompt into one.

    Raises:
        DataError: it is not a conversation whose last message is the user's.
    """
    if isinstance(value, str):
        return Prompt((Message("user", value),))
    if isinstance(value, Prompt):
        return value
    messages = tuple(_message(message) for message in value)
    if not messages or messages[-1].role != "user":
        raise DataError("a prompt is the user's words, or messages of which the last is the user's")
    return Prompt(messages)


def _message(value: Message | Mapping[str, str]) -> Message:
    if isinstance(value, Message):
        return value
    role = next((r for r in ROLES if isinstance(value, Mapping) and value.get("role") == r), None)
    if role is None or not isinstance(value.get("content"), str):
        raise DataError(
            f"a message is {{'role': ..., 'content': ...}}, its role one of {', '.join(ROLES)}"
        )
    return Message(role, value["content"])
