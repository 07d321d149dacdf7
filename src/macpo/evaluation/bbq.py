"""BBQ: which of three options a policy finds most probable, how often right, how biased.

By likelihood and not by generated letters: every policy, however weak, then takes an option for
every question, nothing needs to be parsed, and letters that a small model prefers whatever they
stand for do not drown what it makes of the question. It is also what training on such pairs moves.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from macpo.agents import Agent, Policy
from macpo.config.evaluators import LabelledConfig
from macpo.config.values import Count, Text
from macpo.data.files import local_digest, open_file
from macpo.data.turns import BadRow, json_type
from macpo.data.verifiable import read_question
from macpo.errors import DataError
from macpo.evaluation.evaluator import Evaluator, Subject, register_evaluator
from macpo.evaluation.measures import Item, write_measures
from macpo.paths import user_path
from macpo.records import dataset_response, read_split_prompts, splits_in
from macpo.stage import Stage, StageContext
from macpo.tasks.bbq import Question, accuracy, bias_score
from macpo.words import labelled
from macpo.work import Known, Work

if TYPE_CHECKING:
    from macpo.config import RunConfig

_log = logging.getLogger("macpo")

QUESTION_TOKENS = 120
"""Of a question with its options in a chat template, about: for the plan alone."""

CONDITIONS = {True: "ambiguous", False: "disambiguated"}


@register_evaluator
class BBQEvaluator(LabelledConfig, Evaluator):
    """Accuracy and bias score on a file of BBQ's questions; no answer is generated.

    `data` is a file as BBQ was released. `questions` of them at most are taken, which ones by a
    hash; those that the run learned from never.
    """

    paths: ClassVar[frozenset[str]] = frozenset({"data"})

    name: Literal["bbq"] = "bbq"
    data: Text
    questions: Count = 400

    def preflight(self, config: RunConfig) -> Iterator[str]:
        """See `Evaluator.preflight`."""
        self._content()
        read_questions(self.data)
        yield from ()

    def lay_out(self, subject: Subject) -> Iterable[Stage]:
        """See `Evaluator.lay_out`."""
        yield ScoreQuestions(
            name=f"{subject.place}/{self.title}",
            policy=subject.policy,
            data=subject.data,
            content=self._content(),
            questions=self.questions,
            label=self.label,
            path=self.data,
        )

    def _content(self) -> str:
        """Return what stands for the file in keys.

        Raises:
            DataError: it cannot be read.
        """
        if not user_path(self.data).exists():
            raise DataError(
                f"evaluation.evaluators: {self.title}: there is no file {self.data}; name one of "
                "BBQ's files in its option data"
            )
        return local_digest(self.data)


@dataclass(frozen=True, eq=False)
class ScoreQuestions(Stage):
    """Scores the options of questions under a policy, and takes the most probable per token.

    `content` stands for the file in the key; `path` says where it is.
    """

    kind: ClassVar[str] = "bbq"
    not_in_key: ClassVar[frozenset[str]] = frozenset({"name", "path"})

    policy: Policy
    data: Stage
    content: str
    questions: int
    label: str | None
    path: str

    @property
    def agent(self) -> Agent:
        """The policy's."""
        return self.policy.agent

    def work(self, known: Known) -> Work:
        """Read as many questions as are asked for, about."""
        return Work(read=self.questions * QUESTION_TOKENS, at_most=True)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write measurements."""
        from macpo.scoring import encode_group

        folder = context.path(self.data)
        learned = {
            prompt.id
            for split in splits_in(folder)
            if split != "test"
            for prompt in read_split_prompts(folder, split)
        }
        questions = choose_questions(read_questions(self.path), self.questions, learned)
        if not questions:
            raise DataError(
                f"{self.name}: the run learned from all questions of {self.path}; name a file with "
                "others, such as another category"
            )
        loaded = context.policies.load(self.policy)
        groups = []
        for question in questions:
            options = [dataset_response(question.prompt, text) for text in question.options]
            groups.append(encode_group(loaded.chat, self.agent, question.prompt, options))
        engine = loaded.engine(context.engine.pack_tokens, context.ranks)
        scored = engine.score(groups, context.counter(len(groups)))
        answered = [
            (question, min(range(len(scores)), key=lambda option: scores[option].mean_nll))
            for question, scores in zip(questions, scored, strict=True)
        ]
        metrics = measure_bias(answered, self.label)
        items = [
            Item(question.prompt.id, {self._metric: float(question.right == taken)})
            for question, taken in answered
        ]
        write_measures(context.output, metrics, items, bbq_questions=len(answered))
        return metrics

    @property
    def _metric(self) -> str:
        return labelled("bbq_accuracy", self.label)


def read_questions(path: str) -> list[Question]:
    """Read a file of BBQ's questions; rows that are none are skipped, with a warning.

    Raises:
        DataError: the file cannot be read, or holds no question.
    """
    questions, faults = [], []
    source = open_file(path)
    for row in source.rows:
        try:
            if row.bad is not None:
                raise row.bad
            if not isinstance(row.value, Mapping):
                raise BadRow("not an object", json_type(row.value))
            questions.append(read_question(row.value))
        except BadRow as bad:
            faults.append(f"{source.unit} {row.number}: {bad}")
    if not questions:
        why = faults[0] if faults else "holds no rows"
        raise DataError(
            f"{path}: no row is a question of BBQ ({why}); name a file as BBQ was released, such "
            "as Age.jsonl"
        )
    if faults:
        _log.warning("%s: %d rows are no questions of BBQ (%s)", path, len(faults), faults[0])
    return questions


def choose_questions(
    questions: Sequence[Question], most: int, learned: Container[str]
) -> list[Question]:
    """Return `most` different questions, drawn by a hash, none with a prompt id in `learned`."""
    by_id = {question.prompt.id: question for question in questions}
    return [by_id[prompt_id] for prompt_id in sorted(by_id) if prompt_id not in learned][:most]


def measure_bias(
    answered: Sequence[tuple[Question, int]], label: str | None = None
) -> dict[str, float]:
    """Return accuracy and bias score, by the kind of context; those that are defined."""
    metrics = {labelled("bbq_accuracy", label): accuracy(answered)}
    for ambiguous, condition in CONDITIONS.items():
        part = [entry for entry in answered if entry[0].ambiguous == ambiguous]
        if not part:
            continue
        metrics[labelled(f"bbq_accuracy_{condition}", label)] = accuracy(part)
        score = bias_score(part)
        if score is not None:
            metrics[labelled(f"bbq_bias_{condition}", label)] = score
    return metrics
