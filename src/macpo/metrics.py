"""What is known of each metric: its title, unit, which way is better, how it is written.

Every table, figure and file asks here, so that a metric is called and written alike everywhere:

    metric("preference_accuracy").format(0.625)     # '62.5 %'
    metric("pgr_oracle_score").title                # 'PGR of score (oracle)'
    metric("my_own")                                # nobody registered it: told from its name

A plugin registers the metrics that its evaluators write (see `macpo.plugins`):

    register_metric(Metric("politeness", "politeness", "share", better="higher"))

Names with a prefix of `PREFIXES` need no registration: what is known of them follows from the
metric that is named after the prefix. Nor do names with a label, such as `reward[mine]`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from macpo.registry import Registry
from macpo.words import split_label

Better = Literal["higher", "lower", "neither"]
Shown = Literal["everywhere", "comparisons", "named"]

PGR = "pgr_"
"""Beginning of the performance gap recovered in a metric, see `macpo.compare.stats`."""

SHARE, TOKENS, PERPLEXITY, COUNT, NATS, NUMBER = (
    *("share", "tokens", "perplexity", "count"),
    *("nats", "number"),
)
"""Units that are known here; a metric may have any other, and is then written as a number."""

RANGES = {
    SHARE: (0.0, 1.0),
    TOKENS: (0.0, math.inf),
    PERPLEXITY: (1.0, math.inf),
    COUNT: (0.0, math.inf),
}
"""The least and the greatest value that is possible, by unit; of other units any value is."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What is known of a metric.

    Attributes:
        name: what it is called in metrics.jsonl.
        title: what people read.
        unit: "share" (of one; written in percent), "tokens", "perplexity", "count", "nats", or
            any other word.
        better: which way is better; "neither" where it depends.
        shown: "everywhere": in the result of a run too; "comparisons": in the tables and figures
            of a comparison; "named": only where a compare file's `metrics` names it.
        gap: whether a comparison shows the performance gap recovered in it.
        meaning: one phrase for the documentation.

    Raises:
        ValueError: `better` or `shown` is none of its values.
    """

    name: str
    title: str
    unit: str = NUMBER
    better: Better = "neither"
    shown: Shown = "everywhere"
    gap: bool = False
    meaning: str = ""

    def __post_init__(self) -> None:
        for field, value, valid in (
            ("better", self.better, get_args(Better)),
            ("shown", self.shown, get_args(Shown)),
        ):
            if value not in valid:
                known = ", ".join(valid)
                raise ValueError(f"metric {self.name}: {field} is {value!r}; write one of {known}")

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest value that is possible."""
        return RANGES.get(self.unit, (-math.inf, math.inf))

    def format(self, value: float) -> str:
        """Write a value for people: `62.5 %`, `31.3`, `12.35`."""
        if self.unit == SHARE:
            return f"{100 * value:.1f} %"
        return f"{value:.1f}" if self.unit == TOKENS else f"{value:.4g}"


PREFIXES = {
    PGR: "PGR of {}",
    "train_": "{} in training",
    "chosen_": "{} of chosen answers",
    "rejected_": "{} of rejected answers",
}
"""Beginnings of names, with the title that they make of another metric's."""

METRICS: Registry[Metric] = Registry("metric")


def register_metric(metric: Metric) -> None:
    """Add a metric.

    Raises:
        ConfigError: another one has that name.
    """
    METRICS.register(metric.name, metric)


def metric(name: str) -> Metric:
    """Return what is known of a metric, also of one that nobody registered."""
    plain, label = split_label(name)
    if label is not None:
        known = metric(plain)
        return replace(known, name=name, title=f"{known.title} [{label}]")
    found = METRICS.find(name)
    if found is not None:
        return found
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return derive(metric(name.removeprefix(prefix)), prefix)
    return Metric(name, name.replace("_", " "))


