"""The `judge`: a language model compares a policy's answers with those before the first round.

Or, with `against`, with those of another run's policy of the same agent to the same prompts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, JsonValue, field_validator

from macpo.config.base import Section
from macpo.config.evaluators import LabelledConfig
from macpo.config.values import Count, CountOrZero, NonNegative, Positive, Text, shown
from macpo.errors import DataError, StoreError, TrainingError
from macpo.evaluation.evaluator import Evaluator, Subject, register_evaluator
from macpo.evaluation.judge.asking import Asking, Judgement
from macpo.evaluation.judge.comparison import Comparison, JudgedPair, Outcome
from macpo.evaluation.judge.endpoint import Endpoint
from macpo.evaluation.judge.replies import Replies
from macpo.evaluation.judge.wording import read_criterion
from macpo.evaluation.measures import Item, write_measures
from macpo.paths import user_path
from macpo.records import Prompt, Response, read_answers, write_jsonl
from macpo.run_directory import RunDir
from macpo.seeds import canonical_json
from macpo.stage import Stage, StageContext
from macpo.words import labelled

if TYPE_CHECKING:
    from macpo.config import RunConfig

VERDICTS_FILE = "verdicts.jsonl"
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_log = logging.getLogger("macpo")


class PricesConfig(Section):
    """What a million tokens cost, in whatever currency."""

    input: NonNegative
    output: NonNegative


@register_evaluator
class JudgeEvaluator(LabelledConfig, Evaluator):
    """A language model says which of two answers is better, in both orders.

    `prompt` is what it looks at: `helpful`, `harmless`, or a text file. `against` is another run,
    whose answers (of its last round, or of `against_round`) take the place of those before the
    first round. `limit` lets it judge the first prompts only. `api_key_env` names the environment
    variable with the key, null for a server that asks for none. `temperature`, `max_tokens` (null
    leaves them out) and `body` are sent with every request; `attempts` at a comparison are made
    while replies are malformed, `retries` of a request that a busy server did not answer.
    """

    paths: ClassVar[frozenset[str]] = frozenset({"prompt", "against"})

    name: Literal["judge"] = "judge"
    model: Text
    base_url: Text | None = None
    api_key_env: Text | None = "OPENAI_API_KEY"
    prompt: Text = "helpful"
    against: Text | None = None
    against_round: CountOrZero | None = None
    limit: Count | None = None
    temperature: NonNegative | None = 0.0
    max_tokens: Count | None = 400
    body: dict[Text, JsonValue] = Field(default_factory=dict)
    attempts: Count = 3
    concurrency: Count = 8
    timeout: Positive = 60.0
    retries: CountOrZero = 8
    prices: PricesConfig | None = None

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name_and_no_key(cls, value: str | None) -> str | None:
        if value is not None and not VARIABLE.fullmatch(value):
            raise ValueError(  # what was given may be the key: it is not repeated
                "is no name of an environment variable; keys themselves do not belong in a config"
            )
        return value

    @field_validator("base_url")
    @classmethod
    def _is_an_address_without_a_password(cls, value: str | None) -> str | None:
        if value is None:
            return value
        if "@" in value:
            raise ValueError("holds a user or a password; leave them out and use api_key_env")
        if not value.startswith(("http://", "https://")):
            raise ValueError(f"must begin with http:// or https:// (got {shown(value)})")
        return value.rstrip("/")

    @property
    def title(self) -> str:
        """Its name, with the label that it was given, or the name of the other run."""
        label = self.label
        if label is None and self.against is not None:
            label = re.sub(r"[^A-Za-z0-9_.-]", "-", Path(self.against).resolve().name)
        return labelled(self.name, label)

    @property
    def endpoint(self) -> Endpoint:
        """The judge as it is asked."""
        sampling = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        said = {name: value for name, value in sampling.items() if value is not None}
        return Endpoint(
            self.model,
            self.base_url,
            self.api_key_env,
            {**said, **self.body},
            self.timeout,
            self.retries,
        )

    def faults(self, source: str, answers: int) -> Iterator[str]:
        """See `EvaluatorConfig.faults`."""
        if not answers:
            yield "judges answers, but evaluation.answers is 0; raise it or remove the evaluator"
        if self.against is None and self.against_round is not None:
            yield "has against_round, but no run in against"

    def preflight(self, config: RunConfig) -> Iterator[str]:
        """See `Evaluator.preflight`."""
        self.endpoint.check()
        read_criterion(self.prompt)
        yield from ()

    def lay_out(self, subject: Subject) -> Iterable[Stage]:
        """See `Evaluator.lay_out`."""
        assert subject.answers is not None  # `faults` has seen to that
        other, folder, before = "", "", None
        if self.against is not None:
            found = find_answers(Path(self.against), subject.agent, self.against_round)
            if found is None:
                return
            other, folder = found
        elif subject.first is None:
            return
        else:
            before = subject.first.answers
        yield JudgeAnswers(
            name=f"{subject.place}/{self.title}",
            answers=subject.answers,
            before=before,
            other=other,
            criterion=read_criterion(self.prompt),
            model=self.model,
            address=self.endpoint.address,
            parameters=canonical_json(dict(self.endpoint.parameters)),
            attempts=self.attempts,
            limit=self.limit,
            prices=self.prices,
            metric=self.title,
            folder=folder,
            options=self,
        )


def find_answers(folder: Path, agent: str, round: int | None) -> tuple[str, str] | None:
    """Find the answers to test prompts that an agent of another run gave.

    Args:
        folder: the run directory.
        agent: whose answers.
        round: after which; None is the last.

    Returns:
        The key of the stage that answered, and the folder of its artifact; None when there is no
        such agent in that run.

    Raises:
        StoreError: there is no run, no such round, or its answers are not there.
    """
    run = RunDir(user_path(folder))
    plan = run.plan()
    if plan is None:
        raise StoreError(f"{folder}: no run to judge against; name the directory of one")
    if agent not in {policy.policy for policy in plan.policies}:
        return None
    stages = plan.answers(plan.policy(agent, round), "test")
    if not stages or not run.is_done(stages[0]):
        raise StoreError(
            f"{folder}: has no answers of {agent} to test prompts there; run it further, with "
            "evaluation.answers above 0, or choose another against_round"
        )
    return stages[0].key, str(run.artifact(stages[0]))


@dataclass(frozen=True, eq=False)
class JudgeAnswers(Stage):
    """Lets a judge compare answers with others to the same prompts.

    The others are those of the stage `before`, or those of another run, whose stage has the key
    `other` and whose artifact lies in `folder`. `parameters` are the request's, as JSON.
    """

    kind: ClassVar[str] = "judge"
    not_in_key: ClassVar[frozenset[str]] = frozenset({"name", "folder", "options"})

    answers: Stage
    before: Stage | None
    other: str
    criterion: str
    model: str
    address: str
    parameters: str
    attempts: int
    limit: int | None
    prices: PricesConfig | None
    metric: str
    folder: str
    options: JudgeEvaluator

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write measurements, and verdicts.jsonl: what the judge said of every pair."""
        theirs = Path(self.folder) if self.before is None else context.path(self.before)
        comparisons = align(
            read_answers(context.path(self.answers)), read_answers(theirs), self.folder
        )[: self.limit]
        different = [c for c in comparisons if c.a.strip() != c.b.strip()]
        both_orders = [order for c in different for order in (c, c.swap())]
        asking = Asking(
            self.options.endpoint,
            self.criterion,
            Replies(context.kept),
            attempts=self.attempts,
            concurrency=self.options.concurrency,
        )
        self._announce(len(comparisons), both_orders, asking)
        total = len(set(both_orders))
        found = asking.ask(both_orders, lambda done: context.progress(done, total))
        pairs = [pair for c in comparisons if (pair := judged(c, found)) is not None]
        write_jsonl(
            context.output / VERDICTS_FILE,
            (row for c in comparisons for row in _rows(c, found)),
        )
        if not pairs:
            raise TrainingError(
                f"{self.name}: the judge {self.model} gave no verdict that can be read on any of "
                f"{len(comparisons)} pairs; its replies are in {context.kept}: take another "
                "model, or raise max_tokens"
            )
        metrics = self._named(Outcome.of(pairs), len(comparisons) - len(pairs), found)
        items = [
            Item(
                pair.prompt_id,
                {
                    self._name("judge_win_rate"): pair.mean,
                    self._name("judge_win_rate_strict"): pair.strict,
                },
            )
            for pair in pairs
        ]
        write_measures(context.output, metrics, items, judged=len(pairs))
        return metrics

    def _announce(self, pairs: int, orders: Sequence[Comparison], asking: Asking) -> None:
        """Say what is going to be asked, before anything is paid."""
        to_ask = sum(asking.known(order) is None for order in set(orders))
        if to_ask:
            _log.info(
                "%s: %d pairs in both orders, %d requests to %s",
                self.name,
                pairs,
                to_ask,
                self.model,
            )

    def _named(
        self, outcome: Outcome, unjudged: int, found: Mapping[Comparison, Judgement]
    ) -> dict[str, float]:
        """Return the metrics by name, what is not defined left out."""
        replies = [reply for judgement in found.values() for reply in judgement.replies]
        tokens_in = sum(reply.tokens_in or 0 for reply in replies)
        tokens_out = sum(reply.tokens_out or 0 for reply in replies)
        cost = None
        if self.prices is not None:
            cost = (tokens_in * self.prices.input + tokens_out * self.prices.output) / 1e6
        values: dict[str, float | None] = {
            "judge_win_rate": outcome.mean.mean,
            "judge_win_rate_se": outcome.mean.error,
            "judge_win_rate_strict": outcome.strict.mean,
            "judge_win_rate_strict_se": outcome.strict.error,
            "judge_win": outcome.win,
            "judge_tie": outcome.tie,
            "judge_lose": outcome.lose,
            "judge_win_rate_lc": outcome.controlled.win_rate,
            "judge_win_rate_lc_se": outcome.controlled.error,
            "judge_length_coefficient": outcome.controlled.coefficient,
            "judge_win_rate_matched": outcome.matched.mean if outcome.matched else None,
            "judge_win_rate_matched_se": outcome.matched.error if outcome.matched else None,
            "judge_consistency": outcome.consistency,
            "judge_unjudged": float(unjudged),
            "judge_calls": float(len(replies)),
            "judge_tokens_in": float(tokens_in),
            "judge_tokens_out": float(tokens_out),
            "judge_cost": cost,
        }
        return {self._name(name): v for name, v in values.items() if v is not None}

    def _name(self, metric: str) -> str:
        """Return a metric's name, with the evaluator's label."""
        return metric + self.metric.removeprefix("judge")


