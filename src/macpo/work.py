"""What stages cost, in tokens, reckoned before they run.

Every stage says what it takes through its model (`Stage.work`) and what answers it leaves
(`Stage.leaves`), beside its `run`. It reckons from what is known beforehand: sizes of the splits,
lengths of texts, and the answers of stages that have run. Operations and memory are worked out from
these counts in `macpo.planning.costs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from macpo.agents import Agent


@dataclass(frozen=True, slots=True)
class SplitSizes:
    """Prompts and pairs of each split; `exact` when they were counted, not read off the config."""

    prompts: Mapping[str, int]
    pairs: Mapping[str, int]
    exact: bool


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean lengths in tokens of an agent's own tokenizer, template included.

    `measured` on a sample of the data; else they are the config's limits, which are the most.
    """

    prompt: float
    chosen: float
    rejected: float
    measured: bool


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens that a stage takes through its model.

    `read` without gradients (prompts to answer, answers to score), `written` one by one as
    answers, `trained` forward and backward. `at_most`: some lengths are upper bounds. `scored` and
    `learned` are the tokens of `read` and of `trained` that are predicted, so that the LM head runs
    for them; `answers` is the number of answers that `written` belongs to. These three are no
    tokens of their own, and a stage may leave them out.
    """

    read: float = 0.0
    written: float = 0.0
    trained: float = 0.0
    at_most: bool = False
    scored: float = field(default=0.0, compare=False)
    learned: float = field(default=0.0, compare=False)
    answers: float = field(default=0.0, compare=False)

    @property
    def tokens(self) -> float:
        """All of them."""
        return self.read + self.written + self.trained

    def __add__(self, other: Work) -> Work:
        return Work(
            self.read + other.read,
            self.written + other.written,
            self.trained + other.trained,
            self.at_most or other.at_most,
            self.scored + other.scored,
            self.learned + other.learned,
            self.answers + other.answers,
        )

    def __mul__(self, times: int) -> Work:
        return Work(
            times * self.read,
            times * self.written,
            times * self.trained,
            self.at_most,
            times * self.scored,
            times * self.learned,
            times * self.answers,
        )


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers that a stage leaves: how many, and their mean length in tokens."""

    count: float
    tokens: float
    at_most: bool

    @classmethod
    def recorded(cls, meta: Mapping[str, Any]) -> Answers | None:
        """Return the answers that a finished stage counted in its meta; None if it counted none."""
        if "responses" not in meta or "tokens" not in meta:
            return None
        count = meta["responses"]
        return cls(count, meta["tokens"] / count if count else 0.0, at_most=False)


class LeavesAnswers(Protocol):
    """A stage, as far as its answers are reckoned with."""

    @property
    def name(self) -> str:
        """What readers call it."""
        ...

    @property
    def key(self) -> str:
        """Its content key."""
        ...

    def leaves(self, known: Known, reader: Agent) -> tuple[Answers, ...]:
        """See `macpo.stage.Stage.leaves`."""
        ...


@dataclass(frozen=True, slots=True)
class Known:
    """What is known before a stage runs.

    Attributes:
        sizes: of the splits.
        lengths: of prompts and of the data set's answers, by agent name.
        answered: the answers that finished stages left, by stage key; what is not there is taken
            to be as long as the sampling settings allow.
        by_rows: the agents, by name, who read a prompt again for each of its answers.
    """

    sizes: SplitSizes
    lengths: Mapping[str, Lengths]
    answered: Mapping[str, Answers]
    by_rows: frozenset[str] = frozenset()

    def left_by(self, stage: LeavesAnswers, reader: Agent) -> tuple[Answers, ...]:
        """Return the answers that a stage left or would leave: one entry, or chosen and rejected.

        Raises:
            TypeError: the stage does not say what it leaves.
        """
        if stage.key in self.answered:
            return (self.answered[stage.key],)
        left = stage.leaves(self, reader)
        if not left:
            raise TypeError(
                f"{stage.name} does not say what answers it leaves, and another stage reads them; "
                f"give {type(stage).__name__} a method `leaves`"
            )
        return left

    def labelled(self, split: str, reader: Agent) -> tuple[Answers, Answers]:
        """Return the chosen and the rejected answers of a split of the data."""
        lengths, pairs = self.lengths[reader.name], self.sizes.pairs[split]
        bound = not lengths.measured
        return Answers(pairs, lengths.chosen, bound), Answers(pairs, lengths.rejected, bound)

    def reading(self, agent: Agent, answers: Sequence[Answers], beside: float = 0.0) -> Work:
        """Return the work of reading groups: a prompt once, with one of each of `answers`.

        Args:
            agent: whose model reads.
            answers: of equal count, but for prompts that somebody left out.
            beside: further tokens in every group.
        """
        lengths = self.lengths[agent.name]
        count = max(a.count for a in answers)
        prompts = len(answers) if agent.name in self.by_rows else 1
        predicted = count * sum(a.tokens for a in answers)
        tokens = count * prompts * (lengths.prompt + beside) + predicted
        bound = not lengths.measured or any(a.at_most for a in answers)
        return Work(read=tokens, at_most=bound, scored=predicted)

    def training(self, agent: Agent, answers: Sequence[Answers], epochs: int) -> Work:
        """Return the work of training on such groups."""
        once = self.reading(agent, answers)
        return Work(trained=epochs * once.read, at_most=once.at_most, learned=epochs * once.scored)
