"""The `reward` evaluator: a third party's reward model scores a policy's answers.

Any sequence classifier of transformers with one label will do. A relative of the student, or a
model that was trained on this very run's prompts, is no third party: that is said.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from macpo.config import ModelConfig
from macpo.config.evaluators import LabelledConfig
from macpo.config.values import Count, Flag, Text
from macpo.errors import ModelError
from macpo.evaluation.evaluator import Evaluator, Subject, register_evaluator
from macpo.evaluation.measures import Item, read_items, write_measures
from macpo.evaluation.statistics import Estimate, clustered_mean, paired_difference, paired_wins
from macpo.models.folders import tokenizer_files, weight_files
from macpo.models.reward import (
    check_reward_model,
    load_reward_model,
    relation,
    training_record,
)
from macpo.models.sources import ResolvedModel, resolve
from macpo.records import Split, read_answers, read_split_prompts, splits_in
from macpo.seeds import digest
from macpo.stage import Stage, StageContext

if TYPE_CHECKING:
    import torch

    from macpo.config import RunConfig
    from macpo.models.reward import RewardModel

_log = logging.getLogger("macpo")


@register_evaluator
class RewardEvaluator(LabelledConfig, Evaluator):
    """Scores answers by a reward model, and compares them with those before the first round.

    `model` is a hub name or a folder. Conversations over `max_tokens` lose their oldest turns, then
    the end of the answer. `batch_tokens` is what goes through the model at a time; numbers do not
    depend on it (but for rounding).
    """

    paths: ClassVar[frozenset[str]] = frozenset({"model", "chat_template"})

    name: Literal["reward"] = "reward"
    model: Text
    revision: Text | None = None
    chat_template: Text | None = None
    trust_remote_code: Flag = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_tokens: Count = 4096
    batch_tokens: Count = 8192

    @property
    def source(self) -> ModelConfig:
        """The model as a config's section names it."""
        return ModelConfig(
            source=self.model,
            revision=self.revision,
            chat_template=self.chat_template,
            trust_remote_code=self.trust_remote_code,
        )

    def faults(self, source: str, answers: int) -> Iterator[str]:
        """See `EvaluatorConfig.faults`."""
        if not answers:
            yield "scores answers, but evaluation.answers is 0; raise it or remove the evaluator"

    def preflight(self, config: RunConfig) -> Iterator[str]:
        """See `Evaluator.preflight`."""
        found = resolve(self.source)
        check_reward_model(found)
        try:
            stored = config.student.model.model_copy(update={"quantize": None})
            student = resolve(stored, fetch=False)
        except ModelError:  # it may be gone when a run is evaluated afterwards
            return
        reason = relation(found, student)
        if reason is not None:
            yield (
                f"{self.title}: {found.name} may be a relative of the student ({reason}): it can "
                "be blind to what the student does wrong; a third party's word is worth more"
            )

    def lay_out(self, subject: Subject) -> Iterable[Stage]:
        """See `Evaluator.lay_out`."""
        scores = self._scores(subject)
        yield scores
        if subject.first is not None:
            place = f"{subject.place}/{self.title}-gain"
            yield CompareRewards(place, scores, self._scores(subject.first), self.title)

    def _scores(self, subject: Subject) -> Stage:
        assert subject.answers is not None  # `faults` has seen to that
        found = resolve(self.source, fetch=False)
        return ScoreAnswers(
            name=f"{subject.place}/{self.title}",
            answers=subject.answers,
            data=subject.data,
            model=found.digest or f"unresolved:{found.name}",
            reader=_reader(found, self.chat_template),
            dtype=subject.dtype if self.dtype == "auto" else self.dtype,
            max_tokens=self.max_tokens,
            metric=self.title,
            options=self,
        )