def derive(base: Metric, prefix: str) -> Metric:
    """Return what a prefix of `PREFIXES` makes of a metric."""
    found = replace(
        base,
        name=prefix + base.name,
        title=PREFIXES[prefix].format(base.title),
        better="neither",
        shown="named",
        gap=False,
        meaning="",
    )
    if prefix != PGR:
        return found
    shown: Shown = "comparisons" if base.gap else "named"
    return replace(found, unit=NUMBER, better="higher", shown=shown)


def is_registered(name: str) -> bool:
    """Tell whether a metric is known, by its own name or after a prefix."""
    name, _ = split_label(name)
    bases = (name.removeprefix(p) for p in PREFIXES if name.startswith(p))
    return any(METRICS.find(known) is not None for known in (name, *bases))


def registered() -> tuple[Metric, ...]:
    """Return all metrics that were registered, macpo's own first: the order of every table."""
    return tuple(METRICS.all().values())


def in_order(names: Iterable[str]) -> list[Metric]:
    """Return metrics in the order of tables: as they were registered, then the others as given."""
    asked = dict.fromkeys(names)
    places = {known.name: place for place, known in enumerate(registered())}
    last = len(places)
    return [metric(n) for n in sorted(asked, key=lambda n: places.get(split_label(n)[0], last))]