def align(
    ours: Sequence[tuple[Prompt, Response]], theirs: Sequence[tuple[Prompt, Response]], place: str
) -> list[Comparison]:
    """Put two policies' answers to the same prompts side by side, ours first.

    Args:
        ours: prompts with answers.
        theirs: likewise.
        place: where theirs come from, for messages.

    Raises:
        DataError: they have no prompt in common.
    """
    others = {prompt.id: response.text for prompt, response in theirs}
    common = [
        Comparison(prompt, response.text, others[prompt.id])
        for prompt, response in ours
        if prompt.id in others
    ]
    if not common:
        raise DataError(
            f"{place}: its answers are to other prompts, none in common with this run's; compare "
            "runs with the same data, splits and seed"
        )
    if len(common) < len(ours):
        _log.warning(
            "%s has answers to %d of this run's %d prompts: only these are judged",
            place,
            len(common),
            len(ours),
        )
    return common


def judged(comparison: Comparison, found: Mapping[Comparison, Judgement]) -> JudgedPair | None:
    """Return what became of a pair; None without verdicts on both orders. Equal answers tie."""
    if comparison.a.strip() == comparison.b.strip():
        return JudgedPair.of(comparison, "tie", "tie")
    first, second = found[comparison].verdict, found[comparison.swap()].verdict
    if first is None or second is None:
        return None
    return JudgedPair.of(comparison, first, second)


def _rows(
    comparison: Comparison, found: Mapping[Comparison, Judgement]
) -> Iterator[dict[str, Any]]:
    """Yield the lines of verdicts.jsonl on a pair, one an order; none where nothing was asked."""
    for ours, order in (("A", comparison), ("B", comparison.swap())):
        if order in found:
            judgement = found[order]
            yield {
                "prompt_id": comparison.prompt.id,
                "ours": ours,
                "verdict": judgement.verdict,
                "replies": [asdict(reply) for reply in judgement.replies],
            }