@dataclass(frozen=True, eq=False)
class ScoreAnswers(Stage):
    """Scores the answers of an answering stage.

    `model` and `reader` stand for the reward model's weights and for how it reads text; `options`
    say where it is.
    """

    kind: ClassVar[str] = "reward"
    not_in_key: ClassVar[frozenset[str]] = frozenset({"name", "options"})

    answers: Stage
    data: Stage
    model: str
    reader: str
    dtype: str
    max_tokens: int
    metric: str
    options: RewardEvaluator

    @property
    def uses_model(self) -> bool:
        """The reward model, which is no agent's."""
        return True

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write measurements: the mean, its error, and the reward of every answer."""
        found = resolve(self.options.source)
        size = sum(file.stat().st_size for file in weight_files(Path(found.location)))
        reward: RewardModel = context.policies.guest(
            digest([self.model, self.reader, self.dtype]),
            size,
            lambda device: self._load(found, device),
        )
        answers = read_answers(context.path(self.answers))
        encoded = [reward.encode(p, r.text, self.max_tokens) for p, r in answers]
        values = reward.score(
            [e.ids for e in encoded], self.options.batch_tokens, context.counter(len(encoded))
        )
        items = [
            Item(prompt.id, {self.metric: value})
            for (prompt, _), value in zip(answers, values, strict=True)
        ]
        metrics = named(clustered_mean(values, [prompt.id for prompt, _ in answers]), self.metric)
        metrics[_beside(self.metric, "rewards_cut")] = fmean(not e.whole for e in encoded)
        self._refuse_to_be_silent(found, context)
        write_measures(context.output, metrics, items, answers=len(answers))
        return metrics

    def _load(self, found: ResolvedModel, device: torch.device) -> RewardModel:
        import torch

        return load_reward_model(
            found, getattr(torch, self.dtype), device, self.options.chat_template
        )

    def _refuse_to_be_silent(self, found: ResolvedModel, context: StageContext) -> None:
        """Say how many of the run's prompts the model was trained on, where it says so itself."""
        trained = training_record(Path(found.location)).get("prompts", frozenset())
        splits = splits_in(context.path(self.data))
        seen = {split: self._seen(split, trained, context) for split in splits}
        if any(count for count, _ in seen.values()):
            shares = ", ".join(f"{n} of {total} {split}" for split, (n, total) in seen.items())
            _log.warning(
                "%s: %s was trained on prompts of this run (%s): it is no third party; train one "
                "with leave_out: [this run]",
                self.name,
                found.name,
                shares,
            )

    def _seen(
        self, split: Split, trained: frozenset[str], context: StageContext
    ) -> tuple[int, int]:
        prompts = read_split_prompts(context.path(self.data), split)
        return sum(prompt.id in trained for prompt in prompts), len(prompts)


@dataclass(frozen=True, eq=False)
class CompareRewards(Stage):
    """Compares rewards with those before the first round, prompt by prompt."""

    kind: ClassVar[str] = "reward-gain"

    now: Stage
    before: Stage
    metric: str

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write measurements."""
        now, before = (
            {item.prompt_id: item.values[self.metric] for item in read_items(context.path(stage))}
            for stage in (self.now, self.before)
        )
        gain, wins = _beside(self.metric, "reward_gain"), _beside(self.metric, "reward_win_rate")
        won = paired_wins(now, before)
        metrics = {
            **named(paired_difference(now, before), gain),
            **named(clustered_mean(list(won.values()), list(won)), wins),
        }
        items = [
            Item(prompt, {gain: now[prompt] - before[prompt], wins: point})
            for prompt, point in won.items()
        ]
        write_measures(context.output, metrics, items, answers=len(won))
        return metrics


def named(estimate: Estimate, metric: str) -> dict[str, float]:
    """Return an estimate's mean and standard error, if it has one, as metrics."""
    found = {metric: estimate.mean}
    if estimate.error is not None:
        found[_error_of(metric)] = estimate.error
    return found


def _error_of(metric: str) -> str:
    """Return the name of a metric's standard error: `reward_se[mine]` of `reward[mine]`."""
    plain, bracket, label = metric.partition("[")
    return f"{plain}_se{bracket}{label}"


def _beside(metric: str, other: str) -> str:
    """Return the name of another metric with the label that one has."""
    _, bracket, label = metric.partition("[")
    return f"{other}{bracket}{label}"


def _reader(found: ResolvedModel, chat_template: str | None) -> str:
    """Return a digest of how a model reads text: its tokenizer and template."""
    there = tokenizer_files(Path(found.location))
    template = chat_template
    if template is not None and Path(template).is_file():
        template = digest(Path(template).read_text(encoding="utf-8"))
    return digest([there or found.name, template])