for _metric in (
    Metric(
        "preference_accuracy",
        "preference accuracy",
        SHARE,
        better="higher",
        gap=True,
        meaning="share of test pairs whose chosen answer has the higher mean log-probability per "
        "token",
    ),
    Metric(
        "gold_perplexity",
        "gold perplexity",
        PERPLEXITY,
        better="lower",
        meaning="perplexity of the chosen answers of the test pairs, over all their tokens",
    ),
    Metric(
        "validation_accuracy",
        "accuracy on validation pairs",
        SHARE,
        better="higher",
        meaning="preference accuracy on the pairs of `data.splits.validation`",
    ),
    Metric(
        "validation_perplexity",
        "perplexity of validation answers",
        PERPLEXITY,
        better="lower",
        meaning="perplexity of the chosen answers of `data.splits.validation`, by which "
        "`evaluation.stop_on_collapse` decides",
    ),
    Metric(
        "answer_tokens",
        "tokens in an answer",
        TOKENS,
        meaning="mean length of its answers to test prompts",
    ),
    Metric(
        "answers_finished",
        "answers that ended",
        SHARE,
        shown="comparisons",
        meaning="share of its answers that ended by themselves",
    ),
    Metric(
        "answer_repetition",
        "repetition in an answer",
        SHARE,
        meaning="mean share of an answer's token 4-grams that stood earlier in the same answer "
        "(seq-rep-4, arXiv 1908.04319)",
    ),
    Metric(
        "answer_copying",
        "copying from the prompt",
        SHARE,
        meaning="mean share of an answer's token 4-grams that stand in its prompt: in earlier "
        "turns or in a system prompt of the chat template",
    ),
    Metric(
        "distinct_1",
        "distinct words",
        SHARE,
        shown="comparisons",
        meaning="share of the words of all its answers to test prompts that differ",
    ),
    Metric(
        "distinct_2",
        "distinct word pairs",
        SHARE,
        meaning="share of the pairs of neighbouring words of all its answers that differ",
    ),
    Metric(
        "compression_ratio",
        "compression of the answers",
        shown="comparisons",
        meaning="how many times smaller all its answers get by deflate: more is less diverse "
        "(arXiv 2403.00553)",
    ),
    Metric(
        "self_bleu",
        "self-BLEU",
        SHARE,
        meaning="mean BLEU of an answer against all others: more is less diverse (arXiv "
        "1802.01886); only with the option `self_bleu` of `answers`",
    ),
    Metric(
        "pair_likeness",
        "likeness of chosen and rejected",
        SHARE,
        shown="comparisons",
        meaning="share of words that chosen and rejected answers of the round's pairs have in "
        "common",
    ),
    Metric(
        "longer_chosen",
        "chosen answers that are longer",
        SHARE,
        shown="comparisons",
        meaning="share of the round's pairs whose chosen answer has more words; equal count half",
    ),
    Metric(
        "kl_initial",
        "KL to round 0",
        NATS,
        meaning="mean of log pi(y) - log pi_0(y) over its answers, pi_0 the same agent before the "
        "first round; by the evaluator `kl`",
    ),
    Metric(
        "kl_initial_per_token",
        "KL to round 0 per token",
        NATS,
        shown="comparisons",
        meaning="the same per token",
    ),
    Metric(
        "reward",
        "reward",
        better="higher",
        gap=True,
        meaning="mean score of its answers by a reward model",
    ),
    Metric(
        "reward_se",
        "standard error of the reward",
        shown="named",
        meaning="over prompts",
    ),
    Metric(
        "reward_gain",
        "reward gained",
        better="higher",
        shown="comparisons",
        meaning="mean difference of rewards, prompt by prompt, to the same agent before the first "
        "round",
    ),
    Metric(
        "reward_gain_se",
        "standard error of the reward gained",
        shown="named",
        meaning="over prompts",
    ),
    Metric(
        "reward_win_rate",
        "win rate by reward",
        SHARE,
        better="higher",
        meaning="share of prompts whose answer has a higher reward than the same agent's before "
        "the first round; a tie counts half",
    ),
    Metric(
        "reward_win_rate_se",
        "standard error of the win rate by reward",
        SHARE,
        shown="named",
        meaning="over prompts",
    ),
    Metric(
        "rewards_cut",
        "answers cut for the reward model",
        SHARE,
        better="lower",
        shown="named",
        meaning="share of answers of which the reward model did not see the end",
    ),
    Metric(
        "judge_win_rate",
        "win rate by the judge",
        SHARE,
        better="higher",
        meaning="mean of both orders: 1 for a win, 0.5 for a tie; against the same agent before "
        "the first round, or against another run",
    ),
    Metric(
        "judge_win_rate_se",
        "standard error of the win rate by the judge",
        SHARE,
        shown="named",
        meaning="over prompts",
    ),
    Metric(
        "judge_win_rate_strict",
        "win rate by the judge, strict",
        SHARE,
        better="higher",
        shown="comparisons",
        meaning="orders that disagree are a tie, and a tie counts half",
    ),
    Metric(
        "judge_win_rate_strict_se",
        "standard error of the strict win rate",
        SHARE,
        shown="named",
        meaning="over prompts",
    ),
    Metric(
        "judge_win",
        "won by the judge",
        SHARE,
        better="higher",
        shown="comparisons",
        meaning="share of pairs won in both orders",
    ),
    Metric(
        "judge_tie",
        "tied by the judge",
        SHARE,
        shown="comparisons",
        meaning="share of pairs that tie, or on which the orders disagree",
    ),
    Metric(
        "judge_lose",
        "lost by the judge",
        SHARE,
        better="lower",
        shown="comparisons",
        meaning="share of pairs lost in both orders",
    ),
    Metric(
        "judge_win_rate_lc",
        "length-controlled win rate",
        SHARE,
        better="higher",
        meaning="win rate by the judge at equal lengths, by a logistic fit after AlpacaEval 2 "
        "(arXiv 2404.04475)",
    ),
    Metric(
        "judge_win_rate_lc_se",
        "standard error of the length-controlled win rate",
        SHARE,
        shown="named",
        meaning="over prompts, by the sandwich",
    ),
    Metric(
        "judge_length_coefficient",
        "the judge's taste for length",
        "logits",
        shown="comparisons",
        meaning="coefficient of length in that fit: above 0 where longer answers win",
    ),
    Metric(
        "judge_win_rate_matched",
        "length-matched win rate",
        SHARE,
        better="higher",
        shown="comparisons",
        meaning="win rate by the judge among pairs of which neither answer is longer by more than "
        "a quarter",
    ),
    Metric(
        "judge_win_rate_matched_se",
        "standard error of the length-matched win rate",
        SHARE,
        shown="named",
        meaning="over prompts",
    ),
    Metric(
        "judge_consistency",
        "the judge's consistency",
        SHARE,
        better="higher",
        meaning="share of pairs on which both orders came to the same",
    ),
    Metric(
        "judge_unjudged",
        "pairs without a verdict",
        COUNT,
        better="lower",
        shown="comparisons",
        meaning="pairs on which the judge gave no verdict that can be read, in one order or both",
    ),
    Metric(
        "judge_calls",
        "replies of the judge",
        COUNT,
        shown="named",
        meaning="malformed ones included",
    ),
    Metric(
        "judge_tokens_in",
        "tokens that the judge read",
        COUNT,
        shown="named",
        meaning="as its server counts them",
    ),
    Metric(
        "judge_tokens_out", "tokens that the judge wrote", COUNT, shown="named", meaning="likewise"
    ),
    Metric(
        "judge_cost",
        "cost of the judge",
        "money",
        better="lower",
        shown="named",
        meaning="by the prices that the config gives",
    ),
    Metric(
        "exact_accuracy",
        "answers with the right number",
        SHARE,
        better="higher",
        gap=True,
        meaning="share of its answers whose final number is that of the test prompt's chosen one; "
        "by the evaluator `exact-answer`",
    ),
    Metric(
        "answers_extracted",
        "answers with a number",
        SHARE,
        shown="comparisons",
        meaning="share of its answers that hold a number at all",
    ),
    Metric(
        "constraints_met",
        "constraints met",
        SHARE,
        better="higher",
        gap=True,
        meaning="mean share of the constraints of a prompt that its answer meets; by the evaluator "
        "`constraints`",
    ),
    Metric(
        "constraints_all_met",
        "answers that meet all constraints",
        SHARE,
        better="higher",
        shown="comparisons",
        meaning="share of its answers that meet all constraints of their prompts",
    ),
    Metric(
        "bbq_accuracy",
        "BBQ accuracy",
        SHARE,
        better="higher",
        gap=True,
        meaning="share of questions whose right option is the most probable one per token; by the "
        "evaluator `bbq`",
    ),
    Metric(
        "bbq_accuracy_ambiguous",
        "BBQ accuracy, ambiguous",
        SHARE,
        better="higher",
        shown="comparisons",
        meaning="the same where the context does not tell",
    ),
    Metric(
        "bbq_accuracy_disambiguated",
        "BBQ accuracy, disambiguated",
        SHARE,
        better="higher",
        shown="comparisons",
        meaning="the same where it does",
    ),
    Metric(
        "bbq_bias_ambiguous",
        "BBQ bias, ambiguous",
        meaning="s_AMB of arXiv 2110.08193: 0 is no bias, 1 always with the stereotype, -1 against",
    ),
    Metric(
        "bbq_bias_disambiguated",
        "BBQ bias, disambiguated",
        meaning="s_DIS of the same",
    ),
    Metric(
        "train_loss",
        "training loss",
        NATS,
        shown="named",
        meaning="mean loss over the round's last steps",
    ),
    Metric(
        "train_margin",
        "training margin",
        NATS,
        shown="named",
        meaning="mean DPO margin over the round's last steps: beta times the log-ratio of chosen "
        "and rejected, against the reference",
    ),
    Metric(
        "train_chosen_logratio",
        "log-ratio of chosen answers",
        NATS,
        shown="named",
        meaning="mean of log pi(y) - log ref(y) over chosen answers in the round's last steps, "
        "sums over their tokens; it often falls, see docs/evaluation.md",
    ),
    Metric(
        "train_rejected_logratio",
        "log-ratio of rejected answers",
        NATS,
        shown="named",
        meaning="the same of rejected answers",
    ),
):
    register_metric(_metric)
