"""What a report shows, as typed records: gathered by `macpo.report.gather`, drawn by the others.

Nothing here reads a file or draws a line, and no model library is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from macpo.annotation.results import Results
from macpo.estimates import Estimate
from macpo.metrics import Metric

Verdict = Literal["better", "worse", "unclear", "changed"]
"""Of a change: `changed` where no way is better, or nobody knows how sure the numbers are."""

Values = Mapping[str, tuple[float, ...]]
"""What was measured of single answers or pairs, by the id of their prompt."""


@dataclass(frozen=True, slots=True)
class Point:
    """A measurement after a round.

    `half_width` is that of its 95 % interval, None where it is not known; `at_most` says that it is
    a bound (see `macpo.estimates.share_bound`). `items` are the single values, where there are any.
    """

    round: int
    value: float
    half_width: float | None = None
    at_most: bool = False
    items: Values = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Series:
    """An agent's measurements of one metric, by round."""

    agent: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """A metric over the rounds; `of_answers` says that it was measured of what policies say."""

    metric: Metric
    series: tuple[Series, ...]
    of_answers: bool

    def of(self, agent: str) -> Series | None:
        """Return an agent's own."""
        return next((series for series in self.series if series.agent == agent), None)


@dataclass(frozen=True, slots=True)
class Change:
    """How a metric of the student changed from the first round that has it to the last."""

    metric: Metric
    of_answers: bool
    first: Point
    last: Point
    best: Point
    difference: Estimate
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of answers that a stage wrote, scored or trained on, None where it is not known.

    Prompts do not count; in training an answer counts once an epoch.
    """

    written: int | None = None
    scored: int | None = None
    trained: int | None = None


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage: `seconds` of its last attempt, None while it is not done; `numbers` tell of it."""

    name: str
    kind: str
    round: int | None
    seconds: float | None
    tokens: Tokens
    numbers: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """Perplexities of one policy's candidates under the filtering policy.

    `quantiles` are the 5th, 25th, 50th, 75th and 95th percentile; `kept_median` is of those that
    the filter took, None if it took none.
    """

    policy: str
    count: int
    won: int
    quantiles: tuple[float, float, float, float, float]
    kept_median: float | None


@dataclass(frozen=True, slots=True)
class FilterExample:
    """One prompt's candidates: policy, perplexity, whether it won, text."""

    prompt: str
    candidates: tuple[tuple[str, float, bool, str], ...]


@dataclass(frozen=True, slots=True)
class FilterRound:
    """What a learner kept of the answers offered in a round; `merit` says by what.

    `refused` says what a guard refused of them before, empty without one.
    """

    round: int
    learner: str
    merit: str
    prompts: int
    spreads: tuple[Spread, ...]
    examples: tuple[FilterExample, ...]
    refused: str = ""


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """A training stage step by step: `columns` are loss, margin and such, of equal lengths."""

    stage: str
    agent: str
    round: int
    steps: tuple[int, ...]
    columns: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Failures:
    """Something that went wrong, counted: `of` how many, and where most of it happened."""

    what: str
    count: int
    of: int | None
    where: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Alert:
    """What the run warned of, such as a sign of collapse."""

    time: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign of collapse in one policy after one round; `ends`: evidence enough to end a run."""

    policy: str
    round: int
    name: str
    text: str
    ends: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer in a transcript; `values` are what was measured of it, by metric."""

    agent: str
    round: int
    text: str
    finished: bool
    cut: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Transcript:
    """A prompt with everybody's answers in every round."""

    prompt_id: str
    messages: tuple[tuple[str, str], ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Transcripts:
    """Transcripts, and orders to show them in.

    `total` prompts were answered, of which those in `shown` are embedded. `orders` map a title to
    the places in `shown`; `ranked_by` is the metric behind best and worst, None where none of the
    single answers was measured. `why` says how the shown ones were chosen.
    """

    shown: tuple[Transcript, ...] = ()
    total: int = 0
    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ranked_by: Metric | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Invocation:
    """A call that worked on the run: when, by which command, with what, on what."""

    time: str
    command: str
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    device: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """How the run was made; texts are without secrets."""

    config: str
    resolved: str
    invocations: tuple[Invocation, ...]
    environment: Mapping[str, str]
    data: Mapping[str, str]
    seed: int | None
    method: str


@dataclass(frozen=True, slots=True)
class RunReport:
    """Everything that the report of a run shows, as far as the run has come.

    `judgments` are people's. `checked` rounds were looked at for signs of collapse. `faults` are
    sentences on what could not be read. `cost` are sums by what they count.
    """

    name: str
    folder: str
    state: str
    stages_done: int
    stages_total: int | None
    worked_seconds: float
    last_stop: str
    rounds: int
    student: str
    agents: tuple[str, ...]
    pairs: int
    curves: tuple[Curve, ...]
    changes: tuple[Change, ...]
    judgments: tuple[Results, ...]
    filters: tuple[FilterRound, ...]
    logs: tuple[TrainingLog, ...]
    signs: tuple[Sign, ...]
    checked: int
    alerts: tuple[Alert, ...]
    failures: tuple[Failures, ...]
    stages: tuple[StageRow, ...]
    cost: Mapping[str, float]
    transcripts: Transcripts
    provenance: Provenance
    notes: tuple[str, ...]
    faults: tuple[str, ...]
